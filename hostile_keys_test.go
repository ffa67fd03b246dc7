package tidemark

import (
	"fmt"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Keys that somebody has chosen so that they have one hash: a search passes a bounded
// number of them, whoever else is in memory stays there, and what was put is there.
func TestHostile_KeysOfOneHash(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 100_000, Shards: 2})
	keys := collidingKeys(sameHashKeys)
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
	assert.Equal(t, others, here, "a flood takes no place but its own")
}
