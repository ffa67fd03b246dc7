package tidemark

import (
	"context"
	"time"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// A Probe is a question of one replica: have I heard of everything that was
// committed before I asked? It travels the way that changes travel, so it is
// answered by coming back.
type Probe struct {
	Origin uint64 // names the replica's process
	Nonce  uint64 // names the question; the later, the larger
}

// A Prober hands a replica's probes to the source, as changes like any other.
// Package store/postgres/outbox has one. It must be safe for concurrent use.
type Prober interface {
	// Probe puts p where the source keeps its changes until they are told to the
	// Log, and returns once it is committed there. Whoever tells them must bring p
	// back, by [Publisher.Answer], only after every change that had been committed
	// before Probe was called is in the Log. A probe may be lost. Probe must return
	// soon after ctx has ended.
	Probe(ctx context.Context, p Probe) error
}

// probeTimeout bounds one call of a Prober.
const probeTimeout = 2 * time.Second

// keepProbing sends a probe through the source every beat.
func (r *member[K, V]) keepProbing() {
	tick := time.NewTicker(r.beat)
	defer tick.Stop()
	failing := false
	for {
		err := r.probe()
		switch {
		case r.c.life.Err() != nil:
			return
		case err != nil && !failing:
			r.c.opts.Logger.Warn("tidemark: cannot probe the source", "err", err)
		case err == nil && failing:
			r.c.opts.Logger.Info("tidemark: probes the source")
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-r.c.life.Done():
			return
		}
	}
}

// probe sends one probe, and contains the Prober's panic.
func (r *member[K, V]) probe() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = r.c.caught(p)
		}
		err = r.c.readable(err)
	}()
	ctx, cancel := context.WithTimeout(r.c.life, probeTimeout)
	defer cancel()
	r.mu.Lock()
	number := r.asked.Send(r.c.moments()) // before it is sent (S61)
	r.mu.Unlock()
	return r.c.opts.Invalidator.Prober.Probe(ctx, Probe{r.out.origin, r.askedSeal.Nonce(number)})
}

// answered takes the probes of one message, of which some may be this replica's.
// The log has read what was told before them, without a hole, and that has been
// applied: so has all that the source had when the probe was sent.
func (r *member[K, V]) answered(e *ear, probes []wire.Probe) {
	if !r.proven(e, probes) {
		r.forged(e)
	}
}

// proven is answered, and reports whether all that pretends to be this replica's is.
func (r *member[K, V]) proven(e *ear, probes []wire.Probe) (own bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !e.log || e.deaf {
		return true
	}
	for _, p := range probes {
		if p.Origin != r.out.origin {
			continue
		}
		number, own := r.askedSeal.Number(p.Nonce)
		if !own {
			return false
		}
		if at, ok := r.asked.Back(number); ok {
			r.c.fresh.Advance(at)
		}
	}
	return true
}

// Answer sends probes back to their replicas. Call it when all that the source had
// committed before the probes were put there has been told: when the calls of
// Invalidate, InvalidateMany or InvalidateAll for that have returned without an
// error. It does not wait: a probe that does not get out is followed by another,
// and of each replica's only the latest is kept.
func (p *Publisher[K]) Answer(probes ...Probe) error {
	if !p.work.enter() {
		return ErrClosed
	}
	defer p.work.leave()
	p.out.echo(probes)
	return nil
}

// maxEchoes is how many probes are in one message: few enough for any server.
const maxEchoes = 64

// echo queues probes to be sent back.
func (o *outbox) echo(probes []Probe) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range probes {
		if _, waits := o.echoes[p.Origin]; waits || len(o.echoes) < maxOrigins {
			o.echoes[p.Origin] = max(o.echoes[p.Origin], p.Nonce)
		}
	}
	o.kick()
}

// takeEchoesLocked moves probes into a message.
func (o *outbox) takeEchoesLocked() *wire.Message {
	m := o.messageLocked(wire.KindProbe)
	m.Flags = wire.FlagIgnorable // who does not know it misses nothing
	for origin, nonce := range o.echoes {
		if len(m.Probes) == maxEchoes {
			break
		}
		m.Probes = append(m.Probes, wire.Probe{Origin: origin, Nonce: nonce})
		delete(o.echoes, origin)
	}
	return m
}
