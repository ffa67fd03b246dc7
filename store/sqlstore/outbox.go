package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

// # The outbox
//
// Triggers write a row for each change of the table, in the transaction that makes
// it, whoever makes it. A [Store.Relay] reads what is there, tells it, and deletes
// it by its id. So what is in the outbox has not been told, or not surely, and it
// does not matter in which order rows appear: MySQL draws ids before the commit, so
// that a row with a smaller id may appear after one with a larger (S35), and a place
// in that sequence, below which all is told, would skip it.
//
// A version is told only if the statement has raised it. Everything else counts as
// changed to nobody knows what: an INSERT, as SQLite's REPLACE deletes a row without
// a trigger, and a DELETE, after which the key begins anew.

// outbox is the table that the triggers of table write.
func outbox(table string) string { return table + "_outbox" }

// outboxSchema returns the statements that make the outbox and its triggers; nil
// if the dialect has another.
func outboxSchema(d Dialect, table string, key column.Kind) []string {
	switch d {
	case SQLite:
		return sqliteOutbox(table, d.columnType(key, true))
	case MySQL:
		return mysqlOutbox(table, d.columnType(key, true))
	default:
		return nil
	}
}

// millis is the database's clock in milliseconds since 1970.
func (d Dialect) millis() string {
	if d == MySQL {
		return "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)"
	}
	return "CAST((JULIANDAY('now') - 2440587.5) * 86400000 AS INTEGER)"
}

// sqliteOutbox has ids that are never given again (AUTOINCREMENT): otherwise the
// first row after the table was empty would have the id of one that another relay
// has read, and is about to delete.
func sqliteOutbox(table, keyType string) []string {
	space, name := "", table
	if before, after, found := strings.Cut(table, "."); found {
		space, name = quoted(before)+".", after
	}
	trigger := func(event, when, rows string) string {
		event, kind, _ := strings.Cut(event, "/")
		return `CREATE TRIGGER IF NOT EXISTS ` + space + quoted(outbox(name)+"_"+kind) + ` AFTER ` + event + ` ON ` + quoted(name) + `
WHEN ` + when + `
BEGIN
	INSERT INTO ` + quoted(outbox(name)) + ` ("key", "version", "changed_at") VALUES ` + strings.ReplaceAll(rows, "now", SQLite.millis()) + `;
END`
	}
	return []string{
		`CREATE TABLE IF NOT EXISTS ` + space + quoted(outbox(name)) + ` (
	"id" INTEGER PRIMARY KEY AUTOINCREMENT,
	"key" ` + keyType + `,
	"version" BIGINT NOT NULL,
	"changed_at" BIGINT NOT NULL
)`,
		trigger("INSERT/insert", `NEW."version" > 0`, `(NEW."key", 0, now)`),
		trigger("UPDATE/update", `NEW."key" IS OLD."key" AND (NEW."version" IS NOT OLD."version" OR NEW."deleted" IS NOT OLD."deleted" OR NEW."value" IS NOT OLD."value")`,
			`(NEW."key", CASE WHEN NEW."version" > OLD."version" THEN NEW."version" ELSE 0 END, now)`),
		trigger("UPDATE/rename", `NEW."key" IS NOT OLD."key"`, `(OLD."key", 0, now), (NEW."key", 0, now)`),
		trigger("DELETE/delete", `TRUE`, `(OLD."key", 0, now)`),
	}
}

func mysqlOutbox(table, keyType string) []string {
	box := quoted(outbox(table))
	trigger := func(event, body string) string {
		insert := `INSERT INTO ` + box + ` ("key", "version", "changed_at") VALUES`
		body = strings.NewReplacer("{tell}", insert, "{ms}", MySQL.millis()).Replace(body)
		return MySQL.render(`CREATE TRIGGER `+quoted(outbox(table)+"_"+event)+` AFTER `+strings.ToUpper(event)+` ON {table} FOR EACH ROW
BEGIN
`+body+`
END`, table)
	}
	return []string{
		MySQL.render(`CREATE TABLE IF NOT EXISTS `+box+` (
	"id" BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	"key" `+keyType+`,
	"version" BIGINT NOT NULL,
	"changed_at" BIGINT NOT NULL
) ENGINE=InnoDB`, table),
		trigger("insert", `	IF NEW."version" > 0 THEN
		{tell} (NEW."key", 0, {ms});
	END IF;`),
		trigger("update", `	IF NOT (NEW."key" <=> OLD."key") THEN
		{tell} (OLD."key", 0, {ms}), (NEW."key", 0, {ms});
	ELSEIF NEW."version" > OLD."version" THEN
		{tell} (NEW."key", NEW."version", {ms});
	ELSEIF NOT (NEW."version" <=> OLD."version" AND NEW."deleted" <=> OLD."deleted" AND NEW."value" <=> OLD."value") THEN
		{tell} (NEW."key", 0, {ms});
	END IF;`),
		trigger("delete", `	{tell} (OLD."key", 0, {ms});`),
	}
}

