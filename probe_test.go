package tidemark

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// A prober collects probes until the test, as the relay, answers them.
type prober struct {
	mu     sync.Mutex // guards everything below
	probes []Probe
	calls  int
	fail   func(ctx context.Context) error
}

func (p *prober) Probe(ctx context.Context, probe Probe) error {
	p.mu.Lock()
	p.calls++
	fail := p.fail
	if fail == nil {
		p.probes = append(p.probes, probe)
	}
	p.mu.Unlock()
	if fail != nil {
		return fail(ctx)
	}
	return nil
}

// take returns the probes that were collected.
func (p *prober) take() []Probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	probes := p.probes
	p.probes = nil
	return probes
}

func (p *prober) called() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

// probed returns a replica whose probes go through p, and the publisher that brings
// them back.
func probed(t *testing.T, s *source, log *memLog, p *prober) (*Cache[string, int], *Publisher[string]) {
	t.Helper()
	inv := log.invalidator()
	inv.Prober = p
	c := newCache(t, Options[string, int]{Store: s, Invalidator: inv, MaxCost: small, Shards: 1})
	require.NoError(t, c.Ready(t.Context()))
	relay, err := NewPublisher(PublisherOptions[string]{Invalidator: inv, Resumes: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, relay.Close(context.Background())) })
	return c, relay
}

// What vouches for entries is a probe that went through the source, as of when it
// was sent, and not the replica's own hello: that says nothing of who does not use
// the log.
func TestProber_TheSourceVouches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log, p := newSource(), newMemLog(), &prober{}
		c, relay := probed(t, s, log, p)
		s.set("k", 1)
		hold(t, c, "k")
		time.Sleep(10 * testBeat)
		assert.Negative(t, c.Stats().Fresh, "no probe is back")
		assert.Equal(t, Suspect, c.Stats().State)

		sent := p.take()
		require.NotEmpty(t, sent)
		require.NoError(t, relay.Answer(sent...))
		synctest.Wait()
		age := c.Stats().Fresh
		assert.Equal(t, Fresh, c.Stats().State)
		assert.LessOrEqual(t, age, testBeat, "of the last one")
		time.Sleep(5 * testBeat)
		assert.Equal(t, age+5*testBeat, c.Stats().Fresh, "hellos come back all the while")

		// A change behind everybody's back: until it is told nothing vouches.
		v := s.set("k", 2)
		sent = p.take()
		time.Sleep(testBeat)
		loads := s.loadCount()
		e, err := c.Read(t.Context(), "k", Within(4*testBeat))
		require.NoError(t, err)
		assert.Equal(t, v, e.Version)
		assert.Equal(t, loads+1, s.loadCount(), "the source was asked")
		require.NoError(t, relay.Invalidate(t.Context(), "k", v))
		require.NoError(t, relay.Answer(sent...))
		time.Sleep(testBeat)
		e, err = c.Read(t.Context(), "k", Within(4*testBeat))
		require.NoError(t, err)
		assert.Equal(t, v, e.Version)
		assert.Equal(t, loads+1, s.loadCount(), "memory was enough")
	})
}

// Counting from when a probe is back would count what was committed meanwhile (S61).
func TestProber_AgeCountsFromTheSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, log := &prober{}, newMemLog()
		c, relay := probed(t, newSource(), log, p)
		p.take()
		time.Sleep(testBeat)
		sent := p.take()
		p.mu.Lock()
		p.fail = func(context.Context) error { return errors.New("no connection") }
		p.mu.Unlock()
		time.Sleep(20 * testBeat)
		require.NoError(t, relay.Answer(sent...))
		synctest.Wait()
		assert.GreaterOrEqual(t, c.Stats().Fresh, 20*testBeat)
	})
}

// A probe that was sent before this replica lost its place in the log proves nothing
// after it.
func TestProber_ProbesFromBeforeAGapAreVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, log := &prober{}, newMemLog()
		c, relay := probed(t, newSource(), log, p)
		time.Sleep(testBeat)
		sent := p.take()
		log.fail(ErrGap)
		time.Sleep(10 * testBeat)
		require.NoError(t, c.Ready(t.Context()))
		require.NoError(t, relay.Answer(sent...))
		time.Sleep(testBeat)
		assert.Negative(t, c.Stats().Fresh)
		require.NoError(t, relay.Answer(p.take()...))
		time.Sleep(testBeat)
		assert.GreaterOrEqual(t, c.Stats().Fresh, time.Duration(0))
	})
}

