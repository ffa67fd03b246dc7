package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// TestI7_StrictWritersThatDie kills writers between their commit and the word of
// it, one after the other, and cuts the reader's link: no read Within a bound misses
// what was committed longer ago than that before it began.
func TestI7_StrictWritersThatDie(t *testing.T) {
	const bound, doubt = 400 * time.Millisecond, 500 * time.Millisecond
	l, s := newLedger(), natsServer(t, streaming(t))
	l.set("k", 0)
	var commits timeline
	commits.add(1)
	var dying atomic.Bool
	buried := make(chan struct{})
	l.afterWrite = func() {
		commits.add(l.get("k").version)
		if dying.Swap(false) {
			<-buried
		}
	}
	w := newCable(t, s)
	strict := func(o *tidemark.Options[string, int]) { o.Strict, o.DoubtTimeout = true, doubt }
	reader := newReplica(t, l, logged(dial(t, w.url())), strict)
	var reads sync.WaitGroup
	var over atomic.Bool
	var bounded, hits atomic.Int64
	for range 4 {
		reads.Go(func() {
			for !over.Load() {
				began := time.Now()
				_, hit := reader.Get("k")
				e, err := reader.Read(t.Context(), "k", tidemark.Within(bound))
				if !assert.NoError(t, err) {
					return
				}
				bounded.Add(1)
				if hit {
					hits.Add(1)
				}
				if want := commits.newest(began.Add(-bound)); !assert.GreaterOrEqual(t, e.Version, want, "of age %v", e.Age) {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	var dead sync.WaitGroup
	for i := range 4 {
		writer := newReplica(t, l, logged(dial(t, s.ClientURL())), strict)
		for range 10 {
			_, err := writer.Update(t.Context(), "k", plusOne)
			if !errors.Is(err, tidemark.ErrUnavailable) { // on a busy machine an intent may take longer than doubt
				require.NoError(t, err)
			}
			time.Sleep(rand.N(20 * time.Millisecond))
		}
		dying.Store(true)
		dead.Go(func() {
			for dying.Load() {
				_, _ = writer.Update(context.Background(), "k", plusOne)
			}
		})
		within(t, func() bool { return !dying.Load() }, "nobody died")
		if i%2 == 1 {
			w.cut()
		}
		within(t, func() bool { return reader.Stats().Lapsed > uint64(i) }, "the intent of the dead writer does not lapse")
	}
	over.Store(true)
	reads.Wait()
	close(buried)
	dead.Wait()
	t.Logf("%d reads within %v, %d of them hits", bounded.Load(), bound, hits.Load())
	assert.Positive(t, hits.Load())
}
