package tidemark

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// goexit ends the calling goroutine.
func goexit() { runtime.Goexit() }

func TestLoad_OneLoadHoweverManyCallers(t *testing.T) {
	const callers = 100
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.beforeLoad = l.hook
	s.set("k", 10)
	var readers []<-chan result
	for range callers {
		readers = append(readers, loading(t, c, "k", Any))
	}
	eventually(t, func() bool { return c.Stats().Joined == callers-1 }, "all wait for one load")
	l.release()
	for _, r := range readers {
		assert.Equal(t, 10, value(t, r).Value)
	}
	assert.Equal(t, 1, s.loadCount())
	assert.EqualValues(t, 1, c.Stats().Loads)
	assert.EqualValues(t, callers, c.Stats().Misses)
	idle(t, c)
}

// A load runs, and has read version 1. Who needs more than it can prove waits
// for it and then starts another; who needs more than the source has is told.
func TestLoad_AWaiterThatNeedsMoreStartsAnother(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	any := loading(t, c, "k", Any)
	l.wait(t)
	s.set("k", 20)
	more, most := loading(t, c, "k", AtLeast(2)), loading(t, c, "k", AtLeast(3))
	eventually(t, func() bool { return c.Stats().Joined == 2 }, "both join the load")
	l.release()
	assert.Equal(t, 10, value(t, any).Value)
	assert.Equal(t, 20, value(t, more).Value)
	r := get(t, most)
	require.ErrorIs(t, r.err, ErrStale)
	assert.Negative(t, r.entry.Age)
	served(t, c, "k", 2, "the later load filled")
	idle(t, c)
}

func TestLoad_AtLeast(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	load(t, c, "k")
	s.set("k", 20)
	for version, want := range map[Version]Version{0: 1, 1: 1} {
		e, err := c.Read(t.Context(), "k", AtLeast(version))
		require.NoError(t, err)
		assert.Equal(t, want, e.Version, "memory has enough for %d", version)
	}
	e, err := c.Read(t.Context(), "k", AtLeast(2))
	require.NoError(t, err)
	assert.Equal(t, Version(2), e.Version)
	before := s.loadCount()
	_, err = c.Read(t.Context(), "k", AtLeast(3))
	require.ErrorIs(t, err, ErrStale)
	assert.Equal(t, before+1, s.loadCount(), "a source that has no more is not asked again")

	s.remove("k")
	e, err = c.Read(t.Context(), "k", AtLeast(3))
	require.ErrorIs(t, err, ErrNotFound)
	assert.Equal(t, Version(3), e.Version)
	assert.True(t, e.Absent)
	before = s.loadCount()
	_, err = c.Read(t.Context(), "k", AtLeast(3))
	require.ErrorIs(t, err, ErrNotFound)
	assert.Equal(t, before, s.loadCount(), "the absence is in memory, with its version")
}

// A load runs; a linearizable read begins. It must not join, and is served by a
// load that begins after it, even if memory has an entry.
func TestLoad_LinearizableNeverJoinsAnOlderLoad(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	older := loading(t, c, "k", Any)
	l.wait(t)
	s.set("k", 20)
	e, err := c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	assert.Equal(t, 20, e.Value, "with the older load still running")
	assert.Zero(t, c.Stats().Joined)
	l.release()
	value(t, older)

	s.set("k", 30)
	served(t, c, "k", 2, "memory does not know better")
	e, err = c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	assert.Equal(t, 30, e.Value)
	served(t, c, "k", 3, "the read refreshed the entry")
}

// A caller that joins a load can leave it: at once, and alone.
func TestLoad_AWaitersContextIsHonouredAtOnce(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.beforeLoad = l.hook
	s.set("k", 10)
	first := loading(t, c, "k", Any)
	l.wait(t)
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	second := async(func() (Entry[int], error) { return c.Load(ctx, "k") })
	many := async(func() (Entry[int], error) {
		_, err := c.LoadMany(ctx, []string{"k", "k"})
		return Entry[int]{}, err
	})
	eventually(t, func() bool { return c.Stats().Joined == 2 }, "both join")
	cancel(gone)
	for _, r := range []<-chan result{second, many} {
		require.ErrorIs(t, get(t, r).err, context.Canceled)
	}
	l.release()
	assert.Equal(t, 10, value(t, first).Value)
	assert.Equal(t, 1, s.loadCount())
}

// What the first caller's context carries, such as a trace, reaches the Loader;
// its deadline does not.
func TestLoad_TheLoaderGetsTheFirstCallersValues(t *testing.T) {
	type key struct{}
	for timeout, bounded := range map[time.Duration]bool{0: true, time.Hour: true, -1: false} {
		var got context.Context
		c := newCache(t, Options[string, int]{MaxCost: small, LoadTimeout: timeout, Loader: LoaderFunc[string, int](
			func(ctx context.Context, _ string) (int, Version, error) { got = ctx; return 1, 1, ctx.Err() })})
		ctx, cancel := context.WithDeadline(context.WithValue(t.Context(), key{}, "trace"), time.Now().Add(time.Minute))
		_, err := c.Load(ctx, "k")
		cancel()
		require.NoError(t, err)
		assert.Equal(t, "trace", got.Value(key{}))
		deadline, ok := got.Deadline()
		assert.Equal(t, bounded, ok, "LoadTimeout %v", timeout)
		want := map[time.Duration]time.Duration{0: 30 * time.Second, time.Hour: time.Hour}[timeout]
		if bounded {
			assert.WithinDuration(t, time.Now().Add(want), deadline, 10*time.Second)
		}
	}
}

// A load that takes longer than LoadTimeout fails for all who wait, and the key
// is not stuck.
func TestLoad_LoadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s, LoadTimeout: 3 * time.Second})
		s.set("k", 10)
		s.beforeLoad = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		first := loading(t, c, "k", Any)
		time.Sleep(time.Second)
		second := loading(t, c, "k", Any)
		for _, r := range []<-chan result{first, second} {
			var failed *LoadError
			err := get(t, r).err
			require.ErrorAs(t, err, &failed)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		assert.Equal(t, 3*time.Second, time.Since(began))
		s.beforeLoad = nil
		assert.Equal(t, 10, load(t, c, "k").Value)
		idle(t, c)
	})
}

