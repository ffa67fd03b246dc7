package table

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A head is what the tests store beside each value.
type head struct {
	version atomic.Uint64
	check   atomic.Uint64 // ^version
	note    int64         // a writer's own
}

func (h *head) set(version uint64) {
	h.version.Store(version)
	h.check.Store(^version)
	h.note = int64(version)
}

func newTable[K comparable, V any](hash func(K) uint64, most int) *Table[K, V, head] {
	t := new(Table[K, V, head])
	t.Init(NewLayout[K, V, head](hash), most)
	return t
}

func put[K comparable, V any](t *Table[K, V, head], hash uint64, key K, v V, version uint64) {
	if r, ok := t.Find(hash, key); ok {
		t.Begin(r)
		r.Head.set(version)
		t.SetValue(r, &v)
		t.End(r)
		return
	}
	r := t.Insert(hash, key)
	r.Head.set(version)
	t.SetValue(r, &v)
	t.Publish(r, hash)
}

func get[K comparable, V any](t *Table[K, V, head], hash uint64, key K) (v V, version uint64, ok bool) {
	for {
		r, ok := t.Load(hash, key, &v)
		if !ok {
			var none V
			return none, 0, false
		}
		version, check := r.Head.version.Load(), r.Head.check.Load()
		if r.Valid() {
			if check != ^version {
				panic("a torn head")
			}
			return v, version, true
		}
	}
}

func remove[K comparable, V any](t *Table[K, V, head], hash uint64, key K) {
	if r, ok := t.Find(hash, key); ok {
		t.Delete(r, hash)
	}
}

// Types of keys and values of every layout.

type (
	pair  struct{ a, b int32 }
	mixed struct {
		name string
		n    int64
		p    *int64
		any  any
		list []int64
	}
	odd   struct{ a, b, c byte }
	large [40]uint64
	deep  struct {
		m [20]mixed
	}
)

func key[K comparable](n int) (k K) {
	switch p := any(&k).(type) {
	case *string:
		*p = fmt.Sprint(n) // 1 to 60 bytes
		if n%5 > 1 {
			*p += strings.Repeat("x", n%60)
		}
	case *uint64:
		*p = uint64(n) * 0x9e3779b97f4a7c15
	case *int8:
		*p = int8(n)
	case *int16:
		*p = int16(-n)
	case *int32:
		*p = int32(-n)
	case *pair:
		*p = pair{int32(n), int32(-n)}
	case *[2]string:
		*p = [2]string{fmt.Sprint(n), "b"}
	}
	return k
}

// value returns one in which every word says x.
func value[V any](x uint64) (v V) {
	n := int64(x)
	switch p := any(&v).(type) {
	case *int:
		*p = int(x)
	case *string:
		*p = strings.Repeat(fmt.Sprint(x), int(x%3)+1)
	case *odd:
		*p = odd{byte(x), byte(x), byte(x)}
	case *[5]uint64:
		*p = [5]uint64{x, x, x, x, x}
	case *large:
		for i := range p {
			p[i] = x
		}
	case *mixed:
		*p = mixed{fmt.Sprint(x), n, &n, x, []int64{n, n}}
		if x%2 == 0 {
			p.any = fmt.Sprint(x)
		}
	case *deep:
		for i := range p.m {
			p.m[i] = value[mixed](x)
		}
	case *any:
		*p = x
	case *error:
		*p = fmt.Errorf("%d", x)
	case **int64:
		*p = &n
	}
	return v
}

func TestTable(t *testing.T) {
	t.Run("string/int", tableTests[string, int])
	t.Run("string/string", tableTests[string, string])
	t.Run("uint64/[5]uint64", tableTests[uint64, [5]uint64])
	t.Run("int8/odd", tableTests[int8, odd])
	t.Run("int16/mixed", tableTests[int16, mixed])
	t.Run("int32/large", tableTests[int32, large])
	t.Run("pair/any", tableTests[pair, any])
	t.Run("[2]string/error", tableTests[[2]string, error])
	t.Run("string/deep", tableTests[string, deep])
	t.Run("string/*int64", tableTests[string, *int64])
	t.Run("string/struct{}", tableTests[string, struct{}])
}

func tableTests[K comparable, V any](t *testing.T) {
	t.Run("is a map", isMap[K, V])
	t.Run("never misses and never tears", holdsStill[K, V])
}

