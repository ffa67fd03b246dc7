package tidemark

import (
	"container/heap"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// An auditor compares memory with the source, in cycles; see AuditOptions.
//
// Why nothing is missed. A cycle goes through the block of each shard's table that
// is current when it comes to it (table.All): an entry that stays is in it, also if
// the shard grows meanwhile. What is suspected is never forgotten: when there is no
// room for more suspicions, the cycle waits.
type auditor[K comparable, V any] struct {
	c    *Cache[K, V]
	o    AuditOptions[K, V]
	bulk BulkLoader[K, V] // the strong source, if it reads many values in one call

	batch int           // checks of one call of the source
	each  int64         // nanoseconds that a check takes of the rate
	wake  chan struct{} // capacity 1: a cycle is wanted

	invalidated atomic.Uint64 // keys, of which one in so many is sampled

	// For the auditor's goroutine only.

	line  checkHeap[K] // what waits for its time
	known int          // of line: not samples
	fresh []check[K]   // of the walk, not asked for yet
	free  int64        // until then the rate allows no call
	open  int          // checks of this cycle that are not decided
	walk  int64        // when it began
	seen  uint64       // entries that it has looked at

	tripped atomic.Bool

	mu     sync.Mutex     // guards everything below
	inbox  []check[K]     // from other goroutines
	doubts map[K]struct{} // keys of suspicions that reads in shadow mode have brought
	wanted bool           // a cycle is to begin at once
	tally  AuditReport
	stale  []uint64      // by scale
	lost   []uint64      // likewise: undecided, and may have been stale for so long
	cycle  uint64        // mismatches of this cycle
	toTrip int           // mismatches until the switch is set; zero or less: it is not
	ended  chan struct{} // closed when a cycle ends
	last   []Mismatch[K]
}

// A check is one comparison that is to be made, or made again.
type check[K comparable] struct {
	key  K
	hash uint64
	due  int64

	walk    bool // the cycle waits for it
	sample  bool // of an invalidation
	shadow  bool // a read in shadow mode suspects it
	byValue bool // its version alone was not told
	tries   int  // that failed
	holds   int  // tries that came in the middle of a write

	// Of the entry as it was before the source was asked.

	had    facts
	digest uint64
	judged bool // there is a digest

	suspect bool  // it differed
	seen    int64 // since when
}

// A checkHeap has what is due first at its top.
type checkHeap[K comparable] []check[K]

func (h checkHeap[K]) Len() int           { return len(h) }
func (h checkHeap[K]) Less(i, j int) bool { return h[i].due < h[j].due }
func (h checkHeap[K]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *checkHeap[K]) Push(x any)        { *h = append(*h, x.(check[K])) }
func (h *checkHeap[K]) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = check[K]{}
	*h = (*h)[:last]
	return x
}

const (
	maxKnown   = 4096 // checks that wait and are not samples; then the walk does
	maxSamples = 4096 // that wait; then they are dropped
	maxInbox   = 1024 // likewise
	maxFailed  = 5    // tries of one check; what is refused is no try

	auditPoll  = time.Second // between two looks into the inbox
	auditRetry = time.Second // after a call that failed or was refused
)

func newAuditor[K comparable, V any](c *Cache[K, V]) *auditor[K, V] {
	a := &auditor[K, V]{c: c, o: c.opts.auditOptions(), wake: make(chan struct{}, 1), ended: make(chan struct{}), doubts: map[K]struct{}{}}
	a.each = int64(time.Second) / int64(a.o.Rate)
	a.bulk, _ = c.source(true).(BulkLoader[K, V])
	a.batch = a.most(false)
	a.stale, a.lost = make([]uint64, 1+len(a.o.Scales)), make([]uint64, 1+len(a.o.Scales))
	for i := range c.shards {
		c.shards[i].recorder = newRecorder(len(c.shards))
	}
	return a
}

// run is the auditor's goroutine: one cycle after the other.
func (a *auditor[K, V]) run() {
	for {
		a.begin()
		if !a.goRound() || !a.work(func() bool { return a.open > 0 }) {
			return
		}
		a.end()
		next := after(a.walk, a.o.Every)
		if !a.work(func() bool { return a.c.now() < next && !a.isWanted() }) {
			return
		}
	}
}

func (a *auditor[K, V]) begin() {
	a.walk, a.seen = a.c.now(), 0
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wanted, a.cycle, a.toTrip = false, 0, a.o.Trip
	a.tally.Begun++
}

func (a *auditor[K, V]) isWanted() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wanted
}

