package tidemark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// A post is a Hint that keeps what is published, and that a test can hold up
// or make fail. It delivers to nobody.
type post struct {
	mu       sync.Mutex // guards everything below
	attempts [][]byte   // all calls of Publish
	taken    []*wire.Message
	failing  error         // what Publish returns, if not nil
	held     chan struct{} // while not nil, Publish waits for it to be closed
}

func (p *post) Publish(ctx context.Context, msg []byte) error {
	p.mu.Lock()
	own := append([]byte(nil), msg...)
	p.attempts = append(p.attempts, own)
	held := p.held
	p.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failing != nil {
		return p.failing
	}
	m := &wire.Message{}
	if err := wire.Decode(own, m); err != nil {
		return err
	}
	p.taken = append(p.taken, m)
	return nil
}

func (p *post) Subscribe(func([]byte), func(string)) (func(), error) { return func() {}, nil }

func (p *post) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failing = err
}

// hold makes Publish wait until release is called.
func (p *post) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := make(chan struct{})
	p.held = held
	return sync.OnceFunc(func() {
		p.mu.Lock()
		if p.held == held { // and not held again meanwhile
			p.held = nil
		}
		p.mu.Unlock()
		close(held)
	})
}

func (p *post) messages() []*wire.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*wire.Message(nil), p.taken...)
}

func (p *post) tries() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([][]byte(nil), p.attempts...)
}

// marks returns what the messages say of each key, in the order of publication.
func marks(all []*wire.Message) map[string][]mark {
	said := map[string][]mark{}
	for _, m := range all {
		for _, e := range m.Entries {
			said[string(e.Key)] = append(said[string(e.Key)], mark{Version(e.Version), e.Deleted})
		}
	}
	return said
}

// newPost returns a post and an outbox that publishes there, which is closed
// when the test ends.
func newPost(t testing.TB) (*post, *outbox) {
	t.Helper()
	p := &post{}
	o := newOutbox(Invalidator{Name: "test", Hint: p}, 0, caughtAlone, func() {})
	t.Cleanup(func() {
		p.fail(nil)
		require.NoError(t, o.close(context.Background(), true))
	})
	return p, o
}

func at(v Version) mark { return mark{version: v} }

func TestOutbox_MessagesAreNumberedFromOneWithoutHoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		for i := range 20 {
			o.add(fmt.Append(nil, i), at(1), 0)
			if i%3 == 0 {
				o.hello(uint64(i + 1))
			}
			if i%5 == 0 {
				o.addAll()
			}
			if i%2 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		require.NoError(t, o.close(t.Context(), true))
		all := p.messages()
		for i, m := range all {
			require.EqualValues(t, i+1, m.Seq)
			require.Equal(t, o.origin, m.Origin)
			require.Equal(t, foreignID("test", ""), m.CacheID)
		}
		last := all[len(all)-1]
		assert.Equal(t, wire.KindHello, last.Kind)
		assert.Zero(t, last.Nonce, "goodbye comes last")
	})
}

// A key that is added again while it waits has the ticket of what is behind it. If
// that is an intent which is given up, nothing more need be sent.
func TestOutbox_WhatWasGivenUpIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("under way"), at(1), 0)
		synctest.Wait()
		for i := range maxBatch {
			o.add(fmt.Append(nil, i), at(1), 0)
		}
		ticket := o.add([]byte("0"), at(2), 0)
		in, err := o.intend([]byte("k"), OpID{1}, time.Second)
		require.NoError(t, err)
		again := p.hold()
		release()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		untold, err := o.awaitIntent(ctx, in)
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, untold)
		again()
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, o.wait(ctx, ticket))
		assert.Equal(t, []mark{at(2)}, marks(p.messages())["0"])
		assert.NotContains(t, marks(p.messages()), "k")
	})
}

func TestOutbox_CollectsWhileOneIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		const n = maxBatch + maxBatch/2
		for i := range n {
			o.add(fmt.Append(nil, i), at(1), 0)
		}
		synctest.Wait()
		assert.Len(t, p.tries(), 1, "one message at a time")
		release()
		synctest.Wait()
		all := p.messages()
		require.Len(t, all, 3)
		assert.Len(t, all[0].Entries, 1)
		assert.Len(t, all[1].Entries, maxBatch)
		assert.Len(t, all[2].Entries, n-maxBatch)
		assert.Len(t, marks(all), n+1)
	})
}

