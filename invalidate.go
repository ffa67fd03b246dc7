package tidemark

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/tidemark-go/tidemark/internal/replica"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// A Hint carries messages between replicas. It may lose, repeat and reorder
// them. It must be safe for concurrent use.
type Hint interface {
	// Publish hands msg to the transport and returns once the transport has
	// it, or an error. Publishing the same message again is harmless. A message
	// has up to 64 KiB; a transport that cannot take one says ErrMessageSize,
	// and is told in a shorter one that everything changed. Publish must not
	// keep msg.
	Publish(ctx context.Context, msg []byte) error

	// Subscribe calls receive for each message, also for those that this
	// process published, one at a time; msg is valid only during the call. It
	// calls lost whenever messages may have been missed: the link is down, is
	// up again, or could not keep up. Once stop has returned no call is running
	// and none begins. stop may be called from any goroutine but those calls.
	Subscribe(receive func(msg []byte), lost func(reason string)) (stop func(), err error)
}

// A Log carries messages between replicas in one order, and can tell when it
// cannot prove that it delivered all of them. It must be safe for concurrent
// use.
type Log interface {
	// Append adds msg and returns its sequence number once the log has it.
	// Appending the same message again is harmless. Append must not keep msg.
	Append(ctx context.Context, msg []byte) (seq uint64, err error)

	// Open returns a reader that begins with the message of sequence number
	// from; 0 means with the next message that is appended.
	Open(ctx context.Context, from uint64) (LogReader, error)
}

// A LogReader reads a Log in order. It is used by one goroutine.
type LogReader interface {
	// Next waits for the next message. Its sequence number is one above the
	// last, or the error wraps [ErrGap]. After an error the reader is useless.
	// msg is valid until the next call.
	Next(ctx context.Context) (seq uint64, msg []byte, err error)

	// Close ends the reader. A running Next, of another goroutine, returns.
	Close() error
}

// An Invalidator is how the replicas of a cache tell each other what changed.
// It is a plain value: [NATS] makes one, and a test may wrap its Hint.
type Invalidator struct {
	// Name and Schema name the cache and the meaning of its values. Messages of
	// another name or schema are not applied, so that two environments or two
	// releases on one subject cannot harm each other. Name is required.
	Name, Schema string

	// Hint and Log are the transports; either may be nil. With a Log nothing is
	// missed unnoticed, and its messages prove how old an entry can be at most.
	// A Hint beside it only hurries: changes are also published there and taken
	// from there, and whether it works is nobody's concern.
	Hint Hint
	Log  Log

	// Prober, if not nil, makes Within hold against the source itself: what a
	// replica proves then is that it has heard of every change that was committed
	// there, whoever made it, and not only of those that were acknowledged by the
	// Log. It takes a Log, and somebody who tells it of all that the source commits.
	// If nobody does, or not for a while, the entries grow old. It is called every
	// Beat, by one goroutine.
	Prober Prober

	// Beat is how often a replica says hello. With a Log that is how often the
	// Age of all entries begins anew, so it should be a fraction of what reads
	// ask for by Within; zero means 250ms. Without one, a replica that has not
	// heard its own hello for three beats considers itself cut off; zero means
	// 1s. The least is 5ms.
	Beat time.Duration

	// mistake is what was wrong with the arguments that made this value.
	mistake *OptionError
}

const (
	defaultBeat  = time.Second
	defaultProbe = 250 * time.Millisecond // with a Log: as often as an Age begins anew
	minBeat      = 5 * time.Millisecond   // less would be a flood, and every pause of the scheduler a cut
)

// connected reports whether there is a transport at all.
func (inv *Invalidator) connected() bool {
	return inv.Hint != nil || inv.Log != nil || inv.mistake != nil
}

func (inv *Invalidator) validate(bad func(field, format string, args ...any)) {
	if inv.mistake != nil {
		bad(inv.mistake.Field, "%s", inv.mistake.Problem)
		return
	}
	if inv.connected() && inv.Name == "" {
		bad("Invalidator.Name", "is required")
	}
	if !inv.connected() && inv.Name != "" {
		bad("Invalidator", "has a Name, but neither Hint nor Log")
	}
	if isNil(inv.Hint) {
		bad("Invalidator.Hint", "holds a nil %T", inv.Hint)
	}
	if isNil(inv.Log) {
		bad("Invalidator.Log", "holds a nil %T", inv.Log)
	}
	switch {
	case isNil(inv.Prober):
		bad("Invalidator.Prober", "holds a nil %T", inv.Prober)
	case inv.Prober != nil && inv.Log == nil && inv.mistake == nil:
		bad("Invalidator.Prober", "needs a Log")
	}
	if inv.Beat != 0 && inv.Beat < minBeat {
		bad("Invalidator.Beat", "is %v, want 0 or at least %v", inv.Beat, minBeat)
	}
}

