package storm

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHistogramBucketsHoldTheirValues(t *testing.T) {
	for _, v := range []uint64{0, 1, 31, 32, 33, 63, 64, 65, 1000, 1023, 1024, 123_456_789, 1 << 38} {
		low, high := bucketBounds(bucketOf(v))
		assert.LessOrEqual(t, low, v)
		assert.GreaterOrEqual(t, high, v)
		assert.LessOrEqual(t, high-low, v/16, "a bucket is no wider than a 16th of %d", v)
	}
	for b := range len(histogram{}.buckets) - 1 {
		_, high := bucketBounds(b)
		low, _ := bucketBounds(b + 1)
		require.Equal(t, high+1, low, "buckets %d and %d leave no hole", b, b+1)
	}
}

func TestHistogramQuantilesAreWithinABucketOfTheTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var whole, half histogram
	var all []time.Duration
	for i := range 10_000 {
		d := time.Duration(rng.ExpFloat64() * 50_000)
		all = append(all, d)
		if i%2 == 0 {
			whole.add(d)
		} else {
			half.add(d)
		}
	}
	whole.merge(&half)
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 1} {
		truth := all[max(int(q*float64(len(all)))-1, 0)]
		assert.InEpsilon(t, truth, whole.quantile(q), 1.0/16, "quantile %v", q)
	}
}

func TestHistogramTakesEverything(t *testing.T) {
	var h histogram
	assert.Zero(t, h.quantile(0.5), "nothing was added")
	h.add(-time.Second)
	assert.Zero(t, h.quantile(0.5), "a clock that steps back counts as zero")
	h.add(24 * time.Hour)
	assert.Greater(t, h.quantile(1), 10*time.Minute)
}
