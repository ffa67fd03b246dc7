package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/backoff"
)

// CompareAndSet implements [tidemark.Store] with one transaction: an UPDATE that
// names the base, a line in the journal, COMMIT. Creating a key takes two
// statements more.
func (s *Store[K, V]) CompareAndSet(ctx context.Context, key K, base tidemark.Version, value V, op tidemark.OpID) (tidemark.Version, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, unavailable("compare and set", err)
	}
	stored, err := s.value.Argument(value)
	if err != nil {
		return 0, unavailable("compare and set", err)
	}
	c := change{what: "compare and set", key: arg, base: base, op: op}
	if c.create = base == 0; c.create {
		c.query, c.args = s.sql.create, []any{stored, op[:], arg}
	} else {
		c.query, c.args = s.sql.update, []any{stored, op[:], arg, baseColumn(base)}
	}
	return s.write(ctx, c)
}

// CompareAndDelete implements [tidemark.Store]. The row stays, as the memory of
// the key's version.
func (s *Store[K, V]) CompareAndDelete(ctx context.Context, key K, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, unavailable("compare and delete", err)
	}
	return s.write(ctx, change{
		what: "compare and delete", key: arg, base: base, op: op,
		query: s.sql.remove, args: []any{op[:], arg, baseColumn(base)},
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
	what   string // for messages
	key    any
	base   tidemark.Version
	op     tidemark.OpID
	create bool   // the row may not exist yet, or is a deleted one
	query  string // changes the row if it is as base says
	args   []any
}

// unavailable returns an error that says: this call has changed nothing.
func unavailable(what string, err error) error {
	return fmt.Errorf("sqlstore: %s: %w: %w", what, tidemark.ErrUnavailable, err)
}

// A refusal is an error after which the transaction is certainly rolled back.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// write makes c, trying again while the database refuses to serialize it.
func (t *table) write(ctx context.Context, c change) (tidemark.Version, error) {
	if c.op == (tidemark.OpID{}) {
		return 0, unavailable(c.what, errors.New("the operation id is zero: it could not be told from any other"))
	}
	for attempt := 1; ; attempt++ {
		v, err := t.attempt(ctx, c)
		var refused refusal
		switch {
		case !errors.As(err, &refused):
			return v, err
		case attempt == backoff.Attempts || !isTransient(refused) || !backoff.Pause(ctx, attempt):
			return 0, unavailable(c.what, refused.error)
		}
	}
}

// attempt runs one transaction. Its error is a refusal, a conflict, or that of
// a COMMIT whose outcome is unknown.
func (t *table) attempt(ctx context.Context, c change) (tidemark.Version, error) {
	conn, err := t.db.Conn(ctx)
	if err != nil {
		return 0, refusal{err}
	}
	defer conn.Close()
	tx, err := conn.BeginTx(ctx, &t.begin)
	if err != nil {
		return 0, refusal{err}
	}
	v, err := t.apply(ctx, tx, c)
	switch {
	case err == nil:
		if err := t.commit(ctx, conn, tx); err != nil {
			return 0, err
		}
		return v, nil
	case !rollBack(conn, tx):
		return t.rolledBack(ctx, t.db, c, err)
	default:
		return t.rolledBack(ctx, conn, c, err)
	}
}

// rollBack ends tx and reports whether conn can still be used. If not, it is
// thrown away, which ends the transaction as well.
func rollBack(conn *sql.Conn, tx *sql.Tx) bool {
	err := tx.Rollback()
	if err == nil {
		return true
	}
	if !errors.Is(err, sql.ErrTxDone) { // then the context's end has done it
		discard(conn)
	}
	return false
}

// discard closes the connection behind conn instead of giving it back to the
// pool, where the next user would find whatever state it is in.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // returns what it is given
}

var (
	// errMade means that an earlier call has committed the same operation.
	errMade = errors.New("the operation has already been committed")

	// errNotRecorded means that the journal took no line.
	errNotRecorded = errors.New("journal")
)

