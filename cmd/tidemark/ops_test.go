package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/ops"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

const secret = "4929-1234-5678"

// A replicaOf is one cache of a test, on a connection of its own, that answers.
func replicaOf(t *testing.T, url, instance string, o tidemark.Options[string, string], stream *tidemark.NATSStream) *tidemark.Cache[string, string] {
	t.Helper()
	nc, err := nats.Connect(url, tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	o.Invalidator = tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Beat: 250 * time.Millisecond, Stream: stream})
	cache, err := tidemark.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
	view, err := ops.New(cache, ops.Options[string, string]{Instance: instance, FormatValue: func(v string) string { return v }})
	require.NoError(t, err)
	service, err := view.Serve(nc)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, service.Stop()) })
	require.NoError(t, cache.Ready(t.Context()))
	require.NoError(t, nc.Flush())
	return cache
}

// hears waits until the cache hears n others.
func hears(t *testing.T, c *tidemark.Cache[string, string], n int) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Stats().Peers == n && c.Stats().State == tidemark.Fresh }, 10*time.Second, time.Millisecond)
}

func onJetStream(t *testing.T) *server.Server {
	return startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir()})
}

func small() *tidemark.NATSStream { return &tidemark.NATSStream{Replicas: 1, MaxBytes: 16 << 20} }

// column returns the fields of the line of the table that begins with name.
func column(t *testing.T, out, name string) []string {
	t.Helper()
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == name {
			return fields
		}
	}
	require.FailNow(t, "no line of "+name, out)
	return nil
}

// The version of a key in every replica beside the source's, and why.
func TestInspect(t *testing.T) {
	s := startNATS(t, server.Options{})
	file := filepath.Join(t.TempDir(), "bank.db")
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	require.NoError(t, err)
	defer db.Close()
	store, err := sqlstore.New(db, sqlstore.Options[string, string]{Table: "balances", Dialect: sqlstore.SQLite})
	require.NoError(t, err)
	require.NoError(t, store.CreateTables(t.Context()))
	o := tidemark.Options[string, string]{Store: store, TTL: time.Hour}
	a, b := replicaOf(t, s.ClientURL(), "a", o, nil), replicaOf(t, s.ClientURL(), "b", o, nil)
	hears(t, a, 1)
	hears(t, b, 1)
	_, err = a.CompareAndSet(t.Context(), "alice", 0, secret)
	require.NoError(t, err)
	_, err = a.Load(t.Context(), "alice")
	require.NoError(t, err)
	inspect := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"inspect", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}

	r := inspect("-store", "sqlite:"+file+"?table=balances", "alice")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, []string{"source", "1"}, column(t, r.out, "source")[:2])
	assert.Equal(t, []string{"a", "1", "yes", "1"}, column(t, r.out, "a")[:4])
	assert.Contains(t, r.out, "version 1 by write")
	assert.Equal(t, []string{"b", "-", "no"}, column(t, r.out, "b")[:3])
	assert.NotContains(t, r.out, "BEHIND")
	assert.NotContains(t, r.out+r.err, secret, "nobody has asked for a value")

	// Somebody writes past the cache, and tells nobody.
	_, err = db.ExecContext(t.Context(), "UPDATE balances SET version = version + 1")
	require.NoError(t, err)
	r = inspect("-store", "sqlite:"+file+"?table=balances", "alice")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "BEHIND THE SOURCE")
	r = inspect("-json", "-store", "sqlite:"+file+"?table=balances", "alice")
	var x inspection
	require.NoError(t, json.Unmarshal([]byte(r.out), &x))
	assert.EqualValues(t, 2, x.Source.Version)
	assert.EqualValues(t, 1, x.Replicas[0].Explanation.Version)
	assert.NotContains(t, r.out, secret)

	r = inspect("-store", "sqlite:"+file+"?table=balances", "nobody")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "absent", column(t, r.out, "source")[1])
	r = inspect("-value", "alice")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, `value at a: "`+secret+`"`)

	r = inspect("-store", "sqlite:"+file+"?table=nosuch", "alice")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "the source")
	assert.Contains(t, r.err, "-table names another")
	assert.Contains(t, r.out, "version 1", "the replicas answer all the same")
	r = tidemarkWith(t.Context(), "", "inspect", "-server", s.ClientURL(), "-name", "nosuch", "alice")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "no replica answers")
	for _, args := range [][]string{{}, {"a", "b"}, {"-store", "mysql:x", "a"}, {"-store", "sqlite:", "a"}, {"-key-type", "int", "-store", "sqlite:f", "a"}, {"-key", "id", "-store", "sqlite:f", "a"}} {
		assert.Equal(t, exitUsage, inspect(args...).status, "%q", args)
	}
	r = inspect("7", "-json")
	assert.Equal(t, exitUsage, r.status)
	assert.Contains(t, r.err, "flags come before KEY")
	r = inspect("-store", "sqlite:"+file, "-table", "balances", "alice")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "2", column(t, r.out, "source")[1])

	// The row is deleted for good, and with it its version.
	_, err = db.ExecContext(t.Context(), "DELETE FROM balances")
	require.NoError(t, err)
	_, err = b.Load(t.Context(), "alice")
	require.ErrorIs(t, err, tidemark.ErrNotFound)
	r = inspect("-store", "sqlite:"+file+"?table=balances", "alice")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, []string{"source", "absent"}, column(t, r.out, "source")[:2])
	assert.Equal(t, []string{"a", "1", "yes"}, column(t, r.out, "a")[:3])
	assert.Regexp(t, `(?m)^a .* -- BEHIND THE SOURCE$`, r.out)
	assert.NotRegexp(t, `(?m)^b .*BEHIND`, r.out, "it says so, too")
	a.SetBypass(true)
	assert.NotContains(t, inspect("-store", "sqlite:"+file+"?table=balances", "alice").out, "BEHIND", "what is not served is not behind")
}

