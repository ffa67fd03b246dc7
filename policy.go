package tidemark

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/tidemark-go/tidemark/internal/buffer"
)

// Ristretto decides what is worth keeping; it never holds a value. It is given
// a policy key and a ticket for each entry, and when it lets one go the entry
// leaves the table, if its record is still the one that was offered.
//
// A new entry first goes through a window, a FIFO of each shard's own, and is
// offered to Ristretto when it leaves it. So a value is readable the moment Put
// returns, whatever Ristretto thinks of it later, and recency counts for
// something: Ristretto alone has none. See window.go.
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
//     twice, or with no ticket: only a record in state offered is heeded.
//   - Updating a cost may exceed the limit without evicting: a record whose
//     cost changes much is withdrawn, and a new one goes through the window.
//   - UpdateMaxCost evicts nothing: Resize evicts here.
//   - Del blocks when the queue is full, and callbacks take shard.mu: Ristretto
//     is never called with a shard's lock held, and never from a callback.
type policy struct {
	// sample says of which keys hits are told to Ristretto: those whose hash has
	// the bits of its low half, the salt, where its high half has ones. The salt
	// moves on with each round, so that every key has its turn, and the mask
	// grows and shrinks with what the telling costs.
	sample atomic.Uint64

	// epoch is advanced each time Ristretto halves its counters, so that the
	// touches of an entry count anew.
	epoch atomic.Uint32

	_ [64]byte // keeps those, which every hit reads, off the lines that others write

	sketch *ristretto.Cache[uint64, ticket]
	// cost is the room that entries take or are about to take; it is reserved
	// before an entry is installed and never exceeds limit, but for a Resize
	// that is still evicting.
	cost  atomic.Int64
	limit atomic.Int64

	windowMax atomic.Int64 // per shard
	mainMax   atomic.Int64 // Ristretto's part
	mainFull  atomic.Bool  // as of the last round

	evictions atomic.Uint64

	shards  int
	entries int64 // as many as are expected

	batch int           // ops of one shard that are worth waking up for
	pace  int           // calls between two waits for Ristretto, far below the 32,768 at which it refuses Sets
	wake  chan struct{} // capacity 1: a full channel already asks for a round

	asking []atomic.Uint64 // a bit for each shard that wants to be visited in the next round

	// unjudged counts the offers that Ristretto may not have judged yet: while
	// there are some, room may be about to be made.
	unjudged atomic.Int64

	resizing sync.Mutex // guards share, and the limits against two changes at once
	share    float64    // of the window in MaxCost

	// turn guards the calls of Ristretto, so that they come in the order in
	// which the shards noted them and none beside Close, and everything below.
	turn     sync.Mutex
	closed   bool
	counters int64
	counted  int64         // accesses told to Ristretto
	calls    int           // since the last wait
	offers   int64         // of those
	keys     []uint64      // reused by rounds
	ops      []op          // reused by rounds
	spent    time.Duration // on telling Ristretto of accesses since the sample was last changed
	busy     time.Duration // how long there were accesses in that time
	rounded  time.Time     // when the last round ended
	heard    hits          // since the size of the window was last judged
}

// A ticket names the policy's record of one entry, or of successive entries of
// one key with about the same cost. The record itself is in the entry's head. The
// zero ticket names none.
type ticket struct {
	hash   uint64
	record uint32 // counts from 1 in each shard
}

// policyKey is what Ristretto knows the record by: the hash, unless another key of
// the same hash was there first. It never changes.
func (t ticket) policyKey(alias bool) uint64 {
	if alias {
		return t.hash + uint64(t.record)*0x9e3779b97f4a7c15
	}
	return t.hash
}

type state uint8

const (
	inWindow state = iota
	queued         // an offer is in ops
	offered        // Ristretto has it, or is about to
	gone           // Ristretto has let it go; its entry is about to leave the table
)

var stateNames = [...]string{"window", "queued", "offered", "gone"}

func (s state) String() string { return stateNames[s] }

// An op is a call of Ristretto that the policy goroutine has to make.
type op struct {
	ticket
	policyKey uint64
	cost      int64
	withdraw  bool // Del instead of Set
}

