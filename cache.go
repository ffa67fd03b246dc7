package tidemark

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark/internal/replica"
	"github.com/tidemark-go/tidemark/internal/table"
)

// A Cache holds the newest known states of keys. Make one with New. All methods
// are safe for concurrent use.
type Cache[K comparable, V any] struct {
	opts  Options[K, V]
	keys  keys[K]
	clock clock

	shift  uint8 // of a hash, to its shard
	shards []shard[K, V]
	policy *policy

	era         atomic.Uint64
	sourceEpoch atomic.Uint32 // versions of other epochs order nothing
	closed      atomic.Bool

	adopting sync.Mutex    // guards changes of sourceEpoch and of what follows
	adopted  atomic.Uint32 // sourceEpoch, once all that was of another is forgotten

	// holdOff is the moment until which a lagging load may predate what this
	// replica has missed, so that only strong loads are cached.
	holdOff atomic.Int64

	// fresh is as of when this replica has missed nothing that the Log had;
	// logged says that there is one.
	fresh  replica.Fresh
	logged bool

	salt  uint64 // of pauses, see pauseLocked
	dated bool   // a Put has to know the time
	plain bool   // a Get has to look at nothing but the entry

	places   chan struct{}     // one element per load that runs; nil: no bound
	versions *versionLoader[K] // nil: the source cannot tell them
	doubts   atomic.Int64      // writes in doubt
	replica  *member[K, V]
	audit    *auditor[K, V] // nil without Options.Audit
	stats    stats

	breaker    StateBreaker                  // Options.Breaker, if it tells its state
	breakerWas atomic.Uint32                 // its state, as last noticed
	watching   atomic.Int64                  // how many have come to notice a change since somebody began to
	opens      atomic.Pointer[chan struct{}] // closed, and replaced, when it is seen to open

	logLimit *logLimit

	distrusted atomic.Uint64 // entries of earlier eras are not lent, see trusted

	sweepAll atomic.Bool // entries of an old generation wait to be swept

	// life ends when Close does. Every goroutine and call of this cache's own
	// ends with it.
	life    context.Context
	endLife context.CancelFunc
	loads   gate           // loads and settlings of doubts
	pump    sync.WaitGroup // the policy goroutine, and the auditor's
	work    gate           // writes and invalidations that Close waits for
	closing sync.Once
	closeEr error
}

// New returns a cache. All mistakes in o are reported at once; errors.As finds
// them as [*OptionError].
//
// The cache owns three goroutines, for admission and eviction, at least two more if
// it has an Invalidator, and one if it has an auditor; Close ends them. New does not wait for the network:
// until the first hello has come back through the Invalidator, every read goes
// to the source.
func New[K comparable, V any](o Options[K, V]) (*Cache[K, V], error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	c := &Cache[K, V]{
		opts:   o,
		keys:   newKeys(o.KeyCodec),
		clock:  clock{began: time.Now()},
		shift:  uint8(64 - bits.Len(uint(o.Shards-1))),
		shards: make([]shard[K, V], o.Shards),
		salt:   rand.Uint64(),
	}
	c.life, c.endLife = context.WithCancel(context.Background())
	c.stats.init()
	c.opts.Logger, c.logLimit = limitLog(o.Logger, c.now, &c.stats.panics)
	if o.MaxLoads > 0 {
		c.places = make(chan struct{}, o.MaxLoads)
	}
	c.versions = newVersionLoader(&o)
	if b, tells := o.Breaker.(StateBreaker); tells {
		c.breaker = b
		c.breakerWas.Store(uint32(BreakerClosed))
		opens := make(chan struct{})
		c.opens.Store(&opens)
	}
	c.policy, err = newPolicy(o.MaxCost, o.ExpectedEntries, o.Shards, c.left)
	if err != nil {
		return nil, err
	}
	slots := ceilPow2(int(min(max(o.ExpectedEntries/int64(o.Shards), 64), 1024, max(tideSlots/int64(o.Shards), 64))))
	layout := table.NewLayout[K, V, head](c.keys.hash)
	perShard := float64(o.ExpectedEntries) / float64(o.Shards)
	perShard += 2 * math.Sqrt(perShard) // one shard in fifty has more by chance
	for i := range c.shards {
		c.shards[i].init(c.policy, i, layout, perShard, slots, o.Loader == nil, int64(o.LoaderClass.lag))
	}
	c.logged = o.Invalidator.Log != nil
	c.dated = o.TTL != 0 || o.EntryTTL != nil || o.RefreshAfter != 0
	c.plain = o.Level == Any && o.MaxStale == 0 && o.RefreshAfter == 0
	c.sourceEpoch.Store(o.SourceEpoch)
	c.adopted.Store(o.SourceEpoch)
	c.fresh.Reset(0)
	if o.Shadow {
		c.era.Store(eraShadow)
	}
	if o.Audit != nil {
		c.audit = newAuditor(c)
		c.pump.Go(c.audit.run)
	}
	c.pump.Go(c.maintain)
	if o.Invalidator.connected() {
		if err := c.join(); err != nil {
			return nil, errors.Join(err, c.Close(context.Background()))
		}
	}
	return c, nil
}