// A table of PostgreSQL, whatever its columns are called and of what type its key is.
func TestInspect_PostgreSQL(t *testing.T) {
	url := pgtest.Database(t, execute)
	require.NoError(t, execute(t.Context(), url, `CREATE SCHEMA billing;
		CREATE TABLE billing."Accounts" (id bigint PRIMARY KEY, rev int, gone boolean);
		INSERT INTO billing."Accounts" VALUES (7, 3, NULL), (8, 4, true);
		CREATE TABLE tidemark (key text PRIMARY KEY, version bigint, deleted boolean NOT NULL);
		INSERT INTO tidemark VALUES ('7', 2, false), ('8', 5, true)`))
	s := startNATS(t, server.Options{})
	a := replicaOf(t, s.ClientURL(), "a", tidemark.Options[string, string]{TTL: time.Hour}, nil)
	require.Eventually(t, func() bool { return a.Stats().State == tidemark.Fresh }, 10*time.Second, time.Millisecond)
	require.Equal(t, tidemark.Applied, a.Put("7", secret, 2))
	inspect := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"inspect", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}
	own := []string{"-store", url, "-table", "billing.Accounts", "-key", "id", "-version", "rev"}
	r := inspect(append(own, "7")...)
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, []string{"source", "3", "the", "row"}, column(t, r.out, "source"))
	assert.Contains(t, r.out, "BEHIND THE SOURCE")
	for key, want := range map[string]string{"8": "4", "9": "absent"} {
		r := inspect(append(own, key)...)
		require.Equal(t, exitOK, r.status, r.err)
		assert.Equal(t, want, column(t, r.out, "source")[1])
	}
	r = inspect(append(own, "-deleted", "gone", "8")...)
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "absent@4", column(t, r.out, "source")[1])

	t.Setenv("TIDEMARK_DATABASE", url)
	r = inspect("-store", "postgres:", "7")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "2", column(t, r.out, "source")[1])
	assert.NotContains(t, r.out, "BEHIND")
	assert.Equal(t, "absent@5", column(t, inspect("-store", "postgres:", "8").out, "source")[1])
	assert.Equal(t, "5", column(t, inspect("-store", "postgres:", "-deleted", "-", "8").out, "source")[1])

	for want, args := range map[string][]string{
		"does not exist":       {"-table", "nosuch", "7"},
		"invalid input syntax": {"-table", "billing.Accounts", "-key", "id", "-version", "rev", "seven"},
	} {
		r := inspect(append([]string{"-store", url}, args...)...)
		assert.Equal(t, exitFailed, r.status)
		assert.Contains(t, r.err, "the source: ")
		assert.Contains(t, r.err, want)
	}
	for _, args := range [][]string{{"-store", "postgres://%", "7"}, {"-store", url, "-table", "a.b.c", "7"}} {
		assert.Equal(t, exitUsage, inspect(args...).status, "%q", args)
	}
}

