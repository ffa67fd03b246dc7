package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// followers returns n replicas on one log, once they serve.
func followers(t testing.TB, n int, s *source, log *memLog, o Options[string, int]) (all []*Cache[string, int]) {
	t.Helper()
	o.Store, o.Invalidator, o.MaxCost, o.Shards = s, log.invalidator(), small, 1
	for range n {
		c := newCache(t, o)
		require.NoError(t, c.Ready(t.Context()))
		all = append(all, c)
	}
	return all
}

// Within is served from memory for as long as the log vouches for it, however
// long ago the entry was loaded, and an Age says for how long that is.
func TestWithin_TheLogVouches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		loads := s.loadCount()
		for range 50 {
			time.Sleep(testBeat)
			e, err := c.Read(t.Context(), "k", Within(2*testBeat))
			require.NoError(t, err)
			assert.LessOrEqual(t, e.Age, 2*testBeat)
			assert.GreaterOrEqual(t, e.Age, time.Duration(0))
		}
		assert.Equal(t, loads, s.loadCount(), "memory was enough")
		assert.LessOrEqual(t, c.Stats().Fresh, 2*testBeat)
		assert.GreaterOrEqual(t, c.Stats().Fresh, time.Duration(0))
	})
}

// What was acknowledged before this replica joined, or while it was away, is not
// in its tide, so the log does not vouch for what a Put brings.
func TestWithin_NobodyVouchesForAPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		a := followers(t, 1, s, log, Options[string, int]{})[0]
		_, err := a.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		time.Sleep(time.Minute)
		for name, tt := range map[string]struct {
			level    Level
			maxStale time.Duration
		}{"Within": {Within(2 * testBeat), 0}, "After": {After(a.Token()), 0}, "MaxStale": {Any, time.Hour}} {
			b := followers(t, 1, s, log, Options[string, int]{MaxStale: tt.maxStale})[0]
			require.Equal(t, Applied, b.Put("k", 1, 1), "nothing here knows better")
			time.Sleep(3 * testBeat)
			e, err := b.Read(t.Context(), "k", tt.level)
			require.NoError(t, err)
			assert.Equal(t, 2, e.Value, name)
		}
	})
}

// An outage of the log in which nothing is lost: the others do not fall silent
// because this replica is back before them.
func TestLog_AnOutageMakesNothingSuspect(t *testing.T) {
	for _, off := range []time.Duration{0, 30, 70, 110, 150, 190, 230} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				log.beat = defaultProbe
				s.set("k", 1)
				a := followers(t, 1, s, log, Options[string, int]{})[0]
				time.Sleep(off * time.Millisecond)
				b := followers(t, 1, s, log, Options[string, int]{})[0]
				time.Sleep(10 * time.Second)
				hold(t, a, "k")
				hold(t, b, "k")
				log.down()
				time.Sleep(4 * time.Second)
				log.up()
				time.Sleep(3 * time.Second)
				requireServed(t, a, "k")
				requireServed(t, b, "k")
			})
		})
	}
}

// A session's readers, with messages being applied at any moment: what a token
// stands for is asked before the entry is read (S62).
func TestAfter_NeverBelowTheToken(t *testing.T) {
	s, log := newSource(), newMemLog()
	log.beat = minBeat
	s.set("k", 0)
	r := followers(t, 2, s, log, Options[string, int]{})
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	type write struct {
		token   Token
		version Version
	}
	var newest atomic.Pointer[write]
	newest.Store(&write{Token{}, 1})
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			e, err := r[0].Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
			if !assert.NoError(t, err) {
				return
			}
			newest.Store(&write{r[0].Token(), e.Version})
			time.Sleep(time.Millisecond)
		}
	})
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				w := newest.Load()
				e, err := r[1].Read(t.Context(), "k", After(w.token))
				if !assert.NoError(t, err) || !assert.GreaterOrEqual(t, e.Version, w.version) {
					stop()
					return
				}
			}
		})
	}
	wg.Wait()
}

// What returned ErrNotBroadcast is part of the session all the same.
func TestAfter_WhatIsNotBroadcastYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{})
		hold(t, r[1], "k")
		time.Sleep(3 * testBeat)
		log.setRefuse(errors.New("no quorum"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := r[0].Update(ctx, "k", func(Entry[int]) (int, error) { return 2, nil })
		require.ErrorIs(t, err, ErrNotBroadcast)
		e, err := r[1].Read(t.Context(), "k", After(r[0].Token()))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
		log.setRefuse(nil)
		time.Sleep(time.Second)
		assert.False(t, r[0].Token().full, "it is out")
	})
}

