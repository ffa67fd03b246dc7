// Package otel exports what caches count, [metrics.All], through the metric API of
// OpenTelemetry, as observable instruments. Import it by another name, since a program
// that uses it has another package otel:
//
//	import tidemarkotel "github.com/tidemark-go/tidemark/metrics/otel"
//
// One [Metrics] stands for the caches of a process. Every measurement has an
// attribute "cache", with the name that [Metrics.Add] was given, and none has an
// attribute that keys or values could get into: their number does not depend on
// what the cache holds. docs/operations.md, in the repository, says what each metric
// means and what to do about it.
//
// Behind OpenTelemetry's exporter for Prometheus the metrics have the names that
// those of metrics/prometheus have, so that its dashboard and its alerts fit.
//
// The package needs OpenTelemetry's API only, not its SDK.
package otel
