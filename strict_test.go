package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// strictDoubt is the DoubtTimeout of the strict replicas of these tests.
const strictDoubt = 10 * time.Second

// strict returns n replicas that write strictly, past the time in which the log
// vouches for nothing old.
func strict(t testing.TB, n int, s *source, log *memLog) []*Cache[string, int] {
	t.Helper()
	r := followers(t, n, s, log, Options[string, int]{Strict: true, DoubtTimeout: strictDoubt})
	time.Sleep(2*strictDoubt + 3*testBeat)
	return r
}

// dieAfterCommit makes the next write of s never return, and never be told of: its
// writer dies. What it returns lets the writer's goroutine go.
func dieAfterCommit(s *source) (bury func()) {
	dead := make(chan struct{})
	s.afterWrite = func(context.Context, string) error {
		s.afterWrite = nil
		<-dead
		return errors.New("connection reset")
	}
	return sync.OnceFunc(func() { close(dead) })
}

func inc(cur Entry[int]) (int, error) { return cur.Value + 1, nil }

// A writer dies between its commit and the word of it. The others have known since
// before the commit that the key may change.
func TestS33_AStrictWriteIsKnownBeforeItIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		s.set("other", 1)
		r := strict(t, 2, s, log)
		hold(t, r[1], "k")
		hold(t, r[1], "other")
		bury := dieAfterCommit(s)
		go func() { _, _ = r[0].Update(context.Background(), "k", inc) }()
		synctest.Wait()
		require.Equal(t, row{value: 2, version: 2}, s.get("k"), "it is committed")
		requireServed(t, r[1], "other")
		for range 3 {
			requireNotServed(t, r[1], "k")
			e, err := r[1].Read(t.Context(), "k", Within(time.Hour))
			require.NoError(t, err)
			assert.Equal(t, 2, e.Value)
			time.Sleep(testBeat)
		}
		assert.Equal(t, 1, r[1].Stats().Intents)
		assert.Contains(t, r[1].Explain("k").String(), "in doubt: 1")
		// Nobody ever tells how it ended, but by then it has taken effect or will not.
		time.Sleep(2 * strictDoubt)
		assert.Equal(t, 0, r[1].Stats().Intents)
		assert.EqualValues(t, 1, r[1].Stats().Lapsed)
		hold(t, r[1], "k")
		bury()
		synctest.Wait()
	})
}

// A load reads the old state while a strict write is under way, before its commit.
// What it brings is answered with and not kept, whenever it ends.
func TestS34_WhatIsLoadedDuringAStrictWriteIsNotKept(t *testing.T) {
	for name, ends := range map[string]string{"before the commit": "before", "after the commit": "committed", "after the word of it": "told", "after the writer is given up": "lapsed"} {
		for _, begins := range []string{"before the intent", "after the intent"} {
			t.Run(begins+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, log := newSource(), newMemLog()
					s.set("k", 1)
					r := strict(t, 2, s, log)
					commit, told, load := make(chan struct{}), make(chan struct{}), make(chan struct{})
					s.beforeWrite = func(context.Context, string) error { <-commit; return nil }
					s.afterWrite = func(context.Context, string) error { <-told; return nil }
					write := func() { _, _ = r[0].CompareAndSet(context.Background(), "k", 1, 2); synctest.Wait() }
					s.afterLoad = func(context.Context, string) error { <-load; return nil }
					reads := sync.WaitGroup{}
					read := func() {
						reads.Go(func() {
							e, err := r[1].Load(context.Background(), "k")
							assert.NoError(t, err)
							assert.EqualValues(t, 1, e.Version)
						})
						synctest.Wait()
					}
					var writes sync.WaitGroup
					if begins == "before the intent" {
						read()
					}
					writes.Go(write)
					synctest.Wait()
					if begins == "after the intent" {
						read()
					}
					now := func(what string) {
						if ends == what {
							close(load)
							reads.Wait()
							requireNotServed(t, r[1], "k")
						}
					}
					now("before")
					close(commit)
					synctest.Wait()
					now("committed")
					if ends == "lapsed" {
						time.Sleep(2*strictDoubt + 2*testBeat)
						require.EqualValues(t, 1, r[1].Stats().Lapsed)
					}
					now("lapsed")
					close(told)
					writes.Wait()
					now("told")
					s.afterLoad = nil
					hold(t, r[1], "k")
					e, _ := r[1].GetEntry("k")
					assert.EqualValues(t, 2, e.Version)
				})
			})
		}
	}
}

