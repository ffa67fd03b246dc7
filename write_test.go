package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Section 2C of the failure catalogue: writes. What is not tested here:
//
//	S33, S34  intent before commit: needs the log, which is a later issue. What a
//	          replica does when a writer dies half-way is in the invalidator's tests.
//	S35       an outbox table and its relay: not in this release.
//	S36       change data capture: not in this release. Programs beside the library
//	          use a Publisher, Invalidate or InvalidateAll, which have tests of
//	          their own.
//	S38       write-behind: not offered.
//	S39       transfers between keys: not promised for cached reads.

// update changes a key with fn, which must succeed.
func update(t testing.TB, c *Cache[string, int], key string, fn func(int) int) Entry[int] {
	t.Helper()
	e, err := c.Update(t.Context(), key, func(cur Entry[int]) (int, error) { return fn(cur.Value), nil })
	require.NoError(t, err)
	return e
}

// A has read 1200 and is about to take 350; B makes it 1500. A must see that
// and decide again.
func TestS28_AReadModifyWriteBetweenAnothersIsRepeated(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 1200)
	l := newLatch(t)
	var seen []int
	a := async(func() (Entry[int], error) {
		return c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) {
			seen = append(seen, cur.Value)
			l.once()
			return cur.Value - 350, nil
		})
	})
	l.wait(t)
	update(t, c, "k", func(v int) int { return v + 300 })
	l.release()
	e := value(t, a)
	assert.Equal(t, 1150, e.Value)
	assert.Equal(t, Version(3), e.Version)
	assert.Equal(t, []int{1200, 1500}, seen)
	assert.Equal(t, row{value: 1150, version: 3}, s.get("k"))
	assert.EqualValues(t, 1, c.Stats().Conflicts)
	served(t, c, "k", 3, "the last write")
}

// Eight goroutines, half of them in another process, raise one counter 200 times
// each. Every raise counts, and each was based on the one before it.
func TestS28_NoUpdateIsLost(t *testing.T) {
	const goroutines, raises = 8, 200
	s := newSource()
	caches := []*Cache[string, int]{onSource(t, s), onSource(t, s)}
	var wg sync.WaitGroup
	for i := range goroutines {
		c := caches[i%2]
		wg.Go(func() {
			last := Version(0)
			for range raises {
				e, err := c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
				if !assert.NoError(t, err) || !assert.Greater(t, e.Version, last) {
					return
				}
				last = e.Version
				if got, ok := c.GetEntry("k"); ok && !assert.GreaterOrEqual(t, got.Version, last, "read-your-writes") {
					return
				}
			}
		})
	}
	wg.Wait()
	for i, r := range s.history["k"] {
		require.Equal(t, row{value: i + 1, version: Version(i + 1)}, r)
	}
	assert.Len(t, s.history["k"], goroutines*raises)
	for _, c := range caches {
		e, err := c.Read(t.Context(), "k", Linearizable)
		require.NoError(t, err)
		assert.Equal(t, goroutines*raises, e.Value)
		idle(t, c)
	}
}

// Memory holds a balance that was spent elsewhere; nobody has told. A purchase
// decided on it is not committed, neither by its version nor by Update.
func TestS29_ADecisionOnAStaleEntryIsNotCommitted(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 500)
	stale := load(t, c, "k")
	s.set("k", 100)
	served(t, c, "k", 1, "nobody has told")

	_, err := c.CompareAndSet(t.Context(), "k", stale.Version, stale.Value-350)
	var conflict *ConflictError
	require.ErrorAs(t, err, &conflict)
	assert.Equal(t, Version(2), conflict.Current)
	missing(t, c, "k", "the conflict has told")

	require.Equal(t, Applied, c.BeginFill("k").Commit(100, 2))
	s.set("k", 50)
	poor := errors.New("not enough")
	var seen []int
	_, err = c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) {
		seen = append(seen, cur.Value)
		if cur.Value < 80 {
			return 0, poor
		}
		return cur.Value - 80, nil
	})
	assert.Equal(t, poor, err, "the function's error is returned as it is")
	assert.Equal(t, []int{100, 50}, seen)
	assert.Equal(t, row{value: 50, version: 3}, s.get("k"))
}

