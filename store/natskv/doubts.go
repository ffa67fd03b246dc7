package natskv

import (
	"sync"
	"time"

	"github.com/tidemark-go/tidemark"
)

// A doubt is a write that was sent, and of which it is not known how it ended.
type doubt struct {
	expected uint64 // the message in whose place its own was to come
	sent     time.Time
	lost     bool // it was not made, and cannot be any more
}

// maxKept bounds how many doubts are remembered: as many, or up to twice as many.
// Those are writes that nobody has confirmed and nobody has asked about; of one
// that was forgotten the bucket's history knows what it knows.
const maxKept = 1 << 14

// doubts remembers what this process knows of the writes that it has sent, and
// nobody has confirmed. The zero doubts has none.
type doubts struct {
	mu       sync.Mutex // guards everything below
	now, old map[tidemark.OpID]doubt
}

// begin is called before a write is sent.
func (d *doubts) begin(op tidemark.OpID, expected uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil || len(d.now) >= maxKept {
		d.now, d.old = map[tidemark.OpID]doubt{}, d.now
	}
	d.now[op] = doubt{expected: expected, sent: time.Now()}
}

// settle is called when it is known that a write was not made and cannot be any
// more. Somebody may ask again, after the bucket has forgotten.
func (d *doubts) settle(op tidemark.OpID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, all := range []map[tidemark.OpID]doubt{d.now, d.old} {
		if one, ok := all[op]; ok {
			one.lost = true
			all[op] = one
		}
	}
}

// end is called when it is known what became of a write.
func (d *doubts) end(op tidemark.OpID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.now, op)
	delete(d.old, op)
}

func (d *doubts) find(op tidemark.OpID) (doubt, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one, ok := d.now[op]; ok {
		return one, true
	}
	one, ok := d.old[op]
	return one, ok
}
