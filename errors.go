package tidemark

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
)

var (
	// ErrNotFound means that the source has no such key. A Loader returns it,
	// possibly wrapped and possibly with the version of the deletion; Load
	// passes it on and remembers the absence for [Options.NegativeTTL].
	ErrNotFound = errors.New("tidemark: not found")

	// ErrClosed means that the cache was closed before or during the call.
	ErrClosed = errors.New("tidemark: closed")

	// ErrStale means that no state new enough for the read could be had: the
	// source returned less than the caller asked for with [AtLeast], or less
	// than this cache has already seen.
	ErrStale = errors.New("tidemark: no state as new as required")

	// ErrNoLoader means that the cache has neither a Loader nor a Store.
	ErrNoLoader = errors.New("tidemark: no loader")

	// ErrNoStore means that the cache has no Store to write through.
	ErrNoStore = errors.New("tidemark: no store")

	// ErrUnavailable means that the source could not be asked, and that
	// nothing was changed: the breaker is open, no place among MaxLoads came
	// free in time, or too many writes are in doubt. A Store returns it,
	// wrapped, for a write that certainly was not committed.
	ErrUnavailable = errors.New("tidemark: source unavailable")

	// ErrTooLarge means that a value costs more than the whole cache may hold. A
	// Store returns it, wrapped beside [ErrUnavailable], for a value that is larger
	// than it can keep.
	ErrTooLarge = errors.New("tidemark: value too large")

	// ErrNoVersion means that a Loader or Store returned a value without a
	// version. Such a value cannot be ordered, so it is not served.
	ErrNoVersion = errors.New("tidemark: value without a version")

	// ErrIncomplete means that a BulkLoader's answer said nothing about a key
	// it was asked for. A missing key is not taken for an absent one.
	ErrIncomplete = errors.New("tidemark: bulk answer lacks the key")

	// ErrGap means that a Log cannot prove that it delivered every message.
	ErrGap = errors.New("tidemark: gap in the log")

	// ErrMessageSize means that a transport takes no message of this size.
	ErrMessageSize = errors.New("tidemark: message too large for the transport")

	// ErrNotBroadcast means that a change is in force in this process but could
	// not be handed to the transport in time. It stays queued and is retried
	// until Close.
	ErrNotBroadcast = errors.New("tidemark: not broadcast yet")
)

// A ConflictError reports a write that was refused because its base was not the
// key's current version. Nothing was changed.
type ConflictError struct {
	// Current is the version of the state that the store holds, the deletion's
	// if Absent; zero if the store did not say, or never had the key.
	Current Version

	// Absent means that the store has no such key, so that only a write of base
	// 0 can succeed.
	Absent bool
}

func (e *ConflictError) Error() string {
	switch {
	case !e.Absent:
		return fmt.Sprintf("tidemark: conflict: the store is at version %d", e.Current)
	case e.Current == 0:
		return "tidemark: conflict: the store has no such key"
	default:
		return fmt.Sprintf("tidemark: conflict: the store has no such key, as of version %d", e.Current)
	}
}

// A LoadError reports that the Loader failed. Failures are not cached. It holds
// no key, because keys may be personal data and errors end up in logs.
type LoadError struct {
	Err error // what the Loader returned; a *PanicError if it panicked
}

func (e *LoadError) Error() string { return fmt.Sprintf("tidemark: load: %v", e.Err) }

// Unwrap returns Err.
func (e *LoadError) Unwrap() error { return e.Err }

// A KeysError reports the keys of one LoadMany that failed. Its text holds no
// key, because keys may be personal data.
type KeysError[K comparable] struct {
	Failed map[K]error // what Load would have returned for each; not empty
}

func (e *KeysError[K]) Error() string {
	causes := e.Unwrap()
	texts := make([]string, len(causes))
	for i, err := range causes {
		texts[i] = err.Error()
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	return fmt.Sprintf("tidemark: keys that failed: %d: %s", len(e.Failed), strings.Join(texts, "; "))
}

// Unwrap returns the errors in Failed, each once where keys share it, as those
// of one bulk load do.
func (e *KeysError[K]) Unwrap() []error {
	var causes []error
	seen := map[error]bool{}
	for _, err := range e.Failed {
		if reflect.ValueOf(err).Comparable() {
			if seen[err] {
				continue
			}
			seen[err] = true
		}
		causes = append(causes, err)
	}
	return causes
}

// A PanicError is a panic in a callback, contained. A callback that ended its
// goroutine with runtime.Goexit has Value "runtime.Goexit".
type PanicError struct {
	Value any
	Stack []byte // of the goroutine that panicked
}

// errGoexit is what is left of a callback that never returned.
var errGoexit = &PanicError{Value: "runtime.Goexit"}

func (e *PanicError) Error() string { return fmt.Sprintf("tidemark: callback panicked: %v", e.Value) }

// An UncertainError reports a write whose outcome is not known: it was sent to
// the store, and the answer did not come or does not say. Until the store has
// told, the key is not cached, and Wait tells how it ended.
type UncertainError struct {
	Op  OpID  // names the write in the store
	Err error // what the store returned

	doubt *doubt
}

// A doubt is the settling of one uncertain write.
type doubt struct {
	settled   chan struct{} // closed once the fields below are final
	version   Version
	committed bool
	err       error // the cache was closed first
	once      sync.Once
}

func (d *doubt) settle(v Version, committed bool, err error) {
	d.once.Do(func() {
		d.version, d.committed, d.err = v, committed, err
		close(d.settled)
	})
}

func (e *UncertainError) Error() string {
	return fmt.Sprintf("tidemark: write in doubt: %v", e.Err)
}

// Unwrap returns Err.
func (e *UncertainError) Unwrap() error { return e.Err }

// Wait blocks until the write is settled and reports whether it was committed,
// and at which version. It returns ctx's error if that ends first, [ErrClosed]
// if the cache was closed before the store told, and, beside the answer,
// [ErrNotBroadcast] if it was closed before a Log was told.
func (e *UncertainError) Wait(ctx context.Context) (v Version, committed bool, err error) {
	if e.doubt == nil {
		return 0, false, ErrClosed
	}
	select {
	case <-e.doubt.settled:
		return e.doubt.version, e.doubt.committed, e.doubt.err
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
}

// An OptionError is one mistake in an Options value, or in another argument. New
// joins all of them.
type OptionError struct {
	Field   string // "MaxCost"; "K" for the type of the keys
	Problem string // "is -1, want >= 0"
}

func (e *OptionError) Error() string { return "tidemark: option " + e.Field + " " + e.Problem }

// A DoubtError reports that a cache was closed while writes were in doubt.
type DoubtError struct {
	Writes int // how many
}

func (e *DoubtError) Error() string {
	return fmt.Sprintf("tidemark: closed with writes in doubt: %d", e.Writes)
}
