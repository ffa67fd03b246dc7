// Package backoff is how soon what has failed is tried again: a transaction that the
// database refuses to serialize, and a load.
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

// Delay returns how long to wait after a failure that so many came before in a row. It
// is first, doubled for each of those, but at most most, and less by up to half of that:
// as much as chance, from 0 to 1, says. The durations must be positive.
func Delay(first, most time.Duration, before int, chance float64) time.Duration {
	d := min(first, most)
	for ; before > 0 && d < most; before-- {
		if d > most/2 {
			d = most
		} else {
			d *= 2
		}
	}
	return d - time.Duration(chance*float64(d/2))
}
