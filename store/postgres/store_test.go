package postgres

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

type account struct {
	Owner   string
	Balance int64
	Note    *string
}

var accountRow = RowCodec[account]{
	Columns: []string{"owner", "balance", "note"},
	Scan:    pgx.RowToStructByName[account],
	Values:  func(a account) ([]any, error) { return []any{a.Owner, a.Balance, a.Note}, nil },
}

func TestNew_ReportsEveryMistakeAtOnce(t *testing.T) {
	_, err := New(nil, Options[struct{ A int }, string]{
		Table: "accounts; DROP TABLE accounts", KeyType: "uuid; DROP", Timeout: time.Millisecond,
		Columns: Columns{Key: "a-b", Version: "same", Deleted: "same", Op: `"`},
		Value:   ValueCodec[string]{Encode: func(string) ([]byte, error) { return nil, nil }},
	})
	require.Error(t, err)
	for _, field := range []string{
		"db", "Table", "KeyType", "Timeout", "Columns.Key", "Columns.Deleted", "Columns.Op", "Key", "Value",
	} {
		assert.ErrorContains(t, err, "option "+field+" ")
	}
	var one *tidemark.OptionError
	require.ErrorAs(t, err, &one)
	assert.Equal(t, "db", one.Field)
}

func TestNew_ChecksRows(t *testing.T) {
	good := accountRow
	for name, o := range map[string]Options[string, account]{
		"needs Existing":              {Row: good},
		"has no Columns":              {Existing: true, Row: RowCodec[account]{Scan: good.Scan, Values: good.Values}},
		"needs Scan and Values":       {Existing: true, Row: RowCodec[account]{Columns: good.Columns, Scan: good.Scan}},
		`has column "a b"`:            {Existing: true, Row: RowCodec[account]{Columns: []string{"a b"}, Scan: good.Scan, Values: good.Values}},
		`has column "a" twice`:        {Existing: true, Row: RowCodec[account]{Columns: []string{"a", "a"}, Scan: good.Scan, Values: good.Values}},
		`is "owner", as is`:           {Existing: true, Row: good, Columns: Columns{Key: "owner"}},
		"is set, and so is Value":     {Existing: true, Row: good, Columns: Columns{Value: "v"}},
		`Columns.Value is "key", as`:  {Columns: Columns{Value: "key"}},
		"Columns.Version is \"1\", w": {Columns: Columns{Version: "1"}},
	} {
		_, err := New[string, account](new(pgx.Conn), o)
		assert.ErrorContains(t, err, name)
	}
	_, err := New[string, account](new(pgx.Conn), Options[string, account]{Existing: true, Row: good})
	assert.NoError(t, err)
}

func TestNew_ChecksNames(t *testing.T) {
	for name, good := range map[string]bool{
		"": true, "accounts": true, "Accounts_2": true, "billing.accounts": true, strings.Repeat("a", 46): true,
		strings.Repeat("a", 47): false, "2accounts": false, "a.b.c": false, `a"b`: false, "a b": false, "accounts\n": false,
	} {
		_, err := New[string, string](new(pgx.Conn), Options[string, string]{Table: name})
		assert.Equal(t, good, err == nil, "%q: %v", name, err)
	}
	for name, good := range map[string]bool{
		"uuid": true, "varchar(36)": true, "numeric(20,0)": true, "character varying": true, "public.citext": true,
		"uuid)": false, "uuid::text": false, "text; DROP": false, "'a'": false,
	} {
		_, err := New[string, string](new(pgx.Conn), Options[string, string]{KeyType: name})
		assert.Equal(t, good, err == nil, "%q: %v", name, err)
	}
}

