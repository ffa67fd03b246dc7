package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// hears waits until the log was told of a change.
func hears(t testing.TB, log *memLog, change string) {
	t.Helper()
	eventually(t, func() bool { return slices.Contains(log.told(), change) }, "%s is not told: %v", change, log.told)
}

func TestRelay_TellsWhatIsCommitted(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	r := newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Poll = time.Second })
	works(t, r)
	assert.Equal(t, []string{"*"}, log.told(), "who knows what changed before there were triggers")
	began := time.Now()
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1), ('b', 1, 1)`)
	hears(t, log, "a@1")
	assert.Less(t, time.Since(began), 900*time.Millisecond, "it was woken")
	d.exec(`BEGIN`, `UPDATE accounts SET version = 2`, `UPDATE accounts SET version = 3`, `UPDATE accounts SET value = 1 WHERE key = 'b'`, `COMMIT`)
	hears(t, log, "a@3")
	hears(t, log, "b@0")
	d.exec(`INSERT INTO accounts_outbox (key, version) VALUES ('c', 9), ('c', 8)`)
	hears(t, log, "c@9")
	eventually(t, func() bool { return d.waiting() == 0 }, "the outbox is not emptied")
	eventually(t, func() bool { return r.Stats().Rows == 9 }, "rows")
	s := r.Stats()
	assert.True(t, s.Working)
	assert.EqualValues(t, 1, s.Everything)
	assert.EqualValues(t, 5, s.Keys, "each key of a batch once")
	assert.Zero(t, s.Lag)
	assert.Zero(t, s.Waiting)
	assert.NoError(t, s.Err)
}

// TestS35_ALateCommitIsNotSkipped: a transaction that drew its id early commits when
// others with larger ids have long been told, and the relay looks behind them.
func TestS35_ALateCommitIsNotSkipped(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	works(t, newRelay(t, d.url, log.invalidator()))
	late := openDatabase(t, d.url)
	late.exec(`BEGIN`, `INSERT INTO accounts VALUES ('late', 1, 1)`)
	for n := range 10 { // so that there is a floor to be raised
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('early%d', 1, 1)`, n))
		hears(t, log, fmt.Sprintf("early%d@1", n)) // it holds up nobody
		time.Sleep(30 * time.Millisecond)
	}
	late.exec(`COMMIT`)
	hears(t, log, "late@1")
	eventually(t, func() bool { return d.waiting() == 0 }, "the outbox is not emptied")
}

// TestS35_TheYoungerTransactionDrawsTheSmallerId: a transaction that is under way may
// have an id above the xmax of a snapshot that was taken meanwhile.
func TestS35_TheYoungerTransactionDrawsTheSmallerId(t *testing.T) {
	d, log := newServer(t, accounts), &memLog{}
	s := newSession(t, d, log)
	pass := func() {
		whole, err := s.pass()
		require.NoError(t, err)
		require.True(t, whole)
	}
	pass()
	older, younger := openDatabase(t, d.url), openDatabase(t, d.url)
	older.exec(`BEGIN`, `SELECT pg_current_xact_id()`)
	younger.exec(`BEGIN`, `INSERT INTO accounts VALUES ('low', 1, 1)`)
	older.exec(`INSERT INTO accounts VALUES ('high', 1, 1)`, `COMMIT`)
	pass()
	require.Contains(t, log.told(), "high@1")
	for n := range 3 {
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('a%d', 1, 1)`, n))
		pass()
	}
	younger.exec(`COMMIT`)
	pass()
	assert.Contains(t, log.told(), "low@1")
}

// TestRelay_LooksWhereSomethingMayBe: what was told and is not vacuumed is not looked
// at again, once no transaction of that time is open.
func TestRelay_LooksWhereSomethingMayBe(t *testing.T) {
	d, log := newServer(t, accounts), &memLog{}
	s := newSession(t, d, log)
	insert := func(key string) {
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('%s', 1, 1)`, key))
		whole, err := s.pass()
		require.NoError(t, err)
		require.True(t, whole)
	}
	insert("a")
	assert.Zero(t, s.floor, "a transaction may have drawn a smaller id")
	insert("b")
	assert.EqualValues(t, 1, s.floor)
	open := openDatabase(t, d.url)
	open.exec(`BEGIN`, `INSERT INTO accounts VALUES ('open', 1, 1)`) // id 3
	insert("c")
	insert("d")
	insert("e")
	assert.EqualValues(t, 2, s.floor, "it was open when c was told")
	open.exec(`COMMIT`)
	insert("f")
	assert.Contains(t, log.told(), "open@1")
	insert("g")
	assert.Greater(t, s.floor, int64(3))
	d.exec(`TRUNCATE accounts_outbox RESTART IDENTITY`)
	d.exec(`INSERT INTO accounts VALUES ('h', 1, 1)`)
	whole, err := s.pass() // the sequence is below the floor
	require.NoError(t, err)
	assert.False(t, whole)
	insert("i")
	assert.Contains(t, log.told(), "h@1")
}