func TestOutbox_BatchesAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		for i := range 20 {
			o.add(append(fmt.Appendf(nil, "%02d", i), make([]byte, maxKeyBytes-2)...), at(1), 0)
		}
		release()
		synctest.Wait()
		for _, m := range p.messages() {
			require.Equal(t, wire.KindInvalidate, m.Kind, "nothing was lost into an everything")
		}
		for _, b := range p.tries() {
			require.LessOrEqual(t, len(b), maxBatchSize+maxKeyBytes+1024)
			require.LessOrEqual(t, len(b), wire.MaxBytes)
		}
		assert.Len(t, marks(p.messages()), 21)
	})
}

func TestOutbox_AKeyThatWaitsIsSentOnce(t *testing.T) {
	for name, tt := range map[string]struct{ add, want []mark }{
		"newer wins":                            {[]mark{at(3), at(5), at(4)}, []mark{at(5)}},
		"deletion at the same version is newer": {[]mark{at(3), {3, true}}, []mark{{3, true}}},
		"value at the same version is older":    {[]mark{{3, true}, at(3)}, []mark{{3, true}}},
		"value above a deletion":                {[]mark{{3, true}, at(4)}, []mark{at(4)}},
		"no version wins over any":              {[]mark{at(3), at(0), at(9)}, []mark{at(0)}},
		"no version wins from the start":        {[]mark{at(0), at(9)}, []mark{at(0)}},
		"the same":                              {[]mark{at(3), at(3)}, []mark{at(3)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := newPost(t)
				release := p.hold()
				o.add([]byte("first"), at(1), 0)
				synctest.Wait()
				for i := range 3 { // neighbours, so that positions matter
					o.add(fmt.Append(nil, i), at(1), 0)
				}
				var last uint64
				for _, m := range tt.add {
					last = o.add([]byte("k"), m, 0)
				}
				release()
				require.NoError(t, o.wait(t.Context(), last))
				said := marks(p.messages())
				assert.Equal(t, tt.want, said["k"])
				assert.Len(t, said, 5)
			})
		})
	}
}

// TestOutbox_WhatIsUnderWayIsNotChanged: a change that comes while an older one
// of the same key is being published needs a message of its own.
func TestOutbox_WhatIsUnderWayIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		first := o.add([]byte("k"), at(1), 0)
		synctest.Wait()
		second := o.add([]byte("k"), at(2), 0)
		third := o.add([]byte("other"), at(1), 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, o.wait(ctx, first), ErrNotBroadcast)
		release()
		for _, ticket := range []uint64{first, second, third} {
			require.NoError(t, o.wait(t.Context(), ticket))
		}
		assert.Equal(t, []mark{at(1), at(2)}, marks(p.messages())["k"])
	})
}

// TestOutbox_TicketIsGoodOnlyWhenItsMessageIsOut holds up the second of three
// messages: whoever waits for what it carries, waits.
func TestOutbox_TicketIsGoodOnlyWhenItsMessageIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		first := o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		var tickets []uint64
		for i := range maxBatch + 1 {
			tickets = append(tickets, o.add(fmt.Append(nil, i), at(1), 0))
		}
		merged := o.add([]byte("0"), at(2), 0) // travels with the oldest, is as young as the youngest
		second := p.hold()                     // before the first may go on
		release()
		require.NoError(t, o.wait(t.Context(), first))
		synctest.Wait()
		require.False(t, out(o, tickets[0]))
		require.False(t, out(o, merged))
		third := p.hold()
		second()
		synctest.Wait()
		require.True(t, out(o, tickets[maxBatch-1]))
		require.False(t, out(o, tickets[maxBatch]))
		third()
		synctest.Wait()
		require.True(t, out(o, tickets[maxBatch]))
		require.True(t, out(o, merged))
		require.Equal(t, []mark{at(2)}, marks(p.messages())["0"])
	})
}

// out reports whether the ticket is good already.
func out(o *outbox, ticket uint64) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return o.wait(ctx, ticket) == nil
}

