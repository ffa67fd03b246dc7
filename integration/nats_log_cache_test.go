package integration

import (
	"context"
	"os"
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

// Here caches meet the failures of a log on one server; nats_cluster_test.go has
// those that take three, and nats_log_test.go those of the log by itself.

// foreign is a message of another cache, of about size bytes.
func foreign(t testing.TB, size int) []byte {
	t.Helper()
	m := &wire.Message{Kind: wire.KindInvalidate, CacheID: 1, Origin: 1, Seq: 1}
	for ; size > 0; size -= 16 << 10 {
		m.Entries = append(m.Entries, wire.Entry{Key: make([]byte, min(size, 16<<10)), Version: 1})
	}
	b, err := wire.Append(nil, m)
	require.NoError(t, err)
	return b
}

// floodLog appends n of another cache's messages, of about size bytes, to the log.
func floodLog(t testing.TB, s *server.Server, n, size int) {
	t.Helper()
	js := admin(t, dial(t, s.ClientURL()))
	b := foreign(t, size)
	for range n {
		_, err := js.Publish(soon(t), tidemark.NATSLogSubject(natsCache), b)
		require.NoError(t, err)
	}
}

// aged waits until what a replica serves of a key at Any is older than that, as it
// says itself.
func aged(t testing.TB, r *replica, key string, age time.Duration) {
	t.Helper()
	within(t, func() bool {
		e, ok := r.GetEntry(key)
		require.True(t, ok)
		return e.Age > age
	}, "something goes on vouching for %q", key)
}

// TestS41_LogSlowConsumer holds up a replica that reads the log. The log waits: the
// reader asks for no more than it has room for.
func TestS41_LogSlowConsumer(t *testing.T) {
	t.Parallel()
	t.Run("the replica", func(t *testing.T) { testSlowReplica(t, 16<<20, false) })
	t.Run("the replica, for longer than the log keeps messages", func(t *testing.T) { testSlowReplica(t, 1<<20, true) })
	t.Run("the link, until the server gives it up", testSlowLink)
}

func testSlowReplica(t *testing.T, room int64, gap bool) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	invalidator := func() tidemark.Invalidator {
		o := with(small())
		o.Stream.MaxBytes, o.Stream.NoHint = room, true
		return tidemark.NATS(dial(t, s.ClientURL()), o)
	}
	stalled, wait := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(wait) })
	var once sync.Once
	stall := func(o *tidemark.Options[string, int]) { // which is called by who reads the log
		told := o.OnEvent
		o.OnEvent = func(e tidemark.Event) {
			told(e)
			if e.Kind == tidemark.EventForeignMessage {
				once.Do(func() { close(stalled); <-wait })
			}
		}
	}
	l := newLedger()
	near, slow := newReplica(t, l, invalidator()), newReplica(t, l, invalidator(), stall)
	t.Cleanup(goOn)
	acquainted(t, near, slow)
	l.set("k", 1)
	holds(t, "k", slow)
	floodLog(t, s, 1, 10)
	<-stalled
	v := add(t, near, "k").Version
	floodLog(t, s, 800, 4<<10)
	aged(t, slow, "k", bound)
	e, ok := slow.GetEntry("k")
	require.True(t, ok && e.Version < v, "it has not read that yet")
	e, err := slow.Read(t.Context(), "k", tidemark.Within(bound))
	require.NoError(t, err)
	require.Equal(t, v, e.Version)
	v = add(t, near, "k").Version
	goOn()
	within(t, func() bool { e, ok := slow.GetEntry("k"); return !ok || e.Version >= v }, "what waited is not read")
	healed(t, l, near, slow)
	fresh(t, slow, "k", v)
	if gap {
		assert.NotEmpty(t, slow.of(tidemark.EventCutOff))
	} else {
		assert.Empty(t, slow.of(tidemark.EventCutOff))
	}
}

