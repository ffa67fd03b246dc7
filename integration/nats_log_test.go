package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// Tests named S40 to S60 are the failures of those numbers in the design's
// catalogue; P1 to P30 are its findings about nats.go and nats-server.

// streaming makes a server keep streams, in a folder of the test.
func streaming(t testing.TB) func(*server.Options) {
	dir := t.TempDir()
	return func(o *server.Options) {
		o.JetStream, o.StoreDir = true, dir
		o.JetStreamMaxMemory, o.JetStreamMaxStore = 64<<20, 256<<20
	}
}

// small is the stream of these tests: one server, few bytes.
func small() *tidemark.NATSStream { return &tidemark.NATSStream{Replicas: 1, MaxBytes: 16 << 20} }

// with returns the options of these tests with the stream s.
func with(s *tidemark.NATSStream) tidemark.NATSOptions {
	return tidemark.NATSOptions{Name: natsCache, Beat: natsBeat, Stream: s}
}

// smallLog is the log of these tests on nc.
func smallLog(nc *nats.Conn) tidemark.Log { return tidemark.NATS(nc, with(small())).Log }

// inMemory is small for tests that delete the stream: the server takes its time to
// clear a folder, and refuses to make the stream again meanwhile.
func inMemory() *tidemark.NATSStream {
	s := small()
	s.Memory = true
	return s
}

// letter is message number seq of an origin.
func letter(origin, seq uint64) []byte {
	b, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: 1, Origin: origin, Seq: seq, Nonce: seq})
	if err != nil {
		panic(err)
	}
	return b
}

// soon is a context that lasts as long as patience.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// write appends messages from to to of an origin.
func write(t testing.TB, log tidemark.Log, origin uint64, from, to uint64) {
	t.Helper()
	for i := from; i <= to; i++ {
		_, err := log.Append(soon(t), letter(origin, i))
		require.NoError(t, err)
	}
}

// open opens a reader that the test closes when it ends.
func open(t testing.TB, log tidemark.Log, from uint64) tidemark.LogReader {
	t.Helper()
	r, err := log.Open(soon(t), from)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

// expect reads one message and compares it.
func expect(t testing.TB, r tidemark.LogReader, seq uint64, msg []byte) {
	t.Helper()
	got, b, err := r.Next(soon(t))
	require.NoError(t, err)
	require.Equal(t, seq, got)
	require.Equal(t, msg, b)
}

// fails reads until an error, which must not be the test's loss of patience, and
// must stay.
func fails(t testing.TB, r tidemark.LogReader) error {
	t.Helper()
	ctx := soon(t)
	for {
		_, _, err := r.Next(ctx)
		if err == nil {
			continue
		}
		require.NoError(t, ctx.Err(), "nobody noticed")
		_, _, again := r.Next(ctx)
		require.Equal(t, err, again, "the reader is of use after an error")
		return err
	}
}

// admin does to streams what tidemark never does.
func admin(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

// state returns what the server says of the stream.
func state(t testing.TB, js jetstream.JetStream) *jetstream.StreamInfo {
	t.Helper()
	s, err := js.Stream(soon(t), tidemark.NATSStreamName(natsCache))
	require.NoError(t, err)
	return s.CachedInfo()
}

// alter changes the stream for a moment, until done says so, and back.
func alter(t testing.TB, js jetstream.JetStream, change func(*jetstream.StreamConfig), done func(*jetstream.StreamInfo) bool) {
	t.Helper()
	before := state(t, js).Config
	c := before
	change(&c)
	_, err := js.UpdateStream(soon(t), c)
	require.NoError(t, err)
	within(t, func() bool { return done(state(t, js)) }, "the stream does not change")
	_, err = js.UpdateStream(soon(t), before)
	require.NoError(t, err)
}

// purge takes all but the last n messages away, which DenyPurge does not prevent.
func purge(t testing.TB, js jetstream.JetStream, n int64) {
	t.Helper()
	alter(t, js, func(c *jetstream.StreamConfig) { c.MaxMsgs = n },
		func(i *jetstream.StreamInfo) bool { return i.State.Msgs == uint64(n) })
}

func TestJetStream_OrderAndRepetition(t *testing.T) {
	s := natsServer(t, streaming(t))
	nc := dial(t, s.ClientURL())
	log, other := smallLog(nc), smallLog(dial(t, s.ClientURL()))
	const n = 600 // more than two batches of a reader
	r := open(t, log, 0)
	for i := uint64(1); i <= n; i++ {
		seq, err := log.Append(soon(t), letter(1, i))
		require.NoError(t, err)
		require.Equal(t, i, seq)
	}
	for i := uint64(1); i <= n; i++ {
		expect(t, r, i, letter(1, i))
	}
	for _, i := range []uint64{1, 300, n} { // the same bytes are the same message
		seq, err := log.Append(soon(t), letter(1, i))
		require.NoError(t, err)
		require.Equal(t, i, seq)
	}
	seq, err := other.Append(soon(t), letter(2, 1))
	require.NoError(t, err)
	require.EqualValues(t, n+1, seq, "the first message of another origin is another message")
	expect(t, r, n+1, letter(2, 1))
	require.EqualValues(t, n+1, state(t, admin(t, nc)).State.Msgs)

	late := open(t, other, 590)
	for i := uint64(590); i <= n; i++ {
		expect(t, late, i, letter(1, i))
	}
	_, err = log.Append(soon(t), []byte("noise"))
	require.ErrorIs(t, err, wire.ErrCorrupt, "what has no number cannot be told from its repetition")
}

// TestJetStream_OpenAtTheEnd: what is appended after Open has returned is read,
// and nothing from long before.
func TestJetStream_OpenAtTheEnd(t *testing.T) {
	log := smallLog(dial(t, natsServer(t, streaming(t)).ClientURL()))
	for i := uint64(1); i <= 30; i++ {
		r, err := log.Open(soon(t), 0)
		require.NoError(t, err)
		write(t, log, 1, i, i)
		expect(t, r, i, letter(1, i))
		require.NoError(t, r.Close())
	}
}

// hasty makes nats.go reconnect at once.
func hasty() []nats.Option {
	return []nats.Option{quiet, nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0)}
}

// TestJetStream_Overlap breaks a reader's link. It resumes by asking for the last
// message that it has read.
func TestJetStream_Overlap(t *testing.T) {
	s := natsServer(t, streaming(t))
	c := newCable(t, s)
	nc := dial(t, c.url(), hasty()...)
	far, near := smallLog(nc), smallLog(dial(t, s.ClientURL()))
	write(t, near, 1, 1, 100)
	last := uint64(1)
	for range 10 {
		r := open(t, far, last)
		expect(t, r, last, letter(1, last))
		last++
		expect(t, r, last, letter(1, last))
		// All others have arrived or are about to. What follows them may be
		// lost on the link, even if it is back at once.
		before := nc.Stats().Reconnects
		c.cut()
		within(t, func() bool { return nc.Stats().Reconnects > before && nc.IsConnected() }, "the link does not come back")
		_, _, err := r.Next(soon(t))
		require.Error(t, err, "the reader goes on as if nothing had happened")
		require.NotErrorIs(t, err, tidemark.ErrGap)
	}
	write(t, near, 1, 101, 105)
	r := open(t, far, last)
	for i := last; i <= 105; i++ {
		expect(t, r, i, letter(1, i))
	}
}

// TestS40_LogAnswerLost breaks the link while an answer is on it. nats.go would
// wait for it until the context ends.
func TestS40_LogAnswerLost(t *testing.T) {
	s := natsServer(t, streaming(t))
	for name, ask := range map[string]func(context.Context, tidemark.Log, *nats.Conn) error{
		"append": func(ctx context.Context, log tidemark.Log, _ *nats.Conn) error {
			_, err := log.Append(ctx, letter(1, 4))
			return err
		},
		"open": func(ctx context.Context, log tidemark.Log, _ *nats.Conn) error {
			_, err := log.Open(ctx, 3)
			return err
		},
		"set up": func(ctx context.Context, _ tidemark.Log, nc *nats.Conn) error {
			return tidemark.SetUpNATSStream(ctx, nc, with(small()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCable(t, s)
			nc := dial(t, c.url(), hasty()...)
			log := smallLog(nc)
			write(t, log, 1, 1, 3)
			c.hole.Store(true)
			time.AfterFunc(50*time.Millisecond, func() {
				c.cut()
				c.hole.Store(false)
			})
			ctx := soon(t)
			err := ask(ctx, log, nc)
			require.ErrorContains(t, err, "link broke")
			require.NoError(t, ctx.Err())
			write(t, smallLog(dial(t, s.ClientURL())), 1, 1, 4)
		})
	}
}

// TestS40_LogUnderCuts breaks the links of a writer and of a reader again and
// again. Everything that was acknowledged is read once, in order, and no cut is
// taken for a gap.
func TestS40_LogUnderCuts(t *testing.T) {
	s := natsServer(t, streaming(t))
	c := newCable(t, s)
	from, to := smallLog(dial(t, c.url(), hasty()...)), smallLog(dial(t, c.url(), hasty()...))
	require.NoError(t, tidemark.SetUpNATSStream(soon(t), dial(t, s.ClientURL()), with(small())))
	const n = 2000
	var wg sync.WaitGroup
	cutting, stop := context.WithCancel(t.Context())
	defer wg.Wait()
	defer stop()
	var cuts atomic.Int64
	wg.Go(func() {
		for cutting.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			c.cut()
			cuts.Add(1)
		}
	})
	h := &history{acked: map[uint64][]byte{}}
	wg.Go(func() { h.write(t, from, 1, n) })
	h.read(t, to, n)
	stop()
	wg.Wait()
	h.check(t)
	t.Logf("%d cuts, %d readers, %d attempts for %d messages", cuts.Load(), h.readers, h.attempts, n)
}

// A history is what one origin has appended to an empty stream, and what one
// reader has read.
type history struct {
	acked    map[uint64][]byte // by the log's number
	attempts int

	seen    [][]byte // from number 1 on
	readers int
}

// write appends messages first to last, each until it is acknowledged.
func (h *history) write(t testing.TB, log tidemark.Log, first, last uint64) {
	end := time.Now().Add(2 * patience)
	for i := first; i <= last; {
		msg := letter(1, i)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		seq, err := log.Append(ctx, msg)
		cancel()
		h.attempts++
		if err == nil {
			h.acked[seq] = msg
			i++
		} else if time.Now().After(end) {
			assert.NoError(t, err, "message %d is not appended", i)
			return
		}
	}
}

// read reads until it has message n of the origin, by overlap after each error.
func (h *history) read(t testing.TB, log tidemark.Log, n uint64) {
	end := time.Now().Add(2 * patience)
	for last := letter(1, n); len(h.seen) == 0 || !slices.Equal(h.seen[len(h.seen)-1], last); {
		err := h.follow(t, log, last)
		if len(h.seen) > 0 { // before, the first message may not be there yet
			require.NotErrorIs(t, err, tidemark.ErrGap)
		}
		if err != nil {
			require.True(t, time.Now().Before(end), "read %d messages, then: %v", len(h.seen), err)
			time.Sleep(time.Millisecond)
		}
	}
}

// follow reads with one reader until an error or the last message.
func (h *history) follow(t testing.TB, log tidemark.Log, last []byte) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := log.Open(ctx, uint64(max(1, len(h.seen))))
	if err != nil {
		return err
	}
	defer r.Close()
	h.readers++
	for overlap := len(h.seen) > 0; ; overlap = false {
		seq, msg, err := r.Next(ctx)
		if err != nil {
			return err
		}
		if overlap {
			require.EqualValues(t, len(h.seen), seq)
			require.Equal(t, h.seen[seq-1], msg)
			continue
		}
		h.seen = append(h.seen, slices.Clone(msg))
		require.EqualValues(t, len(h.seen), seq)
		if slices.Equal(msg, last) {
			return nil
		}
	}
}

