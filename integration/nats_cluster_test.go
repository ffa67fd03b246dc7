package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
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
)

// Servers in a cluster take seconds to notice that one of them is gone: 4 to 9
// until they elect another leader, 10 until a leader notices that nobody follows
// it. These tests wait most of the time, so they run beside each other.

const (
	// bound is what the reads of a watch demand.
	bound = 500 * time.Millisecond

	// recovery is how long it may take, after all faults are gone, until every
	// replica is fresh: an election, and a client's pause between two attempts.
	recovery = 30 * time.Second

	// outlast is how long everything else may take that waits for servers to
	// notice something. A leader that hears nobody goes on for 20s.
	outlast = 60 * time.Second
)

// A trio is three servers that keep streams together. Between any two of them
// are two cables, one for each direction in which a server may connect.
type trio struct {
	t       testing.TB
	servers [3]*natsProcess
	configs [3]natsConfig
	routes  [3][3]*cable // from one to another
}

func newTrio(t testing.TB) *trio {
	t.Helper()
	c := &trio{t: t}
	for i := range c.configs {
		c.configs[i] = natsConfig{
			name: fmt.Sprint("server", i), port: freePort(t), monitor: freePort(t), folder: filepath.Join(t.TempDir(), "streams"),
			member: net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t))),
		}
	}
	for i := range c.routes {
		for j := range c.routes {
			if i != j {
				c.routes[i][j] = newCableTo(t, c.configs[j].member)
				c.configs[i].routes = append(c.configs[i].routes, c.routes[i][j].listener.Addr().String())
			}
		}
	}
	for i := range c.servers {
		c.start(i)
	}
	return c
}

// start starts a server, also once more.
func (c *trio) start(i int) {
	c.t.Helper()
	c.servers[i] = startNATS(c.t, c.configs[i])
}

// at returns the URL of one server, which its clients do not leave.
func (c *trio) at(i int) string { return "nats://" + c.servers[i].address() }

// anywhere returns the URLs of all servers, which a client tries in this order from
// one on.
func (c *trio) anywhere(first int) string {
	j, k := c.others(first)
	return strings.Join([]string{c.at(first), c.at(j), c.at(k)}, ",")
}

// An outage is what befalls a cable between a server, and the others. outward says
// that the server is the one that connects.
type outage func(w *cable, outward bool)

// outages of a server's links to the others, by name.
var outages = map[string]outage{
	"cut":        func(w *cable, _ bool) { w.refuses.Store(true); w.cut() },
	"black hole": func(w *cable, _ bool) { w.hole.Store(true) },
	"stall":      func(w *cable, _ bool) { w.stalled.Store(true) },
	"is not heard": func(w *cable, outward bool) {
		if outward {
			w.mute.Store(true)
		} else {
			w.deaf.Store(true)
		}
	},
	"hears nobody": func(w *cable, outward bool) {
		if outward {
			w.deaf.Store(true)
		} else {
			w.mute.Store(true)
		}
	},
}

// isolate lets an outage befall all links of a server to the others.
func (c *trio) isolate(i int, f outage) {
	for j := range c.servers {
		if j != i {
			f(c.routes[i][j], true)
			f(c.routes[j][i], false)
		}
	}
}

// heal mends all links.
func (c *trio) heal() {
	for _, row := range c.routes {
		for _, w := range row {
			if w != nil {
				w.mend()
			}
		}
	}
}

// onThree is the stream of these tests.
func onThree() *tidemark.NATSStream { return &tidemark.NATSStream{MaxBytes: 16 << 20, NoHint: true} }

// inCluster returns the options of these tests with the stream s.
func inCluster(s *tidemark.NATSStream) tidemark.NATSOptions {
	o := with(s)
	o.Beat = natsBeat
	return o
}

// setUp makes the stream, once the servers have found each other, and waits until
// each has it.
func (c *trio) setUp(s *tidemark.NATSStream) jetstream.JetStream {
	c.t.Helper()
	nc := dial(c.t, c.at(0), quiet)
	eventually(c.t, func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		return tidemark.SetUpNATSStream(ctx, nc, inCluster(s)) == nil
	}, "the cluster does not begin")
	js := admin(c.t, nc)
	eventually(c.t, func() bool { return c.whole(js) }, "the stream is not on all servers")
	return js
}

// whole reports whether the stream has a leader, and followers that follow.
func (c *trio) whole(js jetstream.JetStream) bool {
	return c.wholeStream(js, tidemark.NATSStreamName(natsCache))
}

