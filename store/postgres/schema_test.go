package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// TestS36_HandWrittenSQL: those who know nothing of versions cannot break them.
func TestS36_HandWrittenSQL(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{Table: "accounts"})
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '1')`)
	value, v1, err := s.Load(t.Context(), "alice")
	require.NoError(t, err)
	assert.Equal(t, "1", value)

	op := newOp()
	v2, err := s.CompareAndSet(t.Context(), "alice", v1, "2", op)
	require.NoError(t, err)
	assert.Equal(t, v1+1, v2)
	exec(t, db, `UPDATE accounts SET value = '3'`)
	requireState(t, s, "alice", "3", v2+1)
	_, err = s.CompareAndSet(t.Context(), "alice", v2, "4", newOp())
	var conflict *tidemark.ConflictError
	require.ErrorAs(t, err, &conflict, "a write based on what was there before")
	assert.Equal(t, tidemark.ConflictError{Current: v2 + 1}, *conflict)
	found, committed, err := s.Outcome(t.Context(), "alice", op)
	require.NoError(t, err)
	assert.True(t, committed)
	assert.Equal(t, v2, found, "the write's own version")

	exec(t, db, `UPDATE accounts SET value = '5', version = 1`)
	requireState(t, s, "alice", "5", v2+2)
	exec(t, db, `UPDATE accounts SET version = version + 1`)
	requireState(t, s, "alice", "5", v2+3)
	exec(t, db, `UPDATE accounts SET version = version + 1000`)
	requireState(t, s, "alice", "5", v2+1003)

	exec(t, db, `UPDATE accounts SET deleted = TRUE`)
	_, gone, err := s.Load(t.Context(), "alice")
	require.ErrorIs(t, err, tidemark.ErrNotFound)
	assert.Equal(t, v2+1004, gone)
	back, err := s.CompareAndSet(t.Context(), "alice", 0, "6", newOp())
	require.NoError(t, err)
	assert.Equal(t, gone+1, back)

	for _, refused := range []string{
		`DELETE FROM accounts`, `TRUNCATE accounts`, `UPDATE accounts SET key = 'bob'`,
		`UPDATE accounts SET value = NULL`, `INSERT INTO accounts (key, value, version) VALUES ('bob', '1', 0)`,
	} {
		_, err := db.Exec(t.Context(), refused)
		assert.Error(t, err, refused)
	}
	requireState(t, s, "alice", "6", back)
}

// TestS17_HardDelete: a key's versions survive its row, whoever removes it and
// whoever brings it back.
func TestS17_HardDelete(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{Table: "accounts", HardDelete: true})
	absent := func(v tidemark.Version) {
		t.Helper()
		_, at, err := s.Load(t.Context(), "alice")
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		require.Equal(t, v, at)
		found, err := s.LoadMany(t.Context(), []string{"alice"})
		require.NoError(t, err)
		require.Equal(t, tidemark.Loaded[string]{Absent: true, Version: v}, found["alice"])
		require.Zero(t, get[int](t, db, "SELECT count(*) FROM accounts"))
	}
	absent(0)
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '1')`)
	exec(t, db, `UPDATE accounts SET value = '2'`)
	requireState(t, s, "alice", "2", 2)
	exec(t, db, `DELETE FROM accounts`)
	absent(3)
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '4')`)
	requireState(t, s, "alice", "4", 4)
	require.Zero(t, get[int](t, db, "SELECT count(*) FROM accounts_gone"))
	v, err := s.CompareAndDelete(t.Context(), "alice", 4, newOp())
	require.NoError(t, err)
	require.EqualValues(t, 5, v)
	absent(5)
	_, err = s.CompareAndDelete(t.Context(), "alice", 4, newOp())
	var conflict *tidemark.ConflictError
	require.ErrorAs(t, err, &conflict)
	assert.Equal(t, tidemark.ConflictError{Current: 5, Absent: true}, *conflict)
	v, err = s.CompareAndSet(t.Context(), "alice", 0, "6", newOp())
	require.NoError(t, err)
	require.EqualValues(t, 6, v)
	exec(t, db, `DELETE FROM accounts`)
	exec(t, db, `INSERT INTO accounts (key, value, version) VALUES ('alice', '4', 100)`)
	requireState(t, s, "alice", "4", 100)
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '5') ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value`)
	requireState(t, s, "alice", "5", 101)
	_, err = db.Exec(t.Context(), `INSERT INTO accounts (key, value) VALUES ('alice', '5')`)
	require.Error(t, err)
	require.Zero(t, get[int](t, db, "SELECT count(*) FROM accounts_gone"))
	for _, refused := range []string{`TRUNCATE accounts`, `UPDATE accounts SET key = 'bob'`} {
		_, err := db.Exec(t.Context(), refused)
		assert.Error(t, err, refused)
	}
}

