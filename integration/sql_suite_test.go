package integration

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
	"github.com/tidemark-go/tidemark/store/storetest"
)

// A database is one that sqlstore is tested on.
type database struct {
	dialect sqlstore.Dialect
	db      *sql.DB

	// quoted is the name of the key column as hand-written SQL has it, and
	// parameter its placeholder number n.
	quoted    string
	parameter func(n int) string
}

func question(int) string { return "?" }
func dollar(n int) string { return fmt.Sprint("$", n) }

// newStore returns a store on a new table, which is dropped after the test.
func newStore[K comparable, V any](t *testing.T, d database, o sqlstore.Options[K, V]) (store *sqlstore.Store[K, V], table string) {
	t.Helper()
	o.Dialect, o.Table = d.dialect, "t_"+unique()
	store, err := sqlstore.New(d.db, o)
	require.NoError(t, err)
	require.NoError(t, store.CreateTables(t.Context()))
	t.Cleanup(func() {
		for _, name := range []string{o.Table, o.Table + "_ops"} {
			_, err := d.db.Exec("DROP TABLE " + name)
			assert.NoError(t, err)
		}
	})
	return store, o.Table
}

// testSQL is everything that holds on every database.
func testSQL(t *testing.T, d database) {
	t.Run("Conformance", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
			store, _ := newStore(t, d, sqlstore.Options[string, string]{})
			return store
		}, storetest.Options{})
	})
	for name, test := range map[string]func(*testing.T, database){
		"CreateTables_ManyAtOnce":             testCreateTablesAtOnce,
		"HandWrittenSQL_IsSeenAndOrdered":     testHandWrittenSQL,
		"HandWrittenSQL_BesideOtherWriters":   testHandWrittenBesideWriters,
		"HandWrittenSQL_CannotMakeNonsense":   testHandWrittenNonsense,
		"Prune_ForgetsOldWritesOnly":          testPrune,
		"Load_ReportsRowsItCannotRead":        testUnreadableRow,
		"Key_TooLongIsRefused":                testLongKey,
		"Values_OfEveryColumnTypeComeBack":    testValues,
		"Keys_OfEveryColumnTypeAreTold_Apart": testKeys,
		"NoTables_IsUnavailable":              testNoTables,
	} {
		t.Run(name, func(t *testing.T) { test(t, d) })
	}
}

func testCreateTablesAtOnce(t *testing.T, d database) {
	table := "t_" + unique()
	store, err := sqlstore.New(d.db, sqlstore.Options[string, string]{Dialect: d.dialect, Table: table})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { assert.NoError(t, store.CreateTables(t.Context())) })
	}
	wg.Wait()
	_, err = store.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	assert.NoError(t, err)
	for _, name := range []string{table, table + "_ops"} {
		_, err := d.db.Exec("DROP TABLE " + name)
		assert.NoError(t, err)
	}
}

// exec runs the SQL of sqlstore's package comment in the database's dialect.
func (d database) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	query = strings.ReplaceAll(query, `"key"`, d.quoted)
	for n := 1; strings.Contains(query, "?") && d.parameter(n) != "?"; n++ {
		query = strings.Replace(query, "?", d.parameter(n), 1)
	}
	_, err := d.db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err, query)
}

// insertOrReplace is the hand-written creation of the package comment.
func (d database) insertOrReplace(table string) string {
	insert := `INSERT INTO ` + table + ` ("key", value, version) VALUES (?, ?, 1) `
	if d.dialect == sqlstore.MySQL {
		return insert + `ON DUPLICATE KEY UPDATE value = VALUES(value), version = version + 1, deleted = FALSE`
	}
	return insert + `ON CONFLICT ("key") DO UPDATE SET value = excluded.value, version = ` + table + `.version + 1, deleted = FALSE`
}

