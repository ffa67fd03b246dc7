package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

// Every replica compares its memory with the source, and the status says whether one
// of them had what it should not.
func TestAudit(t *testing.T) {
	const alice = "alice-4929"
	s := startNATS(t, server.Options{})
	var version atomic.Uint64
	version.Store(1)
	o := tidemark.Options[string, string]{TTL: time.Hour,
		Audit: &tidemark.AuditOptions[string, string]{Bound: time.Second, Every: time.Hour},
		Loader: tidemark.LoaderFunc[string, string](func(context.Context, string) (string, tidemark.Version, error) {
			return secret, tidemark.Version(version.Load()), nil
		})}
	a, b := replicaOf(t, s.ClientURL(), "a", o, nil), replicaOf(t, s.ClientURL(), "b", o, nil)
	hears(t, a, 1)
	hears(t, b, 1)
	for _, c := range []*tidemark.Cache[string, string]{a, b} {
		_, err := c.Load(t.Context(), alice)
		require.NoError(t, err)
	}
	audit := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"audit", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}
	r := audit()
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, []string{"a", "1", "0", "0", "0", "0"}, column(t, r.out, "a")[:6])
	assert.Contains(t, r.out, "at least 0.0 nines")
	begun := a.AuditReport().Begun
	r = audit("-wait", "0")
	require.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, begun, a.AuditReport().Begun)

	version.Store(3) // and nobody is told
	require.NoError(t, b.Invalidate(t.Context(), "other", 1))
	r = audit()
	assert.Equal(t, exitFailed, r.status, r.err)
	assert.Equal(t, []string{"b", "2", "1", "0", "0", "1"}, column(t, r.out, "b")[:6])
	assert.Contains(t, r.out, "2 versions")
	assert.NotContains(t, r.out+r.err, alice, "nobody has asked for keys")
	r = audit("-wait", "0", "-keys")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.out, `stale "`+alice+`": memory had 1, the source 3`)
	assert.Contains(t, r.out, "installed 1 by load")
	assert.NotContains(t, r.out+r.err, secret)
	r = audit("-wait", "0", "-json")
	var all []ops.Audit
	require.NoError(t, json.Unmarshal([]byte(r.out), &all))
	require.Len(t, all, 2)
	assert.EqualValues(t, 1, all[0].Report.Stale)
	assert.NotContains(t, r.out, alice)

	r = tidemarkWith(t.Context(), "", "inspect", "-server", s.ClientURL(), "-name", "accounts", alice)
	assert.Contains(t, r.out, "lately at a:")
	assert.Contains(t, r.out, "told 3 by audit")

	r = tidemarkWith(t.Context(), "", "audit", "-server", s.ClientURL(), "-name", "nosuch")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "no replica answers")
	for _, args := range [][]string{{"x"}, {"-name", "a b"}, {"-wait", "long"}} {
		assert.Equal(t, exitUsage, audit(args...).status, "%q", args)
	}
}

// A replica without an auditor, and one that does not get to the end in time, are no
// good news.
func TestAudit_WhatIsNotKnownIsSaid(t *testing.T) {
	s := startNATS(t, server.Options{})
	replicaOf(t, s.ClientURL(), "without", tidemark.Options[string, string]{}, nil)
	audit := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"audit", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}
	r := audit("-wait", "1s")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "without has no auditor")

	slow := replicaOf(t, s.ClientURL(), "slow", tidemark.Options[string, string]{Shadow: true,
		Audit: &tidemark.AuditOptions[string, string]{Rate: 1},
		Loader: tidemark.LoaderFunc[string, string](func(context.Context, string) (string, tidemark.Version, error) {
			return secret, 1, nil
		})}, nil)
	hears(t, slow, 1) // which makes it suspicious once
	for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
		_, err := slow.Load(t.Context(), key)
		require.NoError(t, err)
	}
	r = audit("-wait", "1s")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "the cycle has not ended on slow")
	assert.Contains(t, r.out, "slow: shadow mode: memory would have served 0 reads")
}