func TestOutbox_RetriesTheSameBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		p.fail(errors.New("no route"))
		began := time.Now()
		ticket := o.add([]byte("k"), at(1), 0)
		synctest.Wait()
		o.add([]byte("k"), at(2), 0)
		o.add([]byte("j"), at(1), 0)
		time.Sleep(time.Minute)
		tries := p.tries()
		assert.InDelta(t, 65, len(tries), 5, "a try a second after the first few")
		for _, b := range tries {
			require.True(t, bytes.Equal(tries[0], b), "a retry differs")
		}
		p.fail(nil)
		require.NoError(t, o.wait(t.Context(), ticket))
		assert.LessOrEqual(t, time.Since(began), time.Minute+retryMax)
		synctest.Wait()
		all := p.messages()
		require.Len(t, all, 2)
		assert.EqualValues(t, []uint64{1, 2}, []uint64{all[0].Seq, all[1].Seq}, "the number is used once")
		assert.Equal(t, []mark{at(1), at(2)}, marks(all)["k"])
	})
}

// TestOutbox_AttemptsAreBounded: a publish that hangs is given up after a while
// and tried again.
func TestOutbox_AttemptsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("k"), at(1), 0)
		time.Sleep(publishTimeout + 2*retryMin)
		assert.Len(t, p.tries(), 2)
		release()
	})
}

// TestOutbox_HelloDoesNotWaitForAQueueThatNeverEmpties: a busy writer is not
// deaf to itself, and not dead to others.
func TestOutbox_HelloDoesNotWaitForAQueueThatNeverEmpties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		for i := range 10 * maxBatch {
			o.add(fmt.Append(nil, i), at(1), 0)
		}
		o.addAll()
		o.hello(7)
		o.hello(8)
		release()
		synctest.Wait()
		all := p.messages()
		require.Equal(t, wire.KindHello, all[1].Kind)
		assert.EqualValues(t, 8, all[1].Nonce, "the latest")
		hellos := 0
		for _, m := range all {
			if m.Kind == wire.KindHello {
				hellos++
			}
		}
		assert.Equal(t, 1, hellos)
	})
}

func TestOutbox_BacklogCollapsesIntoOneMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{}
		collapses := 0
		o := newOutbox(Invalidator{Name: "test", Hint: p}, 0, caughtAlone, func() { collapses++ })
		release := p.hold()
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		var ticket uint64
		for i := range maxBacklog {
			ticket = o.add(fmt.Append(nil, i), at(1), 0)
		}
		assert.Zero(t, collapses)
		o.add([]byte("0"), at(2), 0) // a key that waits takes no room
		assert.Zero(t, collapses)
		last := o.add([]byte("one too many"), at(1), 0)
		assert.Equal(t, 1, collapses)
		after := o.add([]byte("after"), at(1), 0)
		var s Stats
		o.addStats(&s)
		assert.EqualValues(t, 1, s.Collapsed)
		assert.Equal(t, 3, s.Backlog, "one under way, everything, one after it")

		release()
		require.NoError(t, o.wait(t.Context(), after))
		require.True(t, out(o, ticket) && out(o, last))
		all := p.messages()
		require.Len(t, all, 3)
		assert.Equal(t, wire.KindInvalidateAll, all[1].Kind)
		assert.Equal(t, map[string][]mark{"first": {at(1)}, "after": {at(1)}}, marks(all))
		require.NoError(t, o.close(t.Context(), true))
	})
}

func TestOutbox_KeyTooLongTravelsAsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		require.NoError(t, o.wait(t.Context(), o.add(make([]byte, maxKeyBytes), at(1), 0)))
		require.NoError(t, o.wait(t.Context(), o.add(make([]byte, maxKeyBytes+1), at(1), 0)))
		all := p.messages()
		require.Len(t, all, 2)
		assert.Equal(t, wire.KindInvalidate, all[0].Kind)
		assert.Equal(t, wire.KindInvalidateAll, all[1].Kind)
	})
}

func TestInvalidate_CollapseIsAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		c, l := joined(t, src, b)
		long := strings.Repeat("k", maxKeyBytes+1)
		require.NoError(t, c.Invalidate(t.Context(), long[1:], 1))
		assert.Empty(t, l.of(EventCollapsed))
		require.NoError(t, c.Invalidate(t.Context(), long, 1))
		require.Len(t, l.of(EventCollapsed), 1)
		assert.NotEmpty(t, l.of(EventCollapsed)[0].Reason)
		assert.EqualValues(t, 1, c.Stats().Collapsed)
		assert.Zero(t, c.Stats().Backlog)
	})
}