// wholeStream is whole for any stream.
func (c *trio) wholeStream(js jetstream.JetStream, name string) bool {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
	defer cancel()
	s, err := js.Stream(ctx, name)
	if err != nil {
		return false
	}
	i := s.CachedInfo().Cluster
	return i != nil && i.Leader != "" && len(i.Replicas) == 2 &&
		!slices.ContainsFunc(i.Replicas, func(p *jetstream.PeerInfo) bool { return p.Offline || !p.Current })
}

// leader returns who leads the stream, as one of those who say so.
func (c *trio) leader(except ...int) int {
	c.t.Helper()
	return c.streamLeader(tidemark.NATSStreamName(natsCache), except...)
}

// streamLeader is leader for any stream.
func (c *trio) streamLeader(stream string, except ...int) int {
	c.t.Helper()
	leader := -1
	eventually(c.t, func() bool {
		leader = slices.IndexFunc(c.servers[:], func(p *natsProcess) bool { return p.leads(stream) })
		return leader >= 0 && !slices.Contains(except, leader)
	}, "nobody leads the stream")
	return leader
}

// others returns the two servers but i.
func (c *trio) others(i int) (j, k int) { return (i + 1) % 3, (i + 2) % 3 }

// eventually is within for what takes elections.
func eventually(t testing.TB, cond func() bool, what string, args ...any) {
	t.Helper()
	await(t, outlast, 2*time.Millisecond, cond, what, args...)
}

// A watch lets replicas write and read beside whatever the test does, and holds
// every read against what was acknowledged before it.
type watch struct {
	t    testing.TB
	l    *ledger
	over atomic.Bool
	wg   sync.WaitGroup
	acks map[string]*timeline
	all  []*observed
}

// An observed is a replica under watch.
type observed struct {
	*replica
	name   string
	writes bool

	acked, unacked atomic.Int64 // writes
	served, stale  atomic.Int64 // reads Within the bound: all that succeeded, and those with ErrStale
	old            atomic.Int64 // reads at Any of what was older than the bound
}

// keys of a watch: each changes often, and yet is often served from memory.
var watched = []string{"a", "b", "c", "d"}

func newWatch(t testing.TB, l *ledger) *watch {
	w := &watch{t: t, l: l, acks: map[string]*timeline{}}
	for _, key := range watched {
		l.set(key, 0)
		w.acks[key] = &timeline{}
	}
	return w
}

// add puts a replica under watch, whose options the test may change.
func (w *watch) add(name string, inv tidemark.Invalidator, change ...func(*tidemark.Options[string, int])) *observed {
	w.t.Helper()
	o := &observed{replica: newReplica(w.t, w.l, inv, change...), name: name}
	w.all = append(w.all, o)
	w.t.Cleanup(w.stop) // before the replica is closed, if the test has failed
	return o
}

// begin waits until all replicas hear each other.
func (w *watch) begin() {
	w.t.Helper()
	for _, o := range w.all {
		eventually(w.t, func() bool { return !o.Stats().CutOff }, "%s is not ready", o.name)
	}
	w.recovered()
}

// writes lets a replica write. A write counts as acknowledged when it has returned
// without an error.
func (w *watch) writes(o *observed) {
	o.writes = true
	w.wg.Go(func() {
		for i := 0; !w.over.Load(); i++ {
			key := watched[i%len(watched)]
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			e, err := o.Update(ctx, key, func(cur tidemark.Entry[int]) (int, error) { return cur.Value + 1, nil })
			cancel()
			switch {
			case err == nil:
				w.acks[key].add(e.Version)
				o.acked.Add(1)
			case errors.Is(err, tidemark.ErrNotBroadcast), errors.Is(err, context.DeadlineExceeded):
				o.unacked.Add(1)
			default:
				assert.NoError(w.t, err, "%s writes", o.name)
				return
			}
			time.Sleep(rand.N(15 * time.Millisecond))
		}
	})
}

// reads lets a replica read, Within the bound and at Any. An answer that the
// oracle knows to be older than it says ends the test.
func (w *watch) reads(o *observed) {
	for range 2 {
		w.wg.Go(func() {
			for i := 0; !w.over.Load(); i++ {
				key := watched[i%len(watched)]
				if !w.readWithin(o, key) || !w.readAny(o, key) {
					return
				}
				time.Sleep(3 * time.Millisecond)
			}
		})
	}
}

func (w *watch) readWithin(o *observed, key string) bool {
	began := time.Now()
	e, err := o.Read(context.Background(), key, tidemark.Within(bound))
	if errors.Is(err, tidemark.ErrStale) {
		o.stale.Add(1)
		return true
	}
	if !assert.NoError(w.t, err, "%s reads", o.name) {
		return false
	}
	o.served.Add(1)
	want := w.acks[key].newest(began.Add(-bound))
	return assert.GreaterOrEqual(w.t, e.Version, want, "%s: %q Within, of age %v: %v", o.name, key, e.Age, o.Explain(key))
}

