package tidemark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// An outbox publishes what changed, in the order in which it was added, one
// message at a time: while one is under way the next collects. A message that
// cannot be published is retried, the same bytes with the same sequence number,
// until it can or the outbox is closed; receivers tell by the numbers whether
// they have missed one.
type outbox struct {
	inv    Invalidator
	origin uint64 // names this process's messages
	id     uint64 // of the cache, see cacheID

	caught      func(panicked any) error // makes an error of a transport's panic
	onCollapsed func()                   // is told, with no lock held, of each collapse

	hurrying atomic.Bool    // a message is under way to a Hint beside a Log
	hurries  sync.WaitGroup // its goroutine

	wake    chan struct{} // capacity 1: a full channel already asks for a round
	life    context.Context
	endLife context.CancelFunc
	ended   chan struct{} // closed when the goroutine has returned

	closing  sync.Once
	closeErr error // written once by closing

	// For the goroutine only, and for goodbye once it has ended.

	seq    uint64 // of the latest message
	buf    []byte // the latest message
	unsent bool   // buf may not be out

	mu       sync.Mutex // guards everything below
	epoch    uint32     // of the source: what is in queue is of it
	queue    []parcel
	index    map[string]int    // of queue, by key, so that a key waits once
	shifted  int               // parcels taken from the front so far, for index
	gone     int               // parcels in queue that are
	all      bool              // everything changed; goes before queue
	allUpTo  uint64            // the ticket that all stands for
	carried  int               // keys of the message under way
	carries  bool              // that message says that everything changed
	flying   []*intent         // of that message
	nonce    uint64            // of the hello that waits, or 0
	echoes   map[uint64]uint64 // probes that wait to be sent back: the latest of each origin
	greeted  bool              // the latest message was a hello or a probe: what waits goes before the next
	tickets  uint64            // handed out so far
	sent     uint64            // ticket up to which everything is published
	progress chan struct{}     // closed and replaced when sent rises

	messages  uint64
	collapsed uint64
	failing   error  // why the latest attempt failed; nil if it did not
	done      uint64 // the highest number that is out
	owed      uint64 // the highest ticket of which somebody was told that it is not out
}

// A parcel is one key that waits in the queue.
type parcel struct {
	entry  wire.Entry
	ticket uint64
	intent *intent // if it says that a write is about to begin
	gone   bool    // it says nothing: that write was given up before it was told

	declares bool // it says nothing but the epoch, as every message does
}

// An intent is the word that a strict write is about to begin. It is never
// merged with others, nor replaced by the word that everything changed.
type intent struct {
	done chan struct{} // closed once the log has it, or never will
	err  error         // why it never will; read only after done
}

func (in *intent) end(err error) {
	in.err = err
	close(in.done)
}

const (
	maxBacklog   = 1 << 16 // keys; beyond it one message says that everything changed
	maxBatch     = 512     // keys of one message
	maxBatchSize = 32 << 10
	maxKeyBytes  = 16 << 10 // a longer key travels as "everything changed"

	publishTimeout = 2 * time.Second // of one attempt
	retryMin       = 20 * time.Millisecond
	retryMax       = time.Second
	retryMaxLog    = 200 * time.Millisecond // writes wait for a Log
	closeGrace     = 100 * time.Millisecond // for a publish to notice that it was cancelled
)

func newOutbox(inv Invalidator, epoch uint32, caught func(panicked any) error, onCollapsed func()) *outbox {
	o := &outbox{
		inv: inv, origin: rand.Uint64(), id: inv.cacheID(), epoch: epoch, caught: caught, onCollapsed: onCollapsed,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
		index: map[string]int{}, echoes: map[uint64]uint64{}, progress: make(chan struct{}),
	}
	o.life, o.endLife = context.WithCancel(context.Background())
	go o.run()
	return o
}

