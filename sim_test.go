package tidemark

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/history"
	"github.com/tidemark-go/tidemark/internal/sim"
)

var (
	simSeeds = flag.Int("sim.seeds", defaultSeeds, "how many seeds TestSim runs; with -short a tenth of them")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
	simSeed  = flag.Uint64("sim.seed", 0, "the only seed that TestSim runs, with its trace on standard output")
)

// simAgain says which seeds are run twice, to see that nothing but the seed
// decides what happens.
const simAgain = 20

// TestSim runs real caches in a simulated world, with faults, and holds what
// they return against what the source was (T3). A seed that fails is run again
// with its trace by -sim.seed.
func TestSim(t *testing.T) {
	debugging := os.Getenv("GODEBUG")
	require.NoError(t, os.Setenv("GODEBUG", debugging+",tracebacklabels=1")) // see runSim
	t.Cleanup(func() { _ = os.Setenv("GODEBUG", debugging) })
	if *simSeed != 0 {
		r := runSim(t, *simSeed, os.Stdout)
		again := runSim(t, *simSeed, nil)
		t.Logf("%d steps, %d reads checked, trace hash %x", r.steps, r.reads, r.hash)
		require.Empty(t, r.violations)
		require.Equal(t, r.hash, again.hash, "a second run went another way")
		return
	}
	seeds := *simSeeds
	if testing.Short() {
		seeds = (seeds + 9) / 10
	}
	var next, reads, steps, failed atomic.Int64
	began := time.Now()
	t.Run("seeds", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("worker", func(t *testing.T) {
				t.Parallel()
				for {
					n := next.Add(1)
					if n > int64(seeds) || failed.Load() >= 5 {
						return
					}
					seed := *simFirst + uint64(n) - 1
					r := runSim(t, seed, nil)
					reads.Add(int64(r.reads))
					steps.Add(int64(r.steps))
					if len(r.violations) > 0 {
						failed.Add(1)
						t.Errorf("seed %d, after %d others: %s\nits trace: go test -run 'TestSim$' -sim.seed %[1]d .", seed, n-1, strings.Join(r.violations, "\n"))
					}
					if seed%simAgain == 0 {
						assert.Equal(t, r.hash, runSim(t, seed, nil).hash, "seed %d went another way when it was run again", seed)
					}
				}
			})
		}
	})
	t.Logf("%d seeds, %d steps, %d reads checked in %v", min(next.Load(), int64(seeds)), steps.Load(), reads.Load(), time.Since(began).Round(time.Millisecond))
}

// A simResult is what became of one seed.
type simResult struct {
	violations   []string
	hash         uint64
	reads, steps int
}

// runSim runs one seed.
func runSim(t *testing.T, seed uint64, trace io.Writer) (result simResult) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil { // of the bubble: goroutines are left in it
			result.violations = append(result.violations, fmt.Sprintf("I20 clean close: %v", p))
		}
	}()
	// If a goroutine of a cache panics the process ends; the label tells by which seed.
	pprof.Do(t.Context(), pprof.Labels("sim.seed", fmt.Sprint(seed)), func(context.Context) {
		synctest.Test(t, func(t *testing.T) { result = simulate(seed, trace) })
	})
	return result
}

// simulate runs one seed in the bubble that it is called in.
func simulate(seed uint64, trace io.Writer) (result simResult) {
	r := newSimRun(seed, trace)
	defer func() {
		if p := recover(); p != nil {
			r.w.Check.Fail("panic", "%v\n%s", p, debug.Stack())
		}
		result = simResult{r.w.Check.Violations, r.w.Hash(), r.w.Check.Reads, r.w.Steps()}
	}()
	r.chaos()
	r.heal()
	r.atRest()
	r.end()
	r.histories()
	return result
}

