package tidemark

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is served after its TTL, and what must not be (S67).

const (
	staleTTL   = 10 * time.Second
	staleGrace = time.Minute
)

var errDown = errors.New("the source is down")

// overdueCache returns a cache with k at version 1, whose TTL is over since a moment.
func overdueCache(t *testing.T, s *source, o Options[string, int]) *Cache[string, int] {
	t.Helper()
	o.TTL, o.TTLJitter = staleTTL, -1
	if o.Store == nil {
		o.Store = s
	}
	if o.MaxCost == 0 {
		o.MaxCost, o.Shards = small, 1
	}
	c := newCache(t, o)
	s.set("k", 10)
	if o.Invalidator.connected() {
		require.NoError(t, c.Ready(t.Context()))
	}
	hold(t, c, "k")
	time.Sleep(staleTTL)
	return c
}

func (s *source) down() { s.isDown.Store(true) }
func (s *source) up()   { s.isDown.Store(false) }

// readers are the ways to read k at Any that can say that it is stale.
var staleReaders = map[string]func(*Cache[string, int], context.Context) (Entry[int], error){
	"Load": func(c *Cache[string, int], ctx context.Context) (Entry[int], error) { return c.Load(ctx, "k") },
	"Read at least": func(c *Cache[string, int], ctx context.Context) (Entry[int], error) {
		return c.Read(ctx, "k", AtLeast(1))
	},
	"LoadMany": func(c *Cache[string, int], ctx context.Context) (Entry[int], error) {
		all, err := c.LoadMany(ctx, []string{"k", "k"})
		var failed *KeysError[string]
		if errors.As(err, &failed) {
			err = failed.Failed["k"]
		}
		return all["k"], err
	},
}

// For so long an entry is served at once after its TTL, flagged, while one load in the
// background replaces it; then no longer.
func TestStaleWhileRevalidate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleWhileRevalidate: staleGrace})
		slow := 2 * time.Second
		s.beforeLoad = func(context.Context, string) error { time.Sleep(slow); return nil }
		s.set("k", 20)
		_, ok := c.Get("k")
		assert.False(t, ok, "Get cannot say that it is stale")
		assert.Equal(t, 1, s.loadCount(), "and starts nothing")
		time.Sleep(drainEvery / 2) // so that no sweep holds the lock
		began, hits := time.Now(), c.Stats().Hits
		for range 3 {
			e, ok := c.GetEntry("k")
			require.True(t, ok)
			assert.True(t, e.Stale)
			assert.Equal(t, staleTTL+drainEvery/2, e.Age, "as old as it is")
			for name, read := range staleReaders {
				e, err := read(c, t.Context())
				require.NoError(t, err, name)
				assert.Equal(t, Version(1), e.Version, name)
				assert.True(t, e.Stale, name)
			}
		}
		assert.Zero(t, time.Since(began), "nobody waits")
		synctest.Wait()
		assert.Equal(t, 2, s.loadCount(), "one load")
		assert.EqualValues(t, 15, c.Stats().StaleWhileRevalidate, "a key that LoadMany is given twice counts so")
		assert.Equal(t, hits+15, c.Stats().Hits)
		time.Sleep(slow)
		synctest.Wait()
		e, ok := c.GetEntry("k")
		require.True(t, ok)
		assert.Equal(t, Entry[int]{Value: 20, Version: 2, Age: slow}, e, "replaced, and no longer stale")
		assert.EqualValues(t, 1, c.Stats().Refreshes)

		time.Sleep(staleTTL - slow + staleGrace - 1)
		e, ok = c.GetEntry("k")
		assert.True(t, ok && e.Stale, "until its time is over")
		time.Sleep(slow)
		synctest.Wait()
		time.Sleep(staleTTL + staleGrace - slow)
		missing(t, c, "k", "too old to be lent")
		assert.False(t, load(t, c, "k").Stale)
	})
}

// An AtLeast that wants more, and the levels that promise something of time, ask the
// source; so do all reads of absences, and Update.
func TestStaleWhileRevalidate_ForNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleWhileRevalidate: staleGrace, StaleIfError: staleGrace, NegativeTTL: time.Second})
		s.down()
		for _, level := range []Level{AtLeast(2), Within(time.Hour), After(Token{full: true}), Linearizable} {
			e, err := c.Read(t.Context(), "k", level)
			require.ErrorIs(t, err, errDown, "%v: %+v", level, e)
		}
		calls := 0
		_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { calls++; return 1, nil })
		require.ErrorIs(t, err, errDown)
		assert.Zero(t, calls, "nothing is decided on it")
		assert.Zero(t, c.Stats().StaleWhileRevalidate+c.Stats().StaleIfError)

		s.up()
		time.Sleep(drainEvery / 2) // so that nothing is swept when its time is over
		_, err = c.Load(t.Context(), "none")
		require.ErrorIs(t, err, ErrNotFound)
		s.down()
		time.Sleep(time.Second)
		require.NotNil(t, c.entry("none"))
		missing(t, c, "none", "an absence is believed for NegativeTTL")
		_, err = c.Load(t.Context(), "none")
		require.ErrorIs(t, err, errDown)
	})
}

// The time after which nothing is lent is over to the nanosecond.
func TestStale_ItsTimeIsOver(t *testing.T) {
	for name, o := range map[string]Options[string, int]{
		"while revalidate": {StaleWhileRevalidate: staleGrace}, "if error": {StaleIfError: staleGrace}, "both": {StaleIfError: staleGrace, StaleWhileRevalidate: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			c := overdueCache(t, s, o)
			time.Sleep(drainEvery / 2) // so that nothing is swept then
			_, err := c.Read(t.Context(), "k", Linearizable)
			require.NoError(t, err)
			s.down()
			time.Sleep(staleTTL + staleGrace - 1)
			assert.True(t, load(t, c, "k").Stale, name)
			synctest.Wait()
			time.Sleep(time.Nanosecond)
			require.NotNil(t, c.entry("k"))
			_, err = c.Load(t.Context(), "k")
			require.ErrorIs(t, err, errDown, name)
		})
	}
}

