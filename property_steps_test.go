package tidemark

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// The steps of TestCacheMatchesModel, and what each of them may return.

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
	if p, ok := s.table.Find(hash, key); ok {
		s.dropLocked(p, hash, v.cache.moment())
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
	w.doubtAll(v)
}

func (w *world) cutOff(t *rapid.T) {
	v := w.drawView(t)
	v.cache.cutOff()
	v.deaf = true
	w.doubtAll(v)
}

func (w *world) rejoin(t *rapid.T) {
	v := w.drawView(t)
	v.cache.rejoin()
	v.deaf = false
	w.doubtAll(v)
}

// A reading is a read that has begun, and what the model knew then.
type reading struct {
	view    *view
	key     string
	level   Level
	need    mark  // nothing below it may be returned
	since   int64 // nothing proven before it may be returned
	thrown  int64 // nor flagged
	began   int64
	current fact // of the source
	moves   int
	alone   bool // nothing else runs
	many    bool // it may have been found long before it was returned
}

func (w *world) reading(v *view, key string, level Level) reading {
	r := reading{
		view: v, key: key, level: level, need: v.seen[key], since: v.since[key], thrown: v.thrown[key],
		began: w.now(), current: w.ledger.current(key), moves: v.moves[key], alone: len(w.running)+w.stopped() == 0,
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
	since := r.since
	if e.Stale {
		since = r.thrown
	}
	switch {
	case since > 0 && proven < since:
		return fmt.Errorf("I3: %s: %s@%d counts from %v, all before %v is void", v.name, r.key, e.Version,
			time.Duration(proven), time.Duration(since))
	case r.level.kind == levelAtLeast && e.Version != 0 && e.Version < r.level.version:
		return fmt.Errorf("I5: %s: %s@%d, want at least %d", v.name, r.key, e.Version, r.level.version)
	}
	if r.began < v.since[r.key] {
		v.moves[r.key]++ // across InvalidateAll a load counts as a change without a version
	}
	if e.Stale {
		if err := w.mayLend(r, e, v.deaf || v.silent || proven <= v.since[r.key]); err != nil {
			return fmt.Errorf("%s: %w (proven at %v, suspect until %v; %v)", v.name, err, time.Duration(proven), time.Duration(v.since[r.key]), v.cache.Explain(r.key))
		}
	}
	// An absence without a version may have been overtaken while the read waited
	// for it: if it was not, it is in memory, and check will see it there.
	if e.Version != 0 {
		v.see(r.key, m)
	}
	return nil
}

// mayLend checks an entry that a read was served after its TTL, or while it was suspect.
func (w *world) mayLend(r reading, e Entry[int], suspect bool) error {
	age, ttl := w.life(r.view, r.key, e)
	switch o := &w.opts; {
	case !r.level.lenient() || e.Absent:
		return fmt.Errorf("S67: at %v stale %+v is served", r.level, e)
	case e.Age >= 0 && (age+w.lag < ttl && !suspect || !r.many && age >= ttl+max(o.StaleWhileRevalidate, o.StaleIfError)):
		return fmt.Errorf("S67: %s@%d is served stale at %v, its TTL is %v", r.key, e.Version, age, ttl)
	case o.MaxStale > 0 && !within(o.MaxStale, e.Age) && !r.many:
		return fmt.Errorf("S67: %s@%d is served stale at %v, MaxStale is %v", r.key, e.Version, e.Age, o.MaxStale)
	}
	return nil
}

// lends reports whether GetEntry may serve the key's entry after its TTL.
func (w *world) lends(v *view, key string, resident *node[string, int]) bool {
	d, now := w.opts.StaleWhileRevalidate, v.cache.now()
	if resident == nil || d == 0 || !w.opts.Level.lenient() || v.deaf || v.inDoubt(key) {
		return false
	}
	e := &resident.E
	return e.era == v.cache.era.Load() && !e.absent && e.expiresAt != 0 && now >= e.expiresAt && now < e.expiresAt+int64(d) &&
		e.version >= w.opts.Level.version && (w.opts.MaxStale == 0 || e.provenAt != unproven && now-e.provenAt <= int64(w.opts.MaxStale))
}

// get reads memory in every way.
func (w *world) get(t *rapid.T) {
	v, key := w.drawView(t), w.drawKey(t)
	served, resident := v.entry(key)
	lent := w.lends(v, key, resident)
	admitted := served != nil && v.cache.admits(v.cache.opts.Level, true, &served.E.facts, replica.NoMark, v.cache.moments())
	r := w.reading(v, key, v.cache.opts.Level)
	e, ok := v.cache.GetEntry(key)
	if ok != (admitted || lent) || e.Stale != lent {
		t.Fatalf("%s: GetEntry(%s) = %+v, %t; stale: %t", v.name, key, e, ok, lent)
	}
	if ok {
		if err := w.returned(r, e, w.now()); err != nil {
			t.Fatal(err)
		}
	}
	if lent {
		return // what replaces it may be there at any moment
	}
	if value, ok := v.cache.Get(key); ok != (admitted && !e.Absent) || ok && value != e.Value {
		t.Fatalf("%s: Get(%s) = %d, %t, but GetEntry found %+v", v.name, key, value, ok, e)
	}
	atAny := served != nil && v.cache.admits(Any, true, &served.E.facts, replica.NoMark, v.cache.moments())
	if x := v.cache.Explain(key); x.Served != atAny || x.TooOld != (served != nil && !atAny) {
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
			if r.alone && step == w.stepBegan && !e.Stale {
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
		// have can be the reason.
		return r.level.kind == levelAtLeast && r.level.version > r.current.mark.version
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
	served, _ := v.entry(r.key)
	if served != nil && w.opts.RefreshAfter > 0 {
		return // it may be what a load behind the hit has brought
	}
	if served == nil || served.E.version != e.Version {
		t.Fatalf("%s: %s was loaded at version %d, but memory does not have it: %v", v.name, r.key, e.Version,
			v.cache.Explain(r.key))
	}
}

func (w *world) loadMany(t *rapid.T) {
	v := w.drawView(t)
	keys := rapid.SliceOfN(rapid.SampledFrom(w.keys), 1, 4).Draw(t, "keys")
	readings := map[string]reading{}
	for _, k := range keys {
		r := w.reading(v, k, v.cache.opts.Level)
		r.many = true
		readings[k] = r
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
	cost, limit := v.cache.cost(key, s.value), v.cache.policy.limit.Load()
	fits := cost <= limit
	// To make room the cache may evict the very entry that would prove the Put.
	room := cost <= limit-v.cache.policy.cost.Load()
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
		if want := compare(s.mark, served.E.mark()); got != want && (room || got != Unproven) {
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
	case got != Applied && got != TooLarge && still && !v.inDoubt(f.key) && !(m.absent && w.opts.NegativeTTL < 0):
		fail("nothing has moved since it began")
	case got == TooLarge && fits:
		fail("it fits")
	}
	if got != Applied && f.began < v.since[f.key] {
		v.moves[f.key]++ // across InvalidateAll it counts as a change without a version
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
		v.see(key, s.mark)
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
	w.doubtAll(v)
}
