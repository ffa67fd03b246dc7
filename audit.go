package tidemark

import (
	"context"
	"fmt"
	"math"
	"time"
)

// Defaults of AuditOptions. They are documented at the fields.
const (
	defaultAuditRate   = 100
	defaultAuditEvery  = time.Minute
	defaultAuditSample = 100
	boundBeats         = 10
	leastBound         = time.Second
	leastAuditBound    = time.Millisecond
	aloneBound         = 5 * time.Second
	lastMismatches     = 32 // that are remembered
)

// AuditOptions sets up the auditor: a goroutine of the cache that compares what
// memory has with the source, all the time, at a bounded rate. It finds what no
// message can tell of: writers that bypass the cache and tell nobody, a source that
// went back, a version that was used twice, and mistakes of this library. The zero
// value is an auditor with the default of each field.
//
// It goes round: a cycle looks at every entry that is there from its beginning to
// its end. Besides, it looks again at some of the keys that were invalidated. An
// entry that differs from the source is a suspicion at first, for the message that
// says so may be on its way. It is confirmed if, Bound later, the source still says
// so, the same entry may still be served, and no write or fill of the key is under
// way: that does not wait for the end of the cycle. With a Log, the Bound is counted
// in what the Log has shown to be applied, so that a log that is slow or down raises no
// alarm; nothing is confirmed meanwhile.
//
// What is confirmed is counted, logged without its key, told to OnEvent and
// OnMismatch, and repaired: the entry is gone, and the key's tide mark is at least
// the source's version. What memory has ahead of the source is not repaired: see
// [Cache.SetSourceEpoch]. What is found equal counts as loaded anew when the source
// was asked, so that its Age begins anew; its TTL does not.
//
// The source is asked as a strong load would be, past the cache: for versions only,
// many in one call, if it is a [VersionLoader] and there is no Digest; otherwise for
// values, in one call if it is a [BulkLoader]. There is never more than one call at
// a time. It takes one of the MaxLoads, but only if no more than half of them are
// taken, asks the Breaker, and counts in Stats.Loads. What is refused, by either or
// by the source, is asked again later, and counts in Stats.AuditRefused and not in
// Stats.Declined; what the source fails to tell five times is given up until the next
// cycle.
//
// Hits are as fast as without it. Writes and invalidations leave a record of 32 bytes
// each, for [Mismatch.Record] and [Explanation.Record]: the latest 65,536 are kept, up
// to 1,024 and at least 64 in each shard. What waits to be compared is bounded, too.
type AuditOptions[K comparable, V any] struct {
	// Rate is how many entries are compared in a second at most. Zero means 100.
	Rate int

	// Every is how often a cycle begins at most, so that a small cache is not
	// compared again and again. Zero means a minute.
	Every time.Duration

	// Bound is how long an entry may differ from the source before that is called
	// a mismatch: the time that a change takes from its commit until it is in force
	// here, if all is well. Zero means ten beats, at least a second; what
	// Options.Level asks for by Within if that is more; 5 s without an Invalidator.
	// At least 1ms.
	Bound time.Duration

	// Scales are times longer than Bound, rising. For each the report says how
	// many entries may have been stale for longer, and after each a key that was
	// invalidated is looked at again, if it is sampled. Nil means 60 s and 300 s.
	Scales []time.Duration

	// Sample is which share of the keys that are invalidated here is looked at
	// again: one in so many. Zero means 100; negative means none. Up to 4,096
	// looks wait for their time; what finds no room is dropped and counted.
	Sample int

	// Digest, if not nil, is called for a value that memory has and for the one
	// that the source has at the same version; they must be the same. It must not
	// depend on anything but the value. Then every check reads a value. It is called
	// with no lock held.
	Digest func(value V) uint64

	// Trip is how many mismatches of one cycle make the auditor set SetBypass:
	// from then on nothing is served from memory here, until somebody sets it to
	// false. Zero means never.
	Trip int

	// OnMismatch, if not nil, is called for each mismatch that is confirmed, by the
	// auditor's goroutine, with no lock held. It must not call Close, or Audit, which
	// wait for it. A panic is contained.
	OnMismatch func(Mismatch[K])
}

