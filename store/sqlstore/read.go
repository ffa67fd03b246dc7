package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-go/tidemark"
)

// Load implements [tidemark.Loader]: one query by primary key.
func (s *Store[K, V]) Load(ctx context.Context, key K) (value V, v tidemark.Version, err error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return value, 0, fmt.Errorf("sqlstore: load: %w", err)
	}
	var r row
	err = s.db.QueryRowContext(ctx, s.sql.load, arg).Scan(&r.value, &r.version, &r.deleted)
	if errors.Is(err, sql.ErrNoRows) {
		return value, 0, tidemark.ErrNotFound
	}
	if err != nil {
		return value, 0, fmt.Errorf("sqlstore: load: %w", err)
	}
	l := s.loaded(r)
	if l.Absent {
		return value, l.Version, tidemark.ErrNotFound
	}
	return l.Value, l.Version, l.Err
}

// A row is what a query returned of one key.
type row struct {
	value   []byte // the column's text form; nil if it is NULL
	version int64
	deleted bool
}

// loaded decodes r.
func (s *Store[K, V]) loaded(r row) (l tidemark.Loaded[V]) {
	if r.version <= 0 {
		// It would count as no version, or as one above all others.
		l.Err = fmt.Errorf("sqlstore: load: the row is at version %d, want > 0", r.version)
		return l
	}
	l.Version = tidemark.Version(r.version)
	if r.deleted {
		l.Absent = true
		return l
	}
	if r.value == nil {
		r.value = []byte{} // some drivers' idea of empty; the schema knows no NULL here
	}
	var err error
	if l.Value, err = s.value.Decode(r.value); err != nil {
		l = tidemark.Loaded[V]{Err: fmt.Errorf("sqlstore: load: decode value: %w", err)}
	}
	return l
}

// maxChunk is how many keys one query asks for. Databases take more, but plan
// longer lists no better.
const maxChunk = 512

// LoadMany implements [tidemark.BulkLoader]. It asks for up to 512 keys in one
// query and sends the queries one after the other; the answers of different
// queries are not of one moment. Every key is in the map, an absent one with
// the version of its deletion if it ever existed.
func (s *Store[K, V]) LoadMany(ctx context.Context, keys []K) (map[K]tidemark.Loaded[V], error) {
	found := make(map[K]tidemark.Loaded[V], len(keys))
	for len(keys) > 0 {
		n := min(len(keys), maxChunk)
		if err := s.loadChunk(ctx, keys[:n], found); err != nil {
			return nil, fmt.Errorf("sqlstore: load many: %w", err)
		}
		keys = keys[n:]
	}
	return found, nil
}

// loadChunk adds what one query returns to found.
func (s *Store[K, V]) loadChunk(ctx context.Context, keys []K, found map[K]tidemark.Loaded[V]) error {
	var r row
	return s.query(ctx, s.sql.loadMany, keys, func(k K, err error) {
		if err != nil {
			found[k] = tidemark.Loaded[V]{Err: fmt.Errorf("sqlstore: load: %w", err)}
			return
		}
		found[k] = tidemark.Loaded[V]{Absent: true} // until a row says otherwise
	}, []any{&r.value, &r.version, &r.deleted}, func(k K) { found[k] = s.loaded(r) })
}

// LoadVersions implements [tidemark.VersionLoader], with queries like those of
// LoadMany that read no values.
func (s *Store[K, V]) LoadVersions(ctx context.Context, keys []K) (map[K]tidemark.Version, error) {
	found := make(map[K]tidemark.Version, len(keys))
	var version int64
	for len(keys) > 0 {
		n := min(len(keys), maxChunk)
		err := s.query(ctx, s.sql.versions, keys[:n], func(K, error) {}, []any{&version}, func(k K) {
			if version > 0 { // else a Load says what is wrong
				found[k] = tidemark.Version(version)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("sqlstore: load versions: %w", err)
		}
		keys = keys[n:]
	}
	return found, nil
}

// query asks for one chunk of keys. It tells each key to asked, with what is wrong
// with it if it cannot be asked for, and then scans each row's columns but the key
// into columns and tells the row's key to got.
func (s *Store[K, V]) query(ctx context.Context, query string, keys []K, asked func(K, error), columns []any, got func(K)) error {
	byID := make(map[string]K, len(keys))
	args := make([]any, 0, len(keys))
	for _, k := range keys {
		arg, id, err := s.key.Argument(k)
		asked(k, err)
		if _, again := byID[id]; err == nil && !again {
			byID[id] = k
			args = append(args, arg)
		}
	}
	if len(args) == 0 {
		return nil
	}

	rows, err := s.db.QueryContext(ctx, query+s.list(&args), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var id []byte
	columns = append([]any{&id}, columns...)
	for rows.Next() {
		if err := rows.Scan(columns...); err != nil {
			return err
		}
		k, ok := byID[string(id)]
		if !ok {
			return errors.New("the database returned a key that was not asked for")
		}
		got(k)
	}
	return rows.Err()
}

// list returns the end of a query for args. It repeats the last one until their
// number is a power of two, so that there are ten different statements and not
// 512 for the database, the driver and their caches to prepare.
func (t *table) list(args *[]any) string {
	size := 1
	for size < len(*args) {
		size *= 2
	}
	for len(*args) < size {
		*args = append(*args, (*args)[len(*args)-1])
	}
	list := "(" + strings.Repeat("?, ", size-1) + "?)"
	if t.dialect == PostgreSQL {
		list = numbered(list)
	}
	return list
}

// Outcome implements [tidemark.Store]: one query by the journal's primary key.
// It reports no for a write that [Store.Prune] has forgotten. A no is not final
// while the write is still under way: a COMMIT that is on the wire may arrive
// after the question.
func (s *Store[K, V]) Outcome(ctx context.Context, key K, op tidemark.OpID) (tidemark.Version, bool, error) {
	arg, _, err := s.key.Argument(key)
	if err != nil {
		return 0, false, fmt.Errorf("sqlstore: outcome: %w", err)
	}
	v, committed, err := s.outcome(ctx, s.db, arg, op)
	if err != nil {
		return 0, false, fmt.Errorf("sqlstore: outcome: %w", err)
	}
	return v, committed, nil
}

// A querier is a connection or a pool of them.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (t *table) outcome(ctx context.Context, q querier, key any, op tidemark.OpID) (tidemark.Version, bool, error) {
	var v int64
	err := q.QueryRowContext(ctx, t.sql.outcome, op[:], key).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return tidemark.Version(v), err == nil, err
}
