package otel_test

import (
	"context"
	"errors"
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
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/metrics"
	tidemarkotel "github.com/tidemark-go/tidemark/metrics/otel"
)

// A fake is a cache with the Stats that a test wants.
type fake tidemark.Stats

func (f fake) Stats() tidemark.Stats { return tidemark.Stats(f) }

// observed returns Metrics, and a function that collects what they observe: the
// value of each series, and what each metric is.
func observed(t testing.TB) (*tidemarkotel.Metrics, func() (values map[string]string, kinds map[string]string)) {
	t.Helper()
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	t.Cleanup(func() { require.NoError(t, provider.Shutdown(context.Background())) })
	m, err := tidemarkotel.New(provider)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m, func() (map[string]string, map[string]string) {
		var got metricdata.ResourceMetrics
		require.NoError(t, reader.Collect(context.Background(), &got))
		values, kinds := map[string]string{}, map[string]string{}
		for _, scope := range got.ScopeMetrics {
			assert.Equal(t, tidemarkotel.Scope, scope.Scope.Name)
			for _, m := range scope.Metrics {
				add(values, kinds, m)
			}
		}
		return values, kinds
	}
}

// add notes the series of m, and its kind and unit.
func add(values, kinds map[string]string, m metricdata.Metrics) {
	switch d := m.Data.(type) {
	case metricdata.Sum[int64]:
		kinds[m.Name] = fmt.Sprint("sum, rises only: ", d.IsMonotonic, ", ", m.Unit)
		points(values, m.Name, d.DataPoints)
	case metricdata.Sum[float64]:
		kinds[m.Name] = fmt.Sprint("sum, rises only: ", d.IsMonotonic, ", ", m.Unit)
		points(values, m.Name, d.DataPoints)
	case metricdata.Gauge[int64]:
		kinds[m.Name] = "gauge, " + m.Unit
		points(values, m.Name, d.DataPoints)
	case metricdata.Gauge[float64]:
		kinds[m.Name] = "gauge, " + m.Unit
		points(values, m.Name, d.DataPoints)
	default:
		kinds[m.Name] = fmt.Sprintf("%T", d)
	}
}

func points[N int64 | float64](values map[string]string, name string, all []metricdata.DataPoint[N]) {
	for _, p := range all {
		labels := ""
		for _, a := range p.Attributes.ToSlice() {
			labels += fmt.Sprintf(" %s=%s", a.Key, a.Value.AsString())
		}
		values[name+labels] = fmt.Sprint(p.Value)
	}
}

func newCache(t testing.TB) *tidemark.Cache[string, string] {
	t.Helper()
	c, err := tidemark.New(tidemark.Options[string, string]{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close(context.Background())) })
	return c
}

// All that there is to measure is, by the name, the label and the value that it has.
func TestMetrics_ObserveAll(t *testing.T) {
	stats := tidemark.Stats{Fresh: 3e9, LoadTime: 1500e6, Breaker: tidemark.BreakerOpen, Hits: 7, AuditStale: 8, State: tidemark.Fresh}
	m, collect := observed(t)
	require.NoError(t, m.Add(fake(stats), "c"))
	got, _ := collect()
	want := map[string]string{}
	for _, m := range metrics.All() {
		for _, s := range m.Series {
			value, known := s.Value(&stats)
			require.True(t, known, m.Name)
			attributes := []string{" cache=c"}
			if m.Label != "" {
				attributes = append(attributes, fmt.Sprintf(" %s=%s", m.Label, s.Label))
			}
			slices.Sort(attributes)
			name := m.Name + strings.Join(attributes, "")
			want[name] = fmt.Sprint(value)
			if m.Unit == metrics.Seconds {
				want[name] = fmt.Sprint(time.Duration(value).Seconds())
			}
		}
	}
	assert.Equal(t, want, got)
}

func TestMetrics_Kinds(t *testing.T) {
	m, collect := observed(t)
	require.NoError(t, m.Add(fake{Hits: 3, Fresh: 250e6, LoadTime: 1500e6, State: tidemark.Suspect, Evictions: 1<<64 - 1}, "balances"))
	values, kinds := collect()
	assert.Equal(t, "sum, rises only: true, {read}", kinds["tidemark.reads"])
	assert.Equal(t, "sum, rises only: true, s", kinds["tidemark.load_time"])
	assert.Equal(t, "sum, rises only: false, {entry}", kinds["tidemark.entries"])
	assert.Equal(t, "gauge, s", kinds["tidemark.staleness_bound"])
	assert.Equal(t, "3", values["tidemark.reads cache=balances result=hit"])
	assert.Equal(t, "0", values["tidemark.reads cache=balances result=miss"])
	assert.Equal(t, "1.5", values["tidemark.load_time cache=balances"])
	assert.Equal(t, "0.25", values["tidemark.staleness_bound cache=balances"])
	assert.Equal(t, "1", values["tidemark.state cache=balances state=suspect"])
	assert.Equal(t, "0", values["tidemark.state cache=balances state=fresh"])
	assert.Equal(t, "9223372036854775807", values["tidemark.evictions cache=balances"], "and not a negative number")
	for name := range kinds {
		assert.Regexp(t, `^tidemark\.[a-z]+(_[a-z]+)*$`, name)
	}
}