// TestRelay_SweepsBelowTheFloor: a sequence that was set back and has caught up before
// the relay has looked leaves rows below its floor.
func TestRelay_SweepsBelowTheFloor(t *testing.T) {
	d, log := newServer(t, accounts), &memLog{}
	s := newSession(t, d, log)
	pass := func() {
		for whole := false; !whole; {
			var err error
			whole, err = s.pass()
			require.NoError(t, err)
		}
	}
	for n := range 5 {
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('a%d', 1, 1)`, n))
		pass()
	}
	floor := s.floor
	require.Positive(t, floor)
	s.swept = time.Now().Add(-sweepEvery)
	pass()
	require.GreaterOrEqual(t, s.floor, floor, "there was nothing below it")
	d.exec(`ALTER TABLE accounts_outbox ALTER id RESTART WITH 1`)
	d.exec(`INSERT INTO accounts SELECT 'b' || n, 1, 1 FROM generate_series(1, 8) n`)
	pass()
	require.NotContains(t, log.told(), "b1@1")
	s.swept = time.Now().Add(-sweepEvery)
	pass()
	assert.Contains(t, log.told(), "b1@1")
	assert.Zero(t, d.waiting())
}

// newSession returns a session that the test drives.
func newSession(t *testing.T, d *database, log *memLog, change ...func(*RelayOptions)) *session {
	t.Helper()
	// A relay that has a lock to wait for stays out of the way.
	d.exec(fmt.Sprintf(`SELECT pg_advisory_lock(%d, 'accounts_outbox'::regclass::oid::int4)`, lockClass))
	r := newRelay(t, d.url, log.invalidator(), change...)
	s, err := r.connect()
	require.NoError(t, err)
	t.Cleanup(s.close)
	return s
}

// TestRelay_ForgetsWhatIsAcknowledged: rows are there until the log has them.
func TestRelay_ForgetsWhatIsAcknowledged(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	r := newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Lease = time.Second })
	works(t, r)
	var told, forgotten atomic.Int64
	other := openDatabase(t, d.url)
	log.hook(func(m wire.Message) {
		if m.Kind == wire.KindInvalidate {
			told.Add(1)
			if other.waiting() == 0 {
				forgotten.Add(1)
			}
		}
	})
	log.set(errors.New("no quorum"))
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	eventually(t, func() bool { return r.Stats().Failures > 0 }, "nobody notices")
	assert.EqualValues(t, 1, d.waiting())
	assert.ErrorContains(t, r.Stats().Err, "no quorum")
	assert.Positive(t, r.Stats().Lag)
	assert.Positive(t, told.Load())
	log.set(nil)
	hears(t, log, "a@1")
	eventually(t, func() bool { return d.waiting() == 0 && r.Stats().Lag == 0 }, "it does not go on")
	assert.Zero(t, forgotten.Load(), "forgotten before it was told")
}

// TestRelay_ForgetsOnlyWhatItHasTold: what is committed while a page is being told
// is told later, also if its id is smaller.
func TestRelay_ForgetsOnlyWhatItHasTold(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	works(t, newRelay(t, d.url, log.invalidator()))
	late := openDatabase(t, d.url)
	late.exec(`BEGIN`, `INSERT INTO accounts VALUES ('low', 1, 1)`)
	var once sync.Once
	log.hook(func(m wire.Message) {
		if m.Kind == wire.KindInvalidate {
			once.Do(func() { late.exec(`COMMIT`, `INSERT INTO accounts VALUES ('high', 1, 1)`) })
		}
	})
	d.exec(`INSERT INTO accounts VALUES ('middle', 1, 1)`)
	for _, key := range []string{"low@1", "middle@1", "high@1"} {
		hears(t, log, key)
	}
}

// TestRelay_AnswersProbesInOrder: one is told behind what was committed before it,
// also if that appears behind the page that is being told.
func TestRelay_AnswersProbesInOrder(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	r := newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Batch = 2 })
	works(t, r)
	late := openDatabase(t, d.url)
	late.exec(`BEGIN`, `INSERT INTO accounts VALUES ('low', 1, 1)`)
	var once sync.Once
	log.hook(func(m wire.Message) {
		if m.Kind == wire.KindInvalidate {
			once.Do(func() {
				late.exec(`COMMIT`, `INSERT INTO accounts_outbox (origin, nonce) VALUES (7, 1)`)
			})
		}
	})
	d.exec(`INSERT INTO accounts VALUES ('x', 1, 1), ('y', 1, 1)`) // a page
	hears(t, log, "probe 7.1")
	told := log.told()
	assert.Less(t, slices.Index(told, "low@1"), slices.Index(told, "probe 7.1"), "%v", told)
	assert.Contains(t, told, "low@1")

	d.exec(`BEGIN`, `INSERT INTO accounts VALUES ('before', 1, 1)`, `INSERT INTO accounts_outbox (origin, nonce) VALUES (7, 2)`, `COMMIT`)
	hears(t, log, "probe 7.2")
	told = log.told()
	assert.Contains(t, told[:slices.Index(told, "probe 7.2")], "before@1", "of one page")
	eventually(t, func() bool { return d.waiting() == 0 }, "probes are not forgotten")
	eventually(t, func() bool { return r.Stats().Probes == 2 }, "probes are not counted")
}

// TestProbe_ComesBehindEveryCommit has many writers, with transactions short and
// long, and probes among them: whatever was committed when a probe was sent is told
// before it.
func TestProbe_ComesBehindEveryCommit(t *testing.T) {
	const keys = 8
	d, log := newDatabase(t, accounts), &memLog{}
	for k := range keys {
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('k%d', 1, 1)`, k))
	}
	log.hook(func(wire.Message) { time.Sleep(time.Millisecond) })
	works(t, newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Batch = 5 }))
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var committed [keys]atomic.Int64
	var wg sync.WaitGroup
	for k := range keys {
		w := openDatabase(t, d.url)
		wg.Go(func() {
			for v := int64(2); ctx.Err() == nil; v++ {
				w.exec(`BEGIN`, fmt.Sprintf(`UPDATE accounts SET version = %d WHERE key = 'k%d'`, v, k))
				time.Sleep(time.Duration(k*k) * time.Millisecond / 2)
				w.exec(`COMMIT`)
				committed[k].Store(v)
				time.Sleep(6 * time.Millisecond)
			}
		})
	}
	sent := map[string][keys]int64{}
	for nonce := 1; ctx.Err() == nil; nonce++ {
		var before [keys]int64
		for k := range keys {
			before[k] = committed[k].Load()
		}
		sent[fmt.Sprintf("probe 9.%d", nonce)] = before
		d.exec(fmt.Sprintf(`INSERT INTO accounts_outbox (origin, nonce) VALUES (9, %d)`, nonce))
		time.Sleep(8 * time.Millisecond)
	}
	wg.Wait()
	d.exec(`INSERT INTO accounts_outbox (origin, nonce) VALUES (10, 1)`)
	hears(t, log, "probe 10.1")
	var told [keys]int64
	answered := 0
	for _, what := range log.told() {
		if before, probe := sent[what]; probe {
			answered++
			for k := range keys {
				require.GreaterOrEqual(t, told[k], before[k], "%s was committed before %s", fmt.Sprintf("k%d@%d", k, before[k]), what)
			}
		}
		var k, v int64
		if n, _ := fmt.Sscanf(what, "k%d@%d", &k, &v); n == 2 {
			told[k] = max(told[k], v)
		}
	}
	t.Logf("%d of %d probes answered, %v told", answered, len(sent), told)
	assert.Greater(t, answered, 10)
}