// beat returns Beat or its default.
func (inv *Invalidator) beat() time.Duration {
	switch {
	case inv.Beat != 0:
		return inv.Beat
	case inv.Log != nil:
		return defaultProbe
	default:
		return defaultBeat
	}
}

// retryMax returns the longest pause between two attempts to publish.
func (inv *Invalidator) retryMax() time.Duration {
	if inv.Log != nil {
		return retryMaxLog
	}
	return retryMax
}

// cacheID names the cache and its schema in every message.
func (inv *Invalidator) cacheID() uint64 { return xxhash.Sum64String(inv.Name + "\x00" + inv.Schema) }

// A member is this cache's place among the others: it hears what they have
// changed, and knows when it may have missed something.
//
// Trust follows four rules. What arrives is applied. What shows that something
// else did not arrive, a gap in an origin's numbers or a message that cannot be
// read, makes every entry suspect. An origin that used to say hello and falls
// silent without a goodbye may have died between a commit and its message: that
// makes every entry suspect, once. And who does not hear himself does not hear
// the others: every beat the replica publishes a hello, and while its own hellos
// do not come back it is cut off, and nothing is served from memory. A hello
// proves only what was published after the transport had taken the
// subscription, so entries from before are suspect when it returns.
//
// Of these, a Log changes the last. Its reader knows what it has read without a
// hole, so an own hello that does not come back does not cut it off: what memory
// has grows old, and is served to those who take it at that Age. It is cut off
// when the log cannot prove that it goes on where reading stopped, because a
// message is missing or the one that was read last is not the same any more, and
// at the beginning. From either it is back when a hello is that was sent since.
type member[K comparable, V any] struct {
	c    *Cache[K, V]
	out  *outbox
	beat time.Duration

	wg    sync.WaitGroup // goroutines of this type
	stops []func()       // end the subscriptions

	received, applies, bad, foreign, lapsed, gaps, cutOffs, silences, logDowns, logSeq atomic.Uint64

	ear *ear // the transport that it trusts: the Log, or else the Hint

	seal, askedSeal *replica.Seal // of the nonces of probes and asked

	mu      sync.Mutex         // guards everything below, and what ear says
	probes  replica.Probes     // the hellos
	asked   replica.Probes     // the probes that go through the source
	intents replica.Intents[K] // strict writes of others that have not ended
	lost    string             // why this replica was cut off last
	ended   bool               // the cache is closing: cut off for good
}

// An ear is one transport as this replica hears it.
type ear struct {
	name string
	log  bool         // it misses nothing unnoticed
	msg  wire.Message // for the transport's calls, which come one at a time

	// For the goroutine that follows a log only.

	follower replica.Follower

	// Guarded by the member's mu.

	origins map[uint64]*voice

	deaf  bool   // the own hello has yet to come back
	since uint64 // the lowest number of an own hello that proves that it hears now
	heard int64  // when the own hello last came back
}

// A voice is one origin as an ear hears it.
type voice struct {
	seq    uint64 // the highest number heard
	done   uint64 // the highest number applied
	below  uint64 // number of its latest hello if that was not above seq, see lower
	lower  int    // how many such hellos there were in a row
	hello  int64  // when it last said hello; 0: it never did, or said goodbye
	silent bool   // that it no longer does was noticed
	pause  int64  // between two of its hellos: the latest, or half the one before if that is more
}

const (
	maxOrigins  = 4096 // remembered; one that was forgotten makes suspect once
	missedBeats = 3    // without an own hello: cut off
	lowerHellos = 3    // in a row: their numbers count, and not the higher one
)

