package tidemark

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const testBound = time.Second // of the auditors of tests

// onDemand is an auditor that looks at everything when it is told to, and not before.
func onDemand() *AuditOptions[string, int] {
	return &AuditOptions[string, int]{Rate: 100_000, Every: 1000 * time.Hour, Bound: testBound, Sample: -1}
}

// audited returns a cache with an auditor that holds the keys 0 to n-1 of the source.
func audited(t testing.TB, s *source, n int, o Options[string, int]) *Cache[string, int] {
	t.Helper()
	if o.Store == nil {
		o.Store = s
	}
	if o.Audit == nil {
		o.Audit = onDemand()
	}
	if o.Shards == 0 {
		o.Shards = 4 // those are swept every drainEvery, and these tests let hours go by
	}
	c := newCache(t, o)
	synctest.Wait() // its first cycle has nothing to look at
	for i := range n {
		key := strconv.Itoa(i)
		require.Equal(t, Applied, c.BeginFill(key).Commit(i, s.set(key, i)))
	}
	synctest.Wait()
	return c
}

// audit runs one cycle.
func audit[K comparable, V any](t testing.TB, c *Cache[K, V]) AuditReport {
	t.Helper()
	r, err := c.Audit(t.Context())
	require.NoError(t, err)
	return r
}

// manySource is a source that reads many values in one call.
type manySource struct {
	*source
	calls atomic.Int64
}

func (s *manySource) LoadMany(_ context.Context, keys []string) (map[string]Loaded[int], error) {
	s.calls.Add(1)
	all := map[string]Loaded[int]{}
	for _, k := range keys {
		r := s.get(k)
		all[k] = Loaded[int]{Value: r.value, Version: r.version, Absent: r.absent}
	}
	return all, nil
}

// Every entry that is stale when a cycle begins is found and repaired by that cycle,
// and no other, however the source can be asked (I19).
func TestAudit_FindsEveryStaleEntryInOneCycle(t *testing.T) {
	for _, way := range []struct {
		name  string
		store func(*source) Store[string, int]
	}{
		{"by load", func(s *source) Store[string, int] { return s }},
		{"by versions", func(s *source) Store[string, int] { return &versionSource{source: s} }},
		{"in bulk", func(s *source) Store[string, int] { return &manySource{source: s} }},
	} {
		t.Run(way.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const stale, entries = injected, 2 * injected
				s := newSource()
				c := audited(t, s, entries, Options[string, int]{Store: way.store(s), Shards: 8})
				require.Equal(t, entries, c.Len())
				for i := range stale {
					if key := strconv.Itoa(2 * i); i%10 == 0 {
						s.remove(key)
					} else {
						s.set(key, -1)
					}
				}
				for range 2 {
					r := audit(t, c)
					assert.EqualValues(t, stale, r.Stale)
					assert.EqualValues(t, stale, r.Repaired)
					assert.EqualValues(t, stale, r.Suspicions)
					assert.Zero(t, r.Differs+r.Ahead+r.Refused+r.Unchecked+r.Dropped)
					assert.Zero(t, r.Waiting)
					assert.EqualValues(t, 1, r.MostBehind)
					assert.EqualValues(t, entries-stale, c.Len())
					for i := range entries {
						_, ok := c.GetEntry(strconv.Itoa(i))
						require.Equal(t, i%2 == 1, ok, i)
					}
				}
				r := c.AuditReport()
				assert.EqualValues(t, 2*entries-stale, r.Checked)
				assert.EqualValues(t, entries-stale, r.Last.Entries)
				assert.Zero(t, r.Last.Mismatches, "of the second cycle")
			})
		})
	}
}

// A shard that grows in the middle of a cycle hides nothing from it.
func TestAudit_MissesNothingWhileTheTableGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Rate = 100
		c := audited(t, s, 1000, Options[string, int]{Store: &versionSource{source: s}, Audit: o, Shards: 1, MaxCost: 1 << 20, ExpectedEntries: 1000})
		for i := range 1000 {
			s.set(strconv.Itoa(i), -1)
		}
		done := make(chan AuditReport)
		go func() { done <- audit(t, c) }()
		for i := range 20_000 {
			key := fmt.Sprint("new", i)
			c.BeginFill(key).Commit(i, s.set(key, i))
			time.Sleep(time.Millisecond)
		}
		assert.EqualValues(t, 1000, (<-done).Stale)
	})
}

// A message that arrives within the bound explains a difference; without one it is a
// mismatch when the bound is over, and not before.
func TestAudit_AMismatchIsConfirmedAfterABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 3, Options[string, int]{})
		told, untold := s.set("0", 7), s.set("1", 7)
		began := time.Now()
		done := make(chan AuditReport)
		go func() { done <- audit(t, c) }()
		time.Sleep(testBound / 2)
		assert.EqualValues(t, 2, c.AuditReport().Suspicions)
		requireServed(t, c, "0")
		require.NoError(t, c.Invalidate(t.Context(), "0", told))
		time.Sleep(testBound/2 - time.Millisecond)
		requireServed(t, c, "1")
		r := <-done
		assert.GreaterOrEqual(t, time.Since(began), testBound)
		assert.Less(t, time.Since(began), 2*testBound)
		assert.EqualValues(t, 1, r.Stale)
		assert.EqualValues(t, 3, r.Checked)
		requireNotServed(t, c, "1")
		m := c.Mismatches()
		require.Len(t, m, 1)
		assert.Equal(t, Mismatch[string]{Key: "1", Kind: MismatchStale, Time: m[0].Time, Version: 1, Source: untold,
			AtLeast: m[0].AtLeast, AtMost: m[0].AtMost, Record: m[0].Record}, m[0])
		assert.GreaterOrEqual(t, m[0].AtLeast, testBound)
		assert.GreaterOrEqual(t, m[0].AtMost, m[0].AtLeast)
	})
}

