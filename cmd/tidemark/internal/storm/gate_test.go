package storm

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

func TestGateHangsAndThenRefuses(t *testing.T) {
	var g gate
	require.NoError(t, g.pass(t.Context()))
	const length = 400 * time.Millisecond
	begin := time.Now()
	g.shut(length)
	assert.True(t, g.isShut())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := g.pass(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, tidemark.ErrUnavailable, "nothing was sent")
	require.ErrorIs(t, g.pass(context.Background()), tidemark.ErrUnavailable)
	assert.GreaterOrEqual(t, time.Since(begin), length/2, "it hangs")
	for range 100 {
		require.ErrorIs(t, g.pass(context.Background()), tidemark.ErrUnavailable)
	}
	assert.Less(t, time.Since(begin), 10*time.Second, "it refuses at once")
	g.open()
	require.NoError(t, g.pass(t.Context()))

	g.shut(time.Hour)
	begin = time.Now()
	require.ErrorIs(t, g.pass(context.Background()), tidemark.ErrUnavailable)
	assert.GreaterOrEqual(t, time.Since(begin), connectTimeout)
	passed := make(chan error)
	go func() { passed <- g.pass(context.Background()) }()
	select {
	case err := <-passed:
		require.FailNow(t, "it does not hang", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	g.open()
	require.NoError(t, <-passed, "the database is back")
	assert.False(t, g.isShut())
	g.open() // once more is no harm
}

// Everything that a replica does with the database fails while that is gone; a writer
// that is to die and the overnight job still reach it.
func TestOutageIsTheReplicas(t *testing.T) {
	for _, who := range []contender{mapContender{}, ristrettoContender{}, tidemarkContender{}} {
		t.Run(who.name(), func(t *testing.T) {
			c := small()
			c.Weather = Weather{}
			r := openRun(t, who, c)
			n := r.nodes[0]
			_, err := n.replica.read(t.Context(), 1)
			require.NoError(t, err)
			require.Eventually(t, func() bool { _, resident := n.replica.peek(1); return resident }, 5*time.Second, time.Millisecond)
			r.gate.shut(0)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			got, err := n.replica.read(ctx, 1)
			require.NoError(t, err, "what is in memory is served")
			assert.True(t, got.hit)
			_, err = n.replica.read(ctx, 2)
			require.Error(t, err)
			require.Error(t, n.replica.deposit(ctx, 1, r.oracle.beginWrite(1), 100))
			require.NoError(t, r.killWriter(t.Context(), 0))
			require.NoError(t, r.reconcile(t.Context()))
			r.gate.open()
			_, err = n.replica.read(t.Context(), 2)
			require.NoError(t, err)
		})
	}
}

func TestOutageFallsBetweenTheOtherFaults(t *testing.T) {
	for seed := range uint64(50) {
		c := Default()
		c.Seed = seed
		without := schedule(c)
		c.DatabaseOutage = c.Duration / 2
		require.NoError(t, c.Validate())
		faults := schedule(c)
		require.Len(t, faults, len(without)+1)
		var gone fault
		for _, f := range faults {
			if f.kind == faultOutage {
				gone = f
			}
		}
		require.Equal(t, c.DatabaseOutage, gone.length)
		for _, f := range faults {
			inside := f.kind != faultOutage && f.at > gone.at && f.at < gone.at+gone.length
			assert.False(t, inside, "seed %d: %v at %v", seed, f, f.at)
			assert.LessOrEqual(t, f.at, time.Duration(faultsTo*float64(c.Duration)))
		}
		assert.LessOrEqual(t, gone.at+gone.length, time.Duration(faultsTo*float64(c.Duration)), "the storm sees it end")
	}
	c := Default()
	c.DatabaseOutage = c.Duration/2 + 1
	assert.ErrorContains(t, c.Validate(), "database outage is 3.000000001s, want at most half")
}

// excusing serves what it has at all times, and says so when the database is gone.
type excusing struct {
	*mapReplica
	sound
}

func (e *excusing) read(ctx context.Context, account int) (answer, error) {
	if a, _, err := e.sound.bank.load(ctx, account); err == nil {
		e.mapReplica.store(account, a)
		return answer{account: a}, nil
	}
	got, err := e.mapReplica.read(ctx, account)
	got.flagged = err == nil
	return got, err
}
func (e *excusing) peek(account int) (Account, bool) { return e.sound.peek(account) }
func (e *excusing) close(context.Context) error      { return nil }
func (e *excusing) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	return e.sound.deposit(ctx, account, op, cents)
}

func TestStormCountsWhatAnOutageDid(t *testing.T) {
	c := small()
	c.Cuts, c.Freezes, c.Stalls, c.Kills, c.Reconcile, c.Quiet = 0, 0, 0, 0, 0, 0
	c.DatabaseOutage = time.Second
	res, err := runContender(t.Context(), c, mutant{
		bound: promise{maxStale: 1},
		start: func(env *environment) (replica, error) {
			return &excusing{newMapReplica(env, 0), sound{env.bank}}, nil
		},
	}, Status{}, func(Status) {})
	require.NoError(t, err)
	require.Len(t, res.Events, 1)
	assert.Equal(t, "outage", res.Events[0].Kind)
	require.NotNil(t, res.Outage)
	o := *res.Outage
	assert.Equal(t, 1000.0, o.ForMs)
	assert.Positive(t, o.ReadsServed)
	assert.Positive(t, o.ReadsFailed)
	assert.Positive(t, o.FlaggedReads)
	assert.LessOrEqual(t, o.FlaggedReads, o.ReadsServed)
	assert.LessOrEqual(t, o.ReadsFailed, res.ReadErrors)
	assert.Positive(t, o.DBReadsBefore)
	assert.Positive(t, o.DBReadsPeak)
	assert.Zero(t, res.BeyondBound, "what says that it is old breaks no bound: %v", res.Violations)
	sum := func(counted []uint64) (n uint64) {
		for _, c := range counted {
			n += c
		}
		return n
	}
	assert.GreaterOrEqual(t, sum(res.Series.Reads), res.Reads, "and those of the quiet time")
	assert.Equal(t, res.ReadErrors, sum(res.Series.ReadErrors))
	assert.GreaterOrEqual(t, sum(res.Series.FlaggedReads), o.FlaggedReads)
	middle := int((o.AtMs + o.ForMs/2) / res.Series.SliceMs)
	assert.Zero(t, res.Series.DBReads[middle], "there is no database to read from")
	assert.NotZero(t, res.Series.ReadErrors[middle])
}

// A flagged read is excused from the bound alone.
func TestFlaggedReadsAreHeldToTheTideMark(t *testing.T) {
	p := promise{tideMark: true, maxStale: time.Millisecond}
	old := verdict{version: 1, stale: true, staleFor: time.Second}
	assert.Empty(t, violationOf(old, p, true))
	assert.Equal(t, "beyond the stated bound of 1ms", violationOf(old, p, false))
	old.belowMark = true
	assert.Equal(t, "below what the replica had been told", violationOf(old, p, true))

	r := openRun(t, mutant{bound: p, start: func(env *environment) (replica, error) { return &sound{env.bank}, nil }}, small())
	for _, flagged := range []bool{true, false} {
		for _, v := range []verdict{{version: 1, stale: true, staleFor: time.Second}, {version: 1, belowMark: true}} {
			mine := r.newCounts()
			r.judge(r.oracle.beginRead(0, 0), answer{flagged: flagged}, v, &mine, &mine.slices[0])
			wrong := uint64(1)
			if flagged && !v.belowMark {
				wrong = 0
			}
			assert.Equal(t, wrong, mine.beyond)
			assert.Equal(t, wrong, mine.slices[0].wrong)
		}
	}
}