// join connects c to its replicas. c is cut off until the first hello is back.
func (c *Cache[K, V]) join() error {
	inv := c.opts.Invalidator
	r := &member[K, V]{c: c, beat: inv.beat(), seal: replica.NewSeal(), askedSeal: replica.NewSeal()}
	c.replica = r
	c.cutOff()
	r.out = newOutbox(inv, c.opts.SourceEpoch, c.caught, r.collapsed)
	r.ear = &ear{name: "hint", origins: map[uint64]*voice{}, deaf: true, since: 1}
	if inv.Log != nil {
		r.ear.name, r.ear.log = "log", true
	}
	if inv.Hint != nil {
		receive, lost := func(msg []byte) { r.receive(r.ear, msg) }, func(reason string) { r.lose(r.ear, reason) }
		if inv.Log != nil {
			beside := &ear{name: "hint"}
			receive, lost = func(msg []byte) { r.hurry(beside, msg) }, func(string) {}
		}
		stop, err := r.subscribe(receive, lost)
		switch {
		case err == nil:
			r.stops = append(r.stops, stop)
		case inv.Log == nil:
			return fmt.Errorf("tidemark: subscribe: %w", err)
		default:
			c.opts.Logger.Warn("tidemark: no hints beside the log", "err", err)
		}
	}
	if inv.Log != nil {
		r.wg.Go(func() { r.follow(r.ear) })
	}
	if inv.Prober != nil {
		r.wg.Go(r.keepProbing)
	}
	r.wg.Go(r.keepBeat)
	return nil
}

// collapsed is called when the outbox has given up a backlog.
func (r *member[K, V]) collapsed() {
	const reason = "what waits to be broadcast became one message that everything changed"
	r.c.opts.Logger.Warn("tidemark: backlog collapsed", "reason", reason)
	r.c.emit(Event{Kind: EventCollapsed, Reason: reason})
}

// subscribe listens to the Hint, and contains its panic.
func (r *member[K, V]) subscribe(receive func([]byte), lost func(string)) (stop func(), err error) {
	defer func() {
		if p := recover(); p != nil {
			err = r.c.caught(p)
		}
		err = r.c.readable(err)
	}()
	stop, err = r.c.opts.Invalidator.Hint.Subscribe(receive, lost)
	if stop == nil {
		stop = func() {}
	}
	return stop, err
}

// keepBeat says hello every beat, and notices when hellos do not come back.
func (r *member[K, V]) keepBeat() {
	tick := time.NewTicker(r.beat)
	defer tick.Stop()
	for {
		r.hello()
		select {
		case <-tick.C:
		case <-r.c.life.Done():
			return
		}
		r.notice()
		r.lapse()
	}
}

// notice acts on hellos that did not come.
func (r *member[K, V]) notice() {
	r.mu.Lock()
	now := r.c.now()
	e, cut, silent := r.ear, false, 0
	switch {
	case e.deaf: // whoever is not heard may be speaking
	case now-e.heard > missedBeats*int64(r.beat):
		cut = !e.log // who reads a log without a hole knows what he knows; it only grows old
	default:
		for _, v := range e.origins {
			// Silent is who was not heard for long while the own hello was.
			if v.hello != 0 && !v.silent && e.heard-v.hello > missedBeats*max(int64(r.beat), v.pause) {
				v.silent = true
				silent++
			}
		}
	}
	r.mu.Unlock()
	if cut {
		r.lose(e, "own hello does not come back")
	}
	if silent > 0 {
		r.silences.Add(uint64(silent))
		r.c.suspect(fmt.Sprintf("origins that fell silent without a goodbye: %d", silent))
	}
}

func (r *member[K, V]) hello() {
	r.mu.Lock()
	number := r.probes.Send(r.c.moments()) // before it is sent (S61)
	r.mu.Unlock()
	r.out.hello(r.seal.Nonce(number))
}

// lose is called when the transport may have missed messages, or is down.
func (r *member[K, V]) lose(e *ear, reason string) {
	r.mu.Lock()
	already := e.deaf
	e.deaf, e.since, r.lost = true, r.probes.Latest()+1, e.name+": "+reason
	r.c.cutOff() // before the mark is gone: until then it is what says how old they are
	if e.log {
		r.probes.Void()
		r.asked.Void()
		r.c.fresh.Reset(r.c.moments().Lead)
		r.holdMark()
	}
	r.mu.Unlock()
	if !already {
		r.c.stats.suspicions.Add(1)
		r.cutOffs.Add(1)
		r.c.opts.Logger.Warn("tidemark: cut off from the replicas", "transport", e.name, "reason", reason)
		r.c.emit(Event{Kind: EventCutOff, Reason: e.name + ": " + reason})
	}
	r.hello()
}

