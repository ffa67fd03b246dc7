package model

import "fmt"

// An intentModel is one key, two writers and one replica with strict writes: a
// writer puts an intent into the log, commits, and puts the result into the
// log. It may crash between any two steps; its commit may then still take
// effect, or be rolled back, until the database has settled it.
//
// What must hold: at every moment, an entry that the log vouches for is at least
// as new as the newest version that had been committed before the replica sent
// the latest probe that came back to it, whether or not the writer lived to
// acknowledge it. The replica may join anew at any time, at the log's end.
type intentModel struct {
	world  intentWorld
	guards intentGuards
}

// intentWorld bounds what can happen.
type intentWorld struct {
	writes   int // how many writes begin at most
	versions int // how many versions are committed at most
	joins    int // how often the replica joins anew at most
}

// intentGuards are the rules that keep the claim true.
type intentGuards struct {
	// IntentFirst: the intent is in the log before the commit.
	IntentFirst bool

	// LoadsHeedIntents: a load that begins while an intent is open is not
	// cached.
	LoadsHeedIntents bool

	// IntentsBreakFences: a load in progress when an intent arrives is not
	// cached.
	IntentsBreakFences bool

	// FillsHeedIntents: nothing is cached while an intent is open. This does
	// what IntentsBreakFences does, a second time.
	FillsHeedIntents bool

	// JoinHolds: the log vouches for what was loaded after the replica joined
	// only if all writes that were under way then have been settled before.
	JoinHolds bool

	// DeadlineAfterSettling: an intent without a result is forgotten only when
	// the database has settled the transaction.
	DeadlineAfterSettling bool
}

// intentCapacity bounds the log.
const intentCapacity = 7

const (
	intentRecord  recordKind = probeRecord + 1 + iota
	resultRecord             // of a commit, or of an abort if its version is 0
	intentWriters = 2
)

type intentLogRecord struct {
	kind    recordKind
	version version
	writer  int8
}

type writerPhase int8

const (
	writerIdle        writerPhase = iota
	writerIntends                 // the intent is logged
	writerCommitted               // and the result is not logged
	writerInDoubt                 // crashed, the commit may still take effect
	writerSettledDead             // crashed, committed or rolled back
)

type intentWriter struct {
	phase   writerPhase
	version version // what it commits: one above its base
}

type intentState struct {
	source  version
	writers [intentWriters]intentWriter
	writes  int8 // begun so far

	log    [intentCapacity]intentLogRecord
	length int8

	// The replica.
	next         int8  // index of the next record it takes
	open         uint8 // writers with an open intent, as bits
	entry, floor version
	vouched      bool // the log vouches for the entry
	load         logLoad
	loadVouched  bool  // and would for the load's
	joins        int8  // so far
	unheard      uint8 // writers whose intent it has not heard, as bits, and who are not settled

	probe       bool
	probeCovers version // newest version committed when the probe was sent
	claim       version // newest version that the last returned probe covers, or none
}

func (m intentModel) start() intentState {
	return intentState{entry: noVersion, floor: noVersion, claim: noVersion}
}

func (m intentModel) violation(s intentState) string {
	if s.claim != noVersion && s.vouched && s.entry != noVersion && s.entry < s.claim {
		return fmt.Sprintf("a bounded read returns %v although %v was committed before the probe was sent", s.entry, s.claim)
	}
	return ""
}

func (m intentModel) steps(s intentState, out *steps[intentState]) {
	for i := range int8(intentWriters) {
		m.writerSteps(s, i, out)
	}
	if s.next < s.length {
		m.takeRecord(s, out)
	}
	for i := range int8(intentWriters) {
		m.deadlineSteps(s, i, out)
	}
	m.probeSteps(s, out)
	m.loadSteps(s, out)
	m.forgetSteps(s, out)
	m.joinSteps(s, out)
}

// append puts r into the log and reports whether there was room in the model.
func (s *intentState) append(r intentLogRecord) bool {
	if int(s.length) >= len(s.log) {
		return false
	}
	s.log[s.length] = r
	s.length++
	return true
}

func (m intentModel) writerSteps(s intentState, i int8, out *steps[intentState]) {
	switch w := s.writers[i]; w.phase {
	case writerIdle:
		if int(s.writes) >= m.world.writes || s.source >= version(m.world.versions) {
			return
		}
		x := s
		x.writes++
		x.writers[i] = intentWriter{writerIntends, s.source + 1}
		if !m.guards.IntentFirst {
			out.add(x, "writer %d begins at %v", i, s.source)
		} else if x.append(intentLogRecord{intentRecord, 0, i}) {
			out.add(x, "writer %d begins at %v and logs its intent", i, s.source)
		}
	case writerIntends:
		m.commitSteps(s, i, writerCommitted, out)
		x := s
		x.writers[i].phase = writerInDoubt
		out.add(x, "writer %d crashes, its commit may be under way", i)
		x = s
		if s.source >= w.version && x.append(intentLogRecord{resultRecord, 0, i}) {
			x.writers[i] = intentWriter{}
			out.add(x, "writer %d has a conflict and logs that it aborts", i)
		}
	case writerCommitted:
		x := s
		if x.append(intentLogRecord{resultRecord, w.version, i}) {
			x.writers[i] = intentWriter{}
			out.add(x, "writer %d logs the result %v", i, w.version)
		}
		x = s
		x.writers[i].phase = writerSettledDead
		out.add(x, "writer %d crashes before it logs the result", i)
	case writerInDoubt:
		m.commitSteps(s, i, writerSettledDead, out)
		x := s
		x.writers[i].phase = writerSettledDead
		out.add(x, "the database rolls back the transaction of writer %d", i)
	}
}

