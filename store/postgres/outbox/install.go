package outbox

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed migration.sql
var migration string

//go:embed raise.sql
var raise string

//go:embed remove.sql
var removal string

// A DB runs statements on the primary: a [pgx.Conn], or a pgxpool.Pool.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Migration returns the SQL that makes the outbox of t and its triggers, for those
// who keep their schema elsewhere. It is to be run in one transaction, by the owner
// of the table, and may be run again. The error joins a [*tidemark.OptionError] for
// each mistake in t.
func Migration(t Table) (string, error) {
	t, err := t.normal()
	if err != nil {
		return "", fmt.Errorf("outbox: %w", err)
	}
	query := migration
	if t.Raise {
		query += raise
	} else {
		query += "\nDROP FUNCTION IF EXISTS {raise}() CASCADE;\n"
	}
	return t.render(query), nil
}

// Removal returns the SQL that takes the outbox of t away again. Changes from then
// on are not heard.
func Removal(t Table) (string, error) {
	t, err := t.normal()
	if err != nil {
		return "", fmt.Errorf("outbox: %w", err)
	}
	return t.render(removal), nil
}

// A ColumnError says that a table lacks columns that its triggers are to read.
type ColumnError struct {
	Table        string
	Key, Version string // the columns that are missing, as the Table named them; or ""
}

func (e *ColumnError) Error() string {
	var all []string
	if e.Key != "" {
		all = append(all, strconv.Quote(e.Key)+" (Table.Key)")
	}
	if e.Version != "" {
		all = append(all, strconv.Quote(e.Version)+" (Table.Version)")
	}
	return fmt.Sprintf("outbox: %s has no column %s", e.Table, strings.Join(all, ", nor "))
}

// Install runs [Migration]. It waits for the transactions that write to the table,
// and holds up those that begin to; bound that by ctx. The error is a
// [*ColumnError] if the table lacks a column.
func Install(ctx context.Context, db DB, t Table) error {
	query, err := Migration(t)
	if err != nil {
		return err
	}
	if err := t.lacks(ctx, db); err != nil {
		return err
	}
	// Without arguments and in one string it is one transaction.
	if _, err := db.Exec(ctx, query, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("outbox: install: %w", err)
	}
	return nil
}

// lacks returns an error if the table lacks a column that the triggers are to read.
// If there is no table, the migration says so.
func (t Table) lacks(ctx context.Context, db DB) error {
	t, err := t.normal()
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	var table, key, version bool
	query := t.render(`
WITH columns AS (
	SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped
)
SELECT to_regclass('{table}') IS NOT NULL, EXISTS (SELECT FROM columns WHERE attname = $1), EXISTS (SELECT FROM columns WHERE attname = $2)`)
	if err := queryRow(ctx, db, query, []any{t.Key, t.Version}, &table, &key, &version); err != nil {
		return fmt.Errorf("outbox: install: %w", err)
	}
	lacks := &ColumnError{Table: t.Name}
	if !key {
		lacks.Key = t.Key
	}
	if !version && t.Version != NoVersion {
		lacks.Version = t.Version
	}
	if table && (lacks.Key != "" || lacks.Version != "") {
		return lacks
	}
	return nil
}

// A CheckError says why changes of a table may not be heard, or not in time.
type CheckError struct {
	Problems []string // sentences, at least one
}

func (e *CheckError) Error() string { return "outbox: " + strings.Join(e.Problems, "; ") }

// Check verifies that the outbox of t is installed, that every trigger is in place
// and enabled on the table and all its partitions, and what else could keep changes
// from being heard. The error is a [*CheckError], or why it could not be known. It
// looks at the catalog only, and at one row.
func Check(ctx context.Context, db DB, t Table) error {
	t, err := t.normal()
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	problems, err := t.check(ctx, db)
	switch {
	case err != nil:
		return fmt.Errorf("outbox: check: %w", err)
	case len(problems) > 0:
		return &CheckError{problems}
	}
	return nil
}

