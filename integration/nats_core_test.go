package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// Tests named S40 to S60 are the failures of those numbers in the design's
// catalogue; P1 to P30 are its findings about nats.go and nats-server.

func TestNATS_ChangesAreHeard(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3} {
		t.Run(fmt.Sprint(n, " replicas"), func(t *testing.T) {
			l := newLedger()
			l.set("k", 0)
			all := joined(t, l, natsServer(t, nil), n, calm)
			var took []time.Duration
			for i := range 100 {
				holds(t, "k", all...)
				writer := all[i%n]
				began := time.Now()
				v := add(t, writer, "k").Version
				for _, r := range all {
					within(t, func() bool { e, ok := r.GetEntry("k"); return !ok || e.Version >= v }, "not heard")
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("a write until no replica serves the state before: p50 %v, p99 %v", took[50], took[99])

			_, err := all[0].Delete(t.Context(), "k", l.get("k").version)
			require.NoError(t, err)
			for _, r := range all {
				within(t, func() bool { e, ok := r.GetEntry("k"); return !ok || e.Absent }, "a deletion is not heard")
			}
			for i := range 20 {
				key := fmt.Sprint(i)
				l.set(key, 1)
				holds(t, key, all...)
				l.set(key, 2)
			}
			require.NoError(t, all[1].InvalidateAll(t.Context()))
			for _, r := range all {
				within(t, func() bool { return r.Len() == 0 }, "InvalidateAll is not heard")
			}
			for _, r := range all {
				assert.Empty(t, r.of(tidemark.EventCutOff))
			}
			healed(t, l, all...)
		})
	}
}

// TestS40_PingAnsweredByTheNextConnection loses a message with its link, and
// lets the ping that follows it go through a new one.
//
// P7: Publish of nats.go returns nil for bytes that a broken link then throws
// away. We rely on a ping after each message, and on noticing that it was
// answered on another connection than the message was written to.
func TestS40_PingAnsweredByTheNextConnection(t *testing.T) {
	s := natsServer(t, nil)
	c := newCable(t, s)
	var heard atomic.Int64
	ear := dial(t, s.ClientURL())
	_, err := ear.Subscribe(tidemark.NATSSubject(natsCache), func(*nats.Msg) { heard.Add(1) })
	require.NoError(t, err)
	require.NoError(t, ear.Flush())
	nc := dial(t, c.url(), quiet)
	hint := core(nc).Hint

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c.hole.Store(true)
	err = hint.Publish(&pausing{Context: ctx, pause: func() {
		time.Sleep(50 * time.Millisecond) // until the message is in the hole
		c.cut()
		c.hole.Store(false)
		within(t, func() bool { return nc.Stats().Reconnects > 0 && nc.IsConnected() }, "the link does not come back")
	}}, []byte("lost"))
	require.Error(t, err)
	require.NoError(t, hint.Publish(ctx, []byte("once more")))
	within(t, func() bool { return heard.Load() == 1 }, "%d messages heard, want the second", heard.Load())
}

// A pausing is a context that lets something happen when nats.go looks at it,
// which it does between writing the message and writing the ping.
type pausing struct {
	context.Context
	pause func()
	once  sync.Once
}

func (p *pausing) Deadline() (time.Time, bool) {
	p.once.Do(p.pause)
	return p.Context.Deadline()
}

// TestS40_PublishReturnsNilOnlyForWhatTheServerHas breaks many links under many
// publishers.
func TestS40_PublishReturnsNilOnlyForWhatTheServerHas(t *testing.T) {
	s := natsServer(t, nil)
	var heard sync.Map
	ear := dial(t, s.ClientURL())
	_, err := ear.Subscribe(tidemark.NATSSubject(natsCache), func(m *nats.Msg) { heard.Store(string(m.Data), true) })
	require.NoError(t, err)
	require.NoError(t, ear.Flush())

	// Several publishers, so that the message of one is written before its ping
	// is, together with the ping of another.
	d := &brittleDialer{}
	hint := core(dial(t, s.ClientURL(), nats.SetCustomDialer(d), quiet, nats.ReconnectWait(time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(1<<20))).Hint
	const publishers, breaks = 16, 300
	var accepted [publishers][]string
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := 0; d.broken.Load() < breaks; i++ {
				msg := fmt.Sprint("message ", p, "/", i)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				if hint.Publish(ctx, []byte(msg)) == nil {
					accepted[p] = append(accepted[p], msg)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.NoError(t, ear.Flush())
	all := slices.Concat(accepted[:]...)
	require.NotEmpty(t, all)
	lost := 0
	for _, msg := range all {
		if _, ok := heard.Load(msg); !ok {
			lost++
		}
	}
	t.Logf("%d accepted, %d links broken", len(all), d.broken.Load())
	require.Zero(t, lost, "messages were accepted and lost")
}

// A brittleDialer dials connections of which each breaks at the tenth write of
// a message: it is lost, and whatever is published next finds a new connection.
type brittleDialer struct{ broken atomic.Int64 }

func (d *brittleDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &brittleConn{Conn: c, dialer: d}, nil
}

type brittleConn struct {
	net.Conn
	dialer *brittleDialer
	writes int
}

func (c *brittleConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("PUB tidemark")) {
		if c.writes++; c.writes == 10 {
			c.dialer.broken.Add(1)
			_ = c.Conn.Close()
			time.Sleep(time.Millisecond) // so that the reader of nats.go notices it first
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

// TestS40_LostOnTheLink cuts the writer's link under load. What was lost shows
// as a gap in its numbers, or its retry arrives.
func TestS40_LostOnTheLink(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	w := newCable(t, s)
	writer := newReplica(t, l, core(dial(t, w.url())))
	reader := newReplica(t, l, core(dial(t, s.ClientURL())))
	acquainted(t, writer, reader)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for g := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprint(g, "/", i%50)
				add(t, writer, key)
				_, err := reader.Load(t.Context(), key)
				assert.NoError(t, err)
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 15 {
		time.Sleep(100 * time.Millisecond)
		w.cut()
	}
	stop()
	wg.Wait()
	assert.NotEmpty(t, writer.of(tidemark.EventCutOff))
	healed(t, l, writer, reader)
}

// TestS41_SlowConsumer stalls a replica's handler until nats.go drops messages.
//
// P9: nats.go drops them silently, with one report for the first of them, and
// the connection stays CONNECTED. We rely on the subscription's status, and on
// the gap in the numbers.
func TestS41_SlowConsumer(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	writer := newReplica(t, l, core(dial(t, s.ClientURL())))
	nc := dial(t, s.ClientURL())
	inv := core(nc)
	hint := &stallingHint{Hint: inv.Hint, stalled: make(chan struct{}), goOn: make(chan struct{}), slow: make(chan struct{})}
	inv.Hint = hint
	slow := newReplica(t, l, inv)
	acquainted(t, writer, slow)
	l.set("k", 1)
	holds(t, "k", writer, slow)

	hint.stall.Store(true)
	<-hint.stalled
	flood(t, s, 80<<20) // more than the 64 MiB that may wait for a handler
	lost := add(t, writer, "k").Version
	within(t, func() bool { return nc.LastError() == nats.ErrSlowConsumer }, "nothing was dropped")
	assert.True(t, nc.IsConnected())
	close(hint.goOn)
	within(t, func() bool { return len(slow.of(tidemark.EventCutOff)) > 0 }, "nobody noticed")
	select { // on a busy machine the own hello may have been missed first, so no event need say this
	case <-hint.slow:
	case <-time.After(patience):
		require.FailNow(t, "not by the subscription's status")
	}
	fresh(t, slow, "k", lost)
	healed(t, l, writer, slow)
	holds(t, "k", slow)
	assert.NotZero(t, slow.Stats().Foreign)
}

// A stallingHint holds up its receiver once, when told to, and notes that its
// transport has called itself a slow consumer.
type stallingHint struct {
	tidemark.Hint
	stall         atomic.Bool
	stalled, goOn chan struct{}
	slow          chan struct{} // closed at the first report
	reported      sync.Once
}

func (h *stallingHint) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	return h.Hint.Subscribe(func(msg []byte) {
		if h.stall.CompareAndSwap(true, false) {
			close(h.stalled)
			<-h.goOn
		}
		receive(msg)
	}, func(reason string) {
		if reason == "slow consumer" {
			h.reported.Do(func() { close(h.slow) })
		}
		lost(reason)
	})
}

// flood publishes that many bytes of another cache's messages on the subject.
func flood(t testing.TB, s *server.Server, size int) {
	t.Helper()
	m := &wire.Message{Kind: wire.KindInvalidate, CacheID: 1, Origin: 1, Seq: 1}
	for range 15 {
		m.Entries = append(m.Entries, wire.Entry{Key: make([]byte, 16<<10), Version: 1})
	}
	b, err := wire.Append(nil, m)
	require.NoError(t, err)
	nc := dial(t, s.ClientURL())
	for range size / len(b) {
		require.NoError(t, nc.Publish(tidemark.NATSSubject(natsCache), b))
	}
	require.NoError(t, nc.Flush())
}

// TestS42_CutOffAndBack resets a replica's link, keeps it down for a while, and
// lets it up again.
func TestS42_CutOffAndBack(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	w := newCable(t, s)
	far := newReplica(t, l, core(dial(t, w.url())))
	near := newReplica(t, l, core(dial(t, s.ClientURL())))
	acquainted(t, far, near)
	for i := range 10 {
		l.set(fmt.Sprint(i), 0)
		holds(t, fmt.Sprint(i), far, near)
	}
	before := far.Stats().Suspicions

	w.refuses.Store(true)
	w.cut()
	within(t, func() bool { return far.Stats().CutOff }, "the cut was not noticed")
	within(t, func() bool { return len(far.of(tidemark.EventCutOff)) > 0 && far.Stats().Suspicions > before }, "nor told")
	for i := range 10 {
		key := fmt.Sprint(i)
		v := add(t, near, key).Version
		_, ok := far.Get(key)
		require.False(t, ok, "something is served from memory")
		loads := l.loadCount()
		e, err := far.Load(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, v, e.Version)
		require.Equal(t, loads+1, l.loadCount())
		_, ok = far.Get(key)
		require.False(t, ok, "what was loaded while cut off is served")
	}
	mine := add(t, far, "0") // which nobody can be told of yet
	ctx, cancel := context.WithTimeout(t.Context(), 2*natsBeat)
	defer cancel()
	require.ErrorIs(t, far.Invalidate(ctx, "1", l.set("1", 100)), tidemark.ErrNotBroadcast)
	require.True(t, far.Stats().CutOff)

	loads := l.loadCount()
	w.refuses.Store(false)
	ready(t, far)
	within(t, func() bool { return len(far.of(tidemark.EventRejoined)) >= 2 }, "nobody was told that it is back")
	for i := range 10 {
		e, err := far.Load(t.Context(), fmt.Sprint(i))
		require.NoError(t, err)
		require.Equal(t, l.get(fmt.Sprint(i)).version, e.Version)
	}
	assert.GreaterOrEqual(t, l.loadCount(), loads+10, "what was loaded while cut off is suspect")
	within(t, func() bool { e, ok := near.GetEntry("0"); return !ok || e.Version >= mine.Version }, "what waited does not arrive")
	healed(t, l, far, near)
}

// TestS42_CallbacksThatComeLate blocks the callbacks that the application has
// set on the connection.
//
// P8: they share one goroutine, so a slow one delays all that follow, past
// messages from after the gap. We rely on none of them.
func TestS42_CallbacksThatComeLate(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, nil)
	w := newCable(t, s)
	release := make(chan struct{})
	defer close(release)
	block := func(*nats.Conn) { <-release }
	far := newReplica(t, l, calm(dial(t, w.url(),
		nats.DisconnectErrHandler(func(nc *nats.Conn, _ error) { block(nc) }),
		nats.ReconnectHandler(block), nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, _ error) { block(nc) }))))
	near := newReplica(t, l, core(dial(t, s.ClientURL())))
	acquainted(t, far, near)
	l.set("k", 1)
	for range 3 {
		holds(t, "k", far, near)
		cuts := len(far.of(tidemark.EventCutOff))
		w.refuses.Store(true)
		w.cut()
		began := time.Now()
		within(t, func() bool { return len(far.of(tidemark.EventCutOff)) > cuts }, "the cut was not noticed")
		t.Logf("noticed after %v", time.Since(began))
		assert.NotContains(t, far.of(tidemark.EventCutOff)[cuts], "hello", "only by its silence")
		v := add(t, near, "k").Version
		w.refuses.Store(false)
		ready(t, far)
		fresh(t, far, "k", v)
	}
	healed(t, l, far, near)
}

// TestS43_HalfOpenLink swallows everything in both directions.
//
// P10: publishing goes on returning nil and the connection stays CONNECTED
// until pings go unanswered, which takes seconds at best. We rely on our own
// hello, which then does not come back.
func TestS43_HalfOpenLink(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	w := newCable(t, s)
	far := newReplica(t, l, core(dial(t, w.url(), nats.PingInterval(time.Minute)))) // so that nats.go does not notice
	near := newReplica(t, l, core(dial(t, s.ClientURL())))
	acquainted(t, far, near)
	l.set("k", 1)
	holds(t, "k", far, near)

	w.hole.Store(true)
	began := time.Now()
	v := add(t, near, "k").Version
	within(t, func() bool { return far.Stats().CutOff }, "nobody noticed")
	took := time.Since(began)
	t.Logf("noticed after %v, %.1f beats", took, float64(took)/float64(natsBeat))
	within(t, func() bool { return len(far.of(tidemark.EventCutOff)) > 0 }, "nobody was told")
	assert.Contains(t, far.of(tidemark.EventCutOff)[0], "own hello")
	_, ok := far.Get("k")
	require.False(t, ok)

	w.hole.Store(false)
	w.cut() // as a middle box does that has forgotten the connection
	healed(t, l, far, near)
	fresh(t, far, "k", v)
}

// TestS44_ConnectionThatGivesUp uses settings under which nats.go closes the
// connection for good.
//
// P12: that is the default after 60 attempts. NATSConnectOptions try for ever;
// with other settings the cache must not serve on.
func TestS44_ConnectionThatGivesUp(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	closed := make(chan struct{})
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(1), nats.ReconnectWait(time.Millisecond),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	r := newReplica(t, l, core(nc))
	ready(t, r)
	l.set("k", 1)
	holds(t, "k", r)
	s.Shutdown()
	<-closed
	l.set("k", 2)
	within(t, func() bool { return r.Stats().CutOff }, "nobody noticed")
	_, ok := r.Get("k")
	require.False(t, ok)
	e, err := r.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, 2, e.Value)
	time.Sleep(3 * natsBeat)
	assert.True(t, r.Stats().CutOff, "and stays so")
}

// TestS44_ConnectOptions reads the settings that the comment at
// NATSConnectOptions promises.
func TestS44_ConnectOptions(t *testing.T) {
	o := nats.GetDefaultOptions()
	for _, set := range tidemark.NATSConnectOptions() {
		require.NoError(t, set(&o))
	}
	assert.Equal(t, -1, o.MaxReconnect, "P12: the default gives up for good")
	assert.Equal(t, -1, o.ReconnectBufSize, "nothing is published into the void")
	assert.True(t, o.RetryOnFailedConnect)
	assert.True(t, o.AllowReconnect)
	assert.LessOrEqual(t, o.PingInterval*time.Duration(o.MaxPingsOut+1), 6*time.Second, "P10: default 6 minutes")
	assert.LessOrEqual(t, o.FlusherTimeout, 2*time.Second, "P11: default 1 minute")
	assert.LessOrEqual(t, o.ReconnectWait+o.ReconnectJitter, 200*time.Millisecond)
	assert.False(t, o.NoEcho, "P13")
}

// A carrier is one of the two transports, for tests of what travels on both.
type carrier struct {
	subject string
	options tidemark.NATSOptions
}

// with returns the carrier's invalidator on nc, with another beat.
func (c *carrier) with(beat time.Duration) func(*nats.Conn) tidemark.Invalidator {
	o := c.options
	o.Beat = beat
	return func(nc *nats.Conn) tidemark.Invalidator { return tidemark.NATS(nc, o) }
}

// onEach runs a test on core NATS and on a log, beside each other.
func onEach(t *testing.T, test func(*testing.T, *server.Server, *carrier)) {
	t.Parallel()
	logOnly := with(small())
	logOnly.Stream.NoHint = true
	for name, c := range map[string]*carrier{
		"hint": {tidemark.NATSSubject(natsCache), with(nil)},
		"log":  {tidemark.NATSLogSubject(natsCache), logOnly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, natsServer(t, streaming(t)), c)
		})
	}
}

