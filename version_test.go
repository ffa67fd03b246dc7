package tidemark

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// Section 2B of the failure catalogue: versions. What is not tested here:
//
//	S19  a source that goes back, declared as an epoch: not in this release. What
//	     there is, InvalidateAll, is tested in TestS12.
//	S21  clocks as versions: the store assigns versions, the cache has no clock
//	     that orders anything. What is left, a store that assigns a version that
//	     orders nothing, is tested here.
//	S22  versions in commit order: the store's contract, see store/storetest.
//	S23  a value of several rows with the version of one: the loader's contract;
//	     nothing in the cache could tell.

func TestMark_Order(t *testing.T) {
	inOrder := []mark{{}, {0, true}, {1, false}, {1, true}, {2, false}, {2, true}, {^Version(0), false}, unknownMark}
	for i, m := range inOrder {
		for j, n := range inOrder {
			assert.Equal(t, i < j, m.before(n), "%v before %v", m, n)
			assert.Equal(t, inOrder[max(i, j)], m.later(n), "%v later %v", m, n)
		}
	}
}

// Version 2 is deleted, the deletion being version 3, and the key is inserted
// again at version 4. What is at or below the deletion stays out, whatever
// brings it; the new row is not taken for an old one.
func TestS17_ADeletedKeyComesBackAboveItsDeletion(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	s.set("k", 20)
	load(t, c, "k")
	late := c.BeginFill("k")
	e, err := c.Delete(t.Context(), "k", 2)
	require.NoError(t, err)
	assert.Equal(t, Entry[int]{Version: 3, Absent: true, Age: e.Age}, e)
	_, ok := c.Get("k")
	assert.False(t, ok)
	assert.Equal(t, Stale, late.Commit(20, 2), "a fill that read the row before it was deleted")
	assert.Equal(t, Stale, c.Put("k", 20, 2))

	e, err = c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) {
		assert.True(t, cur.Absent)
		return 30, nil
	})
	require.NoError(t, err)
	assert.Equal(t, Version(4), e.Version)
	served(t, c, "k", 4, "the new row")
	assert.Equal(t, Stale, c.Put("k", 20, 3))
}

// A deletion is published with the version of the row that it removed. That row
// does not pass any more, and the entry at that version goes.
func TestS18_ADeletionComesAfterTheRowItRemoved(t *testing.T) {
	message := func(c *Cache[string, int]) {
		b, err := wire.Append(nil, &wire.Message{
			Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7, Seq: 1,
			Entries: []wire.Entry{{Key: []byte("k"), Version: 17, Deleted: true}},
		})
		require.NoError(t, err)
		require.NoError(t, c.opts.Invalidator.Hint.Publish(t.Context(), b))
	}
	absence := func(c *Cache[string, int]) { require.Equal(t, Applied, c.BeginFill("k").Absent(17)) }
	for name, deletion := range map[string]func(*Cache[string, int]){"message": message, "absence": absence} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: small, Invalidator: calm(newBus())})
			require.NoError(t, c.Ready(t.Context()))
			require.Equal(t, Applied, c.Put("k", 10, 17))
			late := c.BeginFill("k")
			deletion(c)
			_, ok := c.Get("k")
			assert.False(t, ok, "the row is gone")
			assert.Equal(t, Stale, late.Commit(10, 17), "a late fill of the row")
			assert.Equal(t, Stale, c.Put("k", 10, 17), "a late Put of the row")
			if name == "absence" {
				assert.Equal(t, Applied, c.BeginFill("k").Absent(17), "the deletion itself is not late")
			}
			assert.Equal(t, Applied, c.Put("k", 20, 18), "the next row")
		})
	}
}

// A message that tells the version of the entry is the echo of what brought it.
func TestS18_AnEchoOfTheEntryDoesNotRemoveIt(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", 10, 17))
	for version := Version(1); version <= 17; version++ {
		require.NoError(t, c.Invalidate(t.Context(), "k", version))
	}
	served(t, c, "k", 17, "nothing newer was named")
	require.NoError(t, c.Invalidate(t.Context(), "k", 18))
	missing(t, c, "k", "version 18 was named")
}

