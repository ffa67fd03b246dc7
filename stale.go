package tidemark

import (
	"math/rand/v2"
	"time"

	"github.com/tidemark-go/tidemark/internal/backoff"
	"github.com/tidemark-go/tidemark/internal/replica"
)

// An entry is overdue from the end of its TTL until nobody is served it any more. It is
// in the table as before, so that all that keeps old states from being served keeps
// overdue ones as well: it goes when its key is known to have changed, and no level that
// makes a promise of time looks at it. What lets it be served are two options, which are
// those of RFC 5861: StaleWhileRevalidate, at once and with a load in the background,
// and StaleIfError, when a load has not brought anything. Absences have no such time:
// that a key does not exist is believed for NegativeTTL, and no longer.
//
// A suspect entry, of which a message may be missing, is for the source to confirm. If
// the source does not answer, StaleIfError lends it as well: it is not below what this
// replica has been told of its key. What it is not lent is what was told to have changed,
// which is of another generation or gone, and what people have said not to trust.

// While loads of a key fail, the next one behind a hit is not begun for a pause that
// doubles each time.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 10 * time.Second // what is overdue is lent for so long after the source is back
)

// overdue reports whether an entry may be served at level l though its TTL may be over,
// if it was not by more than so much. The mark must have been read before the entry, and
// now after it.
func (c *Cache[K, V]) overdue(l Level, e *facts, fresh replica.Mark, now replica.Moment, grace time.Duration) bool {
	return grace > 0 && l.lenient() && !e.absent &&
		(e.expiresAt == 0 || now.Mono < after(e.expiresAt, grace)) && c.admits(l, false, e, fresh, now)
}

// trusted says how far an entry is to be believed while the source does not answer, in
// an era that was read before it, and by which mark its age counts. No mark vouches for a
// suspect one: what this replica has missed was not there to be applied.
func (c *Cache[K, V]) trusted(era uint64, e *facts, fresh replica.Mark) (replica.Mark, trust) {
	switch {
	case c.closed.Load(): // this replica hears of no change any more
		return replica.Unvouched, trustNone
	case e.era == era:
		return fresh, trustEra
	case generation(e.era) == generation(era) && era&eraSwitchedOff == 0 && e.era >= c.distrusted.Load():
		return replica.Unvouched, trustSuspect
	default:
		return replica.Unvouched, trustNone
	}
}

// distrust says that nothing of the eras before this one is lent. Eras only rise, and
// somebody else may be ahead.
func (c *Cache[K, V]) distrust(era uint64) {
	for have := c.distrusted.Load(); have < era && !c.distrusted.CompareAndSwap(have, era); {
		have = c.distrusted.Load()
	}
}

type trust uint8

const (
	trustNone trust = iota
	trustSuspect
	trustEra
)

// meanwhile answers a read with an overdue entry that may be served at once: while a
// load in the background replaces it, or, if the read would wait for a load, as long as
// the source, which has just failed for this key, is to be left alone. It counts as a hit.
func (c *Cache[K, V]) meanwhile(key K, hash uint64, l Level, waits bool) (Entry[V], bool) {
	if c.opts.grace() == 0 {
		return Entry[V]{}, false
	}
	era, fresh := c.era.Load(), c.freshness()
	var n node[K, V]
	p, ok := c.shard(hash).look(hash, key, &n.E.value, &n.E.facts)
	now := c.moments()
	fresh, trust := c.trusted(era, &n.E.facts, fresh)
	if !ok || trust == trustNone || trust == trustEra && !n.E.expired(now.Mono) {
		return Entry[V]{}, false
	}
	pausing := waits && p.Head.failed() && now.Mono < p.Head.refreshAt.Load() && p.Valid()
	switch {
	case trust == trustEra && c.overdue(l, &n.E.facts, fresh, now, c.opts.StaleWhileRevalidate):
		c.stats.whileRevalidate.Add(1)
		c.refresh(p, key, hash)
	case pausing && c.overdue(l, &n.E.facts, fresh, now, c.opts.StaleIfError):
		c.stats.ifError.Add(1)
	default:
		return Entry[V]{}, false
	}
	c.stats.hits.add()
	return c.lend(p, &n.E, hash, trust, fresh, now), true
}

// instead answers a read whose load has failed, or takes too long, with what memory has
// now, which may be overdue. That what memory had when the read began may no longer be
// served is not missed: it is looked up anew.
func (c *Cache[K, V]) instead(w *waiter[K, V]) (Entry[V], bool) {
	if c.opts.StaleIfError == 0 {
		return Entry[V]{}, false
	}
	era, fresh := c.era.Load(), c.freshness()
	var n node[K, V]
	p, ok := c.shard(w.hash).look(w.hash, w.key, &n.E.value, &n.E.facts)
	now := c.moments()
	fresh, trust := c.trusted(era, &n.E.facts, fresh)
	if !ok || trust == trustNone || !c.overdue(w.level, &n.E.facts, fresh, now, c.opts.StaleIfError) {
		return Entry[V]{}, false
	}
	e := c.lend(p, &n.E, w.hash, trust, fresh, now)
	if e.Stale {
		c.stats.ifError.Add(1)
	}
	return e, true
}

// lend returns an entry that was copied from p to a reader, and tells the policy.
func (c *Cache[K, V]) lend(p place, e *entry[V], hash uint64, trust trust, fresh replica.Mark, now replica.Moment) Entry[V] {
	p.Head.use()
	if c.policy.samples(hash) {
		c.shard(hash).touch(p.Head, hash)
	}
	lent := e.public(fresh, now)
	lent.Stale = trust == trustSuspect || e.expired(now.Mono)
	return lent
}

// patience returns for how much longer w is to wait for f before it takes what memory
// has, counted from when the one began or the other, whichever was first; negative
// means that it waits until f has ended.
func (c *Cache[K, V]) patience(f *flight[K, V], w *waiter[K, V]) time.Duration {
	if c.opts.SoftLoadTimeout == 0 {
		return -1
	}
	began := min(f.off.Mono, w.at.Mono)
	return max(time.Duration(after(began, c.opts.SoftLoadTimeout)-c.now()), 0)
}

// pauseLocked puts off the next load behind a hit on the key's entry, if it has one,
// after one that has failed. Each failure in a row doubles the pause; chance, which
// the salt makes another one in each process, keeps keys and replicas that have failed
// together from trying again together.
func (s *shard[K, V]) pauseLocked(key K, hash, salt uint64, now int64) {
	p, ok := s.table.Find(hash, key)
	if !ok {
		return
	}
	kind := p.Head.kind.Load()
	failures := int(kind & kindFailures / kindFailure)
	if failures < maxFailures {
		p.Head.kind.Store(kind + kindFailure)
	}
	chance := rand.New(rand.NewPCG(salt, hash+uint64(failures))).Float64()
	p.Head.refreshAt.Store(after(now, backoff.Delay(firstPause, mostPause, failures, chance)))
}

// resumeLocked ends the pause: a load of the key has not failed. What it brought may
// not have been let in, so the entry can be the one that was there before.
func (s *shard[K, V]) resumeLocked(key K, hash uint64) {
	if p, ok := s.table.Find(hash, key); ok && p.Head.failed() {
		p.Head.kind.Store(p.Head.kind.Load() &^ kindFailures)
	}
}