// outboxStatements is the SQL of the outbox, rendered.
type outboxStatements struct {
	look    string // how many
	ids     string // how many
	forget  func(ids []int64) string
	waiting string // how many at most
	oldest  string
	mark    string
	count   string

	watch, epoch string   // see watchQueries
	triggers     []string // names
}

func newOutboxStatements(d Dialect, table string) outboxStatements {
	render := func(query string) string {
		return d.render(strings.NewReplacer("{outbox}", quoted(outbox(table)), "{ms}", d.millis()).Replace(query), table)
	}
	before, between, after := `DELETE FROM {outbox} WHERE "id" IN (`, ",", ")"
	if d == MySQL {
		// A list of ids may be looked for by reading the whole of a small table, and
		// waiting for each row that somebody has not committed. This is a lookup of
		// each.
		before = `DELETE o FROM (SELECT 0 AS "id" UNION ALL SELECT `
		between, after = " UNION ALL SELECT ", `) s STRAIGHT_JOIN {outbox} o ON o."id" = s."id"`
	}
	before, after = render(before), render(after)
	forget := func(ids []int64) string {
		query := []byte(before)
		for i, id := range ids {
			if i > 0 {
				query = append(query, between...)
			}
			query = strconv.AppendInt(query, id, 10)
		}
		return string(append(query, after...))
	}
	watch, epoch := watchQueries(d, table)
	return outboxStatements{
		watch: watch, epoch: epoch, triggers: triggerNames(d, table),
		look:    render(`SELECT "id", "key", "version" FROM {outbox} ORDER BY "id" LIMIT ?`),
		ids:     render(`SELECT "id" FROM {outbox} ORDER BY "id" LIMIT ?`),
		forget:  forget,
		waiting: render(`SELECT COUNT(*) FROM (SELECT 1 FROM {outbox} LIMIT ?) w`),
		count:   render(`SELECT COUNT(*) FROM {outbox}`),
		oldest:  render(`SELECT {ms} - "changed_at" FROM {outbox} ORDER BY "id" LIMIT 1`),
		mark:    render(`INSERT INTO {outbox} ("key", "version", "changed_at") VALUES (NULL, 0, {ms})`),
	}
}

// errNoOutbox is what a store on PostgreSQL says of its outbox.
var errNoOutbox = errors.New("sqlstore: outbox: not for this dialect; for PostgreSQL there is store/postgres/outbox")

// OutboxSchema returns the statements that create the outbox, the table
// <name>_outbox, and the triggers that fill it, for SQLite and MySQL; nil for
// PostgreSQL. Those of MySQL fail where the triggers exist already.
//
// From then on every change of a row is heard, whoever makes it, once a
// [Store.Relay] tells it. Not heard is what fires no trigger: in MySQL TRUNCATE and
// what foreign keys cascade; in SQLite rows that INSERT OR REPLACE, or UPDATE OR
// REPLACE, removes because of another unique index than the primary key.
//
// MySQL wants the privilege TRIGGER, and with a binary log perhaps
// log_bin_trust_function_creators. To get rid of an outbox, drop the triggers, whose
// names begin with <name>_outbox_, before the table: with the triggers alone nobody
// could write.
func (s *Store[K, V]) OutboxSchema() []string { return slices.Clone(s.outboxSchema) }

// CreateOutbox runs the statements of [Store.OutboxSchema]. The table must exist.
// Any number of processes may do so at once. Changes from before are not in the
// outbox: caches that were running should be told by InvalidateAll.
func (s *Store[K, V]) CreateOutbox(ctx context.Context) error {
	if s.outboxSchema == nil {
		return errNoOutbox
	}
	for _, statement := range s.outboxSchema {
		_, err := s.db.ExecContext(ctx, statement)
		if err != nil && !(s.dialect == MySQL && strings.Contains(err.Error(), "Error 1359")) { // the trigger exists
			return fmt.Errorf("sqlstore: create outbox: %w", err)
		}
	}
	return nil
}

