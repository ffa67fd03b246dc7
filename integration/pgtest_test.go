package integration

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// pgExec is the driver that pgtest asks for.
func pgExec(ctx context.Context, url, command string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, command)
	return err
}

// TestPgtest_DatabasesAreApart: what one test makes, the other does not see.
func TestPgtest_DatabasesAreApart(t *testing.T) {
	t.Parallel()
	one, other := pgtest.Database(t, pgExec), pgtest.Database(t, pgExec)
	require.NoError(t, pgExec(t.Context(), one, "CREATE TABLE mine (n int)"))
	require.NoError(t, pgExec(t.Context(), one, "INSERT INTO mine VALUES (1)"))
	require.ErrorContains(t, pgExec(t.Context(), other, "INSERT INTO mine VALUES (1)"), "does not exist")
}

// TestPgtest_KillAndRestart: a killed server comes back, at its address, with what
// was committed and with nothing else.
func TestPgtest_KillAndRestart(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, "max_connections=10")
	require.NoError(t, pgExec(t.Context(), s.URL, "CREATE TABLE mine (n int)"))
	for range 3 {
		open, err := pgx.Connect(t.Context(), s.URL)
		require.NoError(t, err)
		_, err = open.Exec(t.Context(), "BEGIN; INSERT INTO mine VALUES (1)")
		require.NoError(t, err)
		require.NoError(t, pgExec(t.Context(), s.URL, "INSERT INTO mine VALUES (10)"))

		require.NoError(t, s.Kill())
		require.Error(t, s.Kill(), "it does not run")
		_, err = open.Exec(t.Context(), "COMMIT")
		require.Error(t, err)
		require.Error(t, pgExec(t.Context(), s.URL, "SELECT"))
		require.NoError(t, s.Restart())
	}
	conn, err := pgx.Connect(t.Context(), s.URL)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	var sum, most int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT sum(n), current_setting('max_connections')::int FROM mine").Scan(&sum, &most))
	assert.Equal(t, 30, sum)
	assert.Equal(t, 10, most)

	require.NoError(t, s.Stop())
	require.Error(t, pgExec(t.Context(), s.URL, "SELECT"))
	require.NoError(t, s.Restart())
	require.NoError(t, pgExec(t.Context(), s.URL, "SELECT"))
}

// TestPgtest_BadSettings: a server that does not start says why.
func TestPgtest_BadSettings(t *testing.T) {
	t.Parallel()
	_, err := pgtest.New("no_such_setting=1")
	assert.ErrorContains(t, err, "no_such_setting")
}

// TestPgtest_Standby follows, refuses to write, and can be promoted.
func TestPgtest_Standby(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	require.NoError(t, pgExec(t.Context(), s.URL, "CREATE TABLE mine (n int)"))
	standby, err := s.Standby()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.Close()) })
	require.ErrorContains(t, pgExec(t.Context(), standby.URL, "INSERT INTO mine VALUES (1)"), "read-only")
	require.NoError(t, s.Kill())
	require.NoError(t, pgExec(t.Context(), standby.URL, "SELECT pg_promote()"))
	require.NoError(t, pgExec(t.Context(), standby.URL, "INSERT INTO mine VALUES (1)"))
}

// TestPgtest_DiesWithTheTestBinary kills this test binary, run once more, while its
// server runs.
func TestPgtest_DiesWithTheTestBinary(t *testing.T) {
	t.Parallel()
	const role = "TIDEMARK_PGTEST_CHILD"
	if os.Getenv(role) != "" {
		_, _ = os.Stdout.WriteString("begins\n")
		s, err := pgtest.New()
		require.NoError(t, err)
		_, _ = os.Stdout.WriteString(s.URL + "\n")
		select {}
	}
	t.Run("WhenItRuns", func(t *testing.T) { testDiesWith(t, role, false) })
	t.Run("WhenItIsMade", func(t *testing.T) { testDiesWith(t, role, true) })
}

// testDiesWith kills the test binary when its server answers or, with early, when
// the server's data are being made.
func testDiesWith(t *testing.T, role string, early bool) {
	folder, err := os.MkdirTemp("", "tidemark-") // t.TempDir's is closed to the server's user
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(folder)) })
	require.NoError(t, os.Chmod(folder, 0o777))
	child := exec.Command(os.Args[0], "-test.run", "^TestPgtest_DiesWithTheTestBinary$")
	child.Env = append(os.Environ(), role+"=yes", "TMPDIR="+folder)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	address := ""
	if early {
		require.Eventually(t, func() bool {
			made, _ := filepath.Glob(filepath.Join(folder, "*", "data", "*"))
			return len(made) > 0
		}, patience, time.Millisecond)
	} else {
		require.True(t, lines.Scan())
		server, err := url.Parse(lines.Text())
		require.NoError(t, err)
		require.NoError(t, pgExec(t.Context(), server.String(), "SELECT"))
		address = server.Host
	}
	require.NotEmpty(t, folderNames(t, folder))

	require.NoError(t, child.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	assert.Error(t, child.Wait())
	assert.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Empty(c, folderNames(t, folder))
		if address != "" {
			_, err := net.Dial("tcp", address)
			assert.Error(c, err)
		}
	}, patience, 20*time.Millisecond)
}

func folderNames(t *testing.T, folder string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(folder, "*"))
	require.NoError(t, err)
	return names
}
