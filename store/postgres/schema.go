package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Schema returns the statements that create what the Store needs where it does not
// exist yet, for those who keep their schema elsewhere: the table, or the columns
// that an Existing one lacks; the journal; with HardDelete the table of the deleted
// keys' versions; and the triggers that keep the versions, whoever writes. Types of
// the key's and the value's columns may be changed as long as what is stored comes
// back the same and keys compare by bytes. Where all is there, the statements take
// no lock that readers or writers of the table would feel.
func (s *Store[K, V]) Schema() []string { return s.layout.schema() }

func (l *layout) schema() []string {
	var statements []string
	add := func(statement string) { statements = append(statements, l.render(statement)) }
	if l.existing {
		add(l.ifMissing("column", l.version, "ALTER TABLE {table} ADD COLUMN {version} BIGINT NOT NULL DEFAULT 1"))
		if !l.hard {
			add(l.ifMissing("column", l.deleted, "ALTER TABLE {table} ADD COLUMN {deleted} BOOLEAN NOT NULL DEFAULT FALSE"))
		}
		if l.op != "" {
			add(l.ifMissing("column", l.op, "ALTER TABLE {table} ADD COLUMN {op} BYTEA"))
		}
	} else {
		add(l.createTable())
	}
	add(`CREATE TABLE IF NOT EXISTS {journal} (
	"op" BYTEA NOT NULL,
	"key" {keytype} NOT NULL,
	"version" BIGINT NOT NULL,
	"committed_at" BIGINT NOT NULL,
	PRIMARY KEY ("op", "key")
)`)
	add(`CREATE INDEX IF NOT EXISTS {index} ON {journal} ("committed_at")`)
	if l.hard {
		add(`CREATE TABLE IF NOT EXISTS {gone} (
	"key" {keytype} NOT NULL PRIMARY KEY,
	"version" BIGINT NOT NULL
)`)
	}
	add(l.function())
	rowEvents := "UPDATE OR DELETE"
	if l.hard {
		rowEvents = "INSERT OR UPDATE OR DELETE"
	}
	add(l.ifMissing("trigger", rowTrigger, "CREATE TRIGGER "+rowTrigger+" BEFORE "+rowEvents+" ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"))
	if l.hard {
		add(l.ifMissing("trigger", insertedTrigger, "CREATE TRIGGER "+insertedTrigger+" AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"))
	}
	add(l.ifMissing("trigger", truncateTrigger, "CREATE TRIGGER "+truncateTrigger+" BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"))
	return statements
}

// The triggers' names. PostgreSQL runs those of a row in the order of their names.
const (
	rowTrigger      = "tidemark_version"
	insertedTrigger = "tidemark_inserted" // with HardDelete only
	truncateTrigger = "tidemark_truncate"
)

func (l *layout) createTable() string {
	create := `CREATE TABLE IF NOT EXISTS {table} (
	{key} {keytype} NOT NULL PRIMARY KEY,
	{value} {valuetype},
	{version} BIGINT NOT NULL DEFAULT 1,
	{deleted} BOOLEAN NOT NULL DEFAULT FALSE,
	{op} BYTEA,
	CHECK ({deleted} OR ({value} IS NOT NULL AND {version} > 0))
)`
	if l.hard {
		create = strings.Replace(create, "\n\t{deleted} BOOLEAN NOT NULL DEFAULT FALSE,", "", 1)
		create = strings.Replace(create, "{deleted} OR ({value} IS NOT NULL AND {version} > 0)", "{value} IS NOT NULL AND {version} > 0", 1)
	}
	return create
}

// ifMissing runs a statement only if the table has no such column or trigger: to
// find out that there is nothing to do takes no lock on the table.
func (l *layout) ifMissing(what, name, statement string) string {
	where := "FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '" + name + "' AND NOT attisdropped"
	if what == "trigger" {
		where = "FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND tgname = '" + name + "'"
	}
	return "DO $tidemark$ BEGIN\n\tIF NOT EXISTS (SELECT " + where + ") THEN\n\t\t" + statement + ";\n\tEND IF;\nEND $tidemark$"
}

