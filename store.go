package tidemark

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// An OpID names one write. The store keeps it with the row, so that a write
// whose answer was lost can be looked up.
type OpID [16]byte

// A Store is a Loader that can also write, each write conditional on the
// version it is based on. Its Load must be strong: it reflects every write
// that was committed before it began.
//
// How a write ended is told by its error:
//
//   - nil: committed.
//   - a [*ConflictError], possibly wrapped: not committed, the base was not
//     the current version.
//   - an error that wraps [ErrUnavailable]: certainly not committed.
//   - any other error: unknown. The cache keeps the key out of memory and asks
//     Outcome until it knows.
//
// Each call should return when its ctx ends: whoever has called the cache waits for it.
type Store[K comparable, V any] interface {
	Loader[K, V]

	// CompareAndSet writes value if the key is at version base, and returns
	// the new version, which is above base and above every earlier version of
	// the key, deletions included. Base 0 means that the key must not exist.
	CompareAndSet(ctx context.Context, key K, base Version, value V, op OpID) (Version, error)

	// CompareAndDelete removes the key if it is at version base, and returns
	// the version of the deletion, which is above base.
	CompareAndDelete(ctx context.Context, key K, base Version, op OpID) (Version, error)

	// Outcome reports whether the write named op was committed, and at which
	// version. It must see every write that was committed before it began.
	// It may write the key's value anew, unchanged and at a later version, so that
	// a write that it calls not committed cannot be committed after all.
	Outcome(ctx context.Context, key K, op OpID) (Version, bool, error)
}

// maxAttempts bounds how often Update runs its function. A write that loses
// that many races has a design problem that another try does not solve.
const maxAttempts = 100

// Update changes the value of key: it calls fn with the current state and
// writes what fn returns, on condition that the state has not changed since. If
// it has, fn is called again with the state that a strong read returns, up to
// 100 times; then the last [*ConflictError] is returned. So a decision that fn
// made on a stale value is never committed. One made on an absence is committed
// only if the key still, or again, does not exist.
//
// fn may be called more than once, sees Absent for a key that does not exist,
// and must not have side effects. Its error ends Update and is returned as it
// is; its panic is returned as a [*PanicError].
//
// The new state is readable in this process when Update returns, and is
// broadcast in the background; with a Log, before Update returns. An
// [*UncertainError] means that the write may or may not have been committed;
// see there.
func (c *Cache[K, V]) Update(ctx context.Context, key K, fn func(cur Entry[V]) (V, error)) (Entry[V], error) {
	if fn == nil {
		return Entry[V]{Age: -1}, &OptionError{"fn", "is nil in Update"}
	}
	if c.opts.Store == nil {
		return Entry[V]{Age: -1}, ErrNoStore
	}
	level := Level{prompt: true} // a decision on what is overdue would mostly meet a conflict
	for try := 1; ; try++ {
		cur, err := c.Read(ctx, key, level)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Entry[V]{Age: -1}, err
		}
		value, err := c.decide(fn, cur)
		if err != nil {
			return Entry[V]{Age: -1}, err
		}
		base := cur.Version
		if cur.Absent {
			base = 0
		}
		e, err := c.CompareAndSet(ctx, key, base, value)
		var conflict *ConflictError
		if !errors.As(err, &conflict) || conflict == nil || try == maxAttempts {
			return e, err
		}
		if err := backOff(ctx, try); err != nil {
			return Entry[V]{Age: -1}, err
		}
		level = Linearizable
	}
}

// decide calls fn and contains its panic.
func (c *Cache[K, V]) decide(fn func(cur Entry[V]) (V, error), cur Entry[V]) (value V, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
	}()
	return fn(cur)
}