// The store refuses a write, and names as current a version that memory has, or
// none. The next try is made on a strong read all the same.
func TestS29_AConflictIsRetriedFromAStrongRead(t *testing.T) {
	for _, named := range []Version{0, 1} {
		s := newSource()
		st := &vagueStore{source: s, named: named}
		c := newCache(t, Options[string, int]{MaxCost: small, Store: st})
		s.set("k", 10)
		load(t, c, "k")
		s.set("k", 20)
		e := update(t, c, "k", func(v int) int { return v + 1 })
		assert.Equal(t, 21, e.Value)
		assert.EqualValues(t, 1, c.Stats().Conflicts, "one strong read is enough")
	}
}

// A vagueStore names the same version in each conflict.
type vagueStore struct {
	*source
	named Version
}

func (s *vagueStore) CompareAndSet(ctx context.Context, key string, base Version, value int, op OpID) (Version, error) {
	v, err := s.source.CompareAndSet(ctx, key, base, value, op)
	if err != nil {
		err = &ConflictError{Current: s.named}
	}
	return v, err
}

// The own write has committed version 2, and is held; version 3 is committed
// elsewhere, its invalidation is applied and forgotten; the write goes on.
func TestS30_AnOwnWriteThatWasOvertakenIsNotInstalled(t *testing.T) {
	for name, tt := range map[string]struct {
		version Version // named by the invalidation
		write   func(*Cache[string, int], context.Context) (Entry[int], error)
	}{
		"set, version 3": {3, func(c *Cache[string, int], ctx context.Context) (Entry[int], error) {
			return c.CompareAndSet(ctx, "k", 1, 20)
		}},
		"set, no version": {0, func(c *Cache[string, int], ctx context.Context) (Entry[int], error) {
			return c.CompareAndSet(ctx, "k", 1, 20)
		}},
		"delete, version 3": {3, func(c *Cache[string, int], ctx context.Context) (Entry[int], error) { return c.Delete(ctx, "k", 1) }},
		"delete, no version": {0, func(c *Cache[string, int], ctx context.Context) (Entry[int], error) {
			return c.Delete(ctx, "k", 1)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			l := newLatch(t)
			s.afterWrite = l.hook
			s.set("k", 10)
			writer := async(func() (Entry[int], error) { return tt.write(c, t.Context()) })
			l.wait(t)
			s.set("k", 30)
			require.NoError(t, c.Invalidate(t.Context(), "k", tt.version))
			l.release()
			assert.Equal(t, Version(2), value(t, writer).Version, "it was committed")
			idle(t, c)
			missing(t, c, "k", "version 3 is known of")
			e := load(t, c, "k")
			assert.Equal(t, 30, e.Value)
		})
	}
}

// The other way round: an older state arrives while the own write is under way.
func TestS30_AnOwnWriteReplacesWhatIsOlder(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterWrite = l.hook
	s.set("k", 10)
	writer := async(func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 1, 20) })
	l.wait(t)
	assert.Equal(t, Applied, c.Put("k", 10, 1))
	require.NoError(t, c.Invalidate(t.Context(), "k", 1))
	l.release()
	value(t, writer)
	served(t, c, "k", 2, "the own write is newer")
}

// errAnswerLost is what a driver returns when the answer did not come.
var errAnswerLost = errors.New("i/o timeout")

// ambiguous are the ways in which a write can end without saying how.
var ambiguous = map[string]func() error{
	"error":                func() error { return errAnswerLost },
	"deadline":             func() error { return context.DeadlineExceeded },
	"panic":                func() error { panic("boom") },
	"Goexit":               func() error { goexit(); return nil },
	"ErrNoStore":           func() error { return fmt.Errorf("audit trail: %w", ErrNoStore) },
	"an error that panics": func() error { var broken *nilError; return broken },
	"a picky error":        func() error { return pickyError{} },
}

