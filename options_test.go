package tidemark

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every field that New checks, with values on both sides of the line.
func TestOptions_WhatNewRefuses(t *testing.T) {
	type options = Options[string, int]
	s := newSource()
	cost := func(string, int) int64 { return 1 }
	ttl := func(string, Entry[int]) time.Duration { return 1 }
	hint := Invalidator{Name: "n", Hint: newBus()}
	log := Invalidator{Name: "n", Log: newMemLog()}
	tests := []struct {
		field string
		good  []options
		bad   []options
	}{
		{"MaxCost", []options{{MaxCost: 1}, {MaxCost: small, Cost: cost}}, []options{{MaxCost: -1}, {MaxCost: math.MinInt64}, {Cost: cost}}},
		{"ExpectedEntries", []options{{ExpectedEntries: 1}}, []options{{ExpectedEntries: -1}}},
		{"Shards", []options{{Shards: 1}, {Shards: 3}, {Shards: 4096}}, []options{{Shards: -1}, {Shards: 4097}}},
		{"TTL", []options{{TTL: 1}, {TTL: math.MaxInt64}}, []options{{TTL: -1}}},
		{"TTLJitter", []options{{TTLJitter: 1}, {TTLJitter: -7}, {TTLJitter: math.Inf(-1)}},
			[]options{{TTLJitter: 1.0001}, {TTLJitter: math.NaN()}, {TTLJitter: math.Inf(1)}}},
		{"RefreshAfter", []options{{RefreshAfter: 1, Store: s}, {RefreshAfter: 1, TTL: 2, Loader: s}},
			[]options{{RefreshAfter: -1}, {RefreshAfter: 2, TTL: 2, Store: s}, {RefreshAfter: 3, TTL: 2, Store: s}, {RefreshAfter: 1}}},
		{"DoubtTimeout", []options{{DoubtTimeout: 1}, {DoubtTimeout: maxStrictDoubt + 1}},
			[]options{{DoubtTimeout: -1}, {DoubtTimeout: maxStrictDoubt + 1, Strict: true, Store: s, Invalidator: log}}},
		{"Strict", []options{{Strict: true, Store: s, Invalidator: log}},
			[]options{{Strict: true, Store: s}, {Strict: true, Invalidator: log}, {Strict: true, Store: s, Invalidator: hint}}},
		{"MaxDoubts", []options{{MaxDoubts: 1}}, []options{{MaxDoubts: -1}}},
		{"Loader", []options{{Loader: s}}, []options{{Loader: LoaderFunc[string, int](nil)}, {Loader: (*readReplica)(nil)}, {Loader: bulkFunc(nil)}}},
		{"Store", []options{{Store: s}}, []options{{Store: (*source)(nil)}}},
		{"LoaderClass",
			[]options{{Loader: s, Store: s, LoaderClass: Lagging(1)}, {Loader: loaderPair[string, int]{Loader: s}, LoaderClass: Lagging(1)}, {Loader: s, LoaderClass: Strong}},
			[]options{{Loader: s, LoaderClass: Lagging(1)}, {Loader: s, Store: s, LoaderClass: Lagging(0)}, {Loader: s, Store: s, LoaderClass: Lagging(-1)}, {Store: s, LoaderClass: Lagging(1)}}},
		{"Invalidator", nil, []options{{Invalidator: Invalidator{Name: "n"}}}},
		{"Invalidator.Name", []options{{Invalidator: hint}}, []options{{Invalidator: Invalidator{Hint: newBus()}}}},
		{"Invalidator.Hint", nil, []options{{Invalidator: Invalidator{Name: "n", Hint: (*bus)(nil)}}}},
		{"Invalidator.Beat", nil, []options{{Invalidator: Invalidator{Name: "n", Hint: newBus(), Beat: -1}}, {Invalidator: Invalidator{Name: "n", Hint: newBus(), Beat: minBeat - 1}}}},
		{"Invalidator.Prober", []options{{Invalidator: Invalidator{Name: "n", Log: newMemLog(), Prober: &prober{}}}}, []options{{Invalidator: Invalidator{Name: "n", Hint: newBus(), Prober: &prober{}}}, {Invalidator: Invalidator{Name: "n", Log: newMemLog(), Prober: (*prober)(nil)}}}},
		{"OnStale", []options{{OnStale: Reload}, {OnStale: Fail}}, []options{{OnStale: Fail + 1}, {OnStale: math.MaxUint8}}},
		{"MaxStale", []options{{MaxStale: 1}, {MaxStale: math.MaxInt64}}, []options{{MaxStale: -1}}},
		{"StaleWhileRevalidate", []options{{StaleWhileRevalidate: 1, TTL: 1, Store: s}, {StaleWhileRevalidate: math.MaxInt64, EntryTTL: ttl, Loader: s}},
			[]options{{StaleWhileRevalidate: -1}, {StaleWhileRevalidate: 1, Store: s}, {StaleWhileRevalidate: 1, TTL: 1}}},
		{"StaleIfError", []options{{StaleIfError: 1, TTL: 1, Store: s}, {StaleIfError: math.MaxInt64, EntryTTL: ttl, Loader: s}},
			[]options{{StaleIfError: -1}, {StaleIfError: 1, Store: s}, {StaleIfError: 1, TTL: 1}}},
		{"SoftLoadTimeout",
			[]options{{SoftLoadTimeout: 1, StaleIfError: 1, TTL: 1, Store: s, LoadTimeout: 2}, {SoftLoadTimeout: time.Hour, StaleIfError: 1, TTL: 1, Store: s, LoadTimeout: -1}},
			[]options{{SoftLoadTimeout: -1}, {SoftLoadTimeout: 1}, {SoftLoadTimeout: 2, StaleIfError: 1, TTL: 1, Store: s, LoadTimeout: 2},
				{SoftLoadTimeout: defaultLoadTimeout, StaleIfError: 1, TTL: 1, Store: s}}},
		{"Breaker", []options{{Breaker: &refusing{}, Loader: s}, {Breaker: &refusing{}, Store: s}},
			[]options{{Breaker: (*refusing)(nil), Store: s}, {Breaker: allowFunc(nil), Store: s}, {Breaker: &refusing{}}}},
		{"Level", []options{{Level: AtLeast(1)}, {Level: Linearizable, Loader: s}, {Level: Linearizable, Store: s}}, []options{{Level: Linearizable}}},
		{"none", []options{{}, {NegativeTTL: -1, LoadTimeout: -1, MaxLoads: -1}, {NegativeTTL: 1, TTL: time.Hour}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.field, func(t *testing.T) {
			for i, o := range tt.bad {
				c, err := New(o)
				require.Error(t, err, "bad %d", i)
				assert.Nil(t, c)
				assert.Equal(t, []string{tt.field}, mistakes(err), "bad %d: %v", i, err)
				assert.Contains(t, err.Error(), tt.field)
			}
			for i, o := range tt.good {
				if o.MaxCost == 0 {
					o.MaxCost = small
				}
				c, err := New(o)
				if assert.NoError(t, err, "good %d", i) {
					require.NoError(t, c.Close(t.Context()))
				}
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, err := New(options{
			MaxCost: -1, ExpectedEntries: -1, Shards: -1, TTL: -1, TTLJitter: 2, RefreshAfter: -1, DoubtTimeout: -1,
			MaxDoubts: -1, OnStale: Fail + 1, MaxStale: -1, Loader: LoaderFunc[string, int](nil), Store: (*source)(nil), LoaderClass: Lagging(-1),
			Invalidator: Invalidator{Hint: newBus(), Beat: -1},
		})
		assert.ElementsMatch(t, []string{
			"MaxCost", "ExpectedEntries", "Shards", "TTL", "TTLJitter", "RefreshAfter", "DoubtTimeout",
			"MaxDoubts", "OnStale", "MaxStale", "Loader", "Store", "LoaderClass", "Invalidator.Name", "Invalidator.Beat",
		}, mistakes(err))
	})
}

// Zero means what the fields' comments say.
func TestOptions_Defaults(t *testing.T) {
	o, err := Options[string, int]{}.normal()
	require.NoError(t, err)
	assert.EqualValues(t, 65_536, o.MaxCost)
	assert.EqualValues(t, 65_536, o.ExpectedEntries)
	assert.Zero(t, o.TTL)
	assert.InDelta(t, 0.1, o.TTLJitter, 0)
	assert.Equal(t, 5*time.Second, o.NegativeTTL)
	assert.Equal(t, 30*time.Second, o.LoadTimeout)
	assert.Equal(t, 256, o.MaxLoads)
	assert.Equal(t, 10*time.Second, o.DoubtTimeout)
	assert.Equal(t, 256, o.MaxDoubts)
	assert.Equal(t, Strong, o.LoaderClass)
	assert.Equal(t, Any, o.Level)
	assert.Equal(t, slog.DiscardHandler, o.Logger.Handler())
	assert.Equal(t, ceilPow2(min(max(64, 8*runtime.GOMAXPROCS(0)), 256)), o.Shards)

	s := newSource()
	o, err = Options[string, int]{Store: s}.normal()
	require.NoError(t, err)
	assert.Equal(t, Loader[string, int](s), o.Loader, "a Store is a Loader")
	assert.Equal(t, Strong, o.LoaderClass)

	o, err = Options[string, int]{MaxCost: 1 << 20, Cost: func(string, int) int64 { return 1 }}.normal()
	require.NoError(t, err)
	assert.EqualValues(t, 1<<20/256, o.ExpectedEntries)
	for shards, want := range map[int]int{1: 1, 2: 2, 3: 4, 200: 256, 4096: 4096} {
		o, err = Options[string, int]{Shards: shards}.normal()
		require.NoError(t, err)
		assert.Equal(t, want, o.Shards)
	}
	for maxCost, want := range map[int64]int{1: 1, 128: 1, 255: 1, 256: 2, 1000: 8} {
		o, err = Options[string, int]{MaxCost: maxCost}.normal()
		require.NoError(t, err)
		assert.Equal(t, want, o.Shards, "a shard has 128 entries at least")
	}
	for maxCost, want := range map[int64]int{3 << 20: 512, 1 << 40: 4096} {
		o, err = Options[string, int]{MaxCost: maxCost, ExpectedEntries: maxCost}.normal()
		require.NoError(t, err)
		assert.Equal(t, want, o.Shards, "a shard has 8,192 entries at most, as long as that are not more than 4,096")
	}
}

// Every method that takes a context, with one that has ended.
func TestOptions_EndedContexts(t *testing.T) {
	s := newSource()
	b := newBus()
	b.setFault(func(int, []byte) [][]byte { return nil }) // never ready
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Invalidator: calm(b)})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	require.ErrorIs(t, c.Ready(ctx), context.Canceled)
	b.mu.Lock()
	b.refuse = errors.New("down")
	b.mu.Unlock()
	require.ErrorIs(t, c.Invalidate(ctx, "k", 1), ErrNotBroadcast)
	require.ErrorIs(t, c.InvalidateAll(ctx), ErrNotBroadcast)
	b.mu.Lock()
	b.refuse = nil
	b.mu.Unlock()
	_, err := c.Load(ctx, "k")
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.LoadMany(ctx, []string{"k"})
	require.ErrorIs(t, err, context.Canceled)
	assert.Zero(t, s.loadCount())
	idle(t, c)

	alone, err := New(Options[string, int]{MaxCost: small, Store: s})
	require.NoError(t, err)
	require.NoError(t, alone.Ready(ctx), "there is nobody to wait for")
	require.NoError(t, alone.Invalidate(ctx, "k", 1), "nor here")
	require.NoError(t, alone.InvalidateAll(ctx))
	require.NoError(t, alone.Close(ctx), "an idle cache closes without waiting")
}

// Close is called by many, and again: it closes once, and all see how it went.
func TestClose_Repeatedly(t *testing.T) {
	s := newSource()
	s.afterWrite = func(context.Context, string) error { return errAnswerLost }
	s.onOutcome = func(string, OpID) error { return errAnswerLost } // the store does not tell
	c, err := New(Options[string, int]{MaxCost: small, Store: s})
	require.NoError(t, err)
	_, err = c.CompareAndSet(t.Context(), "k", 0, 10)
	var uncertain *UncertainError
	require.ErrorAs(t, err, &uncertain)
	closed := make(chan error, 4)
	for range 4 {
		go func() { closed <- c.Close(t.Context()) }()
	}
	for range 4 {
		var doubt *DoubtError
		require.ErrorAs(t, <-closed, &doubt)
		assert.Equal(t, 1, doubt.Writes)
	}
	_, _, err = uncertain.Wait(t.Context())
	require.ErrorIs(t, err, ErrClosed, "nobody asks the store any more")
	require.Error(t, c.Close(t.Context()))
}

// What a cache of its own had is gone with it: there is no replica that would have
// to be cut off.
func TestClose_ServesNothing(t *testing.T) {
	c, err := New(Options[string, int]{MaxCost: small})
	require.NoError(t, err)
	require.Equal(t, Applied, c.Put("k", 10, 1))
	served(t, c, "k", 1, "before")
	require.NoError(t, c.Close(t.Context()))
	missing(t, c, "k", "after Close")
}

// A load runs when the cache closes: it is cancelled, those who wait for it get
// ErrClosed, and Close returns when it has ended.
func TestClose_EndsRunningLoads(t *testing.T) {
	s := newSource()
	c, err := New(Options[string, int]{MaxCost: small, Loader: bulkSource{s}})
	require.NoError(t, err)
	running := make(chan struct{}, 3)
	s.beforeLoad = func(ctx context.Context, _ string) error {
		running <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	reader := loading(t, c, "k", Any)
	batch := async(func() (Entry[int], error) {
		_, err := c.LoadMany(t.Context(), []string{"a", "b"})
		return Entry[int]{}, err
	})
	for range 3 {
		<-running
	}
	require.NoError(t, c.Close(t.Context()))
	require.ErrorIs(t, get(t, reader).err, ErrClosed)
	require.ErrorIs(t, get(t, batch).err, ErrClosed)
	idle(t, c)
}

// The Loader does not heed its context. Close gives up on it in time, who waits
// for it need not, and what it returns in the end is not served.
func TestClose_ALoaderThatIgnoresItsContext(t *testing.T) {
	s := newSource()
	s.set("k", 10)
	c, err := New(Options[string, int]{MaxCost: small, Loader: s})
	require.NoError(t, err)
	l := newLatch(t)
	s.beforeLoad = l.hook
	first := loading(t, c, "k", Any)
	l.wait(t)
	second := loading(t, c, "k", Any)
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the second waits too")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = c.Close(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for _, r := range []<-chan result{first, second} {
		require.ErrorIs(t, get(t, r).err, ErrClosed)
	}
	_, err = c.Load(t.Context(), "k")
	require.ErrorIs(t, err, ErrClosed, "it is not joined either")
	l.release()
	idle(t, c)
	missing(t, c, "k", "the cache is closed")
}

// A write runs when the cache closes: Close waits, and it is told to the others.
func TestClose_WaitsForRunningWrites(t *testing.T) {
	s := newSource()
	b := newBus()
	other := calmReplicas(t, 1, s, b)[0]
	c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: calm(b)})
	require.NoError(t, err)
	require.NoError(t, c.Ready(t.Context()))
	s.set("k", 10)
	load(t, other, "k")
	l := newLatch(t)
	s.beforeWrite = l.hook
	writer := async(func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 1, 20) })
	l.wait(t)
	closed := make(chan error, 1)
	go func() { closed <- c.Close(t.Context()) }()
	eventually(t, func() bool { return c.Put("k", 1, 1) == Closed }, "new calls are refused")
	_, err = c.CompareAndSet(t.Context(), "k", 1, 30)
	require.ErrorIs(t, err, ErrClosed)
	select {
	case err := <-closed:
		require.Fail(t, "Close did not wait", err)
	default:
	}
	l.release()
	assert.Equal(t, Version(2), value(t, writer).Version)
	require.NoError(t, <-closed)
	eventually(t, func() bool { _, ok := other.Get("k"); return !ok }, "the other replica was told")
}

