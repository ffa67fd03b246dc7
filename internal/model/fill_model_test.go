package model

import "fmt"

// A fillModel is one key in one replica, with everything that can put an entry
// into it or take one out: loads, writes through the cache, messages,
// evictions. Messages arrive late, again and in any order.
//
// What must hold: the entry is never below the tide mark (the newest state that
// the replica has installed, served, acknowledged or been told of), and a Get
// that joins a load is never given less than the tide mark at that moment.
type fillModel struct {
	world  fillWorld
	guards fillGuards
}

// fillWorld says what can happen at all.
type fillWorld struct {
	changes   int           // how often the source changes at most
	deletions deletionStyle // how the source deletes

	// unversionedAbsence: a load that finds no row learns no version with it.
	unversionedAbsence bool

	lagging       bool // loads may read a read replica of the source that is behind
	values        bool // messages carry values, not only versions
	refresh       bool // loads may start although there is an entry
	invalidateAll bool // someone changes rows without a word and then says InvalidateAll
	declines      bool // the cache may decline to keep what a load returned (too large)
}

// fillGuards are the rules of the protocol that keep the promise. Each is
// needed; see the mutations.
type fillGuards struct {
	// CompareAtFill: a load fills only at or above its fence, the floor and
	// the entry.
	CompareAtFill bool

	// OrderDeletionsAtFill, OrderDeletionsAtInvalidation: a deletion is newer
	// than a row of the same version.
	OrderDeletionsAtFill, OrderDeletionsAtInvalidation bool

	// CaptureFloor: a load's fence starts at what is known of the key.
	CaptureFloor bool

	// RaiseFences, RaiseFencesByInstalls: a fence rises with every
	// invalidation, and with everything that is installed.
	RaiseFences, RaiseFencesByInstalls bool

	// FenceWrites: a write through the cache has a fence as a load has.
	FenceWrites bool

	// CompareAtJoin: a Get that joined a load takes its result only if that is
	// at or above what was known when it joined.
	CompareAtJoin bool

	// FloorAfterEviction, KeepFloorWhileLagging: an evicted entry leaves a
	// floor, and a floor stays until the read replica has passed it.
	FloorAfterEviction, KeepFloorWhileLagging bool

	// ValuesNeedEntry, FloorIsNoPermission: a message's value replaces an
	// older entry and is an invalidation otherwise, even if a floor is known
	// that it reaches.
	ValuesNeedEntry, FloorIsNoPermission bool

	// GenerationAtFill, GenerationAtJoin, GenerationOfWrites: what began
	// before an InvalidateAll neither fills, nor is joined, nor installs.
	GenerationAtFill, GenerationAtJoin, GenerationOfWrites bool

	// MovedFenceRefusesAbsence: an absence without a version fills only if the
	// fence has not risen since the load began.
	MovedFenceRefusesAbsence bool

	// AbsenceBreaksFences: an absence without a version, once installed,
	// breaks the fences of everything in progress, which cannot be compared
	// with it.
	AbsenceBreaksFences bool

	// AbsenceIsNotBelow: a message's value does not replace an absence
	// without a version.
	AbsenceIsNotBelow bool

	// ServedInvalidates: a result that is served and not kept does what an
	// invalidation of its version does.
	ServedInvalidates bool
}

// A fillState is the source, the network and the replica at one moment. It has
// no padding, because such a struct is hashed in one piece.
type fillState struct {
	committed history // every committed state
	announced history // states whose messages have been sent

	source      mark // the newest committed state
	readReplica mark // what the lagging read replica shows
	covered     mark // the newest state that a sent InvalidateAll covers, or none

	entry mark // what the cache holds, or none
	blank bool // entry is an absence without a version: the cache does not know its mark
	floor mark // what the cache remembers of the key beside the entry, or none

	loads  [2]fillLoad
	waiter fillWaiter
	write  fillWrite

	tide mark // the tide mark, as an observer sees it
}

// A phase is how far an operation is.
type phase int8