// A write is committed and its answer lost. The key is in doubt: read from the
// source, but not kept; once the store has told, it is as after any write.
func TestS31_AWriteInDoubtKeepsItsKeyOutOfMemory(t *testing.T) {
	for name, fail := range ambiguous {
		for _, deletion := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s deletion %t", name, deletion), func(t *testing.T) {
				testDoubt(t, fail, deletion, name != "Goexit")
			})
		}
	}
}

func testDoubt(t *testing.T, fail func() error, deletion, returns bool) {
	s := newSource()
	l := newLatch(t) // holds the question what became of the write
	var failed atomic.Bool
	s.afterWrite = func(context.Context, string) error {
		if failed.Swap(true) {
			return nil
		}
		return fail()
	}
	s.onOutcome = func(string, OpID) error { l.once(); return nil }
	events := make(chan Event, 10)
	b := newBus()
	c := newCache(t, Options[string, int]{
		MaxCost: small, Store: s, Invalidator: calm(b), OnEvent: func(e Event) {
			if e.Kind == EventUncertain {
				events <- e
			}
		},
	})
	other := calmReplicas(t, 1, s, b)[0]
	require.NoError(t, c.Ready(t.Context()))
	s.set("k", 10)
	load(t, c, "k")
	load(t, other, "k")
	inFlight := c.BeginFill("k")

	done := make(chan error, 1)
	go func() {
		err := error(nil)
		defer func() { done <- err }() // also after Goexit
		if deletion {
			_, err = c.Delete(t.Context(), "k", 1)
		} else {
			_, err = c.CompareAndSet(t.Context(), "k", 1, 20)
		}
	}()
	err := <-done
	l.wait(t)
	var uncertain *UncertainError
	if returns {
		require.ErrorAs(t, err, &uncertain)
	} else {
		require.ErrorAs(t, (<-events).Err, &uncertain, "nobody else heard the error")
	}
	assert.NotZero(t, uncertain.Op)
	assert.Equal(t, 1, c.Stats().InDoubt)
	assert.EqualValues(t, 1, c.Stats().Uncertain)
	assert.Equal(t, 1, c.Explain("k").InDoubt)

	missing(t, c, "k", "the write is in doubt")
	eventually(t, func() bool { _, ok := other.Get("k"); return !ok }, "the other replicas are told")
	assert.Equal(t, Unproven, inFlight.Commit(10, 1))
	for range 2 {
		e, err := c.Load(t.Context(), "k")
		assert.True(t, err == nil && !deletion || errors.Is(err, ErrNotFound) && deletion, "it can be read: %v", err)
		assert.Equal(t, Version(2), e.Version)
		missing(t, c, "k", "the write is in doubt")
	}
	assert.Equal(t, Unproven, c.Put("k", 20, 2))
	assert.Equal(t, Unproven, c.BeginFill("k").Commit(20, 2))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = uncertain.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, c.check())

	l.release()
	v, committed, err := uncertain.Wait(t.Context())
	require.NoError(t, err)
	assert.True(t, committed)
	assert.Equal(t, Version(2), v)
	eventually(t, func() bool { return c.Stats().InDoubt == 0 }, "the doubt is settled")
	_, err = c.Load(t.Context(), "k")
	assert.True(t, err == nil && !deletion || errors.Is(err, ErrNotFound) && deletion, "%v", err)
	served(t, c, "k", 2, "the key is kept again")
	assert.Equal(t, Stale, c.Put("k", 10, 1))
	idle(t, c)
}

