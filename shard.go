package tidemark

import (
	"sync"
	"sync/atomic"

	"github.com/tidemark-go/tidemark/internal/buffer"
	"github.com/tidemark-go/tidemark/internal/table"
)

// Lock order. A goroutine that holds one of these may take only a lower one,
// and never two of the same line:
//
//	0  Cache.adopting                    while an epoch of the source begins
//	1  policy.turn                       for the calls of Ristretto
//	2  shard.mu                          one shard
//	3  gate.mu, member.mu, outbox.mu     each for a few instructions
//
// Nothing that may block or re-enter is called under 2 or 3: no I/O, no channel
// send that can wait, no Loader, Store, Cost or OnEvent, no log line, no call
// of Ristretto. (Ristretto's callbacks take shard.mu.)

// A shard owns one part of the key space: its table, its tide marks, what is in
// progress for its keys, and its share of the admission window. A key never
// changes shard, so no operation needs two.
//
// Invariants, true whenever mu is free; check verifies them:
//
//	I1  the tide mark of a key only rises: an entry in the table is at or above
//	    every mark that was seen for its key, in its generation
//	I2  every fence of a key has seen every mark that was raised since it began
//	I3  pending holds exactly the keys that have a fence or a doubt; each running
//	    load has a fence, and at most maxRunning of a key run
//	I4  a key with a doubt has no entry
//	I5  each entry has a resident record in state window, queued or offered that
//	    names its key, and each such record has its entry
//	I6  windowCost is the cost of the records in state window; cost of all
type shard[K comparable, V any] struct {
	policy *policy[K]                   // set by init, then only read
	table  *table.Table[K, entry[K, V]] // read without mu, written under it
	_      [64]byte                     // keeps readers off the lines that others write

	touched buffer.Lossy // policy keys of recent hits; has its own lock
	waiting atomic.Int32 // length of ops, for a look without mu

	mu      sync.Mutex // guards everything below
	pending map[K]*pending[K, V]
	flights uint64 // flights begun so far
	tide    tide
	delayed delayedTide

	// The shard's part of the policy, see policy.go.
	window     []*resident[K] // oldest first, from head on
	head       int
	windowLive int // records of window in state window
	windowCost int64
	cost       int64
	ops        []op[K] // for the policy goroutine, in the order of table changes

	// live counts the entries of generation gen, for Len.
	live int
	gen  uint32

	// since is the generation in which the source's epoch began: what is of an
	// earlier one has versions that order nothing.
	since uint32

	sweepAt uint64 // the cell at which the next sweep begins

	_ [64]byte // keeps the neighbours' locks off this cache line
}

// A pending is what is in progress for one key.
type pending[K comparable, V any] struct {
	fences  []*fence[K]   // loads, fills and writes
	flight  *flight[K, V] // the load that others may join, or nil
	running int           // loads that have begun
	next    *flight[K, V] // the load that begins when one of those ends, or nil
	doubts  int           // writes that may take effect at any moment: nothing is installed
}

// A fence stands between the moment when an operation starts to read or write
// the source and the moment when it installs the result. Everything that
// becomes known of the key in between raises it, and what is below it is not
// installed (S1, S6, S30).
type fence[K comparable] struct {
	key    K
	hash   uint64
	strong bool // the source reflects everything committed before era was read
	era    uint64

	// floor is the highest mark that was known of the key when the fence was
	// set (S4) or became known since.
	floor mark

	// moved is set when floor has risen since the fence was set: from then on
	// a result without a version proves nothing (S8).
	moved bool

	// broken is set when the key changed to a version nobody named, or the
	// load is no longer the one that may fill: nothing passes.
	broken bool
}

// cannotCompare reports whether m has no version, and something is known of the
// key that may be newer.
func (f *fence[K]) cannotCompare(m mark) bool {
	return m.version == 0 && (f.moved || !f.strong && f.floor != mark{})
}

// A moment is when and in which era something happens. The era is read first,
// so that what is installed in it was permitted in it (S11, S62).
type moment struct {
	era uint64
	now int64 // nanoseconds since the cache began
}