// Two values with one version break the source's contract; the cache cannot say
// which is right, so the first one stays and the caller is told.
func TestS20_AnEqualVersionChangesNothing(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", 10, 5))
	assert.Equal(t, Duplicate, c.Put("k", 99, 5))
	v, ok := c.Get("k")
	assert.True(t, ok)
	assert.Equal(t, 10, v)

	c.suspect("test")
	assert.Equal(t, Duplicate, c.Put("k", 10, 5), "no proof either: it does not make a suspect entry good")
	missing(t, c, "k", "suspect")
}

// A store says that it committed, at a version not above the base. Whatever is
// there now, this cache cannot order it.
func TestS21_AWriteMustRaiseTheVersion(t *testing.T) {
	for _, assigned := range []Version{0, 4, 5} {
		s := newSource()
		st := &oddStore{source: s, version: assigned}
		c := newCache(t, Options[string, int]{MaxCost: small, Store: st})
		require.Equal(t, Applied, c.Put("k", 10, 5))
		_, err := c.CompareAndSet(t.Context(), "k", 5, 20)
		require.ErrorIs(t, err, ErrNoVersion)
		missing(t, c, "k", "nobody knows what the key holds")
		require.Equal(t, Applied, c.BeginFill("k").Commit(10, 5))
		_, err = c.Delete(t.Context(), "k", 5)
		require.ErrorIs(t, err, ErrNoVersion)
		missing(t, c, "k", "nobody knows what the key holds")
		idle(t, c)
	}
}

// An oddStore answers every write with the same version or error.
type oddStore struct {
	*source
	version Version
	err     error
	calls   int
}

func (s *oddStore) CompareAndSet(context.Context, string, Version, int, OpID) (Version, error) {
	s.calls++
	return s.version, s.err
}

func (s *oddStore) CompareAndDelete(context.Context, string, Version, OpID) (Version, error) {
	s.calls++
	return s.version, s.err
}

// sameHash returns n keys of 16 bytes whose xxHash64 is equal. The hash takes
// such a key in two rounds; whatever the first half did to its state, a second
// half can be found that takes it where it is wanted, as every step has an
// inverse.
func sameHash(t testing.TB, n int) (keys []string) {
	const (
		p1   uint64 = 11400714785074694791
		p2   uint64 = 14029467366897019727
		p4   uint64 = 9650029242287828579
		p5   uint64 = 2870177450012600261
		size        = 16
	)
	inverse := func(odd uint64) uint64 {
		x := odd
		for range 5 {
			x *= 2 - odd*x
		}
		return x
	}
	round := func(lane uint64) uint64 { return bits.RotateLeft64(lane*p2, 31) * p1 }
	unround := func(x uint64) uint64 { return bits.RotateLeft64(x*inverse(p1), -31) * inverse(p2) }
	var seed uint64 = p5 + size
	afterHalf := func(lane uint64) uint64 { return bits.RotateLeft64(seed^round(lane), 27)*p1 + p4 }
	target := afterHalf(1) ^ round(1)
	for i := range n {
		first := uint64(i + 1)
		b := binary.LittleEndian.AppendUint64(nil, first)
		b = binary.LittleEndian.AppendUint64(b, unround(afterHalf(first)^target))
		keys = append(keys, string(b))
	}
	for _, key := range keys {
		require.Equal(t, xxhash.Sum64String(keys[0]), xxhash.Sum64String(key))
	}
	return keys
}

// Keys of one hash are different keys: each has its own state and its own loads,
// and all stay, though Ristretto, which knows hashes only, is to keep them apart.
func TestS24_KeysOfEqualHash(t *testing.T) {
	keys := sameHash(t, 8)
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s})
	c.policy.windowMax.Store(1) // so that all but the last are offered to Ristretto
	for i, key := range keys {
		s.set(key, i)
		e := load(t, c, key)
		assert.Equal(t, i, e.Value)
	}
	settle(t, c)
	seen := map[uint64]bool{}
	for i, key := range keys {
		v, ok := c.Get(key)
		assert.True(t, ok, "key %d was pushed out by one of its hash", i)
		assert.Equal(t, i, v)
		hash := c.keys.hash(key)
		p, _ := c.shards[0].table.Find(hash, key)
		seen[p.Head.call(hash, false).policyKey] = true
	}
	assert.Len(t, seen, len(keys), "to the policy they are different")
	assert.EqualValues(t, len(keys), c.Stats().Loads)

	require.NoError(t, c.Invalidate(t.Context(), keys[3], 2))
	evict(t, c, keys[5])
	for i, key := range keys {
		_, ok := c.Get(key)
		assert.Equal(t, i != 3 && i != 5, ok, "key %d", i)
	}
	e, err := c.Update(t.Context(), keys[3], func(cur Entry[int]) (int, error) { return cur.Value + 100, nil })
	require.NoError(t, err)
	assert.Equal(t, 103, e.Value)
	settle(t, c)
	served(t, c, keys[3], 2, "written beside the others")
}