// TestRow_SeveralColumnsOfAnExistingTable is the table of a service that was there
// before, with keys of a type of PostgreSQL's own.
func TestRow_SeveralColumnsOfAnExistingTable(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		db := newDB(t)
		const alice, bob, carol = "6f2c1e9e-5e0b-4a1c-9d53-0d3d5a2f7c11", "00000000-0000-0000-0000-000000000002", "00000000-0000-0000-0000-000000000003"
		exec(t, db, `CREATE TABLE accounts (id uuid PRIMARY KEY, owner text NOT NULL, balance integer NOT NULL CHECK (balance >= 0), note text,
			opened timestamptz NOT NULL DEFAULT now())`)
		exec(t, db, `INSERT INTO accounts (id, owner, balance) VALUES ('`+alice+`', 'Alice', 1200)`)
		s := newStore(t, db, Options[string, account]{
			Table: "accounts", Existing: true, Columns: Columns{Key: "id"}, KeyType: "uuid", Row: accountRow, HardDelete: hard,
		})
		require.NoError(t, s.CreateTables(t.Context()), "again")
		require.NoError(t, s.Check(t.Context()))

		got, v, err := s.Load(t.Context(), alice)
		require.NoError(t, err)
		assert.Equal(t, account{Owner: "Alice", Balance: 1200}, got)
		note := "it's"
		v, err = s.CompareAndSet(t.Context(), alice, v, account{"Alice", 850, &note}, newOp())
		require.NoError(t, err)
		_, err = s.CompareAndSet(t.Context(), bob, 0, account{Owner: "Bob"}, newOp())
		require.NoError(t, err)
		_, err = s.CompareAndSet(t.Context(), alice, v, account{"Alice", -1, nil}, newOp())
		require.ErrorIs(t, err, tidemark.ErrUnavailable, "the table's own constraint")
		_, err = s.CompareAndSet(t.Context(), "alice", 0, account{}, newOp())
		require.ErrorIs(t, err, tidemark.ErrUnavailable, "not a uuid")

		found, err := s.LoadMany(t.Context(), []string{carol, bob, alice})
		require.NoError(t, err)
		assert.Equal(t, map[string]tidemark.Loaded[account]{
			alice: {Value: account{"Alice", 850, &note}, Version: v},
			bob:   {Value: account{Owner: "Bob"}, Version: 1},
			carol: {Absent: true},
		}, found)
		versions, err := s.LoadVersions(t.Context(), []string{carol, bob, alice})
		require.NoError(t, err)
		assert.Equal(t, map[string]tidemark.Version{alice: v, bob: 1}, versions)

		deletion, err := s.CompareAndDelete(t.Context(), alice, v, newOp())
		require.NoError(t, err)
		rows := get[int](t, db, `SELECT count(*) FROM accounts`)
		assert.Equal(t, map[bool]int{false: 2, true: 1}[hard], rows)
		_, at, err := s.Load(t.Context(), alice)
		require.ErrorIs(t, err, tidemark.ErrNotFound)
		assert.Equal(t, deletion, at)
		v, err = s.CompareAndSet(t.Context(), alice, 0, account{Owner: "Alice"}, newOp())
		require.NoError(t, err)
		assert.Equal(t, deletion+1, v)
	}
}

func TestCheck_ReportsAllThatIsMissing(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s, err := New(db, Options[string, string]{Table: "notes", Existing: true, HardDelete: true, Columns: Columns{Op: "op"}})
	require.NoError(t, err)
	err = s.Check(t.Context())
	for _, what := range []string{`table "notes"`, `table "notes_ops"`, `table "notes_gone"`, "trigger tidemark_version", "trigger tidemark_truncate"} {
		assert.ErrorContains(t, err, what)
	}
	exec(t, db, `CREATE TABLE notes (key text, value text)`)
	require.NoError(t, s.CreateTables(t.Context()))
	require.EqualError(t, s.Check(t.Context()), `postgres: check: there is no unique key on "key" in table "notes"`)
	exec(t, db, `ALTER TABLE notes ADD PRIMARY KEY (key)`)
	require.NoError(t, s.Check(t.Context()))
	for breaks, want := range map[string]string{
		`ALTER TABLE notes DISABLE TRIGGER tidemark_version`:   "trigger tidemark_version",
		`DROP TRIGGER tidemark_truncate ON notes`:              "trigger tidemark_truncate",
		`ALTER TABLE notes DROP COLUMN version`:                `column "version"`,
		`ALTER TABLE notes DROP COLUMN value`:                  `column "value"`,
		`ALTER TABLE notes_ops DROP CONSTRAINT notes_ops_pkey`: `unique key on "op", "key"`,
		`DROP TABLE notes_gone`:                                `table "notes_gone"`,
	} {
		exec(t, db, breaks)
		assert.ErrorContains(t, s.Check(t.Context()), want, breaks)
	}
	elsewhere, err := New(db, Options[string, string]{Table: "nowhere.notes"})
	require.NoError(t, err)
	assert.ErrorContains(t, elsewhere.Check(t.Context()), `table "nowhere"."notes"`)
}

