package storm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// A worker does its part of the load until ctx ends and returns what it saw.
type worker func(ctx context.Context) counts

// load runs readers, writers and faults for the configured time.
func (r *run) load(parent context.Context) (counts, error) {
	// All that is drawn beforehand is drawn before the clock starts.
	workers := append(r.writers(), r.readers(streamReaders)...)
	r.clock = newClock(r.oracle.now(), r.config.Duration+r.config.Quiet)
	r.database.meter.Store(newMeter(r.clock))
	ctx, cancel := context.WithTimeout(parent, r.config.Duration)
	defer cancel()
	begin := time.Now()
	r.faults.Go(func() { r.runFaults(ctx, begin) })
	total := together(ctx, workers)
	r.faults.Wait()
	total.dbReads = r.database.reads.Load()
	total.lasted = time.Since(begin)
	r.mu.Lock()
	defer r.mu.Unlock()
	return total, errors.Join(r.faultErr, parent.Err())
}

// readers returns the readers of all replicas.
func (r *run) readers(stream uint64) []worker {
	var readers []worker
	for i, n := range r.nodes {
		for j := range r.config.Readers {
			accounts := drawAccounts(r.config, stream+uint64(i*r.config.Readers+j), accountsDrawn)
			readers = append(readers, func(ctx context.Context) counts { return r.reader(ctx, n, accounts) })
		}
	}
	return readers
}

// writers returns the writers of all replicas.
func (r *run) writers() []worker {
	var writers []worker
	for i, n := range r.nodes {
		for j := range r.config.Writers {
			id := uint64(i*r.config.Writers + j)
			accounts := drawAccounts(r.config, streamWriters+id, accountsDrawn)
			writers = append(writers, func(ctx context.Context) counts { return r.writer(ctx, n, accounts, id) })
		}
	}
	return writers
}

// together runs all workers and adds up what they saw.
func together(ctx context.Context, workers []worker) counts {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total counts
	for _, work := range workers {
		wg.Go(func() {
			mine := work(ctx)
			mu.Lock()
			defer mu.Unlock()
			total.add(&mine)
		})
	}
	wg.Wait()
	return total
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

// newCounts returns those of a reader that has seen nothing.
func (r *run) newCounts() counts { return counts{slices: make([]slice, r.clock.slices)} }

// reader reads accounts in their order at its share of the rate.
func (r *run) reader(ctx context.Context, n *node, accounts []uint32) counts {
	c := r.config
	share := float64(c.ReadRate) * readTick.Seconds() / float64(c.Readers*c.Replicas)
	work := context.WithoutCancel(ctx) // a read that has begun is finished
	mine := r.newCounts()
	var budget float64
	begin := time.Now()
	p := newPace(readTick)
	for i := 0; p.wait(ctx); {
		for budget += share; budget >= 1; budget-- {
			r.readOne(work, n, int(accounts[i%len(accounts)]), i%latencySample == 0, &mine)
			i++
		}
	}
	mine.took = time.Since(begin)
	return mine
}

// readOne does one read and has it judged.
func (r *run) readOne(ctx context.Context, n *node, account int, measure bool, mine *counts) {
	before := r.oracle.beginRead(n.id, account)
	gone := r.gate.isShut()
	got, err := n.replica.read(ctx, account)
	if measure {
		mine.readLatency.add(time.Duration(r.oracle.now() - before.began))
	}
	mine.reads++
	slot := &mine.slices[r.clock.slot(before.began)]
	slot.reads++
	mine.duringOutage(gone, got.flagged, err)
	if err != nil {
		slot.failed++
		r.readErrors.Add(1)
		r.note("read of account %d on replica %d failed: %v", account, n.id, err)
		return
	}
	if got.hit {
		mine.hits++
	}
	if got.flagged {
		slot.flagged++
	}
	v := r.oracle.endRead(before, got.account.Op)
	v.undoubted = v.undoubted && !got.flagged // who does not know says so
	if v != (verdict{version: v.version}) {
		r.judge(before, got, v, mine, slot)
	}
}

// judge enters a read that the oracle has something to say about.
func (r *run) judge(before reading, got answer, v verdict, mine *counts, slot *slice) {
	// A read that says that it may be older than was asked for keeps no bound, and
	// states none.
	beyond := r.promise.beyond(v) && !got.flagged
	broken := beyond && !r.promise.counted || r.promise.belowMark(v)
	mine.judge(v, broken, beyond)
	if v.stale {
		slot.stale++
		slot.worst = max(slot.worst, v.staleFor)
	}
	what := violationOf(v, r.promise, got.flagged)
	if what == "" {
		return
	}
	slot.wrong++
	r.keepFirst(before, v, what)
	if r.promise.tideMark {
		r.note("%.3fs replica %d account %d: read version %d (op %d, hit %t); newest acknowledged %d (%v earlier, confirmed %v), shown here %d, told here %d, told to doubt at %.3fs: %s",
			time.Duration(before.began).Seconds(), before.replica, before.account, v.version, got.account.Op, got.hit, before.newest.version, v.staleFor, v.overdue,
			before.shown, before.told, time.Duration(before.doubted-1).Seconds(), what)
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
		if err == nil && !n.dead.Load() || r.promise.committed {
			r.oracle.confirm(account, op, at)
		}
		if err == nil && committed && n.id < r.config.Replicas {
			r.oracle.heard(n.id, account, version)
		}
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		r.ledger.recordDoubtful(account)
		r.doubtfulWrites.Add(1)
	default:
		r.oracle.abandoned(account, op)
	}
	if err != nil && n.id < r.config.Replicas { // of a dying writer nothing else is expected
		r.writeErrors.Add(1)
		r.note("deposit on account %d on replica %d failed, committed %t: %v", account, n.id, committed, err)
	}
	return err
}