// hear is called when an own hello is back, or what pretends to be one.
func (r *member[K, V]) hear(e *ear, nonce uint64) {
	if nonce == 0 {
		return // the own goodbye: it proves nothing
	}
	number, own := r.seal.Number(nonce)
	if !own {
		r.forged(e)
		return
	}
	r.mu.Lock()
	fresh := number >= e.since
	away := fresh && r.c.now()-e.heard > missedBeats*int64(r.beat)
	if fresh {
		e.heard, e.since = r.c.now(), number+1 // a hello proves something once
	}
	back := e.deaf && fresh && !r.ended
	if back {
		e.deaf = false
		r.c.rejoin()
	}
	if back || away { // away: from a log that could not be read
		for _, v := range e.origins {
			if v.hello != 0 {
				v.hello = r.c.now() // nobody fell silent: it was this replica that did not hear
			}
		}
	}
	if e.log && !e.deaf {
		if at, ok := r.probes.Back(number); ok && r.c.opts.Invalidator.Prober == nil {
			r.c.fresh.Advance(at) // all that the log had before it has been applied
		}
	}
	r.mu.Unlock()
	if back {
		r.c.opts.Logger.Info("tidemark: hears the replicas", "transport", e.name)
		r.c.emit(Event{Kind: EventRejoined, Reason: e.name})
	}
}

// forged is called when somebody speaks in the name of this replica. What it has
// under way is worthless then, so that nobody can guess twice at one nonce.
func (r *member[K, V]) forged(e *ear) {
	r.mu.Lock()
	r.probes.Void()
	r.asked.Void()
	e.since = r.probes.Latest() + 1
	r.mu.Unlock()
	r.bad.Add(1)
	r.c.opts.Logger.Warn("tidemark: somebody else speaks in the name of this replica", "transport", e.name)
	r.c.emit(Event{Kind: EventBadMessage, Reason: e.name, Err: errForged})
}

var errForged = errors.New("tidemark: a message in the name of this replica that it did not send")

// receive takes one message from a transport.
func (r *member[K, V]) receive(e *ear, msg []byte) {
	m := &e.msg
	err := wire.Decode(msg, m)
	if errors.Is(err, wire.ErrUnknownKind) && (m.Flags&wire.FlagIgnorable != 0 || m.CacheID != r.out.id) {
		err = nil // and no case below will know it
	}
	switch {
	case err != nil:
		// Whatever it said, it was not understood: assume the worst.
		r.bad.Add(1)
		r.c.emit(Event{Kind: EventBadMessage, Reason: e.name, Err: err})
		r.missed(e, slog.LevelWarn, err.Error())
		return
	case m.CacheID != r.out.id:
		r.foreign.Add(1)
		r.c.opts.Logger.Warn("tidemark: a message of another name or schema is ignored", "transport", e.name)
		r.c.emit(Event{Kind: EventForeignMessage, Reason: e.name})
		return
	}
	first, gap, level := r.listen(e, m)
	if gap != "" {
		r.gaps.Add(1)
		r.missed(e, level, gap)
	}
	if m.Origin == r.out.origin {
		// What this replica published is in force here since before it was.
		if m.Kind == wire.KindHello {
			r.hear(e, m.Nonce)
		}
		return
	}
	r.received.Add(1)
	adopted := r.c.adopt(m.Epoch, false)
	switch m.Kind {
	case wire.KindInvalidateAll:
		if !adopted { // which has thrown everything away
			r.c.newGeneration()
		}
	case wire.KindInvalidate:
		r.apply(e, m, first)
	case wire.KindProbe:
		r.answered(e, m.Probes)
	}
	if e.log {
		r.applied(e, m)
	}
}

// missed makes every entry suspect: what e has missed may be anything.
func (r *member[K, V]) missed(e *ear, level slog.Level, reason string) {
	if e.log {
		r.holdMark()
	}
	r.c.suspectAt(level, e.name+": "+reason)
}

// holdMark is called when strict writes may be under way of which this replica
// does not know. Until they have taken effect, the log vouches for nothing but
// what is loaded after that.
func (r *member[K, V]) holdMark() {
	if r.c.opts.Strict {
		r.c.fresh.Hold(after(r.c.now(), r.c.intentTTL()))
	}
}

// applied records that m is in force here, for tokens.
func (r *member[K, V]) applied(e *ear, m *wire.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := e.origins[m.Origin]; v != nil {
		v.done = max(v.done, m.Seq)
	}
}

// hasApplied reports whether all that t stands for is in force here.
func (r *member[K, V]) hasApplied(t *Token) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range t.parts {
		if p.origin == r.out.origin {
			continue // the own writes are in force when they return
		}
		if v := r.ear.origins[p.origin]; !r.ear.log || v == nil || v.done < p.seq {
			return false
		}
	}
	return !t.full
}

