package tidemark

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"reflect"
	"runtime"
	"time"
)

// Defaults of Options. They are documented at the fields.
const (
	defaultMaxCost      = 1 << 16
	defaultTTLJitter    = 0.1
	defaultNegativeTTL  = 5 * time.Second
	defaultLoadTimeout  = 30 * time.Second
	defaultDoubtTimeout = 10 * time.Second
	defaultMaxLoads     = 256
	maxStrictDoubt      = 30 * time.Minute // twice that is for how long anybody can keep a key out of memory
	maxShards           = 4096
	contendedShards     = 256     // more than this do not help writers
	entriesPerShard     = 8 << 10 // at most, by default
	maxGuess            = 1 << 20 // entries, unless ExpectedEntries says more
)

// Options configures a Cache. The zero value of every field is the default
// that its comment gives; a cache without Loader and Store serves what Put and
// BeginFill bring it.
type Options[K comparable, V any] struct {
	// MaxCost bounds the sum of Cost over all entries, at every moment. Zero
	// means 65,536, which is a number of entries as long as Cost is nil. It
	// must be set if Cost is.
	MaxCost int64

	// Cost returns the cost of an entry, in the unit of MaxCost. It is called
	// for each stored value with no lock held; a cost below 1 counts as 1. For
	// an absence it gets the zero value. Nil means 1 for every entry.
	Cost func(key K, value V) int64

	// ExpectedEntries sizes the admission sketch and the shards. Zero means
	// MaxCost if Cost is nil, and MaxCost/256 otherwise, but at most 1<<20. The
	// sketch takes 40 to 400 bytes for each, the more the fewer there are, and at
	// least 6 KiB; a wrong guess costs hit ratio or memory, nothing else.
	ExpectedEntries int64

	// Shards is the number of shards, rounded up to a power of two, at most
	// 4096. Zero means a number that fits ExpectedEntries and GOMAXPROCS. Writers of
	// one shard wait for each other, and all of them while it grows, which takes
	// some 60 ns for each of its entries: a fraction of a millisecond if there are
	// as many shards as Zero means.
	Shards int

	// TTL bounds how long an entry is served, counted from the start of the
	// load or write that brought it. It is the last line of defence against
	// changes nobody announced. Zero means no bound. Time is the monotonic
	// clock's, which on most systems stands still while a machine is suspended.
	// StaleWhileRevalidate and StaleIfError let an entry be served for longer, with
	// Entry.Stale set.
	TTL time.Duration

	// TTLJitter shortens each entry's TTL by a random share of it, up to this
	// one, so that entries loaded together do not expire together. Zero means
	// 0.1; negative means none. At most 1.
	TTLJitter float64

	// NegativeTTL is the TTL of absences. Zero means 5s, or TTL if that is
	// shorter; negative means that absences are not cached.
	NegativeTTL time.Duration

	// EntryTTL, if not nil, overrides TTL and NegativeTTL for one entry. Zero
	// keeps what they say, negative means that the entry is not cached. It is
	// called with no lock held. Jitter applies.
	EntryTTL func(key K, e Entry[V]) time.Duration

	// RefreshAfter makes a hit on an entry older than this, counted as TTL is,
	// start a load in the background; the hit is served at once. Zero means
	// never. It must be below TTL to have an effect. After a load of the key that
	// has failed the next such load is not begun for up to 0.1s, then 0.2s, and so on
	// up to 10s: by chance for as little as half of that, so that neither keys nor
	// replicas try again together.
	RefreshAfter time.Duration

	// StaleWhileRevalidate is for how long after its TTL an entry is still served
	// at once, with Entry.Stale set, while one load in the background replaces it.
	// Zero means never. It counts for reads at Any and AtLeast only, by GetEntry,
	// Read, Load and LoadMany; Get, which cannot set a flag, misses. MaxStale, and
	// whatever else makes an entry unfit to be served, hold as before the end of the
	// TTL: an entry whose key is known to have changed is not there to be served. A
	// background load that has failed is tried again as RefreshAfter says. Absences
	// are not served after their TTL, and Update decides on no such entry. It
	// needs a TTL or EntryTTL. Until this time is over the entry takes room.
	StaleWhileRevalidate time.Duration

	// StaleIfError is for how long after its TTL an entry is served, with
	// Entry.Stale set, if the source does not answer: if the load that the read
	// waits for fails, is refused by the Breaker, finds no place among MaxLoads, or
	// takes longer than SoftLoadTimeout. After a load of the key that has failed it
	// is served at once, and the source is left alone, for as long as RefreshAfter
	// says. Above zero the cache fails open: while the source is down, reads at Any
	// and AtLeast go on with what memory has. Zero means that it fails closed:
	// after the TTL such reads return the load's error. Reads at the other levels
	// always fail closed: no promise depends on this field, MaxStale's included. It
	// counts for the same reads as StaleWhileRevalidate, but for GetEntry, which
	// waits for no load, and with the same exceptions.
	//
	// It counts within the TTL as well, for an entry that is suspect, which the source
	// would have to confirm, because a message may be missing or this replica is cut
	// off: if the source does not answer, that too is served, with Stale set. It is not
	// below what this replica has been told, and its Age is then that of its load.
	// Never served are what InvalidateAll or another SourceEpoch has thrown away, and
	// while SetBypass is on, and after it, what memory had by then.
	StaleIfError time.Duration

	// Loader reads a key from the source. Nil means that Store is the loader.
	Loader Loader[K, V]

	// LoaderClass says what the Loader's answers prove. The zero value is
	// Strong.
	LoaderClass LoaderClass

	// LoadTimeout bounds one load, the wait for a place among MaxLoads
	// included: the Loader's context ends then, and it is for the Loader to heed that.
	// Zero means 30s; negative means no bound.
	LoadTimeout time.Duration

	// SoftLoadTimeout is how long a read waits for a load while memory has an entry
	// that StaleIfError lets it serve instead; reads that join the load wait until it
	// has run for so long. The load itself goes on until LoadTimeout, for those who
	// come later. Zero means that a read waits until the load has ended. It must be
	// below LoadTimeout, and needs StaleIfError.
	SoftLoadTimeout time.Duration

	// MaxLoads bounds the calls of the Loader that run at once; a bulk load
	// counts as one. Zero means 256; negative means no bound.
	MaxLoads int

	// Breaker, if not nil, is asked before each call of the Loader and the Store, and
	// told how it ended. A write that it refuses fails with ErrUnavailable and is
	// never in doubt. That a write in doubt is asked about it can only put off, to
	// once in each DoubtTimeout. It never makes a read return less than its level.
	// Module breaker has one.
	Breaker Breaker

	// Store is what Update, CompareAndSet and Delete write through.
	Store Store[K, V]

	// DoubtTimeout is the time after which a write that the store was sent
	// can no longer take effect: the longest statement or transaction timeout
	// that the store enforces. A write in doubt keeps its key out of memory at
	// least that long unless it is found committed earlier. Zero means 10s.
	DoubtTimeout time.Duration

	// MaxDoubts is the number of writes in doubt at which further writes fail
	// with ErrUnavailable before they are sent. Those that were sent already
	// may still come to be in doubt. Zero means 256.
	MaxDoubts int

	// SourceEpoch is the epoch of the source: see [Cache.SetSourceEpoch], which
	// changes it. A replica that is behind takes it from the others.
	SourceEpoch uint32

	// Strict makes Update, CompareAndSet and Delete tell the Log of a write
	// before the Store is asked, and not only after it. Then Within holds against
	// every committed write, not only against every acknowledged one, even if the
	// process that makes it dies half-way. A write waits for one append, as it does
	// otherwise, and its end is told in a second message, for which nobody waits.
	// The key is not cached anywhere while the write is under way, nothing can be
	// written while the Log takes no messages, and for two DoubtTimeouts after
	// joining a replica reads Within a bound only what it has loaded that recently.
	// It needs a Store and a Log, and must be set, with the same DoubtTimeout, in
	// all replicas that write or read Within a bound.
	//
	// A process that is stopped between its intent and its write for longer than
	// DoubtTimeout breaks the promise, as does a Store in which a write takes
	// effect later than that.
	Strict bool

	// Invalidator connects the cache to its replicas. The zero value means
	// that there are none.
	Invalidator Invalidator

	// KeyCodec encodes keys for the Invalidator. Nil is enough for strings and
	// integers.
	KeyCodec KeyCodec[K]

	// Level is what Get, GetEntry and Load require. The zero value is Any. A
	// Get that memory cannot answer at this level is a miss.
	Level Level

	// OnStale says what a read Within a bound does when memory has a state that
	// cannot be shown to be recent enough: ask the source, which is the zero
	// value, or fail with ErrStale. Get and GetEntry miss in both cases.
	OnStale StalePolicy

	// MaxStale is the Age above which no entry is served, at no Level; nor is
	// one whose Age is not known, which is what a Put brings. A read that has to
	// load joins no load that began so long before it; how long the load then takes
	// is not counted. A Loader that may lag by as much is not asked, its Store is.
	// Zero means no bound.
	MaxStale time.Duration

	// Audit, if not nil, starts an auditor, which compares memory with the source.
	Audit *AuditOptions[K, V]

	// Shadow lets the cache run beside a service that does not trust it yet. Nothing
	// is served from memory: Get and GetEntry miss, and Load, Read, LoadMany and Update
	// get what the source says, as with SetBypass. Writes, fills, invalidations and
	// evictions go on as they would, and a read that memory would have served is not
	// stored but compared: Stats.ShadowHits counts such reads, and ShadowOlder those
	// that would have got an older state than the source had. Some of those are as
	// it should be, as long as the message of a change is on its way; so the auditor,
	// which Shadow starts with its defaults if there is no Audit, looks whether they
	// still differ after its Bound, and counts those that do.
	//
	// The source gets every read. Readers of a key share loads, and MaxLoads bounds
	// them: it should be at least what runs at once without the cache.
	Shadow bool

	// Logger receives what an operator should know: cut-offs, lost messages,
	// writes in doubt. Nil means that nothing is logged. A flood does not reach it:
	// of one message at one level it gets 10 records in 10 seconds, and then, when
	// that time is over, one that says how many it was spared. While that goes on
	// the time doubles, up to ten minutes. Stats.Muted counts what it was spared.
	Logger *slog.Logger

	// OnEvent, if not nil, is called for each Event, none left out, with no lock held, while
	// the goroutine that noticed it waits, so it should be quick. It must not
	// call Close, or load, write or invalidate through the cache, which may wait for
	// that goroutine. A panic is contained.
	OnEvent func(Event)
}

