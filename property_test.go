package tidemark

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// TestCacheMatchesModel drives caches through random operations, one step at a
// time, and compares what they do with what the model allows (property_model_test.go).
// Loads, fills and writes take several steps, between which others happen; the
// time is fake, and so is the network. What must hold is named as in the shards'
// comment and in DESIGN.md: I1 to I18.
//
// A longer run: go test -run TestCacheMatchesModel -rapid.checks=10000.
func TestCacheMatchesModel(t *testing.T) {
	for _, d := range deployments {
		for i := range modelRounds { // each of -rapid.checks checks, 100 by default
			t.Run(fmt.Sprint(d.name, ", round ", i), rapid.MakeCheck(func(t *rapid.T) { matchesModel(t, d) }))
		}
	}
}

func FuzzCacheMatchesModel(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		matchesModel(t, rapid.SampledFrom(deployments).Draw(t, "deployment"))
	}))
}

// A deployment is what a world is made of.
type deployment struct {
	name   string
	caches int
	source bool          // there is a Store
	lag    time.Duration // of the Loader; 0: the Store is the Loader
}

var deployments = []deployment{
	{name: "one cache", caches: 1, source: true},
	{name: "two replicas", caches: 2, source: true},
	{name: "lagging loader", caches: 1, source: true, lag: 40 * time.Millisecond},
	{name: "two lagging replicas", caches: 2, source: true, lag: 40 * time.Millisecond},
	{name: "no loader", caches: 1},
}

func matchesModel(t *rapid.T, d deployment) {
	rapid.SyncTest(t, func(t *rapid.T) {
		w := newWorld(t, d)
		t.Cleanup(w.close)
		t.Repeat(w.actions())
		w.heal(t)
	})
}

const (
	worldBeat   = time.Second
	worldDoubts = 200 * time.Millisecond
)

// A world is a ledger, the caches on it, and what is going on between them. It
// is driven by one goroutine; operations have their own, and when settle
// returns each of them has ended or waits for something the driver has to do.
type world struct {
	deployment
	keys    []string
	began   time.Time
	ledger  *ledger
	network *network // nil with one cache
	views   []*view
	opts    Options[string, int]

	stepBegan int64
	running   []*operation
	started   int
	cancelled bool // some operation was given up
	delivered []redelivery

	// What was announced to all replicas: versions, and when a change without
	// one was.
	announced   map[string]Version
	announcedAt map[string]int64

	// background stands for what a cache does of its own accord.
	background *operation

	mu    sync.Mutex // guards everything below
	free  bool       // nothing stops any more
	stops []*stop
}

type redelivery struct {
	to     int
	packet packet
}

// sharing are two keys that share a slot of every tide, and so a shard, and a
// third that does not.
var sharing = sync.OnceValue(func() []string {
	k := newKeys[string](nil)
	const slots = 1 << 10
	place := func(key string) uint64 { h := k.hash(key); return h>>8&(slots-1) | h>>63<<63 }
	all := []string{"a"}
	for i := 0; len(all) < 3; i++ {
		key := fmt.Sprint("k", i)
		if (place(key) == place("a")) == (len(all) == 1) {
			all = append(all, key)
		}
	}
	return all
})

func newWorld(t *rapid.T, d deployment) *world {
	w := &world{
		deployment: d, keys: sharing(), began: time.Now(),
		announced: map[string]Version{}, announcedAt: map[string]int64{}, background: &operation{},
	}
	w.ledger = newLedger(w.keys, w.now)
	w.ledger.pause = w.pause
	w.ledger.hidden = d.source && rapid.Bool().Draw(t, "deletions have no version")
	w.background.holds = rapid.SampledFrom([]point{0, beforeRead, afterRead}).Draw(t, "hold refreshes")
	w.opts = w.options(t)
	if d.caches > 1 {
		w.network = &network{}
	}
	for i := range d.caches {
		o := w.opts
		if w.network != nil {
			o.Invalidator = Invalidator{Name: "world", Hint: w.network, Beat: worldBeat}
		}
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		c.salt = 0 // one run is one run
		w.views = append(w.views, newView(fmt.Sprint("cache ", i), c))
		synctest.Wait()
	}
	if w.network != nil {
		w.drain()
	}
	return w
}

