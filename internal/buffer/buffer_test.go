package buffer

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLossy_KeepsTheFirstSizeRecordsInOrder(t *testing.T) {
	var b Lossy
	for i := range uint64(Size + 10) {
		want := int(i) + 1
		if want > Size {
			want = 0
		}
		assert.Equal(t, want, b.Add(i), "record %d", i)
	}
	got := b.Take(nil)
	assert.Len(t, got, Size)
	for i, x := range got {
		assert.Equal(t, uint64(i), x)
	}
	assert.Empty(t, b.Take(nil))
}

func TestLossy_ConcurrentRecordersLoseButNeverInvent(t *testing.T) {
	var b Lossy
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				b.Add(7)
			}
		})
	}
	n := 0
	for range 100 {
		for _, x := range b.Take(nil) {
			assert.Equal(t, uint64(7), x)
			n++
		}
	}
	wg.Wait()
	n += len(b.Take(nil))
	assert.Positive(t, n)
	assert.LessOrEqual(t, n, 4000)
}