// hurry takes one message from a Hint beside a Log: what it says of keys is
// applied at once. All that it does not say, or says wrong, comes with the log.
func (r *member[K, V]) hurry(e *ear, msg []byte) {
	m := &e.msg
	if wire.Decode(msg, m) != nil || m.CacheID != r.out.id || m.Origin == r.out.origin {
		return
	}
	if m.Kind == wire.KindInvalidate && m.Epoch <= r.c.sourceEpoch.Load() {
		r.apply(e, m, false)
	}
}

// apply applies the changes of one message. Only one that is heard for the first
// time can say that a write begins: after that it may have ended. One that comes
// again, and of which nothing is known, makes the log vouch for nothing for as long
// as that write can take effect: it may never have been heard. A version of an
// earlier epoch is none: whoever told it has not heard of this one yet, and may
// have written since it began.
func (r *member[K, V]) apply(e *ear, message *wire.Message, first bool) {
	at, applied := moment{fixed: r.c.now()}, uint64(0) // looking at the clock takes as long as the rest for a key
	for i := range message.Entries {
		w := &message.Entries[i]
		parse := r.c.viewKey
		if w.Stage == wire.Begun {
			parse = r.c.parseKey // it is kept
		}
		key, err := parse(w.Key)
		if err != nil {
			r.bad.Add(1)
			r.c.emit(Event{Kind: EventBadMessage, Reason: e.name, Err: err})
			r.missed(e, slog.LevelWarn, err.Error())
			continue
		}
		hash := r.c.keys.hash(key)
		switch w.Stage {
		case wire.Begun:
			if first && e.log {
				r.begin(key, hash, w)
			} else if e.log && !r.knows(w.Op) { // somebody else may have said something under its number
				r.c.fresh.Hold(after(r.c.now(), lifetime(w)))
			}
			continue
		case wire.Void:
			r.end(e, w.Op)
			continue
		}
		m := mark{Version(w.Version), w.Deleted}
		s := r.c.shard(hash)
		s.mu.Lock()
		if message.Epoch < r.c.sourceEpoch.Load() { // under the lock: an epoch that begins takes it to forget
			m = mark{}
		}
		if at.era = r.c.era.Load(); s.delayed.lag > 0 {
			at.fixed = r.c.now() // what it remembers it remembers from now on
		}
		s.invalidateLocked(key, hash, m, byMessage, at)
		s.mu.Unlock()
		if r.c.audit.samples() {
			r.sample(w.Key, hash)
		}
		applied++
		r.end(e, w.Op)
	}
	r.applies.Add(applied)
}

// sample lets the auditor look again at a key that was invalidated.
func (r *member[K, V]) sample(name []byte, hash uint64) {
	if key, err := r.c.parseKey(name); err == nil { // it is kept, unlike the one of apply
		r.c.audit.sample(key, hash)
	}
}

// begin keeps the key of another replica's strict write out of memory until that
// has ended, or can no longer take effect.
func (r *member[K, V]) begin(key K, hash uint64, w *wire.Entry) {
	s := r.c.shard(hash)
	s.mu.Lock()
	s.holdLocked(key, hash, r.c.moment())
	s.mu.Unlock()
	ttl := lifetime(w)
	r.mu.Lock()
	begun, full := r.intents.Begin(w.Op, key, len(w.Key), after(r.c.now(), ttl))
	r.mu.Unlock()
	if begun {
		return
	}
	if full {
		r.c.fresh.Hold(after(r.c.now(), ttl)) // as if it had not been heard of
	}
	s.mu.Lock()
	s.releaseLocked(key)
	s.mu.Unlock()
}

// lifetime returns for how long the write that w announces can take effect. No
// Options ask for more than this returns.
func lifetime(w *wire.Entry) time.Duration {
	return min(time.Duration(w.TTL)*time.Millisecond, 2*maxStrictDoubt)
}

// knows reports whether the strict write op has begun here and not ended.
func (r *member[K, V]) knows(op OpID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.intents.Has(op)
}

// end lets the key of a strict write back into memory: the one with which it began,
// whatever the message says. What it came to has been applied. Only the log tells
// it in order.
func (r *member[K, V]) end(e *ear, op OpID) {
	if !e.log || op == (OpID{}) {
		return
	}
	r.mu.Lock()
	key, begun := r.intents.End(op)
	r.mu.Unlock()
	if !begun {
		return
	}
	s := r.c.shard(r.c.keys.hash(key))
	s.mu.Lock()
	s.releaseLocked(key)
	s.mu.Unlock()
}