// check compares what was acknowledged with what was read.
func (h *history) check(t testing.TB) {
	t.Helper()
	require.NotEmpty(t, h.acked)
	for _, seq := range slices.Sorted(maps.Keys(h.acked)) {
		require.LessOrEqual(t, seq, uint64(len(h.seen)), "acknowledged and not read")
		require.Equal(t, h.acked[seq], h.seen[seq-1], "%d: acknowledged, and something else was read", seq)
	}
}

// TestP1_LogPositionGone asks for a message that was purged: the server would begin
// with a later one, without a word.
func TestP1_LogPositionGone(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	write(t, log, 1, 1, 20)
	purge(t, js, 3)
	_, err := log.Open(soon(t), 5)
	require.ErrorIs(t, err, tidemark.ErrGap)
	r := open(t, log, 18)
	for i := uint64(18); i <= 20; i++ {
		expect(t, r, i, letter(1, i))
	}
}

// TestP1_LogPurgedUnderAReader takes messages away that a reader has not got yet.
func TestP1_LogPurgedUnderAReader(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	atEnd := open(t, log, 0)
	write(t, log, 1, 1, 1000)
	r := open(t, log, 1)
	expect(t, r, 1, letter(1, 1)) // and as many as one batch have arrived
	purge(t, js, 1)
	require.ErrorIs(t, fails(t, r), tidemark.ErrGap)
	require.ErrorIs(t, fails(t, atEnd), tidemark.ErrGap, "a reader from the end on has a first message too")
}

// TestS48_LogHole takes one message out of the middle, which a stream of ours does
// not allow.
func TestS48_LogHole(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	c := wanted(t)
	c.DenyDelete = false
	made, err := js.CreateStream(soon(t), c)
	require.NoError(t, err)
	for i := uint64(1); i <= 5; i++ {
		_, err := js.Publish(soon(t), tidemark.NATSLogSubject(natsCache), letter(1, i))
		require.NoError(t, err)
	}
	require.NoError(t, made.DeleteMsg(soon(t), 3))
	c.DenyDelete = true
	_, err = js.UpdateStream(soon(t), c)
	require.NoError(t, err)

	r := open(t, log, 1)
	expect(t, r, 1, letter(1, 1))
	expect(t, r, 2, letter(1, 2))
	require.ErrorIs(t, fails(t, r), tidemark.ErrGap)
	_, err = log.Open(soon(t), 3)
	require.ErrorIs(t, err, tidemark.ErrGap)
}

// TestP2_S49_StreamMadeAnew deletes the stream while a replica is away.
func TestP2_S49_StreamMadeAnew(t *testing.T) {
	t.Parallel()
	for _, now := range []uint64{0, 3, 25} { // messages in the new stream
		t.Run(fmt.Sprint(now, " messages"), func(t *testing.T) {
			nc := dial(t, natsServer(t, streaming(t)).ClientURL())
			log, js := tidemark.NATS(nc, with(inMemory())).Log, admin(t, nc)
			write(t, log, 1, 1, 20)
			r := open(t, log, 20)
			expect(t, r, 20, letter(1, 20))
			require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
			require.NotErrorIs(t, fails(t, r), tidemark.ErrGap, "it may come back with everything")
			require.NoError(t, tidemark.SetUpNATSStream(soon(t), nc, with(inMemory())))
			write(t, log, 2, 1, now)

			if now < 20 { // P2: a server accepts a beginning beyond the end
				_, err := log.Open(soon(t), 20)
				require.ErrorIs(t, err, tidemark.ErrGap)
				return
			}
			r = open(t, log, 20) // somebody else's message has this number now: the caller compares
			seq, msg, err := r.Next(soon(t))
			require.NoError(t, err)
			require.EqualValues(t, 20, seq)
			require.NotEqual(t, letter(1, 20), msg)
			require.Equal(t, letter(2, 20), msg)
		})
	}
}

