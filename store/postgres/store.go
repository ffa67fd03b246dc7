package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

// A DB is what a Store needs of a connection pool: a [pgxpool.Pool] is one, and so
// is a [pgx.Conn], which only one goroutine at a time may use.
//
// [pgxpool.Pool]: https://pkg.go.dev/github.com/jackc/pgx/v5/pgxpool#Pool
type DB interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Columns names the columns that a Store uses beside those of a RowCodec. Each
// name consists of ASCII letters, digits and underscores, begins with no digit and
// has at most 63 bytes; it is quoted, so its case counts.
type Columns struct {
	Key     string // primary key or unique; empty means "key"
	Value   string // empty means "value"; not used with a RowCodec
	Version string // an integer; empty means "version"
	Deleted string // a boolean; empty means "deleted"; not used with HardDelete

	// Op gets the id of the last write that the Store made, for people and
	// triggers. Empty means that there is no such column; without Existing there
	// always is, and empty means "op".
	Op string
}

// Options configures a Store. The zero value of every field is the default that
// its comment gives.
type Options[K comparable, V any] struct {
	// Table names the table, optionally with a schema ("billing.accounts").
	// Each part consists of ASCII letters, digits and underscores, begins with
	// no digit and has at most 46 bytes; it is quoted, so its case counts. Empty
	// means "tidemark". The journal is Table with "_ops" appended.
	Table string

	// Existing says that Table belongs to the program, which creates it with the
	// key's and the value's columns. Schema then adds what the Store needs. Without
	// it Schema creates the table, like that of store/sqlstore.
	Existing bool

	// Columns names the columns.
	Columns Columns

	// HardDelete removes the rows of deleted keys. A second table, Table with
	// "_gone" appended, keeps the versions of these keys, so that they go on where
	// they ended. Its triggers, part of Schema, are then required.
	HardDelete bool

	// Key stores keys. The zero KeyCodec suits strings and integers; for other
	// types Encode is required.
	Key KeyCodec[K]

	// KeyType is the SQL type of the key's column: "uuid", say, for keys whose
	// stored form is the text of one. Empty means what the KeyCodec stores: TEXT,
	// BYTEA or BIGINT, which suits VARCHAR and smaller integers too.
	KeyType string

	// Value stores values in one column. The zero ValueCodec stores strings, byte
	// slices and integers as they are, and everything else as JSON.
	Value ValueCodec[V]

	// Row stores values in several columns, in place of Value. It needs Existing.
	Row RowCodec[V]

	// Timeout is the time after which a write that was begun can no longer take
	// effect: see the package comment. It must not exceed the cache's DoubtTimeout.
	// Zero means 9s, which fits the default of that; the least is 30ms.
	Timeout time.Duration
}

// A Store keeps records in a table. All methods may be called concurrently if the
// DB's may. Close is the DB's.
type Store[K comparable, V any] struct {
	table
	key   column.Key[K]
	value valueCodec[V]
}

// A table is what of a Store does not depend on its types.
type table struct {
	db      DB
	layout  layout
	sql     statements
	timeout time.Duration // of a whole write
	step    time.Duration // of each of its three parts
}

var _ interface {
	tidemark.Store[string, string]
	tidemark.BulkLoader[string, string]
	tidemark.VersionLoader[string]
} = (*Store[string, string])(nil)

const (
	defaultTimeout = 9 * time.Second
	minTimeout     = 30 * time.Millisecond // a step is a whole number of milliseconds to the server
)

// New returns a Store that uses db. It does not talk to the database: whether the
// tables are as they must be is what [Store.Check] tells, and [Store.CreateTables]
// makes them. The error joins a [*tidemark.OptionError] for each mistake.
func New[K comparable, V any](db DB, o Options[K, V]) (*Store[K, V], error) {
	var mistakes []error
	wrong := func(field, format string, args ...any) {
		mistakes = append(mistakes, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if db == nil {
		wrong("db", "is nil")
	}
	switch {
	case o.Timeout == 0:
		o.Timeout = defaultTimeout
	case o.Timeout < minTimeout:
		wrong("Timeout", "is %v, want at least %v", o.Timeout, minTimeout)
	}
	key, err := o.Key.column()
	if err != nil {
		wrong("Key", "%v", err)
	}
	l, value := o.layout(key.Kind, wrong)
	if len(mistakes) > 0 {
		return nil, fmt.Errorf("postgres: bad options: %w", errors.Join(mistakes...))
	}
	step := o.Timeout / 3
	return &Store[K, V]{
		table: table{db: db, layout: l, sql: newStatements(l, step), timeout: o.Timeout, step: step},
		key:   key,
		value: value,
	}, nil
}

// layout returns the names that o has for things, and how it stores values, and
// reports what is wrong with them.
func (o *Options[K, V]) layout(key column.Kind, wrong func(field, format string, args ...any)) (layout, valueCodec[V]) {
	l := layout{name: or(o.Table, "tidemark"), existing: o.Existing, hard: o.HardDelete, keyKind: key, keyType: o.KeyType}
	if !tableName.MatchString(l.name) {
		wrong("Table", "is %q, want letters, digits and underscores, at most 46, and at most one dot", l.name)
	}
	if o.KeyType != "" && !typeName.MatchString(o.KeyType) {
		wrong("KeyType", "is %q, which is no name of a type", o.KeyType)
	}
	c := o.Columns
	l.key, l.version, l.deleted, l.op = or(c.Key, "key"), or(c.Version, "version"), or(c.Deleted, "deleted"), c.Op
	if !o.Existing {
		l.op = or(l.op, "op")
	}
	used := map[string]string{}
	use := func(field, name string) {
		if !columnName.MatchString(name) {
			wrong(field, "is %q, want letters, digits and underscores, at most 63", name)
		} else if other := used[name]; other != "" {
			wrong(field, "is %q, as is %s", name, other)
		}
		used[name] = field
	}
	use("Columns.Key", l.key)
	use("Columns.Version", l.version)
	if l.op != "" {
		use("Columns.Op", l.op)
	}
	if o.HardDelete {
		l.deleted = ""
	} else {
		use("Columns.Deleted", l.deleted)
	}

	var value valueCodec[V]
	var err error
	if o.Row.isZero() {
		name := or(c.Value, "value")
		use("Columns.Value", name)
		if value, err = o.Value.ready(name); err != nil {
			wrong("Value", "%v", err)
		}
	} else {
		if value, err = o.Row.ready(); err != nil {
			wrong("Row", "%v", err)
		}
		for _, name := range value.columns {
			use("Row", name)
		}
		if !o.Value.isZero() || c.Value != "" {
			wrong("Row", "is set, and so is Value")
		}
		if !o.Existing {
			wrong("Row", "needs Existing: the types of its columns are not known")
		}
	}
	l.valueKind, l.columns, l.selected = value.kind, value.columns, value.selected
	return l, value
}

func or(name, otherwise string) string {
	if name == "" {
		return otherwise
	}
	return name
}

var (
	// tableName keeps the journal's index, the longest name made from a table's,
	// within PostgreSQL's 63 bytes: longer names are cut without a word, and two
	// tables could then share one.
	tableName  = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]{0,45}\.)?[A-Za-z_][A-Za-z0-9_]{0,45}$`)
	columnName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	typeName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*( [A-Za-z_]+)*(\([0-9]+(,[0-9]+)?\))?$`)
)
