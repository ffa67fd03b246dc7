package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark"
)

// # Why nothing is missed
//
// A row is deleted by its id, after the log has acknowledged what it says. So what
// is in the table has not been told, or not surely, and it does not matter when a
// row appears. A place in a sequence, below which all is told, would matter: ids are
// drawn before the commit, and a row with a smaller one may appear later (S35).
//
// There is such a place all the same, the floor, to spare each look all the rows
// that are deleted and not yet vacuumed. It is moved up only to where no row can
// appear any more: to an id that has been told, once every transaction that could
// have drawn a smaller one has ended, at the end of a pass that began after that. A
// row has its transaction's id before it has its own, see migration.sql, so that was
// smaller than the transaction id of the relay's next deletion; and when xmin has
// come that far, it has ended.
//
// That holds while the sequence only goes up. One that was set back and is below the
// floor is noticed; one that has caught up with the floor between two looks is not. So
// once a minute a pass begins at 0, and if it finds something below the floor there is
// none any more.
//
// # Why a probe proves something
//
// Let C be a change that was committed before the probe P was inserted. C's id was
// drawn before its commit, so it is the smaller one; and who sees P sees C. A pass
// goes through the rows by id, from the floor on. It answers only probes that its
// first look has seen: that look has seen C as well, so C is in this page or one
// before, and acknowledged before P is answered. Or it was deleted before, which
// says the same.
//
// With a look at each page that sees more than the one before this would be wrong
// for other probes: C may become visible behind the page that is being told, and P
// in front of it.

// A page is what one look has found.
type page struct {
	ids     []int64
	keys    map[string]tidemark.Version
	probes  []tidemark.Probe
	all     string        // why everything may have changed; "" if it may not
	oldest  time.Duration // for how long the first change has been there
	changes int           // rows that are no probes
	named   int           // keys
	looked  time.Time

	view
}

// A view is what a look says beside the rows.
type view struct {
	xmin     int64  // of its snapshot
	snapshot string // of which all pages of a pass answer probes
	drawn    int64  // the id that was drawn last
	watched  string // what the triggers are
	missing  string // which of them do not fire
}

// passPages is how many pages a pass has at most, so that what appears behind it
// does not wait for long.
const passPages = 64

// sweepEvery is how often a pass begins at 0.
const sweepEvery = time.Minute

// pass tells what is there, in the order of ids. It reports whether that was the
// whole.
func (s *session) pass() (whole bool, err error) {
	first := view{}
	var within *string // the first look's snapshot; nil while that is not over
	start := s.floor
	if time.Since(s.swept) >= sweepEvery {
		start, s.swept = 0, time.Now()
	}
	for from, n := start, 0; n < passPages; n++ {
		p, err := s.look(from, within)
		if err != nil {
			return false, fmt.Errorf("look: %w", err)
		}
		if n == 0 {
			first, within = p.view, &p.snapshot
		}
		if p.drawn < s.floor || len(p.ids) > 0 && p.ids[0] <= s.floor {
			s.floor, s.under = 0, 0 // somebody has set the sequence back
			return false, nil
		}
		if len(p.ids) > 0 {
			from = p.ids[len(p.ids)-1]
		}
		whole = len(p.ids) < s.o.Batch
		behind := int64(0)
		if !whole {
			behind = max(p.drawn-from, 0)
		}
		s.waits(p, s.changes(p)+behind)
		if err := s.tell(p); err != nil {
			return false, err
		}
		s.waits(p, behind)
		if !whole {
			if from, err = s.collapse(p, from); err != nil {
				return false, err
			}
		}
		if whole {
			s.raise(first, from)
			return true, nil
		}
	}
	return false, nil
}