func TestNoTables_IsUnavailable(t *testing.T) {
	t.Parallel()
	s, err := New(newDB(t), Options[string, string]{})
	require.NoError(t, err)
	_, err = s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	assert.ErrorIs(t, err, tidemark.ErrUnavailable)
	_, _, err = s.Load(t.Context(), "k")
	require.Error(t, err)
	assert.NotErrorIs(t, err, tidemark.ErrNotFound)
	_, _, err = s.Outcome(t.Context(), "k", newOp())
	assert.Error(t, err)
}

func TestWrite_RefusesTheZeroOperation(t *testing.T) {
	t.Parallel()
	s := newStore(t, newDB(t), Options[string, string]{})
	_, err := s.CompareAndSet(t.Context(), "k", 0, "v", tidemark.OpID{})
	require.ErrorIs(t, err, tidemark.ErrUnavailable)
	requireState(t, s, "k", "", 0)
}

// TestWrite_BaseBeyondTheColumn: a version that has no next one is nobody's base.
func TestWrite_BaseBeyondTheColumn(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{})
	exec(t, db, `INSERT INTO tidemark (key, value, version) VALUES ('k', 'v', $1)`, int64(math.MaxInt64))
	for _, base := range []tidemark.Version{math.MaxInt64, math.MaxUint64} {
		_, err := s.CompareAndSet(t.Context(), "k", base, "w", newOp())
		require.ErrorAs(t, err, new(*tidemark.ConflictError))
		_, err = s.CompareAndDelete(t.Context(), "k", base, newOp())
		require.ErrorAs(t, err, new(*tidemark.ConflictError))
	}
}

// TestLoad_RefusesRowsThatMakeNoSense: a version that is none, a value that is
// NULL or of another form.
func TestLoad_RefusesRowsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	exec(t, db, `CREATE TABLE numbers (key text PRIMARY KEY, value text, version bigint)`)
	s := newStore(t, db, Options[string, int]{Table: "numbers", Existing: true, Value: ValueCodec[int]{
		Encode: func(int) ([]byte, error) { return nil, errors.New("not asked for") },
		Decode: func(b []byte) (n int, err error) {
			for _, c := range b {
				if c < '0' || c > '9' {
					return 0, errors.New("not a number")
				}
				n = 10*n + int(c-'0')
			}
			return n, nil
		},
	}})
	exec(t, db, `INSERT INTO numbers (key, value, version) VALUES
		('good', '12', 7), ('zero', '1', 0), ('negative', '1', -3), ('none', '1', NULL), ('null', NULL, 1), ('words', 'twelve', 1)`)
	keys := []string{"good", "zero", "negative", "none", "null", "words"}
	found, err := s.LoadMany(t.Context(), keys)
	require.NoError(t, err)
	assert.Equal(t, tidemark.Loaded[int]{Value: 12, Version: 7}, found["good"])
	for _, k := range keys[1:] {
		require.Error(t, found[k].Err, k)
		_, _, err := s.Load(t.Context(), k)
		require.Error(t, err, k)
		require.NotErrorIs(t, err, tidemark.ErrNotFound)
	}
	versions, err := s.LoadVersions(t.Context(), keys)
	require.NoError(t, err)
	assert.Equal(t, map[string]tidemark.Version{"good": 7, "null": 1, "words": 1}, versions)
}