// Without a Log a write returns before its message is out, also if no message ever
// was: its token stands for it all the same.
func TestAfter_WhatIsWrittenBeforeAnythingIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), newBus()
		s.set("k", 1)
		reader := replicas(t, 1, s, b)[0]
		hold(t, reader, "k")
		b.mu.Lock()
		b.refuse = errors.New("no connection yet")
		b.mu.Unlock()
		writer := newCache(t, Options[string, int]{Store: s, Invalidator: b.invalidator()})
		_, err := writer.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		e, err := reader.Read(t.Context(), "k", After(writer.Token()))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
		b.mu.Lock()
		b.refuse = nil
		b.mu.Unlock()
	})
}

// Each message takes longer than as many beats as there are probes remembered.
func TestWithin_AReaderThatLagsIsFreshAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		log.beat, log.delay = minBeat, 500*time.Millisecond
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		for range 60 {
			time.Sleep(time.Second)
			assert.GreaterOrEqual(t, c.Stats().Fresh, log.delay)
			assert.Less(t, c.Stats().Fresh, 4*log.delay)
		}
	})
}

// Without a Log an entry is as old as its load, and nothing is known of a Put.
func TestWithin_WithoutALog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Store: s})
		s.set("k", 1)
		s.set("put", 1)
		load(t, c, "k")
		require.Equal(t, Applied, c.Put("put", 1, 1))
		time.Sleep(time.Second)
		_, err := c.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, 1, s.loadCount())
		_, err = c.Read(t.Context(), "k", Within(time.Second-1))
		require.NoError(t, err)
		assert.Equal(t, 2, s.loadCount(), "older than that")
		_, err = c.Read(t.Context(), "put", Within(time.Hour))
		require.NoError(t, err)
		assert.Equal(t, 3, s.loadCount(), "nothing vouches for a Put")
		assert.Negative(t, c.Stats().Fresh)
		assert.Equal(t, Linearizable, Within(0))
		assert.Equal(t, Linearizable, Within(-1))
	})
}

// A message takes half a second. The age counts from when the probe was sent, not
// from when it came back: a change may have been acknowledged in between.
func TestS61_AgeCountsFromTheSendingOfAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 500 * time.Millisecond
		s, log := newSource(), newMemLog()
		log.delay = delay
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		time.Sleep(10 * delay)
		for range 100 {
			time.Sleep(testBeat / 3)
			e, ok := c.GetEntry("k")
			require.True(t, ok)
			require.GreaterOrEqual(t, e.Age, delay)
			require.LessOrEqual(t, e.Age, delay+2*testBeat)
		}
	})
}

// The log cannot be read. What memory has grows old: it is served at Any, and
// Within a bound only as long as that is shown. A load is fresh by itself.
func TestWithin_WhenTheLogIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		reload := followers(t, 1, s, log, Options[string, int]{})[0]
		fail := followers(t, 1, s, log, Options[string, int]{OnStale: Fail, Level: Within(time.Second)})[0]
		capped := followers(t, 1, s, log, Options[string, int]{MaxStale: 5 * time.Second})[0]
		for _, c := range []*Cache[string, int]{reload, fail, capped} {
			hold(t, c, "k")
		}
		time.Sleep(time.Second)
		log.down()
		time.Sleep(2 * time.Second)
		s.set("k", 2) // and nobody can be told

		e, ok := reload.GetEntry("k")
		require.True(t, ok, "Any takes what there is")
		assert.Equal(t, 1, e.Value)
		assert.GreaterOrEqual(t, e.Age, 2*time.Second, "and is told how old it may be")

		_, ok = fail.Get("k")
		assert.False(t, ok, "its level is Within a second")
		_, err := fail.Load(t.Context(), "k")
		require.ErrorIs(t, err, ErrStale)
		_, err = fail.LoadMany(t.Context(), []string{"k", "other"})
		require.ErrorIs(t, err, ErrStale)
		assert.ErrorContains(t, err, "within 1s")

		loads := s.loadCount()
		e, err = reload.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
		assert.Equal(t, loads+1, s.loadCount())
		time.Sleep(time.Second)
		_, err = reload.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, loads+1, s.loadCount(), "the load is not older than that")
		time.Sleep(time.Nanosecond)
		_, err = reload.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, loads+2, s.loadCount())

		_, ok = capped.Get("k")
		assert.True(t, ok)
		time.Sleep(5 * time.Second)
		_, ok = capped.Get("k")
		assert.False(t, ok, "MaxStale")
		assert.Equal(t, 2, load(t, capped, "k").Value)

		log.up()
		settled(t, s, reload, capped)
		time.Sleep(2 * retryMax)
		_, err = fail.Load(t.Context(), "k")
		require.NoError(t, err, "and all is well again")
	})
}

