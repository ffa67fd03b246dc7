package sim

import (
	"fmt"
	"sort"
	"time"
)

// A Cause is why a process must not serve less than a floor.
type Cause string

// The causes, with the invariants that they are of.
const (
	Returned Cause = "I1 monotonic reads"
	Told     Cause = "I3 told"
	Wrote    Cause = "I4 read your writes"
)

// A Checker holds what is read against what the source was, while it happens:
// each check costs the search for a moment in the history of one key. Moments
// are those of [World.Now].
type Checker struct {
	// Logged says that changes are announced by a log, so that an age counts
	// acknowledged changes. Without one it counts from the load, so that it
	// counts all.
	Logged bool

	// Committed says that writes are announced before they are committed, so that
	// a change counts as acknowledged once it is.
	Committed bool

	Reads      int      // how many were checked
	Violations []string // of promises, in the order in which they were found

	// Beat is how often a process says hello through the hint, if that is all that
	// connects it; otherwise 0.
	Beat time.Duration

	w      *World
	trusts map[int]*trust
	since  map[place]int64 // before that moment nobody knew what the key has become
	floors map[place]floor
	acks   map[string][]ack
	greets map[[2]int]bool
}

type place struct {
	proc int
	key  string
}

type floor struct {
	mark Mark
	why  Cause
}

// A trust is what a process may conclude about what it has in memory.
type trust struct {
	connected bool  // its own hello has come back since it last could not know
	cut       int64 // when it last could not know
	since     int64 // what is in memory must have been loaded after this
	thrown    int64 // and after this, even if it is served flagged
	heard     int64 // when its own hello last came back
	origins   map[int]uint64
}

// An ack is when everybody was to know that a key had reached a mark.
type ack struct {
	at   int64
	mark Mark // the highest so far
}

func newChecker(w *World) *Checker {
	return &Checker{w: w, floors: map[place]floor{}, acks: map[string][]ack{}, trusts: map[int]*trust{}, since: map[place]int64{}, greets: map[[2]int]bool{}}
}

// Fail notes that a promise was broken.
func (c *Checker) Fail(rule, format string, args ...any) {
	c.Violations = append(c.Violations, fmt.Sprintf("step %d: %s: %s", c.w.step, rule, fmt.Sprintf(format, args...)))
	c.w.Trace("VIOLATION %s: %s", rule, fmt.Sprintf(format, args...))
}

// Raise notes that a process must not serve less than m from now on.
func (c *Checker) Raise(proc int, key string, m Mark, why Cause) {
	p := place{proc, key}
	if c.floors[p].mark.Before(m) {
		c.floors[p] = floor{m, why}
	}
}

// Acknowledged notes that whoever changed key to m was told that it is done.
func (c *Checker) Acknowledged(key string, m Mark) {
	all := c.acks[key]
	if n := len(all); n > 0 && !all[n-1].mark.Before(m) {
		return
	}
	c.acks[key] = append(all, ack{c.w.Now(), m})
}

// acknowledged returns the mark that key had for all to know before a moment.
func (c *Checker) acknowledged(key string, before int64) Mark {
	all := c.acks[key]
	n := sort.Search(len(all), func(i int) bool { return all[i].at >= before })
	if n == 0 {
		return Mark{}
	}
	return all[n-1].mark
}

func (c *Checker) trust(proc int) *trust {
	t := c.trusts[proc]
	if t == nil {
		t = &trust{connected: true, origins: map[int]uint64{}}
		c.trusts[proc] = t
	}
	return t
}

// disconnected notes that a process cannot know what it misses.
func (c *Checker) disconnected(proc int) {
	t := c.trust(proc)
	t.connected, t.cut = false, c.w.Now()
}

// returned notes that an own hello is back which was sent at a moment.
func (c *Checker) returned(proc int, sent int64) {
	t := c.trust(proc)
	t.heard = c.w.Now()
	if !t.connected && sent >= t.cut {
		t.connected, t.since = true, max(t.since, sent)
	}
}