// commitSteps lets the commit of writer i take effect, if its base still stands.
func (m intentModel) commitSteps(s intentState, i int8, then writerPhase, out *steps[intentState]) {
	w := s.writers[i]
	if s.source != w.version-1 {
		return
	}
	x := s
	x.source = w.version
	x.writers[i].phase = then
	out.add(x, "the commit of writer %d takes effect: %v", i, w.version)
}

func (m intentModel) takeRecord(s intentState, out *steps[intentState]) {
	x := s
	r := s.log[s.next]
	x.next++
	switch r.kind {
	case intentRecord:
		x.open |= 1 << r.writer
		x.entry, x.vouched = noVersion, false
		x.load.broken = s.load.broken || s.load.on && m.guards.IntentsBreakFences
		out.add(x, "the replica applies the intent of writer %d", r.writer)
	case resultRecord:
		x.open &^= 1 << r.writer
		if r.version > 0 {
			if s.entry < r.version {
				x.entry, x.vouched = noVersion, false
			}
			x.floor = max(s.floor, r.version)
			if s.load.on {
				x.load.floor = max(s.load.floor, r.version)
			}
		}
		out.add(x, "the replica applies the result %v of writer %d", r.version, r.writer)
	case probeRecord:
		x.claim = max(s.claim, s.probeCovers)
		x.probe, x.probeCovers = false, 0
		out.add(x, "the replica gets its probe back and claims every commit up to %v", x.claim)
	}
}

// deadlineSteps: the replica gives up waiting for the result of a dead writer.
func (m intentModel) deadlineSteps(s intentState, i int8, out *steps[intentState]) {
	phase := s.writers[i].phase
	dead := phase == writerSettledDead || phase == writerInDoubt && !m.guards.DeadlineAfterSettling
	if s.open&(1<<i) == 0 || !dead {
		return
	}
	x := s
	x.open &^= 1 << i
	x.load.broken = s.load.on
	out.add(x, "the replica forgets the intent of writer %d", i)
}

func (m intentModel) probeSteps(s intentState, out *steps[intentState]) {
	if s.probe {
		return
	}
	x := s
	x.probe, x.probeCovers = true, s.source
	if x.append(intentLogRecord{kind: probeRecord}) {
		out.add(x, "the replica sends a probe when %v is committed", s.source)
	}
}

func (m intentModel) loadSteps(s intentState, out *steps[intentState]) {
	x := s
	switch {
	case s.load.on:
		x.load, x.loadVouched = logLoad{}, false
		fits := s.load.read >= max(s.load.floor, s.floor, s.entry) && !s.load.broken
		if fits && (s.open == 0 || !m.guards.FillsHeedIntents) {
			x.entry, x.vouched = s.load.read, s.loadVouched
			out.add(x, "the load of %v fills", s.load.read)
		} else {
			out.add(x, "the load of %v is not cached", s.load.read)
		}
	case s.entry == noVersion:
		x.load = logLoad{on: true, read: s.source, floor: s.floor}
		x.loadVouched = s.unheard == 0 || !m.guards.JoinHolds
		x.load.broken = s.open != 0 && m.guards.LoadsHeedIntents
		out.add(x, "a load reads %v", s.source)
	}
}

func (m intentModel) forgetSteps(s intentState, out *steps[intentState]) {
	if s.floor != noVersion {
		x := s
		x.floor = noVersion
		out.add(x, "the floor %v is forgotten", s.floor)
	}
}

// joinSteps: the replica gives up its place in the log and begins at its end; and
// the time is over in which what was under way then can take effect.
func (m intentModel) joinSteps(s intentState, out *steps[intentState]) {
	unsettled := uint8(0)
	for i, w := range s.writers {
		if w.phase == writerIntends || w.phase == writerInDoubt {
			unsettled |= 1 << i
		}
	}
	if int(s.joins) < m.world.joins {
		x := s
		x.joins++
		x.next, x.open, x.unheard = s.length, 0, unsettled
		x.entry, x.floor, x.claim, x.vouched = noVersion, noVersion, noVersion, false
		x.load.broken = s.load.on
		x.probe, x.probeCovers = false, 0 // one that is under way is never read
		out.add(x, "the replica joins anew")
	}
	if settled := s.unheard &^ unsettled; settled != 0 {
		x := s
		x.unheard &^= settled
		out.add(x, "what was under way when the replica joined has taken effect, or will not")
	}
}
