package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// chartFolder is beside the document.
const chartFolder = "benchmarks"

// writeReport writes benchmarks.md and its charts into a folder, from the numbers
// in a file.
func writeReport(file, docs string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := readResults(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	d, err := newDocument(r)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	text := d.text()
	folder := filepath.Join(docs, chartFolder)
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, c := range d.charts {
		if err := os.WriteFile(filepath.Join(folder, c.file), []byte(c.svg()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(docs, "benchmarks.md"), []byte(text), 0o644)
}

// A document says what results say. All its sentences about speed are made of
// their numbers; the others say what was done.
type document struct {
	*results
	sizes  [3]int
	charts []namedChart
	b      strings.Builder
}

type namedChart struct {
	file string
	chart
}

func newDocument(r *results) (*document, error) {
	d := &document{results: r}
	if n, err := fmt.Sscan(r.get("sizes"), &d.sizes[0], &d.sizes[1], &d.sizes[2]); err != nil {
		return nil, fmt.Errorf("the line \"sizes\" has %d of 3 numbers: %w", n, err)
	}
	return d, nil
}

func (d *document) text() string {
	d.head()
	d.writeGoals()
	d.writeTimes()
	d.writeVariations()
	d.writeCrowd()
	d.writeChurn()
	d.writeLoads()
	d.writeMore()
	d.writeMemory()
	d.writeHits()
	return d.b.String()
}

func (d *document) printf(format string, args ...any) { fmt.Fprintf(&d.b, format, args...) }

// table writes a table, or a sentence if it has no rows.
func (d *document) table(head []string, rows [][]string) {
	if len(rows) == 0 {
		d.printf("Not measured in this run.\n\n")
		return
	}
	d.printf("| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range rows {
		d.printf("| %s |\n", strings.Join(row, " | "))
	}
	d.printf("\n")
}

// picture adds a chart, unless it would be empty.
func (d *document) picture(file, alt string, c chart) {
	c.groups = slices.DeleteFunc(c.groups, func(g barGroup) bool { return len(g.bars) == 0 })
	if len(c.groups) == 0 {
		return
	}
	d.charts = append(d.charts, namedChart{file, c})
	d.printf("![%s](%s/%s)\n\n", alt, chartFolder, file)
}

func (d *document) head() {
	d.printf("# Benchmarks\n\n<!-- Written by make bench. Do not edit. -->\n\n")
	if d.get("quick") == "true" {
		d.printf("**This is a quick run, which shows that everything runs. Its sizes are tiny and its numbers mean nothing.**\n\n")
	}
	d.printf(`Tidemark beside other caches, in one process, and beside bare maps as lower bounds: xsync.Map, sync.Map, and "rwmap", 256 maps
behind RWMutexes. A bare map keeps everything: it does not evict, expire or compare versions. What a log costs is in
[log-cost.md](log-cost.md).

* **Times are CPU nanoseconds per operation** of the whole process, background work and garbage collection included, unless a table says
  "wall". Percentages of reads: the rest are writes of keys that are there.
* **Turns.** The contenders take turns of 22 ms, in an order and at a place of the trace that move on every round; a turn is over when the
  process has come to rest, so background work is of the turn that caused it, except a long collection. A number is the median of %s rounds. **A ratio in parentheses is the median of the rounds' ratios of tidemark to that cache: below 1 tidemark is faster.**
  On a machine that is busy with something else the times are wrong; the ratios suffer less.
* **Dependent** means that which key comes next depends on the value read before. Otherwise a processor overlaps several reads.
* **Caches are 8/9 full**, and hold every key that is asked for; more room is given only to those that divide it into fixed parts. No key
  that is asked for shares its bytes with the one that is stored. Values are 32 bytes and string keys 20 bytes, if nothing else is said.
* **All are set up as their documentation advises**; what that left open is said in [bench/caches.go](../bench/caches.go). Every write of
  tidemark has a newer version. Sturdyc has string keys only. Freecache and bigcache store bytes, into which values are copied as they lie in
  memory. With %s entries the contenders run in groups of five, with tidemark in each.

`, d.get("rounds"), thousands(d.sizes[2]))
	d.printf("## Machine, versions, command\n\n")
	rows := [][]string{
		{"processor", fmt.Sprintf("%s, %s cores", d.get("cpu"), d.get("cores"))}, {"memory", d.get("memory")},
		{"system", fmt.Sprintf("%s/%s, kernel %s", d.get("goos"), d.get("goarch"), d.get("kernel"))},
		{"Go", d.get("go")}, {"tidemark", d.get("commit")},
	}
	for _, s := range d.results.head {
		if path, ok := strings.CutPrefix(s.key, "version/"); ok {
			rows = append(rows, []string{path, s.value})
		}
	}
	command := "make bench"
	if n := d.get("rounds"); n != strconv.Itoa(fullPlan.rounds) {
		command += " ROUNDS=" + n
	}
	command = "`" + command + "`"
	if only := d.get("only"); only != "" { // a | would end the cell of the table
		command += ", with `-only '" + strings.ReplaceAll(only, "|", `\|`) + "'`"
	}
	rows = append(rows,
		[]string{"measured", fmt.Sprintf("%s to %s UTC", d.get("began"), d.get("ended"))},
		[]string{"load average", fmt.Sprintf("%s before, %s after", d.get("load-before"), d.get("load-after"))},
		[]string{"command", command})
	d.table([]string{"", ""}, rows)
	for _, s := range d.results.head {
		if s.key == "failed" {
			d.printf("* **Not measured**: %s\n", s.value)
		}
	}
	d.printf("\n`make bench` leaves each round's numbers in `bench/results.txt`, which benchstat reads: `benchstat -col /cache -filter " +
		"'.name:Cache /n:10000' bench/results.txt`. `go run -C bench . -only REGEXP` measures what has a matching name.\n\n")
}

func (d *document) writeGoals() {
	d.printf("## Goals\n\nThey were set before the table was written, from prototypes. A goal is met if the worst of its series meets it. " +
		"Each series is measured with GOMAXPROCS 1 and 2 where it says procs. Commands are arguments of `go run -C bench .`.\n\n")
	var rows [][]string
	met, missed := 0, 0
	for _, g := range goals(d.sizes) {
		row := g.row(d.results)
		rows = append(rows, row)
		switch row[len(row)-1] {
		case "met":
			met++
		case "**missed**":
			missed++
		}
	}
	for i := range rows {
		rows[i][3] = strings.ReplaceAll(rows[i][3], "|", `\|`)
	}
	d.table([]string{"", "goal", "measured", "command", ""}, rows)
	d.printf("%d met, %d missed, %d not measured.\n\n", met, missed, len(rows)-met-missed)
}

// cell returns "time (ratio)" of the first series that has the attributes, or a
// dash.
func (d *document) cell(unit, cache, prefix string, attributes ...string) string {
	if name, ok := d.first(prefix, append(attributes, "cache="+cache)...); ok {
		m, ok := d.median(name, unit)
		if !ok {
			return "-"
		}
		ratio, ok := d.ratio(of(name, "cache", "tidemark"), name, unit)
		if cache == "tidemark" || !ok {
			return number(m)
		}
		return fmt.Sprintf("%s (%.2f)", number(m), ratio)
	}
	return "-"
}

// number writes three digits, or all before the point.
func number(x float64) string {
	if x >= 100 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'f', 1, 64)
}

// rowOf returns a row of cells, or none if nothing was measured.
func (d *document) rowOf(title, unit string, caches []string, prefix string, attributes ...string) [][]string {
	row := []string{title}
	some := false
	for _, c := range caches {
		cell := d.cell(unit, c, prefix, attributes...)
		some = some || cell != "-"
		row = append(row, cell)
	}
	if !some {
		return nil
	}
	return [][]string{row}
}

// caches are the contenders without the floors.
var caches = contenderNames[:len(contenderNames)-2]

// bars returns a group with the medians of a unit.
func (d *document) bars(title, unit string, per float64, names []string, prefix string, attributes ...string) barGroup {
	g := barGroup{title: title}
	for _, c := range names {
		if name, ok := d.first(prefix, append(attributes, "cache="+c)...); ok {
			m, _ := d.median(name, unit)
			g.bars = append(g.bars, bar{c, m / per, number(m / per), c == "tidemark"})
		}
	}
	return g
}

func (d *document) writeTimes() {
	d.printf("## Times\n\n")
	var gets, shares []barGroup
	for _, n := range d.sizes {
		gets = append(gets, d.bars(thousands(n)+" entries", "cpu-ns/op", 1, contenderNames, "Cache", "reads=100", "order=dependent", "dist=zipf",
			"key=string", "value=32", fmt.Sprintf("n=%d", n), "procs=2", "g=1"))
	}
	d.picture("get.svg", "Bars of the time of a dependent Get by cache", chart{
		title: "Dependent Get, string keys, Zipf 0.99",
		note:  "CPU ns; each group has a scale of its own; floor1 and floor2 are a hash and one or two lines of memory", groups: gets,
	})
	for _, reads := range []int{100, 90, 75, 50, 0} {
		shares = append(shares, d.bars(fmt.Sprintf("%d %% reads", reads), "cpu-ns/op", 1, caches, "Cache", fmt.Sprintf("reads=%d", reads),
			"order=independent", "dist=zipf", "key=string", "value=32", fmt.Sprintf("n=%d", d.sizes[1]), "procs=2", "g=1"))
	}
	d.picture("reads.svg", "Bars of the time of an access by cache and share of reads", chart{
		title: "Reads and writes, string keys, Zipf 0.99, " + thousands(d.sizes[1]) + " entries",
		note:  "CPU ns; each group has a scale of its own", groups: shares,
	})
	for _, key := range []string{"string", "uint64"} {
		for _, n := range d.sizes {
			for _, procs := range []int{2, 1} {
				d.timesTable(key, n, procs)
			}
		}
	}
	d.printf("### Allocations\n\nBytes and allocations per operation, of the whole process: %s entries, Zipf, independent, GOMAXPROCS 2.\n\n",
		thousands(d.sizes[0]))
	var rows [][]string
	for _, key := range []string{"string", "uint64"} {
		for _, reads := range []int{100, 0} {
			row := []string{fmt.Sprintf("%s keys, %d %% reads", key, reads)}
			some := false
			for _, c := range caches {
				cell := "-"
				if name, ok := d.first("Cache", fmt.Sprintf("reads=%d", reads), "order=independent", "dist=zipf", "key="+key,
					"value=32", fmt.Sprintf("n=%d", d.sizes[0]), "procs=2", "g=1", "cache="+c); ok {
					bytes, _ := d.median(name, "B/op")
					allocs, _ := d.median(name, "allocs/op")
					cell, some = fmt.Sprintf("%.0f B, %.2g", bytes, allocs), true
				}
				row = append(row, cell)
			}
			if some {
				rows = append(rows, row)
			}
		}
	}
	d.table(append([]string{""}, caches...), rows)
}

func (d *document) timesTable(key string, n, procs int) {
	names := contenderNames
	if procs == 1 {
		names = append([]string{"tidemark"}, single[1:]...)
	}
	var rows [][]string
	for _, e := range everyEvent() {
		order := ""
		if e.dependent {
			order = ", dependent"
		}
		rows = append(rows, d.rowOf(fmt.Sprintf("%d %% reads, %s%s", e.reads, e.dist, order), "cpu-ns/op", names, "Cache",
			fmt.Sprintf("reads=%d", e.reads), "order="+e.order(), "dist="+e.dist, "key="+key, "value=32", fmt.Sprintf("n=%d", n), fmt.Sprintf("procs=%d", procs), "g=1")...)
	}
	d.printf("### %s keys, %s entries, GOMAXPROCS %d\n\n", key, thousands(n), procs)
	d.table(append([]string{"CPU ns"}, names...), rows)
}

func (d *document) writeVariations() {
	d.printf("## Lengths of keys and values\n\nZipf, independent, GOMAXPROCS 2, string keys. \"16-24\" are keys of 16 to 24 bytes, mixed.\n\n")
	var rows [][]string
	for _, n := range d.sizes[:2] {
		for _, v := range []struct {
			key, title string
			bytes      int
		}{{"string", "20", 16}, {"string", "20", 32}, {"string", "20", 64}, {"string16to24", "16-24", 32}} {
			for _, reads := range []int{100, 75, 0} {
				rows = append(rows, d.rowOf(fmt.Sprintf("%s entries, key %s B, value %d B, %d %% reads", thousands(n), v.title, v.bytes, reads),
					"cpu-ns/op", caches, "Cache", fmt.Sprintf("reads=%d", reads), "order=independent", "dist=zipf", "key="+v.key,
					fmt.Sprintf("value=%d", v.bytes), fmt.Sprintf("n=%d", n), "procs=2", "g=1")...)
			}
		}
	}
	d.table(append([]string{"CPU ns"}, caches...), rows)
}

func (d *document) writeCrowd() {
	d.printf("## Goroutines\n\nString keys, GOMAXPROCS 2. Where there are more goroutines than processors they take turns.\n\n")
	for _, unit := range []struct{ name, title string }{{"cpu-ns/op", "CPU ns"}, {"ns/op", "wall ns"}} {
		var rows [][]string
		for _, n := range d.sizes[:2] {
			for _, reads := range []int{100, 75} {
				for _, g := range []int{1, 2, 4, 8} {
					rows = append(rows, d.rowOf(fmt.Sprintf("%s entries, %d %% reads, Zipf, %d goroutines", thousands(n), reads, g), unit.name, caches,
						"Cache", fmt.Sprintf("reads=%d", reads), "order=independent", "dist=zipf", "key=string", "value=32",
						fmt.Sprintf("n=%d", n), "procs=2", fmt.Sprintf("g=%d", g))...)
				}
			}
		}
		d.table(append([]string{unit.title}, caches...), rows)
	}
}

func (d *document) writeChurn() {
	d.printf("## Eviction\n\nA read that misses stores the key, and something else goes: ten times as many keys as there is room for, string " +
		"keys, GOMAXPROCS 2. Caches differ in what they keep, so the share of hits stands below the time; a miss takes longer than a hit. " +
		"Freecache and bigcache bound bytes, and hold other numbers of entries than they are asked to.\n\n")
	names := caches[:8]
	var rows [][]string
	var groups []barGroup
	for _, n := range []int{d.sizes[1] / 10, d.sizes[1]} {
		for _, dist := range []string{"zipf", "uniform"} {
			for _, g := range []int{1, 4} {
				attributes := []string{"dist=" + dist, fmt.Sprintf("n=%d", n), fmt.Sprintf("g=%d", g)}
				title := fmt.Sprintf("%s entries, %s, %d goroutines", thousands(n), dist, g)
				rows = append(rows, d.rowOf(title+", CPU ns", "cpu-ns/op", names, "Churn", attributes...)...)
				rows = append(rows, d.rowOf("hits, % (ratio)", "hit%", names, "Hits", attributes...)...)
				if g == 1 {
					groups = append(groups, d.bars(title, "cpu-ns/op", 1, names, "Churn", attributes...))
				}
			}
		}
	}
	d.table(append([]string{""}, names...), rows)
	d.picture("churn.svg", "Bars of the time of an access with eviction by cache", chart{
		title: "Reads that store what misses, ten times as many keys as room", note: "CPU ns; each group has a scale of its own", groups: groups,
	})
	d.printf("Inserts of uint64 keys that are never read, into a full cache. Ristretto drops inserts when it is behind.\n\n")
	rows = nil
	for _, n := range []int{d.sizes[1] / 10, d.sizes[1]} {
		for _, procs := range []int{1, 2} {
			for _, unit := range []struct{ name, title string }{{"cpu-ns/op", "CPU ns"}, {"ns/op", "wall ns of the caller"}, {"allocs/op", "allocations"}} {
				rows = append(rows, d.rowOf(fmt.Sprintf("%s entries, GOMAXPROCS %d, %s", thousands(n), procs, unit.title), unit.name, names, "Insert",
					fmt.Sprintf("n=%d", n), fmt.Sprintf("procs=%d", procs))...)
			}
		}
	}
	d.table(append([]string{""}, names...), rows)
	d.printf("A burst of inserts by four goroutines into a cache of %s entries: single Puts, on the wall, pauses of the machine and of the "+
		"garbage collector included.\n\n", thousands(d.sizes[1]/10))
	rows = nil
	for _, c := range []string{"tidemark", "otter"} {
		if name, ok := d.first("Burst", "cache="+c); ok {
			row := []string{c}
			for _, unit := range []string{"p50-ns", "p99.9-ns", "p99.999-ns", "max-ns"} {
				m, _ := d.median(name, unit)
				row = append(row, fmt.Sprintf("%.1f", m/1000))
			}
			rows = append(rows, row)
		}
	}
	d.table([]string{"µs, median of the rounds", "p50", "p99.9", "p99.999", "longest"}, rows)
}

func (d *document) writeLoads() {
	d.printf("## Loads\n\n64 goroutines ask for the same new keys, one after the other; a source answers at once or after a millisecond. An " +
		"operation is one key, read by all 64. \"reads/key\" is how often the source was asked for a key: goroutines that do not meet a load of their " +
		"key find it in the cache, so 1 is the least.\n\n")
	names := []string{"tidemark", "otter", "theine", "sturdyc"}
	var rows [][]string
	for _, delay := range []string{"0s", "1ms"} {
		for _, unit := range []struct{ name, title string }{{"cpu-ns/op", "CPU ns"}, {"ns/op", "wall ns"}, {"allocs/op", "allocations"}} {
			rows = append(rows, d.rowOf(fmt.Sprintf("source %s, %s", delay, unit.title), unit.name, names, "Stampede", "source="+delay)...)
		}
		rows = append(rows, d.rowOf(fmt.Sprintf("source %s, reads/key", delay), "reads/key", names, "Source", "source="+delay)...)
	}
	d.table(append([]string{""}, names...), rows)
}

func (d *document) writeMore() {
	d.printf("## Otter's own suite\n\n32,768 strings of 39 to 43 bytes, strings as values, eight goroutines each of which only reads or only writes; " +
		"it is done again here, not run from its repository.\n\n")
	names := []string{"tidemark", "otter", "xsync.Map"}
	var rows [][]string
	for _, reads := range []int{100, 0} {
		for _, procs := range []int{1, 2} {
			rows = append(rows, d.rowOf(fmt.Sprintf("%d %% reads, GOMAXPROCS %d", reads, procs), "cpu-ns/op", names, "Suite",
				fmt.Sprintf("reads=%d", reads), fmt.Sprintf("procs=%d", procs))...)
		}
	}
	d.table(append([]string{"CPU ns"}, names...), rows)
	d.printf("## Many keys at once\n\nLoadMany of 64 keys that are there, and 64 Gets, CPU ns a key, %s entries, uniform.\n\n", thousands(d.sizes[1]))
	rows = nil
	for _, name := range d.matching("Many", "cache=LoadMany") {
		many, _ := d.median(name, "cpu-ns/op")
		one, _ := d.median(of(name, "cache", "Get"), "cpu-ns/op")
		ratio, _ := d.ratio(name, of(name, "cache", "Get"), "cpu-ns/op")
		rows = append(rows, []string{attribute(name, "procs"), number(many), number(one), fmt.Sprintf("%.2f", ratio)})
	}
	d.table([]string{"GOMAXPROCS", "LoadMany", "Get", "ratio"}, rows)
}

func (d *document) writeMemory() {
	d.printf("## Memory and garbage collection\n\nBytes of live heap per entry, with the key and the value in them, and the time of runtime.GC with " +
		"nothing else on the heap: the median of five. One contender at a time.\n\n")
	large, middle := fmt.Sprintf("n=%d", d.sizes[2]), fmt.Sprintf("n=%d", d.sizes[1])
	d.picture("memory.svg", "Bars of bytes per entry by cache", chart{
		title: "Bytes per entry, " + thousands(d.sizes[1]) + " entries, values of 32 bytes", note: "live heap; each group has a scale of its own",
		groups: []barGroup{
			d.bars("string keys of 20 bytes", "B/entry", 1, caches, "Memory", "key=string", middle),
			d.bars("uint64 keys", "B/entry", 1, caches, "Memory", "key=uint64", middle),
		},
	})
	d.picture("gc.svg", "Bars of the time of a garbage collection by cache", chart{
		title: "runtime.GC with " + thousands(d.sizes[2]) + " entries", note: "milliseconds; each group has a scale of its own",
		groups: []barGroup{
			d.bars("string keys of 20 bytes", "gc-ns", 1e6, caches, "Memory", "key=string", large),
			d.bars("uint64 keys", "gc-ns", 1e6, caches, "Memory", "key=uint64", large),
		},
	})
	var rows [][]string
	for _, key := range []string{"string", "uint64"} {
		for _, n := range d.sizes {
			bytes, gc := []string{fmt.Sprintf("%s keys, %s entries, bytes", key, thousands(n))}, []string{"GC, ms"}
			some := false
			for _, c := range caches {
				b, g := "-", "-"
				if name, ok := d.first("Memory", "key="+key, fmt.Sprintf("n=%d", n), "cache="+c); ok {
					m, _ := d.median(name, "B/entry")
					ns, _ := d.median(name, "gc-ns")
					b, g, some = fmt.Sprintf("%.0f", m), fmt.Sprintf("%.1f", ns/1e6), true
				}
				bytes, gc = append(bytes, b), append(gc, g)
			}
			if some {
				rows = append(rows, bytes, gc)
			}
		}
	}
	d.table(append([]string{""}, caches...), rows)
}

func (d *document) writeHits() {
	d.printf("## Hit ratio\n\nEach access is a lookup, and a store if that misses, at 0.1, 1 and 10 %% of the distinct keys; capacities below 100 are left out. "+
		"Cost 1 an entry; one run each, GOMAXPROCS 2, one goroutine. Otter does its maintenance in the caller, as in its own simulator; after each "+
		"store theine and ristretto are waited for. \"Optimum\" knows the future (Belady), and no cache can do better. zipf, scan and shift are generated, with %s keys or "+
		"more and five accesses for each: %s traces of others were replayed besides.\n\n", d.get("hit-keys"), cmp.Or(d.get("traces"), "no"))
	names := []string{"tidemark", "otter", "theine", "ristretto", "LRU", "optimum"}
	one := []string{"procs=2", "g=1"}
	var rows [][]string
	for _, c := range names {
		all := d.differences(c, one...)
		if len(all) == 0 {
			continue
		}
		isGenerated := func(x reading) bool {
			return slices.ContainsFunc([]string{"trace=zipf", "trace=scan", "trace=shift"}, func(p string) bool { return strings.HasPrefix(x.label, p) })
		}
		made := slices.DeleteFunc(slices.Clone(all), func(x reading) bool { return !isGenerated(x) })
		others := slices.DeleteFunc(slices.Clone(all), isGenerated)
		worst := slices.MinFunc(all, func(a, b reading) int { return cmp.Compare(a.value, b.value) })
		rows = append(rows, []string{
			c, fmt.Sprintf("%+.2f", meanOf(all)), mean(made), mean(others),
			fmt.Sprintf("%+.2f, %s", worst.value, worst.label), fmt.Sprintf("%.0f %%", notBehind(all)), strconv.Itoa(len(all)),
		})
	}
	d.printf("### Difference to otter, in points\n\n")
	d.table([]string{"", "mean", "generated", "traces", "worst pair", "not behind otter", "pairs"}, rows)
	d.processorsTable()
	g := barGroup{}
	for _, x := range d.differences("tidemark", one...) {
		name := strings.NewReplacer("trace=", "", "share=", "", "n=", "").Replace(x.label)
		g.bars = append(g.bars, bar{name, x.value, fmt.Sprintf("%+.2f", x.value), x.value > -0.005})
	}
	d.picture("hits.svg", "Bars of the difference in hit ratio between tidemark and otter by trace", chart{
		title: "Hit ratio of tidemark less that of otter", note: "points; trace, share of its keys, entries", groups: []barGroup{g}, labels: 210,
	})
	d.printf("### Every pair\n\n")
	rows = nil
	for _, name := range d.matching("HitRatio", append(one, "cache=tidemark")...) {
		row := []string{attribute(name, "trace"), attribute(name, "n")}
		for _, c := range names {
			cell := "-"
			if m, ok := d.median(of(name, "cache", c), "hit%"); ok {
				cell = fmt.Sprintf("%.2f", m)
			}
			row = append(row, cell)
		}
		have, _ := d.median(name, "hit%")
		otter, _ := d.median(of(name, "cache", "otter"), "hit%")
		rows = append(rows, append(row, fmt.Sprintf("%+.2f", have-otter)))
	}
	d.table(append(append([]string{"trace", "entries"}, names...), "tidemark - otter"), rows)
}

// processorsTable compares the ways to run.
func (d *document) processorsTable() {
	d.printf("### On one processor, and with four goroutines\n\n")
	var rows [][]string
	for _, how := range []struct{ title, procs, g string }{
		{"GOMAXPROCS 2, 1 goroutine", "procs=2", "g=1"}, {"GOMAXPROCS 1, 1 goroutine", "procs=1", "g=1"},
		{"GOMAXPROCS 2, 4 goroutines", "procs=2", "g=4"},
	} {
		all := d.differences("tidemark", how.procs, how.g)
		if len(all) == 0 {
			continue
		}
		worst := slices.MinFunc(all, func(a, b reading) int { return cmp.Compare(a.value, b.value) })
		var sum [2][]reading
		for i, c := range []string{"tidemark", "otter"} {
			for _, name := range d.matching("HitRatio", how.procs, how.g, "cache="+c) {
				m, _ := d.median(name, "hit%")
				sum[i] = append(sum[i], reading{name, m})
			}
		}
		rows = append(rows, []string{
			how.title, fmt.Sprintf("%.2f", meanOf(sum[0])), fmt.Sprintf("%.2f", meanOf(sum[1])), fmt.Sprintf("%+.2f", meanOf(all)),
			fmt.Sprintf("%+.2f, %s", worst.value, worst.label), fmt.Sprintf("%.0f %%", notBehind(all)),
		})
	}
	d.table([]string{"", "tidemark, mean hit %", "otter", "difference", "worst pair", "not behind otter"}, rows)
}

func mean(all []reading) string {
	if len(all) == 0 {
		return "-"
	}
	return fmt.Sprintf("%+.2f", meanOf(all))
}