// lapse lets the keys of strict writes back into memory of which nobody has told
// how they ended, once they can no longer take effect.
func (r *member[K, V]) lapse() {
	r.mu.Lock()
	keys := r.intents.Lapse(r.c.now())
	r.mu.Unlock()
	for _, key := range keys {
		hash := r.c.keys.hash(key)
		s := r.c.shard(hash)
		s.mu.Lock()
		s.invalidateLocked(key, hash, mark{}, byMessage, r.c.moment()) // loads that ran meanwhile may have read either state
		s.releaseLocked(key)
		s.mu.Unlock()
	}
	if n := len(keys); n > 0 {
		r.lapsed.Add(uint64(n))
		r.c.opts.Logger.Warn("tidemark: nobody told how strict writes ended", "writes", n)
		r.c.emit(Event{Kind: EventLapsed, Reason: fmt.Sprintf("strict writes: %d", n)})
	}
}

// listen records that m was heard, and says if it is for the first time, if that
// shows that another message was missed, and how much of a surprise that is: at
// every start of a replica the others are heard for the first time. An origin's
// first message has number 1.
func (r *member[K, V]) listen(e *ear, m *wire.Message) (first bool, gap string, level slog.Level) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := e.origins[m.Origin]
	level = slog.LevelWarn
	if v == nil {
		level = slog.LevelInfo
		e.forgetOne()
		v = &voice{}
		if e.log {
			v.seq = m.Seq - 1 // what it said before is in front of this replica's place in the log
		}
		e.origins[m.Origin] = v
	}
	if m.Seq > v.seq+1 {
		gap = fmt.Sprintf("messages %d to %d of origin %x are missing", v.seq+1, m.Seq-1, m.Origin)
		if level == slog.LevelInfo { // all is well: it was here before this replica
			gap = fmt.Sprintf("origin %x is heard for the first time, and has said %d before", m.Origin, m.Seq-1)
		}
	}
	switch {
	case m.Seq > v.seq:
		v.below, v.lower = 0, 0
	case !v.counts(m):
		return false, "", level // late or repeated; applying it again is harmless
	default:
		gap = fmt.Sprintf("origin %x goes on at %d, and %d was said in its name", m.Origin, m.Seq, v.seq)
		v.done, v.below, v.lower = 0, 0, 0
	}
	v.seq = m.Seq
	switch now := r.c.now(); {
	case m.Kind != wire.KindHello:
	case m.Nonce == 0: // goodbye
		v.hello = 0
	default:
		if v.hello != 0 && !e.deaf {
			v.pause = max(now-v.hello, v.pause/2)
		}
		v.hello, v.silent = now, false
	}
	return true, gap, level
}

// counts reports whether m, whose number is not above the highest one that was
// heard, shows that the origin itself counts here: nobody else says hello several
// times in a row with rising numbers, and nothing above them in between. Then
// somebody else has said the higher number, and as long as that counted, nothing
// that got lost was noticed.
func (v *voice) counts(m *wire.Message) bool {
	if m.Kind != wire.KindHello || m.Nonce == 0 || m.Seq <= v.below {
		return false
	}
	v.below = m.Seq
	v.lower++
	return v.lower >= lowerHellos
}

// forgetOne makes room for another origin, if possible at the cost of one that
// is no replica or no longer says hello.
func (e *ear) forgetOne() {
	if len(e.origins) < maxOrigins {
		return
	}
	var victim uint64
	for o, v := range e.origins {
		victim = o
		if v.hello == 0 || v.silent {
			break
		}
	}
	delete(e.origins, victim)
}

// follow reads the log for as long as the cache lives. When reading fails it goes
// on from the message that was read last; what memory holds stays good, and its
// Age grows, until that is shown to be impossible. Then, as at the beginning,
// this replica is cut off, begins anew at the log's end, and is back when its
// hello is.
func (r *member[K, V]) follow(e *ear) {
	down := false
	for pause := retryMin; ; pause = min(2*pause, retryMaxLog) {
		err := r.read(e, func() {
			pause = retryMin
			if down {
				down = false
				r.hello() // the sooner it is back, the sooner the entries are fresh
				r.tell(EventLogUp, e.name)
			}
		})
		if r.c.life.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, ErrGap):
			e.follower.Reset()
			r.lose(e, err.Error())
			r.gaps.Add(1)
		case !down:
			down = true
			r.logDowns.Add(1)
			r.note(e.name + ": " + err.Error())
			r.tell(EventLogDown, e.name+": "+err.Error())
		}
		select {
		case <-time.After(pause):
		case <-r.c.life.Done():
			return
		}
	}
}

