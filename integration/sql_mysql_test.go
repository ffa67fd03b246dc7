//go:build mysql

package integration

import (
	"database/sql"
	"os"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	"github.com/tidemark-go/tidemark/store/storetest"
)

// mysqlConfig returns the settings of the server under test.
func mysqlConfig(t *testing.T) *mysql.Config {
	t.Helper()
	dsn := os.Getenv("TIDEMARK_MYSQL")
	require.NotEmpty(t, dsn, "set TIDEMARK_MYSQL, for example to user:password@tcp(127.0.0.1:3306)/db")
	c, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	c.Logger = &mysql.NopLogger{} // it reports connections that tests cut
	return c
}

// isolationVariable returns the name that the server has for it: MariaDB kept
// tx_isolation, MySQL 8 only has transaction_isolation.
func isolationVariable(t *testing.T) (name string) {
	t.Helper()
	row := openMySQL(t, mysqlConfig(t)).db.QueryRowContext(t.Context(),
		"SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')")
	require.NoError(t, row.Scan(&name, new(string)))
	return name
}

func openMySQL(t *testing.T, c *mysql.Config) database {
	t.Helper()
	connector, err := mysql.NewConnector(c)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(16)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return database{sqlstore.MySQL, db, "`key`", question}
}

func TestSQLStore_MySQL(t *testing.T) { testSQL(t, openMySQL(t, mysqlConfig(t))) }

func TestSQLStore_MySQLOutbox(t *testing.T) { testOutbox(t, openMySQL(t, mysqlConfig(t))) }

func TestSQLStore_MySQLWithOutbox(t *testing.T) { testStoreWithOutbox(t, openMySQL(t, mysqlConfig(t))) }

// TestSQLStore_MySQLOutboxStricterDefault has a default at which reads and deletions
// lock more.
func TestSQLStore_MySQLOutboxStricterDefault(t *testing.T) {
	c := mysqlConfig(t)
	c.Params = map[string]string{isolationVariable(t): "'SERIALIZABLE'"}
	testOutbox(t, openMySQL(t, c))
}

// TestSQLStore_MySQLOtherSettings has the settings that change what the driver
// sends and what it reports of an UPDATE, and a server that cuts what is too
// long instead of refusing it.
func TestSQLStore_MySQLOtherSettings(t *testing.T) {
	c := mysqlConfig(t)
	c.InterpolateParams, c.ClientFoundRows, c.ParseTime = true, true, true
	c.Params = map[string]string{"sql_mode": "''", isolationVariable(t): "'REPEATABLE-READ'"}
	testSQL(t, openMySQL(t, c))
}

// TestSQLStore_MySQLStricterDefault has a default in which plain reads inside a
// transaction take locks. The store's own level must replace it.
func TestSQLStore_MySQLStricterDefault(t *testing.T) {
	c := mysqlConfig(t)
	c.Params = map[string]string{isolationVariable(t): "'SERIALIZABLE'"}
	d := openMySQL(t, c)
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		store, _ := newStore(t, d, sqlstore.Options[string, string]{})
		return store
	}, storetest.Options{})
}

func TestSQLStore_MySQLCommitFaults(t *testing.T) {
	c := mysqlConfig(t)
	proxy := newCommitProxy(t, c.Addr, "\x03COMMIT")
	c.Addr, c.TLSConfig = proxy.address, "false"
	c.ReadTimeout = 3 * time.Second // the driver's only bound on COMMIT
	d := openMySQL(t, c)
	testCommitFaults(t, d, proxy)
	t.Run("AnswerStalled", func(t *testing.T) { testCommitStalled(t, d, proxy) })
}
