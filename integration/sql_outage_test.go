package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/breaker"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/store/postgres"
)

var outageTime = flag.Duration("outage", 3*time.Second, "for how long TestS67_TheDatabaseIsDown stops its database")

const (
	outageKeys  = 200
	outageBusy  = 20 // of those, that are written all the time
	outageTTL   = time.Second
	outageBound = 400 * time.Millisecond // of the reads Within
)

// A meteredStore counts what its database is asked, by tenths of a second.
type meteredStore struct {
	*postgres.Store[string, int]
	m *meter
}

// A meter counts calls by when they are made.
type meter struct {
	began time.Time
	mu    sync.Mutex // guards tenths
	tenth map[int]int
}

func (m *meter) count() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tenth[int(time.Since(m.began)/(100*time.Millisecond))]++
}

// peak returns the most calls that were made in one second between two moments.
func (m *meter) peak(from, to time.Time) (most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := int(from.Sub(m.began)/(100*time.Millisecond)), int(to.Sub(m.began)/(100*time.Millisecond))
	for i := first; i+10 <= last; i++ {
		n := 0
		for j := i; j < i+10; j++ {
			n += m.tenth[j]
		}
		most = max(most, n)
	}
	return most
}

func (s meteredStore) Load(ctx context.Context, key string) (int, tidemark.Version, error) {
	s.m.count()
	return s.Store.Load(ctx, key)
}

func (s meteredStore) LoadMany(ctx context.Context, keys []string) (map[string]tidemark.Loaded[int], error) {
	s.m.count()
	return s.Store.LoadMany(ctx, keys)
}

func (s meteredStore) LoadVersions(ctx context.Context, keys []string) (map[string]tidemark.Version, error) {
	s.m.count()
	return s.Store.LoadVersions(ctx, keys)
}

// A trial is one database that goes down, the replicas on it, and what they have shown.
type trial struct {
	t      *testing.T
	db     *pgtest.Server
	meter  *meter
	acks   map[string]*timeline // of acknowledged versions
	wrote  map[string]*atomic.Int64
	caches []*tidemark.Cache[string, int] // on a log: reads at Any, writers
	aged   []*tidemark.Cache[string, int] // alone, OnStale Reload and Fail

	over     atomic.Bool
	down     atomic.Bool
	broken   atomic.Int64 // promises
	firsts   sync.Once
	any      [2]tally     // while it is up, and while it is down
	within   [3][2]tally  // on the log, alone with OnStale Reload, and with Fail
	busy     atomic.Int64 // reads at Any that failed, of keys that are written all the time
	unavail  atomic.Int64
	errStale atomic.Int64
	writes   [2]tally
	doubts   [2]atomic.Int64
}

// A tally counts reads or writes.
type tally struct{ ok, stale, failed atomic.Int64 }

func (n *tally) String() string {
	return fmt.Sprintf("%d answered, %d of them stale, %d failed", n.ok.Load(), n.stale.Load(), n.failed.Load())
}

func (r *trial) phase() int {
	if r.down.Load() {
		return 1
	}
	return 0
}

// breaks notes that a promise was broken.
func (r *trial) breaks(format string, args ...any) {
	r.broken.Add(1)
	r.firsts.Do(func() { r.t.Errorf(format, args...) })
}

func outageKey(n int) string { return fmt.Sprintf("account %03d", n) }

// newStore returns a store on the trial's database that is metered.
func (r *trial) newStore() meteredStore {
	c, err := pgxpool.ParseConfig(r.db.URL)
	require.NoError(r.t, err)
	c.MaxConns, c.ConnConfig.ConnectTimeout = 8, time.Second
	pool, err := pgxpool.NewWithConfig(r.t.Context(), c)
	require.NoError(r.t, err)
	r.t.Cleanup(pool.Close)
	s, err := postgres.New(pool, postgres.Options[string, int]{Table: "outage", Timeout: time.Second})
	require.NoError(r.t, err)
	return meteredStore{s, r.meter}
}

func (r *trial) newCache(change func(o *tidemark.Options[string, int])) *tidemark.Cache[string, int] {
	b, err := breaker.New(breaker.Options{Window: 2 * time.Second, MinRequests: 5, OpenFor: 500 * time.Millisecond, Probes: 2})
	require.NoError(r.t, err)
	o := tidemark.Options[string, int]{Store: r.newStore(), Breaker: b, LoadTimeout: time.Second, MaxLoads: 8, DoubtTimeout: 2 * time.Second}
	change(&o)
	c, err := tidemark.New(o)
	require.NoError(r.t, err)
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		assert.NoError(r.t, c.Close(ctx))
	})
	require.NoError(r.t, c.Ready(r.t.Context()))
	return c
}

