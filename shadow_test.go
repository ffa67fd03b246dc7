package tidemark

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// In shadow mode every read gets what the source has, and nothing else changes:
// entries come and go as they would, and a read that memory would have served is
// counted and stores nothing.
func TestShadow_ServesTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{Shadow: true})
		c := r[0]
		assert.Equal(t, 1, load(t, c, "k").Value)
		assert.Zero(t, c.Stats().ShadowHits)
		s.set("k", 2) // nobody is told
		for i := range 3 {
			loads := s.loadCount()
			requireNotServed(t, c, "k")
			e := load(t, c, "k")
			assert.Equal(t, 2, e.Value)
			assert.GreaterOrEqual(t, s.loadCount(), loads+1)
			all, err := c.LoadMany(t.Context(), []string{"k", "none"})
			require.NoError(t, err)
			assert.Equal(t, 2, all["k"].Value)
			x := c.Stats()
			assert.EqualValues(t, 2*(i+1)+i, x.ShadowHits, "the absence is remembered, too")
			assert.EqualValues(t, 2*(i+1), x.ShadowOlder)
			assert.Zero(t, x.Hits)
			assert.EqualValues(t, 1, c.Explain("k").Version, "it is as old as it would be")
		}
		assert.Contains(t, c.Explain("k").String(), "in shadow mode")
		assert.False(t, c.Explain("k").Suspect)
		assert.True(t, c.Stats().Shadow)
		assert.False(t, c.Stats().Bypassed)
		c.SetBypass(true)
		c.SetBypass(false)
		requireNotServed(t, c, "k")

		e, err := r[1].Update(t.Context(), "k", inc)
		require.NoError(t, err)
		synctest.Wait()
		time.Sleep(testBeat)
		assert.False(t, c.Explain("k").Resident, "it was told")
		assert.Equal(t, e.Version, load(t, c, "k").Version)
		assert.Equal(t, e.Version, c.Explain("k").Version, "a miss is stored")
		_, err = c.Read(t.Context(), "k", AtLeast(99))
		require.ErrorIs(t, err, ErrStale)
	})
}

// What reads in shadow mode find is suspected, and counts as a mismatch only if it
// still differs after the auditor's bound.
func TestShadow_WhatStaysStaleIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Digest = func(v int) uint64 { return uint64(v) }
		c := audited(t, s, 3, Options[string, int]{Shadow: true, Audit: o})
		told, _ := s.set("0", 7), s.set("1", 7)
		s.restore("2", 7, 1)
		for range 100 {
			for _, key := range []string{"0", "1", "2"} {
				assert.Equal(t, 7, load(t, c, key).Value)
			}
		}
		time.Sleep(testBound / 2)
		require.NoError(t, c.Invalidate(t.Context(), "0", told))
		time.Sleep(2 * testBound)
		r := c.AuditReport()
		assert.True(t, r.Shadow)
		assert.EqualValues(t, 300, r.ShadowHits)
		assert.EqualValues(t, 200, r.ShadowOlder)
		assert.EqualValues(t, 100, r.ShadowDiffers)
		assert.EqualValues(t, 1, r.Stale)
		assert.EqualValues(t, 1, r.Differs)
		assert.EqualValues(t, 3, r.Checked, "a key is suspected once at a time")
		assert.Len(t, c.Mismatches(), 2)
		s.set("1", 8)
		load(t, c, "1") // repaired: a miss
		s.set("1", 9)
		load(t, c, "1")
		time.Sleep(2 * testBound)
		assert.EqualValues(t, 2, c.AuditReport().Stale, "and may be suspected again")
	})
}

// What is read all the time is confirmed all the same: a load is no excuse.
func TestShadow_AHotKeyIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{Shadow: true})
		s.beforeLoad = func(context.Context, string) error { time.Sleep(10 * time.Millisecond); return nil }
		s.set("0", 7)
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for range 300 {
					load(t, c, "0")
				}
			})
		}
		readers.Wait()
		assert.EqualValues(t, 1, c.AuditReport().Stale)
	})
}

