package storm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark"
)

// records is the table of accounts in a database of some kind. Its methods may be
// called concurrently, close last.
type records interface {
	// row returns one account and its version.
	row(ctx context.Context, account int) (Account, uint64, error)

	// overwrite writes a without looking at what is there.
	overwrite(ctx context.Context, account int, a Account) (version uint64, err error)

	// transact replaces the account by what fn makes of it, in one transaction.
	transact(ctx context.Context, account int, fn func(current Account) Account) (next Account, version uint64, err error)

	// correct applies all corrections in one transaction. The changes are in
	// the order of the corrections.
	correct(ctx context.Context, corrections []correction) ([]change, error)

	// all calls visit with every account in order.
	all(ctx context.Context, visit func(account int, a Account, version uint64)) error

	// store returns a Store on the table, in which no write takes effect later
	// than within after it was begun. Zero is the Store's default.
	store(within time.Duration) (accountStore, error)

	close() error
}

// An accountStore is what the contenders called tidemark write through.
type accountStore interface {
	tidemark.Store[int, Account]
	tidemark.BulkLoader[int, Account]
	tidemark.VersionLoader[int]
}

// outboxed are records that write down who changes them, and tell it to a cache's
// log. One that is closed has stopped telling.
type outboxed interface {
	// tell begins to tell inv of every change, whoever makes it.
	tell(ctx context.Context, inv tidemark.Invalidator) error
	// prober returns what proves to a cache that it has been told.
	prober() (tidemark.Prober, error)
}

// A correction is what the reconciliation does to one account.
type correction struct {
	account int
	op      uint64
	cents   int64
}

// A database is the database of record, with one row an account. It tells the
// oracle of every commit as soon as the statement returns. Every contender reads
// and writes through it.
type database struct {
	records records
	oracle  *oracle
	reads   atomic.Uint64 // rows read, for reads and for writes
	meter   atomic.Pointer[meter]
}

// readRows counts rows that are read now.
func (d *database) readRows(n int) {
	d.reads.Add(uint64(n))
	if m := d.meter.Load(); m != nil {
		m.add(d.oracle.now(), n)
	}
}

// correct applies all corrections in one transaction, past every cache.
func (d *database) correct(ctx context.Context, corrections []correction) ([]change, error) {
	d.readRows(len(corrections))
	changes, err := d.records.correct(ctx, corrections)
	if err != nil {
		return nil, err
	}
	for i, c := range corrections {
		d.oracle.committed(c.account, c.op, changes[i].version)
	}
	return changes, nil
}

// A bank is the database as one process of the service sees it: with a network
// in between, so that the world can change while an answer is on its way.
type bank struct {
	*database
	gate    *gate         // nil: nothing happens to this way to the database
	latency time.Duration // of an answer, on average
	hook    atomic.Pointer[func(account int, op, version uint64)]
}

// reach fails while the process cannot reach the database.
func (b *bank) reach(ctx context.Context) error {
	if b.gate == nil {
		return nil
	}
	return b.gate.pass(ctx)
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
	if err := b.reach(ctx); err != nil {
		return Account{}, 0, err
	}
	defer b.travel()
	b.readRows(1)
	a, version, err := b.records.row(ctx, account)
	if err != nil {
		return Account{}, 0, fmt.Errorf("account %d: %w", account, err)
	}
	return a, version, nil
}

// overwrite writes a without looking at what is there.
func (b *bank) overwrite(ctx context.Context, account int, a Account) error {
	if err := b.reach(ctx); err != nil {
		return err
	}
	defer b.travel()
	version, err := b.records.overwrite(ctx, account, a)
	if err != nil {
		return fmt.Errorf("account %d: %w", account, err)
	}
	b.committed(account, a.Op, version)
	return nil
}

// transact replaces the account by what fn makes of it, in one transaction, and
// returns what it is now.
func (b *bank) transact(ctx context.Context, account int, fn func(current Account) Account) (Account, uint64, error) {
	if err := b.reach(ctx); err != nil {
		return Account{}, 0, err
	}
	defer b.travel()
	b.readRows(1)
	next, version, err := b.records.transact(ctx, account, fn)
	if err != nil {
		return Account{}, 0, fmt.Errorf("account %d: %w", account, err)
	}
	b.committed(account, next.Op, version)
	return next, version, nil
}
