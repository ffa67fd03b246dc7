package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

const (
	samplesPerRound = 100
	patience        = 10 * time.Second // for one sample
)

// A latency is one sample: from the beginning of a call until what it says has
// arrived, and until it returned.
type latency struct{ arrival, call time.Duration }

// A side is one way to tell another process something.
type side struct {
	name string
	goal string // of the median's ratio to the first side
	once func() (latency, error)
}

// raceSides gives the sides turns, each a sample, and prints what they took and
// their ratio to the first.
func raceSides(p *report, sides []side, rounds int) error {
	all := make([][]latency, len(sides))
	arrivals, calls := make([][]float64, len(sides)), make([][]float64, len(sides)) // medians of rounds
	for round := -1; round < rounds; round++ {                                      // one round to warm up
		part := make([][]latency, len(sides))
		for sample := range samplesPerRound {
			for j := range sides {
				i := (round + 1 + sample + j) % len(sides)
				l, err := sides[i].once()
				if err != nil {
					return fmt.Errorf("%s: %w", sides[i].name, err)
				}
				part[i] = append(part[i], l)
			}
		}
		if round < 0 {
			continue
		}
		for i := range sides {
			all[i] = append(all[i], part[i]...)
			arrivals[i] = append(arrivals[i], quantile(micros(part[i], arrival), 0.5))
			calls[i] = append(calls[i], quantile(micros(part[i], call), 0.5))
		}
	}
	for i, s := range sides {
		a, c := micros(all[i], arrival), micros(all[i], call)
		cells := []string{s.name, fmt.Sprintf("%.0f", quantile(a, 0.5)), fmt.Sprintf("%.0f", quantile(a, 0.99)),
			spread(ratios(arrivals[i], arrivals[0])), s.goal,
			fmt.Sprintf("%.2f", quantile(a, 0.99)/quantile(micros(all[0], arrival), 0.99))}
		if c[0] != 0 {
			cells = append(cells, fmt.Sprintf("%.0f", quantile(c, 0.5)), fmt.Sprintf("%.0f", quantile(c, 0.99)),
				spread(ratios(calls[i], calls[0])))
		}
		p.row(cells...)
		p.keep(s.name, "us/arrival", arrivals[i])
	}
	p.end()
	return nil
}

func arrival(l latency) time.Duration { return l.arrival }
func call(l latency) time.Duration    { return l.call }

func micros(all []latency, part func(latency) time.Duration) []float64 {
	v := make([]float64, len(all))
	for i, l := range all {
		v[i] = float64(part(l)) / float64(time.Microsecond)
	}
	return v
}

// A watch lets whoever receives say when something has arrived.
type watch struct{ waiting atomic.Pointer[expected] }

type expected struct {
	key string
	at  chan time.Time
}

// expect begins to wait for key.
func (w *watch) expect(key string) *expected {
	e := &expected{key, make(chan time.Time, 1)}
	w.waiting.Store(e)
	return e
}

// check says that what was waited for has arrived, if it has.
func (w *watch) check(arrived func(key string) bool) {
	if e := w.waiting.Load(); e != nil && arrived(e.key) && w.waiting.CompareAndSwap(e, nil) {
		e.at <- time.Now()
	}
}

// time calls do and returns what it took, and until e has arrived.
func (e *expected) time(do func() error) (latency, error) {
	began := time.Now()
	if err := do(); err != nil {
		return latency{}, err
	}
	returned := time.Since(began)
	select {
	case at := <-e.at:
		return latency{at.Sub(began), returned}, nil
	case <-time.After(patience):
		return latency{}, errors.New("it does not arrive")
	}
}

// bareSide publishes msg from a and waits for the stream's acknowledgement, while
// a consumer at b gets it.
func (r *rig) bareSide(name string, a, b *nats.Conn, stream *bare, msg []byte) (side, error) {
	js, err := jetstream.New(a)
	if err != nil {
		return side{}, err
	}
	c, err := stream.consumer(b, 0)
	if err != nil {
		return side{}, err
	}
	var w watch
	if _, err := c.Consume(func(jetstream.Msg) { w.check(func(string) bool { return true }) }); err != nil {
		return side{}, err
	}
	return side{name, "", func() (latency, error) {
		return w.expect("").time(func() error {
			_, err := js.PublishMsg(context.Background(), &nats.Msg{Subject: stream.subject, Data: msg})
			return err
		})
	}}, nil
}