// A load that runs is old enough for a read Within a bound, or too old.
func TestWithin_JoinsOnlyALoadThatBeganInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s})
		s.set("k", 1)
		s.afterLoad = func(context.Context, string) error { time.Sleep(10 * time.Second); return nil }
		first := loading(t, c, "k", Any)
		time.Sleep(2 * time.Second)
		s.set("k", 2) // acknowledged two seconds after that load began
		joins := loading(t, c, "k", Within(2*time.Second))
		synctest.Wait()
		assert.Equal(t, 1, s.loadCount())
		time.Sleep(2 * time.Second)
		needsMore := loading(t, c, "k", Within(2*time.Second))
		synctest.Wait()
		assert.Equal(t, 2, s.loadCount())
		assert.Equal(t, 1, value(t, first).Value)
		assert.Equal(t, 1, value(t, joins).Value)
		assert.Equal(t, 2, value(t, needsMore).Value)
	})
}

// The log forgot, the replica began anew: what vouched before vouches no more.
func TestWithin_AGapVouchesForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		time.Sleep(3 * testBeat)
		log.unreadable(fmt.Errorf("purged: %w", ErrGap))
		synctest.Wait()
		assert.Negative(t, c.Stats().Fresh)
		requireNotServed(t, c, "k")
		log.up()
		settled(t, s, c)
		assert.GreaterOrEqual(t, c.Stats().Fresh, time.Duration(0))
	})
}

// The machine was suspended, or its wall clock set forward: until a probe is back
// that was sent since, an entry is as old as the wall clock says.
func TestS64_TheClockThatAdvancedMoreCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		time.Sleep(3 * testBeat)
		log.down() // the network is not up yet
		synctest.Wait()
		suspended(c)
		e, ok := c.GetEntry("k")
		require.True(t, ok)
		assert.GreaterOrEqual(t, e.Age, time.Hour)
		loads := s.loadCount()
		_, err := c.Read(t.Context(), "k", Within(time.Minute))
		require.NoError(t, err)
		assert.Equal(t, loads+1, s.loadCount())
		log.up()
		time.Sleep(time.Second)
		e, _ = c.GetEntry("k")
		assert.Less(t, e.Age, time.Minute, "a probe since then has come back")
	})
}

// suspended makes it appear as if the wall clock had gained an hour on the
// monotonic one since the log has vouched last.
func suspended(c *Cache[string, int]) {
	mark := c.fresh.Mark()
	c.fresh.Reset(0)
	c.fresh.Advance(replica.Moment{Mono: mark.Mono, Lead: -int64(time.Hour)})
}

// The same of what a load or a write returns itself: the machine was suspended for
// an hour while it was on its way.
func TestS64_ALoadThatSleptSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		before := c.moments()
		before.Lead -= int64(time.Hour)
		f := &flight[string, int]{done: make(chan struct{}), began: before, entry: Entry[int]{Version: 1}}
		close(f.done)
		e, ok, err := c.land(t.Context(), f, &waiter[string, int]{key: "k"})
		require.NoError(t, err)
		require.True(t, ok)
		assert.GreaterOrEqual(t, e.Age, time.Hour, "a load")

		e, err = c.committed(t.Context(), &write[string, int]{key: "k", hash: c.keys.hash("k"), base: 1, began: before}, 2)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, e.Age, time.Hour, "a write")

		all := gather([]find[string, int]{{"k", Entry[int]{Version: 1}, before}}, c.moments())
		assert.GreaterOrEqual(t, all["k"].Age, time.Hour, "one of many, while the others were loaded")
	})
}

// A load ended between the look without the lock and the one with it: the mark
// that was read before both vouches for the hit.
func TestS64_AHitUnderTheLockIsAsOldAsAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		log.down()
		synctest.Wait()
		suspended(c)
		e, err := c.await(t.Context(), &waiter[string, int]{key: "k", hash: c.keys.hash("k")})
		require.NoError(t, err)
		assert.GreaterOrEqual(t, e.Age, time.Hour)
		log.up()
	})
}

