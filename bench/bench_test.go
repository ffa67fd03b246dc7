package main

import (
	"compress/gzip"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestContenders_DoWhatIsMeasured(t *testing.T) {
	t.Run("string", func(t *testing.T) { testContenders(t, stringKeys) })
	t.Run("uint64", func(t *testing.T) { testContenders(t, integerKeys) })
}

func testContenders[K string | uint64](t *testing.T, encode func([]uint32) []K) {
	const n = 1000
	for i, m := range makers[K]() {
		c, err := filled(m, encode(everyKey(n)))
		require.NoError(t, err)
		t.Run(c.name, func(t *testing.T) {
			defer c.close()
			assert.Equal(t, contenderNames[i], c.name)
			keys, strange := encode(everyKey(n)), encode(everyKey(2 * n)[n:])
			hits := c.get(keys)
			assert.GreaterOrEqual(t, hits, n*99/100, "hits of keys that are there")
			assert.Equal(t, hits, c.chase(keys))
			assert.Zero(t, c.get(strange), "hits of keys that are not")
			assert.Zero(t, c.chase(strange[:1]))
			c.put(keys)
			c.settle()
			assert.GreaterOrEqual(t, c.mix(keys), n*3/4*99/100, "hits of three quarters")
			for range 10 {
				c.put(encode(everyKey(12 * n)[2*n:]))
				c.settle()
			}
			if c.evicts {
				assert.Less(t, c.get(encode(everyKey(12*n))), 2*n, "hits of twelve times as many keys")
			}
		})
	}
}

func TestTimes_EverySectionRuns(t *testing.T) {
	seen := map[string]bool{}
	table := newTable("smoke", contenderNames)
	only := func(names ...string) func(string) bool {
		return func(section string) bool {
			wanted := containsOne(section, names)
			seen[section] = wanted
			return wanted
		}
	}
	require.NoError(t, raceAll(table, 64, "uint64", integerKeys, 1, only("mix 75/25 g=2")))
	require.NoError(t, raceInserts(table, 1000, 1, only("insert")))
	assert.True(t, seen["mix 75/25 g=2, zipf, 64 uint64 keys"])
	assert.True(t, seen["insert with eviction, 1000 entries"])
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
	name, bytes, gc := weigh(newRWMap[uint64], func() []uint64 { return integerKeys(everyKey(n)) })
	assert.Equal(t, "rwmap", name)
	assert.Greater(t, bytes, int64(n*40), "keys and values")
	assert.Less(t, bytes, int64(n*400))
	assert.Positive(t, gc)
}

func TestReplays(t *testing.T) {
	const keys, capacity = 2000, 200
	trace := integerKeys(zipfTrace(20_000, keys, 0.99))
	for name, r := range map[string]replay{"tidemark": replayTidemark, "otter": replayOtter} {
		for _, goroutines := range []int{1, 3} {
			ratio, err := r(trace, capacity, goroutines)
			require.NoError(t, err)
			assert.Greater(t, ratio, 0.35, name) // of 10 % of the keys that take two thirds of the accesses
			assert.Less(t, ratio, 0.8, name)
		}
	}
	require.NoError(t, printHitRatios("", 2000, 1, []string{"shift"}))
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

func TestMedianAndParseInts(t *testing.T) {
	assert.InDelta(t, 2, median([]float64{3, 1, 2}), 0)
	assert.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 0)
	assert.Zero(t, median(nil))
	n, err := parseInts("10,200")
	require.NoError(t, err)
	assert.Equal(t, []int{10, 200}, n)
	_, err = parseInts("10,x")
	require.Error(t, err)
	_, err = parseInts("0")
	require.Error(t, err)
}