// The store does not return in time: Close says so, and the write ends later,
// one way or the other, without harm.
func TestClose_AWriteThatDoesNotEnd(t *testing.T) {
	for name, answer := range map[string]error{"committed": nil, "in doubt": errAnswerLost} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c, err := New(Options[string, int]{MaxCost: small, Shards: 1, Store: s})
				require.NoError(t, err)
				l := newLatch(t)
				s.afterWrite = func(ctx context.Context, key string) error {
					_ = l.hook(ctx, key)
					return answer
				}
				writer := async(func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 0, 10) })
				l.wait(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
				assert.Equal(t, time.Second, time.Since(began))
				l.release()
				r := get(t, writer)
				var uncertain *UncertainError
				if answer == nil {
					require.NoError(t, r.err)
				} else {
					require.ErrorAs(t, r.err, &uncertain)
					_, _, err = uncertain.Wait(t.Context())
					require.ErrorIs(t, err, ErrClosed)
				}
				require.ErrorIs(t, c.Close(t.Context()), context.DeadlineExceeded, "what the first one said")
				missing(t, c, "k", "the cache is closed")
			})
		})
	}
}

// The same with replicas: the write is committed after they could be told. Its
// caller hears that, and the replicas hear no goodbye, so that they notice the
// silence.
func TestClose_AWriteThatEndsTooLateSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), newBus()
		s.set("k", 10)
		other, l := joined(t, s, b)
		c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: b.invalidator()})
		require.NoError(t, err)
		require.NoError(t, c.Ready(t.Context()))
		time.Sleep(2 * testBeat)
		hold(t, other, "k")
		held := newLatch(t)
		s.beforeWrite = held.hook
		writer := async(func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "k", 1, 20) })
		held.wait(t)
		ctx, cancel := context.WithTimeout(t.Context(), testBeat)
		defer cancel()
		require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
		held.release()
		r := get(t, writer)
		require.ErrorIs(t, r.err, ErrNotBroadcast)
		for _, nothing := range []error{ErrClosed, ErrUnavailable, context.DeadlineExceeded} {
			require.NotErrorIs(t, r.err, nothing, "which says that nothing was written")
		}
		assert.EqualValues(t, 2, r.entry.Version, "it is committed all the same")
		time.Sleep((missedBeats + 3) * testBeat)
		require.Len(t, l.of(EventSuspect), 1)
		assert.Contains(t, l.of(EventSuspect)[0].Reason, "silent")
		requireNotServed(t, other, "k")
	})
}

