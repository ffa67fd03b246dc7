// Package prometheus exports what caches count, [metrics.All], as Prometheus metrics.
// Import it by another name, since a program that uses it has another package
// prometheus:
//
//	import tidemarkprom "github.com/tidemark-go/tidemark/metrics/prometheus"
//
// One [Collector] stands for one cache. Every metric has a label "cache", with the
// name that [NewCollector] was given, and no metric has a label that keys or values
// could get into: the number of series does not depend on what the cache holds.
// docs/operations.md, in the repository, says what each metric means and what to do
// about it; dashboard.json, beside this file, is a Grafana dashboard of them, and
// alerts.yml has the alerting rules.
package prometheus
