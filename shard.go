package tidemark

import (
	"sync"
	"sync/atomic"

	"github.com/tidemark-go/tidemark/internal/buffer"
	"github.com/tidemark-go/tidemark/internal/ghost"
	"github.com/tidemark-go/tidemark/internal/table"
)

// Lock order. A goroutine that holds one of these may take only a lower one,
// and never two of the same line:
//
//	0  Cache.adopting                    while an epoch of the source begins
//	1  policy.turn                       for the calls of Ristretto
//	   policy.resizing                   for the limits; also within the turn
//	2  shard.mu                          one shard
//	3  gate.mu, member.mu, outbox.mu, auditor.mu     each for a few instructions
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
//	I5  each entry has a record in state window, queued or offered, and a ticket
//	    in the window, in ops or with Ristretto leads to it
//	I6  windowCost is the cost of the records in state window; cost of all
type shard[K comparable, V any] struct {
	policy *policy                 // set by init, then only read
	number int                     // likewise: which shard it is
	table  table.Table[K, V, head] // read without mu, written under it
	_      [64]byte                // keeps readers off the lines that others write

	touched buffer.Lossy // hashes of keys that were hit recently; has its own lock
	heard   heard
	waiting atomic.Int32 // length of ops, for a look without mu

	mu      sync.Mutex // guards everything below
	pending map[K]*pending[K, V]
	flights uint64 // flights begun so far
	tide    tide
	delayed delayedTide

	// The shard's part of the policy, see policy.go.
	window     []ticket // oldest first, from head on
	head       int
	windowLive int // records of window in state window
	windowCost int64
	cost       int64
	ghosts     ghost.Set // of what left the window unused
	records    uint32    // number of the newest record
	ops        []op      // for the policy goroutine, in the order of table changes

	// live counts the entries of generation gen, for Len.
	live int
	gen  uint32

	// since is the generation in which the source's epoch began: what is of an
	// earlier one has versions that order nothing.
	since uint32

	sweepAt uint64 // the cell at which the next sweep begins

	recorder *recorder // nil without an auditor

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
//
// The clock is looked at only by who asks now: that takes as long as the rest of
// a Put.
type moment struct {
	era   uint64
	clock *clock
	fixed int64 // what now returns without a clock
}

// now returns the time in nanoseconds since the cache began.
func (at *moment) now() int64 {
	if at.clock == nil {
		return at.fixed
	}
	return at.clock.now()
}

// An era is a generation in the high half, a count of suspicions in the low
// half, and three lowest bits that say that this replica is cut off, bypassed, or a
// shadow.
//
// An entry is served only in the era in which it was installed. A new
// generation makes every entry worthless, its version too; a new suspicion
// makes it suspect: its version is still a floor, but the source must confirm
// or replace it before it is served. While one of the bits is set no entry is
// in the era, for entries carry eras without them.
const (
	eraCutOff     = 1
	eraBypass     = 2
	eraShadow     = 4
	eraSuspicion  = 8
	eraGeneration = 1 << 32

	eraSwitchedOff = eraBypass | eraShadow // by people
	eraUnserved    = eraCutOff | eraSwitchedOff
)

func generation(era uint64) uint32 { return uint32(era >> 32) }

func (s *shard[K, V]) init(p *policy, number int, l *table.Layout[K, V, head], perShard float64, slots int, trusting bool, lag int64) {
	s.policy, s.number = p, number
	s.table.Init(l, int(perShard))
	s.ghosts = ghost.New(int(perShard * ghostsPerEntry))
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
		f.floor = f.floor.later(s.delayed.floor(f.hash, at))
	}
	p := s.pendLocked(f.key)
	p.fences = append(p.fences, f)
}

// knownLocked returns the mark of the key's entry, whether or not it may be
// served, unless its generation is over.
func (s *shard[K, V]) knownLocked(hash uint64, key K, at moment) mark {
	if p, ok := s.table.Find(hash, key); ok && generation(p.Head.era.Load()) == generation(at.era) {
		return p.Head.mark()
	}
	return mark{}
}

// look copies the key's entry, whether or not it may be served. It takes no lock.
// Without an entry v has nothing that means anything.
func (s *shard[K, V]) look(hash uint64, key K, v *V, e *facts) (p place, ok bool) {
	for {
		if p, ok = s.table.Load(hash, key, v); !ok {
			return p, false
		}
		e.read(p.Head)
		if p.Valid() {
			return p, true
		}
	}
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
	s.delayed.raise(hash, m, at)
}

