// Package postgres keeps the records of a cache in a table of PostgreSQL, through
// pgx: a [tidemark.Store], a [tidemark.BulkLoader] and a [tidemark.VersionLoader].
// The table may be the program's own. It needs PostgreSQL 14 or later; the program
// makes the [pgxpool.Pool] and closes it.
//
// Package store/sqlstore does the same through database/sql, for several databases.
// Take this one for PostgreSQL: it stores values in your own columns, removes rows if
// you like, refuses standbys, has triggers that keep the versions whoever writes, and
// settles a write in doubt for certain. A table that sqlstore has made can be used by
// both at once, with the defaults of [Options] beside Table, Key and Value, after
// [Store.CreateTables] has added the triggers; they take each other's writes for what
// they are.
//
// # Tables
//
// Without [Options.Existing], the table has one row for each key that ever existed:
//
//	key      text, bytes or an integer, see [KeyCodec]; the primary key
//	value    text, bytes or an integer, see [ValueCodec]; NULL once deleted
//	version  1, 2, 3 ... for each key
//	deleted  whether the key is absent now
//	op       the last write that this package made, for people and triggers
//
// With Existing it is the program's table, whose key, value, version and deletion are
// in the columns that [Columns] names; a [RowCodec] spreads values over several.
// Other columns are left alone, and must have a default where the Store creates rows.
//
// A journal, the table <name>_ops, has a line for each write of a Store, written in
// the transaction of that write. It is how [Store.Outcome] knows a write after others
// have replaced the row, and how a write that is sent twice is made once.
// [Store.Prune] shortens it.
//
// Deleted keys keep their row, marked in the column deleted. With
// [Options.HardDelete] the row goes, and its version stays in the table <name>_gone
// until the key is created again. Creating a key then costs the server about 0.1 ms
// more, so that a bulk load of new rows takes several times as long, and removing one
// about 0.03 ms. A row of <name>_gone whose key will never come back may be
// removed, when no cache can have an entry of it any more.
//
// # Programs that change rows without this package
//
// [Store.Schema] has triggers, so that they need know nothing of versions. Each
// UPDATE raises the version of the rows it changes. With HardDelete, DELETE keeps it
// and INSERT goes on from it; otherwise DELETE is refused, and the statement to use is
//
//	UPDATE accounts SET deleted = TRUE WHERE key = 'alice';
//
// TRUNCATE, and an UPDATE that changes a key, are refused. A version that a statement
// sets itself counts only if it is higher still. The triggers do not fire in sessions
// with session_replication_role = replica. [Store.Check] tells whether they are there.
//
// A cache learns of such changes from an invalidation ([tidemark.Publisher]) or when
// its entry expires. Package outbox, below this one, sees to the former: the database
// writes down what changes, and a relay tells it.
//
// # Guarantees
//
//   - Versions of a key increase by one in the order of commits, deletions
//     included: they are assigned under the row's lock, in READ COMMITTED
//     transactions.
//   - A write is made at most once for each operation id, until Prune forgets
//     the id.
//   - An error says what is known. A [*tidemark.ConflictError], or an error that
//     wraps [tidemark.ErrUnavailable]: this call has not changed and will not
//     change anything. Every other error of a write: COMMIT was sent and not
//     confirmed, ask Outcome.
//   - Reads come from a primary, or fail with [ErrStandby]: each query asks the
//     server that answers it.
//   - A write that is acknowledged survives a crash of the server, also where
//     synchronous_commit is off; fsync must be on.
//
// # A write in doubt
//
// [Options.Timeout] has three equal parts. COMMIT is sent within the first, counted
// from the beginning of the write, or never. The server ends the transaction if COMMIT
// does not arrive within the second, counted from its last answer: one that is held up
// on the wire, by a pooler, or in a process that stands still comes too late. What
// there is to do before the commit, deferred constraints too, is done within the third
// or given up. The client need not be alive for any of that, and no clocks need to
// agree. So a write takes effect within Timeout or not at all, but for one case: a
// commit that waits for its disk or for a synchronous standby waits as long as it
// takes, and is seen by nobody meanwhile.
//
// Outcome covers that case as well. Each write holds an advisory lock of its operation
// until its transaction is over, and Outcome waits for that lock: its no is final, and
// while it cannot know, it returns an error. The settings hold for the transaction, so
// that poolers can lend connections by the transaction (and not by the statement).
//
// A transaction that the database refuses to serialize (40001, 40P01), or whose
// connection turns out to be closed before COMMIT was sent, is tried again, at most
// five times within about 100 ms; then the error wraps ErrUnavailable.
//
// # Standbys and failing over
//
// Give the pool all hosts and target_session_attrs=primary, so that it looks for the
// primary by itself. A standby must not be asked; for a Loader that may lag see
// [tidemark.Lagging], with a Loader of your own and this Store beside it.
//
// A standby that is promoted without having everything, and a backup that is restored,
// take the source back, and versions with it: that has to be declared, by
// [tidemark.Cache.SetSourceEpoch]. [Store.Source] helps to notice. The timeline is fit
// as the epoch where the source goes back in no other way than by promoting standbys
// and restoring to points in time, with one archive, so that no timeline is used
// twice: poll it and declare what it says, and each failover, also one that has lost
// nothing, throws the caches' entries away once. Nothing is declared between the
// failover and the poll, and a snapshot of a disk or a dump that is restored keeps or
// restarts the timeline: then people have to declare a higher epoch. Nor does a
// timeline tell of an old primary that goes on beside the new one; only fencing it
// helps, as for any client.
//
// After a restore, raise the versions of all rows above what was ever given, so that
// no version is used twice:
//
//	UPDATE accounts SET version = version + 1000000;
//
// # Limits
//
//   - A key takes at most 1024 bytes. Text, keys included, must be UTF-8 without
//     NUL; use a codec with Binary for anything else.
//   - Keys are compared as the key's column compares: one of a nondeterministic
//     collation, or of type citext, takes different keys for one, which a cache
//     does not.
//   - LoadMany and LoadVersions put no bound on how many keys one query asks for;
//     memory for the answer is the caller's business.
//   - The trigger makes an UPDATE of a million rows about half again as long, by some 6
//     microseconds for each.
//
// [pgxpool.Pool]: https://pkg.go.dev/github.com/jackc/pgx/v5/pgxpool#Pool
package postgres