// raise moves the floor at the end of a whole pass, which has told all up to upTo.
// (The xmax of its last snapshot would not do for under: it is one above the latest
// that has ended, and others above that may be under way.)
func (s *session) raise(first view, upTo int64) {
	if s.under != 0 && first.xmin >= s.under {
		s.floor, s.under = s.candidate, 0
	}
	if s.under == 0 && upTo > s.floor {
		s.candidate, s.under = upTo, s.latest
	}
}

// look reads one page, and in the same snapshot what is to be known beside it.
// Of probes it takes those that the snapshot within has seen, or its own if that is
// nil.
func (s *session) look(from int64, within *string) (*page, error) {
	ctx, cancel := s.bounded()
	defer cancel()
	p := &page{looked: time.Now()}
	var b pgx.Batch
	b.Queue(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
	b.Queue(s.query.look).QueryRow(func(row pgx.Row) error {
		return row.Scan(&p.xmin, &p.snapshot, &p.drawn)
	})
	b.Queue(s.query.watch).QueryRow(func(row pgx.Row) error {
		return row.Scan(&p.watched, &p.missing)
	})
	b.Queue(s.query.page, from, within, s.o.Batch).Query(func(rows pgx.Rows) error { return s.read(p, rows) })
	b.Queue(`COMMIT`)
	return p, s.conn.SendBatch(ctx, &b).Close()
}

// read adds rows to p. A key that occurs twice is told once, with the larger
// version, or with none if one of them is not known.
func (s *session) read(p *page, rows pgx.Rows) error {
	defer rows.Close()
	p.keys = map[string]tidemark.Version{}
	for rows.Next() {
		var id, version, nonce int64
		var key *string
		var origin *int64
		var age float64
		if err := rows.Scan(&id, &key, &version, &origin, &nonce, &age); err != nil {
			return err
		}
		p.ids = append(p.ids, id)
		if origin != nil {
			p.probes = append(p.probes, tidemark.Probe{Origin: uint64(*origin), Nonce: uint64(nonce)})
			continue
		}
		if p.changes++; p.changes == 1 {
			p.oldest = time.Duration(age * float64(time.Second))
		}
		if key == nil {
			p.all = "a statement has changed too many rows"
			continue
		}
		wire, err := s.encode(*key)
		if err != nil {
			p.all = "a key cannot be encoded" // nor shown: it may be personal data
			continue
		}
		v := tidemark.Version(max(version, 0))
		if have, seen := p.keys[wire]; seen && (have == 0 || v == 0) {
			v = 0
		} else {
			v = max(have, v)
		}
		p.keys[wire] = v
	}
	p.named = len(p.keys)
	return rows.Err()
}

// changes returns how many changes p says. That the triggers are not what they were
// is one.
func (s *session) changes(p *page) int64 {
	if s.alarming(p) {
		return int64(p.changes) + 1
	}
	return int64(p.changes)
}

// alarming reports whether the triggers are all there and not what they were.
func (s *session) alarming(p *page) bool { return p.missing == "" && p.watched != s.watched }

// tell tells what p says, and then forgets it.
func (s *session) tell(p *page) error {
	if s.alarming(p) {
		p.all = "the triggers are not what they were"
	}
	if err := s.publish(p); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	s.unheard(p.missing)
	if p.missing == "" {
		if err := s.publisher.Answer(p.probes...); err != nil {
			return err
		}
	}
	ctx, cancel := s.bounded()
	defer cancel()
	if s.alarming(p) {
		if _, err := s.conn.Exec(ctx, s.query.seen, p.watched, s.cache()); err != nil {
			return fmt.Errorf("remember the triggers: %w", err)
		}
		s.watched = p.watched
	}
	if len(p.ids) > 0 {
		if err := s.conn.QueryRow(ctx, s.query.forget, p.ids).Scan(&s.latest); err != nil {
			return fmt.Errorf("forget what is told: %w", err)
		}
	}
	s.told(p)
	return nil
}

// messageKeys is how many keys are waited for at a time: those of one message.
const messageKeys = 512

// publish returns when the log has acknowledged what p says. One that it has not
// waits in the publisher, and is told twice when the rows have been read again.
func (s *session) publish(p *page) error {
	if p.all != "" {
		s.o.Logger.Info("outbox: everything may have changed", "table", s.o.Table.Name, "reason", p.all)
		return s.within(s.publisher.InvalidateAll)
	}
	asked := time.Now()
	some := make(map[string]tidemark.Version, min(len(p.keys), messageKeys))
	for key, version := range p.keys {
		some[key] = version
		delete(p.keys, key)
		if len(some) < messageKeys && len(p.keys) > 0 {
			continue
		}
		err := s.within(func(ctx context.Context) error { return s.publisher.InvalidateMany(ctx, some) })
		if err == nil && time.Since(asked) > s.o.Lease/4 { // the log is slow, but this relay is not stuck
			asked = time.Now()
			err = s.within(s.conn.Ping)
		}
		if err != nil {
			return err
		}
		clear(some)
	}
	return nil
}

// within calls f with half a Lease of time.
func (s *session) within(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.life, s.o.Lease/2)
	defer cancel()
	return f(ctx)
}

