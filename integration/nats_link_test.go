package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
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

const (
	natsBeat  = 150 * time.Millisecond
	calmBeat  = time.Second // where a busy machine must not look like silence
	natsCache = "accounts"  // the cache's name on every server of these tests
	patience  = 20 * time.Second
)

var givenPorts sync.Map // by freePort

// freePort returns a port of the loopback interface on which nobody listens, which
// the system gives to no outgoing connection, and which it has not returned before:
// a server can be started there later, and once more after it was stopped.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.Fail(t, "no port is free")
	return 0
}

// natsServer starts a server on loopback. change, if not nil, changes its
// options first.
func natsServer(t testing.TB, change func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: freePort(t), NoLog: true, NoSigs: true}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	require.NoError(t, err)
	s.Start()
	require.True(t, s.ReadyForConnections(patience), "the server does not start: it runs %t, for clients at %v, for servers at %v, streams %t",
		s.Running(), s.Addr(), s.ClusterAddr(), s.JetStreamEnabled())
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s
}

// dial connects as NATSConnectOptions say, but for more.
func dial(t testing.TB, url string, more ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append(tidemark.NATSConnectOptions(), more...)...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// quiet keeps nats.go from printing errors that a test wants.
var quiet = nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})

// core is the invalidator of these tests on nc.
func core(nc *nats.Conn) tidemark.Invalidator {
	return tidemark.NATS(nc, tidemark.NATSOptions{Name: natsCache, Beat: natsBeat})
}

// calm is core for tests in which nobody may become suspect.
func calm(nc *nats.Conn) tidemark.Invalidator {
	return tidemark.NATS(nc, tidemark.NATSOptions{Name: natsCache, Beat: calmBeat})
}

// A cable is a TCP proxy between a client and a server that can be cut and
// stopped up.
type cable struct {
	listener net.Listener
	server   string // address

	refuses  atomic.Bool // new connections are closed at once
	hole     atomic.Bool // bytes are swallowed both ways, and nobody is told
	mute     atomic.Bool // only those of the client are
	deaf     atomic.Bool // only those of the server are
	stalled  atomic.Bool // nothing is read from either side
	trickles atomic.Bool // what is read is passed on slowly

	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[*net.TCPConn]struct{}
}

func newCable(t testing.TB, s *server.Server) *cable {
	t.Helper()
	return newCableTo(t, s.Addr().String())
}

func newCableTo(t testing.TB, address string) *cable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w := &cable{listener: listener, server: address, stop: cancel, conns: map[*net.TCPConn]struct{}{}}
	w.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.serve(ctx, client.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		w.stop()
		assert.NoError(t, listener.Close())
		w.cut()
		w.wg.Wait()
	})
	return w
}

func (w *cable) url() string { return "nats://" + w.listener.Addr().String() }

// serve carries bytes both ways until either side closes or the cable is cut.
func (w *cable) serve(ctx context.Context, client *net.TCPConn) {
	if w.refuses.Load() {
		_ = client.Close()
		return
	}
	c, err := net.Dial("tcp", w.server)
	if err != nil {
		_ = client.Close()
		return
	}
	upstream := c.(*net.TCPConn)
	_ = upstream.SetReadBuffer(64 << 10) // so that a stalled cable fills
	w.mu.Lock()
	w.conns[client], w.conns[upstream] = struct{}{}, struct{}{}
	w.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range []struct {
		to, from *net.TCPConn
		hole     *atomic.Bool
	}{{client, upstream, &w.deaf}, {upstream, client, &w.mute}} {
		both.Go(func() {
			w.carry(ctx, way.to, way.from, way.hole)
			_, _ = client.Close(), upstream.Close()
		})
	}
	both.Wait()
	w.mu.Lock()
	delete(w.conns, client)
	delete(w.conns, upstream)
	w.mu.Unlock()
}