func (w *world) options(t *rapid.T) Options[string, int] {
	o := Options[string, int]{
		Shards:       rapid.SampledFrom([]int{1, 2}).Draw(t, "shards"),
		MaxCost:      rapid.SampledFrom([]int64{1000, 1, 2, 3}).Draw(t, "MaxCost"),
		TTL:          rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond}).Draw(t, "TTL"),
		NegativeTTL:  rapid.SampledFrom([]time.Duration{0, 50 * time.Millisecond, -1}).Draw(t, "NegativeTTL"),
		Level:        rapid.SampledFrom([]Level{Any, Any, Any, AtLeast(2), Linearizable}).Draw(t, "level"),
		TTLJitter:    -1,
		LoadTimeout:  -1,
		DoubtTimeout: worldDoubts,
	}
	if rapid.Bool().Draw(t, "weighted") {
		o.Cost = func(_ string, value int) int64 { return int64(1 + value%3) }
	}
	if !w.source {
		if o.Level == Linearizable {
			o.Level = Any // New refuses it: there is nothing to ask
		}
		return o
	}
	o.RefreshAfter = rapid.SampledFrom([]time.Duration{0, 0, 30 * time.Millisecond}).Draw(t, "RefreshAfter")
	o.MaxLoads = rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "MaxLoads")
	if o.TTL > 0 {
		o.StaleWhileRevalidate = rapid.SampledFrom([]time.Duration{0, 50 * time.Millisecond}).Draw(t, "StaleWhileRevalidate")
		o.StaleIfError = rapid.SampledFrom([]time.Duration{0, 200 * time.Millisecond}).Draw(t, "StaleIfError")
		o.MaxStale = rapid.SampledFrom([]time.Duration{0, 0, 150 * time.Millisecond}).Draw(t, "MaxStale")
	}
	if o.StaleIfError > 0 {
		o.SoftLoadTimeout = rapid.SampledFrom([]time.Duration{0, 20 * time.Millisecond}).Draw(t, "SoftLoadTimeout")
	}
	o.Store = w.ledger
	if w.lag > 0 {
		o.Loader, o.LoaderClass = laggard{w.ledger, w.lag}, Lagging(w.lag)
	}
	if rapid.Bool().Draw(t, "bulk") {
		if o.Loader == nil {
			o.Loader = w.ledger
		}
		o.Loader = bulkLoader{o.Loader}
	}
	return o
}

func (w *world) now() int64 { return int64(time.Since(w.began)) }

// actions are the steps that can happen.
func (w *world) actions() map[string]func(*rapid.T) {
	all := map[string]func(*rapid.T){
		"change":        w.change,
		"get":           w.get,
		"put":           w.put,
		"beginFill":     w.beginFill,
		"readForFill":   w.readForFill,
		"endFill":       w.endFill,
		"invalidate":    w.invalidate,
		"invalidateAll": w.invalidateAll,
		"evict":         w.evict,
		"resize":        w.resize,
		"sleep":         w.sleep,
		"suspect":       w.suspect,
	}
	if w.source {
		maps.Copy(all, map[string]func(*rapid.T){
			"read":          w.read,
			"load":          w.load,
			"loadMany":      w.loadMany,
			"letOn":         w.letOn,
			"letAllOn":      w.letAllOn,
			"giveUp":        w.giveUp,
			"update":        w.update,
			"compareAndSet": w.compareAndSet,
			"delete":        w.remove,
			"land":          w.land,
		})
	}
	if w.network == nil {
		maps.Copy(all, map[string]func(*rapid.T){"cutOff": w.cutOff, "rejoin": w.rejoin})
	} else {
		maps.Copy(all, map[string]func(*rapid.T){
			"deliver":   w.deliverOne,
			"redeliver": w.redeliver,
			"drop":      w.drop,
			"corrupt":   w.corrupt,
			"drain":     w.drainAll,
			"lost":      w.lost,
			"network":   w.toggle,
		})
	}
	for name, action := range all {
		all[name] = func(t *rapid.T) {
			time.Sleep(time.Microsecond) // so that no two steps happen at once
			w.stepBegan = w.now()
			action(t)
			w.settle(t)
		}
	}
	all[""] = w.check
	return all
}

func (w *world) drawView(t *rapid.T) *view {
	return w.views[rapid.IntRange(0, len(w.views)-1).Draw(t, "cache")]
}

func (w *world) drawKey(t *rapid.T) string { return rapid.SampledFrom(w.keys).Draw(t, "key") }

