package tidemark

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// A Loader reads the state of a key from the source of truth.
type Loader[K comparable, V any] interface {
	// Load returns the value of key and its version, which is not zero. If the
	// source has no such key it returns an error that wraps [ErrNotFound], with
	// the version of the deletion if the source knows it and zero otherwise.
	// The value must not be modified afterwards.
	//
	// Load may be called at once for different keys, and twice at once for one
	// key. It must not read through the cache it loads for: the same key would
	// wait for itself, and other keys for places among MaxLoads that loads like
	// this one hold. It should return when ctx ends, which LoadTimeout makes it do:
	// its readers, and its place among MaxLoads, wait for that. A panic is contained
	// and reported as a [*LoadError].
	Load(ctx context.Context, key K) (V, Version, error)
}

// A LoaderFunc is a function used as a Loader.
type LoaderFunc[K comparable, V any] func(ctx context.Context, key K) (V, Version, error)

// Load calls f.
func (f LoaderFunc[K, V]) Load(ctx context.Context, key K) (V, Version, error) { return f(ctx, key) }

// A BulkLoader is a Loader that can read many keys at once. LoadMany uses it
// for the keys that memory does not have.
type BulkLoader[K comparable, V any] interface {
	// LoadMany returns what it found for each key. An absent key has a Loaded
	// with Absent set; a key that is missing from the map counts as an error,
	// not as absent. The error, if not nil, fails all keys.
	LoadMany(ctx context.Context, keys []K) (map[K]Loaded[V], error)
}

// Loaded is one key's part of a BulkLoader's answer.
type Loaded[V any] struct {
	Value   V
	Version Version // as Load returns it
	Absent  bool
	Err     error // fails this key only
}

// A flight is one load of one key, and those who wait for it.
type flight[K comparable, V any] struct {
	fence[K]
	id   uint64         // rises with each flight of the shard
	off  replica.Moment // when it was asked for, before it began
	done chan struct{}  // closed when the fields below are final

	// caller is the context of the reader who asked for it, while it is not yet
	// its turn.
	caller context.Context

	// Written by the loading goroutine before done is closed, only read after.

	entry Entry[V]       // Age counts from began
	began replica.Moment // when the Loader was called
	err   error          // the load failed; an absence is no failure

	// overtaken is fence.moved when the load ended: something became known of
	// the key while it ran.
	overtaken bool

	looks bool // in shadow mode, for readers whom memory would have served: not to be stored
}

// meets reports whether the flight's result is good enough for w. An absence
// without a version is if nothing became known while the load ran, and either w
// needs nothing, or the load is strong and began late enough: what w needs was
// known then, or w was there before it.
func (f *flight[K, V]) meets(w *waiter[K, V]) bool {
	m := mark{f.entry.Version, f.entry.Absent}
	want, need := w.want, w.need
	if generation(f.era) != w.gen { // versions do not compare with what was known before
		want = mark{version: w.level.version}
		need = want
	}
	if m.version != 0 {
		return !m.before(want)
	}
	begunLate := f.id > w.arrived || !f.floor.before(need)
	return !f.overtaken && (!m.before(want) || f.strong && begunLate)
}

// A waiter is one read's way through one or more loads.
type waiter[K comparable, V any] struct {
	key   K
	hash  uint64
	level Level

	// need is what was known of the key when the read began. What became known
	// later is not the read's concern: it may count as having come before.
	need mark

	// want is what the flight that it waits for must bring: need, or, from a
	// lagging load, the floor of that load.
	want mark

	// arrived is the id of the shard's latest flight when the read began: later
	// ones have begun after it.
	arrived uint64
	at      replica.Moment // when the read began
	fresh   replica.Mark   // read before whatever entry board finds
	tries   int
	gen     uint32 // when the read began

	shadow *shadow[V] // in shadow mode, what memory would have served
}

// maxRunning bounds the loads of one key that run at once: one that may have
// begun too early for somebody, and one that began later. Whoever needs a still
// later one waits, with all others who do, for the next, which begins when one
// of the two ends. So readers who each need a load of their own, as Linearizable
// ones do, cannot take the source from other keys.
const maxRunning = 2