func isMap[K comparable, V any](t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const keys = 40
		hashes := []uint64{0, 1, 8, 1 << 32, ^uint64(0), 255, 256} // few: long chains are common
		few := rapid.Bool().Draw(t, "few hashes")
		hash := func(k K) uint64 {
			h := xxhash.Sum64String(fmt.Sprint(k))
			if few {
				return hashes[h%uint64(len(hashes))]
			}
			return h
		}
		tab := newTable[K, V](hash, 50)
		type state struct {
			version uint64
			value   V
		}
		model := map[K]state{}
		any := rapid.Custom(func(t *rapid.T) K { return key[K](rapid.IntRange(0, keys).Draw(t, "key")) })
		version := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "times") {
					k := any.Draw(t, "k")
					version++
					v := value[V](version)
					put(tab, hash(k), k, v, version)
					model[k] = state{version, v}
				}
			},
			"delete": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "times") {
					k := any.Draw(t, "k")
					remove(tab, hash(k), k)
					delete(model, k)
				}
			},
			"shrink": func(*rapid.T) { tab.Shrink() },
			"": func(t *rapid.T) {
				require.Equal(t, len(model), tab.Len())
				seen := map[K]bool{}
				tab.All(func(k K) bool { seen[k] = true; return true })
				require.Len(t, seen, len(model))
				cells := 0
				for i := range tab.Cells() {
					if r, ok := tab.At(i + 3*tab.Cells()); ok {
						cells++
						require.Equal(t, int64(r.Head.version.Load()), r.Head.note)
					}
				}
				require.Equal(t, len(model), cells)
				for i := range keys + 1 {
					k := key[K](i)
					v, version, ok := get(tab, hash(k), k)
					have, want := model[k]
					require.Equal(t, want, ok, "%v", k)
					require.Equal(t, want, seen[k])
					require.Equal(t, have, state{version, v})
					if ok {
						r, _ := tab.Find(hash(k), k)
						require.Equal(t, hash(k), tab.Hash(r))
						same, ok := tab.FindFunc(hash(k), func(o Ref[head]) bool { return o.Head.version.Load() == version })
						require.True(t, ok && same.Same(r))
					}
				}
			},
		})
	})
}

// A key that is always present is always found, whatever grows, shrinks and
// churns around it; its value never goes back and is never of two Puts.
func holdsStill[K comparable, V any](t *testing.T) {
	hash := func(k K) uint64 { return xxhash.Sum64String(fmt.Sprint(k)) }
	tab := newTable[K, V](hash, 50)
	k := key[K](101)
	put(tab, hash(k), k, value[V](1), 1)
	fleeting := key[K](102)
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			last := uint64(0)
			for !done.Load() {
				v, version, ok := get(tab, hash(k), k)
				if !assert.True(t, ok) || !assert.GreaterOrEqual(t, version, last) {
					return
				}
				if version != last && !assert.Equal(t, value[V](version), v) {
					return
				}
				last = version
				if v, version, ok := get(tab, hash(fleeting), fleeting); ok && !assert.Equal(t, value[V](version), v) {
					return
				}
				runtime.Gosched()
			}
		})
	}
	for i := range uint64(1500) {
		other := key[K](int(i % 100))
		if i/100%2 == 0 {
			put(tab, hash(other), other, value[V](i), i)
		} else {
			remove(tab, hash(other), other)
		}
		if i%7 == 0 {
			tab.Shrink()
		}
		put(tab, hash(k), k, value[V](i+2), i+2)
		put(tab, hash(fleeting), fleeting, value[V](i+5), i+5)
		remove(tab, hash(fleeting), fleeting)
	}
	done.Store(true)
	wg.Wait()
}

// What is deleted is free: churn does not grow the table, and keys of one hash,
// any number of them, do not lie in the way of others.
func TestTable_ChurnDoesNotGrow(t *testing.T) {
	tab := newTable[string, int](xxhash.Sum64String, 50)
	for i := range 100_000 {
		k := fmt.Sprint(i)
		put(tab, xxhash.Sum64String(k), k, i, 1)
		if i >= 100 {
			old := fmt.Sprint(i - 100)
			remove(tab, xxhash.Sum64String(old), old)
		}
	}
	assert.Equal(t, 100, tab.Len())
	assert.LessOrEqual(t, tab.Cells(), uint64(512))
}