// TestS45_MessagesThatOvertakeEachOther delivers the message of the newer write
// first, and the older one much later.
func TestS45_MessagesThatOvertakeEachOther(t *testing.T) { onEach(t, overtakingMessages) }

func overtakingMessages(t *testing.T, s *server.Server, c *carrier) {
	l := newLedger()
	r := joined(t, l, s, 1, c.with(calmBeat))[0]
	nc := dial(t, s.ClientURL())
	one, two := newVoice(t, nc, c.subject), newVoice(t, nc, c.subject)
	one.hello()
	two.hello()
	first, second := l.set("k", 1), l.set("k", 2)
	holds(t, "k", r)
	two.changed("k", second)
	one.changed("k", first)
	within(t, func() bool { return r.Stats().Applies == 2 }, "not heard")
	e, ok := r.GetEntry("k")
	require.True(t, ok, "the entry is as new as both")
	assert.Equal(t, second, e.Version)

	third, fourth := l.set("k", 3), l.set("k", 4)
	two.changed("k", fourth)
	within(t, func() bool { return r.Stats().Applies == 3 }, "not heard")
	holds(t, "k", r)
	one.changed("k", third)
	within(t, func() bool { return r.Stats().Applies == 4 }, "not heard")
	fresh(t, r, "k", fourth)
	assert.Empty(t, r.of(tidemark.EventSuspect))
	healed(t, l, r)
}