// The source was restored from a backup, where versions are lower again. Once
// that is declared they are taken as they come.
func TestS19_AfterARestoreVersionsStartAgain(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	for v := range 5 {
		s.set("k", v)
	}
	assert.EqualValues(t, 5, load(t, c, "k").Version)
	s.mu.Lock()
	s.rows["k"] = row{value: 10, version: 2}
	s.mu.Unlock()
	_, err := c.Read(t.Context(), "k", Linearizable)
	require.ErrorIs(t, err, ErrStale, "undeclared, it is a source that goes back")
	require.NoError(t, c.InvalidateAll(t.Context()))
	assert.EqualValues(t, 2, load(t, c, "k").Version)
	served(t, c, "k", 2, "what the restored source has")
	_, err = c.CompareAndSet(t.Context(), "k", 2, 20)
	require.NoError(t, err)
	served(t, c, "k", 3, "and writes go on from there")
}

// sameSlot returns n keys of one shard and one slot of its tide, of different
// hash.
func sameSlot(c *Cache[string, int], n int) (keys []string) {
	var slot *tideSlot
	for i := 0; len(keys) < n; i++ {
		key := fmt.Sprint("slot", i)
		hash := c.keys.hash(key)
		if s := c.shard(hash).tide.slot(hash); slot == nil || s == slot {
			slot = s
			keys = append(keys, key)
		}
	}
	return keys
}

// Keys of one slot share a mark. Once another key has gone higher, the slot can
// no longer tell what this one has reached.
func TestS03_AnotherKeyOfTheSlotProvesNothing(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1})
	k := sameSlot(c, 2)
	require.Equal(t, Applied, c.Put(k[0], 10, 5))
	evict(t, c, k[0])
	require.Equal(t, Stale, c.Put(k[0], 10, 4), "the slot's mark is this key's")
	require.Equal(t, Applied, c.Put(k[1], 10, 9))
	evict(t, c, k[1])
	assert.Equal(t, Unproven, c.Put(k[0], 10, 3), "below 5, and all that is known is 9")
	assert.Equal(t, Unproven, c.Put(k[0], 10, 6), "above 5, but that is forgotten")
	missing(t, c, k[0], "nothing was proven")
	assert.Equal(t, Applied, c.Put(k[0], 10, 9))
}

// Nothing shows that a Put is newer than a change that nobody numbered, unless
// there is nothing but Puts.
func TestS03_AfterAChangeWithoutAVersionNoPutIsProven(t *testing.T) {
	c := onSource(t, newSource())
	require.NoError(t, c.Invalidate(t.Context(), "k", 0))
	assert.Equal(t, Unproven, c.Put("k", 10, 1))
	missing(t, c, "k", "it may be from before the change")

	alone := newCache(t, Options[string, int]{MaxCost: small})
	require.NoError(t, alone.Invalidate(t.Context(), "k", 0))
	assert.Equal(t, Applied, alone.Put("k", 10, 1))
}

// The same after InvalidateAll, whether or not there was an entry.
func TestS12_NoPutIsProvenAfterInvalidateAll(t *testing.T) {
	c := onSource(t, newSource())
	require.Equal(t, Applied, c.Put("k", 10, 1))
	require.NoError(t, c.InvalidateAll(t.Context()))
	assert.Equal(t, Unproven, c.Put("k", 20, 2))
	assert.Equal(t, Unproven, c.Put("j", 20, 2))
	missing(t, c, "k", "it may be from before")
	missing(t, c, "j", "it may be from before")
}

// An absence without a version has replaced version 5, in a cache that takes its
// Puts' word for all that it cannot compare.
func TestS08_AnAbsenceWithoutAVersionLeavesTheMark(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", 10, 5))
	require.Equal(t, Applied, c.BeginFill("k").Absent(0))
	assert.Equal(t, Stale, c.Put("k", 10, 3))
	assert.Equal(t, Applied, c.Put("k", 10, 6))
}

