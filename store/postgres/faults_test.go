package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// requireUnknown demands an error that says nothing about what was committed.
func requireUnknown(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var conflict *tidemark.ConflictError
	require.NotErrorIs(t, err, tidemark.ErrUnavailable)
	require.False(t, errors.As(err, &conflict), err)
}

// requireState demands that key is at version v and has the value, or is absent if
// v is 0.
func requireState(t *testing.T, s *Store[string, string], key, value string, v tidemark.Version) {
	t.Helper()
	got, at, err := s.Load(t.Context(), key)
	if v == 0 {
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		return
	}
	require.NoError(t, err)
	require.Equal(t, value, got)
	require.Equal(t, v, at)
}

// TestS31_LostAnswers: the answer to COMMIT does not come, and the store must
// neither claim nor deny, but know when it is asked; sent again, it is made once.
func TestS31_LostAnswers(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		for name, f := range map[string]fault{"CommitLost": commitLost, "AnswerLost": answerLost, "AnswerStalled": answerStalled} {
			t.Run(fmt.Sprintf("%s hard=%t", name, hard), func(t *testing.T) {
				t.Parallel()
				p, url := newProxy(t, pgtest.Database(t, pgExec))
				s := newStore(t, open(t, url), Options[string, string]{HardDelete: hard})
				base, err := s.CompareAndSet(t.Context(), "k", 0, "before", newOp())
				require.NoError(t, err)
				for what, base := range map[string]tidemark.Version{"k": base, "new": 0} {
					op := newOp()
					p.arm(f)
					_, err := s.CompareAndSet(p.untilStruck(t), what, base, "after", op)
					require.True(t, p.suffered())
					requireUnknown(t, err)
					v, committed, err := s.Outcome(t.Context(), what, op)
					require.NoError(t, err)
					require.Equal(t, f != commitLost, committed)
					again, err := s.CompareAndSet(t.Context(), what, base, "after", op)
					require.NoError(t, err)
					if committed {
						require.Equal(t, v, again)
					}
					requireState(t, s, what, "after", again)

					op = newOp()
					p.arm(f)
					_, err = s.CompareAndDelete(p.untilStruck(t), what, again, op)
					requireUnknown(t, err)
					deletion, committed, err := s.Outcome(t.Context(), what, op)
					require.NoError(t, err)
					require.Equal(t, f != commitLost, committed)
					_, at, err := s.Load(t.Context(), what)
					if committed {
						require.ErrorIs(t, err, tidemark.ErrNotFound)
						require.Equal(t, deletion, at)
					} else {
						require.NoError(t, err)
						require.Equal(t, again, at)
					}
				}
			})
		}
	}
}

// TestS32_CommitOnTheWire holds COMMIT back in the network, and lets it through as
// soon as Outcome has said that the write was not committed.
func TestS32_CommitOnTheWire(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t, pgExec)
	p, through := newProxy(t, url)
	o := Options[string, string]{Timeout: 6 * time.Second}
	s, near := newStore(t, open(t, through), o), newStore(t, open(t, url), o)
	base, err := s.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)

	op := newOp()
	p.arm(commitHeld)
	_, err = s.CompareAndSet(p.untilStruck(t), "k", base, "after", op)
	require.True(t, p.suffered())
	requireUnknown(t, err)

	var committed bool
	require.Eventually(t, func() bool { // the answer may be that it is not known yet
		_, committed, err = near.Outcome(t.Context(), "k", op)
		return err == nil
	}, 12*time.Second, time.Millisecond, "the server keeps the transaction open")
	require.False(t, committed)
	p.release()
	require.Never(t, func() bool {
		value, _, err := near.Load(t.Context(), "k")
		return err != nil || value != "before"
	}, time.Second, 20*time.Millisecond, "COMMIT came after the word that there was none")

	_, err = near.CompareAndSet(t.Context(), "k", base, "another", newOp())
	require.NoError(t, err, "the row is still locked")
}