// numbered notes the number of a message that a process has taken, which may show
// that it has missed one.
func (c *Checker) numbered(proc, origin int, seq uint64, fromTheBeginning bool) {
	t := c.trust(proc)
	last, known := t.origins[origin]
	if seq > last+1 && (known || fromTheBeginning) {
		c.Suspect(proc, "")
	}
	t.origins[origin] = max(last, seq)
}

// Suspect notes that from now on a process may serve a key, or any if that is
// empty, only as it was loaded later.
func (c *Checker) Suspect(proc int, key string) {
	if key == "" {
		c.trust(proc).since = c.w.Now()
		return
	}
	c.since[place{proc, key}] = c.w.Now()
}

// Thrown notes that all that a process has in memory was told to have changed.
func (c *Checker) Thrown(proc int) {
	c.Suspect(proc, "")
	c.trust(proc).thrown = c.w.Now()
}

func (c *Checker) greeted(proc, by int) { c.greets[[2]int{proc, by}] = true }

// Greeted reports whether proc has read a hello of the other, where it trusts to
// read them: otherwise it cannot notice that the other has died.
func (c *Checker) Greeted(proc, other int) bool { return c.greets[[2]int{proc, other}] }

// Floor returns what a process must not go below.
func (c *Checker) Floor(proc int, key string) Mark { return c.floors[place{proc, key}].mark }

// A Read is a read under way: what it must return depends on when it began.
type Read struct {
	Proc  int
	Key   string
	Begin int64

	// What it asked for.

	AtLeast      uint64
	Within       time.Duration // negative: no bound
	Linearizable bool
	After        map[string]Mark // what a token stood for
	Memory       bool            // it can only have been served from memory
	TTL          time.Duration   // of entries; 0: none
	MaxStale     time.Duration   // of entries; 0: none

	floor  floor
	since  int64  // what it returns must not have been replaced before that
	thrown int64  // the same if it is flagged
	silent string // why nothing may be served from memory
}

// Begin completes r, which begins now.
func (c *Checker) Begin(r Read) *Read {
	at := place{r.Proc, r.Key}
	r.Begin, r.floor = c.w.Now(), c.floors[at]
	t := c.trust(r.Proc)
	r.since, r.thrown = max(t.since, c.since[at]), max(t.thrown, c.since[at])
	switch {
	case !t.connected:
		r.silent = "it is cut off"
	case c.Beat > 0 && r.Begin-t.heard > 5*int64(c.Beat): // three, one until it looks, and one for the look
		r.silent = "it has not heard itself for long"
	}
	return &r
}

// An Answer is what a Read returned.
type Answer struct {
	Version uint64
	Absent  bool
	Value   int
	Age     time.Duration // negative: not known
	Stale   bool          // flagged: served because the source did not answer
}

// End checks the answer to r, which has ended at the moment end.
func (c *Checker) End(r *Read, a Answer, end int64) {
	c.Reads++
	state, why := c.state(r.Key, a, end)
	if why != "" {
		c.Fail("I9 no invention", "%d read %s@%d=%d absent %t: %s", r.Proc, r.Key, a.Version, a.Value, a.Absent, why)
		return
	}
	fail := func(rule, format string, args ...any) {
		c.Fail(rule, "%d read %s@%d absent %t of [%v, %v], begun at %v: %s", r.Proc, r.Key, state.Version, state.Absent,
			time.Duration(state.At), time.Duration(state.Gone), time.Duration(r.Begin), fmt.Sprintf(format, args...))
	}
	m := state.Mark()
	if m.Before(r.floor.mark) {
		rule := string(r.floor.why)
		if r.floor.mark.Absent {
			rule += ", I11 deletes"
		}
		fail(rule, "%v was known there", r.floor.mark)
	}
	if r.Memory && r.silent != "" {
		fail("I13 suspect", "from memory, though %s", r.silent)
	}
	since := r.since
	if a.Stale {
		since = r.thrown
	}
	if a.Age >= 0 && state.Gone < since {
		fail("I13 suspect", "everything from before %v is suspect", time.Duration(since))
	}
	if a.Version < r.AtLeast && !(a.Absent && a.Version == 0) {
		fail("I5 at least", "wanted %d", r.AtLeast)
	}
	if r.Linearizable && state.Gone < r.Begin {
		fail("I8 linearizable", "it was replaced before")
	}
	if r.Within >= 0 {
		if behind := c.behind(r.Key, state, r.Begin-int64(r.Within)); behind != "" {
			fail("I6 within", "%v: %s", r.Within, behind)
		}
	}
	if a.Age >= 0 {
		if behind := c.behind(r.Key, state, r.Begin-int64(a.Age)); behind != "" {
			fail("I18 age", "%v: %s", a.Age, behind)
		}
	}
	if want := r.After[r.Key]; m.Before(want) {
		fail("I4 after", "the token stands for %v", want)
	}
	if r.Memory && r.TTL > 0 && state.Gone < r.Begin-int64(r.TTL)-int64(c.w.Lag) {
		fail("I14 ttl", "%v", r.TTL)
	}
	if r.Memory && r.TTL > 0 && !c.Logged && a.Age > r.TTL+c.w.Lag {
		fail("I14 ttl", "its age is %v, the most is %v", a.Age, r.TTL)
	}
	if r.Memory && r.MaxStale > 0 && (a.Age < 0 || a.Age > r.MaxStale) {
		fail("I14 ttl", "its age is %v, the most is %v", a.Age, r.MaxStale)
	}
	if a.Version == 0 { // it may have been an earlier one
		from := r.since
		if r.Linearizable {
			from = max(from, r.Begin)
		}
		m = c.Absence(r.Key, r.floor.mark, from)
	}
	c.Raise(r.Proc, r.Key, m, Returned)
}