// TestS17_RowsThatAreNotInserted leave the version of their key as it was, and so does
// a row that a trigger deletes at once.
func TestS17_RowsThatAreNotInserted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, insert string
		want           tidemark.Version
	}{
		"ON CONFLICT DO NOTHING": {``, `INSERT INTO accounts (key, value, email) VALUES ('alice', '9', 'b@x') ON CONFLICT (email) DO NOTHING`, 5},
		"ON CONFLICT DO UPDATE":  {``, `INSERT INTO accounts (key, value, email) VALUES ('alice', '9', 'b@x') ON CONFLICT (email) DO UPDATE SET value = 'C'`, 5},
		"a trigger says no": {`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			CREATE TRIGGER zz BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION no()`,
			`INSERT INTO accounts (key, value) VALUES ('alice', '9')`, 5},
		"a trigger deletes": {`CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM accounts WHERE key = NEW.key; RETURN NULL; END';
			CREATE TRIGGER aa AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION away()`,
			`INSERT INTO accounts (key, value) VALUES ('alice', '9')`, 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			exec(t, db, `CREATE TABLE accounts (key text COLLATE "C" PRIMARY KEY, value text, email text UNIQUE)`)
			s := newStore(t, db, Options[string, string]{Table: "accounts", Existing: true, HardDelete: true})
			exec(t, db, `INSERT INTO accounts (key, value, email) VALUES ('bob', 'B', 'b@x')`)
			exec(t, db, `INSERT INTO accounts (key, value, version) VALUES ('alice', '1', 4)`)
			exec(t, db, `DELETE FROM accounts WHERE key = 'alice'`)
			exec(t, db, c.before)
			exec(t, db, c.insert)
			_, gone, err := s.Load(t.Context(), "alice")
			require.ErrorIs(t, err, tidemark.ErrNotFound)
			require.Equal(t, c.want, gone)
		})
	}
}

