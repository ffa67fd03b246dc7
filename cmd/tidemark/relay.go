package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"math"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

const relayUsage = `usage: tidemark relay -table TABLE -name NAME [flags]

Relay tells a cache's JetStream stream what changes in a table of PostgreSQL, whoever
changes it, until it is stopped. The table must have an outbox ("tidemark outbox
install"), and the cache a stream, which the relay makes like a replica does unless
-existing is given. Run two: one works, and the other takes over.

It connects to the database itself, not to a pooler that lends connections by the
transaction. What it does and what keeps it from working is on standard error, and
every -stats a line of what it has counted. "the relay leads" says that it is the
one whose turn it is, not that it reaches the log. Alert on the lines of -stats if,
for some seconds,

  working   is true in those of no relay: nobody tells anything
  lag       is more than a few seconds in any: changes wait, because of what err
            says, or since the log does not take them
  failures  rise: it leads, and fails again and again
  unheard   is not empty: triggers are missing, run "tidemark outbox install"

lag and waiting are unknown to a relay that waits for its turn.

`

// runRelay is "tidemark relay".
func runRelay(ctx context.Context, args []string, std streams) int {
	var bus busTarget
	var target pgTarget
	var o outbox.RelayOptions
	stream := tidemark.NATSStream{}
	flags := newFlags("relay", relayUsage, std)
	target.define(flags)
	flags.StringVar(&bus.server, "server", nats.DefaultURL, "`url` of the NATS server")
	flags.StringVar(&bus.name, "name", "", "`name` of the cache; required")
	flags.StringVar(&bus.schema, "schema", "", "`schema` of the cache")
	flags.IntVar(&stream.Replicas, "replicas", 0, "on how many `servers` the stream is, if it is made: 1, 3 or 5; 0 means 3")
	flags.BoolVar(&stream.Existing, "existing", false, "the stream is there, and is not made")
	epoch := flags.Uint("epoch", 0, "`epoch` of the source")
	flags.IntVar(&o.Batch, "batch", 0, "`rows` told at a time; 0 means 4096")
	flags.Int64Var(&o.Collapse, "collapse", 0, "tell \"everything may have changed\" in the place of more waiting `rows`; 0 means 500000, -1 never")
	flags.DurationVar(&o.Poll, "poll", 0, "look every `duration`, beside being woken; 0 means 250ms")
	flags.DurationVar(&o.Lease, "lease", 0, "another relay takes over when this one is stuck for this `duration`; 0 means 10s")
	every := flags.Duration("stats", 0, "write a line every `duration`; 0 means never")
	if status, done := parse(std, flags, args); done {
		return status
	}
	if err := validateRelay(flags, &target, bus.name, *epoch); err != nil {
		return complain(std, "relay", err)
	}
	var err error
	if o.Config, err = target.config(); err != nil {
		return complain(std, "relay", err)
	}
	o.Table, o.SourceEpoch = target.table, uint32(*epoch)
	o.Logger = slog.New(slog.NewTextHandler(std.err, nil))
	nc, err := nats.Connect(bus.server, append(tidemark.NATSConnectOptions(), nats.Name("tidemark relay"))...)
	if err != nil {
		return complain(std, "relay", err)
	}
	defer nc.Close()
	o.Invalidator = tidemark.NATS(nc, tidemark.NATSOptions{Name: bus.name, Schema: bus.schema, Stream: &stream})
	r, err := outbox.NewRelay(o)
	if err != nil {
		return complain(std, "relay", err)
	}
	report(ctx, r, *every, o.Logger)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		return fail(std, "relay", err)
	}
	return exitOK
}

// validateRelay returns the first mistake in what cannot be left to NewRelay.
func validateRelay(flags *flag.FlagSet, target *pgTarget, name string, epoch uint) error {
	switch {
	case flags.NArg() > 0:
		return noArguments(flags)()
	case name == "":
		return errors.New("-name is required")
	case epoch > math.MaxUint32:
		return errors.New("-epoch is below 1<<32")
	}
	return target.validate()
}

// report writes what a relay has counted, until ctx ends.
func report(ctx context.Context, r *outbox.Relay, every time.Duration, logger *slog.Logger) {
	if every <= 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s := r.Stats()
		logger.Info("relay", "working", s.Working, "lag", known(s.Lag), "waiting", known(s.Waiting), "rows", s.Rows, "keys", s.Keys,
			"everything", s.Everything, "probes", s.Probes, "failures", s.Failures, "unheard", s.Unheard, "err", s.Err)
	}
}

// known returns n, or, if it is negative, that it is not known.
func known[N time.Duration | int64](n N) any {
	if n < 0 {
		return "unknown"
	}
	return n
}