// Whatever becomes of the entry while the auditor waits, or while it asks for the
// second time, it is no mismatch: nobody is served the state that was suspected.
func TestAudit_WhatIsNotServedAnyMoreIsNoMismatch(t *testing.T) {
	unexplained := map[string]bool{"evicted": true, "expired": true}
	for name, meanwhile := range map[string]func(c *Cache[string, int], s *source){
		"invalidated": func(c *Cache[string, int], s *source) { _ = c.Invalidate(context.Background(), "0", 2) },
		"changed":     func(c *Cache[string, int], s *source) { c.Put("0", 7, 2) },
		"suspect":     func(c *Cache[string, int], s *source) { c.suspect("test") },
		"cut off":     func(c *Cache[string, int], s *source) { c.cutOff() },
		"thrown away": func(c *Cache[string, int], s *source) { _ = c.InvalidateAll(context.Background()) },
		"of an epoch": func(c *Cache[string, int], s *source) { _ = c.SetSourceEpoch(context.Background(), 1) },
		"evicted":     func(c *Cache[string, int], s *source) { drop(c, "0") },
		"expired":     nil,
	} {
		for _, second := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/while it asks=%t", name, second), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSource()
					ttl, meanwhile := time.Minute, meanwhile
					if meanwhile == nil {
						ttl = testBound / 2
						if second {
							ttl = 2 * testBound
						}
						meanwhile = func(*Cache[string, int], *source) { time.Sleep(ttl / 2) }
					}
					c := audited(t, s, 1, Options[string, int]{TTL: ttl, TTLJitter: -1, LoadTimeout: -1})
					s.set("0", 7)
					asked := 0
					s.afterLoad = func(context.Context, string) error {
						if asked++; asked == 2 && second {
							meanwhile(c, s)
						}
						return nil
					}
					if !second {
						time.AfterFunc(testBound/4, func() { meanwhile(c, s) })
					}
					r := audit(t, c)
					assert.EqualValues(t, 1, r.Suspicions)
					assert.Zero(t, r.Mismatches())
					assert.Empty(t, c.Mismatches())
					decided := [2]uint64{r.Checked, r.Undecided}
					if unexplained[name] { // it might have been served for as long again
						assert.Equal(t, [2]uint64{0, 1}, decided)
					} else {
						assert.Equal(t, [2]uint64{1, 0}, decided)
					}
					c.rejoin()
				})
			})
		}
	}
}

// drop evicts a key.
func drop(c *Cache[string, int], key string) {
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.table.Find(hash, key); ok {
		s.evictLocked(p, hash, c.moment())
	}
}

// An entry that has come in the place of a suspected one is given a bound of its own.
func TestAudit_AnotherEntryIsAnotherSuspicion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{})
		s.set("0", 7)
		done := make(chan AuditReport)
		go func() { done <- audit(t, c) }()
		time.Sleep(testBound / 2)
		require.NoError(t, c.Invalidate(t.Context(), "0", 2))
		hold(t, c, "0")
		time.Sleep(testBound / 4)
		s.set("0", 8)
		time.Sleep(testBound / 2)
		require.NoError(t, c.Invalidate(t.Context(), "0", 3))
		assert.Zero(t, (<-done).Mismatches())
	})
}

// A write that the source has committed and not yet answered explains a difference,
// however long that takes, also one that begins while the auditor asks.
func TestAudit_AWriteUnderWayExplainsADifference(t *testing.T) {
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("while it asks=%t", second), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := audited(t, s, 1, Options[string, int]{})
				answer := make(chan struct{})
				write := func(context.Context, string) error { <-answer; return nil }
				s.afterWrite = write
				begin := func() { go c.CompareAndSet(context.Background(), "0", s.get("0").version, 7) }
				if second {
					s.set("0", 6)
				} else {
					begin()
				}
				synctest.Wait()
				asked := 0
				s.afterLoad = func(context.Context, string) error {
					if asked++; asked == 2 && second {
						begin()
						time.Sleep(time.Millisecond)
					}
					return nil
				}
				done := make(chan AuditReport)
				go func() { done <- audit(t, c) }()
				time.Sleep(10 * testBound)
				assert.EqualValues(t, 1, c.AuditReport().Suspicions)
				requireServed(t, c, "0")
				close(answer)
				assert.Zero(t, (<-done).Mismatches())
				synctest.Wait() // until the write has ended, too
				assert.Zero(t, c.AuditReport().Mismatches())
			})
		})
	}
}