// apply runs the statements of c in tx and returns the new version. Nothing of
// it may be committed if there is an error.
func (t *table) apply(ctx context.Context, tx *sql.Tx, c change) (tidemark.Version, error) {
	if c.create {
		// A row at version 0 to lock, if there has never been one. It becomes
		// visible only as the version 1 that the next statement makes of it.
		if _, err := tx.ExecContext(ctx, t.sql.reserve, c.key); err != nil {
			return 0, err
		}
	}
	result, err := tx.ExecContext(ctx, c.query, c.args...)
	if err != nil {
		return 0, err
	}
	changed, err := result.RowsAffected()
	if err != nil {
		return 0, err
	}
	v := c.base + 1
	if changed == 0 || c.create {
		// From here on the row's lock keeps other writers of the key away, so
		// that what this reads stays true; or the write is lost anyway.
		if v, err = t.state(ctx, tx, c, changed == 0); err != nil {
			return 0, err
		}
	}
	if _, err := tx.ExecContext(ctx, t.sql.record, c.op[:], c.key, int64(v)); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotRecorded, err)
	}
	return v, nil
}

// state returns the row's version, or an error if c must not be committed:
// because it has been before, or because it lost.
func (t *table) state(ctx context.Context, tx *sql.Tx, c change, lost bool) (tidemark.Version, error) {
	var version int64
	var deleted bool
	var made sql.NullInt64
	err := tx.QueryRowContext(ctx, t.sql.state, c.op[:], c.key).Scan(&version, &deleted, &made)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, &tidemark.ConflictError{Absent: true}
	case err != nil:
		return 0, err
	case made.Valid:
		return 0, errMade
	case lost:
		return 0, &tidemark.ConflictError{Current: tidemark.Version(version), Absent: deleted}
	default:
		return tidemark.Version(version), nil
	}
}

// rolledBack turns the error of apply into an attempt's. A write that has been
// committed by an earlier call is found in one of two ways: state sees it, or
// the journal refuses a second line; the line says at which version.
func (t *table) rolledBack(ctx context.Context, q querier, c change, err error) (tidemark.Version, error) {
	var conflict *tidemark.ConflictError
	switch {
	case errors.As(err, &conflict):
		return 0, fmt.Errorf("sqlstore: %s: %w", c.what, conflict)
	case !errors.Is(err, errMade) && !errors.Is(err, errNotRecorded):
		return 0, refusal{err}
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return 0, refusal{err} // the journal was not reached
	}
	v, committed, lookup := t.outcome(ctx, q, c.key, c.op)
	switch {
	case committed:
		return v, nil
	case lookup != nil || errors.Is(err, errMade):
		// Nothing has changed now, but an earlier call may have.
		return 0, fmt.Errorf("sqlstore: %s: %w", c.what, errors.Join(err, lookup))
	default:
		return 0, refusal{err}
	}
}

// commit commits tx. Unless the error is a refusal, COMMIT was sent and nobody
// knows what became of it.
func (t *table) commit(ctx context.Context, conn *sql.Conn, tx *sql.Tx) error {
	if err := ctx.Err(); err != nil {
		rollBack(conn, tx)
		return refusal{err}
	}
	err := tx.Commit()
	if err == nil {
		return nil
	}
	// A driver may leave the transaction open when COMMIT fails. In the pool it
	// would swallow the next user's statements.
	discard(conn)
	if t.dialect == SQLite && isBusy(err) {
		return refusal{err}
	}
	return fmt.Errorf("sqlstore: commit: %w", err)
}

// isTransient reports whether the database refused a transaction that could
// succeed if it were run again. Drivers are told apart by their messages, which
// cannot do harm: the transaction is known to be rolled back, and to run it in
// vain costs milliseconds.
func isTransient(err error) bool {
	var coded interface{ SQLState() string } // PostgreSQL's drivers
	if errors.As(err, &coded) {
		return coded.SQLState() == "40001" || coded.SQLState() == "40P01"
	}
	if isBusy(err) || errors.Is(err, driver.ErrBadConn) { // a pooled connection that the server had closed
		return true
	}
	message := err.Error()
	for _, mysql := range []string{"Error 1020", "Error 1213"} { // record changed, deadlock
		if strings.Contains(message, mysql) {
			return true
		}
	}
	return false
}

// isBusy reports whether err is SQLITE_BUSY or SQLITE_LOCKED, by the texts that
// SQLite itself has for them. In answer to COMMIT they mean that it did not
// happen: the transaction stays open, and is rolled back with its connection.
func isBusy(err error) bool {
	message := err.Error()
	return strings.Contains(message, "database is locked") || strings.Contains(message, "database table is locked")
}