// An era is a generation in the high half, a count of suspicions in the low
// half, and two lowest bits that say that this replica is cut off, or bypassed.
//
// An entry is served only in the era in which it was installed. A new
// generation makes every entry worthless, its version too; a new suspicion
// makes it suspect: its version is still a floor, but the source must confirm
// or replace it before it is served. While one of the two bits is set no entry is
// in the era, for entries carry eras without them.
const (
	eraCutOff     = 1
	eraBypass     = 2
	eraSuspicion  = 4
	eraGeneration = 1 << 32

	eraUnserved = eraCutOff | eraBypass
)

func generation(era uint64) uint32 { return uint32(era >> 32) }

func (s *shard[K, V]) init(p *policy[K], slots int, trusting bool, lag int64) {
	s.policy = p
	s.table = table.New[K, entry[K, V]](0)
	s.pending = map[K]*pending[K, V]{}
	s.tide = newTide(slots, trusting)
	s.delayed = newDelayedTide(slots, lag)
}

// pend returns the key's pending, made if need be.
func (s *shard[K, V]) pendLocked(key K) *pending[K, V] {
	p := s.pending[key]
	if p == nil {
		p = &pending[K, V]{}
		s.pending[key] = p
	}
	return p
}

// unpend drops the key's pending if nothing is in progress (I3).
func (s *shard[K, V]) unpendLocked(key K, p *pending[K, V]) {
	if len(p.fences) == 0 && p.doubts == 0 {
		delete(s.pending, key)
	}
}

// beginLocked sets f, with all that is known of its key. A strong operation
// needs no memory of marks that no longer have an entry; a lagging load does.
func (s *shard[K, V]) beginLocked(f *fence[K], at moment) {
	f.era = at.era
	f.floor = s.knownLocked(f.hash, f.key, at)
	if !f.strong {
		f.floor = f.floor.later(s.delayed.floor(f.hash, at.now))
	}
	p := s.pendLocked(f.key)
	p.fences = append(p.fences, f)
}

// knownLocked returns the mark of the key's entry, whether or not it may be
// served, unless its generation is over.
func (s *shard[K, V]) knownLocked(hash uint64, key K, at moment) mark {
	if n := s.table.Find(hash, key); n != nil && generation(n.E.era) == generation(at.era) {
		return n.E.mark()
	}
	return mark{}
}

// endLocked takes f down.
func (s *shard[K, V]) endLocked(f *fence[K]) {
	p := s.pending[f.key]
	if p == nil {
		return
	}
	for i, g := range p.fences {
		if g == f {
			p.fences[i] = p.fences[len(p.fences)-1]
			p.fences[len(p.fences)-1] = nil
			p.fences = p.fences[:len(p.fences)-1]
			break
		}
	}
	s.unpendLocked(f.key, p)
}

// raiseLocked tells everything in progress for the key that it has reached m.
// self, which brought m, may be nil. A mark without a version cannot be
// compared, so it breaks the other fences.
func (s *shard[K, V]) raiseLocked(key K, hash uint64, m mark, self *fence[K], at moment) {
	if p := s.pending[key]; p != nil {
		for _, f := range p.fences {
			switch {
			case f == self:
			case m.version == 0:
				f.broken = true
			case f.floor.before(m):
				f.floor, f.moved = m, true
			}
		}
	}
	if m.version == 0 {
		m = unknownMark // no lagging answer can be compared with it either
	}
	s.delayed.raise(hash, m, at.now)
}

// invalidateLocked records that the key has reached m, or, if m has no version,
// that it changed. An entry older than that is dropped; one at m stays, so that
// the echo of an own write is harmless (S47).
func (s *shard[K, V]) invalidateLocked(key K, hash uint64, m mark, by cause, at moment) {
	n := s.table.Find(hash, key)
	if m.version == 0 {
		s.tide.blindly(hash)
		s.delayed.raise(hash, unknownMark, at.now)
		if p := s.pending[key]; p != nil {
			for _, f := range p.fences {
				f.broken = true
			}
			p.flight = nil
		}
		if n != nil {
			s.dropLocked(n, at)
		}
		return
	}
	if n != nil && n.E.mark().before(m) {
		s.dropLocked(n, at)
		n = nil
	}
	if n == nil {
		s.tide.fold(hash, m, by, at.now)
	}
	s.raiseLocked(key, hash, m, nil, at)
}

