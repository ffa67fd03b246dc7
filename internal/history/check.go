package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// A Violation is an event that breaks a promise.
type Violation struct {
	Rule  string
	Event Event
	Why   string
}

func (v Violation) String() string { return v.Rule + ": " + v.Event.String() + ": " + v.Why }

// A Rule is a promise that a history can be checked for. Its cost is that of
// sorting the events.
type Rule struct {
	Name  string
	check func(events []Event) []Violation
}

// The rules, named as the invariants in DESIGN.md.
var (
	// Monotonic (I1): of two reads at one replica the later one returns no
	// older state.
	Monotonic = Rule{"I1 monotonic reads", func(events []Event) []Violation {
		return belowFloor(events, "was read here before", here, isRead, isRead)
	}}

	// Told (I3): a read that begins after its replica was told of a version
	// returns no less.
	Told = Rule{"I3 told", func(events []Event) []Violation {
		return belowFloor(events, "was told here before", here, is(Invalidate), isRead)
	}}

	// ReadYourWrites (I4): a read returns no less than what was written before
	// through its replica.
	ReadYourWrites = Rule{"I4 read your writes", func(events []Event) []Violation {
		return belowFloor(events, "was written here before", here, is(Write), isRead)
	}}

	// AtLeast (I5): a read returns the version that it asked for, or a later
	// one, or fails. An absence without a version is let through.
	AtLeast = Rule{"I5 at least", tooOld}

	// Acknowledged (I8): a Linearizable read returns no less than any write that
	// was acknowledged, and any state that a Linearizable read has returned,
	// before it began, wherever that was.
	Acknowledged = Rule{"I8 acknowledged", func(events []Event) []Violation {
		return belowFloor(events, "was acknowledged before", anywhere,
			func(e *Event) bool { return e.Kind == Write || e.Kind == Change || isCurrent(e) }, isCurrent)
	}}

	// NoInvention (I9): every state that was read was written so, by an
	// operation that had begun.
	NoInvention = Rule{"I9 no invention", invented}

	// Chain (I10): the writes of a key form a chain, each based on the one
	// before it, in an order that agrees with when they happened. So no update
	// is lost.
	Chain = Rule{"I10 chain", unchained}

	// Ages (I18): what a read returned had not been replaced longer ago than
	// the age that came with it.
	Ages = Rule{"I18 ages", tooYoung}
)

// All is every rule.
var All = []Rule{Monotonic, Told, ReadYourWrites, AtLeast, Acknowledged, NoInvention, Chain, Ages}

// Check returns what breaks the rules.
func Check(events []Event, rules []Rule) (all []Violation) {
	for _, r := range rules {
		for _, v := range r.check(events) {
			v.Rule = r.Name
			all = append(all, v)
		}
	}
	return all
}

func isRead(e *Event) bool    { return e.Kind == Read }
func isCurrent(e *Event) bool { return e.Kind == Read && e.Linearizable }

func is(k Kind) func(*Event) bool { return func(e *Event) bool { return e.Kind == k } }

// A place is where a floor holds: a key, at a replica or anywhere.
type place struct {
	replica int
	key     string
}

func here(e *Event) place     { return place{e.Replica, e.Key} }
func anywhere(e *Event) place { return place{-1, e.Key} }

// older reports whether a's state comes before b's. A deletion with the version
// of the row that it removed comes after that row.
func older(a, b *Event) bool {
	if a.Version != b.Version {
		return a.Version < b.Version
	}
	return !a.Absent && b.Absent
}

// A floor is what was known of a place, by the time from which it was.
type floor []*Event // by End, each the newest so far

// floors returns the floors that the raising events set.
func floors(events []Event, at func(*Event) place, raises func(*Event) bool) map[place]floor {
	all := map[place]floor{}
	for i := range events {
		if e := &events[i]; e.Outcome == Done && raises(e) {
			all[at(e)] = append(all[at(e)], e)
		}
	}
	for p, f := range all {
		slices.SortStableFunc(f, func(a, b *Event) int { return cmp.Compare(a.End, b.End) })
		for i := 1; i < len(f); i++ {
			if older(f[i], f[i-1]) {
				// The end of f[i] no longer matters: a newer state was there.
				f[i] = &Event{Kind: f[i-1].Kind, Version: f[i-1].Version, Absent: f[i-1].Absent, End: f[i].End}
			}
		}
		all[p] = f
	}
	return all
}

// before returns the newest event that had ended before the moment, or nil.
func (f floor) before(moment int64) *Event {
	n := sort.Search(len(f), func(i int) bool { return f[i].End >= moment })
	if n == 0 {
		return nil
	}
	return f[n-1]
}

// belowFloor returns the checked events whose state is older than one that had
// been raised at the same place before they began.
func belowFloor(events []Event, why string, at func(*Event) place, raises, checked func(*Event) bool) (bad []Violation) {
	all := floors(events, at, raises)
	for i := range events {
		e := &events[i]
		if e.Outcome != Done || !checked(e) || undated(e) {
			continue
		}
		if f := all[at(e)].before(e.Begin); f != nil && older(e, f) {
			bad = append(bad, Violation{Event: *e, Why: fmt.Sprintf("version %d %s", f.Version, why)})
		}
	}
	return bad
}

