package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

const auditUsage = `usage: tidemark audit -name NAME [flags]

Audit lets the auditor of every replica of a cache compare all that it has in memory
with the source, waits until they have, and says what they have found since they were
started. Replicas answer if the program calls View.Serve of package ops, and audit if
it sets Options.Audit, which bounds how fast they do. No key is printed unless -keys
is given, and no value.

  CHECKED    comparisons that are decided
  STALE      entries that were confirmed to be older than what the source had
  DIFFERS    of another value at the same version
  AHEAD      newer than what the source had: it went back
  REPAIRED   that were dropped, so that the next read loads
  OVER       for each time scale: entries that were stale for longer, of those that
             were checked, and how many nines that is; if none was, how many are
             proven, with a confidence of 95 %. For the nines those count as stale
             that expired or were evicted before it was known why they differed
  LONGEST    that one can have been stale, and the most versions that one was behind
  CYCLE      when the last one ended, and how many entries it looked at

The status is 1 if a mismatch was confirmed since the start of a replica, or if one
cannot be asked, has no auditor, or answers no more before its cycle has ended. A cycle
that is under way when -wait is over is only told of. It speaks for the replicas that it
prints.

`

// runAudit is "tidemark audit".
func runAudit(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("audit", auditUsage, std)
	target.defineServer(flags)
	wait := flags.Duration("wait", 30*time.Second, "wait for the cycles for this `duration`, and print what is known then; 0 begins none")
	keys := flags.Bool("keys", false, "print the latest mismatches with their keys, and what happened to them")
	asJSON := flags.Bool("json", false, "print JSON")
	if status, done := parse(std, flags, args, target.validate, noArguments(flags)); done {
		return status
	}
	nc, err := target.connect(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return fail(std, "audit", err)
	}
	defer nc.Close()
	all, late, gone, err := audits(ctx, nc, target.name, *wait, *keys)
	switch {
	case *asJSON:
		err = errors.Join(err, printJSON(std.out, all))
	case len(all) > 0:
		err = errors.Join(err, printAudits(std.out, all, *keys))
	}
	for _, a := range all {
		if a.Report.Bound == 0 {
			err = errors.Join(err, fmt.Errorf("%s has no auditor", printable(a.Instance)))
		}
	}
	if len(late) > 0 {
		fmt.Fprintf(std.err, "tidemark audit: the cycle has not ended on %s\n", printable(strings.Join(late, ", ")))
	}
	if len(gone) > 0 {
		err = errors.Join(err, fmt.Errorf("no answer any more from %s", printable(strings.Join(gone, ", "))))
	}
	if err != nil {
		return fail(std, "audit", err)
	}
	for _, a := range all {
		if a.Report.Mismatches() > 0 {
			return exitFailed
		}
	}
	return exitOK
}