// TestRelay_Handover: of two relays one works; the other takes over when it is
// closed, loses its session, or is stuck.
func TestRelay_Handover(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	stuck := &memLog{} // of the first
	relays := []*Relay{newRelay(t, d.url, stuck.invalidator(), func(o *RelayOptions) { o.Lease = time.Second })}
	works(t, relays[0])
	relays = append(relays, newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Lease = time.Second }))
	working := func() (n int) {
		for _, r := range relays {
			if r.Stats().Working {
				n++
			}
		}
		return n
	}
	for range 20 {
		d.exec(`INSERT INTO accounts VALUES ('x', 1, 1) ON CONFLICT (key) DO UPDATE SET version = accounts.version + 1`)
		time.Sleep(20 * time.Millisecond)
		require.Equal(t, 1, working())
	}
	require.False(t, relays[1].Stats().Working)
	assert.EqualValues(t, -1, relays[1].Stats().Lag)
	assert.Empty(t, log.told())

	release := make(chan struct{})
	stuck.hook(func(wire.Message) { <-release })
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	hears(t, log, "a@1") // by the other one
	require.True(t, relays[1].Stats().Working)
	eventually(t, func() bool { return d.waiting() == 0 }, "the outbox is not emptied")
	d.exec(`INSERT INTO accounts VALUES ('b', 1, 1)`)
	close(release) // the first one wakes up, tells for the second time, and does no harm
	hears(t, stuck, "a@1")
	hears(t, log, "b@1")
	assert.NotContains(t, stuck.told(), "b@1")

	for n := range 3 {
		d.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidemark relay'`)
		key := fmt.Sprintf("c%d", n)
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('%s', 1, 1)`, key))
		eventually(t, func() bool { return slices.Contains(append(log.told(), stuck.told()...), key+"@1") }, "%s is not told", key)
	}
	eventually(t, func() bool { return working() == 1 }, "nobody works")
	if relays[0].Stats().Working {
		slices.Reverse(relays)
	}
	closeRelay(t, relays[1])
	d.exec(`INSERT INTO accounts VALUES ('d', 1, 1)`)
	eventually(t, func() bool { return slices.Contains(append(log.told(), stuck.told()...), "d@1") }, "d is not told")
	assert.True(t, relays[0].Stats().Working)
}

// TestRelay_TheNextKnowsWhatWasTold: one that has waited since before the first one
// told everything does not do so again.
func TestRelay_TheNextKnowsWhatWasTold(t *testing.T) {
	d, log, next := newDatabase(t, accounts), &memLog{}, &memLog{}
	sessions := func() int64 {
		return scalar[int64](d, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidemark relay' AND query LIKE '%lock%'`)
	}
	waits, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	log.hook(func(wire.Message) { once.Do(func() { close(waits); <-release }) })
	first := newRelay(t, d.url, log.invalidator())
	<-waits
	second := newRelay(t, d.url, next.invalidator())
	eventually(t, func() bool { return sessions() > 0 }, "the second does not wait")
	close(release)
	works(t, first)
	closeRelay(t, first)
	works(t, second)
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	hears(t, next, "a@1")
	assert.Equal(t, []string{"*"}, log.told())
	assert.Equal(t, []string{"a@1"}, next.told())
}