func TestOutbox_KeyIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		key := []byte("k")
		o.add(key, at(1), 0)
		key[0] = 'x'
		o.add([]byte("k"), at(2), 0)
		release()
		synctest.Wait()
		assert.Equal(t, map[string][]mark{"first": {at(1)}, "k": {at(2)}}, marks(p.messages()))
	})
}

func TestOutbox_CloseDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		for i := range 3 * maxBatch {
			o.add(fmt.Append(nil, i), at(1), 0)
		}
		time.AfterFunc(time.Second, release)
		require.NoError(t, o.close(t.Context(), true))
		assert.Len(t, marks(p.messages()), 3*maxBatch)
		require.NoError(t, o.close(t.Context(), true), "a second time")
		all := p.messages()
		assert.Equal(t, wire.KindHello, all[len(all)-1].Kind)
		assert.NotEqual(t, wire.KindHello, all[len(all)-2].Kind, "one goodbye")
	})
}

func TestOutbox_CloseWithADeadTransportSaysWhatIsLeft(t *testing.T) {
	dead := errors.New("no route")
	for name, tt := range map[string]struct {
		leave func(o *outbox)
		want  string
	}{
		"one key under way":        {func(o *outbox) { o.add([]byte("k"), at(1), 0) }, "keys that changed: 1"},
		"one under way, two wait":  {func(o *outbox) { leave(o, 3) }, "keys that changed: 3"},
		"everything":               {func(o *outbox) { o.addAll() }, "that everything changed"},
		"everything and some keys": {func(o *outbox) { leave(o, 2); o.addAll(); leave(o, 1) }, "that everything changed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &post{failing: dead}
				o := newOutbox(Invalidator{Name: "test", Hint: p}, 0, caughtAlone, func() {})
				tt.leave(o)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				began := time.Now()
				err := o.close(ctx, true)
				require.ErrorIs(t, err, ErrNotBroadcast)
				require.ErrorIs(t, err, dead)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				assert.ErrorContains(t, err, tt.want)
				assert.NotContains(t, err.Error(), "does not end")
				assert.Equal(t, 5*time.Second, time.Since(began))
				for _, m := range p.messages() {
					assert.NotEqual(t, wire.KindHello, m.Kind, "no goodbye: not all was said")
				}
				var s Stats
				o.addStats(&s)
				assert.NotZero(t, s.Backlog)
			})
		})
	}
}

// leave queues n keys, the first of which is then under way.
func leave(o *outbox, n int) {
	for i := range n {
		o.add(fmt.Append(nil, i), at(1), 0)
		synctest.Wait()
	}
}

func TestOutbox_CloseWithAPublishThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &stuckHint{bus: newBus(), release: make(chan struct{})}
		h.stuck.Store(true)
		o := newOutbox(Invalidator{Name: "test", Hint: h}, 0, caughtAlone, func() {})
		o.add([]byte("k"), at(1), 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := o.close(ctx, true)
		require.ErrorIs(t, err, ErrNotBroadcast)
		assert.ErrorContains(t, err, "does not end")
		assert.ErrorContains(t, err, "keys that changed: 1")
		assert.LessOrEqual(t, time.Since(began), time.Second+closeGrace)
		close(h.release)
	})
}

// TestOutbox_GoodbyeThatHangsDelaysCloseNoLongerThanItMay: everything is out,
// only the last word is not.
func TestOutbox_GoodbyeThatHangsDelaysCloseNoLongerThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &stuckHint{bus: newBus(), release: make(chan struct{})}
		o := newOutbox(Invalidator{Name: "test", Hint: h}, 0, caughtAlone, func() {})
		require.NoError(t, o.wait(t.Context(), o.add([]byte("k"), at(1), 0)))
		h.stuck.Store(true)
		began := time.Now()
		require.NoError(t, o.close(t.Context(), true))
		assert.LessOrEqual(t, time.Since(began), publishTimeout)
		close(h.release)
	})
}

