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
		t.Run(d.name, rapid.MakeCheck(func(t *rapid.T) { matchesModel(t, d) }))
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
	freed     bool // as free, for the driver
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
		return o
	}
	o.RefreshAfter = rapid.SampledFrom([]time.Duration{0, 0, 30 * time.Millisecond}).Draw(t, "RefreshAfter")
	o.MaxLoads = rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "MaxLoads")
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

// letOn lets one held call on to its next point.
func (w *world) letOn(t *rapid.T) {
	w.mu.Lock()
	slices.SortFunc(w.stops, func(a, b *stop) int {
		if a.operation.id != b.operation.id {
			return a.operation.id - b.operation.id
		}
		return int(a.point) - int(b.point)
	})
	n := len(w.stops)
	w.mu.Unlock()
	if n == 0 {
		return
	}
	i := rapid.IntRange(0, n-1).Draw(t, "call")
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.stops[i].open)
	w.stops = slices.Delete(w.stops, i, i+1)
}

func (w *world) letAllOn(*rapid.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.stops {
		close(s.open)
	}
	w.stops = nil
}

// giveUp cancels the context of a call.
func (w *world) giveUp(t *rapid.T) {
	if len(w.running) > 0 {
		w.cancelled = true
		w.running[rapid.IntRange(0, len(w.running)-1).Draw(t, "operation")].cancel()
	}
}

// change changes the source behind everybody's back.
func (w *world) change(t *rapid.T) {
	w.ledger.commit(w.drawKey(t), w.ledger.value(), rapid.IntRange(0, 3).Draw(t, "deletion") == 0)
}

func (w *world) land(*rapid.T) { w.ledger.land(worldDoubts) }

func (w *world) evict(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	hash := v.cache.keys.hash(key)
	s := v.cache.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.table.Find(hash, key); n != nil {
		s.dropLocked(n, v.cache.moment())
	}
}

func (w *world) resize(t *rapid.T) {
	v := w.drawView(t)
	if err := v.cache.Resize(rapid.SampledFrom([]int64{1, 2, 1000}).Draw(t, "MaxCost")); err != nil {
		t.Fatal(err)
	}
}

func (w *world) sleep(t *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{
		time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 60 * time.Millisecond,
		100 * time.Millisecond, worldDoubts, 5 * worldBeat,
	}).Draw(t, "time"))
}

func (w *world) suspect(t *rapid.T) {
	v := w.drawView(t)
	v.cache.suspect("test")
	w.forgetAll(v)
}

func (w *world) cutOff(t *rapid.T) {
	v := w.drawView(t)
	v.cache.cutOff()
	v.deaf = true
	w.forgetAll(v)
}

func (w *world) rejoin(t *rapid.T) {
	v := w.drawView(t)
	v.cache.rejoin()
	v.deaf = false
	w.forgetAll(v)
}

// A reading is a read that has begun, and what the model knew then.
type reading struct {
	view    *view
	key     string
	level   Level
	need    mark  // nothing below it may be returned
	since   int64 // nothing proven before it may be returned
	began   int64
	current fact // of the source
	moves   int
	alone   bool // no other operation runs
	era     uint64
}

func (w *world) reading(v *view, key string, level Level) reading {
	r := reading{
		view: v, key: key, level: level, need: v.seen[key], since: v.since[key],
		began: w.now(), current: w.ledger.current(key), moves: v.moves[key], alone: len(w.running) == 0, era: v.cache.era.Load(),
	}
	switch {
	case level.kind == levelLinearizable:
		r.need = r.need.later(r.current.mark) // I8
	case level.kind == levelAtLeast && level.version <= r.current.mark.version:
		r.need = r.need.later(mark{version: level.version}) // I5
	}
	return r
}

// returned checks what a read has returned at a moment, and raises the mark.
func (w *world) returned(r reading, e Entry[int], at int64) error {
	v := r.view
	m, err := w.ledger.meaning(r.key, e, r.began, at, r.need)
	if err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	proven := at - int64(e.Age)
	if e.Age < 0 {
		proven = v.put[r.key][e.Version]
	}
	switch {
	case r.since > 0 && proven < r.since:
		return fmt.Errorf("I3: %s: %s@%d counts from %v, all before %v is void", v.name, r.key, e.Version,
			time.Duration(proven), time.Duration(r.since))
	case r.level.kind == levelAtLeast && e.Version != 0 && e.Version < r.level.version:
		return fmt.Errorf("I5: %s: %s@%d, want at least %d", v.name, r.key, e.Version, r.level.version)
	}
	// What was read across InvalidateAll counts as read before it. An absence
	// without a version may have been overtaken while the read waited for it: if
	// it was not, it is in memory, and check will see it there.
	if generation(r.era) == generation(v.cache.era.Load()) && e.Version != 0 {
		v.see(r.key, m)
	}
	return nil
}

