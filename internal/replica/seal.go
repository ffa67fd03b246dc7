package replica

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// proofBits is how many bits of a nonce are its proof. The other 36 are the number:
// one every 5 ms lasts for ten years, and one every 20 ms until a nonce no longer
// fits an SQL bigint, for twenty.
const proofBits = 28

// A Seal makes nonces of the numbers of one replica's probes, which nobody else can
// make: a probe that comes back counts from when it was sent (S61), and so would
// one that somebody else had sent earlier, in the name of this replica and with the
// number to come. The larger the number, the larger the nonce. Make one with
// NewSeal; it is safe for concurrent use.
//
// Who guesses is right once in 2^28 times, and is found out by the others.
type Seal struct{ key [sha256.Size]byte }

// NewSeal returns a seal that no other has.
func NewSeal() *Seal {
	s := &Seal{}
	rand.Read(s.key[:]) // never fails, see crypto/rand
	return s
}

// Nonce returns the nonce of a number below 2^36.
func (s *Seal) Nonce(number uint64) uint64 { return number<<proofBits | s.proof(number) }

// Number returns the number of a nonce, and whether Nonce made it.
func (s *Seal) Number(nonce uint64) (number uint64, own bool) {
	number = nonce >> proofBits
	return number, nonce == s.Nonce(number)
}

func (s *Seal) proof(number uint64) uint64 {
	h := hmac.New(sha256.New, s.key[:])
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], number)
	h.Write(b[:]) // never fails, see hash.Hash
	return binary.LittleEndian.Uint64(h.Sum(nil)) & (1<<proofBits - 1)
}
