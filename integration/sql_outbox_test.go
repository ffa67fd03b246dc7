package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// A recorder is a sink that notes what it is told.
type recorder struct {
	mu      sync.Mutex // guards everything below
	version map[string]tidemark.Version
	unknown map[string]int // times that a key was told without a version
	alls    int
	calls   int
	fail    func(call int) error
}

func newRecorder() *recorder {
	return &recorder{version: map[string]tidemark.Version{}, unknown: map[string]int{}}
}

func (r *recorder) Invalidate(_ context.Context, key string, v tidemark.Version) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.fail != nil {
		if err := r.fail(r.calls); err != nil {
			return err
		}
	}
	r.version[key] = max(r.version[key], v)
	if v == 0 {
		r.unknown[key]++
	}
	return nil
}

func (r *recorder) InvalidateAll(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alls++
	return nil
}

// of returns what was told of a key.
func (r *recorder) of(key string) (v tidemark.Version, unknown int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version[key], r.unknown[key]
}

func (r *recorder) everything() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.alls
}

// knows reports whether the sink has been told enough to drop a state below v.
func (r *recorder) knows(key string, v tidemark.Version) bool {
	told, unknown := r.of(key)
	return told >= v || unknown > 0 || r.everything() > 0
}

// newOutbox returns a store with an outbox, both of which are dropped after the
// test.
func newOutbox[K comparable, V any](t *testing.T, d database, o sqlstore.Options[K, V]) (store *sqlstore.Store[K, V], table string) {
	t.Helper()
	store, table = newStore(t, d, o)
	require.NoError(t, store.CreateOutbox(t.Context()))
	require.NoError(t, store.CreateOutbox(t.Context()), "a second time")
	t.Cleanup(func() {
		_, err := d.db.Exec("DROP TABLE " + table + "_outbox")
		assert.NoError(t, err)
	})
	return store, table
}

