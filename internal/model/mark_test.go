package model

import "fmt"

// A mark is a state in the history of one key, in order: twice the version,
// plus one if the state is the absence of the key. So a deletion comes after
// the row of the same version and before that of the next.
type mark int8

// none is no state at all; it is below every mark.
const none mark = -1

func rowMark(version int8) mark      { return mark(2 * version) }
func deletionMark(version int8) mark { return mark(2*version + 1) }

func (m mark) version() int8  { return int8(m >> 1) }
func (m mark) deletion() bool { return m >= 0 && m&1 != 0 }

func (m mark) String() string {
	switch {
	case m == none:
		return "nothing"
	case m.deletion():
		return fmt.Sprintf("deletion@%d", m.version())
	default:
		return fmt.Sprintf("v%d", m.version())
	}
}

// A history is the set of the states that a key has had: bit m for mark m.
type history uint16

func (h history) has(m mark) bool     { return h&(1<<m) != 0 }
func (h history) with(m mark) history { return h | 1<<m }

// changes returns the number of states after the first.
func (h history) changes() int {
	n := -1
	for ; h != 0; h &= h - 1 {
		n++
	}
	return n
}

// after returns the state that followed m. There must be one.
func (h history) after(m mark) mark {
	for m++; !h.has(m); m++ {
	}
	return m
}

// deletionStyle says how the source deletes.
type deletionStyle uint8

const (
	neverDeletes deletionStyle = iota

	// deletesInPlace: a deletion is known by the version of the row that it
	// removed (S18).
	deletesInPlace

	// deletesWithVersion: a deletion takes the next version, as
	// Store.CompareAndDelete does.
	deletesWithVersion
)

// next returns the states that can follow m: always a row with the next
// version, and after a row a deletion.
func (d deletionStyle) next(m mark) []mark {
	row := rowMark(m.version() + 1)
	switch {
	case d == neverDeletes || m.deletion():
		return []mark{row}
	case d == deletesInPlace:
		return []mark{row, deletionMark(m.version())}
	default:
		return []mark{row, deletionMark(m.version() + 1)}
	}
}
