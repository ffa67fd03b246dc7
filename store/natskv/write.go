package natskv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
)

// ErrForgotten means that the bucket cannot tell any more what became of a write:
// the history that it keeps of the key does not reach back to the write for sure,
// and the servers' memory of message ids, two minutes or what the bucket's stream
// says, does not know it. The key was written too often since, or was purged, or
// the bucket's history was made shorter; or the key's first message is of a client
// that did not demand that it be the first, as Put of other clients does not. The
// write may or may not have been committed.
var ErrForgotten = errors.New("natskv: the bucket no longer knows what became of the write")

// CompareAndSet implements [tidemark.Store] with one message, which the server
// takes only if the key's last message is still the one of base. Before it goes
// one request, which any server may answer: base must be a value and not the mark
// of a deletion.
//
// Whatever has been sent and not answered counts as unknown. A value that the
// bucket or the server does not take wraps [tidemark.ErrTooLarge] and
// [tidemark.ErrUnavailable].
func (s *Store[K, V]) CompareAndSet(ctx context.Context, key K, base tidemark.Version, value V, op tidemark.OpID) (tidemark.Version, error) {
	const what = "compare and set"
	name, err := s.key.name(key)
	if err != nil {
		return 0, unavailable(what, err)
	}
	data, err := s.value.Encode(value)
	if err != nil {
		return 0, unavailable(what, fmt.Errorf("encode value: %w", err))
	}
	return s.b.write(ctx, &change{what: what, name: name, base: uint64(base), op: op, data: data})
}

// CompareAndDelete implements [tidemark.Store]. It writes the mark of a deletion,
// as every client of buckets does; its revision is the version of the absence.
func (s *Store[K, V]) CompareAndDelete(ctx context.Context, key K, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	const what = "compare and delete"
	name, err := s.key.name(key)
	if err != nil {
		return 0, unavailable(what, err)
	}
	return s.b.write(ctx, &change{what: what, name: name, base: uint64(base), op: op, remove: true})
}