// At the replica that makes it, too: from the intent on nothing is served, and a
// load that read the old state does not get in when the write has ended.
func TestStrict_AtItsOwnReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		load, loaded := make(chan struct{}), make(chan struct{})
		var c *Cache[string, int]
		o := Options[string, int]{Strict: true, MaxCost: small, Shards: 1, Store: s, Invalidator: log.invalidator()}
		o.Cost = func(key string, value int) int64 {
			if value == 2 { // the write's: it has ended and is not in memory yet
				close(load)
				<-loaded
				requireNotServed(t, c, "k")
			}
			return 1
		}
		c = newCache(t, o)
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		s.afterWrite = func(context.Context, string) error {
			requireNotServed(t, c, "k")
			return nil
		}
		s.beforeWrite = func(context.Context, string) error {
			requireNotServed(t, c, "k")
			s.afterLoad = func(context.Context, string) error { s.afterLoad = nil; <-load; return nil }
			go func() {
				defer close(loaded)
				e, err := c.Load(context.Background(), "k")
				assert.NoError(t, err)
				assert.EqualValues(t, 1, e.Version)
			}()
			synctest.Wait()
			return nil
		}
		e, err := c.CompareAndSet(t.Context(), "k", 1, 2)
		require.NoError(t, err)
		assert.EqualValues(t, 2, e.Version)
		got, ok := c.GetEntry("k")
		require.True(t, ok, "it is readable at once")
		assert.EqualValues(t, 2, got.Version)
	})
}

// However a strict write ends, the others are told, and may cache the key again.
func TestStrict_TheOthersAreToldHowItEnded(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after error
		base, want    Version
	}{
		"committed":                     {nil, nil, 1, 2},
		"a conflict":                    {nil, nil, 7, 1},
		"unavailable":                   {fmt.Errorf("no: %w", ErrUnavailable), nil, 1, 1},
		"in doubt, and was not":         {errors.New("reset"), nil, 1, 1},
		"in doubt, and was":             {nil, errors.New("reset"), 1, 2},
		"a version that orders nothing": {nil, nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				s.set("k", 1)
				r := strict(t, 2, s, log)
				hold(t, r[1], "k")
				var open int
				s.beforeWrite = func(context.Context, string) error {
					synctest.Wait()
					open = r[1].Stats().Intents
					return tt.before
				}
				s.afterWrite = func(context.Context, string) error { return tt.after }
				if tt.want == 0 {
					r[0].opts.Store = stuckVersion{s}
				}
				_, err := r[0].CompareAndSet(t.Context(), "k", tt.base, 2)
				if tt.base == 1 && tt.before == nil && tt.after == nil {
					require.NoError(t, err)
				} else {
					require.Error(t, err)
				}
				var uncertain *UncertainError
				if errors.As(err, &uncertain) {
					_, committed, err := uncertain.Wait(t.Context())
					require.NoError(t, err)
					assert.Equal(t, tt.want == 2, committed)
				}
				synctest.Wait()
				if tt.want != 0 {
					assert.Equal(t, 1, open, "they knew")
				}
				assert.Equal(t, 0, r[1].Stats().Intents)
				assert.EqualValues(t, 0, r[1].Stats().Lapsed)
				hold(t, r[1], "k")
				e, _ := r[1].GetEntry("k")
				assert.Equal(t, s.get("k"), row{e.Value, e.Version, e.Absent})
				hold(t, r[0], "k")
				require.NoError(t, r[0].check())
			})
		})
	}
}

// stuckVersion commits without raising the version, which no Store may.
type stuckVersion struct{ *source }

func (s stuckVersion) CompareAndSet(_ context.Context, key string, base Version, value int, _ OpID) (Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[key] = row{value: value, version: 1}
	return base, nil
}