// Never more than MaxLoads calls of the Loader at once, a bulk load being one; a
// load that gets no place within LoadTimeout fails without asking.
func TestLoad_MaxLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places = 3
		s := newSource()
		c := newCache(t, Options[string, int]{
			MaxCost: small, Shards: 1, Loader: bulkSource{s}, MaxLoads: places, LoadTimeout: time.Second,
		})
		var running, most atomic.Int32
		s.beforeLoad = func(ctx context.Context, _ string) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			time.Sleep(400 * time.Millisecond)
			return ctx.Err()
		}
		var readers []<-chan result
		for i := range 10 {
			key := fmt.Sprint(i)
			s.set(key, i)
			readers = append(readers, loading(t, c, key, Any))
		}
		served, refused, failed := 0, 0, 0
		for _, r := range readers {
			switch err := get(t, r).err; {
			case err == nil:
				served++
			case errors.Is(err, ErrUnavailable):
				require.ErrorIs(t, err, context.DeadlineExceeded)
				refused++
			default: // began after 800 ms, and had 200 left
				require.ErrorIs(t, err, context.DeadlineExceeded)
				failed++
			}
		}
		assert.EqualValues(t, places, most.Load())
		assert.Equal(t, []int{2 * places, places, 1}, []int{served, failed, refused})
		assert.EqualValues(t, 3*places, c.Stats().Loads, "a load without a place is none")
		idle(t, c)

		most.Store(0)
		for i := range places + 1 { // with five keys each
			async(func() (Entry[int], error) {
				_, err := c.LoadMany(t.Context(), bulkKeys(i))
				return Entry[int]{}, err
			})
		}
		synctest.Wait()
		assert.EqualValues(t, 5*places, running.Load(), "a bulk load takes one place")
		time.Sleep(9 * time.Second)
		idle(t, c)
	})
}

// bulkKeys returns five keys of a bulk of their own.
func bulkKeys(bulk int) (keys []string) {
	for i := range 5 {
		keys = append(keys, fmt.Sprintf("bulk %d key %d", bulk, i))
	}
	return keys
}

// MaxLoads below zero means no bound.
func TestLoad_WithoutMaxLoadsEveryLoadRuns(t *testing.T) {
	const n = defaultMaxLoads + 10
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, MaxLoads: -1})
	var running atomic.Int32
	release := make(chan struct{})
	s.beforeLoad = func(context.Context, string) error {
		running.Add(1)
		<-release
		return nil
	}
	for i := range n {
		loading(t, c, fmt.Sprint(i), Any)
	}
	eventually(t, func() bool { return running.Load() == n }, "all run at once")
	close(release)
	idle(t, c)
}

// One key's load hangs. Everything else works, in the same shard too; and so
// does the key itself, but for its loads.
func TestLoad_ASlowLoaderBlocksNothingElse(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s})
	s.set("hit", 1)
	load(t, c, "hit")
	l := newLatch(t)
	s.beforeLoad = func(ctx context.Context, key string) error {
		if key == "slow" {
			return l.hook(ctx, key)
		}
		return nil
	}
	slow := loading(t, c, "slow", Any)
	l.wait(t)
	done := async(func() (Entry[int], error) {
		ctx := t.Context()
		_, ok := c.Get("hit")
		assert.True(t, ok)
		e, err := c.Update(ctx, "other", func(Entry[int]) (int, error) { return 2, nil })
		assert.NoError(t, err)
		_, err = c.Delete(ctx, "other", e.Version)
		assert.NoError(t, err)
		_, err = c.LoadMany(ctx, []string{"hit", "a", "b"})
		assert.NoError(t, err)
		assert.NoError(t, c.Invalidate(ctx, "hit", 9))
		for _, key := range []string{"c", "slow"} {
			assert.Equal(t, Applied, c.Put(key, 1, 5))
			_, ok = c.Get(key)
			assert.True(t, ok)
		}
		assert.NoError(t, c.Invalidate(ctx, "slow", 6))
		assert.True(t, c.Explain("slow").Loading)
		assert.NoError(t, c.Resize(small/2))
		assert.NoError(t, c.InvalidateAll(ctx))
		return c.Load(ctx, "hit")
	})
	assert.Equal(t, 1, value(t, done).Value)
	l.release()
	require.ErrorIs(t, get(t, slow).err, ErrNotFound)
}

// panics are callbacks that fail in the two ways that a function can without
// returning.
var panics = map[string]func(){"panic": func() { panic("boom") }, "Goexit": goexit}

// What a cache calls while it loads may panic, or end the goroutine it is called
// on; the load ends for those who wait, and leaves nothing behind.
func TestLoad_CallbacksThatDoNotReturn(t *testing.T) {
	for how, fail := range panics {
		failing := true
		failOnce := func() {
			if failing {
				failing = false
				fail()
			}
		}
		for name, o := range map[string]Options[string, int]{
			"Cost": {Cost: func(string, int) int64 { failOnce(); return 1 }},
			"EntryTTL": {EntryTTL: func(string, Entry[int]) time.Duration {
				failOnce()
				return 0
			}},
			"OnEvent":       {Cost: func(string, int) int64 { return small + 1 }, OnEvent: func(Event) { failOnce() }},
			"Breaker.Allow": {Breaker: allowFunc(func() (func(error), error) { failOnce(); return func(error) {}, nil })},
			"Breaker done":  {Breaker: allowFunc(func() (func(error), error) { return func(error) { failOnce() }, nil })},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				s := newSource()
				o.MaxCost, o.Loader = small, bulkSource{s}
				c := newCache(t, o)
				s.set("k", 10)
				s.set("a", 10)
				s.set("b", 10)
				bulk := func() (Entry[int], error) {
					_, err := c.LoadMany(t.Context(), []string{"a", "b"})
					return Entry[int]{}, err
				}
				for _, read := range []func() (Entry[int], error){
					func() (Entry[int], error) { return c.Read(t.Context(), "k", Linearizable) }, bulk,
				} {
					failing = true
					err := get(t, async(read)).err
					assert.False(t, failing, "the callback was called")
					if o.Breaker == nil && (how == "panic" || o.OnEvent != nil) {
						require.NoError(t, err, "the source has answered")
					} else {
						var panicked *PanicError
						require.ErrorAs(t, err, &panicked)
					}
					idle(t, c)
					r := get(t, async(read))
					require.NoError(t, r.err)
				}
				if how == "panic" {
					assert.EqualValues(t, 2, c.Stats().Panics)
				}
			})
		}
	}
}

// An allowFunc is a Breaker.
type allowFunc func() (func(error), error)

func (f allowFunc) Allow() (func(error), error) { return f() }