func testHandWrittenSQL(t *testing.T, d database) {
	store, table := newStore(t, d, sqlstore.Options[string, string]{})
	load := func() (string, tidemark.Version, error) { return store.Load(t.Context(), "alice") }

	d.exec(t, d.insertOrReplace(table), "alice", "1")
	value, v1, err := load()
	require.NoError(t, err)
	assert.Equal(t, "1", value)

	op := newOp()
	v2, err := store.CompareAndSet(t.Context(), "alice", v1, "2", op)
	require.NoError(t, err)

	d.exec(t, `UPDATE `+table+` SET value = ?, version = version + 1 WHERE "key" = ? AND deleted = FALSE`, "3", "alice")
	value, v3, err := load()
	require.NoError(t, err)
	assert.Equal(t, "3", value)
	assert.Greater(t, v3, v2)

	_, err = store.CompareAndSet(t.Context(), "alice", v2, "4", newOp())
	var conflict *tidemark.ConflictError
	require.ErrorAs(t, err, &conflict, "a write based on what was there before the job")
	assert.Equal(t, v3, conflict.Current)
	found, committed, err := store.Outcome(t.Context(), "alice", op)
	require.NoError(t, err)
	assert.True(t, committed)
	assert.Equal(t, v2, found, "the write's own version, not the job's")

	d.exec(t, `UPDATE `+table+` SET value = NULL, version = version + 1, deleted = TRUE WHERE "key" = ? AND deleted = FALSE`, "alice")
	_, v4, err := load()
	require.ErrorIs(t, err, tidemark.ErrNotFound)
	assert.Greater(t, v4, v3)

	d.exec(t, d.insertOrReplace(table), "alice", "5")
	value, v5, err := load()
	require.NoError(t, err)
	assert.Equal(t, "5", value)
	assert.Greater(t, v5, v4)
}

// testHandWrittenBesideWriters runs a reconciliation job beside compare-and-set
// writers: every increment must count.
func testHandWrittenBesideWriters(t *testing.T, d database) {
	store, table := newStore(t, d, sqlstore.Options[string, int64]{})
	_, err := store.CompareAndSet(t.Context(), "counter", 0, 0, newOp())
	require.NoError(t, err)

	const writers, each = 4, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				assert.NoError(t, increment(t, store, "counter"))
			}
		})
	}
	wg.Go(func() {
		for range each {
			_, err := d.db.ExecContext(t.Context(), `UPDATE `+table+` SET value = value + 1, version = version + 1`)
			assert.NoError(t, err)
		}
	})
	wg.Wait()

	sum, v, err := store.Load(t.Context(), "counter")
	require.NoError(t, err)
	assert.EqualValues(t, (writers+1)*each, sum)
	assert.EqualValues(t, (writers+1)*each+1, v, "one version for each change")
}

// increment adds one to the counter at key, however often it takes.
func increment(t *testing.T, store *sqlstore.Store[string, int64], key string) error {
	for {
		n, base, err := store.Load(t.Context(), key)
		if err != nil {
			return err
		}
		_, err = store.CompareAndSet(t.Context(), key, base, n+1, newOp())
		var conflict *tidemark.ConflictError
		if !errors.As(err, &conflict) && !errors.Is(err, tidemark.ErrUnavailable) {
			return err
		}
	}
}

// testHandWrittenNonsense shows that the schema refuses what no reader could
// make sense of.
func testHandWrittenNonsense(t *testing.T, d database) {
	store, table := newStore(t, d, sqlstore.Options[string, string]{})
	_, err := store.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.NoError(t, err)
	for _, nonsense := range []string{
		"SET value = NULL", "SET version = 0", "SET version = -1", "SET version = NULL",
	} {
		_, err := d.db.ExecContext(t.Context(), "UPDATE "+table+" "+nonsense)
		assert.Error(t, err, nonsense)
	}
	value, _, err := store.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, "v", value)
}

func testPrune(t *testing.T, d database) {
	store, table := newStore(t, d, sqlstore.Options[string, string]{})
	old, recent := newOp(), newOp()
	v, err := store.CompareAndSet(t.Context(), "k", 0, "first", old)
	require.NoError(t, err)
	const lines = 4500 // more than two batches
	d.fillJournal(t, table, lines)
	_, err = d.db.ExecContext(t.Context(), "UPDATE "+table+"_ops SET committed_at = committed_at - 7200")
	require.NoError(t, err)
	v, err = store.CompareAndSet(t.Context(), "k", v, "second", recent)
	require.NoError(t, err)

	n, err := store.Prune(t.Context(), 3*time.Hour)
	require.NoError(t, err)
	assert.Zero(t, n, "nothing is that old")
	_, committed, err := store.Outcome(t.Context(), "k", old)
	require.NoError(t, err)
	assert.True(t, committed)

	n, err = store.Prune(t.Context(), time.Hour)
	require.NoError(t, err)
	assert.EqualValues(t, lines+1, n)
	_, committed, err = store.Outcome(t.Context(), "k", old)
	require.NoError(t, err)
	assert.False(t, committed)
	found, committed, err := store.Outcome(t.Context(), "k", recent)
	require.NoError(t, err)
	assert.True(t, committed)
	assert.Equal(t, v, found)

	_, err = store.Prune(t.Context(), 59*time.Second)
	assert.Error(t, err, "a write in doubt could be forgotten")
}

