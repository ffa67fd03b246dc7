// Package sqlstore keeps the records of a cache in a table of an SQL database,
// through [database/sql]: a [tidemark.Store] and a [tidemark.BulkLoader] for
// SQLite, PostgreSQL, MySQL and MariaDB. It imports no driver; the program
// chooses one, opens the [sql.DB] and closes it.
//
// For PostgreSQL there is also the module store/postgres, through pgx, which does more:
// tables that a program already has, rows that are removed, triggers that raise
// versions, and refusing standbys. It can take over a table of this package, beside it.
//
// A table holds one row for each key that ever existed:
//
//	key      text, bytes or an integer, see [KeyCodec]; the primary key
//	value    text, bytes or an integer, see [ValueCodec]; NULL once deleted
//	version  1, 2, 3 ... for each key
//	deleted  whether the key is absent now
//	op       the last write that this package made, for people and triggers
//
// A journal, the table <name>_ops, has a line for each write, written in the
// transaction of that write. It is how [Store.Outcome] knows a write after
// others have replaced the row, and how a write that is sent twice is made once.
// [Store.Prune] shortens it.
//
// # Programs that change rows without this package
//
// Reconciliation jobs, migrations and people must raise the version of every
// row they change, in the statement that changes it; the primary key is quoted
// because MySQL reserves the word (use backquotes there):
//
//	UPDATE accounts SET value = ?, version = version + 1
//	 WHERE "key" = ? AND deleted = FALSE;
//
//	-- delete: keep the row, its version must survive
//	UPDATE accounts SET value = NULL, version = version + 1, deleted = TRUE
//	 WHERE "key" = ? AND deleted = FALSE;
//
//	-- create, or bring back what was deleted
//	INSERT INTO accounts ("key", value, version) VALUES (?, ?, 1)
//	    ON CONFLICT ("key") DO UPDATE SET value = excluded.value,
//	       version = accounts.version + 1, deleted = FALSE;
//
//	-- the same for MySQL and MariaDB
//	INSERT INTO accounts (`key`, value, version) VALUES (?, ?, 1)
//	    ON DUPLICATE KEY UPDATE value = VALUES(value),
//	       version = version + 1, deleted = FALSE;
//
// All of it is safe beside writers that use this package. A row must never be
// removed with DELETE: its key would start again at version 1, and caches would
// take everything it then says for old. Nor may a version be computed by the
// client or drawn from a sequence before the row is locked: two writers could
// then commit in the other order. A cache learns of such changes from the outbox,
// from an invalidation ([tidemark.Publisher]), or when its entry expires.
//
// # Outbox and relay
//
// With [Store.CreateOutbox], triggers write each change of the table, whoever makes
// it, into a table <name>_outbox, in the transaction of the change; for SQLite and
// MySQL. [Store.Relay] reads it there, tells it to a cache or, by a
// [tidemark.Publisher], to all replicas, and deletes it once it is told. So a
// program that has never heard of caches is heard within [RelayOptions.Poll] after
// its commit, and what was changed while no relay ran is told by the next.
//
// What the relay tells has the row's version if the statement raised it. Everything
// else, a DELETE, an INSERT, an UPDATE that forgot the version, drops the key from
// the caches. It does not help with what such a statement does to versions: a row
// that is deleted and made again begins at version 1, and loads of it are refused as
// too old ([tidemark.ErrStale]) by caches that have seen more until the change is
// told.
//
// A table that is made anew, by a migration say, has no triggers until
// [Store.CreateOutbox] makes them again. Relays notice within a second, and tell that
// everything may have changed, each second, until they are back.
//
// A change costs its transaction one more row. [Store.Outbox] says how many rows
// wait, the lag of the first, and which triggers are missing; [Store.TrimOutbox] bounds an outbox that no relay
// empties. For PostgreSQL there is the package store/postgres/outbox, which also
// proves bounds against the database; here the outbox is told after the commit, and
// a read Within a bound counts from when it was told.
//
// # Guarantees
//
//   - Versions of a key increase by one in the order of commits, deletions
//     included: they are assigned under the row's lock.
//   - A write is made at most once for each operation id, until Prune forgets
//     the id.
//   - An error says what is known. A [*tidemark.ConflictError], or an error that
//     wraps [tidemark.ErrUnavailable]: this call has not changed and will not
//     change anything. Every other error of a write: COMMIT was sent and not
//     confirmed, ask Outcome.
//
// # Busy databases
//
// A transaction that the database refuses to serialize (PostgreSQL 40001 and
// 40P01, MySQL 1020 and 1213, SQLITE_BUSY and SQLITE_LOCKED) has certainly not
// been committed if COMMIT was not sent. It is tried again, at most five times
// within about 100 ms; then the error wraps ErrUnavailable. SQLite also says
// busy in answer to COMMIT, which then has not happened either. From the other
// databases an error in answer to COMMIT proves nothing and is never retried.
//
// # Limits
//
//   - [Store.Load] is strong only on a primary: do not give New a pool that
//     reads from replicas, and with Galera set wsrep_sync_wait.
//   - A connection that breaks in the middle of a transaction can leave the row
//     locked until the server notices. Bound it with
//     idle_in_transaction_session_timeout (PostgreSQL) or wait_timeout (MySQL),
//     below the cache's DoubtTimeout.
//   - SQLite needs a busy_timeout when several connections write, and WAL if
//     readers must not hold writers up. An in-memory database has to be shared
//     by the connections of the pool, or the pool limited to one.
//   - The MySQL driver does not watch the context while it commits; readTimeout
//     in its DSN bounds that. InnoDB must not use binlog_format=STATEMENT: the
//     transactions are READ COMMITTED.
//   - A key takes at most 1024 bytes. PostgreSQL text, keys included, must be
//     UTF-8 without NUL; use a codec with Binary for anything else.
//   - Deleted keys keep their row. Removing rows of keys that will never come
//     back is up to the program.
package sqlstore
