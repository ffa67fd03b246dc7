package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
	"regexp"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

// Options configures a Store. Dialect is required; the zero value of every
// other field is the default that its comment gives.
type Options[K comparable, V any] struct {
	// Dialect is the database behind the sql.DB.
	Dialect Dialect

	// Table names the table, optionally with a schema ("billing.accounts").
	// Each part consists of ASCII letters, digits and underscores, begins with
	// no digit and has at most 46 bytes. The journal is Table with "_ops"
	// appended. Empty means "tidemark".
	Table string

	// Key stores keys. The zero KeyCodec suits strings and integers; for
	// other types Encode is required.
	Key KeyCodec[K]

	// Value stores values. The zero ValueCodec stores strings, byte slices and
	// integers as they are, and everything else as JSON.
	Value ValueCodec[V]
}

// A Store keeps records in a table. All methods may be called concurrently.
// Close is the sql.DB's.
type Store[K comparable, V any] struct {
	table
	key   column.Key[K]
	value column.Value[V]
}

// A table is what of a Store does not depend on its types.
type table struct {
	db      *sql.DB
	dialect Dialect
	sql     statements
	schema  []string
	begin   sql.TxOptions
}

var _ interface {
	tidemark.Store[string, string]
	tidemark.BulkLoader[string, string]
	tidemark.VersionLoader[string]
} = (*Store[string, string])(nil)

// New returns a Store that uses db. It does not talk to the database: whether
// the table exists shows when it is used, and [Store.CreateTables] makes it.
// The error joins a [*tidemark.OptionError] for each mistake.
func New[K comparable, V any](db *sql.DB, o Options[K, V]) (*Store[K, V], error) {
	var mistakes []error
	wrong := func(field, format string, args ...any) {
		mistakes = append(mistakes, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if db == nil {
		wrong("db", "is nil")
	}
	if !o.Dialect.valid() {
		wrong("Dialect", "is %d, want SQLite, PostgreSQL or MySQL", o.Dialect)
	}
	if o.Table == "" {
		o.Table = "tidemark"
	}
	if !tableName.MatchString(o.Table) {
		wrong("Table", "is %q, want letters, digits and underscores, at most 46, and at most one dot", o.Table)
	}
	key, err := o.Key.column()
	if err != nil {
		wrong("Key", "%v", err)
	}
	value, err := o.Value.column()
	if err != nil {
		wrong("Value", "%v", err)
	}
	if len(mistakes) > 0 {
		return nil, fmt.Errorf("sqlstore: bad options: %w", errors.Join(mistakes...))
	}
	return &Store[K, V]{
		table: table{
			db:      db,
			dialect: o.Dialect,
			sql:     newStatements(o.Dialect, o.Table),
			schema:  schema(o.Dialect, o.Table, key.Kind, value.Kind),
			begin:   o.Dialect.transaction(),
		},
		key:   key,
		value: value,
	}, nil
}

// tableName keeps the journal's index, the longest name made from a table's,
// within PostgreSQL's 63 bytes: longer names are cut without a word there, and
// two tables could then share one.
var tableName = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]{0,45}\.)?[A-Za-z_][A-Za-z0-9_]{0,45}$`)