// What a stranger answers cannot command the terminal.
func TestInspect_AnswersAreOnlyText(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer nc.Close()
	bad, err := json.Marshal(ops.Inspection{Instance: "\x1b[2J", Words: "\x1b]0;x\a\nno", Value: "\x1b[31m", HasValue: true})
	require.NoError(t, err)
	_, err = nc.Subscribe(ops.InspectSubject("accounts"), func(m *nats.Msg) { _ = m.Respond(bad) })
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "inspect", "-server", s.ClientURL(), "-name", "accounts", "-value", "\x1b[31mkey")
	require.Equal(t, exitOK, r.status, r.err)
	assert.NotContains(t, r.out, "\x1b")
	assert.NotContains(t, r.out, "\a")
}

func TestTop_Once(t *testing.T) {
	s := onJetStream(t)
	a := replicaOf(t, s.ClientURL(), "a", tidemark.Options[string, string]{}, small())
	b := replicaOf(t, s.ClientURL(), "b", tidemark.Options[string, string]{TTL: time.Hour}, small())
	hears(t, a, 1)
	hears(t, b, 1)
	require.Equal(t, tidemark.Applied, b.Put("alice", secret, 7))
	require.Equal(t, tidemark.Stale, b.Put("alice", secret, 6))
	b.Get("alice")
	b.Get("bob")
	r := tidemarkWith(t.Context(), "", "top", "-server", s.ClientURL(), "-name", "accounts", "-stream", "-once")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "replicas: 2")
	line := column(t, r.out, "b") // INSTANCE STATE AGE LAG HIT READS LOADS STALE SUSP HEARS ENTRIES
	assert.Equal(t, "fresh", line[1])
	_, err := time.ParseDuration(line[2])
	assert.NoError(t, err)
	assert.Equal(t, []string{"50.0%", "2", "0", "1"}, line[4:8])
	assert.Equal(t, []string{"1", "1"}, line[9:11])
	assert.Contains(t, r.out, "a: TTL is not set")
	assert.NotContains(t, r.out, "b: TTL")
	assert.NotContains(t, r.out, secret)
	assert.NotContains(t, r.out, "alice")

	r = tidemarkWith(t.Context(), "", "top", "-server", s.ClientURL(), "-name", "nosuch", "-once")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "no replica answers")
	for _, args := range [][]string{{"-name", "accounts"}, {"-name", "a b", "-once"}, {"-name", "accounts", "-interval", "1ms", "-once"}, {"-name", "accounts", "x"}} {
		assert.Equal(t, exitUsage, tidemarkWith(t.Context(), "", append([]string{"top"}, args...)...).status, "%q", args)
	}
}

// What is appended after a replica has answered is no lag of it.
func TestTop_LagIsOfTheTimeOfTheQuestion(t *testing.T) {
	s := onJetStream(t)
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	subject := tidemark.NATSLogSubject("accounts")
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: tidemark.NATSStreamName("accounts"), Subjects: []string{subject}})
	require.NoError(t, err)
	for range 7 {
		_, err := js.Publish(t.Context(), subject, nil)
		require.NoError(t, err)
	}
	_, err = nc.Subscribe(ops.StateSubject("accounts"), func(m *nats.Msg) {
		for instance, read := range map[string]uint64{"current": 7, "behind": 5} {
			r := ops.Report{Instance: instance, Settings: ops.Settings{Log: true}}
			r.Stats.LogSeq = read
			answer, err := json.Marshal(r)
			assert.NoError(t, err)
			assert.NoError(t, m.Respond(answer))
		}
		_, err := js.Publish(t.Context(), subject, nil)
		assert.NoError(t, err)
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "top", "-server", s.ClientURL(), "-name", "accounts", "-stream", "-once")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, "0", column(t, r.out, "current")[3])
	assert.Equal(t, "2", column(t, r.out, "behind")[3])
}

