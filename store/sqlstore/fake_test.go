package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A fake is a database that does nothing but note what it is told and fail
// where it is told to. Real ones are tested in the integration module.
type fake struct {
	sql statements // of the store under test, to name what it sends
	box outboxStatements

	mu    sync.Mutex            // guards everything below
	steps []string              // "begin", "update", "record", "commit" ...
	level driver.IsolationLevel // of the last transaction

	// fail returns the error of a step, given how often it came before.
	fail map[string]func(before int) error

	// rows is what the query of a step returns; nil is no row.
	rows map[string][]driver.Value

	// unchanged are the steps that change no row; the others change one.
	unchanged map[string]bool
}

// newFake returns a store of which everything succeeds.
func newFake(t *testing.T, d Dialect) (*fake, *Store[string, string]) {
	t.Helper()
	f := &fake{
		fail:      map[string]func(int) error{},
		unchanged: map[string]bool{},
		rows:      map[string][]driver.Value{"state": {int64(7), false, nil}},
	}
	db := sql.OpenDB(f)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	store, err := New(db, Options[string, string]{Dialect: d})
	require.NoError(t, err)
	f.sql, f.box = store.sql, store.box
	return f, store
}

// always returns err each time.
func always(err error) func(int) error { return func(int) error { return err } }

// step notes a step and returns its error.
func (f *fake) step(name string) error {
	f.mu.Lock()
	before := 0
	for _, s := range f.steps {
		if s == name {
			before++
		}
	}
	f.steps = append(f.steps, name)
	fail := f.fail[name]
	f.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(before)
}

// count returns how often a step came.
func (f *fake) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.steps {
		if s == name {
			n++
		}
	}
	return n
}

// name returns the step of a statement.
func (f *fake) name(query string) string {
	for statement, name := range map[string]string{
		f.sql.load: "load", f.sql.reserve: "reserve", f.sql.create: "create", f.sql.update: "update",
		f.sql.remove: "remove", f.sql.state: "state", f.sql.record: "record", f.sql.outcome: "outcome", f.sql.prune: "prune",
		f.box.look: "look", f.box.ids: "ids", f.box.mark: "mark", f.box.waiting: "waiting", f.box.forget([]int64{7}): "forget",
		f.box.watch: "watch", f.box.epoch: "epoch",
	} {
		if query == statement {
			return name
		}
	}
	if strings.HasPrefix(query, f.sql.loadMany) {
		return "load " + query[len(f.sql.loadMany):]
	}
	if strings.HasPrefix(query, f.sql.versions) {
		return "versions " + query[len(f.sql.versions):]
	}
	return query
}

func (f *fake) Connect(context.Context) (driver.Conn, error) {
	if err := f.step("connect"); err != nil {
		return nil, err
	}
	return &fakeConn{f}, nil
}

func (f *fake) Driver() driver.Driver { return nil }

type fakeConn struct{ *fake }

func (c *fakeConn) BeginTx(_ context.Context, o driver.TxOptions) (driver.Tx, error) {
	c.mu.Lock()
	c.level = o.Isolation
	c.mu.Unlock()
	return c, c.step("begin")
}

func (c *fakeConn) Commit() error   { return c.step("commit") }
func (c *fakeConn) Rollback() error { return c.step("rollback") }
func (c *fakeConn) Close() error    { return c.step("close") }

// ResetSession keeps database/sql from closing the connection when a context
// ends a transaction.
func (c *fakeConn) ResetSession(context.Context) error { return nil }

func (c *fakeConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	name := c.name(query)
	if err := c.step(name); err != nil {
		return nil, err
	}
	if c.unchanged[name] {
		return driver.RowsAffected(0), nil
	}
	return driver.RowsAffected(1), nil
}

func (c *fakeConn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	name := c.name(query)
	if err := c.step(name); err != nil {
		return nil, err
	}
	name, _, _ = strings.Cut(name, " ")
	if c.rows[name] == nil {
		return &fakeRows{}, nil
	}
	return &fakeRows{c.rows[name]}, nil
}

func (*fakeConn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (*fakeConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }

// fakeRows is one row or none.
type fakeRows struct{ left []driver.Value }

func (r *fakeRows) Columns() []string { return make([]string, len(r.left)) }
func (r *fakeRows) Close() error      { return nil }

func (r *fakeRows) Next(dest []driver.Value) error {
	if r.left == nil {
		return io.EOF
	}
	copy(dest, r.left)
	r.left = nil
	return nil
}
