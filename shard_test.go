package tidemark

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCache_FirstSteps(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 7)
	e, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, 7, e.Value)
	assert.Equal(t, Version(1), e.Version)
	assert.GreaterOrEqual(t, e.Age, 0*e.Age)

	e, err = c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
	require.NoError(t, err)
	assert.Equal(t, 8, e.Value)
	got, ok := c.Get("k")
	assert.True(t, ok)
	assert.Equal(t, 8, got)

	_, err = c.CompareAndSet(t.Context(), "k", 1, 9)
	var conflict *ConflictError
	require.ErrorAs(t, err, &conflict)
	assert.Equal(t, Version(2), conflict.Current)

	e, err = c.Delete(t.Context(), "k", 2)
	require.NoError(t, err)
	assert.True(t, e.Absent)
	_, ok = c.Get("k")
	assert.False(t, ok)
	e, ok = c.GetEntry("k")
	assert.True(t, ok && e.Absent)
	_, err = c.Load(t.Context(), "k")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestReplicas_FirstSteps(t *testing.T) {
	s := newSource()
	r := calmReplicas(t, 2, s, newBus())
	s.set("k", 1)
	for _, c := range r {
		_, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
	}
	_, err := r[0].Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
	require.NoError(t, err)
	eventually(t, func() bool { _, ok := r[1].Get("k"); return !ok }, "the other replica hears of it")
	e, err := r[1].Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, 2, e.Value)
	v, ok := r[0].Get("k")
	assert.True(t, ok, "the own echo is harmless")
	assert.Equal(t, 2, v)
	require.NoError(t, r[0].InvalidateAll(context.Background()))
	eventually(t, func() bool { _, ok := r[1].Get("k"); return !ok }, "InvalidateAll travels")
}

// What a read returns is of one key and of one Put, however often its place is
// written, given up, and taken by another key meanwhile.
func TestRead_IsWhole(t *testing.T) {
	type state [12]uint64 // of which all are the key and the version, in turn
	const keys, room = 64, 24
	c, err := New(Options[uint64, state]{MaxCost: room, Shards: 1})
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close(t.Context())) }()
	whole := func(k uint64, v state, version Version) bool {
		for i := 0; i < len(v); i += 2 {
			if v[i] != k || v[i+1] != v[1] {
				return false
			}
		}
		return version == 0 || uint64(version) == v[1]
	}
	var done atomic.Bool
	var at atomic.Uint64 // the key that is being written
	var wg sync.WaitGroup
	wg.Go(func() {
		for version := Version(1); !done.Load(); version++ {
			k := uint64(version) / 16 * 7 % keys
			at.Store(k)
			var v state
			for i := 0; i < len(v); i += 2 {
				v[i], v[i+1] = k, uint64(version)
			}
			c.Put(k, v, version)
			if version%5 == 0 {
				_ = c.Invalidate(context.Background(), k, version+1)
			}
		}
	})
	var hits atomic.Int64
	for g := range 2 {
		wg.Go(func() {
			for i := g; !done.Load(); i++ {
				k := at.Load()
				if i%64 == 0 {
					k = uint64(i/64) % keys
				}
				if v, ok := c.Get(k); ok {
					hits.Add(1)
					if !assert.True(t, whole(k, v, 0), "key %d: %v", k, v) {
						return
					}
				} else if !assert.Equal(t, state{}, v, "a miss returns nothing") {
					return
				}
				if i%2 > 0 {
					continue // Get is quicker, and needs more tries to be caught
				}
				if e, ok := c.GetEntry(k); ok && !assert.True(t, whole(k, e.Value, e.Version), "key %d: %v at %d", k, e.Value, e.Version) {
					return
				}
			}
		})
	}
	time.Sleep(time.Second)
	done.Store(true)
	wg.Wait()
	assert.Positive(t, hits.Load())
}
