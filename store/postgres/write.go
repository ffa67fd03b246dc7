package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/backoff"
)

// CompareAndSet implements [tidemark.Store] with one transaction of three round
// trips: BEGIN with its timeouts and locks, one statement that changes the row and
// adds a line to the journal, COMMIT.
func (s *Store[K, V]) CompareAndSet(ctx context.Context, key K, base tidemark.Version, value V, op tidemark.OpID) (tidemark.Version, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, unavailable("compare and set", err)
	}
	stored, err := s.value.arguments(value)
	if err != nil {
		return 0, unavailable("compare and set", err)
	}
	c := change{what: "compare and set", key: arg, op: op, query: s.sql.create, args: append([]any{arg, op[:]}, stored...)}
	if base != 0 {
		c.query, c.args = s.sql.update, append([]any{arg, op[:], baseColumn(base)}, stored...)
	}
	return s.write(ctx, c)
}

// CompareAndDelete implements [tidemark.Store]. The key's version survives in its
// row or, with [Options.HardDelete], in another table.
func (s *Store[K, V]) CompareAndDelete(ctx context.Context, key K, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, unavailable("compare and delete", err)
	}
	return s.write(ctx, change{
		what: "compare and delete", key: arg, op: op,
		query: s.sql.remove, args: []any{arg, op[:], baseColumn(base)},
	})
}

// baseColumn returns base as the version column holds it, and what no row has if
// the version after it would not fit into the column.
func baseColumn(base tidemark.Version) int64 {
	if base >= math.MaxInt64 {
		return -1
	}
	return int64(base)
}

// A change is one conditional write of one row.
type change struct {
	what  string // for messages
	key   any
	op    tidemark.OpID
	query string // changes the row if it is as base says, and returns the new version
	args  []any
}

// unavailable returns an error that says: this call has changed nothing.
func unavailable(what string, err error) error {
	return fmt.Errorf("postgres: %s: %w: %w", what, tidemark.ErrUnavailable, err)
}

// A refusal is an error after which the transaction is certainly rolled back.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// write makes c, trying again while the database refuses to serialize it. COMMIT is
// sent within one step, or not at all.
func (t *table) write(ctx context.Context, c change) (tidemark.Version, error) {
	if c.op == (tidemark.OpID{}) {
		return 0, unavailable(c.what, errors.New("the operation id is zero: it could not be told from any other"))
	}
	began := time.Now()
	all, cancel := context.WithDeadline(ctx, began.Add(t.timeout))
	defer cancel()
	before, cancel := context.WithDeadline(all, began.Add(t.step))
	defer cancel()
	for attempt := 1; ; attempt++ {
		v, err := t.attempt(before, all, c)
		var refused refusal
		switch {
		case !errors.As(err, &refused):
			return v, err
		case attempt == backoff.Attempts || !isTransient(refused) || !backoff.Pause(before, attempt):
			return 0, unavailable(c.what, refused.error)
		}
	}
}

// attempt runs one transaction; before ends when COMMIT may no longer be sent, and
// all when nobody waits for its answer any more. The error is a refusal, a
// conflict, or that of a COMMIT whose outcome is unknown.
func (t *table) attempt(before, all context.Context, c change) (tidemark.Version, error) {
	tx, err := t.db.BeginTx(before, pgx.TxOptions{
		BeginQuery:  fmt.Sprintf(t.sql.begin, lockOf(c.op)),
		CommitQuery: t.sql.commit,
	})
	if err != nil {
		return 0, refusal{err}
	}
	v, made, err := t.apply(before, tx, c)
	switch {
	case err == nil && made:
		_ = tx.Rollback(before) // it has changed nothing
		return v, nil
	case err == nil:
		if err := t.commit(before, all, tx); err != nil {
			return 0, err
		}
		return v, nil
	default:
		_ = tx.Rollback(before) // or the connection is thrown away, which does the same
		return t.rolledBack(before, c, err)
	}
}