// TestS49_StreamMadeAnewOtherwise: every Open looks at the stream again.
func TestS49_StreamMadeAnewOtherwise(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := tidemark.NATS(nc, with(inMemory())).Log, admin(t, nc)
	write(t, log, 1, 1, 3)
	require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
	c := wanted(t)
	c.MaxMsgsPerSubject, c.Storage = 1, jetstream.MemoryStorage
	_, err := js.CreateStream(soon(t), c)
	require.NoError(t, err)
	for _, from := range []uint64{0, 3} {
		_, err := log.Open(soon(t), from)
		require.ErrorContains(t, err, "MaxMsgsPerSubject is 1, must be -1")
		require.NotErrorIs(t, err, tidemark.ErrGap)
	}
	_, err = log.Append(soon(t), letter(1, 4))
	require.ErrorContains(t, err, "MaxMsgsPerSubject is 1", "nobody would hear it")
}

// TestS51_StreamGoneUnderAWriter: who only appends makes the stream again.
func TestS51_StreamGoneUnderAWriter(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := tidemark.NATS(nc, with(inMemory())).Log, admin(t, nc)
	write(t, log, 1, 1, 3)
	require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
	before := nc.Stats().OutMsgs
	_, err := log.Append(soon(t), letter(1, 4))
	require.ErrorIs(t, err, jetstream.ErrNoStreamResponse)
	require.EqualValues(t, 1, nc.Stats().OutMsgs-before, "one attempt for each call")
	seq, err := log.Append(soon(t), letter(1, 4)) // as the outbox does
	require.NoError(t, err)
	require.EqualValues(t, 1, seq)
}

// TestS56_LogSubjectTaken: another stream has taken the subject, and would
// acknowledge what no reader of ours sees.
func TestS56_LogSubjectTaken(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := tidemark.NATS(nc, with(inMemory())).Log, admin(t, nc)
	write(t, log, 1, 1, 3)
	require.NoError(t, js.DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
	_, err := js.CreateStream(soon(t), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"tidemark.>"}})
	require.NoError(t, err)
	for range 2 {
		_, err = log.Append(soon(t), letter(1, 4))
		require.Error(t, err)
		_, err = log.Open(soon(t), 3)
		require.Error(t, err)
	}
	require.ErrorContains(t, err, "overlap", "and the operator learns why")
}

// TestP25_S49_MemoryStreamAfterARestart: the messages are gone, and the stream is
// there as if nothing had happened.
func TestP25_S49_MemoryStreamAfterARestart(t *testing.T) {
	testRestart(t, inMemory(), func(log tidemark.Log) {
		_, err := log.Open(soon(t), 3)
		require.ErrorIs(t, err, tidemark.ErrGap)
		write(t, log, 1, 6, 6)
	})
}

func TestJetStream_FileStreamAfterARestart(t *testing.T) {
	testRestart(t, small(), func(log tidemark.Log) {
		seq, err := log.Append(soon(t), letter(1, 5))
		require.NoError(t, err)
		require.EqualValues(t, 5, seq, "still known as a repetition")
		write(t, log, 1, 6, 6)
		r := open(t, log, 3)
		for i := uint64(3); i <= 6; i++ {
			expect(t, r, i, letter(1, i))
		}
	})
}

// testRestart restarts the only server of a stream with five messages under a
// reader that has read three.
func testRestart(t *testing.T, stream *tidemark.NATSStream, after func(tidemark.Log)) {
	folder := streaming(t)
	s := natsServer(t, folder)
	port := s.Addr().(*net.TCPAddr).Port
	nc := dial(t, s.ClientURL())
	log := tidemark.NATS(nc, with(stream)).Log
	write(t, log, 1, 1, 5)
	r := open(t, log, 1)
	for i := uint64(1); i <= 3; i++ {
		expect(t, r, i, letter(1, i))
	}
	s.Shutdown()
	s.WaitForShutdown()
	require.NotErrorIs(t, fails(t, r), tidemark.ErrGap)
	_, err := log.Append(t.Context(), letter(1, 6)) // ends although the context does not
	require.Error(t, err)
	_, err = log.Open(t.Context(), 3)
	require.Error(t, err)
	require.NotErrorIs(t, err, tidemark.ErrGap, "a server that does not answer says nothing of the log")

	natsServer(t, func(o *server.Options) { folder(o); o.Port = port })
	within(t, nc.IsConnected, "the link does not come back")
	within(t, func() bool { return tidemark.SetUpNATSStream(soon(t), nc, with(stream)) == nil }, "the stream does not come back")
	after(log)
}

// TestJetStream_PositionExpired is away for longer than MaxAge.
func TestJetStream_PositionExpired(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	write(t, log, 1, 1, 5)
	alter(t, js, func(c *jetstream.StreamConfig) { c.MaxAge, c.Duplicates = 100*time.Millisecond, 100*time.Millisecond },
		func(i *jetstream.StreamInfo) bool { return i.State.Msgs == 0 })
	_, err := log.Open(soon(t), 5)
	require.ErrorIs(t, err, tidemark.ErrGap, "nothing is left")
	write(t, log, 1, 6, 8)
	_, err = log.Open(soon(t), 5)
	require.ErrorIs(t, err, tidemark.ErrGap, "only later ones are left")
	r := open(t, log, 6)
	expect(t, r, 6, letter(1, 6))
}

// TestJetStream_AQuietLogIsNoFailure: nobody appends anything for longer than a
// reader waits for what the stream has.
func TestJetStream_AQuietLogIsNoFailure(t *testing.T) {
	t.Parallel()
	log := smallLog(dial(t, natsServer(t, streaming(t)).ClientURL()))
	write(t, log, 1, 1, 3)
	within(t, func() bool {
		r := open(t, log, 3)
		expect(t, r, 3, letter(1, 3))
		silence, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, _, err := r.Next(silence)
		require.NotContains(t, err.Error(), "delivers nothing")
		return errors.Is(err, context.DeadlineExceeded) // on a busy machine heartbeats may come late
	}, "the reader is made again and again")
}

// TestS51_LogConsumerDeleted ends what a reader reads through.
func TestS51_LogConsumerDeleted(t *testing.T) {
	for name, waiting := range map[string]bool{"while it waits": true, "before it asks": false} {
		t.Run(name, func(t *testing.T) {
			nc := dial(t, natsServer(t, streaming(t)).ClientURL())
			log, js := smallLog(nc), admin(t, nc)
			write(t, log, 1, 1, 3)
			r := open(t, log, 0)
			var wg sync.WaitGroup
			defer wg.Wait()
			if waiting {
				wg.Go(func() {
					time.Sleep(50 * time.Millisecond)
					deleteConsumers(t, js)
				})
			} else {
				deleteConsumers(t, js)
			}
			began := time.Now()
			err := fails(t, r)
			require.NotErrorIs(t, err, tidemark.ErrGap)
			t.Logf("noticed after %v: %v", time.Since(began), err)
			r = open(t, log, 3)
			expect(t, r, 3, letter(1, 3))
		})
	}
}

