package integration

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestSQLStore_SQLite(t *testing.T) {
	t.Parallel()
	testSQL(t, openSQLite(t, wal))
}

// TestSQLStore_SQLiteWithoutWaiting has no busy_timeout: what would have waited
// for the write lock fails at once, and the store's own retries have to do.
func TestSQLStore_SQLiteWithoutWaiting(t *testing.T) {
	t.Parallel()
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

func TestSQLStore_SQLiteOutboxWAL(t *testing.T) {
	t.Parallel()
	testOutbox(t, openSQLite(t, wal))
}

func TestSQLStore_SQLiteWithOutbox(t *testing.T) {
	t.Parallel()
	testStoreWithOutbox(t, openSQLite(t, wal))
}

// TestSQLStore_SQLiteOutboxRollbackJournal has a database in which readers and
// writers wait for each other.
func TestSQLStore_SQLiteOutboxRollbackJournal(t *testing.T) {
	t.Parallel()
	d := openSQLite(t, "_pragma=busy_timeout(10000)&_pragma=journal_mode(DELETE)")
	t.Run("KilledRelaysMissNothing", func(t *testing.T) { testOutboxKilled(t, d) })
	t.Run("ATransactionIsToldWhenItIsThere", func(t *testing.T) { testOutboxTransaction(t, d) })
	t.Run("TwoRelaysAtOnce", func(t *testing.T) { testOutboxTwo(t, d) })
}

// TestSQLStore_SQLiteOutboxInASchema has a table in a database that is attached.
func TestSQLStore_SQLiteOutboxInASchema(t *testing.T) {
	d := openSQLite(t, wal)
	d.db.SetMaxOpenConns(1) // to which it is attached
	_, err := d.db.Exec("ATTACH ? AS billing", filepath.Join(t.TempDir(), "billing.db"))
	require.NoError(t, err)
	store, err := sqlstore.New(d.db, sqlstore.Options[string, string]{Dialect: sqlstore.SQLite, Table: "billing.accounts"})
	require.NoError(t, err)
	require.NoError(t, store.CreateTables(t.Context()))
	require.NoError(t, store.CreateOutbox(t.Context()))
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	v, err := store.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.NoError(t, err)
	within(t, func() bool { told, _ := sink.of("k"); return told == v }, "not told")
	emptied(t, store)
}

// otherProcess is the environment of the process that TestSQLStore_SQLiteOtherProcess
// starts: the file, and the table.
const otherProcess = "TIDEMARK_TEST_SQLITE"

// TestSQLStore_SQLiteOtherProcess changes rows in another process, which knows
// nothing of caches and has only the driver, and is killed in the middle.
func TestSQLStore_SQLiteOtherProcess(t *testing.T) {
	if dsn, table, ok := strings.Cut(os.Getenv(otherProcess), "\x1f"); ok {
		writeUntilKilled(t, dsn, table)
		return
	}
	dsn := fileDSN(t, wal)
	db, err := sql.Open("sqlite", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	d := database{sqlstore.SQLite, db, `"key"`, question}
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: store})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
	relaying(t, store, cache, sqlstore.RelayOptions{})
	for i := range 10 {
		_, err := cache.Update(t.Context(), fmt.Sprint("k", i), func(tidemark.Entry[int]) (int, error) { return 0, nil })
		require.NoError(t, err)
	}
	for range 3 {
		other := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		other.Env = append(os.Environ(), otherProcess+"="+dsn+"\x1f"+table)
		require.NoError(t, other.Start())
		before, err := cache.Load(t.Context(), "k0")
		require.NoError(t, err)
		within(t, func() bool {
			e, err := cache.Load(t.Context(), "k0")
			return err == nil && e.Value > before.Value+20
		}, "the other process is not heard")
		require.NoError(t, other.Process.Kill())
		_ = other.Wait() // it was killed
		emptied(t, store)
		for i := range 10 {
			key := fmt.Sprint("k", i)
			want, v, err := store.Load(t.Context(), key)
			require.NoError(t, err)
			e, err := cache.Load(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, want, e.Value, "%q, of version %d, in a cache at rest", key, v)
		}
	}
}

// writeUntilKilled is the other process.
func writeUntilKilled(t *testing.T, dsn, table string) {
	db, err := sql.Open("sqlite", dsn)
	require.NoError(t, err)
	defer db.Close()
	for began := time.Now(); time.Since(began) < time.Minute; {
		_, err := db.Exec("UPDATE " + table + " SET value = value + 1, version = version + 1")
		require.NoError(t, err)
	}
}
