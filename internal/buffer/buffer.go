// Package buffer is a small lossy buffer between many recorders and one
// collector.
package buffer

import "sync"

// Size is how many records a Lossy holds.
const Size = 64

// A Lossy collects up to Size records. A recorder that finds it busy or full
// drops its record: that costs accuracy, never time. The zero value is empty.
type Lossy struct {
	mu      sync.Mutex // guards everything below; recorders only try it
	n       int
	records [Size]uint64
}

// Add records x if it can and returns how many records there are then, or 0 if
// it could not. It never waits.
func (b *Lossy) Add(x uint64) (n int) {
	if !b.mu.TryLock() {
		return 0
	}
	if b.n < Size {
		b.records[b.n] = x
		b.n++
		n = b.n
	}
	b.mu.Unlock()
	return n
}

// Take appends the records to dst, oldest first, and empties the buffer.
func (b *Lossy) Take(dst []uint64) []uint64 {
	b.mu.Lock()
	dst = append(dst, b.records[:b.n]...)
	b.n = 0
	b.mu.Unlock()
	return dst
}
