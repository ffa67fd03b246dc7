package tidemark

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/tidemark-go/tidemark/internal/buffer"
)

// Ristretto decides what is worth keeping; it never holds a value. It is given
// a policy key and a *resident for each entry, and when it lets one go the
// entry leaves the table, if it is still the one that was offered.
//
// A new entry first goes through a window, a FIFO of each shard's own, and is
// offered to Ristretto when it leaves it. So a value is readable the moment Put
// returns, whatever Ristretto thinks of it later, and recency counts for
// something: Ristretto alone has none.
//
// What Ristretto does that this file has to live with, and the rule for each
// (policy_test.go shows every one of them):
//
//   - Set may return false, with no callback: it is repeated until it is true.
//   - Two Sets of a new key before the first is processed refuse the second:
//     a record is offered once in its life, and the calls for one policy key
//     come from one goroutine in the order of the table's changes.
//   - Set, Del, Set of one key can lose the last Set without a word of OnEvict
//     or OnReject. OnExit is called for every value that leaves, for whatever
//     reason, so it is the only callback here.
//   - A callback may come late, for a record that was replaced meanwhile, or
//     twice, or with a nil record: only a record in state offered is heeded.
//   - Updating a cost may exceed the limit without evicting: a record whose
//     cost changes much is withdrawn, and a new one goes through the window.
//   - UpdateMaxCost evicts nothing: Resize evicts here.
//   - Del blocks when the queue is full, and callbacks take shard.mu: Ristretto
//     is never called with a shard's lock held, and never from a callback.
type policy[K comparable] struct {
	sketch *ristretto.Cache[uint64, *resident[K]]
	// cost is the room that entries take or are about to take; it is reserved
	// before an entry is installed and never exceeds limit, but for a Resize
	// that is still evicting.
	cost  atomic.Int64
	limit atomic.Int64

	windowMax atomic.Int64 // per shard
	mainMax   atomic.Int64 // Ristretto's part

	// epoch is advanced each time Ristretto halves its counters, so that the
	// touches of an entry count anew.
	epoch atomic.Uint32

	batch int           // ops of one shard that are worth waking up for
	pace  int           // calls between two waits for Ristretto, far below the 32,768 at which it refuses Sets
	wake  chan struct{} // capacity 1: a full channel already asks for a round

	// unjudged counts the offers that Ristretto may not have judged yet: while
	// there are some, room may be about to be made.
	unjudged atomic.Int64

	resizing sync.Mutex // guards the three limits against two Resizes at once

	// turn guards the calls of Ristretto, so that they come in the order in
	// which the shards noted them and none beside Close, and everything below.
	turn     sync.Mutex
	closed   bool
	counters int64
	counted  int64    // accesses told to Ristretto
	calls    int      // since the last wait
	offers   int64    // of those
	keys     []uint64 // reused by rounds
	ops      []op[K]  // reused by rounds
}

// A resident is the policy's record of one entry, or of successive entries of
// one key with about the same cost. Its identity is what callbacks compare.
type resident[K comparable] struct {
	key  K
	hash uint64

	// policyKey is what Ristretto knows it by: the hash, unless another key of
	// the same hash was there first. It never changes.
	policyKey uint64

	// The fields below are guarded by the shard's mu.

	state state
	cost  int64 // what the entry costs
	told  int64 // what Ristretto was told
}

type state uint8

const (
	inWindow state = iota
	queued         // an offer is in ops
	offered        // Ristretto has it, or is about to
	gone           // its entry has left the table, or has another record
)

var stateNames = [...]string{"window", "queued", "offered", "gone"}

func (s state) String() string { return stateNames[s] }

// An op is a call of Ristretto that the policy goroutine has to make.
type op[K comparable] struct {
	resident *resident[K]
	withdraw bool // Del instead of Set
}