// TestOutbox_GoodbyeAfterAHelloThatWasGivenUp: receivers must not find a hole in
// front of the goodbye.
func TestOutbox_GoodbyeAfterAHelloThatWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		require.NoError(t, o.wait(t.Context(), o.add([]byte("k"), at(1), 0)))
		p.fail(errors.New("for a moment"))
		o.hello(1)
		synctest.Wait()
		p.fail(nil)
		require.NoError(t, o.close(t.Context(), true))
		var seqs []uint64
		for _, m := range p.messages() {
			seqs = append(seqs, m.Seq)
		}
		assert.Equal(t, []uint64{1, 2, 3}, seqs)
		assert.Zero(t, p.messages()[2].Nonce)
	})
}

// TestClose_InDoubtSaysNoGoodbye: a replica that closes while a write is in
// doubt is to its peers as one that died between the commit and the message.
func TestClose_InDoubtSaysNoGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		here, l := joined(t, src, b)
		there, err := New(Options[string, int]{Store: src, Invalidator: b.invalidator(), DoubtTimeout: time.Hour})
		require.NoError(t, err)
		time.Sleep(3 * testBeat)
		// The write is sent; it commits long after the answer was given up, and
		// after everybody has heard that the key is in doubt.
		src.beforeWrite = func(context.Context, string) error { return errors.New("connection reset") }
		src.onOutcome = func(string, OpID) error { return errors.New("connection reset") }
		_, err = there.CompareAndSet(t.Context(), "k", 1, 2)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		synctest.Wait()
		hold(t, here, "k")
		var doubt *DoubtError
		require.ErrorAs(t, there.Close(t.Context()), &doubt)
		src.set("k", 2)
		time.Sleep((missedBeats + 3) * testBeat)
		require.Len(t, l.of(EventSuspect), 1)
		assert.Contains(t, l.of(EventSuspect)[0].Reason, "silent")
		requireNotServed(t, here, "k")
	})
}

func TestClose_WithADeadTransportSaysWhatIsLeftAndEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, err := New(Options[string, int]{Store: src, Invalidator: b.invalidator()})
		require.NoError(t, err)
		require.NoError(t, c.Ready(t.Context()))
		b.mu.Lock()
		b.refuse = errors.New("no route")
		b.mu.Unlock()
		_, err = c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err = c.Close(ctx)
		assert.LessOrEqual(t, time.Since(began), time.Second+closeGrace)
		require.ErrorIs(t, err, ErrNotBroadcast)
		assert.ErrorContains(t, err, "no route")
		assert.ErrorContains(t, err, "keys that changed: 1")
		assert.NotContains(t, err.Error(), "does not end", "no load runs, and the publish has ended")
		assert.NotContains(t, err.Error(), "writes under way")
		assert.Equal(t, err, c.Close(t.Context()), "further calls return the same")
	})
}

func TestInvalidate_WaitsForItsOwnMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{}
		c, err := New(Options[string, int]{Invalidator: Invalidator{Name: "test", Hint: p, Beat: time.Hour}})
		require.NoError(t, err)
		synctest.Wait()
		release := p.hold()
		done := make(chan string, 3)
		var wg sync.WaitGroup
		for _, key := range []string{"a", "b", "a"} {
			wg.Go(func() {
				assert.NoError(t, c.Invalidate(t.Context(), key, 1))
				done <- key
			})
			synctest.Wait()
		}
		time.Sleep(time.Second)
		assert.Empty(t, done)
		release()
		wg.Wait()
		assert.Equal(t, map[string][]mark{"a": {at(1), at(1)}, "b": {at(1)}}, marks(p.messages()))
		require.NoError(t, c.Close(t.Context()))
	})
}

func TestInvalidate_DuringCloseEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{failing: errors.New("no route")}
		c, err := New(Options[string, int]{Invalidator: Invalidator{Name: "test", Hint: p, Beat: time.Hour}})
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			err := c.Invalidate(context.Background(), "k", 1)
			assert.ErrorIs(t, err, ErrNotBroadcast)
			assert.ErrorIs(t, err, ErrClosed)
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = c.Close(ctx)
		require.ErrorIs(t, err, ErrNotBroadcast)
		assert.ErrorContains(t, err, "writes under way", "the call above")
		wg.Wait()
	})
}

// brittle is a KeyCodec that cannot encode every key.
type brittle struct{ choosy }

func (brittle) AppendKey(dst []byte, key string) []byte {
	if key == "unspeakable" {
		panic("no words for it")
	}
	return append(dst, key...)
}