// get reads memory in every way.
func (w *world) get(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	served, _ := v.entry(key)
	admitted := served != nil && v.cache.opts.Level.admits(served.E.version)
	r := w.reading(v, key, v.cache.opts.Level)
	e, ok := v.cache.GetEntry(key)
	if ok != admitted {
		t.Fatalf("%s: GetEntry(%s) = %+v, %t", v.name, key, e, ok)
	}
	if ok {
		if err := w.returned(r, e, w.now()); err != nil {
			t.Fatal(err)
		}
	}
	if value, ok := v.cache.Get(key); ok != (admitted && !e.Absent) || ok && value != e.Value {
		t.Fatalf("%s: Get(%s) = %d, %t, but GetEntry found %+v", v.name, key, value, ok, e)
	}
	if x := v.cache.Explain(key); x.Served != (served != nil) {
		t.Fatalf("%s: %s is explained as %v", v.name, key, x)
	}
}

func (w *world) load(t *rapid.T) {
	v := w.drawView(t)
	w.startRead(t, v, v.cache.opts.Level, v.cache.Load)
}

func (w *world) read(t *rapid.T) {
	v := w.drawView(t)
	level := rapid.SampledFrom([]Level{Any, Linearizable, AtLeast(1), AtLeast(2), AtLeast(4)}).Draw(t, "level")
	w.startRead(t, v, level, func(ctx context.Context, key string) (Entry[int], error) {
		return v.cache.Read(ctx, key, level)
	})
}

func (w *world) startRead(t *rapid.T, v *view, level Level, read func(context.Context, string) (Entry[int], error)) {
	key := w.drawKey(t)
	r := w.reading(v, key, level)
	step := w.stepBegan
	var e Entry[int]
	var err error
	w.start(t, v, readFates, func(ctx context.Context, _ *operation) {
		e, err = read(ctx, key)
	}, func(o *operation) {
		switch {
		case err == nil && e.Absent, errors.Is(err, ErrNotFound) && !e.Absent:
			t.Fatalf("%s: read of %s: %+v, %v", v.name, key, e, err)
		case err == nil, errors.Is(err, ErrNotFound):
			if err := w.returned(r, e, o.endAt); err != nil {
				t.Fatal(err)
			}
			if r.alone && step == w.stepBegan {
				w.mustKeep(t, r, e)
			}
		case !w.mayFail(r, err):
			t.Fatalf("%s: read of %s at %+v: %v", v.name, key, level, err)
		}
	})
}

// mayFail reports whether there is a reason for a read's error.
func (w *world) mayFail(r reading, err error) bool {
	switch {
	case errors.Is(err, context.Canceled):
		return w.cancelled
	case errors.Is(err, errInjected):
		return true
	case errors.As(err, new(*PanicError)):
		return true
	case errors.Is(err, ErrStale):
		// The source never goes back, so that only a version that it does not
		// have, or absences that keep losing their race, can be the reason.
		return r.level.kind == levelAtLeast && r.level.version > r.current.mark.version || w.ledger.unversioned()
	default:
		return false
	}
}

// mustKeep says that what an undisturbed strong load has returned is in memory.
func (w *world) mustKeep(t *rapid.T, r reading, e Entry[int]) {
	v := r.view
	if w.lag > 0 || v.cache.era.Load()&eraCutOff != 0 || v.inDoubt(r.key) || w.opts.MaxCost < 1000 || v.cache.policy.limit.Load() < 1000 ||
		e.Absent && w.opts.NegativeTTL < 0 || r.moves+1 < v.moves[r.key] {
		return
	}
	if served, _ := v.entry(r.key); served == nil || served.E.version != e.Version {
		t.Fatalf("%s: %s was loaded at version %d, but memory does not have it: %v", v.name, r.key, e.Version,
			v.cache.Explain(r.key))
	}
}

