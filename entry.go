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

	// Stale means that the state's TTL is over, or that it is suspect, and that it was
	// served all the same, as [Options.StaleWhileRevalidate] or [Options.StaleIfError]
	// say. It is not below the key's tide mark, and Age is what it always is.
	Stale bool
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
	byAudit      // the auditor has asked the source
)

var causeNames = [...]string{"nothing", "load", "put", "fill", "write", "invalidate", "message", "audit"}

func (c cause) String() string { return causeNames[c] }

// An entry is a key's state, as it was read or is about to be installed.
type entry[V any] struct {
	value V
	facts
}

// The facts of an entry are what the cache itself wants to know of it.
type facts struct {
	version Version
	absent  bool
	cause   cause

	// era is the cache's era when the entry was installed. The entry is served
	// only while the cache is still in that era.
	era uint64

	// provenAt is when the load or the write that proved this state began, in
	// nanoseconds since the cache began; unproven if nothing proved it.
	provenAt int64

	// expiresAt is in nanoseconds since the cache began; zero means never.
	expiresAt int64
}

// unproven is the provenAt of an entry that no load or write vouches for.
const unproven = replica.Never

// A node is an entry with its key and hash, in somebody's hand.
type node[K comparable, V any] struct {
	Key  K
	Hash uint64
	E    entry[V]

	refreshAt int64 // for head.refreshAt
}

// A head is how an entry stands in the table, beside its key and value. It
// changes in place under the shard's mutex, between Begin and End of the table, so
// that a reader that has copied what it needs and finds that the place held still
// has an entry whole; what it read of one that did not, it reads again.
type head struct {
	era       atomic.Uint64
	expiresAt atomic.Int64
	version   atomic.Uint64
	provenAt  atomic.Int64
	kind      atomic.Uint32 // see below

	// touches holds the reads told to the policy, and whether there were any since
	// the entry came, see touchCount. Readers write it without a lock; a lost update
	// only makes the entry look colder, and one that comes late another entry warmer.
	touches atomic.Uint32

	// refreshAt is when the next hit starts a load behind it, in nanoseconds since
	// the cache began. Used only with Options.RefreshAfter, StaleWhileRevalidate and
	// StaleIfError. If the latest load of the key failed, it is when the next may be
	// begun for an entry whose TTL is over.
	refreshAt atomic.Int64

	// The policy's record of the key, see policy.go. It outlives the entries of
	// the key while they cost about the same. For writers only.

	cost   int64   // what the entry costs
	told   float32 // what Ristretto was told, about
	record uint32  // number of the record, for tickets
}

// A place is where a key has its entry.
type place = table.Ref[head]

// The parts of head.kind. Writers change one of them and leave the others.
const (
	kindCause  = 0xff
	kindAbsent = 1 << 8
	kindState  = 3 << 16 // of the record
	kindAlias  = 1 << 18 // Ristretto knows the record by another number than the hash

	// How many loads of the key have failed in a row since the entry came; no more
	// than maxFailures are counted.
	kindFailure  = 1 << 24
	kindFailures = maxFailures * kindFailure
	maxFailures  = 31
)

func (h *head) absent() bool     { return h.kind.Load()&kindAbsent != 0 }
func (h *head) cause() cause     { return cause(h.kind.Load() & kindCause) }
func (h *head) mark() mark       { return mark{Version(h.version.Load()), h.absent()} }
func (h *head) state() state     { return state(h.kind.Load() & kindState >> 16) }
func (h *head) setState(s state) { h.kind.Store(h.kind.Load()&^kindState | uint32(s)<<16) }

// expired reports whether the entry's time is over. It looks at the clock only if
// the entry expires at all.
func (h *head) expired(at *moment) bool {
	end := h.expiresAt.Load()
	return end != 0 && at.now() >= end
}

// spent reports whether nobody will be served the entry any more, if it may be for so
// long after its time. It looks at the clock only if the entry expires at all.
func (h *head) spent(at *moment, grace time.Duration) bool {
	end := h.expiresAt.Load()
	if end == 0 {
		return false
	}
	if !h.absent() {
		end = after(end, grace)
	}
	return at.now() >= end
}

// failed reports whether the latest load of the entry's key has failed.
func (h *head) failed() bool { return h.kind.Load()&kindFailures != 0 }

// write makes h the head of e, between Begin and End.
func (e *facts) write(h *head) {
	kind := h.kind.Load()&(kindState|kindAlias) | uint32(e.cause)
	if e.absent {
		kind |= kindAbsent
	}
	h.version.Store(uint64(e.version))
	// What is as before is not stored: that takes ten times as long as to look.
	if h.era.Load() != e.era {
		h.era.Store(e.era)
	}
	if h.expiresAt.Load() != e.expiresAt {
		h.expiresAt.Store(e.expiresAt)
	}
	if h.provenAt.Load() != e.provenAt {
		h.provenAt.Store(e.provenAt)
	}
	if h.kind.Load() != kind {
		h.kind.Store(kind)
	}
}

// read copies h to e.
func (e *facts) read(h *head) {
	e.era = h.era.Load()
	e.expiresAt = h.expiresAt.Load()
	e.version = Version(h.version.Load())
	e.provenAt = h.provenAt.Load()
	kind := h.kind.Load()
	e.absent, e.cause = kind&kindAbsent != 0, cause(kind&kindCause)
}

func (e *facts) mark() mark { return mark{e.version, e.absent} }

// expired reports whether e's time is over. now is only looked at if e expires
// at all.
func (e *facts) expired(now int64) bool { return e.expiresAt != 0 && now >= e.expiresAt }

// age returns how old e can be at most; negative if that is not known. The mark
// must have been read before e. It vouches only for what was loaded or written
// since this replica joined: a Put may be below what the log had before, so of one
// that nothing else has proven no age is known.
func (e *facts) age(fresh replica.Mark, now replica.Moment) time.Duration {
	return fresh.Age(e.provenAt, now)
}

// public returns e as callers see it.
func (e *entry[V]) public(fresh replica.Mark, now replica.Moment) Entry[V] {
	return Entry[V]{Value: e.value, Version: e.version, Absent: e.absent, Age: e.age(fresh, now)}
}