func TestInvalidate_KeyThatCannotBeNamedTravelsAsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{}
		c, err := New(Options[string, int]{Invalidator: Invalidator{Name: "test", Hint: p, Beat: time.Hour}, KeyCodec: brittle{}})
		require.NoError(t, err)
		require.NoError(t, c.Invalidate(t.Context(), "unspeakable", 1))
		assert.EqualValues(t, 1, c.Stats().Panics)
		kinds := []wire.Kind{}
		for _, m := range p.messages() {
			kinds = append(kinds, m.Kind)
		}
		assert.Contains(t, kinds, wire.KindInvalidateAll)
		assert.NotContains(t, kinds, wire.KindInvalidate)
		require.NoError(t, c.Close(t.Context()))
	})
}

func TestS36_ABatchJobTellsTheReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		r := []*Cache[string, int]{}
		for range 2 {
			c, _ := joined(t, src, b)
			r = append(r, c)
		}
		time.Sleep(2 * testBeat)
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: b.invalidator()})
		require.NoError(t, err)
		keys := map[string]Version{}
		for i := range 10 {
			key := fmt.Sprint(i)
			src.set(key, 1)
			for _, c := range r {
				hold(t, c, key)
			}
			keys[key] = src.set(key, 2)
		}
		served := func() (n int) {
			for _, c := range r {
				for range c.All() {
					n++
				}
			}
			return n
		}
		require.Equal(t, 20, served())
		require.NoError(t, p.Invalidate(t.Context(), "0", keys["0"]))
		assert.Equal(t, 18, served())
		require.NoError(t, p.Invalidate(t.Context(), "1", 1))
		assert.Equal(t, 18, served(), "what they have is not older")
		require.NoError(t, p.Invalidate(t.Context(), "1", 0))
		assert.Equal(t, 16, served())
		require.NoError(t, p.InvalidateMany(t.Context(), keys))
		assert.Zero(t, served())
		require.NoError(t, p.InvalidateMany(t.Context(), nil))
		for _, c := range r {
			hold(t, c, "9")
		}
		require.NoError(t, p.InvalidateAll(t.Context()))
		assert.Zero(t, served())
		for _, c := range r {
			hold(t, c, "9")
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { assert.NoError(t, p.Close(t.Context())) })
		}
		wg.Wait()
		assert.ErrorIs(t, p.Invalidate(t.Context(), "9", 0), ErrClosed)
		assert.ErrorIs(t, p.InvalidateAll(t.Context()), ErrClosed)
		time.Sleep(100 * testBeat)
		assert.Equal(t, 2, served(), "a Publisher that leaves makes nothing suspect")
		settled(t, src, r...)
	})
}

// A transport takes longer for a message than a beat: hellos and changes take
// turns, so that neither waits for ever.
func TestOutbox_ASlowTransportStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		inv := b.invalidator()
		inv.Hint = slowHint{b, testBeat + testBeat/10}
		r := []*Cache[string, int]{}
		for range 2 {
			c, _ := listener(t, src, inv)
			require.NoError(t, c.Ready(t.Context()))
			r = append(r, c)
		}
		time.Sleep(10 * testBeat)
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: inv})
		require.NoError(t, err)
		src.set("k", 1)
		hold(t, r[1], "k")
		ctx, cancel := context.WithTimeout(t.Context(), 5*testBeat)
		defer cancel()
		_, err = r[0].Update(ctx, "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		require.NoError(t, r[0].Invalidate(ctx, "k", 2))
		requireNotServed(t, r[1], "k")
		hold(t, r[1], "k")
		ctx, cancel = context.WithTimeout(t.Context(), 5*testBeat)
		defer cancel()
		require.NoError(t, p.Invalidate(ctx, "k", 3))
		requireNotServed(t, r[1], "k")
		require.NoError(t, p.Close(t.Context()))
		time.Sleep(50 * testBeat)
		assert.False(t, r[0].Stats().CutOff || r[1].Stats().CutOff, "and they hear each other")
	})
}

// A slowHint takes its time for each message.
type slowHint struct {
	*bus
	latency time.Duration
}

