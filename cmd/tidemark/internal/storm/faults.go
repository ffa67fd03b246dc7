package storm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
)

// runFaults runs the schedule. It returns when every fault has ended.
func (r *run) runFaults(ctx context.Context, begin time.Time) {
	kills := 0
	for _, f := range schedule(r.config) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(begin.Add(f.at))):
		}
		r.tell(f.String())
		at := r.oracle.now()
		switch f.kind {
		case faultOutage:
			r.during(ctx, f, func() { r.gate.shut(f.length) }, r.gate.open)
		case faultCut:
			r.during(ctx, f, r.nodes[f.replica].cut, r.nodes[f.replica].restore)
		case faultFreeze:
			r.during(ctx, f, r.nodes[f.replica].freeze, r.nodes[f.replica].unfreeze)
		case faultStall:
			for _, l := range r.nodes[f.replica].links {
				l.stall(f.length)
			}
			for _, l := range r.nodes[f.replica].logs {
				l.stall(f.length)
			}
		case faultKill:
			n := kills
			kills++
			r.faults.Go(func() { r.fail(r.killWriter(ctx, n)) })
		case faultReconcile:
			r.faults.Go(func() { r.fail(r.reconcile(ctx)) })
		}
		r.mu.Lock()
		r.executed = append(r.executed, fmt.Sprintf("%.2fs %v", time.Since(begin).Seconds(), f))
		r.events = append(r.events, Event{f.kind.String(), r.clock.ms(at), milliseconds(f.length), f.replica, f.String()})
		r.mu.Unlock()
	}
}

// during begins a fault now and ends it after its length, or when the load
// ends.
func (r *run) during(ctx context.Context, f fault, start, end func()) {
	start()
	r.faults.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(f.length):
		}
		end()
	})
}

// fail remembers that the storm itself went wrong.
func (r *run) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faultErr = errors.Join(r.faultErr, err)
}

// depositsBeforeDeath is how many deposits a doomed writer makes in order to
// have a warm cache and a place among the replicas when it dies.
const depositsBeforeDeath = 3

// killWriter starts a process that makes some deposits and dies in the middle
// of the last: the database has committed it, and nothing that the process does
// afterwards reaches anybody. The process's own view of that does not matter.
func (r *run) killWriter(ctx context.Context, nth int) error {
	ctx = context.WithoutCancel(ctx)
	n, err := r.openNode(r.config.Replicas+nth, Weather{})
	if err != nil {
		if n != nil {
			err = errors.Join(err, n.close(ctx))
		}
		return fmt.Errorf("starting a writer: %w", err)
	}
	accounts := drawAccounts(r.config, streamKills+uint64(nth)<<8, depositsBeforeDeath+1)
	for _, a := range accounts[:depositsBeforeDeath] {
		// An error has been entered in the books; the writer dies anyway.
		_ = r.deposit(ctx, n, int(a), 100)
	}
	return r.killDuring(ctx, n, int(accounts[depositsBeforeDeath]))
}

// killDuring lets n make one deposit and kills it at the commit.
func (r *run) killDuring(ctx context.Context, n *node, account int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	died := make(chan struct{})
	n.bank.onCommit(func(account int, op, version uint64) {
		n.die()
		if !r.promise.heard {
			r.mu.Lock()
			r.killed[change{account, version}] = struct{}{}
			r.mu.Unlock()
		}
		// The statement has returned: from here on the deposit is a fact.
		at := r.oracle.now()
		r.oracle.acknowledge(account, op, at)
		if r.promise.committed {
			r.oracle.confirm(account, op, at)
		}
		close(died)
	})
	finished := make(chan error, 1)
	r.faults.Go(func() { finished <- r.deposit(ctx, n, account, 100) })
	select {
	case err := <-finished:
		select {
		case <-died: // both are ready
		default:
			return errors.Join(fmt.Errorf("the writer that was to die did not commit: %w", err), n.close(ctx))
		}
	case <-died:
		cancel()
		<-finished // what a dead process returns is nobody's business
	}
	// Free what the dead process holds. It is silent, so nobody can see this,
	// and that it has something left to publish is the point.
	grave, done := context.WithTimeout(context.WithoutCancel(ctx), 200*time.Millisecond)
	defer done()
	_ = n.close(grave)
	return nil
}

// die makes the process silent and deaf, and resets its connection.
func (n *node) die() {
	n.dead.Store(true)
	for _, l := range n.links {
		l.kill()
	}
	for _, l := range n.logs {
		l.kill()
	}
	n.cut()
}

// reconcileChunk is how many accounts one transaction of the job changes.
const reconcileChunk = 50

// jobTime is how long the job may take before the storm gives up.
const jobTime = 30 * time.Second

// openAnnouncer returns what the job has to tell the replicas with; nil if there is
// no such thing, or no need for it: if the database tells.
func (r *run) openAnnouncer(nc *nats.Conn) (announcer, error) {
	if r.promise.heard {
		return nil, nil
	}
	if c, needs := r.contender.(onRedis); needs {
		client, err := r.newRedisClient(nil)
		if err != nil {
			return nil, err
		}
		return c.redisAnnouncer(client, r.prefix, r.config.RedisTTL), nil
	}
	return r.contender.openAnnouncer(nc)
}

// reconcile is the overnight job: it changes accounts by SQL alone, and tells
// the replicas from outside, if the contender has a way to do so.
func (r *run) reconcile(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobTime)
	defer cancel()
	nc, err := nats.Connect(r.server.ClientURL())
	if err != nil {
		return fmt.Errorf("reconciliation: %w", err)
	}
	defer nc.Close()
	tell, err := r.openAnnouncer(nc)
	if err != nil {
		return fmt.Errorf("reconciliation: %w", err)
	}
	accounts := drawDistinct(r.config, streamReconcile, r.config.Reconcile)
	rng := rand.New(rand.NewPCG(r.config.Seed, streamReconcile+1<<32))
	for len(accounts) > 0 {
		chunk := accounts[:min(reconcileChunk, len(accounts))]
		accounts = accounts[len(chunk):]
		corrections, changes, err := r.correctAccounts(ctx, chunk, rng)
		if err != nil {
			return fmt.Errorf("reconciliation: %w", err)
		}
		if tell == nil {
			continue
		}
		if err := tell.announce(ctx, changes); err != nil {
			return fmt.Errorf("announcing the reconciliation: %w", errors.Join(err, tell.close(ctx)))
		}
		at := r.oracle.now()
		for _, c := range corrections {
			r.oracle.confirm(c.account, c.op, at)
		}
	}
	if tell == nil {
		return nil
	}
	return tell.close(ctx)
}

// correctAccounts makes a small deposit into each account in one transaction,
// and enters it in the books.
func (r *run) correctAccounts(ctx context.Context, accounts []int, rng *rand.Rand) ([]correction, []change, error) {
	corrections := make([]correction, len(accounts))
	for i, a := range accounts {
		corrections[i] = correction{account: a, op: r.oracle.beginWrite(a), cents: 1 + rng.Int64N(100)}
	}
	changes, err := r.database.correct(ctx, corrections)
	at := r.oracle.now()
	if err != nil {
		return nil, nil, err
	}
	for _, c := range corrections {
		r.oracle.acknowledge(c.account, c.op, at)
		if r.promise.heard {
			r.oracle.confirm(c.account, c.op, at)
		}
		r.ledger.record(c.account, c.cents)
	}
	return corrections, changes, nil
}
