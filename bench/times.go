package main

import (
	"fmt"
	"runtime"
	"slices"
)

// A shape is what the caches hold while they are raced.
type shape struct {
	key   string // kind of key
	bytes int    // of a value
	n     int    // entries
	group int    // 0: all contenders at once
}

func (sh shape) String() string {
	s := fmt.Sprintf("key=%s/value=%d/n=%d", sh.key, sh.bytes, sh.n)
	if sh.group > 0 {
		s += fmt.Sprintf("/group=%d", sh.group)
	}
	return s
}

// groups are raced apart where memory does not hold all contenders at once.
// Tidemark is in each, since ratios are to be of one race.
var groups = [][]string{
	{"tidemark", "otter", "theine", "ristretto", "xsync.Map"},
	{"tidemark", "sturdyc", "golang-lru", "freecache", "bigcache"},
	{"tidemark", "sync.Map", "rwmap", "floor1", "floor2"},
}

// single are the contenders that run on one processor too: those whom a goal
// names.
var single = []string{"tidemark", "otter", "xsync.Map", "rwmap", "floor1", "floor2"}

// An event is one kind of access that is raced.
type event struct {
	reads      int // percent
	dependent  bool
	dist       string
	goroutines int
}

func (e event) order() string {
	if e.dependent {
		return "dependent"
	}
	return "independent"
}

func (e event) String() string {
	return fmt.Sprintf("reads=%d/order=%s/dist=%s", e.reads, e.order(), e.dist)
}

// everyEvent returns the events of the whole matrix.
func everyEvent() (all []event) {
	for _, dist := range []string{"zipf", "uniform"} {
		for _, reads := range []int{100, 90, 75, 50, 0} {
			all = append(all, event{reads, false, dist, 1})
		}
		all = append(all, event{100, true, dist, 1})
	}
	return all
}

// loop returns the loop of an event.
func loop[K comparable](c *contender[K], e event) func([]K) int {
	switch {
	case e.dependent:
		return c.chase
	case e.reads == 100:
		return c.get
	case e.reads == 0:
		return func(keys []K) int { c.put(keys); return 0 }
	}
	every := 100 / (100 - e.reads)
	return func(keys []K) int { return c.mix(keys, every) }
}

// times measures what does not evict.
func (s *session) times() error {
	small, middle, large := s.sizes[0], s.sizes[1], s.sizes[2]
	crowd := []event{
		{75, false, "zipf", 2}, {75, false, "zipf", 4}, {75, false, "zipf", 8}, {100, false, "zipf", 2}, {100, false, "uniform", 2},
	}
	few := []event{{100, false, "zipf", 1}, {75, false, "zipf", 1}, {0, false, "zipf", 1}}
	for _, n := range []int{small, middle} {
		if err := timesOf[string, [4]uint64](s, shape{"string", 32, n, 0}, stringKeys, append(everyEvent(), crowd...)); err != nil {
			return err
		}
		if err := timesOf[uint64, [4]uint64](s, shape{"uint64", 32, n, 0}, integerKeys, everyEvent()); err != nil {
			return err
		}
		if err := timesOf[string, [4]uint64](s, shape{"string16to24", 32, n, 0}, mixedKeys, few); err != nil {
			return err
		}
		if err := timesOf[string, [2]uint64](s, shape{"string", 16, n, 0}, stringKeys, few); err != nil {
			return err
		}
		if err := timesOf[string, [8]uint64](s, shape{"string", 64, n, 0}, stringKeys, few); err != nil {
			return err
		}
	}
	for i := range groups {
		if err := timesOf[string, [4]uint64](s, shape{"string", 32, large, i + 1}, stringKeys, everyEvent()); err != nil {
			return err
		}
		if err := timesOf[uint64, [4]uint64](s, shape{"uint64", 32, large, i + 1}, integerKeys, everyEvent()); err != nil {
			return err
		}
	}
	return nil
}

// onOne reports whether a goal wants an event on one processor too.
func onOne(sh shape, e event) bool {
	switch {
	case sh.bytes != 32 || sh.key == "string16to24":
		return false
	case sh.group > 0:
		return e.reads == 100
	}
	return e.goroutines == 1 || e.reads == 75
}

// timesOf fills contenders and races them at each event, on one processor too if
// a goal asks for it.
func timesOf[K identifier, V payload](s *session, sh shape, encode func([]uint32) []K, events []event) error {
	type planned struct {
		event
		procs int
		name  string
	}
	var wanted []planned
	for _, procs := range s.procs {
		for _, e := range events {
			name := fmt.Sprintf("Cache/%v/%v/procs=%d/g=%d", e, sh, procs, e.goroutines)
			if s.wanted(name) && (procs > 1 || onOne(sh, e)) {
				wanted = append(wanted, planned{e, procs, name})
			}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	var names []string
	if sh.group > 0 {
		names = groups[sh.group-1]
	}
	var contenders []*contender[K]
	for _, m := range makers[K, V](names...) {
		c, err := filled(m, encode(everyKey(sh.n)))
		if err != nil { // a contender that does not hold what it should is not raced
			s.fail(sh.String(), err)
			continue
		}
		defer c.close()
		contenders = append(contenders, c)
	}
	traces := map[string][]K{
		"zipf":    encode(shuffled(zipfTrace(s.traceLength, sh.n, 0.99), sh.n)),
		"uniform": encode(uniformTrace(s.traceLength, sh.n)),
	}
	runtime.GC() // not before each race: with millions of entries it takes longer than that
	for _, p := range wanted {
		withProcs(p.procs, func() { raceEvent(s, p.name, p.event, p.procs, contenders, traces[p.dist]) })
	}
	return nil
}

func raceEvent[K comparable](s *session, name string, e event, procs int, contenders []*contender[K], trace []K) {
	t := s.track
	if e.goroutines > 1 {
		t.chunk *= 4 // goroutines wait for each other at its end
	}
	var runners []runner
	for _, c := range contenders {
		isFloor := c.name == "floor1" || c.name == "floor2"
		if procs == 1 && !slices.Contains(single, c.name) || isFloor && (e.reads < 100 || e.goroutines > 1) {
			continue
		}
		do := loop(c, e)
		runners = append(runners, runner{c.name, func(at, n int) {
			at &= len(trace) - 1
			together(e.goroutines, trace[at:at+n], do)
		}})
	}
	s.raceNamed(name, t, runners)
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