func newTrial(t *testing.T, s *server.Server) *trial {
	r := &trial{t: t, db: pgtest.Start(t), meter: &meter{began: time.Now(), tenth: map[int]int{}},
		acks: map[string]*timeline{}, wrote: map[string]*atomic.Int64{}}
	require.NoError(t, r.newStore().CreateTables(t.Context()))
	for range 3 {
		r.caches = append(r.caches, r.newCache(func(o *tidemark.Options[string, int]) {
			o.Invalidator = logged(dial(t, s.ClientURL()))
			o.TTL, o.StaleWhileRevalidate, o.StaleIfError = outageTTL, outageTTL/4, time.Hour
			o.SoftLoadTimeout, o.MaxStale = 50*time.Millisecond, 5*time.Minute
		}))
	}
	for _, policy := range []tidemark.StalePolicy{tidemark.Reload, tidemark.Fail} {
		r.aged = append(r.aged, r.newCache(func(o *tidemark.Options[string, int]) { o.TTL, o.OnStale = time.Hour, policy }))
	}
	for i := range outageKeys {
		key := outageKey(i)
		e, err := r.caches[0].CompareAndSet(t.Context(), key, 0, 0)
		require.NoError(t, err)
		r.acks[key], r.wrote[key] = &timeline{}, &atomic.Int64{}
		r.acks[key].add(e.Version)
	}
	return r
}

