package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/internal/redistest"
	"github.com/tidemark-go/tidemark/internal/wire"
)

func TestMain(m *testing.M) {
	os.Exit(redistest.Main(func() int { return pgtest.Main(m) }))
}

// sql runs commands in the database at url.
func execute(ctx context.Context, url, commands string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, commands)
	return err
}

func TestOutboxAndRelay(t *testing.T) {
	url := pgtest.Database(t, execute)
	require.NoError(t, execute(t.Context(), url, `CREATE TABLE accounts (key bigint PRIMARY KEY, value bigint, version bigint)`))
	do := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append(args, "-database", url, "-table", "accounts")...)
	}
	r := do("outbox", "check")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "install the outbox")
	r = do("outbox", "print", "-raise")
	require.Equal(t, exitOK, r.status, r.err)
	require.Contains(t, r.out, `CREATE TABLE IF NOT EXISTS "accounts_outbox"`)
	require.NoError(t, execute(t.Context(), url, r.out), "what is printed can be run")
	require.Equal(t, exitOK, do("outbox", "check", "-raise").status)
	r = do("outbox", "install")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "accounts_outbox")
	r = do("outbox", "check")
	require.Equal(t, exitOK, r.status)
	assert.Equal(t, "changes of accounts are written down\nnone waits to be told\n", r.out)
	assert.Equal(t, exitFailed, do("outbox", "check", "-raise").status, "that was taken back")
	require.NoError(t, execute(t.Context(), url, `INSERT INTO accounts VALUES (6, 1, 3)`))
	assert.Regexp(t, `the oldest that is not told is [\d.]+m?s old\n$`, do("outbox", "check").out)
	require.NoError(t, execute(t.Context(), url, `UPDATE accounts_outbox SET at = at - interval '1 minute'`))
	assert.Regexp(t, `the oldest that is not told is 1m\d+s old: nobody tells them`, do("outbox", "check").out)
	require.NoError(t, execute(t.Context(), url, `DELETE FROM accounts_outbox`))

	require.NoError(t, execute(t.Context(), url, `CREATE TABLE owners (id bigint PRIMARY KEY, rev bigint)`))
	for flags, want := range map[string]string{
		"":                       `owners has no column "key" (Table.Key), nor "version" (Table.Version): see -key and -version`,
		"-key id":                `owners has no column "version" (Table.Version): see -version`,
		"-version rev":           `owners has no column "key" (Table.Key): see -key`,
		"-version - -key nosuch": `owners has no column "nosuch" (Table.Key): see -key`,
	} {
		args := append([]string{"outbox", "install", "-database", url, "-table", "owners"}, strings.Fields(flags)...)
		r := tidemarkWith(t.Context(), "", args...)
		assert.Equal(t, exitFailed, r.status, flags)
		assert.Contains(t, r.err, want, flags)
	}

	// Two relays, one of which works.
	s := startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir()})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan result, 2)
	for range cap(done) {
		go func() {
			done <- tidemarkWith(ctx, "", "relay", "-database", url, "-table", "accounts", "-name", "accounts",
				"-server", s.ClientURL(), "-replicas", "1", "-stats", "100ms", "-lease", "2s")
		}()
	}
	next := stream(t, s.ClientURL())
	require.Equal(t, wire.KindInvalidateAll, next().Kind, "who knows what changed before")
	require.NoError(t, execute(t.Context(), url, `INSERT INTO accounts VALUES (7, 1, 3)`))
	assert.Equal(t, []wire.Entry{{Key: []byte("\x07\x00\x00\x00\x00\x00\x00\x00"), Version: 3}}, next().Entries)
	time.Sleep(300 * time.Millisecond) // for a line of what was counted
	stop()
	var logs strings.Builder
	for range cap(done) {
		r := <-done
		require.Equal(t, exitOK, r.status, r.err)
		logs.WriteString(r.err)
	}
	assert.Equal(t, 1, strings.Count(logs.String()+"\n", "the relay leads"), logs.String())
	assert.Regexp(t, `msg=relay working=true lag=0s waiting=0`, logs.String())
	assert.Regexp(t, `msg=relay working=false lag=unknown waiting=unknown`, logs.String())

	r = do("outbox", "remove", "-print")
	assert.Contains(t, r.out, `DROP TABLE IF EXISTS "accounts_outbox"`)
	assert.Equal(t, exitOK, do("outbox", "check").status, "it was only printed")
	require.Equal(t, exitOK, do("outbox", "remove").status)
	assert.Equal(t, exitFailed, do("outbox", "check").status)
}

