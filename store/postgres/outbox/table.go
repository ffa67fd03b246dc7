package outbox

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/tidemark-go/tidemark"
)

// NoVersion, as a Table's Version, says that no column of the table orders the
// states of a key.
const NoVersion = "-"

const defaultBulk = 100_000

// A Table is a table that a cache is in front of, and how its outbox is to be. The
// zero value is the table "tidemark" with the columns that packages store/postgres
// and store/sqlstore give it.
type Table struct {
	// Name names the table, optionally with a schema ("billing.accounts"). Each part
	// consists of ASCII letters, digits and underscores, begins with no digit and has
	// at most 46 bytes; it is quoted, so its case counts. Empty means "tidemark".
	Name string

	// Outbox names the outbox, in the form of Name. Empty means Name with "_outbox"
	// appended. Each cache in front of the table needs one of its own, also one of
	// another Schema: what a relay has told is gone.
	Outbox string

	// Key is the column with the cache's key. Empty means "key". If several rows
	// have the same, Version must be NoVersion. It is told as its text, in UTC and
	// with PostgreSQL's defaults, whatever the writer's session has set.
	Key string

	// Version is the column with the version, an integer. Empty means "version".
	// With NoVersion, or where a statement has left it as it was, the caches are told
	// that the key has changed, and not to what version.
	Version string

	// Raise makes the database raise the version of a row by one when a statement
	// changes the row and does not do it.
	Raise bool

	// Bulk is how many rows one statement may change to be told row by row; one that
	// changes more is told as "everything may have changed", so that its transaction
	// does not pay for a row in the outbox for each of its own. Zero means 100,000.
	// Above what the caches hold together it only costs.
	Bulk int

	// NoNotify leaves out NOTIFY. With it a relay hears of a change at once; but
	// PostgreSQL lets transactions with a NOTIFY commit one after the other only, and
	// refuses to PREPARE them. Without, a change waits for the relay's next look, see
	// [RelayOptions].
	NoNotify bool
}

// part is one part of a name. What is made of it stays within PostgreSQL's 63
// bytes, beyond which names are cut without a word.
const part = `[A-Za-z_][A-Za-z0-9_]{0,45}`

