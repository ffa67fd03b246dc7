package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/Yiling-J/theine-go"
	"github.com/dgraph-io/ristretto/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/tidemark-go/tidemark"
)

// A replay runs a trace against a cache of a given capacity: each access is a
// lookup, and a store if that misses. It returns the share of hits, and the
// share of the capacity that is used at the end, if it knows.
type replay func(trace []uint64, capacity, goroutines int) (hits, held float64, err error)

// replayTidemark uses Put, with versions that grow across keys. It fails if the
// cache ever held more than its capacity.
func replayTidemark(trace []uint64, capacity, goroutines int) (hits, held float64, err error) {
	c, err := tidemark.New(tidemark.Options[uint64, uint64]{MaxCost: int64(capacity)})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close(context.Background())
	var version, over atomic.Uint64
	hits = share(trace, goroutines, func(part []uint64) (hits int) {
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
		return 0, 0, fmt.Errorf("tidemark held %d entries more than its capacity of %d", over.Load(), capacity)
	}
	return hits, float64(c.Len()) / float64(capacity), nil
}

// replayOtter lets otter do its maintenance in the accessing goroutine, so that
// it loses no access: its own simulator does the same.
func replayOtter(trace []uint64, capacity, goroutines int) (hits, held float64, err error) {
	c, err := otter.New(&otter.Options[uint64, uint64]{MaximumSize: capacity, Executor: func(f func()) { f() }})
	if err != nil {
		return 0, 0, err
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
	}), 0, nil
}

// A waitedFor is a cache that is waited for after each Set.
type waitedFor struct {
	cache interface {
		Get(k uint64) (uint64, bool)
		Set(k, v uint64, cost int64) bool
		Wait()
	}
}

func (w waitedFor) replay(part []uint64) (hits int) {
	for _, k := range part {
		if _, ok := w.cache.Get(k); ok {
			hits++
		} else {
			w.cache.Set(k, k, 1)
			w.cache.Wait()
		}
	}
	return hits
}

// replayTheine waits after each Set until the policy has seen it.
func replayTheine(trace []uint64, capacity, goroutines int) (hits, held float64, err error) {
	c, err := theine.NewBuilder[uint64, uint64](int64(capacity)).Build()
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	return share(trace, goroutines, waitedFor{c}.replay), 0, nil
}

// replayRistretto waits after each Set, or most of them would be dropped. It
// drops Gets as it does in a program.
func replayRistretto(trace []uint64, capacity, goroutines int) (hits, held float64, err error) {
	c, err := ristretto.NewCache(&ristretto.Config[uint64, uint64]{
		NumCounters: 10 * int64(capacity), MaxCost: int64(capacity), BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	return share(trace, goroutines, waitedFor{c}.replay), 0, nil
}

func replayLRU(trace []uint64, capacity, goroutines int) (hits, held float64, err error) {
	c, err := lru.New[uint64, struct{}](capacity)
	if err != nil {
		return 0, 0, err
	}
	return share(trace, goroutines, func(part []uint64) (hits int) {
		for _, k := range part {
			if _, ok := c.Get(k); ok {
				hits++
			} else {
				c.Add(k, struct{}{})
			}
		}
		return hits
	}), 0, nil
}

// A policy is a replay with a name.
type policy struct {
	name string
	replay
}

var policies = []policy{
	{"tidemark", replayTidemark}, {"otter", replayOtter}, {"theine", replayTheine}, {"ristretto", replayRistretto}, {"LRU", replayLRU},
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

// A namedTrace is a trace and the number of its keys, of which capacities are a
// share.
type namedTrace struct {
	name  string
	trace []uint32
	keys  int
}

// generated returns one trace of each kind, with five accesses for each key.
func generated(keys int) []namedTrace {
	n := 5 * keys
	return []namedTrace{
		{"zipf-0.99", zipfTrace(n, keys, 0.99), keys},
		{"zipf-1.01", zipfTrace(n, keys, 1.01), keys},
		{"zipf-1.2", zipfTrace(n, keys, 1.2), keys},
		{"scan-0.99", scanTrace(n, keys, 0.99), keys},
		{"shift-0.99", shiftTrace(n, keys, 0.99), keys},
	}
}

// traceFiles returns the traces in a folder, or none if there is no such folder:
// their owners do not let us hand them on.
func traceFiles(folder string) ([]namedTrace, error) {
	if folder == "" {
		return nil, nil
	}
	files, err := fs.Glob(os.DirFS(folder), "*.u32.gz")
	if err != nil {
		return nil, err
	}
	var all []namedTrace
	for _, f := range files {
		t, err := readTrace(filepath.Join(folder, f))
		if err != nil {
			return nil, err
		}
		all = append(all, namedTrace{strings.TrimSuffix(f, ".u32.gz"), t, distinct(t)})
	}
	return all, nil
}

// hitRatios replays traces at 0.1, 1 and 10 % of their keys, capacities below 100
// entries left out. On one processor, and with four goroutines, only tidemark
// and otter run.
func (s *session) hitRatios() error {
	if !s.wantsPrefix("HitRatio") {
		return nil
	}
	files, err := traceFiles(s.traces)
	if err != nil {
		return err
	}
	s.set("traces", fmt.Sprint(len(files)))
	for _, t := range append(generated(s.hitKeys), files...) {
		for _, permille := range []int{1, 10, 100} {
			if capacity := t.keys * permille / 1000; capacity >= 100 {
				if err := s.replayAll(t, capacity, permille); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *session) replayAll(t namedTrace, capacity, permille int) error {
	keys := integerKeys(t.trace)
	for _, how := range []struct{ procs, goroutines int }{{2, 1}, {1, 1}, {2, 4}} {
		name := fmt.Sprintf("HitRatio/trace=%s/share=%g%%/n=%d/procs=%d/g=%d",
			t.name, float64(permille)/10, capacity, how.procs, how.goroutines)
		if !slices.Contains(s.procs, how.procs) || !s.wanted(name) {
			continue
		}
		everybody := how.procs == 2 && how.goroutines == 1
		line := name + ":"
		for i, p := range policies {
			if i > 1 && !everybody {
				continue
			}
			var hits, held float64
			var err error
			withProcs(how.procs, func() { hits, held, err = p.replay(keys, capacity, how.goroutines) })
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			round := []quantity{{100 * hits, "hit%"}}
			if held > 0 {
				round = append(round, quantity{100 * held, "held%"})
			}
			s.add(name+"/cache="+p.name, len(keys), round...)
			line += fmt.Sprintf("  %s %.2f", p.name, 100*hits)
		}
		if everybody {
			best := 100 * optimum(t.trace, capacity)
			s.add(name+"/cache=optimum", len(keys), quantity{best, "hit%"})
			line += fmt.Sprintf("  optimum %.2f", best)
		}
		fmt.Fprintln(s.progress, line)
	}
	return nil
}