// function returns the statement that creates what the triggers call. A key's
// version grows with each change of its row, whoever makes it and whatever they say
// the version is.
func (l *layout) function() string {
	if l.hard {
		return l.hardFunction()
	}
	return `CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN` + onUpdate() + `
	RAISE EXCEPTION 'tidemark: % would lose the versions of rows of %: set {deleted} to TRUE', TG_OP, TG_TABLE_NAME;
END $body$`
}

func onUpdate() string {
	return `
	IF TG_OP = 'UPDATE' THEN
		IF NEW.{key} IS DISTINCT FROM OLD.{key} THEN
			RAISE EXCEPTION 'tidemark: the key of a row of % cannot change: remove the row and insert another', TG_TABLE_NAME;
		END IF;
		NEW.{version} := GREATEST(NEW.{version}, OLD.{version} + 1);
		RETURN NEW;
	END IF;`
}

// hardFunction is function where rows are removed. Its tables are found when it is
// created, and used with the rights of who created it, so that writers need neither
// the same search_path nor rights to more than the table. Row and tombstone are locked
// in this order by everybody. A creation that finds no row waits at the tombstone for
// a deletion that is under way, whose version cannot be seen yet, and keeps other
// creations away. The tombstone goes when the row is there, and not before: that a row
// is about to be inserted does not mean that it is, see ON CONFLICT DO NOTHING. What
// stays of a key that never was has version 0, and says nothing.
func (l *layout) hardFunction() string {
	const of = "(SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = '"
	return `DO $tidemark$
DECLARE
	rows TEXT := ` + of + `{table}'::regclass);
	gone TEXT := ` + of + `{gone}'::regclass);
BEGIN
	EXECUTE replace(replace($create$
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	last BIGINT;
BEGIN` + onUpdate() + `
	IF TG_OP = 'INSERT' AND TG_WHEN = 'AFTER' THEN
		DELETE FROM <gone> WHERE "key" = NEW.{key} AND "version" < NEW.{version}; -- and none of a deletion since
		RETURN NULL;
	END IF;
	IF TG_OP = 'INSERT' THEN
		PERFORM FROM <rows> WHERE {key} = NEW.{key} FOR UPDATE;
		IF NOT FOUND THEN
			INSERT INTO <gone> AS g ("key", "version") VALUES (NEW.{key}, 0)
				ON CONFLICT ("key") DO UPDATE SET "version" = g."version" RETURNING g."version" INTO last;
			NEW.{version} := GREATEST(NEW.{version}, last + 1);
		END IF;
		RETURN NEW;
	END IF;
	IF TG_OP = 'DELETE' THEN
		INSERT INTO <gone> ("key", "version") VALUES (OLD.{key}, OLD.{version} + 1)
			ON CONFLICT ("key") DO UPDATE SET "version" = EXCLUDED."version";
		RETURN OLD;
	END IF;
	RAISE EXCEPTION 'tidemark: % would lose the versions of rows of %: use DELETE', TG_OP, TG_TABLE_NAME;
END $body$
$create$, '<rows>', rows), '<gone>', gone);
END $tidemark$`
}

// schemaLock serializes those who create tables: CREATE ... IF NOT EXISTS fails
// when two see that there is nothing.
const schemaLock = 0x746964656d61726b // "tidemark"

// CreateTables runs the statements of [Store.Schema] in one transaction. Any number
// of processes may do so at once. It needs the rights of the table's owner, also where
// all is there already: a service that has less asks [Store.Check] instead, and needs
// SELECT, INSERT and UPDATE on the table (and DELETE with HardDelete), SELECT, INSERT
// and for Prune DELETE on the journal, and SELECT on the deleted keys' versions.
func (s *Store[K, V]) CreateTables(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, beginner{s.db}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return err
		}
		for _, statement := range s.layout.schema() {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("postgres: create tables: %w", err)
	}
	return nil
}

// A beginner begins transactions in which each statement sees what was committed
// before it.
type beginner struct{ db DB }

func (b beginner) Begin(ctx context.Context) (pgx.Tx, error) {
	return b.db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
}

