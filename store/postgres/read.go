package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

// ErrStandby means that a standby was asked, which may be behind by any time. It
// comes from all reads of a Store; a standby refuses writes by itself.
var ErrStandby = errors.New("the server is a standby: what it says may be out of date")

// Load implements [tidemark.Loader]: one query by primary key.
func (s *Store[K, V]) Load(ctx context.Context, key K) (value V, v tidemark.Version, err error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return value, 0, fmt.Errorf("postgres: load: %w", err)
	}
	var l tidemark.Loaded[V]
	var st state
	err = s.query(ctx, s.sql.load, arg, s.columns(&st.version, &st.absent), func(row pgx.CollectableRow) error {
		l = s.loaded(row, 3, st)
		return nil
	})
	switch {
	case err != nil:
		return value, 0, fmt.Errorf("postgres: load: %w", err)
	case l.Absent:
		return value, l.Version, tidemark.ErrNotFound
	default:
		return l.Value, l.Version, l.Err
	}
}

// A state is what a query returned of one key beside its value.
type state struct {
	version int64 // 0 if the key has never existed
	absent  bool
}

// loaded decodes a row whose value begins behind the first columns.
func (s *Store[K, V]) loaded(row pgx.CollectableRow, first int, st state) (l tidemark.Loaded[V]) {
	if st.version < 0 || st.version == 0 && !st.absent {
		// It would count as no version, or as one above all others.
		return tidemark.Loaded[V]{Err: fmt.Errorf("postgres: load: the row is at version %d, want > 0", st.version)}
	}
	l.Version, l.Absent = tidemark.Version(st.version), st.absent
	if st.absent {
		return l
	}
	var err error
	if l.Value, err = s.value.scan(window{row, first}); err != nil {
		return tidemark.Loaded[V]{Err: fmt.Errorf("postgres: load: decode value: %w", err)}
	}
	return l
}

// columns returns where to scan the columns between pg_is_in_recovery() and the
// value's, which are left alone.
func (s *Store[K, V]) columns(dest ...any) []any {
	return append(dest, make([]any, len(s.value.columns))...)
}

// query runs a query whose first column says whether a standby answers. It scans
// the others into columns and calls got, for each row; nil leaves a column out.
func (t *table) query(ctx context.Context, query string, arg any, columns []any, got func(pgx.CollectableRow) error) error {
	rows, err := t.db.Query(ctx, query, arg)
	if err != nil {
		return err
	}
	defer rows.Close()
	var standby bool
	columns = append([]any{&standby}, columns...)
	for rows.Next() {
		if err := rows.Scan(columns...); err != nil {
			return err
		}
		if standby {
			return ErrStandby
		}
		if err := got(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// LoadMany implements [tidemark.BulkLoader] with one query and one round trip,
// however many keys there are, so the answers are of one moment. Every key is in
// the map, an absent one with the version of its deletion if it ever existed.
func (s *Store[K, V]) LoadMany(ctx context.Context, keys []K) (map[K]tidemark.Loaded[V], error) {
	found := make(map[K]tidemark.Loaded[V], len(keys))
	asked, list := s.list(keys, func(k K, err error) {
		found[k] = tidemark.Loaded[V]{Err: fmt.Errorf("postgres: load: %w", err)}
	})
	var i int64
	var st state
	err := s.query(ctx, s.sql.loadMany, list, s.columns(&i, &st.version, &st.absent), func(row pgx.CollectableRow) error {
		found[asked[i-1]] = s.loaded(row, 4, st)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: load many: %w", err)
	}
	return found, nil
}

// LoadVersions implements [tidemark.VersionLoader] like LoadMany, but reads no
// values.
func (s *Store[K, V]) LoadVersions(ctx context.Context, keys []K) (map[K]tidemark.Version, error) {
	found := make(map[K]tidemark.Version, len(keys))
	asked, list := s.list(keys, func(K, error) {})
	var i, version int64
	var live bool
	err := s.query(ctx, s.sql.versions, list, []any{&i, &version, &live}, func(pgx.CollectableRow) error {
		if live && version > 0 { // else a Load says what is wrong
			found[asked[i-1]] = tidemark.Version(version)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: load versions: %w", err)
	}
	return found, nil
}

// list returns the keys that can be asked for and, in the same order, the query's
// parameter for them. It tells the others to bad.
func (s *Store[K, V]) list(keys []K, bad func(K, error)) (asked []K, list any) {
	asked = make([]K, 0, len(keys))
	args := make([]any, 0, len(keys))
	for _, k := range keys {
		arg, _, err := s.key.Argument(k)
		if err != nil {
			bad(k, err)
			continue
		}
		asked, args = append(asked, k), append(args, arg)
	}
	switch s.layout.keyKind {
	case column.Integer:
		return asked, typed[int64](args)
	case column.Binary:
		return asked, typed[[]byte](args)
	default:
		return asked, typed[string](args)
	}
}

// typed returns what pgx knows as an array.
func typed[T any](args []any) []T {
	list := make([]T, len(args))
	for i, arg := range args {
		list[i] = arg.(T)
	}
	return list
}

// Outcome implements [tidemark.Store]. A no is final, unless the write is sent
// again: Outcome waits for the lock that the transaction of a write holds until it
// is over, so that a COMMIT on the wire cannot come after it. Where the lock is not
// released within a third of [Options.Timeout], because a COMMIT waits for a
// synchronous standby, say, it returns an error and is to be asked again. It
// reports no for a write that [Store.Prune] has forgotten.
func (s *Store[K, V]) Outcome(ctx context.Context, key K, op tidemark.OpID) (tidemark.Version, bool, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, false, fmt.Errorf("postgres: outcome: %w", err)
	}
	v, committed, err := s.outcome(ctx, arg, op)
	if err != nil {
		return 0, false, fmt.Errorf("postgres: outcome: %w", err)
	}
	return v, committed, nil
}

func (t *table) outcome(ctx context.Context, key any, op tidemark.OpID) (tidemark.Version, bool, error) {
	tx, err := t.db.BeginTx(ctx, pgx.TxOptions{BeginQuery: fmt.Sprintf(t.sql.beginAsk, lockOf(op))})
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // it has changed nothing
	var standby bool
	var v *int64
	if err := tx.QueryRow(ctx, t.sql.outcome, key, op[:]).Scan(&standby, &v); err != nil {
		return 0, false, err
	}
	switch {
	case standby:
		return 0, false, ErrStandby
	case v == nil:
		return 0, false, nil
	default:
		return tidemark.Version(*v), true, nil
	}
}

// A Source names the database that answers, to notice that another one does.
type Source struct {
	// System is what initdb gave the cluster, and its standbys share.
	System uint64

	// Timeline begins at 1 and grows each time a standby is promoted and each time
	// the cluster is restored to a point in time.
	Timeline uint32
}

// Source returns which database answers. The error wraps [ErrStandby] if it is a
// standby. See the package comment about failing over.
func (s *Store[K, V]) Source(ctx context.Context) (Source, error) {
	var source Source
	var system, timeline int64
	// The timeline of the last checkpoint, which pg_control_checkpoint tells, is
	// still the old one right after a promotion.
	const query = `SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
	CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END
	WHERE $1::bool`
	err := s.query(ctx, query, true, []any{&system, &timeline}, func(pgx.CollectableRow) error {
		source = Source{System: uint64(system), Timeline: uint32(timeline)}
		return nil
	})
	if err != nil {
		return Source{}, fmt.Errorf("postgres: source: %w", err)
	}
	return source, nil
}
