package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

const outboxUsage = `usage: tidemark outbox install|print|check|remove -table TABLE [flags]

Outbox makes PostgreSQL write down what changes in a table, whoever changes it, for
"tidemark relay" to tell the caches in front of it.

  install  makes the outbox and its triggers; it may be run again
  print    prints the SQL of that, for those who keep their migrations elsewhere
  check    verifies that all of it is in place and enabled, and says how old the
           oldest change is that is not told yet; status 1 if something is missing;
           warns of key columns of which one row answers to several texts (citext, uuid)
  remove   takes it away; with -print only prints the SQL

The database is the one of -database, or else of the variables that psql reads
(PGHOST, PGUSER and so on). Whoever installs must own the table.

`

// A pgTarget is a table of a PostgreSQL database, as the flags name it.
type pgTarget struct {
	database string
	table    outbox.Table
}

func (t *pgTarget) define(f *flag.FlagSet) {
	f.StringVar(&t.database, "database", "", "`url` of the database; the default is the variable TIDEMARK_DATABASE, or what psql would take")
	f.StringVar(&t.table.Name, "table", "", "`table` that the cache is in front of, with or without a schema; required")
	f.StringVar(&t.table.Key, "key", "key", "`column` of the cache's key")
}

// config returns how to connect. What is in the environment is not shown as a
// default: it may have a password in it.
func (t *pgTarget) config() (*pgx.ConnConfig, error) {
	return pgx.ParseConfig(cmp.Or(t.database, os.Getenv("TIDEMARK_DATABASE")))
}

func (t *pgTarget) validate() error {
	if t.table.Name == "" {
		return errors.New("-table is required")
	}
	_, err := outbox.Migration(t.table)
	return err
}

// runOutbox is "tidemark outbox".
func runOutbox(ctx context.Context, args []string, std streams) int {
	var target pgTarget
	flags := newFlags("outbox", outboxUsage, std)
	target.define(flags)
	flags.StringVar(&target.table.Version, "version", "version", "`column` of the version, or - if there is none")
	flags.BoolVar(&target.table.NoNotify, "no-notify", false, "leave out NOTIFY, under which transactions commit one after the other")
	flags.BoolVar(&target.table.Raise, "raise", false, "have the database raise the version of rows whose writers do not")
	flags.IntVar(&target.table.Bulk, "bulk", 0, "tell a statement that changes more than so many `rows` as \"everything may have changed\"; 0 means 100000")
	only := flags.Bool("print", false, "print the SQL of remove")
	timeout := flags.Duration("timeout", 30*time.Second, "give up after this `duration`, also while waiting for those who write to the table")
	action := ""
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		action, args = args[0], args[1:]
	}
	if status, done := parse(std, flags, args, noArguments(flags), target.validate); done {
		return status
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	var err error
	switch action {
	case "print":
		err = printSQL(std, outbox.Migration, target.table)
	case "install":
		err = seeFlags(target.install(ctx, std))
	case "check":
		err = target.check(ctx, std)
	case "remove":
		if *only {
			err = printSQL(std, outbox.Removal, target.table)
		} else {
			err = target.remove(ctx, std)
		}
	default:
		return complain(std, "outbox", fmt.Errorf("%q is not install, print, check or remove", action))
	}
	if err != nil {
		return fail(std, "outbox", err)
	}
	return exitOK
}

// seeFlags adds to an error which flags say otherwise.
func seeFlags(err error) error {
	var lacks *outbox.ColumnError
	if !errors.As(err, &lacks) {
		return err
	}
	var see []string
	if lacks.Key != "" {
		see = append(see, "-key")
	}
	if lacks.Version != "" {
		see = append(see, "-version")
	}
	return fmt.Errorf("%w: see %s", err, strings.Join(see, " and "))
}

func printSQL(std streams, makes func(outbox.Table) (string, error), table outbox.Table) error {
	query, err := makes(table)
	if err == nil {
		_, err = fmt.Fprint(std.out, query)
	}
	return err
}

// connected calls f with a connection to the database.
func (t *pgTarget) connected(ctx context.Context, f func(*pgx.Conn) error) error {
	config, err := t.config()
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(context.WithoutCancel(ctx)))
}

func (t *pgTarget) install(ctx context.Context, std streams) error {
	return t.connected(ctx, func(conn *pgx.Conn) error {
		if err := outbox.Install(ctx, conn, t.table); err != nil {
			return err
		}
		if err := outbox.Check(ctx, conn, t.table); err != nil {
			return err
		}
		fmt.Fprintf(std.out, "changes of %s are written down in %s_outbox\n", t.table.Name, t.table.Name)
		return t.warn(ctx, conn, std)
	})
}

func (t *pgTarget) check(ctx context.Context, std streams) error {
	return t.connected(ctx, func(conn *pgx.Conn) error {
		if err := outbox.Check(ctx, conn, t.table); err != nil {
			return err
		}
		fmt.Fprintf(std.out, "changes of %s are written down\n", t.table.Name)
		if err := t.warn(ctx, conn, std); err != nil {
			return err
		}
		switch untold, err := outbox.Untold(ctx, conn, t.table); {
		case err != nil: // who may only look at the catalog
			fmt.Fprintf(std.out, "whether they are told cannot be seen: %v\n", err)
		case untold == 0:
			fmt.Fprintln(std.out, "none waits to be told")
		case untold > maxUntold:
			fmt.Fprintf(std.out, "the oldest that is not told is %v old: nobody tells them, or its transaction took that long; is a tidemark relay running?\n",
				untold.Round(time.Second))
		default:
			fmt.Fprintf(std.out, "the oldest that is not told is %v old\n", untold.Round(time.Millisecond))
		}
		return nil
	})
}

// warn prints what is no mistake, and may be one of the caches.
func (t *pgTarget) warn(ctx context.Context, conn *pgx.Conn, std streams) error {
	warnings, err := outbox.Warnings(ctx, conn, t.table)
	for _, w := range warnings {
		fmt.Fprintf(std.out, "warning: %s\n", w)
	}
	return err
}

// maxUntold is from when on nobody is taken to tell changes. A relay that works does
// so within a second.
const maxUntold = 5 * time.Second

func (t *pgTarget) remove(ctx context.Context, std streams) error {
	query, err := outbox.Removal(t.table)
	if err != nil {
		return err
	}
	return t.connected(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, query, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		fmt.Fprintf(std.out, "changes of %s are no longer written down\n", t.table.Name)
		return nil
	})
}