// With a Log a write returns when that has it. Before its context ends that may
// not be, which is told; what it wrote is committed all the same.
func TestLog_AWriteIsAcknowledgedWhenTheLogHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{})
		hold(t, r[1], "k")
		log.setRefuse(errors.New("no quorum"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e, err := r[0].Update(ctx, "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.ErrorIs(t, err, ErrNotBroadcast)
		assert.Equal(t, 2, e.Value)
		assert.Equal(t, row{value: 2, version: 2}, s.get("k"))
		v, ok := r[0].Get("k")
		assert.True(t, ok && v == 2, "it is readable here")
		requireServed(t, r[1], "k")
		log.setRefuse(nil)
		time.Sleep(2 * time.Second)
		requireNotServed(t, r[1], "k")
		_, err = r[0].Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.NoError(t, err)
		synctest.Wait()
		requireNotServed(t, r[1], "k")
	})
}

// A write in doubt is told to be committed when the log has that.
func TestLog_ADoubtIsSettledWhenTheLogHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{})
		s.afterWrite = func(context.Context, string) error { return errAnswerLost }
		log.setRefuse(errors.New("no quorum"))
		_, err := r[0].CompareAndSet(t.Context(), "k", 1, 2)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _, err = uncertain.Wait(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		log.setRefuse(nil)
		v, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed && v == 2)
		synctest.Wait()
		requireNotServed(t, r[1], "k")
	})
}

// A boundOracle knows when which version of "k" came to count, and holds against it
// what a replica serves that says that it is within the bound.
type boundOracle struct {
	bound           time.Duration
	served, bounded atomic.Int64 // entries that were served, and those of them within the bound

	mu    sync.Mutex // guards known
	known []knownVersion
}

type knownVersion struct {
	at      time.Time
	version Version
}

// counts notes that v counts from now on.
func (o *boundOracle) counts(v Version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known = append(o.known, knownVersion{time.Now(), v})
}

// newest returns the newest version that counted before at.
func (o *boundOracle) newest(at time.Time) Version {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := sort.Search(len(o.known), func(i int) bool { return !o.known[i].at.Before(at) })
	if i == 0 {
		return 0
	}
	return o.known[i-1].version
}

// read reads "k" at c once, and reports whether that was served within the bound.
func (o *boundOracle) read(t *testing.T, c *Cache[string, int]) (within bool) {
	began := time.Now()
	e, ok := c.GetEntry("k")
	if !ok {
		_, err := c.Load(t.Context(), "k")
		assert.NoError(t, err)
		return false
	}
	o.served.Add(1)
	if e.Age < 0 || e.Age > o.bound {
		return false // it says itself that it may be older
	}
	o.bounded.Add(1)
	if want := o.newest(began.Add(-o.bound)); e.Version < want {
		t.Errorf("beyond the bound: version %d of age %v, but %d counted %v before", e.Version, e.Age, want, o.bound)
	}
	return true
}

// Reads Within a bound never miss a change that was acknowledged longer ago than
// that before they began, whatever the log does; readers that stop anywhere in
// between included, which is what so many of them are for, on more threads than
// there are processors: the system takes those away where it likes (S62, I6).
func TestWithin_NeverBeyondTheBound(t *testing.T) {
	const bound, readers = 20 * time.Millisecond, 24
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(readers))
	s, log := newSource(), newMemLog()
	log.beat = minBeat
	s.set("k", 0)
	r := followers(t, 2, s, log, Options[string, int]{TTL: time.Hour}) // so that a read looks at the clock, and takes its time
	acknowledged := &boundOracle{bound: bound}
	acknowledged.counts(1)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			e, err := r[0].Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
			if assert.NoError(t, err) {
				acknowledged.counts(e.Version)
			}
			time.Sleep(rand.N(bound / 4))
		}
	})
	wg.Go(func() { // the log is late, or cannot be read for a while
		for ctx.Err() == nil {
			log.setDelay(2*bound + rand.N(2*bound))
			time.Sleep(2 * bound)
			if rand.IntN(4) == 0 {
				log.fail(errors.New("connection reset"))
			}
			log.setDelay(0)
			time.Sleep(2 * bound)
		}
		log.setDelay(0)
	})
	for range readers {
		wg.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				acknowledged.read(t, r[1])
			}
		})
	}
	wg.Wait()
	t.Logf("%d served, %d of them within %v", acknowledged.served.Load(), acknowledged.bounded.Load(), bound)
	assert.Greater(t, acknowledged.bounded.Load(), int64(1000), "the bound was tried")
}

