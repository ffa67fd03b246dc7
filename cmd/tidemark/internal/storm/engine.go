package storm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/tidemark-go/tidemark"
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
	report := &Report{Schema: 1, Config: c, Began: time.Now().UTC().Truncate(time.Second), Machine: thisMachine()}
	for i, name := range c.Contenders {
		status := Status{Contender: name, Index: i, Of: len(c.Contenders), Total: c.Duration + c.Quiet}
		result, err := runContender(ctx, c, lookup(name), status, progress)
		if err != nil {
			// Whatever an interrupt broke first, the interrupt is the reason.
			return nil, fmt.Errorf("storm: %s: %w", name, errors.Join(ctx.Err(), err))
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
	redis     *redis.Options // nil if the contender needs none
	prefix    string         // of all keys in the Redis
	prober    tidemark.Prober
	relayConn *nats.Conn
	oracle    *oracle
	ledger    *ledger
	nodes     []*node
	faults    sync.WaitGroup
	gate      gate  // of the replicas
	clock     clock // of the load and the quiet time; set when the load begins

	writeErrors, readErrors atomic.Uint64
	doubtfulWrites          atomic.Uint64

	mu         sync.Mutex // guards everything below
	report     func(event string)
	killed     map[change]struct{} // committed and never published
	violations []string
	faultErr   error
	executed   []string
	events     []Event
	first      *Violation // the earliest
	firstBegan int64      // when its read did
}

// A node is one process of the service: its network, its connection, its
// window on the database and its cache.
type node struct {
	id      int
	proxy   *proxy   // to NATS
	tcp     *tcpLink // to Redis
	bank    *bank
	conns   []*nats.Conn
	links   []*link
	logs    []*logLink
	dead    atomic.Bool // killed: nobody hears what it says any more
	replica replica
}

// runContender runs the whole storm against one contender.
func runContender(ctx context.Context, c Config, who contender, status Status, progress func(Status)) (result Result, err error) {
	dir, err := os.MkdirTemp("", "tidemark-storm-")
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

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
	afterwards, err := r.calm(ctx)
	if err != nil {
		return Result{}, err
	}
	counts.addWrongs(&afterwards)
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
	if r.server, err = startServer(filepath.Join(dir, "nats")); err != nil {
		return err
	}
	if err := r.openDatabase(ctx, dir); err != nil {
		return err
	}
	if err := r.openRedis(ctx); err != nil {
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
	return nil
}

// openDatabase creates the accounts, and has the database tell the contender's log
// what changes if both can do that.
func (r *run) openDatabase(ctx context.Context, dir string) error {
	var rows records
	var err error
	if r.config.Store == "" {
		rows, err = openSQLite(ctx, filepath.Join(dir, "accounts.db"), r.config.Accounts)
	} else {
		rows, err = openPostgres(ctx, r.config.Store, r.config.Accounts)
	}
	if err != nil {
		return err
	}
	r.database = &database{records: rows, oracle: r.oracle}
	source, tells := rows.(outboxed)
	hearer, hears := r.contender.(relayed)
	if !tells || !hears {
		return nil
	}
	if r.prober, err = source.prober(); err != nil {
		return err
	}
	// The relay is no replica, and nothing happens to its connection.
	r.relayConn, err = nats.Connect(r.server.ClientURL(), tidemark.NATSConnectOptions()...)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if err := source.tell(ctx, hearer.invalidator(r.relayConn)); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

// openRedis sees whether the Redis is there, if the contender needs one.
func (r *run) openRedis(ctx context.Context) error {
	if !needsRedis(r.contender) {
		return nil
	}
	o, err := redisOptions(r.config.Redis)
	if err != nil {
		return fmt.Errorf("address of Redis: %w", err)
	}
	client := redis.NewClient(o)
	if err := errors.Join(client.Ping(ctx).Err(), client.Close()); err != nil {
		return fmt.Errorf("reaching Redis: %w", err)
	}
	r.redis, r.prefix = o, "tidemark-storm:"+rand.Text()+":"
	return nil
}

// newRedisClient returns a client whose connections go through link, if not nil.
func (r *run) newRedisClient(link *tcpLink) (*redis.Client, error) {
	if r.redis == nil {
		return nil, errors.New("storm: there is no Redis")
	}
	o := *r.redis
	if link != nil {
		o.Dialer = link.through(redis.NewDialer(r.redis))
	}
	return redis.NewClient(&o), nil
}

// clearRedis deletes what the replicas have stored.
func (r *run) clearRedis(ctx context.Context) error {
	client, err := r.newRedisClient(nil)
	if err != nil {
		return err
	}
	keys := client.Scan(ctx, 0, r.prefix+"*", 1000).Iterator()
	var batch []string
	var errs []error
	remove := func(atLeast int) {
		if len(batch) >= atLeast {
			errs = append(errs, client.Unlink(ctx, batch...).Err())
			batch = batch[:0]
		}
	}
	for keys.Next(ctx) {
		batch = append(batch, keys.Val())
		remove(1000)
	}
	remove(1)
	errs = append(errs, keys.Err(), client.Close())
	return errors.Join(errs...)
}

// startServer starts a NATS server on a free loopback port, the same for every
// contender. What its streams hold is in dir.
func startServer(dir string) (*server.Server, error) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: dir, JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 1 << 30,
	})
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
	n := &node{id: id, proxy: p, tcp: newTCPLink(), bank: &bank{database: r.database, latency: r.config.DBLatency}}
	if id < r.config.Replicas {
		n.bank.gate = &r.gate
	}
	n.replica, err = r.contender.open(&environment{
		config: r.config,
		bank:   n.bank,
		prober: r.prober,
		prefix: r.prefix,
		redis:  func() (*redis.Client, error) { return r.newRedisClient(n.tcp) },
		inside: func() (*redis.Client, error) { return r.newRedisClient(nil) },
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
		throughLog: func(log tidemark.Log, e ears) tidemark.Log {
			l := &logLink{inner: log, ears: e, stopped: make(chan struct{})}
			n.logs = append(n.logs, l)
			if id < r.config.Replicas {
				l.oracle, l.replica = r.oracle, id
			}
			return l
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
	if r.redis != nil {
		errs = append(errs, r.clearRedis(ctx))
	}
	if r.database != nil {
		errs = append(errs, r.database.records.close())
	}
	if r.relayConn != nil {
		r.relayConn.Close()
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
	n.tcp.close()
	return err
}

// cut and the others happen to all that connects the process to NATS and to Redis.
// Its connection to the database is left alone.
func (n *node) cut()      { n.proxy.cut(); n.tcp.cut() }
func (n *node) restore()  { n.proxy.restore(); n.tcp.restore() }
func (n *node) freeze()   { n.proxy.freeze(); n.tcp.freeze() }
func (n *node) unfreeze() { n.proxy.unfreeze(); n.tcp.unfreeze() }

// calm ends all faults and gives the contender the quiet time to recover.
// Nothing is written any more, but the readers go on: an empty cache has no
// wrong entries, and that is not what is to be found out.
func (r *run) calm(parent context.Context) (counts, error) {
	for _, n := range r.nodes {
		n.restore()
		n.unfreeze()
		for _, l := range n.links {
			l.setWeather(Weather{})
		}
	}
	r.tell("the storm is over; quiet time")
	readers := r.readers(streamQuiet)
	ctx, cancel := context.WithTimeout(parent, r.config.Quiet)
	defer cancel()
	afterwards := together(ctx, readers)
	for deadline := time.Now().Add(5 * time.Second); r.held() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return afterwards, fmt.Errorf("%d messages are still under way", r.held())
		}
	}
	return afterwards, parent.Err()
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