const (
	windowShare = 0.15 // of MaxCost; 10-20 % measured best
	slackShare  = 0.02 // of MaxCost, for offers that Ristretto has not judged yet

	// saturation is the number of hits of one entry that are told to the
	// policy per epoch. More change the hit ratio by less than its noise.
	saturation = 4

	drainEvery = 50 * time.Millisecond // for shards with fewer ops than batch

	// backlog bounds the ops of a shard: while it has more, its window grows
	// instead. What must be withdrawn still is, so the true bound is this and
	// one op for each entry.
	backlog = 1024

	// hurryFor is how long a Put that finds no room waits for another goroutine
	// that is at the policy's work and may be about to make some.
	hurryFor = 50 * time.Microsecond

	maxCounters = 1 << 28 // 800 MB of sketch

	// countBatch is the number of accesses that Ristretto collects before it counts
	// them: they are late by up to this, and it can hold three batches while its
	// goroutine is at another. So many cost no accesses as long as that goroutine may
	// run after each.
	countBatch = 256
)

func newPolicy[K comparable](maxCost, entries int64, shards int, left func(*resident[K])) (*policy[K], error) {
	p := &policy[K]{wake: make(chan struct{}, 1)}
	p.batch = int(min(max(entries/int64(shards)/64, 1), 16))
	p.pace = int(min(max(entries/64, 16), 1024))
	p.setLimits(maxCost, shards)
	p.counters = sketchCounters(entries)
	var err error
	p.sketch, err = ristretto.NewCache(&ristretto.Config[uint64, *resident[K]]{
		NumCounters:            p.counters,
		MaxCost:                p.mainMax.Load(),
		BufferItems:            countBatch,
		IgnoreInternalCost:     true, // or 56 would be added to each cost
		TtlTickerDurationInSec: 1 << 20,
		KeyToHash:              func(k uint64) (uint64, uint64) { return k, 0 },
		OnExit:                 left,
	})
	return p, err
}

// sketchCounters returns Ristretto's NumCounters for n entries. The sketch is
// one row in effect, so it needs many more than the usual 10 per entry; 0.8 of
// a power of two is where the memory, three bytes per counter of the power of
// two, is used best.
func sketchCounters(n int64) int64 {
	perEntry := int64(10)
	switch {
	case n <= 32<<10:
		perEntry = 100
	case n <= 256<<10:
		perEntry = 40
	case n <= 1<<20:
		perEntry = 16
	}
	width := int64(1 << 14)
	for width < maxCounters && width/perEntry < n {
		width *= 2
	}
	return width * 8 / 10
}

// close ends Ristretto. Calls of it that are still wanted are not made.
func (p *policy[K]) close() {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.closed = true
	p.sketch.Close()
}

// setLimits divides maxCost into the windows, Ristretto's part, and slack.
func (p *policy[K]) setLimits(maxCost int64, shards int) {
	window := max(int64(windowShare*float64(maxCost))/int64(shards), 1)
	slack := int64(slackShare * float64(maxCost))
	if maxCost >= 20 {
		slack = max(slack, 1) // or nothing could ever be offered to Ristretto
	}
	p.limit.Store(maxCost)
	p.windowMax.Store(window)
	p.mainMax.Store(max(maxCost-window*int64(shards)-slack, 1))
}

// resize is setLimits in use. Windows and reservations follow when each shard
// has been locked once; Ristretto follows as it admits.
func (p *policy[K]) resize(maxCost int64, shards int) {
	p.resizing.Lock()
	defer p.resizing.Unlock()
	p.setLimits(maxCost, shards)
	p.sketch.UpdateMaxCost(p.mainMax.Load())
}

// reserve takes room for cost and returns 0, or takes nothing and returns how
// much room must be free for it. A negative cost gives room back. It is called
// under the lock of a shard, see resize.
func (p *policy[K]) reserve(cost int64) (missing int64) {
	for {
		have := p.cost.Load()
		if cost > 0 && cost > p.limit.Load()-have {
			return cost
		}
		if p.cost.CompareAndSwap(have, have+cost) {
			return 0
		}
	}
}

// full reports whether there is no room for cost.
func (p *policy[K]) full(cost int64) bool { return cost > p.limit.Load()-p.cost.Load() }

