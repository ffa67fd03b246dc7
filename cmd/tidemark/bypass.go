package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark/ops"
)

const bypassUsage = `usage: tidemark bypass -name NAME [flags] on|off

Bypass is for the hour in which nobody trusts a cache. While it is on, no replica
serves anything from memory: every read asks the source, which must bear that. When it
is off again, what memory has is confirmed by the source before it is served.

Replicas do as they are told if the program calls View.Serve of package ops with
Options.AllowBypass. They are told again and again, for two seconds, and then until
each that is there has confirmed it, or -timeout is over. A replica is there if it has
answered anything meanwhile: this, or the question for its state.

The status is 0 if all of those have confirmed it, and they are the ones that are
printed. It speaks for no others: one that is cut off from NATS, stands still or does
not call View.Serve, and one that is started later, which begins without it. Compare
with the replicas that you run. The status is 1 if nobody answers, one refuses, or one
does not confirm it; which one is said.

`

// runBypass is "tidemark bypass".
func runBypass(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("bypass", bypassUsage, std)
	target.defineServer(flags)
	asJSON := flags.Bool("json", false, "print JSON")
	timeout := flags.Duration("timeout", 10*time.Second, "give up after this `duration`")
	onOrOff := func() error {
		if word := strings.Join(flags.Args(), " "); word != "on" && word != "off" {
			return fmt.Errorf("%q, want on or off, behind the flags", word)
		}
		return nil
	}
	if status, done := parse(std, flags, args, target.validate, onOrOff); done {
		return status
	}
	nc, err := target.connect(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return fail(std, "bypass", err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	all, err := ops.AskBypass(ctx, nc, target.name, flags.Arg(0) == "on")
	switch {
	case *asJSON:
		err = errors.Join(err, printJSON(std.out, all))
	case len(all) > 0:
		t := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "INSTANCE\tWAS\tIS")
		for _, b := range all {
			fmt.Fprintf(t, "%s\t%s\t%s\n", printable(b.Instance), switchText(b.Was), switchText(b.On))
		}
		err = errors.Join(err, t.Flush())
	}
	if err != nil {
		return fail(std, "bypass", err)
	}
	return exitOK
}

func switchText(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
