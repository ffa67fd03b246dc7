package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A stored is one message of the stream; the zero stored is none.
type stored struct {
	seq    uint64
	data   []byte
	id     string // of the write that made it, as messageID
	ttl    string // after which it expires; "": never
	marker bool   // it says that the key is absent
	first  bool   // when it was stored the subject had no message
}

// live reports whether s is a value.
func (s stored) live() bool { return s.seq != 0 && !s.marker }

// A request is the body of a direct get. Any server that has the stream answers
// it, however far behind the others (P21).
type request struct {
	Seq       uint64   `json:"seq,omitempty"`
	MultiLast []string `json:"multi_last,omitempty"`
	NextFor   string   `json:"next_by_subj,omitempty"`
	Batch     int      `json:"batch,omitempty"`
	MaxBytes  int      `json:"max_bytes,omitempty"`
}

// pageBytes is how much of an answer the server sends before it wants to be asked
// again. One message more comes with it.
const pageBytes = 4 << 20

// A page is the answer to a request.
type page struct {
	found    []found
	pending  uint64 // there are so many more
	lastSeq  uint64 // of found
	includes uint64 // all messages up to this number have been considered
}

type found struct {
	subject string
	stored
}

var (
	errNotThere = errors.New("natskv: no such message")
	errBehind   = errors.New("natskv: the server is behind")
	errTorn     = errors.New("natskv: part of the answer is missing")
)

// get makes one request and collects its answer. It returns errNotThere if the
// server that answers has nothing, which proves nothing of others.
func (b *bucket) get(ctx context.Context, r request) (page, error) {
	var p page
	body, err := json.Marshal(r)
	if err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	ctx, stop := b.whileUp(ctx)
	defer stop()
	single := r.MultiLast == nil && r.Batch == 0
	inbox, messages, forget, err := b.replies.expect(max(len(r.MultiLast), r.Batch) + 1)
	if err != nil {
		return p, err
	}
	defer forget()
	if err := b.nc.PublishRequest("$JS.API.DIRECT.GET."+b.stream, inbox, body); err != nil {
		return p, err
	}
	for {
		select {
		case m := <-messages:
			over, err := p.take(m, b.stream, single)
			if over || err != nil {
				return p, err
			}
		case <-ctx.Done():
			return p, context.Cause(ctx)
		}
	}
}

// take adds one message of an answer and reports whether it was the last. Each
// names the one before it, so that none can be lost on the way unnoticed.
func (p *page) take(m *nats.Msg, stream string, single bool) (over bool, err error) {
	seq := number(m, jetstream.SequenceHeader) // which no answer has that is no message
	switch status := m.Header.Get("Status"); {
	case seq != 0:
	case status == "204":
		if p.lastSeq != number(m, jetstream.LastSequenceHeader) {
			return false, errTorn
		}
		p.pending, p.includes = number(m, "Nats-Num-Pending"), number(m, "Nats-UpTo-Sequence")
		return true, nil
	case status == "404":
		return true, errNotThere
	case status == "503":
		return true, nats.ErrNoResponders
	default:
		return true, fmt.Errorf("natskv: direct get: %s %s", status, m.Header.Get("Description"))
	}
	switch {
	case header(m, jetstream.StreamHeader) != stream:
		return false, fmt.Errorf("natskv: direct get: answered by %q", header(m, jetstream.StreamHeader)) // a mirror
	case !single && number(m, jetstream.LastSequenceHeader) != p.lastSeq:
		return false, errTorn
	}
	f := found{header(m, jetstream.SubjectHeader), stored{
		seq: seq, data: m.Data, id: m.Header.Get(jetstream.MsgIDHeader), ttl: m.Header.Get(jetstream.MsgTTLHeader),
	}}
	operation := m.Header.Get("KV-Operation")
	f.marker = operation == "DEL" || operation == "PURGE" || m.Header.Get(jetstream.MarkerReasonHeader) != ""
	f.first = m.Header.Get(jetstream.ExpectedLastSubjSeqHeader) == "0" && // its writer said so, and the server compared
		m.Header.Get(jetstream.ExpectedLastSubjSeqSubjHeader) == "" // with no other subject
	p.found, p.lastSeq = append(p.found, f), f.seq
	return single, nil
}

