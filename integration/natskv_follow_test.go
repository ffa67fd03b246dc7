package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/natskv"
)

// A listener is a cache on a bucket that follows it, and has no other way to hear
// of changes.
type listener struct {
	*tidemark.Cache[string, string]
	store *natskv.Store[string, string]
	alls  atomic.Int64
	keys  atomic.Int64
	ended chan error // holds what Follow has returned
	stop  context.CancelFunc
}

// InvalidateAll counts.
func (l *listener) InvalidateAll(ctx context.Context) error {
	l.alls.Add(1)
	return l.Cache.InvalidateAll(ctx)
}

// Invalidate counts.
func (l *listener) Invalidate(ctx context.Context, key string, v tidemark.Version) error {
	l.keys.Add(1)
	return l.Cache.Invalidate(ctx, key, v)
}

func newListener(t *testing.T, nc *nats.Conn, bucket string) *listener {
	t.Helper()
	store := openBucket(t, nc, bucket)
	cache, err := tidemark.New(tidemark.Options[string, string]{Store: store, LoadTimeout: 5 * time.Second})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{Cache: cache, store: store, ended: make(chan error, 1), stop: stop}
	var wg sync.WaitGroup
	wg.Go(func() { l.ended <- store.Follow(ctx, l) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
		assert.NoError(t, cache.Close(context.Background()))
	})
	within(t, func() bool { return l.alls.Load() > 0 }, "does not begin to follow")
	return l
}

// has waits until the cache has a value of a key in memory.
func (l *listener) has(t *testing.T, key, value string) {
	t.Helper()
	within(t, func() bool {
		e, err := l.Load(soon(t), key)
		if err != nil || e.Value != value {
			return false
		}
		got, ok := l.Get(key)
		return ok && got == value
	}, "%q is not %q", key, value)
}

// TestFollow_OthersAreHeard lets a cache hear who does not know of it: another
// cache, and other clients of the bucket in all their ways.
func TestFollow_OthersAreHeard(t *testing.T) {
	t.Parallel()
	nc, kv, _ := oneServer(t)
	a, b := newListener(t, nc, kv.Bucket()), newListener(t, nc, kv.Bucket())
	_, err := a.Update(soon(t), "k", func(tidemark.Entry[string]) (string, error) { return "1", nil })
	require.NoError(t, err)
	a.has(t, "k", "1")
	b.has(t, "k", "1")
	gone := func(what string) {
		t.Helper()
		within(t, func() bool { _, in := a.Get("k"); return !in }, "does not hear of %s", what)
		within(t, func() bool { _, in := b.Get("k"); return !in }, "does not hear of %s", what)
	}
	for i, change := range []func(key string) error{
		func(key string) error { _, err := kv.Put(soon(t), key, []byte("0")); return err },
		func(key string) error { return kv.Delete(soon(t), key) },
		func(key string) error { return kv.Purge(soon(t), key) },
	} {
		require.NoError(t, change("k"))
		gone(fmt.Sprint("change ", i))
		value := fmt.Sprint("after ", i)
		_, err := kv.Put(soon(t), "k", []byte(value))
		require.NoError(t, err)
		a.has(t, "k", value)
		b.has(t, "k", value)
	}
	for _, odd := range []string{"other", "no=key", "a=41", "_own.thing"} {
		_, err := kv.Put(soon(t), odd, []byte("x")) // of which only one is a key of the cache
		require.NoError(t, err)
	}
	a.has(t, "other", "x")
	_, in := a.Get("k")
	assert.True(t, in || a.alls.Load() > 1, "nobody has changed it") // more than once: this machine has slept

	// The own writes come back and are not taken for changes.
	heard := a.keys.Load()
	_, err = a.Update(soon(t), "own", func(tidemark.Entry[string]) (string, error) { return "mine", nil })
	require.NoError(t, err)
	within(t, func() bool { return a.keys.Load() > heard }, "the own write is not heard")
	if got, ok := a.Get("own"); a.alls.Load() == 1 {
		assert.True(t, ok)
		assert.Equal(t, "mine", got)
	}
}

// TestFollow_NothingIsMissedAcrossCuts cuts the link again and again while others
// write. While it is down nothing from before is served; at the end nothing is
// wrong.
func TestFollow_NothingIsMissedAcrossCuts(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	sound := dial(t, s.ClientURL(), quiet)
	kv := newBucket(t, sound)
	link := newCable(t, s)
	l := newListener(t, dial(t, link.url(), quiet), kv.Bucket())
	const keys = 50
	name := func(i int) string { return fmt.Sprint("k", i%keys) }
	for i := range keys {
		_, err := kv.Put(soon(t), name(i), []byte("0"))
		require.NoError(t, err)
		l.has(t, name(i), "0")
	}
	for round, f := range []func(){
		link.cut,
		func() { link.refuses.Store(true); link.cut() },
		func() { link.hole.Store(true) },
		func() { link.deaf.Store(true) },
		func() { link.stalled.Store(true) },
	} {
		alls := l.alls.Load()
		f()
		for i := range 3 * keys {
			_, err := kv.Put(soon(t), name(i), []byte(fmt.Sprint(round, " ", i)))
			require.NoError(t, err)
		}
		eventually(t, func() bool { return l.alls.Load() > alls }, "round %d: silence is not noticed", round)
		for i := range keys {
			got, in := l.Get(name(i))
			require.False(t, in && !strings.HasPrefix(got, fmt.Sprint(round, " ")), "round %d: %q from before is served", round, got)
		}
		link.mend()
		for i := 2 * keys; i < 3*keys; i++ {
			want := fmt.Sprint(round, " ", i)
			eventually(t, func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				e, err := l.Load(ctx, name(i))
				return err == nil && e.Value == want
			}, "round %d: %q is not %q", round, name(i), want)
		}
	}
	// It hears again, and key by key.
	before := l.keys.Load()
	_, err := kv.Put(soon(t), "k0", []byte("last"))
	require.NoError(t, err)
	eventually(t, func() bool { return l.keys.Load() > before }, "does not follow any more")
	l.has(t, "k0", "last")
}

