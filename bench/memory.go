package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"text/tabwriter"
	"time"
)

// printMemory prints, for caches that hold n keys, the bytes of heap per entry
// and the time of a garbage collection. What the caller's keys take is counted
// too: a cache that keeps them keeps them alive.
func printMemory(sizes []int) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, n := range sizes {
		fmt.Fprintf(w, "%d entries\tbytes per entry\truntime.GC ms\t\n", n)
		weighAll(w, n, "string", func() []string { return ownStrings(everyKey(n)) })
		weighAll(w, n, "uint64", func() []uint64 { return integerKeys(everyKey(n)) })
	}
	w.Flush()
}

// ownStrings returns keys that do not share their memory.
func ownStrings(trace []uint32) []string {
	keys := stringKeys(trace)
	for i, k := range keys {
		keys[i] = string([]byte(k))
	}
	return keys
}

func weighAll[K string | uint64](w *tabwriter.Writer, n int, kind string, keys func() []K) {
	for _, m := range makers[K]() {
		name, bytes, gc := weigh(m, keys)
		fmt.Fprintf(w, "%s, %s\t%.0f\t%.1f\t\n", name, kind, float64(bytes)/float64(n), gc)
	}
}

// weigh fills one contender and returns what it keeps on the heap, and the
// median time of a collection in milliseconds.
func weigh[K string | uint64](m maker[K], keys func() []K) (name string, bytes int64, gc float64) {
	debug.FreeOSMemory()
	before := heap()
	c, err := filled(m, keys())
	if err != nil {
		panic(err)
	}
	bytes = heap() - before
	var times []float64
	for range 5 {
		began := time.Now()
		runtime.GC()
		times = append(times, float64(time.Since(began).Microseconds())/1000)
	}
	c.close()
	return c.name, bytes, median(times)
}

// heap returns the bytes of live objects.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the second one empties what the first left in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