func deleteConsumers(t testing.TB, js jetstream.JetStream) {
	name := tidemark.NATSStreamName(natsCache)
	for _, c := range consumers(t, js) {
		assert.NoError(t, js.DeleteConsumer(soon(t), name, c))
	}
}

// consumers returns the names of the stream's consumers.
func consumers(t testing.TB, js jetstream.JetStream) (names []string) {
	t.Helper()
	s, err := js.Stream(soon(t), tidemark.NATSStreamName(natsCache))
	require.NoError(t, err)
	for name := range s.ConsumerNames(soon(t)).Name() {
		names = append(names, name)
	}
	return names
}

// TestS43_LogOnAHalfOpenLink swallows everything in both directions while nats.go
// calls the connection CONNECTED.
func TestS43_LogOnAHalfOpenLink(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	c := newCable(t, s)
	nc := dial(t, c.url(), nats.PingInterval(time.Minute))
	log := smallLog(nc)
	write(t, log, 1, 1, 3)
	r := open(t, log, 3)
	expect(t, r, 3, letter(1, 3))
	c.hole.Store(true)
	began := time.Now()
	require.NotErrorIs(t, fails(t, r), tidemark.ErrGap)
	t.Logf("noticed after %v", time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second, "that of nats.go itself is 10s")
	require.True(t, nc.IsConnected())

	began = time.Now()
	_, err := log.Append(t.Context(), letter(1, 4))
	require.ErrorIs(t, err, context.DeadlineExceeded, "an attempt ends although its context does not")
	require.Less(t, time.Since(began), 4*time.Second, "that of nats.go itself is 5s")
	ctx := soon(t)
	_, err = log.Open(ctx, 3)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, tidemark.ErrGap)
	require.NoError(t, ctx.Err())
	began = time.Now()
	require.NoError(t, r.Close())
	require.Less(t, time.Since(began), 4*time.Second, "Close waits for a server that does not answer")
}

func TestJetStream_ConnectionClosed(t *testing.T) {
	s := natsServer(t, streaming(t))
	for name, waiting := range map[string]bool{"while it waits": true, "before": false} {
		t.Run(name, func(t *testing.T) {
			nc := dial(t, s.ClientURL())
			log := smallLog(nc)
			write(t, log, 1, 1, 3)
			r := open(t, log, 0)
			if waiting {
				time.AfterFunc(50*time.Millisecond, nc.Close)
			} else {
				nc.Close()
			}
			require.ErrorIs(t, fails(t, r), nats.ErrConnectionClosed)
			_, err := log.Append(soon(t), letter(1, 4))
			require.ErrorIs(t, err, nats.ErrConnectionClosed)
			_, err = log.Open(soon(t), 3)
			require.ErrorIs(t, err, nats.ErrConnectionClosed)
			require.NoError(t, r.Close())
		})
	}
}

func TestJetStream_ContextEnds(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log := smallLog(nc)
	write(t, log, 1, 1, 3)
	r := open(t, log, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := r.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	write(t, log, 1, 4, 4)
	_, _, again := r.Next(soon(t))
	require.Equal(t, err, again, "the reader is of use after an error")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = log.Append(ended, letter(1, 5))
	require.ErrorIs(t, err, context.Canceled)
	_, err = log.Open(ended, 0)
	require.ErrorIs(t, err, context.Canceled)

	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond) // sooner than Open gives up
	defer cancel()
	_, err = log.Open(ctx, 1000)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, tidemark.ErrGap, "nobody has waited long enough to know")
}

// TestJetStream_CloseLeavesNothingBehind looks for goroutines, subscriptions and
// consumers, also after readers that could not be opened.
func TestJetStream_CloseLeavesNothingBehind(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	write(t, log, 1, 1, 300)
	subscriptions := nc.NumSubscriptions()
	for i := range 5 {
		r, err := log.Open(soon(t), uint64(i%2)) // with messages that nobody has taken, or waiting
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() {
			for {
				if _, _, err := r.Next(context.Background()); err != nil {
					ended <- err
					return
				}
			}
		}()
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { assert.NoError(t, r.Close()) })
		}
		wg.Wait()
		select {
		case err := <-ended:
			require.NotErrorIs(t, err, tidemark.ErrGap)
			require.ErrorContains(t, err, "closed")
		case <-time.After(patience):
			require.FailNow(t, "a running Next does not return")
		}
		_, _, err = r.Next(soon(t))
		require.ErrorContains(t, err, "closed")
	}
	_, err := log.Open(soon(t), 1000)
	require.ErrorIs(t, err, tidemark.ErrGap)

	require.Empty(t, consumers(t, js))
	within(t, func() bool { return nc.NumSubscriptions() == subscriptions }, "%d subscriptions, want %d", nc.NumSubscriptions(), subscriptions)
	noGoroutines(t)
}

// TestJetStream_AReaderThatIsSlow is sent no more than it can hold until it reads
// on, gets all, and can be closed while more wants in.
func TestJetStream_AReaderThatIsSlow(t *testing.T) {
	const messages, held = 3000, 3 * 256 // taken, in the inbox, on the way
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := tidemark.NATS(nc, with(inMemory())).Log, admin(t, nc)
	publishMany(t, js, messages)
	read, left := open(t, log, 1), open(t, log, 1)
	for _, name := range consumers(t, js) {
		delivered := deliveredTo(t, js, name)
		within(t, func() bool { return delivered() >= 256 }, "nothing is sent ahead")
		time.Sleep(300 * time.Millisecond) // in which the rest would come
		require.LessOrEqual(t, delivered(), uint64(held), "more is sent than there is room for")
	}
	for i := uint64(1); i <= messages; i++ {
		expect(t, read, i, letter(1, i))
	}
	require.NoError(t, left.Close())
	require.NoError(t, read.Close())
	noGoroutines(t)
}

// TestJetStream_AReaderThatIsCutAndNotRead: nats.go would ask for 256 more each
// time that the link is back.
func TestJetStream_AReaderThatIsCutAndNotRead(t *testing.T) {
	s := natsServer(t, streaming(t))
	js := admin(t, dial(t, s.ClientURL()))
	publishMany(t, js, 8000)
	c := newCable(t, s)
	nc := dial(t, c.url(), hasty()...)
	r := open(t, tidemark.NATS(nc, with(inMemory())).Log, 1)
	delivered := deliveredBy(t, js)
	within(t, func() bool { return delivered() >= 512 }, "nothing is sent ahead")
	time.Sleep(300 * time.Millisecond) // until the inbox is full
	for range 8 {                      // all of them before nats.go misses a heartbeat
		before := nc.Stats().Reconnects
		c.cut()
		within(t, func() bool { return nc.Stats().Reconnects > before && nc.IsConnected() }, "the link does not come back")
		time.Sleep(20 * time.Millisecond) // in which nats.go would ask
	}
	time.Sleep(200 * time.Millisecond)
	require.LessOrEqual(t, delivered(), uint64(heldAtMost), "it is sent more and more")
	require.ErrorContains(t, fails(t, r), "the connection is")
	require.NoError(t, r.Close())
	noGoroutines(t)
}