const (
	idle    phase = iota
	begun         // has a fence
	settled       // has read or committed
)

// A fence is what an operation in progress knows of its key.
type fence struct {
	floor  mark // the highest mark known when it was set or since
	moved  bool // floor has risen since
	broken bool // nothing passes any more
}

type fillLoad struct {
	phase phase
	read  mark
	fence fence
}

// A fillWaiter is a Get that has joined a load.
type fillWaiter struct {
	on       bool
	load     int8
	required mark // what the protocol says the result must reach
	tide     mark // what it must reach: the tide mark when the Get began
}

// A fillWrite is a write through the cache, between commit and return.
type fillWrite struct {
	phase     phase
	committed mark
	fence     fence
}

func (m fillModel) start() fillState {
	first := rowMark(0)
	return fillState{source: first, readReplica: first, committed: history(0).with(first), covered: none, entry: none, floor: none}
}

func (m fillModel) violation(s fillState) string {
	if s.entry != none && s.entry < s.tide {
		return fmt.Sprintf("the cache holds %v although the replica has seen %v", s.entry, s.tide)
	}
	return ""
}

func (m fillModel) steps(s fillState, out *steps[fillState]) {
	m.sourceSteps(s, out)
	m.messageSteps(s, out)
	if m.world.invalidateAll {
		m.invalidateAllSteps(s, out)
	}
	for i := range s.loads {
		m.loadSteps(s, i, out)
	}
	m.forgetSteps(s, out)
	m.writeSteps(s, out)
}

// unversioned reports whether a load that reads u learns no version.
func (m fillModel) unversioned(u mark) bool { return m.world.unversionedAbsence && u.deletion() }

// known is the mark of the entry as the cache knows it.
func (s *fillState) known() mark {
	if s.blank {
		return none
	}
	return s.entry
}

// reaches reports whether u is at or above floor.
func (m fillModel) reaches(u, floor mark) bool {
	if !m.guards.OrderDeletionsAtFill {
		return u.version() >= floor.version()
	}
	return u >= floor
}

// below reports whether the entry is older than an invalidation of v.
func (m fillModel) below(s *fillState, v mark) bool {
	if !m.guards.OrderDeletionsAtInvalidation {
		return s.known().version() < v.version()
	}
	return s.known() < v
}

// raise tells everything in progress that the key has reached v.
func (m fillModel) raise(s *fillState, v mark) {
	if m.guards.RaiseFences {
		for i := range s.loads {
			if l := &s.loads[i]; l.phase != idle {
				m.raiseFence(&l.fence, v)
			}
		}
	}
	if m.guards.FenceWrites && s.write.phase != idle {
		m.raiseFence(&s.write.fence, v)
	}
}

func (m fillModel) raiseFence(f *fence, v mark) {
	if m.world.unversionedAbsence && v > f.floor { // of no use elsewhere
		f.moved = true
	}
	f.floor = max(f.floor, v)
}

// breakFences breaks the fences of everything in progress.
func (m fillModel) breakFences(s *fillState) {
	for i := range s.loads {
		if s.loads[i].phase != idle {
			s.loads[i].fence.broken = true
		}
	}
	if s.write.phase != idle {
		s.write.fence.broken = true
	}
}

// install makes u the entry. Loads alone bring an absence without a version.
func (m fillModel) install(s *fillState, u mark, byLoad bool) {
	s.entry, s.blank, s.floor = u, byLoad && m.unversioned(u), none
	s.tide = max(s.tide, u)
	switch {
	case !s.blank:
		if m.guards.RaiseFencesByInstalls {
			m.raise(s, u)
		}
	case m.guards.AbsenceBreaksFences:
		m.breakFences(s)
	}
}

// invalidate applies the word that the key has reached v.
func (m fillModel) invalidate(s *fillState, v mark) {
	s.tide = max(s.tide, v)
	if m.below(s, v) {
		s.entry, s.blank = none, false
		s.floor = max(s.floor, v)
	}
	m.raise(s, v)
	if s.entry != none {
		s.floor = none
	}
}

