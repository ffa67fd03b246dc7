// Package backoff is how often, and how soon, a store tries a transaction again that
// the database refuses to serialize.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Attempts bounds the work done for one write. Pauses of 2, 4, 8 and 16 ms, each up
// to twice as long by chance, come between the attempts.
const Attempts = 5

// Pause waits after an attempt, counted from 1, before the next, and reports false if
// ctx ended first.
func Pause(ctx context.Context, attempt int) bool {
	shortest := time.Millisecond << attempt
	timer := time.NewTimer(shortest + rand.N(shortest))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
