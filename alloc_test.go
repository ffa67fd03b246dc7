package tidemark

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// A hit allocates nothing, whatever the key, with and without a time to live.
func TestAlloc_AHitAllocatesNothing(t *testing.T) {
	t.Run("string", func(t *testing.T) { hitAllocatesNothing(t, "account-0000000000001", payload{1}) })
	t.Run("named string", func(t *testing.T) { hitAllocatesNothing(t, accountName("account-0000000000001"), payload{1}) })
	t.Run("int", func(t *testing.T) { hitAllocatesNothing(t, 1<<40, payload{1}) })
	t.Run("uint64", func(t *testing.T) { hitAllocatesNothing(t, uint64(1<<40), 1) })
	t.Run("struct", func(t *testing.T) { hitAllocatesNothing(t, tenantKey{"acme", -1}, 1) })
}

func hitAllocatesNothing[K comparable, V any](t *testing.T, key K, value V) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		c, err := New(Options[K, V]{TTL: ttl, StaleWhileRevalidate: ttl, StaleIfError: ttl, Loader: LoaderFunc[K, V](
			func(context.Context, K) (none V, _ Version, _ error) { return none, 0, ErrNotFound })})
		require.NoError(t, err)
		defer c.Close(t.Context())
		require.Equal(t, Applied, c.Put(key, value, 1))
		ctx := t.Context()
		for name, read := range map[string]func() bool{
			"Get":      func() bool { _, ok := c.Get(key); return ok },
			"GetEntry": func() bool { _, ok := c.GetEntry(key); return ok },
			"Load":     func() bool { _, err := c.Load(ctx, key); return err == nil },
			"Read":     func() bool { _, err := c.Read(ctx, key, AtLeast(1)); return err == nil },
		} {
			hit := true
			allocs := testing.AllocsPerRun(200, func() { hit = read() && hit })
			assert.True(t, hit, "%s missed", name)
			assert.Zero(t, allocs, "%s with TTL %v", name, ttl)
		}
	}
}

// So does a hit that the log vouches for.
func TestAlloc_AHitWithinABoundAllocatesNothing(t *testing.T) {
	s, log := newSource(), newMemLog()
	s.set("k", 1)
	c := followers(t, 1, s, log, Options[string, int]{Level: Within(time.Minute)})[0]
	load(t, c, "k")
	ctx := t.Context()
	for name, read := range map[string]func() bool{
		"Get":      func() bool { _, ok := c.Get("k"); return ok },
		"GetEntry": func() bool { _, ok := c.GetEntry("k"); return ok },
		"Read":     func() bool { _, err := c.Read(ctx, "k", Within(time.Minute)); return err == nil },
	} {
		hit := true
		allocs := testing.AllocsPerRun(200, func() { hit = read() && hit })
		assert.True(t, hit, "%s missed", name)
		assert.Less(t, allocs, 0.5, "%s: the beats in the background allocate a little", name)
	}
}

// Nor does a replica allocate for what another one says of keys.
func TestAlloc_AMessageAllocatesNothing(t *testing.T) {
	t.Run("string", func(t *testing.T) { messageAllocatesNothing(t, "account-0000000000001") })
	t.Run("int", func(t *testing.T) { messageAllocatesNothing(t, 1<<40) })
}

func messageAllocatesNothing[K comparable](t *testing.T, key K) {
	c, err := New(Options[K, int]{Invalidator: newMemLog().invalidator()})
	require.NoError(t, err)
	defer c.Close(t.Context())
	r, e := c.replica, &ear{name: "log", log: true, origins: map[uint64]*voice{}}
	m := &wire.Message{Kind: wire.KindInvalidate, CacheID: r.out.id, Origin: 1, Seq: 1}
	for version := range uint64(64) {
		m.Entries = append(m.Entries, wire.Entry{Key: c.keys.encode(nil, key), Version: version + 1})
	}
	msg, err := wire.Append(nil, m)
	require.NoError(t, err)
	allocs := testing.AllocsPerRun(200, func() { r.receive(e, msg) })
	assert.Less(t, allocs, 2.0, "of 64 keys; the beats in the background allocate a little")
	assert.EqualValues(t, 201*64, r.applies.Load())
}

// Putting a present key allocates nothing: its place is written into.
func TestAlloc_PutOfAPresentKeyAllocatesNothing(t *testing.T) {
	for name, o := range map[string]Options[string, int]{
		"plain":             {},
		"with times":        {TTL: 2 * time.Hour, RefreshAfter: time.Hour, Store: newSource()},
		"with costs":        {Cost: func(string, int) int64 { return 3 }, MaxCost: small},
		"with a long key":   {},
		"with another cost": {Cost: func(_ string, v int) int64 { return 100 + int64(v)%7 }, MaxCost: small},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, o)
			k := "k"
			if name == "with a long key" {
				k = strings.Repeat("k", 100)
			}
			require.Equal(t, Applied, c.BeginFill(k).Commit(1, 1))
			v := Version(1)
			assert.Zero(t, testing.AllocsPerRun(200, func() {
				v++
				c.Put(k, int(v), v)
			}))
			got, ok := c.Get(k)
			assert.True(t, ok)
			assert.Equal(t, int(v), got)
		})
	}
}