// A MismatchKind says in what an entry differs from the source.
type MismatchKind uint8

const (
	// MismatchStale: the source has a newer state.
	MismatchStale MismatchKind = iota + 1

	// MismatchDiffers: the source has another value at the same version.
	MismatchDiffers

	// MismatchAhead: the source has an older state than memory. It went back, or a
	// Put brought what was not committed.
	MismatchAhead
)

var mismatchNames = [...]string{"none", "stale", "differs", "ahead"}

// String returns "stale", "differs" or "ahead".
func (k MismatchKind) String() string {
	if int(k) < len(mismatchNames) {
		return mismatchNames[k]
	}
	return mismatchNames[0]
}

// MarshalText returns the kind's name.
func (k MismatchKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText takes a name that MarshalText has returned.
func (k *MismatchKind) UnmarshalText(text []byte) error {
	for i, name := range mismatchNames {
		if name == string(text) {
			*k = MismatchKind(i)
			return nil
		}
	}
	return fmt.Errorf("tidemark: %q is no kind of mismatch", text)
}

// A Mismatch is an entry that differed from the source for longer than it may.
type Mismatch[K comparable] struct {
	Key  K
	Kind MismatchKind
	Time time.Time // when it was confirmed

	// Of the entry, and of the source when it was asked last. A version of the
	// source is zero if it has no such key and does not say since when.
	Version      Version
	Absent       bool
	Source       Version
	SourceAbsent bool

	// AtLeast is for how long it has differed: since the source was first heard
	// to. AtMost is for how long that can have been: since the entry was last shown
	// to be current; negative if it never was.
	AtLeast, AtMost time.Duration

	// Record is what happened to the key here lately, oldest first, up to 64, as
	// far as it is remembered. Now and then another key of the same hash is in it.
	Record []Happening
}

// An AuditReport is what the auditor has found since New. It has no key and no
// value. It travels as JSON, durations in nanoseconds.
type AuditReport struct {
	Bound time.Duration // zero: there is no auditor
	Rate  int

	Checked    uint64 // comparisons that are decided
	Suspicions uint64 // those that differed at first, most for a message on its way
	Waiting    int    // suspicions and other checks that are not decided yet
	Undecided  uint64 // suspicions whose entry expired or was evicted before anything explained them

	// Confirmed mismatches by kind, and of how many the entry was dropped.
	Stale, Differs, Ahead uint64
	Repaired              uint64

	Refused   uint64 // comparisons that were put off, each time: MaxLoads, the Breaker or the source
	Unchecked uint64 // given up: the source failed again and again
	Dropped   uint64 // samples of invalidations for which there was no room

	// Scales says how many were stale for how long; Bound is the first.
	Scales []AuditScale

	MostBehind uint64        // the most versions that a stale entry was behind
	Longest    time.Duration // the longest that one can have been stale; negative: of one, nobody knows

	Begun, Cycles uint64 // cycles that have begun, and that have ended
	Last          AuditCycle
	Tripped       bool // Trip was reached, and SetBypass is on

	// Of Stats: see Options.Shadow.
	Shadow                                 bool
	ShadowHits, ShadowOlder, ShadowDiffers uint64
}

// An AuditScale says how many entries were stale for longer than a time.
type AuditScale struct {
	Over      time.Duration
	Stale     uint64 // that can have been; see Mismatch.AtMost
	Undecided uint64 // of AuditReport.Undecided those that can have been

	// Share is Stale and Undecided by all, which are Checked and Undecided. If both are
	// zero it is 3 by Checked, at most 1: with a confidence of 95 % no larger share can
	// have gone unnoticed. Nines is how many nines that is: 3 for a share of a
	// thousandth.
	Share, Nines float64
}

// An AuditCycle is one cycle that has ended.
type AuditCycle struct {
	Began, Ended time.Time // zero: none has
	Entries      uint64    // that were looked at
	Mismatches   uint64    // that were confirmed in the time
}

// Mismatches returns how many were confirmed, of all kinds.
func (r AuditReport) Mismatches() uint64 { return r.Stale + r.Differs + r.Ahead }

// shareOver returns how many of checked were stale over a time, with its nines. Of
// undecided ones nobody knows, so that they were.
func shareOver(over time.Duration, stale, undecided, checked uint64) AuditScale {
	s := AuditScale{Over: over, Stale: stale, Undecided: undecided, Share: 1}
	switch bad := stale + undecided; {
	case bad > 0:
		s.Share = min(float64(bad)/float64(checked+undecided), 1)
	case checked > 0:
		s.Share = min(3/float64(checked), 1)
	}
	s.Nines = max(-math.Log10(s.Share), 0)
	return s
}

// AuditReport returns what the auditor has found so far. It is zero without
// [Options.Audit].
func (c *Cache[K, V]) AuditReport() AuditReport {
	if c.audit == nil {
		return AuditReport{}
	}
	r, _ := c.audit.report(false)
	return r
}

// Audit lets a cycle begin at once, or as soon as the one that is under way has
// ended, and returns the report when that cycle has ended and all that it suspected
// is decided, but for keys of which a write or a fill does not end. If ctx ends first
// it returns what is known so far, with ctx's error, and the cycle goes on. It is bound
// by AuditOptions.Rate as every cycle is.
//
// Other errors: an [*OptionError] without [Options.Audit], and [ErrClosed].
func (c *Cache[K, V]) Audit(ctx context.Context) (AuditReport, error) {
	if c.audit == nil {
		return AuditReport{}, &OptionError{"Audit", "is not set"}
	}
	if c.closed.Load() {
		return c.AuditReport(), ErrClosed
	}
	r, ended := c.audit.report(true)
	for wanted := r.Begun + 1; r.Cycles < wanted; r, ended = c.audit.report(false) {
		if ctx.Err() != nil { // also if the cycle has ended by now
			return r, ctx.Err()
		}
		select {
		case <-ended:
		case <-c.life.Done():
			return r, ErrClosed
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
	return r, nil
}

// Mismatches returns the latest mismatches that were confirmed, oldest first, up to
// 32. Unlike AuditReport it has keys, which may be personal data.
func (c *Cache[K, V]) Mismatches() []Mismatch[K] {
	if c.audit == nil {
		return nil
	}
	return c.audit.mismatches()
}

// validateAudit checks that there is something to compare with, and how.
func (o *Options[K, V]) validateAudit(bad func(field, format string, args ...any)) {
	sourceless := o.Loader == nil && o.Store == nil
	if o.Shadow && sourceless {
		bad("Shadow", "is set, but there is nothing to load from")
	}
	a := o.Audit
	if a == nil {
		return
	}
	if sourceless {
		bad("Audit", "is set, but there is nothing to compare with")
	}
	for _, f := range []struct {
		name  string
		value int64
	}{{"Rate", int64(a.Rate)}, {"Every", int64(a.Every)}, {"Bound", int64(a.Bound)}, {"Trip", int64(a.Trip)}} {
		if f.value < 0 {
			bad("Audit."+f.name, "is %d, want >= 0", f.value)
		}
	}
	if a.Bound > 0 && a.Bound < leastAuditBound {
		bad("Audit.Bound", "is %v, want at least %v", a.Bound, leastAuditBound)
	}
	before := o.auditBound()
	for _, d := range a.Scales {
		if d <= before {
			bad("Audit.Scales", "has %v, want more than %v", d, before)
		}
		before = d
	}
}

// auditBound returns Audit.Bound, or what it is if it is zero.
func (o *Options[K, V]) auditBound() time.Duration {
	switch {
	case o.Audit.Bound != 0:
		return o.Audit.Bound
	case o.Invalidator.connected():
		return max(boundBeats*o.Invalidator.beat(), leastBound, o.Level.within)
	default:
		return aloneBound
	}
}

// auditOptions returns Audit with every default filled in.
func (o *Options[K, V]) auditOptions() AuditOptions[K, V] {
	a := *o.Audit
	setDefault(&a.Rate, defaultAuditRate)
	setDefault(&a.Every, defaultAuditEvery)
	setDefault(&a.Sample, defaultAuditSample)
	a.Bound = o.auditBound()
	if a.Scales == nil {
		for _, d := range []time.Duration{time.Minute, 5 * time.Minute} {
			if d > a.Bound {
				a.Scales = append(a.Scales, d)
			}
		}
	}
	return a
}
