package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

const inspectUsage = `usage: tidemark inspect -name NAME [flags] KEY

Inspect asks every replica of a cache what it knows of a key, and says why a read
there returns what it does. With -store it also asks the source for the version
that the row has now. Replicas answer if the program calls View.Serve of package
ops. No value is printed unless -value is given, and the replica shows values.

The store is opened for reading. It is one of

  sqlite:FILE or sqlite:FILE?table=NAME
           a table of package sqlstore
  postgres://USER@HOST/DATABASE, or any URL that psql takes
           the primary; -table, -key, -version and -deleted name the table and its
           columns. Only "postgres:" means the variable TIDEMARK_DATABASE, or what
           psql would take, which keeps a password off the command line

`

// runInspect is "tidemark inspect".
func runInspect(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("inspect", inspectUsage, std)
	target.defineServer(flags)
	flags.StringVar(&target.keyType, "key-type", "string", "`type` of the keys in a store of SQLite: string or int")
	var row rowSource
	flags.StringVar(&row.store, "store", "", "`url` of the source, to compare with")
	flags.StringVar(&row.table, "table", "", "`table` in the store, with or without a schema; the default is tidemark")
	flags.StringVar(&row.key, "key", "key", "`column` of the key, in PostgreSQL")
	flags.StringVar(&row.version, "version", "version", "`column` of the version, in PostgreSQL")
	flags.StringVar(&row.deleted, "deleted", "", "`column` that says that a row is deleted, in PostgreSQL; - if there is none; the default is deleted, if that is there")
	value := flags.Bool("value", false, "print the value, too")
	asJSON := flags.Bool("json", false, "print JSON")
	timeout := flags.Duration("timeout", 10*time.Second, "give up after this `duration`")
	if status, done := parse(std, flags, args, target.validate); done {
		return status
	}
	if misplaced := misplacedFlag(flags); flags.NArg() > 1 && misplaced != "" {
		return complain(std, "inspect", fmt.Errorf("%s stands behind the key: flags come before KEY", misplaced))
	}
	if flags.NArg() != 1 {
		return complain(std, "inspect", fmt.Errorf("%d keys, want one", flags.NArg()))
	}
	key := flags.Arg(0)
	var source sourceReader
	if row.store != "" {
		var err error
		if source, err = openSource(row, target.keyType, key); err != nil {
			return complain(std, "inspect", err)
		}
		defer source.close()
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	x, err := inspect(ctx, target, key, *value, source)
	switch {
	case *asJSON:
		err = errors.Join(err, printJSON(std.out, x))
	case len(x.Replicas) > 0:
		err = errors.Join(err, x.print(std))
	}
	if err != nil {
		return fail(std, "inspect", err)
	}
	return exitOK
}

// An inspection is what is known of one key.
type inspection struct {
	Key      string
	Source   *sourceState `json:",omitempty"`
	Replicas []ops.Inspection
}

// A sourceState is what the source has of a key.
type sourceState struct {
	Version tidemark.Version // 0: not known
	Absent  bool
}

// inspect asks the source first: what a replica has is not older than that, unless
// it is stale. The replicas are asked even if the source does not answer, which is
// when people look, and for which half of the time must do.
func inspect(ctx context.Context, target busTarget, key string, value bool, source sourceReader) (x inspection, err error) {
	x.Key = key
	var failed error
	if source.load != nil {
		brief := ctx
		if end, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			brief, cancel = context.WithTimeout(ctx, time.Until(end)/2)
			defer cancel()
		}
		if state, err := source.load(brief); err != nil {
			failed = fmt.Errorf("the source: %w", err)
		} else {
			x.Source = &state
		}
	}
	nc, err := target.connect(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return x, errors.Join(failed, err)
	}
	defer nc.Close()
	x.Replicas, err = ops.AskKey(ctx, nc, target.name, key, value)
	if errors.Is(err, ops.ErrNoValues) { // the rest can be seen
		failed = errors.Join(failed, fmt.Errorf("not every replica shows values: %w", ops.ErrNoValues))
		x.Replicas, err = ops.AskKey(ctx, nc, target.name, key, false)
	}
	if errors.Is(err, ops.ErrNobody) {
		err = errors.Join(err, nc.LastError())
	}
	return x, errors.Join(failed, err)
}

