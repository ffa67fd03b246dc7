package main

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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
	x := ops.Audit{Instance: "\x1b[2J", Report: tidemark.AuditReport{Bound: 1, Tripped: true, Refused: 1, Longest: -1, Stale: 1},
		Mismatches: []ops.Mismatch{{Key: "\x1b[31m", AtMost: -1, Record: []tidemark.Happening{{What: "\x1b[31m", By: "\a"}}}}}
	bad, err := json.Marshal(x)
	require.NoError(t, err)
	_, err = nc.Subscribe(ops.AuditSubject("accounts"), func(m *nats.Msg) { _ = m.Respond(bad) })
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "audit", "-server", s.ClientURL(), "-name", "accounts", "-keys", "-wait", "0")
	assert.Equal(t, exitFailed, r.status)
	assert.NotContains(t, r.out+r.err, "\x1b")
	assert.NotContains(t, r.out+r.err, "\a")
	assert.Contains(t, r.out, "has set the bypass")
	assert.Contains(t, r.out, "unknown, 0 versions")
}
