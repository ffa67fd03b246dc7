package tidemark

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A versionSource is a source that can tell versions.
type versionSource struct {
	*source
	mu     sync.Mutex // guards asked
	asked  [][]string
	before func(ctx context.Context, keys []string) error
	after  func(keys []string)
}

func (s *versionSource) LoadVersions(ctx context.Context, keys []string) (map[string]Version, error) {
	s.mu.Lock()
	s.asked = append(s.asked, slices.Sorted(slices.Values(keys)))
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(ctx, keys); err != nil {
			return nil, err
		}
	}
	versions := map[string]Version{}
	for _, k := range keys {
		if r := s.get(k); !r.absent {
			versions[k] = r.version
		}
	}
	if s.after != nil {
		s.after(keys)
	}
	return versions, nil
}

func (s *versionSource) questions() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// suspected returns a cache that holds the keys 0 to n-1, all of them suspect.
func suspected(t testing.TB, s *versionSource, n int, o Options[string, int]) *Cache[string, int] {
	t.Helper()
	o.Store = s
	c := newCache(t, o)
	for i := range n {
		s.set(strconv.Itoa(i), i)
		hold(t, c, strconv.Itoa(i))
	}
	c.suspect("test")
	return c
}

// readAll reads the keys 0 to n-1 side by side.
func readAll(t testing.TB, c *Cache[string, int], n int) {
	t.Helper()
	var reads sync.WaitGroup
	for i := range n {
		reads.Go(func() {
			e, err := c.Load(t.Context(), strconv.Itoa(i))
			assert.NoError(t, err)
			assert.Equal(t, i, e.Value)
		})
	}
	reads.Wait()
}

// What is suspect is confirmed by its version, many keys in one call, and no value is
// read again.
func TestConfirm_ManyKeysShareACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 2000
		s := &versionSource{source: newSource()}
		c := suspected(t, s, keys, Options[string, int]{})
		loads := s.loadCount()
		s.before = func(context.Context, []string) error { time.Sleep(time.Millisecond); return nil }
		requireNotServed(t, c, "7")
		readAll(t, c, keys)
		assert.Equal(t, loads, s.loadCount(), "no value was read")
		assert.EqualValues(t, keys, c.Stats().Confirmed)
		asked := s.questions()
		assert.LessOrEqual(t, len(asked), maxAsking+keys/maxQuestions+1)
		for _, q := range asked {
			assert.LessOrEqual(t, len(q), maxQuestions)
			assert.Equal(t, slices.Compact(slices.Clone(q)), q, "distinct")
		}
		for i := range keys {
			requireServed(t, c, strconv.Itoa(i))
		}
		assert.Less(t, c.Stats().Loads, uint64(keys+len(asked)+1), "a call counts as one load")
	})
}

// What the source no longer has at that version is loaded; an absence, and what
// memory does not have, is not asked for.
func TestConfirm_WhatHasChangedIsLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		c := suspected(t, s, 3, Options[string, int]{})
		s.set("1", 100)
		s.remove("2")
		for key, want := range map[string]row{"0": {0, 1, false}, "1": {100, 2, false}, "2": {0, 2, true}, "none": {absent: true}} {
			e, err := c.Load(t.Context(), key)
			if want.absent {
				require.ErrorIs(t, err, ErrNotFound)
			} else {
				require.NoError(t, err)
			}
			assert.Equal(t, want, row{e.Value, e.Version, e.Absent}, key)
		}
		c.suspect("test")
		_, err := c.Load(t.Context(), "2")
		require.ErrorIs(t, err, ErrNotFound)
		assert.ElementsMatch(t, [][]string{{"0"}, {"1"}, {"2"}}, s.questions())
		assert.EqualValues(t, 1, c.Stats().Confirmed)

		require.NoError(t, c.InvalidateAll(t.Context()))
		hold(t, c, "0")
		assert.Len(t, s.questions(), 3, "what InvalidateAll has thrown away is not confirmed")
	})
}

// A confirmation is a load like any other: what became known while it ran is held
// against it, and its age counts from when it was asked.
func TestConfirm_IsFencedAndDated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		c := suspected(t, s, 2, Options[string, int]{})
		s.after = func([]string) { // the answer is on its way
			time.Sleep(time.Second)
			s.after = nil
			assert.NoError(t, c.Invalidate(context.Background(), "0", s.set("0", 7)))
		}
		e, err := c.Load(t.Context(), "0")
		require.NoError(t, err)
		assert.EqualValues(t, 1, e.Version)
		assert.Equal(t, time.Second, e.Age)
		requireNotServed(t, c, "0")
		hold(t, c, "0")
		s.after = func([]string) { time.Sleep(time.Second) }
		hold(t, c, "1")
		e, _ = c.GetEntry("1")
		assert.Equal(t, time.Second, e.Age)
	})
}