// What a stranger answers cannot command the terminal.
func TestAudit_AnswersAreOnlyText(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer nc.Close()
	x := ops.Audit{Instance: "\x1b[2J", Report: tidemark.AuditReport{Bound: 1, Tripped: true, Refused: 1, Longest: -1, Stale: 1, Undecided: 2,
		Scales: []tidemark.AuditScale{{Over: time.Second, Stale: 1, Nines: 2}, {Over: time.Minute, Stale: 1, Undecided: 2, Nines: 1}}},
		Mismatches: []ops.Mismatch{{Key: "\x1b[31m", AtMost: -1, Record: []tidemark.Happening{{What: "\x1b[31m", By: "\a"}}}}}
	bad, err := json.Marshal(x)
	require.NoError(t, err)
	_, err = nc.Subscribe(ops.AuditSubject("accounts"), func(m *nats.Msg) {
		_ = m.Respond(bad)
		_ = m.RespondMsg(&nats.Msg{Header: nats.Header{micro.ErrorCodeHeader: {"500"}, micro.ErrorHeader: {"no \x1b[2J"}}})
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "audit", "-server", s.ClientURL(), "-name", "accounts", "-keys", "-wait", "0")
	assert.Contains(t, r.err, "a replica says 500: no ?[2J")
	assert.Equal(t, exitFailed, r.status)
	assert.NotContains(t, r.out+r.err, "\x1b")
	assert.NotContains(t, r.out+r.err, "\a")
	assert.Contains(t, r.out, "has set the bypass")
	assert.Contains(t, r.out, "unknown, 0 versions")
	assert.Contains(t, r.out, "1s: 1, 2.0 nines; 1m0s: 1, at least 1.0 nines")
	assert.Contains(t, r.out, "2 that differed expired or were evicted")
}

// What a replica has said is not forgotten when it does not answer once, or any more, and
// one that was away for the first question is asked for a cycle, too.
func TestAudit_NobodyIsForgotten(t *testing.T) {
	of := func(instance string, begun, cycles, stale uint64) ops.Audit {
		return ops.Audit{Instance: instance, Report: tidemark.AuditReport{Bound: 1, Begun: begun, Cycles: cycles, Stale: stale}}
	}
	ended := of("a", 2, 2, 0)
	for name, c := range map[string]struct {
		answers [][]any // to each question; to all further ones the last
		starts  int
		status  int
		is, has string // what is said of b, and what is complained of
	}{
		"dead":            {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 5)}, {ended}}, 1, exitFailed, "b 0 5", "no answer any more from b"},
		"dead, no finds":  {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0)}, {ended}}, 1, exitFailed, "b 0 0", "no answer any more from b"},
		"all are dead":    {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0)}, {}}, 1, exitFailed, "b 0 0", "no answer any more from a, b"},
		"busy":            {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0)}, {ended}, {ended, of("b", 2, 2, 0)}}, 1, exitOK, "b 0 0", ""},
		"ended, and dead": {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0)}, {of("b", 2, 2, 0)}, {ended}}, 1, exitOK, "b 0 0", ""},
		"busy at first":   {[][]any{{of("a", 1, 1, 0)}, {of("a", 2, 1, 0), of("b", 7, 7, 0)}, {ended, of("b", 7, 7, 0)}, {ended, of("b", 8, 8, 0)}}, 2, exitOK, "b 0 0", ""},
		"slow":            {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0)}, {ended, of("b", 2, 1, 0)}}, 1, exitOK, "b 0 0", "the cycle has not ended on b"},
		"not understood":  {[][]any{{of("a", 1, 1, 0), of("b", 1, 1, 0), "?"}, {ended, of("b", 2, 2, 0)}}, 1, exitFailed, "b 0 0", "cannot be understood"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startNATS(t, server.Options{})
			nc, err := nats.Connect(s.ClientURL())
			require.NoError(t, err)
			t.Cleanup(nc.Close)
			var asked, starts atomic.Int64
			_, err = nc.Subscribe(ops.AuditSubject("accounts"), func(m *nats.Msg) {
				if strings.Contains(string(m.Data), "Start") {
					starts.Add(1)
				}
				n := int(asked.Add(1))
				for _, x := range c.answers[min(n, len(c.answers))-1] {
					b, err := json.Marshal(x)
					assert.NoError(t, err)
					assert.NoError(t, m.Respond(b))
				}
			})
			require.NoError(t, err)
			require.NoError(t, nc.Flush())
			r := tidemarkWith(t.Context(), "", "audit", "-server", s.ClientURL(), "-name", "accounts", "-wait", "3s")
			assert.Equal(t, c.status, r.status, r.err)
			assert.Equal(t, strings.Fields(c.is), column(t, r.out, "b")[:3])
			assert.Contains(t, r.err, c.has)
			assert.EqualValues(t, c.starts, starts.Load(), "questions that let a cycle begin")
		})
	}
}