// A write is in doubt; a load begun meanwhile has read version 1; the commit
// lands as version 2, which the store then tells; the load ends.
func TestS31_ALoadBegunInDoubtIsHeldAgainstTheOutcome(t *testing.T) {
	for _, committed := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s, DoubtTimeout: time.Second})
			s.set("k", 10)
			var op OpID
			tell := newLatch(t)
			s.beforeWrite = func(context.Context, string) error { return errAnswerLost }
			s.onOutcome = func(_ string, o OpID) error { op = o; tell.once(); return nil }
			_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
			var uncertain *UncertainError
			require.ErrorAs(t, err, &uncertain)
			tell.wait(t)
			l := newLatch(t)
			s.afterLoad = l.hook
			reader := loading(t, c, "k", Any)
			l.wait(t)
			if committed {
				s.mu.Lock()
				s.done[op] = s.putLocked("k", row{value: 20})
				s.mu.Unlock()
			}
			tell.release()
			_, got, err := uncertain.Wait(t.Context())
			require.NoError(t, err)
			require.Equal(t, committed, got)
			l.release()
			assert.Equal(t, Version(1), value(t, reader).Version)
			idle(t, c)
			missing(t, c, "k", "the load may have been too early")
		})
	}
}

// Committed or not, the write is not found at first: it lands after the question.
// So "not found" counts only from a question put after DoubtTimeout.
func TestS32_ACommitMayLandAfterTheFirstQuestion(t *testing.T) {
	for name, tt := range map[string]struct {
		lands time.Duration // after the write was given up; 0: never
		takes time.Duration // the answer to a question
		want  time.Duration // until it is settled, at least
	}{
		"never":                       {0, 0, 10 * time.Second},
		"late":                        {9 * time.Second, 0, 9 * time.Second},
		"at last, and answers lag":    {9 * time.Second, 4 * time.Second, 9 * time.Second},
		"never, and the answers lag":  {0, 4 * time.Second, 10 * time.Second},
		"at once, and the answer lag": {1, 4 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				st := &slowAnswers{source: s, takes: tt.takes}
				c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: st, DoubtTimeout: 10 * time.Second})
				s.set("k", 10)
				load(t, c, "k")
				s.beforeWrite = func(context.Context, string) error { return errAnswerLost }
				began := time.Now()
				_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
				var uncertain *UncertainError
				require.ErrorAs(t, err, &uncertain)
				require.ErrorIs(t, err, errAnswerLost)
				if tt.lands > 0 {
					time.AfterFunc(tt.lands, func() {
						s.mu.Lock()
						defer s.mu.Unlock()
						s.done[uncertain.Op] = s.putLocked("k", row{value: 20})
					})
				}
				for time.Since(began) < tt.want-time.Second { // whatever the store says until then
					load(t, c, "k")
					missing(t, c, "k", "the commit may still land")
					time.Sleep(time.Second / 2)
				}
				v, committed, err := uncertain.Wait(t.Context())
				require.NoError(t, err)
				assert.Equal(t, tt.lands > 0, committed)
				if committed {
					assert.Equal(t, Version(2), v)
				} else {
					assert.Zero(t, v)
				}
				assert.GreaterOrEqual(t, time.Since(began), tt.want)
				assert.LessOrEqual(t, time.Since(began), tt.want+2*time.Second+2*tt.takes)
				load(t, c, "k")
				_, ok := c.Get("k")
				assert.True(t, ok, "the key is kept again")
			})
		})
	}
}

// slowAnswers is a source whose answers about writes describe the moment of the
// question, and take a while.
type slowAnswers struct {
	*source
	takes time.Duration
}

func (s *slowAnswers) Outcome(ctx context.Context, key string, op OpID) (Version, bool, error) {
	v, found, err := s.source.Outcome(ctx, key, op)
	time.Sleep(s.takes)
	return v, found, err
}

// A DoubtTimeout of for ever is not over at once.
func TestS32_ADoubtMayLastForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: s, DoubtTimeout: math.MaxInt64})
		time.Sleep(time.Second) // so that a sum can overflow
		s.beforeWrite = func(context.Context, string) error { return errAnswerLost }
		_, err := c.CompareAndSet(t.Context(), "k", 0, 10)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		time.Sleep(20 * time.Second)
		assert.Equal(t, 1, c.Stats().InDoubt)
		s.mu.Lock()
		s.done[uncertain.Op] = s.putLocked("k", row{value: 10})
		s.mu.Unlock()
		_, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed)
	})
}

