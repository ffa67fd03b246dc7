package otel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/metrics"
)

// exported is what the instruments are of.
var exported = metrics.All()

// A Source is a cache: every [*tidemark.Cache] is one, whatever its types.
type Source interface {
	Stats() tidemark.Stats
}

// Metrics are the instruments of a meter provider, and the caches that they
// observe. Make one with New. All methods are safe for concurrent use.
type Metrics struct {
	instruments  []instrument // of exported, in their order
	registration metric.Registration

	mu     sync.Mutex // guards everything below
	caches map[string]*watched
	closed bool
}

// An instrument is that of one metric: seconds for durations, and numbers for
// everything else.
type instrument struct {
	numbers metric.Int64Observable
	seconds metric.Float64Observable
}

// A watched is one cache, and what is the same at each collection: the attributes
// of each series of each metric.
type watched struct {
	source Source
	labels [][]metric.ObserveOption
}

// Scope is the name of the meter.
const Scope = "github.com/tidemark-go/tidemark/metrics/otel"

// ErrClosed is what Add returns after Close.
var ErrClosed = errors.New("tidemark/otel: the Metrics are closed")

const maxName = 128

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// New makes the instruments, once for all caches of the process. Nil means the
// global provider. Its errors are the provider's.
func New(provider metric.MeterProvider) (*Metrics, error) {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(Scope)
	m := &Metrics{caches: map[string]*watched{}}
	var all []metric.Observable
	var errs []error
	for _, d := range exported {
		i, observable, err := newInstrument(d, meter)
		m.instruments, all, errs = append(m.instruments, i), append(all, observable), append(errs, err)
	}
	err := errors.Join(errs...)
	if err == nil {
		m.registration, err = meter.RegisterCallback(m.collect, all...)
	}
	if err != nil {
		return nil, fmt.Errorf("tidemark/otel: %w", err)
	}
	return m, nil
}

// newInstrument makes the instrument of d.
func newInstrument(d metrics.Metric, meter metric.Meter) (i instrument, o metric.Observable, err error) {
	help, unit := metric.WithDescription(d.Help), metric.WithUnit(d.Unit)
	switch {
	case d.Unit == metrics.Seconds && d.Kind == metrics.Counter:
		i.seconds, err = meter.Float64ObservableCounter(d.Name, help, unit)
	case d.Unit == metrics.Seconds:
		i.seconds, err = meter.Float64ObservableGauge(d.Name, help, unit)
	case d.Kind == metrics.Counter:
		i.numbers, err = meter.Int64ObservableCounter(d.Name, help, unit)
	case d.Kind == metrics.Sum:
		i.numbers, err = meter.Int64ObservableUpDownCounter(d.Name, help, unit)
	default:
		i.numbers, err = meter.Int64ObservableGauge(d.Name, help, unit)
	}
	if d.Unit == metrics.Seconds {
		return i, i.seconds, err
	}
	return i, i.numbers, err
}

// Add lets the instruments observe cache, until Remove. The name is the attribute
// "cache" of what is measured; best is the one that the Invalidator has. It
// consists of letters, digits, '-' and '_', in parts joined by dots, has at most
// 128 bytes, and no other cache of m has it. All mistakes are reported at once,
// each as a [*tidemark.OptionError].
//
// A collection calls Stats once for each cache, which takes the lock of each shard
// for a moment, never for longer than it takes to read a number, and waits for
// nothing else. A cache that is closed is observed as before, with the state
// "ended". Until Remove or Close m keeps it in memory.
func (m *Metrics) Add(cache Source, name string) error {
	var errs []error
	if isNil(cache) {
		errs = append(errs, &tidemark.OptionError{Field: "cache", Problem: "is nil"})
	}
	if !validName.MatchString(name) || len(name) > maxName {
		errs = append(errs, &tidemark.OptionError{Field: "name",
			Problem: fmt.Sprintf("is %.200q, want letters, digits, '-', '_' and dots, at most %d bytes", name, maxName)})
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	w := &watched{source: cache}
	for _, d := range exported {
		var labels []metric.ObserveOption
		for _, s := range d.Series {
			attributes := []attribute.KeyValue{attribute.String("cache", name)}
			if d.Label != "" {
				attributes = append(attributes, attribute.String(d.Label, s.Label))
			}
			labels = append(labels, metric.WithAttributeSet(attribute.NewSet(attributes...)))
		}
		w.labels = append(w.labels, labels)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.caches[name] != nil {
		return &tidemark.OptionError{Field: "name", Problem: fmt.Sprintf("is %q, which another cache has", name)}
	}
	m.caches[name] = w
	return nil
}

// isNil reports whether there is no cache, or one that is a nil pointer.
func isNil(cache Source) bool {
	if cache == nil {
		return true
	}
	v := reflect.ValueOf(cache)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// Remove ends the observation of the cache of that name, and reports whether there
// was one. The name is free again.
func (m *Metrics) Remove(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.caches[name]
	delete(m.caches, name)
	return ok
}

// Close ends the observation of all caches. Further calls do nothing.
func (m *Metrics) Close() error {
	m.mu.Lock()
	closed := m.closed
	m.closed, m.caches = true, nil
	m.mu.Unlock()
	if closed {
		return nil
	}
	return m.registration.Unregister()
}

// collect is called for each collection.
func (m *Metrics) collect(_ context.Context, o metric.Observer) error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.caches))
	m.mu.Unlock()
	for _, w := range all {
		stats := w.source.Stats()
		for i, d := range exported {
			for j, s := range d.Series {
				value, known := s.Value(&stats)
				switch {
				case !known:
				case d.Unit == metrics.Seconds:
					o.ObserveFloat64(m.instruments[i].seconds, time.Duration(value).Seconds(), w.labels[i][j])
				default:
					o.ObserveInt64(m.instruments[i].numbers, value, w.labels[i][j])
				}
			}
		}
	}
	return nil
}
