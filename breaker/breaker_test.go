package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/breaker"
)

var errBoom = errors.New("boom")

func newBreaker(t *testing.T, o breaker.Options) *breaker.Breaker {
	t.Helper()
	b, err := breaker.New(o)
	require.NoError(t, err)
	return b
}

// calls makes n calls that end with err, and returns how many were let through.
func calls(b *breaker.Breaker, n int, err error) (let int) {
	for range n {
		if done, refused := b.Allow(); refused == nil {
			let++
			done(err)
		}
	}
	return let
}

func TestNew_Mistakes(t *testing.T) {
	for field, bad := range map[string][]breaker.Options{
		"Window":       {{Window: -1}, {Window: 10*time.Millisecond - 1}},
		"FailureRatio": {{FailureRatio: -0.1}, {FailureRatio: 1.1}, {FailureRatio: math.NaN()}},
		"MinRequests":  {{MinRequests: -1}},
		"OpenFor":      {{OpenFor: -1}},
		"OpenJitter":   {{OpenJitter: 11}, {OpenJitter: math.NaN()}},
		"Probes":       {{Probes: -1}, {Probes: 1_000_001}},
	} {
		for _, o := range bad {
			b, err := breaker.New(o)
			var mistake *tidemark.OptionError
			require.ErrorAs(t, err, &mistake, field)
			assert.Equal(t, field, mistake.Field)
			assert.Nil(t, b)
		}
	}
	_, err := breaker.New(breaker.Options{Window: -1, OpenFor: -1})
	assert.ErrorContains(t, err, "Window")
	assert.ErrorContains(t, err, "OpenFor")
}

// The defaults are those of the comments: half of at least ten calls in ten seconds, five
// to seven and a half seconds, three probes.
func TestBreaker_Defaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, breaker.Options{})
		assert.Equal(t, tidemark.BreakerClosed, b.State())
		assert.Equal(t, 9, calls(b, 9, errBoom))
		assert.Equal(t, tidemark.BreakerClosed, b.State(), "nine are too few")
		time.Sleep(12 * time.Second)
		calls(b, 1, errBoom)
		assert.Equal(t, tidemark.BreakerClosed, b.State(), "the nine are long ago")
		calls(b, 10, nil)
		calls(b, 8, errBoom)
		assert.Equal(t, tidemark.BreakerClosed, b.State(), "9 of 19")
		calls(b, 1, errBoom)
		assert.Equal(t, tidemark.BreakerOpen, b.State(), "10 of 20")
		_, err := b.Allow()
		require.ErrorIs(t, err, breaker.ErrOpen)
		time.Sleep(5*time.Second - 1)
		assert.Equal(t, tidemark.BreakerOpen, b.State())
		time.Sleep(2500*time.Millisecond + 2)
		assert.Equal(t, tidemark.BreakerHalfOpen, b.State())
		assert.Equal(t, 3, calls(b, 3, nil))
		assert.Equal(t, tidemark.BreakerClosed, b.State())
	})
}

// Half-open it lets so many through at once and no more, and one failure opens it again.
func TestBreaker_Probes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, breaker.Options{MinRequests: 1, OpenFor: time.Second, OpenJitter: -1, Probes: 2})
		calls(b, 1, errBoom)
		require.Equal(t, tidemark.BreakerOpen, b.State())
		time.Sleep(time.Second + 1)
		first, err := b.Allow()
		require.NoError(t, err)
		second, err := b.Allow()
		require.NoError(t, err)
		_, err = b.Allow()
		require.ErrorIs(t, err, breaker.ErrOpen, "a third at once")
		first(nil)
		assert.Equal(t, tidemark.BreakerHalfOpen, b.State())
		second(errBoom)
		assert.Equal(t, tidemark.BreakerOpen, b.State())
		assert.Zero(t, calls(b, 1, nil))
		time.Sleep(time.Second + 1)
		assert.Equal(t, 2, calls(b, 2, nil))
		assert.Equal(t, tidemark.BreakerClosed, b.State())
	})
}

// Callers that give up say nothing of the source: they neither open nor close it, and
// take no probe away from those who do say something.
func TestBreaker_CancellationsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := fmt.Errorf("the caller: %w", context.Canceled)
		b := newBreaker(t, breaker.Options{MinRequests: 2, OpenFor: time.Second, OpenJitter: -1, Probes: 2})
		calls(b, 100, gone)
		assert.Equal(t, tidemark.BreakerClosed, b.State())
		calls(b, 1, errBoom)
		assert.Equal(t, tidemark.BreakerClosed, b.State(), "one is too few")
		calls(b, 1, errBoom)
		require.Equal(t, tidemark.BreakerOpen, b.State())
		time.Sleep(time.Second + 1)
		assert.Equal(t, 10, calls(b, 10, gone), "one after the other")
		assert.Equal(t, tidemark.BreakerHalfOpen, b.State())
		assert.Equal(t, 2, calls(b, 2, nil))
		assert.Equal(t, tidemark.BreakerClosed, b.State())
	})
}