// The transport does not end, and Close gives up: a write that ends then does not
// wait for it.
func TestClose_AWriteOutlivesTheTransport(t *testing.T) {
	s := newSource()
	h := &jammedHint{bus: newBus(), free: make(chan struct{})}
	defer close(h.free)
	inv := calm(h.bus)
	inv.Hint = h
	c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: inv})
	require.NoError(t, err)
	require.NoError(t, c.Ready(t.Context()))
	l := newLatch(t)
	s.afterWrite = l.hook
	writer := async(func() (Entry[int], error) { return c.CompareAndSet(context.Background(), "k", 0, 10) })
	l.wait(t)
	h.stuck.Store(true)
	require.Error(t, c.replica.out.wait(ended(t), c.announce("j", mark{}, 0))) // something is stuck
	require.ErrorIs(t, c.Close(ended(t)), context.Canceled)
	l.release()
	require.ErrorIs(t, get(t, writer).err, ErrNotBroadcast)
}

// ended returns a context that has ended.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// A jammedHint publishes nothing while it is stuck, whatever the context says.
type jammedHint struct {
	*bus
	stuck atomic.Bool
	free  chan struct{}
}

func (h *jammedHint) Publish(ctx context.Context, msg []byte) error {
	if h.stuck.Load() {
		<-h.free
	}
	return h.bus.Publish(ctx, msg)
}

