package tidemark

import (
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark/internal/replica"
	"github.com/tidemark-go/tidemark/internal/table"
)

// An Entry is one key's state as a read returns it. The value is shared with
// the cache and with other readers: do not modify what it points to.
type Entry[V any] struct {
	// Value is the zero value if Absent.
	Value V

	// Version is the state's version. It is zero only for an absence that the
	// source reported without one.
	Version Version

	// Absent means that the source has no such key, as of Version.
	Absent bool

	// Age is an upper bound of how long ago this state may have been replaced
	// in the source: the time since the load or the write that proved it
	// began, or, with a Log, since this replica was last shown to have applied
	// every change that the log had, if that is later. Negative means that no
	// bound is known, as for a value that Put brought without a proof.
	Age time.Duration
}

// An Outcome says what became of a value offered to the cache. Every outcome
// but Closed leaves the cache at least as new as the offered version.
type Outcome uint8

const (
	// Applied: the value is now the key's entry.
	Applied Outcome = iota + 1

	// Duplicate: the entry already has this version.
	Duplicate

	// Stale: the value is below the key's tide mark. It was not stored.
	Stale

	// Unproven: nothing shows that the value is at or above the tide mark, or
	// it is not to be kept (EntryTTL says so, or there is no room). It was not
	// stored but taken as word that the key has reached this version, so an
	// older entry is gone; the next Load fetches the current state.
	Unproven

	// TooLarge: the value costs more than the cache may hold. As Unproven.
	TooLarge

	// Closed: the cache is closed.
	Closed
)

var outcomeNames = [...]string{"invalid", "applied", "duplicate", "stale", "unproven", "too large", "closed"}

func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return outcomeNames[0]
}

// Err returns ErrTooLarge or ErrClosed for those outcomes and nil for the
// others, which are results and not failures.
func (o Outcome) Err() error {
	switch o {
	case TooLarge:
		return ErrTooLarge
	case Closed:
		return ErrClosed
	default:
		return nil
	}
}

// A cause is what moved a key's tide mark, for Explain.
type cause uint8

const (
	byNothing cause = iota
	byLoad
	byPut
	byFill
	byWrite
	byInvalidate // a call of Invalidate in this process
	byMessage    // another replica or a Publisher
)

var causeNames = [...]string{"nothing", "load", "put", "fill", "write", "invalidate", "message"}

func (c cause) String() string { return causeNames[c] }

// An entry is a key's state in the table. It is immutable once published, but
// for touches and for what resident's comment says; a change publishes a new
// entry in its place.
//
// Publication: all of an entry is written before the table's atomic store of
// its pointer, and that store synchronizes before the load that returns it, so
// a reader sees an entry whole or not at all.
type entry[K comparable, V any] struct {
	value   V
	version Version
	absent  bool
	cause   cause

	// era is the cache's era when the entry was installed. The entry is served
	// only while the cache is still in that era.
	era uint64

	// provenAt is when the load or the write that proved this state began, in
	// nanoseconds since the cache began; unproven if nothing proved it.
	provenAt int64

	// refreshAt is when the next hit starts a load behind it, in nanoseconds
	// since the cache began. Used only with Options.RefreshAfter.
	refreshAt atomic.Int64

	// expiresAt is in nanoseconds since the cache began; zero means never.
	expiresAt int64

	// touches holds the reads told to the policy, see policy.touch. Readers
	// write it without a lock; a lost update only makes the entry look colder.
	touches atomic.Uint32

	// resident is the policy's record of the key. Successive entries of a key
	// share it. Its fields are guarded by the shard's mutex.
	resident *resident[K]
}

// unproven is the provenAt of an entry that no load or write vouches for.
const unproven = replica.Never

// A node is an entry in its place in the table, with its key and hash.
type node[K comparable, V any] = table.Node[K, entry[K, V]]

func (e *entry[K, V]) mark() mark { return mark{e.version, e.absent} }

// expired reports whether e's time is over. now is only looked at if e expires
// at all.
func (e *entry[K, V]) expired(now int64) bool { return e.expiresAt != 0 && now >= e.expiresAt }

// age returns how old e can be at most; negative if that is not known. The mark
// must have been read before e. It vouches only for what was loaded or written
// since this replica joined: a Put may be below what the log had before.
func (e *entry[K, V]) age(fresh replica.Mark, now replica.Moment) time.Duration {
	if e.provenAt == unproven {
		return -1
	}
	return fresh.Age(e.provenAt, now)
}

// public returns e as callers see it.
func (e *entry[K, V]) public(fresh replica.Mark, now replica.Moment) Entry[V] {
	return Entry[V]{Value: e.value, Version: e.version, Absent: e.absent, Age: e.age(fresh, now)}
}
