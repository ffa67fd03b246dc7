package main

import (
	"compress/gzip"
	"encoding/binary"
	"encoding/xml"
	"io"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestContenders_DoWhatIsMeasured(t *testing.T) {
	t.Run("string", func(t *testing.T) { testContenders[string, [4]uint64](t, stringKeys) })
	t.Run("string16to24", func(t *testing.T) { testContenders[string, [2]uint64](t, mixedKeys) })
	t.Run("uint64", func(t *testing.T) { testContenders[uint64, [8]uint64](t, integerKeys) })
}

func testContenders[K identifier, V payload](t *testing.T, encode func([]uint32) []K) {
	const n = 1000
	for _, m := range makers[K, V](caches...) {
		c, err := filled(m, encode(everyKey(n)))
		require.NoError(t, err)
		t.Run(m.name, func(t *testing.T) {
			defer c.close()
			assert.Equal(t, m.name, c.name)
			keys, strange := encode(everyKey(n)), encode(everyKey(2 * n)[n:])
			c.put(keys)
			c.settle()
			hits := 0
			for i, k := range keys {
				if word, ok := c.first(k); ok {
					require.EqualValues(t, i, word, "the value of key %d", i)
					hits++
				}
			}
			assert.GreaterOrEqual(t, hits, n*99/100, "hits of keys that are there")
			assert.Equal(t, hits, c.get(keys))
			assert.Equal(t, hits, c.chase(keys))
			assert.Zero(t, c.get(strange), "hits of keys that are not")
			assert.Zero(t, c.chase(strange[:1]))
			for _, every := range []int{10, 4, 2} {
				assert.GreaterOrEqual(t, c.mix(keys, every), (n-n/every)*98/100, "hits of all but every %d-th", every)
				c.settle()
			}
			assert.GreaterOrEqual(t, c.aside(keys), n*98/100)
			assert.Less(t, c.aside(strange[:n/20]), n/20, "what is not there is stored")
			c.settle()
			assert.Positive(t, c.get(strange[:n/20]))
			times := 6
			if c.name == "freecache" || c.name == "bigcache" {
				times = 40 // they hold half a megabyte or more
			}
			c.put(encode(everyKey(times * n)[2*n:]))
			c.settle()
			have := c.get(encode(everyKey(times * n)))
			if c.evicts {
				assert.Less(t, have, times*n/2, "hits of many more keys than there is room for")
			} else {
				assert.Greater(t, have, times*n-n)
			}
		})
	}
}

// floor1 and floor2 read what was put, as long as nobody else's key meets it.
func TestFloors(t *testing.T) {
	for _, m := range makers[string, [4]uint64]("floor1", "floor2") {
		c, err := m.make(100)
		require.NoError(t, err)
		c.put(stringKeys([]uint32{8, 8, 8}))
		word, ok := c.first(stringKeys([]uint32{8})[0])
		assert.True(t, ok)
		assert.EqualValues(t, 2, word, m.name)
	}
	x := uint64(1) << 63
	assert.Equal(t, xxhash.Sum64(binary.LittleEndian.AppendUint64(nil, x)), hashOf(&x))
}

func TestMakers(t *testing.T) {
	assert.Len(t, makers[string, [4]uint64](), len(contenderNames))
	assert.Len(t, makers[uint64, [4]uint64](), len(contenderNames)-1, "sturdyc has string keys only")
	for i, m := range makers[string, [4]uint64]() {
		assert.Equal(t, contenderNames[i], m.name)
	}
	var grouped []string
	for _, g := range groups {
		assert.Equal(t, "tidemark", g[0])
		grouped = append(grouped, g[1:]...)
	}
	assert.ElementsMatch(t, contenderNames[1:], grouped)
}

// measured runs the part of a quick run whose names match.
func measured(t *testing.T, only string) *results {
	t.Helper()
	var lines, progress strings.Builder
	p := quickPlan
	p.rounds, p.burst = 2, 4000
	s := &session{plan: p, results: newResults(&lines), only: regexp.MustCompile(only), progress: &progress}
	s.describe(true)
	require.NoError(t, s.run(), progress.String())
	t.Log(progress.String())
	s.describeEnd()
	r, err := readResults(strings.NewReader(lines.String()))
	require.NoError(t, err)
	assert.Equal(t, s.head, r.head, "what is read is what was written")
	assert.Equal(t, s.names, r.names)
	return r
}

func TestSession_EverySectionRuns(t *testing.T) {
	r := measured(t, `^Cache/reads=100/.*=independent/dist=zipf/key=string/value=32/n=1000/.*g=1|`+
		`^Cache/reads=75/.*/dist=zipf/key=string/value=32/n=(1000/procs=2/g=8|4000/group=1/)|`+
		`^Churn/dist=zipf/.*/n=200/g=4|^Insert/.*/n=200/procs=2|^Stampede|^Burst|^Suite/reads=100/procs=2|^Many/.*/procs=2|`+
		`^Memory/key=uint64/.*/n=1000/|^HitRatio/trace=(zipf-0.99|shift-0.99)/`)
	for _, name := range []string{
		"Cache/reads=100/order=independent/dist=zipf/key=string/value=32/n=1000/procs=2/g=1/cache=sturdyc",
		"Cache/reads=100/order=independent/dist=zipf/key=string/value=32/n=1000/procs=1/g=1/cache=otter",
		"Cache/reads=75/order=independent/dist=zipf/key=string/value=32/n=1000/procs=2/g=8/cache=sync.Map",
		"Cache/reads=75/order=independent/dist=zipf/key=string/value=32/n=4000/group=1/procs=2/g=1/cache=theine",
		"Churn/dist=zipf/key=string/value=32/n=200/g=4/cache=bigcache", "Insert/key=uint64/value=32/n=200/procs=2/cache=freecache",
		"Suite/reads=100/procs=2/g=8/cache=tidemark", "Many/keys=64/dist=uniform/n=2000/procs=2/cache=LoadMany",
	} {
		for _, unit := range []string{"cpu-ns/op", "ns/op", "B/op", "allocs/op"} {
			assert.Len(t, r.series[name][unit], 2, "%s %s", name, unit)
		}
	}
	assert.Empty(t, r.matching("Cache", "procs=1", "cache=theine"))
	for name, unit := range map[string]string{
		"Hits/dist=zipf/key=string/value=32/n=200/g=4/cache=otter": "hit%", "Burst/inserts=4000/g=4/cache=tidemark": "max-ns",
		"HitRatio/trace=zipf-0.99/share=10%/n=200/procs=2/g=1/cache=optimum": "hit%",
		"HitRatio/trace=shift-0.99/share=10%/n=200/procs=2/g=4/cache=otter":  "hit%",
	} {
		m, ok := r.median(name, unit)
		assert.True(t, ok && m > 0, name)
	}
	for _, cache := range []string{"tidemark", "theine", "sturdyc"} {
		m, ok := r.median("Source/source=1ms/g=64/cache="+cache, "reads/key")
		assert.True(t, ok)
		assert.InDelta(t, 1, m, 0.5, "a stampede of %s", cache)
	}
	m, _ := r.median("Memory/key=uint64/value=32/n=1000/cache=xsync.Map", "B/entry")
	assert.Greater(t, m, 40.0, "a key and a value")
	assert.Less(t, m, 400.0)
	d, err := newDocument(r)
	require.NoError(t, err)
	checkDocument(t, d)
}

// The document of a run that measured nothing has every section too.
func TestDocument_OfNothing(t *testing.T) {
	r := measured(t, "nothing has this name")
	assert.Empty(t, r.names)
	d, err := newDocument(r)
	require.NoError(t, err)
	text := d.text()
	assert.Contains(t, text, "0 met, 0 missed")
	assert.Empty(t, d.charts)
	_, err = newDocument(newResults(nil))
	require.Error(t, err)
}

// What fails keeps nothing else from being measured, and the document says so.
func TestSession_GoesOn(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.u32.gz")
	require.NoError(t, os.WriteFile(broken, []byte("no gzip"), 0o600))
	p := quickPlan
	p.rounds = 1
	s := &session{plan: p, results: newResults(nil), only: regexp.MustCompile("^HitRatio|^Stampede"), progress: io.Discard, traces: filepath.Dir(broken)}
	s.describe(true)
	require.ErrorContains(t, s.run(), "broken.u32.gz")
	assert.NotEmpty(t, s.matching("Stampede"))
	d, err := newDocument(s.results)
	require.NoError(t, err)
	assert.Contains(t, d.text(), "* **Not measured**: hit ratios: ")
}

func checkDocument(t *testing.T, d *document) {
	t.Helper()
	text := d.text()
	for _, section := range []string{
		"Machine, versions, command", "Goals", "Times", "Lengths of keys and values", "Goroutines", "Eviction", "Loads", "Otter's own suite",
		"Many keys at once", "Memory and garbage collection", "Hit ratio",
	} {
		assert.Contains(t, text, "\n## "+section+"\n")
	}
	assert.Contains(t, text, "This is a quick run")
	for _, goal := range goals(d.sizes) {
		assert.Contains(t, text, "\n| "+goal.id+" | "+goal.text)
	}
	assert.Regexp(t, `100 % reads, zipf \| [0-9.]+ \| [0-9.]+ \([0-9.]+\)`, text)
	require.NotEmpty(t, d.charts)
	for _, c := range d.charts {
		assert.Contains(t, text, "]("+chartFolder+"/"+c.file+")")
		checkXML(t, c.svg())
	}
	for line := range strings.Lines(text) {
		assert.NotContains(t, line, "NaN")
		assert.NotContains(t, line, "%!")
	}
}

func checkXML(t *testing.T, text string) {
	t.Helper()
	var all struct{} // what it holds does not matter
	require.NoError(t, xml.Unmarshal([]byte(text), &all), text)
}

func TestWriteReport(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "results.txt")
	require.NoError(t, os.WriteFile(file, []byte("sizes: 10 20 30\nBenchmarkMemory/key=string/n=20/cache=otter\t1\t2 B/entry\t5 gc-ns\n"), 0o600))
	require.NoError(t, writeReport(file, folder))
	text, err := os.ReadFile(filepath.Join(folder, "benchmarks.md"))
	require.NoError(t, err)
	assert.Contains(t, string(text), "## Memory")
	chart, err := os.ReadFile(filepath.Join(folder, chartFolder, "memory.svg"))
	require.NoError(t, err)
	checkXML(t, string(chart))
	require.NoError(t, os.WriteFile(file, []byte("some text\n"), 0o600))
	require.ErrorContains(t, writeReport(file, folder), "line 1")
	require.ErrorIs(t, writeReport(file+".missing", folder), os.ErrNotExist)
}

