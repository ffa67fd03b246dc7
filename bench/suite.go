package main

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/tidemark-go/tidemark"
)

// suite does the work of otter's own throughput benchmark: 32,768 strings of 39
// to 43 bytes with a Zipf distribution, values of about the same length, a cache
// that holds them all, and eight goroutines that walk through them in order, each
// of which only reads or only writes.
func (s *session) suite() error {
	const entries, goroutines = 2 << 14, 8
	trace := make([]string, entries)
	for i, k := range shuffled(zipfTrace(entries, entries/3, 0.99), entries/3) {
		trace[i] = "otter-benchmark-key-of-38-bytes-------" + strconv.Itoa(int(k))
	}
	for _, procs := range s.procs {
		for _, reads := range []int{100, 0} {
			name := fmt.Sprintf("Suite/reads=%d/procs=%d/g=%d", reads, procs, goroutines)
			if !s.wanted(name) {
				continue
			}
			sides, closeAll, err := suiteSides(entries)
			if err != nil {
				return err
			}
			t := track{s.turn, s.chunk * 4, true}
			var runners []runner
			for _, side := range sides {
				side.write(trace)
				do := side.read
				if reads == 0 {
					do = side.write
				}
				if hits := side.read(trace); hits != len(trace) {
					return fmt.Errorf("%s has %d of %d entries", side.name, hits, len(trace))
				}
				runners = append(runners, runner{side.name, func(at, n int) {
					at &= len(trace) - 1
					together(goroutines, trace[at:at+min(n, len(trace)-at)], do)
				}})
			}
			withProcs(procs, func() { s.raceNamed(name, t, runners) })
			closeAll()
		}
	}
	return nil
}

// A suiteSide is a cache from strings to strings.
type suiteSide struct {
	name        string
	read, write func(keys []string) int
}

func suiteSides(capacity int) (sides []suiteSide, closeAll func(), err error) {
	t, err := tidemark.New(tidemark.Options[string, string]{MaxCost: int64(capacity)})
	if err != nil {
		return nil, nil, err
	}
	o, err := otter.New(&otter.Options[string, string]{MaximumSize: capacity})
	if err != nil {
		return nil, nil, err
	}
	x := xsync.NewMap[string, string](xsync.WithPresize(capacity))
	var version atomic.Uint64
	const text = "otter-benchmark-value-of-37-bytes----"
	var values [64]string
	for i := range values {
		values[i] = text + strconv.Itoa(i)
	}
	sides = []suiteSide{
		{"tidemark", func(keys []string) (hits int) {
			for _, k := range keys {
				if v, ok := t.Get(k); ok && v != "" {
					hits++
				}
			}
			return hits
		}, func(keys []string) int {
			newer := version.Add(uint64(len(keys)))
			for i, k := range keys {
				t.Put(k, values[i%len(values)], tidemark.Version(newer+uint64(i)))
			}
			return 0
		}},
		{"otter", func(keys []string) (hits int) {
			for _, k := range keys {
				if v, ok := o.GetIfPresent(k); ok && v != "" {
					hits++
				}
			}
			return hits
		}, func(keys []string) int {
			for i, k := range keys {
				o.Set(k, values[i%len(values)])
			}
			return 0
		}},
		{"xsync.Map", func(keys []string) (hits int) {
			for _, k := range keys {
				if v, ok := x.Load(k); ok && v != "" {
					hits++
				}
			}
			return hits
		}, func(keys []string) int {
			for i, k := range keys {
				x.Store(k, values[i%len(values)])
			}
			return 0
		}},
	}
	return sides, func() { _ = t.Close(context.Background()); o.InvalidateAll(); o.StopAllGoroutines() }, nil
}

// many compares LoadMany of 64 keys that are there with as many Gets.
func (s *session) many() error {
	const at64 = 64
	n := s.sizes[1]
	name := fmt.Sprintf("Many/keys=%d/dist=uniform/n=%d/procs=", at64, n)
	if !s.wanted(name+"1") && !s.wanted(name+"2") {
		return nil
	}
	ctx := context.Background()
	c, err := tidemark.New(tidemark.Options[string, [4]uint64]{
		MaxCost: int64(n * 9 / 8), ExpectedEntries: int64(n * 9 / 8),
		Loader: tidemark.LoaderFunc[string, [4]uint64](func(context.Context, string) ([4]uint64, tidemark.Version, error) {
			return [4]uint64{1}, 1, nil
		}),
	})
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for _, k := range stringKeys(everyKey(n)) {
		if _, err := c.Load(ctx, k); err != nil {
			return err
		}
	}
	trace := stringKeys(uniformTrace(s.traceLength, n))
	misses := 0
	runners := []runner{
		{"LoadMany", func(at, n int) {
			for part := range parts(trace[at&(len(trace)-1):][:n], at64) {
				m, err := c.LoadMany(ctx, part)
				if err != nil || len(m) == 0 {
					misses += len(part)
				}
			}
		}},
		{"Get", func(at, n int) {
			for _, k := range trace[at&(len(trace)-1):][:n] {
				if _, ok := c.Get(k); !ok {
					misses++
				}
			}
		}},
	}
	reads := 0
	for _, procs := range s.procs {
		if full := fmt.Sprint(name, procs); s.wanted(full) {
			withProcs(procs, func() { s.raceNamed(full, s.track, runners) })
			reads += s.rounds * s.chunk
		}
	}
	if misses > reads/100+at64 {
		return fmt.Errorf("%d keys are not there", misses)
	}
	return nil
}