// relaying lets a relay work until the test ends, or stop is called.
func relaying[K comparable, V any](t *testing.T, store *sqlstore.Store[K, V], sink sqlstore.Sink[K], o sqlstore.RelayOptions) (stop func()) {
	t.Helper()
	if o.Poll == 0 {
		o.Poll = 2 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { assert.ErrorIs(t, store.Relay(ctx, sink, o), context.Canceled) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// emptied waits until nothing waits in the outbox.
func emptied[K comparable, V any](t *testing.T, store *sqlstore.Store[K, V]) {
	t.Helper()
	within(t, func() bool {
		state, err := store.Outbox(t.Context())
		return err == nil && state.Waiting == 0
	}, "the outbox is not emptied")
}

// testOutbox is everything that holds of an outbox on every database that has one.
func testOutbox(t *testing.T, d database) {
	for name, test := range map[string]func(*testing.T, database){
		"EveryWriterIsHeard":               testOutboxHears,
		"ACacheHearsSQL":                   testOutboxCache,
		"KilledRelaysMissNothing":          testOutboxKilled,
		"ManyChangesAreOne":                testOutboxCollapse,
		"TrimmedIsToldAsEverything":        testOutboxTrim,
		"AFailingSinkEndsIt":               testOutboxSink,
		"KeysOfEveryKind":                  testOutboxKeys,
		"TheDatabaseComesBack":             testOutboxDatabaseFails,
		"WithAPublisher":                   testOutboxPublisher,
		"RolledBackIsNotTold":              testOutboxRollback,
		"ATransactionIsToldWhenItIsThere":  testOutboxTransaction,
		"IdsAreNotGivenAgain":              testOutboxIDs,
		"TwoRelaysAtOnce":                  testOutboxTwo,
		"NothingIsPublishedBeforeItIsSeen": testOutboxVisible,
		"TriggersThatAreGoneAreNoticed":    testOutboxTriggers,
	} {
		t.Run(name, func(t *testing.T) { test(t, d) })
	}
}

// testStoreWithOutbox is the conformance suite of a store whose writes fire triggers.
func testStoreWithOutbox(t *testing.T, d database) {
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		store, _ := newOutbox(t, d, sqlstore.Options[string, string]{})
		return store
	}, storetest.Options{})
}

// testOutboxHears changes rows in every way that SQL has, and by the store.
func testOutboxHears(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, string]{})
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	seen := func(what, key string, v tidemark.Version) {
		t.Helper()
		within(t, func() bool { told, _ := sink.of(key); return told == v }, "%s: %q is not told at %d", what, key, v)
	}
	unknown := 0
	changed := func(what, key string) {
		t.Helper()
		within(t, func() bool { _, n := sink.of(key); return n > unknown }, "%s: %q is not told without a version", what, key)
		emptied(t, store)
		_, unknown = sink.of(key)
	}
	v, err := store.CompareAndSet(t.Context(), "a", 0, "1", newOp())
	require.NoError(t, err)
	seen("created by the store", "a", v)
	emptied(t, store)
	_, n := sink.of("a")
	assert.Zero(t, n, "a creation by the store is told with its version only")
	v, err = store.CompareAndSet(t.Context(), "a", v, "2", newOp())
	require.NoError(t, err)
	seen("updated by the store", "a", v)
	d.exec(t, `UPDATE `+table+` SET value = '3', version = version + 1 WHERE "key" = 'a'`)
	seen("UPDATE that raises the version", "a", v+1)
	d.exec(t, `UPDATE `+table+` SET value = NULL, version = version + 1, deleted = TRUE WHERE "key" = 'a'`)
	seen("deletion that keeps the row", "a", v+2)
	d.exec(t, d.insertOrReplace(table), "a", "4")
	seen("brought back", "a", v+3)
	emptied(t, store)
	_, n = sink.of("a")
	assert.Zero(t, n)

	d.exec(t, `UPDATE `+table+` SET value = '5' WHERE "key" = 'a'`)
	changed("UPDATE that forgets the version", "a")
	d.exec(t, `UPDATE `+table+` SET value = '6', version = 1 WHERE "key" = 'a'`)
	changed("UPDATE that lowers the version", "a")
	d.exec(t, `REPLACE INTO `+table+` ("key", value, version) VALUES ('a', '7', 1)`)
	changed("REPLACE", "a")
	d.exec(t, `DELETE FROM `+table+` WHERE "key" = 'a'`)
	changed("DELETE", "a")
	d.exec(t, `INSERT INTO `+table+` ("key", value) VALUES ('a', '8')`)
	changed("INSERT", "a")
	d.exec(t, `UPDATE `+table+` SET "key" = 'b', version = version + 1 WHERE "key" = 'a'`)
	changed("a new name", "a")
	_, n = sink.of("b")
	assert.Equal(t, 1, n, "a new name")
	d.exec(t, `DELETE FROM `+table)
	within(t, func() bool { _, n := sink.of("b"); return n == 2 }, "DELETE of everything")

	d.exec(t, d.insertOrReplace(table), "c", "1")
	emptied(t, store)
	_, before := sink.of("c")
	d.exec(t, `UPDATE `+table+` SET value = value, version = version`)
	state, err := store.Outbox(t.Context())
	require.NoError(t, err)
	assert.Zero(t, state.Waiting, "nothing has changed")
	_, n = sink.of("c")
	assert.Equal(t, before, n)
}

// testOutboxCache is the job that the caches slept through.
func testOutboxCache(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: store})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
	relaying(t, store, cache, sqlstore.RelayOptions{})
	for i := range 20 {
		_, err := cache.Update(t.Context(), fmt.Sprint("k", i), func(tidemark.Entry[int]) (int, error) { return i, nil })
		require.NoError(t, err)
	}
	emptied(t, store)
	got, ok := cache.Get("k7")
	require.True(t, ok, "the own writes come back, and are not taken for others")
	assert.Equal(t, 7, got)
	d.exec(t, `UPDATE `+table+` SET value = value + 1000, version = version + 1`)
	for i := range 20 {
		within(t, func() bool {
			e, err := cache.Load(t.Context(), fmt.Sprint("k", i))
			return err == nil && e.Value == 1000+i
		}, "k%d is old", i)
	}
}