// TestRelay_OneOutboxForEachCache: what is told to one cache is gone, so another one
// on the same table has an outbox of its own, and is refused this one.
func TestRelay_OneOutboxForEachCache(t *testing.T) {
	d, log, other := newDatabase(t, accounts), &memLog{}, &memLog{}
	works(t, newRelay(t, d.url, log.invalidator()))
	inv := other.invalidator()
	inv.Schema = "2"
	r := newRelay(t, d.url, inv)
	eventually(t, func() bool { return r.Stats().Failures > 0 }, "it is not refused")
	assert.ErrorContains(t, r.Stats().Err, "told to the cache accounts, and not to accounts of schema 2")
	closeRelay(t, r)

	second := Table{Name: "accounts", Outbox: "accounts_2"}
	require.NoError(t, Install(t.Context(), d, second))
	require.NoError(t, Check(t.Context(), d, second))
	works(t, newRelay(t, d.url, inv, func(o *RelayOptions) { o.Table = second }))
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	hears(t, log, "a@1")
	hears(t, other, "a@1")
	removal, err := Removal(second)
	require.NoError(t, err)
	d.exec(removal)
	require.NoError(t, Check(t.Context(), d, accounts))
	d.exec(`INSERT INTO accounts VALUES ('b', 1, 1)`)
	hears(t, log, "b@1")
}