// watchQuery returns what the triggers of the table are: a fingerprint, and which
// are missing or do not always fire. The fingerprint changes with whatever is done
// to one of them, to their function, or to the set of tables that have them, also
// if it is undone: a row of the catalog that was written again has another xmin. Only
// of a table that was attached and is detached again nothing is left.
const watchQuery = `
WITH RECURSIVE tree AS (
	SELECT to_regclass('{table}')::oid AS oid, '' AS joined
	UNION
	SELECT i.inhrelid, i.xmin::text || i.inhdetachpending FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
), want AS (
	SELECT tree.oid, tree.joined, '{trigger}_' || event AS name
	FROM tree, unnest(ARRAY['insert', 'update', 'delete', 'truncate']) event
), have AS (
	SELECT w.oid, w.joined, w.name, t.oid AS trigger, t.xmin AS made, p.xmin AS written,
		t.tgenabled IS NOT DISTINCT FROM 'A' AND t.tgfoid = to_regproc('{tell}') AS good
	FROM want w
	LEFT JOIN pg_trigger t ON t.tgrelid = w.oid AND t.tgname = w.name
	LEFT JOIN pg_proc p ON p.oid = t.tgfoid
)
SELECT coalesce(hashtextextended(string_agg(concat_ws('/', oid, joined, trigger, made, written, good), ',' ORDER BY oid, joined, name), 0)::text, ''),
	coalesce(string_agg(name || ' on ' || coalesce(oid::regclass::text, 'a table that is not there'), ', ' ORDER BY oid, name) FILTER (WHERE good IS NOT TRUE), '')
FROM have`

// check returns what is wrong with the outbox.
func (t Table) check(ctx context.Context, db DB) (problems []string, err error) {
	found := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var table, installed, standby, unique, raising, ordered bool
	var columns int
	var comment string
	err = queryRow(ctx, db, t.render(`
SELECT to_regclass('{table}') IS NOT NULL, to_regclass('{outbox}') IS NOT NULL, pg_is_in_recovery(),
	coalesce(obj_description(to_regclass('{outbox}'), 'pg_class'), ''),
	EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = $1
		WHERE i.indrelid = to_regclass('{table}') AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum),
	EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('{table}') AND tgname = '{trigger}_raise' AND tgenabled = 'A'),
	(SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attname IN ($1, $2) AND NOT attisdropped)`),
		[]any{t.Key, cmp.Or(strings.TrimPrefix(t.Version, NoVersion), t.Key)}, &table, &installed, &standby, &comment, &unique, &raising, &columns)
	switch {
	case err != nil:
		return nil, err
	case !table:
		found("there is no table %s", t.Name)
		return problems, nil
	case !installed:
		found("%s does not exist: install the outbox", t.Outbox)
		return problems, nil
	}
	if comment != mark {
		found("%s is %q, want %q: install the outbox again", t.Outbox, comment, mark)
	}
	if want := len(t.columns()); columns < want {
		found("%s lacks a column of %s: whoever writes to it fails until the outbox is installed again", t.Name, strings.Join(t.columns(), " and "))
	}
	if standby {
		found("the server is a standby: a relay needs the primary")
	}
	if t.Version != NoVersion && !unique {
		found("no unique index is on %q alone, so %q may not order the states of a key: use no version", t.Key, t.Version)
	}
	if err := queryRow(ctx, db, t.render(`SELECT {ordered}`), nil, &ordered); err != nil {
		return nil, err
	}
	if !ordered {
		found("the ids of %s are not drawn one by one: install the outbox again", t.Outbox)
	}
	if t.Raise && !raising {
		found("the trigger that raises versions is missing or disabled: install the outbox again")
	}
	var fingerprint, missing string
	if err := queryRow(ctx, db, t.render(watchQuery), nil, &fingerprint, &missing); err != nil {
		return nil, err
	}
	if missing != "" {
		found("triggers that are missing, or not enabled ALWAYS: %s: install the outbox again", missing)
	}
	return problems, nil
}

