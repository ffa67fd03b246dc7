package integration

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// An intruder may publish on the subjects of the cache, and hears what is said there.
type intruder struct {
	nc *nats.Conn

	mu    sync.Mutex // guards everything below
	heard []*nats.Msg
}

func newIntruder(t *testing.T, nc *nats.Conn) *intruder {
	t.Helper()
	in := &intruder{nc: nc}
	for _, subject := range []string{tidemark.NATSSubject(natsCache), tidemark.NATSLogSubject(natsCache)} {
		_, err := nc.Subscribe(subject, func(m *nats.Msg) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.heard = append(in.heard, m)
			in.heard = in.heard[max(0, len(in.heard)-200):]
		})
		require.NoError(t, err)
	}
	require.NoError(t, nc.Flush())
	return in
}

// say publishes something on one of the subjects, under some message's id or none.
func (in *intruder) say() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.heard) == 0 {
		return nil
	}
	old := in.heard[rand.IntN(len(in.heard))]
	m := &nats.Msg{Subject: old.Subject, Data: slices.Clone(old.Data), Header: nats.Header{}}
	if id := old.Header.Get(jetstream.MsgIDHeader); id != "" && rand.IntN(2) == 0 {
		m.Header.Set(jetstream.MsgIDHeader, id)
	}
	var was wire.Message
	if rand.IntN(4) == 0 || wire.Decode(old.Data, &was) != nil {
		for range 1 + rand.IntN(3) {
			m.Data[rand.IntN(len(m.Data))] ^= byte(rand.IntN(256))
		}
		return in.nc.PublishMsg(m)
	}
	forged := wire.Message{Kind: wire.KindHello, CacheID: was.CacheID, Epoch: was.Epoch, Origin: was.Origin, Seq: was.Seq + uint64(rand.IntN(3))}
	switch rand.IntN(5) {
	case 0:
		forged.Nonce = was.Nonce + uint64(rand.IntN(20))
	case 1:
		forged.Nonce = was.Nonce + uint64(rand.IntN(20))<<28
	case 2:
		forged.Nonce, forged.Seq = math.MaxUint64-uint64(rand.IntN(3)), math.MaxUint64-uint64(rand.IntN(3))
	case 3:
		forged.Kind = wire.KindProbe
		forged.Probes = []wire.Probe{{Origin: was.Origin, Nonce: was.Nonce + 1<<28}}
	default:
		forged.Kind = wire.KindInvalidate
		forged.Entries = []wire.Entry{{Key: []byte("k"), Version: rand.Uint64()}, {Key: []byte("k"), Version: math.MaxUint64}, {Key: []byte("other"), Version: 1}}
	}
	// What the stream would take for the next message of that origin, if ids could be guessed.
	m.Header.Set(jetstream.MsgIDHeader, fmt.Sprintf("%016x-%d", was.Origin, was.Seq+1+uint64(rand.IntN(3))))
	b, err := wire.Append(nil, &forged)
	m.Data = b
	if err != nil {
		return err
	}
	return in.nc.PublishMsg(m)
}

// Somebody says whatever he likes on the subjects, and the link of a replica is slow:
// reads Within a bound keep it, no read returns what the ledger did not hold, and when
// he stops the replicas work as before.
func TestHostile_OnARealServer(t *testing.T) {
	t.Parallel()
	const bound = 400 * time.Millisecond
	l := newLedger()
	s := natsServer(t, streaming(t))
	writer, reader, w := nearAndFar(t, l, s)
	in := newIntruder(t, dial(t, s.ClientURL()))
	l.set("k", 0)
	var acks timeline
	acks.add(1)
	var wg sync.WaitGroup
	var over atomic.Bool
	var said, bounded, served atomic.Int64
	wg.Go(func() {
		for !over.Load() {
			if !assert.NoError(t, in.say()) {
				return
			}
			said.Add(1)
			time.Sleep(rand.N(5 * time.Millisecond))
		}
	})
	wg.Go(func() {
		for !over.Load() {
			acks.add(add(t, writer, "k").Version)
			time.Sleep(rand.N(20 * time.Millisecond))
		}
	})
	for range 2 {
		wg.Go(func() {
			last := tidemark.Version(0)
			for !over.Load() {
				began := time.Now()
				e, err := reader.Read(t.Context(), "k", tidemark.Within(bound))
				if !assert.NoError(t, err) || !assert.GreaterOrEqual(t, e.Version, acks.newest(began.Add(-bound)), "of age %v", e.Age) {
					return
				}
				bounded.Add(1)
				if e, ok := reader.GetEntry("k"); ok {
					served.Add(1)
					// Every write adds one, beginning with 0 at version 1.
					if !assert.EqualValues(t, e.Version-1, e.Value, "the ledger never held that") || !assert.GreaterOrEqual(t, e.Version, last) {
						return
					}
					last = e.Version
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 4 {
		time.Sleep(2 * bound)
		w.stalled.Store(true)
		time.Sleep(bound / 2)
		w.stalled.Store(false)
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d messages of the intruder's, %d reads within %v, %d from memory; the reader refused %d", said.Load(), bounded.Load(), bound, served.Load(), reader.Stats().Bad)
	assert.Positive(t, bounded.Load())
	healed(t, l, writer, reader)
}

// Somebody publishes under the ids of messages to come. The stream must not take his
// for ours: what is acknowledged is heard.
func TestHostile_MessageIDsCannotBeTaken(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s := natsServer(t, streaming(t))
	r := joined(t, l, s, 2, logged)
	l.set("k", 0)
	in := newIntruder(t, dial(t, s.ClientURL()))
	within(t, func() bool { in.mu.Lock(); defer in.mu.Unlock(); return len(in.heard) > 10 }, "nothing is said")
	in.mu.Lock()
	latest, ids := map[uint64]*nats.Msg{}, map[string]bool{}
	for _, m := range in.heard {
		var was wire.Message
		require.NoError(t, wire.Decode(m.Data, &was))
		latest[was.Origin] = m
		id := m.Header.Get(jetstream.MsgIDHeader)
		require.NotEmpty(t, id)
		require.False(t, ids[id], "each has its own")
		ids[id] = true
	}
	in.mu.Unlock()
	js := admin(t, in.nc)
	for origin, m := range latest {
		var was wire.Message
		require.NoError(t, wire.Decode(m.Data, &was))
		for next := was.Seq; next < was.Seq+500; next++ {
			b, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: was.CacheID, Origin: origin, Seq: next, Nonce: 1})
			require.NoError(t, err)
			_, err = js.PublishMsgAsync(&nats.Msg{Subject: m.Subject, Data: b}, jetstream.WithMsgID(fmt.Sprintf("%016x-%d", origin, next)))
			require.NoError(t, err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(patience):
		require.Fail(t, "not published")
	}
	acquainted(t, r...)
	for range 10 {
		holds(t, "k", r...)
		v := add(t, r[0], "k").Version
		within(t, func() bool { e, ok := r[1].GetEntry("k"); return !ok || e.Version >= v }, "an acknowledged write is not heard")
	}
	healed(t, l, r...)
}
