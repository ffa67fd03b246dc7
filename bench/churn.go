package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidemark-go/tidemark"
)

// evicting are the contenders that evict.
func evicting[K identifier]() []maker[K] {
	return slices.DeleteFunc(makers[K, [4]uint64](), func(m maker[K]) bool {
		return slices.Contains([]string{"xsync.Map", "sync.Map", "rwmap", "floor1", "floor2"}, m.name)
	})
}

// churn measures reads of ten times as many keys as there is room for: what
// misses is stored, and something else goes. The contenders differ in what they
// keep, so hits are counted too: a miss takes longer than a hit.
func (s *session) churn() error {
	for _, n := range []int{s.sizes[1] / 10, s.sizes[1]} {
		for _, dist := range []string{"zipf", "uniform"} {
			for _, g := range []int{1, 4} {
				name := fmt.Sprintf("Churn/dist=%s/key=string/value=32/n=%d/g=%d", dist, n, g)
				if !s.wanted(name) {
					continue
				}
				if err := s.churnOnce(name, n, dist, g); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *session) churnOnce(name string, n int, dist string, goroutines int) error {
	trace := stringKeys(uniformTrace(s.traceLength, 10*n))
	if dist == "zipf" {
		trace = stringKeys(shuffled(zipfTrace(s.traceLength, 10*n, 0.99), 10*n))
	}
	t := s.track
	t.chunk *= 4
	var runners []runner
	var counted []func() float64
	for _, m := range evicting[string]() {
		c, err := m.make(n)
		if err != nil {
			return err
		}
		defer c.close()
		c.aside(trace) // until it is full
		c.settle()
		var mu sync.Mutex // guards hits and reads
		hits, reads := 0, 0
		runners = append(runners, runner{c.name, func(at, n int) {
			at &= len(trace) - 1
			together(goroutines, trace[at:at+n], func(part []string) int {
				h := c.aside(part)
				mu.Lock()
				defer mu.Unlock()
				hits, reads = hits+h, reads+len(part)
				return h
			})
		}})
		counted = append(counted, func() float64 { return 100 * float64(hits) / float64(reads) })
	}
	s.raceNamed(name, t, runners)
	for i, r := range runners {
		s.add("Hits"+name[len("Churn"):]+"/cache="+r.cache, 1, quantity{counted[i](), "hit%"})
	}
	return nil
}

// inserts measures inserts of keys that are never read into full caches: each of
// them evicts something, or is refused.
func (s *session) inserts() error {
	for _, n := range []int{s.sizes[1] / 10, s.sizes[1]} {
		for _, procs := range s.procs {
			name := fmt.Sprintf("Insert/key=uint64/value=32/n=%d/procs=%d", n, procs)
			if !s.wanted(name) {
				continue
			}
			fresh := integerKeys(everyKey(n + 4*s.traceLength)[n:])
			var runners []runner
			for _, m := range evicting[uint64]() {
				c, err := filled(m, integerKeys(everyKey(n)))
				if err != nil {
					return err
				}
				defer c.close()
				next := 0
				runners = append(runners, runner{c.name, func(_, n int) {
					if next+n > len(fresh) {
						next = 0 // what was there has been evicted long ago
					}
					c.put(fresh[next : next+n])
					next += n
				}})
			}
			withProcs(procs, func() { s.raceNamed(name, s.track, runners) })
		}
	}
	return nil
}

// burstOfInserts measures the single Puts of a burst by four goroutines into a
// full cache: how long the slowest ones took, on the wall. A pause of the
// machine or of a collection is in it, so otter stands beside it.
func (s *session) burstOfInserts() error {
	name := fmt.Sprintf("Burst/inserts=%d/g=4", s.burst)
	if !s.wanted(name) {
		return nil
	}
	n := s.sizes[1] / 10
	for range s.rounds {
		c, err := tidemark.New(tidemark.Options[uint64, [4]uint64]{MaxCost: int64(n)})
		if err != nil {
			return err
		}
		o, err := newOtter[uint64, [4]uint64](n)
		if err != nil {
			return err
		}
		most := 0
		s.addBurst(name+"/cache=tidemark", func(key uint64) {
			c.Put(key, [4]uint64{}, tidemark.Version(key))
			if key%1024 == 0 {
				most = max(most, c.Len()) // one goroutine's keys only: see addBurst
			}
		}, func() quantity { return quantity{100 * float64(most) / float64(n), "most%"} })
		held := 100 * float64(c.Len()) / float64(n)
		s.add(name+"/cache=tidemark/after=burst", 1, quantity{held, "held%"})
		s.addBurst(name+"/cache=otter", func(key uint64) { o.put([]uint64{key}) }, nil)
		o.close()
		if err := c.Close(context.Background()); err != nil {
			return err
		}
	}
	s.show(name, "p99.9-ns", []runner{{cache: "tidemark"}, {cache: "otter"}})
	return nil
}

// addBurst deals keys to four goroutines, so that those divisible by 4 are one
// goroutine's.
func (s *session) addBurst(name string, put func(key uint64), also func() quantity) {
	times := make([][]float64, 4)
	var wg sync.WaitGroup
	for g := range times {
		wg.Go(func() {
			for key := g; key < s.burst; key += len(times) {
				began := time.Now()
				put(uint64(key + 1<<32))
				times[g] = append(times[g], float64(time.Since(began)))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(times...)
	round := []quantity{
		{quantile(all, 0.5), "p50-ns"}, {quantile(all, 0.999), "p99.9-ns"},
		{quantile(all, 0.99999), "p99.999-ns"}, {slices.Max(all), "max-ns"},
	}
	if also != nil {
		round = append(round, also())
	}
	s.add(name, s.burst, round...)
}