// stream returns a function that returns the next message of the stream of the cache
// accounts, once that is there.
func stream(t *testing.T, url string) (next func() wire.Message) {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var c jetstream.Consumer
	require.Eventually(t, func() bool {
		c, err = js.OrderedConsumer(t.Context(), tidemark.NATSStreamName("accounts"), jetstream.OrderedConsumerConfig{})
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	messages, err := c.Messages()
	require.NoError(t, err)
	t.Cleanup(messages.Stop)
	return func() (m wire.Message) {
		msg, err := messages.Next(jetstream.NextMaxWait(10 * time.Second))
		require.NoError(t, err)
		require.NoError(t, wire.Decode(msg.Data(), &m))
		return m
	}
}

func TestOutboxAndRelayRefuseWhatTheyDoNotUnderstand(t *testing.T) {
	t.Setenv("TIDEMARK_DATABASE", "postgres://u:secret@127.0.0.1:1/db")
	for _, tt := range []struct {
		args string
		want string
	}{
		{"outbox -table accounts", "is not install"},
		{"outbox mend -table accounts", "is not install"},
		{"outbox install", "-table is required"},
		{"outbox install -table a;b", "Table.Name"},
		{"outbox install -table accounts -version - -raise", "Table.Raise"},
		{"outbox install -table accounts -bulk -1", "Table.Bulk"},
		{"outbox install -table accounts more", "unexpected argument"},
		{"relay -name accounts", "-table is required"},
		{"relay -table accounts", "-name is required"},
		{"relay -table accounts -name accounts more", "unexpected argument"},
		{"relay -table accounts -name accounts -epoch 4294967296", "-epoch"},
		{"relay -table accounts -name accounts -batch -1 -replicas 2", "Batch"},
		{"relay -table accounts -name accounts -lease 1ms", "Lease"},
		{"relay -table accounts -name a* ", "Invalidator.Name"},
		{"relay -table accounts -name accounts -database postgres://%", "cannot parse"},
	} {
		r := tidemarkWith(t.Context(), "", strings.Fields(tt.args)...)
		assert.Equal(t, exitUsage, r.status, tt.args)
		assert.Contains(t, r.err, tt.want, tt.args)
	}
	r := tidemarkWith(t.Context(), "", "outbox", "check", "-table", "accounts", "-timeout", "5s")
	assert.Equal(t, exitFailed, r.status)
	for _, args := range []string{"outbox -h", "relay -h"} {
		r := tidemarkWith(t.Context(), "", strings.Fields(args)...)
		assert.Equal(t, exitOK, r.status)
		assert.NotContains(t, r.err, "secret")
	}
}

// A key column of which one row answers to several texts is no mistake, and may be one
// of the caches.
func TestOutboxWarnsOfKeysWithSeveralTexts(t *testing.T) {
	url := pgtest.Database(t, execute)
	require.NoError(t, execute(t.Context(), url, `CREATE TABLE tickets (key uuid PRIMARY KEY, version bigint)`))
	for _, action := range []string{"install", "check"} {
		r := tidemarkWith(t.Context(), "", "outbox", action, "-database", url, "-table", "tickets")
		require.Equal(t, exitOK, r.status, r.err)
		assert.Contains(t, r.out, `warning: a row of tickets answers to several texts of "key": a uuid may be in capitals`)
	}
	require.NoError(t, execute(t.Context(), url, `ALTER TABLE tickets ALTER key TYPE text`))
	r := tidemarkWith(t.Context(), "", "outbox", "check", "-database", url, "-table", "tickets")
	assert.NotContains(t, r.out, "warning", r.err)
}
