package outbox

import "time"

// Stats is a snapshot of what a relay has counted since NewRelay. Counters only
// rise.
type Stats struct {
	Rows       uint64 // rows told and deleted, probes included
	Keys       uint64 // keys told; a key of several rows of a batch counts once
	Everything uint64 // times when everything was told to have changed
	Probes     uint64 // probes brought back
	Batches    uint64 // batches told
	Failures   uint64 // sessions that ended by an error, the one of Err the last

	// Working says that this relay is the one that works; if not, another one is, or
	// Err says why not.
	Working bool

	// Lag is for how long the oldest change that waits has waited; 0 if none does.
	// It counts from when the change was made, so it includes how long its
	// transaction took to commit. What is known to wait also counts while nothing can
	// be told. Negative: it is not known; another relay works, or the outbox is out of
	// reach.
	Lag time.Duration

	// Waiting is how many rows wait at most, as of the last look; -1 if that is not
	// known. It counts ids, also those that no row has.
	Waiting int64

	// Unheard names the triggers that do not fire: changes are not heard, and no
	// probe is answered, until the outbox is installed again.
	Unheard string

	// Err is why the last session ended; nil since this one works.
	Err error
}

// counts is what a relay counts.
type counts struct {
	rows, keys, everything, probes, batches, failures uint64

	working bool
	waiting int64         // rows
	oldest  time.Duration // age of the first of them
	looked  time.Time     // when that was
	unheard string
	err     error
}

// Stats returns a snapshot.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.counts
	s := Stats{
		Rows: c.rows, Keys: c.keys, Everything: c.everything, Probes: c.probes, Batches: c.batches, Failures: c.failures,
		Working: c.working, Lag: -1, Waiting: -1, Unheard: c.unheard, Err: c.err,
	}
	switch {
	case c.waiting > 0:
		s.Lag, s.Waiting = c.oldest+time.Since(c.looked), c.waiting
	case c.waiting == 0 && c.working:
		s.Lag, s.Waiting = 0, 0
	}
	return s
}

// leads records whether this relay works now, or another one does.
func (r *Relay) leads(working bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.working, r.counts.waiting, r.counts.err = working, -1, nil
}

// stopped records why a session has ended.
func (r *Relay) stopped(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.working = false
	if r.life.Err() == nil {
		r.counts.failures++
		r.counts.err = err
	}
}

// waits records how many changes wait, and since when, as the look of p has shown.
func (r *Relay) waits(p *page, waiting int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.looked, r.counts.oldest, r.counts.waiting = p.looked, p.oldest, waiting
}

// told records that a page is told and deleted.
func (r *Relay) told(p *page) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.counts
	if len(p.ids) > 0 {
		c.batches++
	}
	c.rows += uint64(len(p.ids))
	if p.missing == "" {
		c.probes += uint64(len(p.probes))
	}
	if p.all != "" {
		c.everything++
	} else {
		c.keys += uint64(p.named)
	}
}

// collapsed records that rows were deleted in whose place everything was told.
func (r *Relay) collapsed(rows int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.rows += uint64(rows)
	r.counts.waiting = max(r.counts.waiting-rows, 0)
}

// unheard records which triggers do not fire, and says so when that changes.
func (r *Relay) unheard(missing string) {
	r.mu.Lock()
	changed := missing != r.counts.unheard
	r.counts.unheard = missing
	r.mu.Unlock()
	switch {
	case changed && missing != "":
		r.o.Logger.Error("outbox: changes are not heard", "table", r.o.Table.Name, "triggers", missing)
	case changed:
		r.o.Logger.Info("outbox: changes are heard again", "table", r.o.Table.Name)
	}
}
