package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// turn is how long a contender runs before it is the next one's: long enough
// for the clock of CPU time, short enough that a disturbance of the machine
// meets all of them.
const turn = 22 * time.Millisecond

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A work does n operations, beginning at a place of its trace.
type work func(at, n int)

const chunk = 1 << 13 // operations between two looks at the clock

// race gives the works turns, and returns the nanoseconds per operation of each
// of them in each round, by a clock that counts nanoseconds.
func race(works []work, rounds int, clock func() time.Duration) [][]float64 {
	sizes := make([]int, len(works)) // operations per turn
	times := make([][]float64, len(works))
	for i, w := range works {
		began := time.Now()
		n := 0
		for ; time.Since(began) < turn; n += chunk {
			w(n, chunk)
		}
		sizes[i] = n
	}
	for round := range rounds {
		for j := range works {
			i := (round + j) % len(works)
			began := clock()
			for n := 0; n < sizes[i]; n += chunk {
				works[i](round*sizes[i]+n, chunk)
			}
			times[i] = append(times[i], float64(clock()-began)/float64(sizes[i]))
		}
	}
	return times
}

// A table prints one line per measurement: the median time of each contender,
// and the median of the rounds' ratios of tidemark to each other one.
type table struct {
	w     *tabwriter.Writer
	names []string
}

func newTable(title string, names []string) *table {
	t := &table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0), names}
	fmt.Fprintf(t.w, "%s\t%s\t", title, strings.Join(names, "\t"))
	for _, n := range names[1:] {
		fmt.Fprintf(t.w, "%s/%s\t", names[0], n)
	}
	fmt.Fprintln(t.w)
	return t
}

func (t *table) add(what string, times map[string][]float64) {
	fmt.Fprintf(t.w, "%s\t", what)
	for _, n := range t.names {
		if v, ok := times[n]; ok {
			fmt.Fprintf(t.w, "%.1f\t", median(v))
		} else {
			fmt.Fprint(t.w, "-\t")
		}
	}
	for _, n := range t.names[1:] {
		other, ok := times[n]
		if !ok {
			fmt.Fprint(t.w, "-\t")
			continue
		}
		var ratios []float64
		for i, x := range times[t.names[0]] {
			ratios = append(ratios, x/other[i])
		}
		fmt.Fprintf(t.w, "%.2f\t", median(ratios))
	}
	fmt.Fprintln(t.w)
	t.w.Flush()
}

var contenderNames = []string{"tidemark", "otter", "ristretto", "golang-lru", "rwmap", "xsync.Map"}

// printTimes measures and prints the sections whose names contain one of only.
func printTimes(sizes []int, rounds int, only []string) error {
	t := newTable("CPU ns per operation", contenderNames)
	wanted := func(section string) bool { return containsOne(section, only) }
	for _, n := range sizes {
		if err := raceAll(t, n, "string", stringKeys, rounds, wanted); err != nil {
			return err
		}
		if err := raceAll(t, n, "uint64", integerKeys, rounds, wanted); err != nil {
			return err
		}
	}
	for _, n := range sizes {
		if err := raceInserts(t, max(n/10, 1000), rounds, wanted); err != nil {
			return err
		}
	}
	return nil
}

const traceLength = 1 << 21 // accesses, a power of two