func TestChart(t *testing.T) {
	c := chart{title: "a < b & c", groups: []barGroup{
		{title: "g", bars: []bar{{"x", 2, "2.0", true}, {"y", -1, "-1.0", false}}}, {title: "zeros", bars: []bar{{name: "z"}}},
	}}
	checkXML(t, c.svg())
	assert.Contains(t, c.svg(), "a &lt; b &amp; c")
	assert.NotContains(t, c.svg(), "NaN")
	assert.Equal(t, 4, strings.Count(c.svg(), "<rect"), "a page and three bars")
}

func TestGoal(t *testing.T) {
	r := newResults(nil)
	for _, round := range [][2]float64{{1, 2}, {3, 4}, {2, 10}} {
		r.add("Cache/n=1/procs=1/cache=tidemark", 1, quantity{round[0], "ns"})
		r.add("Cache/n=1/procs=1/cache=otter", 1, quantity{round[1], "ns"})
	}
	r.add("Cache/n=1/procs=2/cache=tidemark", 1, quantity{9, "ns"})
	r.add("Cache/n=1/procs=2/cache=otter", 1, quantity{10, "ns"})
	r.add("Cache/n=2/procs=2/cache=tidemark", 1, quantity{9, "ns"})
	g := goal{"G", "time", "-only x", 0.9, false, 2, ratiosTo("otter", "ns", "Cache", "n=1")}
	met, worst, all := g.verdict(r)
	assert.True(t, met, "a bound that is reached is kept")
	assert.Equal(t, reading{"procs=2", 0.9}, worst)
	assert.Equal(t, []reading{{"procs=1", 0.5}, {"procs=2", 0.9}}, all)
	g.limit = 0.89
	assert.Equal(t, "**missed**", g.row(r)[4])
	g.limit, g.atLeast = 0.5, true
	assert.Equal(t, "met", g.row(r)[4])
	_, worst, _ = g.verdict(r)
	assert.InDelta(t, 0.5, worst.value, 0)
	g.limit = 0.6
	assert.Equal(t, "**missed**", g.row(r)[4])
	assert.Equal(t, "not measured in this run", g.row(newResults(nil))[4])
	g.measure = nil
	assert.Equal(t, "not measured here", g.row(r)[4])
}

