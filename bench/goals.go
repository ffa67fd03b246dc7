package main

import (
	"fmt"
	"slices"
	"strings"
)

// A goal is one bound that was set before anything was measured.
type goal struct {
	id, text string
	command  string // arguments of go run -C bench .
	limit    float64
	atLeast  bool // or else at most
	digits   int
	measure  func(*results) []reading
}

// A reading is one number that a bound is held against.
type reading struct {
	label string
	value float64
}

// verdict returns whether all readings keep the bound, which of them is the
// worst, and how many there are.
func (g goal) verdict(r *results) (met bool, worst reading, all []reading) {
	if g.measure != nil {
		all = g.measure(r)
	}
	for i, x := range all {
		if worse := x.value > worst.value != g.atLeast; i == 0 || worse && x.value != worst.value {
			worst = x
		}
	}
	return len(all) > 0 && (worst.value == g.limit || worst.value < g.limit != g.atLeast), worst, all
}

// row returns the goal as a line of a table.
func (g goal) row(r *results) []string {
	met, worst, all := g.verdict(r)
	bound := "at most"
	if g.atLeast {
		bound = "at least"
	}
	goalText := fmt.Sprintf("%s: %s %s", g.text, bound, trimmed(g.limit))
	command := "`" + g.command + "`"
	switch {
	case g.measure == nil:
		return []string{g.id, g.text, "-", g.command, "not measured here"}
	case len(all) == 0:
		return []string{g.id, goalText, "-", command, "not measured in this run"}
	}
	measured := fmt.Sprintf("%.*f", g.digits, worst.value)
	if len(all) > 1 {
		values := make([]float64, len(all))
		for i, x := range all {
			values[i] = x.value
		}
		measured = fmt.Sprintf("%.*f to %.*f in %d series; worst: %s",
			g.digits, slices.Min(values), g.digits, slices.Max(values), len(all), worst.label)
	}
	verdict := "**missed**"
	if met {
		verdict = "met"
	}
	return []string{g.id, goalText, measured, command, verdict}
}

// trimmed writes a number without needless zeros.
func trimmed(x float64) string { return fmt.Sprintf("%g", x) }

// ratiosTo returns the ratios of tidemark to another cache in all series that
// have the attributes.
func ratiosTo(cache, unit, prefix string, attributes ...string) func(*results) []reading {
	return versus("cache", cache, unit, prefix, append(attributes, "cache=tidemark")...)
}

// versus returns the ratios of all series that have the attributes to those that
// differ from them in one.
func versus(key, other, unit, prefix string, attributes ...string) func(*results) []reading {
	return func(r *results) (all []reading) {
		for _, name := range r.matching(prefix, attributes...) {
			if x, ok := r.ratio(name, of(name, key, other), unit); ok {
				all = append(all, reading{label(name, attributes), x})
			}
		}
		return all
	}
}

// medians returns the medians of all series that have the attributes, divided by
// a unit.
func medians(unit string, per float64, prefix string, attributes ...string) func(*results) []reading {
	return func(r *results) (all []reading) {
		for _, name := range r.matching(prefix, attributes...) {
			if x, ok := r.median(name, unit); ok {
				all = append(all, reading{label(name, attributes), x / per})
			}
		}
		return all
	}
}

// label returns what a name says beyond the attributes.
func label(name string, attributes []string) string {
	var more []string
	for _, part := range strings.Split(name, "/")[1:] {
		if !slices.Contains(attributes, part) && !strings.HasPrefix(part, "cache=") && !strings.HasPrefix(part, "group=") {
			more = append(more, part)
		}
	}
	return strings.Join(more, " ")
}

