// Package storm replays what production does to a service whose replicas each
// keep a cache in front of one database: it delays, reorders, repeats and drops
// the messages between them, cuts replicas off, kills writers, and changes rows
// behind everybody's back, while readers and writers go on. It runs the same
// schedule against several ways to build such a cache and counts, against the
// truth, what their readers got to see.
//
// [Run] is the whole of it. An oracle knows every version that was committed
// and when it was acknowledged, and judges each read; a ledger knows every
// acknowledged deposit. Neither looks into a cache.
package storm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A Status says how far a storm is.
type Status struct {
	Contender string
	Index, Of int           // this contender, from 0, and how many there are
	Phase     string        // "load", "quiet" or "inspect"
	Elapsed   time.Duration // of this contender
	Total     time.Duration // of this contender, expected
	Event     string        // what just happened, or empty: only time has passed
}

// Run runs the storm that c describes against each contender in turn. It calls
// progress, if not nil, from one goroutine at a time. The error is a mistake in
// c or a failure of the storm itself, never of a contender.
func Run(ctx context.Context, c Config, progress func(Status)) (*Report, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(Status) {}
	}
	report := &Report{Schema: 1, Config: c}
	for i, name := range c.Contenders {
		status := Status{Contender: name, Index: i, Of: len(c.Contenders), Total: c.Duration + c.Quiet}
		result, err := runContender(ctx, c, lookup(name), status, progress)
		if err != nil {
			return nil, fmt.Errorf("storm: %s: %w", name, err)
		}
		report.Contenders = append(report.Contenders, result)
	}
	return report, nil
}

// A run is one contender in the storm.
type run struct {
	config    Config
	contender contender
	promise   promise
	server    *server.Server
	database  *database
	oracle    *oracle
	ledger    *ledger
	nodes     []*node
	outside   *nats.Conn // of the reconciliation
	announcer announcer  // nil if the contender has none
	faults    sync.WaitGroup

	writeErrors, readErrors atomic.Uint64
	doubtfulWrites          atomic.Uint64

	mu         sync.Mutex // guards everything below
	report     func(event string)
	killed     map[change]struct{} // committed and never published
	violations []string
	faultErr   error
	executed   []string
}

// A node is one process of the service: its network, its connection, its
// window on the database and its cache.
type node struct {
	id      int
	proxy   *proxy
	bank    *bank
	conns   []*nats.Conn
	links   []*link
	replica replica
}

// runContender runs the whole storm against one contender.
func runContender(ctx context.Context, c Config, who contender, status Status, progress func(Status)) (result Result, err error) {
	dir, err := os.MkdirTemp("", "tidemark-storm-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)

	r := &run{config: c, contender: who, promise: who.promise(c), killed: make(map[change]struct{})}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx, dir); err != nil {
		return Result{}, err
	}
	begin := time.Now()
	var phase atomic.Value
	phase.Store("load")
	r.report = func(event string) {
		s := status
		s.Phase, s.Elapsed, s.Event = phase.Load().(string), time.Since(begin), event
		progress(s)
	}
	stopTicking := r.tick()
	defer stopTicking()

	counts, err := r.load(ctx)
	if err != nil {
		return Result{}, err
	}
	phase.Store("quiet")
	if err := r.calm(ctx); err != nil {
		return Result{}, err
	}
	phase.Store("inspect")
	return r.inspect(ctx, counts)
}

// tick reports the passing of time until the returned function is called.
func (r *run) tick() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				r.tell("")
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// tell reports event; an empty one says that time has passed.
func (r *run) tell(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report(event)
}

// open starts the server, the database and the replicas.
func (r *run) open(ctx context.Context, dir string) error {
	r.oracle = newOracle(r.config.Accounts, r.config.Replicas)
	r.ledger = newLedger(r.config.Accounts)
	var err error
	if r.server, err = startServer(); err != nil {
		return err
	}
	if r.database, err = openDatabase(ctx, filepath.Join(dir, "accounts.db"), r.config.Accounts, r.oracle); err != nil {
		return err
	}
	for i := range r.config.Replicas {
		n, err := r.openNode(i, r.config.Weather)
		if n != nil {
			r.nodes = append(r.nodes, n)
		}
		if err != nil {
			return err
		}
	}
	if r.outside, err = nats.Connect(r.server.ClientURL()); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	r.announcer, err = r.contender.openAnnouncer(r.outside)
	return err
}

// startServer starts a NATS server on a free loopback port.
func startServer() (*server.Server, error) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		return nil, fmt.Errorf("nats server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("nats server: not ready within 10s")
	}
	return s, nil
}

