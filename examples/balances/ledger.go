package main

import (
	"context"
	"sync"

	"github.com/tidemark-go/tidemark"
)

// A ledger stands for the database of record. A real service uses sqlstore.
type ledger struct {
	mu   sync.Mutex // guards everything below
	rows map[string]row
	ops  map[tidemark.OpID]tidemark.Version
}

// A row survives its deletion, so that versions go on where they were.
type row struct {
	balance int
	version tidemark.Version
	deleted bool
}

func newLedger(balances map[string]int) *ledger {
	l := &ledger{rows: map[string]row{}, ops: map[tidemark.OpID]tidemark.Version{}}
	for account, balance := range balances {
		l.rows[account] = row{balance: balance, version: 1}
	}
	return l
}

// Load implements [tidemark.Loader].
func (l *ledger) Load(_ context.Context, account string) (int, tidemark.Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.rows[account]
	if !ok || r.deleted {
		return 0, r.version, tidemark.ErrNotFound
	}
	return r.balance, r.version, nil
}

// CompareAndSet implements [tidemark.Store].
func (l *ledger) CompareAndSet(_ context.Context, account string, base tidemark.Version, balance int, op tidemark.OpID) (tidemark.Version, error) {
	return l.write(account, base, row{balance: balance}, op)
}

// CompareAndDelete implements [tidemark.Store].
func (l *ledger) CompareAndDelete(_ context.Context, account string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return l.write(account, base, row{deleted: true}, op)
}

// Outcome implements [tidemark.Store].
func (l *ledger) Outcome(_ context.Context, _ string, op tidemark.OpID) (tidemark.Version, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.ops[op]
	return v, ok, nil
}

// write makes next the account's row if the account is at version base.
func (l *ledger) write(account string, base tidemark.Version, next row, op tidemark.OpID) (tidemark.Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.rows[account]
	current := have.version
	if have.deleted {
		current = 0
	}
	if current != base {
		return 0, &tidemark.ConflictError{Current: have.version, Absent: current == 0}
	}
	next.version = have.version + 1
	l.rows[account], l.ops[op] = next, next.version
	return next.version, nil
}
