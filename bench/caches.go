package main

//go:generate go run ./loopgen loops.go

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/Yiling-J/theine-go"
	"github.com/allegro/bigcache/v3"
	"github.com/cespare/xxhash/v2"
	"github.com/coocood/freecache"
	"github.com/dgraph-io/ristretto/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"
	"github.com/puzpuzpuz/xsync/v4"
	"github.com/viccon/sturdyc"

	"github.com/tidemark-go/tidemark"
)

// Each cache has a small type with get, put and versions, which the loops call
// and the compiler inlines. A cache is set up as its documentation advises for
// a bound on the number of entries; where that leaves a choice, a comment says
// what was chosen.

// unversioned is embedded by caches whose writes carry no version.
type unversioned struct{}

func (unversioned) versions(int) uint64 { return 0 }

func nothing() {}

// tidemarkCache gets a newer version with each put. ExpectedEntries is set
// because its default stops at a million.
type tidemarkCache[K comparable, V payload] struct {
	c      *tidemark.Cache[K, V]
	newest *atomic.Uint64
}

func (t tidemarkCache[K, V]) get(k K) (V, bool) { return t.c.Get(k) }

func (t tidemarkCache[K, V]) put(k K, v V, version uint64) { t.c.Put(k, v, tidemark.Version(version)) }

// versions takes n numbers at once, so that no counter is shared in the loop: a
// program has its versions from its database.
func (t tidemarkCache[K, V]) versions(n int) uint64 { return t.newest.Add(uint64(n)) }

func newTidemark[K identifier, V payload](capacity int) (*contender[K], error) {
	c, err := tidemark.New(tidemark.Options[K, V]{MaxCost: int64(capacity), ExpectedEntries: int64(capacity)})
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "tidemark", loops: tidemarkCache[K, V]{c, new(atomic.Uint64)}.loops(), settle: nothing,
		close: func() { _ = c.Close(context.Background()) }, evicts: true,
	}, nil
}

// otterCache has nothing but its maximum, as otter's own benchmarks do.
type otterCache[K comparable, V payload] struct {
	unversioned
	c *otter.Cache[K, V]
}

func (o otterCache[K, V]) get(k K) (V, bool) { return o.c.GetIfPresent(k) }

func (o otterCache[K, V]) put(k K, v V, _ uint64) { o.c.Set(k, v) }

func newOtter[K identifier, V payload](capacity int) (*contender[K], error) {
	c, err := otter.New(&otter.Options[K, V]{MaximumSize: capacity})
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "otter", loops: otterCache[K, V]{c: c}.loops(), settle: c.CleanUp,
		close: func() { c.InvalidateAll(); c.StopAllGoroutines() }, evicts: true,
	}, nil
}

// theineCache has the defaults of theine's builder. Its pool of entries is off,
// because with it two goroutines may race for an entry, says its README.
type theineCache[K comparable, V payload] struct {
	unversioned
	c *theine.Cache[K, V]
}

func (t theineCache[K, V]) get(k K) (V, bool) { return t.c.Get(k) }

func (t theineCache[K, V]) put(k K, v V, _ uint64) { t.c.Set(k, v, 1) }

func newTheine[K identifier, V payload](capacity int) (*contender[K], error) {
	c, err := theine.NewBuilder[K, V](int64(capacity)).Build()
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "theine", loops: theineCache[K, V]{c: c}.loops(), settle: c.Wait, close: c.Close, evicts: true,
	}, nil
}

// ristrettoCache has ten counters for each entry and buffers of 64, as its
// README advises, and counts entries, not bytes.
type ristrettoCache[K identifier, V payload] struct {
	unversioned
	c *ristretto.Cache[K, V]
}

func (r ristrettoCache[K, V]) get(k K) (V, bool) { return r.c.Get(k) }

func (r ristrettoCache[K, V]) put(k K, v V, _ uint64) { r.c.Set(k, v, 1) }

func newRistretto[K identifier, V payload](capacity int) (*contender[K], error) {
	c, err := ristretto.NewCache(&ristretto.Config[K, V]{
		NumCounters: 10 * int64(capacity), MaxCost: int64(capacity), BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "ristretto", loops: ristrettoCache[K, V]{c: c}.loops(), settle: c.Wait, close: c.Close, evicts: true,
	}, nil
}

// sturdycCache has string keys only. 64 shards, a tenth evicted at once as in
// its README, and no goroutine that looks for what has expired: its options
// advise that where little expires, and it could not be stopped.
type sturdycCache[K identifier, V payload] struct {
	unversioned
	c *sturdyc.Client[V]
}

func (s sturdycCache[K, V]) get(k K) (V, bool) { return s.c.Get(keyString(k)) }

func (s sturdycCache[K, V]) put(k K, v V, _ uint64) { s.c.Set(keyString(k), v) }

func newSturdyc[K identifier, V payload](capacity int) (*contender[K], error) {
	c := sturdyc.New[V](capacity, 64, 24*time.Hour, 10, sturdyc.WithNoContinuousEvictions())
	return &contender[K]{
		name: "sturdyc", loops: sturdycCache[K, V]{c: c}.loops(), settle: nothing, close: nothing, evicts: true,
	}, nil
}

// lruCache is golang-lru, one lock and exact LRU.
type lruCache[K comparable, V payload] struct {
	unversioned
	c *lru.Cache[K, V]
}

func (l lruCache[K, V]) get(k K) (V, bool) { return l.c.Get(k) }

func (l lruCache[K, V]) put(k K, v V, _ uint64) { l.c.Add(k, v) }

func newLRU[K identifier, V payload](capacity int) (*contender[K], error) {
	c, err := lru.New[K, V](capacity)
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "golang-lru", loops: lruCache[K, V]{c: c}.loops(), settle: nothing, close: c.Purge, evicts: true,
	}, nil
}