// An absence without a version is evicted.
func TestS08_AfterAnAbsenceWithoutAVersionNoPutIsProven(t *testing.T) {
	c := onSource(t, newSource())
	require.Equal(t, Applied, c.BeginFill("k").Absent(0))
	evict(t, c, "k")
	assert.Equal(t, Unproven, c.Put("k", 10, 1))
}

// Versions of keys that share a hash are not compared with each other, but where
// a bare Put cannot tell them apart.
func TestS24_MarksOfEqualHash(t *testing.T) {
	keys := sameHash(t, 2)
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s})
	s.set(keys[1], 10)
	require.Equal(t, Applied, c.Put(keys[0], 1, 9))
	load(t, c, keys[1])
	served(t, c, keys[1], 1, "a load is not held against another key's mark")
	evict(t, c, keys[0])
	evict(t, c, keys[1])
	load(t, c, keys[1])
	served(t, c, keys[1], 1, "nor against a forgotten one's")
	evict(t, c, keys[1])
	assert.NotEqual(t, Applied, c.Put(keys[1], 10, 1), "to a bare Put the mark may be its own")
}

// Two deployments with values of different meaning share a subject. Neither
// hears the other.
func TestS25_TheSchemaIsPartOfTheName(t *testing.T) {
	b := newBus()
	inv := calm(b)
	blue := newCache(t, Options[string, int]{MaxCost: small, Invalidator: inv})
	inv.Schema = "2"
	green := newCache(t, Options[string, int]{MaxCost: small, Invalidator: inv})
	inv.Name, inv.Schema = inv.Name+"\x002", "" // not the same as the name "test" and the schema "2"
	other := newCache(t, Options[string, int]{MaxCost: small, Invalidator: inv})
	all := []*Cache[string, int]{blue, green, other}
	for _, c := range all {
		require.NoError(t, c.Ready(t.Context()))
		require.Equal(t, Applied, c.Put("k", 10, 1))
	}
	require.NoError(t, blue.Invalidate(t.Context(), "k", 2))
	missing(t, blue, "k", "its own invalidation")
	served(t, green, "k", 1, "another schema's invalidation")
	require.NoError(t, green.InvalidateAll(t.Context()))
	missing(t, green, "k", "its own invalidation")
	served(t, other, "k", 1, "another name's invalidation")
	for i, c := range all {
		assert.Zero(t, c.Stats().Received, "replica %d", i)
		assert.Positive(t, c.Stats().Foreign, "replica %d", i)
	}
}

// Values are shared, not copied: readers get what was put. Who changes what a
// value points to breaks the contract that Get and Entry state.
func TestS26_ReadersShareTheValue(t *testing.T) {
	type account struct{ balance int }
	a := &account{850}
	c := newCache(t, Options[string, *account]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", a, 1))
	for range 2 {
		got, ok := c.Get("k")
		assert.True(t, ok)
		assert.Same(t, a, got)
	}
	e, ok := c.GetEntry("k")
	assert.True(t, ok)
	assert.Same(t, a, e.Value)
}

// The same for slices: the cache keeps the loader's, and copies no bytes.
func TestS27_TheLoadersValueIsKeptAsItIs(t *testing.T) {
	loaded := []byte("statement")
	c := newCache(t, Options[string, []byte]{MaxCost: small, Loader: LoaderFunc[string, []byte](
		func(context.Context, string) ([]byte, Version, error) { return loaded, 1, nil })})
	e, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	got, ok := c.Get("k")
	assert.True(t, ok)
	assert.Same(t, &loaded[0], &e.Value[0])
	assert.Same(t, &loaded[0], &got[0])
}

// What names outcomes and levels for people.
func TestOutcome_StringAndErr(t *testing.T) {
	for o, want := range map[Outcome]string{
		Applied: "applied", Duplicate: "duplicate", Stale: "stale", Unproven: "unproven",
		TooLarge: "too large", Closed: "closed", 0: "invalid", 99: "invalid",
	} {
		assert.Equal(t, want, o.String())
		assert.Equal(t, want, fmt.Sprint(o))
		switch o {
		case TooLarge:
			require.ErrorIs(t, o.Err(), ErrTooLarge)
		case Closed:
			require.ErrorIs(t, o.Err(), ErrClosed)
		default:
			require.NoError(t, o.Err())
		}
	}
}
