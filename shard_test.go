package tidemark

import (
	"context"
	"testing"

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