// OutboxState is what waits in an outbox.
type OutboxState struct {
	// Waiting is how many rows there are: changes that were not told yet, or whose
	// telling is not confirmed.
	Waiting int64

	// Lag is for how long the first of them has waited, by the database's clock,
	// from the statement that made it; 0 if none waits.
	Lag time.Duration

	// Unheard says which triggers are not there, so that changes are not written
	// down; empty if all are. On MySQL who may not have triggers on the table
	// (privilege TRIGGER) sees none.
	Unheard string
}

// Outbox looks what waits in the outbox, and whether the triggers that fill it are
// there. It costs a count of the rows.
func (s *Store[K, V]) Outbox(ctx context.Context) (OutboxState, error) {
	var state OutboxState
	if s.outboxSchema == nil {
		return state, errNoOutbox
	}
	if err := s.db.QueryRowContext(ctx, s.box.count).Scan(&state.Waiting); err != nil {
		return state, fmt.Errorf("sqlstore: outbox: %w", err)
	}
	var age int64
	switch found, err := s.scanOne(ctx, &age, s.box.oldest); {
	case err != nil:
		return state, fmt.Errorf("sqlstore: outbox: %w", err)
	case found:
		state.Lag = max(time.Duration(age)*time.Millisecond, 0)
	}
	now, err := s.triggers(ctx)
	state.Unheard = now.unheard()
	return state, err
}

// TrimOutbox bounds an outbox that nobody empties: if more than most rows wait,
// they are deleted, in favour of one that says that everything may have changed. It
// returns how many. Call it beside [Store.Prune].
func (s *Store[K, V]) TrimOutbox(ctx context.Context, most int64) (int64, error) {
	if s.outboxSchema == nil {
		return 0, errNoOutbox
	}
	if most < 1 {
		return 0, fmt.Errorf("sqlstore: trim outbox: most is %d, want at least 1", most)
	}
	waiting, err := s.waiting(ctx, most+1)
	if err != nil || waiting <= most {
		return 0, err
	}
	ids, err := s.outboxIDs(ctx, maxCollapsed)
	if err != nil {
		return 0, err
	}
	// The mark comes behind what was seen and in front of what is gone: whoever
	// reads it says that everything may have changed after all of that has, and
	// whoever dies in between has lost nothing.
	if _, err := s.db.ExecContext(ctx, s.box.mark); err != nil {
		return 0, fmt.Errorf("sqlstore: trim outbox: %w", err)
	}
	return int64(len(ids)), s.forget(ctx, ids)
}

// maxCollapsed is how many rows one word that everything may have changed stands
// for: so many ids are in memory at once.
const maxCollapsed = 1_000_000

// waiting counts up to most rows.
func (t *table) waiting(ctx context.Context, most int64) (n int64, err error) {
	if err := t.db.QueryRowContext(ctx, t.box.waiting, most).Scan(&n); err != nil {
		return 0, fmt.Errorf("sqlstore: outbox: %w", err)
	}
	return n, nil
}

// scanOne scans the only column of the first row, if there is one.
func (t *table) scanOne(ctx context.Context, dest any, query string) (found bool, err error) {
	rows, err := t.db.QueryContext(ctx, query)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	if rows.Next() {
		return true, rows.Scan(dest)
	}
	return false, rows.Err()
}

// outboxIDs returns the first ids, in order.
func (t *table) outboxIDs(ctx context.Context, most int) ([]int64, error) {
	rows, err := t.db.QueryContext(ctx, t.box.ids, most)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: outbox: %w", err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("sqlstore: outbox: %w", err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("sqlstore: outbox: %w", err)
	}
	return ids, nil
}

// maxForgets is how many rows one statement deletes: few enough to hold SQLite's
// only write lock for milliseconds, and for MySQL's parser.
const maxForgets = 250

// forget deletes rows by their ids, and no others: what lies between them may
// have appeared since they were read. It waits for nobody who has written a row
// that is not among them.
func (t *table) forget(ctx context.Context, ids []int64) error {
	for some := range slices.Chunk(ids, maxForgets) {
		if err := t.execRow(ctx, t.box.forget(some)); err != nil {
			return fmt.Errorf("sqlstore: outbox: %w", err)
		}
	}
	return nil
}

// execRow runs one statement at the isolation level of writes, at which MySQL
// locks rows and not the gaps between them.
func (t *table) execRow(ctx context.Context, query string) error {
	tx, err := t.db.BeginTx(ctx, &t.begin)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, query); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// A Sink is told what has changed. A [*tidemark.Cache] is one, and so is a
// [*tidemark.Publisher]. If it also has a method InvalidateMany, as Publisher
// has, changes that come together are told together.
type Sink[K comparable] interface {
	Invalidate(ctx context.Context, key K, version tidemark.Version) error
	InvalidateAll(ctx context.Context) error
}
