package snippets

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// docs/migrating/README.md shows what follows.

// A versions reads accounts with the version that the database gives them.
type versions struct{ db *sql.DB }

func (v versions) Load(ctx context.Context, account string) (cents int64, version tidemark.Version, err error) {
	err = v.db.QueryRowContext(ctx, "SELECT cents, version FROM accounts WHERE name = ?", account).Scan(&cents, &version)
	if errors.Is(err, sql.ErrNoRows) {
		err = tidemark.ErrNotFound
	}
	return cents, version, err
}

type tidemarkBank struct {
	db    *sql.DB
	cache *tidemark.Cache[string, int64]
}

func newTidemarkBank(db *sql.DB, nc *nats.Conn) (*tidemarkBank, error) {
	cache, err := tidemark.New(tidemark.Options[string, int64]{
		MaxCost:     100_000,
		TTL:         time.Minute, // leave it as it was until you trust the rest
		Loader:      versions{db},
		Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts"}),
		Logger:      slog.Default(),
	})
	return &tidemarkBank{db, cache}, err
}

func (b *tidemarkBank) balance(ctx context.Context, account string) (int64, error) {
	e, err := b.cache.Load(ctx, account)
	if errors.Is(err, tidemark.ErrNotFound) {
		return 0, errNoAccount
	}
	return e.Value, err
}

func (b *tidemarkBank) deposit(ctx context.Context, account string, cents int64) error {
	var version tidemark.Version
	err := b.db.QueryRowContext(ctx, "UPDATE accounts SET cents = cents + ?, version = version + 1 WHERE name = ? RETURNING version",
		cents, account).Scan(&version)
	if err != nil {
		return err
	}
	if err := b.cache.Invalidate(ctx, account, version); err != nil { // here at once, then in every replica
		slog.Warn("the other replicas hear of a deposit later", "err", err) // it is committed: who gets an error here deposits again
	}
	return nil
}

// End of what it shows.

// And this.

// LoadMany makes versions a [tidemark.BulkLoader]: one query for what memory lacks.
func (v versions) LoadMany(ctx context.Context, accounts []string) (map[string]tidemark.Loaded[int64], error) {
	found := map[string]tidemark.Loaded[int64]{}
	args := make([]any, len(accounts))
	for i, a := range accounts {
		found[a], args[i] = tidemark.Loaded[int64]{Absent: true}, a // an absence must be said
	}
	rows, err := v.db.QueryContext(ctx, "SELECT name, cents, version FROM accounts WHERE name IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var l tidemark.Loaded[int64]
		if err := rows.Scan(&name, &l.Value, &l.Version); err != nil {
			return nil, err
		}
		found[name] = l
	}
	return found, rows.Err()
}

// End.

// In the last step the store writes, too.

func (b *tidemarkBank) withdraw(ctx context.Context, account string, cents int64) error {
	_, err := b.cache.Update(ctx, account, func(cur tidemark.Entry[int64]) (int64, error) {
		if cur.Value < cents {
			return 0, errPoor
		}
		return cur.Value - cents, nil // committed only if cur is still current
	})
	return err
}

// End.

var errPoor = errors.New("not enough money")