// goals returns the bounds for a run with these numbers of keys.
func goals(sizes [3]int) []goal {
	n := make([]string, 3)
	for i, size := range sizes {
		n[i] = fmt.Sprintf("n=%d", size)
	}
	at := [3]string{thousands(sizes[0]), thousands(sizes[1]), thousands(sizes[2])}
	only := func(pattern string) string { return "-only '" + pattern + "'" }
	get := []string{"reads=100", "value=32", "g=1"}
	gets := func(more ...string) []string { return append(slices.Clone(get), more...) }
	puts := func(more ...string) []string {
		return append([]string{"reads=0", "value=32", "g=1", "cache=tidemark"}, more...)
	}
	const cpu, wall = "cpu-ns/op", "ns/op"
	getOf := func(key, n string) string {
		return only("Cache/reads=100/.*/key=" + key + "/value=32/" + n + "/.*/g=1")
	}
	putOf := func(n string) string { return only("Cache/reads=0/.*/value=32/" + n + "/") }
	return slices.Concat([]goal{
		{"G1", "Get, string keys, " + at[0] + " entries, Zipf, of otter's time", getOf("string", n[0]), 0.45, false, 2,
			ratiosTo("otter", cpu, "Cache", gets("key=string", n[0], "dist=zipf")...)},
		{"G1", "the same, of a map behind 256 RWMutexes", getOf("string", n[0]), 0.85, false, 2,
			ratiosTo("rwmap", cpu, "Cache", gets("key=string", n[0], "dist=zipf")...)},
		{"G2", "Get, string keys, " + at[1] + " entries, of otter's time", getOf("string", n[1]), 0.50, false, 2,
			ratiosTo("otter", cpu, "Cache", gets("key=string", n[1])...)},
		{"G2", "the same, of xsync.Map", getOf("string", n[1]), 0.90, false, 2,
			ratiosTo("xsync.Map", cpu, "Cache", gets("key=string", n[1])...)},
		{"G3", "Get, string keys, " + at[2] + " entries, of otter's time", getOf("string", n[2]), 0.45, false, 2,
			ratiosTo("otter", cpu, "Cache", gets("key=string", n[2])...)},
		{"G4", "Get, uint64 keys, " + at[0] + " entries, of otter's time", getOf("uint64", n[0]), 0.55, false, 2,
			ratiosTo("otter", cpu, "Cache", gets("key=uint64", n[0])...)},
	}, largeIntegers(sizes, getOf), []goal{
		{"G5", "Put of a key that is there, " + at[0] + " entries, of otter's time", putOf(n[0]), 0.25, false, 2,
			ratiosTo("otter", cpu, "Cache", puts(n[0])...)},
		{"G5", "the same, " + at[1] + " entries, Zipf", putOf(n[1]), 0.45, false, 2,
			ratiosTo("otter", cpu, "Cache", puts(n[1], "dist=zipf")...)},
		{"G5", "the same, " + at[1] + " entries, uniform", putOf(n[1]), 0.60, false, 2,
			ratiosTo("otter", cpu, "Cache", puts(n[1], "dist=uniform")...)},
		{"G5", "Put of a key that is there, allocations", putOf(n[0]), 0.005, false, 3,
			medians("allocs/op", 1, "Cache", puts()...)},
		{"G6", "75 % reads, " + at[1] + " entries, Zipf, string keys, 1, 2, 4 and 8 goroutines, of otter's time",
			only("Cache/reads=75/.*/dist=zipf/key=string/value=32/" + n[1] + "/"), 0.50, false, 2,
			ratiosTo("otter", cpu, "Cache", "reads=75", "dist=zipf", "key=string", "value=32", n[1], "order=independent")},
		{"G7", "Get by two goroutines, of otter's time on the wall", only("Cache/reads=100/.*/procs=2/g=2"), 0.60, false, 2,
			ratiosTo("otter", wall, "Cache", "reads=100", "g=2", "procs=2")},
		{"G7", "Get by two goroutines, of the time by one, on the wall, measured one after the other",
			only("Cache/reads=100/order=independent/.*/key=string/value=32/.*/procs=2/"), 0.56, false, 2,
			versus("g", "1", wall, "Cache", "reads=100", "g=2", "procs=2", "cache=tidemark")},
		{"G8", "Get whose key depends on the last, string keys, of a hash and two lines of memory, one after the other",
			only("Cache/reads=100/order=dependent/.*/key=string/value=32"), 1.35, false, 2,
			ratiosTo("floor2", cpu, "Cache", gets("key=string", "order=dependent")...)},
		{"G8", "the same, of a hash and one line of memory", only("Cache/reads=100/order=dependent/.*/key=string/value=32"), 2, false, 2,
			ratiosTo("floor1", cpu, "Cache", gets("key=string", "order=dependent")...)},
		{"G9", "Get with recording of accesses on, of the time with it off", "no option turns it off: `go test -run ^$ -bench Recording .` compares", 1.15, false, 2, nil},
		{"G9", "Get, bytes allocated", getOf("string", n[0]), 0.5, false, 2,
			medians("B/op", 1, "Cache", gets("cache=tidemark", "procs=1")...)},
		{"G10", "runtime.GC with " + at[2] + " entries, ms", only("Memory/.*/" + n[2] + "/cache=tidemark"), 20, false, 1,
			medians("gc-ns", 1e6, "Memory", n[2], "cache=tidemark")},
		{"G10", "bytes of the table without the policy, of the cell", "the table has no public name: `TestTable_TakesLittleMoreThanItsCells`", 1.6, false, 2, nil},
		{"G11", "otter's own throughput suite, 100 % reads, of otter's time", only("Suite/reads=100"), 0.75, false, 2,
			ratiosTo("otter", cpu, "Suite", "reads=100")},
		{"G11", "the same, 0 % reads", only("Suite/reads=0"), 0.35, false, 2, ratiosTo("otter", cpu, "Suite", "reads=0")},
		{"G12", "insert that evicts, of otter's CPU time", only("Insert"), 1.5, false, 2, ratiosTo("otter", cpu, "Insert")},
		{"G12", "insert that evicts, ns on the caller's wall", only("Insert"), 250, false, 0, medians(wall, 1, "Insert", "cache=tidemark")},
		{"G12", "entries that the policy does not know: none", "tests of the root package compare them", 0, false, 0, nil},
		{"G13", "bytes per entry with the policy, " + at[1] + " entries, string keys, of otter's", only("Memory/key=string/.*/" + n[1] + "/"), 2, false, 2,
			ratiosTo("otter", "B/entry", "Memory", "key=string", n[1])},
		{"G14", "LoadMany of 64 keys that are there, of 64 Gets", only("Many"), 0.5, false, 2,
			versus("cache", "Get", cpu, "Many", "cache=LoadMany")},
	}, hitGoals(only))
}