func testSlowLink(t *testing.T) {
	t.Parallel()
	folder := streaming(t)
	s := natsServer(t, func(o *server.Options) {
		folder(o)
		o.WriteDeadline = time.Second
	})
	c := newCable(t, s)
	nc := dial(t, c.url(), nats.PingInterval(time.Minute)) // so that nats.go does not notice
	l := newLedger()
	near, far := newReplica(t, l, logged(dial(t, s.ClientURL()))), newReplica(t, l, logged(nc))
	acquainted(t, near, far)
	l.set("k", 1)
	holds(t, "k", far)
	c.stalled.Store(true)
	v := add(t, near, "k").Version
	floodLog(t, s, 200, 60<<10)
	within(t, func() bool { return s.NumSlowConsumers() > 0 }, "the server keeps the link")
	aged(t, far, "k", bound)
	e, err := far.Read(t.Context(), "k", tidemark.Within(bound))
	require.NoError(t, err)
	require.Equal(t, v, e.Version)
	c.mend()
	within(t, func() bool { return nc.Stats().Reconnects > 0 }, "the link was not broken")
	healed(t, l, near, far)
	fresh(t, far, "k", v)
	assert.Empty(t, far.of(tidemark.EventCutOff), "all of it is in the log")
}

// TestS43_TheBoundOnABrokenLink breaks the link of a reader, and that of a writer,
// in every way.
func TestS43_TheBoundOnABrokenLink(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	w := newWatch(t, newLedger())
	cables := []*cable{newCable(t, s), newCable(t, s)}
	to := func(url string) tidemark.Invalidator {
		return logged(dial(t, url, quiet, nats.PingInterval(time.Minute))) // so that nats.go does not notice
	}
	near := w.add("near", to(s.ClientURL()))
	reader, writer := w.add("reader", to(cables[0].url())), w.add("writer", to(cables[1].url()), failing)
	w.begin()
	w.writes(near)
	w.writes(writer)
	w.reads(near)
	w.reads(reader)
	w.reads(writer)
	for _, name := range []string{"cut", "black hole", "is not heard", "hears nobody", "stall"} {
		t.Log(name)
		w.progress(near)
		w.progress(writer)
		for _, c := range cables {
			outages[name](c, true) // which is the client's side
		}
		w.fellBack(reader)
		w.fellBack(writer)
		unacked := writer.unacked.Load()
		eventually(t, func() bool { return writer.unacked.Load() > unacked }, "acknowledged, though nobody can know")
		w.progress(near)
		for _, c := range cables {
			c.mend()
		}
		w.recovered()
	}
	for _, o := range w.all {
		assert.Empty(t, o.of(tidemark.EventCutOff), "%s: the log has everything", o.name)
	}
	w.end()
}

// TestS70_ProbesThatComeLate holds up what a replica is to read, its own probes
// among it, and lets it come slowly. A probe proves what was so when it was sent,
// not when it came.
func TestS70_ProbesThatComeLate(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	w := newWatch(t, newLedger())
	c := newCable(t, s)
	eager := func(url string) tidemark.Invalidator {
		o := with(small())
		o.Beat, o.Stream.NoHint = 20*time.Millisecond, true
		return tidemark.NATS(dial(t, url, quiet), o)
	}
	writer, reader := w.add("writer", eager(s.ClientURL())), w.add("reader", eager(c.url()), failing)
	w.begin()
	w.writes(writer)
	w.reads(reader)
	for _, pause := range []time.Duration{300, 600, 900, 1500} { // the last for longer than the reader of the log waits
		w.progress(writer)
		c.trickles.Store(true)
		c.stalled.Store(true)
		time.Sleep(pause * time.Millisecond)
		require.Greater(t, reader.Stats().Fresh, (pause-250)*time.Millisecond)
		c.stalled.Store(false)
		eventually(t, reader.fresh, "the probes do not come")
		c.mend()
		w.recovered()
	}
	assert.Empty(t, reader.of(tidemark.EventCutOff))
	w.end()
}

