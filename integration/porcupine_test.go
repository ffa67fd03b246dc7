package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

var histories = flag.Int("porcupine.histories", 40, "recorded histories to check, of each kind")

// The sequential specification. One key of one process is a register that holds
// a version, and whether the key exists at it:
//
//   - a read that returns a state returns the register's: Load, Linearizable,
//     and a hit of GetEntry alike. A miss of GetEntry is allowed at any time,
//     for eviction may come at any time; a stale hit never is.
//   - a write moves the register from its base to the next version, or reports
//     a conflict with the version that it holds.
//   - Put of a state that was committed before, Invalidate and InvalidateAll
//     change nothing that a read may notice.
//
// All writes go through the cache under test, or are announced to it by the
// Put that is part of the same operation, so nothing else moves the register.
type register struct {
	version tidemark.Version
	absent  bool
}

type input struct {
	key  string
	op   string // read, get, cas, delete, write, hint
	base tidemark.Version
}

type output struct {
	state    register
	hit      bool // of get
	conflict bool // of cas and delete
}

var specification = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := o.Input.(input).key
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range byKey {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return register{version: 1} },
	Step: func(state, in, out any) (bool, any) {
		s, i, o := state.(register), in.(input), out.(output)
		current := s.version
		if s.absent {
			current = 0
		}
		switch i.op {
		case "read":
			return o.state == s, s
		case "get":
			return !o.hit || o.state == s, s
		case "cas", "delete":
			if o.conflict {
				return current != i.base, s
			}
			return current == i.base && o.state.version == s.version+1, o.state
		case "write": // commits whatever the base
			return o.state.version == s.version+1, o.state
		default:
			return true, s
		}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// A table is a database of record in memory, a little slow, with versions that
// survive deletion. One in so many writes loses its answer.
type memory struct {
	mu   sync.Mutex // guards everything below
	rows map[string]register
	ops  map[tidemark.OpID]tidemark.Version
	past map[string][]register
	vals map[string][]int // of the states in past
	lose int              // one in so many; 0 for none
}

func newMemory(keys []string, lose int) *memory {
	m := &memory{rows: map[string]register{}, ops: map[tidemark.OpID]tidemark.Version{}, past: map[string][]register{}, vals: map[string][]int{}, lose: lose}
	for _, k := range keys {
		m.rows[k] = register{version: 1}
		m.past[k], m.vals[k] = []register{{version: 1}}, []int{1}
	}
	return m
}

// linger gives the others time to get in between.
func linger() { time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond) }

func (m *memory) Load(_ context.Context, key string) (int, tidemark.Version, error) {
	linger()
	m.mu.Lock()
	r := m.rows[key]
	value := m.valueLocked(key, r.version)
	m.mu.Unlock()
	linger()
	if r.absent {
		return 0, r.version, tidemark.ErrNotFound
	}
	return value, r.version, nil
}

func (m *memory) CompareAndSet(_ context.Context, key string, base tidemark.Version, value int, op tidemark.OpID) (tidemark.Version, error) {
	return m.write(key, base, value, false, op)
}

func (m *memory) CompareAndDelete(_ context.Context, key string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return m.write(key, base, 0, true, op)
}

var errLost = errors.New("the answer was lost")

func (m *memory) write(key string, base tidemark.Version, value int, absent bool, op tidemark.OpID) (tidemark.Version, error) {
	linger()
	defer linger()
	m.mu.Lock()
	defer m.mu.Unlock()
	lost := m.lose > 0 && rand.IntN(m.lose) == 0
	if lost && rand.IntN(2) == 0 {
		return 0, errLost // on the way there
	}
	current := m.rows[key].version
	if m.rows[key].absent {
		current = 0
	}
	if current != base {
		return 0, &tidemark.ConflictError{Current: m.rows[key].version, Absent: m.rows[key].absent}
	}
	r := m.commitLocked(key, value, absent)
	m.ops[op] = r.version
	if lost {
		return 0, errLost // on the way back
	}
	return r.version, nil
}

func (m *memory) commitLocked(key string, value int, absent bool) register {
	r := register{m.rows[key].version + 1, absent}
	m.rows[key] = r
	m.past[key], m.vals[key] = append(m.past[key], r), append(m.vals[key], value)
	return r
}

// value returns what was committed at version v; 0 if that was a deletion.
func (m *memory) value(key string, v tidemark.Version) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.valueLocked(key, v)
}

func (m *memory) valueLocked(key string, v tidemark.Version) int { return m.vals[key][v-1] }