// A simRun is one seed's run. All but what the clients' goroutines do is the
// driver's, one step after the other.
type simRun struct {
	w *sim.World

	simDeployment
	lagging  bool
	bulk     bool
	versions bool // the source tells them
	options  Options[string, int]
	beat     time.Duration
	puts     bool // bare ones, of any age
	keys     []string
	steps    int
	breakers bool
	dark     string // a key that somebody changes and tells nobody, or ""
	rush     int    // in how many of ten steps several processes act
	zeal     int    // how likely a client is to act, compared with others

	replicas  []*simReplica
	leaving   []*simReplica // those that were closed, and may be at it
	clients   []*simClient
	outside   *simOutside
	tags      int
	events    []*simEvent
	graveyard []*Cache[string, int] // of processes that were killed
	untold    []string              // keys of changes that somebody has still to announce

	mu       sync.Mutex // guards finished
	finished []*simOp
}

// A simDeployment is how the replicas are connected.
type simDeployment struct {
	name      string
	weight    int
	hint, log bool
	strict    bool
}

var simDeployments = []simDeployment{
	{name: "one process", weight: 1},
	{name: "hint", weight: 3, hint: true},
	{name: "log", weight: 3, log: true},
	{name: "log and hint", weight: 3, log: true, hint: true},
	{name: "log, strict", weight: 3, log: true, strict: true},
	{name: "log and hint, strict", weight: 2, log: true, hint: true, strict: true},
}

// connected reports whether there is more than one replica.
func (d simDeployment) connected() bool { return d.hint || d.log }

// A simReplica is one process with a cache.
type simReplica struct {
	proc     *sim.Process
	cache    *Cache[string, int]
	said     map[string]sim.Mark // what its clients know to be written or announced here
	closing  bool
	bypassed bool
	breaker  *simBreaker
	thaw     int64 // when it is no longer frozen
	frozen   int64 // since when
}

// A simOutside is a process that changes the source and has a Publisher.
type simOutside struct {
	proc      *sim.Process
	publisher *Publisher[string]
}

func newSimRun(seed uint64, trace io.Writer) *simRun {
	w := sim.New(seed, trace)
	r := &simRun{w: w}
	at := w.IntN(15)
	for _, r.simDeployment = range simDeployments {
		if at -= r.weight; at < 0 {
			break
		}
	}
	n := 1
	if r.connected() {
		n = 3 + w.IntN(3)*w.IntN(2) + w.IntN(4)*w.IntN(2)*w.IntN(2)
	}
	w.Faults, w.Check.Logged, w.Check.Committed = sim.Swarm(w), r.log, r.strict
	if !r.log { // ages without a log are those of the monotonic clock
		w.Faults.Suspend, w.Faults.ClockSet, w.Faults.ClockSlow = 0, 0, 0
	}
	r.choose()
	if r.hint && !r.log {
		w.Check.Beat = r.beat
	}
	w.Trace("seed %d: %d replicas, %s, lag %v, bulk %t, cost %d, ttl %v, refresh %v, beat %v, faults%v",
		seed, n, r.name, w.Lag, r.bulk, r.options.MaxCost, r.options.TTL, r.options.RefreshAfter, r.beat, w.Faults)
	for _, key := range r.keys[:1+w.IntN(len(r.keys))] {
		w.Source.Set(key, r.tag(), false, -1)
	}
	for range n {
		r.replicas = append(r.replicas, r.newReplica())
	}
	if r.connected() {
		r.outside = r.newOutside()
	}
	for i := range 2 + w.IntN(4) {
		r.clients = append(r.clients, &simClient{id: i + 1})
	}
	w.Settle()
	return r
}