// TestJetStream_AReaderThatIsStalledAndNotRead: nats.go would ask for 256 more
// for every second without a heartbeat, and be sent all that when the link bears
// again.
func TestJetStream_AReaderThatIsStalledAndNotRead(t *testing.T) {
	s := natsServer(t, streaming(t))
	js := admin(t, dial(t, s.ClientURL()))
	publishMany(t, js, 1)
	c := newCable(t, s)
	nc := dial(t, c.url(), quiet, nats.PingInterval(time.Minute))
	r := open(t, tidemark.NATS(nc, with(inMemory())).Log, 1)
	delivered := deliveredBy(t, js)
	c.stalled.Store(true)
	publishMany(t, js, 8000)
	time.Sleep(6 * time.Second)
	c.stalled.Store(false)
	time.Sleep(500 * time.Millisecond)
	require.LessOrEqual(t, delivered(), uint64(heldAtMost), "it is sent more and more")
	require.Zero(t, nc.Stats().Reconnects)
	require.NoError(t, r.Close())
	noGoroutines(t)
}

// heldAtMost is taken, in the inbox, on the way, and asked for when there was
// trouble.
const heldAtMost = 4 * 256

// publishMany makes a stream in memory, unless it is there, and fills it.
func publishMany(t testing.TB, js jetstream.JetStream, n uint64) {
	t.Helper()
	require.NoError(t, tidemark.SetUpNATSStream(soon(t), js.Conn(), with(inMemory())))
	for i := range n {
		_, err := js.PublishAsync(tidemark.NATSLogSubject(natsCache), letter(1, i+1))
		require.NoError(t, err)
	}
	<-js.PublishAsyncComplete()
}

// deliveredBy tells what the stream's only consumer has sent.
func deliveredBy(t testing.TB, js jetstream.JetStream) func() uint64 {
	t.Helper()
	names := consumers(t, js)
	require.Len(t, names, 1)
	return deliveredTo(t, js, names[0])
}

// deliveredTo tells what a consumer has sent.
func deliveredTo(t testing.TB, js jetstream.JetStream, consumer string) func() uint64 {
	return func() uint64 {
		t.Helper()
		c, err := js.Consumer(soon(t), tidemark.NATSStreamName(natsCache), consumer)
		require.NoError(t, err)
		return c.CachedInfo().Delivered.Consumer
	}
}

// A slowContext takes its time, once, while a reader is about to wait for it.
type slowContext struct {
	context.Context
	once   *sync.Once
	during func()
}

func (c slowContext) Done() <-chan struct{} {
	c.once.Do(c.during)
	return c.Context.Done()
}

// TestJetStream_ACutIsNoGap: the link breaks with a message on it, is back and
// brings the next one, all between two steps of a reader.
func TestJetStream_ACutIsNoGap(t *testing.T) {
	s := natsServer(t, streaming(t))
	near := smallLog(dial(t, s.ClientURL()))
	c := newCable(t, s)
	nc := dial(t, c.url(), hasty()...)
	far := smallLog(nc)
	for last := uint64(1); last < 40; last += 3 { // what it sees first is a matter of luck
		write(t, near, 1, last, last)
		r := open(t, far, last)
		expect(t, r, last, letter(1, last))
		ctx := slowContext{soon(t), new(sync.Once), func() {
			c.deaf.Store(true)
			write(t, near, 1, last+1, last+1)
			time.Sleep(20 * time.Millisecond)
			before := nc.Stats().Reconnects
			c.mend()
			within(t, func() bool { return nc.Stats().Reconnects > before && nc.IsConnected() }, "the link does not come back")
			time.Sleep(20 * time.Millisecond) // in which nats.go asks anew
			write(t, near, 1, last+2, last+2)
			time.Sleep(20 * time.Millisecond)
		}}
		_, _, err := r.Next(ctx)
		require.ErrorContains(t, err, "the connection is")
		require.NotErrorIs(t, err, tidemark.ErrGap, "the stream has everything")
		require.NoError(t, r.Close())
		r = open(t, far, last)
		for i := last; i <= last+2; i++ {
			expect(t, r, i, letter(1, i))
		}
	}
}

// noGoroutines waits until neither we nor the reading half of nats.go have one.
func noGoroutines(t testing.TB) {
	t.Helper()
	within(t, func() bool {
		all := make([]byte, 1<<20)
		stacks := string(all[:runtime.Stack(all, true)])
		return !strings.Contains(stacks, "tidemark.(*") && !strings.Contains(stacks, "jetstream.(*pull")
	}, "a goroutine is left")
}

// TestJetStream_Consumer looks at what a reader reads through: it costs the
// servers little, acknowledges nothing, and goes if its client does.
func TestJetStream_Consumer(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	log, js := smallLog(nc), admin(t, nc)
	write(t, log, 1, 1, 5)
	for from, policy := range map[uint64]jetstream.DeliverPolicy{0: jetstream.DeliverNewPolicy, 3: jetstream.DeliverByStartSequencePolicy} {
		r, err := log.Open(soon(t), from)
		require.NoError(t, err)
		names := consumers(t, js)
		require.Len(t, names, 1)
		c, err := js.Consumer(soon(t), tidemark.NATSStreamName(natsCache), names[0])
		require.NoError(t, err)
		is := c.CachedInfo().Config
		assert.Empty(t, is.Durable)
		assert.Equal(t, policy, is.DeliverPolicy)
		assert.Equal(t, from, is.OptStartSeq)
		assert.Equal(t, jetstream.AckNonePolicy, is.AckPolicy)
		assert.True(t, is.MemoryStorage)
		assert.Equal(t, 1, is.Replicas)
		assert.Equal(t, 30*time.Second, is.InactiveThreshold)
		assert.Empty(t, is.FilterSubject)
		assert.Empty(t, is.FilterSubjects)
		require.NoError(t, r.Close())
	}
}

// TestJetStream_MessageTooLarge: the caller can say less only if it knows why.
func TestJetStream_MessageTooLarge(t *testing.T) {
	big := func(size int) []byte {
		m := &wire.Message{Kind: wire.KindInvalidate, Origin: 1, Seq: 1}
		for ; size > 0; size -= 16 << 10 {
			m.Entries = append(m.Entries, wire.Entry{Key: make([]byte, min(size, 16<<10)), Version: 1})
		}
		b, err := wire.Append(nil, m)
		require.NoError(t, err)
		return b
	}
	t.Run("for the server", func(t *testing.T) {
		folder := streaming(t)
		s := natsServer(t, func(o *server.Options) { folder(o); o.MaxPayload = 8 << 10 })
		log := smallLog(dial(t, s.ClientURL()))
		for _, size := range []int{8<<10 - 100, 8 << 10, 60 << 10} { // the first only with its header
			_, err := log.Append(soon(t), big(size))
			require.ErrorIs(t, err, tidemark.ErrMessageSize)
		}
		write(t, log, 1, 1, 1)
	})
	t.Run("for the stream", func(t *testing.T) {
		nc := dial(t, natsServer(t, streaming(t)).ClientURL())
		c := wanted(t)
		c.MaxMsgSize = 65 << 10
		_, err := admin(t, nc).CreateStream(soon(t), c)
		require.NoError(t, err)
		log := smallLog(nc)
		_, err = log.Append(soon(t), big(100<<10))
		require.ErrorIs(t, err, tidemark.ErrMessageSize)
		_, err = log.Append(soon(t), big(64<<10-200))
		require.NoError(t, err, "what every transport must take")
	})
}

// wanted is a stream as small asks for it, made by SetUpNATSStream on another
// server.
func wanted(t testing.TB) jetstream.StreamConfig {
	t.Helper()
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	require.NoError(t, tidemark.SetUpNATSStream(soon(t), nc, with(small())))
	c := state(t, admin(t, nc)).Config
	c.Metadata = nil
	return c
}

