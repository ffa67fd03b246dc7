package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark"
)

// RelayOptions configures a Relay. Config and Invalidator are required; the zero
// value of every other field is the default that its comment gives.
type RelayOptions struct {
	// Config is how to connect to the primary. A relay has one connection, to the
	// server itself: a pooler between them must give it a session of its own.
	Config *pgx.ConnConfig

	// Table is the table whose outbox is told, as it was installed.
	Table Table

	// Invalidator is the one that the caches have, or its equal. It needs a Log.
	Invalidator tidemark.Invalidator

	// SourceEpoch is the epoch of the source, as in [tidemark.Options].
	SourceEpoch uint32

	// EncodeKey returns what the caches' KeyCodec makes of a key, from the text that
	// PostgreSQL makes of the key's column. Nil is enough for caches without a
	// KeyCodec: an integer column is an integer key, bytea the bytes of a string,
	// and any other the text.
	EncodeKey func(text string) ([]byte, error)

	// Batch is how many rows are read and told at a time. Zero means 4096; at most
	// 16,384. A row takes about 200 bytes of memory while it is.
	Batch int

	// Collapse is how many rows may wait in the outbox to be told one by one; when
	// more do, the caches are told that everything may have changed. Zero means
	// 500,000, negative that there is no such number.
	Collapse int64

	// Poll is how often an idle relay looks, beside being woken. Zero means 250ms;
	// the least is 5ms. Without NOTIFY it is how late a change is told.
	Poll time.Duration

	// Lease is how long a relay may be stuck before the server ends its session and
	// another takes over, and half of it is how long the Log may take to acknowledge
	// a batch before that is tried anew. Zero means 10s; the least is 1s.
	Lease time.Duration

	// Logger receives what an operator should know. Nil means that nothing is logged.
	Logger *slog.Logger
}

const (
	defaultBatch    = 4096
	maxBatch        = 1 << 14 // a publisher keeps four times as many
	defaultCollapse = 500_000
	defaultPoll     = 250 * time.Millisecond
	minPoll         = 5 * time.Millisecond
	defaultLease    = 10 * time.Second
	minLease        = time.Second

	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

// normal returns o with its defaults filled in, or all its mistakes.
func (o RelayOptions) normal() (RelayOptions, error) {
	var mistakes []error
	wrong := func(field, format string, args ...any) {
		mistakes = append(mistakes, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	var err error
	if o.Table, err = o.Table.normal(); err != nil {
		mistakes = append(mistakes, err)
	}
	if o.Config == nil {
		wrong("Config", "is not set")
	}
	if o.Batch < 0 || o.Batch > maxBatch {
		wrong("Batch", "is %d, want 0 to %d", o.Batch, maxBatch)
	}
	if o.Poll != 0 && o.Poll < minPoll {
		wrong("Poll", "is %v, want 0 or at least %v", o.Poll, minPoll)
	}
	if o.Lease != 0 && o.Lease < minLease {
		wrong("Lease", "is %v, want 0 or at least %v", o.Lease, minLease)
	}
	o.fill()
	if o.Poll > o.Lease/2 {
		wrong("Poll", "is %v, want at most half of Lease, %v", o.Poll, o.Lease)
	}
	return o, errors.Join(mistakes...)
}

// fill fills in the defaults.
func (o *RelayOptions) fill() {
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	if o.Collapse == 0 {
		o.Collapse = defaultCollapse
	}
	if o.Poll == 0 {
		o.Poll = defaultPoll
	}
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// A Relay tells a cache's log what is in an outbox. Any number of relays may serve
// one outbox; one of them works, the others wait to take over. Make one with
// NewRelay; its methods are safe for concurrent use.
type Relay struct {
	o         RelayOptions
	publisher *tidemark.Publisher[string] // of keys as they travel

	life    context.Context
	endLife context.CancelFunc
	ended   chan struct{} // closed when the goroutine has returned

	mu     sync.Mutex // guards counts
	counts counts
}

// NewRelay returns a Relay, which works until it is closed: it connects, and does so
// again whenever the connection breaks. What keeps it from working is in its log and
// its Stats. It owns two goroutines and one connection. Mistakes in o are reported
// at once, each a [*tidemark.OptionError].
func NewRelay(o RelayOptions) (*Relay, error) {
	o, err := o.normal()
	publisher, mistakes := tidemark.NewPublisher(tidemark.PublisherOptions[string]{
		Invalidator: o.Invalidator, SourceEpoch: o.SourceEpoch, Resumes: true,
	})
	if err := errors.Join(err, mistakes); err != nil {
		if publisher != nil {
			err = errors.Join(err, publisher.Close(context.Background())) // nothing waits in it
		}
		return nil, fmt.Errorf("outbox: %w", err)
	}
	r := &Relay{o: o, publisher: publisher, ended: make(chan struct{})}
	r.life, r.endLife = context.WithCancel(context.Background())
	r.counts.waiting = -1
	go r.run()
	return r, nil
}

// Close ends the relay, and the goroutines and the connection that it owns. What it
// has not told stays in the outbox. The error says that ctx ended first.
func (r *Relay) Close(ctx context.Context) error {
	r.endLife()
	select {
	case <-r.ended:
	case <-ctx.Done():
		return fmt.Errorf("outbox: close: %w", ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := r.publisher.Close(ctx); err != nil && !errors.Is(err, tidemark.ErrNotBroadcast) {
		return fmt.Errorf("outbox: close: %w", err)
	}
	return nil
}

// run is the relay's goroutine.
func (r *Relay) run() {
	defer close(r.ended)
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		worked, err := r.serve()
		r.stopped(err)
		if r.life.Err() != nil {
			return
		}
		if worked {
			pause = retryMin
		}
		r.o.Logger.Warn("outbox: the relay does not work", "table", r.o.Table.Name, "err", err)
		if !r.sleep(pause/2 + rand.N(pause)) { // a hundred of them must not come back together
			return
		}
	}
}

// sleep waits and reports whether the relay is still to work.
func (r *Relay) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.life.Done():
		return false
	}
}

// serve connects, waits until no other relay works, and works until something
// fails. worked says that it has begun to.
func (r *Relay) serve() (worked bool, err error) {
	s, err := r.connect()
	if err != nil {
		return false, err
	}
	defer s.close()
	if err := s.lead(); err != nil {
		return false, err
	}
	r.o.Logger.Info("outbox: the relay leads", "table", r.o.Table.Name)
	for {
		whole, err := s.pass()
		if err != nil {
			return true, err
		}
		if whole {
			if err := s.wait(); err != nil {
				return true, err
			}
		}
	}
}
