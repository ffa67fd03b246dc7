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

// Add records x if it can and reports whether this filled the buffer, which it
// says once. It never waits.
func (b *Lossy) Add(x uint64) (filled bool) {
	if !b.mu.TryLock() {
		return false
	}
	if b.n < Size {
		b.records[b.n] = x
		b.n++
		filled = b.n == Size
	}
	b.mu.Unlock()
	return filled
}

// Take appends the records to dst, oldest first, and empties the buffer.
func (b *Lossy) Take(dst []uint64) []uint64 {
	b.mu.Lock()
	dst = append(dst, b.records[:b.n]...)
	b.n = 0
	b.mu.Unlock()
	return dst
}
