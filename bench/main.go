// Command bench compares tidemark with other caches, all in one process.
//
//	go run -C bench .                       times and ratios
//	go run -C bench . -only put,mix         some of the sections
//	go run -C bench . -log                  what a log on JetStream costs, against the same stream without tidemark
//	go run -C bench . -memory               bytes per entry, and what a collection costs
//	go run -C bench . -hitratio             hit ratios on generated workloads
//	go run -C bench . -hitratio -trace FILE hit ratios on a trace: gzip of little-endian uint32 keys
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
	"os"
	"slices"
	"strings"
)

func main() {
	memory := flag.Bool("memory", false, "measure bytes per entry and runtime.GC")
	hitratio := flag.Bool("hitratio", false, "measure hit ratios")
	log := flag.Bool("log", false, "measure the log")
	samples := flag.String("samples", "", "with -log: also write each round's values to this `file`, for benchstat")
	trace := flag.String("trace", "", "with -hitratio: replay this `file` only")
	goroutines := flag.Int("goroutines", 1, "with -hitratio: share the accesses among so many goroutines")
	only := flag.String("only", "", "run only `what` contains one of these in its name, separated by commas")
	rounds := flag.Int("rounds", 11, "rounds per measurement")
	keys := flag.String("keys", "10000,1000000", "`numbers` of keys; with -hitratio only the largest counts")
	flag.Parse()
	sizes, err := parseInts(*keys)
	switch {
	case err != nil:
	case *hitratio:
		err = printHitRatios(*trace, slices.Max(sizes), *goroutines, strings.Split(*only, ","))
	case *log:
		err = measureLog(*samples, *rounds, strings.Split(*only, ","))
	case *memory:
		printMemory(sizes)
	default:
		err = printTimes(sizes, *rounds, strings.Split(*only, ","))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measureLog is printLog, with the values of each round in a file unless its name
// is empty.
func measureLog(samples string, rounds int, only []string) error {
	if samples == "" {
		return printLog(rounds, only, nil)
	}
	f, err := os.Create(samples)
	if err != nil {
		return err
	}
	return errors.Join(printLog(rounds, only, f), f.Close())
}

func parseInts(list string) ([]int, error) {
	var all []int
	for _, s := range strings.Split(list, ",") {
		var n int
		if _, err := fmt.Sscan(s, &n); err != nil || n <= 0 {
			return nil, fmt.Errorf("%q is not a number of keys", s)
		}
		all = append(all, n)
	}
	return all, nil
}

// containsOne reports whether one of parts is in s.
func containsOne(s string, parts []string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(s, p) })
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
