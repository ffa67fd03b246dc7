package ghost

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSet_KnowsWhatItWasToldOfLately(t *testing.T) {
	const room = 10_000
	s := New(room)
	r := rand.New(rand.NewPCG(1, 2))
	hashes := make([]uint64, 3*room)
	for i := range hashes {
		hashes[i] = r.Uint64()
		s.Note(hashes[i])
	}
	count := func(of []uint64) (known int) {
		for _, h := range of {
			if seen := (Set{slices.Clone(s.marks)}); seen.Note(h) { // which changes it
				known++
			}
		}
		return known
	}
	assert.InDelta(t, room/10*0.95, count(hashes[len(hashes)-room/10:]), room/100, "the last tenth: nearly all")
	assert.InDelta(t, room*0.63, count(hashes[len(hashes)-room:]), room/50, "the last: 1-1/e")
	assert.Less(t, count(hashes[:room]), room/10, "the first are forgotten")
	fresh := 0
	for range 100_000 {
		if s.Note(r.Uint64()) {
			fresh++
		}
	}
	assert.Less(t, fresh, 20, "what was never noted is not known")
}

func TestSet_ZeroIsAHashLikeOthers(t *testing.T) {
	s := New(0)
	assert.False(t, s.Note(0))
	assert.True(t, s.Note(0))
	assert.False(t, s.Note(7<<48|2), "another one takes the place")
	assert.False(t, s.Note(0))
}
