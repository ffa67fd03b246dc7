package storm

import (
	"math"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// An oracle knows the truth about every account: which versions were committed,
// when each was acknowledged, and what each replica has shown or been told.
// It judges reads; it never looks into a cache.
//
// All times are nanoseconds on the oracle's own monotonic clock. An oracle is
// safe for concurrent use. Judging a read that returns the newest version takes
// no lock; any other takes the lock of its account alone.
type oracle struct {
	start   time.Time
	records []record // by account

	shown [][]atomic.Uint64 // [replica][account]: newest version of a completed read
	since [][]atomic.Int64  // [replica][account]: when shown was raised, a moment after it was
	told  [][]atomic.Uint64 // [replica][account]: newest version written there or heard of there

	// doubted[replica] is when the replica was last told that it may have
	// missed messages, plus one; zero means never. From then on everything it
	// serves must have been checked against the database after that time.
	doubted []atomic.Int64
}

// A record is the history of one account.
type record struct {
	newest atomic.Pointer[acknowledged] // highest version acknowledged so far; never nil

	mu sync.Mutex // guards everything below
	// versions holds the version of each write by its op, from op first on:
	// pending until the database has it, failed if it never will.
	versions  []uint64
	first     uint64 // op of versions[0]; older ones are forgotten
	forgotten uint64 // highest version among the forgotten ones
	// acks are the acknowledgements that raised the highest acknowledged
	// version, in time order, so both fields increase. When the oldest are
	// dropped, a staleness that would need them becomes a lower bound.
	acks timeline
	// confirmations are those that the contender itself has given, in the
	// same way.
	confirmations timeline
}

// acknowledged is one state of an account that a client knows to be committed.
type acknowledged struct {
	version uint64
	op      uint64
	at      int64 // when its write returned
}

// A timeline says when which version was the highest: both increase.
type timeline []acknowledged

// add appends a, whose version must be higher than the last, and returns it as
// it was appended. Beyond historyLimit the oldest half goes.
func (t *timeline) add(a acknowledged) acknowledged {
	if n := len(*t); n > 0 {
		// Two writers took the time in one order and arrive in the other.
		// The later time is the one that can be proven for both.
		a.at = max(a.at, (*t)[n-1].at)
	}
	if len(*t) >= historyLimit {
		*t = append((*t)[:0], (*t)[len(*t)/2:]...)
	}
	*t = append(*t, a)
	return a
}

// since returns the time of the oldest version above version that is
// remembered, and whether there is one.
func (t timeline) since(version uint64) (at int64, ok bool) {
	i := sort.Search(len(t), func(i int) bool { return t[i].version > version })
	if i == len(t) {
		return 0, false
	}
	return t[i].at, true
}

const (
	pending = 0              // the write has begun; the database has not answered yet
	failed  = math.MaxUint64 // the write is known not to be committed

	// historyLimit bounds the writes and the acknowledgements remembered for
	// one account. A value older than that is stale by thousands of versions;
	// only how long it has been so is then no longer exact.
	historyLimit = 1 << 14

	// openingVersion is the version of every account before the first write.
	openingVersion = 1
)

// newOracle returns an oracle for accounts 0 <= a < accounts, each at its
// opening version, and replicas 0 <= r < replicas.
func newOracle(accounts, replicas int) *oracle {
	o := &oracle{
		start:   time.Now(),
		records: make([]record, accounts),
		shown:   make([][]atomic.Uint64, replicas),
		since:   make([][]atomic.Int64, replicas),
		told:    make([][]atomic.Uint64, replicas),
		doubted: make([]atomic.Int64, replicas),
	}
	opening := &acknowledged{version: openingVersion}
	for i := range o.records {
		o.records[i].newest.Store(opening)
		o.records[i].first = 1
	}
	for i := range replicas {
		o.shown[i] = make([]atomic.Uint64, accounts)
		o.since[i] = make([]atomic.Int64, accounts)
		o.told[i] = make([]atomic.Uint64, accounts)
	}
	return o
}

// now returns the time on the oracle's clock.
func (o *oracle) now() int64 { return int64(time.Since(o.start)) }

// beginWrite returns the op of a write that is about to begin. Ops count up
// from 1 within an account.
func (o *oracle) beginWrite(account int) (op uint64) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.versions) >= historyLimit {
		half := len(r.versions) / 2
		for _, v := range r.versions[:half] {
			if v != failed {
				r.forgotten = max(r.forgotten, v)
			}
		}
		r.versions = append(r.versions[:0], r.versions[half:]...)
		r.first += uint64(half)
	}
	r.versions = append(r.versions, pending)
	return r.first + uint64(len(r.versions)) - 1
}