// Behind the exporter for Prometheus the metrics are those of metrics/prometheus,
// whose names the operations guide has, and its linter has nothing to say.
func TestMetrics_HaveTheNamesOfThePrometheusCollector(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutTargetInfo(), otelprom.WithoutScopeInfo())
	require.NoError(t, err)
	provider := sdk.NewMeterProvider(sdk.WithReader(exporter))
	defer provider.Shutdown(t.Context())
	m, err := tidemarkotel.New(provider)
	require.NoError(t, err)
	require.NoError(t, m.Add(fake{Breaker: tidemark.BreakerClosed}, "c"))
	families, err := registry.Gather()
	require.NoError(t, err)
	var got []string
	for _, f := range families {
		got = append(got, f.GetName())
	}
	guide, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	explained := map[string]bool{}
	for _, name := range regexp.MustCompile(`tidemark_[a-z_]+[a-z]`).FindAllString(string(guide), -1) {
		explained[name] = true
	}
	var want []string
	for name := range explained {
		want = append(want, name)
	}
	assert.ElementsMatch(t, want, got)
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// Caches come and go under names of their own.
func TestMetrics_SeveralCachesInOneProcess(t *testing.T) {
	m, collect := observed(t)
	require.NoError(t, m.Add(fake{Hits: 1}, "a"))
	require.NoError(t, m.Add(fake{Hits: 2}, "b.c"))
	err := m.Add(fake{Hits: 3}, "a")
	require.ErrorAs(t, err, new(*tidemark.OptionError))
	hits := func() string {
		values, _ := collect()
		return values["tidemark.reads cache=a result=hit"] + "," + values["tidemark.reads cache=b.c result=hit"]
	}
	assert.Equal(t, "1,2", hits())
	assert.True(t, m.Remove("a"))
	assert.False(t, m.Remove("a"))
	assert.Equal(t, ",2", hits())
	require.NoError(t, m.Add(fake{Hits: 4}, "a"), "the name is free again")
	assert.Equal(t, "4,2", hits())
	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	assert.Equal(t, ",", hits())
	assert.ErrorIs(t, m.Add(fake{}, "d"), tidemarkotel.ErrClosed)
	assert.False(t, m.Remove("a"))
}

func TestAdd_Mistakes(t *testing.T) {
	m, _ := observed(t)
	var none *tidemark.Cache[string, string]
	for name, cache := range map[string]tidemarkotel.Source{"no cache": nil, "a nil cache": none} {
		err := m.Add(cache, "not a name")
		assert.ErrorContains(t, err, "cache is nil", name)
		assert.ErrorContains(t, err, `name is "not a name"`, "both mistakes are reported")
	}
	for _, bad := range []string{"", ".", "a..b", "a\nb", "ä", strings.Repeat("a", 129)} {
		assert.ErrorContains(t, m.Add(fake{}, bad), "name", "%q", bad)
	}
	assert.NoError(t, m.Add(fake{}, strings.Repeat("a", 128)))
}

// failing is a provider that makes no instruments.
type failing struct{ noop.MeterProvider }

func (failing) Meter(string, ...metric.MeterOption) metric.Meter { return failingMeter{} }

type failingMeter struct{ noop.Meter }

var errNoRoom = errors.New("no room")

func (failingMeter) Int64ObservableGauge(string, ...metric.Int64ObservableGaugeOption) (metric.Int64ObservableGauge, error) {
	return nil, errNoRoom
}

func TestNew(t *testing.T) {
	_, err := tidemarkotel.New(failing{})
	assert.ErrorIs(t, err, errNoRoom)

	reader := sdk.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))
	defer otel.SetMeterProvider(before)
	m, err := tidemarkotel.New(nil)
	require.NoError(t, err)
	require.NoError(t, m.Add(fake{}, "c"))
	var got metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &got))
	assert.NotEmpty(t, got.ScopeMetrics, "the global provider is asked")
}

// A cache that is closed is still observed; a bound that is not known is left out.
func TestMetrics_AClosedCache(t *testing.T) {
	m, collect := observed(t)
	cache := newCache(t)
	require.NoError(t, m.Add(cache, "c"))
	values, _ := collect()
	assert.Equal(t, "1", values["tidemark.state cache=c state=alone"])
	assert.NotContains(t, values, "tidemark.staleness_bound cache=c")
	require.NoError(t, cache.Close(t.Context()))
	values, _ = collect()
	assert.Equal(t, "1", values["tidemark.state cache=c state=ended"])
}

// No key and no value gets into a metric, and the number of series does not depend
// on them.
func TestMetrics_NoKeysAndNoValues(t *testing.T) {
	const secret = "4929-1234-5678"
	m, collect := observed(t)
	cache := newCache(t)
	require.NoError(t, m.Add(cache, "c"))
	before, _ := collect()
	for i := range 100 {
		cache.Put(fmt.Sprint(secret, i), secret, 1)
		require.NoError(t, cache.Invalidate(t.Context(), fmt.Sprint(secret, i), 0))
	}
	after, _ := collect()
	assert.Len(t, after, len(before))
	assert.NotContains(t, fmt.Sprint(after), secret)
}

func TestMetrics_WhileTheCachesAreBusy(t *testing.T) {
	m, collect := observed(t)
	cache := newCache(t)
	require.NoError(t, m.Add(cache, "c"))
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := range 300 {
				cache.Put(fmt.Sprint("k", i), "v", tidemark.Version(i+1))
				name := fmt.Sprint("other", worker)
				assert.NoError(t, m.Add(cache, name))
				assert.True(t, m.Remove(name))
			}
		})
	}
	for range 20 {
		values, _ := collect()
		assert.NotEmpty(t, values)
	}
	wg.Wait()
}