func (w *world) loadMany(t *rapid.T) {
	v := w.drawView(t)
	keys := rapid.SliceOfN(rapid.SampledFrom(w.keys), 1, 4).Draw(t, "keys")
	readings := map[string]reading{}
	for _, k := range keys {
		readings[k] = w.reading(v, k, v.cache.opts.Level)
	}
	var all map[string]Entry[int]
	var err error
	w.start(t, v, readFates, func(ctx context.Context, _ *operation) {
		all, err = v.cache.LoadMany(ctx, keys)
	}, func(o *operation) {
		for k, e := range all {
			r, asked := readings[k]
			if !asked || e.Absent {
				t.Fatalf("%s: LoadMany returned %+v for %s", v.name, e, k)
			}
			if err := w.returned(r, e, o.endAt); err != nil {
				t.Fatal(err)
			}
		}
		for k, r := range readings {
			if _, ok := all[k]; !ok && err == nil && !w.wasAbsent(r) {
				t.Fatalf("%s: LoadMany misses %s, which was not absent", v.name, k)
			}
		}
		excused := slices.ContainsFunc(slices.Collect(maps.Values(readings)), func(r reading) bool { return w.mayFail(r, err) })
		if err != nil && !excused {
			t.Fatalf("%s: LoadMany of %v: %v", v.name, keys, err)
		}
	})
}

// wasAbsent reports whether the key can have been absent for a reading.
func (w *world) wasAbsent(r reading) bool {
	return slices.ContainsFunc(w.ledger.history(r.key), func(s fact) bool {
		return s.mark.absent && !s.mark.before(r.need)
	})
}

// put offers any state that the source ever had.
func (w *world) put(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	s := w.drawState(t, key)
	if s.mark.absent {
		return
	}
	served, resident := v.entry(key)
	doubted, seen := v.inDoubt(key), v.seen[key]
	fits := v.cache.cost(key, s.value) <= v.cache.policy.limit.Load()
	got := v.cache.Put(key, s.value, s.mark.version)
	fail := func(why string) {
		t.Helper()
		t.Fatalf("%s: Put(%s@%d) = %v although %s; seen %v, resident %t, in doubt %t", v.name, key, s.mark.version,
			got, why, seen, resident != nil, doubted)
	}
	switch {
	case got == TooLarge && fits, got == Closed:
		fail("it is neither")
	case got == Applied && s.mark.before(seen):
		fail("that is below the tide mark (I1)")
	case got == Applied && doubted:
		fail("the key is in doubt")
	case got == Stale && !s.mark.before(seen.later(w.ledger.highest(key))):
		fail("it is not below the tide mark")
	case got == Duplicate && (resident == nil || resident.E.mark() != s.mark):
		fail("the entry is another")
	case got == Unproven && w.mustProve(v, key, s.mark) && !doubted && resident == nil:
		fail("nothing as new is known of any key")
	case served != nil && served.E.version != 0 && fits:
		if want := compare(s.mark, served.E.mark()); got != want {
			fail(fmt.Sprintf("the entry served is at %d", served.E.version))
		}
	}
	if got == Applied {
		put := v.put[key]
		if put == nil {
			put = map[Version]int64{}
			v.put[key] = put
		}
		put[s.mark.version] = w.now()
		if now, _ := v.entry(key); v.cache.era.Load()&eraCutOff == 0 && (now == nil || now.E.mark() != s.mark) {
			fail("it cannot be read")
		}
	}
	v.see(key, s.mark)
}

// compare is the outcome of a Put of m over a live entry.
func compare(m, have mark) Outcome {
	switch {
	case m.before(have):
		return Stale
	case have.before(m):
		return Applied
	default:
		return Duplicate
	}
}

// mustProve reports whether memory can show that m is above the tide mark of a
// key without an entry, whichever other keys share its slot.
func (w *world) mustProve(v *view, key string, m mark) bool {
	if w.source && (v.blind || w.ledger.unversioned()) {
		return false
	}
	for _, k := range w.keys {
		if !v.seen[k].later(w.ledger.highest(k)).before(m) {
			return false
		}
	}
	return true
}

func (w *world) beginFill(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	v.fills = append(v.fills, &filling{
		key: key, fill: v.cache.BeginFill(key), began: w.now(), moves: v.moves[key], era: v.cache.era.Load(),
	})
}

func (w *world) drawFill(t *rapid.T) (*view, *filling) {
	v := w.drawView(t)
	if len(v.fills) == 0 {
		return v, nil
	}
	return v, v.fills[rapid.IntRange(0, len(v.fills)-1).Draw(t, "fill")]
}

// readForFill reads the source for a Fill.
func (w *world) readForFill(t *rapid.T) {
	if _, f := w.drawFill(t); f != nil {
		f.read, f.result = true, w.ledger.current(f.key)
	}
}

func (w *world) endFill(t *rapid.T) {
	v, f := w.drawFill(t)
	if f == nil {
		return
	}
	v.fills = slices.DeleteFunc(v.fills, func(g *filling) bool { return g == f })
	if !f.read || rapid.IntRange(0, 4).Draw(t, "cancel") == 0 {
		f.fill.Cancel()
	} else {
		w.commitFill(t, v, f)
	}
	if again := f.fill.Commit(f.result.value, f.result.mark.version+1); again != Stale {
		t.Fatalf("%s: the second end of a fill of %s: %v", v.name, f.key, again)
	}
}