// While the log takes nothing, nothing is written, and nothing of it is told later
// that was not on its way already.
func TestStrict_NothingIsWrittenWithoutTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := strict(t, 2, s, log)
		hold(t, r[0], "k")
		hold(t, r[1], "k")
		s.beforeWrite = func(context.Context, string) error { panic("the store was asked") }
		log.setRefuse(errors.New("no quorum"))
		var calls sync.WaitGroup
		for i := range 20 {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i+1)*100*time.Millisecond)
				defer cancel()
				_, err := r[0].CompareAndSet(ctx, "k", 1, 2)
				assert.ErrorIs(t, err, ErrUnavailable)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		calls.Wait()
		requireServed(t, r[0], "k")
		assert.LessOrEqual(t, r[0].Stats().Backlog, 40, "what is under way, and how it ended")
		began := time.Now()
		_, err := r[0].CompareAndSet(context.Background(), "k", 1, 2)
		require.ErrorIs(t, err, ErrUnavailable)
		assert.Equal(t, strictDoubt, time.Since(began), "it does not wait for ever")
		require.ErrorContains(t, err, "no quorum")

		log.setRefuse(nil)
		time.Sleep(time.Second)
		assert.Equal(t, 0, r[0].Stats().Backlog)
		assert.Equal(t, 0, r[1].Stats().Intents, "what was on its way is taken back")
		assert.EqualValues(t, 0, r[1].Stats().Lapsed)
		s.beforeWrite = nil
		_, err = r[0].CompareAndSet(t.Context(), "k", 1, 2)
		require.NoError(t, err)
	})
}

// What was given up while it waited leaves the queue at once, whatever waits beside
// it, and what waits beside it is still told once.
func TestStrict_AnIntentThatIsGivenUpLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		r := strict(t, 2, s, log)
		for i := range 9 {
			s.set(strconv.Itoa(i), 1)
			hold(t, r[1], strconv.Itoa(i))
		}
		log.setRefuse(errors.New("no quorum"))
		invalidate := func(i int) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, r[0].Invalidate(ctx, strconv.Itoa(i), s.set(strconv.Itoa(i), 2)), ErrNotBroadcast)
		}
		invalidate(8) // under way, with what follows behind it
		synctest.Wait()
		var calls sync.WaitGroup
		for i := range 8 {
			invalidate(i)
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i+1)*time.Millisecond)
				defer cancel()
				_, err := r[0].CompareAndSet(ctx, strconv.Itoa(i), 2, 3)
				assert.ErrorIs(t, err, ErrUnavailable)
			})
			synctest.Wait()
		}
		for i := range 8 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			assert.Equal(t, 9+7-i, r[0].Stats().Backlog)
			invalidate(i) // finds its place in the queue
			assert.Equal(t, 9+7-i, r[0].Stats().Backlog)
		}
		calls.Wait()
		sent := r[0].Stats().Sent
		log.setRefuse(nil)
		time.Sleep(2 * time.Second)
		assert.Equal(t, 0, r[0].Stats().Backlog)
		assert.Greater(t, r[0].Stats().Sent, sent)
		for i := range 9 {
			requireNotServed(t, r[1], strconv.Itoa(i))
		}
		assert.EqualValues(t, 9, r[1].Stats().Applies)
	})
}

// The word that everything changed stands for what waits beside it, but not for the
// word that something is about to.
func TestStrict_AnIntentIsNotReplacedByEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := strict(t, 2, s, log)
		log.setRefuse(errors.New("no quorum"))
		var open int
		s.beforeWrite = func(context.Context, string) error {
			synctest.Wait()
			open = r[1].Stats().Intents
			return nil
		}
		var calls sync.WaitGroup
		calls.Go(func() { _ = r[0].InvalidateAll(context.Background()) })
		synctest.Wait()
		calls.Go(func() {
			_, err := r[0].CompareAndSet(context.Background(), "k", 1, 2)
			assert.NoError(t, err)
		})
		synctest.Wait()
		calls.Go(func() { _ = r[0].InvalidateAll(context.Background()) })
		synctest.Wait()
		log.setRefuse(nil)
		calls.Wait()
		assert.Equal(t, 1, open)
	})
}

