package tidemark

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// Section 2F of the failure catalogue: what goes wrong within one process. How
// Ristretto behaves, and the coupling to it in general, is in the policy's tests.

// recordOf returns the ticket of a key that has an entry, and the state of its
// record.
func recordOf[V any](t testing.TB, c *Cache[string, V], key string) (ticket, state) {
	t.Helper()
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.table.Find(hash, key)
	require.True(t, ok, "%q has no entry", key)
	return ticket{hash, p.Head.record}, p.Head.state()
}

// setState pretends that a key's record is in another state.
func setState[V any](c *Cache[string, V], key string, to state) {
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, _ := s.table.Find(hash, key)
	p.Head.setState(to)
}

// offerAll makes every window entry of a cache Ristretto's.
func offerAll[V any](t testing.TB, c *Cache[string, V]) {
	t.Helper()
	c.policy.windowMax.Store(0)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.overflowLocked(c.moment())
		s.mu.Unlock()
	}
	settle(t, c)
}

// An entry is offered to Ristretto, dropped, and its key inserted anew. Then the
// callback for the old one comes, late, twice, or empty: the new one stays.
func TestS71_ACallbackForAnOldEntryDoesNotRemoveTheNew(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1})
	require.Equal(t, Applied, c.Put("k", 10, 1))
	require.Equal(t, Applied, c.Put("last", 1, 1)) // the newest stays in the window
	offerAll(t, c)
	old, now := recordOf(t, c, "k")
	require.Equal(t, offered, now)
	require.NoError(t, c.Invalidate(t.Context(), "k", 2))
	require.Equal(t, Applied, c.Put("k", 20, 2))
	for range 2 {
		c.left(old)
		c.left(ticket{})
	}
	served(t, c, "k", 2, "the old entry's callback")
	require.Equal(t, Applied, c.Put("newest", 1, 1))
	offerAll(t, c)
	for range 2 {
		c.left(old)
	}
	served(t, c, "k", 2, "the old entry's callback, with the new one offered too")

	recent, now := recordOf(t, c, "k")
	require.NotEqual(t, old, recent)
	require.Equal(t, offered, now)
	c.left(recent)
	missing(t, c, "k", "its own callback")
	c.left(recent)
}

// The callback comes for an entry that was not given to Ristretto, or not yet,
// as when another entry had its policy key.
func TestS71_OnlyAnOfferedEntryLeaves(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1})
	require.Equal(t, Applied, c.Put("k", 10, 1))
	r, now := recordOf(t, c, "k")
	require.Equal(t, inWindow, now)
	c.left(r)
	served(t, c, "k", 1, "in the window")
	setState(c, "k", queued)
	c.left(r)
	served(t, c, "k", 1, "queued")
	setState(c, "k", inWindow)
}

// A burst of new keys, ten times what fits and more than Ristretto's queue
// takes, and each written twice. Afterwards every entry is in the window or
// known to Ristretto, and Ristretto knows nothing else.
func TestS71_NoEntryIsUntrackedAfterABurst(t *testing.T) {
	const maxCost, keys = 4_000, 40_000
	c := newCache(t, Options[string, int]{MaxCost: maxCost, Shards: 4})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; i < keys; i += 4 {
				c.Put(fmt.Sprint(i), 1, 1)
				c.Put(fmt.Sprint(i), 2, 2)
			}
		})
	}
	wg.Wait()
	settle(t, c)
	require.NoError(t, c.check())
	entries := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for key := range s.table.All {
			entries++
			hash := c.keys.hash(key)
			p, _ := s.table.Find(hash, key)
			assert.EqualValues(t, 2, p.Head.version.Load())
			if p.Head.state() == offered {
				r := p.Head.call(hash, false)
				have, ok := c.policy.sketch.Get(r.policyKey)
				assert.True(t, ok && have == r.ticket, "entry %s is untracked", key)
			}
		}
		s.mu.Unlock()
	}
	assert.Equal(t, entries, c.Len())
	assert.Greater(t, entries, maxCost/2)
	assert.LessOrEqual(t, c.Stats().Cost, int64(maxCost))
}

