package main

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/tidemark-go/tidemark"
)

// A value is what the caches hold: 32 bytes without pointers. Its top bit is 0.
type value [4]uint64

// A contender is one cache, driven by loops that call it directly: a call
// through an interface for each access would cost all contenders alike and
// hide their differences.
type contender[K comparable] struct {
	name string

	// get looks each key up, reads the value, and returns the number of hits.
	get func(keys []K) (hits int)

	// chase is get, but which key comes next depends on the value before, as
	// it does in a program that uses what it reads.
	chase func(keys []K) (hits int)

	// put stores a value for each key.
	put func(keys []K)

	// mix looks three keys up and stores the fourth, over and over.
	mix func(keys []K) (hits int)

	// settle waits until what was put is readable.
	settle func()
	close  func()

	evicts bool
}

// A maker makes a contender of a given capacity, in entries.
type maker[K comparable] func(capacity int) (*contender[K], error)

// makers returns all contenders, tidemark first and otter second.
func makers[K string | uint64]() []maker[K] {
	return []maker[K]{newTidemark[K], newOtter[K], newRistretto[K], newLRU[K], newRWMap[K], newXsync[K]}
}

func newTidemark[K comparable](capacity int) (*contender[K], error) {
	c, err := tidemark.New(tidemark.Options[K, value]{MaxCost: int64(capacity)})
	if err != nil {
		return nil, err
	}
	var version atomic.Uint64 // the newest one used; each Put brings a newer one
	return &contender[K]{
		name: "tidemark",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.Get(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			v := tidemark.Version(version.Add(uint64(len(keys))))
			for i, k := range keys {
				c.Put(k, value{uint64(i)}, v+tidemark.Version(i))
			}
		},
		mix: func(keys []K) (hits int) {
			newer := tidemark.Version(version.Add(uint64(len(keys))))
			for i, k := range keys {
				if i%4 == 3 {
					c.Put(k, value{uint64(i)}, newer+tidemark.Version(i))
				} else if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: func() {},
		close:  func() { _ = c.Close(context.Background()) },
		evicts: true,
	}, nil
}

func newOtter[K comparable](capacity int) (*contender[K], error) {
	c, err := otter.New(&otter.Options[K, value]{MaximumSize: capacity})
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "otter",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.GetIfPresent(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.GetIfPresent(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			for i, k := range keys {
				c.Set(k, value{uint64(i)})
			}
		},
		mix: func(keys []K) (hits int) {
			for i, k := range keys {
				if i%4 == 3 {
					c.Set(k, value{uint64(i)})
				} else if v, ok := c.GetIfPresent(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: c.CleanUp,
		close:  func() { c.InvalidateAll(); c.StopAllGoroutines() },
		evicts: true,
	}, nil
}

func newRistretto[K string | uint64](capacity int) (*contender[K], error) {
	c, err := ristretto.NewCache(&ristretto.Config[K, value]{
		NumCounters: 10 * int64(capacity), MaxCost: int64(capacity), BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "ristretto",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.Get(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			for i, k := range keys {
				c.Set(k, value{uint64(i)}, 1)
			}
		},
		mix: func(keys []K) (hits int) {
			for i, k := range keys {
				if i%4 == 3 {
					c.Set(k, value{uint64(i)}, 1)
				} else if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: c.Wait,
		close:  c.Close,
		evicts: true,
	}, nil
}

func newLRU[K comparable](capacity int) (*contender[K], error) {
	c, err := lru.New[K, value](capacity)
	if err != nil {
		return nil, err
	}
	return &contender[K]{
		name: "golang-lru",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.Get(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			for i, k := range keys {
				c.Add(k, value{uint64(i)})
			}
		},
		mix: func(keys []K) (hits int) {
			for i, k := range keys {
				if i%4 == 3 {
					c.Add(k, value{uint64(i)})
				} else if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: func() {},
		close:  c.Purge,
		evicts: true,
	}, nil
}

// An rwMap is what people write themselves: 256 maps behind RWMutexes.
type rwMap[K comparable] struct {
	seed   maphash.Seed
	shards [256]struct {
		mu sync.RWMutex // guards m
		m  map[K]value
		_  [64]byte
	}
}

func (m *rwMap[K]) hash(key K) uint64 { return maphash.Comparable(m.seed, key) }

func (m *rwMap[K]) get(key K) (value, bool) {
	s := &m.shards[m.hash(key)>>56]
	s.mu.RLock()
	v, ok := s.m[key]
	s.mu.RUnlock()
	return v, ok
}

func (m *rwMap[K]) put(key K, v value) {
	s := &m.shards[m.hash(key)>>56]
	s.mu.Lock()
	s.m[key] = v
	s.mu.Unlock()
}

func newRWMap[K comparable](capacity int) (*contender[K], error) {
	c := &rwMap[K]{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].m = make(map[K]value, capacity/len(c.shards))
	}
	return &contender[K]{
		name: "rwmap",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.get(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			for i, k := range keys {
				c.put(k, value{uint64(i)})
			}
		},
		mix: func(keys []K) (hits int) {
			for i, k := range keys {
				if i%4 == 3 {
					c.put(k, value{uint64(i)})
				} else if v, ok := c.get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: func() {},
		close:  func() {},
	}, nil
}

func newXsync[K comparable](capacity int) (*contender[K], error) {
	c := xsync.NewMap[K, value](xsync.WithPresize(capacity))
	return &contender[K]{
		name: "xsync.Map",
		get: func(keys []K) (hits int) {
			for _, k := range keys {
				if v, ok := c.Load(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		chase: func(keys []K) (hits int) {
			for i := 0; i < len(keys); {
				v, ok := c.Load(keys[i])
				if ok {
					hits++
				}
				i += 1 + int(v[0]>>63)
			}
			return hits
		},
		put: func(keys []K) {
			for i, k := range keys {
				c.Store(k, value{uint64(i)})
			}
		},
		mix: func(keys []K) (hits int) {
			for i, k := range keys {
				if i%4 == 3 {
					c.Store(k, value{uint64(i)})
				} else if v, ok := c.Load(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		},
		settle: func() {},
		close:  c.Clear,
	}, nil
}
