package integration

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// A fault is what happens to one COMMIT.
type fault int32

const (
	noFault       fault = iota
	commitLost          // it does not reach the database
	answerLost          // it does, and the connection breaks instead of the answer
	answerStalled       // it does, and no answer comes (proxies only)
)

// A saboteur arms a database connection with faults.
type saboteur interface {
	// arm makes the next COMMIT suffer f.
	arm(f fault)
	// suffered reports whether the fault has struck.
	suffered() bool
}

// testCommitFaults is S31: the answer to COMMIT does not come, and the store
// must neither claim nor deny, but know when it is asked.
func testCommitFaults(t *testing.T, d database, s saboteur) {
	for name, f := range map[string]fault{"CommitLost": commitLost, "AnswerLost": answerLost} {
		t.Run(name, func(t *testing.T) { testCommitFault(t, d, s, f) })
	}
	t.Run("AnswerLost_ThroughTheCache", func(t *testing.T) { testCacheSettlesDoubt(t, d, s, answerLost) })
	t.Run("CommitLost_ThroughTheCache", func(t *testing.T) { testCacheSettlesDoubt(t, d, s, commitLost) })
}

func testCommitFault(t *testing.T, d database, s saboteur, f fault) {
	store, _ := newStore(t, d, sqlstore.Options[string, string]{})
	before, err := store.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)

	update := newOp()
	s.arm(f)
	_, err = store.CompareAndSet(t.Context(), "k", before, "after", update)
	requireUnknown(t, s, err)
	v := wantSettled(t, store, "k", update, f == answerLost, "after", "before")

	// Sent again, it is made once.
	again, err := store.CompareAndSet(t.Context(), "k", before, "after", update)
	require.NoError(t, err)
	if f == answerLost {
		assert.Equal(t, v, again)
	}
	wantSettled(t, store, "k", update, true, "after", "")

	create := newOp()
	s.arm(f)
	_, err = store.CompareAndSet(t.Context(), "new", 0, "created", create)
	requireUnknown(t, s, err)
	wantSettled(t, store, "new", create, f == answerLost, "created", "")

	remove := newOp()
	s.arm(f)
	_, err = store.CompareAndDelete(t.Context(), "k", again, remove)
	requireUnknown(t, s, err)
	deletion, committed, err := store.Outcome(t.Context(), "k", remove)
	require.NoError(t, err)
	assert.Equal(t, f == answerLost, committed)
	_, now, err := store.Load(t.Context(), "k")
	if committed {
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		assert.Equal(t, deletion, now)
	} else {
		require.NoError(t, err)
		assert.Equal(t, again, now)
	}

	// The pool is as good as before: no transaction was left open in it.
	for range 10 {
		_, err := store.CompareAndSet(t.Context(), "fresh "+unique(), 0, "v", newOp())
		require.NoError(t, err)
	}
}

// requireUnknown demands an error that says nothing about what was committed.
func requireUnknown(t *testing.T, s saboteur, err error) {
	t.Helper()
	require.True(t, s.suffered(), "the fault did not strike")
	require.Error(t, err)
	var conflict *tidemark.ConflictError
	require.NotErrorIs(t, err, tidemark.ErrUnavailable)
	require.False(t, errors.As(err, &conflict), err)
}

// wantSettled demands that Outcome and Load agree on whether op was committed.
func wantSettled(t *testing.T, store *sqlstore.Store[string, string], key string, op tidemark.OpID, committed bool, after, before string) tidemark.Version {
	t.Helper()
	v, got, err := store.Outcome(t.Context(), key, op)
	require.NoError(t, err)
	require.Equal(t, committed, got, "what Outcome says")
	value, now, err := store.Load(t.Context(), key)
	switch {
	case committed:
		require.NoError(t, err)
		require.Equal(t, after, value)
		require.Equal(t, v, now)
	case before == "":
		require.ErrorIs(t, err, tidemark.ErrNotFound)
	default:
		require.NoError(t, err)
		require.Equal(t, before, value)
	}
	return v
}

// testCacheSettlesDoubt writes through a cache: the caller is told that the
// write is in doubt, the cache asks the store, and then serves the truth.
func testCacheSettlesDoubt(t *testing.T, d database, s saboteur, f fault) {
	store, _ := newStore(t, d, sqlstore.Options[string, string]{})
	cache, err := tidemark.New(tidemark.Options[string, string]{Store: store, DoubtTimeout: 300 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.WithoutCancel(t.Context()))) })
	before, err := cache.CompareAndSet(t.Context(), "k", 0, "before")
	require.NoError(t, err)

	s.arm(f)
	_, err = cache.CompareAndSet(t.Context(), "k", before.Version, "after")
	var doubt *tidemark.UncertainError
	require.ErrorAs(t, err, &doubt)
	require.True(t, s.suffered(), "the fault did not strike")

	v, committed, err := doubt.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, f == answerLost, committed)
	now, err := cache.Load(t.Context(), "k")
	require.NoError(t, err)
	if committed {
		assert.Equal(t, "after", now.Value)
		assert.Equal(t, v, now.Version)
	} else {
		assert.Equal(t, "before", now.Value)
		assert.Equal(t, before.Version, now.Version)
	}
}

// A faultyDriver opens connections of a real driver, and makes their COMMIT
// fail when armed. It stands between database/sql and a database in the same
// process; for servers there is a proxy.
type faultyDriver struct {
	real  driver.Driver
	dsn   string
	fault atomic.Int32 // a fault; noFault once it has struck
}

func (f *faultyDriver) arm(next fault) { f.fault.Store(int32(next)) }
func (f *faultyDriver) suffered() bool { return f.fault.Load() == int32(noFault) }

// Connect implements [driver.Connector].
func (f *faultyDriver) Connect(context.Context) (driver.Conn, error) {
	c, err := f.real.Open(f.dsn)
	if err != nil {
		return nil, err
	}
	return &faultyConn{fullConn: c.(fullConn), driver: f}, nil
}

// Driver implements [driver.Connector].
func (f *faultyDriver) Driver() driver.Driver { return f.real }

// A fullConn is a connection with all that database/sql makes use of.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Validator
	driver.SessionResetter
}

type faultyConn struct {
	fullConn
	driver *faultyDriver
}

func (c *faultyConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := c.fullConn.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	return &faultyTx{tx, c.driver}, nil
}

type faultyTx struct {
	driver.Tx
	driver *faultyDriver
}

// errCut is what a client sees when the connection is cut.
var errCut = errors.New("connection cut")

func (t *faultyTx) Commit() error {
	switch f := fault(t.driver.fault.Swap(int32(noFault))); f {
	case commitLost:
		return errors.Join(errCut, t.Rollback()) // as the server does when it notices
	case answerLost:
		return errors.Join(errCut, t.Tx.Commit())
	default:
		return t.Tx.Commit()
	}
}
