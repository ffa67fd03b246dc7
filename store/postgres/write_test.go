package postgres

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// failingDB is a DB whose commits end as it says, whether they have been made or not.
type failingDB struct {
	DB
	ends error
	made bool
}

func (d failingDB) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	tx, err := d.DB.BeginTx(ctx, o)
	return failingTx{tx, d}, err
}

type failingTx struct {
	pgx.Tx
	db failingDB
}

func (t failingTx) Commit(ctx context.Context) error {
	if t.db.made {
		return errors.Join(t.Tx.Commit(ctx), t.db.ends)
	}
	return errors.Join(t.Tx.Rollback(ctx), t.db.ends)
}

// closedError is what pgconn returns when a connection breaks under COMMIT.
type closedError struct{}

func (closedError) Error() string     { return "conn closed" }
func (closedError) SafeToRetry() bool { return true }

// TestS31_WhatIsBelievedOfACommit: only the server itself can say that there was
// none. What the driver, a pooler or a dying server says leaves it open.
func TestS31_WhatIsBelievedOfACommit(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	newStore(t, db, Options[string, string]{})
	says := func(severity, code string) error {
		return &pgconn.PgError{Severity: severity, SeverityUnlocalized: severity, Code: code}
	}
	for name, c := range map[string]struct {
		err    error
		unsure bool
	}{
		"rolled back":            {pgx.ErrTxCommitRollback, false},
		"serialization":          {says("ERROR", "40001"), false},
		"deferred constraint":    {says("ERROR", "23503"), false},
		"raised by a trigger":    {says("ERROR", "P0001"), false},
		"statement timeout":      {says("ERROR", "57014"), false},
		"closed":                 {closedError{}, true},
		"end of file":            {io.ErrUnexpectedEOF, true},
		"context":                {context.DeadlineExceeded, true},
		"shutdown":               {says("FATAL", "57P01"), true},
		"crash":                  {says("FATAL", "57P02"), true},
		"idle too long":          {says("FATAL", "25P03"), true},
		"cancelled and closed":   {says("FATAL", "57014"), true},
		"pooler lost the server": {says("ERROR", "08006"), true},
		"pooler gave up":         {says("ERROR", "58000"), true},
		"pooler shuts down":      {says("ERROR", "57P01"), true},
		"defect":                 {says("ERROR", "XX000"), true},
	} {
		s, err := New(failingDB{db, c.err, c.unsure}, Options[string, string]{})
		require.NoError(t, err)
		_, err = s.CompareAndSet(t.Context(), name, 0, "v", newOp())
		require.Error(t, err, name)
		assert.Equal(t, c.unsure, !errors.Is(err, tidemark.ErrUnavailable), "%s: %v", name, err)
	}
}

// TestS37_SentAgain: a write that was committed is not made again, though its base
// would allow it, and whoever sends it again is told its version.
func TestS37_SentAgain(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		s := newStore(t, newDB(t), Options[string, string]{HardDelete: hard})
		create, remove := newOp(), newOp()
		v1, err := s.CompareAndSet(t.Context(), "k", 0, "v", create)
		require.NoError(t, err)
		v2, err := s.CompareAndDelete(t.Context(), "k", v1, remove)
		require.NoError(t, err)

		again, err := s.CompareAndSet(t.Context(), "k", 0, "v", create)
		require.NoError(t, err)
		assert.Equal(t, v1, again)
		_, at, err := s.Load(t.Context(), "k")
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		assert.Equal(t, v2, at)

		again, err = s.CompareAndDelete(t.Context(), "k", v1, remove)
		require.NoError(t, err)
		assert.Equal(t, v2, again)
		v3, err := s.CompareAndSet(t.Context(), "k", 0, "w", newOp())
		require.NoError(t, err)
		again, err = s.CompareAndDelete(t.Context(), "k", v3, remove)
		require.NoError(t, err)
		assert.Equal(t, v2, again)
		requireState(t, s, "k", "w", v3)
	}
}

// TestS28_TheBaseIsCompared with what is there: a row that lives, at its version, or
// for base 0 none.
func TestS28_TheBaseIsCompared(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		s := newStore(t, newDB(t), Options[string, string]{HardDelete: hard})
		conflict := func(want tidemark.ConflictError, base tidemark.Version) {
			t.Helper()
			var got *tidemark.ConflictError
			_, err := s.CompareAndSet(t.Context(), "k", base, "x", newOp())
			require.ErrorAs(t, err, &got)
			require.Equal(t, want, *got)
			if base != 0 {
				_, err = s.CompareAndDelete(t.Context(), "k", base, newOp())
				require.ErrorAs(t, err, &got)
				require.Equal(t, want, *got)
			}
		}
		conflict(tidemark.ConflictError{Absent: true}, 1)
		v, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
		require.NoError(t, err)
		conflict(tidemark.ConflictError{Current: v}, 0)
		conflict(tidemark.ConflictError{Current: v}, v+1)
		requireState(t, s, "k", "v", v)
		gone, err := s.CompareAndDelete(t.Context(), "k", v, newOp())
		require.NoError(t, err)
		conflict(tidemark.ConflictError{Current: gone, Absent: true}, v)
		conflict(tidemark.ConflictError{Current: gone, Absent: true}, gone)
		_, at, err := s.Load(t.Context(), "k")
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		require.Equal(t, gone, at)
	}
}

// TestS28_LostUpdates has many who count, by compare and set, and none who is told
// of a write that did not count.
func TestS28_LostUpdates(t *testing.T) {
	t.Parallel()
	s := newStore(t, newDB(t), Options[string, int]{})
	_, err := s.CompareAndSet(t.Context(), "n", 0, 0, newOp())
	require.NoError(t, err)
	var wg sync.WaitGroup
	const each, clients = 25, 8
	for range clients {
		wg.Go(func() {
			for done := 0; done < each; {
				v, committed, doubtful := countUp(t.Context(), s, "n")
				if doubtful || committed && v == 0 {
					t.Error("in doubt, though nothing is broken")
					return
				}
				if committed {
					done++
				}
			}
		})
	}
	wg.Wait()
	n, v, err := s.Load(t.Context(), "n")
	require.NoError(t, err)
	assert.Equal(t, clients*each, n)
	assert.EqualValues(t, clients*each+1, v)
}