// Absence returns the first absence of key that is not before a mark and was not
// replaced before a moment: what an absence without a version shows at least.
func (c *Checker) Absence(key string, floor Mark, moment int64) Mark {
	for _, s := range c.w.Source.History(key) {
		if s.Absent && !s.Mark().Before(floor) && s.Gone >= moment {
			return s.Mark()
		}
	}
	return floor
}

// behind says why state is not what it was shown to be at a moment.
func (c *Checker) behind(key string, state State, moment int64) string {
	if !c.Logged {
		if state.Gone < moment {
			return "it was replaced before that"
		}
		return ""
	}
	if want := c.acknowledged(key, moment); state.Mark().Before(want) {
		return fmt.Sprintf("%v was acknowledged before that", want)
	}
	return ""
}

// state returns which state of the source a is. An absence without a version may
// be any; the latest that it can be is assumed.
func (c *Checker) state(key string, a Answer, end int64) (s State, why string) {
	if a.Absent && a.Version == 0 {
		h := c.w.Source.History(key)
		i := len(h) - 1
		for !h[i].Absent || h[i].At > end {
			i-- // the first is an absence
		}
		return h[i], ""
	}
	s, ok := c.w.Source.Find(key, a.Version)
	switch {
	case !ok:
		return s, "nobody has written it"
	case s.Absent != a.Absent || s.Value != a.Value:
		return s, fmt.Sprintf("what was written is %d absent %t", s.Value, s.Absent)
	case s.At > end:
		return s, "it was written later"
	default:
		return s, ""
	}
}

// Wrote checks a write that has succeeded: the decision was made on the state
// that it replaced.
func (c *Checker) Wrote(proc int, key string, base uint64, version uint64) {
	h := c.w.Source.History(key)
	for i := 1; i < len(h); i++ {
		if h[i].Version != version {
			continue
		}
		before := h[i-1].Version
		if h[i-1].Absent {
			before = 0
		}
		if before != base {
			c.Fail("I10 chain", "%d wrote %s@%d on %d, which replaced %d", proc, key, version, base, before)
		}
		return
	}
	c.Fail("I10 chain", "%d wrote %s@%d, which there never was", proc, key, version)
}

// AtRest checks what a process serves when everything has been told and nothing
// is under way.
func (c *Checker) AtRest(proc int, key string, a Answer) {
	s, why := c.state(key, a, c.w.Now())
	if cur := c.w.Source.Current(key); why != "" || s.Version != cur.Version {
		c.Fail("I17 wrong at rest", "%d has %s@%d absent %t, the source @%d absent %t by %d %s", proc, key, a.Version, a.Absent,
			cur.Version, cur.Absent, cur.By, why)
	}
}
