package sim

import (
	"slices"
	"sort"
)

// A State is one state of a key in the source.
type State struct {
	Version uint64
	Absent  bool
	Value   int

	At   int64 // when it was committed
	Gone int64 // when it was replaced, or Never
	By   int   // the process that wrote it
	Tag  int   // names the write
}

// Mark returns the state's place in the history of its key.
func (s State) Mark() Mark { return Mark{s.Version, s.Absent} }

// A Mark is a place in the history of a key. The zero Mark is before all.
type Mark struct {
	Version uint64
	Absent  bool
}

// Before reports whether m is older than n.
func (m Mark) Before(n Mark) bool {
	if m.Version != n.Version {
		return m.Version < n.Version
	}
	return !m.Absent && n.Absent
}

// A Source is the source of truth, with everything that it ever was.
type Source struct {
	// Undated makes it report absences without a version.
	Undated bool

	w    *World
	keys map[string][]State // oldest first; never empty once the key is known
	done map[[16]byte]uint64
}

func newSource(w *World) *Source {
	return &Source{w: w, keys: map[string][]State{}, done: map[[16]byte]uint64{}}
}

// History returns the states of key, oldest first. The first is that there was
// none.
func (s *Source) History(key string) []State {
	h := s.keys[key]
	if h == nil {
		h = []State{{Absent: true, At: -1, Gone: Never}}
		s.keys[key] = h
	}
	return h
}

// Current returns the state of key.
func (s *Source) Current(key string) State {
	h := s.History(key)
	return h[len(h)-1]
}

// as returns the state of key as it was at a moment.
func (s *Source) as(key string, at int64) State {
	h := s.History(key)
	n := sort.Search(len(h), func(i int) bool { return h[i].At > at })
	return h[max(n-1, 0)]
}

// Find returns the state of key with the version.
func (s *Source) Find(key string, version uint64) (State, bool) {
	h := s.History(key)
	n := sort.Search(len(h), func(i int) bool { return h[i].Version >= version })
	if n == len(h) || h[n].Version != version {
		return State{}, false
	}
	return h[n], true
}

// Set changes key, whatever it is. The value names the write, also of a deletion.
func (s *Source) Set(key string, value int, absent bool, by int) State {
	h := s.History(key)
	now := s.w.Now()
	last := &h[len(h)-1]
	last.Gone = now
	n := State{Version: last.Version + 1 + uint64(s.w.rng.IntN(3)), Absent: absent, At: now, Gone: Never, By: by, Tag: value}
	if !absent {
		n.Value = value
	}
	s.keys[key] = append(h, n)
	s.w.Trace("%d: committed %s@%d=%d absent %t", by, key, n.Version, n.Value, absent)
	return n
}

// Written returns the state that a write has left, and the one before it.
func (s *Source) Written(key string, tag int) (state, before State, ok bool) {
	h := s.History(key)
	for i := len(h) - 1; i > 0; i-- {
		if h[i].Tag == tag {
			return h[i], h[i-1], true
		}
	}
	return State{}, State{}, false
}

// compareAndSet is a conditional write.
func (s *Source) compareAndSet(c *Call) (State, bool) {
	cur := s.Current(c.Key)
	base := cur.Version
	if cur.Absent {
		base = 0
	}
	if base != c.Base {
		return cur, false
	}
	n := s.Set(c.Key, c.Value, c.Absent, c.proc.ID)
	if s.w.Check.Committed {
		s.w.Check.Acknowledged(c.Key, n.Mark())
	}
	s.done[c.Op] = n.Version
	return n, true
}

func (s *Source) outcome(op [16]byte) (uint64, bool) {
	v, ok := s.done[op]
	return v, ok
}

// seen returns state as a reader is told of it.
func (s *Source) seen(state State) State {
	if state.Absent && s.Undated {
		state.Version = 0
	}
	return state
}

// load reads what a Load or LoadMany asks for.
func (w *World) load(c *Call) (over bool) {
	f := &w.Faults
	switch {
	case w.down && c.Client == 0, w.Chance(f.LoadFails):
		c.Failure = Broken
		return true
	case c.Client == 0 && w.Chance(f.LoadPanics):
		c.Failure = Panic
		return true
	}
	at := w.Now()
	if !c.Strong && w.Lag > 0 {
		at -= w.rng.Int64N(int64(w.Lag) + 1)
	}
	if c.Kind == Load {
		c.State = w.Source.seen(w.Source.as(c.Key, at))
		return false
	}
	c.States = make([]State, len(c.Keys))
	if w.Chance(f.BulkLacks) {
		c.Keys, c.States = c.Keys[1:], c.States[1:]
	}
	for i, key := range c.Keys {
		c.States[i] = w.Source.seen(w.Source.as(key, at))
	}
	return false
}

// TakeSourceDown makes everything that is asked of the source fail until it is
// called again; changes that others make are made.
func (w *World) TakeSourceDown(down bool) {
	w.down = down
	w.Trace("source down: %t", down)
}

// SourceDown reports whether everything that is asked of the source fails.
func (w *World) SourceDown() bool { return w.down }

// A lateWrite is a Write whose caller has had an answer that says nothing.
type lateWrite struct {
	call  *Call
	until int64
}

// write does what a Write or a Change asks for.
func (w *World) write(c *Call) (over bool) {
	f := &w.Faults
	if c.Kind == Change {
		c.State = w.Source.Set(c.Key, c.Value, c.Absent, c.proc.ID)
		return false
	}
	switch {
	case w.Chance(f.WriteRefused):
		c.Failure = Unavailable
		return true
	case w.down, w.Chance(f.WriteLost), // it did not get there
		w.Check.Committed && w.Now() >= c.sent+int64(w.Doubt): // or too late
		c.Failure = Broken
		return true
	case w.Chance(f.WriteLate):
		c.Failure = Broken
		w.later(c)
		return true
	}
	var ok bool
	c.State, ok = w.Source.compareAndSet(c)
	if !ok {
		c.Failure = Conflict
		c.State = w.Source.seen(c.State)
		return false
	}
	if w.Chance(f.AnswerLost) {
		c.Failure = Broken
		if w.Chance(300) {
			c.Failure = Panic
		}
	}
	return false
}

// later lets a Write take effect later, if its time is not over by then.
func (w *World) later(c *Call) {
	w.late = append(w.late, &lateWrite{c, c.sent + int64(w.Doubt)})
}

func (w *World) land(l *lateWrite) {
	w.late = slices.DeleteFunc(w.late, func(o *lateWrite) bool { return o == l })
	if w.Now() >= l.until {
		w.Trace("op %d is over", l.call.op)
		return
	}
	_, ok := w.Source.compareAndSet(l.call)
	w.Trace("op %d lands late: %t", l.call.op, ok)
}