// TestS46_EverythingOnceMore repeats all that was ever said, backwards.
func TestS46_EverythingOnceMore(t *testing.T) { onEach(t, everythingOnceMore) }

func everythingOnceMore(t *testing.T, s *server.Server, c *carrier) {
	l := newLedger()
	all := joined(t, l, s, 2, c.with(calmBeat))
	nc := dial(t, s.ClientURL())
	var mu sync.Mutex
	var said [][]byte
	sub, err := nc.Subscribe(c.subject, func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, m.Data)
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	for i := range 50 {
		add(t, all[i%2], fmt.Sprint(i%5))
	}
	within(t, func() bool { return all[0].Stats().Backlog+all[1].Stats().Backlog == 0 }, "not published")
	acquainted(t, all...)
	require.NoError(t, sub.Drain())
	for i := range 5 {
		holds(t, fmt.Sprint(i), all...)
	}
	before := []tidemark.Stats{all[0].Stats(), all[1].Stats()}
	mu.Lock()
	slices.Reverse(said)
	for _, b := range said {
		require.NoError(t, nc.Publish(c.subject, b))
	}
	mu.Unlock()
	require.NoError(t, nc.Flush())
	acquainted(t, all...)
	for i, r := range all {
		for k := range 5 {
			_, ok := r.Get(fmt.Sprint(k))
			assert.True(t, ok, "replica %d has lost %d", i, k)
		}
		assert.Equal(t, before[i].Suspicions, r.Stats().Suspicions)
	}
	healed(t, l, all...)
}