// TestS44_S67_LogConnectionThatGivesUp closes a connection for good. Entries grow
// old: they are served at Any, which says how old they are, but not beyond
// MaxStale, and not Within a bound.
func TestS44_S67_LogConnectionThatGivesUp(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, streaming(t))
	closed := make(chan struct{})
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(1), nats.ReconnectWait(time.Millisecond),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	r := newReplica(t, l, logged(nc))
	capped := newReplica(t, l, logged(nc), func(o *tidemark.Options[string, int]) { o.MaxStale = 2 * time.Second })
	acquainted(t, r, capped)
	l.set("k", 1)
	holds(t, "k", r, capped)
	s.Shutdown()
	<-closed
	l.set("k", 2)
	within(t, func() bool { return len(r.of(tidemark.EventLogDown)) > 0 }, "nobody noticed")
	for _, age := range []time.Duration{bound, 2 * time.Second} {
		aged(t, r, "k", age)
	}
	within(t, func() bool { _, ok := capped.Get("k"); return !ok }, "served beyond MaxStale")
	for _, c := range []*replica{r, capped} {
		e, err := c.Read(t.Context(), "k", tidemark.Within(bound))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
	}
}

// TestP1_S48_PurgedUnderCaches takes messages away from the log that a replica has
// not read, and then some that all have read.
func TestP1_S48_PurgedUnderCaches(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	js := admin(t, dial(t, s.ClientURL()))
	w := newWatch(t, newLedger())
	c := newCable(t, s)
	writer := w.add("writer", logged(dial(t, s.ClientURL())))
	reader, strict := w.add("reader", logged(dial(t, c.url(), quiet))), w.add("strict", logged(dial(t, c.url(), quiet)), failing)
	w.begin()
	w.writes(writer)
	w.reads(reader)
	w.reads(strict)
	for range 2 {
		c.refuses.Store(true)
		c.cut()
		w.fellBack(reader)
		w.fellBack(strict)
		cuts := len(reader.of(tidemark.EventCutOff)) + len(strict.of(tidemark.EventCutOff))
		w.progress(writer)
		purge(t, js, 1)
		c.mend()
		eventually(t, func() bool {
			return len(reader.of(tidemark.EventCutOff))+len(strict.of(tidemark.EventCutOff)) == cuts+2
		},
			"what is gone is not missed")
		w.recovered()
	}
	purge(t, js, 1)
	w.recovered()
	w.end()
}

// TestS55_LogThatLosesItsEnd restores the server's files of a while ago, as after a
// loss of power: what was acknowledged since is gone. Who has read it finds that
// the log no longer has what was read last; who has not, that an origin's numbers
// have a hole.
func TestS55_LogThatLosesItsEnd(t *testing.T) {
	t.Parallel()
	folder, copied := t.TempDir(), t.TempDir()
	port := freePort(t)
	start := func() *server.Server {
		return natsServer(t, func(o *server.Options) {
			o.JetStream, o.StoreDir, o.Port = true, folder, port
			o.JetStreamMaxMemory, o.JetStreamMaxStore = 64<<20, 256<<20
		})
	}
	stop := func(s *server.Server) {
		s.Shutdown()
		s.WaitForShutdown()
	}
	s := start()
	c := newCable(t, s)
	l := newLedger()
	near := newReplica(t, l, logged(dial(t, s.ClientURL(), quiet)))
	away := newReplica(t, l, logged(dial(t, c.url(), quiet)))
	acquainted(t, near, away)
	l.set("k", 1)
	holds(t, "k", away)
	c.refuses.Store(true)
	c.cut()
	within(t, func() bool { return len(away.of(tidemark.EventLogDown)) > 0 }, "nobody noticed")

	stop(s)
	require.NoError(t, os.CopyFS(copied, os.DirFS(folder)))
	s = start()
	v := add(t, near, "k").Version
	sent := near.Stats().Sent
	within(t, func() bool { return near.Stats().Sent > sent+2 && near.Stats().Fresh < 2*natsBeat }, "it reads nothing of its own")
	stop(s)
	require.NoError(t, os.RemoveAll(folder))
	require.NoError(t, os.CopyFS(folder, os.DirFS(copied)))
	start()

	within(t, func() bool { return len(near.of(tidemark.EventCutOff)) > 0 }, "what was read is gone, and that is not noticed")
	c.mend()
	within(t, func() bool { return len(away.of(tidemark.EventSuspect)) > 0 }, "what is gone is not missed")
	assert.Contains(t, away.of(tidemark.EventSuspect)[0], "are missing")
	assert.Empty(t, away.of(tidemark.EventCutOff), "all that it has read is there")
	fresh(t, away, "k", v)
	healed(t, l, near, away)
}

