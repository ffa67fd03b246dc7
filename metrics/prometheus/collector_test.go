package prometheus_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/metrics"
	tidemarkprom "github.com/tidemark-go/tidemark/metrics/prometheus"
)

// A fake is a cache with the Stats that a test wants.
type fake tidemark.Stats

func (f fake) Stats() tidemark.Stats { return tidemark.Stats(f) }

// collector returns a Collector that has no mistakes.
func collector(t testing.TB, cache tidemarkprom.Source, name string) *tidemarkprom.Collector {
	t.Helper()
	c, err := tidemarkprom.NewCollector(cache, name)
	require.NoError(t, err)
	return c
}

// text returns what Prometheus would scrape.
func text(t testing.TB, collectors ...prometheus.Collector) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	for _, c := range collectors {
		require.NoError(t, r.Register(c))
	}
	families, err := r.Gather()
	require.NoError(t, err)
	var b strings.Builder
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&b, f)
		require.NoError(t, err)
	}
	return b.String()
}

// newCache returns a cache of rows that is closed when the test ends.
func newCache(t testing.TB, rows map[string]string) *tidemark.Cache[string, string] {
	t.Helper()
	c, err := tidemark.New(tidemark.Options[string, string]{
		Loader: tidemark.LoaderFunc[string, string](func(_ context.Context, key string) (string, tidemark.Version, error) {
			if v, ok := rows[key]; ok {
				return v, 1, nil
			}
			return "", 0, tidemark.ErrNotFound
		}),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close(context.Background())) })
	return c
}

// All that there is to measure is, with the label and the value that it has.
func TestCollector_ExportsAll(t *testing.T) {
	stats := tidemark.Stats{Fresh: 3e9, LoadTime: 1500e6, Breaker: tidemark.BreakerOpen, Hits: 7, AuditStale: 8, State: tidemark.Fresh}
	said := text(t, collector(t, fake(stats), "c"))
	lines := 0
	for _, m := range metrics.All() {
		for _, s := range m.Series {
			value, known := s.Value(&stats)
			require.True(t, known, m.Name)
			number := fmt.Sprint(value)
			if m.Unit == metrics.Seconds {
				number = fmt.Sprint(time.Duration(value).Seconds())
			}
			labels := []string{`cache="c"`}
			if m.Label != "" {
				labels = append(labels, fmt.Sprintf("%s=%q", m.Label, s.Label))
			}
			slices.Sort(labels)
			assert.Regexp(t, fmt.Sprintf(`(?m)^%s[a-z_]*\{%s\} %s$`, strings.ReplaceAll(m.Name, ".", "_"), strings.Join(labels, ","), number), said)
			lines++
		}
	}
	assert.Equal(t, lines, strings.Count(said, "\n")-strings.Count(said, "\n#")-1, "and nothing else is")
}

// A metric is of the type and in the unit that its name says.
func TestCollector_PassesTheLinter(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(collector(t, fake{}, "c")))
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestCollector_CountsWhatHappens(t *testing.T) {
	cache := newCache(t, map[string]string{"alice": "1200"})
	c := collector(t, cache, "balances")
	for range 3 {
		_, err := cache.Load(t.Context(), "alice")
		require.NoError(t, err)
	}
	_, err := cache.Load(t.Context(), "nobody")
	require.ErrorIs(t, err, tidemark.ErrNotFound)
	require.Equal(t, tidemark.Applied, cache.Put("alice", "850", 9))
	require.Equal(t, tidemark.Stale, cache.Put("alice", "1200", 8))
	require.NoError(t, testutil.CollectAndCompare(c, strings.NewReader(`
# HELP tidemark_entries Entries in memory.
# TYPE tidemark_entries gauge
tidemark_entries{cache="balances"} 2
# HELP tidemark_loads_total Calls of the Loader; a bulk load counts once. This is the load on the source.
# TYPE tidemark_loads_total counter
tidemark_loads_total{cache="balances"} 2
# HELP tidemark_puts_total Calls of Put, by outcome. stale: an old value was rejected; unproven: nothing showed that it was not old. Many unproven ones say that Load or BeginFill should be used.
# TYPE tidemark_puts_total counter
tidemark_puts_total{cache="balances",outcome="applied"} 1
tidemark_puts_total{cache="balances",outcome="duplicate"} 0
tidemark_puts_total{cache="balances",outcome="stale"} 1
tidemark_puts_total{cache="balances",outcome="unproven"} 0
# HELP tidemark_reads_total Reads, by whether memory could answer. A cached absence is a hit. The share of hits is the hit ratio.
# TYPE tidemark_reads_total counter
tidemark_reads_total{cache="balances",result="hit"} 2
tidemark_reads_total{cache="balances",result="miss"} 2
`), "tidemark_entries", "tidemark_loads_total", "tidemark_puts_total", "tidemark_reads_total"))
}

// Caches share a registry under names of their own, and leave it one by one.
func TestCollector_SeveralCachesInOneProcess(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	a, b := collector(t, fake{Hits: 1, Fresh: -1}, "a"), collector(t, fake{Hits: 2, Fresh: -1}, "b.c")
	require.NoError(t, r.Register(a))
	require.NoError(t, r.Register(b))
	err := r.Register(collector(t, fake{Hits: 3}, "a"))
	require.ErrorAs(t, err, new(prometheus.AlreadyRegisteredError))
	hits := func() string {
		families, err := r.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "tidemark_reads_total" {
				var all []string
				for _, m := range f.GetMetric() {
					labels := fmt.Sprint(m.GetLabel())
					if strings.Contains(labels, `value:"hit"`) {
						all = append(all, fmt.Sprint(m.GetLabel()[0].GetValue(), "=", m.GetCounter().GetValue()))
					}
				}
				return strings.Join(all, " ")
			}
		}
		return ""
	}
	assert.Equal(t, "a=1 b.c=2", hits())
	assert.True(t, r.Unregister(a))
	assert.Equal(t, "b.c=2", hits())
	require.NoError(t, r.Register(collector(t, fake{Hits: 4}, "a")), "the name is free again")
	assert.Equal(t, "a=4 b.c=2", hits())
}

