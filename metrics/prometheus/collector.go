package prometheus

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/metrics"
)

// exported is all of them.
var exported = metrics.All()

// A Source is a cache: every [*tidemark.Cache] is one, whatever its types.
type Source interface {
	Stats() tidemark.Stats
}

// A Collector exports the Stats of one cache. It is a [prometheus.Collector]; make
// one with NewCollector.
type Collector struct {
	source Source
	descs  []*prometheus.Desc // of exported, in their order
}

const maxName = 128

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// NewCollector returns a Collector for cache. The name is the value of the label
// "cache" on all its metrics; best is the one that the Invalidator has. It consists
// of letters, digits, '-' and '_', in parts joined by dots, and has at most 128
// bytes. All mistakes are reported at once, each as a [*tidemark.OptionError].
//
// Register it as any other:
//
//	registry.MustRegister(collector)
//
// A registry takes one Collector of each name, and refuses the second with a
// [prometheus.AlreadyRegisteredError]. Unregister it after the cache was closed, or
// leave it: a cache that is closed is collected as before, with the state "ended".
// A Collector that is registered keeps its cache in memory.
//
// A scrape calls Stats once, which takes the lock of each shard for a moment,
// never for longer than it takes to read a number, and waits for nothing else. It is
// made at each scrape, so that all metrics of a cache are of one moment, nearly.
func NewCollector(cache Source, name string) (*Collector, error) {
	var errs []error
	if isNil(cache) {
		errs = append(errs, &tidemark.OptionError{Field: "cache", Problem: "is nil"})
	}
	if !validName.MatchString(name) || len(name) > maxName {
		errs = append(errs, &tidemark.OptionError{Field: "name",
			Problem: fmt.Sprintf("is %.200q, want letters, digits, '-', '_' and dots, at most %d bytes", name, maxName)})
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	c := &Collector{source: cache}
	for _, m := range exported {
		var label []string
		if m.Label != "" {
			label = []string{m.Label}
		}
		c.descs = append(c.descs, prometheus.NewDesc(nameOf(m), m.Help, label, prometheus.Labels{"cache": name}))
	}
	return c, nil
}

// nameOf returns the name that m has here, which is the one that it has behind
// OpenTelemetry's exporter for Prometheus: dashboard and alerts fit both.
func nameOf(m metrics.Metric) string {
	name := strings.ReplaceAll(m.Name, ".", "_")
	if m.Unit == metrics.Seconds {
		name += "_seconds"
	}
	if m.Kind == metrics.Counter {
		name += "_total"
	}
	return name
}

// isNil reports whether there is no cache, or one that is a nil pointer.
func isNil(cache Source) bool {
	if cache == nil {
		return true
	}
	v := reflect.ValueOf(cache)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		descs <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.source.Stats()
	for i, m := range exported {
		kind := prometheus.GaugeValue
		if m.Kind == metrics.Counter {
			kind = prometheus.CounterValue
		}
		for _, series := range m.Series {
			value, known := series.Value(&s)
			if !known {
				continue
			}
			number := float64(value)
			if m.Unit == metrics.Seconds {
				number = time.Duration(value).Seconds()
			}
			var label []string
			if m.Label != "" {
				label = []string{series.Label}
			}
			out <- prometheus.MustNewConstMetric(c.descs[i], kind, number, label...)
		}
	}
}
