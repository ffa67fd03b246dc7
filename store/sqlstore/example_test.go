package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

type Account struct {
	Owner   string
	Balance int64
}

// A program imports the driver of its choice and puts a cache in front of a
// table of JSON accounts.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("sqlite", "file:accounts.db?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	store, err := sqlstore.New(db, sqlstore.Options[string, Account]{Dialect: sqlstore.SQLite, Table: "accounts"})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.CreateTables(ctx); err != nil {
		log.Fatal(err)
	}
	cache, err := tidemark.New(tidemark.Options[string, Account]{Store: store})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close(ctx)

	after, err := cache.Update(ctx, "alice", func(cur tidemark.Entry[Account]) (Account, error) {
		if cur.Value.Balance < 350 {
			return Account{}, errors.New("not enough money")
		}
		return Account{cur.Value.Owner, cur.Value.Balance - 350}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(after.Value.Balance, after.Version)

	// Once an hour, in one of the replicas.
	if _, err := store.Prune(ctx, time.Hour); err != nil {
		log.Print(err)
	}
}

// A cache that hears everybody who changes its table: a nightly job, another
// program, a person.
func ExampleStore_Relay() {
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sql.Open("sqlite", "file:accounts.db?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	store, err := sqlstore.New(db, sqlstore.Options[string, Account]{Dialect: sqlstore.SQLite, Table: "accounts"})
	if err != nil {
		log.Fatal(err)
	}
	if err := errors.Join(store.CreateTables(ctx), store.CreateOutbox(ctx)); err != nil {
		log.Fatal(err)
	}
	cache, err := tidemark.New(tidemark.Options[string, Account]{Store: store})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close(ctx)

	// With several processes: a tidemark.Publisher in place of the cache.
	relaying := make(chan error, 1)
	go func() { relaying <- store.Relay(ctx, cache, sqlstore.RelayOptions{}) }()
	defer func() { cancel(); <-relaying }()

	state, err := store.Outbox(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(state.Waiting, state.Lag)
}

// The table of a store whose values are integers, for those who keep their
// schema elsewhere.
func ExampleStore_Schema() {
	db := sql.OpenDB(noDatabase{})
	defer db.Close()
	store, err := sqlstore.New(db, sqlstore.Options[string, int64]{Dialect: sqlstore.PostgreSQL, Table: "billing.balances"})
	if err != nil {
		log.Fatal(err)
	}
	for _, statement := range store.Schema() {
		fmt.Println(statement + ";")
	}
	// Output:
	// CREATE TABLE IF NOT EXISTS "billing"."balances" (
	// 	"key" TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	// 	"value" BIGINT,
	// 	"version" BIGINT NOT NULL DEFAULT 1,
	// 	"deleted" BOOLEAN NOT NULL DEFAULT FALSE,
	// 	"op" BYTEA,
	// 	CHECK ("deleted" OR ("value" IS NOT NULL AND "version" > 0))
	// );
	// CREATE TABLE IF NOT EXISTS "billing"."balances_ops" (
	// 	"op" BYTEA NOT NULL,
	// 	"key" TEXT COLLATE "C" NOT NULL,
	// 	"version" BIGINT NOT NULL,
	// 	"committed_at" BIGINT NOT NULL,
	// 	PRIMARY KEY ("op", "key")
	// );
	// CREATE INDEX IF NOT EXISTS "balances_ops_committed_at" ON "billing"."balances_ops" ("committed_at");
}

// noDatabase is a connector for examples that only print SQL.
type noDatabase struct{}

func (noDatabase) Connect(context.Context) (driver.Conn, error) { return nil, errors.ErrUnsupported }
func (noDatabase) Driver() driver.Driver                        { return nil }