// A reader that heeds no context ends when it is closed, and a Hint beside the log
// that never returns holds nothing up.
func TestLog_CloseEndsWhatHeedsNoContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		stubborn := &jammedHint{bus: newBus(), free: make(chan struct{})}
		inv := log.invalidator()
		inv.Log, inv.Hint = heedless{log}, stubborn
		c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: inv})
		require.NoError(t, err)
		require.NoError(t, c.Ready(t.Context()))
		stubborn.stuck.Store(true)
		time.Sleep(2 * testBeat) // until a message is stuck there
		began := time.Now()
		require.NoError(t, c.Close(t.Context()), "the log has everything")
		assert.LessOrEqual(t, time.Since(began), time.Second)
		close(stubborn.free)
	})
}

// heedless is a log whose readers look at no context.
type heedless struct{ *memLog }

func (l heedless) Open(ctx context.Context, from uint64) (LogReader, error) {
	r, err := l.memLog.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	return heedlessReader{r, life, end}, nil
}

type heedlessReader struct {
	LogReader
	life context.Context
	end  context.CancelFunc
}

func (r heedlessReader) Next(context.Context) (uint64, []byte, error) {
	return r.LogReader.Next(r.life)
}
func (r heedlessReader) Close() error { r.end(); return r.LogReader.Close() }

// A session takes what it has done along, and sees it at every replica.
func TestAfter_OwnWritesAreSeenElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{})
		time.Sleep(3 * testBeat)
		hold(t, r[1], "k")
		log.setDelay(10 * time.Second)
		time.Sleep(time.Second) // the readers have taken their last message without delay
		before := r[0].Token()
		_, err := r[0].Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.NoError(t, err)
		token := r[0].Token()
		requireServed(t, r[1], "k") // at Any it is what it was

		loads := s.loadCount()
		e, err := r[1].Read(t.Context(), "k", After(token))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
		assert.Equal(t, loads+1, s.loadCount(), "the replica has not heard of it yet")
		e, err = r[0].Read(t.Context(), "k", After(token))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
		assert.Equal(t, loads+1, s.loadCount(), "where it was made it is in force")

		time.Sleep(12 * time.Second)
		loads = s.loadCount()
		_, err = r[1].Read(t.Context(), "k", After(token.Join(before)))
		require.NoError(t, err)
		assert.Equal(t, loads, s.loadCount(), "memory is enough now")
		_, err = r[1].Read(t.Context(), "k", After(Token{full: true}))
		require.NoError(t, err)
		assert.Equal(t, loads+1, s.loadCount(), "a token that stands for everything")
		log.setDelay(0)
	})
	alone := newCache(t, Options[string, int]{MaxCost: small})
	assert.Equal(t, Token{}, alone.Token())
	assert.Equal(t, Any, After(Token{}))
}

func TestToken_Text(t *testing.T) {
	a, b := Token{parts: []tokenPart{{7, 36}}}, Token{parts: []tokenPart{{1 << 63, 1}, {7, 35}}}
	for text, token := range map[string]Token{
		"-": {}, "*": {full: true}, "7-10": a, "7-10.1y2p0ij32e8e8-1": a.Join(b),
	} {
		assert.Equal(t, text, token.String())
		var back Token
		require.NoError(t, back.UnmarshalText([]byte(text)))
		assert.Equal(t, token, back)
		raw, err := token.MarshalText()
		require.NoError(t, err)
		assert.Equal(t, text, string(raw))
	}
	for _, text := range []string{"", "7", "7-", "-7", "7-1.", "8-1.7-1", "7-1.7-1", "07-1", "7-01", "A-1", "7-+1", "zzzzzzzzzzzzzz-1",
		strings.Repeat("1-1.", 20) + "1-1", strings.Repeat("x", 1000)} {
		token := a
		require.ErrorIs(t, token.UnmarshalText([]byte(text)), errToken, "%q", text)
		assert.Equal(t, a, token, "it is left as it was")
	}
	many := Token{}
	for i := range uint64(maxTokenParts) {
		many = many.Join(Token{parts: []tokenPart{{i + 1, 1}}})
	}
	assert.Len(t, many.parts, maxTokenParts)
	assert.Equal(t, Token{full: true}, many.Join(Token{parts: []tokenPart{{100, 1}}}))
	assert.Equal(t, Token{full: true}, Token{}.Join(Token{full: true}))
}

