// Package rulestest checks the alerting rules and the dashboard beside package
// prometheus with Prometheus' own parser and engine, and with Grafana's own schema.
// It is a module of its own, for tests only, so that neither ends in the go.mod of
// anybody who exports metrics.
package rulestest