// Outcome implements [tidemark.Store]: it looks for the write's message among
// those that the bucket keeps of the key. If they do not reach back far enough it
// asks the stream's leader whether it knows the id of the message, and if not,
// fails with an error that wraps [ErrForgotten].
//
// Asked about a write that this Store has sent more than two seconds ago and that
// could still take effect, it writes the key's state once more, unchanged. So a
// message that is held up somewhere cannot be taken after it was called lost.
func (s *Store[K, V]) Outcome(ctx context.Context, key K, op tidemark.OpID) (tidemark.Version, bool, error) {
	name, err := s.key.name(key)
	if err != nil {
		return 0, false, fmt.Errorf("natskv: outcome: %w", err)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	seq, committed, err := s.b.outcome(ctx, name, op)
	if err != nil {
		return 0, false, fmt.Errorf("natskv: outcome: %w", err)
	}
	return tidemark.Version(seq), committed, nil
}

// A change is one conditional write of one key.
type change struct {
	what   string // for messages
	name   string
	base   uint64
	op     tidemark.OpID
	data   []byte
	remove bool
}

// message returns the message of c, which is taken only if the subject's last one
// has number expected.
func (c *change) message(b *bucket, id string) *nats.Msg {
	m := &nats.Msg{Subject: b.prefix + c.name, Data: c.data, Header: nats.Header{}}
	if c.remove {
		m.Header.Set("KV-Operation", "DEL")
	}
	m.Header.Set(jetstream.MsgIDHeader, id)
	return m
}

// maxAttempts bounds how often one write is sent. It is sent again only if the
// server has refused it though the base was, or became, current.
const maxAttempts = 10

// write makes c.
func (b *bucket) write(ctx context.Context, c *change) (tidemark.Version, error) {
	if c.op == (tidemark.OpID{}) {
		return 0, unavailable(c.what, errors.New("the operation id is zero: it could not be told from any other"))
	}
	if err := b.usable(ctx); err != nil {
		return 0, unavailable(c.what, err)
	}
	id := messageID(c.op, b.prefix+c.name)
	if err := b.fits(c.message(b, id)); err != nil {
		return 0, unavailable(c.what, err)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	expected, made, err := b.prepare(ctx, c, id)
	for pause, attempt := shortestPause, 1; ; attempt++ {
		var conflict *tidemark.ConflictError
		switch {
		case errors.As(err, &conflict):
			return 0, fmt.Errorf("natskv: %s: %w", c.what, err)
		case err != nil:
			return 0, unavailable(c.what, err)
		case made != 0:
			return tidemark.Version(made), nil
		}
		seq, refused := b.send(ctx, c, id, expected)
		switch {
		case refused == nil:
			return tidemark.Version(seq), nil
		case !errors.Is(refused, errRefused):
			return 0, refused
		case attempt == maxAttempts, attempt > 1 && !b.again(ctx, &pause):
			return 0, unavailable(c.what, refused)
		}
		expected, made, err = b.examine(ctx, c, id)
	}
}

// fits returns an error if m is larger than what is taken, its headers included.
func (b *bucket) fits(m *nats.Msg) error {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "18446744073709551615")
	m.Header.Set(jetstream.ExpectedStreamHeader, b.stream)
	size, most := int64(m.Size()-len(m.Subject)), b.nc.MaxPayload()
	if b.maxSize >= 0 {
		most = min(most, b.maxSize)
	}
	if most > 0 && size > most {
		return fmt.Errorf("%w: a message of %d bytes, at most %d can be stored", tidemark.ErrTooLarge, size, most)
	}
	return nil
}

// prepare finds out which message must be the key's last for c to be made, by
// asking whichever server answers. What it answers is not believed to be the
// latest, only that it has been: it decides what the server that takes the
// message will compare. made is the version at which c was made before.
func (b *bucket) prepare(ctx context.Context, c *change, id string) (expected, made uint64, err error) {
	if c.base == 0 {
		if c.remove {
			return b.examine(ctx, c, id) // nothing to remove, whatever is there
		}
		found, err := b.lastKnown(ctx, 0, []string{c.name})
		if err != nil {
			return 0, 0, err
		}
		if is := found[b.prefix+c.name]; is.seq == 0 {
			return 0, 0, nil
		}
		return b.examine(ctx, c, id)
	}
	is, err := b.at(ctx, c.base)
	if err != nil || is.subject != b.prefix+c.name || !is.live() || is.id == id {
		return b.examine(ctx, c, id)
	}
	return c.base, 0, nil
}

// examine decides by the key's current state: c may be sent, expecting the
// message of number expected; or it was made before, at version made; or it
// conflicts.
func (b *bucket) examine(ctx context.Context, c *change, id string) (expected, made uint64, err error) {
	is, err := b.current(ctx, c.name)
	if err != nil {
		return 0, 0, err
	}
	welcome := !is.live() && c.base == 0 && !c.remove || is.live() && is.seq == c.base
	if made, err = b.madeBefore(ctx, c, id, is, welcome); err != nil || made != 0 {
		return 0, made, err
	}
	if !welcome {
		return 0, 0, &tidemark.ConflictError{Current: tidemark.Version(is.seq), Absent: !is.live()}
	}
	return is.seq, 0, nil
}

// madeBefore returns the version at which c was made by an earlier call, or 0. A
// write of a base that has been overtaken is the message that came after the
// base, or never will be one; any other may be wherever the key's history
// reaches.
func (b *bucket) madeBefore(ctx context.Context, c *change, id string, is stored, welcome bool) (made uint64, err error) {
	subject := b.prefix + c.name
	switch {
	case is.seq == 0 || welcome && is.live() && is.id != id:
		return 0, nil
	case c.base == 0 || welcome || is.seq <= c.base:
		past, err := b.past(ctx, subject, 1, all, is.seq)
		return find(past, id), err
	}
	past, err := b.past(ctx, subject, c.base, 2, is.seq)
	if err != nil || len(past) == 2 && past[0].seq == c.base {
		return find(past, id), err
	}
	// The base is gone, and perhaps the write that came after it.
	if made = find(past, id); made != 0 {
		return made, nil
	}
	made, _, err = b.remembered(ctx, c.name, id)
	if errors.Is(err, ErrForgotten) {
		err = nil
	}
	return made, err
}

// find returns the number of the message that the write of this id has made, or
// 0.
func find(past []stored, id string) uint64 {
	for _, m := range past {
		if m.id == id {
			return m.seq
		}
	}
	return 0
}

// errRefused means that the server has not taken a message because another is the
// subject's last, or is on its way.
var errRefused = errors.New("natskv: another message is in front")

const (
	codeDuplicate   jetstream.ErrorCode = 10158 // a message of that id is under way
	codeRollup      jetstream.ErrorCode = 10111 // the rollup is none
	codeStoreFailed jetstream.ErrorCode = 10077
)

// send sends the message of c once. Its error is errRefused, or wraps
// ErrUnavailable, or says that it is not known what became of the message.
func (b *bucket) send(ctx context.Context, c *change, id string, expected uint64) (uint64, error) {
	if b.nc.Status() != nats.CONNECTED {
		return 0, unavailable(c.what, fmt.Errorf("the connection is %v", b.nc.Status()))
	}
	high := b.high.Load()
	b.doubts.begin(c.op, expected)
	ack, err := b.publish(ctx, c.message(b, id), jetstream.WithExpectLastSequencePerSubject(expected))
	switch {
	case err == nil && !ack.Duplicate && ack.Sequence <= high:
		b.gone.Store(true)
		return 0, fmt.Errorf("natskv: %s: %w: written at revision %d", c.what, ErrRecreated, ack.Sequence)
	case err == nil:
		b.doubts.end(c.op)
		b.see(ack.Sequence)
		return ack.Sequence, nil
	case inFront(err):
		if lostRace(err) { // or else a message of this very write is under way
			b.doubts.end(c.op)
		}
		return 0, fmt.Errorf("%w: %w", errRefused, err)
	case certain(err):
		b.doubts.end(c.op)
		return 0, unavailable(c.what, err)
	default:
		return 0, fmt.Errorf("natskv: %s: %w", c.what, err)
	}
}

// inFront reports whether the server refused a message because of another: the
// subject's last, or one on its way, perhaps of the same id.
func inFront(err error) bool { return lostRace(err) || codeOf(err) == codeDuplicate }

// certain reports whether err of a publish means that no server has taken the
// message.
func certain(err error) bool {
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse), // nobody heard it
		errors.Is(err, nats.ErrReconnectBufExceeded), // it was not sent
		errors.Is(err, nats.ErrMaxPayload):
		return true
	}
	switch codeOf(err) {
	case jetstream.JSErrCodeStreamMessageExceedsMaximum:
		return true
	case codeStoreFailed: // other servers may have stored it, unless it is this:
		return strings.Contains(err.Error(), "maximum bytes exceeded")
	}
	return false
}

