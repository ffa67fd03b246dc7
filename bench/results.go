package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// results are what was measured: a head that says where and how, and series of
// numbers, one for each round. As text they have the form of Go's benchmarks,
// with one line for each round, so that benchstat reads them too.
type results struct {
	w      io.Writer // gets each line at once; or nil
	head   []setting
	names  []string // of the series, in the order of their beginning
	series map[string]units
}

// A setting is one line of the head.
type setting struct{ key, value string }

// units are the numbers of one series, by unit.
type units map[string][]float64

// A quantity is one number of a round.
type quantity struct {
	number float64
	unit   string
}

func newResults(w io.Writer) *results { return &results{w: w, series: map[string]units{}} }

// set adds a line to the head.
func (r *results) set(key, value string) {
	r.head = append(r.head, setting{key, value})
	if r.w != nil {
		fmt.Fprintf(r.w, "%s: %s\n", key, value)
	}
}

// get returns a line of the head, or nothing. The last one counts.
func (r *results) get(key string) (value string) {
	for _, s := range r.head {
		if s.key == key {
			value = s.value
		}
	}
	return value
}

// add adds a round to a series.
func (r *results) add(name string, ops int, round ...quantity) {
	if r.series[name] == nil {
		r.series[name] = units{}
		r.names = append(r.names, name)
	}
	var line strings.Builder
	for _, q := range round {
		r.series[name][q.unit] = append(r.series[name][q.unit], q.number)
		fmt.Fprintf(&line, "\t%s %s", strconv.FormatFloat(q.number, 'g', 6, 64), q.unit)
	}
	if r.w != nil {
		fmt.Fprintf(r.w, "Benchmark%s\t%d%s\n", name, ops, line.String())
	}
}

// addLaps adds what a race measured.
func (r *results) addLaps(name string, l laps) {
	for _, lap := range l {
		r.add(name, lap.ops, quantity{lap.cpu, "cpu-ns/op"}, quantity{lap.wall, "ns/op"},
			quantity{lap.bytes, "B/op"}, quantity{lap.allocs, "allocs/op"})
	}
}

var headLine = regexp.MustCompile(`^([a-z][-.\w/]*): (.*)$`)

// readResults reads what results have written.
func readResults(from io.Reader) (*results, error) {
	r := newResults(nil)
	lines := bufio.NewScanner(from)
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		if m := headLine.FindStringSubmatch(line); m != nil {
			r.set(m[1], m[2])
			continue
		}
		name, isRound := strings.CutPrefix(line, "Benchmark")
		fields := strings.Fields(name)
		if !isRound || len(fields) < 4 || len(fields)%2 != 0 {
			return nil, fmt.Errorf("line %d is neither a setting nor a round: %q", number, line)
		}
		ops, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		var round []quantity
		for i := 2; i < len(fields); i += 2 {
			x, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", number, err)
			}
			round = append(round, quantity{x, fields[i+1]})
		}
		r.add(fields[0], ops, round...)
	}
	return r, lines.Err()
}

// median returns the median of a series.
func (r *results) median(name, unit string) (float64, bool) {
	v := r.series[name][unit]
	return median(v), len(v) > 0
}

// ratio returns the median of the rounds' ratios of one series to another.
func (r *results) ratio(name, to, unit string) (float64, bool) {
	a, b := r.series[name][unit], r.series[to][unit]
	n := min(len(a), len(b))
	if n == 0 {
		return 0, false
	}
	return median(ratios(a[:n], b[:n])), true
}

// of returns name with another value for one of its keys.
func of(name, key, value string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, key+"=") {
			parts[i] = key + "=" + value
		}
	}
	return strings.Join(parts, "/")
}

// attribute returns the value of one key of a name, or nothing.
func attribute(name, key string) string {
	for p := range strings.SplitSeq(name, "/") {
		if value, ok := strings.CutPrefix(p, key+"="); ok {
			return value
		}
	}
	return ""
}

// matching returns the names of the series in which all of these attributes are.
func (r *results) matching(prefix string, attributes ...string) []string {
	var all []string
	for _, name := range r.names {
		parts := strings.Split(name, "/")
		if parts[0] == prefix && !slices.ContainsFunc(attributes, func(a string) bool { return !slices.Contains(parts, a) }) {
			all = append(all, name)
		}
	}
	return all
}

// first returns the first name that matching returns.
func (r *results) first(prefix string, attributes ...string) (string, bool) {
	all := r.matching(prefix, attributes...)
	if len(all) == 0 {
		return "", false
	}
	return all[0], true
}