// Warnings says what about the key column of t can leave a change unheard: that of its
// type, or of its collation, one row answers to several texts. A cache that was asked
// for another one than the row has keeps what it got under that, and is told of
// changes under the row's own. Nothing is wrong where the caches have every key in the
// form that PostgreSQL writes. It looks at the catalog only.
func Warnings(ctx context.Context, db DB, t Table) ([]string, error) {
	t, err := t.normal()
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	var kind, name, collation string
	var deterministic bool
	err = queryRow(ctx, db, t.render(`
WITH RECURSIVE base AS ( -- a domain is told as the type that is below it
	SELECT a.atttypid AS oid, a.attcollation AS collation FROM pg_attribute a
	WHERE a.attrelid = to_regclass('{table}') AND a.attname = $1 AND NOT a.attisdropped
	UNION ALL
	SELECT t.typbasetype, base.collation FROM base JOIN pg_type t ON t.oid = base.oid WHERE t.typtype = 'd'
)
SELECT t.typtype::text, t.typname::text, coalesce(c.collname::text, ''), coalesce(c.collisdeterministic, true)
FROM base JOIN pg_type t ON t.oid = base.oid LEFT JOIN pg_collation c ON c.oid = base.collation WHERE t.typtype <> 'd'`),
		[]any{t.Key}, &kind, &name, &collation, &deterministic)
	if err != nil {
		return nil, fmt.Errorf("outbox: look at the key column: %w", err)
	}
	var warnings []string
	add := func(why string) {
		warnings = append(warnings, fmt.Sprintf("a row of %s answers to several texts of %q: %s; have every cache use the one that PostgreSQL writes, or changes are not heard",
			t.Name, t.Key, why))
	}
	if !deterministic {
		add("its collation " + strconv.Quote(collation) + " takes different texts for equal")
	}
	if why := severalTexts(kind, name); why != "" {
		add(why)
	}
	return warnings, nil
}

// severalTexts says why a value of a type has several texts; nothing if it has one.
func severalTexts(kind, name string) string {
	switch name {
	case "text", "varchar", "int2", "int4", "int8", "bytea", "char":
		return ""
	case "citext":
		return "citext ignores case"
	case "bpchar":
		return "char(n) ignores spaces at the end"
	case "uuid":
		return "a uuid may be in capitals, or without hyphens"
	case "numeric", "float4", "float8":
		return "a number may have more zeros, as 1.0 and 1.00"
	}
	if kind == "e" { // an enumeration
		return ""
	}
	return "a value of type " + name + " may be written in several ways"
}

// Untold returns for how long the oldest row of the outbox of t has been there, of
// which no relay has told yet; 0 if there is none. It counts from when the change
// was made, so a transaction that took long adds to it. While a relay works the rest
// is well below a second. It reads one row, and passes over what is deleted there
// and not vacuumed yet.
func Untold(ctx context.Context, db DB, t Table) (time.Duration, error) {
	t, err := t.normal()
	if err != nil {
		return 0, fmt.Errorf("outbox: %w", err)
	}
	var micros int64
	query := t.render(`SELECT coalesce((SELECT greatest(1, extract(epoch FROM clock_timestamp() - at) * 1e6)::bigint FROM {outbox} ORDER BY id LIMIT 1), 0)`)
	if err := queryRow(ctx, db, query, nil, &micros); err != nil {
		return 0, fmt.Errorf("outbox: look for what waits: %w", err)
	}
	return time.Duration(micros) * time.Microsecond, nil
}

// queryRow scans the only row of a query.
func queryRow(ctx context.Context, db DB, query string, args []any, into ...any) error {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return errors.Join(rows.Err(), pgx.ErrNoRows)
	}
	if err := rows.Scan(into...); err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}
