package tidemark

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// LoadMany is Load for many keys at once. Keys that the source does not have
// are missing from the map. If some keys fail the map holds the others, and the
// error is a [*KeysError] that says, for each key that failed, what Load would
// have returned.
//
// Keys that memory does not have are read by one call of LoadMany for about 4,096
// of them if the Loader is a [BulkLoader], and by single loads side by side
// otherwise; in both cases each key has a load of its own that other readers may
// wait for.
func (c *Cache[K, V]) LoadMany(ctx context.Context, keys []K) (map[K]Entry[V], error) {
	m := many[K, V]{c: c, ctx: ctx, failed: map[K]error{}, found: make([]find[K, V], 0, len(keys))}
	for part := range slices.Chunk(keys, abreast) {
		if m.look(part); len(m.own) >= maxBulk { // others may wait for them already
			c.start(ctx, m.own)
			m.own = nil
		}
	}
	c.start(ctx, m.own)
	for _, b := range m.waiting {
		e, ok, err := c.land(ctx, b.flight, b.waiter)
		if !ok && err == nil {
			e, err = c.await(ctx, b.waiter)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			m.failed[b.waiter.key] = err
			continue
		}
		m.found = append(m.found, find[K, V]{b.waiter.key, e, c.moments()})
	}
	if len(m.failed) > 0 {
		return gather(m.found, c.moments()), &KeysError[K]{Failed: m.failed}
	}
	return gather(m.found, c.moments()), nil
}

// A many is a call of LoadMany under way.
type many[K comparable, V any] struct {
	c       *Cache[K, V]
	ctx     context.Context
	found   []find[K, V]
	waiting []boarded[K, V]
	own     []*flight[K, V] // that are to be run for it
	failed  map[K]error
	asked   map[K]struct{} // the keys so far; nil as long as all were in memory
}

// maxBulk is about how many keys are loaded at a time.
const maxBulk = 4096

// abreast is how many keys are looked up side by side.
const abreast = 64

// look finds for each of a few keys an entry in memory or a flight to wait for. Where
// entries are far from the processor, all their memory is asked for before any is
// waited for.
func (m *many[K, V]) look(part []K) {
	c := m.c
	var hashes, aims [abreast]uint64
	for i, key := range part {
		hashes[i] = c.keys.hash(key)
		aims[i] = c.shard(hashes[i]).table.Aim(hashes[i])
	}
	for i := range part {
		c.shard(hashes[i]).table.Prefetch(hashes[i], aims[i])
	}
	level := c.opts.Level
	applied, fresh, now := c.applied(level), c.freshness(), c.moments()
	var n node[K, V]
	for i, key := range part {
		if m.again(key) {
			continue
		}
		p, ok := c.peek(hashes[i], key, &n)
		at := now // an entry that has come since is younger: gather lets it age from here
		if ok && c.timed(level) {
			at = c.moments()
		}
		if ok && c.admits(level, applied, &n.E.facts, fresh, at) {
			c.hit(p, key, hashes[i])
			m.found = append(m.found, find[K, V]{key, n.E.public(fresh, at), at})
			continue
		}
		if e, late := c.meanwhile(key, hashes[i], level, true); late {
			m.found = append(m.found, find[K, V]{key, e, c.moments()})
			continue
		}
		c.stats.misses.add()
		m.miss(key, hashes[i], ok)
	}
}

// again reports whether the key was asked for before, and is not to be looked for
// twice. As long as all keys were in memory it does not matter.
func (m *many[K, V]) again(key K) bool {
	if m.asked == nil {
		return false
	}
	if _, again := m.asked[key]; again {
		return true
	}
	m.asked[key] = struct{}{}
	return false
}