// invalidateLocked records that the key has reached m, or, if m has no version,
// that it changed. An entry older than that is dropped; one at m stays, so that
// the echo of an own write is harmless (S47).
func (s *shard[K, V]) invalidateLocked(key K, hash uint64, m mark, by cause, at moment) {
	s.recordLocked(told, hash, m, by, at)
	p, ok := s.table.Find(hash, key)
	if m.version == 0 {
		s.tide.blindly(hash)
		s.delayed.raise(hash, unknownMark, at)
		if running := s.pending[key]; running != nil {
			for _, f := range running.fences {
				f.broken = true
			}
			running.flight = nil
		}
		if ok {
			s.dropLocked(p, hash, at)
		}
		return
	}
	if ok && p.Head.mark().before(m) {
		s.dropLocked(p, hash, at)
		ok = false
	}
	if !ok {
		s.tide.fold(hash, m, by, at)
	}
	s.raiseLocked(key, hash, m, nil, at)
}

// holdLocked keeps the key out of memory until releaseLocked: a write of it may
// take effect at any moment. Its mark stays known.
func (s *shard[K, V]) holdLocked(key K, hash uint64, at moment) {
	s.pendLocked(key).doubts++
	s.recordLocked(held, hash, mark{}, byWrite, at)
	if p, ok := s.table.Find(hash, key); ok {
		s.dropLocked(p, hash, at)
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
	if running := s.pending[key]; running != nil && running.doubts > 0 {
		return Unproven
	}
	p, ok := s.table.Find(hash, key)
	if !ok || p.Head.version.Load() == 0 || !s.orders(p.Head.era.Load()) {
		return s.tide.judge(hash, m, generation(at.era))
	}
	switch have, era := p.Head.mark(), p.Head.era.Load(); {
	case m.before(have):
		return Stale
	case generation(era) != generation(at.era):
		return s.tide.judge(hash, m, generation(at.era)) // InvalidateAll has thrown it away
	case have.before(m):
		return Applied
	case era == at.era && p.Head.expired(&at):
		return Applied
	default:
		return Duplicate // which does not make a suspect entry good again
	}
}

// installLocked makes n the key's entry and tells everything in progress. The
// caller has judged it. If missing is not zero, that much room must be made, and
// nothing has changed.
func (s *shard[K, V]) installLocked(n *node[K, V], cost int64, self *fence[K], at moment) (missing int64) {
	var old facts
	p, had := s.table.Find(n.Hash, n.Key)
	taken := int64(0)
	if had {
		old.read(p.Head)
		taken = p.Head.cost
	}
	if cost != taken {
		if missing = s.policy.reserve(cost - taken); missing > 0 {
			return missing
		}
	}
	s.recordLocked(installed, n.Hash, n.E.mark(), n.E.cause, at)
	n.E.era = at.era &^ eraUnserved
	if had {
		s.countLocked(old.era, -1, at)
	}
	s.countLocked(n.E.era, 1, at)
	if had {
		s.table.Begin(p)
	} else {
		if victim, crowded := s.table.Crowded(n.Hash); crowded { // or whoever chooses keys makes every search for them longer
			s.evictLocked(victim, s.table.Hash(victim), at)
		}
		p = s.table.Insert(n.Hash, n.Key)
	}
	n.E.write(p.Head)
	if p.Head.refreshAt.Load() != n.refreshAt {
		p.Head.refreshAt.Store(n.refreshAt)
	}
	s.table.SetValue(p, &n.E.value)
	if had {
		s.table.End(p)
	} else {
		s.table.Publish(p, n.Hash)
	}
	s.trackLocked(p, n.Hash, had, cost, at)
	if had && n.E.mark().before(old.mark()) {
		// Only an absence without a version, or the first state of a new
		// generation, can be below what it replaces.
		s.foldLocked(n.Hash, old.mark(), old.cause, old.era, at)
	}
	if n.E.version == 0 {
		s.tide.blindly(n.Hash)
	}
	s.raiseLocked(n.Key, n.Hash, n.E.mark(), self, at)
	return 0
}

// dropLocked ends the entry at p, whose key has this hash, and remembers its mark.
func (s *shard[K, V]) dropLocked(p place, hash uint64, at moment) {
	m, era := p.Head.mark(), p.Head.era.Load()
	s.foldLocked(hash, m, p.Head.cause(), era, at)
	if s.orders(era) {
		s.delayed.raise(hash, m, at)
	}
	s.untrackLocked(p.Head, hash)
	s.countLocked(era, -1, at)
	s.table.Delete(p, hash)
}

// orders reports whether the versions of the given era are of the source's epoch.
func (s *shard[K, V]) orders(era uint64) bool { return generation(era) >= s.since }

// foldLocked folds the mark of a state of the given era into the tide, unless
// that is of an earlier epoch.
func (s *shard[K, V]) foldLocked(hash uint64, m mark, by cause, era uint64, at moment) {
	if s.orders(era) {
		s.tide.fold(hash, m, by, at)
	}
}

// countLocked keeps live right when an entry of the given era comes or goes.
func (s *shard[K, V]) countLocked(era uint64, by int, at moment) {
	if g := generation(at.era); g != s.gen {
		s.gen, s.live = g, 0
	}
	if generation(era) == s.gen {
		s.live += by
	}
}