// note remembers what keeps this replica from hearing the others, for Ready.
func (r *member[K, V]) note(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = reason
}

// tell logs and emits an event about the log.
func (r *member[K, V]) tell(kind EventKind, reason string) {
	level := slog.LevelInfo
	if kind == EventLogDown {
		level = slog.LevelWarn
	}
	r.c.opts.Logger.Log(context.Background(), level, "tidemark: "+kind.String(), "reason", reason)
	r.c.emit(Event{Kind: kind, Reason: reason})
}

// read reads the log until it fails. The error wraps ErrGap if messages may be
// missing.
func (r *member[K, V]) read(e *ear, progress func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = r.c.caught(p)
		}
	}()
	from := e.follower.Open()
	reader, err := r.c.opts.Invalidator.Log.Open(r.c.life, from)
	if err != nil {
		return r.c.readable(err)
	}
	end := sync.OnceFunc(func() { _ = reader.Close() })
	defer end()
	stop := context.AfterFunc(r.c.life, end) // for a Next that does not heed its context
	defer stop()
	if from == 0 {
		r.lose(e, "opened at the end") // asks for a hello that goes through this reader
	}
	for {
		seq, msg, err := reader.Next(r.c.life)
		if err != nil {
			return r.c.readable(err)
		}
		apply, err := e.follower.Take(seq, msg)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrGap, err)
		}
		if apply {
			r.receive(e, msg)
			r.logSeq.Store(seq)
		}
		progress()
	}
}

// close publishes what waits, until ctx ends, and ends the subscriptions. With a
// write under way or in doubt this replica is to the others as one that died in
// the middle.
func (r *member[K, V]) close(ctx context.Context, allWritten bool) error {
	err := r.out.close(ctx, allWritten && r.c.doubts.Load() == 0)
	for _, stop := range r.stops {
		r.callStop(stop)
	}
	r.mu.Lock() // a log's reader may still be at work
	r.ended = true
	r.c.cutOff()
	r.mu.Unlock()
	return err
}

// callStop calls stop and contains its panic.
func (r *member[K, V]) callStop(stop func()) {
	defer func() {
		if p := recover(); p != nil {
			_ = r.c.caught(p)
		}
	}()
	stop()
}

// addStats adds what the replica has counted.
func (r *member[K, V]) addStats(s *Stats) {
	s.Received, s.Applies, s.Bad, s.Foreign = r.received.Load(), r.applies.Load(), r.bad.Load(), r.foreign.Load()
	s.Lapsed, s.Gaps, s.CutOffs = r.lapsed.Load(), r.gaps.Load(), r.cutOffs.Load()
	s.Silences, s.LogDowns, s.LogSeq = r.silences.Load(), r.logDowns.Load(), r.logSeq.Load()
	r.mu.Lock()
	s.Intents = r.intents.Len()
	for origin, v := range r.ear.origins {
		if origin == r.out.origin || v.silent || v.hello == 0 {
			continue
		}
		s.Peers++
	}
	r.mu.Unlock()
	r.out.addStats(s)
}

// turnEra changes the era, and holds off lagging loads from before until after
// the change, so that one that reads the new era finds them held off.
func (c *Cache[K, V]) turnEra(next func(era uint64) uint64) {
	c.holdLagging()
	for {
		era := c.era.Load()
		if c.era.CompareAndSwap(era, next(era)) {
			break
		}
	}
	c.holdLagging()
}

// holdLagging holds off lagging loads for the lag from now on, if they are not
// held off for longer already.
func (c *Cache[K, V]) holdLagging() {
	for {
		until, have := after(c.now(), c.opts.LoaderClass.lag), c.holdOff.Load()
		if have >= until || c.holdOff.CompareAndSwap(have, until) {
			return
		}
	}
}

// suspect makes every entry suspect.
func (c *Cache[K, V]) suspect(reason string) { c.suspectAt(slog.LevelWarn, reason) }

func (c *Cache[K, V]) suspectAt(level slog.Level, reason string) {
	c.turnEra(func(era uint64) uint64 { return era + eraSuspicion })
	c.stats.suspicions.Add(1)
	c.opts.Logger.Log(context.Background(), level, "tidemark: messages may be missing", "reason", reason)
	c.emit(Event{Kind: EventSuspect, Reason: reason})
}