// invalidateUnversioned applies the word that the key has changed.
func (m fillModel) invalidateUnversioned(s *fillState) {
	s.entry, s.blank, s.floor = none, false, none
	m.breakFences(s)
}

func (m fillModel) sourceSteps(s fillState, out *steps[fillState]) {
	if s.committed.changes() < m.world.changes {
		for _, next := range m.world.deletions.next(s.source) {
			x := s
			x.source, x.committed = next, s.committed.with(next)
			out.add(x, "another process commits %v", next)
		}
	}
	for v := mark(1); v <= s.source; v++ {
		own := s.write.phase == settled && s.write.committed == v
		if s.committed.has(v) && !s.announced.has(v) && !own {
			x := s
			x.announced = s.announced.with(v)
			out.add(x, "%v is announced", v)
		}
	}
	if s.readReplica < s.source {
		x := s
		x.readReplica = s.committed.after(s.readReplica)
		out.add(x, "the read replica reaches %v", x.readReplica)
	}
}

func (m fillModel) messageSteps(s fillState, out *steps[fillState]) {
	for v := mark(1); v <= s.source; v++ {
		if !s.announced.has(v) {
			continue
		}
		x := s
		if m.world.values && m.valueFits(s, v) {
			m.install(&x, v, false)
			out.add(x, "the value %v arrives and is installed", v)
			continue
		}
		m.invalidate(&x, v)
		out.add(x, "the invalidation of %v arrives", v)
	}
}

// valueFits reports whether the value v of a message may become the entry.
func (m fillModel) valueFits(s fillState, v mark) bool {
	if s.blank && m.guards.AbsenceIsNotBelow {
		return false
	}
	permitted := s.entry != none ||
		!m.guards.ValuesNeedEntry ||
		!m.guards.FloorIsNoPermission && s.floor != none
	return permitted && v > s.known() && v >= s.floor
}

// invalidateAllSteps: the promise to whoever said InvalidateAll is that, once
// it has arrived, nothing is served that was replaced before it was said.
func (m fillModel) invalidateAllSteps(s fillState, out *steps[fillState]) {
	if s.covered < s.source {
		x := s
		x.covered = s.source
		out.add(x, "InvalidateAll is said when the source is at %v", s.source)
	}
	if s.covered != none {
		x := s
		x.tide = max(s.tide, s.covered)
		m.invalidateUnversioned(&x)
		out.add(x, "InvalidateAll arrives")
	}
}

func (m fillModel) loadSteps(s fillState, i int, out *steps[fillState]) {
	switch l := s.loads[i]; l.phase {
	case idle:
		if s.entry == none || m.world.refresh {
			x := s
			x.loads[i] = fillLoad{phase: begun, fence: fence{floor: none}}
			if m.guards.CaptureFloor {
				x.loads[i].fence.floor = max(s.floor, s.known())
			}
			out.add(x, "load %d begins", i)
		}
	case begun:
		x := s
		x.loads[i].phase, x.loads[i].read = settled, s.source
		out.add(x, "load %d reads %v", i, s.source)
		if m.world.lagging && s.readReplica < s.source {
			x := s
			x.loads[i].phase, x.loads[i].read = settled, s.readReplica
			out.add(x, "load %d reads %v from the read replica", i, s.readReplica)
		}
	case settled:
		m.loadEnds(s, i, out)
	}
	m.joinSteps(s, i, out)
}

func (m fillModel) loadEnds(s fillState, i int, out *steps[fillState]) {
	l := s.loads[i]
	end := func(fills bool, format string) {
		x := s
		x.loads[i] = fillLoad{}
		if fills {
			m.install(&x, l.read, true)
		}
		kept := fills || !l.fence.broken && !m.mayFill(s, l) // or is too old to matter
		violation := m.answerWaiter(&x, s, i, kept)
		out.addJudged(x, violation, format, i, l.read)
	}
	if !m.mayFill(s, l) {
		end(false, "load %d ends, %v is not installed")
		return
	}
	end(true, "load %d ends, %v is installed")
	if m.world.declines {
		end(false, "load %d ends, %v is too large to keep")
	}
}