// The breaker is asked once for each call of the Loader, and told once how it
// ended; an absence is no failure.
func TestLoad_Breaker(t *testing.T) {
	open, boom := errors.New("open"), errors.New("boom")
	var refuse error
	var told []error
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkSource{s}, Breaker: allowFunc(func() (func(error), error) {
		if refuse != nil {
			return nil, refuse
		}
		return func(err error) { told = append(told, err) }, nil
	})})
	s.set("k", 10)
	load(t, c, "k")
	assert.Equal(t, []error{nil}, told)
	_, err := c.Load(t.Context(), "absent")
	require.ErrorIs(t, err, ErrNotFound)
	assert.Equal(t, []error{nil, nil}, told, "an absence is an answer")

	told = nil
	s.beforeLoad = func(context.Context, string) error { return boom }
	_, err = c.Load(t.Context(), "j")
	require.ErrorIs(t, err, boom)
	require.Len(t, told, 1)
	require.ErrorIs(t, told[0], boom)
	for how, fail := range panics {
		told = nil
		s.beforeLoad = func(context.Context, string) error { fail(); return nil }
		_, err = c.Load(t.Context(), "j")
		require.Error(t, err)
		require.Len(t, told, 1, "a %s is a failure", how)
		require.Error(t, told[0])
	}
	s.beforeLoad = nil

	told = nil
	_, err = c.LoadMany(t.Context(), []string{"a", "b", "c"})
	require.NoError(t, err)
	assert.Equal(t, []error{nil}, told, "a bulk load is one call")

	told, refuse = nil, open
	before := s.loadCount()
	_, err = c.Load(t.Context(), "j")
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorIs(t, err, open)
	_, err = c.LoadMany(t.Context(), []string{"d", "e"})
	require.ErrorIs(t, err, ErrUnavailable)
	served(t, c, "k", 1, "a hit needs no breaker")
	assert.Equal(t, before, s.loadCount(), "the source was left alone")
	assert.Empty(t, told)
	idle(t, c)
}

func TestLoad_AValueWithoutAVersionIsNotServed(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: LoaderFunc[string, int](
		func(context.Context, string) (int, Version, error) { return 10, 0, nil })})
	_, err := c.Load(t.Context(), "k")
	require.ErrorIs(t, err, ErrNoVersion)
	var failed *LoadError
	require.ErrorAs(t, err, &failed)
	missing(t, c, "k", "it cannot be ordered")
}

// A value that costs more than the cache may hold is returned and not kept, and
// nothing older stays in its place.
func TestLoad_TooLarge(t *testing.T) {
	s := newSource()
	var events []Event
	c := newCache(t, Options[string, int]{
		MaxCost: small, Store: s, Cost: func(_ string, v int) int64 { return int64(v) },
		OnEvent: func(e Event) { events = append(events, e) },
	})
	s.set("k", small)
	load(t, c, "k")
	served(t, c, "k", 1, "as large as the cache is not too large")
	s.set("k", small+1)
	e, err := c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	assert.Equal(t, small+1, e.Value)
	missing(t, c, "k", "neither the value nor what it replaced")

	s.set("k", 1)
	load(t, c, "k")
	outcome := c.Put("k", small+1, 4)
	assert.Equal(t, TooLarge, outcome)
	require.ErrorIs(t, outcome.Err(), ErrTooLarge)
	missing(t, c, "k", "neither the value nor what it replaced")
	assert.Equal(t, Stale, c.Put("k", 1, 3), "the key has reached version 4")
	assert.Equal(t, TooLarge, c.BeginFill("k").Commit(math.MaxInt, 5))

	e, err = c.CompareAndSet(t.Context(), "k", 3, small+1)
	require.NoError(t, err, "the write has nothing to do with memory")
	assert.Equal(t, Version(4), e.Version)
	missing(t, c, "k", "")
	assert.EqualValues(t, 4, c.Stats().TooLarge)
	assert.Len(t, events, 4)
	for _, e := range events {
		assert.Equal(t, EventTooLarge, e.Kind)
	}
}

// Two batches overlap, and a single read wants a key of both: each key is asked
// for once.
func TestLoadMany_OverlappingBatchesShare(t *testing.T) {
	var mu sync.Mutex
	var asked [][]string
	first, second := newLatch(t), newLatch(t)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkFunc(
		func(_ context.Context, keys []string) (map[string]Loaded[int], error) {
			mu.Lock()
			asked = append(asked, slices.Sorted(slices.Values(keys)))
			n := len(asked)
			mu.Unlock()
			if n == 1 {
				first.once()
			} else {
				second.once()
			}
			found := map[string]Loaded[int]{}
			for _, key := range keys {
				found[key] = Loaded[int]{Value: n, Version: 1}
			}
			return found, nil
		})})
	many := func(keys ...string) (<-chan result, *map[string]int) {
		values := map[string]int{}
		return async(func() (Entry[int], error) {
			found, err := c.LoadMany(t.Context(), keys)
			for key, e := range found {
				values[key] = e.Value
			}
			return Entry[int]{}, err
		}), &values
	}
	a, foundA := many("1", "2", "3", "1")
	first.wait(t)
	b, foundB := many("4", "3", "2", "5")
	second.wait(t)
	single := loading(t, c, "3", Any)
	eventually(t, func() bool { return c.Stats().Joined == 3 }, "the single read joins the first batch")
	second.release()
	eventually(t, func() bool { _, ok := c.Get("4"); return ok }, "a batch does not wait for another to be stored")
	first.release()
	value(t, a)
	value(t, b)
	assert.Equal(t, 1, value(t, single).Value)
	assert.Equal(t, [][]string{{"1", "2", "3"}, {"4", "5"}}, asked)
	assert.Equal(t, map[string]int{"1": 1, "2": 1, "3": 1}, *foundA)
	assert.Equal(t, map[string]int{"2": 1, "3": 1, "4": 2, "5": 2}, *foundB)
	idle(t, c)
}

// A call of a BulkLoader has a bounded number of keys, and begins when so many are
// missing: others may already wait for them.
func TestLoadMany_LoadsSoManyAtATime(t *testing.T) {
	keys := make([]string, 3*maxBulk)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	var mu sync.Mutex
	var sizes []int
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkFunc(func(_ context.Context, keys []string) (map[string]Loaded[int], error) {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(keys))
		all := map[string]Loaded[int]{}
		for _, k := range keys {
			all[k] = Loaded[int]{Value: len(k), Version: 1}
		}
		return all, nil
	}), Store: s})
	found, err := c.LoadMany(t.Context(), keys)
	require.NoError(t, err)
	assert.Len(t, found, len(keys))
	assert.Equal(t, []int{maxBulk, maxBulk, maxBulk}, sizes)
}

// What a batch finds absent is missing from the map, whoever loads it.
func TestLoadMany_AbsentKeysAreMissing(t *testing.T) {
	s := newSource()
	for name, l := range map[string]Loader[string, int]{"bulk": bulkSource{s}, "single": s} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: small, Loader: l})
			s.set("a", 1)
			s.set("b", 2)
			for range 2 { // from the source, then from memory
				found, err := c.LoadMany(t.Context(), []string{"a", "x", "b", "y"})
				require.NoError(t, err)
				assert.Equal(t, []string{"a", "b"}, slices.Sorted(maps.Keys(found)))
			}
			assert.EqualValues(t, 4, c.Stats().Misses)
			assert.EqualValues(t, 4, c.Stats().Hits)
			found, err := c.LoadMany(t.Context(), nil)
			assert.NoError(t, err)
			assert.Empty(t, found)
		})
	}
}

