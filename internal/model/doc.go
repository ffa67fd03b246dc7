// Package model checks the protocol by brute force: every order in which
// loads, writes, messages, evictions and failures can happen, within bounds. It
// is for tests only and exports nothing.
//
// There are four models. Each is a state, the steps that can be taken from it,
// and a sentence that must be true of every state that can be reached. A rule
// of the protocol is a guard, a bool that the steps consult. For each model
//
//   - "holds" subtests visit all states with the guards in place and find
//     nothing wrong. Each names the number of states it has, so that a model
//     that shrinks by mistake is noticed.
//   - "without" subtests take a guard away and must find a state in which the
//     promise is broken. A guard that no mutation takes away fails the test.
//     The log (-v) has a shortest way there, step by step.
//   - "limit" subtests break a promise with every guard in place: they pin down
//     what is not promised.
//
// Numbers such as S11 are those of the catalogue of failures in docs/failures.md.
//
// # Models
//
// Fill (fillModel): one key of one replica and everything that may put an entry
// there or take it away. No entry is below the tide mark, and no Get is given
// less than the tide mark at its beginning, whatever happens to messages.
// Covers strong loads and loads from a lagging read replica, writes through the
// cache, refresh ahead, messages with values, deletions with the version of the
// row they removed (marks are ordered by version, then absence), absences
// without a version, InvalidateAll, and results that are too large to keep.
// Bounds: 3 changes of the source, 2 with absences without a version or
// InvalidateAll; 2 loads, 1 write and 1 joined Get at a time; each message may
// arrive at any time and any number of times.
//
// Put (putModel): a bare Put, which brings a value without proof of when it was
// read, against the mark of a slot that keys share. No entry is below the tide
// mark. Covers evictions, invalidations with and without a version,
// InvalidateAll, deletions, loads that are served and not kept. Bounds: 2 keys
// in one slot, up to 3 changes and 1 load each.
//
// Log (logModel): a replica proves its freshness by probes of its own through a
// sequenced log. What a bounded read returns is at least as new as all that was
// acknowledged before the probe was sent. Covers retention, a log deleted and
// made anew, a disconnect, lagging loads with hold-off, reads in two steps.
// Bounds: 3 versions and 5 records, or 2 and 4; 1 load, 1 disconnect, 1 new log.
//
// Intent (intentModel): the same promise for all that was committed, even if
// the writer died. Bounds: 2 writers, 3 writes, 3 versions, 7 records, 1 load.
//
// # Not covered
//
//   - The code. These are models of the rules; that the cache follows them is
//     for its own tests to show.
//   - More than the bounds. (The mutations all show in smaller ones: 2 changes
//     of the source.)
//   - Liveness: that a load which was refused succeeds in the end.
//   - Messages about several keys, apart from InvalidateAll in Put. InvalidateAll
//     acts at once here: an entry that is dead but still in the table is no entry.
//   - Loads that prove their place in the log (class Snapshot), and versions
//     that start again (SourceEpoch).
//   - InvalidateAll with lagging loads, apart from the hold-off in Log; lagging
//     loads that find absences without a version (see the limits).
//   - Clocks, TTL, and core NATS, which promises nothing that could be checked.
//
// # Cost
//
// About 25 s and 0.8 GB. Under the race detector, which is seven times slower,
// and with -short the largest models have smaller bounds: one change of the
// source less in Fill and in Put with InvalidateAll, 2 versions or 3 records in
// Log, 2 writes in Intent.
package model