// TestS47_OwnEcho waits until a replica's own messages have come back.
func TestS47_OwnEcho(t *testing.T) { onEach(t, ownEcho) }

func ownEcho(t *testing.T, s *server.Server, c *carrier) {
	l := newLedger()
	r := joined(t, l, s, 1, c.with(calmBeat))[0]
	for i := range 20 {
		key := fmt.Sprint(i)
		v := add(t, r, key).Version
		within(t, func() bool { return r.Stats().Backlog == 0 }, "not published")
		e, ok := r.GetEntry(key)
		require.True(t, ok, "the own echo has removed what was just written")
		require.Equal(t, v, e.Version)
	}
	time.Sleep(2 * calmBeat)
	for i := range 20 {
		_, ok := r.Get(fmt.Sprint(i))
		require.True(t, ok)
	}
	healed(t, l, r)
}

// A voice is an origin made by hand, which says on the subject what a test
// wants.
type voice struct {
	t       testing.TB
	nc      *nats.Conn
	subject string
	message wire.Message
}

// newVoice returns a voice of the cache of these tests. It learns the cache's
// id by listening to a Publisher.
func newVoice(t testing.TB, nc *nats.Conn, subject string) *voice {
	t.Helper()
	sub, err := nc.SubscribeSync(tidemark.NATSSubject(natsCache))
	require.NoError(t, err)
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(nc)})
	require.NoError(t, err)
	require.NoError(t, p.Close(t.Context())) // says goodbye
	v := &voice{t: t, nc: nc, subject: subject}
	for v.message.Kind != wire.KindHello || v.message.Nonce != 0 {
		m, err := sub.NextMsg(patience)
		require.NoError(t, err)
		require.NoError(t, wire.Decode(m.Data, &v.message))
	}
	require.NoError(t, sub.Unsubscribe())
	v.message.Origin++
	v.message.Seq = 0
	return v
}

func (v *voice) encode(kind wire.Kind, nonce uint64, entries ...wire.Entry) []byte {
	v.t.Helper()
	v.message.Kind, v.message.Nonce, v.message.Entries = kind, nonce, entries
	v.message.Seq++
	b, err := wire.Append(nil, &v.message)
	require.NoError(v.t, err)
	return b
}

func (v *voice) send(b []byte) {
	v.t.Helper()
	require.NoError(v.t, v.nc.Publish(v.subject, b))
	require.NoError(v.t, v.nc.Flush())
}

func (v *voice) hello() { v.t.Helper(); v.send(v.encode(wire.KindHello, 1)) }

func (v *voice) changed(key string, to tidemark.Version) {
	v.t.Helper()
	v.send(v.encode(wire.KindInvalidate, 0, wire.Entry{Key: []byte(key), Version: uint64(to)}))
}

// restricted makes a server know one user who may do what p says, and a free
// one.
func restricted(p *server.Permissions) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "restricted", Password: "secret", Permissions: p},
			{Username: "free", Password: "secret"},
		}
	}
}