// TestS56_CachesWithoutPermission takes from a cache what it needs to write to the
// log, to hear, or to ask for either. It serves what it loads, and tells nobody
// that it was heard.
func TestS56_CachesWithoutPermission(t *testing.T) {
	t.Parallel()
	deny := func(subject string) *server.SubjectPermission {
		return &server.SubjectPermission{Deny: []string{subject}}
	}
	for name, p := range map[string]*server.Permissions{
		"publish":       {Publish: deny(tidemark.NATSLogSubject(natsCache))},
		"subscribe":     {Subscribe: deny("_INBOX.>")},
		"JetStream API": {Publish: deny("$JS.API.>")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder, users := streaming(t), restricted(p)
			s := natsServer(t, func(o *server.Options) { folder(o); users(o) })
			l := newLedger()
			free := newReplica(t, l, logged(dial(t, s.ClientURL(), nats.UserInfo("free", "secret"))))
			ready(t, free)
			l.set("k", 1)
			holds(t, "k", free)
			r := newReplica(t, l, logged(dial(t, s.ClientURL(), nats.UserInfo("restricted", "secret"), quiet)))
			ctx, cancel := context.WithTimeout(t.Context(), 10*natsBeat)
			defer cancel()
			require.ErrorIs(t, r.Ready(ctx), context.DeadlineExceeded)
			for range 3 {
				v := add(t, free, "k").Version
				for _, level := range []tidemark.Level{tidemark.Any, tidemark.Within(bound)} {
					e, err := r.Read(t.Context(), "k", level)
					require.NoError(t, err)
					require.Equal(t, v, e.Version)
				}
				_, ok := r.Get("k")
				require.False(t, ok, "served by a replica that hears nobody")
			}
			assert.Negative(t, r.Stats().Fresh)
			ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second) // longer than an attempt
			defer cancel()
			_, err := r.Update(ctx, "other", func(tidemark.Entry[int]) (int, error) { return 1, nil })
			require.ErrorIs(t, err, tidemark.ErrNotBroadcast)
			require.ErrorIs(t, r.Close(ctx), tidemark.ErrNotBroadcast)
			healed(t, l, free)
		})
	}
}

// TestS57_LogOnAFloodedLink lets the application write on the connection until that
// blocks. Reads do not wait for it, and writes no longer than their context.
func TestS57_LogOnAFloodedLink(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, streaming(t))
	w := newCable(t, s)
	nc := dial(t, w.url(), quiet, nats.FlusherTimeout(2*patience), nats.PingInterval(time.Minute))
	r := newReplica(t, l, logged(nc))
	ready(t, r)
	l.set("k", 1)
	holds(t, "k", r)
	relieve := floodUntilBlocked(t, nc, w)
	aged(t, r, "k", bound)
	began := time.Now()
	for range 20 {
		v := l.set("k", l.get("k").balance+1)
		_, ok := r.Get("k")
		require.True(t, ok)
		e, err := r.Read(t.Context(), "k", tidemark.Linearizable)
		require.NoError(t, err)
		require.Equal(t, v, e.Version)
		_, err = r.Read(t.Context(), "k", tidemark.Within(bound))
		require.NoError(t, err)
		soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err = r.Update(soon, "k", func(cur tidemark.Entry[int]) (int, error) { return cur.Value + 1, nil })
		cancel()
		require.Error(t, err, "nobody can know of it")
		r.Stats()
	}
	assert.Less(t, time.Since(began), patience/2, "nothing has waited for the link, which blocks for longer than this test")
	relieve()
	healed(t, l, r)
}

