package storm

import (
	"context"
	"time"
)

// counts are what one worker saw, or all of them together.
type counts struct {
	reads, hits, writes       uint64
	stale, backward, beyond   uint64
	unpromised                uint64 // of beyond
	unknown, dbReads          uint64
	took                      time.Duration // the reader that was the last to end
	lasted                    time.Duration // the load
	slices                    []slice       // of a reader
	served, failed, flagged   uint64        // reads that began while the database was gone
	worstStale                time.Duration
	staleFor                  histogram
	readLatency, writeLatency histogram
}

// judge enters a verdict that is not clean.
func (c *counts) judge(v verdict, broken, beyond bool) {
	if v.stale {
		c.stale++
		c.worstStale = max(c.worstStale, v.staleFor)
		c.staleFor.add(v.staleFor)
	}
	if v.backward {
		c.backward++
	}
	if beyond || broken {
		c.beyond++
	}
	if beyond && !broken {
		c.unpromised++
	}
	if v.unknown {
		c.unknown++
	}
}

// duringOutage enters a read that began while the database was gone.
func (c *counts) duringOutage(gone, flagged bool, err error) {
	switch {
	case !gone:
	case err != nil:
		c.failed++
	default:
		c.served++
		if flagged {
			c.flagged++
		}
	}
}

func (c *counts) add(d *counts) {
	c.reads += d.reads
	c.hits += d.hits
	c.writes += d.writes
	c.stale += d.stale
	c.backward += d.backward
	c.beyond += d.beyond
	c.unpromised += d.unpromised
	c.unknown += d.unknown
	c.worstStale = max(c.worstStale, d.worstStale)
	c.took = max(c.took, d.took)
	c.slices = addSlices(c.slices, d.slices)
	c.served += d.served
	c.failed += d.failed
	c.flagged += d.flagged
	c.staleFor.merge(&d.staleFor)
	c.readLatency.merge(&d.readLatency)
	c.writeLatency.merge(&d.writeLatency)
}

// inspect compares the books and the caches with the database, and sums up.
func (r *run) inspect(ctx context.Context, c counts) (Result, error) {
	var books imbalance
	var rest atRest
	caches := r.nodes
	if needsRedis(r.contender) {
		caches = caches[:1] // one Redis, one look at it
	}
	err := r.database.records.all(ctx, func(account int, a Account, version uint64) {
		books = books.add(r.ledger.compare(account, a))
		for _, n := range caches {
			rest.add(r.compareResident(n, account, a))
		}
	})
	if err != nil {
		return Result{}, err
	}
	res := Result{
		Name:    r.contender.name(),
		Promise: r.promise.text,
		Reads:   c.reads, Writes: c.writes,
		StaleReads: c.stale, MaxStaleMs: milliseconds(c.worstStale),
		StaleP50Ms:    milliseconds(c.staleFor.quantile(0.50)),
		BackwardReads: c.backward,
		LostUpdates:   uint64(books.lost + books.repeated), LostCents: books.cents,
		WrongAtRest: rest.wrong, WrongUnannounced: rest.unannounced, Resident: rest.resident,
		BeyondBound: c.beyond, Unpromised: c.unpromised, UnknownReads: c.unknown,
		DBReads:   c.dbReads,
		ReadP50Ns: c.readLatency.quantile(0.50).Nanoseconds(), ReadP99Ns: c.readLatency.quantile(0.99).Nanoseconds(),
		WriteP50Us: microseconds(c.writeLatency.quantile(0.50)), WriteP99Us: microseconds(c.writeLatency.quantile(0.99)),
		ReadErrors: r.readErrors.Load(), WriteErrors: r.writeErrors.Load(), DoubtfulWrites: r.doubtfulWrites.Load(),
	}
	if c.reads > 0 {
		res.HitRatio = float64(c.hits) / float64(c.reads)
	}
	if c.took > 0 {
		res.ReadsPerS = float64(c.reads) / c.took.Seconds()
	}
	for _, n := range r.nodes {
		for _, l := range n.links {
			res.Messages = res.Messages.add(l.tally())
		}
	}
	res.Series = series(r.clock, c.lasted, c.slices, r.database.meter.Load())
	res.ReadLatency, res.WriteLatency = c.readLatency.coarse(), c.writeLatency.coarse()
	if !r.promise.counted {
		res.BoundMs = milliseconds(r.promise.maxStale)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	res.Faults, res.Violations, res.Events, res.FirstViolation = r.executed, r.violations, r.events, r.first
	for _, e := range r.events {
		if e.Kind == faultOutage.String() {
			o := measureOutage(Outage{AtMs: e.AtMs, ForMs: e.ForMs, ReadsServed: c.served, ReadsFailed: c.failed, FlaggedReads: c.flagged}, res.Series)
			res.Outage = &o
		}
	}
	return res, nil
}

// addWrongs adds what must never happen, and when, and no more: d is from the quiet
// time, which is not part of the load.
func (c *counts) addWrongs(d *counts) {
	c.slices = addSlices(c.slices, d.slices)
	c.backward += d.backward
	c.beyond += d.beyond
	c.unpromised += d.unpromised
	c.unknown += d.unknown
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// atRest sums up what the caches hold when nothing moves any more.
type atRest struct {
	resident    uint64
	wrong       uint64
	unannounced uint64 // of wrong: all that is newer came from writers killed before they could tell
}

func (s *atRest) add(t atRest) {
	s.resident += t.resident
	s.wrong += t.wrong
	s.unannounced += t.unannounced
}

// compareResident compares what n would serve from memory with the database.
func (r *run) compareResident(n *node, account int, truth Account) atRest {
	a, ok := n.replica.peek(account)
	if !ok {
		return atRest{}
	}
	if a == truth {
		return atRest{resident: 1}
	}
	s := atRest{resident: 1, wrong: 1}
	version, exact, known := r.oracle.settle(account, a.Op)
	switch {
	case len(n.links) == 0 && !needsRedis(r.contender): // nobody is ever told of anything
	case known && exact && version >= r.newestAnnounced(account):
		s.unannounced = 1
	case r.promise.tideMark:
		r.note("at rest replica %d account %d: cached op %d version %d, the database has op %d version %d",
			n.id, account, a.Op, version, truth.Op, r.oracle.newestBut(account, nil))
	}
	return s
}

// newestAnnounced returns the newest version of account whose writer lived to
// tell it.
func (r *run) newestAnnounced(account int) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.oracle.newestBut(account, func(version uint64) bool {
		_, killed := r.killed[change{account, version}]
		return killed
	})
}
