package tidemark

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// source is a database of record in memory: versions rise per key and survive
// deletion, and operations are remembered. Its hooks let a test hold a call at
// a chosen point; they run with no lock held.
type source struct {
	mu      sync.Mutex // guards everything below
	rows    map[string]row
	done    map[OpID]Version
	history map[string][]row // all states of a key, oldest first
	loads   int

	isDown atomic.Bool // whatever it is asked fails with errDown

	beforeLoad  func(ctx context.Context, key string) error // before the row is read
	afterLoad   func(ctx context.Context, key string) error // after it was read, before it is returned
	beforeWrite func(ctx context.Context, key string) error // its error means: nothing was written
	afterWrite  func(ctx context.Context, key string) error // its error hides that it was committed
	onOutcome   func(key string, op OpID) error
}

type row struct {
	value   int
	version Version
	absent  bool
}

func newSource() *source {
	return &source{rows: map[string]row{}, done: map[OpID]Version{}, history: map[string][]row{}}
}

// set changes a row behind everybody's back and returns its new version.
func (s *source) set(key string, value int) Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.putLocked(key, row{value: value})
}

// remove deletes a row behind everybody's back.
func (s *source) remove(key string) Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.putLocked(key, row{absent: true})
}

func (s *source) putLocked(key string, r row) Version {
	r.version = s.rows[key].version + 1
	s.rows[key] = r
	s.history[key] = append(s.history[key], r)
	return r.version
}

func (s *source) get(key string) row {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.rows[key]; ok {
		return r
	}
	return row{absent: true}
}

func (s *source) loadCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loads
}

func call(hook func(context.Context, string) error, ctx context.Context, key string) error {
	if hook == nil {
		return nil
	}
	return hook(ctx, key)
}

func (s *source) Load(ctx context.Context, key string) (int, Version, error) {
	s.mu.Lock()
	s.loads++
	s.mu.Unlock()
	if s.isDown.Load() {
		return 0, 0, errDown
	}
	if err := call(s.beforeLoad, ctx, key); err != nil {
		return 0, 0, err
	}
	r := s.get(key)
	if err := call(s.afterLoad, ctx, key); err != nil {
		return 0, 0, err
	}
	if r.absent {
		return 0, r.version, ErrNotFound
	}
	return r.value, r.version, nil
}

func (s *source) CompareAndSet(ctx context.Context, key string, base Version, value int, op OpID) (Version, error) {
	return s.write(ctx, key, base, row{value: value}, op)
}

func (s *source) CompareAndDelete(ctx context.Context, key string, base Version, op OpID) (Version, error) {
	return s.write(ctx, key, base, row{absent: true}, op)
}

func (s *source) write(ctx context.Context, key string, base Version, r row, op OpID) (Version, error) {
	if s.isDown.Load() {
		return 0, errDown
	}
	if err := call(s.beforeWrite, ctx, key); err != nil {
		return 0, err
	}
	s.mu.Lock()
	have, ok := s.rows[key]
	current := have.version
	if !ok || have.absent {
		current = 0
	}
	if current != base {
		s.mu.Unlock()
		return 0, fmt.Errorf("source: %w", &ConflictError{Current: have.version, Absent: !ok || have.absent})
	}
	v := s.putLocked(key, r)
	s.done[op] = v
	s.mu.Unlock()
	return v, call(s.afterWrite, ctx, key)
}

func (s *source) Outcome(_ context.Context, key string, op OpID) (Version, bool, error) {
	if s.isDown.Load() {
		return 0, false, errDown
	}
	if s.onOutcome != nil {
		if err := s.onOutcome(key, op); err != nil {
			return 0, false, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.done[op]
	return v, ok, nil
}

// newCache returns a cache on o that is closed and checked when the test ends.
func newCache[V any](t testing.TB, o Options[string, V]) *Cache[string, V] {
	t.Helper()
	c, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.check())
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, c.Close(ctx))
	})
	return c
}

// onSource returns a cache that loads from s and writes through it.
func onSource(t testing.TB, s *source) *Cache[string, int] {
	t.Helper()
	return newCache(t, Options[string, int]{Store: s})
}

// check verifies the shards' invariants, named at the top of shard.go.
func (c *Cache[K, V]) check() error {
	for i := range c.shards {
		if err := c.shards[i].check(c.era.Load(), c.keys.hash); err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
	}
	var cost int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		cost += s.cost
		s.mu.Unlock()
	}
	if limit := c.policy.limit.Load(); cost > limit {
		return fmt.Errorf("entries cost %d, more than MaxCost %d", cost, limit)
	}
	return nil
}

// entry returns the key's entry, or nil.
func (c *Cache[K, V]) entry(key K) *node[K, V] {
	hash := c.keys.hash(key)
	n := new(node[K, V])
	n.Key, n.Hash = key, hash
	if _, ok := c.shard(hash).look(hash, key, &n.E.value, &n.E.facts); !ok {
		return nil
	}
	return n
}

// serves returns the key's entry if it may be served, or nil.
func (c *Cache[K, V]) serves(key K) *node[K, V] {
	n := new(node[K, V])
	if _, ok := c.peek(c.keys.hash(key), key, n); !ok {
		return nil
	}
	return n
}