// TestRelay_ATableThatIsAway: nothing is heard of it, so no probe is answered.
func TestRelay_ATableThatIsAway(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	r := newRelay(t, d.url, log.invalidator())
	works(t, r)
	d.exec(`ALTER TABLE accounts RENAME TO elsewhere`, `INSERT INTO accounts_outbox (origin, nonce) VALUES (7, 1)`)
	eventually(t, func() bool { return d.waiting() == 0 }, "the probe stays")
	assert.Contains(t, r.Stats().Unheard, "not there")
	assert.NotContains(t, log.told(), "probe 7.1")
}

// TestRelay_NoticesTriggersThatWereAway: while one does not fire no probe is
// answered, and when all do again everything may have changed.
func TestRelay_NoticesTriggersThatWereAway(t *testing.T) {
	const probe = `INSERT INTO accounts_outbox (origin, nonce) VALUES (7, %d)`
	d, log := newDatabase(t, accounts), &memLog{}
	r := newRelay(t, d.url, log.invalidator())
	works(t, r)
	everything := func() (n int) {
		return len(slices.DeleteFunc(log.told(), func(what string) bool { return what != "*" }))
	}
	require.Equal(t, 1, everything())

	d.exec(`ALTER TABLE accounts DISABLE TRIGGER accounts_outbox_update`, fmt.Sprintf(probe, 1))
	eventually(t, func() bool { return d.waiting() == 0 }, "the probe stays")
	assert.Contains(t, r.Stats().Unheard, "accounts_outbox_update on accounts")
	assert.NotContains(t, log.told(), "probe 7.1")
	assert.Equal(t, 1, everything())
	d.exec(`ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_outbox_update`, fmt.Sprintf(probe, 2))
	hears(t, log, "probe 7.2")
	told := log.told()
	assert.Equal(t, []string{"*", "*", "probe 7.2"}, told, "in this order")
	assert.Empty(t, r.Stats().Unheard)
	d.exec(`INSERT INTO accounts VALUES ('later', 1, 1)`)
	hears(t, log, "later@1")
	assert.Equal(t, 2, everything(), "once")

	closeRelay(t, r) // nobody is there to see it
	d.exec(`ALTER TABLE accounts DISABLE TRIGGER ALL`, `ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_outbox_insert`)
	for _, event := range []string{"update", "delete", "truncate"} {
		d.exec(`ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_outbox_` + event)
	}
	r = newRelay(t, d.url, log.invalidator())
	works(t, r)
	assert.Equal(t, 3, everything())
	closeRelay(t, r)
	works(t, newRelay(t, d.url, log.invalidator()))
	assert.Equal(t, 3, everything(), "once")
}