func TestJetStream_WhatIsCreated(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	require.NoError(t, tidemark.SetUpNATSStream(t.Context(), nc, with(&tidemark.NATSStream{
		Replicas: 1, Memory: true, MaxAge: 30 * time.Second, MaxBytes: 2 << 20,
	})))
	c := state(t, admin(t, nc)).Config
	assert.Equal(t, []string{"tidemark.v1.accounts.log"}, c.Subjects)
	assert.Equal(t, jetstream.MemoryStorage, c.Storage)
	assert.Equal(t, 30*time.Second, c.MaxAge)
	assert.Equal(t, 30*time.Second, c.Duplicates, "the server takes no more")
	assert.EqualValues(t, 2<<20, c.MaxBytes)
	assert.True(t, c.DenyDelete)
	assert.True(t, c.DenyPurge)

	c = wanted(t)
	assert.Equal(t, jetstream.FileStorage, c.Storage)
	assert.Equal(t, time.Hour, c.MaxAge)
	assert.Equal(t, 2*time.Minute, c.Duplicates)
	assert.Equal(t, jetstream.LimitsPolicy, c.Retention)
	assert.Equal(t, jetstream.DiscardOld, c.Discard)

	err := tidemark.SetUpNATSStream(soon(t), dial(t, natsServer(t, streaming(t)).ClientURL()), with(&tidemark.NATSStream{}))
	require.ErrorContains(t, err, "replicas", "the default is 3, which takes a cluster")
}

// TestP1_P15_StreamConfiguredOtherwise refuses every stream whose numbers would
// not prove anything, or that is less than was asked for.
func TestP1_P15_StreamConfiguredOtherwise(t *testing.T) {
	type config = jetstream.StreamConfig
	const breaks, weakens = "it cannot be a log", "it is less than was asked for"
	tests := []struct {
		class  string
		change func(*config)
		names  []string // every field of the error
	}{
		{breaks, func(c *config) { c.Subjects = append(c.Subjects, "elsewhere") }, []string{"Subjects is [tidemark.v1.accounts.log elsewhere]"}},
		{breaks, func(c *config) { c.Subjects = []string{"tidemark.v1.*.log"} }, []string{"Subjects is [tidemark.v1.*.log]"}},
		{breaks, func(c *config) { c.Retention = jetstream.InterestPolicy }, []string{"Retention is Interest"}},
		{breaks, func(c *config) { c.MaxMsgsPerSubject = 1 }, []string{"MaxMsgsPerSubject is 1"}},
		{breaks, func(c *config) { c.DenyDelete = false }, []string{"DenyDelete is false"}},
		{breaks, func(c *config) { c.DenyPurge = false }, []string{"DenyPurge is false"}},
		{breaks, func(c *config) { c.AllowRollup, c.DenyPurge = true, false }, []string{"DenyPurge is false", "AllowRollup is true"}},
		{breaks, func(c *config) { c.AllowMsgTTL = true }, []string{"AllowMsgTTL is true"}},
		{breaks, func(c *config) { c.SubjectDeleteMarkerTTL = time.Minute },
			[]string{"DenyPurge is", "AllowRollup is", "AllowMsgTTL is", "SubjectDeleteMarkerTTL is 1m0s"}},
		{breaks, func(c *config) { c.AllowMsgSchedules = true }, []string{"DenyPurge is", "AllowRollup is", "AllowMsgSchedules is true"}},
		{breaks, func(c *config) { c.AllowMsgCounter = true }, []string{"AllowMsgCounter is true"}},
		{breaks, func(c *config) { c.NoAck = true }, []string{"NoAck is true"}},
		{breaks, func(c *config) { c.Mirror, c.Subjects = &jetstream.StreamSource{Name: "OTHER"}, nil }, []string{"Subjects is", "Mirror is true", "Duplicates is 0s"}},
		{breaks, func(c *config) { c.Sources = []*jetstream.StreamSource{{Name: "OTHER"}} }, []string{"Sources is 1"}},
		{breaks, func(c *config) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: ">", Destination: "other.>"}
		}, []string{"SubjectTransform is true"}},
		{weakens, func(c *config) { c.Storage = jetstream.MemoryStorage }, []string{"Storage is Memory, must be File"}},
		{weakens, func(c *config) { c.PersistMode = jetstream.AsyncPersistMode }, []string{"PersistMode is"}},
		{weakens, func(c *config) { c.Discard = jetstream.DiscardNew }, []string{"Discard is DiscardNew"}},
		{weakens, func(c *config) { c.MaxMsgs = 100 }, []string{"MaxMsgs is 100"}},
		{weakens, func(c *config) { c.MaxAge = 59 * time.Minute }, []string{"MaxAge is 59m0s, must be at least 1h0m0s"}},
		{weakens, func(c *config) { c.MaxBytes = 1 << 20 }, []string{"MaxBytes is 1048576, must be at least 16777216"}},
		{weakens, func(c *config) { c.MaxMsgSize = 64 << 10 }, []string{"MaxMsgSize is 65536"}},
		{weakens, func(c *config) { c.MaxConsumers = 3 }, []string{"MaxConsumers is 3"}},
		{weakens, func(c *config) { c.ConsumerLimits.InactiveThreshold = time.Second }, []string{"ConsumerLimits.InactiveThreshold is 1s"}},
		{weakens, func(c *config) { c.Duplicates = time.Minute }, []string{"Duplicates is 1m0s"}},
		{weakens, func(c *config) { c.RePublish = &jetstream.RePublish{Source: ">", Destination: "other.>"} }, []string{"RePublish is true"}},
		{breaks, func(c *config) { c.DenyDelete, c.MaxAge, c.MaxMsgs = false, time.Minute, 5 },
			[]string{"DenyDelete is", "MaxMsgs is", "MaxAge is 1m0s", "Duplicates is 1m0s"}},
	}
	base := wanted(t)
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	js, log := admin(t, nc), smallLog(nc)
	for _, tt := range tests {
		t.Run(tt.names[len(tt.names)-1], func(t *testing.T) {
			c := base
			c.Subjects = slices.Clone(base.Subjects)
			tt.change(&c)
			if c.Duplicates > c.MaxAge || c.Mirror != nil {
				c.Duplicates = 0
			}
			create(t, js, c)
			defer func() { assert.NoError(t, js.DeleteStream(soon(t), c.Name)) }()
			err := tidemark.SetUpNATSStream(soon(t), nc, with(small()))
			refused(t, err, tt.class, tt.names)
			_, err = log.Append(soon(t), letter(1, 1))
			refused(t, err, tt.class, tt.names)
			_, err = log.Open(soon(t), 0)
			refused(t, err, tt.class, tt.names)
			require.Zero(t, state(t, js).State.Msgs, "appended to a stream that was refused")
		})
	}
	t.Run("Sealed is true", func(t *testing.T) { // which a stream can only become
		c := base
		create(t, js, c)
		c.Sealed = true
		_, err := js.UpdateStream(soon(t), c)
		require.NoError(t, err)
		require.ErrorContains(t, tidemark.SetUpNATSStream(soon(t), nc, with(small())), "it cannot be a log: Sealed is true, must be false: ")
		require.NoError(t, js.DeleteStream(soon(t), c.Name))
	})
	t.Run("Replicas is 1", func(t *testing.T) {
		create(t, js, base)
		three := small()
		three.Replicas = 3
		require.ErrorContains(t, tidemark.SetUpNATSStream(soon(t), nc, with(three)), weakens+": Replicas is 1, must be 3: ")
		require.NoError(t, js.DeleteStream(soon(t), base.Name))
	})
	t.Run("more than was asked for", func(t *testing.T) {
		c := base
		c.MaxAge, c.MaxBytes, c.Duplicates, c.MaxMsgSize = 0, -1, time.Hour, 65<<10
		c.FirstSeq, c.AllowDirect, c.Compression = 1000, true, jetstream.S2Compression
		create(t, js, c)
		require.NoError(t, tidemark.SetUpNATSStream(soon(t), nc, with(small())))
		r := open(t, log, 0)
		seq, err := log.Append(soon(t), letter(1, 1))
		require.NoError(t, err)
		require.EqualValues(t, 1000, seq)
		expect(t, r, 1000, letter(1, 1))
	})
}