// backOff waits a little longer after each lost race, at random, so that
// writers of one key do not meet again and again. The first two tries are free.
func backOff(ctx context.Context, try int) error {
	if try <= 2 {
		return ctx.Err()
	}
	most := min(time.Duration(try)*200*time.Microsecond, 10*time.Millisecond)
	select {
	case <-time.After(rand.N(most)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CompareAndSet writes value if the key is at version base in the Store; base 0
// means that the key must not exist. It returns the new state, or a
// [*ConflictError] with the current version. The decision that led to value is
// safe if base is the Version of the Entry that it was made on, or 0 if that is
// Absent. Absences are not told apart: a decision on one is committed if the key
// does not exist at that moment, whatever became of it in between.
//
// Other errors: [ErrNoStore], [ErrClosed], [ErrUnavailable] and ctx's if nothing
// was written; [*UncertainError] if that is not known; and [ErrNoVersion] if it
// was, at a version that is not above base, which no Store may do. With a Log, a
// write returns when that has it; then, and when Close did not wait for it, it
// returns its new state and [ErrNotBroadcast] if the other replicas could not be
// told in time. Look for UncertainError and ErrNotBroadcast first: UncertainError
// wraps what the Store returned, which may be ctx's error.
func (c *Cache[K, V]) CompareAndSet(ctx context.Context, key K, base Version, value V) (Entry[V], error) {
	return c.write(ctx, &write[K, V]{key: key, base: base, value: value}, func(op OpID) (Version, error) {
		return c.opts.Store.CompareAndSet(ctx, key, base, value, op)
	})
}

// Delete removes the key if it is at version base in the Store. The returned
// Entry is the absence, at the version of the deletion. Errors as CompareAndSet.
func (c *Cache[K, V]) Delete(ctx context.Context, key K, base Version) (Entry[V], error) {
	return c.write(ctx, &write[K, V]{key: key, base: base, absent: true}, func(op OpID) (Version, error) {
		return c.opts.Store.CompareAndDelete(ctx, key, base, op)
	})
}

// A write is one conditional write under way.
type write[K comparable, V any] struct {
	key    K
	hash   uint64
	base   Version
	value  V
	absent bool // it is a deletion
	op     OpID
	epoch  uint32 // of the source, when it began
	fence  fence[K]
	began  replica.Moment

	done    func(verdict error) // tells the breaker, which has let it through
	sent    bool                // the store was called, and send tells the breaker
	doubted bool                // it is in doubt, and somebody sees to that

	// Of a strict write.

	name  []byte // the encoded key
	holds bool   // the log has its intent, and the key is kept out of memory here
}

// write makes one conditional write. From before it is sent until its result
// is installed a fence stands, as for a load (S30).
func (c *Cache[K, V]) write(ctx context.Context, w *write[K, V], send func(OpID) (Version, error)) (Entry[V], error) {
	none := Entry[V]{Age: -1}
	switch {
	case c.opts.Store == nil:
		return none, ErrNoStore
	case ctx.Err() != nil:
		return none, ctx.Err()
	case c.doubts.Load() >= int64(c.opts.MaxDoubts):
		return none, fmt.Errorf("%w: %d writes are in doubt", ErrUnavailable, c.opts.MaxDoubts)
	case !c.work.enter():
		return none, ErrClosed
	}
	defer c.work.leave()
	if err := c.mayWrite(w); err != nil {
		return none, err
	}
	w.hash, w.op, w.began, w.epoch = c.keys.hash(w.key), newOpID(), c.moments(), c.sourceEpoch.Load()
	w.fence = fence[K]{key: w.key, hash: w.hash, strong: true}
	s := c.shard(w.hash)
	s.mu.Lock()
	s.beginLocked(&w.fence, c.moment())
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.endLocked(&w.fence)
		s.mu.Unlock()
	}()
	returned := false
	defer func() {
		switch {
		case !w.sent:
			c.conclude(w.done, context.Canceled)
		case !returned && !w.doubted: // the store has ended this goroutine: nobody will hear of it
			c.doubt(w, errGoexit)
		}
	}()
	if c.opts.Strict {
		if err := c.intend(ctx, w); err != nil {
			returned = true
			return none, err
		}
	}
	version, err := c.send(ctx, w, send)
	e, err := c.settle(ctx, w, version, err)
	returned = true
	return e, err
}

// intend tells the log that w is about to begin, and then keeps its key out of
// memory, here as everywhere, until it is known how w ended. So whoever reads the
// log knows of every write before it takes effect, whether or not this process
// lives to tell (S33, S34). An error says that w must not be sent.
func (c *Cache[K, V]) intend(ctx context.Context, w *write[K, V]) error {
	var err error
	if w.name, err = c.encodeKey(w.key); err != nil {
		return fmt.Errorf("%w: the key cannot be encoded: %w", ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.DoubtTimeout)
	defer cancel()
	out := c.replica.out
	in, err := out.intend(w.name, w.op, c.intentTTL())
	if err != nil {
		return fmt.Errorf("%w: no intent for the log: %w", ErrUnavailable, err)
	}
	untold, err := out.awaitIntent(ctx, in)
	if err == nil && replica.At(w.began).Age(w.began.Mono, c.moments()) > c.opts.DoubtTimeout {
		untold, err = false, errors.New("this process was stopped meanwhile") // others will not wait much longer
	}
	if err != nil {
		if !untold {
			out.conclude(w.name, w.op, mark{}, w.epoch, true)
		}
		return fmt.Errorf("%w: the log does not have the intent: %w", ErrUnavailable, err)
	}
	s := c.shard(w.hash)
	s.mu.Lock()
	s.holdLocked(w.key, w.hash, c.moment())
	w.holds = true
	s.mu.Unlock()
	return nil
}

// intentTTL is how long others wait for the outcome of a strict write: it is sent
// within DoubtTimeout after its intent, and takes effect within as long after
// that, or not at all.
func (c *Cache[K, V]) intentTTL() time.Duration { return 2 * c.opts.DoubtTimeout }

// told says how w ended: its key has reached m, or, if w is void, has not changed
// by it.
func (c *Cache[K, V]) told(w *write[K, V], m mark, void bool) (ticket uint64) {
	if !w.holds {
		if void {
			return 0
		}
		return c.announce(w.key, m, w.epoch)
	}
	w.holds = false
	s := c.shard(w.hash)
	s.mu.Lock()
	if !void {
		s.invalidateLocked(w.key, w.hash, c.comparable(m, w.epoch), byWrite, c.moment()) // before anything can be installed again
	}
	s.releaseLocked(w.key)
	s.mu.Unlock()
	return c.replica.out.conclude(w.name, w.op, m, w.epoch, void)
}

// send calls the store, and tells the breaker. A call that panics, or ends its
// goroutine, has an unknown outcome, as one that returns an error nobody can read.
func (c *Cache[K, V]) send(ctx context.Context, w *write[K, V], call func(OpID) (Version, error)) (v Version, err error) {
	w.sent = true
	err = errGoexit // for the breaker, if the call ends this goroutine
	done := c.limited(w.done, c.opts.DoubtTimeout)
	defer func() { c.conclude(done, c.verdict(ctx, err)) }()
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
	}()
	v, err = call(w.op)
	return v, c.readable(err)
}

// settle does what the store's answer demands.
func (c *Cache[K, V]) settle(ctx context.Context, w *write[K, V], version Version, err error) (Entry[V], error) {
	none := Entry[V]{Age: -1}
	var conflict *ConflictError
	switch {
	case err == nil && version > w.base:
		return c.committed(ctx, w, version)
	case err == nil:
		// Committed, but at a version that orders nothing: the contract is
		// broken, and only the source knows the key's state.
		c.stats.writes.Add(1)
		c.apply(w.key, w.hash, mark{}, w.epoch, byWrite)
		c.told(w, mark{}, false)
		return none, fmt.Errorf("%w: the store put version %d after %d", ErrNoVersion, version, w.base)
	case errors.As(err, &conflict) && conflict != nil:
		c.stats.conflicts.Add(1)
		c.apply(w.key, w.hash, mark{conflict.Current, conflict.Absent}, w.epoch, byWrite)
		c.told(w, mark{}, true)
		return none, err
	case errors.Is(err, ErrUnavailable):
		c.told(w, mark{}, true)
		return none, err
	default:
		return none, c.doubt(w, err)
	}
}

// committed installs the written state, unless the key has moved on meanwhile,
// and queues the broadcast. With a Log it waits until that has it: only then is
// the write acknowledged, and reads Within a bound count from there. A strict
// write does not, for the log had its intent before. If the cache is closing it
// waits as well: nobody else would say that it did not get out.
func (c *Cache[K, V]) committed(ctx context.Context, w *write[K, V], version Version) (Entry[V], error) {
	c.stats.writes.Add(1)
	m := mark{version, w.absent}
	n := newNode(w.key, w.hash, w.value, m, byWrite)
	n.E.provenAt = w.began.Mono
	var ticket uint64
	if w.holds {
		ticket = c.told(w, m, false)
	}
	c.offer(&n, c.cost(w.key, w.value), w.began.Mono, func(s *shard[K, V], at moment) (Outcome, *fence[K]) {
		return s.judgeFenceLocked(&w.fence, m, at), &w.fence
	})
	if !c.opts.Strict {
		ticket = c.announce(w.key, m, w.epoch)
	}
	var err error
	if c.replica != nil && (c.logged && !c.opts.Strict || c.closed.Load()) {
		if why := c.replica.out.await(ctx, ticket); why != nil {
			// Not wrapped: ErrClosed, ErrUnavailable and ctx's say that nothing was written.
			err = fmt.Errorf("%w, though the write is committed: %v", ErrNotBroadcast, why)
		}
	}
	return n.E.public(replica.At(w.began), c.moments()), err
}

// doubt puts the key out of memory until the store has told how the write
// ended (S31, S32).
func (c *Cache[K, V]) doubt(w *write[K, V], cause error) error {
	d := &doubt{settled: make(chan struct{})}
	uncertain := &UncertainError{Op: w.op, Err: cause, doubt: d}
	w.doubted = true
	c.doubts.Add(1)
	c.stats.uncertain.Add(1)
	s := c.shard(w.hash)
	s.mu.Lock()
	if !w.holds { // or else what has held the key until now goes on to
		s.pendLocked(w.key).doubts++
	}
	s.invalidateLocked(w.key, w.hash, mark{}, byWrite, c.moment())
	s.mu.Unlock()
	if !w.holds {
		c.announce(w.key, mark{}, w.epoch)
	}
	if c.loads.enter() {
		w.value = *new(V)
		go c.resolve(w, d)
	} else {
		d.settle(0, false, ErrClosed)
	}
	c.opts.Logger.Warn("tidemark: a write is in doubt", "op", fmt.Sprintf("%x", w.op), "err", cause)
	c.emit(Event{Kind: EventUncertain, Err: uncertain})
	return uncertain
}

// resolve asks the store until it is known how the write ended: found
// committed, or not found by a question that was put after the time when it
// could still have taken effect. While the breaker allows nothing it asks no more
// than once in each DoubtTimeout; never to ask could keep the key out of memory for
// ever, and the breaker open, if only doubts are left to be asked about.
func (c *Cache[K, V]) resolve(w *write[K, V], d *doubt) {
	defer c.loads.leave()
	last := c.now() // when it was asked
	deadline := after(last, c.opts.DoubtTimeout)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		asked := c.now()
		version, found, err := c.outcome(w.key, w.op, asked >= after(last, c.opts.DoubtTimeout))
		if !errors.Is(err, errLeftAlone) {
			last = asked
		}
		switch {
		case err == nil && found:
			c.resolved(w, mark{version, w.absent}, d, true)
			return
		case err == nil && asked >= deadline:
			c.resolved(w, mark{}, d, false)
			return
		}
		select {
		case <-time.After(wait):
		case <-c.life.Done():
			d.settle(0, false, ErrClosed)
			return
		}
	}
}

// outcome asks the store about op, in a goroutine of its own: if the call ends
// that, the question is still open. If the breaker refuses, it asks only if it must, and
// else returns errLeftAlone.
func (c *Cache[K, V]) outcome(key K, op OpID, must bool) (v Version, found bool, err error) {
	err = errGoexit
	var asking sync.WaitGroup
	asking.Go(func() {
		ctx, cancel := c.loadContext(c.life)
		defer cancel()
		defer func() {
			if r := recover(); r != nil {
				err = c.caught(r)
			}
		}()
		err = errLeftAlone // also if the breaker ends this goroutine
		done, refused := c.allowed()
		if refused != nil {
			if !must {
				return
			}
			done = func(error) {}
		}
		err = errGoexit
		done = c.limited(done, c.opts.LoadTimeout)
		defer func() { c.conclude(done, c.verdict(c.life, err)) }()
		v, found, err = c.opts.Store.Outcome(ctx, key, op)
		err = c.readable(err)
	})
	asking.Wait()
	return v, found, err
}

// resolved lets the key back into memory. Loads that ran meanwhile may have
// read either state, so a write that came to nothing breaks them too.
func (c *Cache[K, V]) resolved(w *write[K, V], m mark, d *doubt, committed bool) {
	s := c.shard(w.hash)
	s.mu.Lock()
	s.invalidateLocked(w.key, w.hash, c.comparable(m, w.epoch), byWrite, c.moment())
	s.releaseLocked(w.key)
	s.mu.Unlock()
	if committed {
		c.stats.writes.Add(1)
	}
	var ticket uint64 // before the doubt is over: Close says goodbye when there is none
	if w.holds {
		ticket = c.replica.out.conclude(w.name, w.op, m, w.epoch, false)
	} else {
		ticket = c.announce(w.key, m, w.epoch)
	}
	var untold error
	if c.logged { // whoever waits counts on it from then on
		if why := c.replica.out.await(c.life, ticket); why != nil {
			untold = fmt.Errorf("%w: %v", ErrNotBroadcast, why)
		}
	}
	c.doubts.Add(-1)
	d.settle(m.version, committed, untold)
	c.opts.Logger.Info("tidemark: a write in doubt is settled", "committed", committed)
	c.emit(Event{Kind: EventResolved})
}

func newOpID() (op OpID) {
	binary.LittleEndian.PutUint64(op[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(op[8:], rand.Uint64())
	return op
}
