package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The program runs, on a real file and a real server.
func TestQuickStart(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	require.NoError(t, err)
	s.Start()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(10*time.Second))
	file := filepath.Join(t.TempDir(), "bank.db")
	require.NoError(t, run("file:"+file+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)", s.ClientURL()))
	require.FileExists(t, file)
}

// The README shows the end of this program, to the letter.
func TestQuickStart_IsWhatTheReadmeShows(t *testing.T) {
	program, err := os.ReadFile("main.go")
	require.NoError(t, err)
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, shown, found := strings.Cut(string(program), "// The README shows what follows.\n\n")
	require.True(t, found)
	assert.Contains(t, string(readme), "```go\n"+shown+"```\n")
}