// testOutboxKilled ends relays at random moments, and breaks their sinks, while
// rows are changed. What was changed is told by those who come after.
func testOutboxKilled(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	sink := newRecorder()
	broken := errors.New("broken")
	sink.fail = func(call int) error {
		if call%37 == 0 {
			return broken
		}
		return nil
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(over); wg.Wait() })
	defer end()
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				key := fmt.Sprint("k", (i*3+w)%40)
				_, v, err := store.Load(t.Context(), key)
				if err != nil && !errors.Is(err, tidemark.ErrNotFound) {
					continue
				}
				_, err = store.CompareAndSet(t.Context(), key, v, i, newOp())
				if i%5 == 0 {
					_, err = d.db.ExecContext(t.Context(), `UPDATE `+table+` SET version = version + 1, value = value + 1 WHERE value % 7 = 0`)
				}
				_ = err // a conflict, or a database that is busy: it counts what is there at the end
			}
		})
	}
	for range 25 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5+rand.IntN(30))*time.Millisecond)
		err := store.Relay(ctx, sink, sqlstore.RelayOptions{Poll: time.Millisecond, Batch: 16})
		cancel()
		require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, broken), "%v", err)
	}
	end()
	sink.mu.Lock()
	sink.fail = nil
	sink.mu.Unlock()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	emptied(t, store)
	there := 0
	for i := range 40 {
		key := fmt.Sprint("k", i)
		_, v, err := store.Load(t.Context(), key)
		if errors.Is(err, tidemark.ErrNotFound) {
			continue // nobody has come as far as that
		}
		require.NoError(t, err)
		told, unknown := sink.of(key)
		require.True(t, told == v || unknown > 0, "%q is at version %d, and was told at %d", key, v, told)
		there++
	}
	require.NotZero(t, there)
	require.Zero(t, sink.everything())
}

// testOutboxCollapse changes more rows at once than are told one by one.
func testOutboxCollapse(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	for from := 0; from < 3000; from += 500 {
		rows := make([]string, 500)
		for i := range rows {
			rows[i] = fmt.Sprintf("('k%d', 0)", from+i)
		}
		d.exec(t, `INSERT INTO `+table+` ("key", value) VALUES `+strings.Join(rows, ","))
	}
	sink := newRecorder()
	state, err := store.Outbox(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 3000, state.Waiting)
	time.Sleep(20 * time.Millisecond)
	state, err = store.Outbox(t.Context())
	require.NoError(t, err)
	assert.Greater(t, state.Lag, 10*time.Millisecond)
	assert.Less(t, state.Lag, time.Minute)
	stop := relaying(t, store, sink, sqlstore.RelayOptions{Batch: 100, Collapse: 2000})
	emptied(t, store)
	assert.Equal(t, 1, sink.everything())
	stop()

	d.exec(t, `UPDATE `+table+` SET value = value + 1, version = version + 1`)
	each := newRecorder()
	relaying(t, store, each, sqlstore.RelayOptions{Batch: 1000, Collapse: -1})
	emptied(t, store)
	assert.Zero(t, each.everything())
	for i := range 3000 {
		v, _ := each.of(fmt.Sprint("k", i))
		require.EqualValues(t, 2, v)
	}
	state, err = store.Outbox(t.Context())
	require.NoError(t, err)
	assert.Zero(t, state.Lag)
}