// A skew is what a simulation does to this machine's clocks, which a bubble of
// testing/synctest cannot: it has one clock for all.
type skew struct {
	slept atomic.Int64 // for how long the monotonic clock has stood still
	set   atomic.Int64 // by how much the wall clock was set forward
}

// A clock is the monotonic clock, and how far it is from the wall clock.
type clock struct {
	began time.Time // moments are counted from here
	skew  skew      // zero, but in a simulation
}

func (k *clock) now() int64 { return int64(time.Since(k.began)) - k.skew.slept.Load() }

func (c *Cache[K, V]) now() int64 { return c.clock.now() }

// after returns the moment d after at, or the last one there is.
func after(at int64, d time.Duration) int64 {
	if t := at + int64(d); t >= at || d < 0 {
		return t
	}
	return math.MaxInt64
}

// moment must be called under the lock of the shard that it is used for: the
// shard's count of entries relies on eras that do not go back.
func (c *Cache[K, V]) moment() moment {
	return moment{era: c.era.Load(), clock: &c.clock}
}

func (c *Cache[K, V]) shard(hash uint64) *shard[K, V] {
	return &c.shards[hash>>(c.shift&63)&uint64(len(c.shards)-1)]
}

// Get returns the value of key if memory has one that may be served at
// [Options.Level]. It takes no lock, waits for nothing but a write of the same
// entry that is a few stores from its end, and allocates nothing, but for the load that
// it starts if [Options.RefreshAfter] has passed. A cached absence is a miss
// here; GetEntry tells them apart.
//
// The value is shared with other readers and must not be modified.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	if !c.plain {
		return c.getAt(key)
	}
	hash, era := c.keys.hash(key), c.era.Load()
	s := c.shard(hash)
	for {
		// The value goes to its place at once: each copy on the way would be waited for.
		p, found := s.table.Load(hash, key, &value)
		if !found {
			break
		}
		h := p.Head
		good := h.era.Load() == era && !h.absent() && (h.expiresAt.Load() == 0 || c.now() < h.expiresAt.Load())
		if !p.Valid() {
			continue
		}
		if !good {
			break
		}
		c.stats.hits.add()
		h.use()
		if s.policy.samples(hash) {
			s.touch(h, hash)
		}
		return value, true
	}
	c.stats.misses.add()
	var zero V // and not what was copied on the way
	return zero, false
}

// getAt is Get at a level that has more to ask.
func (c *Cache[K, V]) getAt(key K) (V, bool) {
	var n node[K, V]
	_, ok := c.find(key, &n)
	switch {
	case !ok:
		c.stats.misses.add()
	case !n.E.absent:
		return n.E.value, true
	}
	var zero V
	return zero, false
}

