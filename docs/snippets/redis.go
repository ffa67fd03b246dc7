package snippets

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// docs/migrating/go-redis.md shows what follows.

type redisBank struct {
	db  *sql.DB
	rdb *redis.Client
}

func (b *redisBank) balance(ctx context.Context, account string) (cents int64, err error) {
	for {
		cents, err = b.rdb.Get(ctx, "balance:"+account).Int64()
		if err == nil {
			return cents, nil
		}
		if !errors.Is(err, redis.Nil) {
			return b.load(ctx, account) // Redis is away: the database is not
		}
		token := rand.Text()
		err = b.rdb.SetArgs(ctx, "lock:"+account, token, redis.SetArgs{Mode: "NX", TTL: 5 * time.Second}).Err()
		if err == nil { // one caller loads, of all replicas
			defer unlock.Run(ctx, b.rdb, []string{"lock:" + account}, token)
			cents, err = b.load(ctx, account)
			if err == nil {
				b.rdb.Set(ctx, "balance:"+account, cents, time.Minute) // even if the lock has run out since
			}
			return cents, err
		}
		select {
		case <-time.After(10 * time.Millisecond): // and look again
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (b *redisBank) load(ctx context.Context, account string) (cents int64, err error) {
	err = b.db.QueryRowContext(ctx, "SELECT cents FROM accounts WHERE name = ?", account).Scan(&cents)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoAccount
	}
	return cents, err
}

func (b *redisBank) deposit(ctx context.Context, account string, cents int64) error {
	if _, err := b.db.ExecContext(ctx, "UPDATE accounts SET cents = cents + ? WHERE name = ?", cents, account); err != nil {
		return err
	}
	return b.rdb.Del(ctx, "balance:"+account).Err() // committed, and this fails: a minute of the old balance
}

var unlock = redis.NewScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`)