// A key of the batch is being loaded already, and has changed since that load
// began: the batch is not content with it.
func TestLoadMany_AKeyThatNeedsMoreIsLoadedAgain(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s})
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	s.set("j", 10)
	older := loading(t, c, "k", Any)
	l.wait(t)
	_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
	require.NoError(t, err)
	evict(t, c, "k")
	var found map[string]Entry[int]
	many := async(func() (Entry[int], error) {
		var err error
		found, err = c.LoadMany(t.Context(), []string{"k", "j"})
		return Entry[int]{}, err
	})
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the batch joins the load of k")
	l.release()
	value(t, older)
	value(t, many)
	assert.Equal(t, 20, found["k"].Value)
	assert.Equal(t, 10, found["j"].Value)
}

// A context that ends while one key is still being read costs that key only.
func TestLoadMany_KeepsWhatWasLoadedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 0
		c := newCache(t, Options[string, int]{MaxCost: small, Loader: LoaderFunc[string, int](func(ctx context.Context, key string) (int, Version, error) {
			if key == fmt.Sprint(slow) {
				<-ctx.Done()
			}
			return 1, 1, ctx.Err()
		})})
		var keys []string
		for i := range 30 {
			keys = append(keys, fmt.Sprint(i))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		all, err := c.LoadMany(ctx, keys)
		var failed *KeysError[string]
		require.ErrorAs(t, err, &failed)
		assert.Len(t, failed.Failed, 1)
		assert.ErrorIs(t, failed.Failed[fmt.Sprint(slow)], context.DeadlineExceeded)
		assert.Len(t, all, 29)
	})
}

// The bulk load fails as a whole: each key fails, the error is told once, and
// nothing is left behind.
func TestLoadMany_AFailedBulkLoad(t *testing.T) {
	boom := errors.New("boom")
	for name, fail := range map[string]func() error{
		"error":  func() error { return boom },
		"panic":  func() error { panic(boom) },
		"Goexit": func() error { goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			failing := true
			c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkFunc(
				func(_ context.Context, keys []string) (map[string]Loaded[int], error) {
					found := map[string]Loaded[int]{}
					for _, key := range keys {
						found[key] = Loaded[int]{Value: 1, Version: 1}
					}
					if failing {
						return found, fail() // what came with the error does not count
					}
					return found, nil
				})})
			var found map[string]Entry[int]
			r := get(t, async(func() (e Entry[int], err error) {
				found, err = c.LoadMany(t.Context(), []string{"a", "b", "c"})
				return e, err
			}))
			assert.Empty(t, found)
			joined, ok := r.err.(interface{ Unwrap() []error })
			require.True(t, ok)
			require.Len(t, joined.Unwrap(), 1, "one failure, one error")
			var failed *LoadError
			require.ErrorAs(t, r.err, &failed)
			if name == "error" {
				require.ErrorIs(t, r.err, boom)
			} else {
				var panicked *PanicError
				require.ErrorAs(t, r.err, &panicked)
			}
			assert.EqualValues(t, 3, c.Stats().LoadErrors)
			idle(t, c)
			missing(t, c, "a", "the load failed")

			failing = false
			_, err := c.LoadMany(t.Context(), []string{"a", "b", "c"})
			require.NoError(t, err)
		})
	}
}

// However many keys a bulk load fails, and whatever ends its goroutine while it
// does, the stack stays small: an overflow would end the process.
func TestLoadMany_ManyKeysTakeNoStack(t *testing.T) {
	defer debug.SetMaxStack(debug.SetMaxStack(256 << 10))
	keys := make([]int, 10_000)
	for i := range keys {
		keys[i] = i
	}
	for name, answer := range map[string]func() (map[int]Loaded[int], error){
		"error": func() (map[int]Loaded[int], error) { return nil, errors.New("the database is down") },
		"values": func() (map[int]Loaded[int], error) {
			all := map[int]Loaded[int]{}
			for _, key := range keys {
				all[key] = Loaded[int]{Value: key, Version: 1}
			}
			return all, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(Options[int, int]{
				MaxCost: small, Loader: bulkOf[int]{answer},
				Cost: func(key, _ int) int64 {
					if key%10 == 0 {
						goexit()
					}
					return 1
				},
			})
			require.NoError(t, err)
			found, err := c.LoadMany(t.Context(), keys)
			var failed *KeysError[int]
			require.ErrorAs(t, err, &failed)
			assert.Len(t, failed.Failed, len(keys)-len(found))
			if name == "values" {
				assert.Len(t, found, len(keys)*9/10)
			}
			require.NoError(t, c.Close(t.Context()))
		})
	}
}

// A bulkOf gives one answer.
type bulkOf[K comparable] struct {
	answer func() (map[K]Loaded[int], error)
}

func (b bulkOf[K]) Load(context.Context, K) (int, Version, error) { return 0, 0, ErrNotFound }
func (b bulkOf[K]) LoadMany(context.Context, []K) (map[K]Loaded[int], error) {
	return b.answer()
}

// A nilError is an error whose methods do not stand a nil receiver: the pointer
// that is nil in an error that is not.
type nilError struct{ cause error }

func (e *nilError) Error() string { return "nil: " + e.cause.Error() }
func (e *nilError) Unwrap() error { return e.cause }

// A pickyError does not stand certain questions.
type pickyError struct{}

func (pickyError) Error() string { return "picky" }
func (pickyError) Is(target error) bool {
	if target == ErrUnavailable {
		panic("Is")
	}
	return false
}
func (pickyError) As(target any) bool { _ = target.(**pickyError); return true }

// An error that cannot be looked into is a PanicError, and ends nothing else.
func TestLoad_AnErrorThatPanics(t *testing.T) {
	var broken *nilError
	for name, l := range map[string]Loader[string, int]{
		"picky":    LoaderFunc[string, int](func(context.Context, string) (int, Version, error) { return 1, 1, pickyError{} }),
		"Load":     LoaderFunc[string, int](func(context.Context, string) (int, Version, error) { return 1, 1, broken }),
		"LoadMany": bulkFunc(func(context.Context, []string) (map[string]Loaded[int], error) { return nil, broken }),
		"Loaded": bulkFunc(func(context.Context, []string) (map[string]Loaded[int], error) {
			return map[string]Loaded[int]{"a": {Err: broken}, "b": {Err: broken}}, nil
		}),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: small, Loader: l})
			_, err := c.LoadMany(t.Context(), []string{"a", "b"})
			var panicked *PanicError
			require.ErrorAs(t, err, &panicked)
			idle(t, c)
		})
	}
}