// maxTries is how often a read loads before it gives up with ErrStale. It may
// join a load that began too early, then a lagging one, and the next is strong
// and began after it, which is enough unless the source goes back. Only
// absences without a version that are overtaken again and again take more.
const maxTries = 10

// load waits for a flight that satisfies the read.
func (c *Cache[K, V]) load(ctx context.Context, key K, hash uint64, level Level) (Entry[V], error) {
	w := &waiter[K, V]{key: key, hash: hash, level: level, need: mark{version: level.version}}
	return c.await(ctx, w)
}

func (c *Cache[K, V]) await(ctx context.Context, w *waiter[K, V]) (Entry[V], error) {
	var had Version
	for w.tries < maxTries {
		hit, f, mine, err := c.board(ctx, w)
		if err != nil {
			return Entry[V]{Age: -1}, err
		}
		if hit != nil {
			return c.result(hit, w.fresh, c.moments())
		}
		if mine {
			go c.run(ctx, f)
		}
		e, ok, err := c.land(ctx, f, w)
		if ok || err != nil {
			return e, err
		}
		had = f.entry.Version
		if f.strong && f.id > w.arrived && had != 0 {
			break // the source itself has no more than this
		}
	}
	return Entry[V]{Age: -1}, fmt.Errorf("%w: want version %d, the source has %d", ErrStale, w.want.version, had)
}

// land waits for f and reports whether its result satisfies w.
func (c *Cache[K, V]) land(ctx context.Context, f *flight[K, V], w *waiter[K, V]) (e Entry[V], ok bool, err error) {
	select {
	case <-f.done: // whatever else has ended
		return c.landed(f, w)
	default:
	}
	var soft <-chan time.Time
	if d := c.patience(f, w); d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		soft = timer.C
	}
	for {
		select {
		case <-f.done:
			return c.landed(f, w)
		case <-soft:
			soft = nil
			if e, ok := c.instead(w); ok {
				if e.Stale { // or somebody else has brought it meanwhile
					c.stats.softTimeouts.Add(1)
				}
				return e, true, nil
			}
		case <-ctx.Done():
			return Entry[V]{Age: -1}, false, ctx.Err()
		case <-c.life.Done(): // the Loader may not heed that
			return Entry[V]{Age: -1}, false, ErrClosed
		}
	}
}

// landed is land once f has ended.
func (c *Cache[K, V]) landed(f *flight[K, V], w *waiter[K, V]) (e Entry[V], ok bool, err error) {
	switch {
	case f.err != nil:
		if e, ok = c.instead(w); ok {
			return e, true, nil
		}
		return Entry[V]{Age: -1}, false, f.err
	case c.opts.Shadow && f.suffices(w):
	case !f.meets(w):
		return Entry[V]{Age: -1}, false, nil
	}
	e = f.entry
	e.Age += replica.At(f.began).Age(f.began.Mono, c.moments())
	if w.shadow != nil {
		c.compareShadow(w, &e)
	}
	if e.Absent {
		err = ErrNotFound
	}
	return e, true, err
}