const (
	// minPrune keeps Prune away from writes whose outcome somebody may still ask.
	minPrune = time.Minute

	// pruneBatch is how many lines of the journal one statement deletes.
	pruneBatch = 5000
)

// Prune forgets the writes that were committed longer than olderThan ago, by the
// clock of the database, and returns how many. A forgotten write counts as not
// committed to [Store.Outcome], and would be made again if it were sent again. So
// olderThan must exceed the time for which a write can be in doubt or be retried,
// the cache's DoubtTimeout for one; under a minute and under twice
// [Options.Timeout] is refused. An hour is plenty; a journal of an hour has 3600
// lines for each write per second.
//
// It deletes in batches, each a transaction of its own. After an error the number
// is that of the batches before it.
func (s *Store[K, V]) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	if least := max(minPrune, 2*s.timeout); olderThan < least {
		return 0, fmt.Errorf("postgres: prune: olderThan is %v, want at least %v", olderThan, least)
	}
	for total := int64(0); ; {
		tag, err := s.db.Exec(ctx, s.sql.prune, int64(olderThan/time.Second))
		if err != nil {
			return total, fmt.Errorf("postgres: prune: %w", err)
		}
		if total += tag.RowsAffected(); tag.RowsAffected() < pruneBatch {
			return total, nil
		}
	}
}

// Check asks the database whether it is a primary that has all that the Store
// needs, which [Store.Schema] creates, and reports all that is missing at once. It
// looks at names, unique keys and triggers, not at types and privileges.
func (s *Store[K, V]) Check(ctx context.Context) error {
	var what string
	var there bool
	var missing []error
	err := s.query(ctx, s.layout.checks(), true, []any{&what, &there}, func(pgx.CollectableRow) error {
		if !there {
			missing = append(missing, fmt.Errorf("there is no %s", what))
		}
		return nil
	})
	if err = errors.Join(append(missing, err)...); err != nil {
		return fmt.Errorf("postgres: check: %w", err)
	}
	return nil
}

// checks returns the query of Check: a line for each thing that must be there.
func (l *layout) checks() string {
	var lines []string
	expect := func(what, there string) {
		lines = append(lines, l.render("SELECT '"+what+"', "+there))
	}
	has := func(table string, columns ...string) {
		expect("table "+table, "to_regclass('"+table+"') IS NOT NULL")
		for _, name := range columns {
			expect("column "+quote(name)+" in table "+table,
				"EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('"+table+"') AND attname = '"+name+"' AND NOT attisdropped)")
		}
	}
	unique := func(table string, columns ...string) {
		expect("unique key on "+quote(strings.Join(columns, `", "`))+" in table "+table,
			"EXISTS (SELECT FROM pg_index i WHERE indrelid = to_regclass('"+table+"') AND indisunique AND indisvalid AND indpred IS NULL"+
				" AND ARRAY(SELECT attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY n(number, i)"+
				" JOIN pg_attribute ON attrelid = indrelid AND attnum = number ORDER BY n.i) = ARRAY['"+strings.Join(columns, "', '")+"'])")
	}
	needed := append([]string{l.key, l.version}, l.columns...)
	for _, name := range []string{l.deleted, l.op} {
		if name != "" {
			needed = append(needed, name)
		}
	}
	has("{table}", needed...)
	unique("{table}", l.key)
	has("{journal}", "op", "key", "version", "committed_at")
	unique("{journal}", "op", "key")
	if l.hard {
		has("{gone}", "key", "version")
		unique("{gone}", "key")
	}
	triggers := []string{rowTrigger, truncateTrigger}
	if l.hard {
		triggers = append(triggers, insertedTrigger)
	}
	for _, name := range triggers {
		expect("trigger "+name+" on table {table} that is enabled",
			"EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('{table}') AND tgname = '"+name+"' AND tgenabled IN ('O', 'A'))")
	}
	return "SELECT pg_is_in_recovery(), what, there FROM (" + strings.Join(lines, " UNION ALL ") + ") c (what, there) WHERE $1::bool"
}
