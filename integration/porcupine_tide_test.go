package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// The sequential specification of one key in one process when others change the
// source as well, and nobody tells the cache. There are two numbers, both are
// versions: what the source holds, and the tide mark.
//
//	commit v    the source goes from v-1 to v; the cache need not know
//	note v      the cache was told of v, wrote it, or was refused because of it:
//	            the mark rises to v, which the source must have had
//	blind       it was told that the key, or everything, has changed: the mark
//	            rises to what the source holds
//	serve v     a read returned v: at or above the mark, and not above what the
//	            source holds; the mark rises to v
//	fresh v     a Linearizable read returned v, and the source held it
//	offer v     Put or Commit: Applied if v is at or above the mark, which rises
//	            to v; Duplicate if v is the mark; Stale if v is below it; else
//	            Unproven, after which the mark is not below v
//
// A read that finds nothing in memory says nothing: eviction may come at any
// time. A stale hit is never allowed. What the source holds may be newer than
// what is served for as long as nobody tells.
//
// An operation that acts on the source and on the cache is not one step: a write
// is a commit and a note, a Linearizable read is fresh and served, and others may
// see the one before the other. Such an operation is recorded as two that overlap.
// A write whose answer is lost is a commit, if it was one, that ends when the
// cache knows.
type tideKey struct {
	source, mark tidemark.Version
	gone         bool // the source holds a deletion
}

type tideStep struct {
	key  string
	op   string
	v    tidemark.Version
	base tidemark.Version // of a commit
	gone bool             // of a commit: it is a deletion
	blur bool             // of an offer: somebody may have seen the mark rise unrecorded
}

var tideSpecification = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		return partition(history, func(in any) string { return in.(tideStep).key })
	},
	Init: func() any { return tideKey{source: 1} },
	Step: func(state, in, out any) (bool, any) { return state.(tideKey).step(in.(tideStep), out) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%s %d %v", in.(tideStep).op, in.(tideStep).v, out)
	},
}

func partition(history []porcupine.Operation, key func(in any) string) [][]porcupine.Operation {
	byKey := map[string][]porcupine.Operation{}
	for _, o := range history {
		k := key(o.Input)
		byKey[k] = append(byKey[k], o)
	}
	var parts [][]porcupine.Operation
	for _, p := range byKey {
		parts = append(parts, p)
	}
	return parts
}

func (k tideKey) step(s tideStep, out any) (bool, tideKey) {
	next := k
	next.mark = max(k.mark, s.v)
	switch s.op {
	case "commit":
		base := k.source
		if k.gone {
			base = 0
		}
		return s.v == k.source+1 && s.base == base, tideKey{s.v, k.mark, s.gone}
	case "write": // whatever the base
		return s.v == k.source+1, tideKey{s.v, k.mark, s.gone}
	case "note":
		return s.v <= k.source, next
	case "blind":
		next.mark = k.source
		return true, next
	case "serve":
		return k.mark <= s.v && s.v <= k.source, next
	case "fresh":
		return s.v == k.source, k
	case "offer":
		return k.offer(s, out.(tidemark.Outcome)), next
	default:
		panic("no such step: " + s.op)
	}
}

func (k tideKey) offer(s tideStep, o tidemark.Outcome) bool {
	switch o {
	case tidemark.Applied:
		return k.mark <= s.v && s.v <= k.source
	case tidemark.Duplicate:
		return k.mark == s.v
	case tidemark.Stale:
		return s.v < k.mark || s.blur && s.v < k.source
	case tidemark.Unproven:
		return s.v <= k.source
	default:
		return false
	}
}

// A tideSubject is what is tested.
type tideSubject interface {
	subject
	Update(ctx context.Context, key string, fn func(tidemark.Entry[int]) (int, error)) (tidemark.Entry[int], error)
	Fill(key string, read func() (int, register)) tidemark.Outcome
}

// filled adds Fill to a cache.
type filled struct{ *tidemark.Cache[string, int] }

func (c filled) Fill(key string, read func() (int, register)) tidemark.Outcome {
	f := c.BeginFill(key)
	value, r := read()
	if r.absent {
		return f.Absent(r.version)
	}
	return f.Commit(value, r.version)
}

// A tideClient records what one goroutine does.
type tideClient struct {
	t       *testing.T
	id      int
	began   time.Time
	cache   tideSubject
	memory  *memory
	rng     *rand.Rand
	updates bool
	history []porcupine.Operation
}

func (c *tideClient) now() int64 { return int64(time.Since(c.began)) }

