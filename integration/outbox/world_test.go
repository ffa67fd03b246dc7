//go:build unix

// Package outbox tests that of PostgreSQL with everything real: caches, their log on a
// nats-server, relays, and the database, each in processes of its own that can be killed,
// and caches in the test's own beside them. Package store/postgres/outbox has the other tests.
//
//	go test -run Storm ./outbox -outbox.storm 5m -v
//	go test -run Bulk ./outbox -outbox.rows 1000000 -v
package outbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

// Tests that kill a relay, a replica or a nats-server have it in a process of its own: this
// test binary, started again with a part to play.
const (
	partVariable = "TIDEMARK_OUTBOX_PART" // "relay", "replica" or "nats"
	urlVariable  = "TIDEMARK_OUTBOX_URL"  // of the database
	natsVariable = "TIDEMARK_OUTBOX_NATS" // port
	dirVariable  = "TIDEMARK_OUTBOX_DIR"  // of the stream
)

func TestMain(m *testing.M) {
	switch part := os.Getenv(partVariable); part {
	case "":
		os.Exit(pgtest.Main(m))
	case "relay":
		os.Exit(play(relayPart))
	case "nats":
		os.Exit(play(natsPart))
	case "replica":
		os.Exit(play(replicaPart))
	default:
		fmt.Fprintln(os.Stderr, "no such part:", part)
		os.Exit(2)
	}
}

// play plays a part until the parent is gone, or kills it.
func play(part func() (run func(), err error)) int {
	run, err := part()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	run()
	return 0
}

// untilTheEnd waits until the parent is gone.
func untilTheEnd() { _, _ = io.Copy(io.Discard, os.Stdin) }

func natsPart() (run func(), err error) {
	port, err := strconv.Atoi(os.Getenv(natsVariable))
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: os.Getenv(dirVariable), NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		return nil, errors.New("the nats-server does not start")
	}
	return untilTheEnd, nil
}

func relayPart() (run func(), err error) {
	config, err := pgx.ParseConfig(os.Getenv(urlVariable))
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect("nats://127.0.0.1:"+os.Getenv(natsVariable), tidemark.NATSConnectOptions()...)
	if err != nil {
		return nil, err
	}
	_, err = outbox.NewRelay(outbox.RelayOptions{Config: config, Table: raised, Invalidator: onStream(nc), Poll: 50 * time.Millisecond, Lease: time.Second, Collapse: -1})
	return untilTheEnd, err
}

// raised is the table of these tests: its writers need not know of versions.
var raised = outbox.Table{Name: "accounts", Raise: true}

// onStream returns the invalidator of these tests.
func onStream(nc *nats.Conn) tidemark.Invalidator {
	return tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Beat: 50 * time.Millisecond,
		Stream: &tidemark.NATSStream{Replicas: 1}})
}

const createAccounts = `CREATE TABLE accounts (key text PRIMARY KEY, value bigint, version bigint NOT NULL)`

const patience = time.Minute // a loaded machine is slow

// eventually waits until something is so; the argument says what is so instead.
func eventually(t testing.TB, patience time.Duration, is func() bool, what string, instead ...func() any) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, f := range instead {
				what += fmt.Sprintf(": %+v", f())
			}
			require.FailNow(t, what)
		}
	}
}

// A database is a connection to one.
type database struct {
	t testing.TB
	*pgx.Conn
}

func openDatabase(t testing.TB, url string) *database {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &database{t, conn}
}

// exec runs commands, each in a transaction of its own.
func (d *database) exec(commands ...string) {
	d.t.Helper()
	for _, c := range commands {
		_, err := d.Exec(d.t.Context(), c)
		require.NoError(d.t, err, c)
	}
}

// scalar returns the only value of a query.
func scalar[T any](d *database, query string, args ...any) (v T) {
	d.t.Helper()
	require.NoError(d.t, d.QueryRow(d.t.Context(), query, args...).Scan(&v), query)
	return v
}

// A world is a database, a nats-server and relays, each in a process of its own.
type world struct {
	t     *testing.T
	pg    *pgtest.Server
	port  string // of the nats-server
	dir   string // of its stream
	nats  *child
	relay []*child

	replicaProcesses []*child
}

// A child is a process that plays a part.
type child struct {
	cmd  *exec.Cmd
	word io.WriteCloser
	out  *bufio.Reader

	// Of one that is a replica: its answers, and when it has said everything.
	words chan string
	gone  chan struct{}
}

// newWorld starts everything, with a table of so many rows.
func newWorld(t *testing.T, rows, relays int, table outbox.Table) *world {
	t.Helper()
	w := &world{t: t, pg: pgtest.Start(t, "fsync=off", "max_connections=200", "max_wal_size=4GB"), dir: t.TempDir()}
	d := openDatabase(t, w.pg.URL)
	d.exec(createAccounts,
		fmt.Sprintf(`INSERT INTO accounts SELECT 'k' || n, 0, 1 FROM generate_series(0, %d) n`, rows-1), `ANALYZE accounts`)
	require.NoError(t, outbox.Install(t.Context(), d, table))
	w.port = freePort(t)
	t.Cleanup(func() {
		for _, c := range append(append(w.relay, w.replicaProcesses...), w.nats) {
			if c != nil {
				c.kill()
			}
		}
	})
	w.startNATS()
	for range relays {
		w.relay = append(w.relay, w.start("relay"))
	}
	return w
}

