package storm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/redistest"
)

// small returns a storm that fits into a test: everything happens, but briefly.
func small() Config {
	c := Default()
	c.Accounts, c.Capacity = 2000, 500
	c.Duration, c.Quiet = 2*time.Second, 2*time.Second
	c.Readers, c.ReadRate, c.WriteRate = 4, 20_000, 400
	c.TTL = 300 * time.Millisecond
	c.Cuts, c.CutFor = 1, 200*time.Millisecond
	c.Freezes, c.FreezeFor = 1, 200*time.Millisecond
	c.Stalls, c.StallFor = 1, 200*time.Millisecond
	c.Kills, c.Reconcile = 1, 100
	c.Weather.Drop, c.Weather.Duplicate, c.Weather.Reorder, c.Weather.Delay = 0.02, 0.05, 0.01, 0.01
	return c
}

// openRun returns a run of who with everything open and nothing going on.
func openRun(t *testing.T, who contender, c Config) *run {
	t.Helper()
	r := &run{config: c, contender: who, promise: who.promise(c), killed: map[change]struct{}{}, report: func(string) {}}
	err := r.open(t.Context(), t.TempDir())
	t.Cleanup(func() { assert.NoError(t, r.close()) })
	require.NoError(t, err)
	r.clock = newClock(r.oracle.now(), time.Minute)
	return r
}

func TestStormEndToEnd(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	before := runtime.NumGoroutine()
	c := small()
	c.Redis = redistest.Address(t)
	c.Contenders = Names(true)
	var events []Status
	report, err := Run(t.Context(), c, func(s Status) { events = append(events, s) })
	require.NoError(t, err)
	require.Len(t, report.Contenders, len(contenders))
	results := map[string]Result{}
	for i, res := range report.Contenders {
		assert.Equal(t, c.Contenders[i], res.Name)
		results[res.Name] = res
		t.Logf("%s: failures %v, %d stale of %d reads, worst %v ms, hit ratio %.3f, messages %+v",
			res.Name, res.Failures(), res.StaleReads, res.Reads, res.MaxStaleMs, res.HitRatio, res.Messages)

		assert.Greater(t, res.Reads, uint64(100), res.Name)
		assert.Greater(t, res.Writes, uint64(10), res.Name)
		assert.Greater(t, res.HitRatio, 0.1, res.Name)
		assert.Less(t, res.HitRatio, 1.0, res.Name)
		assert.Positive(t, res.DBReads, res.Name)
		assert.Positive(t, res.ReadP50Ns, res.Name)
		assert.GreaterOrEqual(t, res.ReadP99Ns, res.ReadP50Ns, res.Name)
		assert.Positive(t, res.WriteP50Us, res.Name)
		assert.Positive(t, res.ReadsPerS, res.Name)
		assert.LessOrEqual(t, res.ReadsPerS, 1.05*float64(res.Reads)/c.Duration.Seconds(), "%s: readers that end late have taken longer", res.Name)
		assert.Zero(t, res.UnknownReads, "%s invented values: %v", res.Name, res.Violations)
		assert.Zero(t, res.ReadErrors, "%s: %v", res.Name, res.Violations)
		if res.Name != "tidemark-strict" { // whose deposits give up after strictDoubt, which a loaded machine may take
			assert.Zero(t, res.DoubtfulWrites, res.Name)
		}
		assert.Len(t, res.Faults, len(schedule(c)), res.Name)
		if res.Name != "ttl" { // whose entries have expired in the quiet time
			assert.Positive(t, res.Resident, res.Name)
		}
	}
	for _, name := range []string{"map", "ttl"} {
		assert.Positive(t, results[name].LostUpdates, name)
		assert.Positive(t, results[name].LostCents, name)
		assert.Positive(t, results[name].StaleReads, name)
		assert.Zero(t, results[name].Messages, name)
	}
	assert.Positive(t, results["map"].StaleP50Ms)
	assert.LessOrEqual(t, results["map"].StaleP50Ms, results["map"].MaxStaleMs)
	assert.Positive(t, results["ristretto"].StaleReads)
	for _, name := range []string{"ristretto", "redis", "redis-fenced"} {
		assert.Zero(t, results[name].LostUpdates, "%s: its deposits are transactions", name)
	}

	tidemark := results["tidemark"]
	assert.Empty(t, report.Broken(), tidemark.Violations)
	assert.Zero(t, tidemark.LostCents)
	assert.Positive(t, tidemark.Messages.Dropped)
	assert.Positive(t, tidemark.Messages.Duplicated)

	withLog := results["tidemark-log"]
	assert.Zero(t, withLog.BeyondBound, withLog.Violations)
	assert.Zero(t, withLog.WrongAtRest, withLog.Violations)
	assert.Zero(t, withLog.LostCents)
	assert.Positive(t, withLog.StaleReads, "a message takes its time, log or not")
	assert.Positive(t, withLog.Messages.Dropped, "of its hints")

	strict := results["tidemark-strict"]
	assert.Zero(t, strict.BeyondBound, strict.Violations)
	assert.Zero(t, strict.WrongAtRest, strict.Violations)
	assert.Zero(t, strict.LostCents)

	phases := map[string]bool{}
	for _, e := range events {
		phases[e.Phase] = true
	}
	assert.True(t, phases["load"] && phases["quiet"], phases)
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	assert.Empty(t, left, "the database files are removed")
	assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, 5*time.Second, 20*time.Millisecond,
		"%d goroutines before, %d after", before, runtime.NumGoroutine())
}

func TestStormStopsWhenItIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c := small()
	c.Contenders, c.Duration = []string{"map"}, time.Minute
	begin := time.Now()
	_, err := Run(ctx, c, nil)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(begin), 10*time.Second)
}

func TestStormRefusesABadConfig(t *testing.T) {
	c := Default()
	c.Contenders = []string{"map", "nosuch", "map"}
	c.Replicas, c.Weather.Drop, c.Bound, c.ReadLevel = 0, 2, 0, "some"
	c.Store, c.Redis, c.RedisTTL = "mysql://somewhere", "nowhere", 0
	_, err := Run(t.Context(), c, nil)
	require.Error(t, err)
	for _, want := range []string{`unknown contender "nosuch"`, `"map" is named twice`, "replicas is 0", "drop is 2", "bound is 0s", `read level is "some"`,
		"store is no URL", "Redis is not at host:port", "redis ttl is 0s"} {
		assert.ErrorContains(t, err, want)
	}
	assert.NoError(t, Default().Validate())
	c = Default()
	c.Contenders = Names(true)
	assert.ErrorContains(t, c.Validate(), `"redis-fenced" needs a Redis`)
	for _, address := range []string{"127.0.0.1:6379", "redis://:secret@127.0.0.1:6379/3"} {
		c.Redis = address
		assert.NoError(t, c.Validate())
	}
	c.Store = "postgres://user:secret@127.0.0.1/db"
	assert.NoError(t, c.Validate())
	b, err := json.Marshal(c)
	require.NoError(t, err)
	assert.NotContains(t, string(b)+c.String(), "secret")
	assert.Contains(t, string(b), `"store":"postgres","redis":true`)
}

// A mutant is mapContender with one thing wrong. The storm must find it.
type mutant struct {
	mapContender
	bound promise
	start func(*environment) (replica, error)
}

func (m mutant) promise(Config) promise                    { return m.bound }
func (m mutant) open(env *environment) (replica, error)    { return m.start(env) }
func (mutant) openAnnouncer(*nats.Conn) (announcer, error) { return nil, nil }

// runMutant runs a short storm against m.
func runMutant(t *testing.T, m mutant) Result {
	t.Helper()
	c := small()
	c.Duration, c.Quiet, c.Reconcile, c.Kills = time.Second, 0, 0, 0
	res, err := runContender(t.Context(), c, m, Status{}, func(Status) {})
	require.NoError(t, err)
	return res
}

// sound is what the mutants are made of: a cache that is always right, because
// it asks the database.
type sound struct{ bank *bank }

func (s *sound) read(ctx context.Context, account int) (answer, error) {
	a, _, err := s.bank.load(ctx, account)
	return answer{account: a, hit: true}, err
}

func (s *sound) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	_, _, err := s.bank.transact(ctx, account, func(current Account) Account { return current.deposit(op, cents) })
	return err
}

func (s *sound) peek(account int) (Account, bool) {
	a, _, err := s.bank.records.row(context.Background(), account) // no network: this is not a read
	return a, err == nil
}

func (s *sound) close(context.Context) error { return nil }

func TestStormAcceptsACacheThatIsAlwaysRight(t *testing.T) {
	res := runMutant(t, mutant{
		bound: promise{tideMark: true, maxStale: 1},
		start: func(env *environment) (replica, error) { return &sound{env.bank}, nil },
	})
	assert.Empty(t, res.Failures(), res.Violations)
	assert.Zero(t, res.StaleReads)
	assert.Zero(t, res.MaxStaleMs)
	assert.Zero(t, res.LostCents)
	assert.EqualValues(t, 3*small().Accounts, res.Resident)
}