// largeIntegers are the bounds of G4 beyond the cache of a processor.
func largeIntegers(sizes [3]int, getOf func(key, n string) string) (all []goal) {
	for _, size := range sizes[1:] {
		for _, order := range []struct {
			name  string
			limit float64
		}{{"dependent", 0.60}, {"independent", 0.45}} {
			n := fmt.Sprintf("n=%d", size)
			all = append(all, goal{
				"G4", "Get, uint64 keys, " + thousands(size) + " entries, " + order.name + ", of otter's time",
				getOf("uint64", n), order.limit, false, 2,
				ratiosTo("otter", "cpu-ns/op", "Cache", "reads=100", "value=32", "g=1", "key=uint64", n, "order="+order.name),
			})
		}
	}
	return all
}

// hitGoals are G15: hit ratio and policy.
func hitGoals(only func(string) string) []goal {
	all := func(p string) string { return only("HitRatio/.*/" + p) }
	each := func(procs string) func(*results) []reading {
		return func(r *results) []reading { return r.differences("tidemark", procs, "g=1") }
	}
	summed := func(what string, sum func([]reading) float64) func(*results) []reading {
		return func(r *results) (readings []reading) {
			for _, procs := range []string{"procs=1", "procs=2"} {
				if d := each(procs)(r); len(d) > 0 {
					readings = append(readings, reading{what + procs, sum(d)})
				}
			}
			return readings
		}
	}
	return []goal{
		{"G15", "points of hit ratio more than otter, on average", all("g=1"), 0.2, true, 2, summed("", meanOf)},
		{"G15", "share of pairs of trace and capacity not behind otter, %", all("g=1"), 60, true, 0, summed("", notBehind)},
		{"G15", "points of hit ratio more than otter, in the worst pair", all("g=1"), -8, true, 2, func(r *results) []reading {
			return append(each("procs=1")(r), each("procs=2")(r)...)
		}},
		{"G15", "points lost against otter by 4 goroutines instead of one, on average (no option records all accesses, to compare with)",
			all("procs=2"), 0.3, false, 2, func(r *results) []reading { return r.lostByGoroutines() }},
		{"G15", "cost held, % of MaxCost: never above, while a burst goes on", only("Burst"), 100, false, 1,
			medians("most%", 1, "Burst", "cache=tidemark")},
		{"G15", "cost held, % of MaxCost, after a burst", only("Burst"), 95, true, 1, medians("held%", 1, "Burst", "cache=tidemark")},
		{"G15", "the longest Put in a burst of four goroutines, ms", only("Burst"), 1, false, 2,
			medians("max-ns", 1e6, "Burst", "cache=tidemark")},
		{"G15", "entries that the policy does not know, and the other way round: none", "tests of the root package compare them", 0, false, 0, nil},
	}
}

// differences returns the points of hit ratio that a cache has more than otter,
// in each pair of trace and capacity.
func (r *results) differences(cache string, attributes ...string) (all []reading) {
	attributes = append(attributes, "cache="+cache)
	for _, name := range r.matching("HitRatio", attributes...) {
		have, _ := r.median(name, "hit%")
		if otter, ok := r.median(of(name, "cache", "otter"), "hit%"); ok {
			all = append(all, reading{label(name, attributes), have - otter})
		}
	}
	return all
}

// lostByGoroutines returns how many points tidemark loses against otter when
// four goroutines walk through a trace instead of one, on average. Both lose what
// two goroutines miss at once.
func (r *results) lostByGoroutines() []reading {
	four := r.differences("tidemark", "procs=2", "g=4")
	var lost []reading
	for _, one := range r.differences("tidemark", "procs=2", "g=1") {
		if i := slices.IndexFunc(four, func(x reading) bool { return x.label == one.label }); i >= 0 {
			lost = append(lost, reading{one.label, one.value - four[i].value})
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return []reading{{"", meanOf(lost)}}
}

func meanOf(all []reading) float64 {
	sum := 0.0
	for _, x := range all {
		sum += x.value
	}
	return sum / float64(len(all))
}

// notBehind returns the percentage of differences that are not negative, to two
// digits as the document shows them.
func notBehind(all []reading) float64 {
	n := 0
	for _, x := range all {
		if x.value > -0.005 {
			n++
		}
	}
	return 100 * float64(n) / float64(len(all))
}

// thousands writes a number as people say it.
func thousands(n int) string {
	switch {
	case n >= 1e6 && n%1e5 == 0:
		return fmt.Sprintf("%g M", float64(n)/1e6)
	case n >= 1000 && n%100 == 0:
		return fmt.Sprintf("%g k", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}