func (c *tideClient) record(begin int64, out any, steps ...tideStep) {
	end := c.now()
	for _, s := range steps {
		s.blur = c.updates
		c.history = append(c.history, porcupine.Operation{ClientId: c.id, Input: s, Output: out, Call: begin, Return: end})
	}
}

// returned records a read, and checks that the state was committed so.
func (c *tideClient) returned(begin int64, key string, e tidemark.Entry[int], ops ...string) {
	c.memory.mu.Lock()
	r, value := c.memory.past[key][e.Version-1], c.memory.valueLocked(key, e.Version)
	c.memory.mu.Unlock()
	assert.Equal(c.t, r.absent, e.Absent, "%s@%d", key, e.Version)
	assert.Equal(c.t, value, e.Value, "%s@%d", key, e.Version)
	for _, op := range ops {
		c.record(begin, nil, tideStep{key: key, op: op, v: e.Version})
	}
}

func (c *tideClient) step() {
	key, ctx, begin := []string{"a", "b"}[c.rng.IntN(2)], context.Background(), c.now()
	switch n := c.rng.IntN(100); {
	case n < 25:
		if e, ok := c.cache.GetEntry(key); ok {
			c.returned(begin, key, e, "serve")
		}
	case n < 50:
		e, err := c.cache.Load(ctx, key)
		require.True(c.t, err == nil || errors.Is(err, tidemark.ErrNotFound), "%v", err)
		c.returned(begin, key, e, "serve")
	case n < 55:
		e, err := c.cache.Read(ctx, key, tidemark.Linearizable)
		require.True(c.t, err == nil || errors.Is(err, tidemark.ErrNotFound), "%v", err)
		c.returned(begin, key, e, "serve", "fresh")
	case n < 62:
		if r := c.memory.old(key); !r.absent {
			o := c.cache.Put(key, c.memory.value(key, r.version), r.version)
			c.record(begin, o, tideStep{key: key, op: "offer", v: r.version})
		}
	case n < 67:
		c.fill(key)
	case n < 72:
		r := c.memory.old(key)
		require.NoError(c.t, c.cache.Invalidate(ctx, key, r.version))
		c.record(begin, nil, tideStep{key: key, op: "note", v: r.version})
	case n < 74:
		require.NoError(c.t, c.cache.Invalidate(ctx, key, 0))
		c.record(begin, nil, tideStep{key: key, op: "blind"})
	case n < 75:
		require.NoError(c.t, c.cache.InvalidateAll(ctx))
		c.record(begin, nil, tideStep{key: "a", op: "blind"}, tideStep{key: "b", op: "blind"})
	case n < 82:
		r := c.memory.commit(key)
		c.record(begin, nil, tideStep{key: key, op: "write", v: r.version})
	case n < 90 && c.updates:
		c.update(key)
	default:
		c.write(key)
	}
}

func (c *tideClient) fill(key string) {
	var begin int64
	var r register
	o := c.cache.Fill(key, func() (value int, _ register) {
		linger()
		c.memory.mu.Lock()
		r = c.memory.rows[key]
		value = c.memory.valueLocked(key, r.version)
		c.memory.mu.Unlock()
		linger()
		begin = c.now()
		return value, r
	})
	c.record(begin, o, tideStep{key: key, op: "offer", v: r.version})
}

// update records the reads that its function sees, too.
func (c *tideClient) update(key string) {
	begin := c.now()
	read, base := begin, tidemark.Version(0)
	e, err := c.cache.Update(context.Background(), key, func(cur tidemark.Entry[int]) (int, error) {
		c.returned(read, key, cur, "serve")
		read, base = c.now(), cur.Version
		if cur.Absent {
			base = 0
		}
		return c.rng.Int(), nil
	})
	c.written(begin, key, base, false, e, err)
}

func (c *tideClient) write(key string) {
	begin := c.now()
	e, ok := c.cache.GetEntry(key)
	if !ok {
		return
	}
	c.returned(begin, key, e, "serve")
	begin = c.now()
	base, next, gone := e.Version, c.rng.Int(), c.rng.IntN(5) == 0 && !e.Absent
	var err error
	if e.Absent {
		base = 0
	}
	if gone {
		e, err = c.cache.Delete(context.Background(), key, base)
	} else {
		e, err = c.cache.CompareAndSet(context.Background(), key, base, next)
	}
	c.written(begin, key, base, gone, e, err)
}