func FuzzToken(f *testing.F) {
	for _, seed := range []string{"-", "*", "7-10", "7-10.8-1", "0-0", "7-10.7-10"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var token Token
		if token.UnmarshalText([]byte(text)) == nil && token.String() != text {
			t.Fatalf("%q is read as %q", text, token)
		}
	})
}

// Ready says what it waits for.
func TestReady_SaysWhatKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		log.setRefuse(errors.New("stream has the wrong retention"))
		c, _ := listener(t, newSource(), log.invalidator())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Ready(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "stream has the wrong retention")
	})
}

// A replica says what it can say of its entries.
func TestStats_State(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log, b := newSource(), newMemLog(), newBus()
		state := func(c *Cache[string, int]) string { return c.Stats().State.String() }
		assert.Equal(t, "alone", state(onSource(t, s)))

		hears, _ := joined(t, s, b)
		assert.Equal(t, "fresh", state(hears))
		b.lose("test")
		assert.Equal(t, "joining", state(hears))

		for _, o := range []Options[string, int]{{}, {Strict: true}} {
			c := followers(t, 1, s, log, o)[0]
			assert.Equal(t, "fresh", state(c))
			log.setRefuse(errors.New("no quorum"))
			log.fail(errors.New("no quorum"))
			time.Sleep((missedBeats - 1) * testBeat)
			assert.Equal(t, "fresh", state(c))
			time.Sleep(2 * testBeat)
			assert.Equal(t, "suspect", state(c))
			log.setRefuse(nil)
			time.Sleep(time.Second)
			assert.Equal(t, "fresh", state(c))
			log.fail(fmt.Errorf("purged: %w", ErrGap))
			log.setShut(errors.New("not yet"))
			synctest.Wait()
			assert.Equal(t, "joining", state(c))
			log.setShut(nil)
			time.Sleep(time.Second)
			assert.Equal(t, "fresh", state(c))
			require.NoError(t, c.Close(t.Context()))
			assert.Equal(t, "ended", state(c))
		}
		assert.Equal(t, "invalid", State(99).String())
	})
}

// The log is down for everybody, and nothing in memory can be shown to be within the
// bound: the database is asked for versions, many at a time, and for no value.
func TestS68_TheLogIsDownForEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, readers, bound, latency, during = 400, 100, 500 * time.Millisecond, 20 * time.Millisecond, 5 * time.Second
		s, log := &versionSource{source: newSource()}, newMemLog()
		var r []*Cache[string, int]
		for range 3 {
			c := newCache(t, Options[string, int]{MaxCost: 4 * keys, Store: s, Invalidator: log.invalidator()})
			require.NoError(t, c.Ready(t.Context()))
			r = append(r, c)
		}
		for k := range keys {
			s.set(strconv.Itoa(k), k)
			for _, c := range r {
				hold(t, c, strconv.Itoa(k))
			}
		}
		loads := s.loadCount()
		log.setRefuse(errors.New("no quorum"))
		log.fail(errors.New("no quorum"))
		s.before = func(context.Context, []string) error { time.Sleep(latency); return nil }
		var reads atomic.Int64
		var wg sync.WaitGroup
		until := time.Now().Add(during)
		for i := range readers * len(r) {
			wg.Go(func() {
				for k := i; time.Now().Before(until); k++ {
					e, err := r[i%len(r)].Read(t.Context(), strconv.Itoa(k%keys), Within(bound))
					assert.NoError(t, err)
					assert.LessOrEqual(t, e.Age, bound)
					reads.Add(1)
					time.Sleep(time.Millisecond)
				}
			})
		}
		wg.Wait()
		asked, most := len(s.questions()), 0
		for _, q := range s.questions() {
			most = max(most, len(q))
		}
		t.Logf("%d reads in %v, %d questions, at most %d keys in one", reads.Load(), during, asked, most)
		assert.Equal(t, loads, s.loadCount(), "no value was read")
		assert.LessOrEqual(t, asked, len(r)*maxAsking*int(during/latency+1), "so many can be answered, whoever reads")
		assert.Greater(t, most, readers/maxAsking/2)
		for _, c := range r {
			assert.Equal(t, Suspect, c.Stats().State)
			assert.Positive(t, c.Stats().Confirmed)
		}
		log.setRefuse(nil)
	})
}