func TestResults_Names(t *testing.T) {
	const name = "Cache/n=1/cache=otter"
	assert.Equal(t, "Cache/n=1/cache=x", of(name, "cache", "x"))
	assert.Equal(t, "1", attribute(name, "n"))
	assert.Empty(t, attribute(name, "g"))
	for n, want := range map[int]string{999: "999", 1000: "1 k", 18_688: "18688", 10_000: "10 k", 1_000_000: "1 M", 1_500_000: "1.5 M"} {
		assert.Equal(t, want, thousands(n))
	}
}

// The best that is possible is what trying every choice finds.
func TestOptimum(t *testing.T) {
	assert.InDelta(t, 1.0/6, optimum([]uint32{0, 1, 2, 0, 1, 2}, 1), 1e-9, "keep 0 and store nothing else")
	assert.InDelta(t, 2.0/6, optimum([]uint32{0, 1, 2, 0, 1, 2}, 2), 1e-9)
	assert.InDelta(t, 3.0/6, optimum([]uint32{0, 1, 2, 0, 1, 2}, 3), 1e-9)
	assert.Zero(t, optimum(everyKey(10), 3))
	rng := newRand(9)
	for range 300 {
		trace := make([]uint32, 9)
		for i := range trace {
			trace[i] = rng.Uint32N(4)
		}
		for capacity := 1; capacity <= 3; capacity++ {
			want := float64(bestHits(trace, 0, capacity)) / float64(len(trace))
			require.InDelta(t, want, optimum(trace, capacity), 1e-9, "%v, capacity %d", trace, capacity)
		}
	}
}

