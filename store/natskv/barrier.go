package natskv

import (
	"context"
	"sync"
)

// A barrier appends messages that say nothing. Whoever has read a state of the
// stream that includes such a message has read everything that was acknowledged
// before it was sent. One message serves all who asked before it was sent, and
// one is under way at a time.
type barrier struct {
	append func(context.Context) (seq uint64, err error)

	mu      sync.Mutex // guards everything below
	running bool       // somebody appends
	next    *turn      // nil: nobody waits
}

// A turn is one message of a barrier, and those who wait for it.
type turn struct {
	done chan struct{} // closed when the fields below are final
	seq  uint64
	err  error
}

// pass returns the number of a message that was sent after the call began.
func (b *barrier) pass(ctx context.Context) (uint64, error) {
	b.mu.Lock()
	if b.next == nil {
		b.next = &turn{done: make(chan struct{})}
	}
	t := b.next
	if !b.running {
		b.running = true
		go b.run()
	}
	b.mu.Unlock()
	select {
	case <-t.done:
		return t.seq, t.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// run takes turns as long as somebody waits for one. A message under way is
// nobody's turn any more: it may have been sent before who comes now.
func (b *barrier) run() {
	for {
		b.mu.Lock()
		t := b.next
		b.next = nil
		b.running = t != nil
		b.mu.Unlock()
		if t == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), operationTimeout)
		t.seq, t.err = b.append(ctx)
		cancel()
		close(t.done)
	}
}