func (w *world) commitFill(t *rapid.T, v *view, f *filling) {
	m := w.ledger.tell(f.key, f.result)
	var got Outcome
	if m.absent {
		got = f.fill.Absent(m.version)
	} else {
		got = f.fill.Commit(f.result.value, m.version)
	}
	seen, fits := v.seen[f.key], v.cache.cost(f.key, f.result.value) <= v.cache.policy.limit.Load()
	fail := func(why string) {
		t.Helper()
		t.Fatalf("%s: fill of %s with %v: %v although %s; seen %v", v.name, f.key, m, got, why, seen)
	}
	still := f.moves == v.moves[f.key] && f.era == v.cache.era.Load() && !m.before(w.ledger.highest(f.key)) &&
		m.version != 0 && !w.ledger.unversioned()
	switch {
	case got == Applied && v.inDoubt(f.key):
		fail("the key is in doubt (I4)")
	case got == Applied && m.version != 0 && m.before(seen):
		fail("that is below the tide mark (I2)")
	case got == Applied && f.began < v.since[f.key]:
		fail("everything was thrown away since it began (I2)")
	case got == Stale && !m.before(seen.later(w.ledger.highest(f.key))):
		fail("it is not below the tide mark")
	case got != Applied && got != TooLarge && still && !v.inDoubt(f.key):
		fail("nothing has moved since it began")
	case got == TooLarge && fits:
		fail("it fits")
	}
	if m.version != 0 {
		v.see(f.key, m)
	}
}

func (w *world) invalidate(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	version := w.drawState(t, key).mark.version
	began := w.now()
	var err error
	w.start(t, v, []fate{answered}, func(ctx context.Context, _ *operation) {
		err = v.cache.Invalidate(ctx, key, version)
	}, func(*operation) {
		if err != nil && !(errors.Is(err, ErrNotBroadcast) && w.cancelled) {
			t.Fatalf("%s: Invalidate(%s, %d): %v", v.name, key, version, err)
		}
		w.announce(key, version, began)
	})
	// It is in force here even while it waits for the network.
	if version == 0 {
		v.forget(key, w.stepBegan)
	} else {
		v.see(key, mark{version: version})
	}
}

func (w *world) invalidateAll(t *rapid.T) {
	v := w.drawView(t)
	began := w.now()
	var err error
	w.start(t, v, []fate{answered}, func(ctx context.Context, _ *operation) {
		err = v.cache.InvalidateAll(ctx)
	}, func(*operation) {
		if err != nil && !(errors.Is(err, ErrNotBroadcast) && w.cancelled) {
			t.Fatalf("%s: InvalidateAll: %v", v.name, err)
		}
		for _, k := range w.keys {
			w.announce(k, 0, began)
		}
	})
	w.forgetAll(v)
	for _, k := range w.keys {
		if served, _ := v.entry(k); served != nil {
			t.Fatalf("%s: %s survives InvalidateAll", v.name, k)
		}
	}
}

// A writing is a write that has begun.
type writing struct {
	reading
	last  Entry[int] // what Update's function saw last; Version is the base
	entry Entry[int]
	err   error
}

func (w *world) startWrite(t *rapid.T, v *view, key string, call func(context.Context, *writing) (Entry[int], error)) {
	step := w.stepBegan
	wr := &writing{reading: w.reading(v, key, Any)}
	w.start(t, v, writeFates, func(ctx context.Context, _ *operation) {
		wr.entry, wr.err = call(ctx, wr)
	}, func(o *operation) {
		w.written(t, wr, o)
		if wr.err == nil && wr.alone && step == w.stepBegan {
			w.mustKeep(t, wr.reading, wr.entry)
		}
	})
}

func (w *world) update(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	w.startWrite(t, v, key, func(ctx context.Context, wr *writing) (Entry[int], error) {
		return v.cache.Update(ctx, key, func(cur Entry[int]) (int, error) {
			wr.last = cur
			return w.ledger.value(), nil
		})
	})
}

// drawBase returns a base that is right most of the time.
func (w *world) drawBase(t *rapid.T, key string) fact {
	if rapid.IntRange(0, 2).Draw(t, "wrong base") == 0 {
		return w.drawState(t, key)
	}
	return w.ledger.current(key)
}