// TestRelay_NoticesPartitionsThatWereAway: their rows were, for whoever looked then.
func TestRelay_NoticesPartitionsThatWereAway(t *testing.T) {
	d, log := newDatabase(t, Table{}), &memLog{}
	d.exec(`DROP TABLE accounts`,
		`CREATE TABLE accounts (key text PRIMARY KEY, version bigint) PARTITION BY LIST (key)`,
		`CREATE TABLE accounts_a PARTITION OF accounts FOR VALUES IN ('a')`,
		`CREATE TABLE accounts_b PARTITION OF accounts FOR VALUES IN ('b')`)
	require.NoError(t, Install(t.Context(), d, accounts))
	s := newSession(t, d, log)
	nonce := 0
	tells := func(want ...string) {
		t.Helper()
		nonce++
		d.exec(fmt.Sprintf(`INSERT INTO accounts_outbox (origin, nonce) VALUES (7, %d)`, nonce))
		before := len(log.told())
		whole, err := s.pass()
		require.NoError(t, err)
		require.True(t, whole)
		want = append(want, fmt.Sprintf("probe 7.%d", nonce))
		hears(t, log, want[len(want)-1])
		assert.Equal(t, want, log.told()[before:])
	}
	tells("*")
	tells()
	d.exec(`ALTER TABLE accounts DETACH PARTITION accounts_a`, `ALTER TABLE accounts ATTACH PARTITION accounts_a FOR VALUES IN ('a')`)
	tells("*")
	tells()

	reader := openDatabase(t, d.url)
	reader.exec(`BEGIN`, `SELECT FROM accounts`)
	detacher := openDatabase(t, d.url)
	detached := make(chan error, 1)
	go func() {
		_, err := detacher.Exec(context.WithoutCancel(t.Context()), `ALTER TABLE accounts DETACH PARTITION accounts_b CONCURRENTLY`)
		detached <- err
	}()
	eventually(t, func() bool {
		return scalar[bool](d, `SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = 'accounts_b'::regclass`)
	}, "it is not being detached")
	tells("*") // though it waits for the reader, others do not see it any more
	reader.exec(`COMMIT`)
	require.NoError(t, <-detached)
	tells("*")
	tells()
}

// TestRelay_Collapses: more rows than are told one by one, and the memory of one
// page.
func TestRelay_Collapses(t *testing.T) {
	const rows = 20_000
	d, log := newDatabase(t, accounts), &memLog{}
	small := func(o *RelayOptions) { o.Batch, o.Collapse = 100, 1000 }
	r := newRelay(t, d.url, log.invalidator(), small)
	works(t, r)
	other := openDatabase(t, d.url)
	d.exec(`BEGIN`, `INSERT INTO accounts SELECT 'a' || n, n, 1 FROM generate_series(1, 100) n`)
	other.exec(`BEGIN`, `INSERT INTO accounts SELECT 'x' || n, n, 1 FROM generate_series(1, 20000) n`, `ROLLBACK`)
	d.exec(`COMMIT`)
	hears(t, log, "a100@1")
	require.EqualValues(t, 1, r.Stats().Everything, "ids that no row has are no rows")

	d.exec(fmt.Sprintf(`INSERT INTO accounts SELECT 'm' || n, n, 1 FROM generate_series(1, %d) n`, rows))
	eventually(t, func() bool { return r.Stats().Everything == 2 }, "it does not collapse: %+v", r.Stats())
	d.exec(`INSERT INTO accounts VALUES ('after', 1, 1)`)
	hears(t, log, "after@1")
	eventually(t, func() bool { return d.waiting() == 0 && r.Stats().Lag == 0 }, "the outbox is not emptied: %+v", r.Stats())
	s := r.Stats()
	assert.LessOrEqual(t, s.Keys, uint64(100+100+1), "the page that was told when it noticed")
	assert.EqualValues(t, 100+rows+1, s.Rows)
	assert.EqualValues(t, 2, s.Everything)
}

