package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-go/tidemark/cmd/tidemark/internal/storm"
)

const stormUsage = `usage: tidemark storm [flags]

Storm runs replicas of a service, each with its own cache, in front of one
database, does to them what production does, and counts what their readers got
to see, against the truth. It runs the same schedule for each contender.

The exit status is 1 if tidemark broke a promise: a read went backwards on one
replica, an acknowledged deposit was lost, an entry was wrong at rest though its
replica could have known, a read was below the replica's tide mark, or a read
missed a change that had been confirmed longer ago than the bound (tidemark-log),
or committed by a deposit (tidemark-strict), or with -store committed by anybody
(both).

The database is a SQLite file, or with -store a PostgreSQL. There the storm makes a
schema of its own, tidemark_storm_ and 26 letters, for each contender, and drops it in
the end; the overnight job is plain SQL, and tidemark-log and tidemark-strict hear of
it, as of all else, from the database's outbox through a relay.

With -redis two more contenders run, whose values are in that Redis, under keys that
begin with tidemark-storm: and are deleted in the end. Use one that does nothing else:
it is measured.

`

// runStorm is "tidemark storm".
func runStorm(ctx context.Context, args []string, std streams) int {
	config := storm.Default()
	flags := newFlags("storm", stormUsage, std)
	names := flags.String("contenders", "", "`names` of the contenders, in their order, separated by commas; the default is "+
		strings.Join(config.Contenders, ",")+", and with -redis redis,redis-fenced after ristretto")
	jsonFile := flags.String("json", "", "also write the report as JSON to this `file`")
	htmlFile := flags.String("html", "", "also write the report with charts as one HTML page to this `file`")
	stormFlags(flags, &config)
	if status, done := parse(std, flags, args, noArguments(flags)); done {
		return status
	}
	config.Contenders = storm.Names(config.Redis != "")
	flags.Visit(func(f *flag.Flag) {
		if f.Name == "contenders" { // no names are a mistake, not the default
			config.Contenders = strings.FieldsFunc(*names, func(r rune) bool { return r == ',' || r == ' ' })
		}
	})
	if err := config.Validate(); err != nil {
		return complain(std, "storm", err)
	}
	files := []reportFile{{*jsonFile, (*storm.Report).WriteJSON}, {*htmlFile, (*storm.Report).WriteHTML}}
	return stormReport(ctx, config, stormCommand(flags), files, std)
}

// A reportFile is a form of the report that is wanted, if it has a name.
type reportFile struct {
	name  string
	write func(*storm.Report, io.Writer) error
}

// stormCommand returns the command that flags were parsed from, for whoever wants to
// run it again, but where files went, and where the servers are: their addresses may
// have a password in them.
func stormCommand(flags *flag.FlagSet) string {
	command := "tidemark storm"
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "json", "html":
		case "store":
			command += " -store 'postgres://...'"
		case "redis":
			command += " -redis HOST:PORT"
		default:
			value := f.Value.String()
			if strings.ContainsAny(value, " \"") {
				value = strconv.Quote(value)
			}
			command += " -" + f.Name + " " + value
		}
	})
	return command
}