// A screen is a terminal that a command has, and what it has shown.
type screen struct {
	tty, keyboard *os.File
	shown         output
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	keyboard, tty, err := pty.Open()
	require.NoError(t, err)
	require.NoError(t, pty.Setsize(keyboard, &pty.Winsize{Rows: 10, Cols: 60}))
	s := &screen{tty: tty, keyboard: keyboard}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&s.shown, keyboard) // until it is closed
	}()
	t.Cleanup(func() {
		_, _ = keyboard.WriteString("q\n") // who still reads keys holds the terminal open
		tty.Close()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("somebody still has the terminal")
		}
		keyboard.Close()
	})
	return s
}

// shows waits until the text has been shown after what was shown before.
func (s *screen) shows(t *testing.T, from int, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.shown.String()[from:], text) }, 15*time.Second, 10*time.Millisecond,
		"%q in %q", text, s.shown.String())
}

// On a terminal top redraws itself, keeps to the screen, and leaves it as it was.
func TestTop_InATerminal(t *testing.T) {
	s := startNATS(t, server.Options{})
	a := replicaOf(t, s.ClientURL(), "a", tidemark.Options[string, string]{TTL: time.Hour}, nil)
	screen := newScreen(t)
	status := make(chan int, 1)
	go func() {
		status <- run(t.Context(), []string{"top", "-server", s.ClientURL(), "-name", "accounts", "-interval", "100ms"},
			streams{screen.tty, screen.tty, screen.tty})
	}()
	screen.shows(t, 0, enterScreen)
	screen.shows(t, 0, "replicas: 1")
	screen.shows(t, 0, "q: quit")
	replicaOf(t, s.ClientURL(), "second", tidemark.Options[string, string]{TTL: time.Hour}, nil)
	screen.shows(t, 0, "replicas: 2")
	a.SetBypass(true)
	screen.shows(t, 0, "fresh, bypassed")
	for i := range 100 {
		a.Put(fmt.Sprint(secret, i), secret, 1)
	}
	screen.shows(t, len(screen.shown.String()), homeScreen)
	require.NoError(t, pty.Setsize(screen.keyboard, &pty.Winsize{Rows: 4, Cols: 20}))
	seen := len(screen.shown.String())
	screen.shows(t, seen, "q: quit")
	screen.shows(t, seen+len(strings.SplitAfterN(screen.shown.String()[seen:], "q: quit", 2)[0]), "q: quit")
	_, err := screen.keyboard.WriteString("xq")
	require.NoError(t, err)
	select {
	case got := <-status:
		assert.Equal(t, exitOK, got)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "q does not end it")
	}
	screen.shows(t, 0, leaveScreen)
	all := screen.shown.String()
	assert.NotContains(t, all, secret)
	frames := strings.Split(all, homeScreen)
	last := frames[len(frames)-1]
	assert.LessOrEqual(t, strings.Count(last, "\r\n"), 3, "it does not scroll: %q", last)
	for line := range strings.SplitSeq(last, "\r\n") {
		assert.LessOrEqual(t, len(strings.Split(line, "\x1b")[0]), 20, "%q", line)
	}
}

func TestTop_EndsWithItsContext(t *testing.T) {
	s := startNATS(t, server.Options{})
	screen := newScreen(t)
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan int, 1)
	go func() {
		status <- run(ctx, []string{"top", "-server", s.ClientURL(), "-name", "accounts"}, streams{screen.tty, screen.tty, screen.tty})
	}()
	screen.shows(t, 0, "no replica answers")
	cancel()
	select {
	case got := <-status:
		assert.Equal(t, exitOK, got)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "an interrupt does not end it")
	}
}

func TestRate(t *testing.T) {
	assert.Equal(t, []string{"7", "0/s", "3.5/s", "12/s", "120k/s"},
		[]string{rate(7, 0), rate(0, time.Second), rate(7, 2*time.Second), rate(12, time.Second), rate(120_000, time.Second)})
	assert.True(t, restarted(tidemark.Stats{Loads: 2}, tidemark.Stats{Hits: 9, Loads: 1}))
	assert.False(t, restarted(tidemark.Stats{Loads: 2}, tidemark.Stats{Loads: 2}))
}

