package tidemark

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// What is refused is counted by who brought it, and apart from what the options
// do not want.
func TestStats_WhatIsRefused(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{Store: s, NegativeTTL: -1})
	s.set("k", 1)

	t.Run("a load that is overtaken", func(t *testing.T) {
		before, l := c.Stats(), newLatch(t)
		s.afterLoad = l.hook
		load := loading(t, c, "k", Any)
		l.wait(t)
		s.afterLoad = nil
		require.NoError(t, c.Invalidate(t.Context(), "k", s.set("k", 2)))
		l.release()
		value(t, load)
		assert.Equal(t, before.RefusedLoads+1, c.Stats().RefusedLoads)
		assert.Equal(t, before.Invalidated+1, c.Stats().Invalidated)
	})
	t.Run("a fill that is overtaken, and one without a version", func(t *testing.T) {
		before := c.Stats()
		f := c.BeginFill("k")
		require.NoError(t, c.Invalidate(t.Context(), "k", s.set("k", 3)))
		require.Equal(t, Stale, f.Commit(2, 2))
		require.Equal(t, Stale, f.Commit(2, 2), "counts once")
		require.Equal(t, Unproven, c.BeginFill("k").Commit(3, 0))
		c.BeginFill("k").Cancel()
		assert.Equal(t, before.RefusedFills+2, c.Stats().RefusedFills)
	})
	t.Run("a write that is overtaken once it is committed", func(t *testing.T) {
		before := c.Stats()
		s.afterWrite = func(ctx context.Context, key string) error {
			s.afterWrite = nil
			return c.Invalidate(ctx, key, s.set(key, 99))
		}
		_, err := c.CompareAndSet(t.Context(), "k", 3, 4)
		require.NoError(t, err)
		assert.Equal(t, before.RefusedWrites+1, c.Stats().RefusedWrites)
		assert.Equal(t, before.Writes+1, c.Stats().Writes, "it was committed")
	})
	t.Run("an absence that is not to be kept", func(t *testing.T) {
		before := c.Stats()
		_, err := c.Load(t.Context(), "nobody")
		require.ErrorIs(t, err, ErrNotFound)
		assert.Equal(t, before.Unkept+1, c.Stats().Unkept)
		assert.Equal(t, before.Refused, c.Stats().Refused)
	})
	t.Run("puts", func(t *testing.T) {
		_, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		before := c.Stats()
		require.Equal(t, Stale, c.Put("k", 1, 1))
		require.NoError(t, c.InvalidateAll(t.Context()))
		require.Equal(t, Unproven, c.Put("k", 1, 9))
		assert.Equal(t, before.Stale+1, c.Stats().Stale)
		assert.Equal(t, before.Unproven+1, c.Stats().Unproven)
		assert.Equal(t, before.Flushes+1, c.Stats().Flushes)
		assert.Equal(t, before.Refused, c.Stats().Refused)
	})
	x := c.Stats()
	assert.Equal(t, x.RefusedLoads+x.RefusedFills+x.RefusedWrites, x.Refused)
	assert.EqualValues(t, 4, x.Refused)
}

// Writes are counted however they are found to be committed, and not otherwise.
func TestStats_Writes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{Store: s, DoubtTimeout: time.Second})
		_, err := c.CompareAndSet(t.Context(), "k", 0, 1)
		require.NoError(t, err)
		_, err = c.CompareAndSet(t.Context(), "k", 7, 1)
		require.Error(t, err)
		_, err = c.Delete(t.Context(), "k", 1)
		require.NoError(t, err)
		assert.EqualValues(t, 2, c.Stats().Writes)
		assert.EqualValues(t, 1, c.Stats().Conflicts)

		lost := errors.New("the answer is lost")
		s.afterWrite = func(context.Context, string) error { return lost }
		_, err = c.CompareAndSet(t.Context(), "a", 0, 1) // committed, as the store tells later
		require.Error(t, err)
		s.afterWrite, s.beforeWrite = nil, func(context.Context, string) error { return lost }
		_, err = c.CompareAndSet(t.Context(), "b", 0, 1) // never
		require.Error(t, err)
		assert.NotZero(t, c.Stats().InDoubt, "until the time is over in which it could take effect")
		time.Sleep(10 * time.Second)
		assert.Zero(t, c.Stats().InDoubt)
		assert.EqualValues(t, 3, c.Stats().Writes)
		assert.EqualValues(t, 2, c.Stats().Uncertain)
	})
}

