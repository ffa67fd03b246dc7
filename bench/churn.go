package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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
			name := fmt.Sprintf("Churn/dist=%s/key=string/value=32/n=%d/g=", dist, n)
			if !s.wanted(name+"1") && !s.wanted(name+"4") {
				continue
			}
			trace := uniformTrace(2*s.traceLength, 10*n)
			if dist == "zipf" {
				trace = shuffled(zipfTrace(2*s.traceLength, 10*n, 0.99), 10*n)
			}
			if err := s.churnOnce(name, n, stringKeys(trace)); err != nil {
				return err
			}
		}
	}
	return nil
}

// churnOnce fills the caches, lets them see one half of the trace, and measures
// the other.
func (s *session) churnOnce(name string, n int, trace []string) error {
	half := len(trace) / 2
	var contenders []*contender[string]
	for _, m := range evicting[string]() {
		c, err := m.make(n)
		if err != nil {
			return err
		}
		defer c.close()
		for part := range parts(stringKeys(everyKey(n)), 4096) {
			c.put(part)
			c.settle()
		}
		c.aside(trace[:half])
		c.settle()
		contenders = append(contenders, c)
	}
	t := s.track
	t.chunk *= 4
	for _, goroutines := range []int{1, 4} {
		full := fmt.Sprint(name, goroutines)
		if !s.wanted(full) {
			continue
		}
		hits, reads := make([]atomic.Int64, len(contenders)), make([]atomic.Int64, len(contenders))
		var runners []runner
		for i, c := range contenders {
			runners = append(runners, runner{c.name, func(at, n int) {
				at = half + at&(half-1)
				together(goroutines, trace[at:at+n], func(part []string) int {
					h := c.aside(part)
					hits[i].Add(int64(h))
					reads[i].Add(int64(len(part)))
					return h
				})
			}})
		}
		s.raceNamed(full, t, runners)
		for i, r := range runners {
			s.add("Hits"+full[len("Churn"):]+"/cache="+r.cache, 1, quantity{100 * float64(hits[i].Load()) / float64(reads[i].Load()), "hit%"})
		}
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
					s.fail(name, err)
					continue
				}
				defer c.close()
				next := n / 4 // the first ones find the room that filled left
				for part := range parts(fresh[:next], 4096) {
					c.put(part)
					c.settle()
				}
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
	for range min(s.rounds, 5) {
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