// However many readers need loads of their own, two loads of a key run at once,
// and the next serves all who wait; other keys find places.
func TestLoad_FewOfOneKeyRunAtOnce(t *testing.T) {
	const readers = 50
	for name, ask := range map[string]func(*Cache[string, int], context.Context) error{
		"Linearizable": func(c *Cache[string, int], ctx context.Context) error {
			_, err := c.Read(ctx, "k", Linearizable)
			return err
		},
		"after a change": func(c *Cache[string, int], ctx context.Context) error {
			if err := c.Invalidate(ctx, "k", 0); err != nil {
				return err
			}
			_, err := c.Load(ctx, "k")
			return err
		},
		"many keys": func(c *Cache[string, int], ctx context.Context) error {
			if err := c.Invalidate(ctx, "k", 0); err != nil {
				return err
			}
			_, err := c.LoadMany(ctx, []string{"k", "j"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Loader: s, MaxLoads: 2*maxRunning + 1})
				for _, key := range []string{"k", "j", "other"} {
					s.set(key, 10)
				}
				var running, most atomic.Int32
				s.beforeLoad = func(_ context.Context, key string) error {
					if key != "k" {
						return nil
					}
					most.Store(max(most.Load(), running.Add(1)))
					time.Sleep(time.Second)
					running.Add(-1)
					return nil
				}
				var all []<-chan result
				for range readers {
					all = append(all, async(func() (Entry[int], error) { return Entry[int]{}, ask(c, t.Context()) }))
					synctest.Wait()
				}
				began := time.Now()
				_, err := c.Load(t.Context(), "other")
				require.NoError(t, err)
				assert.Zero(t, time.Since(began), "another key waits for nothing")
				for _, r := range all {
					require.NoError(t, get(t, r).err)
				}
				assert.EqualValues(t, maxRunning, most.Load())
				assert.LessOrEqual(t, time.Since(began), 2*time.Second, "one load under way, and one more")
				idle(t, c)
				require.NoError(t, c.Close(t.Context()))
			})
		})
	}
}

// The next load of a key begins after everything that its readers know, also
// what they learn while they wait, and is told of what becomes known while it
// runs.
func TestLoad_TheNextLoadIsFencedFromItsBeginning(t *testing.T) {
	for name, late := range map[string]bool{"a change before it": false, "another one while it runs": true} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			s.set("k", 10)
			running, third := nextWaits(t, s, c)
			s.set("k", 20)
			require.NoError(t, c.Invalidate(t.Context(), "k", 2))
			fourth := loading(t, c, "k", Linearizable)
			eventually(t, func() bool { return c.Stats().Joined == 1 }, "the fourth waits, too")
			next := newLatch(t)
			s.afterLoad = next.hook
			running[0].end(t)
			next.wait(t)
			if late {
				s.set("k", 30)
				require.NoError(t, c.Invalidate(t.Context(), "k", 3))
			}
			next.release()
			assert.Equal(t, 20, value(t, third).Value)
			assert.Equal(t, 20, value(t, fourth).Value)
			assert.EqualValues(t, 3, s.loadCount())
			running[1].end(t)
			idle(t, c)
			if late {
				_, ok := c.GetEntry("k")
				assert.False(t, ok, "what it read is over")
			} else {
				served(t, c, "k", 2, "what the last load brought")
			}
		})
	}
}

// A load whose turn has not come when the cache closes is not begun: the source
// may be closed next.
func TestClose_BeginsNoLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Loader: s})
		s.set("k", 10)
		var calls atomic.Int32
		s.beforeLoad = func(context.Context, string) error { calls.Add(1); time.Sleep(10 * time.Second); return nil } // heeds no context
		var readers []<-chan result
		for range 3 {
			readers = append(readers, loading(t, c, "k", Linearizable))
		}
		synctest.Wait()
		require.True(t, c.pendingNext("k"))
		began := time.Now()
		require.NoError(t, c.Close(t.Context()))
		assert.Equal(t, 10*time.Second, time.Since(began), "those that ran have ended")
		assert.EqualValues(t, 2, calls.Load())
		for _, r := range readers {
			require.ErrorIs(t, get(t, r).err, ErrClosed)
		}
	})
}

// The source was restored and InvalidateAll says so, while a read of before waits
// for a load that begins after it.
func TestS12_AReadFromBeforeTakesWhatTheRestoredSourceHas(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	for v := range 10 {
		s.set("k", v)
	}
	load(t, c, "k")
	running, third := nextWaits(t, s, c)
	s.mu.Lock()
	s.rows["k"] = row{value: 30, version: 3}
	s.mu.Unlock()
	require.NoError(t, c.InvalidateAll(t.Context()))
	running[0].end(t)
	assert.Equal(t, 30, value(t, third).Value)
	running[1].end(t)
}

// nextWaits begins three strong reads of k: two have a load each, which has read
// its row and is held, and the third one waits for the next.
func nextWaits(t *testing.T, s *source, c *Cache[string, int]) (running [maxRunning]heldRead, third <-chan result) {
	t.Helper()
	for i := range running {
		running[i].held = newLatch(t)
	}
	var calls atomic.Int32
	s.afterLoad = func(ctx context.Context, key string) error {
		if n := int(calls.Add(1)); n <= len(running) {
			return running[n-1].held.hook(ctx, key)
		}
		return nil
	}
	for i := range running {
		running[i].result = loading(t, c, "k", Linearizable)
		running[i].held.wait(t)
	}
	third = loading(t, c, "k", Linearizable)
	eventually(t, func() bool { return c.pendingNext("k") }, "the third waits")
	return running, third
}

// A heldRead is a read whose load is held.
type heldRead struct {
	held   *latch
	result <-chan result
}

// end lets the load end, and waits for the read.
func (r heldRead) end(t *testing.T) {
	t.Helper()
	r.held.release()
	value(t, r.result)
}

// pendingNext reports whether a load of key waits for its turn.
func (c *Cache[K, V]) pendingNext(key K) bool {
	s := c.shard(c.keys.hash(key))
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[key]
	return p != nil && p.next != nil
}

// refreshing hits key until the refresh that the latch holds has started: a hit
// starts none while somebody has the shard's lock.
func refreshing(t *testing.T, c *Cache[string, int], key string, l *latch) {
	t.Helper()
	eventually(t, func() bool { c.Get(key); return l.taken.Load() }, "a hit starts a refresh")
	l.wait(t)
}

// A hit waits for nobody, also when a refresh is due.
func TestRefreshAfter_AHitWaitsForNobody(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, RefreshAfter: time.Nanosecond})
	s.set("k", 10)
	load(t, c, "k")
	time.Sleep(time.Millisecond)
	shard := c.shard(c.keys.hash("k"))
	shard.mu.Lock()
	hit := async(func() (Entry[int], error) { c.Get("k"); return Entry[int]{}, nil })
	get(t, hit)
	shard.mu.Unlock()
	assert.Zero(t, c.Stats().Refreshes)
	c.Get("k")
	eventually(t, func() bool { return c.Stats().Refreshes > 0 }, "the next hit refreshes")
}

// An error that cannot be a map's key is told all the same.
func TestLoadMany_AnyErrorCanBeTold(t *testing.T) {
	for _, err := range []error{listError{"x"}, wrapError{listError{"x"}}} {
		c := newCache(t, Options[string, int]{MaxCost: small, Loader: LoaderFunc[string, int](
			func(context.Context, string) (int, Version, error) { return 0, 0, err })})
		_, got := c.LoadMany(t.Context(), []string{"a"})
		require.ErrorIs(t, got, ErrUnavailable)
		assert.Contains(t, got.Error(), "x")
	}
}

