package replica

import (
	"math"
	"sync/atomic"
	"time"
)

// A Moment is a time on both clocks.
type Moment struct {
	Mono int64 // nanoseconds on the monotonic clock, since some origin
	Lead int64 // nanoseconds by which the wall clock is ahead of it, since the same
}

// Since returns the moment of now, as counted from began: both must come from
// time.Now.
func Since(began, now time.Time) Moment {
	mono := int64(now.Sub(began))
	return Moment{mono, now.UnixNano() - began.UnixNano() - mono}
}

// Never is older than every moment.
const Never = math.MinInt64

// A Mark is as of when a replica has missed nothing. Mono is Never if nothing is
// proven. It vouches only for states that were proven at since or later.
type Mark struct{ Mono, lead, since int64 }

// At returns the mark of one moment.
func At(m Moment) Mark { return Mark{Mono: m.Mono, lead: m.Lead} }

// NoMark proves nothing, and does not look at the wall clock.
var NoMark = Mark{Mono: Never, lead: math.MaxInt64 / 2}

// Unvouched vouches for no state. The age that it gives one counts on both clocks, and
// all by which the wall clock has got ahead since their origin.
var Unvouched = Mark{Mono: Never, since: math.MaxInt64}

// Age returns how old a state is at most that was proven to be current at
// proven, or that the mark vouches for, whichever is later; negative if nothing
// is known. The larger of the two clocks' answers counts.
func (m Mark) Age(proven int64, now Moment) time.Duration {
	if m.Vouches(proven) {
		proven = max(m.Mono, proven)
	}
	return m.elapsed(proven, now)
}

// Vouches reports whether the mark vouches for a state that was proven then.
func (m Mark) Vouches(proven int64) bool { return proven >= m.since }

// Alone returns how old the mark is; negative if it vouches for nothing.
func (m Mark) Alone(now Moment) time.Duration {
	if m.Mono < m.since {
		return -1
	}
	return m.Elapsed(now)
}

// Elapsed returns how old the mark is, whatever it vouches for; negative if there
// is none.
func (m Mark) Elapsed(now Moment) time.Duration { return m.elapsed(m.Mono, now) }

func (m Mark) elapsed(from int64, now Moment) time.Duration {
	if from == Never {
		return -1
	}
	return time.Duration(max(now.Mono-from, 0) + max(now.Lead-m.lead, 0))
}

// A Fresh is a Mark that moves. One goroutine moves it, any number read it. It
// begins with nothing proven; make one with Reset.
//
// A reader must read it before the state that it vouches for (S62): the mark
// moves after what it stands for was applied.
type Fresh struct {
	lead  atomic.Int64
	since atomic.Int64
	mono  atomic.Int64
}

// Reset says that nothing is proven any more. lead is the wall clock's now.
func (f *Fresh) Reset(lead int64) {
	f.mono.Store(Never)
	f.lead.Store(lead)
}

// Hold says that the mark vouches for no state that was proven before until.
func (f *Fresh) Hold(until int64) { f.since.Store(max(f.since.Load(), until)) }

// Advance moves the mark to at, unless it is there already.
func (f *Fresh) Advance(at Moment) {
	if at.Mono > f.mono.Load() {
		// In this order: whoever reads the new mark reads its lead, or a later
		// one, and a later one stands for a later mark.
		f.lead.Store(at.Lead)
		f.mono.Store(at.Mono)
	}
}

// Mark returns the mark.
func (f *Fresh) Mark() Mark {
	mono := f.mono.Load() // first, see Advance
	return Mark{mono, f.lead.Load(), f.since.Load()}
}

// pending is how many probes are remembered, and one more: the oldest that was
// pushed out, until it is back, so that a reader that lags by more than these is
// shown to be fresh all the same, if less often.
const pending = 64

// Probes remembers when probes were sent. It is guarded by its user.
type Probes struct {
	sent   [pending]probe
	oldest probe // of those that were pushed out and may yet come back
	latest uint64
	valid  uint64 // the lowest nonce that proves anything
}

type probe struct {
	nonce uint64
	at    Moment
}

// Send registers the next probe, before it is sent, and returns its nonce.
func (p *Probes) Send(at Moment) (nonce uint64) {
	p.latest++
	s := &p.sent[p.latest%pending]
	if s.nonce != 0 && s.nonce >= p.valid && (p.oldest.nonce == 0 || p.oldest.nonce < p.valid) {
		p.oldest = *s
	}
	s.nonce, s.at = p.latest, at
	return p.latest
}

// Latest returns the nonce of the probe that was sent last.
func (p *Probes) Latest() uint64 { return p.latest }

// Void makes every probe that was sent until now worthless.
func (p *Probes) Void() { p.valid = p.latest + 1 }

// Back returns when the probe was sent that is back, or the oldest that is remembered
// if that one no longer is, and whether it proves anything: it was sent from here, not
// before Void, and not long ago.
func (p *Probes) Back(nonce uint64) (at Moment, ok bool) {
	s := p.sent[nonce%pending]
	if s.nonce != nonce && nonce <= p.latest {
		s = p.oldest // if that was sent before, it is proven too, and may never be back itself
	}
	if s.nonce == 0 || s.nonce > nonce || nonce > p.latest || s.nonce < p.valid {
		return Moment{}, false
	}
	p.valid = nonce + 1 // one that comes again proves nothing new
	return s.at, true
}