// A write in doubt is settled while the cache closes: the others are told before
// the doubt is over, or hear no goodbye.
func TestClose_WhatADoubtCameToIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), newBus()
		s.set("k", 10)
		other, _ := joined(t, s, b)
		codec := &slowCodec{latch: newLatch(t)}
		c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: b.invalidator(), KeyCodec: codec})
		require.NoError(t, err)
		require.NoError(t, c.Ready(t.Context()))
		time.Sleep(2 * testBeat)
		s.beforeWrite = func(context.Context, string) error { return errAnswerLost }
		_, err = c.CompareAndSet(t.Context(), "k", 1, 20)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		synctest.Wait() // the others know of the doubt
		hold(t, other, "k")
		codec.slow.Store(true)
		s.mu.Lock() // the commit lands
		s.done[uncertain.Op] = s.putLocked("k", row{value: 20})
		s.mu.Unlock()
		codec.latch.wait(t) // it was found, and is about to be told
		closed := make(chan error, 1)
		go func() { closed <- c.Close(t.Context()) }()
		synctest.Wait()
		codec.latch.release()
		err = <-closed
		time.Sleep((missedBeats + 3) * testBeat)
		requireNotServed(t, other, "k")
		_ = err // nil or a DoubtError: either is the truth
	})
}

// A slowCodec takes its time with keys when told to.
type slowCodec struct {
	latch *latch
	slow  atomic.Bool
}