// choose draws the configuration.
func (r *simRun) choose() {
	w := r.w
	r.steps = 250 + w.IntN(500)
	r.rush, r.zeal = []int{1, 3, 6}[w.IntN(3)], []int{15, 30, 60}[w.IntN(3)]
	r.keys = []string{"a", "b", "c", "d"}[:1+w.IntN(4)]
	r.beat = []time.Duration{20, 50, 100, 250}[w.IntN(4)]*time.Millisecond + time.Duration(1+w.IntN(1000))
	r.bulk = w.IntN(2) == 0
	r.puts = w.IntN(3) > 0
	w.Source.Undated = w.IntN(3) == 0
	w.Doubt = w.Between(50*time.Millisecond, 300*time.Millisecond)
	o := Options[string, int]{
		MaxCost: 64, ExpectedEntries: 16, Shards: 1 << w.IntN(2), TTLJitter: -1,
		LoadTimeout: w.Between(100*time.Millisecond, time.Second), DoubtTimeout: w.Doubt, Strict: r.strict,
	}
	if r.versions = w.IntN(3) == 0; r.versions {
		r.keys = r.keys[:1] // which keys share a question is the scheduler's choice
	}
	if w.IntN(5) == 0 { // so little that Ristretto has no choice, which would be random
		o.MaxCost, o.Shards = 2, 1
	}
	if w.IntN(5) == 0 {
		r.lagging, w.Lag = true, w.Between(10*time.Millisecond, 200*time.Millisecond)
		o.LoaderClass = Lagging(w.Lag)
	}
	if w.IntN(5) == 0 {
		o.TTL = w.Between(20*time.Millisecond, 500*time.Millisecond)
		r.puts = false
		if w.IntN(2) == 0 {
			r.dark = r.keys[0]
		}
		if w.IntN(2) == 0 {
			o.StaleWhileRevalidate = w.Between(10*time.Millisecond, 300*time.Millisecond)
		}
		if w.IntN(2) == 0 {
			o.StaleIfError = w.Between(10*time.Millisecond, 2*time.Second)
			o.SoftLoadTimeout = w.Between(time.Millisecond, 99*time.Millisecond)
		}
	}
	r.breakers = w.IntN(4) == 0
	if w.IntN(6) == 0 {
		o.RefreshAfter = w.Between(5*time.Millisecond, 19*time.Millisecond)
	}
	if w.IntN(8) == 0 {
		o.OnStale = Fail
	}
	if w.IntN(8) == 0 {
		o.MaxStale = w.Between(50*time.Millisecond, time.Second)
	}
	if w.IntN(8) == 0 {
		o.Level = Within(w.Between(20*time.Millisecond, 500*time.Millisecond))
	}
	if w.IntN(8) == 0 {
		o.NegativeTTL = -1
	}
	if w.IntN(8) == 0 {
		o.MaxDoubts = 1
	}
	r.options = o
}

// tag names a write; it is the value as well.
func (r *simRun) tag() int {
	r.tags++
	return r.tags
}

func (r *simRun) invalidator(p simPort) (inv Invalidator) {
	if !r.connected() {
		return inv
	}
	inv = Invalidator{Name: "sim", Beat: r.beat}
	if r.hint {
		inv.Hint = simHint{p}
	}
	if r.log {
		inv.Log = simLog{p}
	}
	return inv
}

func (r *simRun) newReplica() *simReplica {
	p := simPort{r.w.Process()}
	o := r.options
	strong := simLoader{simPort: p, strong: true}
	loader := simLoader{simPort: p, strong: !r.lagging}
	o.Store, o.Loader, o.Invalidator = simStore{strong}, loader, r.invalidator(p)
	if r.bulk {
		o.Loader = simBulk{loader}
	}
	if r.versions {
		o.Store = simTellingStore{simStore{strong}, simVersions{p}}
		o.Loader = simTellingLoader{simBulk{loader}, simVersions{p}}
	}
	b := &simBreaker{}
	if r.breakers {
		o.Breaker = b
	}
	c, err := New(o)
	if err != nil {
		panic(err)
	}
	c.salt = 0 // a seed is one run
	return &simReplica{proc: p.proc, cache: c, breaker: b, said: map[string]sim.Mark{}}
}