// written records a write. What is in doubt ends when the doubt does.
func (c *tideClient) written(begin int64, key string, base tidemark.Version, gone bool, e tidemark.Entry[int], err error) {
	var conflict *tidemark.ConflictError
	var uncertain *tidemark.UncertainError
	version := e.Version
	switch {
	case errors.As(err, &conflict):
		c.record(begin, nil, tideStep{key: key, op: "note", v: conflict.Current})
		return
	case errors.As(err, &uncertain):
		v, committed, err := uncertain.Wait(context.Background())
		require.NoError(c.t, err)
		if !committed {
			return
		}
		version = v
	default:
		require.NoError(c.t, err)
	}
	c.record(begin, nil,
		tideStep{key: key, op: "commit", v: version, base: base, gone: gone},
		tideStep{key: key, op: "note", v: version})
}

func recordTide(t *testing.T, c tideSubject, m *memory, seed uint64, updates bool) (history []porcupine.Operation) {
	began := time.Now()
	all := make([]*tideClient, clients)
	var wg sync.WaitGroup
	for id := range all {
		all[id] = &tideClient{
			t: t, id: id, began: began, cache: c, memory: m, updates: updates, rng: rand.New(rand.NewPCG(seed, uint64(id))),
		}
		wg.Go(func() {
			for range perClient {
				all[id].step()
			}
		})
	}
	wg.Wait()
	for _, c := range all {
		history = append(history, c.history...)
	}
	return history
}

// What one process serves is linearizable with all that happens to it, also
// while others change the source and tell nobody.
func TestHistoriesKeepTheTideMark(t *testing.T) {
	for _, tt := range []struct {
		name    string
		updates bool
		lose    int
		o       tidemark.Options[string, int]
	}{
		{"room for everything", false, 0, tidemark.Options[string, int]{}},
		{"one entry of two fits", false, 0, tidemark.Options[string, int]{MaxCost: 1}},
		{"with Update", true, 0, tidemark.Options[string, int]{}},
		{"answers lost", true, 20, tidemark.Options[string, int]{}},
		{"entries live for 1 ms", false, 0, tidemark.Options[string, int]{TTL: time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range max(*histories/5, 1) {
				seed := rand.Uint64()
				m := newMemory([]string{"a", "b"}, tt.lose)
				o := tt.o
				o.Store, o.ExpectedEntries, o.DoubtTimeout = m, 100, 5*time.Millisecond
				c, err := tidemark.New(o)
				require.NoError(t, err)
				history := recordTide(t, filled{c}, m, seed, tt.updates)
				require.NoError(t, c.Close(t.Context()))
				result := porcupine.CheckOperationsTimeout(tideSpecification, history, time.Minute)
				require.Equal(t, porcupine.Ok, result, "seed %d: a history of %d operations", seed, len(history))
			}
		})
	}
}

// A toy is a cache with all the guards that a single process needs, and a switch
// for each.
type toy struct {
	*memory
	without string // the guard that is missing

	mu   sync.Mutex // guards everything below
	keys map[string]*toyKey
}

type toyKey struct {
	entry  *tidemark.Entry[int]
	mark   tidemark.Version // never forgotten
	blind  bool             // a change without a version came since the last load
	flight *toyFlight
}

type toyFlight struct {
	floor  tidemark.Version
	broken bool
	done   chan struct{}
	result tidemark.Entry[int]
}

func newToy(m *memory, without string) *toy {
	return &toy{memory: m, without: without, keys: map[string]*toyKey{"a": {}, "b": {}}}
}

// raiseLocked notes that the key has reached v.
func (k *toyKey) raiseLocked(v tidemark.Version, fence bool) {
	k.mark = max(k.mark, v)
	if k.entry != nil && k.entry.Version < v {
		k.entry = nil
	}
	if k.flight != nil && fence {
		k.flight.floor = max(k.flight.floor, v)
	}
}

func (c *toy) GetEntry(key string) (tidemark.Entry[int], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.keys[key].entry; e != nil {
		return *e, true
	}
	return tidemark.Entry[int]{}, false
}

func (c *toy) Load(ctx context.Context, key string) (tidemark.Entry[int], error) {
	for {
		c.mu.Lock()
		k := c.keys[key]
		if k.entry != nil {
			defer c.mu.Unlock()
			return answer(*k.entry)
		}
		need, f := k.mark, k.flight
		mine := f == nil || f.broken
		if mine {
			f = &toyFlight{floor: k.mark, done: make(chan struct{})}
			k.flight = f
		}
		c.mu.Unlock()
		if mine {
			c.fly(ctx, key, f)
		}
		<-f.done
		if f.result.Version >= need || c.without == "the check of who joins" {
			return answer(f.result)
		}
	}
}

