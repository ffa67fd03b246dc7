package snippets

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/viccon/sturdyc"
)

// docs/migrating/sturdyc.md shows what follows.

type sturdycBank struct {
	db    *sql.DB
	cache *sturdyc.Client[int64]
}

func newSturdycBank(db *sql.DB) *sturdycBank {
	return &sturdycBank{db, sturdyc.New[int64](100_000, 64, time.Minute, 10,
		sturdyc.WithEarlyRefreshes(20*time.Second, 30*time.Second, 50*time.Second, 10*time.Millisecond),
		sturdyc.WithMissingRecordStorage(),
	)}
}

func (b *sturdycBank) balance(ctx context.Context, account string) (int64, error) {
	cents, err := b.cache.GetOrFetch(ctx, account, func(ctx context.Context) (cents int64, err error) {
		err = b.db.QueryRowContext(ctx, "SELECT cents FROM accounts WHERE name = ?", account).Scan(&cents)
		if errors.Is(err, sql.ErrNoRows) {
			err = sturdyc.ErrNotFound
		}
		return cents, err
	})
	if errors.Is(err, sturdyc.ErrNotFound) || errors.Is(err, sturdyc.ErrMissingRecord) {
		return 0, errNoAccount
	}
	return cents, err
}

func (b *sturdycBank) balances(ctx context.Context, accounts []string) (map[string]int64, error) {
	return b.cache.GetOrFetchBatch(ctx, accounts, b.cache.BatchKeyFn(""), b.fetch)
}

func (b *sturdycBank) deposit(ctx context.Context, account string, cents int64) error {
	_, err := b.db.ExecContext(ctx, "UPDATE accounts SET cents = cents + ? WHERE name = ?", cents, account)
	b.cache.Delete(account) // in this process, and a refresh that is under way stores what it has read
	return err
}

// End of what it shows.

func (b *sturdycBank) fetch(ctx context.Context, accounts []string) (map[string]int64, error) {
	args := make([]any, len(accounts))
	for i, a := range accounts {
		args[i] = a
	}
	rows, err := b.db.QueryContext(ctx, "SELECT name, cents FROM accounts WHERE name IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]int64{}
	for rows.Next() {
		var name string
		var cents int64
		if err := rows.Scan(&name, &cents); err != nil {
			return nil, err
		}
		found[name] = cents
	}
	return found, rows.Err()
}