func (w *world) drawState(t *rapid.T, key string) fact {
	return rapid.SampledFrom(w.ledger.history(key)).Draw(t, "state")
}

// start runs one call of v's cache as an operation of its own. judge is called
// by the driver once the call has returned.
func (w *world) start(t *rapid.T, v *view, fates []fate, run func(context.Context, *operation), judge func(*operation)) {
	o := &operation{view: v, id: w.started, ended: make(chan struct{})}
	w.started++
	if rapid.Bool().Draw(t, "held") {
		o.holds = point(rapid.IntRange(0, 15).Draw(t, "held at"))
	}
	o.fate = rapid.SampledFrom(fates).Draw(t, "fate")
	if w.lag > 0 {
		o.lag = rapid.IntRange(0, 3).Draw(t, "lag")
	}
	o.judge = func() { judge(o) }
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), operationKey{}, o))
	o.cancel = cancel
	w.running = append(w.running, o)
	go func() {
		defer close(o.ended)
		defer cancel()
		run(ctx, o)
		o.endAt = w.now()
	}()
	w.settle(t)
}

var (
	readFates  = []fate{answered, answered, answered, answered, answered, failed, panicked}
	writeFates = []fate{answered, answered, answered, answered, answered, refused, lost, delayed, unanswered}
)

// settle waits until nothing moves and judges the operations that have ended.
func (w *world) settle(t *rapid.T) {
	synctest.Wait()
	still := w.running[:0]
	var over []*operation
	for _, o := range w.running {
		select {
		case <-o.ended:
			over = append(over, o)
		default:
			still = append(still, o)
		}
	}
	w.running = still
	for _, v := range w.views {
		v.silent = v.silent || v.cache.era.Load()&eraCutOff != 0
	}
	for _, o := range over {
		o.judge()
	}
	for _, v := range w.views {
		w.settleDoubts(t, v)
	}
}

// settleDoubts learns how writes in doubt have ended.
func (w *world) settleDoubts(t *rapid.T, v *view) {
	v.doubts = slices.DeleteFunc(v.doubts, func(d *doubting) bool {
		select {
		case <-d.err.doubt.settled:
		default:
			return false
		}
		version, committed, err := d.err.Wait(context.Background())
		truth, happened, _ := w.ledger.Outcome(context.Background(), d.key, d.err.Op)
		if err != nil || committed != happened || committed && version != truth {
			t.Fatalf("S31: a write of %s ended as %d, %t, %v; in truth %d, %t", d.key, version, committed, err, truth, happened)
		}
		if committed {
			v.see(d.key, w.markAt(d.key, version))
			w.announce(d.key, version, w.stepBegan)
		} else {
			v.moves[d.key]++ // what was read in doubt proves nothing
		}
		return true
	})
}

// markAt returns the mark of key at version.
func (w *world) markAt(key string, version Version) mark {
	return w.ledger.history(key)[version].mark
}

// announce says that all replicas are told that key has changed, to a version or,
// if that is 0, after a moment.
func (w *world) announce(key string, version Version, after int64) {
	if version == 0 {
		w.announcedAt[key] = max(w.announcedAt[key], after)
	}
	w.announced[key] = max(w.announced[key], version)
}

// pause is called by the ledger at each point of a call.
func (w *world) pause(ctx context.Context, p point, key string) error {
	o := operationOf(ctx)
	if o == nil {
		o = w.background
	}
	if o.holds&p != 0 {
		if err := w.stop(ctx, &stop{operation: o, point: p, key: key, open: make(chan struct{})}); err != nil {
			return err
		}
	}
	switch {
	case p != beforeRead:
	case o.fate == failed:
		return errInjected
	case o.fate == panicked:
		panic(errInjected)
	}
	return nil
}

// stop holds a call until it is let on or its context ends.
func (w *world) stop(ctx context.Context, s *stop) error {
	w.mu.Lock()
	if w.free {
		w.mu.Unlock()
		return nil
	}
	w.stops = append(w.stops, s)
	w.mu.Unlock()
	select {
	case <-s.open:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stops = slices.DeleteFunc(w.stops, func(o *stop) bool { return o == s })
		return ctx.Err()
	}
}