// The flag is for what is stale: as long as the TTL is not over there is none, and
// without the options nothing is served after it.
func TestStale_OffIsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{})
		s.down()
		missing(t, c, "k", "its TTL is over")
		for name, read := range staleReaders {
			_, err := read(c, t.Context())
			require.ErrorIs(t, err, errDown, "%s: it fails closed", name)
		}
		s.up()
		assert.False(t, load(t, c, "k").Stale)
		e, ok := c.GetEntry("k")
		assert.True(t, ok && !e.Stale)
	})
}

// noPlace makes the only place among MaxLoads taken.
func noPlace(t *testing.T, c *Cache[string, int]) {
	t.Helper()
	c.places <- struct{}{}
	t.Cleanup(func() { <-c.places })
}

// Whatever keeps the source from answering, what memory has is served, flagged, until its
// time is over; then the error is.
func TestStaleIfError(t *testing.T) {
	broken := &refusing{}
	for name, tt := range map[string]struct {
		options Options[string, int]
		trouble func(t *testing.T, s *source, c *Cache[string, int])
		takes   time.Duration
		soft    bool
		err     error
	}{
		"an error": {trouble: func(_ *testing.T, s *source, _ *Cache[string, int]) { s.down() }, err: errDown},
		"a panic": {trouble: func(_ *testing.T, s *source, _ *Cache[string, int]) {
			s.beforeLoad = func(context.Context, string) error { panic("boom") }
		}},
		"a timeout": {options: Options[string, int]{LoadTimeout: time.Second}, takes: time.Second, err: context.DeadlineExceeded,
			trouble: func(_ *testing.T, s *source, _ *Cache[string, int]) { s.beforeLoad = hang }},
		"slow": {options: Options[string, int]{LoadTimeout: time.Second, SoftLoadTimeout: 100 * time.Millisecond},
			takes: 100 * time.Millisecond, soft: true, err: context.DeadlineExceeded,
			trouble: func(_ *testing.T, s *source, _ *Cache[string, int]) { s.beforeLoad = hang }},
		"the breaker": {options: Options[string, int]{Breaker: broken}, err: ErrUnavailable,
			trouble: func(*testing.T, *source, *Cache[string, int]) { broken.refuse = true }},
		"no place": {options: Options[string, int]{MaxLoads: 1, LoadTimeout: time.Second}, takes: time.Second, err: ErrUnavailable,
			trouble: func(t *testing.T, _ *source, c *Cache[string, int]) { noPlace(t, c) }},
		"no place, and the breaker is open": {options: Options[string, int]{MaxLoads: 1, LoadTimeout: time.Second, Breaker: &stateful{}}, err: ErrUnavailable,
			trouble: func(t *testing.T, _ *source, c *Cache[string, int]) {
				noPlace(t, c)
				b := c.breaker.(*stateful)
				b.set(BreakerOpen)
				t.Cleanup(func() { b.set(BreakerClosed) })
			}},
		"no place, and a write opens the breaker": {options: Options[string, int]{MaxLoads: 1, LoadTimeout: time.Second, Breaker: &stateful{}},
			takes: 300 * time.Millisecond, err: ErrUnavailable,
			trouble: func(t *testing.T, s *source, c *Cache[string, int]) {
				noPlace(t, c)
				b := c.breaker.(*stateful)
				b.set(BreakerHalfOpen)
				s.beforeWrite = func(context.Context, string) error { time.Sleep(300 * time.Millisecond); return errDown }
				go func() { _, _ = c.Delete(t.Context(), "other", 1) }()
				t.Cleanup(func() { b.set(BreakerClosed) })
			}},
	} {
		for how, read := range staleReaders {
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					broken.refuse = false
					s := newSource()
					tt.options.StaleIfError = staleGrace
					c := overdueCache(t, s, tt.options)
					tt.trouble(t, s, c)
					missing(t, c, "k", "GetEntry waits for no load, and asks for none")
					began := time.Now()
					e, err := read(c, t.Context())
					require.NoError(t, err)
					assert.Equal(t, Entry[int]{Value: 10, Version: 1, Stale: true, Age: staleTTL + tt.takes}, e)
					assert.Equal(t, tt.takes, time.Since(began))
					missing(t, c, "k", "nor does it after a failure")
					assert.EqualValues(t, 1, c.Stats().StaleIfError)
					assert.Equal(t, tt.soft, c.Stats().SoftTimeouts == 1)
					time.Sleep(staleGrace - time.Since(began) - 1 - tt.takes)
					e, err = read(c, t.Context())
					require.NoError(t, err)
					assert.True(t, e.Stale, "until its time is over")
					time.Sleep(time.Second + 1)
					_, err = read(c, t.Context())
					require.Error(t, err)
					if tt.err != nil {
						require.ErrorIs(t, err, tt.err)
					}
				})
			})
		}
	}
}

// hang is a source that does not answer.
func hang(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }

