package sqlstore

import (
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	"github.com/tidemark-go/tidemark/internal/column"
)

// A Dialect is a kind of database.
type Dialect uint8

const (
	// SQLite needs version 3.24 or later.
	SQLite Dialect = iota + 1

	// PostgreSQL needs version 9.5 or later.
	PostgreSQL

	// MySQL is MySQL with InnoDB, 5.7 or later, and MariaDB.
	MySQL
)

var dialectNames = [...]string{"unknown", "SQLite", "PostgreSQL", "MySQL"}

func (d Dialect) String() string {
	if d.valid() {
		return dialectNames[d]
	}
	return dialectNames[0]
}

func (d Dialect) valid() bool { return d >= SQLite && d <= MySQL }

// transaction returns the options of a write. READ COMMITTED, where there is a
// choice: a statement that waited for a row's lock must see what was committed
// meanwhile, and not a snapshot from before. SQLite has one writer at a time.
func (d Dialect) transaction() sql.TxOptions {
	if d == SQLite {
		return sql.TxOptions{}
	}
	return sql.TxOptions{Isolation: sql.LevelReadCommitted}
}

// render replaces, in SQL written with "quoted" names and ? for parameters,
// {table}, {journal} and {now}, and turns the rest into the dialect's form. The
// SQL of this package has no literals with " or ? in them.
func (d Dialect) render(query, table string) string {
	query = strings.NewReplacer("{table}", quoted(table), "{journal}", quoted(journal(table)), "{now}", d.now()).Replace(query)
	switch d {
	case MySQL:
		return strings.ReplaceAll(query, `"`, "`")
	case PostgreSQL:
		return numbered(query)
	default:
		return query
	}
}

// quoted returns "a" of a, and "a"."b" of a.b.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }

func journal(table string) string { return table + "_ops" }

// numbered replaces each ? by $1, $2 and so on.
func numbered(query string) string {
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(n))
		query = after
	}
}

// now is the database's clock in seconds since 1970. The journal is dated and
// pruned by one clock, whatever those of the clients say.
func (d Dialect) now() string {
	switch d {
	case PostgreSQL:
		return "CAST(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) AS BIGINT)" // not the transaction's beginning
	case MySQL:
		return "UNIX_TIMESTAMP()"
	default:
		return "CAST(STRFTIME('%s', 'now') AS INTEGER)"
	}
}

// columnType returns the type of a key or value column. Comparison is by bytes
// everywhere: collations that ignore case or trailing spaces would take one key
// for another. MySQL gets binary columns for text, because its text is subject
// to the character set of the connection and, in the worst sql_mode, cut.
func (d Dialect) columnType(k column.Kind, isKey bool) string {
	switch {
	case k == column.Integer:
		return "BIGINT"
	case d == MySQL && isKey:
		return fmt.Sprintf("VARBINARY(%d)", column.MaxKeyBytes)
	case d == MySQL:
		return "LONGBLOB"
	case d == PostgreSQL && k == column.Binary:
		return "BYTEA"
	case d == PostgreSQL && isKey:
		return `TEXT COLLATE "C"`
	case k == column.Binary:
		return "BLOB"
	default:
		return "TEXT"
	}
}

// opType returns the type of an operation id.
func (d Dialect) opType() string {
	switch d {
	case PostgreSQL:
		return "BYTEA"
	case MySQL:
		return "BINARY(16)"
	default:
		return "BLOB"
	}
}