// A StalePolicy says what a read does when memory cannot show that its state is
// recent enough for it.
type StalePolicy uint8

const (
	Reload StalePolicy = iota // ask the source
	Fail                      // return ErrStale, and leave the source alone
)

// A LoaderClass says how current the answers of a Loader are.
type LoaderClass struct {
	kind loaderKind
	lag  time.Duration
}

type loaderKind uint8

const (
	strongLoader loaderKind = iota
	laggingLoader
)

// Strong says that a load reflects every write that was committed before it
// began, as a read from the primary does.
var Strong = LoaderClass{}

// Lagging says that a load reflects every write that was committed more than
// lag before it began, as a read from a replica of the database does. What
// this cache has seen of a key is remembered for lag, and where a lagging
// answer would prove nothing, the cache asks the strong source instead:
// Options.Store if set, or else the Loader's LoadStrong.
func Lagging(lag time.Duration) LoaderClass { return LoaderClass{laggingLoader, lag} }

// String says it as it is written in Go.
func (l LoaderClass) String() string {
	if l.kind == laggingLoader {
		return fmt.Sprintf("Lagging(%v)", l.lag)
	}
	return "Strong"
}

// String returns the policy's name.
func (p StalePolicy) String() string {
	switch p {
	case Reload:
		return "Reload"
	case Fail:
		return "Fail"
	default:
		return "invalid"
	}
}