// TestS32_OutcomeSeesWhatItWaitedFor: the COMMIT that is on the wire arrives while
// Outcome waits, where transactions see the past by default.
func TestS32_OutcomeSeesWhatItWaitedFor(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t, pgExec)
	p, through := newProxy(t, url)
	past := func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable" }
	s := newStore(t, open(t, through, past), Options[string, string]{Timeout: time.Minute})
	near, err := New(open(t, url, past), Options[string, string]{Timeout: time.Minute})
	require.NoError(t, err)
	op := newOp()
	p.arm(commitHeld)
	_, err = s.CompareAndSet(p.untilStruck(t), "k", 0, "v", op)
	requireUnknown(t, err)
	answer := make(chan bool, 1)
	go func() {
		_, committed, err := near.Outcome(context.WithoutCancel(t.Context()), "k", op)
		answer <- committed && assert.NoError(t, err)
	}()
	admin := open(t, url)
	require.Eventually(t, func() bool {
		return get[int](t, admin, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
	}, patience, 5*time.Millisecond, "Outcome does not wait")
	p.release()
	require.True(t, <-answer)
}

// TestS32_CommitThatWaitsForAStandby is on its way for as long as the standby does
// not answer: nobody sees it, and it cannot be taken back.
func TestS32_CommitThatWaitsForAStandby(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	admin := open(t, server.URL, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = "local" })
	p, through := newProxy(t, server.URL)
	s := newStore(t, open(t, through), Options[string, string]{Timeout: 3 * time.Second})
	base, err := s.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)
	exec(t, admin, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	exec(t, admin, "SELECT pg_reload_conf()")
	require.Eventually(t, func() bool {
		return get[string](t, admin, "SHOW synchronous_standby_names") == "nobody"
	}, patience, 10*time.Millisecond)

	op := newOp()
	p.arm(answerStalled)
	_, err = s.CompareAndSet(p.untilStruck(t), "k", base, "after", op)
	requireUnknown(t, err)
	for range 2 {
		_, committed, err := s.Outcome(t.Context(), "k", op)
		require.True(t, err != nil || committed, "it says no to a write that will be there")
		requireState(t, s, "k", "before", base)
	}
	exec(t, admin, "ALTER SYSTEM RESET synchronous_standby_names")
	exec(t, admin, "SELECT pg_reload_conf()")
	require.Eventually(t, func() bool {
		v, committed, err := s.Outcome(t.Context(), "k", op)
		return err == nil && committed && v == base+1
	}, patience, 10*time.Millisecond)
	requireState(t, s, "k", "after", base+1)
}

// TestS32_ClientThatStops has a process that stands still before it commits: the
// server does not wait for it, and it does not commit when it goes on.
func TestS32_ClientThatStops(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{})
	base, err := s.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)
	stopped, err := New(stoppingDB{db, 1100 * time.Millisecond}, Options[string, string]{Timeout: 3 * time.Second})
	require.NoError(t, err)
	_, err = stopped.CompareAndSet(t.Context(), "k", base, "after", newOp())
	require.ErrorIs(t, err, tidemark.ErrUnavailable, "COMMIT was sent, or may have been")
	requireState(t, s, "k", "before", base)

	// The same to the server, which waits no longer than a step for the next word.
	tx, err := db.BeginTx(t.Context(), pgx.TxOptions{BeginQuery: fmt.Sprintf(stopped.sql.begin, 1)})
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context())) // so that the pool can be closed, whatever happens
	_, made, err := stopped.apply(t.Context(), tx, change{key: "k", query: stopped.sql.update, args: []any{"k", make([]byte, 16), int64(base), "after"}})
	require.NoError(t, err)
	require.False(t, made)
	require.Eventually(t, func() bool {
		_, err = s.CompareAndSet(t.Context(), "k", base, "another", newOp())
		return err == nil
	}, patience, time.Millisecond, "the row stays locked")
	require.Error(t, tx.Commit(t.Context()))
}