// TestRelay_CollapseLeavesWhatIsYoungerThanTheWord: what is committed while
// everything is being told is told later.
func TestRelay_CollapseLeavesWhatIsYoungerThanTheWord(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	works(t, newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Batch, o.Collapse = 10, 100 }))
	late := openDatabase(t, d.url)
	late.exec(`BEGIN`, `INSERT INTO accounts VALUES ('low', 1, 1)`)
	middle := openDatabase(t, d.url)
	middle.exec(`BEGIN`)
	middle.exec(`INSERT INTO accounts SELECT 'x' || n, n, 1 FROM generate_series(1, 100) n`)
	d.exec(`BEGIN`, `INSERT INTO accounts SELECT 'm' || n, n, 1 FROM generate_series(1, 1000) n`)
	middle.exec(`INSERT INTO accounts VALUES ('between', 1, 1)`)
	var once sync.Once
	log.hook(func(m wire.Message) {
		if m.Kind == wire.KindInvalidateAll {
			once.Do(func() {
				late.exec(`COMMIT`, `INSERT INTO accounts VALUES ('high', 1, 1)`)
				middle.exec(`COMMIT`)
			})
		}
	})
	d.exec(`INSERT INTO accounts SELECT 'n' || n, n, 1 FROM generate_series(1, 1000) n`, `COMMIT`)
	for _, key := range []string{"low@1", "high@1", "between@1"} {
		hears(t, log, key)
	}
}

func TestRelay_Keys(t *testing.T) {
	for _, tt := range []struct {
		column, value, want string
		encode              func(string) ([]byte, error)
	}{
		{"bigint", "-2", "\xfe\xff\xff\xff\xff\xff\xff\xff", nil},
		{"integer", "258", "\x02\x01\x00\x00\x00\x00\x00\x00", nil},
		{"bytea", `'\x00ff'`, "\x00\xff", nil},
		{"whole", "-2", "\xfe\xff\xff\xff\xff\xff\xff\xff", nil},
		{"blob", `'\x00ff'`, "\x00\xff", nil},
		{"text", "'ä'", "ä", nil},
		{"uuid", "'11111111-1111-1111-1111-111111111111'", "11111111-1111-1111-1111-111111111111", nil},
		{"text", "'k'", "codec:k", func(text string) ([]byte, error) { return []byte("codec:" + text), nil }},
		{"text", "'k'", "*", func(string) ([]byte, error) { return nil, errors.New("bad key") }},
		{"text", "'k'", "*", func(string) ([]byte, error) { panic("bad codec") }},
	} {
		t.Run(tt.column+tt.value, func(t *testing.T) {
			d, log := newDatabase(t, Table{}), &memLog{}
			d.exec(`CREATE DOMAIN whole AS bigint`, `CREATE DOMAIN bytes AS bytea`, `CREATE DOMAIN blob AS bytes`)
			d.exec(`DROP TABLE accounts`, `CREATE TABLE accounts (key `+tt.column+` PRIMARY KEY, version bigint)`)
			require.NoError(t, Install(t.Context(), d, accounts))
			works(t, newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.EncodeKey = tt.encode }))
			d.exec(`INSERT INTO accounts VALUES (` + tt.value + `, 3)`)
			want := tt.want + "@3"
			if tt.want == "*" {
				want = "*"
			}
			eventually(t, func() bool { return len(log.told()) >= 2 }, "it is not told")
			assert.Equal(t, []string{"*", want}, log.told())
		})
	}
}