// header returns what the server has set: it adds its own behind what the
// message had when it was stored.
func header(m *nats.Msg, key string) string {
	all := m.Header.Values(key)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

func number(m *nats.Msg, key string) uint64 {
	n, _ := strconv.ParseUint(header(m, key), 10, 64) // 0 is never a message's
	return n
}

// again waits before the next try after err, and reports false if there is no use
// in one. Another server may have an answer, or the same one in a moment.
func (b *bucket) again(ctx context.Context, pause *time.Duration) bool {
	if b.closed() || !sleep(ctx, *pause) {
		return false
	}
	*pause = min(2**pause, longestPause)
	return true
}

// last returns the last message of each subject that has one, as of a moment when
// the stream had message least or later. Among the subjects must be one that has
// a message.
//
// Every server that has the stream may answer, also one that was cut off and
// serves old states for as long as that lasts (P21). What it answers includes all
// messages up to a number that it names; if that is below least it is asked
// again, which is likely to reach another. A page must not be of an earlier moment
// than the one before it: a key that was written in between would be behind the
// one and not yet in the other.
func (b *bucket) last(ctx context.Context, least uint64, subjects []string) (map[string]stored, error) {
	result := make(map[string]stored, len(subjects))
	r := request{MultiLast: subjects, MaxBytes: pageBytes}
	for pause := shortestPause; ; {
		p, err := b.ask(ctx, r)
		if err == nil && p.includes < least {
			err = errBehind
		}
		if err != nil {
			if !b.again(ctx, &pause) {
				return nil, fmt.Errorf("read: %w", err)
			}
			continue
		}
		b.see(p.includes)
		least = max(least, p.includes) // the next page may come from another server
		for _, f := range p.found {
			result[f.subject] = f.stored // of two pages the later has the newer
		}
		if p.pending == 0 {
			return result, nil
		}
		r.Seq = p.lastSeq + 1
	}
}

// at returns the message that has number seq, if the server that answers has it.
func (b *bucket) at(ctx context.Context, seq uint64) (found, error) {
	p, err := b.ask(ctx, request{Seq: seq})
	if err != nil || len(p.found) == 0 {
		return found{}, errors.Join(errNotThere, err)
	}
	return p.found[0], nil
}

// past returns the messages of a subject that are kept, without their values: at
// most so many, beginning with number from, the oldest first. They reach to the
// one of number last, or further, unless most ends them.
func (b *bucket) past(ctx context.Context, subject string, from uint64, most int, last uint64) ([]stored, error) {
	for pause := shortestPause; ; {
		past, err := b.pastOnce(ctx, subject, from, most)
		if err == nil && len(past) < most && (len(past) == 0 || past[len(past)-1].seq < last) {
			err = errBehind
		}
		if err == nil {
			return past, nil
		}
		if !b.again(ctx, &pause) {
			return nil, fmt.Errorf("history: %w", err)
		}
	}
}

// all is more messages than any key has.
const all = math.MaxInt32

// pastOnce is one try of past. Its pages may come from different servers, and
// what one lacks at its end the check of past finds.
func (b *bucket) pastOnce(ctx context.Context, subject string, from uint64, most int) ([]stored, error) {
	var past []stored
	r := request{Seq: from, NextFor: subject, MaxBytes: pageBytes}
	for {
		r.Batch = min(most-len(past), maxChunk)
		p, err := b.ask(ctx, r)
		if err != nil {
			return nil, err
		}
		for _, f := range p.found {
			f.data = nil
			past = append(past, f.stored)
		}
		if p.pending == 0 || len(past) >= most {
			return past, nil
		}
		r.Seq = p.lastSeq + 1
	}
}
