package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// watching starts "tidemark watch" and returns once it listens. The returned
// function waits for its end.
func watching(t *testing.T, ctx context.Context, url string, args ...string) (out, errOut *output, wait func() int) {
	t.Helper()
	out, errOut = &output{}, &output{}
	status := make(chan int, 1)
	args = append([]string{"watch", "-server", url, "-name", "accounts"}, args...)
	go func() { status <- run(ctx, args, streams{strings.NewReader(""), out, errOut}) }()
	require.Eventually(t, func() bool { return strings.Contains(errOut.String(), "watching tidemark.v1.accounts.hint") },
		5*time.Second, time.Millisecond)
	return out, errOut, func() int {
		select {
		case s := <-status:
			return s
		case <-time.After(10 * time.Second):
			require.FailNow(t, "watch does not end", errOut.String())
			return -1
		}
	}
}

// unknownKind is an intact message of a kind that this wire version does not
// define.
func unknownKind(t *testing.T) []byte {
	t.Helper()
	b, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, Origin: 0xabc, Seq: 9})
	require.NoError(t, err)
	b[3] = 200
	reseal(b)
	require.ErrorIs(t, wire.Decode(b, &wire.Message{}), wire.ErrUnknownKind)
	return b
}

func publishRaw(t *testing.T, url string, messages ...[]byte) {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	for _, m := range messages {
		require.NoError(t, nc.Publish(tidemark.NATSSubject("accounts"), m))
	}
	require.NoError(t, nc.Flush())
}

func encode(t *testing.T, m wire.Message) []byte {
	t.Helper()
	b, err := wire.Append(nil, &m)
	require.NoError(t, err)
	return b
}

func exampleMessages(t *testing.T) [][]byte {
	return [][]byte{
		encode(t, wire.Message{Kind: wire.KindInvalidate, CacheID: 0x11, Origin: 0x22, Seq: 3, Entries: []wire.Entry{
			{Key: []byte("a b"), Version: 17}, {Key: []byte("gone"), Version: 4, Deleted: true}, {Key: []byte("?")},
		}}),
		encode(t, wire.Message{Kind: wire.KindInvalidateAll, Origin: 0x22, Seq: 4}),
		encode(t, wire.Message{Kind: wire.KindHello, Origin: 0x22, Seq: 5, Nonce: 99}),
		[]byte("garbage"),
		unknownKind(t),
	}
}

func TestWatchPrintsOneLineForEachMessage(t *testing.T) {
	s := startNATS(t, server.Options{})
	out, _, wait := watching(t, t.Context(), s.ClientURL(), "-count", "5")
	publishRaw(t, s.ClientURL(), exampleMessages(t)...)
	require.Equal(t, exitOK, wait())
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	require.Len(t, lines, 5)
	for i, want := range []string{
		`cache 0000000000000011 origin 0000000000000022 #3 invalidate "a b"@17 "gone"@4(deleted) "?"`,
		`origin 0000000000000022 #4 invalidate-all`,
		`#5 hello 99`,
		`undecodable (wire: corrupt message), 7 bytes: 67617262616765`,
		`origin 0000000000000abc #9 kind(200) undecodable (wire: unknown message kind)`,
	} {
		assert.Contains(t, lines[i], want)
		assert.Regexp(t, `^\d\d:\d\d:\d\d\.\d{6} `, lines[i])
	}
}

func TestWatchPrintsJSON(t *testing.T) {
	s := startNATS(t, server.Options{})
	out, _, wait := watching(t, t.Context(), s.ClientURL(), "-count", "5", "-json")
	publishRaw(t, s.ClientURL(), exampleMessages(t)...)
	require.Equal(t, exitOK, wait())
	var got []watchedMessage
	for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); {
		var m watchedMessage
		require.NoError(t, d.Decode(&m))
		assert.WithinDuration(t, time.Now(), m.Time, time.Minute)
		got = append(got, m)
	}
	require.Len(t, got, 5)
	assert.Equal(t, []watchedKey{{Key: "a b", Version: 17}, {Key: "gone", Version: 4, Deleted: true}, {Key: "?"}}, got[0].Keys)
	assert.Equal(t, "invalidate", got[0].Kind)
	assert.EqualValues(t, 99, got[2].Nonce)
	assert.Equal(t, "67617262616765", got[3].Raw)
	assert.Equal(t, 7, got[3].Bytes)
	assert.Equal(t, "wire: unknown message kind", got[4].Error)
	assert.EqualValues(t, 9, got[4].Seq)
}

