package postgres

import (
	"fmt"
	"strings"
	"time"

	"github.com/tidemark-go/tidemark/internal/column"
)

// A layout is what a table and its columns are called, and what they hold.
type layout struct {
	name      string // of the table, unquoted
	existing  bool   // the program's own table
	hard      bool   // deleted rows are removed
	key       string
	keyKind   column.Kind
	keyType   string // "" if it follows from keyKind
	version   string
	deleted   string   // "" if hard
	op        string   // "" if there is none
	columns   []string // of the value
	selected  []string // the same as a query reads them
	valueKind column.Kind
}

// quote returns "a" of a, and "a"."b" of a.b.
func quote(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }

// now is the database's clock in seconds since 1970. The journal is dated and
// pruned by one clock, whatever those of the clients say.
const now = "CAST(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) AS BIGINT)" // not the transaction's beginning

// render replaces the names in braces. No SQL of this package has braces in it
// otherwise.
func (l *layout) render(query string) string {
	schema, name := "", l.name
	if before, after, found := strings.Cut(l.name, "."); found {
		schema, name = before, after
	}
	within := func(name string) string {
		if schema == "" {
			return quote(name)
		}
		return quote(schema) + "." + quote(name)
	}
	return strings.NewReplacer(
		"{table}", within(name), "{journal}", within(name+"_ops"), "{gone}", within(name+"_gone"),
		"{function}", within(name+"_version"), "{index}", quote(name+"_ops_committed_at"),
		"{key}", quote(l.key), "{version}", quote(l.version), "{deleted}", quote(l.deleted), "{op}", quote(l.op),
		"{keytype}", l.columnType(l.keyKind, true), "{valuetype}", l.columnType(l.valueKind, false),
		"{value}", quote(l.columns[0]), "{argument}", "$1::"+l.cast(""), "{element}", "k."+l.elementCast(),
		"{list}", "$1::"+l.cast("[]"), "{now}", now,
	).Replace(query)
}

// columnType returns the type of a key or value column that we create. Keys are
// compared by bytes: collations can take one key for another.
func (l *layout) columnType(kind column.Kind, isKey bool) string {
	switch {
	case isKey && l.keyType != "":
		return l.keyType
	case kind == column.Integer:
		return "BIGINT"
	case kind == column.Binary:
		return "BYTEA"
	case isKey:
		return `TEXT COLLATE "C"`
	default:
		return "TEXT"
	}
}

// cast is what a key's parameter is cast to, or a list of them: first to what its
// codec makes of it, whatever the column is.
func (l *layout) cast(list string) string {
	sent := map[column.Kind]string{column.Text: "text", column.Binary: "bytea", column.Integer: "bigint"}[l.keyKind]
	if l.keyType != "" && list == "" {
		return sent + "::" + l.keyType
	}
	return sent + list
}

// elementCast is an element of a list of keys, as the key's column has it.
func (l *layout) elementCast() string {
	if l.keyType != "" {
		return "key::" + l.keyType
	}
	return "key"
}

// statements is all SQL that a Store sends, but for its schema. A parameter $1 is
// a key or a list of keys.
type statements struct {
	load     string // key
	loadMany string // keys
	versions string // keys
	create   string // key, op, values...
	update   string // key, op, base, values...
	remove   string // key, op, base
	state    string // key, op
	outcome  string // key, op
	prune    string // age in seconds

	begin    string // with a verb for the number of the operation's lock
	beginAsk string // with one, too
	commit   string
}

func newStatements(l layout, step time.Duration) statements {
	absent, version, dead := "COALESCE(r.{deleted}, TRUE)", "COALESCE(r.{version}, 0)", ""
	if l.hard {
		absent = "r.{key} IS NULL"
		version = "COALESCE(r.{version}, g.version, 0)"
		dead = " LEFT JOIN {gone} g ON g.key = "
	}
	of := func(key string) string {
		if l.hard {
			return " LEFT JOIN {table} r ON r.{key} = " + key + dead + key
		}
		return " LEFT JOIN {table} r ON r.{key} = " + key
	}
	state := version + ", " + absent
	values := ""
	for _, name := range l.selected {
		values += ", r." + name
	}
	unnest := " FROM unnest({list}) WITH ORDINALITY AS k(key, i)"
	live := "r.{version} IS NOT NULL"
	if !l.hard {
		live = "NOT r.{deleted}"
	}
	s := statements{
		load:     "SELECT pg_is_in_recovery(), " + state + values + " FROM (SELECT) one" + of("{argument}"),
		loadMany: "SELECT pg_is_in_recovery(), k.i, " + state + values + unnest + of("{element}"),
		versions: "SELECT pg_is_in_recovery(), k.i, COALESCE(r.{version}, 0), COALESCE(" + live + ", FALSE)" + unnest +
			" LEFT JOIN {table} r ON r.{key} = {element}",
		create: l.create(),
		update: l.change("UPDATE {table} SET " + l.assign(4) + " WHERE {key} = {argument} AND {version} = $3::bigint" + l.andLive() +
			" RETURNING {version} AS v"),
		remove: l.change(l.remove()),
		state: "SELECT " + state + ", j.version FROM (SELECT) one" + of("{argument}") +
			" LEFT JOIN {journal} j ON j.op = $2::bytea AND j.key = {argument}",
		outcome: "SELECT pg_is_in_recovery(), j.version FROM (SELECT) one LEFT JOIN {journal} j ON j.op = $2::bytea AND j.key = {argument}",
		prune: fmt.Sprintf("DELETE FROM {journal} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {journal}"+
			" WHERE committed_at < {now} - $1::bigint ORDER BY committed_at LIMIT %d))", pruneBatch),
	}
	for _, query := range []*string{
		&s.load, &s.loadMany, &s.versions, &s.create, &s.update, &s.remove, &s.state, &s.outcome, &s.prune,
	} {
		*query = l.render(*query)
	}
	s.begin, s.beginAsk, s.commit = transaction(step)
	return s
}

