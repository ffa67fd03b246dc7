// Package storetest checks that a [tidemark.Store] keeps the promises that the
// cache builds on. Every adapter runs it, and so should yours:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
//			return newMyStore(t)
//		}, storetest.Options{})
//	}
//
// Each rule is a subtest; where the protocol's failure catalogue or its list of
// invariants has a number for it (S28, I10), the name begins with that number.
// The suite is itself tested: for every rule there is a broken store that only
// differs from a correct one in what the rule forbids, and the rule must catch
// it.
//
// # Limits
//
// A green run does not prove what happens when the server dies, fails over or
// answers late by more than [Options.Settle]. Rules about concurrency find a
// race with high probability, not with certainty.
package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"testing"
	"time"

	"github.com/tidemark-go/tidemark"
)

// Options tunes the suite. The zero value suits a store that answers within
// milliseconds.
type Options struct {
	// Writers is the number of concurrent writers. Zero means 8.
	Writers int

	// Increments is how often each writer increments the shared counter. Zero
	// means 25.
	Increments int

	// Settle is how long after its context ended a write may still be
	// committed. Zero means 500 milliseconds.
	Settle time.Duration

	// RewritesAfter is how old a write must be for Outcome to write the key's value
	// anew, at a later version, because the write could still take effect. Zero
	// means that Outcome never writes.
	RewritesAfter time.Duration

	// Timeout bounds each rule. Zero means one minute.
	Timeout time.Duration

	// LargeValue is the size in bytes of the largest value tried. Zero means
	// 1 MiB.
	LargeValue int
}

func (o Options) withDefaults() Options {
	if o.Writers == 0 {
		o.Writers = 8
	}
	if o.Increments == 0 {
		o.Increments = 25
	}
	if o.Settle == 0 {
		o.Settle = 500 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.LargeValue == 0 {
		o.LargeValue = 1 << 20
	}
	return o
}

// Run checks the store that open returns against every rule, each in a subtest
// of t with a store of its own. The stores may share one database: rules use
// keys that no other rule and no other run uses. What open needs to clean up
// goes into t.Cleanup of the t it is given.
//
// A store that is a [tidemark.BulkLoader] or a [tidemark.VersionLoader] too is also
// checked as one.
func Run(t *testing.T, open func(t *testing.T) tidemark.Store[string, string], o Options) {
	t.Helper()
	o = o.withDefaults()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			check(t, t.Context(), r, open(t), o)
		})
	}
}

// A reporter is the part of *testing.T that rules use, so that the suite's own
// tests can watch a rule fail.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	FailNow()
}

// A rule is one thing that a correct store does.
type rule struct {
	name  string
	check func(*probe)
}

// check runs r against store.
func check(t reporter, ctx context.Context, r rule, store tidemark.Store[string, string], o Options) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	r.check(&probe{reporter: t, ctx: ctx, store: store, options: o, run: random()})
}

// A probe is one run of one rule.
type probe struct {
	reporter
	ctx     context.Context // the rule's time
	store   tidemark.Store[string, string]
	options Options
	run     string // part of every key, so that runs may share a database
}

// random returns 16 hexadecimal digits.
func random() string {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// newOp returns an operation id that nobody has used.
func newOp() (op tidemark.OpID) {
	rand.Read(op[:])
	return op
}

// key returns a key that only this run uses.
func (p *probe) key(name string) string { return name + "-" + p.run }

// fatalf ends the rule. It must be called by the rule's own goroutine.
func (p *probe) fatalf(format string, args ...any) {
	p.Helper()
	p.Errorf(format, args...)
	p.FailNow()
}