// TestS56_PermissionDenied refuses a client to publish, or to subscribe.
//
// The server says so in a message of its own, later: Publish of nats.go has
// returned nil by then, and Subscribe too.
func TestS56_PermissionDenied(t *testing.T) {
	t.Parallel()
	deny := &server.SubjectPermission{Deny: []string{tidemark.NATSSubject(natsCache)}}
	for name, p := range map[string]*server.Permissions{
		"publish":   {Publish: deny},
		"subscribe": {Subscribe: deny},
		"both":      {Publish: deny, Subscribe: deny},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			l.set("k", 1)
			s := natsServer(t, restricted(p))
			r, err := tidemark.New(tidemark.Options[string, int]{
				Store: l, Invalidator: core(dial(t, s.ClientURL(), nats.UserInfo("restricted", "secret"), quiet)),
			})
			require.NoError(t, err)
			free := newReplica(t, l, core(dial(t, s.ClientURL(), nats.UserInfo("free", "secret"))))
			ready(t, free)
			ctx, cancel := context.WithTimeout(t.Context(), 10*natsBeat)
			defer cancel()
			require.ErrorIs(t, r.Ready(ctx), context.DeadlineExceeded)
			for range 3 {
				e, err := r.Load(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, l.get("k").balance, e.Value)
				_, ok := r.Get("k")
				require.False(t, ok, "served by a replica that hears nobody")
				l.set("k", l.get("k").balance+1)
			}
			assert.True(t, r.Stats().CutOff)
			if p.Publish != nil {
				ctx, cancel := context.WithTimeout(t.Context(), 2*natsBeat)
				defer cancel()
				err := r.Invalidate(ctx, "k", 0)
				require.ErrorIs(t, err, tidemark.ErrNotBroadcast, "it went nowhere")
				assert.ErrorIs(t, err, nats.ErrPermissionViolation)
			} else {
				require.NoError(t, r.Invalidate(t.Context(), "k", 0))
			}
			ctx, cancel = context.WithTimeout(t.Context(), natsBeat)
			defer cancel()
			if err := r.Close(ctx); p.Publish != nil {
				require.ErrorIs(t, err, tidemark.ErrNotBroadcast)
			} else {
				require.NoError(t, err)
			}
			healed(t, l, free)
		})
	}
}

// TestS56_PublisherWithoutPermission: a batch job that may not publish must not
// believe that it told anybody.
func TestS56_PublisherWithoutPermission(t *testing.T) {
	s := natsServer(t, restricted(&server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"tidemark.>"}}}))
	nc := dial(t, s.ClientURL(), nats.UserInfo("restricted", "secret"), quiet)
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(nc)})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*natsBeat)
	defer cancel()
	err = p.Invalidate(ctx, "k", 1)
	require.ErrorIs(t, err, tidemark.ErrNotBroadcast)
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorIs(t, p.Close(ctx), tidemark.ErrNotBroadcast)
}

// TestS57_ApplicationFloodsAStalledLink lets the application write on the same
// connection until every buffer is full.
//
// P11: its Publish then holds the connection's lock until FlusherTimeout. Reads
// and writes of the cache must not notice.
func TestS57_ApplicationFloodsAStalledLink(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	w := newCable(t, s)
	nc := dial(t, w.url(), nats.FlusherTimeout(2*patience), nats.PingInterval(time.Minute))
	r := newReplica(t, l, core(nc))
	ready(t, r)
	l.set("k", 1)
	holds(t, "k", r)

	relieve := floodUntilBlocked(t, nc, w)
	began := time.Now()
	for i := range 100 {
		add(t, r, "k")
		add(t, r, fmt.Sprint(i))
		_, err := r.Load(t.Context(), "k")
		require.NoError(t, err)
		r.Get("k")
		r.Put(fmt.Sprint("put", i), 1, 1)
		r.Stats()
	}
	assert.Less(t, time.Since(began), patience/2, "nothing has waited for the link, which blocks for longer than this test")
	ctx, cancel := context.WithTimeout(t.Context(), 2*natsBeat)
	defer cancel()
	began = time.Now()
	require.ErrorIs(t, r.Invalidate(ctx, "k", 0), tidemark.ErrNotBroadcast)
	assert.Less(t, time.Since(began), patience/2)
	_, ok := r.Get("k")
	assert.False(t, ok)
	relieve()
	healed(t, l, r)
}

// floodUntilBlocked stalls a cable and lets the application write on a connection
// until that blocks. relieve ends both.
func floodUntilBlocked(t testing.TB, nc *nats.Conn, w *cable) (relieve func()) {
	t.Helper()
	w.stalled.Store(true)
	var flooded atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for flooded.Add(1) < 1000 && nc.Publish("elsewhere", make([]byte, 512<<10)) == nil {
		}
	})
	relieve = sync.OnceFunc(func() {
		w.stalled.Store(false)
		w.cut()
		wg.Wait()
	})
	t.Cleanup(relieve)
	last, same := int64(-1), 0
	within(t, func() bool { // until it blocks
		time.Sleep(50 * time.Millisecond)
		if n := flooded.Load(); n == last {
			same++
		} else {
			last, same = n, 0
		}
		return same == 10
	}, "the link takes everything")
	return relieve
}

// TestS58S59_MessagesThatCannotBeRead lets others say what this version does not
// understand.
func TestS58S59_MessagesThatCannotBeRead(t *testing.T) { onEach(t, unreadableMessages) }

func unreadableMessages(t *testing.T, s *server.Server, c *carrier) {
	l := newLedger()
	r := joined(t, l, s, 1, c.with(natsBeat))[0]
	l.set("k", 1)
	nc := dial(t, s.ClientURL())
	newer := newVoice(t, nc, c.subject)
	newer.hello()
	for name, b := range map[string][]byte{
		"S58 newer wire version": []byte("VC\x02 whatever that means"),
		"S58 unknown kind":       ofKind(200, newer.encode(wire.KindInvalidateAll, 0)),
		"S59 noise":              []byte("noise"),
		"S59 nothing":            {},
	} {
		holds(t, "k", r)
		before := r.Stats()
		changed := l.set("k", l.get("k").balance+1) // which that message may have told
		require.NoError(t, nc.Publish(c.subject, b))
		within(t, func() bool { return r.Stats().Bad == before.Bad+1 }, "%s: not heard", name)
		within(t, func() bool { return r.Stats().Suspicions > before.Suspicions }, "%s: ignored", name)
		fresh(t, r, "k", changed)
		assert.Empty(t, r.of(tidemark.EventCutOff), "%s: it has arrived", name)
	}
	healed(t, l, r)
}