func answer(e tidemark.Entry[int]) (tidemark.Entry[int], error) {
	if e.Absent {
		return e, tidemark.ErrNotFound
	}
	return e, nil
}

// fly loads the key and ends f.
func (c *toy) fly(ctx context.Context, key string, f *toyFlight) {
	value, v, err := c.memory.Load(ctx, key)
	f.result = tidemark.Entry[int]{Value: value, Version: v, Absent: err != nil}
	c.mu.Lock()
	k := c.keys[key]
	fenced := f.broken || v < f.floor
	if !fenced || c.without == "the fence of loads" {
		k.entry, k.blind, k.mark = &f.result, false, max(k.mark, v)
	} else {
		k.raiseLocked(v, true)
	}
	if k.flight == f {
		k.flight = nil
	}
	c.mu.Unlock()
	close(f.done)
}

func (c *toy) Read(ctx context.Context, key string, _ tidemark.Level) (tidemark.Entry[int], error) {
	c.mu.Lock()
	k := c.keys[key]
	if k.flight != nil {
		k.flight.broken = true
	}
	f := &toyFlight{floor: k.mark, done: make(chan struct{})}
	k.flight = f
	c.mu.Unlock()
	c.fly(ctx, key, f)
	return answer(f.result)
}

func (c *toy) Put(key string, value int, v tidemark.Version) tidemark.Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keys[key]
	unchecked := c.without == "the mark of Put"
	switch {
	case v < k.mark && !unchecked:
		return tidemark.Stale
	case k.entry != nil && k.entry.Version == v:
		return tidemark.Duplicate
	case k.blind && k.entry == nil && !unchecked:
		k.raiseLocked(v, true)
		return tidemark.Unproven
	}
	k.raiseLocked(v, true)
	k.entry = &tidemark.Entry[int]{Value: value, Version: v}
	return tidemark.Applied
}

func (c *toy) Fill(key string, read func() (int, register)) tidemark.Outcome {
	_, r := read()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[key].raiseLocked(r.version, true)
	return tidemark.Unproven // it is no better than a word
}

func (c *toy) Invalidate(_ context.Context, key string, v tidemark.Version) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keys[key]
	fence := c.without != "the fence of invalidations"
	if v == 0 {
		c.blindLocked(k, fence)
	} else {
		k.raiseLocked(v, fence)
	}
	return nil
}

func (c *toy) blindLocked(k *toyKey, fence bool) {
	k.entry, k.blind = nil, true
	if k.flight != nil && fence {
		k.flight.broken = true
		k.flight = nil
	}
}

func (c *toy) InvalidateAll(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.keys {
		c.blindLocked(k, c.without != "the fence of InvalidateAll")
	}
	return nil
}

func (c *toy) CompareAndSet(ctx context.Context, key string, base tidemark.Version, value int) (tidemark.Entry[int], error) {
	v, err := c.memory.CompareAndSet(ctx, key, base, value, newOp())
	return c.wrote(key, value, v, false, err)
}

func (c *toy) Delete(ctx context.Context, key string, base tidemark.Version) (tidemark.Entry[int], error) {
	v, err := c.memory.CompareAndDelete(ctx, key, base, newOp())
	return c.wrote(key, 0, v, true, err)
}

func (c *toy) wrote(key string, value int, v tidemark.Version, absent bool, err error) (tidemark.Entry[int], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var conflict *tidemark.ConflictError
	k := c.keys[key]
	switch {
	case errors.As(err, &conflict):
		k.raiseLocked(conflict.Current, true)
	case c.without == "the mark of writes":
	default:
		k.raiseLocked(v, true)
	}
	if c.without == "the fence of writes" && err == nil {
		e := tidemark.Entry[int]{Value: value, Version: v, Absent: absent}
		k.entry = &e
	}
	return tidemark.Entry[int]{Version: v, Absent: absent}, err
}

func (c *toy) Update(context.Context, string, func(tidemark.Entry[int]) (int, error)) (tidemark.Entry[int], error) {
	return tidemark.Entry[int]{}, tidemark.ErrNoStore
}

