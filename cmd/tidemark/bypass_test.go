package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

// Every replica that allows it serves nothing from memory, until it is told to.
func TestBypass(t *testing.T) {
	s := startNATS(t, server.Options{})
	var all []*tidemark.Cache[string, string]
	open := func(instance string, allowed bool) *ops.Service {
		nc, err := nats.Connect(s.ClientURL())
		require.NoError(t, err)
		t.Cleanup(nc.Close)
		cache, err := tidemark.New(tidemark.Options[string, string]{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
		require.Equal(t, tidemark.Applied, cache.Put("k", "v", 1))
		view, err := ops.New(cache, ops.Options[string, string]{Name: "accounts", Instance: instance, AllowBypass: allowed})
		require.NoError(t, err)
		service, err := view.Serve(nc)
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		all = append(all, cache)
		return service
	}
	bypass := func(args ...string) result {
		return tidemarkWith(t.Context(), "", append([]string{"bypass", "-server", s.ClientURL(), "-name", "accounts"}, args...)...)
	}
	open("a", true)
	open("b", true)
	for _, step := range []struct{ word, was, is string }{{"on", "off", "on"}, {"on", "on", "on"}, {"off", "on", "off"}} {
		r := bypass(step.word)
		require.Equal(t, exitOK, r.status, r.err)
		for i, instance := range []string{"a", "b"} {
			assert.Equal(t, []string{instance, step.was, step.is}, column(t, r.out, instance))
			_, served := all[i].Get("k")
			assert.False(t, served, "nor when it is off again, until the source has confirmed it")
			assert.Equal(t, step.is == "on", all[i].Stats().Bypassed)
		}
	}

	c := open("c", false)
	r := bypass("-json", "on")
	assert.Equal(t, exitFailed, r.status, "one does not allow it")
	assert.Contains(t, r.err, "lets nobody set its bypass (c)")
	var answers []ops.Bypass
	require.NoError(t, json.Unmarshal([]byte(r.out), &answers))
	assert.Equal(t, []ops.Bypass{{Cache: "accounts", Instance: "a", On: true}, {Cache: "accounts", Instance: "b", On: true}}, answers)
	assert.False(t, all[2].Stats().Bypassed)
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	_, err = ops.AskBypass(t.Context(), nc, "accounts", true)
	require.ErrorIs(t, err, ops.ErrNoBypass)
	require.NoError(t, c.Stop())

	for _, unclear := range []string{"", "{}", `{"On": 1}`, "on"} {
		m, err := nc.RequestWithContext(t.Context(), ops.BypassSubject("accounts"), []byte(unclear))
		require.NoError(t, err)
		assert.Equal(t, "400", m.Header.Get("Nats-Service-Error-Code"), unclear)
	}
	assert.True(t, all[0].Stats().Bypassed, "and nothing is changed")

	r = tidemarkWith(t.Context(), "", "inspect", "-server", s.ClientURL(), "-name", "accounts", "-value", "k")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "not every replica shows values")
	assert.Equal(t, "1", column(t, r.out, "a")[1], "the rest is shown all the same")

	r = tidemarkWith(t.Context(), "", "bypass", "-server", s.ClientURL(), "-name", "nosuch", "off")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "no replica answers")
	for _, args := range [][]string{nil, {"yes"}, {"on", "off"}, {"on", "-json"}} {
		assert.Equal(t, exitUsage, bypass(args...).status, "%q", args)
	}
}

// A replica that answers late, or has missed the first question, has confirmed it; one
// that is there and has not is named, and the status is no success.
func TestBypass_SpeaksForWhoIsThere(t *testing.T) {
	s := startNATS(t, server.Options{})
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	answer := func(m *nats.Msg, x any) {
		b, err := json.Marshal(x)
		assert.NoError(t, err)
		assert.NoError(t, m.Respond(b))
	}
	told, timers := 0, sync.WaitGroup{} // told is of the subscription's goroutine
	_, err = nc.Subscribe(ops.BypassSubject("accounts"), func(m *nats.Msg) {
		told++
		answer(m, ops.Bypass{Instance: "near", On: true, Was: told > 1})
		if told > 2 {
			answer(m, ops.Bypass{Instance: "lost", On: true})
			return
		}
		timers.Go(func() {
			<-time.After(1200 * time.Millisecond)
			answer(m, ops.Bypass{Instance: "late", On: true})
		})
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	bypass := func() result {
		return tidemarkWith(t.Context(), "", "bypass", "-server", s.ClientURL(), "-name", "accounts", "-timeout", "3s", "on")
	}
	r := bypass()
	assert.Equal(t, exitOK, r.status, r.err)
	for _, instance := range []string{"late", "lost", "near"} {
		assert.Equal(t, []string{instance, "off", "on"}, column(t, r.out, instance), "as it was before it was told")
	}
	timers.Wait()

	_, err = nc.Subscribe(ops.StateSubject("accounts"), func(m *nats.Msg) {
		answer(m, ops.Report{Instance: "near"})
		answer(m, ops.Report{Instance: "deaf\x1b"})
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r = bypass()
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, `have not confirmed how their bypass is set: ["deaf\x1b"]`)
	assert.Equal(t, []string{"near", "on", "on"}, column(t, r.out, "near"), "the others are shown all the same")
}

// A replica that was busy and is asked twice meanwhile may answer twice, where it may
// only answer.
func TestBypass_EachAnswerIsPermitted(t *testing.T) {
	subject := ops.BypassSubject("accounts")
	s := startNATS(t, server.Options{Users: []*server.User{
		{Username: "operator", Password: "p"},
		{Username: "replica", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{">"}}, Subscribe: &server.SubjectPermission{Allow: []string{subject}},
			Response: &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
		}},
	}})
	nc, err := nats.Connect(s.ClientURL(), nats.UserInfo("replica", "p"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	var once sync.Once
	_, err = nc.Subscribe(subject, func(m *nats.Msg) {
		once.Do(func() { <-time.After(1200 * time.Millisecond) })
		assert.NoError(t, m.Respond([]byte(`{"Instance": "busy", "On": true}`)))
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	r := tidemarkWith(t.Context(), "", "bypass", "-server", strings.Replace(s.ClientURL(), "nats://", "nats://operator:p@", 1), "-name", "accounts", "on")
	assert.Equal(t, exitOK, r.status, r.err)
	assert.Equal(t, []string{"busy", "off", "on"}, column(t, r.out, "busy"))
	require.NoError(t, nc.Flush())
	assert.NoError(t, nc.LastError())
}
