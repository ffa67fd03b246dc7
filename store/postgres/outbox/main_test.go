package outbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// execute is a [pgtest.Exec].
func execute(ctx context.Context, url, command string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, command)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// accounts is the table of most tests.
var accounts = Table{Name: "accounts"}

const createAccounts = `CREATE TABLE accounts (key text PRIMARY KEY, value bigint, version bigint NOT NULL, deleted boolean NOT NULL DEFAULT false)`

// A database is one that a test has for itself.
type database struct {
	t   testing.TB
	url string
	*pgx.Conn
}

// newDatabase returns a database with the table accounts and, if t has a name, its
// outbox.
func newDatabase(t testing.TB, table Table) *database {
	t.Helper()
	return setUp(t, pgtest.Database(t, execute), table)
}

// newServer is newDatabase on a server of its own: what other tests have open there
// would hold back xmin, and with it the floor.
func newServer(t testing.TB, table Table) *database {
	t.Helper()
	return setUp(t, pgtest.Start(t, "fsync=off", "autovacuum=off").URL, table)
}

func setUp(t testing.TB, url string, table Table) *database {
	t.Helper()
	d := openDatabase(t, url)
	d.exec(createAccounts)
	if table.Name != "" {
		require.NoError(t, Install(t.Context(), d, table))
	}
	return d
}

// openDatabase returns another connection to a database.
func openDatabase(t testing.TB, url string) *database {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &database{t, url, conn}
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

// outboxed returns what is in the outbox, in order, and takes it out: "key@version",
// "key" without a version, "*" for everything.
func (d *database) outboxed() (changes []string) {
	d.t.Helper()
	rows, err := d.Query(d.t.Context(), `SELECT key, version FROM accounts_outbox WHERE origin IS NULL ORDER BY key COLLATE "C" NULLS LAST, version`)
	require.NoError(d.t, err)
	changes = []string{}
	for rows.Next() {
		var key *string
		var version *int64
		require.NoError(d.t, rows.Scan(&key, &version))
		switch {
		case key == nil:
			changes = append(changes, "*")
		case version == nil:
			changes = append(changes, *key)
		default:
			changes = append(changes, fmt.Sprintf("%s@%d", *key, *version))
		}
	}
	require.NoError(d.t, rows.Err())
	d.exec(`DELETE FROM accounts_outbox`)
	return changes
}

// waiting returns how many rows are in the outbox.
func (d *database) waiting() int64 { return scalar[int64](d, `SELECT count(*) FROM accounts_outbox`) }

// A memLog is a Log that remembers what it was told, and nobody reads.
type memLog struct {
	mu       sync.Mutex // guards everything below
	messages []wire.Message
	refuse   error
	before   func(wire.Message) // is called with no lock held
}

func (l *memLog) Append(_ context.Context, msg []byte) (uint64, error) {
	var m wire.Message
	if err := wire.Decode(append([]byte(nil), msg...), &m); err != nil {
		return 0, err
	}
	l.mu.Lock()
	before := l.before
	l.mu.Unlock()
	if before != nil {
		before(m)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return 0, l.refuse
	}
	l.messages = append(l.messages, m)
	return uint64(len(l.messages)), nil
}

func (l *memLog) Open(context.Context, uint64) (tidemark.LogReader, error) {
	return nil, errors.New("nobody reads")
}

func (l *memLog) set(refuse error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

func (l *memLog) hook(before func(wire.Message)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = before
}

// told returns what was told, one string for each change and probe.
func (l *memLog) told() (told []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.messages {
		switch m.Kind {
		case wire.KindInvalidateAll:
			told = append(told, "*")
		case wire.KindInvalidate:
			for _, e := range m.Entries {
				told = append(told, fmt.Sprintf("%s@%d", e.Key, e.Version))
			}
		case wire.KindProbe:
			for _, p := range m.Probes {
				told = append(told, fmt.Sprintf("probe %d.%d", p.Origin, p.Nonce))
			}
		}
	}
	return told
}

func (l *memLog) invalidator() tidemark.Invalidator {
	return tidemark.Invalidator{Name: "accounts", Log: l}
}

// newRelay starts a relay for a test.
func newRelay(t testing.TB, url string, inv tidemark.Invalidator, change ...func(*RelayOptions)) *Relay {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	o := RelayOptions{Config: config, Table: accounts, Invalidator: inv, Poll: 20 * time.Millisecond, Lease: 2 * time.Second}
	for _, c := range change {
		c(&o)
	}
	r, err := NewRelay(o)
	require.NoError(t, err)
	t.Cleanup(func() { closeRelay(t, r) })
	return r
}

func closeRelay(t testing.TB, r *Relay) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	assert.NoError(t, r.Close(ctx))
}

const patience = time.Minute // a loaded machine is slow

// eventually waits until something is so.
func eventually(t testing.TB, is func() bool, format string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		if time.Now().After(deadline) {
			for i, a := range args {
				if latest, ok := a.(func() []string); ok {
					args[i] = latest()
				}
			}
			require.Failf(t, "it never was", format, args...)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// works waits until a relay works and has told that everything changed, as it does
// after each migration.
func works(t testing.TB, r *Relay) {
	t.Helper()
	eventually(t, func() bool { s := r.Stats(); return s.Working && s.Lag == 0 }, "the relay does not work: %+v", r.Stats())
}

// noGoroutines fails if a goroutine of this package or of tidemark is left.
func noGoroutines(t testing.TB) {
	t.Helper()
	eventually(t, func() bool {
		buf := make([]byte, 1<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		return !strings.Contains(stacks, "outbox.(*Relay)") && !strings.Contains(stacks, "tidemark.(*outbox)")
	}, "a goroutine is left")
}

func probeOf(origin, nonce uint64) tidemark.Probe {
	return tidemark.Probe{Origin: origin, Nonce: nonce}
}
