package model

import "fmt"

// A putModel is one or two keys that share a slot of the tide, loads from a
// strong source, and bare Puts: values that somebody knows to be committed,
// offered at any later time, without proof of when they were read.
//
// What must hold: no entry is below the tide mark of its key (the newest state
// that the replica has installed, served, been offered or been told of).
type putModel struct {
	world  putWorld
	guards putGuards
}

// putWorld says what can happen at all.
type putWorld struct {
	keys      int           // 1 or 2
	changes   int           // how often the source changes each key at most
	deletions deletionStyle // how the source deletes

	// unversionedAbsence: a load that finds no row learns no version with it.
	unversionedAbsence bool

	// unversionedWord: someone changes a row and then says, without a version,
	// that it changed. With two keys the word is about both: InvalidateAll.
	unversionedWord bool

	declines bool // the cache may decline to keep what a load returned (too large)
}

// putGuards are the rules for a bare Put. A slot keeps a mark, the highest that
// was ever forgotten of its keys, and may be blind: nothing compares with it.
type putGuards struct {
	// CompareWithSlot: where there is no entry, a Put installs only at or
	// above the mark of the slot.
	CompareWithSlot bool

	// RememberEvicted, RememberInvalidated, RememberServed: the slot's mark
	// rises to what is evicted, to what an invalidation names when there is no
	// entry that carries it, and to a load's result that is served and not kept.
	RememberEvicted, RememberInvalidated, RememberServed bool

	// NeverClear: the slot's mark does not fall when an entry is installed.
	NeverClear bool

	// WordBlinds: a change without a version blinds the slot.
	WordBlinds bool

	// AbsenceBlinds: an absence without a version blinds the slot, and a Put
	// does not replace it.
	AbsenceBlinds bool

	// RefusedPutInvalidates: a Put that may not install is an invalidation.
	RefusedPutInvalidates bool

	// PutRaisesFence: a Put that installs raises the fence of a load in progress.
	PutRaisesFence bool
}

type putState struct {
	keys  [2]putKey
	slot  mark // the highest mark forgotten, or none
	blind bool // nothing compares with slot
}

type putKey struct {
	committed history
	source    mark
	covered   mark // the newest state that a sent word without a version covers

	entry mark
	blank bool // entry is an absence without a version
	load  fillLoad

	tide mark // the tide mark, as an observer sees it
}

func (m putModel) start() putState {
	first := rowMark(0)
	k := putKey{source: first, committed: history(0).with(first), covered: none, entry: none}
	s := putState{slot: none}
	for i := range m.world.keys {
		s.keys[i] = k
	}
	return s
}

func (m putModel) violation(s putState) string {
	for i := range m.world.keys {
		if k := s.keys[i]; k.entry != none && k.entry < k.tide {
			return fmt.Sprintf("the cache holds %v although the replica has seen %v", k.entry, k.tide)
		}
	}
	return ""
}

func (m putModel) steps(s putState, out *steps[putState]) {
	for i := range m.world.keys {
		m.sourceSteps(s, i, out)
		m.messageSteps(s, i, out)
		m.putSteps(s, i, out)
		m.loadSteps(s, i, out)
		m.evictSteps(s, i, out)
	}
	if m.world.unversionedWord {
		m.wordSteps(s, out)
	}
}

func (m putModel) unversioned(u mark) bool { return m.world.unversionedAbsence && u.deletion() }

// known is the mark of the entry as the cache knows it.
func (k *putKey) known() mark {
	if k.blank {
		return none
	}
	return k.entry
}

// fold remembers in the slot that one of its keys has reached v.
func (s *putState) fold(v mark) { s.slot = max(s.slot, v) }

// raise tells the load in progress that the key has reached v.
func (k *putKey) raise(v mark) {
	if k.load.phase == idle {
		return
	}
	f := &k.load.fence
	f.moved = f.moved || v > f.floor
	f.floor = max(f.floor, v)
}

// drop takes the entry of key i out of the cache.
func (s *putState) drop(i int) { s.keys[i].entry, s.keys[i].blank = none, false }

// install makes u the entry of key i.
func (m putModel) install(s *putState, i int, u mark, byLoad bool) {
	k := &s.keys[i]
	k.entry, k.blank = u, byLoad && m.unversioned(u)
	k.tide = max(k.tide, u)
	if !m.guards.NeverClear {
		s.slot = none
	}
	switch {
	case k.blank:
		k.load.fence.broken = k.load.phase != idle
		s.blind = s.blind || m.guards.AbsenceBlinds
	case byLoad || m.guards.PutRaisesFence:
		k.raise(u)
	}
}

// invalidate applies the word that key i has reached v.
func (m putModel) invalidate(s *putState, i int, v mark) {
	k := &s.keys[i]
	k.tide = max(k.tide, v)
	if k.known() < v {
		s.drop(i)
		if m.guards.RememberInvalidated {
			s.fold(v)
		}
	}
	k.raise(v)
}