// With a log a bound counts in what the log has shown: neither a slow one nor one
// that is down raises an alarm, and when it is well again what is stale is found.
func TestAudit_ASlowLogIsNoMismatch(t *testing.T) {
	for name, trouble := range map[string]func(log *memLog){
		"slow": func(log *memLog) { log.setDelay(20 * testBound) },
		"down": func(log *memLog) { log.unreadable(errors.New("no server")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				r := followers(t, 2, s, log, Options[string, int]{Audit: onDemand()})
				for _, key := range []string{"told", "untold"} {
					s.set(key, 1)
					hold(t, r[1], key)
				}
				time.Sleep(2 * testBound)
				trouble(log)
				_, err := r[0].Update(t.Context(), "told", inc)
				require.NoError(t, err)
				s.set("untold", 7)
				done := make(chan AuditReport)
				go func() { done <- audit(t, r[1]) }()
				time.Sleep(10 * testBound)
				requireServed(t, r[1], "told")
				x := r[1].AuditReport()
				assert.EqualValues(t, 2, x.Suspicions)
				assert.Zero(t, x.Mismatches(), "the log may still bring it")
				log.setDelay(0)
				log.up()
				x = <-done
				assert.EqualValues(t, 1, x.Stale)
				require.Len(t, r[1].Mismatches(), 1)
				assert.Equal(t, "untold", r[1].Mismatches()[0].Key)
			})
		})
	}
}

// While strict writes may be under way of which this replica does not know, the log
// vouches for nothing, and nothing is confirmed.
func TestAudit_WaitsForStrictWritesThatItDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{Audit: onDemand(), Strict: true, DoubtTimeout: 20 * testBound})
		hold(t, r[1], "k")
		s.set("k", 2)
		done := make(chan AuditReport)
		go func() { done <- audit(t, r[1]) }()
		time.Sleep(39 * testBound)
		assert.Zero(t, r[1].AuditReport().Stale)
		assert.EqualValues(t, 1, (<-done).Stale)
	})
}

// A repair lets nothing older in again: no load that has read it, and no Put.
func TestAudit_RepairsByAFence(t *testing.T) {
	for name, change := range map[string]func(s *source){
		"changed":        func(s *source) { s.set("0", 7) },
		"removed":        func(s *source) { s.remove("0") },
		"never there":    func(s *source) { s.mu.Lock(); delete(s.rows, "0"); s.mu.Unlock() },
		"of two digests": func(s *source) { s.restore("0", 7, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				o := onDemand()
				o.Digest = func(v int) uint64 { return uint64(v) }
				c := audited(t, s, 1, Options[string, int]{Audit: o, MaxLoads: 8})
				f := c.BeginFill("0")
				change(s)
				time.AfterFunc(3*testBound, f.Cancel)
				done := make(chan AuditReport)
				go func() { done <- audit(t, c) }()
				time.Sleep(2 * testBound)
				assert.Zero(t, c.AuditReport().Mismatches(), "a fill is under way")
				r := <-done
				require.EqualValues(t, 1, r.Mismatches())
				require.EqualValues(t, 1, r.Repaired)
				requireNotServed(t, c, "0")
				e, err := c.Load(t.Context(), "0")
				row := s.get("0")
				assert.Equal(t, row.absent, errors.Is(err, ErrNotFound))
				assert.Equal(t, row.value, e.Value)
				assert.Contains(t, []Version{row.version, 0}, e.Version)
				if name == "of two digests" {
					assert.EqualValues(t, 1, r.Differs)
					return
				}
				assert.EqualValues(t, 1, r.Stale)
				drop(c, "0")
				assert.NotEqual(t, Applied, c.Put("0", 0, 1), "it was repaired")
			})
		})
	}
}

// A load that began before the repair and has read the old state does not bring it
// back.
func TestAudit_ARepairOvertakesALoadInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{})
		l := newLatch(t)
		s.afterLoad = l.hook
		late := loading(t, c, "0", Linearizable)
		l.wait(t)
		v := s.set("0", 7)
		require.EqualValues(t, 1, audit(t, c).Stale)
		l.release()
		get(t, late)
		requireNotServed(t, c, "0")
		assert.Equal(t, v, load(t, c, "0").Version)
	})
}

// What memory has ahead of the source is reported, and left alone.
func TestAudit_ASourceThatWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 2, Options[string, int]{})
		require.Equal(t, Applied, c.Put("0", 7, 9))
		r := audit(t, c)
		assert.EqualValues(t, 1, r.Ahead)
		assert.Zero(t, r.Stale+r.Repaired)
		requireServed(t, c, "0")
		assert.Equal(t, MismatchAhead, c.Mismatches()[0].Kind)
		assert.EqualValues(t, 1, c.Stats().AuditAhead)
	})
}

func TestAudit_WhatDiffers(t *testing.T) {
	present, absent := func(v Version) mark { return mark{version: v} }, func(v Version) mark { return mark{v, true} }
	for _, x := range []struct {
		had, source mark
		want        MismatchKind
	}{
		{present(5), present(5), 0}, {present(5), present(6), MismatchStale}, {present(6), present(5), MismatchAhead},
		{present(5), absent(6), MismatchStale}, {present(5), absent(5), MismatchStale}, {present(5), absent(0), MismatchStale},
		{present(5), absent(4), MismatchAhead}, {absent(5), present(6), MismatchStale}, {absent(0), present(1), MismatchStale},
		{absent(5), present(5), MismatchAhead}, {absent(5), absent(7), 0}, {absent(7), absent(5), 0}, {absent(0), absent(0), 0}, {absent(7), absent(0), 0},
	} {
		assert.Equal(t, x.want, differs(x.had, x.source), "%v, and the source has %v", x.had, x.source)
	}
}

