package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// A tally counts tests. A test with subtests counts only if it fails or is
// skipped by itself: its subtests are what ran.
type tally struct{ passed, failed, skipped int }

func (t *tally) add(u tally) {
	t.passed += u.passed
	t.failed += u.failed
	t.skipped += u.skipped
}

// verdict is nil for a run that may be called green.
func (t tally) verdict() error {
	var errs []error
	if t.failed > 0 {
		errs = append(errs, fmt.Errorf("%d failed", t.failed))
	}
	if t.skipped > 0 {
		errs = append(errs, fmt.Errorf("%d skipped: a skipped test proves nothing; "+
			"provide what it needs or put it behind a build tag", t.skipped))
	}
	if t == (tally{}) {
		errs = append(errs, errors.New("no test ran"))
	}
	return errors.Join(errs...)
}

// An event is one line of go test -json; see "go doc test2json".
type event struct {
	Action     string
	Package    string
	ImportPath string // for the build events, which have no Package
	Test       string // empty: the event is about the package
	Output     string
	Elapsed    float64 // seconds
}

// A testRun is what is known of one test; it may run often (-count, -cpu).
type testRun struct {
	tally
	running bool
	seconds float64
	output  strings.Builder // of the present run, and of all that did not pass
}

// A packageRun collects the tests of one package until the package ends.
type packageRun struct {
	tests  map[string]*testRun
	output strings.Builder // what belongs to no test
}

// summarize reads events until the end, writes what a person wants to see to
// out, and counts. A package whose end is missing counts as failed.
func summarize(events io.Reader, out io.Writer) (tally, error) {
	var sum tally
	packages := map[string]*packageRun{}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil:
			fmt.Fprintf(out, "%s", line) // a test binary wrote past the testing package
		case e.Package == "":
			fmt.Fprint(out, e.Output) // the compiler speaks
		default:
			p := packages[e.Package]
			if p == nil {
				p = &packageRun{tests: map[string]*testRun{}}
				packages[e.Package] = p
			}
			if p.apply(e) {
				sum.add(p.finish(e, out))
				delete(packages, e.Package)
			}
		}
		if err != nil {
			for _, name := range slices.Sorted(maps.Keys(packages)) {
				sum.add(packages[name].finish(event{Package: name, Action: "fail"}, out))
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return sum, err
		}
	}
}

// apply records e and reports whether it ends the package.
func (p *packageRun) apply(e event) (ended bool) {
	if e.Test == "" {
		p.output.WriteString(e.Output)
		return e.Action == "pass" || e.Action == "fail" || e.Action == "skip"
	}
	t := p.tests[e.Test]
	if t == nil {
		t = &testRun{}
		p.tests[e.Test] = t
	}
	t.seconds += e.Elapsed
	switch e.Action {
	case "run":
		t.running = true
	case "output":
		if !strings.HasPrefix(e.Output, "=== ") {
			t.output.WriteString(e.Output)
		}
	case "pass":
		t.running = false
		t.passed++
		if t.failed == 0 && t.skipped == 0 {
			t.output.Reset()
		}
	case "fail":
		t.running = false
		t.failed++
	case "skip":
		t.running = false
		t.skipped++
	}
	return false
}

// finish counts the tests of the package that e ended and writes its lines.
func (p *packageRun) finish(e event, out io.Writer) tally {
	var sum tally
	parents, blamed := map[string]bool{}, map[string]bool{}
	names := slices.Sorted(maps.Keys(p.tests))
	for _, name := range names {
		t := p.tests[name]
		if t.running { // the process died or was killed under it
			t.failed++
		}
		for i, c := range name {
			if c == '/' {
				parents[name[:i]] = true
				blamed[name[:i]] = blamed[name[:i]] || t.failed > 0
			}
		}
	}
	for _, name := range names {
		t := p.tests[name]
		if !parents[name] {
			sum.passed += t.passed
		}
		if !blamed[name] {
			sum.failed += t.failed
		}
		sum.skipped += t.skipped
		if t.failed > 0 || t.skipped > 0 {
			fmt.Fprintf(out, "---- %s %s\n%s", e.Package, name, t.output.String())
		}
	}
	if e.Action == "fail" {
		if sum.failed == 0 { // did not build, or failed outside of any test
			sum.failed = 1
		}
		fmt.Fprint(out, p.output.String())
	}
	if sum != (tally{}) {
		fmt.Fprintf(out, "%-4s %s %.1fs: %d passed, %d failed, %d skipped\n",
			e.Action, e.Package, e.Elapsed, sum.passed, sum.failed, sum.skipped)
	}
	if e.Elapsed > long {
		fmt.Fprintf(out, "     the longest: %s\n", p.longest())
	}
	return sum
}

// long is how many seconds a package may take before its longest tests are named.
const long = 60

// longest names the tests that have taken the most time. Parallel ones count the
// time in which they waited for each other too.
func (p *packageRun) longest() string {
	names := slices.DeleteFunc(slices.Collect(maps.Keys(p.tests)), func(name string) bool { return strings.Contains(name, "/") })
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(p.tests[b].seconds, p.tests[a].seconds), cmp.Compare(a, b))
	})
	var said []string
	for _, name := range names[:min(len(names), 12)] {
		said = append(said, fmt.Sprintf("%s %.1fs", name, p.tests[name].seconds))
	}
	return strings.Join(said, ", ")
}