// read reads at Any, and checks that nobody is taken back and that no Age lies.
func (r *trial) read(c *tidemark.Cache[string, int]) {
	seen := map[string]tidemark.Version{}
	for !r.over.Load() {
		n, phase := rand.IntN(outageKeys), r.phase()
		key := outageKey(n)
		acked, began := r.acks[key], time.Now()
		e, err := c.Load(context.Background(), key)
		switch {
		case err != nil && n < outageBusy:
			r.busy.Add(1) // somebody was about to write it when the database went down
		case err != nil:
			r.any[phase].failed.Add(1)
		case e.Version < seen[key]:
			r.breaks("at Any %s went from version %d back to %d", key, seen[key], e.Version)
		case e.Age >= 0 && e.Version < acked.newest(began.Add(-e.Age)):
			r.breaks("at Any %s@%d has an Age of %v, and was replaced before that", key, e.Version, e.Age)
		default:
			seen[key] = e.Version
			r.any[phase].ok.Add(1)
			if e.Stale {
				r.any[phase].stale.Add(1)
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// readWithin reads Within the bound, and checks it; an error must be one that is declared.
func (r *trial) readWithin(c *tidemark.Cache[string, int], kind int) {
	for !r.over.Load() {
		key, phase := outageKey(rand.IntN(outageKeys)), r.phase()
		acked, began := r.acks[key], time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		e, err := c.Read(ctx, key, tidemark.Within(outageBound))
		cancel()
		var failed *tidemark.LoadError
		switch {
		case errors.Is(err, tidemark.ErrUnavailable):
			r.unavail.Add(1)
			r.within[kind][phase].failed.Add(1)
		case errors.Is(err, tidemark.ErrStale):
			r.errStale.Add(1)
			r.within[kind][phase].failed.Add(1)
			if c.Options().OnStale != tidemark.Fail {
				r.breaks("Within fails with %v, though OnStale is Reload", err)
			}
		case errors.As(err, &failed):
			r.within[kind][phase].failed.Add(1)
		case err != nil:
			r.breaks("Within fails with %v", err)
		case e.Stale:
			r.breaks("Within is served what is stale")
		case e.Version < acked.newest(began.Add(-outageBound)):
			r.breaks("Within %v: %s@%d was replaced before that", outageBound, key, e.Version)
		default:
			r.within[kind][phase].ok.Add(1)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// write raises values, reads what it has written, and learns how doubts end.
func (r *trial) write(c *tidemark.Cache[string, int]) {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for !r.over.Load() {
		key, phase := outageKey(rand.IntN(outageBusy)), r.phase()
		e, err := c.Update(context.Background(), key, plusOne)
		var uncertain *tidemark.UncertainError
		var failed *tidemark.LoadError
		switch {
		case err == nil:
			r.acks[key].add(e.Version)
			r.wrote[key].Add(1)
			r.writes[phase].ok.Add(1)
			if got, err := c.Load(context.Background(), key); err == nil && got.Version < e.Version {
				r.breaks("%s was written at %d and is read at %d", key, e.Version, got.Version)
			}
		case errors.As(err, &uncertain):
			r.doubts[phase].Add(1)
			waiting.Go(func() {
				_, committed, err := uncertain.Wait(context.Background())
				if err != nil {
					r.breaks("nobody tells how a write in doubt has ended: %v", err)
				}
				if committed {
					r.wrote[key].Add(1)
				}
			})
		case errors.Is(err, tidemark.ErrUnavailable), errors.As(err, &failed):
			r.writes[phase].failed.Add(1)
		default:
			r.breaks("a write fails with %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// run lets everybody at it and stops the database meanwhile. It returns when that was.
func (r *trial) run() (up, stopped, back, end time.Time) {
	var all sync.WaitGroup
	for _, c := range r.caches {
		all.Go(func() { r.read(c) })
		all.Go(func() { r.read(c) })
		all.Go(func() { r.readWithin(c, 0) })
		all.Go(func() { r.write(c) })
	}
	for i, c := range r.aged {
		all.Go(func() { r.readWithin(c, 1+i) })
	}
	time.Sleep(3 * outageTTL) // until all is warm
	up = time.Now()
	time.Sleep(3 * outageTTL)
	stopped = time.Now()
	require.NoError(r.t, r.db.Kill())
	time.Sleep(outageTTL * 3 / 2) // of what is under way
	r.down.Store(true)
	for _, c := range r.caches {
		within(r.t, func() bool { return c.Stats().BreakerOpens > 0 }, "the breaker does not open")
	}
	time.Sleep(time.Until(stopped.Add(*outageTime)))
	r.down.Store(false)
	back = time.Now() // at the earliest
	require.NoError(r.t, r.db.Restart())
	for _, c := range r.caches {
		await(r.t, patience, 10*time.Millisecond, func() bool {
			s := c.Stats()
			return s.Breaker == tidemark.BreakerClosed && s.InDoubt == 0
		}, "the breaker stays open")
	}
	r.t.Logf("all breakers are closed, and nothing is in doubt, %v after the database began to start", time.Since(back).Round(time.Millisecond))
	time.Sleep(12 * time.Second) // longer than any pause
	end = time.Now()
	r.over.Store(true)
	all.Wait()
	return up, stopped, back, end
}

// TestS67_TheDatabaseIsDown stops the database under readers and writers of several
// replicas (-outage says for how long): breakers open, reads at Any go on and say what is
// stale, reads Within fail as declared and never lie, writes fail without a doubt, no
// update is lost, and the database gets little more when it is back than it had before.
func TestS67_TheDatabaseIsDown(t *testing.T) {
	r := newTrial(t, natsServer(t, streaming(t)))
	up, stopped, back, end := r.run()
	assert.Zero(t, r.broken.Load(), "broken promises")

	assert.Positive(t, r.any[1].ok.Load())
	assert.Zero(t, r.any[1].failed.Load(), "reads at Any go on")
	assert.Greater(t, r.any[1].stale.Load(), r.any[1].ok.Load()/2, "and say what is stale")
	for kind := range r.within {
		assert.Positive(t, r.within[kind][1].failed.Load(), "Within, %d", kind)
	}
	assert.Positive(t, r.unavail.Load(), "the breaker spares the source")
	assert.Positive(t, r.errStale.Load(), "with OnStale Fail")
	assert.Positive(t, r.writes[1].failed.Load())
	assert.Zero(t, r.writes[1].ok.Load())
	assert.Zero(t, r.doubts[1].Load(), "no write is in doubt that began when the breaker was open")

	before, during, after := r.meter.peak(up, stopped), r.meter.peak(stopped.Add(outageTTL*3/2), back), r.meter.peak(back, end)
	t.Logf("calls of the database for loads, at most in one second: %d before, %d while it was down for %v, %d after", before, during, *outageTime, after)
	t.Logf("at Any: up: %v; down: %v; and %d reads failed of the %d keys that were about to be written", &r.any[0], &r.any[1], r.busy.Load(), outageBusy)
	for kind, name := range []string{"on the log", "alone, Reload", "alone, Fail"} {
		t.Logf("Within %v, %s: up: %v; down: %v", outageBound, name, &r.within[kind][0], &r.within[kind][1])
	}
	t.Logf("writes: up: %v, %d in doubt; down: %v, %d in doubt", &r.writes[0], r.doubts[0].Load(), &r.writes[1], r.doubts[1].Load())
	for i, c := range r.caches {
		s := c.Stats()
		t.Logf("replica %d: opened %d times, refused %d loads and %d writes, served stale %d + %d", i, s.BreakerOpens,
			s.DeclinedByBreaker, s.DeclinedWrites, s.StaleWhileRevalidate, s.StaleIfError)
	}
	assert.Less(t, after, 2*before, "when it is back")

	for key, wrote := range r.wrote {
		e, err := r.caches[0].Read(t.Context(), key, tidemark.Linearizable)
		require.NoError(t, err)
		assert.EqualValues(t, wrote.Load(), e.Value, "%s: updates that were lost, or made twice", key)
	}
}