func TestNewCollector_Mistakes(t *testing.T) {
	var none *tidemark.Cache[string, string]
	for name, cache := range map[string]tidemarkprom.Source{"no cache": nil, "a nil cache": none} {
		_, err := tidemarkprom.NewCollector(cache, "not a name")
		require.Error(t, err, name)
		assert.ErrorContains(t, err, "cache is nil", name)
		assert.ErrorContains(t, err, `name is "not a name"`, "both mistakes are reported")
		assert.ErrorAs(t, err, new(*tidemark.OptionError))
	}
	for _, bad := range []string{"", ".", "a.", ".a", "a..b", "a b", "a\nb", `a"b`, "ä", strings.Repeat("a", 129)} {
		_, err := tidemarkprom.NewCollector(fake{}, bad)
		assert.ErrorContains(t, err, "name", "%q", bad)
	}
	for _, good := range []string{"a", "A-b_9", "payments.balances", strings.Repeat("a", 128)} {
		_, err := tidemarkprom.NewCollector(fake{}, good)
		assert.NoError(t, err, good)
	}
}

// A cache that is closed is still collected, and says that it is.
func TestCollector_AClosedCache(t *testing.T) {
	cache := newCache(t, nil)
	c := collector(t, cache, "c")
	assert.Contains(t, text(t, c), `tidemark_state{cache="c",state="alone"} 1`)
	require.NoError(t, cache.Close(t.Context()))
	got := text(t, c)
	assert.Contains(t, got, `tidemark_state{cache="c",state="ended"} 1`)
	assert.Contains(t, got, `tidemark_state{cache="c",state="alone"} 0`)
}

// What is not known is left out: a 0 would say that everything is fresh.
func TestCollector_NoBoundIsNoNumber(t *testing.T) {
	assert.NotContains(t, text(t, collector(t, fake{Fresh: -1}, "c")), "tidemark_staleness_bound_seconds")
	assert.Contains(t, text(t, collector(t, fake{Fresh: 250e6}, "c")), `tidemark_staleness_bound_seconds{cache="c"} 0.25`)
}

// Nor is a breaker shown as closed that does not tell its state, or is not there.
func TestCollector_NoBreakerIsNoState(t *testing.T) {
	assert.NotContains(t, text(t, collector(t, fake{}, "c")), "tidemark_breaker_state")
	got := text(t, collector(t, fake{Breaker: tidemark.BreakerHalfOpen}, "c"))
	assert.Contains(t, got, `tidemark_breaker_state{cache="c",state="half-open"} 1`)
	assert.Contains(t, got, `tidemark_breaker_state{cache="c",state="closed"} 0`)
}

// Keys and values can be personal data, and have no bound: none gets into a
// metric, and the number of series does not depend on them.
func TestCollector_NoKeysAndNoValues(t *testing.T) {
	const secret = "4929-1234-5678"
	rows := map[string]string{}
	cache := newCache(t, rows)
	series := func() int { return testutil.CollectAndCount(collector(t, cache, "c")) }
	before := series()
	for i := range 100 {
		key := fmt.Sprint(secret, i)
		rows[key] = secret
		_, err := cache.Load(t.Context(), key)
		require.NoError(t, err)
		cache.Put(key, secret, 0)
		require.NoError(t, cache.Invalidate(t.Context(), key, 0))
	}
	assert.Equal(t, before, series())
	assert.NotContains(t, text(t, collector(t, cache, "c")), secret)
}

// It is scraped while the cache is used.
func TestCollector_WhileTheCacheIsBusy(t *testing.T) {
	cache := newCache(t, map[string]string{"k": "v"})
	c := collector(t, cache, "c")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				_, _ = cache.Load(t.Context(), fmt.Sprint("k", i%7))
				_ = cache.Invalidate(t.Context(), "k", 0)
			}
		})
	}
	for range 20 {
		assert.NotZero(t, testutil.CollectAndCount(c))
	}
	wg.Wait()
}

// The operations guide explains each metric, and none that there is not.
func TestMetrics_AreInTheOperationsGuide(t *testing.T) {
	guide, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	exported := map[string]bool{}
	for line := range strings.Lines(text(t, collector(t, fake{Breaker: tidemark.BreakerClosed}, "c"))) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			exported[strings.Fields(name)[0]] = true
		}
	}
	explained := map[string]bool{}
	for _, name := range regexp.MustCompile(`tidemark_[a-z_]+[a-z]`).FindAllString(string(guide), -1) {
		assert.True(t, exported[name], "%s is explained, but there is no such metric", name)
		explained[name] = true
	}
	for name := range exported {
		assert.True(t, explained[name], "%s is not explained", name)
	}
}

// BenchmarkCollect is the cost of a scrape for one cache, in metrics that are made
// and in locks that are taken.
func BenchmarkCollect(b *testing.B) {
	for _, shards := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			cache, err := tidemark.New(tidemark.Options[string, string]{Shards: shards})
			require.NoError(b, err)
			defer cache.Close(b.Context())
			c := collector(b, cache, "c")
			made := make(chan prometheus.Metric, 256)
			b.ReportAllocs()
			for b.Loop() {
				c.Collect(made)
				for len(made) > 0 {
					<-made
				}
			}
		})
	}
}
