package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tidemark-go/tidemark"
)

const (
	// ttl bounds how long an entry is served. It is the last line of defence, against
	// changes that nobody has told.
	ttl = 10 * time.Minute

	// maxStale is the age at which nothing is served to anybody: what a replica that
	// no longer hears the log has is good for so long.
	maxStale = 2 * time.Second
)

// serve is one replica of the service, until ctx ends.
func serve(ctx context.Context, c config, bank *bank, address string, logger *slog.Logger) (err error) {
	nc, err := connect(c.nats, address)
	if err != nil {
		return err
	}
	defer nc.Close()

	cache, err := tidemark.New(tidemark.Options[string, Cents]{
		MaxCost:      100_000, // accounts
		TTL:          ttl,
		MaxStale:     maxStale,
		Store:        bank.store,
		DoubtTimeout: writeTimeout,
		LoadTimeout:  2 * time.Second,
		OnStale:      c.onStale,
		Invalidator:  accountsLog(nc, bank.prober),
		Logger:       logger,
	})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           newAPI(cache, logger),
		ReadHeaderTimeout: 2 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      15 * time.Second, // above ReadTimeout and requestTimeout, so that every request is answered
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	// Also if nothing could be served: the cache runs by now.
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.grace)
		defer cancel()
		err = errors.Join(err, stop(ending, server, cache))
		logger.Info("stopped")
	}()

	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	logger.Info("serving", "address", listener.Addr().String())
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		logger.Info("stopping")
		return nil
	}
}

// stop ends a replica in this order: no more requests; those under way are answered;
// the cache has told the others what it wrote. The connections are closed after that.
func stop(ctx context.Context, server *http.Server, cache *tidemark.Cache[string, Cents]) error {
	err := server.Shutdown(ctx)
	if err != nil { // the deadline: whoever still waits is cut off
		err = errors.Join(err, server.Close())
	}
	return errors.Join(err, cache.Close(ctx))
}