func (k *slowCodec) AppendKey(dst []byte, key string) []byte {
	if k.slow.Load() {
		k.latch.once()
	}
	return append(dst, key...)
}

func (k *slowCodec) ParseKey(b []byte) (string, error) { return string(b), nil }

// A cache that was made and closed leaves no goroutine, used or not, and neither
// does one that could not be made.
func TestClose_LeavesNoGoroutine(t *testing.T) {
	before := len(goroutines())
	s := newSource()
	for i := range 20 {
		c, err := New(Options[string, int]{MaxCost: small, Store: s, Invalidator: calm(newBus())})
		require.NoError(t, err)
		if i%2 == 0 {
			for j := range 2 * small {
				c.Put(fmt.Sprint(j), j, 1)
			}
			_, err = c.Load(t.Context(), "k")
			require.ErrorIs(t, err, ErrNotFound)
		}
		require.NoError(t, c.Close(t.Context()))
		_, err = New(Options[string, int]{MaxCost: small, Invalidator: Invalidator{Name: "n", Hint: noHint{}}})
		require.ErrorIs(t, err, errAnswerLost)
		_, err = New(Options[string, int]{MaxCost: -1})
		require.Error(t, err)
	}
	eventually(t, func() bool { return len(goroutines()) <= before }, "all goroutines end")
}

