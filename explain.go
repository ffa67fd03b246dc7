package tidemark

import (
	"fmt"
	"strings"
	"time"
)

// An Explanation is all that a cache knows of one key, for people who ask why a
// read returned what it did.
type Explanation struct {
	Resident bool // memory has an entry
	Served   bool // and Read would return it at Any, an absence as such

	// Of the entry, if Resident.

	Version Version
	Absent  bool
	Cause   string        // what brought it: load, put, fill or write
	Age     time.Duration // as Entry.Age
	Expires time.Duration // until it expires; 0 means never, negative that it has
	Overdue bool          // it has expired, and StaleWhileRevalidate or StaleIfError may still let it be served
	TooOld  bool          // its age is above MaxStale, or not known
	Suspect bool          // messages may have been missed since it was installed
	IfError bool          // and StaleIfError may let it be served all the same, while the source does not answer
	Thrown  bool          // InvalidateAll has thrown it away
	Policy  string        // window, queued or offered: where admission has it

	// TideMark is the highest mark known of the key. If Shared, it is the
	// highest of several keys that share a slot: this key's is not above it.
	TideMark Version
	Deleted  bool          // the mark is a deletion
	SetBy    string        // what set it: load, put, fill, write, invalidate, message, audit, nothing
	SetAgo   time.Duration // when, unless the entry itself is the mark
	Shared   bool
	Blind    bool // a change without a version has made bare Puts here unprovable

	Loading  bool // a load is under way that readers may join
	Fences   int  // loads, fills and writes under way
	InDoubt  int  // writes whose outcome is not known: the key is not cached
	CutOff   bool // this replica does not hear the others
	Bypassed bool // SetBypass is on
	Shadow   bool // Options.Shadow is set

	// Record is what happened to the key here lately, oldest first, up to 64, as
	// far as it is remembered; only with an auditor. Now and then another key of
	// the same hash is in it.
	Record []Happening `json:",omitempty"`
}

// Explain returns what is known of key at this moment. It is for diagnosis: it
// takes the shard's lock, and counts as no read.
func (c *Cache[K, V]) Explain(key K) Explanation {
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	at := c.moment()
	x := Explanation{CutOff: at.era&eraCutOff != 0, Bypassed: at.era&eraBypass != 0, Shadow: at.era&eraShadow != 0}
	x.Record = s.recorder.ofLocked(hash, c.clock.began)
	if p := s.pending[key]; p != nil {
		x.Loading, x.Fences, x.InDoubt = p.flight != nil, len(p.fences), p.doubts
	}
	slot := s.tide.slot(hash)
	x.TideMark, x.Deleted, x.SetBy = slot.version, slot.absent, slot.by.String()
	x.Shared, x.Blind = slot.hash != hash && slot.mark() != mark{}, slot.blind
	if slot.mark() != (mark{}) {
		x.SetAgo = time.Duration(at.now() - slot.at)
	}
	var e entry[V]
	fresh := c.freshness()
	p, ok := s.look(hash, key, &e.value, &e.facts)
	if !ok {
		return x
	}
	pub := e.public(fresh, c.moments())
	x.Resident, x.Version, x.Absent, x.Age = true, pub.Version, pub.Absent, pub.Age
	current := e.era == at.era && !e.expired(at.now())
	x.Served = current && c.admits(Any, true, &e.facts, fresh, c.moments())
	x.TooOld = current && !x.Served
	x.Cause, x.Policy = e.cause.String(), p.Head.state().String()
	x.Thrown = generation(e.era) != generation(at.era)
	x.Suspect = !x.Thrown && e.era != at.era&^eraSwitchedOff
	x.Overdue = e.era == at.era && e.expired(at.now()) && c.overdue(Any, &e.facts, fresh, c.moments(), c.opts.grace())
	if vouched, trust := c.trusted(at.era, &e.facts, fresh); trust == trustSuspect {
		x.IfError = c.overdue(Any, &e.facts, vouched, c.moments(), c.opts.StaleIfError)
	}
	if e.expiresAt != 0 {
		x.Expires = time.Duration(e.expiresAt - at.now())
	}
	x.TideMark, x.Deleted, x.SetBy, x.SetAgo, x.Shared = e.version, e.absent, x.Cause, 0, false
	return x
}

// String says it in words, one line.
func (x Explanation) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	switch {
	case !x.Resident:
		say("no entry")
	case x.Absent:
		say("absent as of version %d", x.Version)
	default:
		say("version %d", x.Version)
	}
	if x.Resident {
		say(" by %s (%s)", x.Cause, x.Policy)
		switch {
		case x.Bypassed:
			say(", not served: bypassed")
		case x.Shadow:
			say(", not served: in shadow mode")
		case x.CutOff:
			say(", not served: cut off from the replicas")
		case x.Thrown:
			say(", not served: thrown away by InvalidateAll")
		case x.Suspect:
			say(", not served: suspect until the source confirms it")
		case x.TooOld:
			say(", not served: older than MaxStale, or nobody knows how old")
		case x.Overdue:
			say(", expired: served only as stale")
		case x.Expires < 0:
			say(", not served: expired")
		}
		if x.IfError {
			say(", but lent as stale while the source does not answer")
		}
	}
	say("; tide mark %d by %s", x.TideMark, x.SetBy)
	if x.Shared {
		say(" (perhaps of another key)")
	}
	if x.Blind {
		say("; changed without a version, so that a bare Put proves nothing")
	}
	if x.Fences > 0 {
		say("; operations under way: %d", x.Fences)
	}
	if x.InDoubt > 0 {
		say("; writes in doubt: %d", x.InDoubt)
	}
	return b.String()
}
