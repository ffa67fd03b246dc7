package snippets

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/maypok86/otter/v2"
)

// docs/migrating/otter.md shows what follows.

type otterBank struct {
	db    *sql.DB
	cache *otter.Cache[string, int64]
}

func newOtterBank(db *sql.DB) (*otterBank, error) {
	cache, err := otter.New(&otter.Options[string, int64]{
		MaximumSize:       100_000,
		ExpiryCalculator:  otter.ExpiryWriting[string, int64](time.Minute),
		RefreshCalculator: otter.RefreshWriting[string, int64](30 * time.Second),
	})
	return &otterBank{db, cache}, err
}

func (b *otterBank) balance(ctx context.Context, account string) (int64, error) {
	cents, err := b.cache.Get(ctx, account, otter.LoaderFunc[string, int64](b.load))
	if errors.Is(err, otter.ErrNotFound) {
		return 0, errNoAccount
	}
	return cents, err
}

func (b *otterBank) load(ctx context.Context, account string) (cents int64, err error) {
	err = b.db.QueryRowContext(ctx, "SELECT cents FROM accounts WHERE name = ?", account).Scan(&cents)
	if errors.Is(err, sql.ErrNoRows) {
		err = otter.ErrNotFound
	}
	return cents, err
}

func (b *otterBank) deposit(ctx context.Context, account string, cents int64) error {
	_, err := b.db.ExecContext(ctx, "UPDATE accounts SET cents = cents + ? WHERE name = ?", cents, account)
	b.cache.Invalidate(account) // in this process: the others find out within a minute
	return err
}