// keyBytes returns the bytes of a key, without a copy.
func keyBytes[K identifier](k *K) []byte {
	switch p := any(k).(type) {
	case *string:
		return unsafe.Slice(unsafe.StringData(*p), len(*p))
	case *uint64:
		return (*[8]byte)(unsafe.Pointer(p))[:]
	}
	return nil
}

// payloadBytes returns the bytes of a value, without a copy: no encoding could
// be cheaper.
func payloadBytes[V payload](v *V) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// freecacheCache has room in bytes: 24 for the head of an entry, the key, and
// the value. Reads copy into a buffer of the caller, which saves an allocation.
type freecacheCache[K identifier, V payload] struct {
	unversioned
	c *freecache.Cache
}

func (f freecacheCache[K, V]) get(k K) (v V, ok bool) {
	_, err := f.c.GetWithBuf(keyBytes(&k), payloadBytes(&v))
	return v, err == nil
}

func (f freecacheCache[K, V]) put(k K, v V, _ uint64) { _ = f.c.Set(keyBytes(&k), payloadBytes(&v), 0) }

func newFreecache[K identifier, V payload](capacity int) (*contender[K], error) {
	c := freecache.NewCache(capacity * (24 + longestKey[K]() + int(unsafe.Sizeof(*new(V)))))
	return &contender[K]{
		name: "freecache", loops: freecacheCache[K, V]{c: c}.loops(), settle: nothing, close: c.Clear, evicts: true,
	}, nil
}

// bigcacheCache has the default configuration, with the bounds on entries and
// megabytes that fit. A read allocates the value: there is none that does not.
type bigcacheCache[K identifier, V payload] struct {
	unversioned
	c *bigcache.BigCache
}

func (b bigcacheCache[K, V]) get(k K) (v V, ok bool) {
	got, err := b.c.Get(keyString(k))
	if err != nil {
		return v, false
	}
	copy(payloadBytes(&v), got)
	return v, true
}

func (b bigcacheCache[K, V]) put(k K, v V, _ uint64) { _ = b.c.Set(keyString(k), payloadBytes(&v)) }

// keyString returns a key as a string: an integer costs an allocation, as it
// does those who use a cache that has string keys only.
func keyString[K identifier](k K) string {
	switch p := any(&k).(type) {
	case *string:
		return *p
	case *uint64:
		return string(binary.LittleEndian.AppendUint64(nil, *p))
	}
	return ""
}

func newBigcache[K identifier, V payload](capacity int) (*contender[K], error) {
	const heads = 18 + 2 // of the entry and in the queue
	size := heads + longestKey[K]() + int(unsafe.Sizeof(*new(V)))
	config := bigcache.DefaultConfig(24 * time.Hour)
	config.Verbose = false
	config.MaxEntriesInWindow = capacity
	config.MaxEntrySize = size
	config.HardMaxCacheSize = (capacity*size + 1<<20 - 1) >> 20
	c, err := bigcache.New(context.Background(), config)
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "bigcache", loops: bigcacheCache[K, V]{c: c}.loops(), settle: nothing, close: func() { _ = c.Close() }, evicts: true,
	}, nil
}

// longestKey returns the bytes of the longest key.
func longestKey[K identifier]() int {
	if _, ok := any(*new(K)).(string); ok {
		return 24
	}
	return 8
}

// xsyncCache is a lower bound: a concurrent map, of the right size from the
// beginning.
type xsyncCache[K comparable, V payload] struct {
	unversioned
	c *xsync.Map[K, V]
}

func (x xsyncCache[K, V]) get(k K) (V, bool) { return x.c.Load(k) }

func (x xsyncCache[K, V]) put(k K, v V, _ uint64) { x.c.Store(k, v) }

func newXsync[K identifier, V payload](capacity int) (*contender[K], error) {
	c := xsync.NewMap[K, V](xsync.WithPresize(capacity))
	return &contender[K]{name: "xsync.Map", loops: xsyncCache[K, V]{c: c}.loops(), settle: nothing, close: c.Clear}, nil
}