// GetEntry is Get with everything that is known of the state. A cached absence
// is a hit, with Absent set, and so is, with Stale set, what
// [Options.StaleWhileRevalidate] lets it serve; then it starts a load.
func (c *Cache[K, V]) GetEntry(key K) (Entry[V], bool) {
	var n node[K, V]
	if fresh, ok := c.find(key, &n); ok {
		return n.E.public(fresh, c.moments()), true
	}
	if e, ok := c.meanwhile(key, n.Hash, c.opts.Level, false); ok {
		return e, true
	}
	c.stats.misses.add()
	return Entry[V]{Age: -1}, false
}

// find copies the entry of key to n if it may be served, returns the mark that
// vouches for it, and counts the hit.
func (c *Cache[K, V]) find(key K, n *node[K, V]) (replica.Mark, bool) {
	hash := c.keys.hash(key)
	applied, fresh := c.applied(c.opts.Level), c.freshness()
	p, ok := c.peek(hash, key, n)
	var now replica.Moment
	if c.timed(c.opts.Level) {
		now = c.moments()
	}
	if !ok || !c.admits(c.opts.Level, applied, &n.E.facts, fresh, now) {
		return fresh, false
	}
	c.hit(p, key, hash)
	return fresh, true
}

// peek copies the entry of key to n if it is of this era and has not expired. An
// entry never changes its era but by being replaced, and eras never come back, so
// an entry that something has made suspect after the era was read is one that was
// good while this ran.
func (c *Cache[K, V]) peek(hash uint64, key K, n *node[K, V]) (p place, ok bool) {
	era := c.era.Load()
	n.Key, n.Hash = key, hash
	p, ok = c.shard(hash).look(hash, key, &n.E.value, &n.E.facts)
	return p, ok && c.servable(era, &n.E.facts)
}

// servable reports whether an entry may be served in this era.
func (c *Cache[K, V]) servable(era uint64, e *facts) bool {
	return e.era == era && (e.expiresAt == 0 || !e.expired(c.now()))
}

// hit counts a hit on the key whose entry was copied from p, and tells the policy.
func (c *Cache[K, V]) hit(p place, key K, hash uint64) {
	c.stats.hits.add()
	p.Head.use()
	if c.policy.samples(hash) {
		c.shard(hash).touch(p.Head, hash)
	}
	if c.opts.RefreshAfter > 0 {
		c.refresh(p, key, hash)
	}
}

// Put offers a value that the caller knows to be committed at version, for
// example because it has just written it. It is readable at once. It never
// takes the key back: below the tide mark it is Stale, and where memory cannot
// show that it is not, Unproven. Then Load, BeginFill or Update do the work.
//
// A key without an entry has no mark of its own; the highest mark of the keys
// that share its slot stands for it, and after InvalidateAll, or when a key of
// the slot has changed or was found absent without a version, only an entry
// that a Load, a Fill or a write has brought can show that a Put is newer. A
// cache with nothing to load from takes the Put's word then.
//
// Put makes no promise that version is still the newest: that is the caller's
// knowledge. It is not broadcast. A Put of version 0 is word that the key has
// changed, as Invalidate with version 0 is: Unproven, and the entry is gone. The
// Age of what it brings is not known, so no read Within a bound takes it.
//
// Putting a present key allocates nothing, if the value has up to 128 bytes.
func (c *Cache[K, V]) Put(key K, value V, version Version) Outcome {
	if c.closed.Load() {
		return Closed
	}
	hash := c.keys.hash(key)
	n := newNode(key, hash, value, mark{version: version}, byPut)
	n.E.provenAt = unproven
	var now int64
	if c.dated {
		now = c.now()
	}
	return c.offer(&n, c.cost(key, value), now, func(s *shard[K, V], at moment) (Outcome, *fence[K]) {
		return s.judgePutLocked(key, hash, mark{version: version}, at), nil
	})
}

// newNode returns an entry that is not in the table yet.
func newNode[K comparable, V any](key K, hash uint64, value V, m mark, by cause) node[K, V] {
	return node[K, V]{Key: key, Hash: hash, E: entry[V]{value, facts{version: m.version, absent: m.absent, cause: by}}}
}

