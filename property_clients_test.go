package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/history"
)

// TestReplicas_KeepTheirPromisesToConcurrentClients runs clients of two replicas
// side by side, with somebody who changes the source behind them, a network that
// drops, doubles and delays, and too little room in one replica; what they have
// seen must keep every rule of internal/history.
func TestReplicas_KeepTheirPromisesToConcurrentClients(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			events := runClients(t, seed)
			for i, v := range history.Check(events, history.All) {
				if i == 10 {
					break
				}
				t.Error(v)
			}
			reads := 0
			for _, e := range events {
				if e.Kind == history.Read && e.Outcome == history.Done {
					reads++
				}
			}
			assert.Greater(t, reads, 1000)
		})
	}
}

// A client is one goroutine that uses one replica.
type client struct {
	t       *testing.T
	source  *source
	cache   *Cache[string, int]
	session *history.Session
	rng     *rand.Rand
	keys    []string
	last    map[string]Entry[int] // what it has read of a key
}

func runClients(t *testing.T, seed uint64) []history.Event {
	const clients, steps = 3, 800 // per replica
	s, b := newSource(), newBus()
	s.afterLoad = func(context.Context, string) error { dawdle(rand.IntN(8)); return nil }
	s.beforeWrite = func(context.Context, string) error { dawdle(rand.IntN(8)); return nil }
	s.afterWrite = func(context.Context, string) error {
		if rand.IntN(50) == 0 {
			return errors.New("the answer was lost")
		}
		return nil
	}
	var r history.Recorder
	outside := r.Session(-1)
	keys := []string{"a", "b", "c"}
	for _, k := range keys {
		changeOutside(s, outside, k, false)
	}
	var all []*Cache[string, int]
	for i := range 2 {
		c := newCache(t, Options[string, int]{
			Store: s, Invalidator: b.invalidator(), MaxCost: []int64{2, 1000}[i], DoubtTimeout: 20 * time.Millisecond,
			TTL: 20 * time.Millisecond, RefreshAfter: 5 * time.Millisecond,
		})
		require.NoError(t, c.Ready(t.Context()))
		all = append(all, c)
	}
	b.setFault(disturb(seed))
	var wg sync.WaitGroup
	for i := range clients * len(all) {
		at := i % len(all)
		c := &client{
			t: t, source: s, cache: all[at], session: r.Session(at), keys: keys,
			rng: rand.New(rand.NewPCG(seed, uint64(i))), last: map[string]Entry[int]{},
		}
		wg.Go(func() {
			for range steps {
				c.step()
			}
		})
	}
	wg.Wait()
	b.setFault(nil)
	for _, c := range all {
		eventually(t, func() bool { return c.Stats().InDoubt == 0 }, "doubts are settled")
	}
	return r.Events()
}

// dawdle lets others run.
func dawdle(n int) {
	for range n {
		runtime.Gosched()
	}
	if n == 7 {
		time.Sleep(50 * time.Microsecond)
	}
}

// disturb drops one message in twenty, doubles one, and holds one back until the
// next comes.
func disturb(seed uint64) func(int, []byte) [][]byte {
	var mu sync.Mutex // guards both below
	rng := rand.New(rand.NewPCG(seed, 99))
	held := map[int][]byte{}
	return func(to int, msg []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		msgs := [][]byte{msg}
		switch rng.IntN(20) {
		case 0:
			return nil
		case 1:
			msgs = [][]byte{msg, msg}
		case 2:
			msg, held[to] = held[to], msg
			msgs = nil
			if msg != nil {
				msgs = [][]byte{msg}
			}
		}
		return msgs
	}
}

// changeOutside changes a row behind everybody's back.
func changeOutside(s *source, session *history.Session, key string, absent bool) Version {
	e := session.Begin(history.Event{Kind: history.Change, Key: key, Absent: absent})
	s.mu.Lock()
	have := s.rows[key]
	if !have.absent {
		e.Base = uint64(have.version)
	}
	r := row{value: len(s.history[key]) + 1, absent: absent}
	if absent {
		r.value = 0
	}
	v := s.putLocked(key, r)
	s.mu.Unlock()
	e.Version, e.Value = uint64(v), uint64(r.value)
	session.End(e, history.Done)
	return v
}

