package integration

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	"github.com/tidemark-go/tidemark/store/storetest"
)

const wal = "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)"

// fileDSN returns the DSN of a new database file.
func fileDSN(t *testing.T, settings string) string {
	return "file:" + filepath.ToSlash(filepath.Join(t.TempDir(), "tidemark.db")) + "?" + settings
}

// openSQLite opens a new database file with several connections.
func openSQLite(t *testing.T, settings string) database {
	t.Helper()
	db, err := sql.Open("sqlite", fileDSN(t, settings))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return database{sqlstore.SQLite, db, `"key"`, question}
}

func TestSQLStore_SQLite(t *testing.T) { testSQL(t, openSQLite(t, wal)) }

// TestSQLStore_SQLiteWithoutWaiting has no busy_timeout: what would have waited
// for the write lock fails at once, and the store's own retries have to do.
func TestSQLStore_SQLiteWithoutWaiting(t *testing.T) {
	d := openSQLite(t, "_pragma=busy_timeout(0)&_pragma=journal_mode(WAL)")
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		store, _ := newStore(t, d, sqlstore.Options[string, string]{})
		return store
	}, storetest.Options{})
}

func TestSQLStore_SQLiteCommitFaults(t *testing.T) {
	plain, err := sql.Open("sqlite", "")
	require.NoError(t, err)
	faulty := &faultyDriver{real: plain.Driver(), dsn: fileDSN(t, wal)}
	require.NoError(t, plain.Close())
	db := sql.OpenDB(faulty)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	testCommitFaults(t, database{sqlstore.SQLite, db, `"key"`, question}, faulty)
}

// TestSQLStore_SQLiteBusyAtCommit uses the rollback journal, in which a reader
// keeps COMMIT from happening. SQLite says so, and that is a definite answer.
func TestSQLStore_SQLiteBusyAtCommit(t *testing.T) {
	d := openSQLite(t, "_pragma=busy_timeout(1)&_pragma=journal_mode(DELETE)")
	store, table := newStore(t, d, sqlstore.Options[string, string]{})
	before, err := store.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)

	reader, err := d.db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	require.NoError(t, err)
	var n int
	require.NoError(t, reader.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
	op := newOp()
	_, err = store.CompareAndSet(t.Context(), "k", before, "after", op)
	require.ErrorIs(t, err, tidemark.ErrUnavailable)
	require.NoError(t, reader.Rollback())

	wantSettled(t, store, "k", op, false, "", "before")
	v, err := store.CompareAndSet(t.Context(), "k", before, "after", op)
	require.NoError(t, err)
	assert.Equal(t, before+1, v)
}