// A noHint cannot be subscribed to.
type noHint struct{}

func (noHint) Publish(context.Context, []byte) error { return errAnswerLost }

func (noHint) Subscribe(func([]byte), func(string)) (func(), error) { return nil, errAnswerLost }

// What is allowed and probably not meant is said, and what is usual is not.
func TestOptions_Warnings(t *testing.T) {
	b, log, src := newBus(), newMemLog(), newSource()
	for name, c := range map[string]struct {
		o    Options[string, int]
		want []string // how the warnings begin
	}{
		"the zero value":           {Options[string, int]{}, nil},
		"as the README has it":     {Options[string, int]{TTL: time.Hour, Invalidator: b.invalidator()}, nil},
		"within, on a log":         {Options[string, int]{TTL: time.Hour, Invalidator: log.invalidator(), Level: Within(2 * testBeat), OnStale: Fail}, nil},
		"own TTLs":                 {Options[string, int]{EntryTTL: func(string, Entry[int]) time.Duration { return 1 }, Invalidator: b.invalidator()}, nil},
		"no TTL":                   {Options[string, int]{Invalidator: b.invalidator()}, []string{"TTL"}},
		"within less than a beat":  {Options[string, int]{TTL: 1, Invalidator: log.invalidator(), Level: Within(testBeat), MaxStale: testBeat, Store: src}, []string{"Level", "MaxStale"}},
		"within, without a log":    {Options[string, int]{TTL: 1, Invalidator: b.invalidator(), Level: Within(time.Second), OnStale: Fail}, []string{"Level", "OnStale"}},
		"no bound on loads":        {Options[string, int]{MaxLoads: -1, LoadTimeout: -1}, []string{"MaxLoads", "LoadTimeout"}},
		"stale, and all is well":   {Options[string, int]{TTL: 1, StaleIfError: 2, StaleWhileRevalidate: 1, SoftLoadTimeout: 1, MaxStale: 2, Store: src}, nil},
		"nobody is lenient":        {Options[string, int]{TTL: 1, StaleWhileRevalidate: 1, Level: Linearizable}, []string{"StaleWhileRevalidate"}},
		"MaxStale cuts it off":     {Options[string, int]{TTL: 2, StaleIfError: 1, SoftLoadTimeout: 1, MaxStale: 2, Store: src}, []string{"MaxStale"}},
		"the log vouches":          {Options[string, int]{TTL: 1e10, StaleIfError: 1, SoftLoadTimeout: 1, MaxStale: 1e10, Store: src, Invalidator: log.invalidator()}, nil},
		"no soft timeout":          {Options[string, int]{TTL: 1, StaleIfError: 1}, []string{"StaleIfError"}},
		"nothing to audit":         {Options[string, int]{TTL: aloneBound, Audit: &AuditOptions[string, int]{}}, []string{"TTL"}},
		"something to audit":       {Options[string, int]{TTL: aloneBound + 1, Audit: &AuditOptions[string, int]{}}, nil},
		"nobody knows an age":      {Options[string, int]{MaxStale: 1}, []string{"MaxStale"}},
		"the replica lags by more": {Options[string, int]{MaxStale: 1, Loader: src, Store: src, LoaderClass: Lagging(1)}, []string{"MaxStale"}},
		"the replica lags by less": {Options[string, int]{MaxStale: 2, Loader: src, Store: src, LoaderClass: Lagging(1)}, nil},
		"absences outlive entries": {Options[string, int]{TTL: 1, NegativeTTL: 2}, []string{"NegativeTTL"}},
	} {
		got := c.o.Warnings()
		require.Len(t, got, len(c.want), "%s: %q", name, got)
		for i, field := range c.want {
			assert.Regexp(t, "^"+field+" is ", got[i], name)
		}
	}
}