// fillJournal adds n lines to the journal of table by copying the first one.
func (d database) fillJournal(t *testing.T, table string, n int) {
	t.Helper()
	tx, err := d.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer tx.Rollback() // after Commit it does nothing
	insert := fmt.Sprintf(`INSERT INTO %s_ops (op, %s, version, committed_at) VALUES (%s, 'other', 1, (SELECT committed_at FROM (SELECT MAX(committed_at) AS committed_at FROM %s_ops) m))`,
		table, d.quoted, d.parameter(1), table)
	for range n {
		op := newOp()
		_, err := tx.ExecContext(t.Context(), insert, op[:])
		require.NoError(t, err)
	}
	require.NoError(t, tx.Commit())
}

func testUnreadableRow(t *testing.T, d database) {
	type point struct{ X, Y int }
	store, table := newStore(t, d, sqlstore.Options[string, point]{})
	_, err := store.CompareAndSet(t.Context(), "good", 0, point{1, 2}, newOp())
	require.NoError(t, err)
	d.exec(t, d.insertOrReplace(table), "bad", "{")

	_, _, err = store.Load(t.Context(), "bad")
	require.Error(t, err)
	assert.NotErrorIs(t, err, tidemark.ErrNotFound)
	found, err := store.LoadMany(t.Context(), []string{"good", "bad"})
	require.NoError(t, err)
	assert.Equal(t, tidemark.Loaded[point]{Value: point{1, 2}, Version: 1}, found["good"])
	assert.Error(t, found["bad"].Err)
}

func testLongKey(t *testing.T, d database) {
	store, _ := newStore(t, d, sqlstore.Options[string, string]{})
	longest := strings.Repeat("k", 1024)
	v, err := store.CompareAndSet(t.Context(), longest, 0, "v", newOp())
	require.NoError(t, err)
	value, got, err := store.Load(t.Context(), longest)
	require.NoError(t, err)
	assert.Equal(t, "v", value)
	assert.Equal(t, v, got)

	tooLong := longest + "k"
	_, err = store.CompareAndSet(t.Context(), tooLong, 0, "v", newOp())
	assert.ErrorIs(t, err, tidemark.ErrUnavailable, "certainly not committed")
	_, err = store.CompareAndDelete(t.Context(), tooLong, 1, newOp())
	assert.ErrorIs(t, err, tidemark.ErrUnavailable, "certainly not committed")
	_, _, err = store.Load(t.Context(), tooLong)
	assert.Error(t, err)
	_, _, err = store.Outcome(t.Context(), tooLong, newOp())
	assert.Error(t, err)
	found, err := store.LoadMany(t.Context(), []string{longest, tooLong})
	require.NoError(t, err)
	assert.Equal(t, "v", found[longest].Value)
	assert.Error(t, found[tooLong].Err)
}

// roundTrip writes each value and reads it back, alone and in bulk.
func roundTrip[V any](t *testing.T, d database, o sqlstore.Options[string, V], values ...V) {
	t.Helper()
	store, _ := newStore(t, d, o)
	var v tidemark.Version
	for _, want := range values {
		next, err := store.CompareAndSet(t.Context(), "k", v, want, newOp())
		require.NoError(t, err)
		v = next
		got, _, err := store.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, want, got)
		found, err := store.LoadMany(t.Context(), []string{"k"})
		require.NoError(t, err)
		assert.Equal(t, tidemark.Loaded[V]{Value: want, Version: v}, found["k"])
	}
}