// stoppingDB is a DB whose transactions stand still after their first statement.
type stoppingDB struct {
	DB
	pause time.Duration
}

func (d stoppingDB) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	tx, err := d.DB.BeginTx(ctx, o)
	return stoppingTx{tx, d.pause}, err
}

type stoppingTx struct {
	pgx.Tx
	pause time.Duration
}

func (t stoppingTx) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	row := t.Tx.QueryRow(ctx, query, args...)
	return stoppingRow{row, t.pause}
}

type stoppingRow struct {
	pgx.Row
	pause time.Duration
}

func (r stoppingRow) Scan(dest ...any) error {
	err := r.Row.Scan(dest...)
	time.Sleep(r.pause)
	return err
}

// TestS32_WorkLeftForTheCommit: what a deferred trigger does is done before COMMIT,
// and within the time of a statement.
func TestS32_WorkLeftForTheCommit(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{Timeout: 3 * time.Second})
	exec(t, db, `CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); RETURN NULL; END'`)
	exec(t, db, `CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON tidemark DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()`)
	began := time.Now()
	_, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.ErrorIs(t, err, tidemark.ErrUnavailable)
	require.Less(t, time.Since(began), 10*time.Second)
	requireState(t, s, "k", "", 0)
}

// TestWrite_BoundsItsStatements: neither a lock nor a slow trigger holds a write up
// for longer than a step.
func TestWrite_BoundsItsStatements(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{Timeout: 3 * time.Second})
	var settings [3]string
	tx, err := db.BeginTx(t.Context(), pgx.TxOptions{BeginQuery: fmt.Sprintf(s.sql.begin, 1)})
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	require.NoError(t, tx.QueryRow(t.Context(), `SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
		current_setting('idle_in_transaction_session_timeout')`).Scan(&settings[0], &settings[1], &settings[2]))
	require.NoError(t, tx.Rollback(t.Context()))
	assert.Equal(t, [3]string{"1s", "1s", "1s"}, settings)

	v, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.NoError(t, err)
	tx, err = db.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	_, err = tx.Exec(t.Context(), "SELECT FROM tidemark FOR UPDATE")
	require.NoError(t, err)
	_, err = s.CompareAndSet(t.Context(), "k", v, "w", newOp())
	require.ErrorIs(t, err, tidemark.ErrUnavailable)
	require.NoError(t, tx.Rollback(t.Context()))
	v, err = s.CompareAndSet(t.Context(), "k", v, "w", newOp())
	require.NoError(t, err)
	require.EqualValues(t, 2, v)
}

// TestWrite_LeavesTheSessionAsItWas: poolers lend one session to many.
func TestWrite_LeavesTheSessionAsItWas(t *testing.T) {
	t.Parallel()
	db := newDB(t, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
		c.ConnConfig.RuntimeParams["statement_timeout"] = "54321"
	})
	s := newStore(t, db, Options[string, string]{})
	op := newOp()
	v, err := s.CompareAndSet(t.Context(), "k", 0, "v", op)
	require.NoError(t, err)
	_, err = s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.Error(t, err)
	_, err = s.CompareAndDelete(t.Context(), "k", v, newOp())
	require.NoError(t, err)
	_, committed, err := s.Outcome(t.Context(), "k", op)
	require.NoError(t, err)
	require.True(t, committed)
	assert.Equal(t, "54321ms", get[string](t, db, "SHOW statement_timeout"))
	assert.Equal(t, "0", get[string](t, db, "SHOW lock_timeout"))
	assert.Equal(t, "0", get[string](t, db, "SHOW idle_in_transaction_session_timeout"))
	assert.Equal(t, "off", get[string](t, db, "SHOW synchronous_commit"))
	assert.Zero(t, get[int](t, db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"))
}

// TestWrite_IsDurableBeforeItIsAcknowledged: a crash could take an asynchronous
// commit back, and its version would be given again. Stronger settings stay.
func TestWrite_IsDurableBeforeItIsAcknowledged(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{"off": "local", "on": "on", "remote_apply": "remote_apply", "local": "local"} {
		db := newDB(t, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = set })
		s := newStore(t, db, Options[string, string]{})
		exec(t, db, `CREATE TABLE seen (setting text);
			CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
			CREATE TRIGGER look AFTER INSERT ON tidemark FOR EACH ROW EXECUTE FUNCTION look()`)
		_, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
		require.NoError(t, err)
		assert.Equal(t, want, get[string](t, db, "SELECT setting FROM seen"), set)
	}
}

