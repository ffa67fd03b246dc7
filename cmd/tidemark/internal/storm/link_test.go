package storm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A fakeTransport is a hint that the test drives.
type fakeTransport struct {
	receive   func([]byte)
	lost      func(string)
	stopped   bool
	published []string
	refuse    error
}

func (f *fakeTransport) Publish(_ context.Context, msg []byte) error {
	f.published = append(f.published, string(msg))
	return nil
}

func (f *fakeTransport) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	f.receive, f.lost = receive, lost
	return func() { f.stopped = true }, nil
}

// A listener writes down what a link delivers.
type listener struct {
	mu       sync.Mutex
	messages []string
	times    []time.Time
	lost     []string
}

func (l *listener) receive(msg []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages = append(l.messages, string(msg))
	l.times = append(l.times, time.Now())
}

// heard returns what was delivered so far.
func (l *listener) heard() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.messages)
}

// losses returns the reasons for which messages may be missing.
func (l *listener) losses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lost)
}

func (l *listener) onLost(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = append(l.lost, reason)
}

// subscribe returns a link with weather w over a fake transport.
func subscribe(t *testing.T, w Weather) (*fakeTransport, *link, *listener, func()) {
	t.Helper()
	f, heard := &fakeTransport{}, &listener{}
	l := newLink(f, w, 1)
	stop, err := l.Subscribe(heard.receive, heard.onLost)
	require.NoError(t, err)
	return f, l, heard, stop
}

// send sends n numbered messages, one each millisecond, and returns their
// names.
func (f *fakeTransport) send(n int) []string {
	var names []string
	buf := make([]byte, 0, 16)
	for i := range n {
		buf = fmt.Appendf(buf[:0], "%06d", i)
		names = append(names, string(buf))
		f.receive(buf)
		time.Sleep(time.Millisecond)
	}
	return names
}

func TestLinkInFairWeatherChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{})
		sent := f.send(100)
		synctest.Wait()
		assert.Equal(t, sent, heard.heard())
		assert.Equal(t, Tally{Arrived: 100}, l.tally())
		stop()
		assert.True(t, f.stopped)
	})
}

func TestLinkDropsItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Drop: 0.1})
		defer stop()
		sent := f.send(2000)
		synctest.Wait()
		dropped := l.tally().Dropped
		assert.InDelta(t, 200, dropped, 60)
		assert.Len(t, heard.heard(), len(sent)-int(dropped))
		assert.IsIncreasing(t, heard.heard(), "what is not dropped keeps its order")
		assert.Empty(t, heard.losses(), "nobody is told of a drop")
	})
}

func TestLinkRepeatsItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Duplicate: 0.1})
		defer stop()
		sent := f.send(2000)
		time.Sleep(repeatMax)
		synctest.Wait()
		repeated := int(l.tally().Duplicated)
		assert.InDelta(t, 200, repeated, 60)
		assert.Len(t, heard.heard(), len(sent)+repeated)
		got := heard.heard()
		slices.Sort(got)
		assert.Equal(t, sent, slices.Compact(got), "each came at least once")
	})
}

func TestLinkLetsLaterMessagesOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Reorder: 0.1})
		defer stop()
		sent := f.send(2000)
		time.Sleep(reorderMax)
		synctest.Wait()
		assert.InDelta(t, 200, l.tally().Reordered, 60)
		got := heard.heard()
		overtaken := 0
		for i := range got[1:] {
			if got[i] > got[i+1] {
				overtaken++
			}
		}
		assert.Greater(t, overtaken, 50)
		slices.Sort(got)
		assert.Equal(t, sent, got, "none is lost, none comes twice")
	})
}

func TestLinkDelaysInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const longest = 100 * time.Millisecond
		f, l, heard, stop := subscribe(t, Weather{Delay: 0.02, DelayMax: longest})
		defer stop()
		begin := time.Now()
		sent := f.send(2000)
		time.Sleep(longest)
		synctest.Wait()
		assert.Positive(t, l.tally().Delayed)
		assert.Equal(t, sent, heard.heard(), "a delay holds up what follows")
		var worst time.Duration
		for i, at := range heard.times {
			worst = max(worst, at.Sub(begin)-time.Duration(i)*time.Millisecond)
		}
		assert.Greater(t, worst, longest/4)
		assert.LessOrEqual(t, worst, longest)
	})
}

func TestLinkIsTheSameForTheSameSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := Weather{Drop: 0.1, Duplicate: 0.1, Reorder: 0.1, Delay: 0.05, DelayMax: 10 * time.Millisecond}
		var runs [2][]string
		for i := range runs {
			f, _, heard, stop := subscribe(t, w)
			f.send(500)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			runs[i] = heard.heard()
			stop()
		}
		assert.Equal(t, runs[0], runs[1])
	})
}

func TestLinkWeatherCanChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Drop: 1})
		defer stop()
		f.send(10)
		synctest.Wait()
		assert.Empty(t, heard.heard())
		l.setWeather(Weather{})
		f.send(10)
		synctest.Wait()
		assert.Len(t, heard.heard(), 10)
	})
}

func TestLinkStallBlocksTheTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{})
		defer stop()
		l.stall(time.Second)
		var returned atomic.Bool
		go func() {
			f.receive([]byte("late"))
			returned.Store(true)
		}()
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		assert.False(t, returned.Load(), "the transport's callback must not return")
		assert.Empty(t, heard.heard())
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		assert.True(t, returned.Load())
		assert.Equal(t, []string{"late"}, heard.heard())
	})
}

func TestLinkPassesOnTheNewsOfLossAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, heard, stop := subscribe(t, Weather{Delay: 1, DelayMax: time.Second})
		defer stop()
		f.receive([]byte("held back"))
		f.lost("disconnected")
		f.lost("")
		synctest.Wait()
		assert.Equal(t, []string{"disconnected", "no reason given"}, heard.losses())
	})
}

func TestLinkCallsNobodyAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Delay: 1, DelayMax: time.Second})
		f.receive([]byte("held back"))
		l.stall(time.Hour)
		go f.receive([]byte("stalled"))
		synctest.Wait()
		stop()
		stop() // the second does nothing
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.Empty(t, heard.heard())
		assert.Zero(t, l.held())
	})
}

func TestLinkOfTheDeadIsSilentAndDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Delay: 1, DelayMax: time.Second})
		defer stop()
		require.NoError(t, l.Publish(t.Context(), []byte("alive")))
		f.receive([]byte("held back"))
		l.kill()
		assert.ErrorIs(t, l.Publish(t.Context(), []byte("dead")), errDead)
		assert.Equal(t, []string{"alive"}, f.published)
		assert.EqualValues(t, 1, l.suppressed.Load())
		f.receive([]byte("unheard"))
		f.lost("unheard")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.Empty(t, heard.heard())
		assert.Empty(t, heard.losses())
	})
}

func TestLinkThatIsFullDropsAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l, heard, stop := subscribe(t, Weather{Delay: 1, DelayMax: time.Hour})
		defer stop()
		for range queueLimit + 1 {
			f.receive(nil)
		}
		synctest.Wait()
		assert.Len(t, heard.losses(), 1)
		assert.Equal(t, queueLimit, l.held())
	})
}

func TestLinkReportsAFailedSubscription(t *testing.T) {
	refuse := errors.New("no")
	l := newLink(&fakeTransport{refuse: refuse}, Weather{}, 1)
	_, err := l.Subscribe(func([]byte) {}, func(string) {})
	assert.ErrorIs(t, err, refuse)
	assert.Empty(t, l.subs)
}