// holdLocked keeps the key out of memory until releaseLocked: a write of it may
// take effect at any moment. Its mark stays known.
func (s *shard[K, V]) holdLocked(key K, hash uint64, at moment) {
	s.pendLocked(key).doubts++
	if n := s.table.Find(hash, key); n != nil {
		s.dropLocked(n, at)
	}
}

// releaseLocked ends a holdLocked. What became of the write must have been noted
// before.
func (s *shard[K, V]) releaseLocked(key K) {
	p := s.pending[key]
	p.doubts--
	s.unpendLocked(key, p)
}

// judgeFenceLocked says whether the state m, brought by the operation that set
// f, may become the key's entry.
func (s *shard[K, V]) judgeFenceLocked(f *fence[K], m mark, at moment) Outcome {
	switch {
	case f.broken, f.era != at.era, s.pending[f.key] != nil && s.pending[f.key].doubts > 0:
		return Unproven
	case f.cannotCompare(m):
		return Unproven
	case m.version != 0 && m.before(f.floor):
		return Stale
	default:
		return Applied
	}
}

// judgePutLocked says whether a value that comes without a fence may become the
// key's entry: only if it cannot be below the tide mark.
func (s *shard[K, V]) judgePutLocked(key K, hash uint64, m mark, at moment) Outcome {
	if m.version == 0 {
		return Unproven
	}
	if p := s.pending[key]; p != nil && p.doubts > 0 {
		return Unproven
	}
	n := s.table.Find(hash, key)
	if n == nil || n.E.version == 0 || !s.orders(n.E.era) {
		return s.tide.judge(hash, m, generation(at.era))
	}
	switch have := n.E.mark(); {
	case m.before(have):
		return Stale
	case generation(n.E.era) != generation(at.era):
		return s.tide.judge(hash, m, generation(at.era)) // InvalidateAll has thrown it away
	case have.before(m):
		return Applied
	case n.E.era == at.era && n.E.expired(at.now):
		return Applied
	default:
		return Duplicate // which does not make a suspect entry good again
	}
}

// installLocked makes n the key's entry and tells everything in progress. The
// caller has judged it. If missing is not zero, that much room must be made, and
// nothing has changed.
func (s *shard[K, V]) installLocked(n *node[K, V], cost int64, self *fence[K], at moment) (missing int64) {
	old := s.table.Find(n.Hash, n.Key)
	if missing = s.trackLocked(n, old, cost); missing > 0 {
		return missing
	}
	n.E.era = at.era &^ eraUnserved
	s.countLocked(old, n, at)
	s.table.Store(n)
	if old != nil && n.E.mark().before(old.E.mark()) {
		// Only an absence without a version, or the first state of a new
		// generation, can be below what it replaces.
		s.foldLocked(n.Hash, old.E.mark(), old.E.cause, old.E.era, at)
	}
	if n.E.version == 0 {
		s.tide.blindly(n.Hash)
	}
	s.raiseLocked(n.Key, n.Hash, n.E.mark(), self, at)
	return 0
}

// dropLocked takes n, which is in the table, out of it, and remembers its mark.
func (s *shard[K, V]) dropLocked(n *node[K, V], at moment) {
	s.foldLocked(n.Hash, n.E.mark(), n.E.cause, n.E.era, at)
	if s.orders(n.E.era) {
		s.delayed.raise(n.Hash, n.E.mark(), at.now)
	}
	s.untrackLocked(n.E.resident)
	s.countLocked(n, nil, at)
	s.table.Delete(n.Hash, n.Key)
}

// orders reports whether the versions of the given era are of the source's epoch.
func (s *shard[K, V]) orders(era uint64) bool { return generation(era) >= s.since }

// foldLocked folds the mark of a state of the given era into the tide, unless
// that is of an earlier epoch.
func (s *shard[K, V]) foldLocked(hash uint64, m mark, by cause, era uint64, at moment) {
	if s.orders(era) {
		s.tide.fold(hash, m, by, at.now)
	}
}

// countLocked keeps live right when old gives way to n; either may be nil.
func (s *shard[K, V]) countLocked(old, n *node[K, V], at moment) {
	if g := generation(at.era); g != s.gen {
		s.gen, s.live = g, 0
	}
	if old != nil && generation(old.E.era) == s.gen {
		s.live--
	}
	if n != nil && generation(n.E.era) == s.gen {
		s.live++
	}
}