func TestCodecs_ErrorsReachTheCaller(t *testing.T) {
	t.Parallel()
	refused := errors.New("no such tenant")
	s := newStore(t, newDB(t), Options[string, string]{
		Key: KeyCodec[string]{Encode: func(k string) ([]byte, error) {
			if k == "bad" {
				return nil, refused
			}
			return []byte(k), nil
		}, Binary: true},
		Value: ValueCodec[string]{
			Encode: func(string) ([]byte, error) { return nil, refused },
			Decode: func(b []byte) (string, error) { return string(b), nil },
		},
	})
	for name, call := range map[string]func() error{
		"key of set":    func() error { _, err := s.CompareAndSet(t.Context(), "bad", 1, "v", newOp()); return err },
		"value of set":  func() error { _, err := s.CompareAndSet(t.Context(), "good", 1, "v", newOp()); return err },
		"key of delete": func() error { _, err := s.CompareAndDelete(t.Context(), "bad", 1, newOp()); return err },
	} {
		err := call()
		assert.ErrorIs(t, err, refused, name)
		assert.ErrorIs(t, err, tidemark.ErrUnavailable, name)
	}
	_, _, err := s.Load(t.Context(), "bad")
	assert.ErrorIs(t, err, refused)
	_, _, err = s.Outcome(t.Context(), "bad", newOp())
	assert.ErrorIs(t, err, refused)
	found, err := s.LoadMany(t.Context(), []string{"bad", "good"})
	require.NoError(t, err)
	assert.ErrorIs(t, found["bad"].Err, refused)
	assert.Equal(t, tidemark.Loaded[string]{Absent: true}, found["good"])
	versions, err := s.LoadVersions(t.Context(), []string{"bad", "good"})
	require.NoError(t, err)
	assert.Empty(t, versions)
}

// roundTrip writes each value and reads it back, alone and in bulk.
func roundTrip[V any](t *testing.T, db DB, values ...V) {
	t.Helper()
	s := newStore(t, db, Options[string, V]{Table: randomName()})
	var v tidemark.Version
	for _, want := range values {
		next, err := s.CompareAndSet(t.Context(), "k", v, want, newOp())
		require.NoError(t, err)
		v = next
		got, _, err := s.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, want, got)
		found, err := s.LoadMany(t.Context(), []string{"k"})
		require.NoError(t, err)
		assert.Equal(t, tidemark.Loaded[V]{Value: want, Version: v}, found["k"])
	}
}

func TestValuesAndKeys_OfEveryKindComeBack(t *testing.T) {
	t.Parallel()
	type cents int64
	type id int32
	type uuid [16]byte
	for name, mode := range map[string]pgx.QueryExecMode{"prepared": pgx.QueryExecModeCacheStatement, "simple": pgx.QueryExecModeSimpleProtocol} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t, withMode(mode))
			roundTrip(t, db, []byte{0, 1, 255}, []byte{}, []byte("it's \\ and \x80"))
			roundTrip[int64](t, db, 0, -1, 1<<63-1, -1<<63)
			roundTrip[int8](t, db, 127, -128)
			roundTrip[cents](t, db, 0, 1200)
			roundTrip(t, db, "", "it's", "日本", "with \" and \\")
			roundTrip(t, db, 0.1, -3)
			roundTrip(t, db, true, false)
			roundTrip(t, db, account{Owner: "it's"}, account{})
			roundTrip[*account](t, db, &account{Owner: "alice"}, nil)

			tellApart(t, db, Options[string, int]{}, "", "a", "A", "a ", " a", "á", `{"a",b}`, "NULL")
			tellApart(t, db, Options[int64, int]{}, 0, 1, -1, 1<<63-1, -1<<63)
			tellApart(t, db, Options[id, int]{HardDelete: true}, 0, 7, -7)
			tellApart(t, db, Options[uuid, int]{Key: KeyCodec[uuid]{
				Encode: func(u uuid) ([]byte, error) { return u[:], nil },
				Binary: true,
			}}, uuid{}, uuid{1}, uuid{0, 1}, uuid{0xff, 0x80, '\'', '\\'})

			s := newStore(t, db, Options[string, uint64]{Table: randomName()})
			_, err := s.CompareAndSet(t.Context(), "k", 0, 1<<63, newOp())
			assert.ErrorIs(t, err, tidemark.ErrUnavailable, "does not fit and is certainly not committed")
			_, err = s.CompareAndSet(t.Context(), strings.Repeat("k", 1025), 0, 1, newOp())
			assert.ErrorIs(t, err, tidemark.ErrUnavailable)
		})
	}
}

