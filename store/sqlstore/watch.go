package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// # Whether the triggers are there
//
// Who makes a table anew, as SQLite wants it for most changes of a column and online
// schema changes do on MySQL, loses its triggers, and nobody is told: changes are
// just not written down any more. So a relay looks, when it begins and every
// watchEvery. It cannot know what it has not heard. While a trigger is missing each
// look tells that everything may have changed, which bounds how old an entry can be,
// and so does the first one after that, and one that finds that they have been made
// anew since the last: they were away for a moment.

// watchEvery is how often a relay looks at the triggers.
const watchEvery = time.Second

// triggers is what there is of the triggers of an outbox.
type triggers struct {
	missing []string // names, in order
	print   string   // changes when one of them is made anew
}

// triggerNames returns the names of the triggers that fill the outbox of table,
// without its schema.
func triggerNames(d Dialect, table string) (names []string) {
	_, name, found := strings.Cut(table, ".")
	if !found {
		name = table
	}
	kinds := []string{"insert", "update", "delete"}
	if d == SQLite {
		kinds = append(kinds, "rename")
	}
	for _, kind := range kinds {
		names = append(names, outbox(name)+"_"+kind)
	}
	return names
}

// watchQueries returns how to look at the triggers: the first column of watch has
// their names in lower case, without the ones on other tables, the second changes
// when one is made anew. So does epoch, if there is one.
func watchQueries(d Dialect, table string) (watch, epoch string) {
	space, name, found := strings.Cut(table, ".")
	if !found {
		space, name = "", table
	}
	switch d {
	case SQLite:
		if space == "" {
			space = "main"
		}
		// The number is another one after every change of the schema, and after VACUUM.
		return `SELECT COALESCE(GROUP_CONCAT(LOWER(name)), ''), '' FROM ` + quoted(space) + `.sqlite_master
	WHERE type = 'trigger' AND LOWER(tbl_name) = '` + strings.ToLower(name) + `'`, `PRAGMA ` + quoted(space) + `.schema_version`
	case MySQL:
		schema := "DATABASE()"
		if space != "" {
			schema = "'" + space + "'"
		}
		return `SELECT COALESCE(GROUP_CONCAT(LOWER(TRIGGER_NAME)), ''),
	COALESCE(GROUP_CONCAT(CONCAT_WS('/', TRIGGER_NAME, CREATED, MD5(ACTION_STATEMENT)) ORDER BY TRIGGER_NAME), '')
	FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = ` + schema + ` AND EVENT_OBJECT_TABLE = '` + name + `'
	AND TRIGGER_NAME IN ('` + strings.Join(triggerNames(d, table), `', '`) + `')`, ""
	default:
		return "", ""
	}
}

// triggers looks at the triggers.
func (t *table) triggers(ctx context.Context) (triggers, error) {
	var now triggers
	if t.box.epoch != "" {
		// Before the names: what is done to them later is seen the next time.
		if err := t.db.QueryRowContext(ctx, t.box.epoch).Scan(&now.print); err != nil {
			return now, fmt.Errorf("sqlstore: outbox: look at the triggers: %w", err)
		}
	}
	var names, made string
	if err := t.db.QueryRowContext(ctx, t.box.watch).Scan(&names, &made); err != nil {
		return now, fmt.Errorf("sqlstore: outbox: look at the triggers: %w", err)
	}
	now.print += made
	there := strings.Split(names, ",")
	for _, name := range t.box.triggers {
		if !slices.Contains(there, strings.ToLower(name)) {
			now.missing = append(now.missing, name)
		}
	}
	return now, nil
}

// unheard says what is missing, or nothing.
func (t triggers) unheard() string {
	if len(t.missing) == 0 {
		return ""
	}
	return "no trigger " + strings.Join(t.missing, ", ") + " is to be seen on the table"
}

// watch looks at the triggers when it is time, and tells what follows.
func (r *relay[K, V]) watch(ctx context.Context) error {
	if !r.watched.IsZero() && time.Since(r.watched) < watchEvery {
		return nil
	}
	looked := time.Now()
	now, err := r.s.triggers(ctx)
	if err != nil {
		return err
	}
	first, before := r.watched.IsZero(), r.seen
	missing := len(now.missing) > 0
	if missing && (first || len(before.missing) == 0) {
		r.o.Logger.Warn("sqlstore: changes of the table are not heard: every second everything may have changed", "reason", now.unheard())
	}
	if missing || !first && now.print != before.print {
		if !missing {
			r.o.Logger.Info("sqlstore: the triggers of the outbox are not what they were: everything may have changed")
		}
		if err := r.sink.InvalidateAll(ctx); err != nil {
			return sinkError{err}
		}
	}
	r.watched, r.seen = looked, now
	return nil
}
