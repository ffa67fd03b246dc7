package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output is a buffer that a command may write to while the test reads it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// A result is what a command left behind.
type result struct {
	status   int
	out, err string
}

// tidemarkWith runs the command with args and standard input.
func tidemarkWith(ctx context.Context, input string, args ...string) result {
	var out, errOut output
	status := run(ctx, args, streams{strings.NewReader(input), &out, &errOut})
	return result{status, out.String(), errOut.String()}
}

func startNATS(t *testing.T, options server.Options) *server.Server {
	t.Helper()
	options.Host, options.Port, options.NoLog, options.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	s, err := server.NewServer(&options)
	require.NoError(t, err)
	s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func TestHelpListsEveryCommand(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}} {
		r := tidemarkWith(t.Context(), "", args...)
		assert.Equal(t, exitOK, r.status)
		for _, c := range commands {
			assert.Contains(t, r.out, c.name)
			assert.Contains(t, r.out, c.summary)
		}
	}
}

func TestHelpExplainsACommand(t *testing.T) {
	for _, c := range commands {
		asked := tidemarkWith(t.Context(), "", "help", c.name)
		assert.Equal(t, exitOK, asked.status)
		assert.Contains(t, asked.err, "usage: tidemark "+c.name)
		assert.Equal(t, asked, tidemarkWith(t.Context(), "", c.name, "-h"))
	}
}

func TestWhatIsNotUnderstoodIsAUsageError(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"nosuch"},
		{"storm", "-nosuch"},
		{"storm", "extra"},
		{"storm", "-replicas", "0"},
		{"storm", "-contenders", "nosuch"},
		{"storm", "-contenders", ""},
		{"storm", "-drop", "1.5"},
		{"invalidate", "a"},
		{"invalidate", "-name", "x", "-key-type", "float", "a"},
		{"invalidate", "-name", "x", "-all", "a"},
		{"invalidate", "-name", "x", "-key-type", "int", "a"},
		{"invalidate", "-name", "x", "a@99999999999999999999"},
		{"watch"},
		{"watch", "-name", "x", "extra"},
		{"watch", "-name", "x", "-key-type", "float"},
	} {
		r := tidemarkWith(t.Context(), "", args...)
		assert.Equal(t, exitUsage, r.status, "%q", args)
		assert.NotEmpty(t, r.err, "%q", args)
		assert.Empty(t, r.out, "%q", args)
	}
}