// committed records that the database has given version to the write op. It is
// called where the statement returns, before the contender does anything else.
func (o *oracle) committed(account int, op, version uint64) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	if op >= r.first && op-r.first < uint64(len(r.versions)) {
		r.versions[op-r.first] = version
	}
}

// abandoned records that the write op is known not to be committed, unless the
// database has already said that it is.
func (o *oracle) abandoned(account int, op uint64) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	if op >= r.first && op-r.first < uint64(len(r.versions)) && r.versions[op-r.first] == pending {
		r.versions[op-r.first] = failed
	}
}

// isCommitted tells whether the database has the write op, and as which version.
func (o *oracle) isCommitted(account int, op uint64) (version uint64, ok bool) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	v, _ := r.versionLocked(op)
	return v, v != pending && v != failed
}

// acknowledge records that the client of write op learned at time at that it is
// committed. A write that the database does not have is not acknowledged here;
// the ledger will miss its deposit.
func (o *oracle) acknowledge(account int, op uint64, at int64) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	v, exact := r.versionLocked(op)
	if !exact || v == pending || v == failed || v <= r.newest.Load().version {
		return
	}
	a := r.acks.add(acknowledged{version: v, op: op, at: at})
	r.newest.Store(&a)
}

// confirm records that the contender said at time at to whoever made the write
// op that it is done: the deposit returned without an error, or the announcer
// did after the row was changed by SQL. It comes after acknowledge, which says
// when the world could know of the commit. Of a write whose writer was killed,
// or whose deposit returned an error, there is an acknowledgement but no
// confirmation: a reader may take it for missing, but nobody promised it.
func (o *oracle) confirm(account int, op uint64, at int64) {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	v, exact := r.versionLocked(op)
	if !exact || v == pending || v == failed {
		return
	}
	if n := len(r.confirmations); n > 0 && v <= r.confirmations[n-1].version {
		return
	}
	r.confirmations.add(acknowledged{version: v, op: op, at: at})
}

// versionLocked returns the version of op: pending, failed, or a real one.
// exact is false if op is forgotten; the version is then an upper bound.
func (r *record) versionLocked(op uint64) (version uint64, exact bool) {
	switch {
	case op == 0:
		return openingVersion, true
	case op < r.first:
		return r.forgotten, false
	case op-r.first >= uint64(len(r.versions)):
		return failed, true // never begun
	}
	return r.versions[op-r.first], true
}

// heard records that replica has handled a message about version of account.
func (o *oracle) heard(replica, account int, version uint64) {
	raise(&o.told[replica][account], version)
}

// doubt records that replica was told at time at that messages may be missing.
// Call it when the replica has handled that news.
func (o *oracle) doubt(replica int, at int64) {
	d := &o.doubted[replica]
	for {
		old := d.Load()
		if old > at || d.CompareAndSwap(old, at+1) {
			return
		}
	}
}

// A reading is what was true when a read began.
type reading struct {
	replica, account int
	newest           *acknowledged
	shown, told      uint64
	doubted          int64
	began            int64
}

// beginRead takes down what was true of the account before a read on replica.
func (o *oracle) beginRead(replica, account int) reading {
	return reading{
		replica: replica, account: account,
		newest:  o.records[account].newest.Load(),
		shown:   o.shown[replica][account].Load(),
		told:    o.told[replica][account].Load(),
		doubted: o.doubted[replica].Load(),
		// The clock last: whatever was acknowledged above was so by then.
		began: o.now(),
	}
}

// A verdict is the oracle's judgement of one read.
type verdict struct {
	version   uint64        // of the value returned
	stale     bool          // a newer version had been acknowledged before the read began
	staleFor  time.Duration // how long before the read began; a lower bound if the history is trimmed
	overdue   time.Duration // how long before the read began the contender had confirmed a newer version; likewise
	backward  bool          // an earlier completed read on this replica had returned a newer version
	belowMark bool          // below the replica's tide mark: shown, written or told there before
	undoubted bool          // stale although the replica was told, after the newer version, to check everything
	unknown   bool          // the value comes from no write that is known to be committed
}

