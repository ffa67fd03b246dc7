package main

import (
	"context"
	"encoding/json"
	"testing"

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
