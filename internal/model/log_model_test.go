package model

import "fmt"

// A logModel is one key and one replica that consumes a sequenced log. Writers
// commit, append to the log and acknowledge in separate steps. The log may drop
// its oldest records, or be deleted and made anew; the connection may break.
// The replica proves how fresh it is by probes of its own in the log.
//
// What must hold: at every moment, an entry is at least as new as the newest
// version that had been acknowledged before the replica sent the latest probe
// that came back to it.
type logModel struct {
	world  logWorld
	guards logGuards
}

// logWorld says what can happen at all.
type logWorld struct {
	versions int // how many versions are committed at most
	records  int // how many records the log takes at most; up to logCapacity

	retention bool // the log drops its oldest records
	recreated bool // the log is deleted and made anew, once
	lagging   bool // loads read a read replica of the source that is behind

	// twoStepReads: a reader takes the entry and the claim in two steps.
	twoStepReads bool
}

// logGuards are the rules that keep the claim true.
type logGuards struct {
	// ResumeChecksFirst, ResumeChecksIncarnation: a replica that resumes does
	// not go on behind records that are gone, nor in another log.
	ResumeChecksFirst, ResumeChecksIncarnation bool

	// AcknowledgeAfterAppend: a write returns when the log has its record.
	AcknowledgeAfterAppend bool

	// ClaimFromSending: what a probe proves counts from when it was sent.
	ClaimFromSending bool

	// SubscribeBeforeLoading: nothing is cached before the replica listens.
	SubscribeBeforeLoading bool

	// FlushBreaksFences: a load that began before a flush does not fill.
	FlushBreaksFences bool

	// ClaimBeforeEntry: a reader takes the claim first and the entry second.
	ClaimBeforeEntry bool

	// HoldOff: loads from a lagging read replica are cached only when it shows
	// what the source held at the last flush or subscription.
	HoldOff bool

	// ProbeThroughLog: the answer to a probe comes through the log.
	ProbeThroughLog bool
}

// A version is a state of the key in models without deletions.
type version int8

const noVersion version = -1

func (v version) String() string {
	if v == noVersion {
		return "nothing"
	}
	return fmt.Sprintf("v%d", int8(v))
}

// logCapacity bounds the log of every logWorld.
const logCapacity = 5

type recordKind int8

const (
	noRecord recordKind = iota
	invalidationRecord
	probeRecord
)

type logRecord struct {
	kind    recordKind
	version version // of an invalidation
}

type logState struct {
	source      version // the newest committed version
	readReplica version // what the lagging read replica shows
	appended    uint8   // versions whose record is or was in the log, as bits
	acked       uint8   // versions acknowledged to their writers, as bits

	log           [logCapacity]logRecord
	first, length int8 // records before first are gone
	incarnation   int8

	// The replica.
	subscribed  bool // has been, at least once
	connected   bool
	believes    int8 // the incarnation it believes to read
	next        int8 // index of the next record it takes
	disconnects int8

	entry, floor version
	load         logLoad
	holdOff      version // what a lagging load must reach to be cached

	probe       probePhase
	probeCovers version // newest version acknowledged when the probe was sent
	claim       version // newest version that the last returned probe covers, or none
	reader      logReader
}

type logLoad struct {
	on     bool
	read   version
	floor  version
	broken bool // the replica was flushed since
}

type probePhase int8

const (
	noProbe probePhase = iota
	probeSent
	probeAppended
)

// A logReader is a bounded read that takes its two steps.
type logReader struct {
	halfway bool
	claim   version // taken first, if ClaimBeforeEntry
	entry   version // taken first, otherwise
}

func (m logModel) start() logState {
	return logState{entry: noVersion, floor: noVersion, claim: noVersion}
}

func (m logModel) violation(s logState) string {
	if s.claim != noVersion && s.entry != noVersion && s.entry < s.claim {
		return fmt.Sprintf("a bounded read returns %v although %v was acknowledged before the probe that proves freshness was sent", s.entry, s.claim)
	}
	return ""
}