// A listError cannot be compared, and a wrapError shows that only when it is.
type (
	listError []string
	wrapError struct{ inner any }
)

func (e listError) Error() string { return e[0] }
func (e listError) Unwrap() error { return ErrUnavailable }
func (e wrapError) Error() string { return fmt.Sprint(e.inner) }
func (e wrapError) Unwrap() error { return ErrUnavailable }

// Hits on an entry older than RefreshAfter are served at once; one of them
// starts one load, whose result replaces the entry, and whose failure does not.
func TestRefreshAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{
			MaxCost: small, Shards: 1, Store: s, RefreshAfter: 10 * time.Second, TTL: time.Minute, TTLJitter: -1,
		})
		time.Sleep(drainEvery / 2) // so that no sweep holds the lock when a refresh is due
		s.set("k", 10)
		load(t, c, "k")
		s.set("k", 20)
		time.Sleep(10*time.Second - 1)
		served(t, c, "k", 1, "young")
		synctest.Wait()
		assert.Equal(t, 1, s.loadCount())

		slow := 2 * time.Second
		s.beforeLoad = func(context.Context, string) error { time.Sleep(slow); return nil }
		time.Sleep(time.Nanosecond)
		began := time.Now()
		for range 5 {
			served(t, c, "k", 1, "served while it is refreshed")
			_ = load(t, c, "k")
			_, err := c.LoadMany(t.Context(), []string{"k"})
			require.NoError(t, err)
		}
		assert.Zero(t, time.Since(began), "no read waits")
		time.Sleep(slow)
		synctest.Wait()
		assert.Equal(t, 2, s.loadCount(), "one load in the background")
		assert.EqualValues(t, 1, c.Stats().Refreshes)
		served(t, c, "k", 2, "refreshed")
		e, _ := c.GetEntry("k")
		assert.Equal(t, slow, e.Age, "and due again as counted from the start of its load")

		s.beforeLoad = func(context.Context, string) error { return errors.New("boom") }
		time.Sleep(8 * time.Second)
		served(t, c, "k", 2, "starts the failing load")
		synctest.Wait()
		assert.Equal(t, 3, s.loadCount())
		served(t, c, "k", 2, "a failure keeps the entry")
		assert.EqualValues(t, 1, c.Stats().LoadErrors)
		time.Sleep(firstPause/2 - 1)
		served(t, c, "k", 2, "not yet")
		synctest.Wait()
		assert.Equal(t, 3, s.loadCount(), "a failed attempt is not repeated at every hit")
		time.Sleep(firstPause/2 + 1)
		served(t, c, "k", 2, "starts another attempt")
		synctest.Wait()
		assert.Equal(t, 4, s.loadCount())

		s.beforeLoad = nil
		s.remove("k")
		time.Sleep(2 * firstPause)
		served(t, c, "k", 2, "starts the load that finds it gone")
		synctest.Wait()
		e, ok := c.GetEntry("k")
		assert.True(t, ok && e.Absent, "the absence replaced the entry")
		idle(t, c)
	})
}

// A refresh is a load as any other: a read that misses meanwhile joins it, and
// none is begun while a load runs.
func TestRefreshAfter_AndLoadsShare(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, RefreshAfter: time.Nanosecond})
	s.set("k", 10)
	load(t, c, "k")
	l := newLatch(t)
	s.beforeLoad = l.hook
	refreshing(t, c, "k", l)
	time.Sleep(firstPause + time.Millisecond) // until it would be due again
	for range 10 {
		served(t, c, "k", 1, "starts no other")
	}
	evict(t, c, "k")
	reader := loading(t, c, "k", Any)
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the read joins the refresh")
	l.release()
	value(t, reader)
	idle(t, c)
	assert.Equal(t, 2, s.loadCount())
	assert.EqualValues(t, 1, c.Stats().Refreshes)
}

// Lifetimes, without jitter: what each option gives to values and absences.
func TestTTL(t *testing.T) {
	const never = 0
	const century = 100 * 365 * 24 * time.Hour
	own := func(ttl time.Duration) func(string, Entry[int]) time.Duration {
		return func(string, Entry[int]) time.Duration { return ttl }
	}
	tests := []struct {
		name                     string
		ttl, negative            time.Duration
		entry                    func(string, Entry[int]) time.Duration
		value, absence           time.Duration // expected
		keepsValue, keepsAbsence bool
	}{
		{"defaults", 0, 0, nil, never, 5 * time.Second, true, true},
		{"a TTL below 5s is the absences' too", 3 * time.Second, 0, nil, 3 * time.Second, 3 * time.Second, true, true},
		{"a TTL above 5s is not", time.Minute, 0, nil, time.Minute, 5 * time.Second, true, true},
		{"both", time.Minute, time.Hour, nil, time.Minute, time.Hour, true, true},
		{"absences are not cached", time.Minute, -1, nil, time.Minute, 0, true, false},
		{"EntryTTL overrides", time.Minute, time.Hour, own(time.Second), time.Second, time.Second, true, true},
		{"EntryTTL zero keeps", time.Minute, time.Hour, own(0), time.Minute, time.Hour, true, true},
		{"EntryTTL negative does not cache", time.Minute, time.Hour, own(-1), 0, 0, false, false},
		{"EntryTTL revives absences", 0, -1, own(time.Second), time.Second, time.Second, true, true},
		{"for ever", math.MaxInt64, math.MaxInt64, nil, century, century, true, true},
		{"EntryTTL for ever", time.Second, time.Second, own(math.MaxInt64), century, century, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				o := Options[string, int]{
					MaxCost: small, Shards: 1, Store: s,
					TTL: tt.ttl, NegativeTTL: tt.negative, EntryTTL: tt.entry, TTLJitter: -1,
				}
				if tt.ttl == math.MaxInt64 {
					o.RefreshAfter, o.LoadTimeout = math.MaxInt64-1, math.MaxInt64
				}
				c := newCache(t, o)
				time.Sleep(time.Second) // so that a sum can overflow
				s.set("value", 10)
				load(t, c, "value")
				_, err := c.Load(t.Context(), "absence")
				require.ErrorIs(t, err, ErrNotFound)
				put := Unproven // it is not stored
				if tt.keepsValue {
					put = Applied
				}
				require.Equal(t, put, c.Put("put", 1, 1))
				for key, want := range map[string]time.Duration{"value": tt.value, "put": tt.value, "absence": tt.absence} {
					cached := tt.keepsValue
					if key == "absence" {
						cached = tt.keepsAbsence
					}
					_, ok := c.GetEntry(key)
					assert.Equal(t, cached, ok, key)
					if want == century {
						assert.Greater(t, c.Explain(key).Expires, want, key)
					} else {
						assert.Equal(t, want, c.Explain(key).Expires, key)
					}
				}
				synctest.Wait()
				assert.Equal(t, 2, s.loadCount(), "nothing is refreshed before its time")
			})
		})
	}
}

