package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const patience = 20 * time.Second

// onEachStore runs a test on SQLite and on PostgreSQL.
func onEachStore(t *testing.T, test func(t *testing.T, store string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, newSQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, newPostgres(t)) })
}

func newSQLite(t testing.TB) string { return filepath.Join(t.TempDir(), "payments.db") }

func newPostgres(t testing.TB) string {
	return pgtest.Database(t, func(ctx context.Context, url, command string) error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, command)
		return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	})
}

// A service is a run of the program, in this process.
type service struct {
	t        testing.TB
	output   output
	replicas []string // addresses
	nats     string   // URL of the nats-server in it
	cancel   context.CancelFunc
	ended    chan error
}

// start runs the program with two replicas, unless args say otherwise, and waits
// until they are ready.
func start(t testing.TB, args ...string) *service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{t: t, cancel: cancel, ended: make(chan error, 1)}
	args = append([]string{"-listen", "127.0.0.1:0,127.0.0.1:0", "-nats-listen", "127.0.0.1:0"}, args...)
	go func() { s.ended <- run(ctx, args, &s.output) }()
	t.Cleanup(func() {
		if s.cancel != nil {
			s.stop()
		}
	})
	c, err := parse(args, io.Discard)
	require.NoError(t, err)
	for i := range c.listen {
		found := s.says(fmt.Sprintf(`msg=serving replica=%d address=(\S+)`, i+1))
		s.replicas = append(s.replicas, found[1])
	}
	if c.nats == "" {
		s.nats = s.says(`this process" url=(\S+)`)[1]
	}
	return s
}

// ready waits until all replicas hear each other.
func (s *service) ready() *service {
	s.t.Helper()
	for i := range s.replicas {
		s.says(fmt.Sprintf(`hears the replicas" replica=%d `, i+1))
	}
	return s
}

// says waits until the service has logged what matches pattern.
func (s *service) says(pattern string) []string {
	s.t.Helper()
	line := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if found := line.FindStringSubmatch(s.output.String()); found != nil {
			return found
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			require.FailNow(s.t, "the service has ended", "%v\n%s", err, &s.output)
		default:
		}
		require.True(s.t, time.Now().Before(deadline), "the service does not say %s:\n%s", pattern, &s.output)
	}
}

// stop tells the service to end, as a signal does, and waits until it has.
func (s *service) stop() {
	s.t.Helper()
	s.cancel()
	s.cancel = nil
	select {
	case err := <-s.ended:
		require.NoError(s.t, err)
	case <-time.After(patience):
		require.FailNow(s.t, "the service does not end", s.output.String())
	}
}

// An output is what a service has logged. It is safe for concurrent use.
type output struct {
	mu  sync.Mutex // guards buf
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

// A client talks to a service, as one person with a browser.
type client struct {
	t testing.TB
	http.Client
}

func newClient(t testing.TB) *client {
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	c := &client{t, http.Client{Jar: jar, Timeout: patience, Transport: &http.Transport{}}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// get and post return the status, the body, and the headers; zeros if there was no
// answer, which is an error of the test.
func (c *client) get(address, path string) (int, string, http.Header) {
	return c.do(http.MethodGet, address, path, "")
}

func (c *client) post(address, path, body string) (int, string, http.Header) {
	return c.do(http.MethodPost, address, path, body)
}

func (c *client) do(method, address, path, body string) (int, string, http.Header) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, "http://"+address+path, strings.NewReader(body))
	require.NoError(c.t, err)
	answer, err := c.Do(r)
	if !assert.NoError(c.t, err) { // it may run beside the test, so it does not end it
		return 0, "", http.Header{}
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	assert.NoError(c.t, err)
	return answer.StatusCode, strings.TrimSpace(string(text)), answer.Header
}

// A job is another program that changes the database by plain SQL.
type job struct {
	t testing.TB
	*sql.DB
}

func newJob(t testing.TB, store string) *job {
	driver, name := "sqlite", "file:"+store+"?_pragma=busy_timeout(5000)"
	if strings.HasPrefix(store, "postgres") {
		driver, name = "pgx", store
	}
	db, err := sql.Open(driver, name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return &job{t, db}
}

// add adds amount to all accounts.
func (j *job) add(amount int) {
	j.t.Helper()
	_, err := j.ExecContext(context.Background(), fmt.Sprintf("UPDATE accounts SET value = value + %d, version = version + 1", amount))
	require.NoError(j.t, err)
}

// lock keeps everybody else from writing to an SQLite file, until it is released.
func (j *job) lock() (release func()) {
	j.t.Helper()
	conn, err := j.Conn(context.Background())
	require.NoError(j.t, err)
	_, err = conn.ExecContext(context.Background(), "BEGIN IMMEDIATE")
	require.NoError(j.t, err)
	return func() {
		j.t.Helper()
		_, err := conn.ExecContext(context.Background(), "ROLLBACK")
		require.NoError(j.t, err)
		require.NoError(j.t, conn.Close())
	}
}

// statsOf returns one of a replica's counters.
func statsOf(t testing.TB, address, name string) float64 {
	t.Helper()
	_, body, _ := newClient(t).get(address, "/debug/stats")
	var stats map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &stats))
	require.Contains(t, stats, name)
	return stats[name].(float64)
}

// explained reports whether a replica says something about the account alice.
func explained(t testing.TB, address, what string) bool {
	_, body, _ := newClient(t).get(address, "/debug/accounts/alice")
	return strings.Contains(body, what)
}
