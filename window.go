package tidemark

import "sync/atomic"

// Each shard has a window, a FIFO of its newest entries. What leaves it is offered
// to Ristretto, with one exception. Once Ristretto's part is full, an entry that nobody
// asked for while it was in the window, and whose key did not leave it so lately,
// is evicted there and then: most of what misses is never asked for again, and a
// judgement of Ristretto costs several times what the Put did. Keys that left so are
// ghosts for a while; one that comes again is offered, whether or not it is used.
//
// How much of MaxCost the windows have follows what the traffic is like. Where what
// is new is asked for again soon, hits are in the window, and it grows; where the
// same keys are asked for all the time, it shrinks, and Ristretto's part grows. A
// window that has become too small for any hit still sees ghosts that come back.
const (
	firstShare  = 0.15 // of MaxCost, for the windows of a new cache
	leastShare  = 0.01
	mostShare   = 0.50
	shareStep   = 0.04
	windowWorth = 0.5 // the window grows if a part of it has so much of the hits of as large a part of the rest

	// ghostWorth is what a ghost that has come back counts for beside a hit in the
	// window.
	ghostWorth = 0.02

	// The window is judged after two hits for each entry, but at least and at most
	// so many; hits that are not in the sample do not count.
	leastHits = 1_000
	mostHits  = 5_000

	// ghostsPerEntry is how many ghosts a shard knows, of the entries that it may
	// hold.
	ghostsPerEntry = 3
)

// The hits of the sample that a round hears of.
type hits struct {
	early int64 // on entries in the window
	late  int64 // on others
	back  int64 // no hits: ghosts that have left the window once more
}

// A heard counts them until a round takes them. It has no lock.
type heard struct{ early, late, back atomic.Int64 }

func (h *heard) take() hits {
	swap := func(n *atomic.Int64) int64 {
		if n.Load() == 0 {
			return 0
		}
		return n.Swap(0)
	}
	return hits{swap(&h.early), swap(&h.late), swap(&h.back)}
}

func (h *hits) add(other hits) {
	h.early += other.early
	h.late += other.late
	h.back += other.back
}

// use notes that somebody has asked for the entry. All but the first time that is a
// look.
func (h *head) use() {
	if h.touches.Load()&used == 0 {
		h.touches.Or(used)
	}
}

// overflowLocked lets the oldest records leave the window until it is within its
// share. The newest stays: it has only just come. A record is offered, unless
// Ristretto's part is full and neither its entry was asked for nor its key is a ghost.
func (s *shard[K, V]) overflowLocked(at moment) {
	for s.windowCost > s.policy.windowMax.Load() && s.head < len(s.window)-1 && len(s.ops) < backlog {
		t := s.window[s.head]
		s.head++
		p, ok := s.holderLocked(t)
		if !ok || p.Head.state() != inWindow {
			continue
		}
		if s.policy.mainFull.Load() && p.Head.touches.Load()&used == 0 {
			if !s.ghosts.Note(t.hash) {
				s.evictLocked(p, t.hash, at)
				continue
			}
			if s.policy.samples(t.hash) {
				s.heard.back.Add(1)
			}
		}
		s.windowLive--
		s.windowCost -= p.Head.cost
		p.Head.setState(queued)
		p.Head.told = float32(p.Head.cost)
		s.policy.unjudged.Add(1)
		s.pushLocked(p.Head.call(t.hash, false))
	}
	if dead := len(s.window) - s.windowLive; dead > 64 && dead > s.windowLive {
		live := s.window[:0]
		for _, t := range s.window[s.head:] {
			if p, ok := s.holderLocked(t); ok && p.Head.state() == inWindow {
				live = append(live, t)
			}
		}
		s.window, s.head = live, 0
	}
}

// oldestLocked returns the window's oldest entry.
func (s *shard[K, V]) oldestLocked() (p place, ok bool) {
	for ; s.head < len(s.window); s.head++ {
		if p, ok = s.holderLocked(s.window[s.head]); ok && p.Head.state() == inWindow {
			return p, true
		}
	}
	return place{}, false
}

// adapt moves the border between the windows and Ristretto's part by a step if it is
// time to judge it, after a round that has heard of these. The caller has the turn.
func (p *policy) adapt(heard hits) {
	p.heard.add(heard)
	if p.heard.early+p.heard.late+p.heard.back < min(max(2*p.entries, leastHits), mostHits) {
		return
	}
	heard, p.heard = p.heard, hits{}
	if !p.mainFull.Load() {
		return // there is room for all that comes
	}
	p.resizing.Lock()
	defer p.resizing.Unlock()
	early := float64(heard.early) + ghostWorth*float64(heard.back)
	if early/p.share > windowWorth*float64(heard.late)/(1-p.share) {
		p.share = min(p.share+shareStep, mostShare)
	} else {
		p.share = max(p.share-shareStep, leastShare)
	}
	p.setLimits(p.limit.Load())
	p.sketch.UpdateMaxCost(p.mainMax.Load())
}