func (r *simRun) newOutside() *simOutside {
	p := simPort{r.w.Process()}
	pub, err := NewPublisher(PublisherOptions[string]{Invalidator: r.invalidator(p)})
	if err != nil {
		panic(err)
	}
	return &simOutside{p.proc, pub}
}

// chaos lets everybody act, with faults.
func (r *simRun) chaos() {
	for range r.steps {
		r.faults()
		all := append(r.w.Actions(), r.actions()...)
		if r.w.IntN(10) < r.rush { // several processes at once
			r.w.RunAll(r.some(all))
		} else {
			r.w.Run(r.w.Pick(append(all, sim.Action{Weight: 12, Do: r.pass})))
		}
		r.collect()
		if r.w.Steps()%16 == 0 {
			r.inspect()
		}
	}
}

// some returns most of the actions, in random order.
func (r *simRun) some(all []sim.Action) []sim.Action {
	for i := range all {
		j := i + r.w.IntN(len(all)-i)
		all[i], all[j] = all[j], all[i]
	}
	return all[:len(all)-len(all)/4]
}

// actions returns what the clients can do.
func (r *simRun) actions() (all []sim.Action) {
	for _, c := range r.clients {
		if s := r.replicas[r.w.IntN(len(r.replicas))]; c.op == nil && !s.proc.Frozen {
			all = append(all, sim.Action{Weight: r.zeal, Proc: s.proc, Do: func() { r.begin(c, s) }})
		}
	}
	return all
}

// pass lets time pass, mostly little of it.
func (r *simRun) pass() {
	d := r.w.Between(10*time.Microsecond, 2*time.Millisecond)
	switch n := r.w.IntN(10); {
	case n == 0:
		d = r.w.Between(40*time.Millisecond, 600*time.Millisecond)
	case n < 4:
		d = r.w.Between(2*time.Millisecond, 40*time.Millisecond)
	}
	r.w.Trace("%v pass", d)
	r.w.Sleep(d)
	if r.w.Faults.ClockSlow > 0 {
		for _, s := range r.replicas {
			s.cache.clock.skew.slept.Add(int64(d) * int64(r.w.IntN(r.w.Faults.ClockSlow+1)) / 100_000)
		}
	}
}

// faults does what the world does by itself.
func (r *simRun) faults() {
	w, f := r.w, &r.w.Faults
	if r.dark != "" && w.IntN(30) == 0 {
		w.Source.Set(r.dark, r.tag(), w.IntN(4) == 0, -1)
	}
	happens := func(rate int) bool { return rate > 0 && w.IntN(10_000) < rate }
	some := r.replicas[w.IntN(len(r.replicas))]
	switch {
	case happens(f.Crash):
		r.crash(some)
	case happens(f.Crash) && r.outside != nil:
		r.killOutside()
	case happens(f.Restart) && !some.closing && !some.proc.Frozen:
		r.close(some)
	case happens(f.Restart) && !some.closing:
		some.bypassed = !some.bypassed
		w.Trace("%d: bypass %t", some.proc.ID, some.bypassed)
		some.cache.SetBypass(some.bypassed)
	case happens(f.Evict):
		r.evict(some)
	case w.SourceDown() && w.IntN(25) == 0:
		w.TakeSourceDown(false)
	case happens(f.SourceDown) && !w.SourceDown():
		w.TakeSourceDown(true)
	case r.breakers && some.breaker.open.Load() && w.IntN(25) == 0:
		w.Trace("%d: its breaker is closed", some.proc.ID)
		some.breaker.open.Store(false)
	case r.breakers && w.SourceDown() && w.IntN(10) == 0:
		w.Trace("%d: its breaker is open", some.proc.ID)
		some.breaker.open.Store(true)
	case r.log:
		r.logFaults(happens, some)
	case r.hint:
		r.hintFaults(happens)
	}
	if r.hint && r.log {
		r.hintFaults(happens)
	}
	for _, s := range r.replicas {
		if s.proc.Frozen && w.Now() >= s.thaw {
			r.wake(s)
		}
	}
	w.Settle()
}