// What makes an entry unfit to be served makes an overdue one unfit, too, whether it
// comes before the load or while somebody waits for it.
func TestStale_NeverBelowTheTideMark(t *testing.T) {
	type cache = *Cache[string, int]
	for name, happens := range map[string]func(*testing.T, cache, *source){
		"a newer version":    func(t *testing.T, c cache, _ *source) { require.NoError(t, c.Invalidate(t.Context(), "k", 2)) },
		"an unknown version": func(t *testing.T, c cache, _ *source) { require.NoError(t, c.Invalidate(t.Context(), "k", 0)) },
		"everything changed": func(t *testing.T, c cache, _ *source) { require.NoError(t, c.InvalidateAll(t.Context())) },
		"the bypass":         func(_ *testing.T, c cache, _ *source) { c.SetBypass(true) },
		"the bypass, undone": func(_ *testing.T, c cache, _ *source) { c.SetBypass(true); c.SetBypass(false) },
		"another epoch":      func(t *testing.T, c cache, _ *source) { require.NoError(t, c.SetSourceEpoch(t.Context(), 1)) },
		"a Put of nothing":   func(_ *testing.T, c cache, _ *source) { c.Put("k", 1, 0) },
		"a deletion": func(t *testing.T, c cache, s *source) {
			_, err := c.Delete(t.Context(), "k", 1)
			require.NoError(t, err)
		},
		"a conflict": func(t *testing.T, c cache, s *source) {
			s.set("k", 20)
			_, err := c.CompareAndSet(t.Context(), "k", 7, 1)
			require.ErrorAs(t, err, new(*ConflictError))
		},
		"a write in doubt": func(t *testing.T, c cache, s *source) {
			s.down()
			_, err := c.CompareAndSet(t.Context(), "k", 1, 2)
			require.ErrorAs(t, err, new(*UncertainError))
		},
	} {
		t.Run(name+", before", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace, StaleWhileRevalidate: staleGrace})
				happens(t, c, s)
				s.down()
				e, ok := c.GetEntry("k")
				assert.False(t, ok && !e.Absent, "%+v", e)
				for how, read := range staleReaders {
					e, err := read(c, t.Context())
					assert.False(t, err == nil && e.Version == 1, "%s: %+v", how, e)
				}
				s.up()
				time.Sleep(2 * defaultDoubtTimeout) // until no write is in doubt
			})
		})
		t.Run(name+", meanwhile", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace, SoftLoadTimeout: 2 * time.Second})
				s.beforeLoad = func(context.Context, string) error { time.Sleep(10 * time.Second); return errDown }
				var all []<-chan result
				for _, read := range staleReaders {
					all = append(all, async(func() (Entry[int], error) { return read(c, t.Context()) }))
				}
				time.Sleep(time.Second)
				happens(t, c, s)
				for _, r := range all {
					got := get(t, r)
					assert.False(t, got.err == nil && got.entry.Version == 1, "%+v", got.entry)
				}
				s.up()
				time.Sleep(2 * defaultDoubtTimeout) // until no write is in doubt
			})
		})
	}
}

// What comes while the load runs that fails is served in place of the error, and only
// flagged if its own time is over.
func TestStaleIfError_WhatMemoryHasNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
		s.beforeLoad = func(context.Context, string) error { time.Sleep(time.Second); return errDown }
		reader := loading(t, c, "k", Any)
		synctest.Wait()
		require.Equal(t, Applied, c.Put("k", 20, 2))
		e := value(t, reader)
		assert.Equal(t, Version(2), e.Version)
		assert.False(t, e.Stale)
		assert.Zero(t, c.Stats().StaleIfError)
	})
}

// MaxStale bounds the Age of what is served after its TTL as of all else: an Age that
// is not known is none that it permits.
func TestStale_MaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace, StaleWhileRevalidate: staleGrace, MaxStale: staleTTL + time.Second})
		s.down()
		e, ok := c.GetEntry("k")
		require.True(t, ok && e.Stale)
		time.Sleep(time.Second)
		e, err := c.Load(t.Context(), "k")
		require.NoError(t, err, "at the bound")
		assert.Equal(t, staleTTL+time.Second, e.Age)
		time.Sleep(time.Nanosecond)
		missing(t, c, "k", "above it")
		_, err = c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown)
	})
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := Options[string, int]{Loader: s, TTL: staleTTL, TTLJitter: -1, StaleIfError: staleGrace, StaleWhileRevalidate: staleGrace}
		free := newCache(t, o)
		o.MaxStale = time.Hour
		c := newCache(t, o)
		s.down()
		for _, c := range []*Cache[string, int]{free, c} {
			require.Equal(t, Applied, c.Put("k", 10, 1))
		}
		time.Sleep(staleTTL)
		e, ok := free.GetEntry("k")
		assert.True(t, ok && e.Stale && e.Age < 0, "%+v", e)
		missing(t, c, "k", "nothing shows how old a Put is")
		_, err := c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown)
	})
}

// With a log an entry may be past its TTL and known to be current: its Age is what the
// log shows, and grows when that is down.
func TestStale_TheLogVouches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: time.Hour, MaxStale: time.Minute, Invalidator: log.invalidator()})
		s.down()
		time.Sleep(10 * time.Minute)
		e, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.True(t, e.Stale)
		assert.LessOrEqual(t, e.Age, 2*testBeat, "nothing was missed")
		_, err = c.Read(t.Context(), "k", Within(time.Minute))
		require.ErrorIs(t, err, errDown, "its TTL is over all the same, for who asks for a bound")
		log.down()
		time.Sleep(30 * time.Second)
		e, err = c.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.GreaterOrEqual(t, e.Age, 29*time.Second)
		time.Sleep(31 * time.Second)
		_, err = c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown, "MaxStale")
		s.up()
		log.up()
	})
}

// A read waits for so long and no longer, who joins the load waits for the rest of it,
// and the load goes on for the next.
func TestSoftLoadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace, SoftLoadTimeout: time.Second})
		s.beforeLoad = func(context.Context, string) error { time.Sleep(3 * time.Second); return nil }
		s.set("k", 20)
		took := func() time.Duration {
			began := time.Now()
			e := load(t, c, "k")
			assert.True(t, e.Stale)
			assert.Equal(t, Version(1), e.Version)
			return time.Since(began)
		}
		first := make(chan time.Duration, 1)
		go func() { first <- took() }()
		time.Sleep(400 * time.Millisecond)
		assert.Equal(t, 600*time.Millisecond, took(), "it joins the load")
		assert.Equal(t, time.Second, <-first)
		assert.Zero(t, took(), "the load has run for longer")
		e, err := c.Read(t.Context(), "k", Within(time.Millisecond)) // joins nothing
		require.NoError(t, err)
		assert.Equal(t, Version(2), e.Version)
		e, ok := c.GetEntry("k")
		assert.True(t, ok)
		assert.Equal(t, Version(2), e.Version, "the load has gone on")
		assert.EqualValues(t, 3, c.Stats().SoftTimeouts)
		assert.EqualValues(t, 3, c.Stats().StaleIfError)

		s.set("cold", 1)
		began := time.Now()
		assert.False(t, load(t, c, "cold").Stale)
		assert.Equal(t, 3*time.Second, time.Since(began), "who has nothing waits")
	})
}