// The store cannot tell, for one reason or another; the cache asks again.
func TestS32_TheStoreIsAskedUntilItTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, Options[string, int]{
			MaxCost: small, Shards: 1, Store: s, LoadTimeout: time.Second, DoubtTimeout: time.Millisecond,
		})
		s.afterWrite = func(context.Context, string) error { return errAnswerLost }
		questions := 0
		s.onOutcome = func(string, OpID) error {
			questions++
			switch questions {
			case 1:
				return errAnswerLost
			case 2:
				panic("boom")
			case 3:
				goexit()
			}
			return nil
		}
		_, err := c.CompareAndSet(t.Context(), "k", 0, 10)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		v, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed)
		assert.Equal(t, Version(1), v)
		assert.Equal(t, 4, questions)
		assert.EqualValues(t, 1, c.Stats().Panics)
		idle(t, c)
	})
}

// A write whose answer was lost is not sent again, by Update neither: it may be
// there already. Each write has a name of its own.
func TestS37_AWriteInDoubtIsNotSentAgain(t *testing.T) {
	s := newSource()
	st := &oddStore{source: s, err: errAnswerLost}
	c := newCache(t, Options[string, int]{MaxCost: small, Store: st, DoubtTimeout: time.Millisecond})
	ops := map[OpID]bool{}
	for i := range 3 {
		_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 10, nil })
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		require.ErrorIs(t, err, errAnswerLost)
		assert.Equal(t, i+1, st.calls, "sent once")
		ops[uncertain.Op] = true
		_, _, err = uncertain.Wait(t.Context())
		require.NoError(t, err)
	}
	assert.Len(t, ops, 3)

	st.calls, st.err = 0, (*ConflictError)(nil) // which is no word of a conflict
	_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 10, nil })
	var uncertain *UncertainError
	require.True(t, errors.As(err, &uncertain)) // its text would ask the nil error for its own
	assert.Equal(t, 1, st.calls, "sent once")
	_, _, err = uncertain.Wait(t.Context())
	require.NoError(t, err)
}

// With MaxDoubts writes in doubt the next write fails before it is sent.
func TestWrite_MaxDoubts(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, MaxDoubts: 2})
	l := newLatch(t)
	s.onOutcome = func(string, OpID) error { <-l.opened; return nil }
	var fail atomic.Bool
	fail.Store(true)
	s.afterWrite = func(context.Context, string) error {
		if fail.Load() {
			return errAnswerLost
		}
		return nil
	}
	var doubts []*UncertainError
	for i := range 2 {
		_, err := c.CompareAndSet(t.Context(), fmt.Sprint(i), 0, 10)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		doubts = append(doubts, uncertain)
	}
	fail.Store(false)
	_, err := c.CompareAndSet(t.Context(), "k", 0, 10)
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = c.Delete(t.Context(), "k", 1)
	require.ErrorIs(t, err, ErrUnavailable)
	assert.Empty(t, s.history["k"], "it was not sent")
	l.release()
	for _, d := range doubts {
		_, committed, err := d.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed)
	}
	_, err = c.CompareAndSet(t.Context(), "k", 0, 10)
	require.NoError(t, err)
	idle(t, c)
}

// Two writes of one key are in doubt; settling the first does not settle the
// second.
func TestWrite_TwoDoubtsOfOneKey(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	s.beforeWrite = func(context.Context, string) error { return errAnswerLost } // not committed yet
	gate := newLatch(t)
	s.onOutcome = func(string, OpID) error { <-gate.opened; return nil }
	var doubts []*UncertainError
	for range 2 {
		_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		doubts = append(doubts, uncertain)
	}
	gate.release()
	for i, d := range doubts {
		assert.Equal(t, 2-i, c.Explain("k").InDoubt)
		load(t, c, "k")
		missing(t, c, "k", "one is in doubt")
		require.NoError(t, c.check())
		s.mu.Lock()
		s.done[d.Op] = s.putLocked("k", row{value: 20})
		s.mu.Unlock()
		_, committed, err := d.Wait(t.Context())
		require.NoError(t, err)
		require.True(t, committed)
	}
	load(t, c, "k")
	served(t, c, "k", 3, "both are settled")
}