// The auditor asks for no more than its rate, whatever there is to look at.
func TestAudit_KeepsToItsRate(t *testing.T) {
	for name, bulk := range map[string]bool{"by load": false, "by versions": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rate = 50
				s := &versionSource{source: newSource()}
				var store Store[string, int] = s
				if !bulk {
					store = s.source
				}
				o := Options[string, int]{Store: store, Audit: &AuditOptions[string, int]{Rate: rate, Every: 1, Bound: testBound, Sample: 1}}
				c := audited(t, s.source, 2000, o)
				for i := range 2000 {
					if i%2 == 0 {
						s.set(strconv.Itoa(i), -1)
					}
					require.NoError(t, c.Invalidate(t.Context(), strconv.Itoa(i), 1))
				}
				loads := s.loadCount()
				for second := range 200 {
					time.Sleep(time.Second)
					synctest.Wait()
					asked := s.loadCount() - loads
					for _, q := range s.questions() {
						asked += len(q)
					}
					require.LessOrEqual(t, asked, rate*(second+2))
				}
				assert.Positive(t, c.AuditReport().Stale)
				assert.Greater(t, c.AuditReport().Checked, uint64(rate*100))
			})
		})
	}
}

// What waits is bounded, and a cycle waits for room rather than forget a suspicion.
func TestAudit_IsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		o := onDemand()
		o.Sample = 1
		c := audited(t, s.source, 3*maxKnown, Options[string, int]{Store: s, Audit: o})
		for i := range 3 * maxKnown {
			s.set(strconv.Itoa(i), -1)
		}
		most, samples := 0, 0
		s.before = func(context.Context, []string) error {
			most = max(most, c.audit.known)
			samples = max(samples, len(c.audit.line)-c.audit.known)
			for i := range 2 * maxInbox {
				c.audit.sample(fmt.Sprint("other", i), uint64(i))
			}
			assert.LessOrEqual(t, len(c.audit.inbox), maxInbox)
			return nil
		}
		r := audit(t, c)
		assert.EqualValues(t, 3*maxKnown, r.Stale)
		assert.LessOrEqual(t, most, maxKnown)
		assert.Greater(t, most, maxKnown/2)
		assert.LessOrEqual(t, samples, maxSamples)
		assert.Greater(t, samples, maxSamples/2)
		assert.Positive(t, r.Dropped)
	})
}

// A key that was invalidated is looked at again after the bound and after each time
// scale, without any cycle.
func TestAudit_LooksAgainAtWhatWasInvalidated(t *testing.T) {
	for name, replicas := range map[string]int{"here": 0, "by others": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				o := onDemand()
				o.Sample, o.Scales = 1, []time.Duration{10 * testBound}
				r := followers(t, 2, s, log, Options[string, int]{Audit: o})
				v := s.set("k", 1)
				hold(t, r[0], "k")
				require.NoError(t, r[replicas].Invalidate(t.Context(), "k", v))
				time.Sleep(2 * testBound)
				assert.EqualValues(t, 1, r[0].AuditReport().Checked)
				s.set("k", 2)
				time.Sleep(7 * testBound)
				assert.Zero(t, r[0].AuditReport().Suspicions)
				time.Sleep(3 * testBound)
				assert.EqualValues(t, 1, r[0].AuditReport().Stale)
				requireNotServed(t, r[0], "k")
			})
		})
	}
}

// One in so many invalidations is looked at again.
func TestAudit_Sample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Sample, o.Scales = 10, []time.Duration{}
		c := audited(t, s, 100, Options[string, int]{Audit: o})
		for i := range 100 {
			require.NoError(t, c.Invalidate(t.Context(), strconv.Itoa(i), 1))
		}
		time.Sleep(3 * testBound)
		assert.EqualValues(t, 10, c.AuditReport().Checked)
	})
}

// So many mismatches in one cycle set the bypass, and no fewer; the switch is a
// person's again then.
func TestAudit_Trips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newSource(), &events{}
		o := onDemand()
		o.Trip = 3
		c := audited(t, s, 10, Options[string, int]{Audit: o, OnEvent: l.add})
		for round, stale := range []int{2, 2, 4} {
			for i := range stale {
				hold(t, c, strconv.Itoa(i))
				s.set(strconv.Itoa(i), -1)
			}
			r := audit(t, c)
			assert.Equal(t, stale == 4, r.Tripped, round)
			assert.Equal(t, stale == 4, c.Stats().Bypassed, round)
		}
		assert.Len(t, l.of(EventTripped), 1)
		assert.Len(t, l.of(EventMismatch), 8)
		requireNotServed(t, c, "9")
		assert.EqualValues(t, 0, audit(t, c).Last.Mismatches, "it goes on looking")
		c.SetBypass(false)
		assert.False(t, c.AuditReport().Tripped)
		hold(t, c, "9")
	})
}

// While readers need the source, or the Breaker is open, the auditor leaves it
// alone, and nobody is told that a load was declined.
func TestAudit_YieldsToReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		var open atomic.Bool
		c := audited(t, s.source, 10, Options[string, int]{Store: s, MaxLoads: 4, Breaker: allowFunc(func() (func(error), error) {
			if open.Load() {
				return nil, errors.New("open")
			}
			return func(error) {}, nil
		})})
		held := make(chan struct{})
		s.beforeLoad = func(context.Context, string) error { <-held; return nil }
		for i := range 3 {
			loading(t, c, fmt.Sprint("reader", i), Any)
		}
		synctest.Wait()
		s.set("0", 7)
		done := make(chan AuditReport)
		go func() { done <- audit(t, c) }()
		time.Sleep(10 * time.Second)
		assert.Empty(t, s.questions(), "three of four places are taken")
		assert.Positive(t, c.Stats().AuditRefused)
		open.Store(true)
		close(held)
		time.Sleep(10 * time.Second)
		assert.Empty(t, s.questions(), "the breaker is open")
		assert.Zero(t, c.Stats().Declined)
		open.Store(false)
		r := <-done
		assert.EqualValues(t, 1, r.Stale)
		assert.EqualValues(t, 10, r.Checked)
		assert.Zero(t, r.Unchecked, "to wait is not to fail")
	})
}

