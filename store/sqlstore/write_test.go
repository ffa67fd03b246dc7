package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/backoff"
)

var (
	errBroken = errors.New("broken")
	op        = tidemark.OpID{1}
)

// A verdict is what the error of a write says.
type verdict string

const (
	committed    verdict = "committed"
	conflict     verdict = "lost to another write"
	notCommitted verdict = "certainly not committed"
	unknown      verdict = "nobody knows"
)

func verdictOf(err error) verdict {
	var lost *tidemark.ConflictError
	switch {
	case err == nil:
		return committed
	case errors.As(err, &lost):
		return conflict
	case errors.Is(err, tidemark.ErrUnavailable):
		return notCommitted
	default:
		return unknown
	}
}

func TestWrite_ErrorSaysWhatIsKnown(t *testing.T) {
	create := func(ctx context.Context, s *Store[string, string]) (tidemark.Version, error) {
		return s.CompareAndSet(ctx, "k", 0, "v", op)
	}
	update := func(ctx context.Context, s *Store[string, string]) (tidemark.Version, error) {
		return s.CompareAndSet(ctx, "k", 6, "v", op)
	}
	remove := func(ctx context.Context, s *Store[string, string]) (tidemark.Version, error) {
		return s.CompareAndDelete(ctx, "k", 6, op)
	}
	type write = func(context.Context, *Store[string, string]) (tidemark.Version, error)
	for _, tt := range []struct {
		fails string // the step, or none
		write write
		want  verdict
	}{
		{"", create, committed},
		{"", update, committed},
		{"", remove, committed},
		{"connect", update, notCommitted},
		{"begin", update, notCommitted},
		{"reserve", create, notCommitted},
		{"create", create, notCommitted},
		{"state", create, notCommitted},
		{"record", create, notCommitted},
		{"commit", create, unknown},
		{"update", update, notCommitted},
		{"record", update, notCommitted},
		{"commit", update, unknown},
		{"remove", remove, notCommitted},
		{"record", remove, notCommitted},
		{"commit", remove, unknown},
	} {
		for _, d := range []Dialect{SQLite, PostgreSQL, MySQL} {
			t.Run(fmt.Sprintf("%s/%s/%s", d, tt.fails, tt.want), func(t *testing.T) {
				f, store := newFake(t, d)
				f.fail[tt.fails] = always(errBroken)
				v, err := tt.write(t.Context(), store)
				assert.Equal(t, tt.want, verdictOf(err), "%v", err)
				if tt.want == committed {
					assert.EqualValues(t, 7, v)
					assert.Equal(t, 1, f.count("commit"))
					return
				}
				assert.ErrorIs(t, err, errBroken)
				assert.Zero(t, v)
				if tt.want == notCommitted {
					assert.Zero(t, f.count("commit"), "COMMIT was sent")
					if tt.fails != "begin" {
						assert.Equal(t, f.count("begin"), f.count("rollback"))
					}
				}
			})
		}
	}
}

func TestWrite_LosesWhenItChangesNoRow(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state []driver.Value // nil: the row does not exist
		want  tidemark.ConflictError
	}{
		{"to another version", []driver.Value{int64(9), false, nil}, tidemark.ConflictError{Current: 9}},
		{"to a deletion", []driver.Value{int64(9), true, nil}, tidemark.ConflictError{Current: 9, Absent: true}},
		{"to nothing at all", nil, tidemark.ConflictError{Absent: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, store := newFake(t, SQLite)
			f.unchanged["update"], f.rows["state"] = true, tt.state
			_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
			var lost *tidemark.ConflictError
			require.ErrorAs(t, err, &lost)
			assert.Equal(t, tt.want, *lost)
			assert.Zero(t, f.count("commit"))
			assert.Zero(t, f.count("record"))
			assert.Equal(t, 1, f.count("rollback"))
		})
	}
}

// A base after which no version is left is no row's: the write loses, instead of
// putting the row at a version that cannot be read.
func TestWrite_BaseBeyondTheColumn(t *testing.T) {
	for _, base := range []tidemark.Version{math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		f, store := newFake(t, SQLite)
		f.unchanged["update"], f.unchanged["remove"] = true, true
		f.rows["state"] = []driver.Value{int64(math.MaxInt64), false, nil}
		_, err := store.CompareAndSet(t.Context(), "k", base, "v", op)
		require.ErrorAs(t, err, new(*tidemark.ConflictError))
		_, err = store.CompareAndDelete(t.Context(), "k", base, op)
		require.ErrorAs(t, err, new(*tidemark.ConflictError))
		assert.Equal(t, int64(-1), baseColumn(base))
	}
	assert.EqualValues(t, math.MaxInt64-1, baseColumn(math.MaxInt64-1))
}