// Keys of one hash lie in nobody's way, and when they are gone no
// group remembers them: what looks for a key ends where it begins.
func TestTable_AFloodLeavesNothingBehind(t *testing.T) {
	tab := newTable[string, int](func(string) uint64 { return 42 }, 0)
	for i := range floodKeys {
		put(tab, 42, fmt.Sprint(i), i, 1)
	}
	full := 0
	b := tab.current.Load()
	for g := range b.groups {
		if *b.control(g)&tagBits != 0 {
			full++
		}
	}
	assert.LessOrEqual(t, full, floodKeys/slots+1, "they follow each other")
	for i := range floodKeys {
		remove(tab, 42, fmt.Sprint(i))
	}
	b = tab.current.Load()
	for g := range b.groups {
		require.Zero(t, *b.control(g), "group %d", g)
	}
}

// If what Crowded names is deleted, a search looks at a bounded number of groups,
// however many keys of one hash there are.
func TestTable_AFloodIsBounded(t *testing.T) {
	tab := newTable[string, int](func(k string) uint64 {
		if k[0] == 'x' {
			return 42
		}
		return xxhash.Sum64String(k)
	}, 0)
	for i := range 20_000 {
		k := fmt.Sprint(i)
		put(tab, xxhash.Sum64String(k), k, i, 1)
	}
	crowded := 0
	for i := range 10_000 {
		if r, ok := tab.Crowded(42); ok {
			crowded++
			tab.Delete(r, tab.Hash(r))
		}
		put(tab, 42, fmt.Sprint("x", i), i, 1)
		_, _, ok := get(tab, 42, fmt.Sprint("x", i))
		require.True(t, ok)
	}
	assert.Greater(t, crowded, 9000)
	assert.LessOrEqual(t, tab.Len(), 20_000+10_000-crowded)
	b := tab.current.Load()
	path := 0
	for g := b.home(42); *b.control(g) >= wentOn && path < 1000; g = b.after(g, 42) {
		path++
	}
	assert.LessOrEqual(t, path, 2*maxPath, "groups, of which some are passed by others")
}

// Keys that nobody has chosen for it crowd nothing, at the highest load.
func TestTable_NobodyIsCrowdedOut(t *testing.T) {
	tab := newTable[uint64, int](hashInteger, 200_000)
	for i := range 200_000 {
		k := uint64(i)
		_, crowded := tab.Crowded(hashInteger(k))
		require.False(t, crowded, "of %d keys", i)
		put(tab, hashInteger(k), k, i, 1)
	}
	assert.Greater(t, float64(tab.Len())/float64(tab.Cells()), 0.8, "load")
	for i := range 200_000 { // on top of the last one, without growing
		_, crowded := tab.Crowded(hashInteger(uint64(1_000_000 + i)))
		require.False(t, crowded)
	}
}

func hashInteger(k uint64) uint64 {
	return xxhash.Sum64(binary.LittleEndian.AppendUint64(nil, k))
}

// Who looks at a cell while its key is replaced may see words of a long key that came
// in between, and the block's first one: there may be no box yet where they lead.
func TestTable_ABoxThatIsNotThere(t *testing.T) {
	long := strings.Repeat("long", 20)
	hash := xxhash.Sum64String(long)
	tab := newTable[string, int](func(string) uint64 { return hash }, 10)
	put(tab, hash, "short", 1, 1)
	b := tab.current.Load()
	for i := range b.groups * slots {
		tab.store(b.cell(i), word, hash)
		tab.store(b.cell(i), 3*word, boxMark|uint64(len(long)))
	}
	_, ok := tab.Find(hash, long)
	assert.False(t, ok)
	_, _, ok = get(tab, hash, long)
	assert.False(t, ok)
}

// Who looks at a cell while a writer is at it may see the words of one key and the box
// of another, which has fewer bytes: they are not read, and who looks begins anew
// instead of missing a key that may be there.
func TestTable_ABoxOfAnotherKey(t *testing.T) {
	long, other := strings.Repeat("long", 20), strings.Repeat("other", 5)
	hash := xxhash.Sum64String(long)
	tab := newTable[string, int](func(string) uint64 { return hash }, 10)
	put(tab, hash, long, 1, 1)
	r, ok := tab.Find(hash, long)
	require.True(t, ok)
	b, c := tab.current.Load(), unsafe.Pointer(r.seq)
	assert.True(t, tab.hasBoxed(b, c, r.index, r.saw, hash, &long))
	assert.False(t, tab.hasBoxed(b, c, r.index, r.saw, hash, &other))
	equal := strings.Repeat("gnol", 20)
	assert.False(t, tab.hasBoxed(b, c, r.index, r.saw, hash, &equal), "of one hash and length")

	tab.Begin(r)
	b.setBox(r.index, unsafe.Pointer(unsafe.StringData(other)))
	assert.True(t, tab.hasBoxed(b, c, r.index, r.saw, hash, &long), "it has not held still")
	_, ok = tab.keyAt(b, &r)
	assert.False(t, ok, "words and box are not of one key")
	tab.End(r)
	assert.False(t, r.Valid())
}