// board finds w an entry, or a flight to wait for. If mine is set the flight is
// new and the caller must run it.
func (c *Cache[K, V]) board(ctx context.Context, w *waiter[K, V]) (hit *node[K, V], f *flight[K, V], mine bool, err error) {
	switch {
	case c.closed.Load():
		return nil, nil, false, ErrClosed
	case c.opts.Loader == nil:
		return nil, nil, false, ErrNoLoader
	case ctx.Err() != nil:
		return nil, nil, false, ctx.Err()
	}
	applied, fresh, now := c.applied(w.level), c.freshness(), c.moments()
	s := c.shard(w.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	first := w.tries == 0
	w.tries++
	if first {
		w.arrived, w.at, w.fresh, w.gen = s.flights, now, fresh, generation(c.era.Load())
		// A load may have ended between the look without the lock and now.
		var n node[K, V]
		if _, ok := c.peek(w.hash, w.key, &n); ok && c.admits(w.level, applied, &n.E.facts, fresh, w.at) {
			return &n, nil, false, nil
		}
		if c.opts.Shadow {
			w.shadow = c.shadowOf(w, applied)
		}
	}
	at := c.moment()
	known := s.knownLocked(w.hash, w.key, at)
	if f := c.joinableLocked(s, w, at); f != nil {
		w.waitFor(f, known)
		c.stats.joined.Add(1)
		return nil, f, false, nil
	}
	if p := s.pending[w.key]; p != nil && p.next != nil {
		p.next.looks = p.next.looks && w.shadow != nil
		w.waitFor(p.next, known)
		c.stats.joined.Add(1)
		return nil, p.next, false, nil
	}
	if !c.loads.enter() {
		return nil, nil, false, ErrClosed
	}
	f = &flight[K, V]{done: make(chan struct{}), off: now, fence: fence[K]{key: w.key, hash: w.hash}, looks: w.shadow != nil}
	if p := s.pending[w.key]; p != nil && p.running >= maxRunning {
		f.strong, f.caller = true, ctx // strong, so that it is good enough for all who will wait
		p.next = f
		w.waitFor(f, known)
		return nil, f, false, nil
	}
	f.strong = c.mustBeStrong(s, w, at)
	s.takeOffLocked(f, at)
	w.waitFor(f, known)
	return nil, f, true, nil
}

// waitFor makes f the flight that w waits for; known is the mark of the key's
// entry. The floor of f may be that of another key, if it is lagging, or what somebody
// has announced that the source does not have: so it is a reason not to be content with
// f, but none to disbelieve the source when that is asked again.
func (w *waiter[K, V]) waitFor(f *flight[K, V], known mark) {
	if w.tries > 1 {
		w.want = w.need
		return
	}
	w.need = w.need.later(known)
	w.want = w.need.later(f.floor)
}

// joinableLocked returns the key's flight if w may wait for it: it began in
// this era, nothing has broken it, and it began late enough for the level and for
// MaxStale. For a read that was let down once it did: that waited for the latest flight
// there was.
func (c *Cache[K, V]) joinableLocked(s *shard[K, V], w *waiter[K, V], at moment) *flight[K, V] {
	p := s.pending[w.key]
	if p == nil || p.flight == nil || p.flight.broken || p.flight.era != at.era {
		return nil
	}
	f := p.flight
	if begunAfter := f.id > w.arrived; !begunAfter {
		age := replica.At(f.off).Age(f.off.Mono, w.at)
		if !w.level.begunInTime(age) || c.opts.MaxStale > 0 && age > c.opts.MaxStale-c.lag(f.strong) {
			return nil
		}
	}
	if !f.strong && (w.tries > 1 || w.level.strong()) {
		return nil
	}
	if f.looks && w.shadow == nil {
		return nil
	}
	return f
}

// begunInTime reports whether a strong load that began so long before a read at level l
// can satisfy it.
func (l Level) begunInTime(before time.Duration) bool {
	switch l.kind {
	case levelAny, levelAtLeast:
		return true
	case levelWithin:
		return before <= l.within
	default:
		return false
	}
}

// lag is how old what a load brings can be when it begins.
func (c *Cache[K, V]) lag(strong bool) time.Duration {
	if strong {
		return 0
	}
	return c.opts.LoaderClass.lag
}

// mustBeStrong reports whether a lagging answer would prove nothing.
func (c *Cache[K, V]) mustBeStrong(s *shard[K, V], w *waiter[K, V], at moment) bool {
	if c.opts.LoaderClass.kind == strongLoader || w.tries > 1 || w.level.strong() {
		return true
	}
	if p := s.pending[w.key]; p != nil && p.doubts > 0 {
		return true
	}
	if c.opts.MaxStale > 0 && c.opts.LoaderClass.lag >= c.opts.MaxStale {
		return true
	}
	return at.now() < c.holdOff.Load() || s.delayed.floor(w.hash, at) == unknownMark
}

// takeOffLocked begins a flight. An older one goes on for those who wait for it,
// but may not fill any more (S5).
func (s *shard[K, V]) takeOffLocked(f *flight[K, V], at moment) {
	s.flights++
	f.id = s.flights
	s.beginLocked(&f.fence, at)
	p := s.pending[f.key]
	if p.flight != nil {
		p.flight.broken = true
	}
	p.flight = f
	p.running++
}

// refresh starts a load behind a hit on the entry at p if it is due for one. If that
// fails, pauseLocked says when the next one is.
func (c *Cache[K, V]) refresh(p place, key K, hash uint64) {
	now := c.now()
	due := p.Head.refreshAt.Load()
	if now < due {
		return
	}
	s := c.shard(hash)
	if !s.mu.TryLock() {
		return // a hit waits for nobody; the next one tries again
	}
	if !p.Valid() || !p.Head.refreshAt.CompareAndSwap(due, after(now, max(c.opts.RefreshAfter, firstPause))) {
		s.mu.Unlock()
		return
	}
	w := &waiter[K, V]{key: key, hash: hash, tries: 1}
	running := s.pending[key]
	if running != nil && (running.flight != nil || running.running > 0) || !c.loads.enter() {
		s.mu.Unlock()
		return
	}
	at := c.moment()
	f := &flight[K, V]{done: make(chan struct{}), off: c.moments(), fence: fence[K]{key: key, hash: hash}}
	f.strong = c.mustBeStrong(s, w, at)
	s.takeOffLocked(f, at)
	s.mu.Unlock()
	c.stats.refreshes.Add(1)
	go c.run(context.Background(), f)
}

// run makes the load of f. It is detached from its first caller's context but
// for the values in it, because others wait too.
func (c *Cache[K, V]) run(caller context.Context, f *flight[K, V]) {
	defer c.loads.leave()
	var loaded Loaded[V]
	var err error
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
		c.finish(f, loaded, err)
	}()
	if c.life.Err() != nil { // it was not yet its turn when the cache ended
		err = ErrClosed
		return
	}
	ctx, cancel := c.loadContext(caller)
	defer cancel()
	if loaded, err = c.confirm(ctx, f); err != nil || loaded.Version != 0 {
		return
	}
	err = errGoexit
	err = c.ask(ctx, func() error {
		f.began = c.moments()
		var err error
		loaded.Value, loaded.Version, err = c.source(f.strong).Load(ctx, f.key)
		return c.readable(err)
	})
}