// bestHits tries every choice of what to keep; kept is a set of keys.
func bestHits(trace []uint32, kept uint32, capacity int) (hits int) {
	if len(trace) == 0 {
		return 0
	}
	key, rest := uint32(1)<<trace[0], trace[1:]
	if kept&key != 0 {
		return 1 + bestHits(rest, kept, capacity)
	}
	best := bestHits(rest, kept, capacity)
	if bits.OnesCount32(kept) < capacity {
		return max(best, bestHits(rest, kept|key, capacity))
	}
	for victim := uint32(1); victim < 1<<4; victim <<= 1 {
		if kept&victim != 0 {
			best = max(best, bestHits(rest, kept&^victim|key, capacity))
		}
	}
	return best
}

func TestLog_EverySectionRuns(t *testing.T) {
	r, err := newRig()
	require.NoError(t, err)
	t.Cleanup(r.close)
	var table, samples strings.Builder
	p := &report{tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0), &samples}
	require.NoError(t, raceProbes(r, p, 1))
	require.NoError(t, raceVisible(r, p, 1))
	require.NoError(t, r.raceRates(p, 1, 300))
	require.NoError(t, r.raceReads(p, 1, chunk, 1))
	t.Log(table.String())
	for _, name := range []string{
		"op=probe", "op=Invalidate/hint=true", "op=CompareAndSet/hint=false", "op=Consume", "op=apply/resident=true",
		"op=ReadWithin/log=true/goroutines=2",
	} {
		assert.Contains(t, table.String(), "\n"+name+" ")
		assert.Regexp(t, "(?m)^BenchmarkLog/"+name+" 1 [0-9.e+]+ ", samples.String())
	}
}

func TestSpread(t *testing.T) {
	assert.Equal(t, "3.00 (2.00-4.00)", spread([]float64{5, 1, 4, 2, 3}))
	assert.InDelta(t, 2, quantile([]float64{2}, 0.99), 0)
	assert.Equal(t, []float64{2, 0.5}, ratios([]float64{2, 1}, []float64{1, 2}))
}

// A side that does not tell is noticed, instead of measured.
func TestWatch_WaitsForWhatIsExpected(t *testing.T) {
	var w watch
	e := w.expect("k")
	w.check(func(string) bool { return false })
	l, err := e.time(func() error {
		w.check(func(key string) bool { return key == "k" })
		w.check(func(string) bool { return true }) // nobody waits any more
		return nil
	})
	require.NoError(t, err)
	assert.LessOrEqual(t, l.arrival, l.call)
	_, err = w.expect("k").time(func() error { return assert.AnError })
	require.ErrorIs(t, err, assert.AnError)
}

