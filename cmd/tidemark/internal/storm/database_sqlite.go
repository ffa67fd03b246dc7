package storm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// sqliteRecords are accounts in a SQLite file, in the table that sqlstore makes.
type sqliteRecords struct {
	db *sql.DB

	selectRow, overwriteRow *sql.Stmt

	// writing serializes writers. SQLite does so anyway, but by sleeping and
	// trying again, which would show in everybody's latency.
	writing sync.Mutex
}

// openSQLite creates the file with accounts rows, each at its opening state.
func openSQLite(ctx context.Context, path string, accounts int) (records, error) {
	settings := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(OFF)",
	}}
	db, err := sql.Open("sqlite", "file:"+path+"?"+settings.Encode())
	if err != nil {
		return nil, fmt.Errorf("SQLite: %w", err)
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	s := &sqliteRecords{db: db}
	if err := s.create(ctx, accounts); err != nil {
		return nil, fmt.Errorf("SQLite: %w", errors.Join(err, db.Close()))
	}
	return s, nil
}

func (s *sqliteRecords) create(ctx context.Context, accounts int) error {
	store, err := s.sqlstore()
	if err != nil {
		return err
	}
	if err := store.CreateTables(ctx); err != nil {
		return err
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, `INSERT INTO accounts ("key", value, version) VALUES (?, ?, ?)`)
		if err != nil {
			return err
		}
		defer insert.Close()
		opening := Account{Balance: openingBalance}.encode()
		for id := range accounts {
			if _, err := insert.ExecContext(ctx, id, opening, openingVersion); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, q := range []struct {
		stmt *(*sql.Stmt)
		text string
	}{
		{&s.selectRow, `SELECT value, version FROM accounts WHERE "key" = ?`},
		{&s.overwriteRow, `UPDATE accounts SET value = ?, version = version + 1 WHERE "key" = ? RETURNING version`},
	} {
		if *q.stmt, err = s.db.PrepareContext(ctx, q.text); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqliteRecords) sqlstore() (*sqlstore.Store[int, Account], error) {
	return sqlstore.New(s.db, sqlstore.Options[int, Account]{
		Dialect: sqlstore.SQLite,
		Table:   "accounts",
		Value: sqlstore.ValueCodec[Account]{
			Encode: func(a Account) ([]byte, error) { return a.encode(), nil },
			Decode: decodeAccount,
			Binary: true,
		},
	})
}

// store needs no bound: what is sent to SQLite is in this process.
func (s *sqliteRecords) store(time.Duration) (accountStore, error) {
	store, err := s.sqlstore()
	if err != nil {
		return nil, err
	}
	return &sqliteStore{store, &s.writing}, nil
}

// A sqliteStore is a sqlstore whose writers take turns.
type sqliteStore struct {
	*sqlstore.Store[int, Account]
	writing *sync.Mutex
}

func (s *sqliteStore) CompareAndSet(ctx context.Context, account int, base tidemark.Version, a Account, op tidemark.OpID) (tidemark.Version, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.Store.CompareAndSet(ctx, account, base, a, op)
}

func (s *sqliteRecords) close() error { return s.db.Close() }

// transaction runs fn in a transaction of its own, alone among the writers.
func (s *sqliteRecords) transaction(ctx context.Context, fn func(tx *sql.Tx) error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (s *sqliteRecords) row(ctx context.Context, account int) (Account, uint64, error) {
	return scanSQLite(s.selectRow.QueryRowContext(ctx, account))
}

// scanSQLite reads a row of value and version.
func scanSQLite(row *sql.Row) (Account, uint64, error) {
	var value []byte
	var version uint64
	if err := row.Scan(&value, &version); err != nil {
		return Account{}, 0, err
	}
	a, err := decodeAccount(value)
	return a, version, err
}

func (s *sqliteRecords) overwrite(ctx context.Context, account int, a Account) (version uint64, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	err = s.overwriteRow.QueryRowContext(ctx, a.encode(), account).Scan(&version)
	return version, err
}

func (s *sqliteRecords) transact(ctx context.Context, account int, fn func(current Account) Account) (next Account, version uint64, err error) {
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		next, version, err = s.change(ctx, tx, account, fn)
		return err
	})
	return next, version, err
}

// change replaces one account within a transaction.
func (s *sqliteRecords) change(ctx context.Context, tx *sql.Tx, account int, fn func(current Account) Account) (next Account, version uint64, err error) {
	current, _, err := scanSQLite(tx.StmtContext(ctx, s.selectRow).QueryRowContext(ctx, account))
	if err != nil {
		return Account{}, 0, err
	}
	next = fn(current)
	err = tx.StmtContext(ctx, s.overwriteRow).QueryRowContext(ctx, next.encode(), account).Scan(&version)
	return next, version, err
}

func (s *sqliteRecords) correct(ctx context.Context, corrections []correction) ([]change, error) {
	changes := make([]change, 0, len(corrections))
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		for _, c := range corrections {
			_, version, err := s.change(ctx, tx, c.account, func(a Account) Account { return a.deposit(c.op, c.cents) })
			if err != nil {
				return err
			}
			changes = append(changes, change{c.account, version})
		}
		return nil
	})
	return changes, err
}

func (s *sqliteRecords) all(ctx context.Context, visit func(account int, a Account, version uint64)) error {
	rows, err := s.db.QueryContext(ctx, `SELECT "key", value, version FROM accounts ORDER BY "key"`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		var value []byte
		var version uint64
		if err := rows.Scan(&id, &value, &version); err != nil {
			return err
		}
		a, err := decodeAccount(value)
		if err != nil {
			return err
		}
		visit(id, a, version)
	}
	return rows.Err()
}