func (s *shard[K, V]) check(era uint64, hashOf func(K) uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cost, windowCost int64
	live, windowLive := 0, 0
	var err error
	held := map[ticket]bool{}
	for key := range s.table.All {
		hash := hashOf(key)
		p, _ := s.table.Find(hash, key)
		h := p.Head
		cost += h.cost
		if generation(h.era.Load()) == s.gen {
			live++
		}
		if h.state() == inWindow {
			windowCost += h.cost
			windowLive++
		}
		held[ticket{hash, h.record}] = true
		switch {
		case h.record == 0 || h.state() == gone:
			err = fmt.Errorf("I5: the entry of %v has record %d in state %v", key, h.record, h.state())
		case s.pending[key] != nil && s.pending[key].doubts > 0:
			err = fmt.Errorf("I4: %v has an entry and a doubt", key)
		}
		if p := s.pending[key]; p != nil && generation(h.era.Load()) == generation(era) {
			for _, f := range p.fences {
				if !f.broken && f.era == h.era.Load() && f.floor.before(h.mark()) && h.version.Load() != 0 {
					err = fmt.Errorf("I2: a fence of %v is at %v, below the entry at %v", key, f.floor, h.mark())
				}
			}
		}
	}
	for key, p := range s.pending {
		if len(p.fences) == 0 && p.doubts == 0 {
			err = fmt.Errorf("I3: %v is pending for nothing", key)
		}
	}
	inLine := 0
	for _, t := range s.window[s.head:] {
		if p, ok := s.holderLocked(t); ok && p.Head.state() == inWindow {
			inLine++
		}
	}
	if inLine != windowLive {
		err = fmt.Errorf("I5: %d entries are in the window, which has tickets of %d", windowLive, inLine)
	}
	if len(held) != s.table.Len() {
		err = fmt.Errorf("I5: %d records for %d entries", len(held), s.table.Len())
	}
	switch {
	case err != nil:
		return err
	case cost != s.cost || windowCost != s.windowCost || windowLive != s.windowLive:
		return fmt.Errorf("I6: cost %d counted as %d, window %d as %d, live in window %d as %d",
			cost, s.cost, windowCost, s.windowCost, windowLive, s.windowLive)
	case live != s.live:
		return fmt.Errorf("live %d counted as %d", live, s.live)
	}
	return nil
}

// bus is a Hint in memory. Messages are delivered by the publisher's call,
// unless a test's fault says otherwise.
type bus struct {
	mu   sync.Mutex // guards everything below
	subs map[int]*busSub
	next int

	// fault is called for each delivery with no lock held; it returns the
	// messages to deliver instead of msg.
	fault func(to int, msg []byte) [][]byte
	// refuse is what Publish returns, if not nil.
	refuse error
}

type busSub struct {
	mu      sync.Mutex // held during calls; guards stopped
	stopped bool
	receive func([]byte)
	lost    func(string)
}

func newBus() *bus { return &bus{subs: map[int]*busSub{}} }

func (b *bus) Publish(_ context.Context, msg []byte) error {
	b.mu.Lock()
	if b.refuse != nil {
		defer b.mu.Unlock()
		return b.refuse
	}
	fault := b.fault
	to := make(map[int]*busSub, len(b.subs))
	for id, s := range b.subs {
		to[id] = s
	}
	b.mu.Unlock()
	for id, s := range to {
		msgs := [][]byte{msg}
		if fault != nil {
			msgs = fault(id, append([]byte(nil), msg...))
		}
		for _, m := range msgs {
			s.mu.Lock()
			if !s.stopped {
				own := bytes.Clone(m)
				s.receive(own)
				clear(own) // whoever keeps it, or a key in it, notices
			}
			s.mu.Unlock()
		}
	}
	return nil
}

func (b *bus) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &busSub{receive: receive, lost: lost}
	id := b.next
	b.next++
	b.subs[id] = s
	return func() {
		b.mu.Lock()
		delete(b.subs, id)
		b.mu.Unlock()
		s.mu.Lock()
		s.stopped = true
		s.mu.Unlock()
	}, nil
}

// setFault changes the fault; nil delivers everything once.
func (b *bus) setFault(f func(to int, msg []byte) [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// invalidator returns an Invalidator on b.
func (b *bus) invalidator() Invalidator {
	return Invalidator{Name: "test", Hint: b, Beat: 20 * time.Millisecond}
}

// replicas returns n caches on one source and one bus, all ready.
func replicas(t testing.TB, n int, s *source, b *bus) []*Cache[string, int] {
	t.Helper()
	var all []*Cache[string, int]
	for range n {
		c := newCache(t, Options[string, int]{Store: s, Invalidator: b.invalidator()})
		require.NoError(t, c.Ready(t.Context()))
		all = append(all, c)
	}
	return all
}

// eventually waits for cond, at most five seconds.
func eventually(t testing.TB, cond func() bool, what string) {
	t.Helper()
	require.Eventually(t, cond, 5*time.Second, time.Millisecond, what)
}