// A write that certainly was not committed changes nothing here.
func TestWrite_UnavailableChangesNothing(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	load(t, c, "k")
	s.beforeWrite = func(context.Context, string) error { return fmt.Errorf("no connection: %w", ErrUnavailable) }
	for _, write := range []func() (Entry[int], error){
		func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 1, 20) },
		func() (Entry[int], error) { return c.Delete(t.Context(), "k", 1) },
		func() (Entry[int], error) {
			return c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 1, nil })
		},
	} {
		e, err := write()
		require.ErrorIs(t, err, ErrUnavailable)
		assert.Negative(t, e.Age)
		served(t, c, "k", 1, "nothing was written")
	}
	assert.Zero(t, c.Stats().Uncertain)
	idle(t, c)
}

func TestWrite_BaseZeroMeansThatTheKeyMustNotExist(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	e, err := c.CompareAndSet(t.Context(), "k", 0, 10)
	require.NoError(t, err)
	assert.Equal(t, Version(1), e.Version)
	var conflict *ConflictError
	_, err = c.CompareAndSet(t.Context(), "k", 0, 20)
	require.ErrorAs(t, err, &conflict)
	assert.Equal(t, Version(1), conflict.Current)
	served(t, c, "k", 1, "the conflict named what memory has")
	_, err = c.Delete(t.Context(), "k", 1)
	require.NoError(t, err)
	_, err = c.Delete(t.Context(), "k", 1)
	require.ErrorAs(t, err, &conflict)
	e, err = c.CompareAndSet(t.Context(), "k", 0, 30)
	require.NoError(t, err)
	assert.Equal(t, Version(3), e.Version)
	assert.EqualValues(t, 2, c.Stats().Conflicts)
}

// Writes are readable here when they return, and told to the other replicas.
func TestWrite_IsReadableAndTold(t *testing.T) {
	s := newSource()
	r := calmReplicas(t, 2, s, newBus())
	s.set("k", 10)
	load(t, r[1], "k")
	update(t, r[0], "k", func(v int) int { return v + 1 })
	served(t, r[0], "k", 2, "at once")
	eventually(t, func() bool { _, ok := r[1].GetEntry("k"); return !ok }, "the other replica is told of the write")
	load(t, r[1], "k")
	_, err := r[0].Delete(t.Context(), "k", 2)
	require.NoError(t, err)
	e, ok := r[0].GetEntry("k")
	assert.True(t, ok && e.Absent && e.Version == 3)
	eventually(t, func() bool { _, ok := r[1].GetEntry("k"); return !ok }, "and of the deletion")
	served(t, r[0], "k", 3, "the own echo is harmless")
}

// Update's function: it sees what is there, its error ends Update as it is, its
// panic becomes an error, and nothing is written then.
func TestUpdate_TheFunction(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { panic("boom") })
	var panicked *PanicError
	require.ErrorAs(t, err, &panicked)
	assert.Equal(t, "boom", panicked.Value)
	assert.NotEmpty(t, panicked.Stack)
	assert.EqualValues(t, 1, c.Stats().Panics)
	done := make(chan bool)
	go func() {
		defer close(done)
		_, _ = c.Update(t.Context(), "k", func(Entry[int]) (int, error) { goexit(); return 0, nil })
		assert.Fail(t, "Goexit is the function's wish")
	}()
	<-done
	odd := fmt.Errorf("odd: %w", &ConflictError{Current: 9})
	calls := 0
	_, err = c.Update(t.Context(), "k", func(Entry[int]) (int, error) { calls++; return 0, odd })
	assert.Equal(t, odd, err)
	assert.Equal(t, 1, calls, "its error is its own, whatever it says")
	assert.Len(t, s.history["k"], 1)
	_, err = c.Update(t.Context(), "k", nil)
	var option *OptionError
	require.ErrorAs(t, err, &option)
	idle(t, c)

	_, err = c.Update(t.Context(), "absent", func(cur Entry[int]) (int, error) {
		assert.True(t, cur.Absent)
		assert.Zero(t, cur.Value)
		return 1, nil
	})
	require.NoError(t, err)
	boom := errors.New("boom")
	s.beforeLoad = func(context.Context, string) error { return boom }
	_, err = c.Update(t.Context(), "j", func(Entry[int]) (int, error) {
		assert.Fail(t, "there is nothing to decide on")
		return 0, nil
	})
	require.ErrorIs(t, err, boom)
}

