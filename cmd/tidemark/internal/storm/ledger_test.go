package storm

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLedgerBalances(t *testing.T) {
	l := newLedger(1)
	assert.Equal(t, imbalance{}, l.compare(0, Account{Balance: openingBalance}))
	l.record(0, 300)
	l.record(0, 50)
	a := Account{Balance: openingBalance}.deposit(1, 300).deposit(2, 50)
	assert.Equal(t, imbalance{}, l.compare(0, a))
}

func TestLedgerFindsALostDeposit(t *testing.T) {
	l := newLedger(1)
	l.record(0, 300)
	l.record(0, 50)
	a := Account{Balance: openingBalance}.deposit(2, 50)
	assert.Equal(t, imbalance{lost: 1, cents: 300}, l.compare(0, a))
}

func TestLedgerFindsADepositMadeTwice(t *testing.T) {
	l := newLedger(1)
	l.record(0, 300)
	a := Account{Balance: openingBalance}.deposit(1, 300).deposit(1, 300)
	assert.Equal(t, imbalance{repeated: 1, cents: 300}, l.compare(0, a))
}

func TestLedgerFindsAWrongAmount(t *testing.T) {
	l := newLedger(1)
	l.record(0, 300)
	a := Account{Balance: openingBalance}.deposit(1, 30)
	assert.Equal(t, imbalance{cents: 270}, l.compare(0, a))
}

func TestLedgerExcusesOneDepositForEachDoubt(t *testing.T) {
	l := newLedger(1)
	l.record(0, 300)
	l.recordDoubtful(0)
	without := Account{Balance: openingBalance}.deposit(1, 300)
	with := without.deposit(2, 50)
	twice := with.deposit(3, 50)
	assert.Equal(t, imbalance{}, l.compare(0, without))
	assert.Equal(t, imbalance{}, l.compare(0, with))
	assert.Equal(t, imbalance{repeated: 1}, l.compare(0, twice))
	assert.Equal(t, imbalance{lost: 1}, l.compare(0, Account{Balance: openingBalance}), "a doubt excuses no acknowledged deposit")
}