// A caller that gives up gets its own error, and not what it has not asked for in time.
func TestStaleIfError_ACallerThatGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
		s.beforeLoad = hang
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Load(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// A source that is down is asked about a hot key less and less often, at times that
// chance has a part in, and soon again when it has answered.
func TestStale_AFailingSourceIsGivenPauses(t *testing.T) {
	for name, o := range map[string]Options[string, int]{
		"while revalidate": {StaleWhileRevalidate: time.Hour},
		"if error":         {StaleIfError: time.Hour},
		"refresh":          {RefreshAfter: staleTTL - 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				if o.RefreshAfter > 0 {
					o.EntryTTL = func(string, Entry[int]) time.Duration { return time.Hour }
				}
				c := overdueCache(t, s, o)
				s.down()
				ask := func() []time.Duration { return asked(t, c, s, time.Minute) }
				gaps := ask()
				require.InDelta(t, 13, len(gaps), 5, "%v", gaps)
				const slack = 3 * time.Millisecond // until somebody looks, and finds the lock free
				shorter := 0
				for i, gap := range gaps {
					most := min(firstPause<<i, mostPause)
					assert.GreaterOrEqual(t, gap, most/2, "%d of %v", i, gaps)
					assert.LessOrEqual(t, gap, most+slack, "%d of %v", i, gaps)
					if gap < most-slack {
						shorter++
					}
				}
				assert.Greater(t, shorter, len(gaps)/4, "by chance")
				s.up()
				time.Sleep(mostPause)
				load(t, c, "k")
				synctest.Wait()
				e, ok := c.GetEntry("k")
				require.True(t, ok)
				assert.False(t, e.Stale, "it is back")
				if o.RefreshAfter > 0 {
					return
				}
				s.down()
				time.Sleep(staleTTL)
				assert.LessOrEqual(t, ask()[0], firstPause+slack, "it begins anew")
			})
		})
	}
}

// asked reads k every millisecond for so long, and returns the times between the
// attempts to load it.
func asked(t *testing.T, c *Cache[string, int], s *source, d time.Duration) (gaps []time.Duration) {
	t.Helper()
	var last time.Time
	before := s.loadCount()
	for began := time.Now(); time.Since(began) < d; time.Sleep(time.Millisecond) {
		_ = load(t, c, "k")
		synctest.Wait()
		if n := s.loadCount(); n > before {
			require.Equal(t, before+1, n, "one at a time")
			if !last.IsZero() {
				gaps = append(gaps, time.Since(last))
			}
			before, last = n, time.Now()
		}
	}
	return gaps
}

// Keys whose loads have failed together are not tried again together.
func TestStale_RetriesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 200
		s := newSource()
		c := newCache(t, Options[string, int]{Store: s, Shards: 1, TTL: staleTTL, TTLJitter: -1, StaleIfError: time.Hour})
		all := make([]string, keys)
		for i := range keys {
			all[i] = fmt.Sprint(i)
			s.set(all[i], i)
		}
		_, err := c.LoadMany(t.Context(), all)
		require.NoError(t, err)
		time.Sleep(staleTTL)
		s.down()
		var most int
		for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(10 * time.Millisecond) {
			before := s.loadCount()
			found, err := c.LoadMany(t.Context(), all)
			require.NoError(t, err)
			require.Len(t, found, keys)
			if time.Since(began) > 2*time.Second {
				most = max(most, s.loadCount()-before)
			}
		}
		assert.Less(t, most, keys/4, "in 10 ms, of %d keys that began together", keys)
		assert.Positive(t, most)
	})
}

// Nor are replicas, which have failed with the same key at the same time.
func TestStale_ReplicasRetryApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, all := newSource(), map[int64]bool{}
		for range 8 {
			c := newCache(t, Options[string, int]{Store: s, TTL: staleTTL, TTLJitter: -1, StaleIfError: time.Hour})
			s.up()
			s.set("k", 1)
			hold(t, c, "k")
			s.down()
			_, err := c.Read(t.Context(), "k", Linearizable)
			require.ErrorIs(t, err, errDown)
			synctest.Wait()
			hash := c.keys.hash("k")
			p, ok := c.shard(hash).table.Find(hash, "k")
			require.True(t, ok)
			all[p.Head.refreshAt.Load()-c.now()] = true
		}
		assert.Greater(t, len(all), 5)
		s.up()
	})
}

// Overdue entries take room until nobody is served them any more, absences only until
// their TTL.
func TestStale_IsSweptInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace, NegativeTTL: time.Second})
		s.down()
		time.Sleep(staleGrace - time.Second)
		require.NotNil(t, c.entry("k"))
		x := c.Explain("k")
		assert.True(t, x.Overdue)
		assert.Contains(t, x.String(), "served only as stale")
		time.Sleep(time.Second + 10*drainEvery)
		assert.Nil(t, c.entry("k"))
		s.up()
		_, err := c.Load(t.Context(), "none")
		require.ErrorIs(t, err, ErrNotFound)
		require.NotNil(t, c.entry("none"))
		time.Sleep(time.Second)
		assert.False(t, c.Explain("none").Overdue)
		time.Sleep(10 * drainEvery)
		assert.Nil(t, c.entry("none"))
	})
}

// An EntryTTL may end before a refresh is due: then that is due when it has ended.
func TestStaleWhileRevalidate_WithRefreshAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s, RefreshAfter: time.Minute, StaleWhileRevalidate: time.Hour,
			EntryTTL: func(string, Entry[int]) time.Duration { return time.Second }, TTLJitter: -1})
		s.set("k", 10)
		hold(t, c, "k")
		time.Sleep(time.Second + drainEvery/2)
		e, ok := c.GetEntry("k")
		require.True(t, ok && e.Stale)
		synctest.Wait()
		assert.Equal(t, 2, s.loadCount())
	})
}