// change wraps a statement that changes one row and returns its version: the
// journal gets a line if there was such a row.
func (l *layout) change(statement string) string {
	return "WITH changed AS (" + statement + ") INSERT INTO {journal} (op, key, version, committed_at)" +
		" SELECT $2::bytea, {argument}, v, {now} FROM changed RETURNING version"
}

func (l *layout) create() string {
	names, values, again := "{key}", "{argument}", ""
	for i, name := range l.columns {
		names += ", " + quote(name)
		values += fmt.Sprintf(", $%d", 3+i)
		again += fmt.Sprintf("%s = EXCLUDED.%s, ", quote(name), quote(name))
	}
	names, values = names+", {version}", values+", 1"
	if l.op != "" {
		names, values = names+", {op}", values+", $2::bytea"
		again += "{op} = EXCLUDED.{op}, "
	}
	into := "INSERT INTO {table} AS r (" + names + ") VALUES (" + values + ") ON CONFLICT ({key}) DO "
	if l.hard {
		return l.change(into + "NOTHING RETURNING {version} AS v")
	}
	return l.change(into + "UPDATE SET " + again + "{version} = r.{version} + 1, {deleted} = FALSE WHERE r.{deleted} RETURNING r.{version} AS v")
}

func (l *layout) remove() string {
	if l.hard {
		return "DELETE FROM {table} WHERE {key} = {argument} AND {version} = $3::bigint RETURNING {version} + 1 AS v"
	}
	erase := ""
	if !l.existing { // else the column may be one that takes no NULL
		erase = "{value} = NULL, "
	}
	if l.op != "" {
		erase += "{op} = $2::bytea, "
	}
	return "UPDATE {table} SET " + erase + "{version} = {version} + 1, {deleted} = TRUE" +
		" WHERE {key} = {argument} AND {version} = $3::bigint" + l.andLive() + " RETURNING {version} AS v"
}

// assign sets the value's columns from the parameters that begin with number n,
// and the version.
func (l *layout) assign(n int) string {
	set := ""
	for i, name := range l.columns {
		set += fmt.Sprintf("%s = $%d, ", quote(name), n+i)
	}
	if l.op != "" {
		set += "{op} = $2::bytea, "
	}
	return set + "{version} = {version} + 1"
}

func (l *layout) andLive() string {
	if l.hard {
		return ""
	}
	return " AND NOT {deleted}"
}

// transaction returns what begins a write, what begins the question after its
// outcome, and what commits it.
//
// READ COMMITTED: a statement that waited for a row's lock, or for that of an
// operation, must see what was committed meanwhile. The timeouts hold for this
// transaction only, which suits poolers; lock_timeout comes first because it bounds
// the wait in the same statement. Constraints that were put off are looked at before
// COMMIT, which then has nothing to wait for. An asynchronous commit could be forgotten
// after it was acknowledged, and its version be given again.
func transaction(step time.Duration) (begin, beginAsk, commit string) {
	set := func(name, value string) string { return "set_config('" + name + "', " + value + ", TRUE), " }
	ms := fmt.Sprintf("'%d'", step.Milliseconds())
	timeouts := "SELECT " + set("lock_timeout", ms) + set("statement_timeout", ms) + set("idle_in_transaction_session_timeout", ms)
	durable := set("synchronous_commit", "COALESCE(NULLIF(current_setting('synchronous_commit'), 'off'), 'local')")
	begin = "BEGIN ISOLATION LEVEL READ COMMITTED; " + timeouts + durable + "pg_advisory_xact_lock(%d)"
	beginAsk = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; " + timeouts + "pg_advisory_xact_lock_shared(%d)"
	return begin, beginAsk, "SET CONSTRAINTS ALL IMMEDIATE; commit"
}