// add queues one key, already encoded, and returns a ticket to wait for. A key
// that waits already is sent once, with the newer of the two marks. epoch is what
// m is of.
func (o *outbox) add(key []byte, m mark, epoch uint32) (ticket uint64) {
	ticket, collapsed := o.enqueue(key, m, epoch)
	if collapsed {
		o.onCollapsed()
	}
	return ticket
}

func (o *outbox) enqueue(key []byte, m mark, epoch uint32) (ticket uint64, collapsed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tickets++
	if epoch != o.epoch {
		m = mark{} // it orders nothing any more
	}
	switch at, waits := o.index[string(key)]; {
	case len(key) > maxKeyBytes, !waits && o.fullLocked():
		o.collapseLocked()
		o.collapsed++
		collapsed = true
	case waits:
		e := &o.queue[at-o.shifted].entry
		have := mark{Version(e.Version), e.Deleted}
		if have.version != 0 && (m.version == 0 || have.before(m)) {
			e.Version, e.Deleted = uint64(m.version), m.absent
		}
	default:
		own := append([]byte(nil), key...)
		o.index[string(own)] = o.shifted + len(o.queue)
		o.queue = append(o.queue, parcel{
			entry:  wire.Entry{Key: own, Version: uint64(m.version), Deleted: m.absent && m.version != 0},
			ticket: o.tickets,
		})
	}
	o.kick()
	return o.tickets, collapsed
}

// intend queues the word that the write op of key, already encoded, is about to
// begin, and can take effect for the given time.
func (o *outbox) intend(key []byte, op OpID, ttl time.Duration) (*intent, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(key) > maxKeyBytes:
		return nil, fmt.Errorf("key of %d bytes, want at most %d", len(key), maxKeyBytes)
	case o.fullLocked():
		return nil, fmt.Errorf("%d keys wait to be broadcast", maxBacklog)
	}
	in := &intent{done: make(chan struct{})}
	e := wire.Entry{Key: bytes.Clone(key), Stage: wire.Begun, Op: op, TTL: uint32((ttl + time.Millisecond - 1) / time.Millisecond)}
	o.queue = append(o.queue, parcel{entry: e, ticket: o.tickets, intent: in})
	o.kick()
	return in, nil
}

