package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/storetest"
)

// TestConformance runs the suite of all stores on each layout, and on the settings
// that change what is sent or how transactions behave.
func TestConformance(t *testing.T) {
	t.Parallel()
	type note struct{ Body string }
	plain := func(db DB, o Options[string, string]) func(*testing.T) tidemark.Store[string, string] {
		return func(t *testing.T) tidemark.Store[string, string] { return newStore(t, db, o) }
	}
	setting := func(name, value string) func(*pgxpool.Config) {
		return func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams[name] = value }
	}
	for name, store := range map[string]func(*testing.T) func(*testing.T) tidemark.Store[string, string]{
		"Default": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			return plain(newDB(t), Options[string, string]{})
		},
		"HardDelete": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			return plain(newDB(t), Options[string, string]{HardDelete: true})
		},
		"SimpleProtocol": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			return plain(newDB(t, withMode(pgx.QueryExecModeSimpleProtocol)), Options[string, string]{})
		},
		"NoPreparedStatements": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			return plain(newDB(t, withMode(pgx.QueryExecModeExec)), Options[string, string]{HardDelete: true})
		},
		"SerializableByDefault": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			return plain(newDB(t, setting("default_transaction_isolation", "serializable")), Options[string, string]{})
		},
		"ExistingTable": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			db := newDB(t)
			exec(t, db, `CREATE SCHEMA "Billing"; CREATE TABLE "Billing".notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
				"Name" varchar(200) NOT NULL UNIQUE, body text NOT NULL, made timestamptz NOT NULL DEFAULT now())`)
			return plain(db, Options[string, string]{
				Table: "Billing.notes", Existing: true, Columns: Columns{Key: "Name", Version: "Revision", Deleted: "Removed", Op: "written_by"},
				Row: RowCodec[string]{
					Columns: []string{"body"},
					Scan: func(row pgx.CollectableRow) (string, error) {
						n, err := pgx.RowToStructByName[note](row)
						return n.Body, err
					},
					Values: func(body string) ([]any, error) { return []any{body}, nil },
				},
			})
		},
		"ExistingTable_HardDelete": func(t *testing.T) func(*testing.T) tidemark.Store[string, string] {
			db := newDB(t)
			exec(t, db, "CREATE TABLE notes (name text PRIMARY KEY, body text NOT NULL)")
			return plain(db, Options[string, string]{
				Table: "notes", Existing: true, HardDelete: true, Columns: Columns{Key: "name", Value: "body"},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, store(t), storetest.Options{})
		})
	}
}