// EntryTTL sees the entry, and is obeyed to the nanosecond, absences included.
func TestTTL_EveryReadHeedsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, Options[string, int]{TTL: time.Second, TTLJitter: -1})
		// A Put counts from when it comes: here between two looks for what has expired.
		time.Sleep(time.Minute + 7*time.Millisecond)
		require.Equal(t, Applied, c.Put("k", 7, 1))
		reads := map[string]func() bool{
			"Get":      func() bool { _, ok := c.Get("k"); return ok },
			"GetEntry": func() bool { _, ok := c.GetEntry("k"); return ok },
			"All": func() (ok bool) {
				for range c.All() {
					ok = true
				}
				return ok
			},
		}
		time.Sleep(time.Second - 1)
		for name, read := range reads {
			assert.True(t, read(), "%s before its end", name)
		}
		time.Sleep(time.Nanosecond)
		for name, read := range reads {
			assert.False(t, read(), "%s at its end", name)
		}
	})
}

func TestTTL_EntryTTLSeesTheEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{
			MaxCost: small, Shards: 1, Store: s, TTLJitter: -1,
			EntryTTL: func(key string, e Entry[int]) time.Duration {
				if e.Absent {
					return time.Duration(e.Version) * time.Minute
				}
				return time.Duration(e.Value) * time.Second * time.Duration(len(key))
			},
		})
		time.Sleep(drainEvery / 2) // so that no sweep comes at the moment when something expires
		s.set("kk", 3)
		s.set("gone", 1)
		s.remove("gone")
		load(t, c, "kk")
		_, err := c.Load(t.Context(), "gone")
		require.ErrorIs(t, err, ErrNotFound)
		time.Sleep(6*time.Second - 1)
		served(t, c, "kk", 1, "six seconds are not over")
		time.Sleep(time.Nanosecond)
		missing(t, c, "kk", "six seconds are over")
		time.Sleep(2*time.Minute - 6*time.Second - 1)
		served(t, c, "gone", 2, "two minutes are not over")
		time.Sleep(time.Nanosecond)
		missing(t, c, "gone", "two minutes are over")
	})
}

// Jitter shortens lives by up to its share, and not all alike.
func TestTTL_Jitter(t *testing.T) {
	for jitter, share := range map[float64]float64{0: 0.1, 0.5: 0.5, 1: 1, -1: 0} {
		synctest.Test(t, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, TTL: time.Hour, TTLJitter: jitter})
			shortest, longest := time.Hour, time.Duration(0)
			for i := range 500 {
				require.Equal(t, Applied, c.Put(fmt.Sprint(i), 1, 1))
				life := c.Explain(fmt.Sprint(i)).Expires
				shortest, longest = min(shortest, life), max(longest, life)
			}
			floor := time.Duration(float64(time.Hour) * (1 - share))
			assert.GreaterOrEqual(t, shortest, floor)
			assert.LessOrEqual(t, longest, time.Hour)
			assert.LessOrEqual(t, shortest, floor+time.Duration(share*float64(time.Hour)/10), "500 draws come near the bound")
			assert.GreaterOrEqual(t, longest, time.Hour-time.Duration(share*float64(time.Hour)/10))
		})
	}
}

// What Options.Level asks holds for every read.
func TestLevel_OfTheOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		level  Level
		memory bool // memory's version 1 is enough
	}{
		"any":               {Any, true},
		"at least 1":        {AtLeast(1), true},
		"at least 2":        {AtLeast(2), false},
		"linearizable":      {Linearizable, false},
		"at least nothing":  {AtLeast(0), true},
		"at least far away": {AtLeast(math.MaxUint64), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Level: tt.level})
			s.set("k", 10)
			require.Equal(t, Applied, c.Put("k", 10, 1))
			_, ok := c.Get("k")
			assert.Equal(t, tt.memory, ok, "Get")
			_, ok = c.GetEntry("k")
			assert.Equal(t, tt.memory, ok, "GetEntry")
			assert.Equal(t, tt.memory, len(maps.Collect(c.All())) == 1, "All")
			before := s.loadCount()
			_, err := c.Load(t.Context(), "k")
			assert.Equal(t, tt.memory, s.loadCount() == before, "Load")
			before = s.loadCount()
			found, err2 := c.LoadMany(t.Context(), []string{"k"})
			assert.Equal(t, tt.memory, s.loadCount() == before, "LoadMany")
			if tt.level.kind == levelAtLeast && !tt.memory {
				require.ErrorIs(t, err, ErrStale)
				require.ErrorIs(t, err2, ErrStale)
			} else {
				require.NoError(t, errors.Join(err, err2))
				assert.Equal(t, 10, found["k"].Value)
			}
			_, err = c.Read(t.Context(), "k", Any)
			require.NoError(t, err, "Read has a level of its own")
		})
	}
}

// The strong source beside a Lagging loader is the Store, or else LoadStrong;
// the lagging one is asked when it is enough, in bulk too.
func TestLagging_WhichSourceIsAsked(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	for name, o := range map[string]Options[string, int]{
		"Store":      {Loader: r, Store: s},
		"LoadStrong": {Loader: loaderPair[string, int]{Loader: r, strong: s.Load}},
	} {
		t.Run(name, func(t *testing.T) {
			o.MaxCost, o.LoaderClass = small, Lagging(time.Hour)
			c := newCache(t, o)
			key := "key of " + name
			s.set(key, 10)
			r.catchUp(key)
			s.set(key, 20)
			strong, lagging := s.loadCount(), r.loadCount()
			assert.Equal(t, 10, load(t, c, key).Value, "memory knows of nothing newer")
			assert.Equal(t, []int{strong, lagging + 1}, []int{s.loadCount(), r.loadCount()})
			e, err := c.Read(t.Context(), key, Linearizable)
			require.NoError(t, err)
			assert.Equal(t, 20, e.Value)
			assert.Equal(t, []int{strong + 1, lagging + 1}, []int{s.loadCount(), r.loadCount()})
			evict(t, c, key)
			e, err = c.Read(t.Context(), key, AtLeast(2))
			require.NoError(t, err)
			assert.Equal(t, 20, e.Value, "first the lagging source, then the strong one")
			assert.Equal(t, []int{strong + 2, lagging + 2}, []int{s.loadCount(), r.loadCount()})
		})
	}
}

// A lagging load runs. A read that needs a strong one does not join it, and one
// that is let down by it asks the strong source.
func TestLagging_AStrongReadDoesNotJoinALaggingLoad(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	r.catchUp("k")
	s.set("k", 20)
	l := newLatch(t)
	r.afterLoad = l.hook
	lagging := loading(t, c, "k", Any)
	l.wait(t)
	e, err := c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	assert.Equal(t, 20, e.Value)
	l.release()
	assert.Equal(t, 10, value(t, lagging).Value, "it began before")
	idle(t, c)
	served(t, c, "k", 2, "the lagging load ended last and was refused")
}