func (w *watch) readAny(o *observed, key string) bool {
	began := time.Now()
	e, ok := o.GetEntry(key)
	if !ok || e.Age < 0 {
		return true
	}
	if e.Age > bound {
		o.old.Add(1)
	}
	want := w.acks[key].newest(began.Add(-e.Age))
	return assert.GreaterOrEqual(w.t, e.Version, want, "%s: %q at Any, of age %v: %v", o.name, key, e.Age, o.Explain(key))
}

// fresh reports whether the log vouches for the replica's entries.
func (o *observed) fresh() bool {
	s := o.Stats()
	return !s.CutOff && s.Fresh >= 0 && s.Fresh < bound
}

// fellBack waits until nothing vouches for the entries of a replica any more, and
// reads Within the bound have gone to the source, or failed, as OnStale says.
func (w *watch) fellBack(o *observed) {
	w.t.Helper()
	eventually(w.t, func() bool { s := o.Stats(); return s.CutOff || s.Fresh < 0 || s.Fresh > bound },
		"%s: the log goes on vouching for what it cannot know", o.name)
	loads, stale := o.Stats().Loads, o.stale.Load()
	eventually(w.t, func() bool { return o.Stats().Loads > loads || o.stale.Load() > stale }, "%s: reads do not fall back", o.name)
}

// progress waits until a replica's writes are acknowledged again.
func (w *watch) progress(o *observed) {
	w.t.Helper()
	acked := o.acked.Load()
	eventually(w.t, func() bool { return o.acked.Load() > acked+1 }, "%s: no write is acknowledged", o.name)
}

// recovered waits until all replicas are ready and fresh, and those who write are
// acknowledged.
func (w *watch) recovered() {
	w.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(w.t.Context(), recovery)
	defer cancel()
	for _, o := range w.all {
		acked := o.acked.Load()
		require.NoError(w.t, o.Ready(ctx), o.name)
		for !o.fresh() || o.writes && o.acked.Load() == acked {
			require.NoError(w.t, ctx.Err(), "%s does not recover: %+v", o.name, o.Stats())
			time.Sleep(2 * time.Millisecond)
		}
	}
	w.t.Logf("recovered after %v", time.Since(began).Round(time.Millisecond))
}

func (w *watch) stop() {
	w.over.Store(true)
	w.wg.Wait()
}

// end stops the writes and reads, and says what there was.
func (w *watch) end() {
	w.t.Helper()
	w.stop()
	all := make([]*replica, len(w.all))
	for i, o := range w.all {
		all[i] = o.replica
		w.t.Logf("%s: %d writes acknowledged, %d not; %d reads within %v, %d refused as stale; at Any %d of older ones; %d loads",
			o.name, o.acked.Load(), o.unacked.Load(), o.served.Load(), bound, o.stale.Load(), o.old.Load(), o.Stats().Loads)
	}
	if !w.t.Failed() {
		healed(w.t, w.l, all...)
	}
}

// failing makes a replica fail rather than ask the source.
func failing(o *tidemark.Options[string, int]) { o.OnStale = tidemark.Fail }

// logAt returns a log of these tests at one server of the cluster.
func (c *trio) logAt(i int) tidemark.Invalidator {
	return tidemark.NATS(dial(c.t, c.at(i), quiet), inCluster(onThree()))
}

// lead makes a server lead the stream.
func (c *trio) lead(i int) {
	c.t.Helper()
	nc := dial(c.t, c.at(i), quiet)
	ask := fmt.Sprintf(`{"placement":{"preferred":%q}}`, c.servers[i].name)
	eventually(c.t, func() bool {
		if c.leader() == i {
			return true
		}
		_, _ = nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+tidemark.NATSStreamName(natsCache), []byte(ask), time.Second)
		time.Sleep(100 * time.Millisecond)
		return false
	}, "server %d does not become the leader", i)
}

// end returns the number of the stream's last message, as a server says that asks
// nobody else, or 0.
func end(js jetstream.JetStream) uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	s, err := js.Stream(ctx, tidemark.NATSStreamName(natsCache))
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.LastSeq
}