// That a caller's time is over is a failure of the source.
func TestBreaker_TimeoutsCount(t *testing.T) {
	b := newBreaker(t, breaker.Options{MinRequests: 2})
	calls(b, 2, context.DeadlineExceeded)
	assert.Equal(t, tidemark.BreakerOpen, b.State())
}

// A call counts as of when it ended: a source that hangs for longer than Window, until
// the cache's LoadTimeout, say, opens it like one that fails at once; and each counts once.
func TestBreaker_SlowFailuresCount(t *testing.T) {
	for _, took := range []time.Duration{0, time.Second, 9 * time.Second, 10 * time.Second, 30 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Options{})
			var done []func(error)
			for range 20 {
				d, err := b.Allow()
				require.NoError(t, err)
				done = append(done, d)
			}
			time.Sleep(took)
			for _, d := range done[:10] {
				d(nil)
			}
			for _, d := range done[10:19] {
				d(errBoom)
			}
			assert.Equal(t, tidemark.BreakerClosed, b.State(), "%v: 9 of 19", took)
			time.Sleep(8 * time.Second)
			done[19](errBoom)
			assert.Equal(t, tidemark.BreakerOpen, b.State(), "%v: 10 of 20 that have ended within 10 s", took)
		})
	}
}

// What began before it was opened says nothing when it is half-open, and takes no probe.
func TestBreaker_WhatIsLateIsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, breaker.Options{MinRequests: 1, OpenFor: time.Second, OpenJitter: -1, Probes: 1})
		good, err := b.Allow()
		require.NoError(t, err)
		bad, err := b.Allow()
		require.NoError(t, err)
		calls(b, 1, errBoom)
		good(nil)
		assert.Equal(t, tidemark.BreakerOpen, b.State())
		time.Sleep(time.Minute)
		bad(errBoom)
		assert.Equal(t, tidemark.BreakerHalfOpen, b.State())
		assert.Equal(t, 1, calls(b, 1, nil))
		assert.Equal(t, tidemark.BreakerClosed, b.State())
	})
}

// Breakers that open together do not probe together.
func TestBreaker_OpensForDifferentTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 40
		var all []*breaker.Breaker
		for range many {
			b := newBreaker(t, breaker.Options{MinRequests: 1, OpenFor: time.Second, OpenJitter: 1})
			calls(b, 1, errBoom)
			all = append(all, b)
		}
		open := func() (n int) {
			for _, b := range all {
				if b.State() == tidemark.BreakerOpen {
					n++
				}
			}
			return n
		}
		time.Sleep(time.Second - 1)
		assert.Equal(t, many, open(), "none sooner than OpenFor")
		time.Sleep(time.Second / 2)
		assert.InDelta(t, many/2, open(), many/2-2, "some and some")
		time.Sleep(time.Second/2 + 2)
		assert.Zero(t, open(), "all at twice that")
	})
}

// With a cache: a source that is down is left alone, reads at Any go on with what memory
// has, writes are refused without a doubt, and all is well soon after it is back.
func TestBreaker_WithACache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down, loads := false, 0
		b := newBreaker(t, breaker.Options{})
		var events []tidemark.Event
		c, err := tidemark.New(tidemark.Options[string, int]{
			Breaker: b, TTL: time.Second, StaleIfError: time.Hour,
			Loader: tidemark.LoaderFunc[string, int](func(context.Context, string) (int, tidemark.Version, error) {
				if loads++; down {
					return 0, 0, errBoom
				}
				return 1, 1, nil
			}),
			OnEvent: func(e tidemark.Event) { events = append(events, e) },
		})
		require.NoError(t, err)
		read := func() tidemark.Entry[int] {
			e, err := c.Load(t.Context(), "k")
			require.NoError(t, err)
			return e
		}
		assert.False(t, read().Stale)
		assert.Equal(t, tidemark.BreakerClosed, c.Stats().Breaker)
		down = true
		time.Sleep(time.Second)
		for i := range 100 {
			assert.True(t, read().Stale)
			_, err := c.Load(t.Context(), fmt.Sprint("cold ", i))
			require.Error(t, err)
		}
		assert.Equal(t, tidemark.BreakerOpen, c.Stats().Breaker)
		asked := loads
		_, err = c.Load(t.Context(), "another")
		require.ErrorIs(t, err, tidemark.ErrUnavailable)
		require.ErrorIs(t, err, breaker.ErrOpen)
		assert.Equal(t, asked, loads, "it is left alone")
		down = false
		time.Sleep(8 * time.Second)
		for range 3 {
			_, err := c.Read(t.Context(), "k", tidemark.Linearizable)
			require.NoError(t, err)
		}
		assert.False(t, read().Stale)
		assert.Equal(t, tidemark.BreakerClosed, c.Stats().Breaker)
		require.NoError(t, c.Close(t.Context()))
		var changes []string
		for _, e := range events {
			require.Equal(t, tidemark.EventBreaker, e.Kind)
			changes = append(changes, e.Reason)
		}
		assert.Equal(t, []string{"closed to open", "open to half-open", "half-open to closed"}, changes)
	})
}