// awaitIntent waits until the log has in. If it returns an error, untold says that
// nothing was told, and nothing will be.
func (o *outbox) awaitIntent(ctx context.Context, in *intent) (untold bool, err error) {
	select {
	case <-in.done:
		return true, in.err
	case <-o.life.Done():
		return false, ErrClosed
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.queue {
		if p := &o.queue[i]; p.intent == in {
			*p = parcel{ticket: p.ticket, gone: true}
			o.gone++
			if o.gone > len(o.queue)/2 {
				o.dropLocked(func(p parcel) bool { return p.gone && !p.declares })
			}
			return true, errors.Join(ctx.Err(), o.failing)
		}
	}
	return false, errors.Join(ctx.Err(), o.failing)
}

// fullLocked reports whether as many keys wait as may.
func (o *outbox) fullLocked() bool { return len(o.queue)-o.gone >= maxBacklog }

// dropLocked takes parcels out of the queue.
func (o *outbox) dropLocked(which func(parcel) bool) {
	o.queue = slices.DeleteFunc(o.queue, which)
	clear(o.index)
	o.gone = 0
	for i := range o.queue {
		switch p := &o.queue[i]; {
		case p.gone:
			o.gone++
		case p.entry.Stage == 0:
			o.index[string(p.entry.Key)] = o.shifted + i
		}
	}
}

// conclude queues how a strict write ended: the key has reached m, of the given
// epoch, or, if it is void, has not changed.
func (o *outbox) conclude(key []byte, op OpID, m mark, epoch uint32, void bool) (ticket uint64) {
	e := wire.Entry{Key: bytes.Clone(key), Stage: wire.Void, Op: op}
	o.mu.Lock()
	if epoch != o.epoch {
		m = mark{}
	}
	if !void {
		e.Stage, e.Version, e.Deleted = wire.Ended, uint64(m.version), m.absent && m.version != 0
	}
	o.tickets++
	ticket = o.tickets
	full := o.fullLocked()
	if full {
		o.collapseLocked() // the intent lapses where it was heard
		o.collapsed++
	} else {
		o.queue = append(o.queue, parcel{entry: e, ticket: ticket})
	}
	o.kick()
	o.mu.Unlock()
	if full {
		o.onCollapsed()
	}
	return ticket
}

// adopt begins an epoch. What waits is of an earlier one, and becomes word of
// changes without a version. If the epoch is declared here a message is queued to
// tell of it, which says nothing else: the replicas throw everything away when they
// hear of it, by whatever comes first, and not once more when it has come.
func (o *outbox) adopt(epoch uint32, declared bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if epoch <= o.epoch {
		return
	}
	o.epoch = epoch
	for i := range o.queue {
		e := &o.queue[i].entry
		e.Version, e.Deleted = 0, false
	}
	if declared {
		o.tickets++
		o.queue = append(o.queue, parcel{ticket: o.tickets, gone: true, declares: true})
		o.gone++
		o.kick()
	}
}

// latest returns the ticket for all that was queued until now.
func (o *outbox) latest() (ticket uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tickets
}

// addAll queues the word that everything changed.
func (o *outbox) addAll() (ticket uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tickets++
	o.collapseLocked()
	o.kick()
	return o.tickets
}

// collapseLocked replaces the queue by the word that everything changed, which
// includes what the queue says, but for the intents.
func (o *outbox) collapseLocked() {
	o.all, o.allUpTo = true, o.tickets
	o.dropLocked(func(p parcel) bool { return p.intent == nil })
}

// hello queues a hello. It carries a nonce, so that the receiver of its own
// hello knows which one it was.
func (o *outbox) hello(nonce uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.nonce = max(o.nonce, nonce)
	o.kick()
}

func (o *outbox) kick() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// wait returns when everything up to ticket is published. Its error wraps
// ErrNotBroadcast, and says why.
func (o *outbox) wait(ctx context.Context, ticket uint64) error {
	if why := o.await(ctx, ticket); why != nil {
		return fmt.Errorf("%w: %w", ErrNotBroadcast, why)
	}
	return nil
}

// await is wait, but returns why not.
func (o *outbox) await(ctx context.Context, ticket uint64) (why error) {
	for {
		o.mu.Lock()
		sent, progress, failing := o.sent, o.progress, o.failing
		o.mu.Unlock()
		switch {
		case sent >= ticket:
			return nil
		case why != nil:
			o.owe(ticket)
			return errors.Join(why, failing)
		}
		select { // and look once more, whatever it is
		case <-progress:
		case <-o.life.Done(): // ended may come later, or never: a transport need not return
			why = ErrClosed
		case <-ctx.Done():
			why = ctx.Err()
		}
	}
}

// close publishes what waits, until ctx ends, and says goodbye with a hello, so
// that receivers notice if they have missed the last message. It returns what
// could not be published; further calls wait for the first and return the same.
//
// The goodbye is left out unless all is known that this process has done.
func (o *outbox) close(ctx context.Context, allKnown bool) error {
	o.closing.Do(func() { o.closeErr = o.shut(ctx, allKnown) })
	return o.closeErr
}

func (o *outbox) shut(ctx context.Context, allKnown bool) error {
	o.mu.Lock()
	last := o.tickets
	o.mu.Unlock()
	err := o.wait(ctx, last)
	if err != nil {
		what := "that everything changed"
		if n, all := o.backlog(); !all {
			what = fmt.Sprintf("keys that changed: %d", n)
		}
		err = fmt.Errorf("tidemark: closed before all was told, %s: %w", what, err)
	}
	o.endLife()
	select {
	case <-o.ended:
	case <-ctx.Done():
		select {
		case <-o.ended:
		case <-time.After(closeGrace):
			return errors.Join(err, fmt.Errorf("tidemark: a publish does not end: %w", ctx.Err()))
		}
	}
	hurried := make(chan struct{})
	go func() {
		defer close(hurried)
		o.hurries.Wait()
	}()
	select {
	case <-hurried:
	case <-time.After(closeGrace): // a Hint beside a Log that does not return is nobody's concern either
	}
	if err != nil || !allKnown {
		return err // what this origin did not say must not go unnoticed
	}
	said := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	go func() {
		defer close(said)
		o.goodbye(ctx)
	}()
	select {
	case <-said:
	case <-ctx.Done():
	}
	return nil
}

// goodbye tells the receivers that the silence to come is not this origin's
// death. A hello that was given up half-way goes first, so that its number is
// not missed. Nothing here depends on whether it gets out.
func (o *outbox) goodbye(ctx context.Context) {
	if o.unsent && o.publish(ctx, o.buf) != nil {
		return
	}
	o.seq++
	o.mu.Lock()
	m := o.messageLocked(wire.KindHello)
	o.mu.Unlock()
	m.Seq = o.seq
	if b, err := wire.Append(nil, m); err == nil {
		_ = o.publish(ctx, b)
	}
}

// run is the outbox's goroutine.
func (o *outbox) run() {
	defer close(o.ended)
	for {
		select {
		case <-o.wake:
		case <-o.life.Done():
			return
		}
		for {
			m, upTo := o.next()
			if m == nil {
				break
			}
			if !o.deliver(m) {
				return
			}
			o.published(upTo)
		}
	}
}

// next takes the next message from what waits, or returns nil. upTo is the
// ticket up to which everything is sent once the message is.
func (o *outbox) next() (m *wire.Message, upTo uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	waits := o.all || len(o.queue) > 0
	greet := (o.nonce != 0 || len(o.echoes) > 0) && !(o.greeted && waits)
	o.greeted = greet
	switch {
	case greet && o.nonce != 0: // first: a long queue must not make this replica deaf to itself
		m = o.messageLocked(wire.KindHello)
		m.Nonce, o.nonce = o.nonce, 0
		return m, 0
	case greet:
		return o.takeEchoesLocked(), 0
	case o.all:
		o.all, o.carries = false, true
		return o.messageLocked(wire.KindInvalidateAll), o.allUpTo
	case len(o.queue) > 0:
		m = o.messageLocked(wire.KindInvalidate)
		return m, o.takeLocked(m)
	default:
		return nil, 0
	}
}

// takeLocked moves the front of the queue into m.
func (o *outbox) takeLocked(m *wire.Message) (upTo uint64) {
	size, n := 0, 0
	for n < len(o.queue) && n < maxBatch && (n == 0 || size < maxBatchSize) {
		p := &o.queue[n]
		upTo = p.ticket
		n++
		if p.gone {
			o.gone--
			continue
		}
		if p.intent != nil {
			o.flying = append(o.flying, p.intent)
		}
		if p.entry.Stage == 0 {
			delete(o.index, string(p.entry.Key))
		}
		m.Entries = append(m.Entries, p.entry)
		size += len(p.entry.Key)
	}
	o.carried = len(m.Entries)
	o.shifted += n
	o.queue = append(o.queue[:0], o.queue[n:]...)
	if len(o.queue) == 0 {
		upTo = o.tickets // later ones were merged into parcels that are in m
	}
	return upTo
}

func (o *outbox) messageLocked(k wire.Kind) *wire.Message {
	return &wire.Message{Kind: k, CacheID: o.id, Origin: o.origin, Epoch: o.epoch}
}

// everything returns the word that everything changed, in the place of m.
func everything(m *wire.Message) *wire.Message {
	return &wire.Message{Kind: wire.KindInvalidateAll, CacheID: m.CacheID, Origin: m.Origin, Epoch: m.Epoch, Seq: m.Seq}
}

// deliver publishes m until it succeeds. It returns false when the outbox ends
// first.
func (o *outbox) deliver(m *wire.Message) bool {
	o.seq++
	m.Seq = o.seq
	b, err := wire.Append(o.buf[:0], m)
	if err != nil {
		// Only a batch beyond the wire's limits: say less, but nothing wrong.
		o.land(err)
		b, _ = wire.Append(o.buf[:0], everything(m))
	}
	o.buf, o.unsent = b, true
	for pause := retryMin; ; pause = min(2*pause, o.inv.retryMax()) {
		ctx, cancel := context.WithTimeout(o.life, publishTimeout)
		err := o.publish(ctx, b)
		cancel()
		o.mu.Lock()
		o.failing = err
		o.mu.Unlock()
		if err == nil {
			o.unsent = false
			return true
		}
		if errors.Is(err, ErrMessageSize) && m.Kind == wire.KindInvalidate {
			// It would never go out, nor anything behind it: say less, but
			// nothing wrong.
			o.land(err)
			m = everything(m)
			if b, err = wire.Append(o.buf[:0], m); err == nil {
				o.buf = b
				continue
			}
		}
		select {
		case <-time.After(pause):
		case <-o.life.Done():
			return false
		}
	}
}

// publish hands one message to the transports and contains their panics.
func (o *outbox) publish(ctx context.Context, b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = o.caught(r)
		}
	}()
	if o.inv.Log == nil {
		return readable(o.inv.Hint.Publish(ctx, b), o.caught)
	}
	if hint, quick := o.inv.Hint.(quickHint); quick {
		hint.quickly(b)
	} else if o.inv.Hint != nil && o.life.Err() == nil && o.hurrying.CompareAndSwap(false, true) {
		own := bytes.Clone(b)
		o.hurries.Go(func() { o.hurry(own) })
	}
	_, err = o.inv.Log.Append(ctx, b)
	return readable(err, o.caught)
}