// freePort returns a port below those that the system gives to clients.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.Fail(t, "no port is free")
	return ""
}

func (w *world) startNATS() { w.nats = w.start("nats") }

// start starts a process, and waits until it is ready.
func (w *world) start(part string) *child {
	w.t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), partVariable+"="+part, urlVariable+"="+w.pg.URL, natsVariable+"="+w.port, dirVariable+"="+w.dir)
	c.cmd.Stderr = os.Stderr
	var err error
	c.word, err = c.cmd.StdinPipe()
	require.NoError(w.t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, c.cmd.Start())
	c.out = bufio.NewReader(out)
	line, err := c.out.ReadString('\n')
	require.NoError(w.t, err, "the %s does not start", part)
	require.Equal(w.t, "ready\n", line)
	return c
}

// kill ends the process as kill -9 does.
func (c *child) kill() {
	_ = c.cmd.Process.Signal(syscall.SIGKILL)
	if c.gone != nil {
		<-c.gone
	}
	_ = c.cmd.Wait()
	_ = c.word.Close()
}

func (c *child) signal(t *testing.T, s os.Signal) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Signal(s))
}

// memory returns the most that the process has had in memory, in bytes; 0 where the
// system does not say.
func (c *child) memory(t *testing.T) (most int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &most); n == 1 {
			return most << 10
		}
	}
	return 0
}

// A loader reads accounts.
type loader struct{ pool *pgxpool.Pool }

func (l loader) Load(ctx context.Context, key string) (value int64, v tidemark.Version, err error) {
	err = l.pool.QueryRow(ctx, `SELECT value, version FROM accounts WHERE key = $1`, key).Scan(&value, &v)
	if errors.Is(err, pgx.ErrNoRows) {
		err = tidemark.ErrNotFound
	}
	return value, v, err
}

func (l loader) LoadMany(ctx context.Context, keys []string) (map[string]tidemark.Loaded[int64], error) {
	rows, err := l.pool.Query(ctx, `SELECT key, value, version FROM accounts WHERE key = ANY($1)`, keys)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(map[string]tidemark.Loaded[int64], len(keys))
	for rows.Next() {
		var key string
		var r tidemark.Loaded[int64]
		if err := rows.Scan(&key, &r.Value, &r.Version); err != nil {
			return nil, err
		}
		found[key] = r
	}
	return found, rows.Err()
}

// replicas returns caches with a Prober, once they hear the log.
func (w *world) replicas(n int, entries int64) (all []*tidemark.Cache[string, int64]) {
	w.t.Helper()
	config, err := pgxpool.ParseConfig(w.pg.URL)
	require.NoError(w.t, err)
	config.MaxConns = 24
	pool, err := pgxpool.NewWithConfig(w.t.Context(), config)
	require.NoError(w.t, err)
	w.t.Cleanup(pool.Close)
	prober, err := outbox.NewProber(pool, raised)
	require.NoError(w.t, err)
	for range n {
		nc, err := nats.Connect("nats://127.0.0.1:"+w.port, tidemark.NATSConnectOptions()...)
		require.NoError(w.t, err)
		w.t.Cleanup(nc.Close)
		inv := onStream(nc)
		inv.Prober = prober
		c, err := tidemark.New(tidemark.Options[string, int64]{
			MaxCost: entries, Loader: loader{pool}, LoadTimeout: 10 * time.Second, Invalidator: inv,
		})
		require.NoError(w.t, err)
		w.t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = c.Close(ctx) // the nats-server may be gone
		})
		all = append(all, c)
	}
	for _, c := range all {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		require.NoError(w.t, c.Ready(ctx))
		cancel()
	}
	return all
}

// fill loads all keys into the caches.
func fill(t *testing.T, all []*tidemark.Cache[string, int64], rows int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			for from := 0; from < rows; from += 5000 {
				var keys []string
				for n := from; n < min(from+5000, rows); n++ {
					keys = append(keys, "k"+strconv.Itoa(n))
				}
				if _, err := c.LoadMany(t.Context(), keys); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// settled waits until every cache has proven that it has heard of all that was
// committed until now.
func settled(t *testing.T, all []*tidemark.Cache[string, int64]) {
	t.Helper()
	began := time.Now()
	for i, c := range all {
		eventually(t, patience, func() bool {
			fresh := c.Stats().Fresh
			return fresh >= 0 && fresh < time.Since(began)
		}, fmt.Sprintf("replica %d is not fresh", i), func() any { return c.Stats() })
	}
}

// wrong returns how many entries are not what the database has, of how many.
func wrong(t *testing.T, d *database, all []*tidemark.Cache[string, int64]) (bad, held int) {
	t.Helper()
	rows, err := d.Query(t.Context(), `SELECT key, value, version FROM accounts`)
	require.NoError(t, err)
	type state struct {
		value   int64
		version tidemark.Version
	}
	truth := map[string]state{}
	for rows.Next() {
		var key string
		var s state
		require.NoError(t, rows.Scan(&key, &s.value, &s.version))
		truth[strings.Clone(key)] = s
	}
	require.NoError(t, rows.Err())
	for _, c := range all {
		for key := range truth {
			if e, ok := c.GetEntry(key); ok {
				held++
				if truth[key] != (state{e.Value, e.Version}) {
					bad++
				}
			}
		}
	}
	return bad, held
}
