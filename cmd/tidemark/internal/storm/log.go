package storm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark"
)

// A logLink is a log as one replica reaches it. There is no weather on it: what
// a log delivers is neither lost nor overtaken nor repeated, or it is no log.
// What happens to the replica's connection happens to it too, its consumer can
// be stalled, and its process be killed.
//
// It tells the oracle what the replica has read, once the replica has handled
// it: when it asks for more. It is safe for concurrent use, but for its readers.
type logLink struct {
	inner tidemark.Log
	ears  ears

	oracle  *oracle // nil: nobody reads on this replica
	replica int

	dead         atomic.Bool
	suppressed   atomic.Uint64 // appends of the dead
	stalledUntil atomic.Int64  // unix nanoseconds

	killing sync.Once
	stopped chan struct{} // closed when the process is dead
}

// Append hands msg to the log, unless the process is dead.
func (l *logLink) Append(ctx context.Context, msg []byte) (uint64, error) {
	if l.dead.Load() {
		l.suppressed.Add(1)
		return 0, errDead
	}
	return l.inner.Append(ctx, msg)
}

// kill makes the process that owns l silent and deaf for good: no append that
// begins after kill has returned reaches the log.
func (l *logLink) kill() {
	l.dead.Store(true)
	l.killing.Do(func() { close(l.stopped) })
}

// stall makes the consumer stop reading for d.
func (l *logLink) stall(d time.Duration) { l.stalledUntil.Store(time.Now().Add(d).UnixNano()) }

func (l *logLink) Open(ctx context.Context, from uint64) (tidemark.LogReader, error) {
	if l.dead.Load() {
		return nil, errDead
	}
	r := &logLinkReader{link: l, closed: make(chan struct{})}
	if l.oracle != nil && l.ears.lost && from == 0 {
		r.doubt, r.doubtAt = true, l.oracle.now()
	}
	var err error
	r.inner, err = l.inner.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// A logLinkReader remembers what its replica is busy with.
type logLinkReader struct {
	link  *logLink
	inner tidemark.LogReader

	closing sync.Once
	closed  chan struct{}

	news    []change
	doubt   bool
	doubtAt int64
}

// Next returns the next message. That it is called says that the one before has
// been handled.
func (r *logLinkReader) Next(ctx context.Context) (uint64, []byte, error) {
	l := r.link
	r.handled()
	seq, msg, err := r.inner.Next(ctx)
	if err != nil {
		return 0, nil, err
	}
	if err := r.waitStall(ctx); err != nil {
		return 0, nil, err
	}
	if l.dead.Load() {
		return 0, nil, errDead
	}
	if l.oracle != nil && l.ears.message != nil {
		r.doubtAt = l.oracle.now()
		r.news, r.doubt = l.ears.message(msg)
	}
	return seq, msg, nil
}

// handled tells the oracle of what the last message, or the opening, said.
func (r *logLinkReader) handled() {
	for _, n := range r.news {
		r.link.oracle.heard(r.link.replica, n.account, n.version)
	}
	if r.doubt {
		r.link.oracle.doubt(r.link.replica, r.doubtAt)
	}
	r.news, r.doubt = nil, false
}

var errLogClosed = errors.New("storm: the reader of the log is closed")

// waitStall returns when the consumer is not stalled.
func (r *logLinkReader) waitStall(ctx context.Context) error {
	for {
		d := time.Until(time.Unix(0, r.link.stalledUntil.Load()))
		if d <= 0 {
			return nil
		}
		select {
		case <-time.After(d):
		case <-r.link.stopped:
			return errDead
		case <-r.closed:
			return errLogClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *logLinkReader) Close() error {
	r.closing.Do(func() { close(r.closed) })
	return r.inner.Close()
}