// A StrongLoader is a Lagging loader that can also read from the primary.
type StrongLoader[K comparable, V any] interface {
	// LoadStrong is Load at a source that reflects every write committed
	// before the call began.
	LoadStrong(ctx context.Context, key K) (V, Version, error)
}

// A Breaker decides whether the source may be asked. Module breaker has one, and the
// two-step circuit breaker of github.com/sony/gobreaker/v2, on which that is built,
// is one. It must be safe for concurrent use, and may serve several caches of one
// source. A panic of Allow is contained and fails the load or write, which was not
// begun; one of done fails a load, and no write.
type Breaker interface {
	// Allow returns an error if the source must be left alone now; the load or the
	// write then fails with ErrUnavailable. Otherwise done is called once, when the
	// call has ended or its time is over: with nil if the source has answered, if only that there is no
	// such key, or that a write has met a conflict or a value that is too large; with
	// an error that wraps [context.Canceled] if the caller of a write, or Close, gave
	// up before it had, or the Log could not be told of a write that is Strict, so that
	// it was not made, or a load had waited so long for its place that it had little time:
	// that says nothing of the source; and otherwise with the call's error, a timeout, the
	// caller's own too, or an outcome that nobody knows included. Of a call that hangs it
	// is told [context.DeadlineExceeded] after LoadTimeout, or, of a write, DoubtTimeout.
	Allow() (done func(err error), err error)
}

