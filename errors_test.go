package tidemark

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every mistake in Options is an *OptionError for its field, and New reports
// all of them at once.
func TestErrors_BadOptions(t *testing.T) {
	type options = Options[string, int]
	load := LoaderFunc[string, int](func(context.Context, string) (int, Version, error) { return 0, 0, ErrNotFound })
	for field, o := range map[string]options{
		"MaxCost":          {MaxCost: -1},
		"ExpectedEntries":  {ExpectedEntries: -1},
		"Shards":           {Shards: 4097},
		"TTL":              {TTL: -1},
		"TTLJitter":        {TTLJitter: 1.1},
		"RefreshAfter":     {TTL: time.Second, RefreshAfter: time.Second, Loader: load},
		"DoubtTimeout":     {DoubtTimeout: -1},
		"MaxDoubts":        {MaxDoubts: -1},
		"Loader":           {Loader: LoaderFunc[string, int](nil)},
		"Store":            {Store: (*source)(nil)},
		"LoaderClass":      {Loader: load, LoaderClass: Lagging(time.Second)},
		"Invalidator":      {Invalidator: Invalidator{Name: "n"}},
		"Invalidator.Name": {Invalidator: Invalidator{Hint: newBus()}},
		"Invalidator.Beat": {Invalidator: Invalidator{Name: "n", Hint: newBus(), Beat: -1}},
	} {
		t.Run(field, func(t *testing.T) {
			_, err := New(o)
			assert.Contains(t, mistakes(err), field, "%v", err)
		})
	}
	for name, o := range map[string]options{
		"TTLJitter NaN":           {TTLJitter: math.NaN()},
		"a lag of zero":           {Loader: load, Store: newSource(), LoaderClass: Lagging(0)},
		"Cost alone":              {Cost: func(string, int) int64 { return 1 }},
		"nothing to refresh from": {RefreshAfter: 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(o)
			assert.NotEmpty(t, mistakes(err))
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, err := New(options{MaxCost: -1, TTL: -1, Shards: -1})
		assert.ElementsMatch(t, []string{"MaxCost", "TTL", "Shards"}, mistakes(err))
	})
	t.Run("keys that may not be comparable", func(t *testing.T) {
		_, err := New(Options[any, int]{})
		assert.Equal(t, []string{"K"}, mistakes(err))
	})
	t.Run("keys that cannot travel", func(t *testing.T) {
		type tenantKey struct {
			Tenant  string
			Account int32
		}
		_, err := New(Options[tenantKey, int]{Invalidator: newBus().invalidator()})
		assert.Equal(t, []string{"KeyCodec"}, mistakes(err))
	})
	t.Run("the zero Options are fine", func(t *testing.T) {
		c, err := New(options{})
		require.NoError(t, err)
		require.NoError(t, c.Close(t.Context()))
	})
}

// mistakes returns the fields of the OptionErrors that err joins.
func mistakes(err error) (fields []string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			fields = append(fields, mistakes(e)...)
		}
		return fields
	}
	var mistake *OptionError
	if errors.As(err, &mistake) {
		fields = append(fields, mistake.Field)
	}
	return fields
}

// Without a Loader or Store the calls that need one say so.
func TestErrors_NoLoaderNoStore(t *testing.T) {
	c := newCache(t, Options[string, int]{})
	ctx := t.Context()
	_, err := c.Load(ctx, "k")
	require.ErrorIs(t, err, ErrNoLoader)
	_, err = c.LoadMany(ctx, []string{"k"})
	require.ErrorIs(t, err, ErrNoLoader)
	_, err = c.Read(ctx, "k", Linearizable)
	require.ErrorIs(t, err, ErrNoLoader)
	_, err = c.CompareAndSet(ctx, "k", 0, 1)
	require.ErrorIs(t, err, ErrNoStore)
	_, err = c.Delete(ctx, "k", 1)
	require.ErrorIs(t, err, ErrNoStore)
	_, err = c.Update(ctx, "k", nil)
	var mistake *OptionError
	require.ErrorAs(t, err, &mistake)
	require.ErrorAs(t, c.Resize(0), &mistake)
}