// Everything is thrown away while a fill is about to store. The fill is refused,
// and what was stored before is not counted, yielded or kept.
func TestS72_InvalidateAllBesideFills(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1})
	for i := range 200 {
		require.Equal(t, Applied, c.Put(fmt.Sprint(i), i, 1))
	}
	fill := c.BeginFill("k")
	require.NoError(t, c.InvalidateAll(t.Context()))
	assert.Equal(t, Unproven, fill.Commit(10, 1))
	assert.Zero(t, c.Len())
	assert.Empty(t, maps.Collect(c.All()))
	require.Equal(t, Applied, c.BeginFill("k").Commit(10, 1))
	assert.Equal(t, 1, c.Len(), "the new generation's entry")
	served(t, c, "k", 1, "filled since")
	eventually(t, func() bool { return c.Stats().Cost == 1 }, "what was thrown away is swept")
	require.NoError(t, c.check())
}

// Many goroutines fill while everything is thrown away again and again: nothing
// that was begun before is served afterwards, and nothing gets lost count of.
func TestS72_InvalidateAllBesideManyFills(t *testing.T) {
	const fillers, rounds = 4, 150
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 2})
	var epoch sync.RWMutex // held for writing around InvalidateAll: fillers know what they may see
	round := 0
	var wg sync.WaitGroup
	for g := range fillers {
		wg.Go(func() {
			for i := range rounds * 10 {
				key := fmt.Sprint(i % 7)
				epoch.RLock()
				began := round
				f := c.BeginFill(key)
				epoch.RUnlock()
				if i%10 == 0 { // a slow one, so that some are overtaken
					time.Sleep(50 * time.Microsecond)
				}
				f.Commit(began, Version(1+i+g*rounds*10))
				epoch.RLock()
				if v, ok := c.Get(key); ok {
					assert.Equal(t, round, v, "filled before the last InvalidateAll")
				}
				epoch.RUnlock()
			}
		})
	}
	for range rounds {
		epoch.Lock()
		round++
		assert.NoError(t, c.InvalidateAll(t.Context()))
		epoch.Unlock()
		time.Sleep(20 * time.Microsecond)
	}
	wg.Wait()
	require.NoError(t, c.check())
	idle(t, c)
}

// Fills, writes and Puts end after Close: nothing is served, nothing panics.
func TestS72_CloseBesideFills(t *testing.T) {
	s := newSource()
	c, err := New(Options[string, int]{MaxCost: small, Store: s})
	require.NoError(t, err)
	fills := []*Fill[string, int]{c.BeginFill("a"), c.BeginFill("b"), c.BeginFill("c")}
	var wg sync.WaitGroup
	start := make(chan struct{})
	for g := range 4 {
		wg.Go(func() {
			<-start
			for i := range 200 {
				c.Put(fmt.Sprint(i), g, Version(i+1))
				_, _ = c.Load(t.Context(), fmt.Sprint(i))
				_ = c.InvalidateAll(t.Context())
				_ = c.Resize(small)
			}
		})
	}
	close(start)
	require.NoError(t, c.Close(t.Context()))
	assert.Equal(t, Closed, fills[0].Commit(1, 1))
	assert.Equal(t, Closed, fills[1].Absent(1))
	fills[2].Cancel()
	wg.Wait()
	for i := range 200 {
		missing(t, c, fmt.Sprint(i), "the cache is closed")
	}
	missing(t, c, "a", "the cache is closed")
	assert.Equal(t, Closed, c.Put("k", 1, 1))
	require.NoError(t, c.check())
	idle(t, c)
}