// ofKind makes another kind of a message.
func ofKind(kind byte, b []byte) []byte {
	body := b[:len(b)-crc32.Size]
	body[3] = kind
	return binary.LittleEndian.AppendUint32(body, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// TestS60_TwoEnvironments lets caches of other names and schemas share a server.
func TestS60_TwoEnvironments(t *testing.T) { onEach(t, twoEnvironments) }

func twoEnvironments(t *testing.T, s *server.Server, c *carrier) {
	l, other := newLedger(), newLedger()
	r := joined(t, l, s, 1, c.with(calmBeat))[0]
	open := func(o tidemark.NATSOptions) *replica {
		o.Beat, o.Stream = calmBeat, c.options.Stream
		r := newReplica(t, other, tidemark.NATS(dial(t, s.ClientURL()), o))
		ready(t, r)
		return r
	}
	newer := open(tidemark.NATSOptions{Name: natsCache, Schema: "v2"})
	staging := open(tidemark.NATSOptions{Name: natsCache + ".staging"})
	l.set("k", 1)
	holds(t, "k", r)
	for i := range 10 {
		add(t, newer, "k")
		add(t, staging, "k")
		require.NoError(t, newer.Invalidate(t.Context(), "k", tidemark.Version(1000+i)))
		require.NoError(t, newer.InvalidateAll(t.Context()))
	}
	within(t, func() bool { return r.Stats().Foreign >= 20 }, "the foreign messages are not counted")
	within(t, func() bool { return len(r.of(tidemark.EventForeignMessage)) > 0 }, "nobody was told")
	assert.Zero(t, r.Stats().Received)
	assert.Zero(t, staging.Stats().Foreign, "another name is another subject")
	_, ok := r.Get("k")
	assert.True(t, ok)
	assert.Empty(t, r.of(tidemark.EventSuspect))
	healed(t, l, r)
	healed(t, other, newer)
	healed(t, other, staging)
}

func TestNATS_ServerRestart(t *testing.T) {
	l := newLedger()
	s := natsServer(t, nil)
	port := s.Addr().(*net.TCPAddr).Port
	all := joined(t, l, s, 2, core)
	l.set("k", 1)
	for range 2 {
		holds(t, "k", all...)
		s.Shutdown()
		s.WaitForShutdown()
		for _, r := range all {
			within(t, func() bool { return r.Stats().CutOff }, "nobody noticed")
			_, ok := r.Get("k")
			require.False(t, ok)
		}
		v := add(t, all[0], "k").Version
		e, err := all[1].Load(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, v, e.Version)
		s = natsServer(t, func(o *server.Options) { o.Port = port })
		healed(t, l, all...)
	}
}

func TestNATS_MistakesAreReportedByNew(t *testing.T) {
	s := natsServer(t, nil)
	nc, deaf := dial(t, s.ClientURL()), dial(t, s.ClientURL(), nats.NoEcho())
	for name, tt := range map[string]struct {
		inv     tidemark.Invalidator
		field   string
		problem string
	}{
		"nil connection": {tidemark.NATS(nil, tidemark.NATSOptions{Name: "n"}), "Invalidator", "nil"},
		"no name":        {tidemark.NATS(nc, tidemark.NATSOptions{}), "Invalidator.Name", "required"},
		"space in name":  {tidemark.NATS(nc, tidemark.NATSOptions{Name: "a b"}), "Invalidator.Name", "letters"},
		"wildcard":       {tidemark.NATS(nc, tidemark.NATSOptions{Name: "a.*"}), "Invalidator.Name", "letters"},
		"full wildcard":  {tidemark.NATS(nc, tidemark.NATSOptions{Name: ">"}), "Invalidator.Name", "letters"},
		"empty part":     {tidemark.NATS(nc, tidemark.NATSOptions{Name: "a..b"}), "Invalidator.Name", "letters"},
		"dot at the end": {tidemark.NATS(nc, tidemark.NATSOptions{Name: "a."}), "Invalidator.Name", "letters"},
		"line break":     {tidemark.NATS(nc, tidemark.NATSOptions{Name: "a\n"}), "Invalidator.Name", "letters"},
		"no echo (P13)":  {tidemark.NATS(deaf, tidemark.NATSOptions{Name: "n"}), "Invalidator", "NoEcho"},
		"negative beat":  {tidemark.NATS(nc, tidemark.NATSOptions{Name: "n", Beat: -1}), "Invalidator.Beat", "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tidemark.New(tidemark.Options[string, int]{Invalidator: tt.inv})
			var mistake *tidemark.OptionError
			require.ErrorAs(t, err, &mistake)
			assert.Equal(t, tt.field, mistake.Field)
			assert.Contains(t, mistake.Problem, tt.problem)
			_, err = tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: tt.inv})
			require.ErrorAs(t, err, &mistake)
			assert.Equal(t, tt.field, mistake.Field)
		})
	}
	assert.Equal(t, "tidemark.v1.a.b.hint", tidemark.NATSSubject("a.b"))
	assert.Zero(t, nc.NumSubscriptions(), "nothing was subscribed")
}

func TestNATS_ConnectionClosedUnderTheCache(t *testing.T) {
	for name, end := range map[string]func(*nats.Conn){
		"close": (*nats.Conn).Close,
		"drain": func(nc *nats.Conn) { _ = nc.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			s := natsServer(t, nil)
			nc := dial(t, s.ClientURL())
			r := newReplica(t, l, core(nc))
			other := newReplica(t, l, core(dial(t, s.ClientURL())))
			acquainted(t, r, other)
			l.set("k", 1)
			holds(t, "k", r, other)
			end(nc)
			within(t, nc.IsClosed, "not closed")
			within(t, func() bool { return r.Stats().CutOff }, "nobody noticed")
			add(t, other, "k")
			_, ok := r.Get("k")
			require.False(t, ok)
			v := add(t, r, "k").Version
			ctx, cancel := context.WithTimeout(t.Context(), natsBeat)
			defer cancel()
			began := time.Now()
			err := r.Close(ctx)
			require.ErrorIs(t, err, tidemark.ErrNotBroadcast)
			require.ErrorIs(t, err, nats.ErrConnectionClosed)
			assert.Less(t, time.Since(began), 3*time.Second)
			// The other was not told of that write; it learns from the silence.
			within(t, func() bool { e, ok := other.GetEntry("k"); return !ok || e.Version >= v }, "the silence was not noticed")
			healed(t, l, other)
		})
	}
}