// Whatever the source does, the auditor goes on, and gives up what fails again and
// again.
func TestAudit_ASourceThatFails(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":     func() error { return errors.New("no route") },
		"panic":     func() error { panic("boom") },
		"goexit":    func() error { runtime.Goexit(); return nil },
		"not found": func() error { return fmt.Errorf("table: %w", ErrNotFound) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &versionSource{source: newSource()}
				c := audited(t, s.source, 10, Options[string, int]{Store: s})
				s.set("0", 7)
				s.before = func(context.Context, []string) error { return fail() }
				r := audit(t, c)
				assert.Zero(t, r.Checked+r.Suspicions)
				assert.EqualValues(t, 10, r.Unchecked)
				assert.EqualValues(t, 10*maxFailed, r.Refused)
				s.before = nil
				assert.EqualValues(t, 1, audit(t, c).Stale)
			})
		})
	}
}

// A call of the source that does not return holds up the auditor, and nobody else.
func TestAudit_ACallThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		c, err := New(Options[string, int]{Store: s, Audit: onDemand(), LoadTimeout: time.Second})
		require.NoError(t, err)
		synctest.Wait()
		s.set("k", 1)
		hold(t, c, "k")
		stuck := make(chan struct{})
		s.before = func(context.Context, []string) error { <-stuck; return nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := c.Audit(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Zero(t, r.Checked)
		assert.Len(t, s.questions(), 1, "one call at a time")
		requireServed(t, c, "k")
		time.AfterFunc(time.Second, func() { close(stuck) })
		require.NoError(t, c.Close(t.Context()))
		_, err = c.Audit(t.Context())
		require.ErrorIs(t, err, ErrClosed)
	})
}

// What is found equal was current when the source was asked: it is as young as that,
// and lives no longer.
func TestAudit_ProvesWhatItFindsEqual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{TTL: time.Minute, TTLJitter: -1})
		require.Equal(t, Applied, c.Put("put", 1, s.set("put", 1)))
		time.Sleep(30 * time.Second)
		e, ok := c.GetEntry("put")
		require.True(t, ok)
		assert.Negative(t, e.Age)
		audit(t, c)
		for _, key := range []string{"0", "put"} {
			e, ok := c.GetEntry(key)
			require.True(t, ok)
			assert.GreaterOrEqual(t, e.Age, time.Duration(0), key)
			assert.Less(t, e.Age, time.Millisecond, key)
		}
		time.Sleep(30 * time.Second)
		requireNotServed(t, c, "0")
	})
}

// What became known while the source was asked is not overwritten by its answer.
func TestAudit_ProvesOnlyWhatItHasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{})
		s.afterLoad = func(context.Context, string) error {
			time.Sleep(time.Second)
			c.Put("0", 7, s.set("0", 7))
			s.afterLoad = nil
			return nil
		}
		audit(t, c)
		e, ok := c.GetEntry("0")
		require.True(t, ok)
		assert.EqualValues(t, 2, e.Version)
		assert.Negative(t, e.Age, "nobody has proven that")
	})
}

// A sample of entries says how many nines that is, on each time scale.
func TestAudit_Nines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Scales = []time.Duration{time.Minute, 10 * time.Minute}
		c := audited(t, s, 3000, Options[string, int]{Audit: o})
		r := audit(t, c)
		for _, x := range r.Scales {
			assert.Zero(t, x.Stale)
			assert.InDelta(t, 0.001, x.Share, 1e-9, "the rule of three")
			assert.InDelta(t, 3, x.Nines, 1e-9)
		}
		time.Sleep(5 * time.Minute)
		for i := range 30 {
			s.set(strconv.Itoa(i), -1)
		}
		r = audit(t, c)
		require.Len(t, r.Scales, 3)
		for i, stale := range []uint64{30, 30, 0} { // they were checked more than a minute ago
			assert.Equal(t, stale, r.Scales[i].Stale)
		}
		assert.InDelta(t, 30.0/6000, r.Scales[0].Share, 1e-9)
		assert.GreaterOrEqual(t, r.Longest, 5*time.Minute)
		require.Equal(t, Applied, c.Put("put", 1, s.set("put", 1)))
		s.set("put", 2)
		r = audit(t, c)
		assert.EqualValues(t, 1, r.Scales[2].Stale, "nobody knows since when")
		assert.Negative(t, r.Longest)

		text, err := json.Marshal(r)
		require.NoError(t, err)
		var got AuditReport
		require.NoError(t, json.Unmarshal(text, &got))
		assert.Equal(t, r.Scales, got.Scales)
		nothing := shareOver(time.Second, 0, 0, 0)
		assert.Equal(t, AuditScale{Over: time.Second, Share: 1}, nothing)
	})
}

