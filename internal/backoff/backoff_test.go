package backoff

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for attempt := 1; attempt < Attempts; attempt++ {
			began, shortest := time.Now(), time.Millisecond<<attempt
			assert.True(t, Pause(t.Context(), attempt))
			waited := time.Since(began)
			assert.GreaterOrEqual(t, waited, shortest)
			assert.Less(t, waited, 2*shortest)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		assert.False(t, Pause(ctx, Attempts))
		assert.Equal(t, time.Millisecond, time.Since(began), "the context ended first")
	})
}

// TestDelay: twice as long each time, never above the bound, nor below half of it.
func TestDelay(t *testing.T) {
	const first, most = 100 * time.Millisecond, 10 * time.Second
	for before, want := range []time.Duration{first, 2 * first, 4 * first, 8 * first, 16 * first, 32 * first, 64 * first, most, most} {
		assert.Equal(t, want, Delay(first, most, before, 0))
		assert.Equal(t, want*3/4, Delay(first, most, before, 0.5))
		assert.Equal(t, want/2, Delay(first, most, before, 1))
	}
	assert.Equal(t, most, Delay(first, most, 1<<40, 0))
	assert.Equal(t, time.Millisecond, Delay(first, time.Millisecond, 3, 0))
	assert.Positive(t, Delay(1, math.MaxInt64, 200, 0.999), "no overflow")
	assert.EqualValues(t, 1, Delay(1, 1, 7, 0.999))
}
