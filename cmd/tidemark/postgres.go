package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
)

// A rowSource is where a row of the source is, as the flags of inspect name it.
type rowSource struct {
	store, table, key, version, deleted string
}

// isPostgres reports whether the store is a PostgreSQL database.
func (o *rowSource) isPostgres() bool {
	return strings.HasPrefix(o.store, "postgres:") || strings.HasPrefix(o.store, "postgresql:")
}

// openPostgres returns a reader of the row of key. Mistakes in the arguments are
// reported here, all others when it reads.
func openPostgres(o rowSource, key string) (r sourceReader, err error) {
	database := o.store
	if database == "postgres:" {
		database = os.Getenv("TIDEMARK_DATABASE")
	}
	config, err := pgx.ParseConfig(database)
	if err != nil {
		return r, fmt.Errorf("-store: %w", err)
	}
	config.RuntimeParams["application_name"] = "tidemark inspect"
	config.RuntimeParams["default_transaction_read_only"] = "on"
	table := pgx.Identifier(strings.Split(cmp.Or(o.table, "tidemark"), "."))
	if len(table) > 2 {
		return r, fmt.Errorf("-table is %q, want a name with at most one dot", o.table)
	}
	load := func(ctx context.Context) (state sourceState, err error) {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return state, err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = conn.Close(ctx) // it was only read from
		}()
		return o.read(ctx, conn, table.Sanitize(), key)
	}
	return sourceReader{load: load, close: func() {}}, nil
}

// read reads the version of the row. The key is sent as text, which the server reads
// as what the column is of.
func (o *rowSource) read(ctx context.Context, conn *pgx.Conn, table, key string) (state sourceState, err error) {
	deleted := "false"
	switch o.deleted {
	case "-":
	case "":
		const flagged = `SELECT EXISTS (SELECT FROM pg_attribute
	WHERE attrelid = to_regclass($1) AND attname = 'deleted' AND atttypid = 'boolean'::regtype AND NOT attisdropped)`
		var is bool
		if err := conn.QueryRow(ctx, flagged, table).Scan(&is); err != nil {
			return state, err
		}
		if is {
			deleted = `"deleted"`
		}
	default:
		deleted = pgx.Identifier{o.deleted}.Sanitize()
	}
	var standby bool
	if err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return state, err
	}
	if standby {
		return state, postgres.ErrStandby
	}
	query := fmt.Sprintf(`SELECT coalesce(%s, 0)::bigint, coalesce(%s, false) FROM %s WHERE %s = $1`,
		pgx.Identifier{o.version}.Sanitize(), deleted, table, pgx.Identifier{o.key}.Sanitize())
	var version int64
	switch err := conn.QueryRow(ctx, query, key).Scan(&version, &state.Absent); {
	case errors.Is(err, pgx.ErrNoRows):
		return sourceState{Absent: true}, nil
	case err != nil:
		return state, err
	case version < 0:
		return state, fmt.Errorf("the row is at version %d, want > 0", version)
	}
	state.Version = tidemark.Version(version)
	return state, nil
}
