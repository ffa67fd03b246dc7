package tidemark

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A BreakerState is what a circuit breaker lets through.
type BreakerState uint8

const (
	// NoBreaker: there is none, or it does not say.
	NoBreaker BreakerState = iota

	// BreakerClosed: every call.
	BreakerClosed

	// BreakerHalfOpen: a few calls, which show whether the source answers again.
	BreakerHalfOpen

	// BreakerOpen: none.
	BreakerOpen
)

var breakerStates = [...]string{"none", "closed", "half-open", "open"}

func (s BreakerState) String() string {
	if int(s) < len(breakerStates) {
		return breakerStates[s]
	}
	return "invalid"
}

// MarshalText returns the state's name.
func (s BreakerState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes a name that MarshalText has returned.
func (s *BreakerState) UnmarshalText(text []byte) error {
	i := slices.Index(breakerStates[:], string(text))
	if i < 0 {
		return fmt.Errorf("tidemark: %q is no state of a breaker", text)
	}
	*s = BreakerState(i)
	return nil
}

// A StateBreaker is a Breaker that tells its state, for Stats, events and the log.
type StateBreaker interface {
	Breaker

	// State returns the state now. It must return at once, and must not say
	// BreakerOpen when Allow would let a call through: a load that would wait for a
	// place among MaxLoads is then refused, and Allow not asked. That it has opened is
	// noticed when a call of this cache asks it or tells it, and ends such waits.
	State() BreakerState
}

// errLeftAlone means that the store was not asked, since the breaker had refused.
var errLeftAlone = errors.New("tidemark: the source is left alone")

// allow asks the breaker. If it refuses, nothing may be sent to the source. Otherwise
// done must be called once with the verdict on what was. Both may panic.
func (c *Cache[K, V]) allow() (done func(verdict error), refused error) {
	if c.opts.Breaker == nil {
		return func(error) {}, nil
	}
	tell, refused := c.opts.Breaker.Allow()
	c.watchBreaker()
	if refused != nil {
		return nil, c.readable(refused)
	}
	return func(verdict error) {
		tell(verdict)
		c.watchBreaker()
	}, nil
}

// limited returns done, which is told that the time is over if it has not been called
// for so long: a call that hangs and does not heed its context may be the probe of which
// a half-open breaker waits for a word. Zero or less is no limit.
func (c *Cache[K, V]) limited(done func(verdict error), limit time.Duration) func(verdict error) {
	if c.opts.Breaker == nil || limit <= 0 {
		return done
	}
	var once sync.Once
	timer := time.AfterFunc(limit, func() {
		once.Do(func() { c.conclude(done, context.DeadlineExceeded) })
	})
	return func(verdict error) {
		timer.Stop()
		once.Do(func() { done(verdict) })
	}
}

// mayWrite asks the breaker about w, of which the error says that it was not sent. It
// comes before anybody is told of w: the intent of a strict write that is then refused
// would take its key from every memory, for nothing.
func (c *Cache[K, V]) mayWrite(w *write[K, V]) error {
	var refused error
	if w.done, refused = c.allowed(); refused != nil {
		c.stats.declinedWrites.Add(1)
		return fmt.Errorf("%w: %w", ErrUnavailable, refused)
	}
	return nil
}

// allowed is allow, and takes a panic for a refusal.
func (c *Cache[K, V]) allowed() (done func(verdict error), refused error) {
	defer func() {
		if r := recover(); r != nil {
			done, refused = nil, c.caught(r)
		}
	}()
	return c.allow()
}

// conclude calls done, and contains its panic: what became of a write does not depend
// on what the breaker makes of it.
func (c *Cache[K, V]) conclude(done func(verdict error), verdict error) {
	defer func() {
		if r := recover(); r != nil {
			c.caught(r)
		}
	}()
	done(verdict)
}

// verdict is what the breaker is told of a call that has returned err: nil if the source
// has answered, and context.Canceled if it was not given the time to, because who asked
// for the call has given up. That the time of ctx is over is a failure of the source.
func (c *Cache[K, V]) verdict(ctx context.Context, err error) error {
	var conflict *ConflictError
	switch {
	case err == nil, errors.Is(err, ErrNotFound), errors.Is(err, ErrTooLarge), errors.As(err, &conflict):
		return nil
	case errors.Is(ctx.Err(), context.Canceled), c.life.Err() != nil:
		return context.Canceled
	case errors.Is(err, context.Canceled): // and it was nobody of us who has
		return errors.New(err.Error())
	default:
		return err
	}
}

// breakerState returns the state of a breaker that tells it, and contains its panic.
func (c *Cache[K, V]) breakerState() (state BreakerState, ok bool) {
	if c.breaker == nil {
		return NoBreaker, false
	}
	defer func() {
		if recover() != nil {
			c.stats.panics.Add(1) // no event: whoever hears of one may ask for the state
			state, ok = NoBreaker, false
		}
	}()
	return c.breaker.State(), true
}

// breakerOpens returns a channel that is closed when the breaker is next seen to open,
// or nil if it does not tell.
func (c *Cache[K, V]) breakerOpens() <-chan struct{} {
	if c.breaker == nil {
		return nil
	}
	return *c.opens.Load()
}

// watchBreaker notices that the breaker has changed, since it was asked or told. Only
// one goroutine is at it: who had asked for the state before another one noticed a
// change would take it for changed back. If others come meanwhile it looks again, so
// what is said ends with the state that it has.
func (c *Cache[K, V]) watchBreaker() {
	if c.breaker == nil || c.watching.Add(1) > 1 {
		return
	}
	ended := false
	defer func() {
		if !ended {
			c.watching.Store(0)
		}
	}()
	for range 16 { // one that never rests is seen again at the next call
		came := c.watching.Load()
		state, ok := c.breakerState()
		if !ok {
			return
		}
		before := BreakerState(c.breakerWas.Swap(uint32(state)))
		if before == state {
			if ended = c.watching.CompareAndSwap(came, 0); ended {
				return
			}
			continue
		}
		if state == BreakerOpen {
			opens := make(chan struct{})
			close(*c.opens.Swap(&opens))
			c.stats.breakerOpens.Add(1)
			c.opts.Logger.Warn("tidemark: the breaker has opened, and the source is left alone", "from", before.String())
		} else {
			c.opts.Logger.Info("tidemark: the breaker has changed", "from", before.String(), "to", state.String())
		}
		c.emit(Event{Kind: EventBreaker, Reason: before.String() + " to " + state.String(), From: before, To: state})
	}
}