func (m logModel) steps(s logState, out *steps[logState]) {
	m.writerSteps(s, out)
	m.logSteps(s, out)
	if s.connected {
		m.consumeSteps(s, out)
	} else {
		m.connectSteps(s, out)
	}
	m.probeSteps(s, out)
	m.loadSteps(s, out)
	if m.world.twoStepReads {
		m.readerSteps(s, out)
	}
	m.forgetSteps(s, out)
}

// acknowledged returns the newest acknowledged version.
func (s *logState) acknowledged() version {
	newest := version(0)
	for v := version(1); v <= s.source; v++ {
		if s.acked&(1<<v) != 0 {
			newest = v
		}
	}
	return newest
}

// append puts r into the log and reports whether there was room in the model.
func (m logModel) append(s *logState, r logRecord) bool {
	if int(s.length) >= m.world.records {
		return false
	}
	s.log[s.length] = r
	s.length++
	return true
}

// flush forgets everything and what was claimed about it.
func (m logModel) flush(s *logState) {
	s.entry, s.floor, s.claim = noVersion, noVersion, noVersion
	s.probe, s.probeCovers = noProbe, 0
	s.load.broken = s.load.on && m.guards.FlushBreaksFences
	m.holdOff(s)
}

// holdOff makes lagging loads wait for the present of the source.
func (m logModel) holdOff(s *logState) {
	if m.world.lagging && m.guards.HoldOff {
		s.holdOff = s.source
	}
}

func (m logModel) writerSteps(s logState, out *steps[logState]) {
	if s.source < version(m.world.versions) {
		x := s
		x.source++
		out.add(x, "%v is committed", x.source)
	}
	for v := version(1); v <= s.source; v++ {
		bit := uint8(1) << v
		if s.appended&bit == 0 {
			x := s
			x.appended |= bit
			if m.append(&x, logRecord{invalidationRecord, v}) {
				out.add(x, "the invalidation of %v is appended", v)
			}
		}
		if s.acked&bit == 0 && (s.appended&bit != 0 || !m.guards.AcknowledgeAfterAppend) {
			x := s
			x.acked |= bit
			out.add(x, "%v is acknowledged", v)
		}
	}
	if m.world.lagging && s.readReplica < s.source {
		x := s
		x.readReplica++
		out.add(x, "the read replica reaches %v", x.readReplica)
	}
}

func (m logModel) logSteps(s logState, out *steps[logState]) {
	if m.world.retention && s.first < s.length {
		x := s
		x.first++
		out.add(x, "the log drops its oldest record")
	}
	if m.world.recreated && s.incarnation == 0 && s.length > 0 {
		x := s
		x.incarnation, x.length, x.first = 1, 0, 0
		x.log = [logCapacity]logRecord{}
		if x.probe == probeAppended {
			x.probe = noProbe
		}
		x.connected = false // the consumer dies with the log
		out.add(x, "the log is deleted and made anew")
	}
}

func (m logModel) connectSteps(s logState, out *steps[logState]) {
	x := s
	x.connected = true
	switch {
	case !s.subscribed:
		x.subscribed, x.believes, x.next = true, s.incarnation, s.length
		m.holdOff(&x)
		out.add(x, "the replica subscribes at the end of the log")
	case s.believes != s.incarnation && m.guards.ResumeChecksIncarnation:
		m.flush(&x)
		x.believes, x.next = s.incarnation, s.length
		out.add(x, "the replica finds another log: it flushes and goes to the end")
	case s.believes == s.incarnation && s.next < s.first:
		m.skipHole(&x)
		out.add(x, "the replica resumes behind records that are gone")
	default:
		out.add(x, "the replica resumes at its position")
	}
}

// skipHole is what the replica does when the records at its position are gone.
func (m logModel) skipHole(s *logState) {
	if m.guards.ResumeChecksFirst {
		m.flush(s)
		s.next = s.length
	} else {
		s.next = s.first
	}
}

