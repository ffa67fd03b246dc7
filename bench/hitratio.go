package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/maypok86/otter/v2"

	"github.com/tidemark-go/tidemark"
)

// A replay runs a trace against a cache of a given capacity: each access is a
// lookup, and a store if that misses. It returns the share of hits.
type replay func(trace []uint64, capacity, goroutines int) (float64, error)

// replayTidemark uses Put, with versions that grow across keys. It fails if the
// cache ever held more than its capacity.
func replayTidemark(trace []uint64, capacity, goroutines int) (float64, error) {
	c, err := tidemark.New(tidemark.Options[uint64, uint64]{MaxCost: int64(capacity)})
	if err != nil {
		return 0, err
	}
	defer c.Close(context.Background())
	var version, over atomic.Uint64
	hits := share(trace, goroutines, func(part []uint64) (hits int) {
		for _, k := range part {
			if _, ok := c.Get(k); ok {
				hits++
				continue
			}
			v := version.Add(1)
			c.Put(k, k, tidemark.Version(v))
			if v%(1<<12) == 0 {
				over.Store(max(over.Load(), uint64(max(c.Len()-capacity, 0))))
			}
		}
		return hits
	})
	if over.Load() > 0 {
		return 0, fmt.Errorf("tidemark held %d entries more than its capacity of %d", over.Load(), capacity)
	}
	return hits, nil
}

// replayOtter lets otter do its maintenance in the accessing goroutine, so that
// it loses no access: its own simulator does the same.
func replayOtter(trace []uint64, capacity, goroutines int) (float64, error) {
	c, err := otter.New(&otter.Options[uint64, uint64]{MaximumSize: capacity, Executor: func(f func()) { f() }})
	if err != nil {
		return 0, err
	}
	defer c.StopAllGoroutines()
	return share(trace, goroutines, func(part []uint64) (hits int) {
		for _, k := range part {
			if _, ok := c.GetIfPresent(k); ok {
				hits++
			} else {
				c.Set(k, k)
			}
		}
		return hits
	}), nil
}

// share deals the trace out to goroutines and returns the share of hits. Each
// goroutine gets every so many-th run of 64 accesses, so that they walk through
// the trace side by side.
func share(trace []uint64, goroutines int, do func([]uint64) int) float64 {
	var hits atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for at := 64 * g; at < len(trace); at += 64 * goroutines {
				hits.Add(int64(do(trace[at:min(at+64, len(trace))])))
			}
		})
	}
	wg.Wait()
	return float64(hits.Load()) / float64(len(trace))
}

// A named trace and the number of its keys, of which capacities are a share.
type namedTrace struct {
	name  string
	trace []uint32
	keys  int
}

// generated returns one trace of each kind, with five accesses for each key.
func generated(keys int) []namedTrace {
	n := 5 * keys
	return []namedTrace{
		{"zipf 0.99", zipfTrace(n, keys, 0.99), keys},
		{"zipf 1.01", zipfTrace(n, keys, 1.01), keys},
		{"zipf 1.2", zipfTrace(n, keys, 1.2), keys},
		{"scan 0.99", scanTrace(n, keys, 0.99), keys},
		{"shift 0.99", shiftTrace(n, keys, 0.99), keys},
	}
}

// printHitRatios compares the hit ratios of tidemark and otter at 0.1, 1 and 10 %
// of the keys, on one file or on those of the generated traces whose names contain one of
// only.
func printHitRatios(file string, keys, goroutines int, only []string) error {
	traces := []namedTrace{}
	if file != "" {
		t, err := readTrace(file)
		if err != nil {
			return err
		}
		traces = append(traces, namedTrace{filepath.Base(file), t, distinct(t)})
	} else {
		traces = generated(keys)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "hit ratio in %%, %d goroutines, GOMAXPROCS %d\tentries\ttidemark\totter\tdifference\t\n", goroutines, runtime.GOMAXPROCS(0))
	sum, n := 0.0, 0
	for _, t := range traces {
		if !containsOne(t.name, only) {
			continue
		}
		keys := integerKeys(t.trace)
		for _, permille := range []int{1, 10, 100} {
			capacity := t.keys * permille / 1000
			if capacity < 100 {
				continue
			}
			var percent [2]float64
			for i, r := range []replay{replayTidemark, replayOtter} {
				ratio, err := r(keys, capacity, goroutines)
				if err != nil {
					return err
				}
				percent[i] = 100 * ratio
			}
			diff := percent[0] - percent[1]
			sum, n = sum+diff, n+1
			fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f\t%+.2f\t\n", t.name, capacity, percent[0], percent[1], diff)
		}
	}
	if n > 0 {
		fmt.Fprintf(w, "mean\t\t\t\t%+.2f\t\n", sum/float64(n))
	}
	return w.Flush()
}
