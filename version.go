package tidemark

// A Version orders the states of one key. The source of truth assigns it, and
// assigns a larger one to every later state of that key, deletions included.
// Versions of different keys need not be comparable.
//
// The zero Version means "no version": it is older than every real one.
type Version uint64

// A mark is a place in the history of one key: a version, and whether the state
// at that place is the absence of the key. A deletion published with the
// version of the row that it removed comes after that row (S18), so marks are
// ordered by version first and absence second.
//
// The tide mark of a key is the highest mark that this cache has served,
// installed or been told of. Nothing below it is served.
type mark struct {
	version Version
	absent  bool
}

// before reports whether m is older than n.
func (m mark) before(n mark) bool {
	if m.version != n.version {
		return m.version < n.version
	}
	return !m.absent && n.absent
}

// later returns the newer of m and n.
func (m mark) later(n mark) mark {
	if m.before(n) {
		return n
	}
	return m
}

// A tide remembers, in fixed memory, the marks of keys that hold no entry any
// more. Keys share slots by hash; a slot keeps the highest mark of all keys
// that were ever folded into it and is never cleared. A bare Put, which comes
// with no proof of when its value was read, installs only at or above its
// slot's mark, so that it can never bring back what was evicted, deleted or
// invalidated. The price of sharing is a Put that is refused although it was
// new enough for its own key; never one that is wrongly accepted.
//
// Loads do not ask the tide: a load from a strong source that began after a
// mark was seen cannot return less, and one that began before carries a fence.
// The model tests prove this (internal/model).
type tide struct {
	slots []tideSlot // the length is a power of two

	// trusting is set in a cache that has nothing to load from. Its Puts are
	// the only word there is, so they need not be newer than changes that came
	// without a version.
	trusting bool
}

// Two fill a line of the processor's cache: a replica that applies messages is as
// fast as it finds slots.
type tideSlot struct {
	version Version // of the mark, with absent
	at      int64   // when it was set, in nanoseconds since the cache began
	hash    uint64  // of the key that set it
	absent  bool
	by      cause // what set it

	// blind is set for good when a key of this slot reached a state that nobody
	// gave a version: from then on nothing shows that a Put is newer than that.
	blind bool
}

func (s *tideSlot) mark() mark { return mark{s.version, s.absent} }

// tideSlots is how many slots all shards together have at most, as long as each has
// 64: more would take more memory than they save loads.
const tideSlots = 64 << 10

func newTide(slots int, trusting bool) tide {
	return tide{slots: make([]tideSlot, slots), trusting: trusting}
}

func (t *tide) slot(hash uint64) *tideSlot { return &t.slots[hash>>8&uint64(len(t.slots)-1)] }

// fold remembers that the key with this hash has reached m.
func (t *tide) fold(hash uint64, m mark, by cause, at moment) {
	if s := t.slot(hash); s.mark().before(m) {
		s.version, s.absent, s.by, s.at, s.hash = m.version, m.absent, by, at.now(), hash
	}
}

// forget forgets every mark, for versions that start again.
func (t *tide) forget() { clear(t.slots) }

// blindly remembers that the key reached a state without a version.
func (t *tide) blindly(hash uint64) { t.slot(hash).blind = true }

// judge says what may become of a bare Put of m for a key that holds no entry
// with a version. InvalidateAll, which makes a generation, blinds every slot.
func (t *tide) judge(hash uint64, m mark, generation uint32) Outcome {
	s := t.slot(hash)
	switch {
	case m.before(s.mark()) && s.hash == hash:
		return Stale
	case m.before(s.mark()): // perhaps another key's
		return Unproven
	case !t.trusting && (s.blind || generation > 0):
		return Unproven
	default:
		return Applied
	}
}

// A delayedTide is the floor memory that a Lagging loader needs: it remembers
// every mark for at least the loader's lag, and forgets it before twice that
// time has passed, so that a slot which several keys share does not refuse
// their loads for ever. See protocol rule "a floor may be forgotten only when
// the read replica must have passed it" (S2, S3).
type delayedTide struct {
	lag    int64 // nanoseconds; zero: the loader is not Lagging, nothing is kept
	turned int64 // when cur became empty, nanoseconds since the cache began
	cur    []mark
	prev   []mark
}

// unknownMark is above every mark: nothing a lagging load returns reaches it.
var unknownMark = mark{version: ^Version(0), absent: true}

func newDelayedTide(n int, lag int64) delayedTide {
	if lag == 0 {
		return delayedTide{}
	}
	return delayedTide{lag: lag, cur: make([]mark, n), prev: make([]mark, n)}
}

// forget forgets every mark, for versions that start again. Lagging loads are held
// off for the lag then, so that none from before needs them.
func (d *delayedTide) forget() {
	clear(d.cur)
	clear(d.prev)
}

// turn forgets what is older than the lag.
func (d *delayedTide) turn(now int64) {
	if now-d.turned < d.lag {
		return
	}
	d.cur, d.prev = d.prev, d.cur
	clear(d.cur)
	if (now-d.turned)/2 >= d.lag {
		clear(d.prev)
	}
	d.turned = now
}

func (d *delayedTide) raise(hash uint64, m mark, at moment) {
	if d.lag == 0 {
		return
	}
	d.turn(at.now())
	i := hash >> 8 & uint64(len(d.cur)-1)
	d.cur[i] = d.cur[i].later(m)
}

func (d *delayedTide) floor(hash uint64, at moment) mark {
	if d.lag == 0 {
		return mark{}
	}
	d.turn(at.now())
	i := hash >> 8 & uint64(len(d.cur)-1)
	return d.cur[i].later(d.prev[i])
}
