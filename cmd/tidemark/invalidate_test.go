package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
	"github.com/tidemark-go/tidemark/ops"
)

// hear returns what is published for the cache called name, decoded.
func hear(t *testing.T, url, name string) <-chan wire.Message {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	heard := make(chan wire.Message, 64)
	_, err = nc.Subscribe(tidemark.NATSSubject(name), func(m *nats.Msg) {
		var msg wire.Message
		if assert.NoError(t, wire.Decode(m.Data, &msg)) && msg.Kind != wire.KindHello {
			heard <- msg
		}
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	return heard
}

// entries returns the next n keys that are published, with their versions, in
// however many messages they come.
func entries(t *testing.T, heard <-chan wire.Message, n int) map[string]uint64 {
	t.Helper()
	got := map[string]uint64{}
	for len(got) < n {
		select {
		case m := <-heard:
			require.Equal(t, wire.KindInvalidate, m.Kind)
			for _, e := range m.Entries {
				got[string(e.Key)] = e.Version
			}
		case <-time.After(5 * time.Second):
			require.FailNow(t, "not everything was published", "%v", got)
		}
	}
	return got
}

func TestInvalidatePublishesArguments(t *testing.T) {
	s := startNATS(t, server.Options{})
	heard := hear(t, s.ClientURL(), "accounts")
	r := tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts",
		"a", "b@17", "user@example.com", "odd@3@0", "b@4", "c@5", "c")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "published 7 keys on tidemark.v1.accounts.hint\n", r.out)
	assert.Equal(t, map[string]uint64{"a": 0, "b": 17, "user@example.com": 0, "odd@3": 0, "c": 0}, entries(t, heard, 5))
}

func TestInvalidatePublishesLinesOfStandardInput(t *testing.T) {
	s := startNATS(t, server.Options{})
	heard := hear(t, s.ClientURL(), "accounts")
	r := tidemarkWith(t.Context(), "12@3\r\n\n-7\n", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-key-type", "int")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "published 2 keys")
	assert.Equal(t, map[string]uint64{"\x0c\x00\x00\x00\x00\x00\x00\x00": 3, "\xf9\xff\xff\xff\xff\xff\xff\xff": 0}, entries(t, heard, 2))

	r = tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts")
	assert.Equal(t, exitOK, r.status, "a job that has changed nothing is no mistake")
	assert.Contains(t, r.out, "published 0 keys")
}

func TestInvalidatePublishesNothingIfAKeyIsWrong(t *testing.T) {
	s := startNATS(t, server.Options{})
	heard := hear(t, s.ClientURL(), "accounts")
	r := tidemarkWith(t.Context(), "1\nx\n2\ny@3\n", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-key-type", "int")
	assert.Equal(t, exitUsage, r.status)
	assert.Contains(t, r.err, `line 2: "x" is not an integer key`)
	assert.Contains(t, r.err, `line 4: "y" is not an integer key`)

	r = tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-all")
	require.Equal(t, exitOK, r.status, r.err)
	select {
	case m := <-heard:
		assert.Equal(t, wire.KindInvalidateAll, m.Kind, "nothing came before it")
	case <-time.After(5 * time.Second):
		assert.Fail(t, "nothing was published")
	}
}

func TestInvalidateRefusesWhatIsProbablyAMistake(t *testing.T) {
	s := startNATS(t, server.Options{})
	for _, args := range [][]string{
		{"-name", "accounts", "alice", "-all"}, {"-name", "accounts", "alice", "--schema=2"},
		{"-name", "accounts", "-epoch", "1", "alice"}, {"-name", "accounts", "-all", "-epoch", "4294967296"},
		{"-name", "accounts", "@5"}, {"-name", "accounts", ""}, {"-name", "two words", "alice"},
	} {
		r := tidemarkWith(t.Context(), "", append([]string{"invalidate", "-server", s.ClientURL()}, args...)...)
		assert.Equal(t, exitUsage, r.status, "%q", args)
		assert.Empty(t, r.out, "%q", args)
		assert.NotEmpty(t, r.err, "%q", args)
	}
}

func TestInvalidateAll(t *testing.T) {
	s := startNATS(t, server.Options{})
	heard := hear(t, s.ClientURL(), "accounts")
	r := tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-all")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "everything changed")
	select {
	case m := <-heard:
		assert.Equal(t, wire.KindInvalidateAll, m.Kind)
	case <-time.After(5 * time.Second):
		assert.Fail(t, "nothing was published")
	}
}

func TestInvalidateManyKeys(t *testing.T) {
	s := startNATS(t, server.Options{})
	heard := hear(t, s.ClientURL(), "accounts")
	var input strings.Builder
	const many = 5000
	for i := range many {
		fmt.Fprintf(&input, "account-%d@%d\n", i, i+1)
	}
	r := tidemarkWith(t.Context(), input.String(), "invalidate", "-server", s.ClientURL(), "-name", "accounts")
	require.Equal(t, exitOK, r.status, r.err)
	got := entries(t, heard, many)
	assert.Len(t, got, many)
	assert.EqualValues(t, 4321, got["account-4320"])
}

// A cache must take what the command says: this is what it is for.
func TestInvalidateReachesACache(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL(), tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	version := tidemark.Version(1)
	c, err := tidemark.New(tidemark.Options[string, string]{
		Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Schema: "v2"}),
		Loader: tidemark.LoaderFunc[string, string](func(context.Context, string) (string, tidemark.Version, error) {
			return "value", version, nil
		}),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close(context.Background())) })
	require.NoError(t, c.Ready(t.Context()))
	load := func() bool {
		_, err := c.Load(t.Context(), "a")
		require.NoError(t, err)
		_, ok := c.Get("a")
		return ok
	}
	require.Eventually(t, load, 5*time.Second, time.Millisecond)

	args := []string{"invalidate", "-server", s.ClientURL(), "-name", "accounts", "a@2"}
	require.Equal(t, exitOK, tidemarkWith(t.Context(), "", args...).status)
	require.Eventually(t, func() bool { return c.Stats().Foreign > 0 }, 5*time.Second, time.Millisecond)
	_, ok := c.Get("a")
	assert.True(t, ok, "another schema is none of its business")

	version = 2
	args = append(args[:len(args)-1], "-schema", "v2", "a@2")
	require.Equal(t, exitOK, tidemarkWith(t.Context(), "", args...).status)
	assert.Eventually(t, func() bool { _, ok := c.Get("a"); return !ok }, 5*time.Second, time.Millisecond)
}

