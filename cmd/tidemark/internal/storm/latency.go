package storm

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// A histogram counts durations in buckets no wider than 1/16 of their value,
// from 1 ns to about 10 minutes. It has a fixed size, belongs to one goroutine
// and is added up at the end.
type histogram struct {
	buckets [40 * 16]uint64
	total   uint64
}

const bucketsPerDoubling = 16

// add counts one duration.
func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(uint64(max(d, 0)))]++
	h.total++
}

// merge adds the counts of g to h.
func (h *histogram) merge(g *histogram) {
	for i, n := range g.buckets {
		h.buckets[i] += n
	}
	h.total += g.total
}

// quantile returns the middle of the bucket that holds the q-th part of the
// durations, 0 < q <= 1; zero if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(h.total)))
	var seen uint64
	for i, n := range h.buckets {
		if seen += n; seen >= max(rank, 1) {
			low, high := bucketBounds(i)
			return time.Duration((low + high) / 2)
		}
	}
	return math.MaxInt64 // not reached: the counts add up to total
}

// A Band counts durations of about the same length.
type Band struct {
	ToNs  uint64 `json:"to_ns"` // none is longer; the band before says how short they are
	Count uint64 `json:"count"`
}

// bucketsPerBand makes four bands of a doubling.
const bucketsPerBand = bucketsPerDoubling / 4

// coarse returns the durations in bands, from the shortest to the longest: empty ones
// between them too.
func (h *histogram) coarse() (bands []Band) {
	for i := 0; i < len(h.buckets); i += bucketsPerBand {
		_, high := bucketBounds(i + bucketsPerBand - 1)
		b := Band{ToNs: high}
		for _, n := range h.buckets[i : i+bucketsPerBand] {
			b.Count += n
		}
		bands = append(bands, b)
	}
	full := func(b Band) bool { return b.Count > 0 }
	first := slices.IndexFunc(bands, full)
	if first < 0 {
		return nil
	}
	last := len(bands)
	for !full(bands[last-1]) {
		last--
	}
	return bands[max(0, first-1):last] // the one before says where the first begins
}

// bucketOf returns the bucket of v: the first 32 hold one value each, then
// every doubling has 16.
func bucketOf(v uint64) int {
	if v < 2*bucketsPerDoubling {
		return int(v)
	}
	shift := bits.Len64(v) - 5 // leaves the five leading bits, 16 to 31
	b := shift*bucketsPerDoubling + int(v>>shift)
	return min(b, len(histogram{}.buckets)-1)
}

// bucketBounds returns the least and the greatest value of bucket b.
func bucketBounds(b int) (low, high uint64) {
	if b < 2*bucketsPerDoubling {
		return uint64(b), uint64(b)
	}
	shift := b/bucketsPerDoubling - 1
	low = uint64(b-shift*bucketsPerDoubling) << shift
	return low, low + 1<<shift - 1
}
