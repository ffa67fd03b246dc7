package storm

import (
	"encoding/binary"
	"fmt"
)

// An Account is the value that every contender caches. It says which write it
// came from, so that a contender without versions is judged by the value it
// returns, exactly like one with versions.
type Account struct {
	Balance  int64  // cents
	Deposits uint64 // how many deposits the balance contains
	Op       uint64 // the write that made this state; 0 is the opening balance
}

// openingBalance is what every account starts with, in cents.
const openingBalance = 100_000

// deposit returns the account after one more deposit of amount cents, made by
// the write op.
func (a Account) deposit(op uint64, amount int64) Account {
	return Account{Balance: a.Balance + amount, Deposits: a.Deposits + 1, Op: op}
}

// accountBytes is the length of an encoded account.
const accountBytes = 24

// encode returns the account as the database stores it.
func (a Account) encode() []byte {
	b := make([]byte, 0, accountBytes)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.Balance))
	b = binary.LittleEndian.AppendUint64(b, a.Deposits)
	return binary.LittleEndian.AppendUint64(b, a.Op)
}

// decodeAccount is the inverse of encode.
func decodeAccount(b []byte) (Account, error) {
	if len(b) != accountBytes {
		return Account{}, fmt.Errorf("storm: an account of %d bytes, want %d", len(b), accountBytes)
	}
	return Account{
		Balance:  int64(binary.LittleEndian.Uint64(b)),
		Deposits: binary.LittleEndian.Uint64(b[8:]),
		Op:       binary.LittleEndian.Uint64(b[16:]),
	}, nil
}