func testValues(t *testing.T, d database) {
	type cents int64
	type name string
	type account struct {
		Owner   string
		Balance cents
		Tags    []string
	}
	roundTrip(t, d, sqlstore.Options[string, []byte]{}, []byte{0, 1, 255}, []byte{}, []byte("text"), []byte("it's \\ and \x80"))
	roundTrip(t, d, sqlstore.Options[string, int64]{}, 0, -1, 1<<63-1, -1<<63)
	roundTrip(t, d, sqlstore.Options[string, int8]{}, 127, -128)
	roundTrip(t, d, sqlstore.Options[string, uint64]{}, 0, 1<<63-1)
	roundTrip(t, d, sqlstore.Options[string, cents]{}, 0, 1200)
	roundTrip(t, d, sqlstore.Options[string, name]{}, "", "alice")
	roundTrip(t, d, sqlstore.Options[string, time.Duration]{}, time.Hour)
	roundTrip(t, d, sqlstore.Options[string, float64]{}, 0.1, -3)
	roundTrip(t, d, sqlstore.Options[string, bool]{}, true, false)
	roundTrip(t, d, sqlstore.Options[string, account]{}, account{"alice", 1200, []string{"it's", "日本"}}, account{})
	roundTrip(t, d, sqlstore.Options[string, *account]{}, &account{"alice", 850, nil}, nil)
	roundTrip(t, d, sqlstore.Options[string, string]{Value: sqlstore.ValueCodec[string]{
		Encode: func(s string) ([]byte, error) { return []byte(s), nil },
		Decode: func(b []byte) (string, error) { return string(b), nil },
		Binary: true,
	}}, "", "with \x00 and \xff", "text")

	store, _ := newStore(t, d, sqlstore.Options[string, uint64]{})
	_, err := store.CompareAndSet(t.Context(), "k", 0, 1<<63, newOp())
	assert.ErrorIs(t, err, tidemark.ErrUnavailable, "does not fit and is certainly not committed")
}

// tellApart writes each key and reads all of them back, alone and in bulk.
func tellApart[K comparable](t *testing.T, d database, o sqlstore.Options[K, int], keys ...K) {
	t.Helper()
	store, _ := newStore(t, d, o)
	for i, k := range keys {
		_, err := store.CompareAndSet(t.Context(), k, 0, i, newOp())
		require.NoError(t, err)
	}
	found, err := store.LoadMany(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, found, len(keys))
	for i, k := range keys {
		got, v, err := store.Load(t.Context(), k)
		require.NoError(t, err)
		assert.Equal(t, i, got)
		assert.Equal(t, tidemark.Loaded[int]{Value: i, Version: v}, found[k])
		_, err = store.CompareAndDelete(t.Context(), k, v, newOp())
		require.NoError(t, err)
	}
}

func testKeys(t *testing.T, d database) {
	type id int32
	type uuid [16]byte
	type compound struct{ Tenant, Name string }
	tellApart(t, d, sqlstore.Options[string, int]{}, "", "a", "A", "a ", " a", "á")
	tellApart(t, d, sqlstore.Options[int64, int]{}, 0, 1, -1, 1<<63-1, -1<<63)
	tellApart(t, d, sqlstore.Options[id, int]{}, 0, 7, -7)
	tellApart(t, d, sqlstore.Options[uint16, int]{}, 0, 65535)
	tellApart(t, d, sqlstore.Options[uuid, int]{Key: sqlstore.KeyCodec[uuid]{
		Encode: func(u uuid) ([]byte, error) { return u[:], nil },
		Binary: true,
	}}, uuid{}, uuid{1}, uuid{0, 1}, uuid{0xff, 0x80, '\'', '\\'})
	tellApart(t, d, sqlstore.Options[compound, int]{Key: sqlstore.KeyCodec[compound]{
		Encode: func(c compound) ([]byte, error) { return fmt.Appendf(nil, "%q/%q", c.Tenant, c.Name), nil },
	}}, compound{"a", "b"}, compound{"ab", ""}, compound{"", "ab"})
}

func testNoTables(t *testing.T, d database) {
	store, err := sqlstore.New(d.db, sqlstore.Options[string, string]{Dialect: d.dialect, Table: "t_" + unique()})
	require.NoError(t, err)
	_, err = store.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	assert.ErrorIs(t, err, tidemark.ErrUnavailable)
	_, _, err = store.Load(t.Context(), "k")
	require.Error(t, err)
	assert.NotErrorIs(t, err, tidemark.ErrNotFound)
	_, _, err = store.Outcome(t.Context(), "k", newOp())
	assert.Error(t, err)
}