func (m *memory) Outcome(_ context.Context, _ string, op tidemark.OpID) (tidemark.Version, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.ops[op]
	return v, ok, nil
}

// commit writes behind the cache's back.
func (m *memory) commit(key string) register {
	linger()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commitLocked(key, rand.Int(), false)
}

// old returns a state that was committed some time ago.
func (m *memory) old(key string) register {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.past[key][rand.IntN(len(m.past[key]))]
}

// A subject is what is tested.
type subject interface {
	Load(ctx context.Context, key string) (tidemark.Entry[int], error)
	Read(ctx context.Context, key string, level tidemark.Level) (tidemark.Entry[int], error)
	GetEntry(key string) (tidemark.Entry[int], bool)
	Put(key string, value int, v tidemark.Version) tidemark.Outcome
	CompareAndSet(ctx context.Context, key string, base tidemark.Version, value int) (tidemark.Entry[int], error)
	Delete(ctx context.Context, key string, base tidemark.Version) (tidemark.Entry[int], error)
	Invalidate(ctx context.Context, key string, v tidemark.Version) error
	InvalidateAll(ctx context.Context) error
}

const (
	clients   = 8
	perClient = 200
)

// record runs 8 clients with 200 operations each on 2 keys and returns what
// they saw.
func record(t *testing.T, c subject, m *memory, seed uint64, storeWrites bool) []porcupine.Operation {
	var mu sync.Mutex // guards history
	var history []porcupine.Operation
	began := time.Now()
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(id)))
			for range perClient {
				in := input{key: []string{"a", "b"}[r.IntN(2)]}
				call := int64(time.Since(began))
				out, keep := perform(t, c, m, r, &in, storeWrites)
				back := int64(time.Since(began))
				if keep {
					mu.Lock()
					history = append(history, porcupine.Operation{ClientId: id, Input: in, Output: out, Call: call, Return: back})
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return history
}

// perform makes one operation. keep is false if it turned out to have had no
// effect and no answer.
func perform(t *testing.T, c subject, m *memory, r *rand.Rand, in *input, storeWrites bool) (out output, keep bool) {
	ctx := t.Context()
	switch n := r.IntN(100); {
	case n < 30:
		in.op = "get"
		e, ok := c.GetEntry(in.key)
		return output{state: register{e.Version, e.Absent}, hit: ok}, true
	case n < 60:
		in.op = "read"
		e, err := c.Load(ctx, in.key)
		require.True(t, err == nil || errors.Is(err, tidemark.ErrNotFound), "%v", err)
		return output{state: register{e.Version, e.Absent}}, true
	case n < 65:
		in.op = "read"
		e, err := c.Read(ctx, in.key, tidemark.Linearizable)
		require.True(t, err == nil || errors.Is(err, tidemark.ErrNotFound), "%v", err)
		return output{state: register{e.Version, e.Absent}}, true
	case n < 73:
		in.op = "hint"
		old := m.old(in.key)
		if !old.absent {
			c.Put(in.key, m.value(in.key, old.version), old.version)
		}
		return output{}, true
	case n < 78:
		in.op = "hint"
		require.NoError(t, c.Invalidate(ctx, in.key, []tidemark.Version{0, m.old(in.key).version}[r.IntN(2)]))
		return output{}, true
	case n < 80:
		in.op = "hint"
		require.NoError(t, c.InvalidateAll(ctx))
		return output{}, true
	case !storeWrites:
		in.op = "write"
		now := m.commit(in.key)
		c.Put(in.key, m.value(in.key, now.version), now.version)
		return output{state: now}, true
	default:
		return writeThrough(t, c, m, r, in)
	}
}

// writeThrough makes a conditional write. If its outcome is unknown it waits to
// be told, so that the operation ends when it is settled.
func writeThrough(t *testing.T, c subject, m *memory, r *rand.Rand, in *input) (out output, keep bool) {
	in.op, in.base = "cas", 0
	if e, ok := c.GetEntry(in.key); ok && !e.Absent {
		in.base = e.Version
	}
	var e tidemark.Entry[int]
	var err error
	if r.IntN(5) == 0 && in.base != 0 {
		in.op = "delete"
		e, err = c.Delete(t.Context(), in.key, in.base)
	} else {
		e, err = c.CompareAndSet(t.Context(), in.key, in.base, 0)
	}
	var conflict *tidemark.ConflictError
	var uncertain *tidemark.UncertainError
	switch {
	case err == nil:
		return output{state: register{e.Version, e.Absent}}, true
	case errors.As(err, &conflict):
		return output{conflict: true}, true
	case errors.As(err, &uncertain):
		v, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		return output{state: register{v, in.op == "delete"}}, committed
	default:
		require.NoError(t, err)
		return output{}, false
	}
}

// Every history of one process is linearizable, with the writes through the
// cache, some of which lose their answer, and with writes that are announced by
// Put; with room for everything, and with evictions.
func TestHistoriesAreLinearizable(t *testing.T) {
	for _, tt := range []struct {
		name        string
		storeWrites bool
		lose        int
		o           tidemark.Options[string, int]
	}{
		{"get-or-load, put, invalidate, invalidate-all", false, 0, tidemark.Options[string, int]{}},
		{"write-through", true, 0, tidemark.Options[string, int]{}},
		{"write-through, one entry of two fits", true, 0, tidemark.Options[string, int]{MaxCost: 1}},
		{"write-through, answers lost", true, 20, tidemark.Options[string, int]{}},
		{"write-through, entries live for 1 ms", true, 0, tidemark.Options[string, int]{TTL: time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range max(*histories/5, 1) {
				seed := rand.Uint64()
				m := newMemory([]string{"a", "b"}, tt.lose)
				o := tt.o
				o.Store, o.ExpectedEntries, o.DoubtTimeout = m, 100, 5*time.Millisecond
				c, err := tidemark.New(o)
				require.NoError(t, err)
				history := record(t, c, m, seed, tt.storeWrites)
				require.NoError(t, c.Close(t.Context()))
				requireLinearizable(t, history, seed)
			}
		})
	}
}

func requireLinearizable(t *testing.T, history []porcupine.Operation, seed uint64) {
	t.Helper()
	require.Greater(t, len(history), clients*perClient/2)
	result, info := porcupine.CheckOperationsVerbose(specification, history, time.Minute)
	if result != porcupine.Ok {
		path := t.TempDir() + "/history.html"
		_ = porcupine.VisualizePath(specification, info, path)
		t.Fatalf("seed %d: a history of %d operations is %s", seed, len(history), result)
	}
}

// The same harness convicts a cache without fences, as the field builds it: a
// mutex, a map, and a loader beside.
func TestHistories_ACacheWithoutFencesIsConvicted(t *testing.T) {
	convicted := 0
	for range 10 {
		m := newMemory([]string{"a", "b"}, 0)
		history := record(t, &unfenced{m: m, entries: map[string]tidemark.Entry[int]{}}, m, rand.Uint64(), false)
		if porcupine.CheckOperationsTimeout(specification, history, time.Minute) == porcupine.Illegal {
			convicted++
		}
	}
	assert.Equal(t, 10, convicted, "histories found illegal")
}

// unfenced is what most caches are.
type unfenced struct {
	m       *memory
	mu      sync.Mutex // guards entries
	entries map[string]tidemark.Entry[int]
}

func (u *unfenced) GetEntry(key string) (tidemark.Entry[int], bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	e, ok := u.entries[key]
	return e, ok
}

func (u *unfenced) Load(ctx context.Context, key string) (tidemark.Entry[int], error) {
	if e, ok := u.GetEntry(key); ok {
		return e, nil
	}
	return u.Read(ctx, key, tidemark.Linearizable)
}

func (u *unfenced) Read(ctx context.Context, key string, _ tidemark.Level) (tidemark.Entry[int], error) {
	value, v, err := u.m.Load(ctx, key)
	if err != nil {
		return tidemark.Entry[int]{Version: v, Absent: true}, err
	}
	u.Put(key, value, v)
	return tidemark.Entry[int]{Value: value, Version: v}, nil
}

func (u *unfenced) Put(key string, value int, v tidemark.Version) tidemark.Outcome {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.entries[key] = tidemark.Entry[int]{Value: value, Version: v}
	return tidemark.Applied
}

func (u *unfenced) Invalidate(_ context.Context, key string, _ tidemark.Version) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.entries, key)
	return nil
}

func (u *unfenced) InvalidateAll(context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.entries)
	return nil
}

func (u *unfenced) CompareAndSet(context.Context, string, tidemark.Version, int) (tidemark.Entry[int], error) {
	return tidemark.Entry[int]{}, tidemark.ErrNoStore
}

func (u *unfenced) Delete(context.Context, string, tidemark.Version) (tidemark.Entry[int], error) {
	return tidemark.Entry[int]{}, tidemark.ErrNoStore
}
