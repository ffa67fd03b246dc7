package storm

import "sync/atomic"

// A ledger holds what the accounts must contain at the end: every deposit that
// was acknowledged, whoever made it. It is the books that the auditors bring.
//
// A ledger is safe for concurrent use.
type ledger struct {
	accounts []ledgerAccount
}

type ledgerAccount struct {
	cents    atomic.Int64
	deposits atomic.Int64
	doubtful atomic.Int64 // deposits of which nobody knows whether they were committed
}

func newLedger(accounts int) *ledger {
	return &ledger{accounts: make([]ledgerAccount, accounts)}
}

// record enters an acknowledged deposit.
func (l *ledger) record(account int, cents int64) {
	l.accounts[account].cents.Add(cents)
	l.accounts[account].deposits.Add(1)
}

// recordDoubtful enters a deposit that may or may not be in the database.
func (l *ledger) recordDoubtful(account int) {
	l.accounts[account].doubtful.Add(1)
}

// An imbalance is how the database differs from the ledger.
type imbalance struct {
	lost     int64 // acknowledged deposits that the database does not contain
	repeated int64 // deposits that the database contains more often than they were made
	cents    int64 // sum of the absolute differences of the balances
}

// compare returns how one account in the database differs from the ledger. A
// doubtful deposit excuses a difference of one deposit either way, and hides the
// balance of its account.
func (l *ledger) compare(account int, found Account) imbalance {
	want := &l.accounts[account]
	var d imbalance
	switch missing := want.deposits.Load() - int64(found.Deposits); {
	case missing > 0:
		d.lost = missing
	case -missing > want.doubtful.Load():
		d.repeated = -missing - want.doubtful.Load()
	}
	if want.doubtful.Load() == 0 {
		d.cents = openingBalance + want.cents.Load() - found.Balance
		if d.cents < 0 {
			d.cents = -d.cents
		}
	}
	return d
}

func (d imbalance) add(e imbalance) imbalance {
	return imbalance{lost: d.lost + e.lost, repeated: d.repeated + e.repeated, cents: d.cents + e.cents}
}