// openNode starts one process of the service. Ids from Config.Replicas on are
// writers that the oracle does not watch: nobody reads there.
func (r *run) openNode(id int, w Weather) (*node, error) {
	p, err := newProxy(r.server.Addr().String())
	if err != nil {
		return nil, err
	}
	n := &node{id: id, proxy: p, bank: &bank{database: r.database}}
	n.replica, err = r.contender.open(&environment{
		config: r.config,
		bank:   n.bank,
		connect: func(options ...nats.Option) (*nats.Conn, error) {
			// The errors that the storm makes are no news to the terminal.
			quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
			nc, err := nats.Connect(p.url(), append([]nats.Option{quiet}, options...)...)
			if err != nil {
				return nil, fmt.Errorf("connect: %w", err)
			}
			n.conns = append(n.conns, nc)
			return nc, nil
		},
		through: func(transport hint, e ears) hint {
			l := newLink(transport, w, r.config.Seed<<8+streamLinks+uint64(id))
			n.links = append(n.links, l)
			if id >= r.config.Replicas {
				return l
			}
			// The oracle listens where the replica does, behind the weather.
			return &listening{hint: l, oracle: r.oracle, replica: id, ears: e}
		},
	})
	return n, err
}

// close releases everything, also after a half-finished open.
func (r *run) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	r.faults.Wait()
	for _, n := range r.nodes {
		errs = append(errs, n.close(ctx))
	}
	if r.announcer != nil {
		errs = append(errs, r.announcer.close(ctx))
	}
	if r.outside != nil {
		r.outside.Close()
	}
	if r.database != nil {
		errs = append(errs, r.database.close())
	}
	if r.server != nil {
		r.server.Shutdown()
		r.server.WaitForShutdown()
	}
	return errors.Join(errs...)
}

// close ends the process in an orderly way.
func (n *node) close(ctx context.Context) error {
	var err error
	if n.replica != nil {
		err = n.replica.close(ctx)
	}
	for _, nc := range n.conns {
		nc.Close()
	}
	n.proxy.Close()
	return err
}

// load runs readers, writers and faults for the configured time.
func (r *run) load(parent context.Context) (counts, error) {
	c := r.config
	ctx, cancel := context.WithTimeout(parent, c.Duration)
	defer cancel()
	begin := time.Now()
	r.faults.Go(func() { r.runFaults(ctx, begin) })

	var wg sync.WaitGroup
	var mu sync.Mutex
	var total counts
	worker := func(work func() counts) {
		wg.Go(func() {
			mine := work()
			mu.Lock()
			defer mu.Unlock()
			total.add(&mine)
		})
	}
	for i, n := range r.nodes {
		for j := range c.Readers {
			accounts := drawAccounts(c, streamReaders+uint64(i*c.Readers+j), accountsDrawn)
			worker(func() counts { return r.reader(ctx, n, accounts) })
		}
		for j := range c.Writers {
			accounts := drawAccounts(c, streamWriters+uint64(i*c.Writers+j), accountsDrawn)
			worker(func() counts { return r.writer(ctx, n, accounts, uint64(i*c.Writers+j)) })
		}
	}
	wg.Wait()
	r.faults.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return total, errors.Join(r.faultErr, parent.Err())
}

// A pace spreads work evenly over time, in ticks, and does not run after what
// it has missed: a slow contender does less, it is not punished twice.
type pace struct {
	next  time.Time
	tick  time.Duration
	timer *time.Timer
}

const (
	readTick    = 2 * time.Millisecond
	maxLateness = 50 * time.Millisecond
)

func newPace(tick time.Duration) *pace {
	return &pace{next: time.Now(), tick: tick, timer: time.NewTimer(0)}
}

// wait returns true at the next tick, or false when ctx has ended.
func (p *pace) wait(ctx context.Context) bool {
	p.next = p.next.Add(p.tick)
	now := time.Now()
	if now.Sub(p.next) > maxLateness {
		p.next = now
	}
	p.timer.Reset(p.next.Sub(now))
	select {
	case <-ctx.Done():
		return false
	case <-p.timer.C:
		return true
	}
}

// latencySample is how many reads there are to one whose latency is measured.
const latencySample = 32

// reader reads accounts in their order at its share of the rate.
func (r *run) reader(ctx context.Context, n *node, accounts []uint32) counts {
	c := r.config
	share := float64(c.ReadRate) * readTick.Seconds() / float64(c.Readers*c.Replicas)
	work := context.WithoutCancel(ctx) // a read that has begun is finished
	var mine counts
	var budget float64
	p := newPace(readTick)
	for i := 0; p.wait(ctx); {
		for budget += share; budget >= 1; budget-- {
			r.readOne(work, n, int(accounts[i%len(accounts)]), i%latencySample == 0, &mine)
			i++
		}
	}
	return mine
}