// invalidation is the message that says that one key of the benchmark's has
// changed.
func invalidation(key string) []byte {
	return encoded(&wire.Message{Kind: wire.KindInvalidate, Seq: 1, Entries: []wire.Entry{{Key: []byte(key), Version: 1}}})
}

func encoded(m *wire.Message) []byte {
	b, err := wire.Append(nil, m)
	if err != nil {
		panic(err)
	}
	return b
}

// A ledger is a Store in memory that remembers versions only. It has every key,
// from version 1 on.
type ledger struct {
	mu   sync.Mutex // guards bump
	bump map[string]tidemark.Version
}

func newLedger() *ledger { return &ledger{bump: map[string]tidemark.Version{}} }

// change raises the version of key, and returns it.
func (l *ledger) change(key string) tidemark.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bump[key]++
	return 1 + l.bump[key]
}

func (l *ledger) Load(_ context.Context, key string) (value, tidemark.Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return value{}, 1 + l.bump[key], nil
}

func (l *ledger) CompareAndSet(_ context.Context, key string, base tidemark.Version, _ value, _ tidemark.OpID) (tidemark.Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := 1 + l.bump[key]; have != base {
		return 0, &tidemark.ConflictError{Current: have}
	}
	l.bump[key]++
	return 1 + l.bump[key], nil
}

func (l *ledger) CompareAndDelete(context.Context, string, tidemark.Version, tidemark.OpID) (tidemark.Version, error) {
	return 0, tidemark.ErrUnavailable
}

func (l *ledger) Outcome(context.Context, string, tidemark.OpID) (tidemark.Version, bool, error) {
	return 0, false, nil
}

// replicas are two caches of one name, a that changes keys and b that is to hear
// of it.
type replicas struct {
	ledger *ledger
	a, b   *tidemark.Cache[string, value]
	seen   watch // at b
}

