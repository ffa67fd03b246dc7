//go:build postgres

package integration

import (
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	"github.com/tidemark-go/tidemark/store/storetest"
)

// postgresConfig returns the settings of the server under test.
func postgresConfig(t *testing.T) *pgx.ConnConfig {
	t.Helper()
	dsn := os.Getenv("TIDEMARK_POSTGRES")
	require.NotEmpty(t, dsn, "set TIDEMARK_POSTGRES, for example to postgres://user@127.0.0.1:5432/db")
	c, err := pgx.ParseConfig(dsn)
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

func TestSQLStore_Postgres(t *testing.T) { testSQL(t, openPostgres(t, postgresConfig(t))) }

// TestSQLStore_PostgresSimpleProtocol is how pgx talks through some poolers:
// the client puts the parameters into the text.
func TestSQLStore_PostgresSimpleProtocol(t *testing.T) {
	c := postgresConfig(t)
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	testSQL(t, openPostgres(t, c))
}

// TestSQLStore_PostgresStricterDefault has a default that the store's own level
// must replace, or COMMIT itself could be refused.
func TestSQLStore_PostgresStricterDefault(t *testing.T) {
	c := postgresConfig(t)
	c.RuntimeParams["default_transaction_isolation"] = "serializable"
	d := openPostgres(t, c)
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		store, _ := newStore(t, d, sqlstore.Options[string, string]{})
		return store
	}, storetest.Options{})
}

func TestSQLStore_PostgresCommitFaults(t *testing.T) {
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