// The breaker is asked about writes as about loads, and told what the source has to do
// with how they ended.
func TestBreaker_IsToldWhatTheSourceHasToDoWith(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	defer cancel()
	late, cancelLate := context.WithTimeout(t.Context(), time.Minute)
	defer cancelLate()
	for name, tt := range map[string]struct {
		ctx    context.Context
		err    error
		after  error
		base   Version
		exit   func()
		wanted error // told; nil: that the source has answered
	}{
		"committed":        {base: 1},
		"a conflict":       {base: 7},
		"too large":        {base: 1, err: fmt.Errorf("%w: %w", ErrUnavailable, ErrTooLarge)},
		"not committed":    {base: 1, err: fmt.Errorf("%w: refused", ErrUnavailable), wanted: ErrUnavailable},
		"in doubt":         {base: 1, after: errDown, wanted: errDown},
		"its own timeout":  {base: 1, after: context.DeadlineExceeded, wanted: context.DeadlineExceeded},
		"the caller left":  {base: 1, after: context.Canceled, ctx: gone, wanted: context.Canceled},
		"a stray Canceled": {base: 1, after: fmt.Errorf("pool: %w", context.Canceled), wanted: errors.New("pool: context canceled")},
		"panic":            {base: 1, exit: func() { panic("boom") }, wanted: &PanicError{Value: "boom"}},
		"Goexit":           {base: 1, exit: goexit, wanted: errGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			var told []error
			var breaking atomic.Bool
			c := newCache(t, Options[string, int]{Store: s, DoubtTimeout: 500 * time.Millisecond, Breaker: allowFunc(func() (func(error), error) {
				return func(err error) {
					if !breaking.Swap(true) { // what comes after is about the doubt
						told = append(told, err)
					}
				}, nil
			})})
			s.set("k", 10)
			s.beforeWrite = func(context.Context, string) error {
				if tt.exit != nil {
					tt.exit()
				}
				return tt.err
			}
			s.afterWrite = func(context.Context, string) error {
				if tt.ctx == gone {
					cancel()
				}
				return tt.after
			}
			ctx := tt.ctx
			if ctx == nil {
				ctx = late
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = c.CompareAndSet(ctx, "k", tt.base, 20)
			}()
			<-done
			require.Len(t, told, 1)
			if tt.wanted == nil {
				require.NoError(t, told[0])
				return
			}
			require.Error(t, told[0])
			assert.Contains(t, told[0].Error(), tt.wanted.Error())
			assert.Equal(t, errors.Is(tt.wanted, context.Canceled), errors.Is(told[0], context.Canceled), "only that does not count")
			eventually(t, func() bool { return c.Stats().InDoubt == 0 }, "settled")
		})
	}
}

// A write that the breaker refuses is not sent: nothing is in doubt, and what memory
// has stays.
func TestBreaker_AWriteThatIsRefusedIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 10)
		for name, o := range map[string]Options[string, int]{
			"plain": {Store: s}, "strict": {Store: s, Strict: true, Invalidator: log.invalidator(), DoubtTimeout: strictDoubt},
		} {
			b := &stateful{}
			o.Breaker = b
			c := newCache(t, o)
			require.NoError(t, c.Ready(t.Context()))
			time.Sleep(2*strictDoubt + 3*testBeat)
			hold(t, c, "k")
			s.beforeWrite = func(context.Context, string) error { panic("the store was asked") }
			length := log.length()
			for _, state := range []BreakerState{BreakerOpen, BreakerHalfOpen} {
				b.set(state)
				b.probing.Store(true) // somebody else is, when it is half-open
				for _, write := range []func() (Entry[int], error){
					func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 1, 20) },
					func() (Entry[int], error) { return c.Delete(t.Context(), "k", 1) },
					func() (Entry[int], error) { return c.Update(t.Context(), "k", inc) },
				} {
					_, err := write()
					require.ErrorIs(t, err, ErrUnavailable, name)
					requireServed(t, c, "k")
				}
			}
			assert.EqualValues(t, 6, c.Stats().DeclinedWrites, name)
			assert.Zero(t, c.Stats().InDoubt, name)
			assert.Zero(t, c.Stats().Panics, name)
			assert.Equal(t, length, log.length(), "%s: the log was told nothing", name)
			s.beforeWrite = nil
			b.set(BreakerClosed)
			_, err := c.CompareAndSet(t.Context(), "k", 1, 10)
			require.NoError(t, err)
			s.restore("k", 10, 1)
			b.set(BreakerClosed)
		}
	})
}

// A write that the breaker has let through, but that came to no call, is none that the
// source has failed.
func TestBreaker_IsToldOfAWriteThatWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 10)
		var told []error
		c := newCache(t, Options[string, int]{Store: s, Strict: true, Invalidator: log.invalidator(), DoubtTimeout: strictDoubt,
			Breaker: allowFunc(func() (func(error), error) {
				return func(err error) { told = append(told, err) }, nil
			})})
		require.NoError(t, c.Ready(t.Context()))
		time.Sleep(2*strictDoubt + 3*testBeat)
		log.setRefuse(errors.New("no quorum"))
		_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
		require.ErrorIs(t, err, ErrUnavailable)
		log.setRefuse(nil)
		require.Len(t, told, 1)
		require.ErrorIs(t, told[0], context.Canceled, "which does not count")
		assert.Equal(t, row{value: 10, version: 1}, s.get("k"))
	})
}

// A stateful is a breaker whose state a test sets. Half-open it lets one call through at
// a time.
type stateful struct {
	state   atomic.Uint32
	probing atomic.Bool
	asked   atomic.Int64
	told    atomic.Int64
}

func (b *stateful) set(s BreakerState)  { b.state.Store(uint32(s)) }
func (b *stateful) State() BreakerState { return BreakerState(b.state.Load()) }

func (b *stateful) Allow() (func(error), error) {
	b.asked.Add(1)
	switch b.State() {
	case BreakerOpen:
		return nil, errors.New("open")
	case BreakerHalfOpen:
		if b.probing.Swap(true) {
			return nil, errors.New("enough probes")
		}
	}
	return func(err error) {
		b.told.Add(1)
		if b.State() != BreakerHalfOpen {
			return
		}
		b.probing.Store(false)
		if b.set(BreakerClosed); err != nil {
			b.set(BreakerOpen)
		}
	}, nil
}