func (w *world) compareAndSet(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	base := w.drawBase(t, key)
	w.startWrite(t, v, key, func(ctx context.Context, wr *writing) (Entry[int], error) {
		wr.last = Entry[int]{Value: base.value, Version: base.base(), Absent: base.mark.absent}
		return v.cache.CompareAndSet(ctx, key, base.base(), w.ledger.value())
	})
}

func (w *world) remove(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	base := w.drawBase(t, key)
	w.startWrite(t, v, key, func(ctx context.Context, wr *writing) (Entry[int], error) {
		wr.last = Entry[int]{Value: base.value, Version: base.base(), Absent: base.mark.absent}
		return v.cache.Delete(ctx, key, base.base())
	})
}

// written checks how a write has ended.
func (w *world) written(t *rapid.T, wr *writing, o *operation) {
	v, key := wr.view, wr.key
	var conflict *ConflictError
	var uncertain *UncertainError
	switch {
	case wr.err == nil:
		past := w.ledger.history(key)
		if wr.entry.Version == 0 || int(wr.entry.Version) >= len(past) {
			t.Fatalf("I9: %s: wrote %s@%d, which the source does not have", v.name, key, wr.entry.Version)
		}
		s, before := past[wr.entry.Version], past[wr.entry.Version-1]
		if s.value != wr.entry.Value || s.mark.absent != wr.entry.Absent {
			t.Fatalf("I9: %s: wrote %+v, the source has %+v", v.name, wr.entry, s)
		}
		if before.mark.absent != wr.last.Absent || before.value != wr.last.Value {
			t.Fatalf("I10: %s: %s@%d was written on %+v, but follows %+v", v.name, key, wr.entry.Version, wr.last, before)
		}
		v.see(key, s.mark) // I4
		w.announce(key, s.mark.version, o.endAt)
	case errors.As(wr.err, &uncertain):
		if o.fate != lost && o.fate != delayed && o.fate != unanswered && !w.cancelled {
			t.Fatalf("%s: write of %s: %v", v.name, key, wr.err)
		}
		v.doubts = append(v.doubts, &doubting{key, uncertain})
		v.forget(key, o.endAt)
		w.announce(key, 0, wr.began)
	case errors.As(wr.err, &conflict):
		s := w.ledger.history(key)[conflict.Current]
		if s.base() == wr.last.Version && s.mark.absent == wr.last.Absent {
			t.Fatalf("%s: write of %s on %+v: %v", v.name, key, wr.last, wr.err)
		}
		v.see(key, mark{version: conflict.Current})
	case errors.Is(wr.err, ErrUnavailable):
		if o.fate != refused {
			t.Fatalf("%s: write of %s: %v", v.name, key, wr.err)
		}
	case !w.mayFail(wr.reading, wr.err):
		t.Fatalf("%s: write of %s: %v", v.name, key, wr.err)
	}
}

// deliverOne delivers a message, most of the time the first.
func (w *world) deliverOne(t *rapid.T) {
	to := rapid.IntRange(0, len(w.views)-1).Draw(t, "to")
	i := max(rapid.IntRange(-2, 3).Draw(t, "message"), 0)
	if p, ok := w.network.take(to, i); ok {
		w.deliver(to, p)
		w.delivered = append(w.delivered, redelivery{to, p})
	}
}

func (w *world) redeliver(t *rapid.T) {
	if len(w.delivered) > 0 {
		d := w.delivered[rapid.IntRange(0, len(w.delivered)-1).Draw(t, "message")]
		w.deliver(d.to, d.packet)
	}
}

func (w *world) drop(t *rapid.T) {
	w.network.take(rapid.IntRange(0, len(w.views)-1).Draw(t, "to"), 0)
}

func (w *world) corrupt(t *rapid.T) {
	to := rapid.IntRange(0, len(w.views)-1).Draw(t, "to")
	if p, ok := w.network.take(to, 0); ok {
		p.body[rapid.IntRange(0, len(p.body)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		w.deliver(to, p)
	}
}

func (w *world) drainAll(*rapid.T) { w.drain() }

func (w *world) toggle(t *rapid.T) { w.network.set(rapid.Bool().Draw(t, "down")) }

// lost is the transport saying that it may have missed something.
func (w *world) lost(t *rapid.T) {
	i := rapid.IntRange(0, len(w.views)-1).Draw(t, "cache")
	v := w.views[i]
	w.network.mu.Lock()
	v.deaf, v.sent = true, w.network.sent
	w.network.mu.Unlock()
	w.network.links[i].lost("test")
	w.forgetAll(v)
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
	e := served.E.public(v.cache.now())
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
			proven := w.now() - int64(served.E.public(v.cache.now()).Age)
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
	w.background.fate = answered
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
