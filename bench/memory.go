package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

// memory measures, for caches that hold n keys, the bytes of heap per entry and
// the time of a garbage collection, one contender after the other. What the
// caller's keys take is counted too: a cache that keeps them keeps them alive.
func (s *session) memory() error {
	for _, n := range s.sizes {
		if err := weighAll(s, n, "string", func() []string { return ownStrings(everyKey(n)) }); err != nil {
			return err
		}
		if err := weighAll(s, n, "uint64", func() []uint64 { return integerKeys(everyKey(n)) }); err != nil {
			return err
		}
	}
	return nil
}

// ownStrings returns keys that do not share their memory.
func ownStrings(trace []uint32) []string {
	keys := stringKeys(trace)
	for i, k := range keys {
		keys[i] = string([]byte(k))
	}
	return keys
}

func weighAll[K identifier](s *session, n int, kind string, keys func() []K) error {
	for _, m := range makers[K, [4]uint64](contenderNames[:len(contenderNames)-2]...) {
		name := fmt.Sprintf("Memory/key=%s/value=32/n=%d/cache=%s", kind, n, m.name)
		if !s.wanted(name) {
			continue
		}
		bytes, gc, err := weigh(m, keys)
		if err != nil {
			s.fail(name, err)
			continue
		}
		for i := range gc {
			s.add(name, n, quantity{float64(bytes) / float64(n), "B/entry"}, quantity{gc[i], "gc-ns"})
		}
		fmt.Fprintf(s.progress, "%s: %.0f B/entry, runtime.GC %.1f ms\n", name, float64(bytes)/float64(n), median(gc)/1e6)
	}
	return nil
}

// weigh fills one contender and returns what it keeps on the heap, and the
// times of a few collections in nanoseconds.
func weigh[K identifier](m maker[K], keys func() []K) (bytes int64, gc []float64, err error) {
	debug.FreeOSMemory()
	before := liveHeap()
	c, err := filled(m, keys())
	if err != nil {
		return 0, nil, err
	}
	bytes = liveHeap() - before
	for range 5 {
		began := time.Now()
		runtime.GC()
		gc = append(gc, float64(time.Since(began)))
	}
	c.close()
	return bytes, gc, nil
}

// liveHeap returns the bytes of live objects.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // the second one empties what the first left in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