// normal returns o with every default filled in, or all its mistakes.
func (o Options[K, V]) normal() (Options[K, V], error) {
	if err := o.validate(); err != nil {
		return o, err
	}
	setDefault(&o.MaxCost, defaultMaxCost)
	if o.Cost == nil {
		setDefault(&o.ExpectedEntries, min(o.MaxCost, maxGuess))
	}
	setDefault(&o.ExpectedEntries, min(max(o.MaxCost/256, 1), maxGuess))
	setDefault(&o.TTLJitter, defaultTTLJitter)
	if o.NegativeTTL == 0 {
		o.NegativeTTL = defaultNegativeTTL
		if o.TTL > 0 {
			o.NegativeTTL = min(o.TTL, defaultNegativeTTL)
		}
	}
	setDefault(&o.LoadTimeout, defaultLoadTimeout)
	setDefault(&o.MaxLoads, defaultMaxLoads)
	setDefault(&o.DoubtTimeout, defaultDoubtTimeout)
	setDefault(&o.MaxDoubts, 256)
	if o.Shadow && o.Audit == nil {
		o.Audit = &AuditOptions[K, V]{}
	}
	if o.Shards == 0 {
		o.Shards = defaultShards(o.ExpectedEntries)
	}
	o.Shards = ceilPow2(o.Shards)
	if o.Loader == nil && o.Store != nil {
		o.Loader, o.LoaderClass = o.Store, Strong
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Options returns the options that the cache was made with, the defaults filled in.
func (c *Cache[K, V]) Options() Options[K, V] {
	o := c.opts
	o.Logger = slog.New(c.logLimit.handler)
	return o
}

// Warnings returns what New accepts and is probably not meant, each in a sentence
// that begins with the field. They are of options as [Cache.Options] returns them:
// fields that are zero count as such, not as their defaults.
func (o Options[K, V]) Warnings() (all []string) {
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	connected, logged, beat := o.Invalidator.connected(), o.Invalidator.Log != nil, o.Invalidator.beat()
	if connected && o.TTL == 0 && o.EntryTTL == nil {
		warn("TTL is not set: a change that nobody tells of is served until it is evicted")
	}
	if o.TTL > 0 && o.NegativeTTL > o.TTL {
		warn("NegativeTTL is %v, above TTL %v: that a key does not exist is believed longer than what it holds", o.NegativeTTL, o.TTL)
	}
	if o.Level.kind == levelWithin && logged && o.Level.within < 2*beat {
		warn("Level is %v, less than two beats of %v: many reads find nothing that is shown to be so fresh", o.Level, beat)
	}
	if o.MaxStale > 0 && logged && o.MaxStale < 2*beat {
		warn("MaxStale is %v, less than two beats of %v: many reads find nothing that is shown to be so fresh", o.MaxStale, beat)
	}
	if o.MaxStale > 0 && o.LoaderClass.lag >= o.MaxStale {
		warn("MaxStale is %v, not above the Loader's lag of %v: it is never asked, the strong source has every load", o.MaxStale, o.LoaderClass.lag)
	}
	if o.MaxStale > 0 && o.Loader == nil && o.Store == nil {
		warn("MaxStale is %v without a Loader: nobody knows the age of what Put brings, so only fills are served", o.MaxStale)
	}
	if o.Level.kind == levelWithin && connected && !logged {
		warn("Level is %v without a Log: nothing makes an entry younger than its load", o.Level)
	}
	if o.OnStale == Fail && !logged {
		warn("OnStale is Fail without a Log: once an entry is older than a read's bound, such reads fail until it is gone")
	}
	if o.Audit != nil && connected && o.auditBound() < 4*beat {
		warn("Audit.Bound is %v, less than four beats of %v: what is noticed by then is no mismatch", o.Audit.Bound, beat)
	}
	if o.Audit != nil && o.TTL > 0 && o.EntryTTL == nil && o.TTL <= o.auditBound() {
		warn("TTL is %v, not above the auditor's bound of %v: entries are gone before it can confirm a mismatch", o.TTL, o.auditBound())
	}
	if o.Shadow {
		warn("Shadow is set: nothing is served from memory")
	}
	if o.MaxLoads < 0 {
		warn("MaxLoads is negative: a cold cache asks the source for everything at once")
	}
	if o.LoadTimeout < 0 {
		warn("LoadTimeout is negative: a source that hangs holds its readers, their places among MaxLoads, and probes of the Breaker, for ever")
	}
	return append(all, o.staleWarnings()...)
}

// staleWarnings are those of what is served after its TTL.
func (o *Options[K, V]) staleWarnings() (all []string) {
	if o.grace() == 0 {
		return nil
	}
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	field := "StaleIfError"
	if o.StaleIfError == 0 {
		field = "StaleWhileRevalidate"
	}
	if o.Level.strong() {
		warn("%s is set, but Level is %v: only reads that ask for Any or AtLeast are served after the TTL", field, o.Level)
	}
	if o.MaxStale > 0 && o.TTL >= o.MaxStale && o.Invalidator.Log == nil {
		warn("MaxStale is %v, not above TTL %v: %s has next to nothing that it may serve", o.MaxStale, o.TTL, field)
	}
	if o.StaleIfError > 0 && o.SoftLoadTimeout == 0 {
		warn("StaleIfError is set, but SoftLoadTimeout is not: reads wait for a source that hangs as long as LoadTimeout says")
	}
	return all
}

// grace is for how long after its TTL an entry may be served at all.
func (o *Options[K, V]) grace() time.Duration { return max(o.StaleWhileRevalidate, o.StaleIfError) }

func setDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// defaultShards gives each shard at least 128 entries, so that its share of
// the admission window holds a useful number of them, and otherwise no more shards
// than writers could contend for, unless a shard would be so large that its growth
// keeps them waiting.
func defaultShards(entries int64) int {
	most := int64(min(max(64, 8*runtime.GOMAXPROCS(0)), contendedShards))
	most = min(max(most, entries/entriesPerShard), maxShards)
	return int(min(max(entries/128, 1), most))
}

func ceilPow2(n int) int { return 1 << bits.Len(uint(n-1)) }

// validate reports every mistake at once, each an [*OptionError].
func (o *Options[K, V]) validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"MaxCost", o.MaxCost}, {"ExpectedEntries", o.ExpectedEntries}, {"TTL", int64(o.TTL)},
		{"RefreshAfter", int64(o.RefreshAfter)}, {"DoubtTimeout", int64(o.DoubtTimeout)},
		{"MaxDoubts", int64(o.MaxDoubts)}, {"Shards", int64(o.Shards)}, {"MaxStale", int64(o.MaxStale)},
		{"StaleWhileRevalidate", int64(o.StaleWhileRevalidate)}, {"StaleIfError", int64(o.StaleIfError)},
		{"SoftLoadTimeout", int64(o.SoftLoadTimeout)},
	} {
		if f.value < 0 {
			bad(f.name, "is %d, want >= 0", f.value)
		}
	}
	if o.Shards > maxShards {
		bad("Shards", "is %d, want at most %d", o.Shards, maxShards)
	}
	if o.Cost != nil && o.MaxCost == 0 {
		bad("MaxCost", "is not set, but Cost is: the unit would be unknown")
	}
	if !(o.TTLJitter <= 1) {
		bad("TTLJitter", "is %v, want at most 1", o.TTLJitter)
	}
	if o.TTL > 0 && o.RefreshAfter >= o.TTL {
		bad("RefreshAfter", "is %v, want less than TTL %v", o.RefreshAfter, o.TTL)
	}
	if err := checkKeyType(reflect.TypeFor[K]()); err != nil {
		bad("K", "%v", err)
	}
	o.validateLoader(bad)
	o.validateAudit(bad)
	o.validateStale(bad)
	if o.RefreshAfter > 0 && o.Loader == nil && o.Store == nil {
		bad("RefreshAfter", "is set, but there is nothing to load from")
	}
	if o.Strict {
		o.validateStrict(bad)
	}
	if o.OnStale > Fail {
		bad("OnStale", "is %d, want Reload or Fail", o.OnStale)
	}
	if o.Level == Linearizable && o.Loader == nil && o.Store == nil {
		bad("Level", "is Linearizable, but there is nothing to load from")
	}
	o.Invalidator.validate(bad)
	if o.Invalidator.connected() && !(&keys[K]{kind: newKeys[K](nil).kind, codec: o.KeyCodec}).encodable() {
		bad("KeyCodec", "is nil, but keys of type %v cannot travel without one", reflect.TypeFor[K]())
	}
	return errors.Join(errs...)
}

