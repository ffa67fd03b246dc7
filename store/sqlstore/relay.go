package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tidemark-go/tidemark"
)

// RelayOptions configures Relay. The zero value of every field is the default
// that its comment gives.
type RelayOptions struct {
	// Batch is how many rows are read and told at a time. Zero means 1000; at most
	// 10,000.
	Batch int

	// Collapse is how many rows may wait in the outbox to be told one by one; when
	// more do, the sink is told that everything may have changed. Zero means
	// 100,000, negative that there is no such number.
	Collapse int64

	// Poll is how often an idle relay looks: how late a change is told at most. Zero
	// means 50ms; the least is 1ms. A look that finds nothing reads one page.
	Poll time.Duration

	// Logger receives what an operator should know. Nil means that nothing is logged.
	Logger *slog.Logger
}

const (
	defaultBatch    = 1000
	maxBatch        = 10_000
	defaultCollapse = 100_000
	defaultPoll     = 50 * time.Millisecond
	minPoll         = time.Millisecond

	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// normal returns o with its defaults filled in, or all its mistakes.
func (o RelayOptions) normal() (RelayOptions, error) {
	var mistakes []error
	wrong := func(field, format string, args ...any) {
		mistakes = append(mistakes, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if o.Batch < 0 || o.Batch > maxBatch {
		wrong("Batch", "is %d, want 0 to %d", o.Batch, maxBatch)
	}
	if o.Poll != 0 && o.Poll < minPoll {
		wrong("Poll", "is %v, want 0 or at least %v", o.Poll, minPoll)
	}
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	if o.Collapse == 0 {
		o.Collapse = defaultCollapse
	}
	if o.Poll == 0 {
		o.Poll = defaultPoll
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, errors.Join(mistakes...)
}

// Relay tells sink what is in the outbox, and deletes what the sink has taken, for
// as long as ctx lives. It returns ctx's error then; before, only if the sink fails
// or the arguments are wrong. When the database fails it tries again.
//
// Every change that was committed while the triggers are there is told at least
// once, whoever dies in between: a row is deleted only when the sink has returned.
// It is told once it can be read, so a load that the sink's caches make then brings
// that state or a later one. One sink hears it: where several processes have a cache
// on one database, the sink is a [tidemark.Publisher], and one process, or two, of
// which each tells a part, call Relay.
//
// A key that the codec cannot read, or a row that says so, is told as a change of
// everything. So are, once a second, triggers that are not there, and once those that
// were made anew: until a relay looks, nobody knows what was not written down. What is
// undone before one looks for the first time is not noticed. On MySQL the account needs
// the privilege TRIGGER to see them. On SQLite any other change of the schema, and
// VACUUM, is taken for one of the triggers.
func (s *Store[K, V]) Relay(ctx context.Context, sink Sink[K], o RelayOptions) error {
	o, err := o.normal()
	switch {
	case s.outboxSchema == nil:
		return errNoOutbox
	case sink == nil:
		err = errors.Join(err, &tidemark.OptionError{Field: "sink", Problem: "is nil"})
	case s.key.Decode == nil:
		err = errors.Join(err, &tidemark.OptionError{Field: "Key", Problem: "has Encode but no Decode, which Relay needs"})
	}
	if err != nil {
		return fmt.Errorf("sqlstore: relay: %w", err)
	}
	r := &relay[K, V]{s: s, sink: sink, o: o}
	for pause := retryMin; ; {
		err := r.watch(ctx)
		whole := false
		if err == nil {
			whole, err = r.pass(ctx)
		}
		var failed sinkError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &failed):
			return fmt.Errorf("sqlstore: relay: %w", failed.error)
		case err != nil:
			o.Logger.Warn("sqlstore: the relay does not work", "err", err)
			if !sleep(ctx, pause) {
				return ctx.Err()
			}
			pause = min(2*pause, retryMax)
		default:
			pause = retryMin
			if whole && !sleep(ctx, o.Poll) {
				return ctx.Err()
			}
		}
	}
}

// sleep waits and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// A relay is one call of Relay.
type relay[K comparable, V any] struct {
	s    *Store[K, V]
	sink Sink[K]
	o    RelayOptions

	watched time.Time // when it last looked at the triggers; zero: not yet
	seen    triggers  // then
}

// A sinkError ends a relay.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// A told is what one look has found.
type told[K comparable] struct {
	ids     []int64
	changed map[K]tidemark.Version // 0: to nobody knows what
	all     bool                   // everything may have changed
}

// pass tells one batch and deletes it. It reports whether that was all there is.
func (r *relay[K, V]) pass(ctx context.Context) (whole bool, err error) {
	t, err := r.look(ctx)
	if err != nil || len(t.ids) == 0 {
		return true, err
	}
	whole = len(t.ids) < r.o.Batch
	if !whole && r.o.Collapse > 0 {
		waiting, err := r.s.waiting(ctx, r.o.Collapse+1)
		if err != nil {
			return false, err
		}
		if waiting > r.o.Collapse {
			return false, r.collapse(ctx)
		}
	}
	if err := r.tell(ctx, t); err != nil {
		return false, sinkError{err}
	}
	return whole, r.s.forget(ctx, t.ids)
}

// look reads one batch.
func (r *relay[K, V]) look(ctx context.Context) (told[K], error) {
	t := told[K]{changed: map[K]tidemark.Version{}}
	rows, err := r.s.db.QueryContext(ctx, r.s.box.look, r.o.Batch)
	if err != nil {
		return t, fmt.Errorf("outbox: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, version int64
		var stored sql.Null[[]byte]
		if err := rows.Scan(&id, &stored, &version); err != nil {
			return t, fmt.Errorf("outbox: %w", err)
		}
		t.ids = append(t.ids, id)
		key, err := r.key(stored)
		if err != nil {
			t.all = true
			continue
		}
		t.add(key, version)
	}
	return t, rows.Err()
}

// errEverything is a row that stands for many.
var errEverything = errors.New("sqlstore: a row of the outbox that stands for many")

func (r *relay[K, V]) key(stored sql.Null[[]byte]) (key K, err error) {
	if !stored.Valid {
		return key, errEverything
	}
	if key, err = r.s.key.Decode(stored.V); err != nil {
		r.o.Logger.Warn("sqlstore: a key of the outbox cannot be read: everything may have changed")
	}
	return key, err
}

// add notes that key has changed. A change to nobody knows what outweighs all of
// its others: whatever the caches have of the key may be wrong.
func (t *told[K]) add(key K, version int64) {
	had, again := t.changed[key]
	switch v := tidemark.Version(max(version, 0)); {
	case !again:
		t.changed[key] = v
	case v == 0 || had == 0:
		t.changed[key] = 0
	default:
		t.changed[key] = max(had, v)
	}
}

// tell tells the sink.
func (r *relay[K, V]) tell(ctx context.Context, t told[K]) error {
	if t.all {
		return r.sink.InvalidateAll(ctx)
	}
	if many, ok := r.sink.(interface {
		InvalidateMany(ctx context.Context, changed map[K]tidemark.Version) error
	}); ok && len(t.changed) > 1 {
		return many.InvalidateMany(ctx, t.changed)
	}
	for key, version := range t.changed {
		if err := r.sink.Invalidate(ctx, key, version); err != nil {
			return err
		}
	}
	return nil
}

// collapse tells that everything may have changed, in place of what was there
// before.
func (r *relay[K, V]) collapse(ctx context.Context) error {
	ids, err := r.s.outboxIDs(ctx, maxCollapsed)
	if err != nil {
		return err
	}
	r.o.Logger.Info("sqlstore: many changes are told as one of everything", "rows", len(ids))
	if err := r.sink.InvalidateAll(ctx); err != nil {
		return sinkError{err}
	}
	return r.s.forget(ctx, ids)
}
