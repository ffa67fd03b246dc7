package snippets

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// docs/migrating/ristretto.md shows what follows.

type ristrettoBank struct {
	db    *sql.DB
	cache *ristretto.Cache[string, int64]
}

func newRistrettoBank(db *sql.DB) (*ristrettoBank, error) {
	cache, err := ristretto.NewCache(&ristretto.Config[string, int64]{
		NumCounters: 1_000_000, // ten for each entry
		MaxCost:     100_000,
		BufferItems: 64,
	})
	return &ristrettoBank{db, cache}, err
}

func (b *ristrettoBank) balance(ctx context.Context, account string) (cents int64, err error) {
	if cents, ok := b.cache.Get(account); ok {
		return cents, nil
	}
	err = b.db.QueryRowContext(ctx, "SELECT cents FROM accounts WHERE name = ?", account).Scan(&cents)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errNoAccount
	}
	if err == nil {
		b.cache.SetWithTTL(account, cents, 1, time.Minute) // whatever has happened since the query
	}
	return cents, err
}

func (b *ristrettoBank) deposit(ctx context.Context, account string, cents int64) error {
	_, err := b.db.ExecContext(ctx, "UPDATE accounts SET cents = cents + ? WHERE name = ?", cents, account)
	b.cache.Del(account)
	return err
}