// findings runs the doctor and returns its status, and what it found of a level.
func findings(t *testing.T, level string, args ...string) (status int, text string) {
	t.Helper()
	r := tidemarkWith(t.Context(), "", append([]string{"doctor", "-name", "accounts", "-json"}, args...)...)
	var all []finding
	require.NoError(t, json.Unmarshal([]byte(r.out), &all), r.err)
	for _, f := range all {
		if f.Level == level {
			text += f.About + ": " + f.What + " -> " + f.Do + "\n"
			if level != "ok" && !strings.HasPrefix(f.What, "its cache") {
				assert.NotEmpty(t, f.Do, "%s: what helps?", f.What)
			}
		}
	}
	return r.status, text
}

// doctor's flags for small.
func smallFlags(url string) []string {
	return []string{"-server", url, "-stream", "-replicas", "1", "-max-bytes", fmt.Sprint(16 << 20)}
}

func TestDoctor_AllIsWell(t *testing.T) {
	s := onJetStream(t)
	o := tidemark.Options[string, string]{TTL: time.Hour}
	a, b := replicaOf(t, s.ClientURL(), "a", o, small()), replicaOf(t, s.ClientURL(), "b", o, small())
	hears(t, a, 1)
	hears(t, b, 1)
	before := a.Stats()
	status, bad := findings(t, "error", smallFlags(s.ClientURL())...)
	assert.Equal(t, exitOK, status, bad)
	assert.Empty(t, bad)
	_, warnings := findings(t, "warning", smallFlags(s.ClientURL())...)
	assert.Empty(t, warnings)
	_, ok := findings(t, "ok", smallFlags(s.ClientURL())...)
	for _, about := range []string{"connection", "server", "stream", "account", "permissions", "clock of server", "clock of replica a", "replica b: fresh", "replicas: 2 answer"} {
		assert.Contains(t, ok, about)
	}
	after := a.Stats()
	assert.Equal(t, before.Suspicions, after.Suspicions, "it harms nobody")
	assert.Equal(t, before.Foreign, after.Foreign)
	assert.Equal(t, before.Flushes, after.Flushes)
	r := tidemarkWith(t.Context(), "", append([]string{"doctor", "-name", "accounts"}, smallFlags(s.ClientURL())...)...)
	assert.Equal(t, exitOK, r.status)
	assert.Contains(t, r.out, "0 errors, 0 warnings")

	status, bad = findings(t, "error", "-server", s.ClientURL())
	assert.Equal(t, exitFailed, status, "the flags do not say that there is a log")
	assert.Contains(t, bad, "give -stream")
}

// If nobody relays probes the stream is not to blame.
func TestDoctor_NoRelay(t *testing.T) {
	s := onJetStream(t)
	nc, err := nats.Connect(s.ClientURL(), tidemark.NATSConnectOptions()...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	inv := tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: small()})
	inv.Prober = unanswered{}
	cache, err := tidemark.New(tidemark.Options[string, string]{Invalidator: inv, TTL: time.Hour})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
	view, err := ops.New(cache, ops.Options[string, string]{Instance: "a"})
	require.NoError(t, err)
	assert.True(t, view.Report().Settings.Prober)
	service, err := view.Serve(nc)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, service.Stop()) })
	require.Eventually(t, func() bool { return cache.Stats().State == tidemark.Suspect }, 10*time.Second, 5*time.Millisecond)
	status, bad := findings(t, "error", smallFlags(s.ClientURL())...)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, bad, "replica a: its probes do not come back: is a tidemark relay running?")
	assert.NotContains(t, bad, "cannot read its log")
	_, bad = findings(t, "error", "-server", s.ClientURL(), "-stream") // which should be on three servers
	assert.Contains(t, bad, "replica a: it cannot read its log, or its probes do not come back")
}

// unanswered is a Prober whose probes nobody relays.
type unanswered struct{}

func (unanswered) Probe(context.Context, tidemark.Probe) error { return nil }

func TestDoctor_CoreNATS(t *testing.T) {
	s := startNATS(t, server.Options{})
	a := replicaOf(t, s.ClientURL(), "a", tidemark.Options[string, string]{TTL: time.Hour}, nil)
	status, bad := findings(t, "error", "-server", s.ClientURL())
	assert.Equal(t, exitOK, status, bad)
	assert.Zero(t, a.Stats().Suspicions)
}