// A value above MaxCost is refused with a typed error, is not stored, and is
// word of its version all the same.
func TestErrors_TooLarge(t *testing.T) {
	events := make(chan Event, 10)
	s := newSource()
	c := newCache(t, Options[string, int]{
		MaxCost: 100, Cost: func(_ string, v int) int64 { return int64(v) }, Store: s,
		OnEvent: func(e Event) { events <- e },
	})
	s.set("k", 10)
	_, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	o := c.Put("k", 101, 2)
	assert.Equal(t, TooLarge, o)
	require.ErrorIs(t, o.Err(), ErrTooLarge)
	assert.Equal(t, EventTooLarge, (<-events).Kind)
	_, ok := c.Get("k")
	assert.False(t, ok, "the entry is older than the value that was refused")
	assert.Equal(t, TooLarge, c.BeginFill("j").Commit(101, 2))

	s.set("big", 500)
	e, err := c.Load(t.Context(), "big")
	require.NoError(t, err, "a read gets its value all the same")
	assert.Equal(t, 500, e.Value)
	_, ok = c.Get("big")
	assert.False(t, ok)
	e, err = c.CompareAndSet(t.Context(), "big", 1, 600)
	require.NoError(t, err, "and a write is written")
	assert.Equal(t, Version(2), e.Version)
	assert.Equal(t, 600, s.get("big").value)
	assert.Zero(t, c.Len())
}

// After Close every method says so, and reads from memory are misses.
func TestErrors_Closed(t *testing.T) {
	s := newSource()
	s.set("k", 1)
	c, err := New(Options[string, int]{Store: s, Invalidator: newBus().invalidator()})
	require.NoError(t, err)
	ctx := t.Context()
	require.NoError(t, c.Ready(ctx))
	_, err = c.Load(ctx, "k")
	require.NoError(t, err)
	fill := c.BeginFill("k")
	require.NoError(t, c.Close(ctx))
	require.NoError(t, c.Close(ctx), "a second Close")

	_, ok := c.Get("k")
	assert.False(t, ok)
	_, ok = c.GetEntry("k")
	assert.False(t, ok)
	for range c.All() {
		t.Error("All yields an entry of a closed cache")
	}
	_, err = c.Load(ctx, "k")
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.LoadMany(ctx, []string{"k", "j"})
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Update(ctx, "k", func(Entry[int]) (int, error) { return 2, nil })
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.CompareAndSet(ctx, "k", 1, 2)
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Delete(ctx, "k", 1)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, c.Invalidate(ctx, "k", 2), ErrClosed)
	require.ErrorIs(t, c.InvalidateAll(ctx), ErrClosed)
	require.ErrorIs(t, c.Resize(10), ErrClosed)
	require.ErrorIs(t, c.Ready(ctx), ErrClosed)
	assert.Equal(t, Closed, c.Put("k", 1, 2))
	require.ErrorIs(t, c.Put("k", 1, 2).Err(), ErrClosed)
	assert.Equal(t, Closed, fill.Commit(1, 2))
	assert.Equal(t, Closed, c.BeginFill("k").Commit(1, 2))
	_ = c.Stats()
	_ = c.Explain("k")
	assert.Equal(t, 1, s.get("k").value, "nothing was written")
}