// TestS17_TheTriggerThatCameLater is made where the tables are there already, and
// missed where it is not.
func TestS17_TheTriggerThatCameLater(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{Table: "accounts", HardDelete: true})
	exec(t, db, `DROP TRIGGER tidemark_inserted ON accounts`)
	require.ErrorContains(t, s.Check(t.Context()), "tidemark_inserted")
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '1')`)
	exec(t, db, `DELETE FROM accounts`)
	require.NoError(t, s.CreateTables(t.Context()))
	require.NoError(t, s.Check(t.Context()))
	exec(t, db, `INSERT INTO accounts (key, value) VALUES ('alice', '3')`)
	requireState(t, s, "alice", "3", 3)
	require.Zero(t, get[int](t, db, "SELECT count(*) FROM accounts_gone"))
}

// TestS17_WritersOfOtherRightsAndPaths may do to the table what they may, and need to
// know nothing of the other one.
func TestS17_WritersOfOtherRightsAndPaths(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	db := open(t, server.URL, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "app, other" })
	exec(t, db, `CREATE SCHEMA app; CREATE SCHEMA other; CREATE ROLE clerk LOGIN; CREATE TABLE other.accounts (key text PRIMARY KEY, value text)`)
	s := newStore(t, db, Options[string, string]{Table: "accounts", Existing: true, HardDelete: true})
	require.NoError(t, s.Check(t.Context()))
	exec(t, db, `GRANT USAGE ON SCHEMA other TO clerk; GRANT INSERT, DELETE ON other.accounts TO clerk`)
	clerk := open(t, server.URL, func(c *pgxpool.Config) { c.ConnConfig.User = "clerk" })
	exec(t, clerk, `INSERT INTO other.accounts VALUES ('alice', '1')`)
	exec(t, clerk, `DELETE FROM other.accounts`)
	exec(t, clerk, `INSERT INTO other.accounts VALUES ('alice', '3')`)
	requireState(t, s, "alice", "3", 3)
}

// TestS17_S22_EveryChangeHasItsVersion has stores and hand-written SQL change,
// remove and create the same few keys at once. Whoever did it, each change that was
// committed has the version after that of the one before it.
func TestS17_S22_EveryChangeHasItsVersion(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		t.Run(fmt.Sprintf("hard=%t", hard), func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			s := newStore(t, db, Options[int, string]{Table: "accounts", HardDelete: hard})
			remove := `UPDATE accounts SET deleted = TRUE WHERE key = $1 AND NOT deleted RETURNING version`
			insert := `INSERT INTO accounts (key, value) VALUES ($1, 'sql') ON CONFLICT (key) DO UPDATE SET value = 'again', deleted = FALSE RETURNING version`
			if hard {
				remove = `DELETE FROM accounts WHERE key = $1 RETURNING version + 1`
				insert = `INSERT INTO accounts (key, value) VALUES ($1, 'sql') ON CONFLICT (key) DO UPDATE SET value = 'again' RETURNING version`
			}
			const keys = 3
			var mu sync.Mutex // guards seen
			var seen [keys]map[tidemark.Version]int
			for k := range seen {
				seen[k] = map[tidemark.Version]int{}
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 150 {
						k := rand.IntN(keys)
						v, err := changeSomehow(t.Context(), s, db, k, remove, insert)
						if err != nil {
							t.Errorf("%v", err)
							return
						}
						mu.Lock()
						if v != 0 {
							seen[k][v]++
						}
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			for k, versions := range seen {
				_, last, err := s.Load(t.Context(), k)
				require.True(t, err == nil || errors.Is(err, tidemark.ErrNotFound), err)
				require.Greater(t, last, tidemark.Version(30))
				for v := tidemark.Version(1); v <= last; v++ {
					require.Equal(t, 1, versions[v], "changes of key %d to version %d", k, v)
				}
				require.Len(t, versions, int(last))
			}
		})
	}
}

// changeSomehow makes a random change of a key and returns its version, or 0 if
// there was nothing to change or somebody else was first.
func changeSomehow(ctx context.Context, s *Store[int, string], db *pgxpool.Pool, k int, remove, insert string) (tidemark.Version, error) {
	byHand := func(query string) (tidemark.Version, error) {
		rows, err := db.Query(ctx, query, k)
		if err != nil {
			return 0, err
		}
		v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
		var answer *pgconn.PgError
		if errors.Is(err, pgx.ErrNoRows) || errors.As(err, &answer) && answer.Code == "40P01" {
			return 0, nil
		}
		return tidemark.Version(v), err
	}
	switch rand.IntN(6) {
	case 0:
		return byHand(remove)
	case 1:
		return byHand(insert)
	case 2:
		return byHand(`UPDATE accounts SET value = value || '.' WHERE key = $1 AND value IS NOT NULL RETURNING version`)
	}
	_, base, err := s.Load(ctx, k)
	if absent := errors.Is(err, tidemark.ErrNotFound); absent {
		base = 0
	} else if err != nil {
		return 0, err
	}
	var v tidemark.Version
	if base != 0 && rand.IntN(2) == 0 {
		v, err = s.CompareAndDelete(ctx, k, base, newOp())
	} else {
		v, err = s.CompareAndSet(ctx, k, base, "store", newOp())
	}
	if errors.Is(err, tidemark.ErrUnavailable) || errors.As(err, new(*tidemark.ConflictError)) {
		return 0, nil
	}
	return v, err
}

// TestS17_CreatedWhileOthersAreUnderWay: what others are about to do to a key cannot
// be seen yet, and has to be waited for.
func TestS17_CreatedWhileOthersAreUnderWay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, first, then string
		want                tidemark.Version
	}{
		"a deletion":                       {`INSERT INTO accounts (key, value, version) VALUES ('alice', '1', 7)`, `DELETE FROM accounts`, ``, 9},
		"a creation and a deletion":        {``, `INSERT INTO accounts VALUES ('alice', '1')`, `DELETE FROM accounts`, 3},
		"another creation and deletion":    {`INSERT INTO accounts_gone VALUES ('alice', 7)`, `INSERT INTO accounts VALUES ('alice', '1')`, `DELETE FROM accounts`, 10},
		"a deletion, creation, deletion":   {`INSERT INTO accounts VALUES ('alice', '1')`, `DELETE FROM accounts; INSERT INTO accounts VALUES ('alice', '1')`, `DELETE FROM accounts`, 5},
		"a creation that is not committed": {`INSERT INTO accounts_gone VALUES ('alice', 7)`, `INSERT INTO accounts VALUES ('alice', '1')`, `ROLLBACK`, 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			s := newStore(t, db, Options[string, string]{Table: "accounts", HardDelete: true, Timeout: time.Minute})
			exec(t, db, c.before)
			tx, err := db.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(context.WithoutCancel(t.Context()))
			_, err = tx.Exec(t.Context(), c.first)
			require.NoError(t, err)
			created := make(chan error, 1)
			var v tidemark.Version
			go func() {
				var err error
				v, err = s.CompareAndSet(context.WithoutCancel(t.Context()), "alice", 0, "2", newOp())
				created <- err
			}()
			require.Eventually(t, func() bool {
				return get[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
			}, patience, 5*time.Millisecond)
			_, err = tx.Exec(t.Context(), c.then)
			require.NoError(t, err)
			_ = tx.Commit(t.Context()) // which says so if it has been rolled back
			require.NoError(t, <-created)
			require.Equal(t, c.want, v)
		})
	}
}

// TestCreateTables_ManyAtOnce, and beside a reader who will not end.
func TestCreateTables_ManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, o := range []Options[string, string]{{}, {HardDelete: true}, {Existing: true, Table: "mine"}} {
		db := newDB(t)
		exec(t, db, `CREATE TABLE mine (key text PRIMARY KEY, value text)`)
		s, err := New(db, o)
		require.NoError(t, err)
		create := func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { assert.NoError(t, s.CreateTables(ctx)) })
			}
			wg.Wait()
		}
		create()
		v, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
		require.NoError(t, err)
		require.NoError(t, s.Check(t.Context()))

		tx, err := db.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "SELECT FROM "+s.layout.render("{table}")+" FOR UPDATE")
		require.NoError(t, err)
		create() // there is nothing to do, for which it needs no lock
		require.NoError(t, tx.Rollback(t.Context()))
		requireState(t, s, "k", "v", v)
	}
}

// TestSchema_IsSQLStores: a table of sqlstore's can be taken over, and both packages
// can write to it at once.
func TestSchema_IsSQLStores(t *testing.T) {
	t.Parallel()
	pool := newDB(t)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	other, err := sqlstore.New(db, sqlstore.Options[string, int]{Dialect: sqlstore.PostgreSQL, Table: "counters"})
	require.NoError(t, err)
	require.NoError(t, other.CreateTables(t.Context()))
	op := newOp()
	v, err := other.CompareAndSet(t.Context(), "n", 0, 0, op)
	require.NoError(t, err)
	s := newStore(t, pool, Options[string, int]{Table: "counters"})
	require.NoError(t, s.Check(t.Context()))
	at, committed, err := s.Outcome(t.Context(), "n", op)
	require.NoError(t, err)
	require.True(t, committed)
	require.Equal(t, v, at)

	var wg sync.WaitGroup
	const each = 50
	for _, store := range []tidemark.Store[string, int]{s, other, s, other} {
		wg.Go(func() {
			for done := 0; done < each; {
				n, base, err := store.Load(t.Context(), "n")
				if err == nil {
					_, err = store.CompareAndSet(t.Context(), "n", base, n+1, newOp())
				}
				switch {
				case err == nil:
					done++
				case !errors.Is(err, tidemark.ErrUnavailable) && !errors.As(err, new(*tidemark.ConflictError)):
					t.Errorf("%v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, store := range []tidemark.Store[string, int]{s, other} {
		n, v, err := store.Load(t.Context(), "n")
		require.NoError(t, err)
		assert.Equal(t, 4*each, n)
		assert.EqualValues(t, 4*each+1, v)
	}
	gone, err := other.CompareAndDelete(t.Context(), "n", 4*each+1, newOp())
	require.NoError(t, err)
	back, err := s.CompareAndSet(t.Context(), "n", 0, 1, newOp())
	require.NoError(t, err)
	gone2, err := s.CompareAndDelete(t.Context(), "n", back, newOp())
	require.NoError(t, err)
	back2, err := other.CompareAndSet(t.Context(), "n", 0, 1, newOp())
	require.NoError(t, err)
	assert.Equal(t, []tidemark.Version{gone + 1, gone + 2, gone + 3}, []tidemark.Version{back, gone2, back2})
}

// TestCreateTables_StatesTheRightsThatAreNeeded, and no more than these.
func TestCreateTables_StatesTheRightsThatAreNeeded(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	admin := open(t, server.URL)
	exec(t, admin, `CREATE ROLE service LOGIN`)
	for _, hard := range []bool{false, true} {
		o := Options[string, string]{Table: fmt.Sprintf("accounts_%t", hard), HardDelete: hard}
		owner := newStore(t, admin, o)
		exec(t, admin, owner.layout.render(`GRANT SELECT, INSERT, UPDATE ON {table} TO service`))
		exec(t, admin, owner.layout.render(`GRANT SELECT, INSERT, DELETE ON {journal} TO service`))
		if hard {
			exec(t, admin, owner.layout.render(`GRANT DELETE ON {table} TO service; GRANT SELECT ON {gone} TO service`))
		}
		s, err := New(open(t, server.URL, func(c *pgxpool.Config) { c.ConnConfig.User = "service" }), o)
		require.NoError(t, err)
		require.NoError(t, s.Check(t.Context()))
		require.Error(t, s.CreateTables(t.Context()))
		v, err := s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
		require.NoError(t, err)
		v, err = s.CompareAndSet(t.Context(), "k", v, "w", newOp())
		require.NoError(t, err)
		op := newOp()
		v, err = s.CompareAndDelete(t.Context(), "k", v, op)
		require.NoError(t, err)
		_, committed, err := s.Outcome(t.Context(), "k", op)
		require.NoError(t, err)
		require.True(t, committed)
		_, at, err := s.Load(t.Context(), "k")
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		require.Equal(t, v, at)
		_, err = s.Prune(t.Context(), time.Hour)
		require.NoError(t, err)
	}
}