func (r *rig) newReplicas(name string, hint bool) (*replicas, error) {
	p := &replicas{ledger: newLedger()}
	for _, c := range []**tidemark.Cache[string, value]{&p.a, &p.b} {
		nc, err := r.dial()
		if err != nil {
			return nil, err
		}
		inv := tidemark.NATS(nc, options(name, 0, hint))
		if c == &p.b {
			inv.Log = &tap{Log: inv.Log, applied: func(uint64) { p.seen.check(p.gone) }}
			if inv.Hint != nil {
				inv.Hint = &tapHint{inv.Hint, func() { p.seen.check(p.gone) }}
			}
		}
		*c, err = tidemark.New(tidemark.Options[string, value]{Store: p.ledger, Invalidator: inv})
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := (*c).Ready(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *replicas) close() {
	_ = p.a.Close(context.Background())
	_ = p.b.Close(context.Background())
}

// gone reports whether b serves the key no longer.
func (p *replicas) gone(key string) bool {
	_, ok := p.b.Get(key)
	return !ok
}

// side returns the side on which a does something to a key. b has it in memory
// before.
func (p *replicas) side(name, key string, do func(ctx context.Context, key string) error) side {
	return side{name, "1.5", func() (latency, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := p.a.Load(ctx, key); err != nil {
			return latency{}, err
		}
		if _, err := p.b.Load(ctx, key); err != nil {
			return latency{}, err
		}
		if p.gone(key) {
			return latency{}, errors.New("it is not there to begin with")
		}
		return p.seen.expect(key).time(func() error { return do(ctx, key) })
	}}
}

// sides returns all that a does.
func (p *replicas) sides(suffix string) []side {
	return []side{
		p.side("op=Invalidate/"+suffix, "account:000000000001", func(ctx context.Context, key string) error {
			return p.a.Invalidate(ctx, key, p.ledger.change(key))
		}),
		p.side("op=Update/"+suffix, "account:000000000002", func(ctx context.Context, key string) error {
			_, err := p.a.Update(ctx, key, func(e tidemark.Entry[value]) (value, error) { return e.Value, nil })
			return err
		}),
		p.side("op=CompareAndSet/"+suffix, "account:000000000003", func(ctx context.Context, key string) error {
			e, ok := p.a.GetEntry(key)
			if !ok {
				return errors.New("the entry is gone")
			}
			_, err := p.a.CompareAndSet(ctx, key, e.Version, value{})
			return err
		}),
	}
}

// A tapHint tells when a message was applied.
type tapHint struct {
	tidemark.Hint
	applied func()
}

func (h *tapHint) Subscribe(receive func([]byte), lost func(string)) (stop func(), err error) {
	return h.Hint.Subscribe(func(msg []byte) {
		receive(msg)
		h.applied()
	}, lost)
}

// raceVisible measures from when one replica begins to change a key until another
// one serves it no longer, with and without core NATS beside the log, and until
// the call returns.
func raceVisible(r *rig, p *report, rounds int) error {
	stream, err := r.newBare("bare-visible")
	if err != nil {
		return err
	}
	a, err := r.dial()
	if err != nil {
		return err
	}
	b, err := r.dial()
	if err != nil {
		return err
	}
	base, err := r.bareSide("op=PublishMsg", a, b, stream, invalidation("account:000000000001"))
	if err != nil {
		return err
	}
	sides := []side{base}
	for _, hint := range []bool{false, true} {
		pair, err := r.newReplicas(fmt.Sprintf("visible-%t", hint), hint)
		if err != nil {
			return err
		}
		defer pair.close()
		sides = append(sides, pair.sides(fmt.Sprintf("hint=%t", hint))...)
	}
	p.columns("from a call until it has arrived at another connection", "p50 us", "p99 us", "p50 ratio", "goal", "p99 ratio",
		"returns p50 us", "p99 us", "p50 ratio")
	return raceSides(p, sides, rounds)
}

// raceProbes measures from when a replica sends a probe until it has moved the
// mark that says how old its entries are at most: that is the age of its entries
// then. The other side publishes and consumes on one connection too, and begins
// after as long a pause.
func raceProbes(r *rig, p *report, rounds int) error {
	stream, err := r.newBare("bare-probe")
	if err != nil {
		return err
	}
	both, err := r.dial()
	if err != nil {
		return err
	}
	hello := encoded(&wire.Message{Kind: wire.KindHello, Seq: 1, Nonce: 1})
	base, err := r.bareSide("op=PublishMsg", both, both, stream, hello)
	if err != nil {
		return err
	}
	bareOnce := base.once
	const beat = 5 * time.Millisecond
	base.once = func() (latency, error) {
		time.Sleep(beat / 2)
		l, err := bareOnce()
		return latency{arrival: l.arrival}, err
	}
	nc, err := r.dial()
	if err != nil {
		return err
	}
	const key = "account:000000000001"
	inv := tidemark.NATS(nc, options("probe", beat, false))
	ages := make(chan time.Duration, 1)
	var c atomic.Pointer[tidemark.Cache[string, value]]
	inv.Log = &tap{Log: inv.Log, applied: func(uint64) {
		if cache := c.Load(); cache != nil {
			if e, ok := cache.GetEntry(key); ok {
				select {
				case ages <- e.Age:
				default:
				}
			}
		}
	}}
	cache, err := tidemark.New(tidemark.Options[string, value]{Store: newLedger(), Invalidator: inv})
	if err != nil {
		return err
	}
	defer cache.Close(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cache.Ready(ctx); err != nil {
		return err
	}
	if _, err := cache.Load(ctx, key); err != nil {
		return err
	}
	c.Store(cache)
	probe := side{"op=probe", "1.5", func() (latency, error) {
		select {
		case <-ages: // one of before
		default:
		}
		select {
		case age := <-ages:
			return latency{arrival: age}, nil
		case <-time.After(patience):
			return latency{}, errors.New("no probe comes back")
		}
	}}
	p.columns("round trip through the stream, one connection", "p50 us", "p99 us", "p50 ratio", "goal", "p99 ratio")
	return raceSides(p, []side{base, probe}, rounds)
}