// A crowded is a ledger that is slow, and counts how many ask it at once.
type crowded struct {
	*ledger
	running, most atomic.Int64
}

func (c *crowded) Load(ctx context.Context, key string) (int, tidemark.Version, error) {
	n := c.running.Add(1)
	defer c.running.Add(-1)
	for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
	}
	time.Sleep(20 * time.Millisecond)
	return c.ledger.Load(ctx, key)
}

// TestS68_TheBoundRunsOutEverywhereAtOnce takes the log away from all replicas
// while many read Within a bound. The source is asked by one load for all readers
// of a key, by few at once in all, and what it answers serves for the bound.
func TestS68_TheBoundRunsOutEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	const maxLoads, keys, readers = 4, 16, 64
	s := natsServer(t, streaming(t))
	source := &crowded{ledger: newLedger()}
	var all []*replica
	for range 3 {
		all = append(all, newReplica(t, source.ledger, logged(dial(t, s.ClientURL(), quiet)), func(o *tidemark.Options[string, int]) {
			o.Store, o.MaxLoads = source, maxLoads
		}))
	}
	acquainted(t, all...)
	key := func(i int) string { return string(rune('a' + i%keys)) }
	for i := range keys {
		source.set(key(i), i)
		holds(t, key(i), all...)
	}
	source.most.Store(0)
	loads := source.loadCount()
	s.Shutdown()
	for i := range keys {
		for _, r := range all {
			aged(t, r, key(i), 2*bound)
		}
	}
	require.Equal(t, loads, source.loadCount())
	var wg sync.WaitGroup
	var reads atomic.Int64
	for _, r := range all {
		for i := range readers {
			wg.Go(func() {
				for j := range 20 {
					_, err := r.Read(t.Context(), key(i+j), tidemark.Within(2*bound))
					if !assert.NoError(t, err) {
						return
					}
					reads.Add(1)
				}
			})
		}
	}
	wg.Wait()
	asked := source.loadCount() - loads
	t.Logf("%d reads, %d loads, %d at once", reads.Load(), asked, source.most.Load())
	assert.GreaterOrEqual(t, asked, keys*len(all), "nothing vouched for anything")
	assert.Less(t, asked, int(reads.Load())/10)
	assert.LessOrEqual(t, source.most.Load(), int64(maxLoads*len(all)))
}

// TestS50_ConsumerThatDeliversNothing pauses what the replicas read through: the
// server goes on saying that it is there, and delivers nothing. The readers are
// made again.
func TestS50_ConsumerThatDeliversNothing(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	js := admin(t, dial(t, s.ClientURL()))
	w := newWatch(t, newLedger())
	writer, reader := w.add("writer", logged(dial(t, s.ClientURL(), quiet))), w.add("reader", logged(dial(t, s.ClientURL(), quiet)), failing)
	w.begin()
	w.writes(writer)
	w.reads(writer)
	w.reads(reader)
	for i := range 2 {
		w.progress(writer)
		for _, name := range consumers(t, js) {
			p, err := js.PauseConsumer(soon(t), tidemark.NATSStreamName(natsCache), name, time.Now().Add(time.Hour))
			require.NoError(t, err)
			require.True(t, p.Paused)
		}
		w.fellBack(reader)
		for _, o := range w.all {
			eventually(t, func() bool { return len(o.of(tidemark.EventLogDown)) > i }, "%s: nobody noticed", o.name)
		}
		w.recovered()
	}
	for _, o := range w.all {
		assert.Empty(t, o.of(tidemark.EventCutOff), "%s: the log has everything", o.name)
	}
	w.end()
}