// While the replica does not hear the log, what comes back proves nothing.
func TestProber_NothingIsProvenWhileDeaf(t *testing.T) {
	log, p := newMemLog(), &prober{}
	c, _ := probed(t, newSource(), log, p)
	r := c.replica
	r.mu.Lock()
	r.ear.deaf = true
	nonce := r.askedSeal.Nonce(r.asked.Send(c.moments()))
	r.mu.Unlock()
	r.answered(r.ear, []wire.Probe{{Origin: r.out.origin, Nonce: nonce}})
	assert.Equal(t, time.Duration(-1), c.fresh.Mark().Alone(c.moments()))
	r.mu.Lock()
	r.ear.deaf = false
	nonce = r.askedSeal.Nonce(r.asked.Send(c.moments()))
	r.mu.Unlock()
	r.answered(&ear{name: "hint"}, []wire.Probe{{Origin: r.out.origin, Nonce: nonce}})
	assert.Equal(t, time.Duration(-1), c.fresh.Mark().Alone(c.moments()), "a hint proves nothing")
	r.answered(r.ear, []wire.Probe{{Origin: r.out.origin + 1, Nonce: nonce}})
	assert.Equal(t, time.Duration(-1), c.fresh.Mark().Alone(c.moments()), "another's")
	r.answered(r.ear, []wire.Probe{{Origin: r.out.origin, Nonce: nonce}})
	assert.GreaterOrEqual(t, c.fresh.Mark().Alone(c.moments()), time.Duration(0))
}

// A Prober that fails, panics or hangs costs freshness and nothing else.
func TestProber_ThatFails(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("no connection") },
		"panic": func(context.Context) error { panic("bad prober") },
		"hang":  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, log := &prober{fail: fail}, newMemLog()
				c, relay := probed(t, newSource(), log, p)
				time.Sleep(2*probeTimeout + 2*testBeat)
				assert.Greater(t, p.called(), 1, "it is asked again")
				assert.Negative(t, c.Stats().Fresh)
				p.mu.Lock()
				p.fail = nil
				p.mu.Unlock()
				time.Sleep(probeTimeout + 2*testBeat)
				require.NoError(t, relay.Answer(p.take()...))
				time.Sleep(testBeat)
				assert.GreaterOrEqual(t, c.Stats().Fresh, time.Duration(0))
			})
		})
	}
}

// The death of a publisher that resumes makes nothing suspect: what it has not told
// its successor tells. It says no hellos.
func TestPublisher_ThatResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		s.set("k", 1)
		hold(t, c, "k")
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: log.invalidator(), Resumes: true})
		require.NoError(t, err)
		require.NoError(t, p.Invalidate(t.Context(), "other", 1))
		time.Sleep(10 * testBeat)
		log.mu.Lock()
		for _, msg := range log.msgs {
			var m wire.Message
			require.NoError(t, wire.Decode(msg, &m))
			assert.False(t, m.Kind == wire.KindHello && m.Origin == p.out.origin, "a hello")
		}
		log.mu.Unlock()
		p.out.endLife() // it dies
		time.Sleep(100 * testBeat)
		requireServed(t, c, "k")
		require.ErrorIs(t, p.Close(t.Context()), nil)
		assert.ErrorIs(t, p.Answer(Probe{1, 1}), ErrClosed)
	})
	_, err := NewPublisher(PublisherOptions[string]{Invalidator: newBus().invalidator(), Resumes: true})
	assert.ErrorContains(t, err, "Resumes")
}

// Of each replica the latest probe is sent back, in messages that any server takes,
// and a queue that never empties does not hold them up, nor they the queue.
func TestPublisher_Answer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		log.setRefuse(errors.New("not now"))
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: log.invalidator(), Resumes: true})
		require.NoError(t, err)
		for nonce := range uint64(3) {
			for origin := range uint64(2 * maxOrigins) { // more than there are places for
				require.NoError(t, p.Answer(Probe{origin, 10 - nonce}))
			}
		}
		log.setRefuse(nil)
		require.NoError(t, p.Invalidate(t.Context(), "k", 1))
		time.Sleep(time.Second)
		require.NoError(t, p.Close(t.Context()))
		answered := map[uint64]uint64{}
		for i, msg := range log.msgs {
			var m wire.Message
			require.NoError(t, wire.Decode(msg, &m))
			assert.LessOrEqual(t, len(msg), 2048)
			if m.Kind == wire.KindInvalidate {
				assert.LessOrEqual(t, i, 2, "the queue waits for one message of probes")
			}
			for _, probe := range m.Probes {
				assert.NotZero(t, m.Flags&wire.FlagIgnorable, "older replicas need not know it")
				answered[probe.Origin] = max(answered[probe.Origin], probe.Nonce)
			}
		}
		assert.GreaterOrEqual(t, len(answered), maxOrigins)
		assert.LessOrEqual(t, len(answered), maxOrigins+maxEchoes, "and those of the message that was under way")
		for origin := range uint64(maxOrigins) { // those for which there was a place at once
			require.EqualValues(t, 10, answered[origin], "the latest of %d", origin)
		}
	})
}
