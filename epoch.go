package tidemark

import (
	"context"
	"fmt"
)

// SetSourceEpoch declares that the source has gone back: it was restored from a
// backup, say, or has failed over to a standby that had not everything. Its
// versions start again then, and what memory has may be ahead of it for ever. A
// larger epoch than [Options.SourceEpoch], or the one declared last, throws every
// entry away, here and in all replicas, once each, forgets every tide mark, and
// fences what is in flight; from then on versions of the epochs before it order
// nothing. The epoch travels in every message, so that replicas that hear of it
// late, or join later, take it from the next one. The same epoch again changes
// nothing; a smaller one is an [*OptionError].
//
// Declare it when nothing can read from or write to the old source any more: a
// load that still does brings a state that nothing will ever replace. A decision
// that was made on a state of before and is written after may meet the same number
// on another state; to be safe against that a store must not use a version twice.
//
// Errors as Invalidate.
func (c *Cache[K, V]) SetSourceEpoch(ctx context.Context, epoch uint32) error {
	if have := c.sourceEpoch.Load(); epoch < have {
		return epochError(epoch, have)
	}
	c.adopt(epoch, true)
	if !c.work.enter() {
		return ErrClosed
	}
	defer c.work.leave()
	if c.replica == nil {
		return nil
	}
	return c.replica.out.wait(ctx, c.replica.out.latest())
}

func epochError(epoch, have uint32) error {
	return &OptionError{"SourceEpoch", fmt.Sprintf("is %d, but epoch %d has been declared", epoch, have)}
}

// comparable returns m if it is of this replica's epoch, and else a mark without a
// version. It must be called under the lock of the shard that m is for, which an
// epoch that begins takes to forget the marks of before.
func (c *Cache[K, V]) comparable(m mark, epoch uint32) mark {
	if epoch != c.sourceEpoch.Load() {
		return mark{}
	}
	return m
}

// adopt makes epoch this replica's, and reports whether it is later than the one
// that it had. When it returns, whatever it reports, all that was of an earlier one
// is forgotten. With declared, the others are to be told: any message does.
func (c *Cache[K, V]) adopt(epoch uint32, declared bool) bool {
	if epoch <= c.adopted.Load() || !c.beginEpoch(epoch, declared) {
		return false
	}
	c.opts.Logger.Warn("tidemark: the source has gone back, and everything is forgotten", "epoch", epoch)
	c.emit(Event{Kind: EventSourceEpoch, Reason: fmt.Sprintf("epoch %d", epoch)})
	return true
}

// beginEpoch is adopt without the word of it. What compares with versions of the
// epoch must wait until it has returned: a mark would be forgotten with the others.
func (c *Cache[K, V]) beginEpoch(epoch uint32, declared bool) bool {
	c.adopting.Lock()
	defer c.adopting.Unlock()
	if epoch <= c.adopted.Load() {
		return false // another has been at it
	}
	c.sourceEpoch.Store(epoch)
	c.newGeneration()
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.tide.forget()
		s.delayed.forget()
		s.since = generation(c.era.Load())
		s.mu.Unlock()
	}
	if c.replica != nil {
		c.replica.out.adopt(epoch, declared)
	}
	c.adopted.Store(epoch)
	return true
}