// TestRelay_WaitsForItsOutbox: what is missing is said, and not fatal.
func TestRelay_WaitsForItsOutbox(t *testing.T) {
	d, log := newDatabase(t, Table{}), &memLog{}
	r := newRelay(t, d.url, log.invalidator())
	eventually(t, func() bool { return r.Stats().Failures > 1 }, "nothing fails")
	assert.ErrorContains(t, r.Stats().Err, "accounts_outbox")
	assert.EqualValues(t, -1, r.Stats().Lag)
	require.NoError(t, Install(t.Context(), d, accounts))
	works(t, r)
	assert.NoError(t, r.Stats().Err)

	d.exec(`COMMENT ON TABLE accounts_outbox IS 'tidemark outbox 9'`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidemark relay'`)
	eventually(t, func() bool {
		err := r.Stats().Err
		return err != nil && strings.Contains(err.Error(), "install it again")
	}, "another version's is taken")
}

// TestRelay_AsAPlainRole: the privileges of the package comment are enough.
func TestRelay_AsAPlainRole(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	d.exec(`CREATE ROLE tidemark_plain LOGIN`,
		`GRANT SELECT, DELETE ON accounts_outbox TO tidemark_plain`,
		`GRANT SELECT ON accounts_outbox_id_seq TO tidemark_plain`,
		`GRANT SELECT, UPDATE ON accounts_outbox_state TO tidemark_plain`,
		`GRANT INSERT (origin, nonce) ON accounts_outbox TO tidemark_plain`)
	t.Cleanup(func() {
		_ = execute(context.Background(), d.url, `DROP OWNED BY tidemark_plain; DROP ROLE tidemark_plain`)
	})
	r := newRelay(t, d.url, log.invalidator(), func(o *RelayOptions) { o.Config.User = "tidemark_plain" })
	works(t, r)
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	hears(t, log, "a@1")
	config, err := pgx.ParseConfig(d.url)
	require.NoError(t, err)
	config.User = "tidemark_plain"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	prober, err := NewProber(conn, accounts)
	require.NoError(t, err)
	require.NoError(t, prober.Probe(t.Context(), probeOf(1<<63+7, 3)))
	hears(t, log, fmt.Sprintf("probe %d.3", uint64(1<<63+7)))
	closeRelay(t, r)
}

// TestRelay_SurvivesTheServer: PostgreSQL is killed and started again under writers;
// what was committed is told.
func TestRelay_SurvivesTheServer(t *testing.T) {
	server := pgtest.Start(t, "fsync=off")
	d, log := openDatabase(t, server.URL), &memLog{}
	d.exec(createAccounts)
	require.NoError(t, Install(t.Context(), d, accounts))
	r := newRelay(t, server.URL, log.invalidator())
	works(t, r)
	for n := range 3 {
		log.set(errors.New("not now"))
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('a%d', 1, 1)`, n))
		require.NoError(t, server.Kill())
		require.NoError(t, server.Restart())
		log.set(nil)
		hears(t, log, fmt.Sprintf("a%d@1", n))
		d = openDatabase(t, server.URL)
	}
	eventually(t, func() bool { return d.waiting() == 0 }, "the outbox is not emptied")
}

func TestRelay_CloseLeavesNothing(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	sessions := func() int64 {
		return scalar[int64](d, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidemark relay'`)
	}
	r := newRelay(t, d.url, log.invalidator())
	works(t, r)
	closeRelay(t, r)
	closeRelay(t, r) // again
	eventually(t, func() bool { return sessions() == 0 }, "a session is left")
	assert.False(t, r.Stats().Working)

	log.set(errors.New("no quorum")) // what it cannot tell stays in the outbox
	r = newRelay(t, d.url, log.invalidator())
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	eventually(t, func() bool { return r.Stats().Waiting > 0 }, "nothing waits")
	closeRelay(t, r)
	assert.EqualValues(t, 1, d.waiting())
	eventually(t, func() bool { return sessions() == 0 }, "a session is left")
	noGoroutines(t)
}
