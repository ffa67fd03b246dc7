package storm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// A database is the database of record: one SQLite file with one row an
// account, in the table that sqlstore makes. It tells the oracle of every
// commit as soon as the statement returns. Every contender reads and writes
// through it.
type database struct {
	db     *sql.DB
	oracle *oracle
	reads  atomic.Uint64 // rows read, for reads and for writes

	selectRow, overwriteRow *sql.Stmt

	// writing serializes writers. SQLite does so anyway, but by sleeping and
	// trying again, which would show in everybody's latency.
	writing sync.Mutex
}

// openDatabase creates the file with accounts rows, each at its opening state.
func openDatabase(ctx context.Context, path string, accounts int, o *oracle) (*database, error) {
	settings := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(OFF)",
	}}
	db, err := sql.Open("sqlite", "file:"+path+"?"+settings.Encode())
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	d := &database{db: db, oracle: o}
	if err := d.create(ctx, accounts); err != nil {
		return nil, fmt.Errorf("database: %w", errors.Join(err, db.Close()))
	}
	return d, nil
}

func (d *database) create(ctx context.Context, accounts int) error {
	store, err := newSQLStore(d.db)
	if err != nil {
		return err
	}
	if err := store.CreateTables(ctx); err != nil {
		return err
	}
	err = d.transaction(ctx, func(tx *sql.Tx) error {
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
	for _, s := range []struct {
		stmt *(*sql.Stmt)
		text string
	}{
		{&d.selectRow, `SELECT value, version FROM accounts WHERE "key" = ?`},
		{&d.overwriteRow, `UPDATE accounts SET value = ?, version = version + 1 WHERE "key" = ? RETURNING version`},
	} {
		if *s.stmt, err = d.db.PrepareContext(ctx, s.text); err != nil {
			return err
		}
	}
	return nil
}

// newSQLStore returns a store on the accounts table.
func newSQLStore(db *sql.DB) (*sqlstore.Store[int, Account], error) {
	return sqlstore.New(db, sqlstore.Options[int, Account]{
		Dialect: sqlstore.SQLite,
		Table:   "accounts",
		Value: sqlstore.ValueCodec[Account]{
			Encode: func(a Account) ([]byte, error) { return a.encode(), nil },
			Decode: decodeAccount,
			Binary: true,
		},
	})
}

func (d *database) close() error { return d.db.Close() }

// transaction runs fn in a transaction of its own, alone among the writers.
func (d *database) transaction(ctx context.Context, fn func(tx *sql.Tx) error) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	tx, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// queryRower is a statement, or a statement inside a transaction.
type queryRower interface {
	QueryRowContext(ctx context.Context, args ...any) *sql.Row
}

// row reads one account.
func (d *database) row(ctx context.Context, q queryRower, account int) (Account, uint64, error) {
	d.reads.Add(1)
	var value []byte
	var version uint64
	if err := q.QueryRowContext(ctx, account).Scan(&value, &version); err != nil {
		return Account{}, 0, fmt.Errorf("account %d: %w", account, err)
	}
	a, err := decodeAccount(value)
	return a, version, err
}

// A correction is what the reconciliation does to one account.
type correction struct {
	account int
	op      uint64
	cents   int64
}

// correct applies all corrections in one transaction, past every cache.
func (d *database) correct(ctx context.Context, corrections []correction) ([]change, error) {
	changes := make([]change, 0, len(corrections))
	err := d.transaction(ctx, func(tx *sql.Tx) error {
		for _, c := range corrections {
			version, err := d.correctOne(ctx, tx, c)
			if err != nil {
				return err
			}
			changes = append(changes, change{c.account, version})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, c := range corrections {
		d.oracle.committed(c.account, c.op, changes[i].version)
	}
	return changes, nil
}

func (d *database) correctOne(ctx context.Context, tx *sql.Tx, c correction) (version uint64, err error) {
	current, _, err := d.row(ctx, tx.StmtContext(ctx, d.selectRow), c.account)
	if err != nil {
		return 0, err
	}
	next := current.deposit(c.op, c.cents).encode()
	err = tx.StmtContext(ctx, d.overwriteRow).QueryRowContext(ctx, next, c.account).Scan(&version)
	return version, err
}

// all calls visit with every account in order, without counting the reads.
func (d *database) all(ctx context.Context, visit func(account int, a Account, version uint64)) error {
	rows, err := d.db.QueryContext(ctx, `SELECT "key", value, version FROM accounts ORDER BY "key"`)
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

// A bank is the database as one process of the service sees it: with a network
// in between, so that the world can change while an answer is on its way.
type bank struct {
	*database
	latency time.Duration // of an answer, on average
	hook    atomic.Pointer[func(account int, op, version uint64)]
}

// travel is the time that an answer is on its way.
func (b *bank) travel() {
	if b.latency > 0 {
		time.Sleep(rand.N(2 * b.latency))
	}
}

// onCommit calls hook where the next write of this process has been committed,
// before the contender learns of it.
func (b *bank) onCommit(hook func(account int, op, version uint64)) { b.hook.Store(&hook) }

// committed tells the oracle, and runs the hook once.
func (b *bank) committed(account int, op, version uint64) {
	b.oracle.committed(account, op, version)
	if hook := b.hook.Swap(nil); hook != nil {
		(*hook)(account, op, version)
	}
}

// load reads one account.
func (b *bank) load(ctx context.Context, account int) (Account, uint64, error) {
	defer b.travel()
	return b.row(ctx, b.selectRow, account)
}

// overwrite writes a without looking at what is there.
func (b *bank) overwrite(ctx context.Context, account int, a Account) error {
	defer b.travel()
	var version uint64
	b.writing.Lock()
	err := b.overwriteRow.QueryRowContext(ctx, a.encode(), account).Scan(&version)
	b.writing.Unlock()
	if err != nil {
		return fmt.Errorf("account %d: %w", account, err)
	}
	b.committed(account, a.Op, version)
	return nil
}

// transact replaces the account by what fn makes of it, in one transaction.
func (b *bank) transact(ctx context.Context, account int, fn func(current Account) Account) error {
	defer b.travel()
	var next Account
	var version uint64
	err := b.transaction(ctx, func(tx *sql.Tx) error {
		current, _, err := b.row(ctx, tx.StmtContext(ctx, b.selectRow), account)
		if err != nil {
			return err
		}
		next = fn(current)
		return tx.StmtContext(ctx, b.overwriteRow).QueryRowContext(ctx, next.encode(), account).Scan(&version)
	})
	if err != nil {
		return err
	}
	b.committed(account, next.Op, version)
	return nil
}