// readOne does one read and has it judged.
func (r *run) readOne(ctx context.Context, n *node, account int, measure bool, mine *counts) {
	before := r.oracle.beginRead(n.id, account)
	a, hit, err := n.replica.read(ctx, account)
	if measure {
		mine.readLatency.add(time.Duration(r.oracle.now() - before.began))
	}
	mine.reads++
	if err != nil {
		r.readErrors.Add(1)
		r.note("read of account %d on replica %d failed: %v", account, n.id, err)
		return
	}
	if hit {
		mine.hits++
	}
	v := r.oracle.endRead(before, a.Op)
	if v == (verdict{version: v.version}) {
		return
	}
	beyond := r.promise.broken(v)
	mine.judge(v, beyond)
	if r.promise.tideMark && (beyond || v.backward || v.unknown) {
		r.note("%.3fs replica %d account %d: read version %d (op %d, hit %t); newest acknowledged %d (%v earlier), shown here %d, told here %d, told to doubt at %.3fs: backward %t, below the mark %t, not checked after doubt %t, unknown %t",
			time.Duration(before.began).Seconds(), n.id, account, v.version, a.Op, hit, before.newest.version, v.staleFor,
			before.shown, before.told, time.Duration(before.doubted-1).Seconds(), v.backward, v.belowMark, v.undoubted, v.unknown)
	}
}

// notesKept bounds the violations that are kept word for word.
const notesKept = 20

// note keeps the first few violations for the report.
func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.violations) < notesKept {
		r.violations = append(r.violations, fmt.Sprintf(format, args...))
	}
}

// writer makes deposits into accounts in their order at its share of the rate.
func (r *run) writer(ctx context.Context, n *node, accounts []uint32, id uint64) counts {
	c := r.config
	amounts := rand.New(rand.NewPCG(c.Seed, streamWriters*2+id))
	work := context.WithoutCancel(ctx)
	var mine counts
	p := newPace(time.Duration(float64(time.Second) * float64(c.Writers*c.Replicas) / float64(c.WriteRate)))
	for i := 0; p.wait(ctx); i++ {
		account := int(accounts[i%len(accounts)])
		begin := time.Now()
		if r.deposit(work, n, account, 1+amounts.Int64N(10_000)) == nil {
			mine.writes++
			mine.writeLatency.add(time.Since(begin))
		}
	}
	return mine
}

// deposit makes one deposit on n and enters its fate in the books.
func (r *run) deposit(ctx context.Context, n *node, account int, cents int64) error {
	op := r.oracle.beginWrite(account)
	err := n.replica.deposit(ctx, account, op, cents)
	at := r.oracle.now()
	version, committed := r.oracle.isCommitted(account, op)
	switch {
	case err == nil || committed:
		// A deposit that the database has acknowledged counts, also if the
		// contender failed afterwards.
		r.oracle.acknowledge(account, op, at)
		r.ledger.record(account, cents)
		if err == nil && committed && n.id < r.config.Replicas {
			r.oracle.heard(n.id, account, version)
		}
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		r.ledger.recordDoubtful(account)
		r.doubtfulWrites.Add(1)
	default:
		r.oracle.abandoned(account, op)
	}
	if err != nil {
		r.writeErrors.Add(1)
		slog.Debug("deposit failed", "replica", n.id, "account", account, "committed", committed, "err", err)
	}
	return err
}

// calm ends all faults and gives the contender the quiet time to recover.
func (r *run) calm(ctx context.Context) error {
	for _, n := range r.nodes {
		n.proxy.restore()
		n.proxy.unfreeze()
		for _, l := range n.links {
			l.setWeather(Weather{})
		}
	}
	r.tell("the storm is over; quiet time")
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.config.Quiet):
	}
	for deadline := time.Now().Add(5 * time.Second); r.held() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d messages are still under way", r.held())
		}
	}
	return nil
}

// held returns how many messages are still in the links.
func (r *run) held() int {
	n := 0
	for _, node := range r.nodes {
		for _, l := range node.links {
			n += l.held()
		}
	}
	return n
}

// listening tells the oracle what a replica has been told, once the replica has
// handled it.
type listening struct {
	hint
	oracle  *oracle
	replica int
	ears    ears
}

func (l *listening) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	return l.hint.Subscribe(func(msg []byte) {
		at := l.oracle.now()
		if l.ears.message == nil {
			receive(msg)
			return
		}
		news, doubt := l.ears.message(msg)
		receive(msg)
		for _, n := range news {
			l.oracle.heard(l.replica, n.account, n.version)
		}
		if doubt {
			l.oracle.doubt(l.replica, at)
		}
	}, func(reason string) {
		at := l.oracle.now()
		lost(reason)
		if l.ears.lost {
			l.oracle.doubt(l.replica, at)
		}
	})
}