// All runs, and in the middle everything is thrown away, or becomes suspect, or
// a key changes: what comes after is what a read would find then.
func TestS73_IterationSeesNoHalfOfABulkFlush(t *testing.T) {
	const n = 100
	for name, flush := range map[string]func(*Cache[string, int]){
		"InvalidateAll": func(c *Cache[string, int]) { require.NoError(t, c.InvalidateAll(t.Context())) },
		"suspicion":     func(c *Cache[string, int]) { c.suspect("test") },
		"Close":         func(c *Cache[string, int]) { require.NoError(t, c.Close(t.Context())) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: small, Shards: 4})
			for i := range n {
				require.Equal(t, Applied, c.Put(fmt.Sprint(i), i, 1))
			}
			seen := 0
			for range c.All() {
				if seen++; seen == 10 {
					flush(c)
				}
			}
			assert.Equal(t, 10, seen)
			assert.Empty(t, maps.Collect(c.All()))
		})
	}
	t.Run("single keys", func(t *testing.T) {
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 4})
		for i := range n {
			require.Equal(t, Applied, c.Put(fmt.Sprint(i), i, 1))
		}
		var seen []string
		for key, e := range c.All() {
			seen = append(seen, key)
			assert.Equal(t, key, fmt.Sprint(e.Value))
			for i := range n { // the loop's body may use the cache
				if other := fmt.Sprint(i); len(seen) == 1 && other != key && i%2 == 0 {
					require.NoError(t, c.Invalidate(t.Context(), other, 2))
				}
			}
		}
		left := slices.Sorted(maps.Keys(maps.Collect(c.All())))
		slices.Sort(seen)
		assert.Equal(t, left, seen, "what had changed was not yielded any more")
	})
	t.Run("break", func(t *testing.T) {
		c := newCache(t, Options[string, int]{MaxCost: small})
		for i := range n {
			require.Equal(t, Applied, c.Put(fmt.Sprint(i), i, 1))
		}
		for range c.All() {
			break
		}
		require.NoError(t, c.check())
	})
}

// A message names keys of two shards, in either order; the lock of one of them
// is held. While the message waits for that lock it holds no other: so no two
// messages can wait for each other.
func TestS74_AMessageForManyKeysHoldsOneLockAtATime(t *testing.T) {
	b := newBus()
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 4, Invalidator: calm(b)})
	require.NoError(t, c.Ready(t.Context()))
	first, second := "k", ""
	for i := range 100 {
		if second = fmt.Sprint(i); c.shard(c.keys.hash(second)) != c.shard(c.keys.hash(first)) {
			break
		}
	}
	for seq, keys := range [][]string{{first, second}, {second, first}} {
		require.Equal(t, Applied, c.Put(first, 10, Version(2*seq+1)))
		require.Equal(t, Applied, c.Put(second, 10, Version(2*seq+1)))
		m := &wire.Message{Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7, Seq: uint64(seq + 1)}
		for _, key := range keys {
			m.Entries = append(m.Entries, wire.Entry{Key: []byte(key), Version: uint64(2*seq + 2)})
		}
		msg, err := wire.Append(nil, m)
		require.NoError(t, err)

		held := c.shard(c.keys.hash(keys[1]))
		held.mu.Lock()
		delivered := make(chan struct{})
		go func() {
			defer close(delivered)
			assert.NoError(t, b.Publish(t.Context(), msg))
		}()
		eventually(t, func() bool { _, ok := c.Get(keys[0]); return !ok }, "the first key is done")
		free := c.shard(c.keys.hash(keys[0]))
		eventually(t, func() bool { // other work may have it for a moment
			if !free.mu.TryLock() {
				return false
			}
			free.mu.Unlock()
			return true
		}, "the first key's lock is free, while the second's is waited for")
		served(t, c, keys[1], Version(2*seq+1), "reads need no lock")
		held.mu.Unlock()
		<-delivered
		missing(t, c, keys[1], "the second key is done")
	}
}