// miss finds a flight for a key that memory does not have, or, if it has one, not at
// the level that is wanted.
func (m *many[K, V]) miss(key K, hash uint64, has bool) {
	c := m.c
	if m.asked == nil {
		m.asked = make(map[K]struct{}, cap(m.found))
		for i := range m.found {
			m.asked[m.found[i].key] = struct{}{}
		}
		if m.again(key) {
			return
		}
	}
	if has && c.failsStale(c.opts.Level) {
		m.failed[key] = c.stale(c.opts.Level)
		return
	}
	w := &waiter[K, V]{key: key, hash: hash, level: c.opts.Level, need: mark{version: c.opts.Level.version}}
	hit, f, mine, err := c.board(m.ctx, w)
	switch {
	case err != nil:
		m.failed[key] = err
	case hit != nil:
		now := c.moments()
		m.found = append(m.found, find[K, V]{key, hit.E.public(w.fresh, now), now})
	default:
		m.waiting = append(m.waiting, boarded[K, V]{w, f})
		if mine {
			m.own = append(m.own, f)
		}
	}
}

// A boarded is a waiter and the flight it waits for.
type boarded[K comparable, V any] struct {
	waiter *waiter[K, V]
	flight *flight[K, V]
}

// A find is what LoadMany has found for a key, with the moment when it did.
type find[K comparable, V any] struct {
	key   K
	entry Entry[V]
	at    replica.Moment
}

// gather returns the keys that exist. A find has aged while LoadMany waited for
// the others.
func gather[K comparable, V any](found []find[K, V], now replica.Moment) map[K]Entry[V] {
	all := make(map[K]Entry[V], len(found))
	for _, f := range found {
		if f.entry.Age >= 0 {
			f.entry.Age += replica.At(f.at).Age(f.at.Mono, now)
		}
		if !f.entry.Absent {
			all[f.key] = f.entry
		}
	}
	return all
}

// start runs flights that were begun for one call: in one bulk load if that is
// possible and worth it, else each alone.
func (c *Cache[K, V]) start(ctx context.Context, own []*flight[K, V]) {
	bulk, ok := c.opts.Loader.(BulkLoader[K, V])
	var together []*flight[K, V]
	for _, f := range own {
		if ok && len(own) > 1 && (c.opts.LoaderClass.kind == strongLoader || !f.strong) {
			together = append(together, f)
		} else {
			go c.run(ctx, f)
		}
	}
	if len(together) > 0 {
		go c.runMany(ctx, bulk, together)
	}
}

// runMany is run for many keys.
func (c *Cache[K, V]) runMany(caller context.Context, bulk BulkLoader[K, V], flights []*flight[K, V]) {
	var all map[K]Loaded[V]
	var err error = errGoexit
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
		switch {
		case errors.Is(err, ErrNotFound): // of what it looked into: no key is absent for that
			err = &LoadError{Err: fmt.Errorf("%w: %v", ErrIncomplete, err)}
		case err != nil && !errors.Is(err, ErrUnavailable):
			err = &LoadError{Err: err}
		}
		c.finishMany(flights, all, err)
	}()
	ctx, cancel := c.loadContext(caller)
	defer cancel()
	keys := make([]K, len(flights))
	for i, f := range flights {
		keys[i] = f.key
	}
	err = c.ask(ctx, func() error {
		began := c.moments()
		for _, f := range flights {
			f.began = began
		}
		var err error
		all, err = bulk.LoadMany(ctx, keys)
		return c.readable(err)
	})
}

// finishMany is finish for many keys.
func (c *Cache[K, V]) finishMany(flights []*flight[K, V], all map[K]Loaded[V], err error) {
	done := 0
	defer func() {
		if done < len(flights) { // Cost has ended this goroutine: another one does the rest
			go c.finishMany(flights[done:], all, err)
		}
	}()
	for done < len(flights) {
		f := flights[done]
		done++
		c.finishOne(f, all, err)
	}
}

// finishOne is finish for one of many keys.
func (c *Cache[K, V]) finishOne(f *flight[K, V], all map[K]Loaded[V], err error) {
	defer c.loads.leave()
	got, ok := all[f.key]
	switch {
	case err != nil:
		c.finish(f, Loaded[V]{}, err)
	case !ok:
		c.finish(f, got, ErrIncomplete)
	default:
		c.finish(f, got, c.readable(got.Err))
	}
}