// loadContext returns the context of a shared load: it keeps the values of the
// first caller, such as a trace, and ends with LoadTimeout or the cache.
func (c *Cache[K, V]) loadContext(caller context.Context) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(caller)
	var cancel context.CancelFunc
	if c.opts.LoadTimeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, c.opts.LoadTimeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// source returns what to load from.
func (c *Cache[K, V]) source(strong bool) Loader[K, V] {
	if !strong || c.opts.LoaderClass.kind == strongLoader {
		return c.opts.Loader
	}
	if c.opts.Store != nil {
		return c.opts.Store
	}
	return LoaderFunc[K, V](c.opts.Loader.(StrongLoader[K, V]).LoadStrong)
}

// ask calls the source as MaxLoads and the Breaker allow. Its error wraps
// ErrUnavailable if call was not made.
func (c *Cache[K, V]) ask(ctx context.Context, call func() error) (err error) {
	leave, err := c.place(ctx)
	if err != nil {
		c.stats.declined.Add(1)
		return err
	}
	defer leave()
	if ctx.Err() != nil { // the place came in the last moment
		c.stats.declined.Add(1)
		return fmt.Errorf("%w: no time is left to ask the source: %w", ErrUnavailable, ctx.Err())
	}
	done, refused := c.allow()
	if refused != nil {
		c.stats.declined.Add(1)
		c.stats.declinedByBreaker.Add(1)
		return fmt.Errorf("%w: %w", ErrUnavailable, refused)
	}
	err = &PanicError{Value: "the load did not return"} // for done, if it does not
	began := c.now()
	done = c.limited(done, c.opts.LoadTimeout)
	defer func() {
		verdict := c.verdict(c.life, err)
		if verdict != nil && ctx.Err() != nil && time.Duration(c.now()-began) < c.opts.LoadTimeout/2 {
			verdict = context.Canceled // the wait for a place had taken most of its time
		}
		done(verdict)
	}()
	c.stats.loads.Add(1)
	c.stats.loading.Add(1)
	defer func() { // also if call does not return
		c.stats.loading.Add(-1)
		c.stats.loadTime.Add(max(c.now()-began, 0))
	}()
	err = call()
	return err
}

