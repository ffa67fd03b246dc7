package outbox_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

// The program that runs the relay, of which there should be two. "tidemark relay" is
// the same.
func ExampleNewRelay() {
	nc, err := nats.Connect("nats://127.0.0.1:4222", tidemark.NATSConnectOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	config, err := pgx.ParseConfig("postgres://relay@127.0.0.1/bank")
	if err != nil {
		log.Fatal(err)
	}
	relay, err := outbox.NewRelay(outbox.RelayOptions{
		Config:      config,
		Table:       outbox.Table{Name: "accounts"},
		Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: &tidemark.NATSStream{}}),
		Logger:      slog.Default(),
	})
	if err != nil {
		log.Fatal(err)
	}
	for range time.Tick(10 * time.Second) {
		if s := relay.Stats(); s.Lag > time.Second || s.Unheard != "" {
			log.Print("caches hear late of changes: ", s.Lag, s.Unheard, s.Err)
		}
	}
}

// A replica that reads Within a bound of the database itself.
func ExampleNewProber() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://bank@127.0.0.1/bank")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	nc, err := nats.Connect("nats://127.0.0.1:4222", tidemark.NATSConnectOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	inv := tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: &tidemark.NATSStream{}})
	if inv.Prober, err = outbox.NewProber(pool, outbox.Table{Name: "accounts"}); err != nil {
		log.Fatal(err)
	}
	cache, err := tidemark.New(tidemark.Options[string, int64]{
		Loader: tidemark.LoaderFunc[string, int64](func(ctx context.Context, key string) (balance int64, v tidemark.Version, err error) {
			err = pool.QueryRow(ctx, `SELECT value, version FROM accounts WHERE key = $1`, key).Scan(&balance, &v)
			return balance, v, err
		}),
		Invalidator: inv,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close(ctx)
	e, err := cache.Read(ctx, "alice", tidemark.Within(time.Second)) // whoever has changed it
	fmt.Println(e.Value, e.Age, err)
}

// What a batch job changes, which knows neither of versions nor of caches.
func ExampleInstall() {
	ctx := context.Background()
	url, err := pgtest.URL() // a server for tests
	if err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	exec := func(query string) {
		if _, err := conn.Exec(ctx, query); err != nil {
			log.Fatal(err)
		}
	}
	exec(`CREATE TABLE example_prices (key text PRIMARY KEY, value bigint, version bigint DEFAULT 1)`)
	defer exec(`DROP TABLE example_prices`)

	table := outbox.Table{Name: "example_prices", Raise: true}
	if err := outbox.Install(ctx, conn, table); err != nil {
		log.Fatal(err)
	}
	defer func() {
		removal, _ := outbox.Removal(table)
		exec(removal)
	}()
	exec(`INSERT INTO example_prices VALUES ('apple', 30), ('pear', 40)`)
	exec(`UPDATE example_prices SET value = value * 2 WHERE key = 'pear'`)

	rows, err := conn.Query(ctx, `SELECT key || ' is at version ' || version FROM example_prices_outbox ORDER BY id`)
	if err != nil {
		log.Fatal(err)
	}
	changes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range changes {
		fmt.Println(change)
	}
	fmt.Println(outbox.Check(ctx, conn, table))
	// Output:
	// apple is at version 1
	// pear is at version 1
	// pear is at version 2
	// <nil>
}