// offer installs n if judge, called under the lock, allows it, and otherwise
// takes it as word of its version. n's times count from began.
func (c *Cache[K, V]) offer(n *node[K, V], cost int64, began int64, judge func(*shard[K, V], moment) (Outcome, *fence[K])) Outcome {
	s := c.shard(n.Hash)
	cached := c.setTimes(n, began)
	tooLarge := cost > c.policy.limit.Load()
	for try := 0; ; try++ {
		s.mu.Lock()
		at := c.moment()
		outcome, self := judge(s, at)
		var missing int64
		spurned := false
		if outcome == Applied && cached && !tooLarge && try < 4 {
			missing = s.installLocked(n, cost, self, at)
		} else if outcome != Duplicate {
			if spurned = outcome == Applied; spurned {
				outcome = Unproven // it is not to be kept, or others take the room as fast as it is made
			}
			// Not stored, but the key has reached this version all the same.
			c.noteLocked(s, n, self, at)
		}
		s.mu.Unlock()
		if missing > 0 {
			c.makeRoom(missing, n.Hash)
			continue
		}
		if tooLarge && outcome != Stale {
			outcome = TooLarge
		}
		c.stats.outcome(n.E.cause, outcome, spurned)
		if outcome == TooLarge {
			c.opts.Logger.Warn("tidemark: a value costs more than MaxCost and is not cached", "cost", cost)
			c.emit(Event{Kind: EventTooLarge})
		}
		return outcome
	}
}

// noteLocked takes a state that is not stored as word that its key has reached
// it: whoever brought it will see it all the same. Across InvalidateAll versions
// do not compare, so it is word of a change without one, and a mark to Puts
// only. An absence that cannot be compared with what became known since is
// shown to nobody if a load has brought it, and is no word of anything; whoever
// filled by hand has seen it.
func (c *Cache[K, V]) noteLocked(s *shard[K, V], n *node[K, V], self *fence[K], at moment) {
	m := n.E.mark()
	switch {
	case self == nil:
	case generation(self.era) != generation(at.era):
		s.foldLocked(n.Hash, m, n.E.cause, self.era, at)
		if known := s.knownLocked(n.Hash, n.Key, at); known.version != 0 && !known.before(m) {
			return // what is there now, and every fence with it, is no older
		}
		m = mark{}
	case self.cannotCompare(m) && n.E.cause == byLoad:
		return
	}
	s.invalidateLocked(n.Key, n.Hash, m, n.E.cause, at)
}

// cost returns the cost of a value; a Cost that panics makes it too large.
func (c *Cache[K, V]) cost(key K, value V) (cost int64) {
	if c.opts.Cost == nil {
		return 1
	}
	defer func() {
		if r := recover(); r != nil {
			c.caught(r)
			cost = 1<<62 - 1
		}
	}()
	return max(c.opts.Cost(key, value), 1)
}

// setTimes sets when n expires and is due for a refresh, counted from began, and
// reports whether n is to be cached at all.
func (c *Cache[K, V]) setTimes(n *node[K, V], began int64) bool {
	n.refreshAt = after(began, c.opts.RefreshAfter) // without that it is due when its time is over
	ttl := c.opts.TTL
	if n.E.absent {
		ttl = c.opts.NegativeTTL
	}
	if c.opts.EntryTTL != nil {
		if own := c.entryTTL(n); own != 0 {
			ttl = own
		}
	}
	if ttl < 0 {
		return false
	}
	if ttl > 0 {
		if j := c.opts.TTLJitter; j > 0 {
			ttl -= time.Duration(rand.Float64() * j * float64(ttl))
		}
		n.E.expiresAt = after(began, max(ttl, 1))
		n.refreshAt = min(n.refreshAt, n.E.expiresAt)
	}
	return true
}

// entryTTL calls EntryTTL; if that panics the entry is not cached.
func (c *Cache[K, V]) entryTTL(n *node[K, V]) (ttl time.Duration) {
	defer func() {
		if r := recover(); r != nil {
			c.caught(r)
			ttl = -1
		}
	}()
	return c.opts.EntryTTL(n.Key, n.E.public(replica.NoMark, c.moments()))
}