// The bulk load of a Lagging loader is for the keys that a lagging answer can
// serve; the others go to the strong source one by one.
func TestLagging_BulkLoadsOnlyWhatMayLag(t *testing.T) {
	s := newSource()
	var asked []string
	lagging := bulkFunc(func(ctx context.Context, keys []string) (map[string]Loaded[int], error) {
		asked = slices.Sorted(slices.Values(keys))
		return bulkSource{s}.LoadMany(ctx, keys)
	})
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: lagging, Store: s, LoaderClass: Lagging(time.Hour)})
	for _, key := range []string{"a", "b", "changed"} {
		s.set(key, 10)
	}
	require.NoError(t, c.Invalidate(t.Context(), "changed", 0))
	before := s.loadCount()
	found, err := c.LoadMany(t.Context(), []string{"a", "changed", "b"})
	require.NoError(t, err)
	assert.Len(t, found, 3)
	assert.Equal(t, []string{"a", "b"}, asked)
	assert.Equal(t, before+3, s.loadCount(), "two through the bulk load, one alone")
	assert.Negative(t, time.Hour-found["a"].Age)
	assert.Positive(t, time.Hour-found["changed"].Age)
}

// A batch waits for key a; its lagging load of k has ended below the mark. When
// the batch comes to k, a later lagging load runs: that will not do.
func TestLagging_AReadThatWasLetDownAsksTheStrongSource(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	s.set("a", 10)
	r.catchUp("k")
	r.catchUp("a")
	s.set("k", 20)
	require.NoError(t, c.Invalidate(t.Context(), "k", 2))
	first, later := newLatch(t), newLatch(t)
	var loadsOfK atomic.Int32
	r.afterLoad = func(ctx context.Context, key string) error {
		switch {
		case key == "a":
			return first.hook(ctx, key)
		case loadsOfK.Add(1) == 2:
			return later.hook(ctx, key)
		}
		return nil
	}
	var found map[string]Entry[int]
	batch := async(func() (e Entry[int], err error) {
		found, err = c.LoadMany(t.Context(), []string{"a", "k"})
		return e, err
	})
	first.wait(t)
	eventually(t, func() bool { return c.Stats().Refused == 1 && c.Explain("k").Fences == 0 }, "the load of k is over, and refused")
	other := loading(t, c, "k", Any)
	later.wait(t)
	first.release()
	value(t, batch)
	assert.Equal(t, 20, found["k"].Value, "with the later lagging load still running")
	later.release()
	assert.Equal(t, 20, value(t, other).Value)
}

// A load whose time is over before it has a place is not made, and one for which the wait
// has left little is no failure of the source.
func TestLoad_TimeThatIsSpentWaitingForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		b := &verdicts{}
		c := newCache(t, Options[string, int]{Store: s, MaxLoads: 2, LoadTimeout: time.Second, Breaker: b})
		s.beforeLoad = func(ctx context.Context, _ string) error {
			assert.NoError(t, ctx.Err(), "its time was over when it was asked")
			select {
			case <-time.After(300 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() { _, _ = c.Load(t.Context(), strconv.Itoa(i)) })
		}
		all.Wait()
		synctest.Wait()
		assert.GreaterOrEqual(t, len(b.all()), 6)
		for _, v := range b.all() {
			if v != nil {
				assert.Equal(t, context.Canceled, v)
			}
		}
		assert.NotZero(t, c.Stats().Declined)
		s.beforeLoad = hang
		_, err := c.Load(t.Context(), "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		told := b.all()
		assert.ErrorIs(t, told[len(told)-1], context.DeadlineExceeded, "this one had all of its time")
	})
}

// MaxStale holds for what a load brings as well: nobody joins one that began earlier, and
// a lagging Loader is not asked if it may lag by more.
func TestLoad_MaxStale(t *testing.T) {
	t.Run("joined", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			s.set("k", 1)
			s.afterLoad = func(context.Context, string) error { time.Sleep(10 * time.Second); return nil }
			c := newCache(t, Options[string, int]{Store: s, MaxStale: time.Second})
			first := loading(t, c, "k", Any)
			synctest.Wait()
			s.set("k", 2)
			time.Sleep(time.Second)
			second := loading(t, c, "k", AtLeast(1))
			synctest.Wait()
			s.set("k", 3)
			time.Sleep(time.Second + 1)
			third := loading(t, c, "k", Any)
			value(t, first)
			assert.Equal(t, 1, value(t, second).Value, "it began a second before")
			assert.Equal(t, 3, value(t, third).Value)
		})
	})
	for lag, replica := range map[time.Duration]int{time.Second / 2: 1, time.Second: 0} {
		t.Run(fmt.Sprint("lagging ", lag), func(t *testing.T) {
			s := newSource()
			r := newReadReplica(s)
			c := newCache(t, Options[string, int]{Loader: r, Store: s, LoaderClass: Lagging(lag), MaxStale: time.Second})
			s.set("k", 1)
			r.catchUp("k")
			e := load(t, c, "k")
			assert.LessOrEqual(t, e.Age, c.opts.MaxStale)
			assert.Equal(t, replica, r.loadCount())
		})
	}
	t.Run("lagging, joined", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			r := newReadReplica(s)
			c := newCache(t, Options[string, int]{Loader: r, Store: s, LoaderClass: Lagging(time.Second), MaxStale: 3 * time.Second})
			s.set("k", 1)
			r.catchUp("k")
			r.afterLoad = func(context.Context, string) error { time.Sleep(10 * time.Second); return nil }
			first := loading(t, c, "k", Any)
			synctest.Wait()
			for range 2 {
				time.Sleep(time.Second)
				loading(t, c, "k", Any)
				synctest.Wait()
				assert.Equal(t, 1, r.loadCount())
			}
			time.Sleep(time.Nanosecond)
			loading(t, c, "k", Any)
			synctest.Wait()
			assert.Equal(t, 2, r.loadCount())
			value(t, first)
		})
	})
}

// Who joins a load of which something newer has been announced is not content with it;
// but if the source, asked again, does not have that, its word counts: whoever may publish
// can make reads load twice, and not fail.
func TestLoad_WhatIsAnnouncedIsForTheSourceToKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.set("k", 10)
		l := newLatch(t)
		s.afterLoad = l.hook
		c := onSource(t, s)
		first := loading(t, c, "k", Any)
		l.wait(t)
		require.NoError(t, c.Invalidate(t.Context(), "k", 1<<63))
		second := loading(t, c, "k", Any)
		synctest.Wait()
		l.release()
		value(t, first)
		assert.EqualValues(t, 1, value(t, second).Version)
		assert.Equal(t, 2, s.loadCount())
	})
}