// testOutboxTrim bounds what waits for a relay that is not there.
func testOutboxTrim(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	for i := range 60 {
		d.exec(t, d.insertOrReplace(table), fmt.Sprint("k", i), i)
	}
	n, err := store.TrimOutbox(t.Context(), 60)
	require.NoError(t, err)
	assert.Zero(t, n, "not more than that")
	n, err = store.TrimOutbox(t.Context(), 59)
	require.NoError(t, err)
	assert.EqualValues(t, 60, n)
	state, err := store.Outbox(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 1, state.Waiting)
	d.exec(t, `UPDATE `+table+` SET value = 0, version = version + 1 WHERE "key" = 'k5'`)
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{Batch: 1})
	emptied(t, store)
	assert.Equal(t, 1, sink.everything())
	v, _ := sink.of("k5")
	assert.EqualValues(t, 2, v)
	_, err = store.TrimOutbox(t.Context(), 0)
	require.Error(t, err)
}

func testOutboxSink(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: store})
	require.NoError(t, err)
	require.NoError(t, cache.Close(t.Context()))
	d.exec(t, d.insertOrReplace(table), "k", 1)
	require.ErrorIs(t, store.Relay(t.Context(), cache, sqlstore.RelayOptions{}), tidemark.ErrClosed)
	state, err := store.Outbox(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 1, state.Waiting, "what was not taken stays")
}

type account4 [4]byte

// testOutboxKeys has keys that are integers, and some that only a codec can read.
func testOutboxKeys(t *testing.T, d database) {
	numbers, table := newOutbox(t, d, sqlstore.Options[int32, string]{})
	d.exec(t, `INSERT INTO `+table+` ("key", value) VALUES (-7, 'x'), (2147483647, 'y')`)
	heard := make(chan int32, 10)
	relaying(t, numbers, sinkOf(func(key int32, _ tidemark.Version) { heard <- key }), sqlstore.RelayOptions{})
	assert.ElementsMatch(t, []int32{-7, 2147483647}, []int32{<-heard, <-heard})
	emptied(t, numbers)

	bytes, table := newOutbox(t, d, sqlstore.Options[account4, string]{Key: sqlstore.KeyCodec[account4]{
		Encode: func(a account4) ([]byte, error) { return a[:], nil },
		Decode: func(b []byte) (a account4, err error) {
			if copy(a[:], b) != 4 || len(b) != 4 {
				err = errors.New("no account")
			}
			return a, err
		},
		Binary: true,
	}})
	all := make(chan struct{}, 1)
	accounts := make(chan account4, 10)
	s := sinkOf(func(key account4, _ tidemark.Version) { accounts <- key })
	s.all = func() { all <- struct{}{} }
	_, err := bytes.CompareAndSet(t.Context(), account4{0, 255, '\'', 0}, 0, "v", newOp())
	require.NoError(t, err)
	relaying(t, bytes, s, sqlstore.RelayOptions{})
	assert.Equal(t, account4{0, 255, '\'', 0}, <-accounts)
	emptied(t, bytes)
	d.exec(t, `INSERT INTO `+table+` ("key", value) VALUES ('toolong', 'x')`)
	<-all // nobody can say whose key that is

	mute, _ := newOutbox(t, d, sqlstore.Options[account4, string]{Key: sqlstore.KeyCodec[account4]{
		Encode: func(a account4) ([]byte, error) { return a[:], nil }, Binary: true,
	}})
	var mistake *tidemark.OptionError
	require.ErrorAs(t, mute.Relay(t.Context(), s, sqlstore.RelayOptions{}), &mistake)
	assert.Equal(t, "Key", mistake.Field)
}

// A funcSink calls functions.
type funcSink[K comparable] struct {
	key func(K, tidemark.Version)
	all func()
}

func sinkOf[K comparable](f func(K, tidemark.Version)) *funcSink[K] {
	return &funcSink[K]{key: f, all: func() {}}
}

func (s *funcSink[K]) Invalidate(_ context.Context, key K, v tidemark.Version) error {
	s.key(key, v)
	return nil
}

func (s *funcSink[K]) InvalidateAll(context.Context) error {
	s.all()
	return nil
}