func (m logModel) consumeSteps(s logState, out *steps[logState]) {
	if s.disconnects < 1 {
		x := s
		x.connected = false
		x.disconnects++
		out.add(x, "the replica is disconnected")
	}
	switch {
	case s.next >= s.first && s.next < s.length:
		m.takeRecord(s, out)
	case s.next < s.first && s.length > s.first:
		x := s
		m.skipHole(&x)
		out.add(x, "retention overtakes the replica, the sequence jumps")
	}
}

func (m logModel) takeRecord(s logState, out *steps[logState]) {
	x := s
	r := s.log[s.next]
	x.next++
	if r.kind == invalidationRecord {
		if s.entry < r.version {
			x.entry = noVersion
		}
		x.floor = max(s.floor, r.version)
		if s.load.on {
			x.load.floor = max(s.load.floor, r.version)
		}
		out.add(x, "the replica applies the invalidation of %v", r.version)
		return
	}
	if s.probe == probeAppended {
		covers := s.probeCovers
		if !m.guards.ClaimFromSending {
			covers = s.acknowledged()
		}
		m.claim(&x, covers)
	}
	out.add(x, "the replica gets its probe back and claims everything up to %v", x.claim)
}

func (m logModel) claim(s *logState, covers version) {
	s.claim = max(s.claim, covers)
	s.probe, s.probeCovers = noProbe, 0
}

func (m logModel) probeSteps(s logState, out *steps[logState]) {
	x := s
	switch {
	case s.probe == noProbe && s.subscribed:
		x.probe, x.probeCovers = probeSent, s.acknowledged()
		out.add(x, "the replica sends a probe when %v is acknowledged", x.probeCovers)
	case s.probe == probeSent && int(s.length) < m.world.records:
		if m.guards.ProbeThroughLog {
			x.probe = probeAppended
			m.append(&x, logRecord{kind: probeRecord})
			out.add(x, "the probe is appended to the log")
		} else {
			m.claim(&x, s.probeCovers)
			out.add(x, "the probe is answered beside the log")
		}
	}
}

func (m logModel) loadSteps(s logState, out *steps[logState]) {
	x := s
	if s.load.on {
		x.load = logLoad{}
		if s.load.read >= max(s.load.floor, s.floor, s.entry) && !s.load.broken {
			x.entry = s.load.read
			out.add(x, "the load of %v fills", s.load.read)
		} else {
			out.add(x, "the load of %v is not cached", s.load.read)
		}
		return
	}
	if s.entry != noVersion || !s.subscribed && m.guards.SubscribeBeforeLoading {
		return
	}
	x.load = logLoad{on: true, read: s.source, floor: s.floor}
	if !m.world.lagging {
		out.add(x, "a load reads %v", s.source)
	} else if s.readReplica >= s.holdOff {
		x.load.read = s.readReplica
		out.add(x, "a load reads %v from the read replica", s.readReplica)
	}
}

func (m logModel) readerSteps(s logState, out *steps[logState]) {
	x := s
	claimFirst := m.guards.ClaimBeforeEntry
	switch {
	case s.reader.halfway:
		claim, entry := s.claim, s.reader.entry
		if claimFirst {
			claim, entry = s.reader.claim, s.entry
		}
		x.reader = logReader{}
		violation := ""
		if entry != noVersion && claim != noVersion && entry < claim {
			violation = fmt.Sprintf("a reader returns %v under a claim that covers %v", entry, claim)
		}
		out.addJudged(x, violation, "the reader returns")
	case claimFirst && s.claim != noVersion:
		x.reader = logReader{halfway: true, claim: s.claim}
		out.add(x, "a reader takes the claim of %v", s.claim)
	case !claimFirst && s.entry != noVersion:
		x.reader = logReader{halfway: true, entry: s.entry}
		out.add(x, "a reader takes the entry %v", s.entry)
	}
}

func (m logModel) forgetSteps(s logState, out *steps[logState]) {
	if s.entry != noVersion {
		x := s
		x.entry = noVersion
		out.add(x, "the entry is evicted")
	}
	if s.floor != noVersion && (!m.world.lagging || s.readReplica >= s.floor) {
		x := s
		x.floor = noVersion
		out.add(x, "the floor %v is forgotten", s.floor)
	}
}