func TestDoctor_Stream(t *testing.T) {
	s := onJetStream(t)
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer nc.Close()
	status, bad := findings(t, "error", smallFlags(s.ClientURL())...)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, bad, "stream not found")
	assert.Contains(t, bad, "SetUpNATSStream")
	assert.NotContains(t, bad, "permit", "nobody knows")
	_, warnings := findings(t, "warning", smallFlags(s.ClientURL())...)
	assert.Contains(t, warnings, "to publish to the log and to read it: not tried")

	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: tidemark.NATSStreamName("accounts"), Subjects: []string{tidemark.NATSLogSubject("accounts")}, MaxMsgs: 7,
	})
	require.NoError(t, err)
	status, bad = findings(t, "error", smallFlags(s.ClientURL())...)
	assert.Equal(t, exitFailed, status)
	for _, field := range []string{"DenyPurge", "DenyDelete", "MaxMsgs"} {
		assert.Contains(t, bad, field)
	}

	status, bad = findings(t, "error", smallFlags(startNATS(t, server.Options{}).ClientURL())...)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, bad, "enable JetStream")
}

func TestDoctor_Permissions(t *testing.T) {
	hint := tidemark.NATSSubject("accounts")
	for name, c := range map[string]struct {
		permissions server.Permissions
		want        string
	}{
		"not to publish":   {server.Permissions{Publish: &server.SubjectPermission{Deny: []string{hint}}}, "publish to " + hint},
		"not to subscribe": {server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{hint}}}, "subscribe to " + hint},
	} {
		s := startNATS(t, server.Options{Users: []*server.User{{Username: "u", Password: "p", Permissions: &c.permissions}}})
		status, bad := findings(t, "error", "-server", strings.Replace(s.ClientURL(), "nats://", "nats://u:p@", 1))
		assert.Equal(t, exitFailed, status, name)
		assert.Contains(t, bad, c.want, name)
	}
	status, bad := findings(t, "error", "-server", "nats://127.0.0.1:1")
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, bad, "cannot reach")
}

// Each permission that a replica with a log needs is missed by name when it is not
// there, and nothing is when all are.
func TestDoctor_PermissionsOfALog(t *testing.T) {
	name := tidemark.NATSStreamName("accounts")
	needed := []string{
		tidemark.NATSLogSubject("accounts"), tidemark.NATSSubject("accounts"), "$JS.API.STREAM.INFO." + name,
		"$JS.API.CONSUMER.CREATE." + name + ".>", "$JS.API.CONSUMER.MSG.NEXT." + name + ".>", "$JS.API.CONSUMER.DELETE." + name + ".>",
	}
	own := []string{"$JS.API.INFO", ops.StateSubject("accounts")} // the command's
	for _, missing := range append(slices.Clone(needed), "") {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			allow := slices.DeleteFunc(append(slices.Clone(needed), own...), func(s string) bool { return s == missing })
			s := startNATS(t, server.Options{JetStream: true, StoreDir: t.TempDir(), Users: []*server.User{
				{Username: "free", Password: "p"},
				{Username: "u", Password: "p", Permissions: &server.Permissions{
					Publish:   &server.SubjectPermission{Allow: allow},
					Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>", tidemark.NATSSubject("accounts")}},
				}},
			}})
			replicaOf(t, strings.Replace(s.ClientURL(), "nats://", "nats://free:p@", 1), "a", tidemark.Options[string, string]{TTL: time.Hour}, small())
			var status int
			var bad, warnings string
			flags := smallFlags(strings.Replace(s.ClientURL(), "nats://", "nats://u:p@", 1))
			status, bad = findings(t, "error", flags...)
			if _, warnings = findings(t, "warning", flags...); missing == "" {
				assert.Equal(t, exitOK, status, bad)
				assert.Empty(t, bad+warnings)
				return
			}
			assert.Contains(t, bad+warnings, strings.TrimSuffix(missing, ">"))
			if missing != tidemark.NATSSubject("accounts") { // that only hurries
				assert.Equal(t, exitFailed, status)
			}
		})
	}
}