// A cache tells its options with the defaults, and they make another like it.
func TestCache_Options(t *testing.T) {
	book := &logbook{}
	c := newCache(t, Options[string, int]{TTL: time.Minute, Level: Within(time.Second), Logger: book.logger()})
	o := c.Options()
	assert.EqualValues(t, defaultMaxCost, o.MaxCost)
	assert.Equal(t, defaultLoadTimeout, o.LoadTimeout)
	assert.Equal(t, "Within(1s)", o.Level.String())
	assert.Empty(t, o.Warnings())
	for range 2 * logBurst {
		o.Logger.Info("own")
	}
	assert.Len(t, book.of(t, "own"), 2*logBurst, "the limit is the cache's, not its caller's")
	newCache(t, o)
}

func TestOptions_Strings(t *testing.T) {
	assert.Equal(t, "[Any AtLeast(7) Within(2s) After(token) Linearizable]",
		fmt.Sprint([]Level{Any, AtLeast(7), Within(2 * time.Second), After(Token{full: true}), Linearizable}))
	assert.Equal(t, "[Strong Lagging(1s)]", fmt.Sprint([]LoaderClass{Strong, Lagging(time.Second)}))
	assert.Equal(t, "[Reload Fail invalid]", fmt.Sprint([]StalePolicy{Reload, Fail, 7}))
}