func (h slowHint) Publish(ctx context.Context, msg []byte) error {
	select {
	case <-time.After(h.latency):
		return h.bus.Publish(ctx, msg)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// OnEvent ends the goroutine that it is called on. That is not one of the
// cache's: a doubt is settled, and the heart beats on.
func TestOnEvent_EndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c := newCache(t, Options[string, int]{
			MaxCost: small, Store: src, Invalidator: b.invalidator(), DoubtTimeout: time.Millisecond,
			OnEvent: func(Event) { goexit() },
		})
		require.NoError(t, c.Ready(t.Context()))
		src.afterWrite = func(context.Context, string) error { return errAnswerLost }
		_, err := c.CompareAndSet(t.Context(), "k", 1, 2)
		var uncertain *UncertainError
		require.ErrorAs(t, err, &uncertain)
		v, committed, err := uncertain.Wait(t.Context())
		require.NoError(t, err)
		assert.True(t, committed && v == 2)
		c.suspect("test")
		hold(t, c, "k")
		b.setFault(func(int, []byte) [][]byte { return nil })
		time.Sleep((missedBeats + 3) * testBeat)
		assert.True(t, c.Stats().CutOff, "it still notices that it is deaf")
		b.setFault(nil)
		require.NoError(t, c.Ready(t.Context()))
	})
}

// A message of a Publisher that stays is missed when it says hello next, and one
// that dies is missed by its silence.
func TestPublisher_LostMessageIsNoticedWithinABeat(t *testing.T) {
	for name, dies := range map[string]bool{"it stays": false, "it dies": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				src.set("k", 1)
				c, l := joined(t, src, b)
				p, err := NewPublisher(PublisherOptions[string]{Invalidator: b.invalidator()})
				require.NoError(t, err)
				time.Sleep(2*testBeat + testBeat/2)
				hold(t, c, "k")
				suspicions := len(l.of(EventSuspect))
				v := src.set("k", 2)
				b.setFault(func(_ int, msg []byte) [][]byte {
					var m wire.Message
					if wire.Decode(msg, &m) == nil && m.Origin == p.out.origin && (dies || m.Kind != wire.KindHello) {
						return nil
					}
					return [][]byte{msg}
				})
				require.NoError(t, p.Invalidate(t.Context(), "k", v), "the transport took it")
				requireServed(t, c, "k") // stale, and nothing is promised until the next hello
				if dies {
					time.Sleep((missedBeats + 3) * testBeat)
				} else {
					time.Sleep(testBeat)
				}
				requireNotServed(t, c, "k")
				assert.Len(t, l.of(EventSuspect), suspicions+1)
				require.NoError(t, p.Close(t.Context()))
			})
		})
	}
}

func TestPublisher_LastMessageLostIsNoticedAtTheGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: b.invalidator()})
		require.NoError(t, err)
		hold(t, c, "k")
		v := src.set("k", 2)
		b.setFault(func(int, []byte) [][]byte { return nil })
		require.NoError(t, p.Invalidate(t.Context(), "k", v), "the transport took it")
		b.setFault(nil)
		requireServed(t, c, "k") // stale, and nothing is promised until the next message
		require.NoError(t, p.Close(t.Context()))
		requireNotServed(t, c, "k")
		settled(t, src, c)
	})
}

func TestPublisher_ContextAndPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &post{failing: errors.New("no route")}
		p, err := NewPublisher(PublisherOptions[string]{Invalidator: Invalidator{Name: "test", Hint: h}, KeyCodec: brittle{}})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = p.Invalidate(ctx, "k", 1)
		require.ErrorIs(t, err, ErrNotBroadcast)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "no route")
		var panicked *PanicError
		require.ErrorAs(t, p.Invalidate(t.Context(), "unspeakable", 1), &panicked)
		assert.True(t, strings.Contains(string(panicked.Stack), "brittle"), "the stack leads to the codec")
		h.fail(nil)
		require.NoError(t, p.Close(t.Context()))
		assert.Equal(t, map[string][]mark{"k": {at(1)}}, marks(h.messages()), "it stayed queued")
	})
}

// TestOutbox_PropertyEachTicketIsCovered lets changes, failures and time pass at
// random, and demands of each ticket that it is good only once a message that
// was put together after the ticket's change says at least as much.
func TestOutbox_PropertyEachTicketIsCovered(t *testing.T) {
	rapid.Check(t, inBubble(t, testTickets))
}