// schema returns the statements that create the table and its journal.
func schema(d Dialect, table string, key, value column.Kind) []string {
	keyType, opType := d.columnType(key, true), d.opType()
	rows := `CREATE TABLE IF NOT EXISTS {table} (
	"key" ` + keyType + ` NOT NULL PRIMARY KEY,
	"value" ` + d.columnType(value, false) + `,
	"version" BIGINT NOT NULL DEFAULT 1,
	"deleted" BOOLEAN NOT NULL DEFAULT FALSE,
	"op" ` + opType + `,
	CHECK ("deleted" OR ("value" IS NOT NULL AND "version" > 0))
)`
	ops := `CREATE TABLE IF NOT EXISTS {journal} (
	"op" ` + opType + ` NOT NULL,
	"key" ` + keyType + ` NOT NULL,
	"version" BIGINT NOT NULL,
	"committed_at" BIGINT NOT NULL,
	PRIMARY KEY ("op", "key")`
	if d == MySQL { // which cannot create an index only if it does not exist
		ops += `,
	INDEX "committed_at" ("committed_at")
) ENGINE=InnoDB`
		return []string{d.render(rows+" ENGINE=InnoDB", table), d.render(ops, table)}
	}
	// The index lives in the schema of its table: only SQLite wants that said,
	// only PostgreSQL refuses it.
	space, name := "", journal(table)
	if before, after, found := strings.Cut(name, "."); found {
		space, name = before+".", after
	}
	index, on := quoted(space+name+"_committed_at"), quoted(name)
	if d == PostgreSQL {
		index, on = quoted(name+"_committed_at"), "{journal}"
	}
	return []string{
		d.render(rows, table),
		d.render(ops+"\n)", table),
		d.render(`CREATE INDEX IF NOT EXISTS `+index+` ON `+on+` ("committed_at")`, table),
	}
}

// statements is all SQL that a Store sends, rendered.
type statements struct {
	load     string // key
	loadMany string // ends before the list of keys
	versions string // ends there too
	reserve  string // key
	create   string // value, op, key
	update   string // value, op, key, base
	remove   string // op, key, base
	state    string // op, key
	record   string // op, key, version
	outcome  string // op, key
	prune    string // age in seconds
}

func newStatements(d Dialect, table string) statements {
	reserve := `INSERT INTO {table} ("key", "value", "version", "deleted") VALUES (?, NULL, 0, TRUE) `
	if d == MySQL {
		reserve += `ON DUPLICATE KEY UPDATE "version" = "version"` // INSERT IGNORE would ignore too much
	} else {
		reserve += `ON CONFLICT ("key") DO NOTHING`
	}
	render := func(query string) string { return d.render(query, table) }
	return statements{
		load:     render(`SELECT "value", "version", "deleted" FROM {table} WHERE "key" = ?`),
		loadMany: render(`SELECT "key", "value", "version", "deleted" FROM {table} WHERE "key" IN `),
		versions: render(`SELECT "key", "version" FROM {table} WHERE "deleted" = FALSE AND "key" IN `),
		reserve:  render(reserve),
		create: render(`UPDATE {table} SET "value" = ?, "version" = "version" + 1, "deleted" = FALSE, "op" = ?` +
			` WHERE "key" = ? AND "deleted" = TRUE`),
		update: render(`UPDATE {table} SET "value" = ?, "version" = "version" + 1, "op" = ?` +
			` WHERE "key" = ? AND "version" = ? AND "deleted" = FALSE`),
		remove: render(`UPDATE {table} SET "value" = NULL, "version" = "version" + 1, "deleted" = TRUE, "op" = ?` +
			` WHERE "key" = ? AND "version" = ? AND "deleted" = FALSE`),
		state: render(`SELECT r."version", r."deleted", j."version" FROM {table} r` +
			` LEFT JOIN {journal} j ON j."op" = ? AND j."key" = r."key" WHERE r."key" = ?`),
		record:  render(`INSERT INTO {journal} ("op", "key", "version", "committed_at") VALUES (?, ?, ?, {now})`),
		outcome: render(`SELECT "version" FROM {journal} WHERE "op" = ? AND "key" = ?`),
		prune:   render(pruneQuery(d)),
	}
}

// pruneBatch is how many lines of the journal one statement deletes: few enough
// to hold SQLite's only write lock for milliseconds.
const pruneBatch = 2000

// pruneQuery deletes one batch. Standard SQL has no DELETE with a limit, so each
// dialect names rows in its own way.
func pruneQuery(d Dialect) string {
	old := fmt.Sprintf(`"committed_at" < {now} - ? ORDER BY "committed_at" LIMIT %d`, pruneBatch)
	switch d {
	case PostgreSQL:
		return `DELETE FROM {journal} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {journal} WHERE ` + old + `))`
	case MySQL:
		return `DELETE FROM {journal} WHERE ` + old
	default:
		return `DELETE FROM {journal} WHERE rowid IN (SELECT rowid FROM {journal} WHERE ` + old + `)`
	}
}
