// Package natskv keeps the records of a cache in a JetStream key-value bucket: a
// [tidemark.Store], [tidemark.BulkLoader] and [tidemark.VersionLoader] whose
// versions are the bucket's revisions. Other clients of the bucket may write it
// beside this one; [Store.Follow] hears them.
//
// Revisions are sequence numbers of one stream, so they rise across all keys,
// deletions included: a key that is deleted, purged or expired and then created
// again is above what it was. That lets a bare [tidemark.Cache.Put] prove more
// than with a version for each row.
//
// # Reads
//
// A bucket's own Get is not enough to fill a cache from. Any server that has the
// stream answers it, also one that is cut off from the others and goes on
// answering with old values for as long as that lasts; and one that used to lead
// the stream takes itself for the leader for seconds. Load, LoadMany and
// LoadVersions therefore append a message that says nothing, which takes a
// majority of the servers, and then ask for the keys: the answer names the number
// up to which it includes all messages, and one that does not include the message
// is not believed, but asked for again. So a read reflects every write that was
// acknowledged before it began, whichever server the client is connected to. If
// there is no majority it fails.
//
// The message costs a read about what a write costs, but reads that come at the
// same time share it, and LoadMany and LoadVersions need one for all keys. It has
// the key "_tidemark.barrier", of which the bucket keeps as many as its history
// says. Other clients that watch the whole bucket see it.
//
// # Writes
//
// A write is one message that the server takes only if the key's last message is
// the one that it names. Its operation id is the message's id. The servers know
// those of the last two minutes (the stream's duplicate window) and the bucket
// keeps the messages of each key's history, so a write is made at most once for
// each operation id as long as one of the two reaches back to it, whatever its
// base; and as long as the history does if the base is the same.
//
// An error says what is known. A [*tidemark.ConflictError], or an error that wraps
// [tidemark.ErrUnavailable]: this call has not changed and will not change
// anything. Every other error of a write: the message was sent and not
// acknowledged, ask [Store.Outcome]. A write that the Outcome of the Store that sent
// it has called not committed, two seconds or more after that, cannot be committed
// any more.
//
// # Which buckets
//
// [New] refuses a bucket with which that could not be kept:
//
//   - in memory, or acknowledging before it writes (PersistMode async): a restart
//     gives the same revision twice.
//   - a history of less than 8: after so many writes of a key, and a restart, nobody
//     could tell what became of one before.
//   - a TTL for the whole bucket: values would vanish without a revision, or the
//     mark with them by which the bucket is known again. Keys may have a TTL of
//     their own (LimitMarkerTTL): what expires leaves a marker, which is an absence
//     with a revision, and is heard.
//   - without direct get; a mirror; one that renames keys, counts, discards old
//     keys to make room, or lets single messages be deleted.
//
// A bucket that was deleted and made anew, or restored, begins its revisions
// anew. The first New of a bucket leaves a random mark in it, under the key
// "_tidemark.id"; every read compares it, and a Store that finds another refuses
// everything with [ErrRecreated].
//
// When the markers of deletions are cleared away ([jetstream.KeyValue] PurgeDeletes) or keys
// are purged from the stream itself, an absence has no version any more. The cache
// can do with that, and versions still rise; but nobody hears of what the stream
// itself purges, and writes that are purged count as not committed.
//
// # Limits
//
//   - nats-server 2.15 or later: what earlier ones answer to a request for several
//     keys while they are written has not been looked at.
//   - A key that is written more often than the bucket's history is long, while the
//     outcome of a write of it is unknown, may have an outcome that nobody can tell:
//     if the message was taken the servers' memory of ids says so, but if it was lost
//     nothing does. Outcome then fails with [ErrForgotten] and the cache keeps the key
//     out of memory. Give a bucket a longer history if single keys are written many
//     times a second. Where keys may expire, the same is so of every write that is
//     not found and that the Store, or another in its place, has not sent itself; and
//     where a key's first message is of a client that did not demand that it be the
//     first, as Create does and Put does not: it does not prove that none was before.
//   - The stream must keep what it has acknowledged: by default a server asks its disk
//     every two minutes, see [tidemark.NATSStream].
//   - A value and its headers, about 300 bytes, must fit the server's max_payload, or
//     the bucket's MaxValueSize if that is less.
//   - LoadVersions moves the values too.
//   - A write drops the TTL that the key's value had, as every client's Update does.
//   - The bucket is in the connection's own account, without a JetStream domain.
//   - A client needs permission to publish to "$KV.<bucket>.>",
//     "$JS.API.STREAM.INFO.KV_<bucket>" and "$JS.API.DIRECT.GET.KV_<bucket>", and
//     to subscribe to its inboxes; for Follow also to publish to
//     "$JS.API.CONSUMER.CREATE.KV_<bucket>.>",
//     "$JS.API.CONSUMER.MSG.NEXT.KV_<bucket>.>" and
//     "$JS.API.CONSUMER.DELETE.KV_<bucket>.>".
package natskv