// The specification accepts a cache that has every guard, and convicts it when
// one is missing.
func TestHistories_EachMissingGuardIsConvicted(t *testing.T) {
	for _, guard := range []string{
		"", "the fence of loads", "the check of who joins", "the mark of Put", "the fence of invalidations",
		"the fence of InvalidateAll", "the mark of writes", "the fence of writes",
	} {
		t.Run("without "+guard, func(t *testing.T) {
			const tries = 40
			for range tries {
				m := newMemory([]string{"a", "b"}, 0)
				history := recordTide(t, newToy(m, guard), m, rand.Uint64(), false)
				result := porcupine.CheckOperationsTimeout(tideSpecification, history, time.Minute)
				require.NotEqual(t, porcupine.Unknown, result)
				if guard != "" && result == porcupine.Illegal {
					return
				}
				if guard == "" {
					require.Equal(t, porcupine.Ok, result)
				}
			}
			require.Empty(t, guard, "not convicted in %d histories", tries)
		})
	}
}

// The source, seen through Linearizable reads, is a register with versions that
// conditional writes move. A write in doubt may take effect at any time after it
// was sent, or never: its operation does not end.
var registerSpecification = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		return partition(history, func(in any) string { return in.(input).key })
	},
	Init: func() []any { return []any{register{version: 1}} },
	Step: func(state, in, out any) []any {
		s, i := state.(register), in.(input)
		base := s.version
		if s.absent {
			base = 0
		}
		moved := register{s.version + 1, i.op == "delete"}
		switch o := out.(type) {
		case nil: // in doubt
			if base == i.base {
				return []any{s, moved}
			}
			return []any{s}
		case output:
			switch {
			case i.op == "read" && o.state == s, o.conflict && base != i.base && o.state.version == s.version:
				return []any{s}
			case i.op != "read" && !o.conflict && base == i.base && o.state == moved:
				return []any{moved}
			}
		}
		return nil
	},
}

// A tardy store lets one write in so many take effect after it has said that it
// does not know, but within its time limit.
type tardy struct {
	*memory
	one   int
	limit time.Duration
	wg    sync.WaitGroup
}

func (s *tardy) CompareAndSet(ctx context.Context, key string, base tidemark.Version, value int, op tidemark.OpID) (tidemark.Version, error) {
	return s.delay(func() (tidemark.Version, error) { return s.memory.CompareAndSet(ctx, key, base, value, op) })
}

func (s *tardy) CompareAndDelete(ctx context.Context, key string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return s.delay(func() (tidemark.Version, error) { return s.memory.CompareAndDelete(ctx, key, base, op) })
}

func (s *tardy) delay(write func() (tidemark.Version, error)) (tidemark.Version, error) {
	if rand.IntN(s.one) > 0 {
		return write()
	}
	s.wg.Go(func() {
		time.Sleep(time.Duration(rand.Int64N(int64(s.limit / 20))))
		_, _ = write() // nobody waits for the answer
	})
	return 0, errLost
}

// recordRegister runs clients that read Linearizable and write on what they have
// read, and lets them go on when a write is in doubt.
func recordRegister(t *testing.T, c subject, seed uint64) (history []porcupine.Operation) {
	began := time.Now()
	var mu sync.Mutex // guards history
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(id)))
			var own []porcupine.Operation
			last := map[string]register{}
			for range perClient {
				in := input{key: []string{"a", "b"}[rng.IntN(2)], op: []string{"read", "read", "cas", "cas", "delete"}[rng.IntN(5)]}
				if r := last[in.key]; !r.absent {
					in.base = r.version
				}
				o := porcupine.Operation{ClientId: id, Call: int64(time.Since(began))}
				out := onRegister(t, c, in)
				o.Input, o.Output, o.Return = in, nil, math.MaxInt64
				if out != nil {
					o.Output, o.Return = *out, int64(time.Since(began))
					last[in.key] = register{out.state.version, out.state.absent}
				}
				own = append(own, o)
			}
			mu.Lock()
			defer mu.Unlock()
			history = append(history, own...)
		})
	}
	wg.Wait()
	return history
}

// onRegister makes one operation; its output is nil if it is in doubt.
func onRegister(t *testing.T, c subject, in input) *output {
	var e tidemark.Entry[int]
	var err error
	switch in.op {
	case "read":
		e, err = c.Read(t.Context(), in.key, tidemark.Linearizable)
	case "cas":
		e, err = c.CompareAndSet(t.Context(), in.key, in.base, 0)
	case "delete":
		e, err = c.Delete(t.Context(), in.key, in.base)
	}
	var conflict *tidemark.ConflictError
	switch {
	case errors.As(err, &conflict):
		return &output{state: register{version: conflict.Current}, conflict: true}
	case errors.As(err, new(*tidemark.UncertainError)):
		return nil
	default:
		require.True(t, err == nil || errors.Is(err, tidemark.ErrNotFound), "%v", err)
		return &output{state: register{e.Version, e.Absent}}
	}
}