// TestNATS_CloseAfterTheConnection closes in the wrong order, with nothing left
// to say.
func TestNATS_CloseAfterTheConnection(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	r := newReplica(t, newLedger(), core(nc))
	ready(t, r)
	nc.Close()
	ended := make(chan error, 1)
	go func() { ended <- r.Close(context.Background()) }()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(patience):
		require.FailNow(t, "Close does not end")
	}
}

// TestNATS_CloseLeavesNothingBehind looks for goroutines, listeners and
// subscriptions.
func TestNATS_CloseLeavesNothingBehind(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	for range 3 {
		r := newReplica(t, newLedger(), core(nc))
		ready(t, r)
		require.Equal(t, 1, nc.NumSubscriptions())
		require.NoError(t, r.Close(t.Context()))
		assert.Zero(t, nc.NumSubscriptions())
	}
	within(t, func() bool {
		all := make([]byte, 1<<20)
		stacks := string(all[:runtime.Stack(all, true)])
		return !strings.Contains(stacks, "tidemark.(*")
	}, "a goroutine is left")
}

// TestNATS_NothingIsDeliveredAfterStop stops a subscription under fire.
func TestNATS_NothingIsDeliveredAfterStop(t *testing.T) {
	s := natsServer(t, nil)
	for range 20 {
		hint := core(dial(t, s.ClientURL())).Hint
		var calls, running atomic.Int64
		stop, err := hint.Subscribe(func([]byte) {
			running.Add(1)
			calls.Add(1)
			time.Sleep(time.Millisecond)
			running.Add(-1)
		}, func(string) { calls.Add(1) })
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for range 20 {
			require.NoError(t, hint.Publish(ctx, []byte("fire")))
		}
		cancel()
		within(t, func() bool { return running.Load() == 1 }, "nothing is delivered")
		stop()
		n := calls.Load()
		require.Zero(t, running.Load(), "a call runs")
		time.Sleep(5 * time.Millisecond)
		require.Equal(t, n, calls.Load(), "a call has begun")
	}
}

// TestNATS_WhatWaitedForStopIsNotDelivered stops a subscription while a message
// that nats.go has already handed over waits behind the stop.
func TestNATS_WhatWaitedForStopIsNotDelivered(t *testing.T) {
	s := natsServer(t, nil)
	w := newCable(t, s)
	nc := dial(t, w.url())
	held, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var calls atomic.Int64
	stop, err := core(nc).Hint.Subscribe(
		func([]byte) { calls.Add(1) },
		func(string) { once.Do(func() { close(held); <-goOn }) })
	require.NoError(t, err)
	w.cut()
	<-held // the report of the cut holds up every other call
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	time.Sleep(50 * time.Millisecond) // the stop waits
	within(t, func() bool { return nc.IsConnected() }, "the link does not come back")
	sender := core(dial(t, s.ClientURL())).Hint
	before := nc.Stats().InMsgs
	within(t, func() bool { // until the server knows of the subscription again
		require.NoError(t, sender.Publish(t.Context(), []byte("late")))
		return nc.Stats().InMsgs > before
	}, "nothing arrives")
	time.Sleep(50 * time.Millisecond) // the message waits behind it
	close(goOn)
	<-stopped
	time.Sleep(50 * time.Millisecond)
	assert.Zero(t, calls.Load(), "delivered after stop")
}

// TestNATS_NoServer: who waits in vain learns what is missing.
func TestNATS_NoServer(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, nobody.Close())
	for name, stream := range map[string]*tidemark.NATSStream{"hint": nil, "log": small()} {
		t.Run(name, func(t *testing.T) {
			nc := dial(t, "nats://"+nobody.Addr().String()) // RetryOnFailedConnect
			r := newReplica(t, newLedger(), tidemark.NATS(nc, with(stream)))
			ctx, cancel := context.WithTimeout(t.Context(), 5*natsBeat)
			defer cancel()
			err := r.Ready(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, name+": ")
			require.ErrorContains(t, err, "connection is RECONNECTING")
			require.Empty(t, r.of(tidemark.EventCutOff), "it was at no time connected")
			require.Zero(t, r.Stats().Suspicions)
		})
	}
}

func TestNATS_NotYetConnected(t *testing.T) {
	l := newLedger()
	l.set("k", 1)
	s := natsServer(t, nil)
	port := s.Addr().(*net.TCPAddr).Port
	url := s.ClientURL()
	s.Shutdown()
	s.WaitForShutdown()
	nc := dial(t, url) // RetryOnFailedConnect
	require.False(t, nc.IsConnected())
	r := newReplica(t, l, core(nc))
	ctx, cancel := context.WithTimeout(t.Context(), 3*natsBeat)
	defer cancel()
	require.ErrorIs(t, r.Ready(ctx), context.DeadlineExceeded)
	e, err := r.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, 1, e.Value)
	_, ok := r.Get("k")
	require.False(t, ok)
	s = natsServer(t, func(o *server.Options) { o.Port = port })
	ready(t, r)
	other := newReplica(t, l, core(dial(t, s.ClientURL())))
	acquainted(t, r, other)
	holds(t, "k", r, other)
	add(t, other, "k")
	healed(t, l, r, other)
}