// touch tells the policy of a hit on e, or of a new value for its key. An entry
// that has had its share of the epoch costs two loads here.
func (s *shard[K, V]) touch(e *entry[K, V]) {
	if e.touches.Load() != s.policy.epoch.Load()<<8|saturation {
		s.touchCold(e)
	}
}

func (s *shard[K, V]) touchCold(e *entry[K, V]) {
	epoch := s.policy.epoch.Load() << 8
	warmth := e.warmth(epoch)
	if warmth >= saturation {
		return
	}
	n := s.touched.Add(e.resident.policyKey)
	if n > 0 {
		e.touches.Store(epoch | warmth + 1)
	}
	if n == buffer.Size {
		s.policy.kick()
	}
}

// warmth returns the touches that count in epoch: those of earlier ones by half.
func (e *entry[K, V]) warmth(epoch uint32) uint32 {
	t := e.touches.Load()
	if t&^0xff != epoch {
		return t & 0xff / 2
	}
	return t & 0xff
}

// kick asks the policy goroutine for a round.
func (p *policy[K]) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// trackLocked gives n the record that the policy will know it by, and reserves
// its room. If there is none it does nothing and returns how much must be free.
func (s *shard[K, V]) trackLocked(n, old *node[K, V], cost int64) (missing int64) {
	if old == nil {
		if missing := s.policy.reserve(cost); missing > 0 {
			return missing
		}
		s.cost += cost
		s.admitLocked(n, cost)
		return 0
	}
	r := old.E.resident
	if missing := s.policy.reserve(cost - r.cost); missing > 0 {
		return missing
	}
	s.cost += cost - r.cost
	n.E.touches.Store(old.E.touches.Load())
	switch change := cost - r.told; {
	case r.state == inWindow:
		s.windowCost += cost - r.cost
	case change > r.told/8 || -change > r.told/4:
		s.withdrawLocked(r)
		s.admitLocked(n, cost)
		return 0
	}
	r.cost = cost
	n.E.resident = r
	s.touch(&n.E)
	return 0
}

// admitLocked puts n into the window under a record of its own.
func (s *shard[K, V]) admitLocked(n *node[K, V], cost int64) {
	r := &resident[K]{key: n.Key, hash: n.Hash, policyKey: n.Hash, cost: cost}
	if s.table.SameHash(n.Hash, n.Key) {
		r.policyKey = rand.Uint64()
	}
	n.E.resident = r
	s.window = append(s.window, r)
	s.windowLive++
	s.windowCost += cost
	s.overflowLocked()
}

// overflowLocked offers the oldest records of the window until it is within its
// share. The newest stays: it has only just come.
func (s *shard[K, V]) overflowLocked() {
	for s.windowCost > s.policy.windowMax.Load() && s.head < len(s.window)-1 && len(s.ops) < backlog {
		r := s.window[s.head]
		s.window[s.head] = nil
		s.head++
		if r.state != inWindow {
			continue
		}
		s.windowLive--
		s.windowCost -= r.cost
		r.state, r.told = queued, r.cost
		s.policy.unjudged.Add(1)
		s.pushLocked(op[K]{resident: r})
	}
	if dead := len(s.window) - s.windowLive; dead > 64 && dead > s.windowLive {
		live := s.window[:0]
		for _, r := range s.window[s.head:] {
			if r.state == inWindow {
				live = append(live, r)
			}
		}
		clear(s.window[len(live):])
		s.window, s.head = live, 0
	}
}

func (s *shard[K, V]) pushLocked(o op[K]) {
	s.ops = append(s.ops, o)
	s.waiting.Store(int32(len(s.ops)))
	if len(s.ops) == s.policy.batch {
		s.policy.kick()
	}
}

// untrackLocked ends r, whose entry is leaving the table, and gives back its
// room.
func (s *shard[K, V]) untrackLocked(r *resident[K]) {
	s.withdrawLocked(r)
	s.cost -= r.cost
	s.policy.cost.Add(-r.cost)
}