func TestHistoriesOfTheSourceAreLinearizable(t *testing.T) {
	for range max(*histories/2, 1) {
		seed := rand.Uint64()
		m := newMemory([]string{"a", "b"}, 100)
		s := &tardy{memory: m, one: 100, limit: 200 * time.Millisecond}
		c, err := tidemark.New(tidemark.Options[string, int]{Store: s, ExpectedEntries: 100, DoubtTimeout: s.limit})
		require.NoError(t, err)
		history := recordRegister(t, c, seed)
		s.wg.Wait()
		var doubts *tidemark.DoubtError
		if err := c.Close(t.Context()); err != nil {
			require.ErrorAs(t, err, &doubts)
		}
		result := porcupine.CheckOperationsTimeout(registerSpecification.ToModel(), history, time.Minute)
		require.Equal(t, porcupine.Ok, result, "seed %d: a history of %d operations", seed, len(history))
	}
}

// cachedReads answers Linearizable reads from memory.
type cachedReads struct {
	*tidemark.Cache[string, int]
}

func (c cachedReads) Read(ctx context.Context, key string, _ tidemark.Level) (tidemark.Entry[int], error) {
	return c.Load(ctx, key)
}

// forgetful says that a write in doubt did not happen.
type forgetful struct {
	*tidemark.Cache[string, int]
}

func (c forgetful) CompareAndSet(ctx context.Context, key string, base tidemark.Version, value int) (tidemark.Entry[int], error) {
	e, err := c.Cache.CompareAndSet(ctx, key, base, value)
	if errors.As(err, new(*tidemark.UncertainError)) {
		e, _ = c.Read(ctx, key, tidemark.Linearizable)
		return e, &tidemark.ConflictError{Current: e.Version}
	}
	return e, err
}

// unconditional writes whatever the base.
type unconditional struct {
	*tidemark.Cache[string, int]
}

func (c unconditional) CompareAndSet(ctx context.Context, key string, _ tidemark.Version, value int) (tidemark.Entry[int], error) {
	return c.Update(ctx, key, func(tidemark.Entry[int]) (int, error) { return value, nil })
}

// Two caches on one source that do not hear each other, used at random, and
// three that cheat, are convicted.
func TestHistories_CheatingOnTheSourceIsConvicted(t *testing.T) {
	for name, cheat := range map[string]func(one, other *tidemark.Cache[string, int]) subject{
		"cached reads beside another process": func(one, other *tidemark.Cache[string, int]) subject {
			return either{cachedReads{one}, cachedReads{other}}
		},
		"a write in doubt is taken for none": func(one, _ *tidemark.Cache[string, int]) subject { return forgetful{one} },
		"the base is ignored":                func(one, _ *tidemark.Cache[string, int]) subject { return unconditional{one} },
	} {
		t.Run(name, func(t *testing.T) {
			const tries = 20
			for range tries {
				m := newMemory([]string{"a", "b"}, 20)
				o := tidemark.Options[string, int]{Store: m, ExpectedEntries: 100, DoubtTimeout: 5 * time.Millisecond}
				one, err := tidemark.New(o)
				require.NoError(t, err)
				other, err := tidemark.New(o)
				require.NoError(t, err)
				history := recordRegister(t, cheat(one, other), rand.Uint64())
				_ = errors.Join(one.Close(t.Context()), other.Close(t.Context())) // doubts may be left
				if porcupine.CheckOperationsTimeout(registerSpecification.ToModel(), history, time.Minute) == porcupine.Illegal {
					return
				}
			}
			t.Errorf("not convicted in %d histories", tries)
		})
	}
}

// either is two processes behind a load balancer.
type either struct {
	subject
	other subject
}

func (e either) Read(ctx context.Context, key string, level tidemark.Level) (tidemark.Entry[int], error) {
	if rand.IntN(2) == 0 {
		return e.other.Read(ctx, key, level)
	}
	return e.subject.Read(ctx, key, level)
}

func (e either) CompareAndSet(ctx context.Context, key string, base tidemark.Version, value int) (tidemark.Entry[int], error) {
	if rand.IntN(2) == 0 {
		return e.other.CompareAndSet(ctx, key, base, value)
	}
	return e.subject.CompareAndSet(ctx, key, base, value)
}