// TestP26_S54_S66_TheStreamLeaderIsCutOff takes the leader of the stream away from the two
// others, under a writer and a reader of the majority and a replica that only the
// old leader hears.
//
// S54, S66: for seconds the old leader answers requests about the stream as if
// nothing had happened since. What counts has gone through the log.
func TestP26_S54_S66_TheStreamLeaderIsCutOff(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cut", "black hole", "hears nobody"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTrio(t)
			c.setUp(onThree())
			x := c.leader()
			y, z := c.others(x)
			w := newWatch(t, newLedger())
			writer, reader := w.add("writer", c.logAt(y)), w.add("reader", c.logAt(z))
			alone := w.add("alone", c.logAt(x), failing)
			w.begin()
			w.writes(writer)
			w.reads(reader)
			w.reads(alone)
			w.progress(writer)

			began := time.Now()
			js := admin(t, dial(t, c.at(x), quiet))
			before := end(js)
			c.isolate(x, outages[name])
			w.fellBack(alone)
			w.fellBack(reader)
			require.NotEqual(t, x, c.leader(x))
			w.progress(writer)
			t.Logf("another leader after %v", time.Since(began))
			if says := end(js); says != 0 {
				t.Logf("the old leader says that the stream ends with %d, as before with %d", says, before)
			}
			eventually(t, reader.fresh, "the reader does not hear the new leader")
			assert.False(t, alone.fresh(), "who hears only the old leader is fresh")
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // longer than an attempt
			defer cancel()
			_, err := alone.Update(ctx, "local", func(tidemark.Entry[int]) (int, error) { return 1, nil })
			require.ErrorIs(t, err, tidemark.ErrNotBroadcast, "acknowledged by a minority")

			c.heal()
			w.recovered()
			w.end()
		})
	}
}

// TestS69_AFollowerIsCutOff takes a follower away from the leader and the other
// one, in every way, under two replicas that hear it, one of which writes. They go
// on hearing who publishes there, which proves nothing.
func TestS69_AFollowerIsCutOff(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	const x, y, z = 0, 1, 2
	local := func() tidemark.Invalidator {
		o := inCluster(onThree())
		o.Stream.NoHint = false
		return tidemark.NATS(dial(t, c.at(x), quiet), o)
	}
	w := newWatch(t, newLedger())
	writer, reader := w.add("writer", c.logAt(y)), w.add("reader", c.logAt(z))
	listener, minority := w.add("listener", local()), w.add("minority", local(), failing)
	w.begin()
	w.writes(writer)
	w.writes(minority)
	w.reads(reader)
	w.reads(listener)
	w.reads(minority)
	publisher := newVoice(t, dial(t, c.at(x), quiet), tidemark.NATSSubject(natsCache))
	for i, name := range []string{"cut", "black hole", "stall", "is not heard", "hears nobody"} {
		t.Logf("the follower: %s", name)
		c.lead(y)
		w.progress(writer)
		w.progress(minority)
		c.isolate(x, outages[name])
		w.fellBack(listener)
		w.fellBack(minority)
		unacked := minority.unacked.Load()
		eventually(t, func() bool { return minority.unacked.Load() > unacked+1 }, "a minority acknowledges")
		for range 5 {
			heard := listener.Stats().Applies
			publisher.changed("local", tidemark.Version(i+1))
			eventually(t, func() bool { return listener.Stats().Applies > heard }, "the local publisher is not heard")
			for _, o := range []*observed{listener, minority} {
				assert.False(t, o.fresh(), "%s is fresh", o.name)
			}
			w.progress(writer)
		}
		c.heal()
		w.recovered()
	}
	w.end()
}

// inMemoryOnThree returns three replicas of a stream in memory, one at each server:
// one writes, and two read, the second of them failing where the first goes to the
// source.
func inMemoryOnThree(t *testing.T) (c *trio, js jetstream.JetStream, w *watch, writer *observed, readers [2]*observed) {
	t.Helper()
	memory := onThree()
	memory.Memory = true
	c = newTrio(t)
	js = c.setUp(memory)
	w = newWatch(t, newLedger())
	at := func(i int) tidemark.Invalidator { return tidemark.NATS(dial(t, c.at(i), quiet), inCluster(memory)) }
	writer = w.add("writer", at(0))
	readers = [2]*observed{w.add("reader", at(1)), w.add("strict", at(2), failing)}
	w.begin()
	w.writes(writer)
	for _, o := range readers {
		w.reads(o)
	}
	return c, js, w, writer, readers
}