// TestKill9_NothingIsLostOrMadeTwice kills the server while clients count, two on
// each key. Each client knows of each of its writes how it ended, if need be because
// it asked.
func TestKill9_NothingIsLostOrMadeTwice(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, "fsync=on", "commit_delay=3000", "commit_siblings=0") // it is mostly in COMMIT
	s := newStore(t, open(t, server.URL), Options[string, int]{Timeout: 2 * time.Second})
	keys := []string{"a", "b", "c"}
	for _, k := range keys {
		_, err := s.CompareAndSet(t.Context(), k, 0, 0, newOp())
		require.NoError(t, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	type place struct {
		key     string
		version tidemark.Version
	}
	var mu sync.Mutex // guards the rest
	written := map[place]int{}
	doubts := 0
	var wg sync.WaitGroup
	for i := range 2 * len(keys) {
		key := keys[i%len(keys)]
		wg.Go(func() {
			for ctx.Err() == nil {
				v, committed, doubtful := countUp(ctx, s, key)
				mu.Lock()
				if committed {
					written[place{key, v}]++
				}
				if doubtful {
					doubts++
				}
				mu.Unlock()
			}
		})
	}
	progress := func() (writes, inDoubt int) {
		mu.Lock()
		defer mu.Unlock()
		return len(written), doubts
	}
	for kills, writes, inDoubt := 0, 0, 0; kills < 3 || inDoubt == 0 && kills < 12; kills++ {
		if !assert.NoError(t, server.Kill()) || !assert.NoError(t, server.Restart()) {
			break
		}
		before := writes
		if !assert.Eventually(t, func() bool {
			writes, inDoubt = progress()
			return writes >= before+30
		}, patience, time.Millisecond) {
			break
		}
	}
	stop()
	wg.Wait()

	total := 0
	for _, k := range keys {
		n, last, err := s.Load(t.Context(), k)
		require.NoError(t, err)
		require.EqualValues(t, n+1, last, k)
		for v := tidemark.Version(2); v <= last; v++ {
			require.Equal(t, 1, written[place{k, v}], "writes of %s that are known to be at version %d", k, v)
		}
		total += n
	}
	require.Len(t, written, total, "as many counted as were acknowledged or found")
	t.Logf("%d writes, %d in doubt", total, doubts)
	require.GreaterOrEqual(t, total, 90)
	require.NotZero(t, doubts)
}

// countUp adds one to the counter at key, once, and finds out whether it has.
func countUp(ctx context.Context, s *Store[string, int], key string) (v tidemark.Version, committed, doubtful bool) {
	n, base, err := s.Load(ctx, key)
	if err != nil {
		time.Sleep(5 * time.Millisecond) // there is no server
		return 0, false, false
	}
	ctx = context.WithoutCancel(ctx)
	op := newOp()
	v, err = s.CompareAndSet(ctx, key, base, n+1, op)
	switch {
	case err == nil:
		return v, true, false
	case errors.Is(err, tidemark.ErrUnavailable), errors.As(err, new(*tidemark.ConflictError)):
		return 0, false, false
	}
	for {
		if v, committed, err = s.Outcome(ctx, key, op); err == nil {
			return v, committed, true
		}
		time.Sleep(5 * time.Millisecond)
	}
}