// A read Within a bound asks for the version when what memory has is too old.
func TestConfirm_WhatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		s.set("k", 1)
		c := newCache(t, Options[string, int]{Store: s, TTL: time.Minute, TTLJitter: -1})
		hold(t, c, "k")
		loads := s.loadCount()
		for range 3 {
			time.Sleep(10 * time.Second)
			e, err := c.Read(t.Context(), "k", Within(time.Second))
			require.NoError(t, err)
			assert.LessOrEqual(t, e.Age, time.Second)
		}
		time.Sleep(time.Minute + time.Second)
		requireNotServed(t, c, "k")
		hold(t, c, "k") // it was swept, so it had to be loaded, or is confirmed
		assert.LessOrEqual(t, s.loadCount(), loads+1)
		assert.GreaterOrEqual(t, c.Stats().Confirmed, uint64(3))
	})
}

// A lagging answer confirms nothing: the Store is asked, if there is one.
func TestConfirm_OnlyAtTheStrongSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lagging := &versionSource{source: newSource()}
		strong := &versionSource{source: lagging.source}
		lagging.set("k", 1)
		c := newCache(t, Options[string, int]{Loader: lagging, LoaderClass: Lagging(time.Second), Store: strong})
		hold(t, c, "k")
		c.suspect("test")
		hold(t, c, "k") // held off: strong
		time.Sleep(3 * time.Second)
		c.holdOff.Store(0)
		c.era.Add(eraSuspicion)
		hold(t, c, "k") // lagging again
		assert.Empty(t, lagging.questions())
		assert.Len(t, strong.questions(), 1)

		both := newCache(t, Options[string, int]{Loader: struct {
			*versionSource
			laggingLoad
		}{lagging, laggingLoad{lagging.source}}, LoaderClass: Lagging(time.Second)})
		hold(t, both, "k")
		both.suspect("test")
		hold(t, both, "k")
		assert.Empty(t, lagging.questions(), "LoadStrong is the strong source, and it tells no versions")
	})
}

// laggingLoad adds LoadStrong to a source.
type laggingLoad struct{ s *source }

func (l laggingLoad) LoadStrong(ctx context.Context, key string) (int, Version, error) {
	return l.s.Load(ctx, key)
}

// A call that fails fails those who asked; one that panics or ends its goroutine
// keeps nobody waiting; and the next read asks again.
func TestConfirm_ACallThatFails(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":     func() error { return errors.New("no route") },
		"panic":     func() error { panic("boom") },
		"goexit":    func() error { runtime.Goexit(); return nil },
		"not found": func() error { return fmt.Errorf("table: %w", ErrNotFound) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const keys = 20
				s := &versionSource{source: newSource()}
				c := suspected(t, s, keys, Options[string, int]{})
				s.before = func(context.Context, []string) error { time.Sleep(time.Millisecond); return fail() }
				began := time.Now()
				var reads sync.WaitGroup
				for i := range keys {
					reads.Go(func() {
						_, err := c.Load(t.Context(), strconv.Itoa(i))
						var failed *LoadError
						assert.ErrorAs(t, err, &failed)
						if name == "goexit" {
							assert.ErrorIs(t, err, errGoexit)
						}
					})
				}
				reads.Wait()
				assert.Less(t, time.Since(began), time.Second, "nobody waits for a call that has ended")
				s.before = nil
				readAll(t, c, keys)
			})
		})
	}
}

// Calls that do not return take their places, and the reads of other keys end when
// their time is over.
func TestConfirm_ACallThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 20
		s := &versionSource{source: newSource()}
		c := suspected(t, s, keys, Options[string, int]{LoadTimeout: time.Second})
		stuck := make(chan struct{})
		s.before = func(context.Context, []string) error { <-stuck; return nil }
		began := time.Now()
		var reads sync.WaitGroup
		for i := range keys {
			reads.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err := c.Load(ctx, strconv.Itoa(i))
				assert.Error(t, err)
			})
			synctest.Wait()
		}
		reads.Wait()
		assert.LessOrEqual(t, time.Since(began), 2*time.Second)
		s.set("new", 1)
		hold(t, c, "new") // which is none of theirs
		close(stuck)
		synctest.Wait()
		s.before = nil
		readAll(t, c, keys)
	})
}

// The questions count among MaxLoads, and the Breaker hears of them.
func TestConfirm_IsBoundedAsALoadIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		b := &refusing{}
		c := suspected(t, s, 5, Options[string, int]{MaxLoads: 1, Breaker: b})
		running, most := 0, 0
		s.before = func(context.Context, []string) error {
			running++
			most = max(most, running)
			time.Sleep(time.Millisecond)
			running--
			return nil
		}
		readAll(t, c, 5)
		assert.Equal(t, 1, most)
		c.suspect("test")
		b.refuse = true
		_, err := c.Load(t.Context(), "1")
		require.ErrorIs(t, err, ErrUnavailable)
	})
}