// testOutboxDatabaseFails takes the outbox away under a relay, and brings it back.
func testOutboxDatabaseFails(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	d.exec(t, `ALTER TABLE `+table+`_outbox RENAME TO `+table+`_away`)
	time.Sleep(30 * time.Millisecond)
	d.exec(t, `ALTER TABLE `+table+`_away RENAME TO `+table+`_outbox`)
	d.exec(t, d.insertOrReplace(table), "k", 1)
	within(t, func() bool { v, unknown := sink.of("k"); return v == 1 || unknown > 0 }, "the relay has given up")
}

// testOutboxTriggers takes triggers away: one, all with the table, and all for a moment.
func testOutboxTriggers(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	d.exec(t, d.insertOrReplace(table), "k", 1)
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	emptied(t, store)
	unheard := func() string {
		state, err := store.Outbox(t.Context())
		require.NoError(t, err)
		return state.Unheard
	}
	told := func(more int, what string) {
		t.Helper()
		before := sink.everything()
		within(t, func() bool { return sink.everything() >= before+more }, "%s", what)
	}
	heard := func(what string) {
		t.Helper()
		require.Empty(t, unheard(), what)
		time.Sleep(2200 * time.Millisecond) // two looks
		before := sink.everything()
		d.exec(t, `UPDATE `+table+` SET value = value + 1, version = version + 1 WHERE "key" = 'k'`)
		_, v, err := store.Load(t.Context(), "k")
		require.NoError(t, err)
		within(t, func() bool { told, _ := sink.of("k"); return told == v }, "%s", what)
		assert.Equal(t, before, sink.everything(), "%s: told more than once", what)
	}
	require.Empty(t, unheard())
	assert.Zero(t, sink.everything())

	d.exec(t, `DROP TRIGGER `+table+`_outbox_update`)
	assert.Contains(t, unheard(), table+"_outbox_update")
	assert.NotContains(t, unheard(), "_insert")
	told(2, "a missing trigger")
	require.NoError(t, store.CreateOutbox(t.Context()))
	heard("the trigger is back")

	// The way to change a column of SQLite; MySQL's tools do the same.
	d.exec(t, `CREATE TABLE `+table+`_new AS SELECT * FROM `+table)
	d.exec(t, `DROP TABLE `+table)
	d.exec(t, `ALTER TABLE `+table+`_new RENAME TO `+table)
	for _, kind := range []string{"insert", "update", "delete"} {
		assert.Contains(t, unheard(), table+"_outbox_"+kind)
	}
	told(2, "a table without triggers")
	require.NoError(t, store.CreateOutbox(t.Context()))
	heard("the table has triggers again")

	d.exec(t, `ALTER TABLE `+table+` RENAME TO `+table+`_old`)
	assert.Contains(t, unheard(), table+"_outbox_update", "those of another table are not its own")
	d.exec(t, `ALTER TABLE `+table+`_old RENAME TO `+table)
	heard("the table is back")

	before := sink.everything()
	for _, kind := range []string{"insert", "update", "delete"} {
		d.exec(t, `DROP TRIGGER `+table+`_outbox_`+kind)
	}
	require.NoError(t, store.CreateOutbox(t.Context()))
	within(t, func() bool { return sink.everything() > before }, "they were away between two looks")
}

// testOutboxPublisher tells caches over NATS.
func testOutboxPublisher(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	nc := dial(t, natsServer(t, nil).ClientURL())
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: store, Invalidator: core(nc)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
	require.NoError(t, cache.Ready(soon(t)))
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(nc)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close(context.Background())) })
	stop := relaying(t, store, p, sqlstore.RelayOptions{})
	defer stop()
	for i := range 50 {
		d.exec(t, d.insertOrReplace(table), fmt.Sprint("k", i), 1)
	}
	emptied(t, store)
	for i := range 50 {
		e, err := cache.Load(t.Context(), fmt.Sprint("k", i))
		require.NoError(t, err)
		require.Equal(t, 1, e.Value)
	}
	d.exec(t, `UPDATE `+table+` SET value = 2, version = version + 1`)
	for i := range 50 {
		within(t, func() bool {
			e, err := cache.Load(t.Context(), fmt.Sprint("k", i))
			return err == nil && e.Value == 2
		}, "k%d is old", i)
	}
}

