// Package history records what concurrent clients of caches have seen and done,
// and checks it against the promises that can be checked in one pass: it never
// searches for an order of the operations, so it is cheap enough for histories
// of millions. It is for tests only.
//
// A test gives each of its goroutines a [Session], which notes every operation
// with the moments when it began and ended, and hands what they have noted to
// [Check] when all of them are done:
//
//	var r history.Recorder
//	s := r.Session(replica)
//	e := s.Begin(history.Event{Kind: history.Read, Key: "k"})
//	entry, err := cache.Load(ctx, "k")
//	e.Version, e.Value = uint64(entry.Version), entry.Value
//	s.End(e, history.Done)
//	...
//	for _, v := range history.Check(r.Events(), history.All) { t.Error(v) }
//
// Operations are compared only if one had ended before the other began; of
// operations that overlapped either may have come first.
package history

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// A Kind is what an operation is.
type Kind uint8

const (
	// Read returned a state.
	Read Kind = iota + 1

	// Write replaced the state at Base through a cache, or tried to.
	Write

	// Change replaced the state at Base behind the caches' back. The version
	// counts as acknowledged by the source from End on.
	Change

	// Invalidate told a replica that the key has reached Version.
	Invalidate
)

var kindNames = [...]string{"nothing", "read", "write", "change", "invalidate"}

func (k Kind) String() string { return kindNames[k] }

// An Outcome is how an operation ended.
type Outcome uint8

const (
	// Unknown: nobody can tell whether it took effect. An operation that never
	// ended is of this kind.
	Unknown Outcome = iota

	// Done: it took effect between Begin and End.
	Done

	// Failed: it had no effect and returned no state.
	Failed
)

// Never is the End of an operation that nobody has seen ending.
const Never = math.MaxInt64

// An Event is one operation.
type Event struct {
	Kind    Kind
	Outcome Outcome
	Client  int // who called
	Replica int // whom
	Key     string

	// Version, Absent and Value are the state that was read or written.
	// Version 0 is no version: of a write in doubt, or of an absence that the
	// source does not date.
	Version uint64
	Absent  bool
	Value   uint64 // the value or a fingerprint; 0 if Absent

	// Base is the version that a Write or a Change replaced. It is 0 if there
	// was no such key, also if the key had been deleted.
	Base uint64

	// Of a Read.

	Linearizable bool          // it asked for what is current
	AtLeast      uint64        // it asked for this version or a later one
	Age          time.Duration // how old the cache says the state may be; negative: no bound

	// Begin and End are in nanoseconds since the Recorder's first Session.
	Begin, End int64
}

func (e Event) String() string {
	state := fmt.Sprintf("%s@%d=%d", e.Key, e.Version, e.Value)
	if e.Absent {
		state = fmt.Sprintf("%s@%d absent", e.Key, e.Version)
	}
	end := fmt.Sprint(e.End)
	if e.End == Never {
		end = "?"
	}
	if e.Kind == Write || e.Kind == Change {
		state += fmt.Sprintf(" on %d", e.Base)
	}
	return fmt.Sprintf("client %d at replica %d: %s %s [%d, %s]", e.Client, e.Replica, e.Kind, state, e.Begin, end)
}

// A Recorder collects the events of its sessions. The zero value is ready; its
// methods are safe for concurrent use.
type Recorder struct {
	mu       sync.Mutex // guards everything below
	began    time.Time
	sessions []*Session
}

// A Session notes the operations of one client. It is used by one goroutine,
// and takes no lock, so that it orders nothing that was not ordered without it.
type Session struct {
	began   time.Time
	client  int
	replica int
	events  []*Event
}

// Session begins a session of a new client with a replica.
func (r *Recorder) Session(replica int) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		r.began = time.Now()
	}
	s := &Session{began: r.began, client: len(r.sessions), replica: replica}
	r.sessions = append(r.sessions, s)
	return s
}

// Begin notes that the operation e begins now. What is not known yet may be
// filled in until End; until then the event is Unknown and ends Never.
func (s *Session) Begin(e Event) *Event {
	e.Client, e.Replica = s.client, s.replica
	e.Outcome, e.Begin, e.End = Unknown, int64(time.Since(s.began)), Never
	s.events = append(s.events, &e)
	return &e
}

// End notes that e has ended now. The end of an Unknown operation is not noted,
// for its effect may yet come.
func (s *Session) End(e *Event, o Outcome) {
	e.Outcome = o
	if o != Unknown {
		e.End = int64(time.Since(s.began))
	}
}

// Events returns what all sessions have noted. No session may be in use.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Event
	for _, s := range r.sessions {
		for _, e := range s.events {
			all = append(all, *e)
		}
	}
	return all
}
