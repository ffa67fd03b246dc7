package tidemark

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Stats is a snapshot of what a cache has counted since New. Counters only
// rise; the difference of two snapshots is what happened in between. The
// counters are read one after the other, not at one moment.
type Stats struct {
	Hits   uint64 // reads served from memory, cached absences included
	Misses uint64 // reads that memory could not answer

	Loads      uint64        // calls of the Loader; a bulk load counts as one
	LoadErrors uint64        // loads that failed, per key
	LoadTime   time.Duration // spent in those calls that have ended, added up
	Declined   uint64        // calls that were not made: no place among MaxLoads in time, or the Breaker refused
	Joined     uint64        // reads that waited for a load that was running already
	Confirmed  uint64        // states of which the source had still the version, and was not asked for more
	Refreshes  uint64        // loads started behind a hit
	TooOld     uint64        // reads that failed because OnStale is Fail

	// Reads that were answered with Entry.Stale set.

	StaleWhileRevalidate uint64 // as that option says; they are Hits
	StaleIfError         uint64 // as that option says: Hits, or Misses if they waited for a load first
	SoftTimeouts         uint64 // of StaleIfError, those whose load took longer than SoftLoadTimeout

	DeclinedByBreaker uint64 // of Declined, those that the Breaker refused
	DeclinedWrites    uint64 // writes that the Breaker refused, so that nothing was sent
	BreakerOpens      uint64 // times when the Breaker was noticed to have opened, if it tells its state

	// States that were not stored because their key had moved on since they were
	// read, or nothing shows that it had not: the races that were lost, and noticed.

	RefusedLoads  uint64
	RefusedFills  uint64 // of BeginFill, those without a version included
	RefusedWrites uint64 // committed all the same
	Refused       uint64 // the three together

	Unkept uint64 // other loads, fills and writes that were not stored: the options say so, or others took the room

	Applied   uint64 // values that Put stored
	Duplicate uint64 // values that Put found stored
	Stale     uint64 // values that Put refused as below the tide mark
	Unproven  uint64 // values that Put refused for want of proof
	TooLarge  uint64 // values that cost more than MaxCost

	Evictions uint64 // entries given up for room, or not admitted

	Writes    uint64 // writes that were committed
	Conflicts uint64 // writes whose base was not current
	Uncertain uint64 // writes whose outcome was not known at once

	Invalidated uint64 // keys for which Invalidate was called here
	Flushes     uint64 // times when everything was thrown away, by InvalidateAll anywhere or a new SourceEpoch

	Suspicions uint64 // times when all entries became suspect, for one of the following reasons or another
	Gaps       uint64 // a message was missing: in an origin's numbers, or in the Log
	CutOffs    uint64 // this replica no longer heard the others
	Silences   uint64 // origins that fell silent without a goodbye

	LogDowns  uint64 // times when the Log could no longer be read
	Sent      uint64 // messages published
	Received  uint64 // messages of other origins
	Applies   uint64 // keys that those invalidated
	Bad       uint64 // messages that could not be understood
	Foreign   uint64 // messages of another name or schema
	Collapsed uint64 // backlogs given up for one "everything changed"
	Lapsed    uint64 // strict writes of others of which nobody told how they ended
	Panics    uint64 // callbacks that panicked
	Muted     uint64 // records that the Logger was spared, see Options.Logger

	// What the auditor has found; AuditReport has more.

	AuditChecked uint64 // entries that were compared with the source
	AuditStale   uint64 // confirmed: the source had a newer state for longer than Bound
	AuditDiffers uint64 // confirmed: another value at the same version
	AuditAhead   uint64 // confirmed: the source had an older state
	AuditRefused uint64 // comparisons that were put off, each time that they were
	AuditCycles  uint64 // times when every entry was looked at

	// In shadow mode, see Options.Shadow: reads that memory would have served, and
	// those of them that would have got an older state than the source had, or another
	// value.
	ShadowHits, ShadowOlder, ShadowDiffers uint64

	Loading     int   // calls of the Loader that run
	Entries     int   // as Len
	Cost        int64 // of all entries; never above MaxCost but while Resize shrinks
	MaxCost     int64
	InDoubt     int // writes in doubt now
	Intents     int // strict writes of others that have begun and not ended
	Backlog     int // keys that wait to be broadcast
	Peers       int // other replicas and Publishers that say hello, as this one hears
	State       State
	SourceEpoch uint32       // the latest that was declared
	Bypassed    bool         // SetBypass is on: nothing is served from memory
	Shadow      bool         // Options.Shadow is set: nothing is served from memory
	CutOff      bool         // this replica does not hear the others: nothing is served from memory
	Breaker     BreakerState // NoBreaker if there is none that tells its state

	// Fresh is how old any entry can be at most, as the Log has shown: what is
	// served misses no change that was acknowledged before that. Negative: there
	// is no Log, or nothing is shown. With Strict, entries that were loaded in the
	// first two DoubtTimeouts after joining are as old as their loads instead. With
	// a Prober it is what the source has shown, of every change that it committed.
	Fresh time.Duration

	// LogSeq is the sequence number of the message of the Log that was read last;
	// 0 if none was. How far it is behind the Log's last is how far this replica is.
	LogSeq uint64
}