func (r *simRun) logFaults(happens func(int) bool, some *simReplica) {
	w, f := r.w, &r.w.Faults
	switch {
	case w.LogPaused() && w.IntN(12) == 0:
		w.PauseLog(false)
	case happens(f.LogPauses) && !w.LogPaused():
		w.PauseLog(true)
	case happens(f.LogPurged / 2):
		w.PurgeLog()
	case happens(f.LogAnew / 2):
		w.RecreateLog()
	case happens(f.Suspend) && !some.proc.Frozen && !some.closing:
		some.proc.Frozen, some.frozen = true, w.Now()
		some.thaw = some.frozen + int64(w.Between(10*time.Millisecond, 2*time.Second))
		w.Trace("%d: suspended", some.proc.ID)
	case happens(f.ClockSet) && !some.proc.Frozen:
		d := w.Between(0, time.Second)
		w.Trace("%d: its clock is set forward by %v", some.proc.ID, d)
		some.cache.clock.skew.set.Add(int64(d))
	}
}

func (r *simRun) hintFaults(happens func(int) bool) {
	w, f := r.w, &r.w.Faults
	for _, s := range w.Subs() {
		cut, silently := s.IsCut()
		switch {
		case cut && w.IntN(20) == 0:
			w.Cut(s, false, silently)
		case !cut && happens(f.LinkCut/2):
			w.Cut(s, true, false)
		case !cut && happens(f.LinkDeaf/2):
			w.Cut(s, true, true)
		}
	}
}

// wake ends a suspension: the monotonic clock has stood still.
func (r *simRun) wake(s *simReplica) {
	s.proc.Frozen = false
	slept := r.w.Now() - s.frozen
	r.w.Trace("%d: wakes after %v", s.proc.ID, time.Duration(slept))
	s.cache.clock.skew.slept.Add(slept)
}

// crash kills a replica; another one takes its place.
func (r *simRun) crash(s *simReplica) {
	r.w.Trace("%d: crashes", s.proc.ID)
	s.proc.Frozen = false
	r.w.Kill(s.proc)
	r.bury(s.cache.Close)
	r.graveyard = append(r.graveyard, s.cache)
	for _, c := range r.clients {
		if c.op != nil && c.op.replica == s {
			c.op.abandoned, c.op = true, nil
		}
	}
	i := slices.Index(r.replicas, s)
	r.replicas[i] = r.newReplica()
	r.w.Settle()
}

// bury frees the goroutines of a process that is dead.
func (r *simRun) bury(closing func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	go func() { _ = closing(ctx) }()
}

func (r *simRun) killOutside() {
	r.w.Trace("%d: crashes", r.outside.proc.ID)
	r.w.Kill(r.outside.proc)
	r.bury(r.outside.publisher.Close)
	for _, c := range r.clients {
		if c.op != nil && c.op.outside {
			c.op.abandoned, c.op = true, nil
		}
	}
	r.outside = r.newOutside()
	r.w.Settle()
}

// evict gives up an entry, as for room.
func (r *simRun) evict(s *simReplica) {
	key := r.keys[r.w.IntN(len(r.keys))]
	c := s.cache
	hash := c.keys.hash(key)
	sh := c.shard(hash)
	sh.mu.Lock()
	if p, ok := sh.table.Find(hash, key); ok {
		r.w.Trace("%d: evicts %s", s.proc.ID, key)
		sh.dropLocked(p, hash, c.moment())
	}
	sh.mu.Unlock()
	r.w.Settle()
}