// A message that the transport does not take is replaced by the word that everything
// changed. An intent that was in it was not told.
func TestStrict_AnIntentThatIsTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		inv := log.invalidator()
		inv.Log = smallLog{log}
		c := newCache(t, Options[string, int]{Strict: true, MaxCost: small, Store: s, Invalidator: inv})
		require.NoError(t, c.Ready(t.Context()))
		for size, want := range map[int]error{8 << 10: ErrMessageSize, maxKeyBytes + 1: ErrUnavailable} {
			key := string(make([]byte, size))
			_, err := c.CompareAndSet(t.Context(), key, 0, 1)
			require.ErrorIs(t, err, ErrUnavailable)
			require.ErrorIs(t, err, want)
			assert.Equal(t, row{absent: true}, s.get(key))
		}
		_, err := c.CompareAndSet(t.Context(), "k", 0, 1)
		require.NoError(t, err, "the others go on")
	})
}

// smallLog takes messages of up to 4 KiB.
type smallLog struct{ *memLog }

func (l smallLog) Append(ctx context.Context, msg []byte) (uint64, error) {
	if len(msg) > 4<<10 {
		return 0, ErrMessageSize
	}
	return l.memLog.Append(ctx, msg)
}

// A process that was stopped after its intent must not write: the others may have
// given it up meanwhile.
func TestS64_AStrictWriteThatSleptIsNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := strict(t, 2, s, log)
		w := &write[string, int]{key: "k", hash: r[0].keys.hash("k"), op: newOpID(), began: r[0].moments()}
		w.began.Lead -= int64(time.Hour)
		require.ErrorIs(t, r[0].intend(t.Context(), w), ErrUnavailable)
		assert.False(t, w.holds)
		time.Sleep(testBeat)
		assert.Equal(t, 0, r[1].Stats().Intents, "which the others are told")
		assert.EqualValues(t, 0, r[1].Stats().Lapsed)
	})
}

// A replica joins between an intent, of which it does not hear, and the commit. What
// it has loaded before the commit is not vouched for by the log until all such
// writes have taken effect.
func TestStrict_WhoJoinsDoesNotKnowWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		a := strict(t, 1, s, log)[0]
		commit := make(chan struct{})
		s.beforeWrite = func(context.Context, string) error { <-commit; return nil }
		bury := dieAfterCommit(s)
		go func() { _, _ = a.Update(context.Background(), "k", inc) }()
		synctest.Wait()
		b := followers(t, 1, s, log, Options[string, int]{Strict: true, DoubtTimeout: strictDoubt})[0]
		joined := time.Now()
		time.Sleep(2 * testBeat)
		hold(t, b, "k")
		loaded := time.Now()
		time.Sleep(strictDoubt)
		close(commit)
		synctest.Wait()
		require.EqualValues(t, 2, s.get("k").version)
		token := a.Token()
		for time.Since(joined) < 3*strictDoubt {
			e, ok := b.GetEntry("k")
			require.True(t, ok, "at Any it stays")
			if e.Version == 1 {
				assert.GreaterOrEqual(t, e.Age, time.Since(loaded))
			}
			time.Sleep(testBeat)
		}
		assert.GreaterOrEqual(t, b.Stats().Fresh, time.Duration(0))
		assert.Less(t, b.Stats().Fresh, 2*testBeat)
		e, err := b.Read(t.Context(), "k", After(token))
		require.NoError(t, err)
		assert.EqualValues(t, 2, e.Version)
		e, err = b.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.EqualValues(t, 2, e.Version)
		loads := s.loadCount()
		time.Sleep(time.Minute)
		_, err = b.Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, loads, s.loadCount(), "what was loaded since is vouched for")
		bury()
		synctest.Wait()
	})
}

// What was missed may have been an intent.
func TestStrict_AMissedMessageMayHaveBeenAnIntent(t *testing.T) {
	for name, miss := range map[string]func(c *Cache[string, int], log *memLog) [][]byte{
		"a gap in an origin's numbers": func(c *Cache[string, int], _ *memLog) (msgs [][]byte) {
			for _, seq := range []uint64{1, 3} {
				b, _ := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: c.replica.out.id, Origin: 7, Seq: seq})
				msgs = append(msgs, b)
			}
			return msgs
		},
		"a message that cannot be read": func(*Cache[string, int], *memLog) [][]byte { return [][]byte{[]byte("hello?")} },
		"a hole in the log":             func(_ *Cache[string, int], log *memLog) [][]byte { log.skip(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				s.set("k", 1)
				c := strict(t, 1, s, log)[0]
				for _, msg := range miss(c, log) {
					_, err := log.Append(t.Context(), msg)
					require.NoError(t, err)
				}
				time.Sleep(10 * testBeat)
				hold(t, c, "k")
				loaded := time.Now()
				for time.Since(loaded) < 2*strictDoubt-11*testBeat {
					e, ok := c.GetEntry("k")
					require.True(t, ok)
					require.Equal(t, time.Since(loaded), e.Age, "as old as its load")
					time.Sleep(testBeat)
				}
			})
		})
	}
}