// TestFollow_ASlowSinkMissesNothing has a sink that takes its time, while more is
// written than the bucket keeps.
func TestFollow_ASlowSinkMissesNothing(t *testing.T) {
	t.Parallel()
	nc, kv, s := oneServer(t)
	sink := &slowSink{seen: map[string]tidemark.Version{}, began: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx, sink) }()
	<-sink.began
	js := admin(t, nc)
	acks := map[string]jetstream.PubAckFuture{}
	for i := range 3000 {
		key := fmt.Sprint("k", i%40)
		ack, err := js.PublishAsync("$KV."+kv.Bucket()+"."+key, []byte("x"))
		require.NoError(t, err)
		acks[key] = ack
	}
	last := map[string]uint64{}
	for key, future := range acks {
		select {
		case ack := <-future.Ok():
			last[key] = ack.Sequence
		case err := <-future.Err():
			require.NoError(t, err)
		}
	}
	eventually(t, func() bool {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		for key, v := range last {
			if sink.seen[key] < tidemark.Version(v) && sink.alls < 2 {
				return false
			}
		}
		return true
	}, "changes are missed")
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
}

type slowSink struct {
	mu    sync.Mutex // guards everything below
	seen  map[string]tidemark.Version
	alls  int
	began chan struct{}
}

func (s *slowSink) Invalidate(_ context.Context, key string, v tidemark.Version) error {
	time.Sleep(200 * time.Microsecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[key] = max(s.seen[key], v)
	return nil
}

func (s *slowSink) InvalidateAll(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alls++; s.alls == 1 {
		close(s.began)
	}
	return nil
}

// TestFollow_Ends returns when its context ends, when the sink fails, and when the
// bucket is another, of which it tells the sink first.
func TestFollow_Ends(t *testing.T) {
	t.Parallel()
	nc, kv, _ := oneServer(t)
	l := newListener(t, nc, kv.Bucket())
	l.stop()
	require.ErrorIs(t, <-l.ended, context.Canceled)

	closed := newListener(t, nc, kv.Bucket())
	require.NoError(t, closed.Close(context.Background()))
	_, err := kv.Put(soon(t), "k", nil)
	require.NoError(t, err)
	require.ErrorIs(t, <-closed.ended, tidemark.ErrClosed)

	l = newListener(t, nc, kv.Bucket())
	makeAnew(t, nc, kv.Bucket())
	require.ErrorIs(t, <-l.ended, natskv.ErrRecreated)
	assert.GreaterOrEqual(t, l.alls.Load(), int64(2))
}

// TestFollow_WithAPublisher is one process that tells caches which hear each other
// over NATS.
func TestFollow_WithAPublisher(t *testing.T) {
	nc, kv, s := oneServer(t)
	inv := core(nc)
	cache, err := tidemark.New(tidemark.Options[string, string]{Store: s, Invalidator: inv})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
	require.NoError(t, cache.Ready(soon(t)))
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: inv})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx, p) }()
	t.Cleanup(func() {
		stop()
		assert.ErrorIs(t, <-ended, context.Canceled)
		assert.NoError(t, p.Close(context.Background()))
	})
	within(t, func() bool { return cache.Stats().Received > 0 }, "the publisher is not heard")
	for i := range 300 {
		_, err := admin(t, nc).PublishAsync("$KV."+kv.Bucket()+".k"+fmt.Sprint(i%3), []byte(fmt.Sprint(i)))
		require.NoError(t, err)
	}
	for i := 297; i < 300; i++ {
		within(t, func() bool {
			e, err := cache.Load(soon(t), fmt.Sprint("k", i%3))
			return err == nil && e.Value == fmt.Sprint(i)
		}, "not heard")
	}
}

// TestFollow_OnThree lets the stream's leader die under a follower.
func TestFollow_OnThree(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	kv := newBucket(t, dial(t, c.at(0), quiet), onThreeServers)
	x := c.leaderOf(kv)
	y, z := c.others(x)
	l := newListener(t, dial(t, c.at(y), quiet), kv.Bucket())
	writer, err := admin(t, dial(t, c.at(z), quiet)).KeyValue(soon(t), kv.Bucket())
	require.NoError(t, err)
	put := func(value string) {
		t.Helper()
		eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := writer.Put(ctx, "k", []byte(value))
			return err == nil
		}, "%q is not written", value)
	}
	shows := func(value string) {
		t.Helper()
		eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			e, err := l.Load(ctx, "k")
			return err == nil && e.Value == value
		}, "%q is not heard of", value)
	}
	put("before")
	shows("before")
	c.servers[x].kill()
	put("after")
	shows("after")
	put("later")
	shows("later")
}