const (
	slackShare = 0.02 // of MaxCost, for offers that Ristretto has not judged yet

	// saturation is the number of hits of one entry that are told to the
	// policy per epoch. More change the hit ratio by less than its noise.
	saturation = 4

	drainEvery = 50 * time.Millisecond // for shards with fewer ops than batch

	sweepShards = 64 // are swept every drainEvery, 64 cells in each

	// samplingCost is how much of one processor's time may go into telling
	// Ristretto of hits while there are some, in thousandths. Ristretto's own
	// goroutine takes about as much again. maxSampling leaves one key of so many,
	// less one, in the sample.
	samplingCost = 30
	maxSampling  = 1<<10 - 1

	// The sample is changed when there were hits for so long. A pause between two
	// rounds counts as no more than that.
	samplingPace = 10 * time.Millisecond

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

func newPolicy(maxCost, entries int64, shards int, left func(ticket)) (*policy, error) {
	p := &policy{wake: make(chan struct{}, 1), shards: shards, entries: entries, share: firstShare}
	p.asking = make([]atomic.Uint64, (shards+63)/64)
	p.batch = int(min(max(entries/int64(shards)/64, 1), 16))
	p.pace = int(min(max(entries/64, 16), 1024))
	p.setLimits(maxCost)
	p.counters = sketchCounters(entries)
	var err error
	p.sketch, err = ristretto.NewCache(&ristretto.Config[uint64, ticket]{
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
// one row in effect, so it needs more per entry than others do; fewer will do the
// more entries there are, since what nobody asks for is not offered (window.go).
// 0.8 of a power of two is where the memory, three bytes per counter of the power
// of two, is used best.
func sketchCounters(n int64) int64 {
	perEntry := int64(4)
	switch {
	case n <= 64<<10:
		perEntry = 16
	case n <= 256<<10:
		perEntry = 8
	}
	width := int64(1 << 11)
	for width < maxCounters && width/perEntry < n {
		width *= 2
	}
	return width * 8 / 10
}

// close ends Ristretto. Calls of it that are still wanted are not made.
func (p *policy) close() {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.closed = true
	p.sketch.Close()
}

// setLimits divides maxCost into the windows, Ristretto's part, and slack.
func (p *policy) setLimits(maxCost int64) {
	window := max(int64(p.share*float64(maxCost))/int64(p.shards), 1)
	slack := int64(slackShare * float64(maxCost))
	if maxCost >= 20 {
		slack = max(slack, 1) // or nothing could ever be offered to Ristretto
	}
	p.limit.Store(maxCost)
	p.windowMax.Store(window)
	p.mainMax.Store(max(maxCost-window*int64(p.shards)-slack, 1))
}

// resize is setLimits in use. Windows and reservations follow when each shard
// has been locked once; Ristretto follows as it admits.
func (p *policy) resize(maxCost int64) {
	p.resizing.Lock()
	defer p.resizing.Unlock()
	p.setLimits(maxCost)
	p.mainFull.Store(false)
	p.sketch.UpdateMaxCost(p.mainMax.Load())
}

// reserve takes room for cost and returns 0, or takes nothing and returns how
// much room must be free for it. A negative cost gives room back. It is called
// under the lock of a shard, see resize.
func (p *policy) reserve(cost int64) (missing int64) {
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
func (p *policy) full(cost int64) bool { return cost > p.limit.Load()-p.cost.Load() }

// samples reports whether the policy wants to hear of hits on keys of this hash.
func (p *policy) samples(hash uint64) bool {
	x := p.sample.Load()
	return (uint32(hash>>24)^uint32(x))&uint32(x>>32) == 0
}

// touch tells the policy of a hit on an entry, or of a new value for its key,
// unless the entry has had its share of the epoch.
func (s *shard[K, V]) touch(h *head, hash uint64) {
	if h.state() == inWindow {
		s.heard.early.Add(1)
	} else {
		s.heard.late.Add(1)
	}
	epoch := s.policy.epoch.Load() << 8
	warmth := h.warmth(epoch)
	if warmth >= saturation {
		return
	}
	n := s.touched.Add(hash)
	if n > 0 {
		h.touches.Store(epoch | h.touches.Load()&used | warmth + 1)
	}
	if n == buffer.Size {
		s.policy.ask(s.number)
	}
}

// The parts of head.touches: how many touches there were, whether anybody asked for
// the entry since it came (see window.go), and from bit 8 on the epoch of the touches.
const (
	touchCount = 0x7f
	used       = 0x80
)

// warmth returns the touches that count in epoch: those of earlier ones by half.
func (h *head) warmth(epoch uint32) uint32 {
	t := h.touches.Load()
	if t&^0xff != epoch {
		return t & touchCount / 2
	}
	return t & touchCount
}

// ask asks the policy goroutine for a round that visits a shard.
func (p *policy) ask(shard int) {
	p.asking[shard/64].Or(1 << (shard % 64))
	p.kick()
}

// toVisit returns the shards that a round has to visit: those that have asked for
// it since the last one, or all.
func (p *policy) toVisit(all bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range p.asking {
			asked := p.asking[i].Swap(0)
			if all {
				asked = ^uint64(0)
			}
			for ; asked != 0; asked &= asked - 1 {
				shard := i*64 + bits.TrailingZeros64(asked)
				if shard >= p.shards || !yield(shard) {
					return
				}
			}
		}
	}
}

// kick asks the policy goroutine for a round.
func (p *policy) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// trackLocked gives the entry at p the record that the policy will know it by: the
// one that the key has, unless the cost has changed much. Its room is reserved.
func (s *shard[K, V]) trackLocked(p place, hash uint64, had bool, cost int64, at moment) {
	h := p.Head
	s.cost += cost - h.cost
	if !had {
		s.admitLocked(p, hash, cost, at)
		return
	}
	h.use()
	switch change := float32(cost) - h.told; {
	case h.state() == inWindow:
		s.windowCost += cost - h.cost
	case change > h.told/8 || -change > h.told/4:
		s.withdrawLocked(h, hash)
		s.admitLocked(p, hash, cost, at)
		return
	}
	h.cost = cost
	if s.policy.samples(hash) {
		s.touch(h, hash)
	}
}

// admitLocked puts the entry at p into the window under a record of its own.
func (s *shard[K, V]) admitLocked(p place, hash uint64, cost int64, at moment) {
	h := p.Head
	if s.records++; s.records == 0 {
		s.records = 1 // after four billion
	}
	h.cost, h.record = cost, s.records
	kind := h.kind.Load() &^ (kindState | kindAlias)
	twin := func(other place) bool { return !other.Same(p) && s.table.Hash(other) == hash }
	if _, ok := s.table.FindFunc(hash, twin); ok {
		kind |= kindAlias
	}
	h.kind.Store(kind) // in the window
	s.window = append(s.window, ticket{hash, h.record})
	s.windowLive++
	s.windowCost += cost
	s.overflowLocked(at)
}

// holderLocked returns the entry whose record t names.
func (s *shard[K, V]) holderLocked(t ticket) (p place, ok bool) {
	return s.table.FindFunc(t.hash, func(p place) bool { return p.Head.record == t.record })
}

// call returns the call of Ristretto for the record of h.
func (h *head) call(hash uint64, withdraw bool) op {
	t := ticket{hash, h.record}
	return op{t, t.policyKey(h.kind.Load()&kindAlias != 0), h.cost, withdraw}
}

// evictLocked drops the entry at p to make room.
func (s *shard[K, V]) evictLocked(p place, hash uint64, at moment) {
	s.recordLocked(evicted, hash, p.Head.mark(), byNothing, at)
	s.dropLocked(p, hash, at)
	s.policy.evictions.Add(1)
}

func (s *shard[K, V]) pushLocked(o op) {
	s.ops = append(s.ops, o)
	s.waiting.Store(int32(len(s.ops)))
	if len(s.ops) == s.policy.batch {
		s.policy.ask(s.number)
	}
}

// untrackLocked ends the record of h, whose entry is leaving the table, and gives
// back its room.
func (s *shard[K, V]) untrackLocked(h *head, hash uint64) {
	s.withdrawLocked(h, hash)
	s.cost -= h.cost
	s.policy.cost.Add(-h.cost)
}

// withdrawLocked ends the record of h. If Ristretto may have it, it is told; an
// offer that is still queued will be skipped.
func (s *shard[K, V]) withdrawLocked(h *head, hash uint64) {
	switch h.state() {
	case inWindow:
		s.windowLive--
		s.windowCost -= h.cost
	case offered:
		s.pushLocked(h.call(hash, true))
	}
	h.setState(gone)
}

// takeOps moves the shard's ops to buf. From here on its offers are Ristretto's.
func (s *shard[K, V]) takeOps(buf []op, at moment) []op {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.ops {
		if o.withdraw {
			buf = append(buf, o)
		} else if p, ok := s.holderLocked(o.ticket); ok && p.Head.state() == queued {
			p.Head.setState(offered)
			buf = append(buf, o)
		} else {
			s.policy.unjudged.Add(-1) // its entry is gone
		}
	}
	s.ops = s.ops[:0]
	s.waiting.Store(0)
	s.overflowLocked(at) // what the backlog has held up
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
func (s *shard[K, V]) victimLocked(cost int64) (p place, ok bool) {
	epoch := s.policy.epoch.Load() << 8
	oldest, ok := s.oldestLocked()
	shed := ok && s.policy.unjudged.Load() > 0 && s.windowCost+cost > s.policy.windowMax.Load()
	if shed && oldest.Head.warmth(epoch) == 0 {
		return oldest, true
	}
	coldest, found := s.coldestLocked(epoch)
	if !found || shed && oldest.Head.warmth(epoch) <= coldest.Head.warmth(epoch) {
		return oldest, ok
	}
	return coldest, true
}

// coldestLocked returns the least touched of five entries that are not in the
// window, if there is one.
func (s *shard[K, V]) coldestLocked(epoch uint32) (coldest place, ok bool) {
	start, found := rand.Uint64(), 0
	for i := range s.table.Cells() {
		p, used := s.table.At(start + i)
		if !used || p.Head.state() == inWindow {
			continue
		}
		if !ok || p.Head.warmth(epoch) < coldest.Head.warmth(epoch) {
			coldest, ok = p, true
		}
		if found++; found == 5 {
			break
		}
	}
	return coldest, ok
}

// apply makes the calls of ops. The caller has the turn and no other lock.
func (p *policy) apply(ops []op) {
	for _, o := range ops {
		if o.withdraw {
			p.sketch.Del(o.policyKey)
		} else {
			p.count(o.policyKey) // an entry's first access is its arrival
			for !p.sketch.Set(o.policyKey, o.ticket, o.cost) {
				p.sketch.Wait()
			}
			p.offers++
		}
		if p.calls++; p.calls >= p.pace {
			p.wait()
		}
	}
}

// gauge notes whether Ristretto's part is full, or nearly. The caller has the turn.
func (p *policy) gauge() {
	full := p.sketch.RemainingCost() <= p.mainMax.Load()/64
	if full != p.mainFull.Load() {
		p.mainFull.Store(full)
	}
}

// wait waits until Ristretto has judged what it was offered. The caller has the
// turn and no other lock.
func (p *policy) wait() {
	if p.calls > 0 {
		p.sketch.Wait()
		p.unjudged.Add(-p.offers)
		p.calls, p.offers = 0, 0
	}
}

// resample moves the salt on after a round which took told to tell Ristretto of
// accesses and ended so long after the last. It makes the sample smaller or larger
// so that telling takes about as much of a processor's time as wanted: of the time
// with accesses, or a load in bursts would pay in each for the pause before it. The
// caller has the turn.
func (p *policy) resample(told, passed time.Duration) {
	x := p.sample.Load()
	mask := uint32(x >> 32)
	if told > 0 {
		p.spent += told
		p.busy += min(passed, samplingPace)
	}
	if p.busy >= samplingPace {
		wanted := p.busy * samplingCost / 1000
		if p.spent < wanted/4 {
			mask >>= 1
		}
		for ; p.spent > wanted; p.spent /= 2 {
			mask = min(mask<<1|1, maxSampling)
		}
		p.spent, p.busy = 0, 0
	}
	p.sample.Store(uint64(mask)<<32 | uint64(uint32(x)+0x9e3779b9))
}

// count tells Ristretto of accesses. The caller has the turn.
func (p *policy) count(keys ...uint64) {
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