// close ends a replica in an orderly way; another one takes its place.
func (r *simRun) close(s *simReplica) {
	s.closing = true
	r.leaving = append(r.leaving, s)
	r.w.Trace("%d: closes", s.proc.ID)
	op := &simOp{client: 100 + s.proc.ID, replica: s}
	timeout := r.w.Between(10*time.Millisecond, 3*time.Second)
	r.start(op, timeout, func(ctx context.Context) func() {
		err := s.cache.Close(ctx)
		return func() {
			r.w.Trace("%d: closed %v", s.proc.ID, simClass(err))
			if err == nil && s.cache.Stats().InDoubt > 0 {
				r.w.Check.Fail("I20 clean close", "%d says that all is well, with writes in doubt", s.proc.ID)
			}
			if e, ok := s.cache.GetEntry(r.keys[0]); ok {
				r.w.Check.Fail("I20 clean close", "%d serves %v after Close", s.proc.ID, e)
			}
		}
	})
	r.replicas[slices.Index(r.replicas, s)] = r.newReplica()
	r.w.Settle()
}

// collect takes in what has finished.
func (r *simRun) collect() {
	for {
		r.mu.Lock()
		done := r.finished
		r.finished = nil
		r.mu.Unlock()
		if len(done) == 0 {
			return
		}
		slices.SortFunc(done, func(a, b *simOp) int { return cmp.Compare(a.client, b.client) })
		for _, op := range done {
			if op.abandoned {
				continue
			}
			for _, c := range r.clients {
				if c.op == op {
					c.op = nil
				}
			}
			op.check()
		}
		r.w.Settle()
	}
}

// inspect checks what the caches hold inside (I15, I16).
func (r *simRun) inspect() {
	for _, s := range r.replicas {
		pending := 0
		for i := range s.cache.shards {
			sh := &s.cache.shards[i]
			sh.mu.Lock()
			pending += len(sh.pending)
			for key, p := range sh.pending {
				if p.running > maxRunning || len(p.fences) > maxRunning+2*len(r.clients) {
					r.w.Check.Fail("I15 bounded", "%d: %d loads of %s run, %d fences", s.proc.ID, p.running, key, len(p.fences))
				}
				if p.doubts > 0 && s.cache.entry(key) != nil {
					r.w.Check.Fail("I16 structure", "%d has an entry of %s, which is in doubt", s.proc.ID, key)
				}
			}
			sh.mu.Unlock()
		}
		if pending > 0 {
			continue // the fence of a write that has been installed does not rise by it
		}
		if err := s.cache.check(); err != nil {
			r.w.Check.Fail("I16 structure", "%d: %v", s.proc.ID, err)
		}
	}
}

// heal ends the faults and lets everything come to rest (I17).
func (r *simRun) heal() {
	w := r.w
	w.Faults = sim.Faults{}
	w.Trace("the world heals")
	if w.LogPaused() {
		w.PauseLog(false)
	}
	if w.SourceDown() {
		w.TakeSourceDown(false)
	}
	for _, s := range r.replicas {
		s.breaker.open.Store(false)
		if s.proc.Frozen {
			r.wake(s)
		}
	}
	for _, s := range w.Subs() {
		if cut, silently := s.IsCut(); cut {
			w.Cut(s, false, silently)
		}
	}
	w.Settle()
	calm := 0
	for range 2000 {
		if client := r.clients[0]; len(r.untold) > 0 && client.op == nil {
			r.begin(client, r.replicas[0])
			w.Settle()
		}
		r.drain()
		if r.unrest() == "" {
			calm++
		} else {
			calm = 0
		}
		if calm > 8 { // half beats: what was lost is noticed
			return
		}
		w.Sleep(r.beat/2 + time.Duration(w.IntN(1000)))
		w.Settle()
		r.collect()
	}
	w.Check.Fail("I17 liveness", "it does not come to rest: %s", r.unrest())
}