func (m putModel) sourceSteps(s putState, i int, out *steps[putState]) {
	k := s.keys[i]
	if k.committed.changes() >= m.world.changes {
		return
	}
	for _, next := range m.world.deletions.next(k.source) {
		x := s
		x.keys[i].source, x.keys[i].committed = next, k.committed.with(next)
		out.add(x, "key %d: %v is committed", i, next)
	}
}

func (m putModel) messageSteps(s putState, i int, out *steps[putState]) {
	for v := mark(1); v <= s.keys[i].source; v++ {
		if s.keys[i].committed.has(v) {
			x := s
			m.invalidate(&x, i, v)
			out.add(x, "key %d: the invalidation of %v arrives", i, v)
		}
	}
}

// wordSteps: once the word has arrived, nothing is served that was replaced
// before it was said.
func (m putModel) wordSteps(s putState, out *steps[putState]) {
	said, arrived := s, s
	news, sent := false, false
	for i := range m.world.keys {
		k := s.keys[i]
		news = news || k.covered < k.source
		sent = sent || k.covered != none
		said.keys[i].covered = k.source

		x := &arrived.keys[i]
		x.tide = max(k.tide, k.covered)
		x.load.fence.broken = k.load.phase != idle
		arrived.drop(i)
	}
	arrived.blind = s.blind || m.guards.WordBlinds
	if news {
		out.add(said, "a change without a version is announced")
	}
	if sent {
		out.add(arrived, "the word of a change without a version arrives")
	}
}

func (m putModel) putSteps(s putState, i int, out *steps[putState]) {
	k := s.keys[i]
	for v := rowMark(0); v <= k.source; v++ {
		if v.deletion() || !k.committed.has(v) {
			continue
		}
		x := s
		x.keys[i].tide = max(k.tide, v)
		switch {
		case v <= k.known():
			out.add(x, "key %d: Put(%v) is stale or known", i, v)
		case m.putFits(s, i, v):
			m.install(&x, i, v, false)
			out.add(x, "key %d: Put(%v) is installed", i, v)
		default:
			if m.guards.RefusedPutInvalidates {
				m.invalidate(&x, i, v)
			}
			out.add(x, "key %d: Put(%v) is unproven", i, v)
		}
	}
}

// putFits reports whether a Put of v may become the entry of key i, which has
// none or an older one.
func (m putModel) putFits(s putState, i int, v mark) bool {
	if k := s.keys[i]; k.known() != none {
		return true // the entry is at the tide mark, and v is above it
	}
	return !s.blind && (v >= s.slot || !m.guards.CompareWithSlot)
}

func (m putModel) loadSteps(s putState, i int, out *steps[putState]) {
	k := s.keys[i]
	x := s
	switch k.load.phase {
	case idle:
		x.keys[i].load = fillLoad{phase: begun, fence: fence{floor: k.known()}}
		out.add(x, "key %d: a load begins", i)
	case begun:
		x.keys[i].load.phase, x.keys[i].load.read = settled, k.source
		out.add(x, "key %d: the load reads %v", i, k.source)
	case settled:
		x.keys[i].load = fillLoad{}
		switch {
		case !m.passes(k):
			out.add(x, "key %d: the load ends, %v is too old", i, k.load.read)
			return
		case !k.load.fence.broken:
			y := x
			m.install(&y, i, k.load.read, true)
			out.add(y, "key %d: the load ends, %v is installed", i, k.load.read)
			if !m.world.declines {
				return
			}
		}
		m.serve(&x, i, k.load.read)
		out.add(x, "key %d: the load ends, %v is served and not kept", i, k.load.read)
	}
}

// passes reports whether the result of k's load is at or above its fence and
// the entry, so that it may be served.
func (m putModel) passes(k putKey) bool {
	if m.unversioned(k.load.read) {
		return !k.load.fence.moved
	}
	return k.load.read >= max(k.load.fence.floor, k.known())
}

// serve gives u to the caller of the load without keeping it.
func (m putModel) serve(s *putState, i int, u mark) {
	k := &s.keys[i]
	k.tide = max(k.tide, u)
	if m.unversioned(u) {
		s.drop(i)
		s.blind = s.blind || m.guards.AbsenceBlinds
		return
	}
	if k.known() < u {
		s.drop(i)
		if m.guards.RememberServed {
			s.fold(u)
		}
	}
}

func (m putModel) evictSteps(s putState, i int, out *steps[putState]) {
	k := s.keys[i]
	if k.entry == none {
		return
	}
	x := s
	if m.guards.RememberEvicted && !k.blank {
		x.fold(k.entry)
	}
	x.drop(i)
	out.add(x, "key %d: %v is evicted", i, k.entry)
}
