package backoff

import (
	"context"
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
