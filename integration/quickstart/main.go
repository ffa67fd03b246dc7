// Command quickstart is the program of the README: two replicas of a bank, which
// share a SQLite file and a nats-server.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	_ "modernc.org/sqlite"
)

func main() {
	if err := run("file:bank.db?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)", nats.DefaultURL); err != nil {
		log.Fatal(err)
	}
}

func run(dsn, natsURL string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	nc, err := nats.Connect(natsURL, tidemark.NATSConnectOptions()...)
	if err != nil {
		return err
	}
	defer nc.Close()
	here, err := open(ctx, db, nc)
	if err != nil {
		return err
	}
	defer here.Close(ctx) // before the connections
	there, err := open(ctx, db, nc)
	if err != nil {
		return err
	}
	defer there.Close(ctx)
	if err := errors.Join(here.Ready(ctx), there.Ready(ctx)); err != nil { // until then every read is a load
		return err
	}

	if _, err := here.Update(ctx, "alice", func(tidemark.Entry[int64]) (int64, error) { return 1200, nil }); err != nil {
		return err
	}
	for {
		left, err := pay(ctx, there, "alice", 350)
		if errors.Is(err, errPoor) {
			break
		}
		if err != nil {
			return err
		}
		fmt.Println("there: paid, left", left)
	}
	alice, err := here.Load(ctx, "alice") // from memory, or through the store
	fmt.Println("here: alice has", alice.Value, "as of version", alice.Version)
	return err
}

var errPoor = errors.New("not enough money")

// The README shows what follows.

func open(ctx context.Context, db *sql.DB, nc *nats.Conn) (*tidemark.Cache[string, int64], error) {
	store, err := sqlstore.New(db, sqlstore.Options[string, int64]{Table: "balances", Dialect: sqlstore.SQLite})
	if err != nil {
		return nil, err
	}
	if err := store.CreateTables(ctx); err != nil { // or put store.Schema() into your migrations
		return nil, err
	}
	return tidemark.New(tidemark.Options[string, int64]{
		MaxCost:     1_000_000, // entries, as long as Cost is nil
		TTL:         time.Hour, // the last line of defence
		Store:       store,
		Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "balances"}),
	})
}

func pay(ctx context.Context, cache *tidemark.Cache[string, int64], account string, price int64) (int64, error) {
	after, err := cache.Update(ctx, account, func(cur tidemark.Entry[int64]) (int64, error) {
		if cur.Value < price {
			return 0, errPoor
		}
		return cur.Value - price, nil // committed only if cur is still current, and told to every replica
	})
	return after.Value, err
}