// A Fill is a fenced cache-aside fill: begun before the source is read, so that
// whatever becomes known of the key in between is held against the result.
// Every Fill must end in one Commit, Absent or Cancel; further ones, and those
// of the zero Fill, do nothing and return Stale. A Fill is used by one goroutine at a time.
type Fill[K comparable, V any] struct {
	c     *Cache[K, V]
	fence *fence[K] // nil once ended
	began int64
}

// BeginFill sets a fence for key. Read the source after it, and then Commit.
//
// The read must be strong: it reflects every write committed before BeginFill.
func (c *Cache[K, V]) BeginFill(key K) *Fill[K, V] {
	f := &Fill[K, V]{c: c, began: c.now()}
	if c.closed.Load() {
		return f
	}
	f.fence = &fence[K]{key: key, hash: c.keys.hash(key), strong: true}
	s := c.shard(f.fence.hash)
	s.mu.Lock()
	s.beginLocked(f.fence, c.moment())
	s.mu.Unlock()
	return f
}

// Commit offers what the source returned. It is Stale if the key has moved on
// since BeginFill, and Unproven if it has in a way that cannot be compared.
func (f *Fill[K, V]) Commit(value V, version Version) Outcome {
	if version == 0 {
		return f.end(value, mark{}, Unproven)
	}
	return f.end(value, mark{version: version}, Applied)
}

// Absent offers that the source has no such key, as of version; zero if the
// source does not say.
func (f *Fill[K, V]) Absent(version Version) Outcome {
	var zero V
	return f.end(zero, mark{version, true}, Applied)
}

// Cancel takes the fence down.
func (f *Fill[K, V]) Cancel() {
	var zero V
	f.end(zero, mark{}, Closed)
}

func (f *Fill[K, V]) end(value V, m mark, best Outcome) Outcome {
	g := f.fence
	if g == nil {
		if f.c != nil && f.c.closed.Load() {
			return Closed
		}
		return Stale
	}
	f.fence = nil
	s := f.c.shard(g.hash)
	defer func() {
		s.mu.Lock()
		s.endLocked(g)
		s.mu.Unlock()
	}()
	if best != Applied {
		if best == Unproven {
			f.c.stats.refused[byFill].Add(1)
		}
		return best
	}
	if f.c.closed.Load() {
		return Closed
	}
	n := newNode(g.key, g.hash, value, m, byFill)
	n.E.provenAt = f.began
	return f.c.offer(&n, f.c.cost(g.key, value), f.began, func(s *shard[K, V], at moment) (Outcome, *fence[K]) {
		return s.judgeFenceLocked(g, m, at), g
	})
}

// All returns the keys that GetEntry would find, with their entries, in no
// order, but not those that are served after their TTL. What changes while it runs may be seen or not, or twice if it goes and
// comes back, but no entry is ever seen that GetEntry would not have returned
// at that moment. No lock is held while the loop's body runs.
func (c *Cache[K, V]) All() iter.Seq2[K, Entry[V]] {
	return func(yield func(K, Entry[V]) bool) {
		for i := range c.shards {
			for key := range c.shards[i].table.All {
				var n node[K, V]
				applied, fresh := c.applied(c.opts.Level), c.freshness()
				_, ok := c.peek(c.keys.hash(key), key, &n)
				now := c.moments()
				if !ok || !c.admits(c.opts.Level, applied, &n.E.facts, fresh, now) {
					continue
				}
				if !yield(key, n.E.public(fresh, now)) {
					return
				}
			}
		}
	}
}

// Len returns the number of entries since the last InvalidateAll. Entries that
// are suspect, or have expired and were not swept yet, count.
func (c *Cache[K, V]) Len() int {
	total := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		if s.gen == generation(c.era.Load()) {
			total += s.live
		}
		s.mu.Unlock()
	}
	// The shards were counted one after the other, and an entry may have come
	// into one after another made room for it in the next. Each costs at least 1.
	return int(min(int64(total), c.policy.cost.Load()))
}