// print prints a table for people.
func (x *inspection) print(std streams) error {
	fmt.Fprintf(std.out, "key %s\n\n", strconv.Quote(x.Key))
	t := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "WHERE\tVERSION\tSERVED\tTIDE MARK\tAGE\tWHY")
	if s := x.Source; s != nil {
		words := "the row"
		if s.Absent {
			words = "no row"
		}
		fmt.Fprintf(t, "source\t%s\t\t\t\t%s\n", versionText(s.Version, s.Absent), words)
	}
	for i := range x.Replicas {
		r := &x.Replicas[i]
		e := &r.Explanation
		version, served, age := "-", "no", "-"
		if e.Resident {
			version = versionText(e.Version, e.Absent)
		}
		if e.Served {
			served = "yes"
		}
		if e.Resident && e.Age >= 0 {
			age = e.Age.Round(time.Millisecond).String()
		}
		words := r.Words
		if x.behind(e) {
			words += " -- BEHIND THE SOURCE"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", printable(r.Instance), version, served, e.TideMark, age, printable(words))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range x.Replicas {
		if r.HasValue {
			more := ""
			if r.Truncated {
				more = " (and more)"
			}
			fmt.Fprintf(std.out, "\nvalue at %s: %s%s\n", printable(r.Instance), strconv.Quote(r.Value), more)
		}
		if len(r.Explanation.Record) > 0 { // only with an auditor
			fmt.Fprintf(std.out, "\nlately at %s:", printable(r.Instance))
			printRecord(std.out, r.Explanation.Record)
			fmt.Fprintln(std.out)
		}
	}
	return nil
}

// behind reports whether a replica serves less than the source had before it was
// asked. A row that is gone for good has no version to compare with: who serves one is
// behind, unless it was made anew in between.
func (x *inspection) behind(e *tidemark.Explanation) bool {
	if x.Source == nil || !e.Served {
		return false
	}
	gone := x.Source.Absent && x.Source.Version == 0
	return e.Version < x.Source.Version || gone && !e.Absent
}

func versionText(v tidemark.Version, absent bool) string {
	switch {
	case absent && v == 0:
		return "absent"
	case absent:
		return fmt.Sprintf("absent@%d", v)
	default:
		return strconv.FormatUint(uint64(v), 10)
	}
}

// printable returns s without what a terminal would take for a command: it comes
// from whoever answers on the subject.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// A sourceReader reads one key from the source.
type sourceReader struct {
	load  func(ctx context.Context) (sourceState, error)
	close func()
}

// openSource returns a reader of key. Mistakes in the arguments are reported here,
// all others when it reads.
func openSource(o rowSource, keyType, key string) (r sourceReader, err error) {
	if o.isPostgres() {
		return openPostgres(o, key)
	}
	rest, ok := strings.CutPrefix(o.store, "sqlite:")
	if !ok {
		return r, fmt.Errorf("-store is %q, want sqlite:FILE or the postgres:// URL of a database", o.store)
	}
	if o.key != "key" || o.version != "version" || o.deleted != "" {
		return r, errors.New("-key, -version and -deleted are for PostgreSQL: a table of package sqlstore has its own columns")
	}
	file, query, _ := strings.Cut(rest, "?")
	values, err := url.ParseQuery(query)
	if err != nil || file == "" {
		return r, fmt.Errorf("-store is %q, want sqlite:FILE or sqlite:FILE?table=NAME", o.store)
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		return r, err
	}
	table := cmp.Or(values.Get("table"), o.table)
	if keyType == "int" {
		n, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			return r, errors.Join(fmt.Errorf("%q is not an integer key", key), db.Close())
		}
		return readerOf(db, table, n)
	}
	return readerOf(db, table, key)
}

func readerOf[K comparable](db *sql.DB, table string, key K) (r sourceReader, err error) {
	s, err := sqlstore.New(db, sqlstore.Options[K, []byte]{Table: table, Dialect: sqlstore.SQLite})
	if err != nil {
		return r, errors.Join(err, db.Close())
	}
	return sourceReader{
		load: func(ctx context.Context) (sourceState, error) {
			_, version, err := s.Load(ctx, key)
			if errors.Is(err, tidemark.ErrNotFound) {
				return sourceState{version, true}, nil
			}
			if err != nil && strings.Contains(err.Error(), "no such table") {
				err = fmt.Errorf("%w; -table names another", err)
			}
			return sourceState{Version: version}, err
		},
		close: func() { _ = db.Close() }, // it was only read from
	}, nil
}
