// Package breaker is a circuit breaker for [tidemark.Options.Breaker], on that of
// github.com/sony/gobreaker/v2.
//
//	b, err := breaker.New(breaker.Options{})
//	cache, err := tidemark.New(tidemark.Options[string, Account]{
//		Store: store, Breaker: b, TTL: time.Minute,
//		LoadTimeout: 2 * time.Second, SoftLoadTimeout: 100 * time.Millisecond,
//		StaleIfError: time.Hour, // fail open: serve on, flagged, while the source is down
//	})
//
// It is closed, and lets every call through, until of the calls within
// [Options.Window] so many have failed that the source is better left alone. Then it is
// open and lets none through for a time with some chance in it, so that the replicas of a
// service do not all come back at once. After that it is half-open: a few calls are let
// through, and if they succeed it is closed; the first that fails opens it again.
//
// What counts as a failure is what the cache tells: errors, timeouts, and writes whose
// outcome nobody knows; not absences, conflicts, or callers that have cancelled. So
// [tidemark.Options.LoadTimeout] decides how soon a source that hangs is noticed, and for
// writes the deadline that the caller gives, if it is before
// [tidemark.Options.DoubtTimeout]: callers should give the source the time that it needs.
//
// One Breaker may serve all caches of one source.
package breaker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/tidemark-go/tidemark"
)

// ErrOpen means that the source is left alone. What a cache returns wraps it, beside
// [tidemark.ErrUnavailable].
var ErrOpen = errors.New("breaker: open")

// Options configures a Breaker. The zero value of every field is the default that its
// comment gives.
type Options struct {
	// Window is how far back calls count, as of when they ended, in steps of a tenth.
	// Zero means 10s; at least 10ms.
	Window time.Duration

	// FailureRatio is the share of failures among the calls in Window at which the
	// breaker opens. Zero means 0.5; at most 1.
	FailureRatio float64

	// MinRequests is the number of calls in Window below which it does not open. Zero
	// means 10.
	MinRequests int

	// OpenFor is for how long it stays open at least, before it lets probes through.
	// Zero means 5s.
	OpenFor time.Duration

	// OpenJitter lengthens OpenFor by a random share of it, up to this one, anew each
	// time. Zero means 0.5; negative means none. At most 10.
	OpenJitter float64

	// Probes is how many calls are let through while it is half-open, and must all
	// succeed before it is closed. Zero means 3.
	Probes int
}

// A Breaker is a circuit breaker. Make one with New. It is safe for concurrent use.
type Breaker struct {
	o     Options
	two   *gobreaker.TwoStepCircuitBreaker[struct{}]
	began time.Time
	until atomic.Int64 // nanoseconds since began: it stays open until then
}

var _ tidemark.StateBreaker = (*Breaker)(nil)

// steps is in how many parts Window is counted.
const steps = 10

// New returns a Breaker that is closed. All mistakes in o are reported at once, each as
// a [*tidemark.OptionError].
func New(o Options) (*Breaker, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.setDefaults()
	b := &Breaker{o: o, began: time.Now()}
	b.two = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:   uint32(o.Probes),
		Interval:      o.Window,
		BucketPeriod:  o.Window / steps,
		Timeout:       o.OpenFor,
		ReadyToTrip:   b.trips,
		OnStateChange: b.changed,
		IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
	})
	return b, nil
}

func (o *Options) validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if o.Window != 0 && o.Window < steps*time.Millisecond {
		bad("Window", "is %v, want at least %v", o.Window, steps*time.Millisecond)
	}
	if !(o.FailureRatio >= 0 && o.FailureRatio <= 1) {
		bad("FailureRatio", "is %v, want at most 1, and not negative", o.FailureRatio)
	}
	if o.MinRequests < 0 {
		bad("MinRequests", "is %d, want >= 0", o.MinRequests)
	}
	if o.OpenFor < 0 {
		bad("OpenFor", "is %v, want >= 0", o.OpenFor)
	}
	if !(o.OpenJitter <= 10) {
		bad("OpenJitter", "is %v, want at most 10", o.OpenJitter)
	}
	if o.Probes < 0 || o.Probes > 1_000_000 {
		bad("Probes", "is %d, want 0 to 1,000,000", o.Probes)
	}
	return errors.Join(errs...)
}

func (o *Options) setDefaults() {
	setDefault(&o.Window, 10*time.Second)
	setDefault(&o.FailureRatio, 0.5)
	setDefault(&o.MinRequests, 10)
	setDefault(&o.OpenFor, 5*time.Second)
	setDefault(&o.OpenJitter, 0.5)
	setDefault(&o.Probes, 3)
}

func setDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// trips reports whether these calls, of which the last has failed, open the breaker.
func (b *Breaker) trips(n gobreaker.Counts) bool {
	judged := n.TotalSuccesses + n.TotalFailures // and not those that run
	return int64(judged) >= int64(b.o.MinRequests) && float64(n.TotalFailures) >= b.o.FailureRatio*float64(judged)
}

// changed draws, each time that the breaker opens, for how long. It is called under
// gobreaker's lock.
func (b *Breaker) changed(_ string, _, to gobreaker.State) {
	if to != gobreaker.StateOpen {
		return
	}
	open := b.o.OpenFor
	if b.o.OpenJitter > 0 {
		open += time.Duration(rand.Float64() * b.o.OpenJitter * float64(open))
	}
	b.until.Store(int64(time.Since(b.began) + open))
}

// shut reports whether it is open, and too early for a probe.
func (b *Breaker) shut() bool { return int64(time.Since(b.began)) < b.until.Load() }

// Allow returns an error that wraps ErrOpen if the source must be left alone now, or if
// it is half-open and has let all Probes through. Otherwise done must be called once
// with what the call has returned; an error that wraps [context.Canceled] does not count.
func (b *Breaker) Allow() (done func(err error), err error) {
	if b.shut() {
		return nil, ErrOpen
	}
	tell, refused := b.two.Allow()
	if refused != nil {
		return nil, fmt.Errorf("%w: %w", ErrOpen, refused)
	}
	began := time.Now()
	return func(err error) { b.ended(tell, began, err) }, nil
}

// ended tells gobreaker how a call has ended. That counts it as of when it began, and
// not at all if that is longer ago than Window, as it is when a source hangs. So one
// that took a part of Window or more is told as another that begins and ends now.
func (b *Breaker) ended(done func(err error), began time.Time, err error) {
	if time.Since(began) >= b.o.Window/steps && b.two.State() == gobreaker.StateClosed {
		if now, refused := b.two.Allow(); refused == nil {
			done(context.Canceled)
			done = now
		}
	}
	done(err)
}

// State returns the state now.
func (b *Breaker) State() tidemark.BreakerState {
	if b.shut() {
		return tidemark.BreakerOpen
	}
	switch b.two.State() {
	case gobreaker.StateClosed:
		return tidemark.BreakerClosed
	case gobreaker.StateHalfOpen:
		return tidemark.BreakerHalfOpen
	default:
		return tidemark.BreakerOpen
	}
}