// What replicas say of themselves is judged one by one and together.
func TestDoctor_Replicas(t *testing.T) {
	good := func(change func(*ops.Report)) ops.Report {
		r := ops.Report{Cache: "accounts", Instance: "a", Time: time.Now(), Build: ops.Build{NATS: nats.Version, Tidemark: "v1"}}
		r.Stats.State, r.Stats.Peers = tidemark.Fresh, 1
		change(&r)
		return r
	}
	same := func(*ops.Report) {}
	for name, c := range map[string]struct {
		change      func(*ops.Report)
		level, want string
	}{
		"joining":         {func(r *ops.Report) { r.Stats.State = tidemark.Joining }, "error", "does not hear the others"},
		"suspect":         {func(r *ops.Report) { r.Stats.State = tidemark.Suspect }, "error", "cannot read its log"},
		"no relay":        {func(r *ops.Report) { r.Stats.State, r.Settings.Prober = tidemark.Suspect, true }, "error", "is a tidemark relay running?"},
		"ended":           {func(r *ops.Report) { r.Stats.State = tidemark.Ended }, "warning", "closed"},
		"bypassed":        {func(r *ops.Report) { r.Stats.Bypassed = true }, "warning", "bypassed"},
		"shadow":          {func(r *ops.Report) { r.Warnings = (&tidemark.Options[string, int]{Shadow: true}).Warnings() }, "warning", "Shadow is set"},
		"stale":           {func(r *ops.Report) { r.Stats.AuditStale = 2 }, "error", "confirmed 2 mismatches"},
		"ahead":           {func(r *ops.Report) { r.Stats.AuditAhead = 1 }, "error", "confirmed 1 mismatches"},
		"breaker open":    {func(r *ops.Report) { r.Stats.Breaker = tidemark.BreakerOpen }, "warning", "breaker is open"},
		"breaker probes":  {func(r *ops.Report) { r.Stats.Breaker = tidemark.BreakerHalfOpen }, "warning", "breaker is half-open"},
		"in doubt":        {func(r *ops.Report) { r.Stats.InDoubt = 3 }, "warning", "3 writes are in doubt"},
		"backlog":         {func(r *ops.Report) { r.Stats.Backlog = 4 }, "warning", "4 keys wait"},
		"options":         {func(r *ops.Report) { r.Warnings = []string{"TTL is odd"} }, "warning", "TTL is odd"},
		"old nats.go":     {func(r *ops.Report) { r.Build.NATS = "1.54.9" }, "error", "older ones lose messages"},
		"clock":           {func(r *ops.Report) { r.Time = r.Time.Add(-time.Minute) }, "warning", "differs from the one here"},
		"schema":          {func(r *ops.Report) { r.Settings.Schema = "2" }, "warning", "Schema"},
		"log":             {func(r *ops.Report) { r.Settings.Log = true }, "error", "the replicas have a log, and it was not looked at -> give -stream"},
		"strict":          {func(r *ops.Report) { r.Settings.Strict = true }, "error", "Strict"},
		"timeouts":        {func(r *ops.Report) { r.Settings.DoubtTimeout = 1 }, "warning", "DoubtTimeout"},
		"strict timeouts": {func(r *ops.Report) { r.Settings.DoubtTimeout, r.Settings.Strict = 1, true }, "error", "DoubtTimeout"},
		"epochs":          {func(r *ops.Report) { r.Stats.SourceEpoch = 2 }, "error", "SourceEpoch"},
		"peers":           {func(r *ops.Report) { r.Stats.Peers = 0 }, "warning", "how many others"},
		"releases":        {func(r *ops.Report) { r.Build.Tidemark = "v2" }, "warning", "release of tidemark"},
		"well":            {same, "", ""},
	} {
		d := &doctor{}
		asked := time.Now()
		reports := []ops.Report{good(same), good(c.change)}
		for _, r := range reports {
			d.replica(r, asked.Add(-time.Millisecond), time.Now())
		}
		d.compare(reports)
		var bad []string
		for _, f := range d.all {
			if f.Level != "ok" {
				bad = append(bad, f.Level+": "+f.What+" -> "+f.Do)
			}
		}
		if c.level == "" {
			assert.Empty(t, bad, name)
			continue
		}
		all := strings.Join(bad, "\n")
		assert.Contains(t, all, c.want, name)
		assert.Contains(t, all, c.level+": ", name)
	}
}

func TestOlderThan(t *testing.T) {
	for a, older := range map[string]bool{
		"1.54.9": true, "1.55.0": false, "1.55.1": false, "2.0.0": false, "v1.9.0": true, "1.55.0-rc.1": false, "1.55": true, "": false, "devel": false,
	} {
		assert.Equal(t, older, olderThan(a, "1.55.0"), a)
	}
}