// Readers of a key share loads, also those of whom memory would have served some and
// not others; what the latter brings is stored.
func TestShadow_ReadersShareLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{Shadow: true})
		s.set("0", 7)
		loads := s.loadCount()
		s.afterLoad = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		var all []<-chan result
		for range 20 {
			all = append(all, loading(t, c, "0", Any))
		}
		synctest.Wait()
		missing := loading(t, c, "0", AtLeast(2)) // memory has 1
		synctest.Wait()
		again := loading(t, c, "0", Any)
		synctest.Wait()
		for _, ch := range append(all, missing, again) {
			assert.Equal(t, 7, value(t, ch).Value)
		}
		assert.Equal(t, loads+2, s.loadCount())
		assert.EqualValues(t, 21, c.Stats().ShadowHits)
		assert.EqualValues(t, 2, c.Explain("0").Version, "somebody has missed it")
	})
}

// A source that fails is what readers see; one that has less than memory is no
// finding of a read, for its load may have been older.
func TestShadow_WhatTheSourceSaysIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 2, Options[string, int]{Shadow: true})
		require.Equal(t, Applied, c.Put("0", 9, 9))
		assert.EqualValues(t, 1, load(t, c, "0").Version)
		s.remove("1")
		_, err := c.Load(t.Context(), "1")
		require.ErrorIs(t, err, ErrNotFound)
		down := errors.New("down")
		s.beforeLoad = func(context.Context, string) error { return down }
		_, err = c.Load(t.Context(), "0")
		require.ErrorIs(t, err, down)
		x := c.Stats()
		assert.EqualValues(t, 3, x.ShadowHits)
		assert.EqualValues(t, 1, x.ShadowOlder)
	})
}

// Nothing is confirmed by its version alone: readers get what the source has.
func TestShadow_ConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		o := onDemand()
		o.Every = 1000 * time.Hour
		c := audited(t, s.source, 1, Options[string, int]{Store: s, Shadow: true, Audit: o})
		c.suspect("test")
		s.restore("0", 7, 1)
		assert.Equal(t, 7, load(t, c, "0").Value)
		assert.Empty(t, s.questions())
		assert.Zero(t, c.Stats().ShadowHits, "it would not have been served")
	})
}

// RefreshAfter goes on as it would.
func TestShadow_Refreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{Shadow: true, RefreshAfter: time.Second})
		s.set("0", 7)
		time.Sleep(2 * time.Second)
		load(t, c, "0")
		synctest.Wait()
		assert.EqualValues(t, 1, c.Stats().Refreshes)
		assert.EqualValues(t, 2, c.Explain("0").Version)
	})
}

// A read in shadow mode gets no less than an earlier one got, though memory keeps neither.
func TestShadow_NeverGoesBack(t *testing.T) {
	t.Run("strong", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			c := audited(t, s, 1, Options[string, int]{Shadow: true})
			first, second := newLatch(t), newLatch(t)
			s.beforeLoad = first.hook
			a := loading(t, c, "0", Any)
			first.wait(t)
			s.beforeLoad, s.afterLoad = nil, second.hook
			l := loading(t, c, "0", Linearizable) // has read version 1, and hangs
			second.wait(t)
			s.afterLoad = nil
			s.set("0", 7)
			first.release()
			require.EqualValues(t, 2, value(t, a).Version)
			b := loading(t, c, "0", Any)
			synctest.Wait()
			second.release()
			assert.EqualValues(t, 2, value(t, b).Version)
			value(t, l)
		})
	})
	t.Run("lagging", func(t *testing.T) {
		s := newSource()
		r := newReadReplica(s)
		c := newCache(t, Options[string, int]{Loader: r, Store: s, LoaderClass: Lagging(time.Minute), Shadow: true})
		s.set("k", 1)
		r.catchUp("k")
		require.EqualValues(t, 1, load(t, c, "k").Version)
		s.set("k", 2)
		r.catchUp("k")
		require.EqualValues(t, 2, load(t, c, "k").Version)
		r.mu.Lock()
		r.rows["k"] = row{value: 1, version: 1} // another one of the replicas
		r.mu.Unlock()
		assert.GreaterOrEqual(t, load(t, c, "k").Version, Version(2))
	})
}
