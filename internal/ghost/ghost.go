// Package ghost remembers for a while of which keys something was let go, at two
// bytes a key.
package ghost

import "math/bits"

// A Set remembers hashes. Each has one place, which it takes from whatever was
// there, so that an old one is forgotten sooner or later: of the last ones, as many
// as the set has room for, it knows 63 %. One hash in 65,536 is taken for another.
// It is not safe for concurrent use; use New.
type Set struct {
	marks []uint16 // 0 where there is nothing
}

// New returns an empty Set with room for n hashes.
func New(n int) Set { return Set{make([]uint16, max(n, 1))} }

// Note remembers hash and reports whether it was known already. The top bits of
// hash are the caller's.
func (s *Set) Note(hash uint64) (known bool) {
	i, _ := bits.Mul64(hash<<16, uint64(len(s.marks)))
	mark := uint16(hash)
	if mark == 0 {
		mark = 1
	}
	known = s.marks[i] == mark
	s.marks[i] = mark
	return known
}