// A mismatch comes with what happened to its key, and so does an explanation.
func TestAudit_Record(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 1, Options[string, int]{Shards: 1})
		began := time.Now()
		time.Sleep(time.Second)
		require.NoError(t, c.Invalidate(t.Context(), "0", s.set("0", 2)))
		hold(t, c, "0")
		hold(t, c, "0")
		s.set("0", 3)
		audit(t, c)
		m := c.Mismatches()
		require.Len(t, m, 1)
		var all []string
		for _, h := range m[0].Record {
			all = append(all, fmt.Sprintf("%s %d by %s", h.What, h.Version, h.By))
		}
		assert.Equal(t, []string{"installed 1 by fill", "told 2 by invalidate", "installed 2 by load"}, all)
		assert.WithinDuration(t, began.Add(time.Second), m[0].Record[1].Time, 0)
		x := c.Explain("0")
		require.Len(t, x.Record, 4)
		assert.Equal(t, "told by audit", x.Record[3].What+" by "+x.Record[3].By)
		assert.Equal(t, "audit", x.SetBy)

		for i := range 3 * recordMost {
			c.Put("0", i, Version(10+i))
		}
		x = c.Explain("0")
		require.Len(t, x.Record, recordOfKey)
		assert.EqualValues(t, 10+3*recordMost-1, x.Record[recordOfKey-1].Version)
		assert.True(t, slices.IsSortedFunc(x.Record, func(a, b Happening) int { return a.Time.Compare(b.Time) }))
		drop(c, "0")
		assert.Equal(t, "evicted", c.Explain("0").Record[recordOfKey-1].What)
		assert.Nil(t, onSource(t, s).Explain("0").Record, "without an auditor nobody writes it down")
	})
}

// Mismatches are told to who asks for them, keys to nobody else.
func TestAudit_TellsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const secret = "4929-1234"
		s, l, log := newSource(), &events{}, &logbook{}
		o := onDemand()
		var told []string
		o.OnMismatch = func(m Mismatch[string]) {
			told = append(told, m.Key)
			panic("boom")
		}
		c := audited(t, s, 0, Options[string, int]{Audit: o, OnEvent: l.add, Logger: log.logger()})
		for i := range 2 * lastMismatches {
			key := fmt.Sprint(secret, i)
			s.set(key, 1)
			hold(t, c, key)
			s.set(key, 2)
		}
		r := audit(t, c)
		assert.Len(t, told, 2*lastMismatches)
		assert.Len(t, c.Mismatches(), lastMismatches)
		assert.Contains(t, c.Mismatches()[0].Key, secret)
		assert.EqualValues(t, 2*lastMismatches, c.Stats().Panics)
		assert.NotContains(t, fmt.Sprintf("%+v", r), secret)
		assert.NotContains(t, fmt.Sprint(l.of(EventMismatch)), secret)
		assert.Contains(t, log.all.String(), "is not what the source has")
		assert.NotContains(t, log.all.String(), secret)
	})
}

// A Digest that panics judges nothing.
func TestAudit_ADigestThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Digest = func(int) uint64 { panic("boom") }
		c := audited(t, s, 3, Options[string, int]{Audit: o})
		s.restore("0", 7, 1)
		s.set("1", 7)
		r := audit(t, c)
		assert.Zero(t, r.Differs)
		assert.EqualValues(t, 1, r.Stale)
		assert.Positive(t, c.Stats().Panics)
	})
}

// An audit begins a cycle at once, or behind the one that is under way, and goes on
// when nobody waits for it.
func TestAudit_OnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 10, Options[string, int]{})
		assert.EqualValues(t, 1, c.AuditReport().Cycles)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		r, err := c.Audit(ended)
		require.ErrorIs(t, err, context.Canceled)
		wanted := r.Begun + 1
		assert.EqualValues(t, 1, r.Cycles)
		time.Sleep(time.Second)
		assert.Equal(t, wanted, c.AuditReport().Cycles)
		assert.EqualValues(t, 10, c.AuditReport().Last.Entries)
		assert.EqualValues(t, 3, audit(t, c).Cycles)

		_, err = onSource(t, s).Audit(t.Context())
		require.ErrorAs(t, err, new(*OptionError))
		assert.Zero(t, onSource(t, s).AuditReport())
		assert.Nil(t, onSource(t, s).Mismatches())
	})
}

// Cycles begin by themselves, no more often than Every.
func TestAudit_Every(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 10, Options[string, int]{Audit: &AuditOptions[string, int]{Rate: 1000, Every: time.Minute, Bound: testBound}})
		time.Sleep(10*time.Minute + time.Second)
		assert.EqualValues(t, 11, c.Stats().AuditCycles)
		assert.EqualValues(t, 100, c.Stats().AuditChecked)
	})
}