// TestP25_S49_MemoryStreamOnThreeAfterARestart restarts all servers. The stream is
// there again, made at the same moment as before, and its messages are gone.
func TestP25_S49_MemoryStreamOnThreeAfterARestart(t *testing.T) {
	t.Parallel()
	c, js, w, writer, readers := inMemoryOnThree(t)
	for range 10 {
		w.progress(writer)
	}
	before := state(t, js)
	for i := range c.servers {
		c.servers[i].stop()
	}
	for _, o := range readers {
		w.fellBack(o)
	}
	unacked := writer.unacked.Load()
	eventually(t, func() bool { return writer.unacked.Load() > unacked }, "acknowledged by nobody")
	for _, o := range w.all {
		assert.Empty(t, o.of(tidemark.EventCutOff), "%s: nothing is lost yet", o.name)
	}
	for i := range c.servers {
		c.start(i)
	}
	eventually(t, func() bool { return c.whole(js) }, "the stream does not come back")
	for _, o := range w.all {
		eventually(t, func() bool { return len(o.of(tidemark.EventCutOff)) > 0 }, "%s takes the empty stream for the old one", o.name)
	}
	w.recovered()
	after := state(t, js)
	t.Logf("made at %v and %v, with %d and %d messages", before.Created, after.Created, before.State.LastSeq, after.State.LastSeq)
	w.end()
}

// TestCluster_LameDucks restarts the servers one after the other, as an upgrade
// does: each goes into lame duck mode, hands over what it leads, and sends its
// clients away. Nobody has to begin anew.
func TestCluster_LameDucks(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	js := c.setUp(onThree())
	w := newWatch(t, newLedger())
	moving := func(first int) tidemark.Invalidator {
		return tidemark.NATS(dial(t, c.anywhere(first), quiet, nats.DontRandomize()), inCluster(onThree()))
	}
	writer, reader, strict := w.add("writer", moving(0)), w.add("reader", moving(1)), w.add("strict", moving(2), failing)
	w.begin()
	w.writes(writer)
	w.reads(reader)
	w.reads(strict)
	for i := range c.servers {
		c.lead(i)
		w.progress(writer)
		c.servers[i].retire()
		w.recovered()
		c.start(i)
		eventually(t, func() bool { return c.whole(js) }, "server %d does not come back", i)
	}
	w.recovered()
	for _, o := range w.all {
		assert.Empty(t, o.of(tidemark.EventCutOff), o.name)
		assert.NotEmpty(t, o.of(tidemark.EventLogDown), o.name)
	}
	w.end()
}

// TestS49_TheStreamOnThreeIsMadeAnew deletes the stream under replicas that write
// and read. One of them makes it anew, and nothing from before is served
// unconfirmed.
func TestS49_TheStreamOnThreeIsMadeAnew(t *testing.T) {
	t.Parallel()
	_, js, w, writer, _ := inMemoryOnThree(t)
	for i := range 2 {
		w.progress(writer)
		before := state(t, js)
		require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
		for _, o := range w.all {
			eventually(t, func() bool { return len(o.of(tidemark.EventCutOff)) > i }, "%s takes the new stream for the old one", o.name)
		}
		w.recovered()
		assert.NotEqual(t, before.Created, state(t, js).Created)
	}
	w.end()
}

// TestS50_FreshConsumersOnThree makes many readers, which takes a consumer each,
// on a server that is not always the client's. One that delivers nothing, because
// the servers do not all know of it yet, must fail soon, so that it is made again.
func TestS50_FreshConsumersOnThree(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	const n = 15
	var opened, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range c.servers {
		log, origin := c.logAt(i).Log, uint64(i+1)
		number := uint64(0)
		add := func(ctx context.Context) (seq uint64, err error) {
			number++
			for {
				if seq, err = log.Append(ctx, letter(origin, number)); err == nil || ctx.Err() != nil {
					return seq, err
				}
			}
		}
		// read reads with one new reader, which must have a message soon.
		read := func(ctx context.Context, last uint64) error {
			opened.Add(1)
			r, err := log.Open(ctx, last)
			if err != nil {
				return err
			}
			defer r.Close()
			want := last
			if last == 0 {
				if want, err = add(ctx); err != nil {
					return err
				}
			}
			for got := uint64(0); got < want; {
				if got, _, err = r.Next(ctx); err != nil {
					return err
				}
			}
			return nil
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), outlast)
			defer cancel()
			for range n {
				last, err := add(ctx)
				if !assert.NoError(t, err) {
					return
				}
				for _, from := range []uint64{last, 0} {
					for err := read(ctx, from); err != nil; err = read(ctx, from) {
						failed.Add(1)
						if !assert.NoError(t, ctx.Err(), "a reader hangs: %v", err) || !assert.NotErrorIs(t, err, tidemark.ErrGap) {
							return
						}
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d readers, of which %d failed", opened.Load(), failed.Load())
}