// Without a Store nothing is loaded and nothing decided.
func TestUpdate_WithoutAStore(t *testing.T) {
	s := newSource()
	for _, l := range []Loader[string, int]{nil, bulkSource{s}} {
		c := newCache(t, Options[string, int]{MaxCost: small, Loader: l})
		_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) {
			assert.Fail(t, "decided for nothing")
			return 0, nil
		})
		require.ErrorIs(t, err, ErrNoStore)
	}
	assert.Zero(t, s.loadCount())
}

// A write that loses every race gives up, and says against what.
func TestUpdate_GivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		st := &oddStore{source: s, err: &ConflictError{Current: 7}}
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Store: st})
		_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 1, nil })
		var conflict *ConflictError
		require.ErrorAs(t, err, &conflict)
		assert.Equal(t, Version(7), conflict.Current)
		assert.Equal(t, maxAttempts, st.calls)

		ctx, cancel := context.WithCancel(t.Context())
		st.calls = 0
		tries := 0
		_, err = c.Update(ctx, "k", func(Entry[int]) (int, error) {
			if tries++; tries == 5 {
				cancel()
			}
			return 1, nil
		})
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, 4, st.calls, "nothing is sent once the caller has given up")
		idle(t, c)
	})
}

// Cost, EntryTTL, OnEvent and the KeyCodec panic while a write is installed: it
// is committed all the same, nothing is left behind, and the others are told.
func TestWrite_CallbacksThatPanic(t *testing.T) {
	boom := func() { panic("boom") }
	for name, o := range map[string]Options[string, int]{
		"Cost":     {Cost: func(string, int) int64 { boom(); return 1 }},
		"EntryTTL": {EntryTTL: func(string, Entry[int]) time.Duration { boom(); return 1 }},
		"OnEvent":  {Cost: func(string, int) int64 { return small + 1 }, OnEvent: func(Event) { boom() }},
		"KeyCodec": {KeyCodec: panicCodec{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			b := newBus()
			o.MaxCost, o.Store, o.Invalidator = small, s, calm(b)
			if name == "KeyCodec" {
				o.Invalidator.Schema = "of its own" // what others send it cannot read
			}
			c := newCache(t, o)
			o = Options[string, int]{MaxCost: small, Store: s, Invalidator: o.Invalidator}
			other := newCache(t, o)
			require.NoError(t, c.Ready(t.Context()))
			require.NoError(t, other.Ready(t.Context()))
			s.set("k", 10)
			load(t, other, "k")
			e, err := c.CompareAndSet(t.Context(), "k", 1, 20)
			require.NoError(t, err)
			assert.Equal(t, Version(2), e.Version)
			assert.Positive(t, c.Stats().Panics)
			idle(t, c)
			eventually(t, func() bool { _, ok := other.Get("k"); return !ok }, "the other replica is told")
			assert.Equal(t, 20, load(t, c, "k").Value)
		})
	}
}

// A panicCodec cannot do anything.
type panicCodec struct{}

func (panicCodec) AppendKey([]byte, string) []byte { panic("boom") }
func (panicCodec) ParseKey([]byte) (string, error) { panic("boom") }