// mayFill reports whether the result of l may become the entry.
func (m fillModel) mayFill(s fillState, l fillLoad) bool {
	if l.fence.broken && m.guards.GenerationAtFill {
		return false
	}
	if !m.guards.CompareAtFill {
		return true
	}
	if m.unversioned(l.read) {
		return !l.fence.moved || !m.guards.MovedFenceRefusesAbsence
	}
	return m.reaches(l.read, max(l.fence.floor, s.floor, s.known()))
}

// answerWaiter gives the result of load i, which ended in state s, to the Get
// that joined it, if one did, and says what is wrong with that. kept means
// that the result needs no notice: it was installed, or is old.
func (m fillModel) answerWaiter(x *fillState, s fillState, i int, kept bool) (violation string) {
	if !s.waiter.on || s.waiter.load != int8(i) {
		return ""
	}
	x.waiter = fillWaiter{}
	l := s.loads[i]
	enough := m.reaches(l.read, s.waiter.required)
	if m.unversioned(l.read) {
		enough = !l.fence.moved
	}
	if !enough && m.guards.CompareAtJoin {
		return "" // loads again
	}
	if l.read < s.waiter.tide {
		violation = fmt.Sprintf("a Get was given %v although the replica had seen %v before it began", l.read, s.waiter.tide)
	}
	x.tide = max(x.tide, l.read)
	if !kept && m.guards.ServedInvalidates {
		if m.unversioned(l.read) {
			m.invalidateUnversioned(x)
		} else {
			m.invalidate(x, l.read)
		}
	}
	return violation
}

func (m fillModel) joinSteps(s fillState, i int, out *steps[fillState]) {
	l := s.loads[i]
	if l.phase == idle || s.waiter.on || l.fence.broken && m.guards.GenerationAtJoin {
		return
	}
	x := s
	x.waiter = fillWaiter{on: true, load: int8(i), required: max(s.floor, s.known(), l.fence.floor), tide: s.tide}
	out.add(x, "a Get joins load %d and requires %v", i, x.waiter.required)
}

func (m fillModel) forgetSteps(s fillState, out *steps[fillState]) {
	if s.entry != none {
		x := s
		if m.guards.FloorAfterEviction {
			x.floor = max(s.floor, s.known())
		}
		x.entry, x.blank = none, false
		out.add(x, "%v is evicted", s.entry)
	}
	if s.floor != none && (!m.guards.KeepFloorWhileLagging || !m.world.lagging || s.readReplica >= s.floor) {
		x := s
		x.floor = none
		out.add(x, "the floor %v is forgotten", s.floor)
	}
}

func (m fillModel) writeSteps(s fillState, out *steps[fillState]) {
	switch s.write.phase {
	case idle:
		if s.committed.changes() >= m.world.changes {
			return
		}
		for _, next := range m.world.deletions.next(s.source) {
			x := s
			x.source, x.committed = next, s.committed.with(next)
			x.write = fillWrite{settled, next, fence{floor: max(s.floor, s.known())}}
			out.add(x, "a write through the cache commits %v", next)
		}
	case settled:
		v, f := s.write.committed, s.write.fence
		x := s
		x.write = fillWrite{}
		x.announced = s.announced.with(v)
		x.tide = max(s.tide, v)
		switch {
		case f.broken && m.guards.GenerationOfWrites:
			m.invalidate(&x, v)
			out.add(x, "the write of %v returns, what it wrote is not installed", v)
		case m.reaches(v, max(f.floor, s.floor, s.known())):
			m.install(&x, v, false)
			out.add(x, "the write of %v returns, what it wrote is installed", v)
		default:
			if m.guards.RaiseFencesByInstalls {
				m.raise(&x, v)
			}
			out.add(x, "the write of %v returns, what it wrote is not installed", v)
		}
	}
}
