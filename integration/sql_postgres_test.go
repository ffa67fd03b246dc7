package integration

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	"github.com/tidemark-go/tidemark/store/storetest"
)

// postgresConfig returns the settings of a new database on the server under test.
func postgresConfig(t *testing.T) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig(pgtest.Database(t, pgExec))
	require.NoError(t, err)
	return c
}

func openPostgres(t *testing.T, c *pgx.ConnConfig) database {
	t.Helper()
	db := stdlib.OpenDB(*c)
	db.SetMaxIdleConns(16)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return database{sqlstore.PostgreSQL, db, `"key"`, dollar}
}

func TestSQLStore_Postgres(t *testing.T) {
	t.Parallel()
	testSQL(t, openPostgres(t, postgresConfig(t)))
}

// TestSQLStore_PostgresSimpleProtocol is how pgx talks through some poolers:
// the client puts the parameters into the text.
func TestSQLStore_PostgresSimpleProtocol(t *testing.T) {
	t.Parallel()
	c := postgresConfig(t)
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	testSQL(t, openPostgres(t, c))
}

// TestSQLStore_PostgresStricterDefault has a default that the store's own level
// must replace, or COMMIT itself could be refused.
func TestSQLStore_PostgresStricterDefault(t *testing.T) {
	t.Parallel()
	c := postgresConfig(t)
	c.RuntimeParams["default_transaction_isolation"] = "serializable"
	d := openPostgres(t, c)
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		store, _ := newStore(t, d, sqlstore.Options[string, string]{})
		return store
	}, storetest.Options{})
}

// TestSQLStore_PostgresPruneCountsFromTheCommit holds up a write by a lock on its
// row: it is dated by when it was made, not by when its transaction began.
func TestSQLStore_PostgresPruneCountsFromTheCommit(t *testing.T) {
	t.Parallel()
	d := openPostgres(t, postgresConfig(t))
	store, table := newStore(t, d, sqlstore.Options[string, string]{})
	v, err := store.CompareAndSet(t.Context(), "k", 0, "a", newOp())
	require.NoError(t, err)
	tx, err := d.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT 1 FROM `+table+` WHERE "key" = 'k' FOR UPDATE`)
	require.NoError(t, err)
	op := newOp()
	written := make(chan error, 1)
	go func() {
		_, err := store.CompareAndSet(t.Context(), "k", v, "b", op)
		written <- err
	}()
	time.Sleep(2 * time.Second)
	var released, dated int64
	require.NoError(t, d.db.QueryRowContext(t.Context(), `SELECT CAST(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) AS BIGINT)`).Scan(&released))
	require.NoError(t, tx.Rollback())
	require.NoError(t, <-written)
	require.NoError(t, d.db.QueryRowContext(t.Context(), `SELECT committed_at FROM `+table+`_ops WHERE op = $1`, op[:]).Scan(&dated))
	assert.GreaterOrEqual(t, dated, released)
}

func TestSQLStore_PostgresCommitFaults(t *testing.T) {
	t.Parallel()
	c := postgresConfig(t)
	proxy := newCommitProxy(t, net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), "commit\x00")
	host, port, err := net.SplitHostPort(proxy.address)
	require.NoError(t, err)
	n, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	c.Host, c.Port, c.TLSConfig, c.Fallbacks = host, uint16(n), nil, nil
	d := openPostgres(t, c)
	testCommitFaults(t, d, proxy)
	t.Run("AnswerStalled", func(t *testing.T) { testCommitStalled(t, d, proxy) })
}