// tooMany reports whether what waits behind from is more than is told one by one.
func (s *session) tooMany(p *page, from int64) (bool, error) {
	if s.o.Collapse < 0 || p.drawn-from <= s.o.Collapse {
		return false, nil
	}
	// Ids are also drawn by transactions that are rolled back.
	ctx, cancel := s.bounded()
	defer cancel()
	var waiting int64
	err := s.conn.QueryRow(ctx, s.query.count, from, s.o.Collapse+1).Scan(&waiting)
	return waiting > s.o.Collapse, err
}

// collapse tells that everything may have changed in the place of what waits behind
// from, if that is too much, or has just been told. It deletes what the look of p
// has seen, or could have, which was committed before that was told. Of the probes
// among it nobody hears: others follow. It returns how far it came.
func (s *session) collapse(p *page, from int64) (upTo int64, err error) {
	if p.all == "" {
		many, err := s.tooMany(p, from)
		if err != nil || !many {
			return from, err
		}
		if err := s.publish(&page{all: "too many rows wait in the outbox"}); err != nil {
			return from, fmt.Errorf("publish: %w", err)
		}
		s.told(&page{all: "too many rows wait in the outbox"})
	}
	for {
		ctx, cancel := s.bounded()
		var n int64
		err := s.conn.QueryRow(ctx, s.query.collapse, from, p.snapshot, maxBatch).Scan(&n, &upTo, &s.latest)
		cancel()
		if err != nil {
			return from, fmt.Errorf("forget what is told: %w", err)
		}
		s.collapsed(n)
		from = max(from, upTo)
		if n < maxBatch {
			return from, nil
		}
	}
}

// A keyType is how the text of a key's column becomes a key.
type keyType uint8

const (
	textKey keyType = iota
	integerKey
	binaryKey
)

func keyTypeOf(column string) keyType {
	switch column {
	case "smallint", "integer", "bigint":
		return integerKey
	case "bytea":
		return binaryKey
	}
	return textKey
}

// encode returns a key as it travels.
func (s *session) encode(text string) (key string, err error) {
	if s.o.EncodeKey != nil {
		return encodeBy(s.o.EncodeKey, text)
	}
	switch s.key {
	case integerKey:
		n, err := strconv.ParseInt(text, 10, 64)
		return string(binary.LittleEndian.AppendUint64(nil, uint64(n))), err
	case binaryKey:
		b, err := hex.DecodeString(strings.TrimPrefix(text, `\x`))
		return string(b), err
	}
	return text, nil
}

// encodeBy calls an EncodeKey and contains its panic.
func encodeBy(encode func(string) ([]byte, error), text string) (key string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("EncodeKey panicked")
		}
	}()
	b, err := encode(text)
	return string(bytes.Clone(b)), err
}