// TestWrite_ContextEnds cuts the context off at moments that no real database
// can be made to hit.
func TestWrite_ContextEnds(t *testing.T) {
	for moment, want := range map[string]verdict{
		"connect": notCommitted, "begin": notCommitted, "update": notCommitted, "record": notCommitted,
		"commit": unknown,
	} {
		t.Run("in "+moment, func(t *testing.T) {
			f, store := newFake(t, PostgreSQL)
			ctx, cancel := context.WithCancel(t.Context())
			f.fail[moment] = func(int) error {
				cancel()
				if moment == "commit" {
					return ctx.Err() // as a driver does that watches the context
				}
				return nil
			}
			_, err := store.CompareAndSet(ctx, "k", 6, "v", op)
			assert.Equal(t, want, verdictOf(err), "%v", err)
			assert.ErrorIs(t, err, context.Canceled)
			if want == notCommitted {
				assert.Zero(t, f.count("commit"), "COMMIT was sent")
			}
		})
	}

	t.Run("after COMMIT", func(t *testing.T) {
		f, store := newFake(t, PostgreSQL)
		ctx, cancel := context.WithCancel(t.Context())
		f.fail["commit"] = func(int) error { cancel(); return nil }
		v, err := store.CompareAndSet(ctx, "k", 6, "v", op)
		require.NoError(t, err, "the answer is there")
		assert.EqualValues(t, 7, v)
	})
}

func TestWrite_ThrowsAwayConnectionsOfUnknownState(t *testing.T) {
	t.Run("after COMMIT failed", func(t *testing.T) {
		f, store := newFake(t, SQLite)
		f.fail["commit"] = always(errBroken)
		_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
		require.Error(t, err)
		assert.Equal(t, 1, f.count("close"))
	})
	t.Run("after ROLLBACK failed", func(t *testing.T) {
		f, store := newFake(t, SQLite)
		f.fail["update"], f.fail["rollback"] = always(errBroken), always(errBroken)
		_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
		require.ErrorIs(t, err, tidemark.ErrUnavailable)
		assert.Equal(t, 1, f.count("close"))
	})
	t.Run("but no others", func(t *testing.T) {
		f, store := newFake(t, SQLite)
		for range 3 {
			_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
			require.NoError(t, err)
		}
		f.fail["update"] = always(errBroken)
		_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
		require.Error(t, err)
		assert.Equal(t, 1, f.count("connect"))
		assert.Zero(t, f.count("close"))
	})
}

// A sqlState is an error as PostgreSQL's drivers return it.
type sqlState string

func (s sqlState) Error() string    { return "ERROR (" + string(s) + ")" }
func (s sqlState) SQLState() string { return string(s) }

func TestWrite_TriesAgainWhatTheDatabaseRefusedToSerialize(t *testing.T) {
	for _, tt := range []struct {
		err   error
		again bool
	}{
		{sqlState("40001"), true},
		{fmt.Errorf("wrapped: %w", sqlState("40P01")), true},
		{errors.New("database is locked (5) (SQLITE_BUSY)"), true},
		{errors.New("database table is locked: accounts"), true},
		{errors.New("Error 1213 (40001): Deadlock found when trying to get lock; try restarting transaction"), true},
		{errors.New("Error 1020 (HY000): Record has changed since last read in table 'accounts'"), true},
		{sqlState("23505"), false},
		{errors.New("Error 1205 (HY000): Lock wait timeout exceeded"), false}, // it has taken long enough
		{errBroken, false},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			f, store := newFake(t, MySQL)
			f.fail["update"] = func(before int) error {
				if before < 2 {
					return tt.err
				}
				return nil
			}
			_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
			if tt.again {
				assert.NoError(t, err)
				assert.Equal(t, 3, f.count("begin"))
			} else {
				assert.Equal(t, notCommitted, verdictOf(err))
				assert.Equal(t, 1, f.count("begin"))
			}

			f, store = newFake(t, MySQL)
			f.fail["update"] = always(tt.err)
			_, err = store.CompareAndSet(t.Context(), "k", 6, "v", op)
			assert.Equal(t, notCommitted, verdictOf(err))
			assert.ErrorIs(t, err, tt.err)
			assert.LessOrEqual(t, f.count("begin"), backoff.Attempts)
		})
	}

	t.Run("unless the context ends", func(t *testing.T) {
		f, store := newFake(t, MySQL)
		ctx, cancel := context.WithCancel(t.Context())
		f.fail["update"] = func(int) error { cancel(); return sqlState("40001") }
		_, err := store.CompareAndSet(ctx, "k", 6, "v", op)
		assert.Equal(t, notCommitted, verdictOf(err))
		assert.Equal(t, 1, f.count("begin"))
	})
}