// A breaker that panics, or ends the goroutine, is no reason to lose a write or to take
// one for made.
func TestBreaker_PanicsAreContained(t *testing.T) {
	for how, fail := range panics {
		for where, b := range map[string]allowFunc{
			"Allow": func() (func(error), error) { fail(); return nil, nil },
			"done":  func() (func(error), error) { return func(error) { fail() }, nil },
		} {
			t.Run(where+" "+how, func(t *testing.T) {
				s := newSource()
				s.set("k", 10)
				c := newCache(t, Options[string, int]{Store: s, Breaker: b, DoubtTimeout: 500 * time.Millisecond})
				returned := false
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, err = c.CompareAndSet(t.Context(), "k", 1, 20)
					returned = true
				}()
				<-done
				assert.Equal(t, how == "panic", returned)
				if where == "Allow" {
					assert.Equal(t, row{value: 10, version: 1}, s.get("k"), "not sent")
					assert.Zero(t, c.Stats().Uncertain)
				} else {
					assert.Equal(t, row{value: 20, version: 2}, s.get("k"))
				}
				if returned && where == "Allow" {
					require.ErrorIs(t, err, ErrUnavailable)
				} else if returned {
					require.NoError(t, err)
					served(t, c, "k", 2, "written")
				}
			})
		}
	}
}

// A breaker that tells no state, or panics over it, leaves none in Stats.
func TestBreaker_State(t *testing.T) {
	c := newCache(t, Options[string, int]{})
	assert.Equal(t, NoBreaker, c.Stats().Breaker)
	c = newCache(t, Options[string, int]{Breaker: &refusing{}, Store: newSource()})
	assert.Equal(t, NoBreaker, c.Stats().Breaker)
	c = newCache(t, Options[string, int]{Breaker: panickingState{}, Store: newSource()})
	assert.Equal(t, NoBreaker, c.Stats().Breaker)
	_, err := c.Load(t.Context(), "k")
	require.ErrorIs(t, err, ErrNotFound)
	assert.NotZero(t, c.Stats().Panics)

	assert.Equal(t, "[none closed half-open open invalid]", fmt.Sprint([]BreakerState{NoBreaker, BreakerClosed, BreakerHalfOpen, BreakerOpen, 9}))
	for s := NoBreaker; s <= BreakerOpen; s++ {
		text, err := s.MarshalText()
		require.NoError(t, err)
		var back BreakerState
		require.NoError(t, back.UnmarshalText(text))
		assert.Equal(t, s, back)
	}
	require.Error(t, new(BreakerState).UnmarshalText([]byte("ajar")))
}

type panickingState struct{}

func (panickingState) Allow() (func(error), error) { return func(error) {}, nil }
func (panickingState) State() BreakerState         { panic("boom") }

// Each change is told once, when it is noticed, and logged.
func TestBreaker_ChangesAreTold(t *testing.T) {
	s, b, book := newSource(), &stateful{}, &logbook{}
	s.set("k", 10)
	b.set(BreakerOpen)
	var changes []Event
	c := newCache(t, Options[string, int]{Store: s, Breaker: b, Logger: book.logger(), OnEvent: func(e Event) { changes = append(changes, e) }})
	read := func() { _, _ = c.Read(t.Context(), "k", Linearizable) }
	assert.Equal(t, BreakerOpen, c.Stats().Breaker)
	assert.Empty(t, changes, "nobody has asked it")
	read()
	read()
	b.set(BreakerHalfOpen)
	s.beforeLoad = func(context.Context, string) error { return errDown }
	read()
	s.beforeLoad = nil
	b.set(BreakerHalfOpen)
	read()
	read()
	var got []string
	for _, e := range changes {
		require.Equal(t, EventBreaker, e.Kind)
		assert.Equal(t, e.From.String()+" to "+e.To.String(), e.Reason)
		got = append(got, e.Reason)
	}
	assert.Equal(t, []string{"closed to open", "open to half-open", "half-open to open", "open to half-open", "half-open to closed"}, got)
	assert.EqualValues(t, 2, c.Stats().BreakerOpens)
	assert.EqualValues(t, 2, c.Stats().DeclinedByBreaker)
	assert.EqualValues(t, 2, c.Stats().Declined)
	assert.Len(t, book.of(t, "tidemark: the breaker has opened, and the source is left alone"), 2)
	assert.Len(t, book.of(t, "tidemark: the breaker has changed"), 3)
}

// Doubts wait behind an open breaker, but not for ever: each is asked about once in a
// DoubtTimeout, and what is asked is a probe as soon as there are probes.
func TestBreaker_DoubtsAreNotDeadlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const doubt = 10 * time.Second
		s, b := newSource(), &stateful{}
		s.set("k", 10)
		var answers atomic.Bool
		var mu sync.Mutex // guards questions
		var questions []time.Time
		s.onOutcome = func(string, OpID) error {
			mu.Lock()
			defer mu.Unlock()
			if questions = append(questions, time.Now()); answers.Load() {
				return nil
			}
			return errDown
		}
		c := newCache(t, Options[string, int]{Store: s, Breaker: b, DoubtTimeout: doubt})
		b.set(BreakerClosed)
		s.afterWrite = func(context.Context, string) error { b.set(BreakerOpen); return errDown }
		_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		time.Sleep(time.Minute)
		mu.Lock()
		assert.InDelta(t, 5, len(questions), 1, "open")
		for i := 1; i < len(questions); i++ {
			assert.InDelta(t, doubt, questions[i].Sub(questions[i-1]), float64(time.Second))
		}
		mu.Unlock()
		told := b.told.Load()
		b.set(BreakerHalfOpen)
		time.Sleep(time.Second)
		assert.Equal(t, told+1, b.told.Load(), "a question is a probe")
		assert.Equal(t, BreakerOpen, b.State(), "and its failure one of the source")
		answers.Store(true)
		b.set(BreakerHalfOpen)
		_, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed)
		assert.Equal(t, BreakerClosed, b.State(), "with nothing but a doubt to ask about")
	})
}

// Where the breaker never lets anything through a doubt is settled all the same.
func TestBreaker_ADoubtBehindOneThatStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), &stateful{}
		s.set("k", 10)
		c := newCache(t, Options[string, int]{Store: s, Breaker: b, DoubtTimeout: time.Second})
		s.afterWrite = func(context.Context, string) error { b.set(BreakerOpen); return errDown }
		_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		_, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed)
	})
}

// What is served stale has been served: the policy hears of it as of any hit, so that
// hot keys stay in memory while the source is down.
func TestStale_CountsAsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
		s.down()
		hash := c.keys.hash("k")
		p, ok := c.shard(hash).table.Find(hash, "k")
		require.True(t, ok)
		p.Head.touches.Store(0)
		assert.True(t, load(t, c, "k").Stale)
		assert.NotZero(t, p.Head.touches.Load()&used)
	})
}

