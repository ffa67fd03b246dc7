// Command bench compares tidemark with other caches, all in one process.
//
//	make bench                              measure everything and write docs/benchmarks.md
//	go run -C bench . -out FILE             measure, and write each round's numbers to FILE, for benchstat
//	go run -C bench . -only REGEXP          measure what has a matching name, such as Memory or 'Cache/.*/n=10000/'
//	go run -C bench . -quick                everything, very small, to see that it runs
//	go run -C bench . -report FILE -docs ../docs   write the document from FILE
//	go run -C bench . -log                  what a log on JetStream costs, against the same stream without tidemark
//
// Times are CPU nanoseconds per operation of the whole process, so what a cache
// does in the background counts. The contenders take turns of 22 ms, in an order
// and at a place of the trace that move on every round; a ratio is the median of
// the rounds' ratios. A machine that is busy with something else changes the
// times, but hardly the ratios. What -log measures is in docs/log-cost.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
)

// settings are what the command line says.
type settings struct {
	quick, log           bool
	out, samples, report string
	docs, traces, only   string
	rounds               int
}

func main() {
	var f settings
	flag.BoolVar(&f.quick, "quick", false, "measure very little, to see that it runs")
	flag.BoolVar(&f.log, "log", false, "measure the log instead")
	flag.StringVar(&f.out, "out", "", "write each round's numbers to this `file`, for benchstat and -report")
	flag.StringVar(&f.samples, "samples", "", "with -log: the same")
	flag.StringVar(&f.report, "report", "", "measure nothing and write the document about the numbers in this `file`")
	flag.StringVar(&f.docs, "docs", "../docs", "with -report: the `folder` to write to")
	flag.StringVar(&f.traces, "traces", "../../shared/traces", "`folder` of traces, gzip of little-endian uint32 keys; missing: none")
	flag.StringVar(&f.only, "only", "", "measure only what has a name that this `regexp` matches")
	flag.IntVar(&f.rounds, "rounds", 0, "rounds per measurement; 0: as many as are usual")
	flag.Parse()
	if err := f.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (f settings) run() error {
	only, err := regexp.Compile(f.only)
	if err != nil {
		return err
	}
	switch {
	case f.report != "":
		return writeReport(f.report, f.docs)
	case f.log:
		rounds := f.rounds
		if rounds == 0 {
			rounds = fullPlan.rounds
		}
		return withFile(f.samples, func(w io.Writer) error { return printLog(rounds, only, w) })
	}
	p := fullPlan
	if f.quick {
		p = quickPlan
	}
	if f.rounds > 0 {
		p.rounds = f.rounds
	}
	return withFile(f.out, func(w io.Writer) error {
		s := &session{plan: p, results: newResults(w), only: only, progress: os.Stdout, traces: f.traces}
		s.describe(f.quick)
		err := s.run()
		s.describeEnd()
		return err
	})
}

// withFile runs do with a file that it creates, or with nil if the name is
// empty.
func withFile(name string, do func(io.Writer) error) error {
	if name == "" {
		return do(nil)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// median returns the middle of v, or the mean of the two in the middle.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}