// refusing is a Breaker that is open on demand.
type refusing struct{ refuse bool }

func (b *refusing) Allow() (func(error), error) {
	if b.refuse {
		return nil, errors.New("open")
	}
	return func(error) {}, nil
}

// The switch: nothing is served, everything else goes on, and what memory had is
// confirmed before it is served again.
func TestSetBypass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := followers(t, 2, s, log, Options[string, int]{})
		c := r[0]
		hold(t, c, "k")
		hold(t, r[1], "k")
		c.SetBypass(false)
		requireServed(t, c, "k")
		c.SetBypass(true)
		c.SetBypass(true)
		requireServed(t, r[1], "k")
		assert.True(t, c.Stats().Bypassed)
		assert.False(t, r[1].Stats().Bypassed)
		assert.Contains(t, c.Explain("k").String(), "bypassed")
		assert.False(t, c.Explain("k").Suspect)
		require.NoError(t, c.Ready(t.Context()), "it hears the others")
		for range 3 {
			loads := s.loadCount()
			requireNotServed(t, c, "k")
			e, err := c.Load(t.Context(), "k")
			require.NoError(t, err)
			assert.Equal(t, 1, e.Value)
			assert.Equal(t, loads+1, s.loadCount())
		}
		_, err := c.Update(t.Context(), "k", inc)
		require.NoError(t, err)
		synctest.Wait()
		requireNotServed(t, c, "k")
		requireNotServed(t, r[1], "k")
		c.cutOff()
		c.suspect("test")
		c.rejoin()
		requireNotServed(t, c, "k")

		require.NoError(t, c.InvalidateAll(t.Context()))
		s.set("k", 3) // nobody is told
		c.SetBypass(false)
		assert.False(t, c.Stats().Bypassed)
		requireNotServed(t, c, "k")
		hold(t, c, "k")
		v, _ := c.Get("k")
		assert.Equal(t, 3, v)
	})
}

// While the switch is on the source is asked for values: what memory has is what
// nobody trusts, whatever its version.
func TestSetBypass_ConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		s.set("k", 1)
		c := newCache(t, Options[string, int]{Store: s})
		hold(t, c, "k")
		s.restore("k", 7, 1) // memory has another value at this version
		c.SetBypass(true)
		e, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, 7, e.Value)
		assert.Empty(t, s.questions())
		c.SetBypass(false)
		hold(t, c, "k")
		v, _ := c.Get("k")
		assert.Equal(t, 7, v)
		assert.Len(t, s.questions(), 1, "what was loaded meanwhile is confirmed")
	})
}

// Setting the switch beside suspicions and cuts loses none of them.
func TestSetBypass_BesideSuspicions(t *testing.T) {
	c := onSource(t, newSource())
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 1000 {
				switch i {
				case 0:
					c.SetBypass(true)
					c.SetBypass(false)
				case 1:
					c.suspect("test")
				case 2:
					c.newGeneration()
				case 3:
					c.cutOff()
					c.rejoin()
				}
			}
		})
	}
	all.Wait()
	era := c.era.Load()
	assert.Zero(t, era&eraUnserved)
	assert.EqualValues(t, 1000, generation(era))
	assert.EqualValues(t, 4000, uint32(era)/eraSuspicion)
}

// Who joins a question late has as long to wait as for a load, and gets an answer that
// comes in that time.
func TestConfirm_AQuestionHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &versionSource{source: newSource()}
		c := suspected(t, s, 2, Options[string, int]{LoadTimeout: 10 * time.Second, MaxLoads: 1})
		s.beforeLoad = func(_ context.Context, key string) error {
			if key == "hangs" {
				time.Sleep(10*time.Second + 200*time.Millisecond) // longer than it may
			}
			return nil
		}
		loading(t, c, "hangs", Any)
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		loading(t, c, "0", Any) // asks the question, and has no time left when there is a place for it
		time.Sleep(9900 * time.Millisecond)
		_, err := c.Load(t.Context(), "1")
		require.NoError(t, err)
	})
}

// What MaxStale keeps from being served is not explained as served.
func TestExplain_TooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("k", 1)
		c := newCache(t, Options[string, int]{Store: s, MaxStale: time.Second})
		load(t, c, "k")
		for _, old := range []bool{false, true} {
			_, ok := c.Get("k")
			x := c.Explain("k")
			assert.Equal(t, !old, ok)
			assert.Equal(t, !old, x.Served)
			assert.Equal(t, old, x.TooOld)
			assert.Equal(t, old, strings.Contains(x.String(), "older than MaxStale"), x)
			time.Sleep(time.Minute)
		}
	})
}