// drain does everything that can be done now.
func (r *simRun) drain() {
	for range 1000 {
		if ran := r.w.RunAll(r.w.Actions()); ran == 0 {
			late := r.w.Actions()
			if len(late) == 0 {
				return
			}
			r.w.Run(&late[0])
		}
		r.collect()
	}
	r.w.Check.Fail("I17 liveness", "there is no end to what is asked for")
}

// unrest says what is still under way.
func (r *simRun) unrest() string {
	for _, c := range r.clients {
		if c.op != nil {
			return fmt.Sprintf("client %d %s", c.id, c.op.what)
		}
	}
	if !r.w.Idle() || len(r.untold) > 0 {
		return "calls"
	}
	alive := map[uint64]bool{}
	for _, s := range r.replicas {
		if s.cache.replica != nil {
			alive[s.cache.replica.out.origin] = true
		}
	}
	if r.outside != nil {
		out := r.outside.publisher.out
		alive[out.origin] = true
		if n, _ := out.backlog(); n > 0 {
			return "the publisher has a backlog"
		}
	}
	for _, s := range r.replicas {
		c := s.cache
		switch {
		case c.era.Load()&eraCutOff != 0:
			return fmt.Sprintf("replica %d is cut off", s.proc.ID)
		case c.doubts.Load() > 0:
			return fmt.Sprintf("replica %d is in doubt", s.proc.ID)
		case c.replica == nil:
			continue
		case r.log && !r.w.Reads(s.proc):
			return fmt.Sprintf("replica %d does not read the log", s.proc.ID)
		}
		if n, all := c.replica.out.backlog(); n > 0 || all {
			return fmt.Sprintf("replica %d has a backlog", s.proc.ID)
		}
		if n := c.Stats().Intents; n > 0 {
			return fmt.Sprintf("replica %d knows of %d writes that have not ended", s.proc.ID, n)
		}
		if c.replica.awaits(alive) {
			return fmt.Sprintf("replica %d waits for a dead one", s.proc.ID)
		}
	}
	return ""
}

// awaits reports whether the silence of an origin that is not alive has yet to be
// noticed.
func (r *member[K, V]) awaits(alive map[uint64]bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for origin, v := range r.ear.origins {
		if !alive[origin] && v.hello != 0 && !v.silent {
			return true
		}
	}
	return false
}

// atRest checks that every replica serves what the source has.
func (r *simRun) atRest() {
	if len(r.w.Check.Violations) > 0 {
		return
	}
	r.inspect()
	if r.dark != "" { // until what nobody was told of has expired
		for range 4 {
			r.w.Sleep((r.options.TTL + r.options.StaleWhileRevalidate) / 3)
			r.drain()
		}
	}
	for _, s := range r.replicas {
		for i := range s.cache.shards {
			if n := len(s.cache.shards[i].pending); n > 0 {
				r.w.Check.Fail("I15 bounded", "%d: %d keys are pending at rest", s.proc.ID, n)
			}
		}
		for _, key := range r.keys {
			r.keyAtRest(s, key)
		}
	}
}

func (r *simRun) keyAtRest(s *simReplica, key string) {
	c, w := s.cache, r.w
	if n := c.entry(key); n != nil && n.E.provenAt == unproven {
		// Nobody vouches for a Put but who made it. It is not below what was known here.
		if m := (sim.Mark{Version: uint64(n.E.version)}); m.Before(w.Check.Floor(s.proc.ID, key)) {
			w.Check.Fail("I17 wrong at rest", "%d has a Put of %s@%d below what was known", s.proc.ID, key, m.Version)
		}
		return
	}
	cur := w.Source.Current(key)
	if cur.By >= 0 && r.unnoticed(s, cur.By) {
		return
	}
	if e, ok := c.GetEntry(key); ok {
		w.Check.AtRest(s.proc.ID, key, simAnswer(e))
	}
}

