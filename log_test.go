package tidemark

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A logbook is where a Logger writes.
type logbook struct {
	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (b *logbook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *logbook) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(b, nil)) }

// of returns the records with the given message.
func (b *logbook) of(t testing.TB, message string) (records []map[string]any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for d := json.NewDecoder(bytes.NewReader(b.all.Bytes())); d.More(); {
		r := map[string]any{}
		require.NoError(t, d.Decode(&r))
		if r["msg"] == message {
			records = append(records, r)
		}
	}
	return records
}

const (
	logGap      = "tidemark: messages may be missing"
	logForeign  = "tidemark: a message of another name or schema is ignored"
	logLeftOut  = "tidemark: records left out of the log"
	logTooLarge = "tidemark: a value costs more than MaxCost and is not cached"
)

// A stranger whose every message shows that one is missing does not fill the log,
// and the log tells how much it does not tell.
func TestLogger_AFloodIsCountedAndNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b, book := newSource(), newBus(), &logbook{}
		c := newCache(t, Options[string, int]{Store: src, Invalidator: b.invalidator(), Logger: book.logger()})
		require.NoError(t, c.Ready(t.Context()))
		s := newStranger(t, b)
		s.changed("k", 1, false)
		flood := func(n int) {
			for range n {
				s.seq++ // never sent
				s.changed("k", 1, false)
			}
		}
		flood(1000)
		assert.Len(t, book.of(t, logGap), logBurst)
		assert.EqualValues(t, 1000, c.Stats().Gaps)
		assert.EqualValues(t, 1000-logBurst, c.Stats().Muted)
		assert.Empty(t, book.of(t, logLeftOut), "not before the time is over")

		time.Sleep(logWindow + 2*drainEvery)
		synctest.Wait()
		left := book.of(t, logLeftOut)
		require.Len(t, left, 1)
		assert.Equal(t, logGap, left[0]["message"])
		assert.EqualValues(t, 1000-logBurst, left[0]["records"])
		assert.Equal(t, "WARN", left[0]["level"])

		flood(20) // the time has doubled
		time.Sleep(logWindow + 2*drainEvery)
		synctest.Wait()
		assert.Len(t, book.of(t, logLeftOut), 1)
		time.Sleep(logWindow)
		synctest.Wait()
		assert.Len(t, book.of(t, logLeftOut), 2)
		assert.EqualValues(t, 1000+20-2*logBurst, c.Stats().Muted)

		time.Sleep(5 * logWindow) // quiet: the next flood is met as the first
		flood(20)
		assert.Len(t, book.of(t, logGap), 3*logBurst)
		time.Sleep(logWindow + 2*drainEvery)
		synctest.Wait()
		assert.Len(t, book.of(t, logLeftOut), 3)
	})
}

// What a flood of one message does to the log it does to no other message.
func TestLogger_OneFloodHidesNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b, book := newSource(), newBus(), &logbook{}
		c := newCache(t, Options[string, int]{Store: src, Invalidator: b.invalidator(), MaxCost: 10, Logger: book.logger(),
			Cost: func(_ string, v int) int64 { return int64(v) }})
		require.NoError(t, c.Ready(t.Context()))
		foreign := newStranger(t, b)
		foreign.id = foreignID("elsewhere", "")
		for range 100 {
			foreign.hello()
		}
		assert.Len(t, book.of(t, logForeign), logBurst)
		assert.EqualValues(t, 100, c.Stats().Foreign)
		require.Equal(t, TooLarge, c.Put("k", 11, 1))
		assert.Len(t, book.of(t, logTooLarge), 1)
		require.NoError(t, c.Close(t.Context()))
		left := book.of(t, logLeftOut)
		require.Len(t, left, 1, "Close waits for no window")
		assert.EqualValues(t, 100-logBurst, left[0]["records"])
	})
}

// The time for which a flow is muted grows no longer than is useful.
func TestLogLimit_TheWindowIsBounded(t *testing.T) {
	var now atomic.Int64
	var panics atomic.Uint64
	book := &logbook{}
	l, limit := limitLog(book.logger(), now.Load, &panics)
	told := 0
	for range 100 {
		for range 2 * logBurst {
			l.Info("flood")
		}
		require.False(t, limit.due())
		now.Add(int64(logWindowMax))
		if limit.due() {
			limit.tell()
			told++
		}
	}
	assert.Equal(t, 100, told)
	assert.Len(t, book.of(t, "flood"), 100*logBurst)
	assert.Len(t, book.of(t, logLeftOut), 100)
	assert.EqualValues(t, 100*logBurst, limit.muted.Load())
	assert.False(t, limit.due())
}

// Loggers that are derived from a limited one share its limit.
func TestLogLimit_CoversDerivedLoggers(t *testing.T) {
	var panics atomic.Uint64
	book := &logbook{}
	l, _ := limitLog(book.logger(), func() int64 { return 0 }, &panics)
	for i := range logBurst {
		l.With("i", i).WithGroup("g").Info("flood", "x", 1)
	}
	l.Info("flood")
	l.With("i", 1).Info("flood")
	l.WithGroup("g").Info("flood")
	records := book.of(t, "flood")
	require.Len(t, records, logBurst)
	assert.Equal(t, map[string]any{"x": 1.0}, records[3]["g"])
	assert.EqualValues(t, 3, records[3]["i"])
	l.Warn("flood")
	assert.Len(t, book.of(t, "flood"), logBurst+1, "another level is another flow")
}

// panickyHandler is a mistake of whoever wrote it.
type panickyHandler struct{ slog.Handler }

func (panickyHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (panickyHandler) Handle(context.Context, slog.Record) error { panic("no") }

// A Logger that panics harms nobody, neither at once nor when floods are told of.
func TestLogger_PanicIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		c := newCache(t, Options[string, int]{Store: src, Invalidator: b.invalidator(),
			Logger: slog.New(panickyHandler{slog.DiscardHandler})})
		require.NoError(t, c.Ready(t.Context()))
		s := newStranger(t, b)
		for i := range 3 * logBurst {
			s.send(fmt.Append(nil, "noise", i))
		}
		time.Sleep(2 * logWindow)
		assert.GreaterOrEqual(t, c.Stats().Panics, uint64(logBurst+1))
		src.set("k", 1)
		hold(t, c, "k")
	})
}