// lockOf returns the number of the advisory lock that a transaction with this
// operation holds until it is over. Operation ids are random.
func lockOf(op tidemark.OpID) int64 { return int64(binary.LittleEndian.Uint64(op[:8])) }

// apply makes the change in tx and returns the new version. With made, it has been
// made and committed by an earlier call. If there is an error nothing of tx may be
// committed.
func (t *table) apply(ctx context.Context, tx pgx.Tx, c change) (v tidemark.Version, made bool, err error) {
	var version int64
	err = tx.QueryRow(ctx, c.query, c.args...).Scan(&version)
	if !errors.Is(err, pgx.ErrNoRows) {
		return tidemark.Version(version), false, err
	}
	var st state
	var earlier *int64
	err = tx.QueryRow(ctx, t.sql.state, c.key, c.op[:]).Scan(&st.version, &st.absent, &earlier)
	switch {
	case err != nil:
		return 0, false, err
	case earlier != nil:
		return tidemark.Version(*earlier), true, nil
	default:
		return 0, false, &tidemark.ConflictError{Current: tidemark.Version(st.version), Absent: st.absent}
	}
}

// rolledBack turns the error of apply into an attempt's. A journal that refuses a
// second line has a first one: an earlier call has made the write, though its base
// would let it be made again.
func (t *table) rolledBack(ctx context.Context, c change, err error) (tidemark.Version, error) {
	var conflict *tidemark.ConflictError
	switch {
	case errors.As(err, &conflict):
		return 0, fmt.Errorf("postgres: %s: %w", c.what, conflict)
	case !t.isJournal(err):
		return 0, refusal{err}
	}
	v, committed, lookup := t.outcome(ctx, c.key, c.op)
	switch {
	case committed:
		return v, nil
	case lookup != nil:
		// Nothing has changed now, but an earlier call has.
		return 0, fmt.Errorf("postgres: %s: %w", c.what, errors.Join(err, lookup))
	default:
		return 0, refusal{err} // the line has been pruned meanwhile
	}
}

// isJournal reports whether err is the journal's, about a line that it has.
func (t *table) isJournal(err error) bool {
	var answer *pgconn.PgError
	_, name, found := strings.Cut(t.layout.name, ".")
	if !found {
		name = t.layout.name
	}
	return errors.As(err, &answer) && answer.Code == "23505" && answer.TableName == name+"_ops"
}

// commit commits tx. Unless the error is a refusal, COMMIT was sent and nobody
// knows what became of it. [pgconn.SafeToRetry] is no help: it says yes to a
// connection that broke while COMMIT was under way.
func (t *table) commit(before, all context.Context, tx pgx.Tx) error {
	if err := before.Err(); err != nil {
		_ = tx.Rollback(before)
		return refusal{err}
	}
	err := tx.Commit(all)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback), saysRolledBack(err):
		_ = tx.Rollback(before)
		return refusal{err}
	default:
		return fmt.Errorf("postgres: commit: %w", err)
	}
}

// saysRolledBack reports whether err is the server's word that the transaction has
// failed. PostgreSQL reports no ERROR after it has committed; what is FATAL ends the
// connection, at whatever moment, and what poolers say of lost connections (08, 58)
// and servers of their shutdown or their defects (57P, XX) is no word on COMMIT.
func saysRolledBack(err error) bool {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) || answer.SeverityUnlocalized != "ERROR" && answer.Severity != "ERROR" {
		return false
	}
	for _, class := range []string{"08", "57P", "58", "XX"} {
		if strings.HasPrefix(answer.Code, class) {
			return false
		}
	}
	return true
}

// isTransient reports whether a transaction that the database has not committed
// could succeed if it were run again: one that lost to others, or one on a pooled
// connection that the server had closed.
func isTransient(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		switch answer.Code {
		case "40001", "40P01", "57P01", "57P02": // serialization, deadlock; shutdown, crash
			return true
		}
		return false
	}
	var broken *net.OpError
	return errors.As(err, &broken) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || pgconn.SafeToRetry(err)
}