// fenceAfter is how long a message may be under way before Outcome makes sure
// that it is not taken any more.
const fenceAfter = 2 * time.Second

// outcome tells what became of the write of name by op.
func (b *bucket) outcome(ctx context.Context, name string, op tidemark.OpID) (seq uint64, committed bool, err error) {
	id := messageID(op, b.prefix+name)
	for pause := shortestPause; ; {
		is, err := b.current(ctx, name)
		if err != nil {
			return 0, false, err
		}
		d, doubted := b.doubts.find(op)
		switch seq, knows, err := b.recall(ctx, name, id, is, d, doubted); {
		case err != nil || seq != 0:
			return seq, seq != 0, err
		case !knows && d.lost:
			return 0, false, nil
		case !knows:
			return b.remembered(ctx, name, id)
		}
		if doubted && is.seq == d.expected {
			// The message may still arrive, and would be taken.
			if time.Since(d.sent) < fenceAfter {
				return 0, false, nil
			}
			if err := b.rewrite(ctx, name, is); lostRace(err) {
				if b.again(ctx, &pause) {
					continue // somebody was faster: perhaps it itself
				}
				return 0, false, err
			} else if err != nil {
				return 0, false, err
			}
		}
		b.doubts.settle(op)
		return 0, false, nil
	}
}

// recall looks for a write among the messages that the bucket keeps of a key, of
// which the last is given. It returns the write's number; or 0, and whether that
// means that the write was not made.
func (b *bucket) recall(ctx context.Context, name, id string, is stored, d doubt, doubted bool) (seq uint64, knows bool, err error) {
	if is.seq == 0 { // never one, or purged without a mark, or all have expired, the marker too
		creation := !doubted || d.expected == 0
		return 0, creation && (b.markers == 0 || doubted && time.Since(d.sent) < b.markers), nil
	}
	past, err := b.past(ctx, b.prefix+name, 1, all, is.seq)
	if err != nil {
		return 0, false, err
	}
	return find(past, id), b.reachesBack(past, d, doubted), nil
}

// reachesBack reports whether a write that is not among past was not made: past
// goes back to the message in whose place the write would have come, or to the
// beginning of the key, which the first message proves of itself. That there are
// fewer than are kept is no proof: some may have been purged, and the bucket's
// history may have been shorter for a while. That there are as many proves that
// some may be missing, also between two pages; and where some expire, any may be.
func (b *bucket) reachesBack(past []stored, d doubt, doubted bool) bool {
	oldest := past[0]
	if doubted && d.expected >= oldest.seq {
		return true
	}
	return (b.history < 0 || len(past) < b.history) && oldest.first
}

// remembered asks the stream's leader whether it knows the id of a message that
// the bucket no longer has. The question is a message that cannot be taken: of all
// that is wrong with a message its id is looked at first, by one server as by a
// leader of three, and the rollup, which is none, before it is proposed to others.
// An expected last id would be compared only by all servers that were to store it,
// and nats-server 2.15.2 loses its leader for good over one that is wrong.
func (b *bucket) remembered(ctx context.Context, name, id string) (seq uint64, committed bool, err error) {
	m := &nats.Msg{Subject: b.prefix + name, Header: nats.Header{}}
	m.Header.Set(jetstream.MsgIDHeader, id)
	m.Header.Set("Nats-Rollup", "none: a question")
	ack, err := b.publish(ctx, m)
	switch {
	case err == nil && ack.Duplicate:
		return ack.Sequence, true, nil
	case codeOf(err) == codeRollup:
		return 0, false, ErrForgotten
	case err == nil:
		return 0, false, fmt.Errorf("natskv: the server took a message that it must not take, at %d", ack.Sequence)
	default:
		return 0, false, err
	}
}

// rewrite writes the state of a key once more, as it is. What expires has its
// whole time anew.
func (b *bucket) rewrite(ctx context.Context, name string, is stored) error {
	m := &nats.Msg{Subject: b.prefix + name, Data: is.data, Header: nats.Header{}}
	if !is.live() {
		m.Header.Set("KV-Operation", "DEL")
	}
	if is.ttl != "" {
		m.Header.Set(jetstream.MsgTTLHeader, is.ttl)
	}
	_, err := b.publish(ctx, m, jetstream.WithExpectLastSequencePerSubject(is.seq))
	return err
}