func TestAudit_Options(t *testing.T) {
	s := newSource()
	for name, x := range map[string]struct {
		o     Options[string, int]
		field string
	}{
		"no source":     {Options[string, int]{Audit: &AuditOptions[string, int]{}}, "Audit"},
		"shadow of":     {Options[string, int]{Shadow: true}, "Shadow"},
		"rate":          {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Rate: -1}}, "Audit.Rate"},
		"every":         {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Every: -1}}, "Audit.Every"},
		"bound":         {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Bound: -1}}, "Audit.Bound"},
		"short bound":   {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Bound: time.Microsecond}}, "Audit.Bound"},
		"trip":          {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Trip: -1}}, "Audit.Trip"},
		"short scale":   {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Scales: []time.Duration{time.Second}}}, "Audit.Scales"},
		"falling scale": {Options[string, int]{Store: s, Audit: &AuditOptions[string, int]{Scales: []time.Duration{time.Hour, time.Minute}}}, "Audit.Scales"},
	} {
		assert.Equal(t, []string{x.field}, refusal(x.o), name)
	}
	inv := newMemLog().invalidator()
	inv.Beat = time.Second
	for want, o := range map[time.Duration]Options[string, int]{
		5 * time.Second:  {},
		10 * time.Second: {Invalidator: inv},
		time.Minute:      {Invalidator: inv, Level: Within(time.Minute)},
		time.Second:      {Invalidator: newBus().invalidator()},
		7:                {Audit: &AuditOptions[string, int]{Bound: 7}},
	} {
		if o.Audit == nil {
			o.Audit = &AuditOptions[string, int]{}
		}
		assert.Equal(t, want, o.auditOptions().Bound)
	}
	o := Options[string, int]{Invalidator: inv, TTL: time.Hour, Shadow: true, Audit: &AuditOptions[string, int]{Bound: 2 * time.Second}}
	assert.Contains(t, strings.Join(o.Warnings(), "\n"), "Audit.Bound is 2s, less than four beats of 1s")
	assert.Contains(t, strings.Join(o.Warnings(), "\n"), "Shadow is set")
}

func TestMismatchKind_TravelsAsText(t *testing.T) {
	for kind, want := range map[MismatchKind]string{MismatchStale: "stale", MismatchDiffers: "differs", MismatchAhead: "ahead", 99: "none"} {
		assert.Equal(t, want, kind.String())
		text, err := kind.MarshalText()
		require.NoError(t, err)
		var got MismatchKind
		require.NoError(t, got.UnmarshalText(text))
		assert.Equal(t, want, got.String())
	}
	assert.Error(t, new(MismatchKind).UnmarshalText([]byte("late")))
}

// An auditor costs a hit nothing.
func TestAlloc_AnAuditedHitAllocatesNothing(t *testing.T) {
	s := newSource()
	s.set("k", 1)
	o := onDemand()
	o.Sample = 1
	c := newCache(t, Options[string, int]{Store: s, Audit: o})
	hold(t, c, "k")
	ctx := t.Context()
	assert.Less(t, testing.AllocsPerRun(1000, func() { c.Get("k"); _, _ = c.Load(ctx, "k") }), 0.5)
	v := Version(1)
	assert.Less(t, testing.AllocsPerRun(1000, func() { v++; c.Put("k", 1, v) }), 0.5, "nor does a Put that is recorded")
}

// The auditor runs beside everything else.
func TestAudit_BesideEverything(t *testing.T) {
	s := &versionSource{source: newSource()}
	c := newCache(t, Options[string, int]{Store: s, MaxCost: 100, Shards: 2,
		Audit: &AuditOptions[string, int]{Rate: 1 << 20, Every: 1, Bound: time.Millisecond, Sample: 1, Scales: []time.Duration{2 * time.Millisecond}}})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 500 {
				key := strconv.Itoa((i + j) % 200)
				switch j % 5 {
				case 0:
					_, _ = c.Update(t.Context(), key, inc)
				case 1:
					_ = c.Invalidate(t.Context(), key, s.set(key, j))
				case 2:
					_ = c.Stats()
					c.Explain(key)
				case 3:
					c.SetBypass(j%2 == 0)
				default:
					_, _ = c.Load(t.Context(), key)
				}
			}
		})
	}
	all.Wait()
	audit(t, c)
	assert.Zero(t, c.AuditReport().Ahead+c.AuditReport().Differs)
}

// The auditor tells the breaker what a load tells it, and notices that it has changed.
func TestAudit_TellsTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for err, want := range map[error]error{ErrTooLarge: nil, errDown: errDown, ErrNotFound: nil} {
			s, b := newSource(), &stateful{}
			b.set(BreakerClosed)
			var verdicts []error
			c := audited(t, s, 1, Options[string, int]{Breaker: listening{b, &verdicts}})
			s.beforeLoad = func(context.Context, string) error { return err }
			audit(t, c)
			require.NotEmpty(t, verdicts)
			for _, v := range verdicts {
				assert.Equal(t, want, v, err)
			}
			b.set(BreakerHalfOpen)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, _ = c.Audit(ctx) // an open breaker puts it off
			cancel()
			assert.Equal(t, want != nil, c.Stats().BreakerOpens == 1, "%v: its probe is noticed", err)
		}
	})
}

type listening struct {
	*stateful
	verdicts *[]error
}

func (l listening) Allow() (func(error), error) {
	done, err := l.stateful.Allow()
	if err != nil {
		return nil, err
	}
	return func(err error) { *l.verdicts = append(*l.verdicts, err); done(err) }, nil
}

// A Digest that ends its goroutine does not end the auditor.
func TestAudit_ADigestThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Digest = func(int) uint64 { runtime.Goexit(); return 0 }
		c := audited(t, s, 3, Options[string, int]{Audit: o})
		s.set("1", 7)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		r, err := c.Audit(ctx)
		require.NoError(t, err)
		assert.EqualValues(t, 1, r.Stale)
	})
}

// A version that is zero is none: the key is asked for by value.
func TestAudit_AVersionThatIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 2, Options[string, int]{Store: versionless{s}})
		s.remove("0")
		r := audit(t, c)
		assert.Zero(t, r.Ahead)
		assert.EqualValues(t, 1, r.Stale)
		assert.EqualValues(t, 2, r.Checked)
	})
}

type versionless struct{ *source }