var (
	tableName  = regexp.MustCompile(`^(` + part + `\.)?` + part + `$`)
	columnName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// normal returns t with its defaults filled in, or all its mistakes.
func (t Table) normal() (Table, error) {
	fill := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	fill(&t.Name, "tidemark")
	fill(&t.Outbox, t.Name+"_outbox")
	fill(&t.Key, "key")
	fill(&t.Version, "version")
	if t.Bulk == 0 {
		t.Bulk = defaultBulk
	}
	var mistakes []error
	wrong := func(field, format string, args ...any) {
		mistakes = append(mistakes, &tidemark.OptionError{Field: "Table." + field, Problem: fmt.Sprintf(format, args...)})
	}
	if !tableName.MatchString(t.Name) {
		wrong("Name", "is %q, want letters, digits and underscores, at most 46, and at most one dot", t.Name)
	}
	if t.Outbox != t.Name+"_outbox" && !tableName.MatchString(t.Outbox) {
		wrong("Outbox", "is %q, want letters, digits and underscores, at most 46, and at most one dot", t.Outbox)
	}
	if !columnName.MatchString(t.Key) {
		wrong("Key", "is %q, want letters, digits and underscores, at most 63", t.Key)
	}
	if t.Version != NoVersion && !columnName.MatchString(t.Version) {
		wrong("Version", "is %q, want letters, digits and underscores, at most 63, or %q", t.Version, NoVersion)
	}
	if t.Bulk < 0 {
		wrong("Bulk", "is %d, want 0 or more", t.Bulk)
	}
	if t.Raise && t.Version == NoVersion {
		wrong("Raise", "needs a Version")
	}
	return t, errors.Join(mistakes...)
}

// columns returns the columns of the table that the triggers read.
func (t Table) columns() []string {
	if t.Version == NoVersion || t.Version == t.Key {
		return []string{t.Key}
	}
	return []string{t.Key, t.Version}
}

// schemaVersion is that of migration.sql. It is raised when an older relay could
// not read what a newer migration makes, or the other way round.
const schemaVersion = "1"

// mark is the comment by which an outbox is known.
const mark = "tidemark outbox " + schemaVersion

// render fills in the names in SQL of this package.
func (t Table) render(query string) string {
	quote := func(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }
	base := t.Outbox[strings.LastIndexByte(t.Outbox, '.')+1:]
	names := strings.NewReplacer(
		"{table}", quote(t.Name), "{outbox}", quote(t.Outbox), "{state}", quote(t.Outbox+"_state"),
		"{tell}", quote(t.Outbox+"_tell"), "{raise}", quote(t.Outbox+"_raise"),
		"{trigger}", base, "{channel}", base,
		"{key}", quote(t.Key), "{version}", quote(t.Version),
		"{bulk}", strconv.Itoa(t.Bulk), "{schema}", schemaVersion, "{mark}", mark,
	)
	return names.Replace(t.statements().Replace(query))
}

// ordered is true if the outbox draws its ids one by one.
const ordered = `coalesce((SELECT seqincrement = 1 AND seqcache = 1 AND NOT seqcycle FROM pg_sequence` +
	` WHERE seqrelid = pg_get_serial_sequence('{outbox}', 'id')::regclass), false)`

// statements fills in what depends on whether there is a version.
//
// An inserted row whose version is 0 is told as version 1: nobody can have seen an
// earlier state but an absence, and no cache serves a version 0. An updated key is
// told with its version if that has risen. If it has not, or the key has moved away
// or come from another row, what version it has now says nothing, and neither does
// the version of a deleted row: a key that is created again begins anew.
//
// Keys are compared by the bytes of their text, as caches compare them: two that are
// equal to the database, in case or accents say, are two to a cache.
func (t Table) statements() *strings.Replacer {
	inserted := `SELECT {key}::text, greatest({version}, 1)::bigint FROM after_rows WHERE {key} IS NOT NULL`
	updated := `SELECT coalesce(a.{key}::text, b.{key}::text),` +
		` CASE WHEN a.{version} > 0 AND (b.{key} IS NULL OR a.{version} > b.{version}) THEN a.{version}::bigint END` +
		` FROM after_rows a FULL JOIN before_rows b ON a.{key}::text COLLATE "C" = b.{key}::text COLLATE "C"` +
		` WHERE coalesce(a.{key}::text, b.{key}::text) IS NOT NULL`
	deleted := `SELECT DISTINCT {key}::text COLLATE "C" FROM before_rows WHERE {key} IS NOT NULL`
	if t.Version == NoVersion {
		inserted = `SELECT DISTINCT {key}::text COLLATE "C", NULL::bigint FROM after_rows WHERE {key} IS NOT NULL`
		updated = `SELECT {key}::text COLLATE "C", NULL::bigint FROM after_rows WHERE {key} IS NOT NULL` +
			` UNION SELECT {key}::text COLLATE "C", NULL::bigint FROM before_rows WHERE {key} IS NOT NULL`
	}
	notify := `PERFORM pg_notify('{channel}', '');`
	if t.NoNotify {
		notify = ""
	}
	settings := `SET bytea_output = 'hex' SET DateStyle = 'ISO, MDY' SET TimeZone = 'UTC'` +
		` SET IntervalStyle = 'postgres' SET extra_float_digits = 1 SET lc_monetary = 'C'`
	read := `{key}::text, greatest({version}, 1)::bigint`
	if t.Version == NoVersion {
		read = `{key}::text`
	}
	return strings.NewReplacer("{read}", read, "{inserted}", inserted, "{updated}", updated, "{deleted}", deleted, "{notify}", notify,
		"{settings}", settings, "{ordered}", ordered, "{inorder}", `SET INCREMENT BY 1 SET CACHE 1 SET NO CYCLE`)
}
