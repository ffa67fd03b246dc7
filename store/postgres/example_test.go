package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
)

type Account struct {
	Owner   string
	Balance int64
}

// A cache in front of a table that the service has had for years. Its other writers
// need not change.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `CREATE TABLE accounts (id text PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL);
		INSERT INTO accounts VALUES ('alice', 'Alice', 1200)`); err != nil {
		log.Fatal(err)
	}

	store, err := postgres.New(pool, postgres.Options[string, Account]{
		Table:      "accounts",
		Existing:   true,
		Columns:    postgres.Columns{Key: "id"},
		HardDelete: true,
		Row: postgres.RowCodec[Account]{
			Columns: []string{"owner", "balance"},
			Scan:    pgx.RowToStructByName[Account],
			Values:  func(a Account) ([]any, error) { return []any{a.Owner, a.Balance}, nil },
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.CreateTables(ctx); err != nil { // adds the version, the journal and the triggers
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

	// A job that knows nothing of versions. What it has changed is a conflict to
	// whoever decided on what was there before.
	if _, err := pool.Exec(ctx, `UPDATE accounts SET balance = balance - 800`); err != nil {
		log.Fatal(err)
	}
	_, err = cache.CompareAndSet(ctx, "alice", after.Version, Account{"Alice", 0})
	var conflict *tidemark.ConflictError
	fmt.Println(errors.As(err, &conflict), conflict.Current)

	// Once an hour, in one of the replicas.
	if _, err := store.Prune(ctx, time.Hour); err != nil {
		log.Print(err)
	}
	// Output:
	// 850 2
	// true 3
}

// A service that notices a failover and declares it to its caches. Whether the
// timeline is fit as the epoch is a question of how the database is run; the package
// comment says when.
func ExampleStore_Source() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	store, err := postgres.New(pool, postgres.Options[string, Account]{})
	if err != nil {
		log.Fatal(err)
	}
	began, err := store.Source(ctx)
	if err != nil {
		log.Fatal(err)
	}
	cache, err := tidemark.New(tidemark.Options[string, Account]{Store: store, SourceEpoch: began.Timeline})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close(ctx)

	watch := func() { // every second, in each replica
		now, err := store.Source(ctx)
		switch {
		case err != nil:
			log.Print(err) // it is down, or a standby: ask again
		case now.System != began.System:
			log.Print("another database: somebody has to declare an epoch above all before")
		case now.Timeline > began.Timeline:
			if err := cache.SetSourceEpoch(ctx, now.Timeline); err != nil {
				log.Print(err)
			}
		}
	}
	watch()
	fmt.Println(cache.Stats().Entries)
	// Output: 0
}

// The statements for a table of integers, for those who keep their schema elsewhere.
func ExampleStore_Schema() {
	store, err := postgres.New(new(pgx.Conn), postgres.Options[string, int64]{Table: "billing.balances"})
	if err != nil {
		log.Fatal(err)
	}
	for _, statement := range store.Schema()[:3] {
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
