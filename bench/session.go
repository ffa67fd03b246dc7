package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// A plan says how much is measured.
type plan struct {
	track
	sizes       [3]int // numbers of keys: in the cache of a processor, beyond it, far beyond it
	rounds      int
	traceLength int // accesses, a power of two
	hitKeys     int // of a generated trace whose hits are counted; it has five accesses for each
	burst       int // inserts
	procs       []int
}

var (
	fullPlan = plan{
		track{turn, chunk, true},
		[3]int{10_000, 1_000_000, 5_000_000},
		11, traceLength, 200_000, 1_000_000,
		[]int{1, 2},
	}
	// quickPlan shows that everything runs; its numbers mean nothing.
	quickPlan = plan{
		track{time.Millisecond, 1 << 9, true},
		[3]int{1000, 2000, 4000},
		3, 1 << 13, 2000, 10_000,
		[]int{1, 2},
	}
)

const traceLength = 1 << 21 // accesses, a power of two

// A session measures.
type session struct {
	plan
	*results
	only     *regexp.Regexp // names of what is measured
	progress io.Writer
	traces   string // a folder of files, or empty
}

func (s *session) wanted(name string) bool { return s.only.MatchString(name) }

// withProcs runs do with so many processors.
func withProcs(n int, do func()) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
	do()
}

// run measures everything, one section after the other. What fails does not keep
// the others from being measured: a run takes long.
func (s *session) run() error {
	var errs []error
	for _, section := range []struct {
		name string
		run  func() error
	}{
		{"times", s.times}, {"churn", s.churn}, {"inserts", s.inserts}, {"stampede", s.stampede}, {"burst", s.burstOfInserts},
		{"suite", s.suite}, {"many", s.many}, {"memory", s.memory}, {"hit ratios", s.hitRatios},
	} {
		began := time.Now()
		if err := section.run(); err != nil {
			s.fail(section.name, err)
			errs = append(errs, fmt.Errorf("%s: %w", section.name, err))
		}
		fmt.Fprintf(s.progress, "# %s: %v\n", section.name, time.Since(began).Round(time.Second))
	}
	return errors.Join(errs...)
}

// fail notes what could not be measured, for the document.
func (s *session) fail(what string, err error) {
	s.set("failed", strings.ReplaceAll(fmt.Sprintf("%s: %v", what, err), "\n", "; "))
	fmt.Fprintf(s.progress, "# %s: %v\n", what, err)
}

// A runner is one side of a race.
type runner struct {
	cache string
	do    work
}

// raceNamed races and keeps the laps under name, to which the caches are added.
func (s *session) raceNamed(name string, t track, runners []runner) {
	works := make([]work, len(runners))
	for i, r := range runners {
		works[i] = r.do
	}
	for i, l := range t.race(works, s.rounds) {
		s.addLaps(name+"/cache="+runners[i].cache, l)
	}
	s.show(name, "cpu-ns/op", runners)
}

// show prints what a race measured: medians, and ratios of the first to the
// others.
func (s *session) show(name, unit string, runners []runner) {
	var b strings.Builder
	first := name + "/cache=" + runners[0].cache
	for i, r := range runners {
		this := name + "/cache=" + r.cache
		m, _ := s.median(this, unit)
		fmt.Fprintf(&b, "  %s %.1f", r.cache, m)
		if i > 0 {
			x, _ := s.ratio(first, this, unit)
			fmt.Fprintf(&b, " (%.2f)", x)
		}
	}
	fmt.Fprintf(s.progress, "%s %s:%s\n", name, unit, b.String())
}

// wantsPrefix reports whether a section may have names that are wanted: it saves
// the preparation of one that has none. A pattern that names another section at
// its beginning rules it out.
func (s *session) wantsPrefix(section string) bool {
	prefix, _ := s.only.LiteralPrefix()
	for _, other := range sectionNames {
		if other != section && strings.HasPrefix(prefix, other) {
			return false
		}
	}
	return true
}

// sectionNames are what names begin with.
var sectionNames = []string{"Cache", "Churn", "Insert", "Stampede", "Burst", "Suite", "Many", "Memory", "HitRatio"}