// forgetful acknowledges every tenth deposit without making it.
type forgetful struct {
	sound
	mu sync.Mutex
	n  int
}

func (f *forgetful) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	f.mu.Lock()
	f.n++
	skip := f.n%10 == 0
	f.mu.Unlock()
	if skip {
		return nil
	}
	return f.sound.deposit(ctx, account, op, cents)
}

func TestStormFindsLostDeposits(t *testing.T) {
	res := runMutant(t, mutant{start: func(env *environment) (replica, error) {
		return &forgetful{sound: sound{env.bank}}, nil
	}})
	assert.InDelta(t, float64(res.Writes)/10, res.LostUpdates, 3)
	assert.Positive(t, res.LostCents)
	assert.Zero(t, res.BackwardReads)
	assert.Zero(t, res.WrongAtRest)
}

// generous makes every deposit twice.
type generous struct{ sound }

func (g *generous) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	_, _, err := g.bank.transact(ctx, account, func(current Account) Account {
		return current.deposit(op, cents).deposit(op, cents)
	})
	return err
}

func TestStormFindsRepeatedDeposits(t *testing.T) {
	res := runMutant(t, mutant{start: func(env *environment) (replica, error) {
		return &generous{sound{env.bank}}, nil
	}})
	assert.InDelta(t, res.Writes, res.LostUpdates, 1)
	assert.Positive(t, res.LostCents)
}

// wavering now and then returns the first value that it saw of an account.
type wavering struct {
	sound
	mu    sync.Mutex
	n     int
	first map[int]Account
}

func (w *wavering) read(ctx context.Context, account int) (answer, error) {
	a, err := w.sound.read(ctx, account)
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.first[account]; !ok {
		w.first[account] = a.account
	}
	if w.n++; w.n%10 == 0 {
		a.account = w.first[account]
	}
	return a, err
}

func TestStormFindsReadsThatGoBackward(t *testing.T) {
	res := runMutant(t, mutant{bound: promise{tideMark: true}, start: func(env *environment) (replica, error) {
		return &wavering{sound: sound{env.bank}, first: map[int]Account{}}, nil
	}})
	assert.Positive(t, res.BackwardReads)
	assert.GreaterOrEqual(t, res.BeyondBound, res.BackwardReads, "a step back is below the tide mark")
	assert.Positive(t, res.StaleReads)
	assert.NotEmpty(t, res.Violations)
	assert.Zero(t, res.LostUpdates)
}

// deaf caches, and does nothing about the deletes that it is told of.
type deaf struct {
	*mapReplica
	sound
	bus  hint
	stop func()
}

func openDeaf(env *environment) (replica, error) {
	nc, err := env.connect()
	if err != nil {
		return nil, err
	}
	d := &deaf{mapReplica: newMapReplica(env, 0), sound: sound{env.bank}}
	d.bus = env.through(&subject{nc: nc, name: "deaf"}, ears{message: func(msg []byte) ([]change, bool) {
		return []change{{int(binary.LittleEndian.Uint64(msg)), binary.LittleEndian.Uint64(msg[8:])}}, false
	}})
	d.stop, err = d.bus.Subscribe(func([]byte) {}, func(string) {})
	return d, err
}

func (d *deaf) read(ctx context.Context, account int) (answer, error) {
	return d.mapReplica.read(ctx, account)
}
func (d *deaf) peek(account int) (Account, bool) { return d.mapReplica.peek(account) }
func (d *deaf) close(context.Context) error      { d.stop(); return nil }

func (d *deaf) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	if err := d.sound.deposit(ctx, account, op, cents); err != nil {
		return err
	}
	_, version, err := d.sound.bank.load(ctx, account)
	if err != nil {
		return err
	}
	msg := binary.LittleEndian.AppendUint64(nil, uint64(account))
	return d.bus.Publish(ctx, binary.LittleEndian.AppendUint64(msg, version))
}

func TestStormFindsAReplicaThatIgnoresWhatItIsTold(t *testing.T) {
	res := runMutant(t, mutant{bound: promise{tideMark: true}, start: openDeaf})
	assert.Positive(t, res.BeyondBound)
	assert.Positive(t, res.WrongAtRest)
	assert.Zero(t, res.WrongUnannounced)
	assert.Zero(t, res.LostUpdates)
}