func (a *auditor[K, V]) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tally.Cycles++
	a.tally.Waiting = a.known
	t := &a.tally.Last
	t.Began, t.Ended, t.Entries, t.Mismatches = a.c.clock.began.Add(time.Duration(a.walk)), time.Now(), a.seen, a.cycle
	close(a.ended)
	a.ended = make(chan struct{})
}

// goRound looks at every entry. It returns false if the cache has ended.
func (a *auditor[K, V]) goRound() bool {
	for i := range a.c.shards {
		for key := range a.c.shards[i].table.All {
			a.seen++
			a.open++
			a.fresh = append(a.fresh, check[K]{key: key, hash: a.c.keys.hash(key), walk: true})
			if len(a.fresh) >= a.batch && !a.flush() {
				return false
			}
		}
	}
	return a.flush()
}

// flush examines what the walk has collected, once there is room for what that may
// bring, and the rate allows it. Of two calls that the rate allows one is for what is due,
// if something is: a suspicion does not wait for the end of the walk.
func (a *auditor[K, V]) flush() bool {
	early := func() bool { return a.known+len(a.fresh) > maxKnown || a.c.now() < a.free }
	if !a.work(early) {
		return false
	}
	a.collect()
	if due := a.take(a.c.now()); len(due) > 0 {
		if a.examine(due); !a.work(early) {
			return false
		}
	}
	a.examine(a.fresh)
	a.fresh = a.fresh[:0]
	return true
}

// work makes the checks that fall due, as the rate allows, while there is a reason
// to. It returns false if the cache has ended.
func (a *auditor[K, V]) work(reason func() bool) bool {
	for reason() {
		a.collect()
		now := a.c.now()
		if due := a.take(now); len(due) > 0 {
			a.examine(due)
			continue
		}
		until := after(now, min(auditPoll, a.o.Bound))
		if len(a.line) > 0 {
			until = min(until, max(a.line[0].due, a.free))
		}
		if now < a.free {
			until = min(until, a.free)
		}
		if !a.sleep(time.Duration(until - now)) {
			return false
		}
	}
	return a.c.life.Err() == nil
}

func (a *auditor[K, V]) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a.wake:
	case <-a.c.life.Done():
		return false
	}
	return true
}

// put lets a check wait for its time.
func (a *auditor[K, V]) put(k check[K]) {
	if !k.sample {
		a.known++
	}
	heap.Push(&a.line, k)
}

// take returns checks that are due and can be made by one call.
func (a *auditor[K, V]) take(now int64) (due []check[K]) {
	if now < a.free {
		return nil
	}
	for len(a.line) > 0 && a.line[0].due <= now {
		byValue := a.line[0].byValue
		if len(due) > 0 && due[0].byValue != byValue || len(due) >= a.most(byValue) {
			break
		}
		k := heap.Pop(&a.line).(check[K])
		if !k.sample {
			a.known--
		}
		due = append(due, k)
	}
	return due
}

// offer takes a check from another goroutine.
func (a *auditor[K, V]) offer(k check[K]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, doubted := a.doubts[k.key]; k.shadow && doubted {
		return
	}
	if len(a.inbox) >= maxInbox {
		a.tally.Dropped++
		return
	}
	a.inbox = append(a.inbox, k)
	if k.shadow {
		a.doubts[k.key] = struct{}{}
	}
}

// suspect takes the suspicion of a read in shadow mode: the source had another state
// than the entry.
func (a *auditor[K, V]) suspect(key K, hash uint64, had *facts) {
	now := a.c.now()
	a.offer(check[K]{key: key, hash: hash, due: after(now, a.o.Bound), shadow: true, had: *had, suspect: true, seen: now})
}

// collect takes what others have offered. A sample becomes a look after each time
// scale. A suspicion of a read in shadow mode is taken if there is room.
func (a *auditor[K, V]) collect() {
	a.mu.Lock()
	got := a.inbox
	a.inbox = nil
	a.mu.Unlock()
	dropped := uint64(0)
	for _, k := range got {
		began := k.due
		switch {
		case !k.sample && a.known < maxKnown:
			a.put(k)
		case k.sample && len(a.line)-a.known+len(a.stale) <= maxSamples:
			k.due = after(began, a.o.Bound)
			a.put(k)
			for _, d := range a.o.Scales {
				k.due = after(began, d)
				a.put(k)
			}
		default:
			dropped++
			a.decided(&k, false)
		}
	}
	a.mu.Lock()
	a.tally.Dropped += dropped
	a.tally.Waiting = a.known + len(a.fresh)
	a.mu.Unlock()
}