// tellApart writes each key and reads all of them back, alone and in bulk.
func tellApart[K comparable](t *testing.T, db DB, o Options[K, int], keys ...K) {
	t.Helper()
	o.Table = randomName()
	s := newStore(t, db, o)
	for i, k := range keys {
		_, err := s.CompareAndSet(t.Context(), k, 0, i, newOp())
		require.NoError(t, err)
	}
	found, err := s.LoadMany(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, found, len(keys))
	for i, k := range keys {
		got, v, err := s.Load(t.Context(), k)
		require.NoError(t, err)
		assert.Equal(t, i, got)
		assert.Equal(t, tidemark.Loaded[int]{Value: i, Version: v}, found[k])
		_, err = s.CompareAndDelete(t.Context(), k, v, newOp())
		require.NoError(t, err)
	}
}

// TestJSONB: the text of a value fits columns that take text in.
func TestJSONB(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	exec(t, db, `CREATE TABLE accounts (key text PRIMARY KEY, value jsonb NOT NULL)`)
	s := newStore(t, db, Options[string, account]{Table: "accounts", Existing: true})
	v, err := s.CompareAndSet(t.Context(), "alice", 0, account{Owner: "Alice", Balance: 3}, newOp())
	require.NoError(t, err)
	exec(t, db, `UPDATE accounts SET value = jsonb_set(value, '{Balance}', '4') WHERE value->>'Owner' = 'Alice'`)
	got, at, err := s.Load(t.Context(), "alice")
	require.NoError(t, err)
	assert.Equal(t, account{Owner: "Alice", Balance: 4}, got)
	assert.Equal(t, v+1, at)
}

func TestPrune_ForgetsOldWritesOnly(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := newStore(t, db, Options[string, string]{})
	old, recent := newOp(), newOp()
	v, err := s.CompareAndSet(t.Context(), "k", 0, "first", old)
	require.NoError(t, err)
	const lines = 2*pruneBatch + 7
	exec(t, db, `INSERT INTO tidemark_ops SELECT int8send(n), 'other', 1, committed_at FROM generate_series(2, $1::bigint) n, tidemark_ops`, lines)
	exec(t, db, `UPDATE tidemark_ops SET committed_at = committed_at - 7200`)
	_, err = s.CompareAndSet(t.Context(), "k", v, "second", recent)
	require.NoError(t, err)

	n, err := s.Prune(t.Context(), 3*time.Hour)
	require.NoError(t, err)
	assert.Zero(t, n, "nothing is that old")
	n, err = s.Prune(t.Context(), time.Hour)
	require.NoError(t, err)
	assert.EqualValues(t, lines, n)
	_, committed, err := s.Outcome(t.Context(), "k", old)
	require.NoError(t, err)
	assert.False(t, committed)
	_, committed, err = s.Outcome(t.Context(), "k", recent)
	require.NoError(t, err)
	assert.True(t, committed)

	_, err = s.Prune(t.Context(), 59*time.Second)
	assert.Error(t, err, "a write in doubt could be forgotten")
	slow, err := New(db, Options[string, string]{Timeout: time.Minute})
	require.NoError(t, err)
	_, err = slow.Prune(t.Context(), 119*time.Second)
	assert.Error(t, err, "a write in doubt could be forgotten")
}