// carry carries bytes one way, which has a hole of its own. Once bytes are lost,
// those behind them are of no use.
func (w *cable) carry(ctx context.Context, to, from *net.TCPConn, hole *atomic.Bool) {
	buf := make([]byte, 32<<10)
	lost := false
	for {
		w.wait(ctx)
		room := buf
		if w.trickles.Load() {
			time.Sleep(5 * time.Millisecond)
			room = buf[:1<<10]
		}
		n, err := from.Read(room)
		if err != nil {
			return
		}
		w.wait(ctx) // for what it was reading when it was stalled
		lost = lost || w.hole.Load() || hole.Load()
		if lost {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// wait waits while the cable is stalled.
func (w *cable) wait(ctx context.Context) {
	for w.stalled.Load() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
}

// mend takes all that is wrong with the cable away. If there was a hole, the
// connections are reset, as by a middle box that has forgotten them.
func (w *cable) mend() {
	gap := w.hole.Load() || w.mute.Load() || w.deaf.Load()
	for _, fault := range []*atomic.Bool{&w.hole, &w.mute, &w.deaf, &w.refuses, &w.stalled, &w.trickles} {
		fault.Store(false)
	}
	if gap {
		w.cut()
	}
}

// cut resets every connection: what is on its way is lost.
func (w *cable) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// beforeFirst is a link to a server on which call runs before the first request
// that contains word is carried.
func beforeFirst(t *testing.T, address, word string, call func()) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var once sync.Once
	var wg sync.WaitGroup
	carry := func(to, from net.Conn, look bool) {
		defer to.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if look && bytes.Contains(buf[:n], []byte(word)) {
				once.Do(call)
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if !assert.NoError(t, err) {
				_ = client.Close()
				return
			}
			wg.Go(func() { carry(server, client, true) })
			wg.Go(func() { carry(client, server, false) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait() // the clients were closed before
	})
	return "nats://" + listener.Addr().String()
}

// A ledger is the source of truth: a Store in memory whose versions rise per
// key and survive deletion.
type ledger struct {
	mu    sync.Mutex // guards everything below
	rows  map[string]account
	done  map[tidemark.OpID]tidemark.Version
	loads int

	afterWrite func() // runs once a write is committed, with no lock held
}

type account struct {
	balance int
	version tidemark.Version
	absent  bool
}

func newLedger() *ledger {
	return &ledger{rows: map[string]account{}, done: map[tidemark.OpID]tidemark.Version{}}
}

func (l *ledger) putLocked(key string, a account) tidemark.Version {
	a.version = l.rows[key].version + 1
	l.rows[key] = a
	return a.version
}

// set changes an account behind every replica's back.
func (l *ledger) set(key string, balance int) tidemark.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.putLocked(key, account{balance: balance})
}

func (l *ledger) get(key string) account {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.rows[key]; ok {
		return a
	}
	return account{absent: true}
}

// some returns up to n keys that are there.
func (l *ledger) some(n int) map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := map[string]bool{}
	for key, a := range l.rows {
		if !a.absent && len(keys) < n {
			keys[key] = true
		}
	}
	return keys
}

func (l *ledger) loadCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loads
}

func (l *ledger) Load(_ context.Context, key string) (int, tidemark.Version, error) {
	l.mu.Lock()
	l.loads++
	l.mu.Unlock()
	a := l.get(key)
	if a.absent {
		return 0, a.version, tidemark.ErrNotFound
	}
	return a.balance, a.version, nil
}

func (l *ledger) CompareAndSet(_ context.Context, key string, base tidemark.Version, balance int, op tidemark.OpID) (tidemark.Version, error) {
	return l.write(key, base, account{balance: balance}, op)
}

func (l *ledger) CompareAndDelete(_ context.Context, key string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return l.write(key, base, account{absent: true}, op)
}

func (l *ledger) write(key string, base tidemark.Version, a account, op tidemark.OpID) (v tidemark.Version, err error) {
	if l.afterWrite != nil {
		defer func() {
			if err == nil {
				l.afterWrite()
			}
		}()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	have, ok := l.rows[key]
	current := have.version
	if !ok || have.absent {
		current = 0
	}
	if current != base {
		return 0, &tidemark.ConflictError{Current: have.version, Absent: current == 0}
	}
	v = l.putLocked(key, a)
	l.done[op] = v
	return v, nil
}

func (l *ledger) Outcome(_ context.Context, _ string, op tidemark.OpID) (tidemark.Version, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.done[op]
	return v, ok, nil
}

// A replica is a cache on a ledger, and what it told its operator.
type replica struct {
	*tidemark.Cache[string, int]
	closed atomic.Bool // by the test

	mu     sync.Mutex // guards events
	events []tidemark.Event
}

func (r *replica) told(e tidemark.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// of returns the reasons of the events of one kind.
func (r *replica) of(kind tidemark.EventKind) (reasons []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			reasons = append(reasons, e.Reason)
		}
	}
	return reasons
}

// newReplica returns a replica that is not waited for. Unless the test closes
// it, it is closed when the test ends, and that must succeed.
func newReplica(t testing.TB, l *ledger, inv tidemark.Invalidator, change ...func(*tidemark.Options[string, int])) *replica {
	t.Helper()
	r := &replica{}
	o := tidemark.Options[string, int]{Store: l, Invalidator: inv, MaxCost: 1 << 18, OnEvent: r.told}
	for _, c := range change {
		c(&o)
	}
	c, err := tidemark.New(o)
	require.NoError(t, err)
	r.Cache = c
	t.Cleanup(func() {
		if r.closed.Load() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		assert.NoError(t, c.Close(ctx))
	})
	return r
}

// Close is the Cache's; after it the test answers for the error.
func (r *replica) Close(ctx context.Context) error {
	r.closed.Store(true)
	return r.Cache.Close(ctx)
}

// joined returns n replicas with a connection each, once they hear each other.
func joined(t testing.TB, l *ledger, s *server.Server, n int, inv func(*nats.Conn) tidemark.Invalidator) (all []*replica) {
	t.Helper()
	for range n {
		all = append(all, newReplica(t, l, inv(dial(t, s.ClientURL()))))
	}
	acquainted(t, all...)
	return all
}

// acquainted waits until every replica is ready and has heard the others, so
// that their next messages are no news.
func acquainted(t testing.TB, all ...*replica) {
	t.Helper()
	before := make([]uint64, len(all))
	for i, r := range all {
		ready(t, r)
		before[i] = r.Stats().Received
	}
	for i, r := range all {
		within(t, func() bool { return r.Stats().Received >= before[i]+uint64(2*(len(all)-1)) }, "the replicas do not hear each other")
	}
}

func ready(t testing.TB, r *replica) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, r.Ready(ctx))
}