func TestWatchShowsProbes(t *testing.T) {
	m := describe(time.Now(), encode(t, wire.Message{Kind: wire.KindProbe, Seq: 2, Probes: []wire.Probe{{Origin: 0x22, Nonce: 7}, {Origin: 1, Nonce: 8}}}), "string")
	assert.Equal(t, []watchedProbe{{"0000000000000022", 7}, {"0000000000000001", 8}}, m.Probes)
	assert.Contains(t, m.String(), "#2 probe 0000000000000022:7 0000000000000001:8")
}

func TestWatchShowsStrictWritesAndEpochs(t *testing.T) {
	op := [16]byte{0xab, 0xcd, 15: 1}
	m := describe(time.Now(), encode(t, wire.Message{Kind: wire.KindInvalidate, Epoch: 3, Entries: []wire.Entry{
		{Key: []byte("k"), Stage: wire.Begun, Op: op, TTL: 1}, {Key: []byte("k"), Stage: wire.Ended, Op: op, Version: 5},
		{Key: []byte("k"), Stage: wire.Void, Op: op},
	}}), "string")
	assert.Contains(t, m.String(), `invalidate (epoch 3) "k"(write abcd0000 begins) "k"@5(write abcd0000 ended) "k"(write abcd0000 void)`)
	assert.Equal(t, "abcd0000000000000000000000000001", m.Keys[0].Op)
}

func TestWatchShowsWhatInvalidatePublishes(t *testing.T) {
	s := startNATS(t, server.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	out, _, wait := watching(t, ctx, s.ClientURL(), "-key-type", "int")
	r := tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-key-type", "int", "--", "-42@7")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Eventually(t, func() bool { return strings.Contains(out.String(), `invalidate "-42"@7`) }, 5*time.Second, time.Millisecond)
	publishRaw(t, s.ClientURL(), encode(t, wire.Message{Kind: wire.KindInvalidate, Entries: []wire.Entry{{Key: []byte("abc"), Version: 1}}}))
	assert.Eventually(t, func() bool { return strings.Contains(out.String(), `"0x616263"@1`) }, 5*time.Second, time.Millisecond,
		"a key of another type is shown as it is")
	assert.Contains(t, out.String(), "hello (goodbye)")
	cancel()
	assert.Equal(t, exitOK, wait(), "an interrupt is how it ends")
}

func TestWatchSaysWhenItMayHaveMissedSomething(t *testing.T) {
	s := startNATS(t, server.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, errOut, wait := watching(t, ctx, s.ClientURL())
	s.Shutdown()
	assert.Eventually(t, func() bool { return strings.Contains(errOut.String(), "messages may be missing: disconnected") },
		5*time.Second, time.Millisecond)
	cancel()
	assert.Equal(t, exitOK, wait())
}

func TestWatchFailsWithoutAServer(t *testing.T) {
	r := tidemarkWith(t.Context(), "", "watch", "-server", "nats://127.0.0.1:1", "-name", "accounts")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "cannot reach nats://127.0.0.1:1")
}

// failingWriter is an output that is gone, as a closed pipe is.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, context.Canceled }

func TestWatchEndsWhenItsOutputDoes(t *testing.T) {
	w := &watcher{out: failingWriter{}, err: &output{}, keyType: "string", done: make(chan struct{})}
	w.print(time.Now(), []byte("x"))
	w.print(time.Now(), []byte("y"))
	<-w.done
	assert.ErrorIs(t, w.fail, context.Canceled)
}

// reseal gives a changed message the checksum that its bytes have now.
func reseal(b []byte) {
	body := b[:len(b)-4]
	binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}