// Resize changes MaxCost. It returns when the entries fit, having evicted what
// does not. What [Options.ExpectedEntries] has sized keeps its size, so a cache that
// becomes many times larger chooses less well what to keep.
func (c *Cache[K, V]) Resize(maxCost int64) error {
	if maxCost <= 0 {
		return &OptionError{"MaxCost", "must be above 0 in Resize"}
	}
	if c.closed.Load() {
		return ErrClosed
	}
	c.policy.resize(maxCost)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock() // no reservation that saw the old limit is under way after this
		s.overflowLocked(c.moment())
		s.mu.Unlock()
	}
	c.makeRoom(0, 0)
	return nil
}

// makeRoom evicts until there is room for cost, beginning with the shard of
// hash and going round, so that no shard loses much more than the others.
func (c *Cache[K, V]) makeRoom(cost int64, hash uint64) {
	const chunk = 8 // entries per lock
	p := c.policy
	if cost > 0 {
		c.hurry(cost)
	}
	first := hash >> (c.shift & 63)
	for i, empty := uint64(0), 0; p.full(cost) && empty < len(c.shards); i++ {
		s := &c.shards[(first+i)&uint64(len(c.shards)-1)]
		empty++
		s.mu.Lock()
		at := c.moment()
		for range chunk {
			if !p.full(cost) {
				break
			}
			victim, ok := s.victimLocked(cost)
			if !ok {
				break
			}
			s.evictLocked(victim, s.table.Hash(victim), at)
			empty = 0
		}
		s.mu.Unlock()
	}
}

// hurry lets the policy make room for cost, if it may. It does the policy's
// work itself unless another goroutine is at it.
func (c *Cache[K, V]) hurry(cost int64) {
	p := c.policy
	for began := time.Now(); p.unjudged.Load() > 0 && p.full(cost) && time.Since(began) < hurryFor; {
		if p.turn.TryLock() {
			c.roundLocked(1)
			p.turn.Unlock()
		} else {
			runtime.Gosched()
		}
	}
}

// left is Ristretto's callback: it no longer has the record that t names, for
// whatever reason.
func (c *Cache[K, V]) left(t ticket) {
	if t.record == 0 {
		return // Ristretto reports some victims twice, the second time empty
	}
	s := c.shard(t.hash)
	s.mu.Lock()
	if p, ok := s.holderLocked(t); ok && p.Head.state() == offered {
		p.Head.setState(gone) // there is nothing to withdraw
		s.evictLocked(p, t.hash, c.moment())
	}
	s.mu.Unlock()
}

// maintain is the policy goroutine: it tells Ristretto what the shards have
// noted, and sweeps what nobody will read again.
func (c *Cache[K, V]) maintain() {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	swept := 0
	for {
		least := c.policy.batch
		select {
		case <-c.life.Done():
			return
		case <-c.policy.wake:
		case <-tick.C:
			least = 1
		}
		c.policy.turn.Lock()
		c.roundLocked(least)
		c.policy.turn.Unlock()
		if least == 1 {
			for range min(len(c.shards), sweepShards) {
				c.sweep(&c.shards[swept], 64)
				swept = (swept + 1) & (len(c.shards) - 1)
			}
		}
		if least == 1 && c.logLimit.due() {
			c.pump.Go(c.logLimit.tell) // a handler may take its time
		}
		if c.sweepAll.Swap(false) {
			for i := range c.shards {
				for range (c.shards[i].table.Cells() + 63) / 64 {
					c.sweep(&c.shards[i], 64)
				}
			}
		}
	}
}

