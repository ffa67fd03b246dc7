package snippets

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m.Run)) }

// accounts returns a database with one account, alice's.
func accounts(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "bank.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(wal)")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	for _, statement := range []string{
		"CREATE TABLE accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL)",
		"INSERT INTO accounts VALUES ('alice', 1200)",
		"ALTER TABLE accounts ADD COLUMN version INTEGER NOT NULL DEFAULT 1",
	} {
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	return db
}

// connected returns a connection to a nats-server of the test.
func connected(t *testing.T) *nats.Conn {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(s.Shutdown)
	require.True(t, s.ReadyForConnections(10*time.Second))
	nc, err := nats.Connect(s.ClientURL(), tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// works is what each of the banks can do, before and after.
func works(t *testing.T, b bank) {
	t.Helper()
	ctx := t.Context()
	for _, want := range []int64{1200, 1200} {
		got, err := b.balance(ctx, "alice")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.NoError(t, b.deposit(ctx, "alice", 50))
	got, err := b.balance(ctx, "alice")
	require.NoError(t, err)
	require.EqualValues(t, 1250, got)
	_, err = b.balance(ctx, "nobody")
	require.ErrorIs(t, err, errNoAccount)
}

func TestBefore(t *testing.T) {
	t.Run("otter", func(t *testing.T) {
		b, err := newOtterBank(accounts(t))
		require.NoError(t, err)
		defer b.cache.StopAllGoroutines()
		works(t, b)
	})
	t.Run("ristretto", func(t *testing.T) {
		b, err := newRistrettoBank(accounts(t))
		require.NoError(t, err)
		defer b.cache.Close()
		works(t, b)
	})
	t.Run("sturdyc", func(t *testing.T) {
		b := newSturdycBank(accounts(t))
		works(t, b)
		all, err := b.balances(t.Context(), []string{"alice", "nobody"})
		require.NoError(t, err)
		assert.Equal(t, map[string]int64{"alice": 1250}, all)
	})
	t.Run("go-redis", func(t *testing.T) {
		rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t)})
		defer rdb.Close()
		works(t, &redisBank{accounts(t), rdb})
	})
}

// After the migration there are two replicas, and what one of them writes the other
// one hears.
func TestAfter(t *testing.T) {
	db, nc := accounts(t), connected(t)
	here, err := newTidemarkBank(db, nc)
	require.NoError(t, err)
	defer here.cache.Close(context.Background())
	there, err := newTidemarkBank(db, nc)
	require.NoError(t, err)
	defer there.cache.Close(context.Background())
	require.NoError(t, here.cache.Ready(t.Context()))
	require.NoError(t, there.cache.Ready(t.Context()))
	got, err := there.balance(t.Context(), "alice")
	require.NoError(t, err)
	require.EqualValues(t, 1200, got)
	works(t, here)
	require.Eventually(t, func() bool {
		got, err := there.balance(t.Context(), "alice")
		return err == nil && got == 1250
	}, 10*time.Second, time.Millisecond)
	all, err := there.cache.LoadMany(t.Context(), []string{"alice", "nobody"})
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.EqualValues(t, 2, all["alice"].Version)
	require.ErrorIs(t, here.withdraw(t.Context(), "alice", 1), tidemark.ErrNoStore, "that takes a Store")
}