// stormFlags defines a flag for each field of c but the contenders.
func stormFlags(f *flag.FlagSet, c *storm.Config) {
	f.StringVar(&c.Store, "store", c.Store, "`url` of a PostgreSQL that is the database of record, postgres://...; the default is a SQLite file")
	f.StringVar(&c.Redis, "redis", c.Redis, "`address` of a Redis for the contenders redis and redis-fenced, host:port or a URL")
	f.IntVar(&c.Replicas, "replicas", c.Replicas, "`replicas` of the service")
	f.IntVar(&c.Accounts, "accounts", c.Accounts, "`rows` in the database")
	f.IntVar(&c.Capacity, "capacity", c.Capacity, "`entries` that each replica's cache may hold")
	f.Uint64Var(&c.Seed, "seed", c.Seed, "`seed` of the schedule of operations and faults")
	f.DurationVar(&c.Duration, "duration", c.Duration, "load on each contender, a `duration`")
	f.DurationVar(&c.Quiet, "quiet", c.Quiet, "`duration` of reading only, after the faults have healed and before the caches are inspected")
	f.Float64Var(&c.Skew, "skew", c.Skew, "Zipf `exponent` of the accounts, above 1")
	f.IntVar(&c.Readers, "readers", c.Readers, "reading `goroutines` a replica")
	f.IntVar(&c.Writers, "writers", c.Writers, "writing `goroutines` a replica")
	f.IntVar(&c.ReadRate, "read-rate", c.ReadRate, "`reads` a second, all replicas together")
	f.IntVar(&c.WriteRate, "write-rate", c.WriteRate, "`deposits` a second, all replicas together")
	f.DurationVar(&c.DBLatency, "db-latency", c.DBLatency, "average `duration` for which an answer of the database is on its way")
	f.DurationVar(&c.TTL, "ttl", c.TTL, "time to live of the contender ttl, a `duration`")
	f.DurationVar(&c.RedisTTL, "redis-ttl", c.RedisTTL, "time to live of the values in Redis, a `duration`")
	f.DurationVar(&c.Bound, "bound", c.Bound, "how stale a read of tidemark-log and tidemark-strict may be, a `duration`")
	f.StringVar(&c.ReadLevel, "read-level", c.ReadLevel, "`level` of their reads: within the bound, or any")

	f.Float64Var(&c.Weather.Delay, "delay", c.Weather.Delay, "`share` of messages that hold up themselves and all that follow")
	f.DurationVar(&c.Weather.DelayMax, "delay-max", c.Weather.DelayMax, "for at most this `duration`")
	f.Float64Var(&c.Weather.Reorder, "reorder", c.Weather.Reorder, "`share` of messages that later ones overtake")
	f.Float64Var(&c.Weather.Duplicate, "duplicate", c.Weather.Duplicate, "`share` of messages that come again, up to a second later")
	f.Float64Var(&c.Weather.Drop, "drop", c.Weather.Drop, "`share` of messages that never come")

	f.IntVar(&c.Cuts, "cut", c.Cuts, "`times` that a replica's connection is cut")
	f.DurationVar(&c.CutFor, "cut-for", c.CutFor, "for this `duration`")
	f.IntVar(&c.Freezes, "freeze", c.Freezes, "`times` that a replica's network stops without an error")
	f.DurationVar(&c.FreezeFor, "freeze-for", c.FreezeFor, "for this `duration`")
	f.IntVar(&c.Stalls, "stall", c.Stalls, "`times` that a replica's consumer stops reading")
	f.DurationVar(&c.StallFor, "stall-for", c.StallFor, "for this `duration`")
	f.IntVar(&c.Kills, "kill", c.Kills, "`writers` killed between commit and publish")
	f.DurationVar(&c.DatabaseOutage, "database-outage", c.DatabaseOutage, "`duration` for which no replica can reach the database, at most half of that of the load; 0: it is always there")
	f.IntVar(&c.Reconcile, "reconcile", c.Reconcile, "`accounts` that the overnight job changes by SQL, at most; 0: no job")
}

// stormReport runs the storm and prints what it found.
func stormReport(ctx context.Context, config storm.Config, command string, files []reportFile, std streams) int {
	fail := func(err error) int {
		return fail(std, "storm", err)
	}
	p := newProgress(std.err)
	report, err := storm.Run(ctx, config, p.update)
	p.end()
	switch {
	case errors.Is(err, context.Canceled):
		return fail(errors.New("interrupted"))
	case err != nil:
		return fail(err)
	}
	report.Command = command
	if err := report.WriteTable(std.out); err != nil {
		return fail(err)
	}
	for _, f := range files {
		if err := f.of(report); err != nil {
			return fail(err)
		}
	}
	return conclude(report, std.out)
}

// conclude says whether tidemark kept its promises, and returns the exit status.
func conclude(report *storm.Report, w io.Writer) int {
	broken := report.Broken()
	if len(broken) == 0 {
		return exitOK
	}
	fmt.Fprintf(w, "\nBROKEN PROMISE: %s\n", strings.Join(broken, "; "))
	return exitFailed
}

// of writes the file.
func (r reportFile) of(report *storm.Report) error {
	if r.name == "" {
		return nil
	}
	f, err := os.Create(r.name)
	if err != nil {
		return err
	}
	return errors.Join(r.write(report, f), f.Close())
}

// A progress shows a Status as a bar on a terminal, and as a line for every
// event anywhere else.
type progress struct {
	w         io.Writer
	bar       bool
	contender string
	event     string
}

func newProgress(w io.Writer) *progress { return &progress{w: w, bar: isTerminal(w)} }

const (
	barWidth  = 20
	lineWidth = 79 // a line that wraps cannot be overwritten
)

// update is called for every Status.
func (p *progress) update(s storm.Status) {
	if s.Contender != p.contender {
		p.contender, p.event = s.Contender, ""
		if !p.bar {
			fmt.Fprintf(p.w, "%s (%d of %d)\n", s.Contender, s.Index+1, s.Of)
		}
	}
	if s.Event != "" {
		p.event = s.Event
		if !p.bar {
			fmt.Fprintf(p.w, "  %5.1fs %s\n", s.Elapsed.Seconds(), s.Event)
		}
	}
	if !p.bar {
		return
	}
	done := (float64(s.Index) + min(1, float64(s.Elapsed)/float64(max(s.Total, 1)))) / float64(s.Of)
	full := int(done * barWidth)
	left := time.Duration((1 - done) * float64(s.Of) * float64(s.Total)).Round(time.Second)
	line := fmt.Sprintf("[%s%s] %3.0f%% %s, about %v left  %s",
		strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*done, s.Contender, left, p.event)
	fmt.Fprintf(p.w, "\r\x1b[K%s", line[:min(len(line), lineWidth)])
}

// end leaves the terminal clean.
func (p *progress) end() {
	if p.bar {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