// validateStale checks that what is to be served after its TTL can be.
func (o *Options[K, V]) validateStale(bad func(field, format string, args ...any)) {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"StaleWhileRevalidate", o.StaleWhileRevalidate}, {"StaleIfError", o.StaleIfError}} {
		switch {
		case f.value <= 0:
		case o.TTL == 0 && o.EntryTTL == nil:
			bad(f.name, "is set, but there is no TTL after which it could count")
		case o.Loader == nil && o.Store == nil:
			bad(f.name, "is set, but there is nothing to load from")
		}
	}
	if o.SoftLoadTimeout <= 0 {
		return
	}
	if o.StaleIfError == 0 {
		bad("SoftLoadTimeout", "is set, but without StaleIfError there is nothing to serve instead")
	}
	hard := o.LoadTimeout
	setDefault(&hard, defaultLoadTimeout)
	if hard > 0 && o.SoftLoadTimeout >= hard {
		bad("SoftLoadTimeout", "is %v, want less than LoadTimeout %v", o.SoftLoadTimeout, hard)
	}
}

// validateStrict checks that writes can be strict.
func (o *Options[K, V]) validateStrict(bad func(field, format string, args ...any)) {
	if o.Store == nil {
		bad("Strict", "is set, but there is no Store to write to")
	}
	if o.Invalidator.Log == nil && o.Invalidator.mistake == nil {
		bad("Strict", "is set, but there is no Log to tell")
	}
	if o.DoubtTimeout > maxStrictDoubt {
		bad("DoubtTimeout", "is %v, want at most %v with Strict", o.DoubtTimeout, maxStrictDoubt)
	}
}