func TestNATS_Publisher(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, nil)
	all := joined(t, l, s, 2, calm)
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(dial(t, s.ClientURL()))})
	require.NoError(t, err)
	changed := map[string]tidemark.Version{}
	for i := range 1000 {
		key := fmt.Sprint(i)
		l.set(key, 1)
		for _, r := range all {
			require.Equal(t, tidemark.Applied, r.Put(key, 1, 1))
		}
		changed[key] = l.set(key, 2)
	}
	suspicions := []uint64{all[0].Stats().Suspicions, all[1].Stats().Suspicions}
	require.NoError(t, p.InvalidateMany(t.Context(), changed))
	for i, r := range all {
		within(t, func() bool { return r.Len() == 0 }, "%d entries stay", r.Len())
		assert.EqualValues(t, 1000, r.Stats().Applies)
		assert.Equal(t, suspicions[i], r.Stats().Suspicions)
	}
	holds(t, "7", all...)
	require.NoError(t, p.Invalidate(t.Context(), "7", l.set("7", 3)))
	for _, r := range all {
		within(t, func() bool { _, ok := r.Get("7"); return !ok }, "not heard")
	}
	holds(t, "7", all...)
	require.NoError(t, p.InvalidateAll(t.Context()))
	for _, r := range all {
		within(t, func() bool { _, ok := r.Get("7"); return !ok }, "not heard")
	}
	holds(t, "7", all...)
	require.NoError(t, p.Close(t.Context()))
	healed(t, l, all...)
	for _, r := range all {
		_, ok := r.Get("7")
		assert.True(t, ok, "a Publisher that leaves makes nothing suspect: %v", r.of(tidemark.EventSuspect))
	}
}

// TestNATS_Burst sends 100,000 invalidations from one origin to two receivers
// that hold every key.
func TestNATS_Burst(t *testing.T) {
	const keys = 40_000
	l := newLedger()
	s := natsServer(t, nil)
	receivers := joined(t, l, s, 2, core)
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("account:%06d", i)
	}
	fill := func() {
		for _, key := range names {
			v := l.set(key, 1)
			for _, r := range receivers {
				r.Put(key, 1, v)
			}
		}
	}
	for name, chunk := range map[string]int{"in chunks": 2_000, "at once": keys} {
		t.Run(name, func(t *testing.T) {
			fill()
			p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(dial(t, s.ClientURL()))})
			require.NoError(t, err)
			before := []tidemark.Stats{receivers[0].Stats(), receivers[1].Stats()}
			began := time.Now()
			for some := range slices.Chunk(names, chunk) {
				changed := map[string]tidemark.Version{}
				for _, key := range some {
					changed[key] = l.set(key, 2)
				}
				require.NoError(t, p.InvalidateMany(t.Context(), changed))
			}
			sent := time.Since(began)
			for i, r := range receivers {
				within(t, func() bool {
					for key, e := range r.All() {
						if l.get(key).version != e.Version {
							return false
						}
					}
					return true
				}, "receiver %d serves old entries", i)
				took := time.Since(began)
				now := r.Stats()
				t.Logf("receiver %d: %d keys in %d messages, %d suspicions, %v: %.0f keys/s (sent in %v)", i, now.Applies-before[i].Applies,
					now.Received-before[i].Received, now.Suspicions-before[i].Suspicions, took, keys/took.Seconds(), sent)
			}
			require.NoError(t, p.Close(t.Context()))
			healed(t, l, receivers...)
		})
	}
}

// TestNATS_MessageTooLargeForTheServer publishes more keys than a message of this
// server can name: the replicas are told less, but nothing wrong, and what waits
// behind it goes out.
func TestNATS_MessageTooLargeForTheServer(t *testing.T) {
	l := newLedger()
	s := natsServer(t, func(o *server.Options) { o.MaxPayload = 4 << 10 })
	r := joined(t, l, s, 1, core)[0]
	changed := map[string]tidemark.Version{}
	for i := range 512 {
		key := fmt.Sprintf("account:%06d", i)
		l.set(key, 1)
		holds(t, key, r)
		changed[key] = l.set(key, 2)
	}
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: core(dial(t, s.ClientURL()))})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, p.InvalidateMany(ctx, changed))
	within(t, func() bool {
		for key, v := range changed {
			if e, ok := r.GetEntry(key); ok && e.Version < v {
				return false
			}
		}
		return true
	}, "an old entry is served")
	require.NoError(t, p.Invalidate(ctx, "account:000000", 2))
	require.NoError(t, p.Close(ctx))
	healed(t, l, r)
}

// TestNATS_ClosesAtOnce closes replicas side by side, several times each, while
// they are written to and invalidated.
func TestNATS_ClosesAtOnce(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, nil)
	all := joined(t, l, s, 4, calm)
	survivor := all[3]
	var wg sync.WaitGroup
	for _, r := range all[:3] {
		wg.Go(func() {
			for i := 0; ; i++ {
				_, err := r.Update(t.Context(), fmt.Sprint(i%10), func(cur tidemark.Entry[int]) (int, error) { return cur.Value + 1, nil })
				if err != nil {
					assert.ErrorIs(t, err, tidemark.ErrClosed)
					return
				}
			}
		})
		wg.Go(func() {
			for {
				if err := r.Invalidate(t.Context(), "0", 0); err != nil {
					assert.ErrorIs(t, err, tidemark.ErrClosed)
					return
				}
			}
		})
	}
	time.Sleep(calmBeat)
	for _, r := range all[:3] {
		for range 3 {
			wg.Go(func() { assert.NoError(t, r.Close(t.Context())) })
		}
	}
	wg.Wait()
	before := survivor.Stats().Suspicions
	time.Sleep(5 * calmBeat)
	assert.Equal(t, before, survivor.Stats().Suspicions, "they have said goodbye: %v", survivor.of(tidemark.EventSuspect))
	healed(t, l, survivor)
}
