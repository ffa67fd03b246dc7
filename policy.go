package tidemark

import (
	"math/rand/v2"
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
	epoch    atomic.Uint32
	touched  int64 // touches forwarded; policy goroutine only
	counters int64

	batch   int32         // ops of one shard that are worth waking up for
	wake    chan struct{} // capacity 1: a full channel already asks for a round
	evicted atomic.Uint64
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

	// pace is the number of calls between two waits for Ristretto, far below
	// the 32,768 at which it begins to refuse Sets.
	pace = 256

	maxSketch = 1 << 26 // entries; two gigabytes of counters are enough

	drainEvery = 50 * time.Millisecond // for shards with fewer ops than batch
)

func newPolicy[K comparable](maxCost, entries int64, shards int, left func(*resident[K])) (*policy[K], error) {
	p := &policy[K]{wake: make(chan struct{}, 1)}
	p.batch = int32(min(max(entries/int64(shards)/64, 1), 16))
	p.setLimits(maxCost, shards)
	p.counters = sketchCounters(entries)
	var err error
	p.sketch, err = ristretto.NewCache(&ristretto.Config[uint64, *resident[K]]{
		NumCounters:            p.counters,
		MaxCost:                p.mainMax.Load(),
		BufferItems:            1024, // at 64, a fifth of the touches would be dropped
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
	for width < min(n, maxSketch)*perEntry {
		width *= 2
	}
	return width * 8 / 10
}

// setLimits divides maxCost into the windows, Ristretto's part, and slack.
func (p *policy[K]) setLimits(maxCost int64, shards int) {
	window := max(int64(windowShare*float64(maxCost))/int64(shards), 1)
	slack := int64(slackShare * float64(maxCost))
	p.limit.Store(maxCost)
	p.windowMax.Store(window)
	p.mainMax.Store(max(maxCost-window*int64(shards)-slack, 1))
}

// reserve takes room for cost. If there is not enough it takes none and returns
// cost, the room to be made.
func (p *policy[K]) reserve(cost int64) (missing int64) {
	for {
		have := p.cost.Load()
		if cost > 0 && cost > p.limit.Load()-have {
			return cost
		}
		if !p.cost.CompareAndSwap(have, have+cost) {
			continue
		}
		if cost > 0 && have+cost > p.limit.Load() { // Resize has come in between
			p.cost.Add(-cost)
			return cost
		}
		return 0
	}
}

// touch tells the policy of a hit on e. A hot entry costs two loads here.
func (p *policy[K]) touch(touched *buffer.Lossy, touches *atomic.Uint32, key uint64) {
	epoch := p.epoch.Load() << 8
	t := touches.Load()
	if t&^0xff != epoch {
		t = epoch | t&0xff/2
	}
	if t&0xff >= saturation {
		return
	}
	touches.Store(t + 1)
	if touched.Add(key) {
		p.kick()
	}
}

// kick asks the policy goroutine for a round.
func (p *policy[K]) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// trackLocked gives n the record that the policy will know it by, and reserves
// its room. If missing is not zero, that much room must be made, and it has done
// nothing.
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
	s.touched.Add(r.policyKey)
	s.overflowLocked()
}

// overflowLocked offers the oldest records of the window until it is within its
// share. The newest stays: it has only just come.
func (s *shard[K, V]) overflowLocked() {
	for s.windowCost > s.policy.windowMax.Load() && s.head < len(s.window)-1 {
		r := s.window[s.head]
		s.window[s.head] = nil
		s.head++
		if r.state != inWindow {
			continue
		}
		s.windowLive--
		s.windowCost -= r.cost
		r.state, r.told = queued, r.cost
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
		}
	}
	clear(s.ops)
	s.ops = s.ops[:0]
	s.waiting.Store(0)
	return buf
}

// victimLocked chooses an entry to give up: the oldest of the window, or else
// the least touched of five. It returns nil if the shard is empty.
func (s *shard[K, V]) victimLocked() *node[K, V] {
	for ; s.head < len(s.window); s.head++ {
		if r := s.window[s.head]; r.state == inWindow {
			return s.table.Find(r.hash, r.key)
		}
		s.window[s.head] = nil
	}
	var coldest *node[K, V]
	found := 0
	start := rand.Uint64()
	for i := range uint64(s.table.Cells()) {
		n := s.table.At(start + i)
		if n == nil {
			continue
		}
		if coldest == nil || n.E.touches.Load() < coldest.E.touches.Load() {
			coldest = n
		}
		if found++; found == 5 {
			break
		}
	}
	return coldest
}

// apply makes the calls of ops. It is called by the policy goroutine only, with
// no lock held.
func (p *policy[K]) apply(ops []op[K]) {
	for i, o := range ops {
		if o.withdraw {
			p.sketch.Del(o.resident.policyKey)
		} else {
			for !p.sketch.Set(o.resident.policyKey, o.resident, o.resident.told) {
				p.sketch.Wait()
			}
		}
		if i%pace == pace-1 {
			p.sketch.Wait()
		}
	}
}

// count tells Ristretto of the hits in keys.
func (p *policy[K]) count(keys []uint64) {
	for _, k := range keys {
		p.sketch.Get(k)
	}
	before := p.touched / p.counters
	p.touched += int64(len(keys))
	if p.touched/p.counters != before {
		p.epoch.Add(1)
	}
}