func testOutboxRollback(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	sink := newRecorder()
	tx, err := d.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), strings.ReplaceAll(`INSERT INTO `+table+` ("key", value) VALUES ('k', 1)`, `"key"`, d.quoted))
	require.NoError(t, err)
	relaying(t, store, sink, sqlstore.RelayOptions{})
	time.Sleep(30 * time.Millisecond)
	require.NoError(t, tx.Rollback())
	emptied(t, store)
	assert.False(t, sink.knows("k", 1))
}

// testOutboxTransaction holds a transaction open: what it has changed is told when
// it is committed. That of others is not held up, where the database lets others
// write.
func testOutboxTransaction(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	sink := newRecorder()
	relaying(t, store, sink, sqlstore.RelayOptions{})
	insert := strings.ReplaceAll(`INSERT INTO `+table+` ("key", value) VALUES (?, 1)`, `"key"`, d.quoted)
	for round := range 5 {
		early, late := fmt.Sprint("early ", round), fmt.Sprint("late ", round)
		tx, err := d.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), insert, early)
		require.NoError(t, err)
		if d.dialect != sqlstore.SQLite { // which has one writer at a time
			for i := range 10 {
				_, err := d.db.ExecContext(t.Context(), insert, fmt.Sprint(late, i))
				require.NoError(t, err)
			}
			within(t, func() bool { return sink.knows(late+"9", 1) }, "an open transaction holds up the others")
			state, err := store.Outbox(t.Context())
			require.NoError(t, err)
			within(t, func() bool { state, err = store.Outbox(t.Context()); return err == nil && state.Waiting == 0 },
				"what was told is not deleted beside an open transaction: %+v", state)
		}
		require.False(t, sink.knows(early, 1), "told before it was committed")
		require.NoError(t, tx.Commit())
		within(t, func() bool { return sink.knows(early, 1) }, "what was committed late is skipped")
	}
}

// testOutboxIDs empties the outbox: the next row has an id that none had before,
// so that who has read an old one cannot delete it.
func testOutboxIDs(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	last := int64(0)
	for i := range 5 {
		d.exec(t, d.insertOrReplace(table), "k", i)
		var id int64
		require.NoError(t, d.db.QueryRowContext(t.Context(), `SELECT id FROM `+table+`_outbox`).Scan(&id))
		require.Greater(t, id, last)
		last = id
		stop := relaying(t, store, newRecorder(), sqlstore.RelayOptions{})
		emptied(t, store)
		stop()
	}
}

// testOutboxTwo has two relays, of which each tells a part: together all of it.
func testOutboxTwo(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	sink := newRecorder()
	for range 2 {
		relaying(t, store, sink, sqlstore.RelayOptions{Batch: 7, Poll: time.Millisecond})
	}
	for i := range 100 {
		d.exec(t, d.insertOrReplace(table), fmt.Sprint("k", i%50), i)
	}
	emptied(t, store)
	for i := range 50 {
		key := fmt.Sprint("k", i)
		_, v, err := store.Load(t.Context(), key)
		require.NoError(t, err)
		told, unknown := sink.of(key)
		require.True(t, told == v || unknown > 0, "%q is at version %d, and was told at %d", key, v, told)
	}
}

// testOutboxVisible reads each key when it is told: there must be that version, or
// a later one.
func testOutboxVisible(t *testing.T, d database) {
	store, table := newOutbox(t, d, sqlstore.Options[string, int]{})
	told := 0
	relaying(t, store, sinkOf(func(key string, v tidemark.Version) {
		_, have, err := store.Load(t.Context(), key)
		assert.NoError(t, err)
		assert.GreaterOrEqual(t, have, v)
		told++
	}), sqlstore.RelayOptions{Poll: time.Millisecond})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range 30 {
				d.exec(t, d.insertOrReplace(table), fmt.Sprint("k", w), i)
			}
		})
	}
	wg.Wait()
	emptied(t, store)
	assert.NotZero(t, told)
}
