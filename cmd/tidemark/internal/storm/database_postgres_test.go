package storm

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// onPostgres returns a small storm on a database of its own.
func onPostgres(t *testing.T) Config {
	t.Helper()
	c := small()
	c.Store = pgtest.Database(t, execute)
	return c
}

func TestStormOnPostgres(t *testing.T) {
	c := onPostgres(t)
	c.Duration, c.Quiet = 2*time.Second, time.Second
	c.Contenders = []string{"map", "tidemark", "tidemark-log", "tidemark-strict"}
	report, err := Run(t.Context(), c, nil)
	require.NoError(t, err)
	for _, res := range report.Contenders {
		t.Logf("%s: failures %v, %d stale of %d reads, worst %v ms, hit ratio %.3f, write errors %d",
			res.Name, res.Failures(), res.StaleReads, res.Reads, res.MaxStaleMs, res.HitRatio, res.WriteErrors)
		assert.Greater(t, res.Reads, uint64(100), res.Name)
		assert.Greater(t, res.Writes, uint64(10), res.Name)
		assert.Positive(t, res.HitRatio, res.Name)
		assert.Positive(t, res.DBReads, res.Name)
		assert.Positive(t, res.Resident, res.Name)
		assert.Zero(t, res.UnknownReads, "%s: %v", res.Name, res.Violations)
		assert.Zero(t, res.ReadErrors, "%s: %v", res.Name, res.Violations)
		if slices.Contains([]string{"tidemark-log", "tidemark-strict"}, res.Name) {
			assert.Empty(t, res.Failures(), "%s: %v", res.Name, res.Violations)
			assert.Zero(t, res.WrongUnannounced, "of the killed writers the outbox tells")
		}
	}
	assert.Positive(t, report.Contenders[0].LostUpdates)
	assert.Empty(t, report.Broken())
	require.NoError(t, execute(t.Context(), c.Store, `DO $$ BEGIN
		IF EXISTS (SELECT FROM pg_namespace WHERE nspname LIKE 'tidemark_storm_%') THEN RAISE 'a schema is left'; END IF; END $$`))
}

// What the database knows, the replicas hear: what a job has changed that knows
// nothing of caches, and what a writer has committed that died then.
func TestPostgresTellsTheReplicasItself(t *testing.T) {
	for _, who := range []contender{tidemarkLogContender{}, tidemarkStrictContender{}} {
		t.Run(who.name(), func(t *testing.T) {
			c := onPostgres(t)
			c.Weather, c.ReadLevel = Weather{}, levelAny // or reads would ask the database by themselves
			r := openRun(t, who, c)
			accounts := drawDistinct(c, streamReconcile, c.Reconcile)
			const dead = 1900
			accounts = append(accounts, dead)
			for _, n := range r.nodes {
				for _, a := range accounts {
					_, _ = read(t, n, a)
				}
			}
			tell, err := r.openAnnouncer(nil)
			require.NoError(t, err)
			assert.Nil(t, tell, "nobody else does")
			require.NoError(t, r.reconcile(t.Context()))
			n, err := r.openNode(r.config.Replicas, Weather{})
			require.NoError(t, err)
			require.NoError(t, r.killDuring(t.Context(), n, dead))
			r.faults.Wait()
			for _, a := range accounts {
				require.Positive(t, overdue(r, a), "a commit is promised to be seen")
			}
			wrong := func() (sum atRest) {
				err := r.database.records.all(t.Context(), func(account int, a Account, _ uint64) {
					for _, n := range r.nodes {
						sum.add(r.compareResident(n, account, a))
					}
				})
				require.NoError(t, err)
				return sum
			}
			assert.Eventually(t, func() bool { return wrong().wrong == 0 }, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestPostgresTellsTheOracleOfEveryCommit(t *testing.T) {
	r := openRun(t, mapContender{}, onPostgres(t))
	ctx, b, o := t.Context(), r.nodes[0].bank, r.oracle

	a, version, err := b.load(ctx, 5)
	require.NoError(t, err)
	require.Equal(t, Account{Balance: openingBalance}, a)
	require.EqualValues(t, openingVersion, version)

	op := o.beginWrite(5)
	require.NoError(t, b.overwrite(ctx, 5, a.deposit(op, 1)))
	version, ok := o.isCommitted(5, op)
	assert.True(t, ok)
	assert.EqualValues(t, 2, version, "the trigger has raised it")

	op = o.beginWrite(5)
	next, version, err := b.transact(ctx, 5, func(current Account) Account { return current.deposit(op, 1) })
	require.NoError(t, err)
	assert.EqualValues(t, 3, version)
	assert.EqualValues(t, openingBalance+2, next.Balance)
	version, _ = o.isCommitted(5, op)
	assert.EqualValues(t, 3, version)

	store, err := newRecordingStore(b, time.Second)
	require.NoError(t, err)
	op = o.beginWrite(5)
	_, err = store.CompareAndSet(ctx, 5, 2, next.deposit(op, 1), [16]byte{1})
	require.Error(t, err, "the base is not current")
	_, ok = o.isCommitted(5, op)
	assert.False(t, ok)
	_, err = store.CompareAndSet(ctx, 5, 3, next.deposit(op, 1), [16]byte{2})
	require.NoError(t, err)
	version, _ = o.isCommitted(5, op)
	assert.EqualValues(t, 4, version)

	ops := []correction{{account: 7, op: o.beginWrite(7), cents: 3}, {account: 5, op: o.beginWrite(5), cents: 4}}
	changes, err := r.database.correct(ctx, ops)
	require.NoError(t, err)
	assert.Equal(t, []change{{7, 2}, {5, 5}}, changes, "in their order")
	a, _, err = b.load(ctx, 5)
	require.NoError(t, err)
	assert.EqualValues(t, openingBalance+7, a.Balance)
	_, err = r.database.correct(ctx, []correction{{account: 5, op: 1}, {account: 1 << 30, op: 1}})
	require.ErrorContains(t, err, "1 of 2 accounts")
	_, version, err = b.load(ctx, 5)
	require.NoError(t, err)
	assert.EqualValues(t, 5, version, "all or nothing")
	_, _, err = b.load(ctx, -1)
	assert.Error(t, err)
	_, _, err = b.transact(ctx, -1, func(a Account) Account { return a })
	assert.Error(t, err)
}

func TestPostgresThatIsNotThereIsAnErrorOfTheStorm(t *testing.T) {
	c := small()
	c.Contenders, c.Store = []string{"map"}, "postgres://nobody@127.0.0.1:1/nothing?connect_timeout=2"
	_, err := Run(t.Context(), c, nil)
	assert.ErrorContains(t, err, "PostgreSQL: ")
}