// check is what holds after every step.
func (w *world) check(t *rapid.T) {
	for _, v := range w.views {
		for _, k := range w.keys {
			if err := w.checkKey(v, k); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.cache.check(); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		for k, e := range v.cache.All() {
			if served, _ := v.entry(k); served == nil || served.E.version != e.Version {
				t.Fatalf("%s: All has %s@%d", v.name, k, e.Version)
			}
		}
		silent := time.Duration(w.now() - v.hello)
		if w.network != nil && silent > (missedBeats+1)*worldBeat+time.Millisecond && v.cache.era.Load()&eraCutOff == 0 {
			t.Fatalf("I13: %s has not heard itself for %v and is not cut off", v.name, silent)
		}
	}
}

// checkKey checks what v would serve of key, which counts as served.
func (w *world) checkKey(v *view, key string) error {
	served, resident := v.entry(key)
	if n := resident; n != nil && n.E.version != 0 && generation(n.E.era) == generation(v.cache.era.Load()) &&
		n.E.mark().before(v.seen[key]) {
		return fmt.Errorf("I1: %s: the entry of %s is at %v, below %v", v.name, key, n.E.mark(), v.seen[key])
	}
	if served == nil {
		return nil
	}
	e := served.E.public(replica.NoMark, v.cache.moments())
	switch {
	case v.deaf:
		return fmt.Errorf("I13: %s serves %s@%d while it is cut off", v.name, key, e.Version)
	case v.inDoubt(key):
		return fmt.Errorf("I4: %s serves %s@%d while it is in doubt", v.name, key, e.Version)
	}
	if age, ttl := w.life(v, key, e); ttl > 0 && age >= ttl {
		return fmt.Errorf("I14: %s serves %s@%d after %v, its TTL is %v", v.name, key, e.Version, age, ttl)
	}
	r := w.reading(v, key, Any)
	if err := w.returned(r, e, w.now()); err != nil || e.Version != 0 {
		return err
	}
	m, err := w.ledger.meaning(key, e, r.began, w.now(), r.need)
	v.see(key, m)
	return err
}

// life returns how old an entry is at least and how old it may become.
func (w *world) life(v *view, key string, e Entry[int]) (age, ttl time.Duration) {
	age, ttl = e.Age-w.lag, v.cache.opts.TTL
	if e.Age < 0 {
		age = time.Duration(w.now() - v.put[key][e.Version])
	}
	if e.Absent {
		ttl = v.cache.opts.NegativeTTL
	}
	return age, ttl
}

// heal lets everything end and then looks whether all is well.
func (w *world) heal(t *rapid.T) {
	w.release()
	w.settle(t)
	for range 50 { // long enough for every doubt, and for hellos
		w.stepBegan = w.now()
		time.Sleep(100 * time.Millisecond)
		w.settle(t) // what has ended by now may have been served while a replica was deaf
		if w.network != nil {
			w.drain()
		}
		w.settle(t)
		w.check(t)
	}
	for _, o := range w.running {
		t.Fatalf("I17: operation %d of %s does not end", o.id, o.view.name)
	}
	for _, v := range w.views {
		w.healthy(t, v)
	}
	w.close()
	for _, v := range w.views {
		if err := v.cache.Close(context.Background()); err != nil {
			t.Fatalf("I20: %s: %v", v.name, err)
		}
	}
}

// stopped returns how many calls of the ledger are held; those who made them may
// have given up.
func (w *world) stopped() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.stops)
}