// Who has seen the tag of a long key in the control word, and looks at the cell when
// the key has been deleted and the box of a shorter one is written, but not yet its
// length, must not read as many bytes of it as the old one had.
func TestTable_ABoxWithoutItsLength(t *testing.T) {
	const hash = 7
	old, next := strings.Repeat("a", 4096), strings.Repeat("a", 24)
	tab := newTable[string, int](func(string) uint64 { return hash }, 10)
	put(tab, hash, old, 1, 1)
	r, ok := tab.Find(hash, old)
	require.True(t, ok)
	b, c := tab.current.Load(), unsafe.Pointer(r.seq)
	seen := atomic.LoadUint64(b.control(r.index / slots))
	tab.Delete(r, hash)
	atomic.StoreUint64(b.control(r.index/slots), seen) // what the reader goes by

	atomic.StoreUint64(r.seq, tab.load(c, 0)|writing) // the first half of Insert
	b.setBox(r.index, unsafe.Pointer(unsafe.StringData(next)))
	found := make(chan bool)
	go func() {
		_, _, ok := get(tab, hash, old)
		found <- ok
	}()
	select {
	case <-found:
		t.Error("the reader did not wait for the writer")
	case <-time.After(50 * time.Millisecond):
	}
	tab.setKey(b, r.index, new(next), hash)
	atomic.StoreUint64(r.seq, tab.load(c, 0)&^(writing|dead)+4)
	assert.False(t, <-found)
}

// A table that has as many keys as are expected at most takes little more than their
// cells; one that is still growing, at most twice as much.
func TestTable_TakesLittleMoreThanItsCells(t *testing.T) {
	const most = 5000
	mix := func(k uint64) uint64 { return xxhash.Sum64String(fmt.Sprint(k)) }
	s := newTable[uint64, [4]uint64](mix, most)
	cell := uint64(s.stride)
	size := func() uint64 {
		b := s.current.Load()
		return uint64(8*len(b.words) + 4*len(b.passed))
	}
	for key := range uint64(most) {
		put(s, mix(key), key, [4]uint64{}, 1)
		if n := key + 1; n > 100 {
			require.LessOrEqual(t, size(), n*cell*5/2, "%d keys", n)
		}
	}
	t.Logf("%d cells of %d bytes: %.2f times that", most, cell, float64(size())/float64(most*cell))
	assert.Less(t, size(), most*cell*12/10)
	for key := uint64(most); key < 2*most; key++ {
		put(s, mix(key), key, [4]uint64{}, 1)
		require.Less(t, size(), (key+1)*cell*3/2, "more than expected: %d", key+1)
	}
}

func TestTable_PutOfAPresentKeyAllocatesNothing(t *testing.T) {
	tab := newTable[string, [4]uint64](xxhash.Sum64String, 50)
	n := uint64(0)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		n++
		put(tab, 1, "account-00001", [4]uint64{n}, n)
		v, _, _ := get(tab, 1, "account-00001")
		if v[0] != n {
			t.Fail()
		}
	}))
}

func TestTable_DeletedValuesAreLetGo(t *testing.T) {
	type ofPointer struct {
		p *[1 << 16]byte
		_ [20]uint64 // too large for the table
	}
	for name, tt := range map[string]func(p *[1 << 16]byte) (remove func()){
		"beside": func(p *[1 << 16]byte) func() {
			tab := newTable[string, *[1 << 16]byte](xxhash.Sum64String, 1)
			put(tab, 1, "k", p, 1)
			return func() { remove(tab, 1, "k") }
		},
		"apart": func(p *[1 << 16]byte) func() {
			tab := newTable[string, ofPointer](xxhash.Sum64String, 1)
			put(tab, 1, "k", ofPointer{p: p}, 1)
			return func() { remove(tab, 1, "k") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			let := make(chan struct{})
			p := new([1 << 16]byte)
			runtime.AddCleanup(p, func(struct{}) { close(let) }, struct{}{})
			remove := tt(p)
			remove()
			for range 100 {
				runtime.GC()
				select {
				case <-let:
					runtime.KeepAlive(remove)
					return
				case <-time.After(time.Millisecond):
				}
			}
			assert.Fail(t, "the value is held on to")
			runtime.KeepAlive(remove)
		})
	}
}