// endRead judges a read that returned a value made by the write op.
//
// A value can be read before its writer's statement has returned. Its version
// is then known a moment later, and endRead waits for it, for at most
// settleTime; the read counts as completed only then, which can hide another
// read's step backward in that moment but can never invent one.
func (o *oracle) endRead(r reading, op uint64) verdict {
	if op == r.newest.op {
		return o.judge(r, r.newest.version, true)
	}
	version, exact, known := o.settle(r.account, op)
	if !known {
		return verdict{unknown: true}
	}
	return o.judge(r, version, exact)
}

// settleTime is how long endRead waits for a version.
const settleTime = 250 * time.Millisecond

// settle returns the version of op once the database has given it.
func (o *oracle) settle(account int, op uint64) (version uint64, exact, known bool) {
	rec := &o.records[account]
	for begin := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		rec.mu.Lock()
		version, exact = rec.versionLocked(op)
		rec.mu.Unlock()
		switch {
		case version == failed:
			return 0, false, false
		case version != pending:
			return version, exact, true
		case time.Since(begin) > settleTime:
			return 0, false, false
		}
	}
}

// judge compares version with what was true when the read began. An inexact
// version is an upper bound: it can convict, but leaves no mark.
func (o *oracle) judge(r reading, version uint64, exact bool) verdict {
	v := verdict{version: version}
	if version < r.newest.version {
		since, confirmed, promised := o.staleSince(r.account, version, r.newest.at)
		v.stale = true
		if promised {
			v.overdue = time.Duration(max(0, r.began-confirmed))
		}
		v.staleFor = time.Duration(r.began - since)
		v.undoubted = r.doubted != 0 && since < r.doubted-1
	}
	v.backward = version < r.shown
	v.belowMark = version < max(r.shown, r.told)
	if exact && raise(&o.shown[r.replica][r.account], version) {
		o.since[r.replica][r.account].Store(o.now())
	}
	return v
}

// lastShown returns the newest version of account that a completed read on replica
// has returned, and when the first such read had.
func (o *oracle) lastShown(replica, account int) (at int64, version uint64) {
	at = o.since[replica][account].Load()
	return at, o.shown[replica][account].Load()
}

// around returns the acknowledgements of version, of the next above it, and of newest,
// those of them that are remembered, in order.
func (o *oracle) around(account int, version, newest uint64) (all []acknowledged) {
	rec := &o.records[account]
	rec.mu.Lock()
	defer rec.mu.Unlock()
	above := false
	for _, a := range rec.acks {
		if a.version == version || a.version == newest || a.version > version && !above {
			all = append(all, a)
		}
		above = above || a.version > version
	}
	return all
}

// staleSince returns when the oldest version newer than version was
// acknowledged, or the oldest such time still remembered; at most latest. And
// when the contender confirmed one, if it did.
func (o *oracle) staleSince(account int, version uint64, latest int64) (acknowledged, confirmed int64, promised bool) {
	rec := &o.records[account]
	rec.mu.Lock()
	defer rec.mu.Unlock()
	acknowledged, known := rec.acks.since(version)
	if !known {
		acknowledged = latest
	}
	confirmed, promised = rec.confirmations.since(version)
	return min(latest, acknowledged), confirmed, promised
}

// raise sets m to v if v is greater, and reports whether it was.
func raise(m *atomic.Uint64, v uint64) bool {
	for {
		old := m.Load()
		if v <= old {
			return false
		}
		if m.CompareAndSwap(old, v) {
			return true
		}
	}
}

// newestBut returns the newest committed version of account for which except,
// if not nil, is false.
func (o *oracle) newestBut(account int, except func(version uint64) bool) uint64 {
	r := &o.records[account]
	r.mu.Lock()
	defer r.mu.Unlock()
	newest := max(r.forgotten, openingVersion)
	for _, v := range r.versions {
		if v != failed && v > newest && (except == nil || !except(v)) {
			newest = v
		}
	}
	return newest
}