// validateLoader checks that what stands for the source is there, and that the Loader
// can do what its class needs.
func (o *Options[K, V]) validateLoader(bad func(field, format string, args ...any)) {
	if isNil(o.Loader) {
		bad("Loader", "holds a nil %T", o.Loader)
	}
	if isNil(o.Store) {
		bad("Store", "holds a nil %T", o.Store)
	}
	if isNil(o.Breaker) {
		bad("Breaker", "holds a nil %T", o.Breaker)
	} else if o.Breaker != nil && o.Loader == nil && o.Store == nil {
		bad("Breaker", "is set, but there is no Loader and no Store to call")
	}
	switch c := o.LoaderClass; c.kind {
	case strongLoader:
	case laggingLoader:
		if c.lag <= 0 {
			bad("LoaderClass", "is Lagging(%v), want a positive lag", c.lag)
		}
		if o.Loader == nil {
			bad("LoaderClass", "is Lagging, but there is no Loader")
		} else if _, ok := o.Loader.(StrongLoader[K, V]); !ok && o.Store == nil {
			bad("LoaderClass", "is Lagging, but neither a Store nor LoadStrong gives a strong source")
		}
	}
}

// isNil reports whether an interface value holds a nil pointer, function or
// map: a mistake that would only show at the first call.
func isNil(i any) bool {
	if i == nil {
		return false
	}
	switch v := reflect.ValueOf(i); v.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Chan:
		return v.IsNil()
	default:
		return false
	}
}