// place waits for a place among MaxLoads, but only until the breaker opens: loads that
// hang, which is why it does, may hold all of them.
func (c *Cache[K, V]) place(ctx context.Context) (leave func(), err error) {
	if c.places == nil {
		return func() {}, nil
	}
	leave = func() { <-c.places }
	select {
	case c.places <- struct{}{}:
		return leave, nil
	default:
	}
	opens := c.breakerOpens() // before its state is asked for, or one that opens between would be waited for
	if state, ok := c.breakerState(); !ok || state != BreakerOpen {
		select {
		case c.places <- struct{}{}:
			return leave, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: no place among MaxLoads: %w", ErrUnavailable, ctx.Err())
		case <-opens:
		}
	}
	c.stats.declinedByBreaker.Add(1)
	return nil, fmt.Errorf("%w: the breaker is open", ErrUnavailable)
}

// finish ends f with what the source said: it installs the state if nothing
// that became known meanwhile forbids it, and wakes those who wait.
func (c *Cache[K, V]) finish(f *flight[K, V], got Loaded[V], err error) {
	defer c.endFlight(f) // also if Cost or EntryTTL ends this goroutine
	absent := errors.Is(err, ErrNotFound) || err == nil && got.Absent
	if absent {
		err = nil
		got.Value = *new(V)
	} else if err == nil && got.Version == 0 {
		err = ErrNoVersion
	}
	if err != nil {
		f.err = c.loadError(err)
		return
	}
	c.fill(f, got.Value, mark{got.Version, absent})
}

// endFlight takes f down, wakes those who wait for it, and begins the key's next
// flight if there is one.
func (c *Cache[K, V]) endFlight(f *flight[K, V]) {
	s, now := c.shard(f.hash), c.now()
	s.mu.Lock()
	f.overtaken = f.moved
	if c.opts.RefreshAfter > 0 || c.opts.grace() > 0 {
		if f.err != nil {
			s.pauseLocked(f.key, f.hash, c.salt, now)
		} else {
			s.resumeLocked(f.key, f.hash)
		}
	}
	p := s.pending[f.key]
	if p.flight == f {
		p.flight = nil
	}
	p.running--
	next := p.next
	if next != nil {
		p.next = nil
		s.takeOffLocked(next, c.moment())
	}
	s.endLocked(&f.fence)
	s.mu.Unlock()
	close(f.done)
	if next != nil {
		go c.run(next.caller, next)
	}
}

// fill offers the state that f has loaded. It is the answer to those who wait in
// any case.
func (c *Cache[K, V]) fill(f *flight[K, V], value V, m mark) {
	lag := c.lag(f.strong)
	f.entry = Entry[V]{Value: value, Version: m.version, Absent: m.absent, Age: lag}
	if f.looks {
		c.shown(f, m)
		return
	}
	n := newNode(f.key, f.hash, value, m, byLoad)
	n.E.provenAt = f.began.Mono - int64(lag)
	f.err = &LoadError{Err: errGoexit} // what is left if Cost or EntryTTL ends this goroutine
	c.offer(&n, c.cost(f.key, value), f.began.Mono, func(s *shard[K, V], at moment) (Outcome, *fence[K]) {
		return s.judgeFenceLocked(&f.fence, m, at), &f.fence
	})
	f.err = nil
}

// shown notes that readers in shadow mode are about to get m, which is not stored: no
// load that began before may bring less to those who come after them.
func (c *Cache[K, V]) shown(f *flight[K, V], m mark) {
	s := c.shard(f.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := c.moment(); generation(f.era) == generation(at.era) && !f.cannotCompare(m) {
		s.raiseLocked(f.key, f.hash, m, &f.fence, at)
	}
}

// loadError returns the error that the waiters of a failed load get.
func (c *Cache[K, V]) loadError(err error) error {
	c.stats.loadErrors.Add(1)
	switch {
	case c.life.Err() != nil:
		return ErrClosed
	case errors.Is(err, ErrUnavailable):
		return err
	}
	if shared, ok := err.(*LoadError); ok {
		return shared // a bulk load's, the same for all its keys
	}
	return &LoadError{Err: err}
}