// A quickHint is a Hint that need not be waited for beside a Log, nor by a
// goroutine of its own.
type quickHint interface{ quickly(msg []byte) }

// hurry hands a message to the Hint beside a Log, which has the last word: what
// becomes of it is nobody's concern.
func (o *outbox) hurry(b []byte) {
	defer o.hurrying.Store(false)
	defer func() {
		if r := recover(); r != nil {
			_ = o.caught(r)
		}
	}()
	ctx, cancel := context.WithTimeout(o.life, publishTimeout)
	defer cancel()
	_ = o.inv.Hint.Publish(ctx, b)
}

// land tells those who wait for the intents of the message under way that the log
// has them, or why it never will.
func (o *outbox) land(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, in := range o.flying {
		in.end(err)
	}
	o.flying = nil
}

// published records that everything up to the ticket is out.
func (o *outbox) published(upTo uint64) {
	defer o.land(nil)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages++
	o.done = o.seq
	o.carried, o.carries = 0, false
	if len(o.queue) == 0 && !o.all {
		upTo = o.tickets // what waited behind the message, if anything did, was given up
	}
	if upTo > o.sent {
		o.sent = upTo
		close(o.progress)
		o.progress = make(chan struct{})
	}
}

// owe remembers that somebody was told that ticket is not out.
func (o *outbox) owe(ticket uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.owed = max(o.owed, ticket)
}

// said returns the origin and the number of the latest message that is out, and
// whether that stands for all that calls which have returned have asked for: number
// 0 would stand for nothing, but a write without a Log returns before its message.
func (o *outbox) said() (origin, seq uint64, all bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.origin, o.done, o.sent >= o.owed && (o.done > 0 || o.tickets == 0)
}

// addStats adds what the outbox has counted.
func (o *outbox) addStats(s *Stats) {
	n, all := o.backlog()
	if all {
		n++
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s.Sent, s.Collapsed, s.Backlog = o.messages, o.collapsed, n
}

// backlog returns how many keys are not published yet, those under way
// included, and whether the word that everything changed is not.
func (o *outbox) backlog() (keys int, all bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue) - o.gone + o.carried, o.all || o.carries
}