// What the command says to a cache with a log goes through that, and a restore that
// it declares reaches every replica.
func TestInvalidateOnAStream(t *testing.T) {
	s := startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir()})
	args := func(more ...string) []string {
		return append([]string{"invalidate", "-server", s.ClientURL(), "-name", "accounts", "-stream", "-timeout", "2s"}, more...)
	}
	r := tidemarkWith(t.Context(), "", args("a@2")...)
	assert.Equal(t, exitFailed, r.status, "there is no stream yet: %s", r.out)

	nc, err := nats.Connect(s.ClientURL(), tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	var version atomic.Uint64
	version.Store(9)
	c, err := tidemark.New(tidemark.Options[string, string]{
		Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: &tidemark.NATSStream{Replicas: 1, NoHint: true}}),
		Loader: tidemark.LoaderFunc[string, string](func(context.Context, string) (string, tidemark.Version, error) {
			return "value", tidemark.Version(version.Load()), nil
		}),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close(context.Background())) })
	require.NoError(t, c.Ready(t.Context()))
	held := func() bool {
		_, _ = c.Load(t.Context(), "a")
		_, ok := c.Get("a")
		return ok
	}
	gone := func() bool { _, ok := c.Get("a"); return !ok }
	require.Eventually(t, held, 5*time.Second, time.Millisecond)
	r = tidemarkWith(t.Context(), "", args("a@10")...)
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "published 1 key on tidemark.v1.accounts.log\n", r.out)
	assert.Eventually(t, gone, 5*time.Second, time.Millisecond)

	version.Store(3) // restored from a backup
	r = tidemarkWith(t.Context(), "", args("-all", "-epoch", "1")...)
	require.Equal(t, exitOK, r.status, r.err)
	require.Eventually(t, func() bool { return c.Stats().SourceEpoch == 1 }, 5*time.Second, time.Millisecond)
	assert.Eventually(t, held, 5*time.Second, time.Millisecond)
}

// Replicas with a log take only keys from the hint subject: "published" would be a
// lie.
func TestInvalidateRefusesToPassALogBy(t *testing.T) {
	s := onJetStream(t)
	url := s.ClientURL()
	heard := hear(t, url, "accounts")
	invalidate := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"invalidate", "-server", url, "-name", "accounts"}, args...)...)
	}
	require.Equal(t, exitOK, invalidate("a@1").status, "JetStream is there, and no stream")
	assert.Equal(t, map[string]uint64{"a": 1}, entries(t, heard, 1))

	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	require.NoError(t, tidemark.SetUpNATSStream(t.Context(), nc, tidemark.NATSOptions{Name: "accounts", Stream: small()})) // no replica answers
	for _, args := range [][]string{{"a@2"}, {"-all"}, {"-all", "-epoch", "3"}} {
		r := invalidate(args...)
		assert.Equal(t, exitUsage, r.status, "%q", args)
		assert.Equal(t, "tidemark invalidate: accounts has a log, the stream TIDEMARK_V1_accounts: give -stream\n", r.err)
		assert.Empty(t, r.out)
	}
	r := invalidate("-stream=false", "b@4")
	require.Equal(t, exitOK, r.status, "whoever says so: %s", r.err)
	assert.Equal(t, map[string]uint64{"b": 4}, entries(t, heard, 1), "nothing came before it")
	require.Equal(t, exitOK, invalidate("-stream", "-all").status)
}