// within waits for cond as long as patience lasts.
func within(t testing.TB, cond func() bool, what string, args ...any) {
	t.Helper()
	await(t, patience, 100*time.Microsecond, cond, what, args...)
}

// await looks for cond after every pause, until it holds or the time is over.
func await(t testing.TB, most, pause time.Duration, cond func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(most); !cond(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			require.FailNow(t, fmt.Sprintf(what, args...))
		}
	}
}

// healed is the check that ends every scenario: once all replicas hear, have
// said all they had to say, and each has heard the others' next hellos, every
// entry that one of them would serve is the ledger's.
func healed(t testing.TB, l *ledger, all ...*replica) {
	t.Helper()
	acquainted(t, all...)
	for i, r := range all {
		within(t, func() bool { return r.Stats().Backlog == 0 }, "replica %d does not get rid of its messages", i)
	}
	acquainted(t, all...)
	for i, r := range all {
		n := 0
		for key, e := range r.All() {
			n++
			require.Equal(t, l.get(key), account{e.Value, e.Version, e.Absent}, "replica %d serves an old %q: %v", i, key, r.Explain(key))
		}
		t.Logf("replica %d: %d entries served, all as in the ledger; %d suspicions", i, n, r.Stats().Suspicions)
	}
	for key := range l.some(10) { // and memory is of use again
		holds(t, key, all...)
	}
}

// holds makes each replica serve key from memory.
func holds(t testing.TB, key string, all ...*replica) {
	t.Helper()
	for _, r := range all {
		within(t, func() bool {
			_, err := r.Load(t.Context(), key)
			require.NoError(t, err)
			_, ok := r.Get(key)
			return ok
		}, "%q does not stay: %v", key, r.Explain(key))
	}
}

// add writes through one replica.
func add(t testing.TB, r *replica, key string) tidemark.Entry[int] {
	t.Helper()
	e, err := r.Update(t.Context(), key, plusOne)
	require.NoError(t, err)
	return e
}

func plusOne(cur tidemark.Entry[int]) (int, error) { return cur.Value + 1, nil }

// fresh fails if r serves a state of key below v.
func fresh(t testing.TB, r *replica, key string, v tidemark.Version) {
	t.Helper()
	if e, ok := r.GetEntry(key); ok {
		require.GreaterOrEqual(t, e.Version, v, "%v", r.Explain(key))
	}
}
