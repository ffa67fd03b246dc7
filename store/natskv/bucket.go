package natskv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
)

// ErrRecreated means that the bucket is not the one that New has found: it was
// deleted and made anew, restored from an older state, or purged. Its revisions
// do not compare with those of before, so the Store refuses all work from then
// on. Make another Store, and tell the caches by
// [tidemark.Cache.SetSourceEpoch] that the source began anew.
var ErrRecreated = errors.New("natskv: the bucket is not the one that was opened")

const (
	// attemptTimeout bounds one request.
	attemptTimeout = 2 * time.Second

	// operationTimeout bounds what is asked without a deadline.
	operationTimeout = 5 * time.Second

	// shortestPause and longestPause are between two tries of something that
	// needs a moment: an election, a server that is behind.
	shortestPause = time.Millisecond
	longestPause  = 100 * time.Millisecond
)

// The keys that this package keeps in a bucket. No key of a Store begins with an
// underscore as it is written.
const (
	barrierName  = "_tidemark.barrier"
	identityName = "_tidemark.id"
)

// A bucket is what of a Store does not depend on its types.
type bucket struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	name    string
	stream  string
	prefix  string        // of subjects
	history int           // messages kept for each key; negative: all; 0: so many, but some expire
	markers time.Duration // how long the marker of what has expired is kept; 0: nothing expires
	maxSize int64         // of a message, by the bucket's settings; negative: no limit

	ask    func(context.Context, request) (page, error) // one direct get
	closed func() bool                                  // whether the connection is, for good

	barrier  barrier
	replies  replies
	identity mark
	high     atomic.Uint64 // the highest sequence number that was seen
	gone     atomic.Bool   // it is another bucket now
	doubts   doubts
}

// A mark is the message by which a bucket is known again.
type mark struct {
	seq  uint64
	text string
}

// open verifies the bucket and learns, or makes, its identity.
func open(ctx context.Context, nc *nats.Conn, name string) (*bucket, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("natskv: open: %w", err)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	b := &bucket{nc: nc, js: js, name: name, stream: "KV_" + name, prefix: "$KV." + name + ".", replies: replies{nc: nc}}
	b.ask, b.closed, b.barrier.append = b.get, nc.IsClosed, b.appendBarrier
	stream, err := js.Stream(ctx, b.stream)
	if err != nil {
		return nil, fmt.Errorf("natskv: bucket %s: %w", name, err)
	}
	config := stream.CachedInfo().Config
	wrong := unsuitable(&config)
	if v := nc.ConnectedServerVersion(); oldServer(v) {
		wrong.add("nc", "is connected to nats-server %s, want %s or later", v, leastServer)
	}
	if err := wrong.join(); err != nil {
		return nil, err
	}
	b.history, b.maxSize = int(config.MaxMsgsPerSubject), int64(config.MaxMsgSize)
	switch {
	case config.AllowMsgTTL:
		b.history, b.markers = 0, config.SubjectDeleteMarkerTTL
	case b.history == 0:
		b.history = -1
	}
	if err := b.identify(ctx); err != nil {
		return nil, fmt.Errorf("natskv: bucket %s: %w", name, err)
	}
	return b, nil
}

// identify reads the bucket's mark, and leaves one if there is none.
func (b *bucket) identify(ctx context.Context) error {
	for {
		s, err := b.barrier.pass(ctx)
		if err != nil {
			return err
		}
		found, err := b.last(ctx, s, []string{b.prefix + identityName, b.prefix + barrierName})
		if err != nil {
			return err
		}
		is := found[b.prefix+identityName]
		if is.live() {
			b.identity = mark{is.seq, string(is.data)}
			return nil
		}
		var id [16]byte
		rand.Read(id[:]) // never fails, see crypto/rand
		m := &nats.Msg{Subject: b.prefix + identityName, Data: []byte(hex.EncodeToString(id[:]))}
		_, err = b.publish(ctx, m, jetstream.WithExpectLastSequencePerSubject(is.seq))
		if err != nil && !lostRace(err) {
			return err
		}
	}
}

// verify compares the mark of a bucket that was just read with that of the one
// that was opened.
func (b *bucket) verify(found map[string]stored) error {
	is := found[b.prefix+identityName]
	if !is.live() || (mark{is.seq, string(is.data)}) != b.identity {
		b.gone.Store(true)
		return ErrRecreated
	}
	return nil
}

// see is told of each sequence number that the stream has given. They only rise.
func (b *bucket) see(seq uint64) {
	for {
		high := b.high.Load()
		if seq <= high || b.high.CompareAndSwap(high, seq) {
			return
		}
	}
}

// usable returns an error if nothing may be asked or written any more.
func (b *bucket) usable(ctx context.Context) error {
	switch {
	case b.gone.Load():
		return ErrRecreated
	default:
		return ctx.Err()
	}
}

// publish appends a message and waits for the acknowledgement, once, and no longer
// than the link holds.
func (b *bucket) publish(ctx context.Context, m *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ctx, stop := b.whileUp(ctx)
	defer stop()
	o = append(o, jetstream.WithExpectStream(b.stream), jetstream.WithRetryAttempts(0))
	ack, err := b.js.PublishMsg(ctx, m, o...)
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errLinkBroke) {
		err = errLinkBroke // nobody has given up
	}
	return ack, err
}

var errLinkBroke = errors.New("natskv: the link broke while the server was asked")

// whileUp returns a context that ends with ctx, or when the link breaks: nats.go
// would go on waiting for an answer that was lost with it.
func (b *bucket) whileUp(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	link := b.nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	go func() {
		if _, broken := <-link; broken {
			cancel(errLinkBroke)
		}
	}()
	return ctx, func() {
		b.nc.RemoveStatusListener(link) // ends the goroutine
		cancel(nil)
	}
}

// appendBarrier appends a message that says nothing, and returns its number. One
// of which that is not known does no harm, so it is sent again.
func (b *bucket) appendBarrier(ctx context.Context) (uint64, error) {
	for pause := shortestPause; ; {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		ack, err := b.publish(attempt, &nats.Msg{Subject: b.prefix + barrierName})
		cancel()
		if err == nil {
			return ack.Sequence, nil
		}
		if !b.again(ctx, &pause) {
			return 0, fmt.Errorf("barrier: %w", err)
		}
	}
}

// lostRace reports whether the server refused a message because the subject's
// last message is another, or may be another in a moment.
func lostRace(err error) bool {
	code := codeOf(err)
	return code == jetstream.JSErrCodeStreamWrongLastSequence || code == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}

// codeOf returns what the server said; 0 if the error is not its.
func codeOf(err error) jetstream.ErrorCode {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.ErrorCode
	}
	return 0
}

// bounded returns ctx with a deadline.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, operationTimeout)
}

// sleep waits and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unavailable returns an error that says: this call has changed nothing.
func unavailable(what string, err error) error {
	return fmt.Errorf("natskv: %s: %w: %w", what, tidemark.ErrUnavailable, err)
}