// What is suspect is for the source to confirm. If that does not answer it is lent,
// flagged, with the age of its load: for reads that wait for a load, and for nobody else.
func TestStaleIfError_WhatIsSuspect(t *testing.T) {
	for name, doubt := range map[string]func(*Cache[string, int]){
		"missing messages": func(c *Cache[string, int]) { c.suspect("test") },
		"cut off":          func(c *Cache[string, int]) { c.cutOff() },
		"heard again":      func(c *Cache[string, int]) { c.cutOff(); c.rejoin() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := newCache(t, Options[string, int]{Store: s, TTL: staleTTL, TTLJitter: -1, StaleIfError: staleGrace,
					StaleWhileRevalidate: staleGrace, MaxStale: time.Minute})
				s.set("k", 10)
				hold(t, c, "k")
				time.Sleep(time.Second)
				doubt(c)
				s.down()
				for how, read := range staleReaders {
					e, err := read(c, t.Context())
					require.NoError(t, err, how)
					assert.Equal(t, Entry[int]{Value: 10, Version: 1, Age: time.Second, Stale: true}, e, how)
				}
				x := c.Explain("k")
				assert.True(t, x.Suspect && x.IfError && !x.Served)
				assert.Contains(t, x.String(), "lent as stale while the source does not answer")
				assert.GreaterOrEqual(t, c.Stats().StaleIfError, uint64(len(staleReaders)))
				_, ok := c.Get("k")
				assert.False(t, ok, "Get cannot say it")
				_, ok = c.GetEntry("k")
				assert.False(t, ok, "GetEntry waits for no load")
				for _, level := range []Level{Linearizable, Within(time.Hour), AtLeast(2)} {
					_, err := c.Read(t.Context(), "k", level)
					require.ErrorIs(t, err, errDown, level)
				}
				time.Sleep(time.Minute - time.Second)
				assert.True(t, load(t, c, "k").Stale)
				time.Sleep(time.Nanosecond)
				_, err := c.Load(t.Context(), "k")
				require.ErrorIs(t, err, errDown, "MaxStale")
				s.up()
				time.Sleep(mostPause)
				e := load(t, c, "k")
				assert.Equal(t, Entry[int]{Value: 10, Version: 1}, e, "confirmed")
			})
		})
	}
}

// What was told while it is suspect binds it as ever, and it counts as suspect until the
// source has said so.
func TestStaleIfError_WhatIsSuspectIsNotBelowTheTideMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
		c.suspect("test")
		s.set("k", 20)
		require.NoError(t, c.Invalidate(t.Context(), "k", 2))
		s.down()
		_, err := c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown)
		s.up()
		assert.Equal(t, Version(2), load(t, c, "k").Version)
		require.NoError(t, c.InvalidateAll(t.Context()))
		c.suspect("test")
		s.down()
		_, err = c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown, "thrown away before")
		assert.False(t, c.Explain("k").IfError)
	})
}

// Of two who let go of the bypass the one that is late takes nothing back.
func TestStaleIfError_DistrustOnlyGrows(t *testing.T) {
	c := newCache(t, Options[string, int]{Store: newSource()})
	c.distrust(8)
	c.distrust(4)
	assert.EqualValues(t, 8, c.distrusted.Load())
	c.distrust(12)
	assert.EqualValues(t, 12, c.distrusted.Load())
}

// No mark vouches for what is suspect: the log goes on, and the entry's age with it.
func TestStaleIfError_TheLogDoesNotVouchForWhatIsSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: time.Hour, Invalidator: log.invalidator()})
		c.suspect("test")
		s.down()
		time.Sleep(10 * time.Minute)
		assert.True(t, within(2*testBeat, c.Stats().Fresh), "the replica is fresh")
		e := load(t, c, "k")
		assert.True(t, e.Stale)
		assert.GreaterOrEqual(t, e.Age, 10*time.Minute)
		s.up()
	})
}

// An entry that was confirmed since is of the era that counts.
func TestStale_AfterASuspicion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
		c.suspect("test")
		load(t, c, "k")
		time.Sleep(staleTTL)
		s.down()
		assert.True(t, load(t, c, "k").Stale)
		for range c.All() {
			t.Error("All leaves it out")
		}
		c.SetBypass(true)
		c.SetBypass(false)
		_, err := c.Load(t.Context(), "k")
		require.ErrorIs(t, err, errDown)
		s.up()
		time.Sleep(mostPause)
		load(t, c, "k")
		c.suspect("test")
		s.down()
		assert.True(t, load(t, c, "k").Stale, "what came after the bypass is lent")
	})
}

// A cache that is closed lends nothing: it hears of no change any more.
func TestStale_NotAfterClose(t *testing.T) {
	for name, read := range staleReaders {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := overdueCache(t, s, Options[string, int]{StaleWhileRevalidate: staleGrace, StaleIfError: staleGrace})
				s.down()
				e, err := read(c, t.Context())
				require.NoError(t, err)
				require.True(t, e.Stale)
				synctest.Wait()
				s.beforeLoad = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
				s.up()
				waiting := make(chan error, 1)
				go func() {
					time.Sleep(time.Second) // the pause is over
					_, err := c.Read(t.Context(), "k", Level{prompt: true})
					waiting <- err
				}()
				time.Sleep(2 * time.Second)
				require.NoError(t, c.Close(t.Context()))
				require.ErrorIs(t, <-waiting, ErrClosed)
				_, err = read(c, t.Context())
				require.ErrorIs(t, err, ErrClosed, "a load has just failed")
				missing(t, c, "k", "closed")
			})
		})
	}
}

// Who waits for a load when the cache is closed gets ErrClosed, and nothing that is stale.
func TestStale_NotWhileClosing(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			c := overdueCache(t, s, Options[string, int]{StaleIfError: staleGrace})
			s.beforeLoad = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
			waiting := make(chan error, 1)
			go func() {
				_, err := c.Load(t.Context(), "k")
				waiting <- err
			}()
			synctest.Wait()
			require.NoError(t, c.Close(t.Context()))
			require.ErrorIs(t, <-waiting, ErrClosed)
		})
	}
}