// audits asks the replicas for a cycle, and returns what each has said last when all have
// ended it, or the time is over; then late are those that have not, and gone those of
// them that did not answer any more. The error is the first one.
func audits(ctx context.Context, nc *nats.Conn, name string, wait time.Duration, keys bool) (all []ops.Audit, late, gone []string, err error) {
	over := time.Now().Add(wait)
	wanted := map[string]uint64{} // the cycle that each is to end
	for start := wait > 0; ; {
		answers, askErr := ops.AskAudit(ctx, nc, name, start, keys)
		if err == nil && (len(all) == 0 || !errors.Is(askErr, ops.ErrNobody)) {
			err = askErr
		}
		heard := map[string]bool{}
		for _, a := range answers {
			heard[a.Instance] = true
			if _, asked := wanted[a.Instance]; start && !asked {
				wanted[a.Instance] = a.Report.Begun + 1
			}
		}
		all = latest(all, answers)
		if wait <= 0 || len(all) == 0 {
			return all, nil, nil, err
		}
		late, gone, start = nil, nil, false
		for _, a := range all {
			end, asked := wanted[a.Instance]
			if a.Report.Bound == 0 || asked && a.Report.Cycles >= end {
				continue // there is no more to come
			}
			start = start || !asked // it was not there for the first question
			late = append(late, a.Instance)
			if !heard[a.Instance] && ctx.Err() == nil { // or nobody had the time to answer
				gone = append(gone, a.Instance)
			}
		}
		if len(late) == 0 || time.Now().After(over) || ctx.Err() != nil {
			return all, late, gone, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// latest returns the answers, and what those said before who have not answered, in the
// order of their instances.
func latest(before, answers []ops.Audit) []ops.Audit {
	all := slices.Clone(answers)
	for _, b := range before {
		if !slices.ContainsFunc(answers, func(a ops.Audit) bool { return a.Instance == b.Instance }) {
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(a, b ops.Audit) int { return cmp.Compare(a.Instance, b.Instance) })
	return all
}

// printAudits prints a table for people.
func printAudits(w io.Writer, all []ops.Audit, keys bool) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "INSTANCE\tCHECKED\tSTALE\tDIFFERS\tAHEAD\tREPAIRED\tOVER\tLONGEST\tCYCLE")
	for i := range all {
		fmt.Fprintln(t, strings.Join(auditLine(&all[i]), "\t"))
	}
	_ = t.Flush() // to a buffer
	for i := range all {
		r := &all[i].Report
		if r.Shadow {
			fmt.Fprintf(&b, "\n%s: shadow mode: memory would have served %d reads, %d of them with an older state than the source had, %d with another value",
				printable(all[i].Instance), r.ShadowHits, r.ShadowOlder, r.ShadowDiffers)
		}
		if r.Tripped {
			fmt.Fprintf(&b, "\n%s: the auditor has set the bypass: nothing is served from memory", printable(all[i].Instance))
		}
		if r.Refused > 0 {
			fmt.Fprintf(&b, "\n%s: %d comparisons were put off for readers, the breaker or the source; %d were given up", printable(all[i].Instance), r.Refused, r.Unchecked)
		}
		if r.Undecided > 0 {
			fmt.Fprintf(&b, "\n%s: %d that differed expired or were evicted before it was known why", printable(all[i].Instance), r.Undecided)
		}
		for _, m := range all[i].Mismatches {
			if keys {
				printMismatch(&b, all[i].Instance, m)
			}
		}
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// auditLine returns the columns of one replica.
func auditLine(a *ops.Audit) []string {
	r := &a.Report
	if r.Bound == 0 {
		return []string{printable(a.Instance), "no auditor"}
	}
	var scales []string
	for _, s := range r.Scales {
		nines := fmt.Sprintf("%.1f nines", s.Nines)
		if s.Stale == 0 || s.Undecided > 0 {
			nines = "at least " + nines
		}
		scales = append(scales, fmt.Sprintf("%v: %d, %s", s.Over, s.Stale, nines))
	}
	longest := "-"
	if r.Stale > 0 {
		longest = "unknown"
		if r.Longest >= 0 {
			longest = r.Longest.Round(time.Millisecond).String()
		}
		longest += fmt.Sprintf(", %d versions", r.MostBehind)
	}
	cycle := "-"
	if !r.Last.Ended.IsZero() {
		cycle = fmt.Sprintf("%s, %d entries", r.Last.Ended.Local().Format("15:04:05"), r.Last.Entries)
	}
	n := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return []string{printable(a.Instance), n(r.Checked), n(r.Stale), n(r.Differs), n(r.Ahead), n(r.Repaired),
		strings.Join(scales, "; "), longest, cycle}
}

// printMismatch prints one mismatch, and what happened to its key.
func printMismatch(b *bytes.Buffer, instance string, m ops.Mismatch) {
	most := "nobody knows how long"
	if m.AtMost >= 0 {
		most = "at most " + m.AtMost.Round(time.Millisecond).String()
	}
	fmt.Fprintf(b, "\n%s: %s %s: memory had %s, the source %s, for at least %v, %s", printable(instance), m.Kind, strconv.Quote(m.Key),
		versionText(m.Version, m.Absent), versionText(m.Source, m.SourceAbsent), m.AtLeast.Round(time.Millisecond), most)
	printRecord(b, m.Record)
}

// printRecord prints what happened to a key, a line each.
func printRecord(w io.Writer, record []tidemark.Happening) {
	for _, h := range record {
		by := ""
		if h.By != "nothing" {
			by = " by " + printable(h.By)
		}
		fmt.Fprintf(w, "\n    %s %s %s%s", h.Time.Format("15:04:05.000"), printable(h.What), versionText(h.Version, h.Absent), by)
	}
}