func TestWrite_BusyInAnswerToCommit(t *testing.T) {
	busy := errors.New("database is locked (5) (SQLITE_BUSY)")
	t.Run("means no on SQLite", func(t *testing.T) {
		f, store := newFake(t, SQLite)
		f.fail["commit"] = always(busy)
		_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
		assert.Equal(t, notCommitted, verdictOf(err))
		assert.Equal(t, backoff.Attempts, f.count("commit"))
		assert.Equal(t, backoff.Attempts, f.count("close"), "each left its transaction open")
	})
	for _, d := range []Dialect{PostgreSQL, MySQL} {
		for _, err := range []error{busy, sqlState("40001")} {
			t.Run(fmt.Sprintf("means nothing on %s/%v", d, err), func(t *testing.T) {
				f, store := newFake(t, d)
				f.fail["commit"] = always(err)
				_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
				assert.Equal(t, unknown, verdictOf(err))
				assert.Equal(t, 1, f.count("commit"))
			})
		}
	}
}

// TestWrite_MadeBefore is an operation that an earlier call has committed: it
// must not be made again, nor be reported as not committed.
func TestWrite_MadeBefore(t *testing.T) {
	made := []driver.Value{int64(5)}
	for _, tt := range []struct {
		name    string
		prepare func(*fake)
		base    tidemark.Version
		want    verdict
	}{
		{"seen with the row", func(f *fake) {
			f.unchanged["update"] = true
			f.rows["state"], f.rows["outcome"] = []driver.Value{int64(9), false, int64(5)}, made
		}, 6, committed},
		{"seen with a deleted row", func(f *fake) {
			f.unchanged["update"] = true
			f.rows["state"], f.rows["outcome"] = []driver.Value{int64(9), true, int64(5)}, made
		}, 6, committed},
		{"seen while creating", func(f *fake) {
			f.rows["state"], f.rows["outcome"] = []driver.Value{int64(9), false, int64(5)}, made
		}, 0, committed},
		{"refused by the journal", func(f *fake) {
			f.fail["record"], f.rows["outcome"] = always(errBroken), made
		}, 6, committed},
		{"seen, then lost from sight", func(f *fake) {
			f.unchanged["update"] = true
			f.rows["state"] = []driver.Value{int64(9), false, int64(5)}
			f.fail["outcome"] = always(errBroken)
		}, 6, unknown},
		{"perhaps refused by the journal", func(f *fake) {
			f.fail["record"], f.fail["outcome"] = always(errBroken), always(errBroken)
		}, 6, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, store := newFake(t, PostgreSQL)
			tt.prepare(f)
			v, err := store.CompareAndSet(t.Context(), "k", tt.base, "v", op)
			assert.Equal(t, tt.want, verdictOf(err), "%v", err)
			assert.Zero(t, f.count("commit"), "it was made again")
			if tt.want == committed {
				assert.EqualValues(t, 5, v)
			}
		})
	}
}

// TestWrite_SeesWhatWasCommittedWhileItWaited: under a snapshot level, writers
// that waited for a lock would fail instead of losing.
func TestWrite_SeesWhatWasCommittedWhileItWaited(t *testing.T) {
	for d, want := range map[Dialect]sql.IsolationLevel{
		SQLite:     sql.LevelDefault, // it has no other
		PostgreSQL: sql.LevelReadCommitted,
		MySQL:      sql.LevelReadCommitted,
	} {
		f, store := newFake(t, d)
		_, err := store.CompareAndSet(t.Context(), "k", 6, "v", op)
		require.NoError(t, err)
		assert.Equal(t, driver.IsolationLevel(want), f.level, d)
	}
}

func TestWrite_RefusesTheZeroOperation(t *testing.T) {
	f, store := newFake(t, SQLite)
	_, err := store.CompareAndSet(t.Context(), "k", 6, "v", tidemark.OpID{})
	assert.Equal(t, notCommitted, verdictOf(err))
	_, err = store.CompareAndDelete(t.Context(), "k", 6, tidemark.OpID{})
	assert.Equal(t, notCommitted, verdictOf(err))
	assert.Zero(t, f.count("connect"))
}