// samples reports whether this invalidation is one of those that are looked at
// again. It may be called under any lock.
func (a *auditor[K, V]) samples() bool {
	return a != nil && a.o.Sample > 0 && a.invalidated.Add(1)%uint64(a.o.Sample) == 0
}

// sample lets the key be looked at again after each time scale.
func (a *auditor[K, V]) sample(key K, hash uint64) {
	a.offer(check[K]{key: key, hash: hash, due: a.c.now(), sample: true})
}

// tell counts a mismatch, and says so to all who want to know.
func (a *auditor[K, V]) tell(m *Mismatch[K]) {
	trips := a.count(m)
	if trips {
		a.tripped.Store(true)
		a.c.SetBypass(true)
	}
	a.c.opts.Logger.Error("tidemark: audit: an entry is not what the source has", "kind", m.Kind.String(),
		"version", m.Version, "absent", m.Absent, "source", m.Source, "sourceAbsent", m.SourceAbsent, "for", m.AtLeast)
	a.c.emit(Event{Kind: EventMismatch, Reason: fmt.Sprintf("%v: version %d, the source has %d", m.Kind, m.Version, m.Source)})
	if trips {
		a.c.emit(Event{Kind: EventTripped, Reason: fmt.Sprintf("mismatches in one cycle: %d", a.o.Trip)})
	}
	if a.o.OnMismatch == nil {
		return
	}
	var calling sync.WaitGroup // a callback that ends its goroutine must not end this one
	calling.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				_ = a.c.caught(r)
			}
		}()
		a.o.OnMismatch(*m)
	})
	calling.Wait()
}

// count counts a mismatch, and reports whether it is the one that trips the switch.
func (a *auditor[K, V]) count(m *Mismatch[K]) (trips bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := &a.tally
	if m.Kind != MismatchAhead {
		t.Repaired++
	}
	switch m.Kind {
	case MismatchDiffers:
		t.Differs++
	case MismatchAhead:
		t.Ahead++
	default:
		t.Stale++
		if !m.Absent && !m.SourceAbsent {
			t.MostBehind = max(t.MostBehind, uint64(m.Source-m.Version))
		}
		if m.AtMost < 0 || t.Longest < 0 {
			t.Longest = -1
		} else {
			t.Longest = max(t.Longest, m.AtMost)
		}
		for i := range a.stale {
			if i == 0 || m.AtMost < 0 || m.AtMost > a.scale(i) {
				a.stale[i]++
			}
		}
	}
	if len(a.last) == lastMismatches {
		a.last = append(a.last[:0], a.last[1:]...)
	}
	a.last = append(a.last, *m)
	a.cycle++
	a.toTrip--
	return a.toTrip == 0
}

// untrip lets the switch be set again, after as many mismatches as before: somebody has
// set it to off.
func (a *auditor[K, V]) untrip() {
	a.tripped.Store(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.toTrip = a.o.Trip
}

// scale returns the time scale of that number, of which the bound is the first.
func (a *auditor[K, V]) scale(i int) time.Duration {
	if i == 0 {
		return a.o.Bound
	}
	return a.o.Scales[i-1]
}

// report returns what was found so far, and what is closed when the next cycle ends.
// If wanted is set, a cycle is to begin.
func (a *auditor[K, V]) report(wanted bool) (AuditReport, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.tally
	r.Bound, r.Rate = a.o.Bound, a.o.Rate
	for i := range a.stale {
		r.Scales = append(r.Scales, shareOver(a.scale(i), a.stale[i], a.lost[i], r.Checked))
	}
	t := &a.c.stats
	r.Shadow, r.ShadowHits, r.ShadowOlder, r.ShadowDiffers = a.c.opts.Shadow, t.shadowHits.Load(), t.shadowOlder.Load(), t.shadowDiffers.Load()
	r.Tripped = a.o.Trip > 0 && a.tripped.Load() && a.c.era.Load()&eraBypass != 0
	if wanted {
		a.wanted = true
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	return r, a.ended
}

func (a *auditor[K, V]) mismatches() []Mismatch[K] {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Mismatch[K](nil), a.last...)
}

// addStats adds what the auditor has counted.
func (a *auditor[K, V]) addStats(s *Stats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := &a.tally
	s.AuditChecked, s.AuditStale, s.AuditDiffers, s.AuditAhead = t.Checked, t.Stale, t.Differs, t.Ahead
	s.AuditRefused, s.AuditCycles = t.Refused, t.Cycles
}
