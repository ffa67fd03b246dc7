// Package wire turns the messages that replicas send each other into bytes and
// back.
//
// There is one type, [Message], and one pair of functions, [Append] and
// [Decode]. The package knows neither transports nor caches.
//
// # Layout, wire version 1
//
// All integers are little endian. A uvarint is the variable-length integer of
// encoding/binary, in its shortest form.
//
//	offset  bytes  field
//	     0      2  magic, "VC"
//	     2      1  wire version, 1
//	     3      1  kind
//	     4      2  flags
//	     6      8  cache id
//	    14      4  epoch
//	    18      8  origin
//	    26      8  seq
//	    34   1..2  n, a uvarint: the number of entries or probes; 0 unless kind is
//	               INVALIDATE or PROBE
//	     .      .  n entries, if kind is INVALIDATE
//	     .   16 n  n probes, if kind is PROBE: origin and nonce, 8 bytes each
//	     .      8  nonce, only if kind is HELLO
//	     .      4  CRC-32C (Castagnoli) of every byte before it
//
// One entry:
//
//	bytes  field
//	 1..3  length of the key, a uvarint
//	    .  key
//	    8  version
//	    1  entry flags: 1 deleted, 4 no version (set if and only if version is 0),
//	       8 a write begins, 16 a write has ended, 32 without effect
//	   16  operation id, only with flag 8 or 16
//	    4  time to live in milliseconds, only with flag 8
//
// The layout after the wire version may change with the wire version, the
// checksum included. The three bytes before it will not.
//
// # Guarantees
//
//   - A message has one encoding: Append of what Decode read gives the same
//     bytes again. (FuzzDecode)
//   - Decode never panics, reads nothing past its input and allocates nothing
//     for entries that are announced but not there. (FuzzDecode,
//     TestDecodeAllocatesNothingForAnnouncedEntries)
//   - A message with any one byte changed is an error.
//     (TestDecodeRejectsEveryChangedByte)
//
// # Limits
//
// A message holds at most [MaxEntries] entries and [MaxBytes] bytes. The
// checksum finds accidents, not attackers.
package wire

import (
	"errors"
	"strconv"
)

// A Kind says what a message means.
//
// Numbers 4 to 12 but 9 are reserved, in this order, for PUT, TAG, INTENT, RESULT,
// UNCERTAIN, PROBE (9), BYE, EPOCH and GAP. A number is never used again for
// something else. (An intent and its result are entries of INVALIDATE, see
// Stage, so that one message carries what happened to many keys in its order.)
type Kind uint8

const (
	// KindInvalidate names the keys that changed, in Message.Entries.
	KindInvalidate Kind = 1

	// KindInvalidateAll says that any key may have changed.
	KindInvalidateAll Kind = 2

	// KindHello says that the origin is there. An origin that hears its own
	// hello, known by Message.Nonce, knows that it is connected.
	KindHello Kind = 3

	// KindProbe brings probes back to those who sent them, in Message.Probes. They
	// went through the source, and all that the source had before them has been
	// told in earlier messages. To everybody else it says nothing.
	KindProbe Kind = 9
)

// known reports whether this wire version defines the body of k.
func (k Kind) known() bool { return k >= KindInvalidate && k <= KindHello || k == KindProbe }

// String returns the name of k for logs.
func (k Kind) String() string {
	switch k {
	case KindInvalidate:
		return "invalidate"
	case KindInvalidateAll:
		return "invalidate-all"
	case KindHello:
		return "hello"
	case KindProbe:
		return "probe"
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// FlagIgnorable marks a message that a reader who does not know its kind may
// skip. Without it such a reader has missed something and must act as if any
// key may have changed.
const FlagIgnorable uint16 = 1

const (
	// MaxEntries is the largest number of entries, or probes, in one message.
	MaxEntries = 4096

	// MaxBytes is the largest size of one encoded message in bytes, checksum
	// included.
	MaxBytes = 256 << 10
)

// An Entry names one key that changed, or is about to.
type Entry struct {
	// Key is the encoded key. An empty key is a key like any other.
	Key []byte

	// Version is the version of the new state; 0 means that the key changed
	// and the sender does not know to what, or, if Stage is Begun or Void, that
	// there is no new state.
	Version uint64

	// Deleted means that the new state is "no such key". A deletion is newer
	// than a value of the same version.
	Deleted bool

	// Stage is zero but for strict writes, which are told twice.
	Stage Stage

	// Op names the write; zero if Stage is.
	Op [16]byte

	// TTL is the time in milliseconds after which the write can no longer take
	// effect, whether or not it is told how it ended. Only if Stage is Begun.
	TTL uint32
}

// A Stage is how far a strict write has come.
type Stage uint8

const (
	// Begun: the key may change from now on.
	Begun Stage = iota + 1

	// Ended: the key has changed as the entry says.
	Ended

	// Void: the write has come to nothing, and the key has not changed by it.
	Void
)

// A Message is one message in decoded form. It holds no locks and may be
// copied, but a copy shares Entries and Probes.
type Message struct {
	Kind  Kind
	Flags uint16 // FlagIgnorable; other bits are handed through

	CacheID uint64 // which cache: application, name, environment and schema
	Epoch   uint32 // of the source: versions of another one are not compared with those of Entries
	Origin  uint64 // the sending process, random at its start
	Seq     uint64 // number of this message at its origin, from 1 without holes

	Nonce   uint64  // KindHello only
	Entries []Entry // KindInvalidate only
	Probes  []Probe // KindProbe only
}

// A Probe is on its way back to the one who sent it.
type Probe struct {
	Origin uint64 // who sent it
	Nonce  uint64 // which of those that it has sent
}

var (
	// ErrCorrupt means that the bytes are not a message as Append writes it:
	// bad magic, bad checksum, cut short, or with something added.
	ErrCorrupt = errors.New("wire: corrupt message")

	// ErrVersion means that the message is of another wire version.
	ErrVersion = errors.New("wire: unknown wire version")

	// ErrUnknownKind means that the message is intact but of a kind that this
	// wire version does not define.
	ErrUnknownKind = errors.New("wire: unknown message kind")

	// ErrTooBig means that the message exceeds MaxEntries or MaxBytes.
	ErrTooBig = errors.New("wire: message too big")

	// ErrFields means that Append was given Entries, Probes or a Nonce with a kind
	// that has no place for them, or an Entry with a field that its Stage has
	// none for.
	ErrFields = errors.New("wire: field does not belong to message kind or stage")
)