// cutOff makes every entry suspect, also those that are loaded from now on.
func (c *Cache[K, V]) cutOff() {
	c.turnEra(func(era uint64) uint64 { return (era | eraCutOff) + eraSuspicion })
}

// rejoin lets entries be served that are loaded from now on.
func (c *Cache[K, V]) rejoin() {
	c.turnEra(func(era uint64) uint64 { return era&^eraCutOff + eraSuspicion })
}

// newGeneration makes every entry worthless.
func (c *Cache[K, V]) newGeneration() {
	c.turnEra(func(era uint64) uint64 { return era + eraGeneration })
	c.stats.flushes.Add(1)
	c.sweepAll.Store(true)
	c.policy.kick()
}

// apply applies one change in this process. epoch is what m is of.
func (c *Cache[K, V]) apply(key K, hash uint64, m mark, epoch uint32, by cause) {
	s := c.shard(hash)
	s.mu.Lock()
	s.invalidateLocked(key, hash, c.comparable(m, epoch), by, c.moment())
	s.mu.Unlock()
	if c.audit.samples() {
		c.audit.sample(key, hash)
	}
}

// announce queues one change for the other replicas. epoch is what m is of.
func (c *Cache[K, V]) announce(key K, m mark, epoch uint32) (ticket uint64) {
	if c.replica == nil {
		return 0
	}
	b, err := c.encodeKey(key)
	if err != nil {
		return c.replica.out.addAll() // it cannot be named: nothing less is safe
	}
	return c.replica.out.add(b, m, epoch)
}

// encodeKey and parseKey call the KeyCodec and contain its panics.
func (c *Cache[K, V]) encodeKey(key K) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
	}()
	return c.keys.encode(nil, key), nil
}

func (c *Cache[K, V]) parseKey(b []byte) (key K, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = c.caught(r)
		}
	}()
	key, err = c.keys.decode(b)
	return key, c.readable(err)
}

// viewKey is parseKey for a key that nobody keeps: it may share b's bytes.
func (c *Cache[K, V]) viewKey(b []byte) (key K, err error) {
	if c.keys.codec != nil {
		return c.parseKey(b)
	}
	return c.keys.view(b)
}

// Invalidate says that something other than this cache has changed the key in
// the source, to the given version; 0 means that the version is not known. An
// entry below that version is gone from this process when Invalidate returns,
// whatever it returns, and loads in flight cannot bring it back.
//
// The change is then broadcast; Invalidate waits until the transport has it or
// ctx ends, which is an [ErrNotBroadcast]: the broadcast stays queued. Without
// an Invalidator in the Options, Invalidate never waits.
func (c *Cache[K, V]) Invalidate(ctx context.Context, key K, version Version) error {
	m, epoch := mark{version: version}, c.sourceEpoch.Load()
	c.stats.invalidated.Add(1)
	c.apply(key, c.keys.hash(key), m, epoch, byInvalidate)
	if !c.work.enter() {
		return ErrClosed
	}
	defer c.work.leave()
	if c.replica == nil {
		return nil
	}
	return c.replica.out.wait(ctx, c.announce(key, m, epoch))
}

// InvalidateAll throws every entry away, here and in all replicas, and fences
// every load, fill and write in flight: none of them brings back what it read
// before. It costs the same however many entries there are. Bare Puts still
// have to be at or above the tide marks of before.
//
// Errors as Invalidate.
func (c *Cache[K, V]) InvalidateAll(ctx context.Context) error {
	c.newGeneration()
	if !c.work.enter() {
		return ErrClosed
	}
	defer c.work.leave()
	if c.replica == nil {
		return nil
	}
	return c.replica.out.wait(ctx, c.replica.out.addAll())
}

// Ready returns nil once this replica hears the others, so that its entries may
// be served: at once if it has no Invalidator. It returns ctx's error, or
// [ErrClosed], if that comes first.
func (c *Cache[K, V]) Ready(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		switch {
		case c.closed.Load():
			return ErrClosed
		case c.era.Load()&eraCutOff == 0:
			return nil
		}
		select {
		case <-tick.C:
		case <-c.life.Done():
			return ErrClosed
		case <-ctx.Done():
			return c.replica.notReady(ctx.Err())
		}
	}
}

// notReady adds to a context's error what keeps this replica.
func (r *member[K, V]) notReady(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost == "" {
		return err
	}
	return fmt.Errorf("tidemark: not ready: %s: %w", r.lost, err)
}
