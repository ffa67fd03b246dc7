package postgres

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tidemark-go/tidemark/internal/column"
)

// A KeyCodec turns keys into what the key column holds. The zero KeyCodec
// stores string kinds as text and integer kinds as integers.
type KeyCodec[K comparable] struct {
	// Encode returns the stored form of a key: the same bytes for equal keys,
	// different ones for different keys. It must be safe for concurrent use.
	Encode func(K) ([]byte, error)

	// Binary stores what Encode returns as BYTEA. Otherwise it is stored as
	// text and must be UTF-8 without NUL.
	Binary bool
}

// A ValueCodec turns values into what the value column holds. The zero
// ValueCodec stores string kinds as text, byte slices as bytes, integer kinds
// as integers, and everything else as JSON text, which a JSONB column takes too.
//
// An unsigned value over [math.MaxInt64] does not fit an integer column and is
// refused. A nil byte slice comes back empty.
type ValueCodec[V any] struct {
	// Encode returns the stored form of a value, and Decode the value of a
	// stored form. Decode may keep the bytes it is given. Both must be safe
	// for concurrent use.
	Encode func(V) ([]byte, error)
	Decode func([]byte) (V, error)

	// Binary stores what Encode returns as BYTEA. Otherwise it is stored as
	// text and must be UTF-8 without NUL.
	Binary bool
}

// A RowCodec turns values into several columns of a row.
type RowCodec[V any] struct {
	// Columns names the columns that hold the value.
	Columns []string

	// Scan returns the value of a row that has these columns, in this order;
	// [pgx.RowToStructByName] is one. It must be safe for concurrent use and
	// must not keep the row.
	Scan pgx.RowToFunc[V]

	// Values returns what to store in these columns, in this order. It must be
	// safe for concurrent use.
	Values func(V) ([]any, error)
}

func (c KeyCodec[K]) column() (column.Key[K], error) { return column.KeyCodec[K](c).Column() }

func (c ValueCodec[V]) isZero() bool { return c.Encode == nil && c.Decode == nil && !c.Binary }
func (c RowCodec[V]) isZero() bool {
	return len(c.Columns) == 0 && c.Scan == nil && c.Values == nil
}

// A valueCodec is a ValueCodec or a RowCodec, made ready.
type valueCodec[V any] struct {
	kind      column.Kind // of a single column
	columns   []string
	selected  []string // the same as a query reads them, after "r."
	arguments func(V) ([]any, error)
	scan      pgx.RowToFunc[V]
}

// ready returns c for the column of the given name.
func (c ValueCodec[V]) ready(name string) (valueCodec[V], error) {
	col, err := column.ValueCodec[V](c).Column()
	if err != nil {
		return valueCodec[V]{}, err
	}
	selected := quote(name)
	if col.Kind != column.Binary {
		selected += "::text"
	}
	return valueCodec[V]{
		kind:     col.Kind,
		columns:  []string{name},
		selected: []string{selected},
		arguments: func(v V) ([]any, error) {
			arg, err := col.Argument(v)
			return []any{arg}, err
		},
		scan: func(row pgx.CollectableRow) (v V, err error) {
			var stored []byte
			if err := row.Scan(&stored); err != nil {
				return v, err
			}
			if stored == nil {
				return v, errors.New("the value is NULL")
			}
			return col.Decode(stored)
		},
	}, nil
}

func (c RowCodec[V]) ready() (valueCodec[V], error) {
	switch {
	case len(c.Columns) == 0:
		return valueCodec[V]{}, errors.New("has no Columns")
	case c.Scan == nil || c.Values == nil:
		return valueCodec[V]{}, errors.New("needs Scan and Values")
	}
	ready := valueCodec[V]{scan: c.Scan}
	for i, name := range c.Columns {
		if !columnName.MatchString(name) {
			return ready, fmt.Errorf("has column %q, want letters, digits and underscores", name)
		}
		for _, before := range c.Columns[:i] {
			if before == name {
				return ready, fmt.Errorf("has column %q twice", name)
			}
		}
		ready.columns = append(ready.columns, name)
		ready.selected = append(ready.selected, quote(name))
	}
	ready.arguments = func(v V) ([]any, error) {
		args, err := c.Values(v)
		if err == nil && len(args) != len(ready.columns) {
			err = fmt.Errorf("Values returned %d values for %d columns", len(args), len(ready.columns))
		}
		return args, err
	}
	return ready, nil
}

// A window is a row without its first columns.
type window struct {
	pgx.CollectableRow
	skip int
}

func (w window) FieldDescriptions() []pgconn.FieldDescription {
	return w.CollectableRow.FieldDescriptions()[w.skip:]
}

func (w window) Scan(dest ...any) error {
	return w.CollectableRow.Scan(append(make([]any, w.skip, w.skip+len(dest)), dest...)...) // nil skips a column
}

func (w window) Values() ([]any, error) {
	values, err := w.CollectableRow.Values()
	if err != nil {
		return nil, err
	}
	return values[w.skip:], nil
}

func (w window) RawValues() [][]byte { return w.CollectableRow.RawValues()[w.skip:] }