func (l *memLog) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.msgs)
}

// A write that has ended is not begun again by a message that comes twice.
func TestS46_AnIntentThatComesAgainBeginsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := strict(t, 2, s, log)
		from := log.length()
		_, err := r[0].Update(t.Context(), "k", inc)
		require.NoError(t, err)
		synctest.Wait()
		upTo := log.length()
		require.Greater(t, upTo, from)
		intents := 0
		for i := from; i < upTo; i++ {
			var m wire.Message
			require.NoError(t, wire.Decode(log.msgs[i], &m))
			if len(m.Entries) == 1 && m.Entries[0].Stage == wire.Begun {
				intents++
				_, err := log.Append(t.Context(), log.msgs[i])
				require.NoError(t, err)
			}
		}
		require.Equal(t, 1, intents)
		synctest.Wait()
		assert.Equal(t, 0, r[1].Stats().Intents)
		hold(t, r[1], "k")
	})
}

// More writes under way than can be remembered: the log vouches for nothing until
// all of them have taken effect.
func TestStrict_MoreIntentsThanCanBeRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := strict(t, 1, s, log)[0]
		hold(t, c, "k")
		e, _ := c.GetEntry("k")
		began, seq := time.Now(), uint64(0)
		m := &wire.Message{Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7}
		for i := range 1<<16 + 1 {
			w := wire.Entry{Key: strconv.AppendInt(nil, int64(i), 10), Stage: wire.Begun, TTL: 60_000}
			w.Op[0], w.Op[1], w.Op[2], w.Op[3] = 1, byte(i), byte(i>>8), byte(i>>16)
			if m.Entries = append(m.Entries, w); len(m.Entries) == wire.MaxEntries || i == 1<<16 {
				seq++
				m.Seq = seq
				b, err := wire.Append(nil, m)
				require.NoError(t, err)
				_, err = log.Append(t.Context(), b)
				require.NoError(t, err)
				m.Entries = m.Entries[:0]
			}
		}
		synctest.Wait()
		assert.Equal(t, 1<<16, c.Stats().Intents)
		require.NoError(t, c.check())
		time.Sleep(time.Minute - testBeat)
		e, _ = c.GetEntry("k")
		assert.GreaterOrEqual(t, e.Age, time.Since(began))
		time.Sleep(2 * testBeat)
		assert.Equal(t, 0, c.Stats().Intents)
		assert.EqualValues(t, 1<<16, c.Stats().Lapsed)
		require.NoError(t, c.check())
	})
}

// An intent that a Hint beside the log delivers means nothing: who hears it there
// may never hear how it ended.
func TestStrict_AHintBeginsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log, b := newSource(), newMemLog(), newBus()
		s.set("k", 1)
		inv := log.invalidator()
		inv.Hint = b
		c := newCache(t, Options[string, int]{Strict: true, DoubtTimeout: strictDoubt, MaxCost: small, Store: s, Invalidator: inv})
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		op := [16]byte{1}
		m := &wire.Message{Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7, Seq: 1}
		say := func(publish func(context.Context, []byte) error, e wire.Entry) {
			m.Entries = []wire.Entry{e}
			msg, err := wire.Append(nil, m)
			require.NoError(t, err)
			require.NoError(t, publish(t.Context(), msg))
			m.Seq++
			synctest.Wait()
		}
		appended := func(ctx context.Context, msg []byte) error { _, err := log.Append(ctx, msg); return err }
		say(b.Publish, wire.Entry{Key: []byte("k"), Stage: wire.Begun, Op: op, TTL: 1000})
		requireServed(t, c, "k")
		m.Seq = 1
		say(appended, wire.Entry{Key: []byte("k"), Stage: wire.Begun, Op: op, TTL: 1000})
		requireNotServed(t, c, "k")
		say(b.Publish, wire.Entry{Key: []byte("k"), Stage: wire.Void, Op: op})
		assert.Equal(t, 1, c.Stats().Intents, "nor does it end anything")
		say(b.Publish, wire.Entry{Key: []byte("k"), Stage: wire.Ended, Op: op, Version: 9})
		assert.Equal(t, 1, c.Stats().Intents)
		assert.EqualValues(t, 9, c.Explain("k").TideMark, "but what it says of versions is true")
	})
}