// What the loads take and how many run at once is known while they run, and loads
// that are not made are no loads.
func TestStats_Loads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("a", 1)
		s.set("b", 1)
		s.beforeLoad = func(ctx context.Context, _ string) error { time.Sleep(time.Second); return nil }
		var refuse error
		c := newCache(t, Options[string, int]{Loader: s, MaxLoads: 1, LoadTimeout: 1500 * time.Millisecond,
			Breaker: allowFunc(func() (func(error), error) { return func(error) {}, refuse })})
		a, b := loading(t, c, "a", Any), loading(t, c, "b", Any)
		time.Sleep(500 * time.Millisecond)
		assert.Equal(t, 1, c.Stats().Loading)
		assert.Zero(t, c.Stats().LoadTime, "none has ended")
		<-a
		<-b // one of them had no place for a second, and half a second for its call
		assert.Zero(t, c.Stats().Loading)
		assert.Equal(t, 2*time.Second, c.Stats().LoadTime)
		assert.EqualValues(t, 2, c.Stats().Loads)

		for range 3 {
			loading(t, c, fmt.Sprint("new", s.set("x", 1)), Any)
		}
		time.Sleep(1600 * time.Millisecond)
		assert.EqualValues(t, 1, c.Stats().Declined, "two seconds behind two others")
		time.Sleep(5 * time.Second)
		before := c.Stats()
		refuse = errors.New("open")
		_, err := c.Load(t.Context(), "z")
		require.ErrorIs(t, err, ErrUnavailable)
		assert.Equal(t, before.Declined+1, c.Stats().Declined)
		assert.Equal(t, before.Loads, c.Stats().Loads)
	})
}

// Reads that fail for the age of what memory has are counted, those of LoadMany
// by key.
func TestStats_TooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{OnStale: Fail, Level: Within(time.Second)})[0]
		_, err := c.Read(t.Context(), "k", Any)
		require.NoError(t, err)
		log.down()
		time.Sleep(2 * time.Second)
		_, err = c.Read(t.Context(), "k", Within(time.Second))
		require.ErrorIs(t, err, ErrStale)
		_, err = c.LoadMany(t.Context(), []string{"k"})
		require.ErrorIs(t, err, ErrStale)
		_, ok := c.Get("k")
		require.False(t, ok)
		assert.EqualValues(t, 2, c.Stats().TooOld, "a Get does not fail, it misses")
		log.up()
	})
}

// Each reason for which entries become suspect has a number of its own.
func TestStats_WhatWasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		c, _ := joined(t, src, b)
		time.Sleep(testBeat / 2)
		assert.Zero(t, c.Stats().Suspicions, "to join is nothing that went wrong")
		assert.Zero(t, c.Stats().CutOffs)
		s := newStranger(t, b)
		s.hello()
		assert.Equal(t, 1, c.Stats().Peers, "itself left out")
		s.seq++
		s.hello()
		assert.EqualValues(t, 1, c.Stats().Gaps)
		s.send([]byte("noise"))
		assert.EqualValues(t, 1, c.Stats().Gaps)
		assert.EqualValues(t, 1, c.Stats().Bad)
		time.Sleep(10 * testBeat)
		assert.EqualValues(t, 1, c.Stats().Silences)
		assert.Zero(t, c.Stats().Peers)
		s.hello()
		assert.Equal(t, 1, c.Stats().Peers)
		s.goodbye()
		assert.Zero(t, c.Stats().Peers)
		time.Sleep(10 * testBeat)
		assert.EqualValues(t, 1, c.Stats().Silences)
		b.lose("test")
		b.lose("test")
		assert.EqualValues(t, 1, c.Stats().CutOffs, "once until it is back")
		require.NoError(t, c.Ready(t.Context()))
		assert.EqualValues(t, 4, c.Stats().Suspicions)

		s.send(s.encode(s.next(wire.KindInvalidateAll)))
		assert.EqualValues(t, 1, c.Stats().Flushes)
		require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
		require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
		assert.EqualValues(t, 2, c.Stats().Flushes)
	})
}

func TestStats_Log(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		all := followers(t, 2, s, log, Options[string, int]{})
		length := func() int {
			time.Sleep(testBeat / 2)
			synctest.Wait()
			log.mu.Lock()
			defer log.mu.Unlock()
			return len(log.msgs)
		}
		time.Sleep(10 * testBeat)
		for _, c := range all {
			assert.Equal(t, 1, c.Stats().Peers)
			assert.EqualValues(t, length(), c.Stats().LogSeq)
			assert.Zero(t, c.Stats().LogDowns)
		}
		log.down()
		synctest.Wait()
		time.Sleep(10 * testBeat)
		assert.EqualValues(t, 1, all[0].Stats().LogDowns, "once until it is up")
		assert.Zero(t, all[0].Stats().Gaps)
		log.up()
		time.Sleep(time.Second)
		assert.EqualValues(t, length(), all[0].Stats().LogSeq)
		log.skip()
		time.Sleep(time.Second)
		assert.EqualValues(t, 3, all[0].Stats().Gaps, "in the log, and in the numbers of its two origins")
		assert.EqualValues(t, 1, all[0].Stats().CutOffs)
	})
}

func TestState_TravelsAsText(t *testing.T) {
	for s := Alone; s <= Ended; s++ {
		text, err := s.MarshalText()
		require.NoError(t, err)
		var got State
		require.NoError(t, got.UnmarshalText(text))
		assert.Equal(t, s, got)
	}
	got := Fresh
	require.ErrorContains(t, got.UnmarshalText([]byte("late")), `"late"`)
	assert.Equal(t, Fresh, got)
}