func (versionless) LoadVersions(_ context.Context, keys []string) (map[string]Version, error) {
	all := map[string]Version{}
	for _, k := range keys {
		all[k] = 0
	}
	return all, nil
}

// What a walk suspects is confirmed, repaired and counted for the switch when its bound
// is over, not when the walk is; nor does an invalidation that is looked at again wait.
func TestAudit_SuspicionsDoNotWaitForTheWalk(t *testing.T) {
	for name, bulk := range map[string]bool{"by load": false, "by versions": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &versionSource{source: newSource()}
				var store Store[string, int] = s
				if !bulk {
					store = s.source
				}
				const entries, rate = 2000, 50 // a walk of forty seconds
				var began, first, looked, tripped time.Time
				o := &AuditOptions[string, int]{Rate: rate, Every: 1000 * time.Hour, Bound: 2 * time.Second, Sample: 1, Scales: []time.Duration{}, Trip: 3}
				o.OnMismatch = func(m Mismatch[string]) {
					if first.IsZero() {
						first = time.Now()
					}
					if m.Key == "told" {
						looked = time.Now()
					}
				}
				c := audited(t, s.source, entries, Options[string, int]{Store: store, Audit: o, OnEvent: func(e Event) {
					if e.Kind == EventTripped {
						tripped = time.Now()
					}
				}})
				for i := range entries / 50 {
					s.set(strconv.Itoa(50*i), -1)
				}
				began = time.Now()
				time.AfterFunc(10*time.Second, func() {
					v := s.set("told", 1)
					load(t, c, "told")
					require.NoError(t, c.Invalidate(t.Context(), "told", v))
					s.set("told", 2)
				})
				r := audit(t, c)
				assert.Less(t, first.Sub(began), 10*time.Second)
				assert.Less(t, tripped.Sub(began), 20*time.Second)
				assert.Less(t, looked.Sub(began), 20*time.Second)
				assert.EqualValues(t, entries/50+1, r.Stale)
				assert.Less(t, time.Since(began), 5*time.Minute)
			})
		})
	}
}

// Of a suspicion whose entry expires before it is decided nobody knows for how long it
// would have been stale: it is not among those that were checked and good.
func TestAudit_WhatIsUndecidedMayHaveBeenStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Scales = []time.Duration{time.Hour}
		c := audited(t, s, 500, Options[string, int]{Audit: o, TTL: testBound + testBound/4, TTLJitter: -1})
		for i := range 100 {
			s.set(strconv.Itoa(i), -1)
		}
		time.Sleep(testBound / 2)
		r := audit(t, c)
		assert.EqualValues(t, 100, r.Suspicions)
		assert.EqualValues(t, 100, r.Undecided)
		assert.EqualValues(t, 400, r.Checked)
		assert.Zero(t, r.Stale)
		assert.Equal(t, AuditScale{Over: testBound, Undecided: 100, Share: 0.2, Nines: -math.Log10(0.2)}, r.Scales[0])
		assert.Equal(t, AuditScale{Over: time.Hour, Share: 3. / 400, Nines: -math.Log10(3. / 400)}, r.Scales[1], "they were not there for an hour")
	})
}

// A write or a fill that does not end keeps neither a cycle from ending nor the source
// busy; when it has ended, what is stale is found.
func TestAudit_AFillThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := audited(t, s, 10, Options[string, int]{Shards: 1})
		s.set("3", 9)
		f := c.BeginFill("3")
		loads, began := s.loadCount(), time.Now()
		assert.Zero(t, audit(t, c).Mismatches())
		assert.Less(t, time.Since(began), 20*testBound)
		time.Sleep(time.Hour - time.Since(began))
		assert.Less(t, s.loadCount()-loads, int(time.Hour/testBound)+30)
		f.Cancel()
		time.Sleep(2 * testBound)
		assert.EqualValues(t, 1, c.AuditReport().Stale)
	})
}

// Whoever sets the bypass to off has heard of what the auditor found: if it is set again
// without the auditor that was somebody else, and the auditor counts anew.
func TestAudit_TheSwitchIsSetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		o := onDemand()
		o.Trip, o.Rate = 2, 10
		c := audited(t, s, 40, Options[string, int]{Audit: o})
		for i := range 40 {
			s.set(strconv.Itoa(i), -1)
		}
		set := 0
		c.audit.o.OnMismatch = func(Mismatch[string]) {
			if c.AuditReport().Tripped {
				set++
				c.SetBypass(false)
				c.SetBypass(true)
				assert.False(t, c.AuditReport().Tripped, "this was somebody else")
				c.SetBypass(false)
				for i := range 40 { // what is suspect now is no mismatch
					c.Put(strconv.Itoa(i), i, 1)
				}
			}
		}
		audit(t, c)
		assert.Positive(t, set)
	})
}

// A callback that does not return holds up Close no longer than its context says, and a
// second.
func TestClose_ACallbackThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, returns := newSource(), make(chan struct{})
		o := onDemand()
		o.OnMismatch = func(Mismatch[string]) { <-returns }
		c, err := New(Options[string, int]{Store: s, Audit: o})
		require.NoError(t, err)
		s.set("k", 1)
		load(t, c, "k")
		s.set("k", 2)
		auditing, enough := context.WithTimeout(t.Context(), time.Minute)
		defer enough()
		_, err = c.Audit(auditing)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		assert.ErrorContains(t, c.Close(ctx), "a callback")
		assert.Equal(t, time.Minute+endGrace, time.Since(began))
		close(returns)
		synctest.Wait()
	})
}