// undated reports whether e is an absence without a version, which can be
// compared with nothing.
func undated(e *Event) bool { return e.Absent && e.Version == 0 }

func tooOld(events []Event) (bad []Violation) {
	for _, e := range events {
		if e.Kind == Read && e.Outcome == Done && e.Version < e.AtLeast && !undated(&e) {
			bad = append(bad, Violation{Event: e, Why: fmt.Sprintf("wanted at least %d", e.AtLeast)})
		}
	}
	return bad
}

func tooYoung(events []Event) (bad []Violation) {
	all := floors(events, anywhere, func(e *Event) bool { return e.Kind == Write || e.Kind == Change })
	for i := range events {
		e := &events[i]
		if e.Kind != Read || e.Outcome != Done || e.Age < 0 || undated(e) {
			continue
		}
		if f := all[anywhere(e)].before(e.Begin - int64(e.Age)); f != nil && older(e, f) {
			bad = append(bad, Violation{Event: *e, Why: fmt.Sprintf("version %d was there more than %v before", f.Version, e.Age)})
		}
	}
	return bad
}

// A version names one state of one key.
type version struct {
	key string
	n   uint64
}

func invented(events []Event) (bad []Violation) {
	written := map[version]*Event{}
	var unknown []*Event
	for i := range events {
		switch e := &events[i]; {
		case e.Kind != Write && e.Kind != Change:
		case e.Outcome == Done:
			written[version{e.Key, e.Version}] = e
		case e.Outcome == Unknown:
			unknown = append(unknown, e)
		}
	}
	for i := range events {
		e := &events[i]
		if e.Kind != Read || e.Outcome != Done || undated(e) {
			continue
		}
		if why := notWritten(e, written[version{e.Key, e.Version}], unknown); why != "" {
			bad = append(bad, Violation{Event: *e, Why: why})
		}
	}
	return bad
}

// notWritten says why the state that e read cannot have come from w, which has
// its version, or from a write of unknown outcome.
func notWritten(e, w *Event, unknown []*Event) string {
	switch {
	case w == nil:
		for _, u := range unknown {
			if u.Key == e.Key && u.Value == e.Value && u.Absent == e.Absent && u.Base < e.Version && u.Begin <= e.End {
				return ""
			}
		}
		return "nobody has written it"
	case w.Value != e.Value || w.Absent != e.Absent:
		return fmt.Sprintf("what was written is %v", *w)
	case w.Begin > e.End:
		return fmt.Sprintf("it was written later, by %v", *w)
	default:
		return ""
	}
}

func unchained(events []Event) (bad []Violation) {
	done, unknown := map[string][]*Event{}, map[string][]*Event{}
	for i := range events {
		switch e := &events[i]; {
		case e.Kind != Write && e.Kind != Change:
		case e.Outcome == Done:
			done[e.Key] = append(done[e.Key], e)
		case e.Outcome == Unknown:
			unknown[e.Key] = append(unknown[e.Key], e)
		}
	}
	for key, writes := range done {
		slices.SortStableFunc(writes, func(a, b *Event) int { return cmp.Compare(a.Version, b.Version) })
		before := &Event{Absent: true} // no such key
		for _, e := range writes {
			if why := notNext(before, e, unknown[key]); why != "" {
				bad = append(bad, Violation{Event: *e, Why: why})
			}
			before = e
		}
	}
	return append(bad, belowFloor(events, "was written before it began", anywhere, isWritten, isWritten)...)
}

func isWritten(e *Event) bool { return e.Kind == Write || e.Kind == Change }

// notNext says why next cannot be the known write that follows before.
func notNext(before, next *Event, unknown []*Event) string {
	switch {
	case next.Version == before.Version:
		return fmt.Sprintf("the version is also that of %v", *before)
	case next.Base >= next.Version:
		return "the base is not older"
	case next.Base == base(before), bridged(before, next, unknown):
		return ""
	default:
		return fmt.Sprintf("the state before it is that of %v", *before)
	}
}

// base is what a write that replaces e's state is based on.
func base(e *Event) uint64 {
	if e.Absent {
		return 0
	}
	return e.Version
}

// bridged reports whether writes of unknown outcome can have led from before to
// next: the first of them is based on before, each other one on a version in
// between, and the last one wrote what next is based on. Their versions are not
// known, but their bases are. If next found no such key, one deletion that came
// after before is enough, whatever was between.
func bridged(before, next *Event, unknown []*Event) bool {
	at := base(before)
	if next.Base == 0 {
		return slices.ContainsFunc(unknown, func(u *Event) bool {
			return u.Absent && u.Base >= at && u.Begin <= next.End
		})
	}
	for at != next.Base {
		found, step := false, next.Base
		for _, u := range unknown {
			found = found || u.Base == at && u.Begin <= next.End
			if u.Base > at {
				step = min(step, u.Base)
			}
		}
		if !found {
			return false
		}
		at = step
	}
	return true
}
