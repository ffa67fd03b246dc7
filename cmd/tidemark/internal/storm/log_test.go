package storm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// A fakeLog is a log that the test drives; all its readers are one.
type fakeLog struct {
	appended []string
	messages chan string
	seq      uint64
}

func newFakeLog() *fakeLog { return &fakeLog{messages: make(chan string, 100)} }

func (f *fakeLog) Append(_ context.Context, msg []byte) (uint64, error) {
	f.appended = append(f.appended, string(msg))
	return uint64(len(f.appended)), nil
}

func (f *fakeLog) Open(context.Context, uint64) (tidemark.LogReader, error) { return f, nil }

func (f *fakeLog) Next(ctx context.Context) (uint64, []byte, error) {
	select {
	case m := <-f.messages:
		if m == "gap" {
			return 0, nil, tidemark.ErrGap
		}
		f.seq++
		return f.seq, []byte(m), nil
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

func (f *fakeLog) Close() error { return nil }

// openLogLink returns a link on f that the oracle listens to as replica 1. The
// message "v3" says that account 0 has reached version 3, "all" that everything
// changed.
func openLogLink(f *fakeLog) *logLink {
	return &logLink{
		inner: f, oracle: newOracle(2, 2), replica: 1, stopped: make(chan struct{}),
		ears: ears{lost: true, message: func(msg []byte) (news []change, doubt bool) {
			var version uint64
			if n, _ := fmt.Sscanf(string(msg), "v%d", &version); n == 1 {
				news = []change{{0, version}}
			}
			return news, string(msg) == "all"
		}},
	}
}

func openReader(t *testing.T, l *logLink, from uint64) tidemark.LogReader {
	t.Helper()
	r, err := l.Open(t.Context(), from)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

func next(t *testing.T, r tidemark.LogReader) string {
	t.Helper()
	_, msg, err := r.Next(t.Context())
	require.NoError(t, err)
	return string(msg)
}

func TestLogLinkTellsTheOracleWhatTheReplicaHasHandled(t *testing.T) {
	f := newFakeLog()
	l := openLogLink(f)
	r := openReader(t, l, 7)
	for _, m := range []string{"v3", "all", "v2", "gap"} {
		f.messages <- m
	}
	told := func() uint64 { return l.oracle.told[1][0].Load() }
	assert.Equal(t, "v3", next(t, r))
	assert.Zero(t, told(), "the replica has it, but has not done anything about it yet")
	assert.Equal(t, "all", next(t, r))
	assert.EqualValues(t, 3, told())
	assert.Zero(t, l.oracle.doubted[1].Load(), "it went on where it had stopped, and is about to doubt")
	assert.Equal(t, "v2", next(t, r))
	doubted := l.oracle.doubted[1].Load()
	assert.Positive(t, doubted)
	_, _, err := r.Next(t.Context())
	require.ErrorIs(t, err, tidemark.ErrGap)
	assert.EqualValues(t, 3, told())
	assert.Zero(t, l.oracle.told[0][0].Load(), "another replica")

	time.Sleep(time.Millisecond)
	f.messages <- "v3"
	r = openReader(t, l, 0)
	assert.Equal(t, doubted, l.oracle.doubted[1].Load())
	next(t, r)
	assert.Greater(t, l.oracle.doubted[1].Load(), doubted, "it begins anew, and has read nothing in between")
}

func TestLogLinkTellsNobodyOfAWriterThatIsToDie(t *testing.T) {
	f := newFakeLog()
	l := openLogLink(f)
	l.oracle = nil
	f.messages <- "v3"
	f.messages <- "all"
	r := openReader(t, l, 0)
	assert.Equal(t, "v3", next(t, r))
	assert.Equal(t, "all", next(t, r))
}

func TestStalledLogReaderReadsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeLog()
		l := openLogLink(f)
		r := openReader(t, l, 0)
		l.stall(time.Second)
		f.messages <- "v3"
		begin := time.Now()
		assert.Equal(t, "v3", next(t, r))
		assert.Equal(t, time.Second, time.Since(begin))
		_, err := l.Append(t.Context(), []byte("v4"))
		assert.NoError(t, err)

		for _, c := range []struct {
			why string
			end func(cancel func())
			err error
		}{
			{"its context ends", func(cancel func()) { cancel() }, context.Canceled},
			{"it is closed", func(func()) { assert.NoError(t, r.Close()) }, errLogClosed},
			{"its process dies", func(func()) { l.kill() }, errDead},
		} {
			r = openReader(t, l, 0)
			l.stall(time.Hour)
			f.messages <- "v3"
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Minute, func() { c.end(cancel) })
			begin := time.Now()
			_, _, err := r.Next(ctx)
			assert.ErrorIs(t, err, c.err, c.why)
			assert.Equal(t, time.Minute, time.Since(begin), c.why)
			cancel()
		}
	})
}

func TestDeadProcessNeitherAppendsNorReads(t *testing.T) {
	f := newFakeLog()
	l := openLogLink(f)
	r := openReader(t, l, 0)
	f.messages <- "v3"
	_, err := l.Append(t.Context(), []byte("alive"))
	require.NoError(t, err)
	l.kill()
	l.kill()
	_, err = l.Append(t.Context(), []byte("dead"))
	assert.ErrorIs(t, err, errDead)
	assert.Equal(t, []string{"alive"}, f.appended)
	assert.EqualValues(t, 1, l.suppressed.Load())
	_, _, err = r.Next(t.Context())
	assert.ErrorIs(t, err, errDead)
	_, err = l.Open(t.Context(), 0)
	assert.ErrorIs(t, err, errDead)
}

func TestLogEarTakesAnOriginsFirstMessageForItsBeginning(t *testing.T) {
	hint, log := newTidemarkEar(), newTidemarkEar()
	log.log = true
	for _, c := range []struct {
		seq       uint64
		hint, log bool // must doubt
	}{{5, true, false}, {6, false, false}, {6, false, false}, {8, true, true}} {
		msg := hello(t, c.seq)
		_, doubt := hint.message(msg)
		assert.Equal(t, c.hint, doubt, c.seq)
		_, doubt = log.message(msg)
		assert.Equal(t, c.log, doubt, c.seq)
	}
	_, doubt := log.message([]byte("what is this"))
	assert.True(t, doubt)
}

// hello returns a message of one origin with the given number.
func hello(t *testing.T, seq uint64) []byte {
	t.Helper()
	msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, Origin: 1, Seq: seq, Nonce: 1})
	require.NoError(t, err)
	return msg
}

var errRefused = errors.New("refused")

// A refusingLog has nothing to read.
type refusingLog struct{ *fakeLog }

func (refusingLog) Open(context.Context, uint64) (tidemark.LogReader, error) { return nil, errRefused }

func TestLogLinkPassesOnWhatTheLogRefuses(t *testing.T) {
	l := openLogLink(nil)
	l.inner = refusingLog{}
	_, err := l.Open(t.Context(), 0)
	assert.ErrorIs(t, err, errRefused)
	assert.Zero(t, l.oracle.doubted[1].Load())
}