// healthy checks a cache at rest.
func (w *world) healthy(t *rapid.T, v *view) {
	if v.cache.era.Load()&eraCutOff != 0 && w.network != nil {
		t.Fatalf("I17: %s is still cut off", v.name)
	}
	for i := range v.cache.shards {
		if n := len(v.cache.shards[i].pending); n > 0 {
			t.Fatalf("I15: %s: %d keys are pending for nothing", v.name, n)
		}
	}
	for _, k := range w.keys {
		if served, _ := v.entry(k); served != nil && served.E.provenAt != unproven {
			proven := w.now() - int64(served.E.public(replica.NoMark, v.cache.moments()).Age)
			if served.E.version != 0 && served.E.version < w.announced[k] || w.announcedAt[k] > max(proven, 0) {
				t.Fatalf("%s: %s rests at %v, but %d was announced", v.name, k, served.E.mark(), w.announced[k])
			}
		}
		if !w.source {
			continue
		}
		for _, level := range []Level{Any, Linearizable} {
			r := w.reading(v, k, level)
			e, err := v.cache.Read(context.Background(), k, level)
			if err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatalf("I17: %s: read of %s: %v", v.name, k, err)
			}
			if err := w.returned(r, e, w.now()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// release lets every call on, and ends the fills.
func (w *world) release() {
	w.mu.Lock()
	w.free = true
	for _, s := range w.stops {
		close(s.open)
	}
	w.stops = nil
	w.mu.Unlock()
	if w.network != nil {
		w.network.set(false)
	}
	for _, v := range w.views {
		for _, f := range v.fills {
			f.fill.Cancel()
		}
		v.fills = nil
	}
}

// close ends everything, also after a failure.
func (w *world) close() {
	w.release()
	for _, v := range w.views {
		_ = v.cache.Close(context.Background()) // a doubt may be left after a failure
	}
}

// What the state machine has found, as stories.

// The cache has sent a write; InvalidateAll and another write happen; the answer
// of the first, which was committed last, arrives. Its caller must not read the
// older state.
func TestCache_AWriteIsSeenByItsCallerAcrossInvalidateAll(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	first := s.set("k", 1)
	read, sent := make(chan struct{}), make(chan struct{})
	s.afterWrite = func(context.Context, string) error { close(sent); <-read; return nil }
	wrote := make(chan Version)
	go func() {
		e, err := c.CompareAndSet(context.Background(), "k", first, 2)
		assert.NoError(t, err)
		wrote <- e.Version
	}()
	<-sent
	require.NoError(t, c.InvalidateAll(t.Context()))
	require.Equal(t, Unproven, c.Put("k", 1, first), "nothing says that the source has no more")
	f := c.BeginFill("k")
	require.Equal(t, Applied, f.Commit(1, first), "a reader that was slow to read the source")
	close(read)
	version := <-wrote
	e, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, version, e.Version)
}

// A fill is begun, everything is invalidated, and the fill is committed: it is
// not stored, but its version is known from then on.
func TestFill_LeavesItsMarkAcrossInvalidateAll(t *testing.T) {
	c := newCache(t, Options[string, int]{})
	f := c.BeginFill("k")
	require.NoError(t, c.InvalidateAll(t.Context()))
	require.Equal(t, Unproven, f.Commit(2, 2))
	assert.Equal(t, Stale, c.Put("k", 1, 1))
	assert.Equal(t, Applied, c.Put("k", 2, 2))
}

// Two keys share a slot of a lagging cache's memory. The higher version of one
// must not make reads of the other fail.
func TestLagging_AKeyIsNotHeldToTheMarkOfAnother(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{Store: s, Loader: s, LoaderClass: Lagging(time.Hour), Shards: 1})
	keys := sharing()
	s.set(keys[1], 1)
	for range 9 {
		s.set(keys[0], 1)
	}
	c.turnEra(func(era uint64) uint64 { return era }) // holds off lagging loads
	c.holdOff.Store(0)                                // but not these
	require.NoError(t, c.Invalidate(t.Context(), keys[0], 9))
	e, err := c.Load(t.Context(), keys[1])
	require.NoError(t, err)
	assert.Equal(t, Version(1), e.Version)
}

// LoadMany has found one key in memory and waits for another: what it has found
// ages.
func TestLoadMany_AgesWhatItHasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("a", 1)
		s.set("b", 1)
		c := onSource(t, s)
		_, err := c.Load(t.Context(), "a")
		require.NoError(t, err)
		s.afterLoad = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		all, err := c.LoadMany(t.Context(), []string{"a", "b"})
		require.NoError(t, err)
		assert.Equal(t, time.Second, all["a"].Age)
		assert.Equal(t, time.Second, all["b"].Age)
	})
}

// A value that costs more than is free, but not by as much as it costs, is
// stored at once.
func TestPut_MakesRoomForAllOfItsCost(t *testing.T) {
	c := newCache(t, Options[string, int]{
		MaxCost: 4, Shards: 1, Cost: func(_ string, value int) int64 { return int64(value) },
	})
	require.Equal(t, Applied, c.Put("a", 2, 1))
	require.Equal(t, Applied, c.Put("b", 3, 1))
	_, ok := c.Get("b")
	assert.True(t, ok)
}

// Others take all room that is made. What is not stored is not called applied.
func TestPut_SaysWhenThereIsNoRoom(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 4})
	c.policy.cost.Add(4)
	assert.Equal(t, Unproven, c.Put("k", 1, 1))
	c.policy.cost.Add(-4)
	assert.Equal(t, Applied, c.Put("k", 1, 1))
}