// Stats returns a snapshot. It takes each shard's lock once.
func (c *Cache[K, V]) Stats() Stats {
	t := &c.stats
	s := Stats{
		Hits: t.hits.sum(), Misses: t.misses.sum(),
		Loads: t.loads.Load(), LoadErrors: t.loadErrors.Load(), LoadTime: time.Duration(t.loadTime.Load()),
		Declined: t.declined.Load(), Joined: t.joined.Load(), Confirmed: t.confirmed.Load(), Refreshes: t.refreshes.Load(),
		TooOld: t.tooOld.Load(), RefusedLoads: t.refused[byLoad].Load(), RefusedFills: t.refused[byFill].Load(),
		RefusedWrites: t.refused[byWrite].Load(), Unkept: t.unkept.Load(),
		Applied: t.puts[Applied].Load(), Duplicate: t.puts[Duplicate].Load(), Stale: t.puts[Stale].Load(),
		Unproven: t.puts[Unproven].Load(), TooLarge: t.tooLarge.Load(),
		Evictions: c.policy.evictions.Load(), Writes: t.writes.Load(), Conflicts: t.conflicts.Load(), Uncertain: t.uncertain.Load(),
		Invalidated: t.invalidated.Load(), Flushes: t.flushes.Load(), Suspicions: t.suspicions.Load(), Panics: t.panics.Load(),
		Muted: c.logLimit.muted.Load(), Loading: int(t.loading.Load()),
		Entries: c.Len(), Cost: c.policy.cost.Load(), MaxCost: c.policy.limit.Load(),
		InDoubt: int(c.doubts.Load()), CutOff: c.era.Load()&eraCutOff != 0,
		State: c.state(), SourceEpoch: c.sourceEpoch.Load(), Bypassed: c.era.Load()&eraBypass != 0,
		Fresh:  c.freshness().Alone(c.moments()),
		Shadow: c.opts.Shadow, ShadowHits: t.shadowHits.Load(), ShadowOlder: t.shadowOlder.Load(), ShadowDiffers: t.shadowDiffers.Load(),

		StaleWhileRevalidate: t.whileRevalidate.Load(), StaleIfError: t.ifError.Load(), SoftTimeouts: t.softTimeouts.Load(),
		DeclinedByBreaker: t.declinedByBreaker.Load(), DeclinedWrites: t.declinedWrites.Load(), BreakerOpens: t.breakerOpens.Load(),
	}
	s.Breaker, _ = c.breakerState()
	s.Refused = s.RefusedLoads + s.RefusedFills + s.RefusedWrites
	if c.replica != nil {
		c.replica.addStats(&s)
	}
	if c.audit != nil {
		c.audit.addStats(&s)
	}
	return s
}

// A State is what a replica can say of its entries.
type State uint8

const (
	// Alone: there is no Invalidator.
	Alone State = iota

	// Joining: the replica does not hear the others, not yet or no longer. Nothing
	// is served from memory.
	Joining

	// Fresh: it hears them. With a Log, a probe has come back that was sent within
	// the last three beats.
	Fresh

	// Suspect: there is a Log, and no probe has come back that was sent within the
	// last three beats: it cannot be read, or what is appended takes longer than that
	// to arrive. Entries are served at Any, and their Age says how old they can be.
	Suspect

	// Ended: the cache is closed.
	Ended
)

var replicaStates = [...]string{"alone", "joining", "fresh", "suspect", "ended"}

func (s State) String() string {
	if int(s) < len(replicaStates) {
		return replicaStates[s]
	}
	return "invalid"
}

// MarshalText returns the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes a name that MarshalText has returned.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(replicaStates[:], string(text))
	if i < 0 {
		return fmt.Errorf("tidemark: %q is no state", text)
	}
	*s = State(i)
	return nil
}

func (c *Cache[K, V]) state() State {
	switch {
	case c.closed.Load():
		return Ended
	case c.replica == nil:
		return Alone
	case c.era.Load()&eraCutOff != 0:
		return Joining
	case !c.logged:
		return Fresh
	}
	if age := c.fresh.Mark().Elapsed(c.moments()); age < 0 || age > missedBeats*c.replica.beat {
		return Suspect
	}
	return Fresh
}

type stats struct {
	hits, misses striped

	loads, loadErrors, declined, joined, confirmed, refreshes, tooOld atomic.Uint64

	whileRevalidate, ifError, softTimeouts          atomic.Uint64
	declinedByBreaker, declinedWrites, breakerOpens atomic.Uint64

	loadTime, loading atomic.Int64

	puts             [Closed + 1]atomic.Uint64
	refused          [byMessage + 1]atomic.Uint64
	tooLarge, unkept atomic.Uint64

	shadowHits, shadowOlder, shadowDiffers atomic.Uint64

	writes, conflicts, uncertain, invalidated, flushes, suspicions, panics atomic.Uint64
}

func (t *stats) init() {
	t.hits.init()
	t.misses.init()
}