// filled makes a contender that holds all keys and is 8/9 full: a cache that
// knows itself half empty may skip work it would have to do otherwise.
func filled[K string | uint64](make maker[K], keys []K) (*contender[K], error) {
	c, err := make(len(keys) * 9 / 8)
	if err != nil {
		return nil, err
	}
	missing := keys
	for try := 0; len(missing) > 0 && try < 20; try++ {
		for part := range parts(missing, 4096) {
			c.put(part)
			c.settle()
		}
		missing = nil
		for i := range keys {
			if c.get(keys[i:i+1]) == 0 {
				missing = append(missing, keys[i])
			}
		}
	}
	if have := len(keys) - len(missing); have < len(keys)*99/100 {
		return nil, fmt.Errorf("%s holds only %d of %d keys", c.name, have, len(keys))
	}
	return c, nil
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

// raceAll fills all contenders with n keys and measures what does not evict.
func raceAll[K string | uint64](t *table, n int, kind string, encode func([]uint32) []K, rounds int, wanted func(string) bool) error {
	type section struct {
		name  string
		trace string
		do    func(c *contender[K]) func([]K)
	}
	get := func(c *contender[K]) func([]K) { return func(k []K) { c.get(k) } }
	chase := func(c *contender[K]) func([]K) { return func(k []K) { c.chase(k) } }
	put := func(c *contender[K]) func([]K) { return c.put }
	mix := func(goroutines int) func(c *contender[K]) func([]K) {
		return func(c *contender[K]) func([]K) { return func(k []K) { together(goroutines, k, c.mix) } }
	}
	sections := []section{
		{"get", "zipf", get}, {"get", "uniform", get}, {"get dependent", "zipf", chase}, {"get dependent", "uniform", chase},
		{"put present", "zipf", put}, {"put present", "uniform", put},
		{"mix 75/25 g=1", "zipf", mix(1)}, {"mix 75/25 g=2", "zipf", mix(2)}, {"mix 75/25 g=4", "zipf", mix(4)},
	}
	traces := map[string][]K{
		"zipf":    encode(shuffled(zipfTrace(traceLength, n, 0.99), n)),
		"uniform": encode(uniformTrace(traceLength, n)),
	}
	var contenders []*contender[K]
	for _, s := range sections {
		name := fmt.Sprintf("%s, %s, %d %s keys", s.name, s.trace, n, kind)
		if !wanted(name) {
			continue
		}
		if contenders == nil {
			for _, m := range makers[K]() {
				c, err := filled(m, encode(everyKey(n)))
				if err != nil {
					return err
				}
				defer c.close()
				contenders = append(contenders, c)
			}
			runtime.GC()
		}
		var works []work
		for _, c := range contenders {
			do, trace := s.do(c), traces[s.trace]
			works = append(works, func(at, n int) {
				at &= traceLength - 1
				do(trace[at : at+n])
			})
		}
		times := map[string][]float64{}
		for i, v := range race(works, rounds, cpuTime) {
			times[contenders[i].name] = v
		}
		t.add(name, times)
	}
	return nil
}

// shuffled gives the n keys of t other numbers, so that popular keys are not
// also the first ones.
func shuffled(t []uint32, n int) []uint32 {
	to := newRand(5).Perm(n)
	for i, k := range t {
		t[i] = uint32(to[k])
	}
	return t
}

// together shares keys among goroutines that each do their part.
func together[K any](goroutines int, keys []K, do func([]K) int) {
	if goroutines == 1 {
		do(keys)
		return
	}
	var wg sync.WaitGroup
	for part := range parts(keys, len(keys)/goroutines) {
		wg.Go(func() { do(part) })
	}
	wg.Wait()
}

// raceInserts measures inserts of keys that are never read into full caches of n
// entries: each of them evicts something, or is refused.
func raceInserts(t *table, n, rounds int, wanted func(string) bool) error {
	name := fmt.Sprintf("insert with eviction, %d entries", n)
	if !wanted(name) {
		return nil
	}
	fresh := integerKeys(everyKey(n + 8_000_000)[n:])
	var works []work
	var names []string
	for _, m := range makers[uint64]() {
		c, err := filled(m, integerKeys(everyKey(n)))
		if err != nil {
			return err
		}
		defer c.close()
		if !c.evicts {
			continue
		}
		names = append(names, c.name)
		next := 0
		works = append(works, func(_, n int) {
			if next+n > len(fresh) {
				next = 0 // what was there has been evicted long ago
			}
			c.put(fresh[next : next+n])
			next += n
		})
	}
	began := time.Now()
	wall := func() time.Duration { return time.Since(began) }
	for _, clock := range []struct {
		name string
		now  func() time.Duration
	}{{name, cpuTime}, {name + ", wall time of the caller", wall}} {
		times := map[string][]float64{}
		for i, v := range race(works, rounds, clock.now) {
			times[names[i]] = v
		}
		t.add(clock.name, times)
	}
	return nil
}