// roundLocked tells Ristretto of accesses, and of ops where a shard has at least so
// many, and waits for its judgement: those of all shards if least is 1, and otherwise
// those of shards that have asked for a round. The caller has the policy's turn and
// no other lock.
func (c *Cache[K, V]) roundLocked(least int) {
	p := c.policy
	if p.closed {
		return
	}
	var told time.Duration
	var heard hits
	for i := range p.toVisit(least == 1) {
		s := &c.shards[i]
		heard.add(s.heard.take())
		if p.keys = s.touched.Take(p.keys[:0]); len(p.keys) > 0 {
			began := time.Now()
			p.count(p.keys...)
			told += time.Since(began)
		}
		if int(s.waiting.Load()) >= least {
			p.ops = s.takeOps(p.ops[:0], c.moment())
			p.apply(p.ops)
		}
	}
	p.wait()
	p.gauge()
	now := time.Now()
	p.resample(told, now.Sub(p.rounded))
	p.rounded = now
	p.adapt(heard)
}

// sweep drops entries that are of an old generation, or that expired so long ago that
// nobody is served them any more, from the next few cells of s.
func (c *Cache[K, V]) sweep(s *shard[K, V], cells uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, grace := c.moment(), c.opts.grace()
	for range min(cells, s.table.Cells()) {
		p, ok := s.table.At(s.sweepAt)
		s.sweepAt++
		if ok && (p.Head.spent(&at, grace) || generation(p.Head.era.Load()) != generation(at.era)) {
			s.recordLocked(swept, s.table.Hash(p), p.Head.mark(), byNothing, at)
			s.dropLocked(p, s.table.Hash(p), at)
		}
	}
	s.table.Shrink()
}

// A gate counts what is under way and can be shut.
type gate struct {
	mu   sync.Mutex // guards everything below
	shut bool
	n    int
	idle chan struct{} // closed when shut and n is 0
}

// enter reports whether the gate is open; leave must then be called.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.n++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.shut && g.n == 0 {
		close(g.idle)
	}
}

// close shuts the gate and returns a channel that is closed once it is empty.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		g.shut = true
		g.idle = make(chan struct{})
		if g.n == 0 {
			close(g.idle)
		}
	}
	return g.idle
}

// await shuts the gate and waits until it is empty or ctx ends. An empty gate
// is no error even if ctx has ended.
func (g *gate) await(ctx context.Context) error {
	idle := g.close()
	select {
	case <-idle:
		return nil
	default:
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the cache. It refuses new calls, waits until ctx ends for running
// writes and for what is to be broadcast, then cancels running loads and frees
// every goroutine, but for one that a callback or the Logger holds: a second after
// ctx has ended Close returns without it. The error says what could not be finished
// or broadcast; the cache is closed in any case. Further calls wait for the first and
// return its error.
//
// Reads after Close are misses; everything else says ErrClosed or Closed.
func (c *Cache[K, V]) Close(ctx context.Context) error {
	c.closing.Do(func() { c.closeEr = c.close(ctx) })
	return c.closeEr
}

// endGrace is for how long Close waits for its goroutines when ctx has ended: they end
// at once, unless somebody else's code holds them.
const endGrace = time.Second

// ended waits for the cache's goroutines, tells the Logger what it was spared, and
// reports whether all that has ended.
func (c *Cache[K, V]) ended(ctx context.Context) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c.replica != nil {
			c.replica.wg.Wait()
		}
		c.pump.Wait()
		c.logLimit.tellAll()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	case <-time.After(endGrace):
		return false
	}
}

func (c *Cache[K, V]) close(ctx context.Context) error {
	c.closed.Store(true)
	var errs []error
	underWay := c.work.await(ctx)
	if underWay != nil {
		errs = append(errs, fmt.Errorf("tidemark: closed with writes under way: %w", underWay))
	}
	if c.replica != nil {
		errs = append(errs, c.replica.close(ctx, underWay == nil))
	}
	c.cutOff() // from here on no entry is served
	c.endLife()
	if err := c.loads.await(ctx); err != nil {
		errs = append(errs, fmt.Errorf("tidemark: closed with a load that does not end: %w", err))
	}
	if !c.ended(ctx) {
		errs = append(errs, errors.New("tidemark: closed while a callback, or the Logger, does not return"))
	}
	c.policy.close()
	if n := c.doubts.Load(); n > 0 {
		errs = append(errs, &DoubtError{Writes: int(n)})
	}
	return errors.Join(errs...)
}
