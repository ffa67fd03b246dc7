// Package outbox hears of every change of a PostgreSQL table, whoever makes it, and
// tells the replicas of the cache in front of it.
//
// A cache whose writers all go through it tells its replicas itself. But a
// database has other writers: a nightly job, another service, a person with psql.
// Here the database itself writes down what changed, in the transaction that
// changes it: triggers fill a table, the outbox, and a [Relay] takes from there what
// is committed and tells it to the cache's log. (The backlog of a cache, of which
// [tidemark.Stats] speaks, is something else: what one process has not broadcast
// yet, in its memory.)
//
//	Install     makes the outbox and its triggers; Migration is its SQL
//	Check       verifies that they are in place
//	Untold      says how old the oldest change is that is not told
//	NewRelay    tells what is in the outbox; tidemark relay is a program of it
//	NewProber   lets Within hold against the database itself
//
// It needs PostgreSQL 14 or later.
//
// # What is heard
//
// Every INSERT, UPDATE, DELETE, MERGE, COPY and TRUNCATE on the table or one of its
// partitions, by whatever client, also with session_replication_role = replica, and
// a change of the key as one of both keys. A statement costs one INSERT of as many
// rows as it has changed, or of one row if they are more than Table.Bulk.
//
// Not heard is what fires no statement trigger, or happens where there is none:
// changes that logical replication applies to the table, partitions that are
// attached or detached, a column that ALTER TABLE rewrites, and all writes while a
// trigger is disabled or dropped. But the relay notices when partitions or triggers
// are not what they were, also if it was undone: it then tells once that everything
// may have changed, and answers no probe while one of the triggers is missing. Only a
// partition that is attached and detached again between two looks leaves no trace.
//
// # What is promised
//
// Each committed change is told at least once. A row leaves the outbox when the log
// has acknowledged what it says, by its id and not by a place in a sequence, so a
// transaction that commits late is not skipped (S35), and whoever is killed, relay,
// database or log, the rows are still there. Told twice is harmless: caches keep the
// larger version.
//
// Nothing is told before who reads the primary can see it: the relay itself has read
// it there. Standbys lag behind that, so a Loader that reads from them is Lagging.
//
// Changes are told in the order of their ids, which are drawn before the commit. A
// probe is told after every change that was committed before it was made: a change
// like that is visible when the probe is, and has a smaller id. See page.go.
//
// A transaction that stays open holds up nobody else's changes. It holds back from
// where the relay looks for them, the last id below which no transaction of before
// pg_snapshot_xmin can add one; so each look costs more until it ends.
//
// # Versions
//
// A change is told with the version that the row has, if the statement has raised
// it. If not, or if the row was deleted, caches are told that the key has changed
// and not to what: they drop what they have, and only a load brings it back. Set
// Table.Raise to have the database raise versions of rows whose writers do not.
// DELETE forgets a row's version, so a row that is made again under its key begins
// anew, and loads of it may fail with ErrStale until its deletion has been told:
// mark rows as deleted instead, as package store/sqlstore does.
//
// With synchronous_commit = off a crash of the server takes back what readers have
// seen, and versions with it; that is a new SourceEpoch.
//
// # Changing the table
//
// The triggers read the columns of the key and of the version. Rename or drop one of
// them, or the table, and install the outbox again in the same transaction: a trigger
// that fails fails its statement.
//
// # Privileges
//
// Install needs the owner of the table. The relay's role needs SELECT and DELETE on
// the outbox, SELECT on its sequence, and SELECT and UPDATE on the state:
//
//	GRANT SELECT, DELETE ON accounts_outbox TO relay;
//	GRANT SELECT ON accounts_outbox_id_seq TO relay;
//	GRANT SELECT, UPDATE ON accounts_outbox_state TO relay;
//
// A Prober's needs INSERT (origin, nonce) on the outbox. Who writes to the table
// needs nothing.
package outbox