// An account that may not look publishes as it is told.
func TestInvalidateWherePermissionsForbidTheLook(t *testing.T) {
	for name, permissions := range map[string]server.Permissions{
		"to ask":  {Publish: &server.SubjectPermission{Deny: []string{"$JS.>"}}},
		"to hear": {Subscribe: &server.SubjectPermission{Deny: []string{"_INBOX.>"}}},
	} {
		s := startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir(), Users: []*server.User{
			{Username: "all", Password: "x"}, {Username: "job", Password: "x", Permissions: &permissions},
		}})
		as := func(user string) string { return strings.Replace(s.ClientURL(), "nats://", "nats://"+user+":x@", 1) }
		heard := hear(t, as("all"), "accounts")
		r := tidemarkWith(t.Context(), "", "invalidate", "-server", as("job"), "-name", "accounts", "a@2")
		require.Equal(t, exitOK, r.status, "%s: %s", name, r.err)
		assert.Equal(t, map[string]uint64{"a": 2}, entries(t, heard, 1), name)
	}
}

// Where the account may not look, a replica that answers says that there is a log.
func TestInvalidateBelievesTheReplicas(t *testing.T) {
	s := startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir(), Users: []*server.User{
		{Username: "all", Password: "x"},
		{Username: "job", Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.>"}}}},
	}})
	as := func(user string) string { return strings.Replace(s.ClientURL(), "nats://", "nats://"+user+":x@", 1) }
	replicaOf(t, as("all"), "a", tidemark.Options[string, string]{}, small())
	for _, args := range [][]string{{"a@2"}, {"-all"}} {
		r := tidemarkWith(t.Context(), "", append([]string{"invalidate", "-server", as("job"), "-name", "accounts"}, args...)...)
		assert.Equal(t, exitUsage, r.status)
		assert.Contains(t, r.err, "accounts has a log, the stream TIDEMARK_V1_accounts: give -stream")
		assert.Empty(t, r.out)
	}
}

// A server that says nothing may have a stream: nothing is published.
func TestInvalidateIfTheStreamCannotBeLookedAt(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	_, err = nc.SubscribeSync("$JS.API.>") // and does not answer
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "accounts", "-timeout", "1s", "a")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "it cannot be known whether accounts has a log; give -stream, or -stream=false")
	assert.Empty(t, r.out)
}

// Integers travel in another form than strings, and a replica would find none.
func TestInvalidateRefusesKeysOfAnotherType(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL(), tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	cache, err := tidemark.New(tidemark.Options[int64, string]{Invalidator: tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts"})})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
	view, err := ops.New(cache, ops.Options[int64, string]{Instance: "a"})
	require.NoError(t, err)
	service, err := view.Serve(nc)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, service.Stop()) })
	require.NoError(t, nc.Flush())
	heard := hear(t, s.ClientURL(), "accounts")
	invalidate := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"invalidate", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}
	r := invalidate("7")
	assert.Equal(t, exitUsage, r.status)
	assert.Equal(t, "tidemark invalidate: a has keys of type int, and would not know these: give -key-type int\n", r.err)
	require.Equal(t, exitOK, invalidate("-schema", "other", "7").status, "those are others")
	assert.Equal(t, map[string]uint64{"7": 0}, entries(t, heard, 1), "nothing came before it")
	require.Equal(t, exitOK, invalidate("-key-type", "int", "7").status)
	require.Equal(t, exitOK, invalidate("-all").status)
}

func TestInvalidateSaysWhyItFailed(t *testing.T) {
	r := tidemarkWith(t.Context(), "", "invalidate", "-server", "nats://127.0.0.1:1", "-name", "accounts", "a")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "cannot reach nats://127.0.0.1:1")
	assert.Empty(t, r.out)

	s := startNATS(t, server.Options{})
	r = tidemarkWith(t.Context(), "", "invalidate", "-server", s.ClientURL(), "-name", "not a name", "a")
	assert.Equal(t, exitUsage, r.status)
	assert.Contains(t, r.err, `"not a name"`)

	closed := startNATS(t, server.Options{Users: []*server.User{{
		Username: "reader", Password: "x",
		Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{">"}}},
	}}})
	url := strings.Replace(closed.ClientURL(), "nats://", "nats://reader:x@", 1)
	r = tidemarkWith(t.Context(), "", "invalidate", "-server", url, "-name", "accounts", "a")
	assert.Equal(t, exitFailed, r.status, "the server refuses the message")
	assert.Contains(t, strings.ToLower(r.err), "permissions violation")
	assert.Empty(t, r.out)
}