// A message that ends a write with another key than it began with lets the right one
// go, and holds nothing up.
func TestStrict_AnEndOfAnotherKey(t *testing.T) {
	for name, stage := range map[string]wire.Stage{"ended": wire.Ended, "void": wire.Void} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				s.set("k", 1)
				s.set("other", 1)
				c := strict(t, 1, s, log)[0]
				m := &wire.Message{Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7}
				for _, e := range []wire.Entry{
					{Key: []byte("k"), Stage: wire.Begun, Op: [16]byte{1}, TTL: 60_000},
					{Key: []byte("other"), Stage: stage, Op: [16]byte{1}},
				} {
					m.Seq++
					m.Entries = []wire.Entry{e}
					msg, err := wire.Append(nil, m)
					require.NoError(t, err)
					_, err = log.Append(t.Context(), msg)
					require.NoError(t, err)
				}
				synctest.Wait()
				free := c.shards[0].mu.TryLock()
				c.shards[0].mu.Unlock() // also if a panic has left it locked
				require.True(t, free, "nobody holds the shard")
				assert.Equal(t, 0, c.Stats().Intents)
				assert.EqualValues(t, 0, c.Stats().Panics)
				hold(t, c, "k")
				hold(t, c, "other")
			})
		})
	}
}

// Strict writers that die half-way, a log that is late, replicas that join: no read
// within the bound is older than what had been committed before that.
func TestStrict_NeverBeyondTheBoundOfCommits(t *testing.T) {
	const bound, doubt, readers = 20 * time.Millisecond, 100 * time.Millisecond, 6
	s, log := newSource(), newMemLog()
	log.beat = minBeat
	s.set("k", 0)
	o := Options[string, int]{Strict: true, DoubtTimeout: doubt, TTL: time.Hour}
	writer := followers(t, 1, s, log, o)[0]
	committed := &boundOracle{bound: bound}
	committed.counts(1)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var wg sync.WaitGroup
	die := errors.New("the answer is lost")
	s.afterWrite = func(_ context.Context, key string) error {
		committed.counts(s.get(key).version)
		if rand.IntN(4) == 0 {
			time.Sleep(rand.N(2 * doubt)) // so that it is told late, or not in time
		}
		if rand.IntN(8) == 0 {
			return die
		}
		return nil
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			_, err := writer.Update(t.Context(), "k", inc)
			var uncertain *UncertainError
			if errors.As(err, &uncertain) {
				_, _, err = uncertain.Wait(t.Context())
			}
			if !errors.Is(err, ErrUnavailable) { // on a busy machine this process may be stopped for longer than doubt
				assert.NoError(t, err)
			}
			time.Sleep(rand.N(bound / 4))
		}
	})
	wg.Go(func() { // the log is late
		for ctx.Err() == nil {
			log.setDelay(rand.N(2 * bound))
			time.Sleep(2 * bound)
			log.setDelay(0)
			time.Sleep(2 * bound)
		}
		log.setDelay(0)
	})
	var vouched atomic.Int64
	for ctx.Err() == nil { // one reader after the other joins
		c := followers(t, 1, s, log, o)[0]
		until := time.Now().Add(6 * doubt)
		var round sync.WaitGroup
		for range readers {
			round.Go(func() {
				for time.Now().Before(until) && !t.Failed() {
					if committed.read(t, c) && time.Until(until) < 3*doubt {
						vouched.Add(1)
					}
				}
			})
		}
		round.Wait()
	}
	wg.Wait()
	t.Logf("%d served, %d of them within %v, %d of these after the time of joining", committed.served.Load(), committed.bounded.Load(), bound, vouched.Load())
	assert.Greater(t, vouched.Load(), int64(1000), "the bound was tried")
}