// inBubble makes a property run in a bubble of its own each time.
func inBubble(t *testing.T, property func(*rapid.T)) func(*rapid.T) {
	return func(rt *rapid.T) {
		var panicked any // a failure, to rapid
		synctest.Test(t, func(*testing.T) {
			defer func() { panicked = recover() }()
			property(rt)
		})
		if panicked != nil {
			panic(panicked)
		}
	}
}

func testTickets(t *rapid.T) {
	p := &post{}
	o := newOutbox(Invalidator{Name: "test", Hint: p}, 0, caughtAlone, func() {})
	type change struct {
		key    string // "": everything
		mark   mark
		ticket uint64
		begun  uint64 // messages put together before it
	}
	var changes []change
	release := func() {}
	begun := func() uint64 { // the goroutine is idle or in Publish
		synctest.Wait()
		var last uint64
		for _, b := range p.tries() {
			var m wire.Message
			require.NoError(t, wire.Decode(b, &m))
			last = m.Seq
		}
		return last
	}
	verify := func() {
		synctest.Wait()
		all := p.messages()
		for _, c := range changes {
			if !out(o, c.ticket) {
				continue
			}
			covered := false
			for _, m := range all {
				if m.Seq <= c.begun {
					continue
				}
				covered = covered || m.Kind == wire.KindInvalidateAll
				for _, e := range m.Entries {
					said := mark{Version(e.Version), e.Deleted}
					covered = covered || string(e.Key) == c.key && (said.version == 0 || c.mark.version != 0 && !said.before(c.mark))
				}
			}
			require.True(t, covered, "ticket %d is good, but nobody was told of %q %v", c.ticket, c.key, c.mark)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"change": func(t *rapid.T) {
			c := change{key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key"), begun: begun()}
			c.mark = mark{Version(rapid.IntRange(0, 4).Draw(t, "version")), rapid.Bool().Draw(t, "deleted")}
			c.ticket = o.add([]byte(c.key), c.mark, 0)
			changes = append(changes, c)
		},
		"everything": func(*rapid.T) {
			c := change{begun: begun()}
			c.ticket = o.addAll()
			changes = append(changes, c)
		},
		"many": func(*rapid.T) {
			for i := range maxBatch {
				o.add(fmt.Append(nil, i), at(1), 0)
			}
		},
		"hello":   func(*rapid.T) { o.hello(1) },
		"hold":    func(*rapid.T) { release(); release = p.hold() },
		"release": func(*rapid.T) { release() },
		"fail":    func(*rapid.T) { p.fail(errors.New("no route")) },
		"heal":    func(*rapid.T) { p.fail(nil) },
		"time":    func(*rapid.T) { time.Sleep(time.Second) },
		"":        func(*rapid.T) { verify() },
	})
	release()
	p.fail(nil)
	require.NoError(t, o.close(context.Background(), true))
	for _, c := range changes {
		require.True(t, out(o, c.ticket))
	}
	verify()
	seqs := map[uint64]bool{}
	for _, m := range p.messages() {
		seqs[m.Seq] = true
	}
	for i := range uint64(len(seqs)) {
		require.True(t, seqs[i+1], "a hole in %v", maps.Keys(seqs))
	}
}

// A message that the transport will never take becomes the shorter word that
// everything changed, under the same number; otherwise nothing would go out any
// more, hellos included.
func TestOutbox_AMessageTooLargeForTheTransportSaysEverything(t *testing.T) {
	p, o := newPost(t)
	small := &limited{post: p, most: 500}
	o.inv.Hint = small
	ticket := o.add(bytes.Repeat([]byte("k"), 1000), at(3), 0)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, o.wait(ctx, ticket))
	sent := p.messages()
	last := sent[len(sent)-1]
	assert.Equal(t, wire.KindInvalidateAll, last.Kind)
	assert.Equal(t, uint64(len(sent)), last.Seq, "no number is missing")
	require.NoError(t, o.wait(ctx, o.add([]byte("next"), at(1), 0)))
}

// limited is a post that takes no message of more than most bytes.
type limited struct {
	*post
	most int
}

func (l *limited) Publish(ctx context.Context, msg []byte) error {
	if len(msg) > l.most {
		return fmt.Errorf("limited: %w", ErrMessageSize)
	}
	return l.post.Publish(ctx, msg)
}
