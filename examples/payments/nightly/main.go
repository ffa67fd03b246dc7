// Command nightly is the job of the night: it pays interest on every account. It
// knows the database and has never heard of a cache.
//
//	go run ./nightly -store payments.db
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// payInterest is one percent. Whoever changes a row raises its version, so that no
// decision that was made on the old balance can be written any more; on PostgreSQL a
// trigger does it for those who forget.
const payInterest = `UPDATE accounts SET value = value + value / 100, version = version + 1 WHERE NOT deleted`

func main() {
	store := flag.String("store", "payments.db", "database: a URL postgres://..., or the name of an SQLite `file`")
	flag.Parse()
	if err := run(*store); err != nil {
		fmt.Fprintln(os.Stderr, "nightly:", err)
		os.Exit(1)
	}
}

func run(store string) (err error) {
	driver, name := "sqlite", "file:"+store+"?mode=rw&_pragma=busy_timeout(5000)"
	if strings.HasPrefix(store, "postgres://") || strings.HasPrefix(store, "postgresql://") {
		driver, name = "pgx", store
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := db.ExecContext(ctx, payInterest)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	fmt.Println("accounts that got interest:", n)
	return err
}