func TestStormFindsAReplicaThatDoesNotDoubt(t *testing.T) {
	c := small()
	c.Accounts, c.Replicas, c.Weather = 1, 1, Weather{}
	r := openRun(t, mutant{bound: promise{tideMark: true}, start: func(env *environment) (replica, error) {
		nc, err := env.connect()
		if err != nil {
			return nil, err
		}
		d := &deaf{mapReplica: newMapReplica(env, 0), sound: sound{env.bank}}
		d.bus = env.through(&subject{nc: nc, name: "trusting"}, ears{message: func([]byte) ([]change, bool) { return nil, true }})
		d.stop, err = d.bus.Subscribe(func([]byte) {}, func(string) {})
		return d, err
	}}, c)
	n := r.nodes[0]
	seen := r.newCounts()
	r.readOne(t.Context(), n, 0, false, &seen)
	require.NoError(t, r.deposit(t.Context(), n, 0, 5))
	n.replica.(*deaf).mapReplica.store(0, Account{Balance: openingBalance})
	require.Eventually(t, func() bool { return r.oracle.doubted[0].Load() != 0 }, 5*time.Second, time.Millisecond)
	r.readOne(t.Context(), n, 0, false, &seen)
	assert.EqualValues(t, 1, seen.beyond)
}

// The commit of a writer that is killed then is held against who promises it, and
// nobody else.
func TestStormHoldsStrictWritersToTheirCommits(t *testing.T) {
	for _, committed := range []bool{true, false} {
		c := small()
		c.Accounts, c.Replicas, c.Weather = 1, 1, Weather{}
		r := openRun(t, mutant{bound: promise{maxStale: time.Minute, confirmed: true, committed: committed}, start: openDeaf}, c)
		require.NoError(t, r.killWriter(t.Context(), 0))
		_, confirmed, promised := r.oracle.staleSince(0, openingVersion+depositsBeforeDeath, 1<<62)
		assert.Equal(t, committed, promised, "at %v", confirmed)
	}
}

func TestStormFindsReadsThatMissWhatWasConfirmedLongAgo(t *testing.T) {
	for _, c := range []struct {
		bound promise
		found bool
	}{
		{promise{maxStale: 100 * time.Millisecond, confirmed: true}, true},
		{promise{maxStale: time.Minute, confirmed: true}, false},
		{promise{confirmed: true}, false},
		{promise{maxStale: 100 * time.Millisecond, confirmed: true, counted: true}, true},
	} {
		res := runMutant(t, mutant{bound: c.bound, start: openDeaf})
		assert.Equal(t, c.found, res.BeyondBound > 0, "%+v: %d reads", c.bound, res.BeyondBound)
		if c.bound.counted {
			assert.Equal(t, res.BeyondBound, res.Unpromised, "counted, but not held against it")
			assert.NotContains(t, strings.Join(res.Failures(), " "), "bound")
		} else {
			assert.Zero(t, res.Unpromised)
		}
		assert.Positive(t, res.StaleReads)
	}
}

// ashamed makes its deposits and says that they failed, so nobody may count on
// them.
type ashamed struct{ *deaf }

var errAshamed = errors.New("told nobody")

func (a ashamed) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	if err := a.deaf.deposit(ctx, account, op, cents); err != nil {
		return err
	}
	return errAshamed
}

func TestStormHoldsNobodyToWhatItDidNotConfirm(t *testing.T) {
	for _, bound := range []promise{{confirmed: true}, {}, {confirmed: true, committed: true}} {
		bound.maxStale = 100 * time.Millisecond
		res := runMutant(t, mutant{
			bound: bound,
			start: func(env *environment) (replica, error) {
				d, err := openDeaf(env)
				if err != nil {
					return nil, err
				}
				return ashamed{d.(*deaf)}, nil
			},
		})
		assert.Equal(t, bound.confirmed && !bound.committed, res.BeyondBound == 0, "%+v: %d reads", bound, res.BeyondBound)
		assert.Positive(t, res.StaleReads, "they are stale all the same")
		assert.Positive(t, res.WriteErrors)
		assert.Zero(t, res.LostUpdates, "and in the books")
		assert.Zero(t, res.LostCents)
	}
}

// inventive returns values that nobody wrote.
type inventive struct{ sound }

func (i *inventive) read(context.Context, int) (answer, error) {
	return answer{account: Account{Op: 1 << 40}, hit: true}, nil
}

func TestStormFindsInventedValues(t *testing.T) {
	res := runMutant(t, mutant{start: func(env *environment) (replica, error) {
		return &inventive{sound{env.bank}}, nil
	}})
	assert.Equal(t, res.Reads, res.UnknownReads)
	assert.NotEmpty(t, res.Failures())
}