// syncMap is a lower bound: the map of the standard library.
type syncMap[K comparable, V payload] struct {
	unversioned
	c *sync.Map
}

func (s syncMap[K, V]) get(k K) (v V, ok bool) {
	x, ok := s.c.Load(k)
	if ok {
		v = x.(V)
	}
	return v, ok
}

func (s syncMap[K, V]) put(k K, v V, _ uint64) { s.c.Store(k, v) }

func newSyncMap[K identifier, V payload](int) (*contender[K], error) {
	c := &sync.Map{}
	return &contender[K]{name: "sync.Map", loops: syncMap[K, V]{c: c}.loops(), settle: nothing, close: c.Clear}, nil
}

// rwMap is a lower bound, and what people write themselves: 256 maps behind
// RWMutexes.
type rwMap[K comparable, V payload] struct {
	unversioned
	seed   maphash.Seed
	shards *[256]rwShard[K, V]
}

type rwShard[K comparable, V payload] struct {
	mu sync.RWMutex // guards m
	m  map[K]V
	_  [64]byte
}

func (m rwMap[K, V]) shard(k K) *rwShard[K, V] { return &m.shards[maphash.Comparable(m.seed, k)>>56] }

func (m rwMap[K, V]) get(k K) (V, bool) {
	s := m.shard(k)
	s.mu.RLock()
	v, ok := s.m[k]
	s.mu.RUnlock()
	return v, ok
}

func (m rwMap[K, V]) put(k K, v V, _ uint64) {
	s := m.shard(k)
	s.mu.Lock()
	s.m[k] = v
	s.mu.Unlock()
}

func newRWMap[K identifier, V payload](capacity int) (*contender[K], error) {
	m := rwMap[K, V]{seed: maphash.MakeSeed(), shards: new([256]rwShard[K, V])}
	for i := range m.shards {
		m.shards[i].m = make(map[K]V, capacity/len(m.shards))
	}
	return &contender[K]{name: "rwmap", loops: m.loops(), settle: nothing, close: nothing}, nil
}

// hashOf is xxhash of a key.
func hashOf[K identifier](k *K) uint64 {
	switch p := any(k).(type) {
	case *string:
		return xxhash.Sum64String(*p)
	case *uint64:
		h := *p * 0xc2b2ae3d27d4eb4f // xxhash of eight bytes, written out
		h = bits.RotateLeft64(h, 31) * 0x9e3779b185ebca87
		h ^= 0x27d4eb2f165667c5 + 8
		h = bits.RotateLeft64(h, 27)*0x9e3779b185ebca87 + 0x85ebca77c2b2ae63
		h ^= h >> 33
		h *= 0xc2b2ae3d27d4eb4f
		h ^= h >> 29
		h *= 0x165667b19e3779f9
		return h ^ h>>32
	}
	return 0
}

// A cell of a floor has room for a key and a version, which nobody compares.
type cell[V payload] struct {
	_ [4]uint64
	v V
}

// floorOne is the least that any hash table does: a hash, and one cell of which
// the hash is the address. Keys that meet in a cell share it.
type floorOne[K identifier, V payload] struct {
	unversioned
	cells []cell[V]
}

func (f floorOne[K, V]) at(k *K) *cell[V] {
	at, _ := bits.Mul64(hashOf(k), uint64(len(f.cells)))
	return &f.cells[at]
}

func (f floorOne[K, V]) get(k K) (V, bool) { return f.at(&k).v, true }

func (f floorOne[K, V]) put(k K, v V, _ uint64) { f.at(&k).v = v }

func newFloorOne[K identifier, V payload](capacity int) (*contender[K], error) {
	f := floorOne[K, V]{cells: make([]cell[V], capacity)}
	return &contender[K]{name: "floor1", loops: f.loops(), settle: nothing, close: nothing}, nil
}

// floorTwo is the least that a table does whose buckets point to its entries: a
// hash, an index of which the hash is the address, and the cell that it names.
type floorTwo[K identifier, V payload] struct {
	floorOne[K, V]
	index []uint32
}

func (f floorTwo[K, V]) at(k *K) *cell[V] {
	at, _ := bits.Mul64(hashOf(k), uint64(len(f.index)))
	return &f.cells[f.index[at]]
}

func (f floorTwo[K, V]) get(k K) (V, bool) { return f.at(&k).v, true }

func (f floorTwo[K, V]) put(k K, v V, _ uint64) { f.at(&k).v = v }

func newFloorTwo[K identifier, V payload](capacity int) (*contender[K], error) {
	f := floorTwo[K, V]{floorOne[K, V]{cells: make([]cell[V], capacity)}, make([]uint32, capacity*3/2)}
	for i := range f.index {
		f.index[i] = newRand(uint64(i)).Uint32N(uint32(capacity))
	}
	return &contender[K]{name: "floor2", loops: f.loops(), settle: nothing, close: nothing}, nil
}