// outcome counts what became of an offered state. spurned says that it could have
// been stored.
func (t *stats) outcome(by cause, o Outcome, spurned bool) {
	switch {
	case o == TooLarge:
		t.tooLarge.Add(1)
	case by == byPut:
		t.puts[o].Add(1)
	case o == Applied:
	case spurned:
		t.unkept.Add(1)
	default:
		t.refused[by].Add(1)
	}
}

// A striped is a counter that many processors can raise at once. Which stripe
// one takes follows from the address of its stack: goroutines that run side by
// side have different ones. That two may share a stripe costs time only.
type striped struct {
	stripes []stripe
}

type stripe struct {
	n atomic.Uint64
	_ [120]byte // two cache lines: adjacent ones are fetched in pairs
}

func (c *striped) init() { c.stripes = make([]stripe, ceilPow2(4*runtime.GOMAXPROCS(0))) }

func (c *striped) add() {
	var here byte
	at := uintptr(unsafe.Pointer(&here)) >> 11 // goroutine stacks are at least 2 KiB
	c.stripes[(at^at>>7)&uintptr(len(c.stripes)-1)].n.Add(1)
}

func (c *striped) sum() (n uint64) {
	for i := range c.stripes {
		n += c.stripes[i].n.Load()
	}
	return n
}

// An EventKind says what an Event is about.
type EventKind uint8

const (
	// EventSuspect: messages may have been missed; every entry is revalidated
	// before it is served again.
	EventSuspect EventKind = iota + 1

	// EventCutOff: this replica no longer hears the others. Nothing is served
	// from memory until EventRejoined.
	EventCutOff

	// EventRejoined: the own hello came back; entries loaded from now on are
	// served.
	EventRejoined

	// EventBadMessage: a message could not be understood. EventSuspect follows.
	EventBadMessage

	// EventForeignMessage: a message of another name or schema on this cache's
	// subject. It was ignored.
	EventForeignMessage

	// EventCollapsed: the backlog grew too long, and became one message that
	// everything changed.
	EventCollapsed

	// EventUncertain: a write is in doubt. Err is the *UncertainError.
	EventUncertain

	// EventResolved: a write in doubt was settled.
	EventResolved

	// EventTooLarge: a value costs more than MaxCost and was not stored.
	EventTooLarge

	// EventPanic: a callback panicked. Err is the *PanicError.
	EventPanic

	// EventLogDown: the log cannot be read for now. Entries stay, and their Age
	// grows.
	EventLogDown

	// EventLogUp: the log is read again, and nothing was missed.
	EventLogUp

	// EventLapsed: nobody told in time how strict writes of other replicas ended;
	// who made them has died, or is cut off. Their keys may be cached again.
	EventLapsed

	// EventSourceEpoch: the source has gone back, and everything was forgotten.
	EventSourceEpoch

	// EventMismatch: the auditor has confirmed that an entry was not what the
	// source has. Cache.Mismatches has its key.
	EventMismatch

	// EventTripped: there were so many that the auditor has set SetBypass.
	EventTripped

	// EventBreaker: a Breaker that tells its state was noticed to have changed it,
	// from Event.From to Event.To. It is noticed when the cache asks or tells it.
	EventBreaker
)

var eventNames = [...]string{"invalid", "suspect", "cut off", "rejoined", "bad message", "foreign message",
	"collapsed", "uncertain", "resolved", "too large", "panic", "log down", "log up", "lapsed", "source epoch",
	"mismatch", "tripped", "breaker"}

func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return eventNames[0]
}

// An Event is something that an operator may want to know or count.
type Event struct {
	Kind   EventKind
	Reason string // in words; may be empty
	Err    error  // may be nil

	From, To BreakerState // of EventBreaker
}

// emit calls OnEvent and waits for it, in a goroutine of its own: a callback that
// ends that must not end one that the cache needs. It must be called with no lock
// held.
func (c *Cache[K, V]) emit(e Event) {
	if c.opts.OnEvent == nil {
		return
	}
	var calling sync.WaitGroup
	calling.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				c.stats.panics.Add(1) // no event: it might panic again
			}
		}()
		c.opts.OnEvent(e)
	})
	calling.Wait()
}

// readable returns err, or a PanicError if looking into it panics: a nil pointer
// in an error is a mistake of the callback that returned it.
func (c *Cache[K, V]) readable(err error) error { return readable(err, c.caught) }

func readable(err error, caught func(panicked any) error) (result error) {
	if err == nil {
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			result = caught(r)
		}
	}()
	_ = err.Error() // and all else that is asked of one
	errors.Is(err, ErrNotFound)
	errors.Is(err, ErrUnavailable)
	errors.As(err, new(*ConflictError))
	return err
}

// caught turns a recovered panic into an error.
func (c *Cache[K, V]) caught(r any) error {
	err := &PanicError{Value: r, Stack: debug.Stack()}
	c.stats.panics.Add(1)
	c.opts.Logger.Error("tidemark: a callback panicked", "panic", err.Value, "stack", string(err.Stack))
	c.emit(Event{Kind: EventPanic, Err: err})
	return err
}