// create creates a stream once the folder of its predecessor is cleared.
func create(t testing.TB, js jetstream.JetStream, c jetstream.StreamConfig) {
	t.Helper()
	onceCleared(t, func() error {
		_, err := js.CreateStream(soon(t), c)
		return err
	})
}

// onceCleared makes a stream in the place of one that was deleted: the server
// refuses to until it has cleared the old one's folder.
func onceCleared(t testing.TB, make func() error) {
	t.Helper()
	const folderThere = 10049
	within(t, func() bool {
		err := make()
		var refusal *jetstream.APIError
		if errors.As(err, &refusal) && refusal.ErrorCode == folderThere {
			return false
		}
		require.NoError(t, err)
		return true
	}, "the old stream's folder stays")
}

// refused checks that err names these fields, with reasons, and no others.
func refused(t testing.TB, err error, class string, fields []string) {
	t.Helper()
	require.ErrorContains(t, err, class)
	for _, f := range fields {
		require.ErrorContains(t, err, ": "+f)
	}
	lines := strings.Split(err.Error(), "\n")[1:]
	require.Len(t, lines, len(fields), "%v", err)
	for _, l := range lines {
		require.Regexp(t, `^\t[a-z ]+: [\w.]+ is .*, must be .+: [a-z].{10,}$`, l)
	}
}

func TestJetStream_SetUpAtOnce(t *testing.T) {
	s := natsServer(t, streaming(t))
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range 8 {
		nc := dial(t, s.ClientURL())
		wg.Go(func() {
			<-start
			assert.NoError(t, tidemark.SetUpNATSStream(soon(t), nc, with(inMemory())))
		})
	}
	close(start)
	wg.Wait()

	// Two that do not agree: who asks for more is refused unless it was first.
	more := inMemory()
	more.MaxAge = 2 * time.Hour
	less, greedy := dial(t, s.ClientURL()), dial(t, s.ClientURL())
	for range 50 {
		require.NoError(t, admin(t, less).DeleteStream(soon(t), tidemark.NATSStreamName(natsCache)))
		var first, second error
		wg.Go(func() { first = tidemark.SetUpNATSStream(soon(t), less, with(inMemory())) })
		wg.Go(func() { second = tidemark.SetUpNATSStream(soon(t), greedy, with(more)) })
		wg.Wait()
		require.NoError(t, first, "what was created is enough for it either way")
		if second != nil {
			require.ErrorContains(t, second, "MaxAge is 1h0m0s, must be at least 2h0m0s")
		}
	}

	log := tidemark.NATS(dial(t, s.ClientURL()), with(inMemory())).Log // and one log is used by many
	for i := range uint64(8) {
		wg.Go(func() {
			_, err := log.Append(soon(t), letter(i, 1))
			assert.NoError(t, err)
			r, err := log.Open(soon(t), 1)
			assert.NoError(t, err)
			assert.NoError(t, r.Close())
		})
	}
	wg.Wait()
}

// api is what the comment at NATS says that a client must be permitted.
func api(and ...string) []string {
	s := tidemark.NATSStreamName(natsCache)
	return append(and, "$JS.API.STREAM.INFO."+s, "$JS.API.CONSUMER.CREATE."+s+".>", "$JS.API.CONSUMER.MSG.NEXT."+s+".>",
		"$JS.API.CONSUMER.DELETE."+s+".>", tidemark.NATSLogSubject(natsCache))
}

