package integration

import (
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// logged is the invalidator of these tests on a stream.
func logged(nc *nats.Conn) tidemark.Invalidator {
	o := with(small())
	o.Beat, o.Stream.NoHint = natsBeat, true
	return tidemark.NATS(nc, o)
}

// nearAndFar returns two replicas on a stream of s, once they hear each other. The
// second one is at the end of the cable.
func nearAndFar(t testing.TB, l *ledger, s *server.Server) (near, far *replica, w *cable) {
	t.Helper()
	w = newCable(t, s)
	near = newReplica(t, l, logged(dial(t, s.ClientURL())))
	far = newReplica(t, l, logged(dial(t, w.url())))
	acquainted(t, near, far)
	return near, far, w
}

// A timeline knows which version of a key was acknowledged when.
type timeline struct {
	mu   sync.Mutex // guards everything below
	acks []acknowledgement
}

type acknowledgement struct {
	at      time.Time
	version tidemark.Version
}

func (l *timeline) add(v tidemark.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks = append(l.acks, acknowledgement{time.Now(), v})
}

// newest returns the newest version that was acknowledged before at.
func (l *timeline) newest(at time.Time) tidemark.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.acks), func(i int) bool { return !l.acks[i].at.Before(at) })
	if i == 0 {
		return 0
	}
	return l.acks[i-1].version
}

// TestI6_WithinIsNeverBeyondTheBound cuts, freezes and restores the link of a
// replica that reads Within a bound while another one writes: no read misses what
// was acknowledged longer ago than that before it began, and at Any the Age of
// what is served is never less than how stale it is.
func TestI6_WithinIsNeverBeyondTheBound(t *testing.T) {
	const bound = 400 * time.Millisecond
	l := newLedger()
	writer, reader, w := nearAndFar(t, l, natsServer(t, streaming(t)))
	l.set("k", 0)
	var acks timeline
	acks.add(1)
	var wg sync.WaitGroup
	var over atomic.Bool
	wg.Go(func() {
		for !over.Load() {
			acks.add(add(t, writer, "k").Version)
			time.Sleep(rand.N(20 * time.Millisecond))
		}
	})
	var bounded, old atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !over.Load() {
				began := time.Now()
				e, err := reader.Read(t.Context(), "k", tidemark.Within(bound))
				if !assert.NoError(t, err) {
					return
				}
				bounded.Add(1)
				if want := acks.newest(began.Add(-bound)); !assert.GreaterOrEqual(t, e.Version, want, "Within, of age %v", e.Age) {
					return
				}
				began = time.Now()
				if e, ok := reader.GetEntry("k"); ok {
					want := acks.newest(began.Add(-e.Age))
					if e.Age > bound {
						old.Add(1)
					}
					if !assert.GreaterOrEqual(t, e.Version, want, "at Any, of age %v", e.Age) {
						return
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 3 {
		time.Sleep(2 * natsBeat)
		w.refuses.Store(true)
		w.cut()
		time.Sleep(2 * bound)
		w.refuses.Store(false)
		time.Sleep(4 * natsBeat)
		w.stalled.Store(true)
		time.Sleep(2 * bound)
		w.stalled.Store(false)
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d reads within %v; at Any %d older ones", bounded.Load(), bound, old.Load())
	assert.Positive(t, bounded.Load())
	healed(t, l, writer, reader)
}

// TestLog_ACleanReconnectKeepsTheEntries cuts a replica off and lets it back:
// what has not changed meanwhile is served throughout, and needs no load.
func TestLog_ACleanReconnectKeepsTheEntries(t *testing.T) {
	l := newLedger()
	near, far, w := nearAndFar(t, l, natsServer(t, streaming(t)))
	l.set("kept", 1)
	l.set("changed", 1)
	holds(t, "kept", far)
	holds(t, "changed", far)
	loads := l.loadCount()

	w.refuses.Store(true)
	w.cut()
	within(t, func() bool { return len(far.of(tidemark.EventLogDown)) > 0 }, "nobody noticed")
	v := add(t, near, "changed").Version
	e, ok := far.GetEntry("changed")
	require.True(t, ok && e.Version < v, "what it has not heard of, it serves at Any")
	within(t, func() bool { e, _ := far.GetEntry("changed"); return e.Age > 2*natsBeat }, "and says how old that may be")
	loads += l.loadCount() - loads // of the write
	_, err := far.Read(t.Context(), "kept", tidemark.Within(natsBeat))
	require.NoError(t, err)
	assert.Equal(t, loads+1, l.loadCount(), "nothing vouches for it")
	e, ok = far.GetEntry("kept")
	require.True(t, ok)

	w.refuses.Store(false)
	within(t, func() bool { return len(far.of(tidemark.EventLogUp)) > 0 }, "it does not go on")
	within(t, func() bool { e, ok := far.GetEntry("changed"); return !ok || e.Version >= v }, "what it had missed is not heard")
	kept, ok := far.GetEntry("kept")
	require.True(t, ok)
	assert.Equal(t, e.Version, kept.Version)
	assert.Empty(t, far.of(tidemark.EventCutOff))
	assert.Equal(t, loads+1, l.loadCount(), "no entry was loaded again")
	healed(t, l, near, far)
}

// TestS49_TheStreamIsMadeAnewUnderCaches deletes the stream while a replica is
// away, and has another one made: nothing from before is served unconfirmed.
func TestS49_TheStreamIsMadeAnewUnderCaches(t *testing.T) {
	l := newLedger()
	s := natsServer(t, streaming(t))
	near, far, w := nearAndFar(t, l, s)
	l.set("k", 1)
	holds(t, "k", far)
	w.refuses.Store(true)
	w.cut()
	within(t, func() bool { return len(far.of(tidemark.EventLogDown)) > 0 }, "nobody noticed")
	v := add(t, near, "k").Version // into the stream that will be gone
	js := admin(t, dial(t, s.ClientURL()))
	require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
	within(t, func() bool {
		return near.Stats().Fresh >= 0 && near.Stats().Fresh < 2*natsBeat && len(near.of(tidemark.EventRejoined)) > 1
	},
		"the stream is not made anew")
	w.refuses.Store(false)
	within(t, func() bool { return len(far.of(tidemark.EventCutOff)) > 0 }, "the other stream is taken for the old one")
	ready(t, far)
	fresh(t, far, "k", v)
	healed(t, l, near, far)
}

// TestAfter_ASessionMovesToAnotherReplica writes here and reads there.
func TestAfter_ASessionMovesToAnotherReplica(t *testing.T) {
	l := newLedger()
	r := joined(t, l, natsServer(t, streaming(t)), 2, logged)
	l.set("k", 0)
	for range 50 {
		holds(t, "k", r[1])
		v := add(t, r[0], "k").Version
		text, err := r[0].Token().MarshalText()
		require.NoError(t, err)
		var token tidemark.Token
		require.NoError(t, token.UnmarshalText(text))
		e, err := r[1].Read(t.Context(), "k", tidemark.After(token))
		require.NoError(t, err)
		require.GreaterOrEqual(t, e.Version, v)
	}
	within(t, func() bool { // in the end memory is enough
		loads := l.loadCount()
		_, err := r[1].Read(t.Context(), "k", tidemark.After(r[0].Token()))
		require.NoError(t, err)
		return l.loadCount() == loads
	}, "what was written is never applied")
}
