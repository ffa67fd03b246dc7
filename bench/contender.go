package main

import (
	"fmt"
	"slices"
)

// A payload is a type of values without pointers: 16, 32 or 64 bytes. The top
// bit of the first word is 0.
type payload interface {
	[2]uint64 | [4]uint64 | [8]uint64
}

// A value is what the caches hold if nothing else is said: 32 bytes.
type value [4]uint64

// An identifier is a type of keys.
type identifier interface{ string | uint64 }

// A contender is one cache, driven by loops that call it directly: a call
// through an interface for each access would cost all contenders alike and
// hide their differences. Package loopgen writes the loops.
type contender[K comparable] struct {
	name string
	loops[K]

	// settle waits until what was put is readable.
	settle func()
	close  func()

	// evicts is false if the contender is a bare map: a lower bound, which keeps
	// all that it is given.
	evicts bool
}

// loops are what is measured of a contender.
type loops[K comparable] struct {
	// get looks each key up, reads the value, and returns the number of hits.
	get func(keys []K) (hits int)

	// chase is get, but which key comes next depends on the value before, as
	// it does in a program that uses what it reads.
	chase func(keys []K) (hits int)

	// put stores a value for each key; its first word is the index of the key.
	put func(keys []K)

	// mix looks keys up, and stores every so many-th instead.
	mix func(keys []K, every int) (hits int)

	// aside looks each key up and stores it if it is not there, as a program
	// does that has a database behind its cache.
	aside func(keys []K) (hits int)

	// first returns the first word of the value of key.
	first func(key K) (word uint64, ok bool)
}

// A maker makes a contender of a given capacity, in entries.
type maker[K comparable] struct {
	name string
	make func(capacity int) (*contender[K], error)
}

// The names of the contenders, in the order of the tables. The floors are no
// caches: see floorOne and floorTwo.
var contenderNames = []string{
	"tidemark", "otter", "theine", "ristretto", "sturdyc", "golang-lru", "freecache", "bigcache",
	"xsync.Map", "sync.Map", "rwmap", "floor1", "floor2",
}

// makers returns the contenders of the given names, or all, in the order of
// contenderNames. Sturdyc has string keys only.
func makers[K identifier, V payload](names ...string) []maker[K] {
	all := []maker[K]{
		{"tidemark", newTidemark[K, V]},
		{"otter", newOtter[K, V]},
		{"theine", newTheine[K, V]},
		{"ristretto", newRistretto[K, V]},
		{"sturdyc", newSturdyc[K, V]},
		{"golang-lru", newLRU[K, V]},
		{"freecache", newFreecache[K, V]},
		{"bigcache", newBigcache[K, V]},
		{"xsync.Map", newXsync[K, V]},
		{"sync.Map", newSyncMap[K, V]},
		{"rwmap", newRWMap[K, V]},
		{"floor1", newFloorOne[K, V]},
		{"floor2", newFloorTwo[K, V]},
	}
	_, strings := any(*new(K)).(string)
	return slices.DeleteFunc(all, func(m maker[K]) bool {
		return m.name == "sturdyc" && !strings || len(names) > 0 && !slices.Contains(names, m.name)
	})
}

// filled makes a contender that holds all keys and is 8/9 full: a cache that
// knows itself half empty may skip work it would have to do otherwise. A cache
// that divides its room into fixed parts, of which some overflow before the
// others are full, gets more until it holds them all.
func filled[K comparable](m maker[K], keys []K) (*contender[K], error) {
	var have int
	for capacity := len(keys) * 9 / 8; capacity <= len(keys)*2; capacity += len(keys)/8 + 1 {
		c, err := m.make(capacity)
		if err != nil {
			return nil, err
		}
		if have = fill(c, keys); have >= len(keys)*999/1000 {
			return c, nil
		}
		c.close()
	}
	return nil, fmt.Errorf("%s holds only %d of %d keys", m.name, have, len(keys))
}

// fill puts keys until they are all there, at most a few times, and returns how
// many are.
func fill[K comparable](c *contender[K], keys []K) (have int) {
	missing := keys
	for try := 0; len(missing) > 0 && try < 8; try++ {
		for part := range parts(missing, 4096) {
			c.put(part)
			c.settle()
		}
		var still []K
		for i := range keys {
			if c.get(keys[i:i+1]) == 0 {
				still = append(still, keys[i])
			}
		}
		missing = still
	}
	return len(keys) - len(missing)
}

// parts cuts s into parts of n, the last one shorter.
func parts[K any](s []K, n int) func(yield func([]K) bool) {
	return func(yield func([]K) bool) {
		for len(s) > 0 {
			part := s[:min(n, len(s))]
			s = s[len(part):]
			if !yield(part) {
				return
			}
		}
	}
}
