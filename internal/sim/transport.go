package sim

import (
	"slices"
	"sync/atomic"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// A logState is the log. A log that was made anew has another generation.
type logState struct {
	generation int
	first      uint64 // sequence number of msgs[0]
	msgs       [][]byte
	paused     bool // appends fail
}

func (l *logState) end() uint64 { return l.first + uint64(len(l.msgs)) } // of the next message

// A Reader reads the log.
type Reader struct {
	proc       *Process
	generation int
	next       uint64
	sound      bool // what it returns can be taken by who opened it
	begun      bool // it must go on where it was
	overlap    bool // the next message was taken before
	closed     atomic.Bool
}

// heard learns who sends as which origin, and when, and returns the message's number.
func (w *World) heard(c *Call) uint64 {
	var m wire.Message
	if err := wire.Decode(c.Msg, &m); err != nil {
		return 0
	}
	w.origins[m.Origin] = c.proc.ID
	if id := [2]uint64{m.Origin, m.Seq}; w.sent[id] == 0 { // else it is tried again
		w.sent[id] = c.sent
	}
	return m.Seq
}

// describe returns a message as text that does not depend on random names.
func (w *World) describe(m *wire.Message) string {
	s := m.Kind.String()
	for _, e := range m.Entries {
		s += " " + string(e.Key) + "@" + itoa(e.Version)
		if e.Deleted {
			s += " deleted"
		}
	}
	return itoa(uint64(w.origins[m.Origin])) + "-" + itoa(m.Seq) + " " + s
}

func (w *World) append(c *Call) (over bool) {
	f, l := &w.Faults, &w.log
	if l.paused || w.Chance(f.AppendFails) {
		c.Failure = Broken
		return true
	}
	var m wire.Message
	if wire.Decode(c.Msg, &m) == nil {
		// A message that is tried again never gets the place in a new log that it had in
		// an old one: nothing could tell that from an unbroken log.
		id := [2]uint64{m.Origin, m.Seq}
		if place := w.places[id]; place == l.end() {
			l.msgs = append(l.msgs, w.foreign(place))
		}
		w.places[id] = l.end()
	}
	c.Seq = l.end()
	msg := c.Msg
	if w.Chance(f.LogCorrupt) {
		msg = w.corrupt(msg)
	}
	l.msgs = append(l.msgs, msg)
	w.noteLogged(c.Msg, c.Seq)
	if w.Chance(f.AppendTwice) {
		l.msgs = append(l.msgs, c.Msg)
	}
	if w.Chance(f.AckLost) {
		c.Failure = Broken
	}
	return false
}

func (w *World) noteLogged(msg []byte, seq uint64) {
	var m wire.Message
	if wire.Decode(msg, &m) == nil {
		w.Trace("logged %d: %s", seq, w.describe(&m))
	}
}

// PauseLog makes all appends fail until it is called again.
func (w *World) PauseLog(paused bool) {
	w.log.paused = paused
	w.Trace("log paused: %t", paused)
}

// LogPaused reports whether all appends fail.
func (w *World) LogPaused() bool { return w.log.paused }

// PurgeLog removes the oldest messages.
func (w *World) PurgeLog() {
	l := &w.log
	n := w.rng.IntN(len(l.msgs) + 1)
	l.first += uint64(n)
	l.msgs = l.msgs[n:]
	w.Trace("log purged to %d", l.first)
}

// RecreateLog replaces the log by another one, which may be as long, but has
// messages that concern nobody.
func (w *World) RecreateLog() {
	l := &w.log
	others := w.rng.IntN(int(l.end())+2) * w.rng.IntN(2)
	*l = logState{generation: l.generation + 1, first: 1, paused: l.paused}
	for range others {
		l.msgs = append(l.msgs, w.foreign(uint64(len(l.msgs)+1)))
	}
	w.Trace("log made anew, with %d messages", others)
}

// foreign returns a message of another cache.
func (w *World) foreign(seq uint64) []byte {
	b, err := wire.Append(nil, &wire.Message{Kind: wire.KindInvalidateAll, CacheID: 1, Origin: 1, Seq: seq})
	if err != nil {
		panic(err)
	}
	return b
}

func (w *World) open(c *Call) (over bool) {
	l := &w.log
	r := &Reader{proc: c.proc, generation: l.generation, next: c.From, sound: true, overlap: c.From != 0, begun: c.From != 0}
	switch {
	case w.Chance(w.Faults.OpenFails):
		c.Failure = Broken
		return true
	case c.From == 0:
		r.next = l.end()
		w.Check.disconnected(c.proc.ID)
	case c.From < l.first || c.From >= l.end():
		if w.Chance(w.Faults.OpenElsewhere) { // as a server does that was asked for what it does not have
			r.next, r.sound = l.first, false
			break
		}
		c.Failure = Gap
		return true
	}
	if c.From != 0 && c.proc.generation != l.generation {
		r.sound = false // what it has read last was in another log
	}
	c.Reader = r
	return false
}

// Close ends the reader.
func (r *Reader) Close() { r.closed.Store(true) }

// readable reports whether Next of r can return.
func (w *World) readable(r *Reader) bool {
	l := &w.log
	return r.closed.Load() || r.generation != l.generation || r.next < l.end()
}

func (w *World) next(c *Call) {
	f, l, r := &w.Faults, &w.log, c.Reader
	switch {
	case r.closed.Load(), r.generation != l.generation, w.Chance(f.ReaderFails):
		c.Failure = Broken
		return
	case r.next < l.first:
		c.Failure = Gap
		w.Check.disconnected(c.proc.ID)
		return
	case w.Chance(f.ReaderJumps) && r.next+1 < l.end():
		r.next++
		r.sound = r.sound && !r.begun // who opened it at the end does not know where that was
		w.Trace("%d: its reader jumps to %d", c.proc.ID, r.next)
	}
	c.Seq, c.Msg = r.next, l.msgs[r.next-l.first]
	c.proc.generation = r.generation
	r.next++
	switch {
	case !r.sound:
		w.Check.disconnected(c.proc.ID)
	case !r.overlap:
		w.told(c.proc, c.Msg, true)
	}
	r.overlap, r.begun = false, true
}

// corrupt returns msg with one bit changed.
func (w *World) corrupt(msg []byte) []byte {
	msg = slices.Clone(msg)
	msg[w.rng.IntN(len(msg))] ^= 1 << w.rng.IntN(8)
	w.Trace("a bit is changed")
	return msg
}

// told notes what a process learns by a message. It trusts the log, or, if there
// is none, the hint.
func (w *World) told(p *Process, msg []byte, log bool) {
	c := w.Check
	trusted := log == c.Logged
	var m wire.Message
	if wire.Decode(msg, &m) != nil {
		if trusted {
			c.Suspect(p.ID, "")
		}
		return
	}
	w.Trace("%d: reads %s", p.ID, w.describe(&m))
	from, known := w.origins[m.Origin]
	if !known {
		return
	}
	if trusted {
		c.numbered(p.ID, from, m.Seq, !log)
	}
	switch {
	case from == p.ID:
		if trusted && m.Kind == wire.KindHello {
			c.returned(p.ID, w.sent[[2]uint64{m.Origin, m.Seq}])
		}
		return
	case m.Kind == wire.KindHello && trusted:
		c.greeted(p.ID, from)
	case m.Kind == wire.KindInvalidateAll && trusted:
		c.Thrown(p.ID)
	}
	for _, e := range m.Entries {
		switch {
		case e.Stage == wire.Begun, e.Stage == wire.Void: // nothing has changed by it
		case e.Version != 0:
			c.Raise(p.ID, string(e.Key), Mark{e.Version, e.Deleted}, Told)
		default:
			c.Suspect(p.ID, string(e.Key))
		}
	}
}

// A Sub is a subscription to the hint.
type Sub struct {
	proc    *Process
	receive func([]byte)
	lost    func(string)
	queue   [][]byte
	down    bool // nothing comes, and the subscriber knows
	deaf    bool // nothing comes
	stopped atomic.Bool
}

// Subscribe calls receive for each message of the hint, and lost when there may
// be some that did not come. The calls are the scheduler's.
func (p *Process) Subscribe(receive func([]byte), lost func(string)) (stop func()) {
	s := &Sub{proc: p, receive: receive, lost: lost}
	p.w.subs = append(p.w.subs, s)
	p.w.hintLost(s)
	return func() { s.stopped.Store(true) }
}

func (w *World) unsubscribe(p *Process) {
	w.subs = slices.DeleteFunc(w.subs, func(s *Sub) bool { return s.proc == p })
}

func (w *World) publish(c *Call) (over bool) {
	f := &w.Faults
	if w.Chance(f.PublishFails) {
		c.Failure = Broken
		return true
	}
	for _, s := range w.subs {
		if s.down || s.deaf || w.Chance(f.HintLost) {
			continue
		}
		s.queue = append(s.queue, c.Msg)
		if w.Chance(f.HintTwice) {
			s.queue = append(s.queue, c.Msg)
		}
	}
	return false
}

// deliver gives s its next message, or one that overtakes it.
func (w *World) deliver(s *Sub) {
	if s.stopped.Load() || len(s.queue) == 0 {
		return
	}
	i := 0
	if w.Chance(w.Faults.HintReordered) {
		i = w.rng.IntN(len(s.queue))
	}
	msg := s.queue[i]
	s.queue = slices.Delete(s.queue, i, i+1)
	if w.Chance(w.Faults.HintCorrupt) {
		msg = w.corrupt(msg)
	}
	s.receive(slices.Clone(msg))
	w.told(s.proc, msg, false)
}

// hintLost notes that s cannot know what it misses.
func (w *World) hintLost(s *Sub) {
	if !w.Check.Logged {
		w.Check.disconnected(s.proc.ID)
	}
}

// Subs returns the subscriptions of living processes.
func (w *World) Subs() []*Sub {
	return slices.DeleteFunc(slices.Clone(w.subs), func(s *Sub) bool { return s.stopped.Load() || s.proc.Frozen || s.proc.Dead })
}

// Cut takes the link of s away, or gives it back. Unless silently, it is told.
func (w *World) Cut(s *Sub, cut, silently bool) {
	w.Trace("%d: link cut %t silently %t", s.proc.ID, cut, silently)
	if silently {
		s.deaf = cut
		return
	}
	s.down = cut
	w.hintLost(s)
	if cut {
		if w.rng.IntN(2) == 0 { // or it is delivered all the same
			s.queue = nil
		}
		s.lost("the link is down")
		return
	}
	s.lost("the link is up again")
}

// IsCut reports whether nothing comes through s.
func (s *Sub) IsCut() (cut, silently bool) { return s.down || s.deaf, s.deaf }

// Proc returns the subscriber.
func (s *Sub) Proc() *Process { return s.proc }