// TestS56_LogPermissions gives clients what the documentation says that they
// need, and takes something of it away.
func TestS56_LogPermissions(t *testing.T) {
	create := "$JS.API.STREAM.CREATE." + tidemark.NATSStreamName(natsCache)
	serve := func(t *testing.T, publish ...string) (restrictedOne, free *nats.Conn) {
		folder := streaming(t)
		users := restricted(&server.Permissions{
			Publish:   &server.SubjectPermission{Allow: publish},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		})
		s := natsServer(t, func(o *server.Options) { folder(o); users(o) })
		return dial(t, s.ClientURL(), nats.UserInfo("restricted", "secret"), quiet), dial(t, s.ClientURL(), nats.UserInfo("free", "secret"))
	}
	works := func(t *testing.T, nc *nats.Conn, o tidemark.NATSOptions) {
		past := nc.LastError()
		log := tidemark.NATS(nc, o).Log
		write(t, log, 1, 1, 3)
		r := open(t, log, 2)
		expect(t, r, 2, letter(1, 2))
		require.NoError(t, r.Close())
		require.NoError(t, nc.Flush())
		require.Equal(t, past, nc.LastError(), "the server complains")
	}
	existing := with(small())
	existing.Stream.Existing = true

	t.Run("all", func(t *testing.T) {
		nc, _ := serve(t, api(create)...)
		works(t, nc, with(small()))
	})
	t.Run("Existing", func(t *testing.T) {
		nc, free := serve(t, api()...)
		err := tidemark.SetUpNATSStream(soon(t), nc, existing)
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
		require.NoError(t, nc.LastError(), "it has tried to create the stream")
		_, err = tidemark.NATS(nc, existing).Log.Append(soon(t), letter(1, 1))
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
		require.NoError(t, tidemark.SetUpNATSStream(soon(t), free, with(small())))
		works(t, nc, existing)
	})
	t.Run("not to create", func(t *testing.T) {
		nc, _ := serve(t, api()...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := tidemark.SetUpNATSStream(ctx, nc, with(small()))
		require.ErrorIs(t, err, nats.ErrPermissionViolation)
	})
	t.Run("not to publish", func(t *testing.T) {
		nc, _ := serve(t, api(create)[:5]...)
		log := tidemark.NATS(nc, with(small())).Log
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := log.Append(ctx, letter(1, 1))
		require.ErrorIs(t, err, nats.ErrPermissionViolation)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("not to read", func(t *testing.T) {
		allow := slices.DeleteFunc(api(create), func(s string) bool { return strings.Contains(s, "MSG.NEXT") })
		nc, _ := serve(t, allow...)
		log := tidemark.NATS(nc, with(small())).Log
		write(t, log, 1, 1, 3)
		_, err := log.Open(soon(t), 3)
		require.Error(t, err)
		require.NotErrorIs(t, err, tidemark.ErrGap, "who may not ask knows nothing")
		require.NotErrorIs(t, fails(t, open(t, log, 0)), tidemark.ErrGap)
	})
	t.Run("not to delete", func(t *testing.T) {
		allow := slices.DeleteFunc(api(create), func(s string) bool { return strings.Contains(s, "DELETE") })
		nc, _ := serve(t, allow...)
		log := tidemark.NATS(nc, with(small())).Log
		write(t, log, 1, 1, 3)
		r, err := log.Open(soon(t), 3)
		require.NoError(t, err)
		expect(t, r, 3, letter(1, 3))
		require.NoError(t, r.Close())
		noGoroutines(t) // although the server goes on saying that it is there
	})
}

func TestJetStream_Arguments(t *testing.T) {
	s := natsServer(t, nil) // without JetStream: nothing is asked of it
	nc := dial(t, s.ClientURL())
	deaf := dial(t, s.ClientURL(), nats.NoEcho())
	before := nc.Stats().OutMsgs
	stream := func(change func(*tidemark.NATSStream)) tidemark.NATSOptions {
		o := with(small())
		change(o.Stream)
		return o
	}
	for name, tt := range map[string]struct {
		nc      *nats.Conn
		o       tidemark.NATSOptions
		field   string
		problem string
	}{
		"nil connection":  {nil, with(small()), "Invalidator", "nil"},
		"name":            {nc, tidemark.NATSOptions{Name: "a+b", Stream: small()}, "Invalidator.Name", "letters"},
		"long name":       {nc, tidemark.NATSOptions{Name: strings.Repeat("a", 244), Stream: small()}, "Invalidator.Name", "256 bytes"},
		"no echo (P13)":   {deaf, with(small()), "Invalidator", "NoEcho"},
		"two replicas":    {nc, stream(func(s *tidemark.NATSStream) { s.Replicas = 2 }), "NATSStream.Replicas", "is 2"},
		"minus one":       {nc, stream(func(s *tidemark.NATSStream) { s.Replicas = -1 }), "NATSStream.Replicas", "is -1"},
		"short age":       {nc, stream(func(s *tidemark.NATSStream) { s.MaxAge = 9 * time.Second }), "NATSStream.MaxAge", "is 9s"},
		"negative age":    {nc, stream(func(s *tidemark.NATSStream) { s.MaxAge = -1 }), "NATSStream.MaxAge", "is -1ns"},
		"few bytes":       {nc, stream(func(s *tidemark.NATSStream) { s.MaxBytes = 1<<20 - 1 }), "NATSStream.MaxBytes", "is 1048575"},
		"unlimited bytes": {nc, stream(func(s *tidemark.NATSStream) { s.MaxBytes = -1 }), "NATSStream.MaxBytes", "is -1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tidemark.New(tidemark.Options[string, int]{Invalidator: tidemark.NATS(tt.nc, tt.o)})
			var mistake *tidemark.OptionError
			require.ErrorAs(t, err, &mistake)
			assert.Equal(t, tt.field, mistake.Field)
			assert.Contains(t, mistake.Problem, tt.problem)
			require.ErrorAs(t, tidemark.SetUpNATSStream(soon(t), tt.nc, tt.o), &mistake)
			assert.Equal(t, tt.field, mistake.Field)
		})
	}
	both, one := tidemark.NATS(nc, with(small())), tidemark.NATS(deaf, stream(func(s *tidemark.NATSStream) { s.NoHint = true }))
	assert.NotNil(t, both.Hint)
	assert.NotNil(t, both.Log)
	assert.Nil(t, one.Hint, "P13: JetStream does not care for NoEcho")
	assert.NotNil(t, one.Log)
	assert.Nil(t, tidemark.NATS(nc, with(nil)).Log)
	assert.Equal(t, before, nc.Stats().OutMsgs, "something was asked of the server")
	var mistake *tidemark.OptionError
	require.ErrorAs(t, tidemark.SetUpNATSStream(soon(t), nc, with(nil)), &mistake)
	require.Error(t, tidemark.SetUpNATSStream(soon(t), nc, with(small())), "there is no JetStream")
	_, err := both.Log.Append(soon(t), letter(1, 1))
	require.Error(t, err)
}

// TestS60_StreamNamesDoNotMeet: two caches never share a subject or a stream.
func TestS60_StreamNamesDoNotMeet(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	seen := map[string]bool{}
	for _, name := range []string{"a.b", "a_b", "a-b", "a", "a.b.log", "a.hint", "A.b", "a--b", "a__b"} {
		o := with(small())
		o.Name, o.Stream.MaxBytes = name, 1<<20
		for _, s := range []string{tidemark.NATSStreamName(name), tidemark.NATSLogSubject(name), tidemark.NATSSubject(name)} {
			require.False(t, seen[s], s)
			seen[s] = true
		}
		seq, err := tidemark.NATS(nc, o).Log.Append(soon(t), letter(1, 1))
		require.NoError(t, err)
		require.EqualValues(t, 1, seq, "another cache's stream")
	}
}

// TestJetStream_Caches lets replicas talk through the stream only, and through
// both.
func TestJetStream_Caches(t *testing.T) {
	t.Parallel()
	for name, noHint := range map[string]bool{"log only": true, "log and hint": false} {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			all := joined(t, l, natsServer(t, streaming(t)), 2, func(nc *nats.Conn) tidemark.Invalidator {
				o := with(small())
				o.Beat, o.Stream.NoHint = calmBeat, noHint
				return tidemark.NATS(nc, o)
			})
			l.set("k", 0)
			for i := range 20 {
				holds(t, "k", all...)
				v := add(t, all[i%2], "k").Version
				for _, r := range all {
					within(t, func() bool { e, ok := r.GetEntry("k"); return !ok || e.Version >= v }, "not heard")
				}
			}
			healed(t, l, all...)
		})
	}
}

// TestJetStream_HintBesideTheLog: what is appended is on core NATS too, once,
// unless NoHint.
func TestJetStream_HintBesideTheLog(t *testing.T) {
	for _, noHint := range []bool{false, true} {
		s := natsServer(t, streaming(t))
		ear := dial(t, s.ClientURL())
		heard := make(chan uint64, 100)
		_, err := ear.Subscribe(tidemark.NATSSubject(natsCache), func(m *nats.Msg) {
			var w wire.Message
			if assert.NoError(t, wire.Decode(m.Data, &w)) && w.Kind == wire.KindInvalidate {
				heard <- w.Entries[0].Version
			}
		})
		require.NoError(t, err)
		require.NoError(t, ear.Flush())
		o := with(small())
		o.Stream.NoHint = noHint
		nc := dial(t, s.ClientURL())
		p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: tidemark.NATS(nc, o)})
		require.NoError(t, err)
		for version := tidemark.Version(1); version <= 5; version++ {
			require.NoError(t, p.Invalidate(soon(t), "k", version))
			if !noHint {
				select {
				case got := <-heard:
					require.EqualValues(t, version, got)
				case <-soon(t).Done():
					require.Fail(t, "no hint")
				}
			}
		}
		require.NoError(t, p.Close(soon(t)))
		require.NoError(t, ear.Flush())
		require.Empty(t, heard)
	}
}

// TestS50_P26_StreamLeaderDies kills the server that leads the stream while one
// client appends and another reads.
func TestS50_P26_StreamLeaderDies(t *testing.T) {
	c := newTrio(t)
	connect := func() *nats.Conn { return dial(t, c.anywhere(0), quiet) }
	three := with(&tidemark.NATSStream{MaxBytes: 16 << 20})
	nc := connect()
	within(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return tidemark.SetUpNATSStream(ctx, nc, three) == nil
	}, "the cluster does not begin")

	const n = 1500
	h := &history{acked: map[uint64][]byte{}}
	from, to := tidemark.NATS(connect(), three).Log, tidemark.NATS(connect(), three).Log
	leader := c.leader()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		h.write(t, from, 1, n/3)
		var dies sync.WaitGroup
		dies.Go(c.servers[leader].kill)
		h.write(t, from, n/3+1, 2*n/3)
		dies.Wait()
		h.write(t, from, 2*n/3+1, n)
	})
	h.read(t, to, n)
	wg.Wait()
	h.check(t)
	t.Logf("%d readers, %d attempts for %d messages", h.readers, h.attempts, n)
	require.NotEqual(t, leader, c.leader())
}
