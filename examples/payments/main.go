// Command payments is a small payments service: accounts in a database, and in
// front of it two replicas of an HTTP service, each with a tidemark cache.
//
//	go run . -store payments.db
//
// README.md is a tour of it.
//
//	main.go     the process: flags, what starts, what ends
//	bank.go     the database, and who tells the caches what others change in it
//	log.go      the log that the replicas share, on NATS
//	replica.go  one replica: its cache, its server, its end
//	api.go      what it answers: freshness, sessions, which error is which status
//	payment.go  deposits and purchases: decisions that must not be made on stale state
//	nightly/    a job that changes the database and knows no cache
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark-go/tidemark"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends it at once
	err := run(ctx, os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "payments:", err)
		os.Exit(1)
	}
}

// A config is what the flags say.
type config struct {
	listen     []string // an address for each replica
	store      string
	nats       string
	natsListen string
	relay      bool
	onStale    tidemark.StalePolicy
	grace      time.Duration
}

func parse(args []string, output io.Writer) (c config, err error) {
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(output)
	listen := flags.String("listen", "127.0.0.1:8081,127.0.0.1:8082", "`addresses` to serve HTTP at: a replica for each")
	flags.StringVar(&c.store, "store", "payments.db", "database: a URL postgres://..., or the name of an SQLite `file`")
	flags.StringVar(&c.nats, "nats", "", "`URL` of a nats-server with JetStream; if empty, one runs in this process")
	flags.StringVar(&c.natsListen, "nats-listen", "127.0.0.1:4222", "`address` of the nats-server in this process")
	flags.BoolVar(&c.relay, "relay", true, "tell the caches what others change in the database; one process must")
	stale := flags.String("on-stale", "reload", "what a read within=... does when memory cannot show to be recent enough: reload it, or fail")
	flags.DurationVar(&c.grace, "grace", 10*time.Second, "how long requests under way have when the service is told to stop")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("%q is not a flag", flags.Arg(0))
	}
	switch *stale {
	case "reload":
		c.onStale = tidemark.Reload
	case "fail":
		c.onStale = tidemark.Fail
	default:
		return c, fmt.Errorf("-on-stale is %q, want reload or fail", *stale)
	}
	c.listen = strings.Split(*listen, ",")
	return c, nil
}

// run is the service, until ctx ends or a part of it fails.
func run(ctx context.Context, args []string, output io.Writer) (err error) {
	c, err := parse(args, output)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(output, nil))

	bank, err := openBank(ctx, c.store)
	if err != nil {
		return err
	}
	defer bank.close()

	if c.nats == "" {
		server, err := startNATS(c.natsListen)
		if err != nil {
			return err
		}
		defer server.stop()
		c.nats = server.ClientURL()
		logger.Info("a nats-server is in this process", "url", c.nats)
	}

	// Whatever fails ends ctx, and with it everything else.
	group, ctx := errgroup.WithContext(ctx)
	for i, address := range c.listen {
		group.Go(func() error { return serve(ctx, c, bank, address, logger.With("replica", i+1)) })
	}
	if c.relay {
		group.Go(func() error { return relay(ctx, c, bank, logger) })
	}
	group.Go(func() error { return prune(ctx, bank, logger) })
	return group.Wait()
}
