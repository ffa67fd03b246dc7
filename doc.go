// Package tidemark caches versioned records in process and never lets an old
// state win over a newer one.
//
// There are five types to know. A [Cache] holds the newest known state of each
// key. A [Version] orders the states of one key; the source of truth assigns
// it. A [Loader] reads a key from the source; a [Store] also writes it, on
// condition of its version. An [Invalidator] tells the other replicas of the
// service what changed.
//
// For every key the cache keeps a tide mark: the highest version that it has
// served, installed or been told of. Nothing below it is served, in whatever
// order loads, writes, invalidations, evictions and messages meet.
//
// # Guarantees
//
// In one process:
//
//   - A read never returns less than an earlier one has returned, or than Put,
//     Update, Invalidate or a message have announced, before it began. This
//     takes a source whose versions rise, and whose loads are as current as
//     [Options.LoaderClass] says: what was announced and is not in memory is
//     not held against a source that goes back.
//   - What Put, Update, CompareAndSet or Delete returned as stored is seen by
//     every read that begins afterwards, or something newer.
//   - A load that an invalidation overtakes is not cached, and readers who ask
//     after the invalidation do not get its result. InvalidateAll overtakes
//     every load.
//   - Update and CompareAndSet never commit a decision made on a stale value:
//     the store refuses it with a [*ConflictError].
//   - A write whose outcome is not known keeps its key out of memory until the
//     store tells.
//   - One load for all readers of a key whom it can satisfy, and never more than
//     two of a key at a time, however many readers wait; a slow load delays
//     readers of its own key only, and none of them beyond its own context.
//   - The cost of all entries is at most MaxCost at every moment.
//
// With an Invalidator, between replicas: a change is heard as fast as the
// transport carries it, and whatever shows that a message may have been missed
// makes every entry suspect, to be confirmed by the source before it is served
// again. How much that is worth depends on the transport; see [NATS]. With a
// [Log] there is a bound in time: an [Entry] says by its Age how old it can be at
// most, and [Within] asks for less. That counts from when a write was told; with
// [Options.Strict], from when it was committed.
//
// # Limits
//
// Keys are independent: two reads may see one key before and another after a
// change that touched both. Writers that bypass the cache and do not call
// Invalidate are noticed by nobody but [Options.TTL], and, if it is set, by the
// auditor that [Options.Audit] starts, when it comes to the key. On core NATS there is no
// bound on how long a lost message goes unnoticed if its sender then dies.
// A source that goes back to older versions, as after a restore from backup,
// must be declared by [Cache.SetSourceEpoch].
//
// Values are shared, not copied: do not modify what a read returned, nor what
// was given to Put, nor what a Loader has returned.
//
// # Goroutines
//
// New starts three, for admission and eviction, one with [Options.Audit], and with an
// Invalidator at least two more and what its transport needs. Each load runs in one of its
// own. [Cache.Close] ends all of them.
package tidemark