// unnoticed reports whether a replica cannot have noticed that a process has
// died, because it never heard of it.
func (r *simRun) unnoticed(s *simReplica, proc int) bool {
	for _, o := range r.replicas {
		if o.proc.ID == proc {
			return false
		}
	}
	if r.outside != nil && r.outside.proc.ID == proc {
		return false
	}
	return !r.w.Check.Greeted(s.proc.ID, proc)
}

// end closes everything (I20).
func (r *simRun) end() {
	closed := 0
	for _, s := range r.replicas {
		op := &simOp{client: 100 + s.proc.ID, replica: s}
		r.start(op, time.Minute, func(ctx context.Context) func() {
			err := s.cache.Close(ctx)
			return func() {
				closed++
				if err != nil {
					r.w.Check.Fail("I20 clean close", "%d: %v", s.proc.ID, err)
				}
			}
		})
	}
	for range 2000 {
		if closed == len(r.replicas) {
			break
		}
		r.drain()
		r.w.Sleep(10 * time.Millisecond)
		r.w.Settle()
		r.collect()
	}
	if closed < len(r.replicas) {
		r.w.Check.Fail("I20 clean close", "%d of %d close", closed, len(r.replicas))
	}
	for _, s := range r.replicas {
		r.w.Kill(s.proc)
		r.bury(s.cache.Close)
	}
	for _, s := range r.leaving {
		r.w.Kill(s.proc)
	}
	if r.outside != nil {
		r.w.Kill(r.outside.proc)
		r.bury(r.outside.publisher.Close)
	}
	r.w.Sleep(time.Minute)
}

// histories runs the checkers of recorded histories over the run.
func (r *simRun) histories() {
	events := make([]history.Event, len(r.events))
	for i, e := range r.events {
		r.settle(e)
		events[i] = e.Event
	}
	for _, key := range r.keys {
		for _, s := range r.w.Source.History(key)[1:] {
			if s.By < 0 {
				events = append(events, r.silentChange(key, s))
			}
		}
	}
	for _, v := range history.Check(events, history.All) {
		r.w.Check.Fail(v.Rule, "%v: %s", v.Event, v.Why)
	}
}

// silentChange returns the event of a change that nobody announced.
func (r *simRun) silentChange(key string, s sim.State) history.Event {
	e := history.Event{Kind: history.Change, Outcome: history.Done, Key: key, Version: s.Version, Absent: s.Absent,
		Value: uint64(s.Value), Begin: s.At, End: history.Never}
	if _, before, _ := r.w.Source.Written(key, s.Tag); !before.Absent {
		e.Base = before.Version
	}
	return e
}

// settle completes the event of a write by what the source knows, and checks
// what the caller was told of it.
func (r *simRun) settle(e *simEvent) {
	if e.Kind != history.Write && e.Kind != history.Change {
		return
	}
	state, before, ok := r.w.Source.Written(e.Key, e.tag)
	switch {
	case ok && e.Outcome == history.Failed:
		r.w.Check.Fail("I10 chain", "%v was said to have failed", e.Event)
	case ok && e.Outcome == history.Unknown:
		e.Base = before.Version
		if before.Absent {
			e.Base = 0
		}
		e.Absent, e.Value = state.Absent, uint64(state.Value)
	case !ok && e.Outcome == history.Unknown:
		e.Outcome = history.Failed
	}
}

// simClass returns what kind of error err is, without names that are random.
func simClass(err error) string {
	var uncertain *UncertainError
	var conflict *ConflictError
	var keys *KeysError[string]
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &uncertain):
		return "uncertain"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.As(err, &keys):
		return fmt.Sprintf("%d keys", len(keys.Failed))
	}
	for _, known := range []error{ErrNotBroadcast, ErrNotFound, ErrStale, ErrUnavailable, ErrClosed, errGiveUp, errWorld,
		context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "another error"
}

func simAnswer(e Entry[int]) sim.Answer {
	return sim.Answer{Version: uint64(e.Version), Absent: e.Absent, Value: e.Value, Age: e.Age, Stale: e.Stale}
}
