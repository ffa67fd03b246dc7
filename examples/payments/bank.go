package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "modernc.org/sqlite"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// Cents is an amount of money.
type Cents int64

// table is where the accounts are: key, value and version, and whether the account
// is closed. Beside it are a journal of our writes, and an outbox, in which triggers
// write down who is changed, by us or by anybody.
const table = "accounts"

// writeTimeout is the time after which a write that was begun can no longer take
// effect, so that who is in doubt of it can be told before requestTimeout.
const writeTimeout = 3 * time.Second

// A bank is the database of record, and what it can do for its caches.
type bank struct {
	store interface {
		tidemark.Store[string, Cents]
		Prune(ctx context.Context, olderThan time.Duration) (int64, error)
	}

	// prober lets what replicas prove hold against the database itself. Without
	// one it holds against what they have told each other.
	prober tidemark.Prober

	// relay tells the log what is in the outbox, until ctx ends.
	relay func(ctx context.Context, log tidemark.Invalidator, logger *slog.Logger) error

	close func()
}

// openBank opens the database and makes the tables and triggers that are not there.
// Where a service may not do that, its migrations do: both stores have a Schema, and
// their outboxes too.
func openBank(ctx context.Context, name string) (*bank, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if strings.HasPrefix(name, "postgres://") || strings.HasPrefix(name, "postgresql://") {
		return openPostgres(ctx, name)
	}
	return openSQLite(ctx, name)
}

func openPostgres(ctx context.Context, url string) (_ *bank, err error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	store, err := postgres.New(pool, postgres.Options[string, Cents]{Table: table, Timeout: writeTimeout})
	if err != nil {
		return nil, err
	}
	if err := store.CreateTables(ctx); err != nil {
		return nil, err
	}
	heard := outbox.Table{Name: table}
	var missing *outbox.CheckError
	if err = outbox.Check(ctx, pool, heard); errors.As(err, &missing) {
		err = outbox.Install(ctx, pool, heard)
	}
	if err != nil {
		return nil, err
	}
	prober, err := outbox.NewProber(pool, heard)
	if err != nil {
		return nil, err
	}
	return &bank{
		store:  store,
		prober: prober,
		relay: func(ctx context.Context, log tidemark.Invalidator, logger *slog.Logger) error {
			relay, err := outbox.NewRelay(outbox.RelayOptions{
				Config: pool.Config().ConnConfig, Table: heard, Invalidator: log, Logger: logger,
			})
			if err != nil {
				return err
			}
			<-ctx.Done()
			return relay.Close(context.WithoutCancel(ctx)) // soon: nobody waits for what it has not told
		},
		close: pool.Close,
	}, nil
}

func openSQLite(ctx context.Context, file string) (_ *bank, err error) {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	store, err := sqlstore.New(db, sqlstore.Options[string, Cents]{Dialect: sqlstore.SQLite, Table: table})
	if err != nil {
		return nil, err
	}
	if err := store.CreateTables(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := store.CreateOutbox(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &bank{
		store: store,
		relay: func(ctx context.Context, log tidemark.Invalidator, logger *slog.Logger) error {
			publisher, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: log, Resumes: true})
			if err != nil {
				return err
			}
			err = store.Relay(ctx, publisher, sqlstore.RelayOptions{Logger: logger})
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			closed := publisher.Close(ending)
			if ctx.Err() != nil {
				return nil // what this process has not told waits in the outbox
			}
			return errors.Join(err, closed)
		},
		close: func() { _ = db.Close() }, // every write has been committed or given up
	}, nil
}

// relay tells the log what is in the outbox. Each process may have one; of those of
// PostgreSQL one works, and another takes over when it is gone.
func relay(ctx context.Context, c config, bank *bank, logger *slog.Logger) error {
	nc, err := connect(c.nats, "relay")
	if err != nil {
		return err
	}
	defer nc.Close()
	return bank.relay(ctx, accountsLog(nc, nil), logger.With("part", "relay"))
}

// prune forgets writes of more than an hour ago, about which nobody can ask any more.
func prune(ctx context.Context, bank *bank, logger *slog.Logger) error {
	for tick := time.Tick(10 * time.Minute); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		if _, err := bank.store.Prune(ctx, time.Hour); err != nil && ctx.Err() == nil {
			logger.Warn("the journal grows", "err", err) // and nothing worse
		}
	}
}
