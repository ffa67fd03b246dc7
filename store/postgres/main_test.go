package postgres

import (
	"context"
	"crypto/rand"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// TestMain lets more tests run beside each other than there are processors, unless
// the command line says how many: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
	}
	os.Exit(pgtest.Main(m))
}

// patience bounds what a correct program does soon.
const patience = 20 * time.Second

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

// open returns a pool of connections to url.
func open(t testing.TB, url string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	c.MaxConns = 16
	for _, f := range change {
		f(c)
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), c)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// newDB returns a pool of connections to a database of the test's own.
func newDB(t testing.TB, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return open(t, pgtest.Database(t, pgExec), change...)
}

// newStore returns a store whose tables exist.
func newStore[K comparable, V any](t testing.TB, db DB, o Options[K, V]) *Store[K, V] {
	t.Helper()
	s, err := New(db, o)
	require.NoError(t, err)
	require.NoError(t, s.CreateTables(t.Context()))
	return s
}

// newOp returns an operation id that nobody has used.
func newOp() (op tidemark.OpID) {
	rand.Read(op[:])
	return op
}

func exec(t testing.TB, db DB, query string, args ...any) {
	t.Helper()
	_, err := db.Exec(t.Context(), query, args...)
	require.NoError(t, err, query)
}

// get returns what a query of one value returns.
func get[T any](t testing.TB, db DB, query string, args ...any) (v T) {
	t.Helper()
	rows, err := db.Query(t.Context(), query, args...)
	require.NoError(t, err, query)
	v, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err, query)
	return v
}

func withMode(m pgx.QueryExecMode) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = m }
}

// randomName returns one for a table.
func randomName() string { return "t_" + strings.ToLower(rand.Text()) }