func TestMemory_CountsWhatIsKept(t *testing.T) {
	const n = 20_000
	m := makers[uint64, [4]uint64]("rwmap")[0]
	bytes, gc, err := weigh(m, func() []uint64 { return integerKeys(everyKey(n)) })
	require.NoError(t, err)
	assert.Greater(t, bytes, int64(n*40), "keys and values")
	assert.Less(t, bytes, int64(n*400))
	assert.Positive(t, median(gc))
}

func TestReplays(t *testing.T) {
	const keys, capacity = 2000, 200
	numbers := zipfTrace(20_000, keys, 0.99)
	best := optimum(numbers, capacity)
	for _, p := range policies {
		for _, goroutines := range []int{1, 3} {
			ratio, held, err := p.replay(integerKeys(numbers), capacity, goroutines)
			require.NoError(t, err)
			assert.Greater(t, ratio, 0.35, p.name) // of 10 % of the keys that take two thirds of the accesses
			assert.LessOrEqual(t, held, 1.0)
			if p.name == "tidemark" {
				assert.Positive(t, held)
			}
			if p.name == "LRU" || p.name == "tidemark" { // the others exceed their capacity for moments
				assert.Less(t, ratio, best, p.name)
			}
		}
	}
}

func TestShare_DealsEveryAccessOnce(t *testing.T) {
	trace := integerKeys(everyKey(1000))
	for _, goroutines := range []int{1, 2, 7} {
		ratio := share(trace, goroutines, func(part []uint64) int { return len(part) })
		assert.InDelta(t, 1, ratio, 1e-9)
	}
}

func TestZipf_DrawsTheFirstRanksAsOftenAsItShould(t *testing.T) {
	const n, draws = 1000, 200_000
	for _, s := range []float64{0.99, 1.2} {
		counts := make([]int, n)
		for _, k := range zipfTrace(draws, n, s) {
			counts[k]++
		}
		sum := 0.0
		for i := range n {
			sum += math.Pow(float64(i+1), -s)
		}
		for _, rank := range []int{0, 1, 9} {
			want := draws * math.Pow(float64(rank+1), -s) / sum
			assert.InEpsilon(t, want, counts[rank], 0.05, "rank %d, exponent %v", rank, s)
		}
	}
}

func TestTraces(t *testing.T) {
	assert.Equal(t, 1000, distinct(everyKey(1000)))
	scan := scanTrace(10_000, 100, 0.99)
	assert.InDelta(t, 2500+100, distinct(scan), 50, "a quarter of new keys")
	assert.LessOrEqual(t, distinct(shiftTrace(10_000, 100, 0.99)), 100)
	a, b := stringKeys([]uint32{7, 7}), integerKeys([]uint32{7, 7})
	assert.Len(t, a[0], 20)
	assert.Equal(t, a[0], a[1])
	assert.Equal(t, b[0], b[1])
	lengths := map[int]bool{}
	mixed := mixedKeys(everyKey(1000))
	for _, k := range mixed {
		lengths[len(k)] = true
	}
	assert.Len(t, lengths, 9, "16 to 24 bytes")
	assert.Equal(t, mixed[7], mixedKeys([]uint32{7})[0])
	assert.NotSame(t, unsafe.StringData(mixed[7]), unsafe.StringData(mixedKeys([]uint32{7})[0]))
}

func TestReadTrace(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.u32.gz")
	write := func(b []byte) {
		f, err := os.Create(name)
		require.NoError(t, err)
		z := gzip.NewWriter(f)
		_, err = z.Write(b)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		require.NoError(t, f.Close())
	}
	var b []byte
	for _, k := range []uint32{3, 1, 1 << 20} {
		b = binary.LittleEndian.AppendUint32(b, k)
	}
	write(b)
	got, err := readTrace(name)
	require.NoError(t, err)
	assert.Equal(t, []uint32{3, 1, 1 << 20}, got)

	write(b[:5])
	_, err = readTrace(name)
	require.ErrorContains(t, err, "5 bytes")
	require.NoError(t, os.WriteFile(name, []byte("plain"), 0o600))
	_, err = readTrace(name)
	require.Error(t, err)
	_, err = readTrace(name + ".missing")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestMedian(t *testing.T) {
	assert.InDelta(t, 2, median([]float64{3, 1, 2}), 0)
	assert.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 0)
	assert.Zero(t, median(nil))
}

func TestTraceFiles(t *testing.T) {
	none, err := traceFiles(filepath.Join(t.TempDir(), "missing"))
	require.NoError(t, err)
	assert.Empty(t, none)
}