// However many notice a change at once, it is told once.
func TestBreaker_AChangeIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &slowState{stateful: &stateful{}}
		b.set(BreakerClosed)
		c := newCache(t, Options[string, int]{Store: newSource(), Breaker: b})
		held := make(chan struct{})
		b.held.Store(&held)
		go func() { _, _ = c.Load(t.Context(), "slow") }()
		synctest.Wait()
		b.held.Store(nil)
		b.set(BreakerOpen)
		_, err := c.Load(t.Context(), "quick")
		require.ErrorIs(t, err, ErrUnavailable)
		close(held)
		synctest.Wait()
		assert.EqualValues(t, 1, c.Stats().BreakerOpens)
	})
}

// slowState holds up who has asked for its state.
type slowState struct {
	*stateful
	held atomic.Pointer[chan struct{}]
}

func (b *slowState) State() BreakerState {
	state := b.stateful.State()
	if held := b.held.Load(); held != nil {
		<-*held
	}
	return state
}

// A load that has not failed ends the pause of those that have, also if what it brought
// is not let in: the source answers.
func TestStaleIfError_ASuccessEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("k", 1)
		c := newCache(t, Options[string, int]{Store: s, MaxCost: small, Shards: 1, TTL: time.Hour, TTLJitter: -1,
			RefreshAfter: 10 * time.Minute, StaleIfError: time.Hour})
		load(t, c, "k")
		time.Sleep(10*time.Minute + time.Second)
		s.down()
		load(t, c, "k") // a hit, and the refresh behind it fails
		synctest.Wait()
		s.up()
		time.Sleep(time.Second)
		s.afterLoad = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		load(t, c, "k") // a hit, and the refresh behind it does not
		synctest.Wait()
		c.suspect("test") // so that it is not let in
		time.Sleep(2 * time.Second)
		s.set("k", 2)
		e := load(t, c, "k")
		assert.Equal(t, 2, e.Value)
		assert.False(t, e.Stale)
	})
}

// A call of the source that hangs, and does not heed its context, keeps the breaker
// waiting for its word no longer than it may take.
func TestBreaker_ACallThatHangs(t *testing.T) {
	for where, call := range map[string]func(c *Cache[string, int]){
		"load":  func(c *Cache[string, int]) { _, _ = c.Load(context.Background(), "new") },
		"audit": func(c *Cache[string, int]) { _, _ = c.Audit(context.Background()) },
		"write": func(c *Cache[string, int]) { _, _ = c.Delete(context.Background(), "k", 1) },
		"doubt": func(c *Cache[string, int]) { _, _ = c.Delete(context.Background(), "k", 1) },
	} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, b, until := newSource(), &verdicts{}, make(chan struct{})
				s.set("k", 1)
				c := newCache(t, Options[string, int]{Store: s, Breaker: b, LoadTimeout: time.Second, DoubtTimeout: 2 * time.Second, Audit: onDemand()})
				synctest.Wait() // the auditor's first cycle has nothing to look at
				load(t, c, "k")
				hang := func(context.Context, string) error { <-until; return nil }
				switch where {
				case "write":
					s.beforeWrite = hang
				case "doubt":
					s.afterWrite = func(context.Context, string) error { return context.Canceled }
					s.onOutcome = func(string, OpID) error { <-until; return nil }
				default:
					s.beforeLoad = hang
				}
				go call(c)
				time.Sleep(3 * time.Second)
				got := b.all()
				assert.Equal(t, context.DeadlineExceeded, got[len(got)-1])
				close(until)
				synctest.Wait()
				if where == "load" { // after which nothing else is called
					assert.Len(t, b.all(), len(got), "it is told of a call once")
				}
			})
		})
	}
}

// verdicts is a breaker that lets everything through, and remembers what it is told.
type verdicts struct {
	mu   sync.Mutex
	told []error
}

func (b *verdicts) Allow() (func(error), error) {
	return func(err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.told = append(b.told, err)
	}, nil
}

func (b *verdicts) all() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.told)
}

// A breaker that cannot be asked refuses; so a write in doubt is asked about all the same
// when it must be.
func TestBreaker_ThatPanicsPutsOffADoubtOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("k", 1)
		var mad atomic.Bool
		b := allowFunc(func() (func(error), error) {
			if mad.Load() {
				panic("mad")
			}
			return func(error) {}, nil
		})
		s.beforeWrite = func(context.Context, string) error { mad.Store(true); return nil }
		s.afterWrite = func(context.Context, string) error { return errDown }
		c := newCache(t, Options[string, int]{Store: s, Breaker: b, DoubtTimeout: time.Second})
		_, err := c.CompareAndSet(t.Context(), "k", 1, 2)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		time.Sleep(5 * time.Second)
		assert.Zero(t, c.Stats().InDoubt)
	})
}

// However long a source was away, and however seldom an entry is refreshed when all is
// well, what is overdue is loaded ten seconds after it is back.
func TestStaleIfError_EndsSoonAfterTheOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("k", 1)
		c := newCache(t, Options[string, int]{Store: s, MaxCost: small, Shards: 1, TTL: 31 * time.Minute, TTLJitter: -1,
			RefreshAfter: 30 * time.Minute, StaleIfError: 24 * time.Hour})
		load(t, c, "k")
		s.down()
		loads := s.loadCount()
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(2 * time.Second) {
			load(t, c, "k")
		}
		assert.Less(t, s.loadCount()-loads, int(time.Hour/(mostPause/2))+10, "it was left alone meanwhile")
		s.up()
		s.set("k", 2)
		time.Sleep(mostPause)
		assert.Equal(t, 2, load(t, c, "k").Value)
	})
}

// The pauses after failures are those of a state: with a newer one they begin anew, also
// if no load has brought it.
func TestStale_AnythingNewBeginsThePausesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := overdueCache(t, s, Options[string, int]{StaleIfError: time.Hour})
		s.down()
		require.Greater(t, len(asked(t, c, s, time.Minute)), 5)
		require.Equal(t, Applied, c.Put("k", 20, 2))
		time.Sleep(staleTTL)
		assert.LessOrEqual(t, asked(t, c, s, time.Minute)[0], firstPause+3*time.Millisecond)
	})
}