func (c *client) step() {
	key := c.keys[c.rng.IntN(len(c.keys))]
	switch n := c.rng.IntN(100); {
	case n < 40:
		c.read(key, Any)
	case n < 50:
		c.read(key, Linearizable)
	case n < 55:
		c.read(key, AtLeast(c.last[key].Version))
	case n < 70:
		c.get(key)
	case n < 82:
		c.update(key)
	case n < 86:
		c.remove(key)
	case n < 91:
		if e := c.last[key]; e.Version != 0 && !e.Absent {
			c.cache.Put(key, e.Value, e.Version)
		}
	case n < 94:
		c.invalidate(key, changeOutside(c.source, c.session, key, c.rng.IntN(3) == 0))
	case n < 96:
		c.invalidate(key, c.last[key].Version)
	case n < 97:
		require.NoError(c.t, c.cache.InvalidateAll(context.Background()))
	case n < 98:
		c.cache.suspect("test")
	default:
		c.fill(key)
	}
}

// returned notes the end of a read.
func (c *client) returned(op *history.Event, e Entry[int]) {
	op.Version, op.Absent, op.Value, op.Age = uint64(e.Version), e.Absent, uint64(e.Value), e.Age
	c.session.End(op, history.Done)
	c.last[op.Key] = e
}

func (c *client) read(key string, level Level) {
	op := c.session.Begin(history.Event{
		Kind: history.Read, Key: key, Linearizable: level == Linearizable, AtLeast: uint64(level.version),
	})
	e, err := c.cache.Read(context.Background(), key, level)
	if err != nil && !errors.Is(err, ErrNotFound) {
		assert.NoError(c.t, err)
		c.session.End(op, history.Failed)
		return
	}
	c.returned(op, e)
}

func (c *client) get(key string) {
	op := c.session.Begin(history.Event{Kind: history.Read, Key: key})
	if e, ok := c.cache.GetEntry(key); ok {
		c.returned(op, e)
	} else {
		c.session.End(op, history.Failed)
	}
}

// wrote notes the end of a write.
func (c *client) wrote(op *history.Event, e Entry[int], err error) {
	var uncertain *UncertainError
	switch {
	case err == nil:
		op.Version = uint64(e.Version)
		c.session.End(op, history.Done)
	case errors.As(err, &uncertain):
		c.session.End(op, history.Unknown)
	default:
		if !errors.As(err, new(*ConflictError)) {
			assert.ErrorIs(c.t, err, ErrUnavailable)
		}
		c.session.End(op, history.Failed)
	}
}

func (c *client) update(key string) {
	op := c.session.Begin(history.Event{Kind: history.Write, Key: key})
	e, err := c.cache.Update(context.Background(), key, func(cur Entry[int]) (int, error) {
		op.Base, op.Value = uint64(cur.Version), c.rng.Uint64N(1<<40)
		if cur.Absent {
			op.Base = 0
		}
		return int(op.Value), nil
	})
	c.wrote(op, e, err)
}

func (c *client) remove(key string) {
	base := c.last[key]
	if base.Absent || base.Version == 0 {
		return
	}
	op := c.session.Begin(history.Event{Kind: history.Write, Key: key, Base: uint64(base.Version), Absent: true})
	e, err := c.cache.Delete(context.Background(), key, base.Version)
	c.wrote(op, e, err)
}

func (c *client) invalidate(key string, v Version) {
	op := c.session.Begin(history.Event{Kind: history.Invalidate, Key: key, Version: uint64(v)})
	require.NoError(c.t, c.cache.Invalidate(context.Background(), key, v))
	c.session.End(op, history.Done)
}

func (c *client) fill(key string) {
	f := c.cache.BeginFill(key)
	dawdle(c.rng.IntN(8))
	r := c.source.get(key)
	dawdle(c.rng.IntN(8))
	if r.absent {
		f.Absent(r.version)
	} else {
		f.Commit(r.value, r.version)
	}
}