// withdrawLocked ends r. If Ristretto may have it, it is told; an offer that is
// still queued will be skipped.
func (s *shard[K, V]) withdrawLocked(r *resident[K]) {
	switch r.state {
	case inWindow:
		s.windowLive--
		s.windowCost -= r.cost
	case offered:
		s.pushLocked(op[K]{resident: r, withdraw: true})
	}
	r.state = gone
}

// takeOps moves the shard's ops to buf. From here on its offers are Ristretto's.
func (s *shard[K, V]) takeOps(buf []op[K]) []op[K] {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.ops {
		if o.withdraw {
			buf = append(buf, o)
		} else if o.resident.state == queued {
			o.resident.state = offered
			buf = append(buf, o)
		} else {
			s.policy.unjudged.Add(-1) // its entry is gone
		}
	}
	clear(s.ops)
	s.ops = s.ops[:0]
	s.waiting.Store(0)
	s.overflowLocked() // what the backlog has held up
	return buf
}

// victimLocked chooses an entry to give up, for a new one of the given cost,
// when Ristretto has made no room. It returns nil if the shard is empty.
//
// As a rule that is the coldest of five that are not in the window: they take
// more than their part, as they may after a Resize or when costs have crept up.
// But if the policy is behind, and the new entry would push another one out of
// the window, that one goes instead of being offered, unless it was read more
// than the coldest.
func (s *shard[K, V]) victimLocked(cost int64) *node[K, V] {
	epoch := s.policy.epoch.Load() << 8
	oldest := s.oldestLocked()
	shed := oldest != nil && s.policy.unjudged.Load() > 0 && s.windowCost+cost > s.policy.windowMax.Load()
	if shed && oldest.E.warmth(epoch) == 0 {
		return oldest
	}
	coldest := s.coldestLocked(epoch)
	if coldest == nil || shed && oldest.E.warmth(epoch) <= coldest.E.warmth(epoch) {
		return oldest
	}
	return coldest
}

// oldestLocked returns the window's oldest entry, or nil.
func (s *shard[K, V]) oldestLocked() *node[K, V] {
	for ; s.head < len(s.window); s.head++ {
		if r := s.window[s.head]; r.state == inWindow {
			return s.table.Find(r.hash, r.key)
		}
		s.window[s.head] = nil
	}
	return nil
}

// coldestLocked returns the least touched of five entries that are not in the
// window, or nil if there is none.
func (s *shard[K, V]) coldestLocked(epoch uint32) (coldest *node[K, V]) {
	start, found := rand.Uint64(), 0
	for i := range uint64(s.table.Cells()) {
		n := s.table.At(start + i)
		if n == nil || n.E.resident.state == inWindow {
			continue
		}
		if coldest == nil || n.E.warmth(epoch) < coldest.E.warmth(epoch) {
			coldest = n
		}
		if found++; found == 5 {
			break
		}
	}
	return coldest
}

// apply makes the calls of ops. The caller has the turn and no other lock.
func (p *policy[K]) apply(ops []op[K]) {
	for _, o := range ops {
		if o.withdraw {
			p.sketch.Del(o.resident.policyKey)
		} else {
			p.count(o.resident.policyKey) // an entry's first access is its arrival
			for !p.sketch.Set(o.resident.policyKey, o.resident, o.resident.told) {
				p.sketch.Wait()
			}
			p.offers++
		}
		if p.calls++; p.calls >= p.pace {
			p.wait()
		}
	}
}

// wait waits until Ristretto has judged what it was offered. The caller has the
// turn and no other lock.
func (p *policy[K]) wait() {
	if p.calls > 0 {
		p.sketch.Wait()
		p.unjudged.Add(-p.offers)
		p.calls, p.offers = 0, 0
	}
}

// count tells Ristretto of accesses. The caller has the turn.
func (p *policy[K]) count(keys ...uint64) {
	for _, k := range keys {
		p.sketch.Get(k)
		p.counted++
		if p.counted%countBatch == 0 {
			runtime.Gosched() // for Ristretto to take them
		}
		if p.counted%p.counters == 0 {
			p.epoch.Add(1) // about now it halves its counters
		}
	}
}