// A context that has ended is its own error, wherever something would wait;
// a hit does not look at it.
func TestErrors_CancelledContext(t *testing.T) {
	s := newSource()
	b := newBus()
	c := calmReplicas(t, 1, s, b)[0]
	s.set("k", 1)
	_, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	_, err = c.Load(ctx, "k")
	require.NoError(t, err, "a hit")
	_, err = c.Load(ctx, "j")
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.LoadMany(ctx, []string{"i", "j"})
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.Read(ctx, "k", Linearizable)
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.Update(ctx, "j", func(Entry[int]) (int, error) { return 2, nil })
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.CompareAndSet(ctx, "k", 1, 2)
	require.ErrorIs(t, err, context.Canceled)
	_, err = c.Delete(ctx, "k", 1)
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, row{value: 1, version: 1}, s.get("k"), "nothing was written")

	b.mu.Lock()
	b.refuse = errors.New("down")
	b.mu.Unlock()
	err = c.Invalidate(ctx, "k", 2)
	require.ErrorIs(t, err, ErrNotBroadcast)
	require.ErrorIs(t, err, context.Canceled)
	_, ok := c.Get("k")
	assert.False(t, ok, "the local effect is in force")
	require.ErrorIs(t, c.InvalidateAll(ctx), ErrNotBroadcast)
	b.mu.Lock()
	b.refuse = nil
	b.mu.Unlock()
}

// Errors read well and unwrap to what they carry.
func TestErrors_Text(t *testing.T) {
	cause := errors.New("cause")
	assert.Equal(t, "tidemark: conflict: the store is at version 7", (&ConflictError{Current: 7}).Error())
	assert.Equal(t, "tidemark: conflict: the store has no such key", (&ConflictError{Absent: true}).Error())
	assert.Equal(t, "tidemark: conflict: the store has no such key, as of version 7", (&ConflictError{Current: 7, Absent: true}).Error())
	require.ErrorIs(t, &LoadError{Err: cause}, cause)
	failed := &KeysError[string]{Failed: map[string]error{"a": cause, "b": cause, "c": ErrClosed}}
	assert.Equal(t, "tidemark: keys that failed: 3: cause; tidemark: closed", failed.Error())
	assert.ElementsMatch(t, []error{cause, ErrClosed}, failed.Unwrap())
	uncertain := &UncertainError{Err: cause}
	require.ErrorIs(t, uncertain, cause)
	_, _, err := uncertain.Wait(t.Context())
	require.ErrorIs(t, err, ErrClosed, "an UncertainError that no cache made has nobody to ask")
	assert.Equal(t, "tidemark: option X is bad", (&OptionError{"X", "is bad"}).Error())
	assert.Equal(t, "applied", Applied.String())
	assert.Equal(t, "invalid", Outcome(99).String())
	require.NoError(t, Stale.Err())
	assert.Equal(t, "suspect", EventSuspect.String())
}

// The Logger hears what an operator should know, at a level that says whether to
// get up for it, and never a key or a value.
func TestLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), newBus()
		var out bytes.Buffer
		c := newCache(t, Options[string, int]{
			MaxCost: small, Store: s, Invalidator: b.invalidator(), DoubtTimeout: time.Nanosecond,
			Logger: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})),
		})
		s.set("secret", 987654321987)
		require.NoError(t, c.Ready(t.Context()))
		b.setFault(func(int, []byte) [][]byte { return nil })
		time.Sleep((missedBeats + 3) * testBeat)
		b.setFault(nil)
		time.Sleep(2 * testBeat)
		s.beforeWrite = func(context.Context, string) error { return errAnswerLost }
		_, err := c.CompareAndSet(t.Context(), "secret", 1, 987654321987)
		require.ErrorAs(t, err, new(*UncertainError))
		time.Sleep(time.Second)
		c.suspect("a reason")
		s.beforeWrite = func(context.Context, string) error { panic("boom") }
		_, err = c.CompareAndSet(t.Context(), "secret", 1, 987654321987)
		require.Error(t, err)
		time.Sleep(time.Second)
		synctest.Wait()
		said := out.String()
		for _, line := range []string{
			`level=WARN msg="tidemark: cut off from the replicas"`, `level=INFO msg="tidemark: hears the replicas"`,
			`level=WARN msg="tidemark: a write is in doubt"`, `level=INFO msg="tidemark: a write in doubt is settled" committed=false`,
			`level=WARN msg="tidemark: messages may be missing" reason="a reason"`, `level=ERROR msg="tidemark: a callback panicked"`,
		} {
			assert.Contains(t, said, line)
		}
		assert.NotContains(t, said, "secret")
		assert.NotContains(t, said, "987654321987")
	})
}
