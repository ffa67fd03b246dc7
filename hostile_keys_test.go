package tidemark

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// colliding returns n keys of 16 bytes, all of one xxhash: anybody can make as many as
// he likes. A step of the hash can be undone, so for any first eight bytes there are
// eight more that lead to the same.
func colliding(n int) (keys []string) {
	const p1, p2, p4, p5 = 11400714785074694791, 14029467366897019727, 9650029242287828579, 2870177450012600261
	inverse := func(p uint64) uint64 { // modulo 2^64
		x := p
		for range 6 {
			x *= 2 - p*x
		}
		return x
	}
	round := func(x uint64) uint64 { return bits.RotateLeft64(x*p2, 31) * p1 }
	undone := func(y uint64) uint64 { return bits.RotateLeft64(y*inverse(p1), -31) * inverse(p2) }
	start := uint64(16)
	start += p5
	for i := range uint64(n) {
		h := bits.RotateLeft64(start^round(i), 27)*p1 + p4
		b := binary.LittleEndian.AppendUint64(nil, i)
		keys = append(keys, string(binary.LittleEndian.AppendUint64(b, undone(h^0x0123456789abcdef))))
	}
	return keys
}

// Keys that somebody has chosen so that they have one hash: a search passes a bounded
// number of them, whoever else is in memory stays there, and what was put is there.
func TestHostile_KeysOfOneHash(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 100_000, Shards: 2})
	keys := colliding(20_000)
	for _, k := range keys[:100] {
		require.Equal(t, xxhash.Sum64String(keys[0]), xxhash.Sum64String(k))
	}
	const others = 5000
	for i := range others {
		require.Equal(t, Applied, c.Put(fmt.Sprint("other ", i), i, 1))
	}
	for i, k := range keys {
		require.Equal(t, Applied, c.Put(k, i, 1))
		v, ok := c.Get(k)
		require.True(t, ok && v == i)
	}
	require.NoError(t, c.check())
	assert.LessOrEqual(t, c.Len(), others+400, "a path of 32 groups, and what was there when they were fewer")
	here := 0
	for i := range others {
		if _, ok := c.Get(fmt.Sprint("other ", i)); ok {
			here++
		}
	}
	assert.Greater(t, here, others*95/100)
}

// BenchmarkCollidingKeys is what a key costs of whose hash there are so many others;
// 1 is any key.
func BenchmarkCollidingKeys(b *testing.B) {
	for _, n := range []int{1, 200, 1000, 10_000, 50_000} {
		keys := colliding(n)
		filled := func(b *testing.B) *Cache[string, int] {
			c, err := New(Options[string, int]{MaxCost: 200_000, Shards: 1})
			require.NoError(b, err)
			for i := range 50_000 {
				c.Put(fmt.Sprint("other ", i), i, 1)
			}
			for i, k := range keys {
				c.Put(k, i, 1)
			}
			return c
		}
		b.Run(fmt.Sprintf("op=get/keys=%d", n), func(b *testing.B) {
			c := filled(b)
			b.Cleanup(func() { _ = c.Close(context.Background()) })
			for i := 0; b.Loop(); i++ {
				c.Get(keys[i%n])
			}
		})
		b.Run(fmt.Sprintf("op=put/keys=%d", n), func(b *testing.B) {
			c := filled(b)
			b.Cleanup(func() { _ = c.Close(context.Background()) })
			for i := 0; b.Loop(); i++ {
				c.Put(keys[i%n], i, Version(2+i/n))
			}
		})
	}
}
