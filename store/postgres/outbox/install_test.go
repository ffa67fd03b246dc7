package outbox

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// TestTriggers_AnyWriterIsHeard runs statements, and looks at what is in the outbox.
func TestTriggers_AnyWriterIsHeard(t *testing.T) {
	d := newDatabase(t, Table{Name: "accounts", Bulk: 50})
	const (
		three = `INSERT INTO accounts (key, value, version) VALUES ('a', 1, 5), ('b', 2, 7), ('c', 3, 9)`
		swap  = `UPDATE accounts SET key = CASE key WHEN 'a' THEN 'b' ELSE 'a' END WHERE key IN ('a', 'b')`
	)
	for name, tt := range map[string]struct {
		commands []string
		want     []string
	}{
		"insert":                       {[]string{`INSERT INTO accounts VALUES ('x', 1, 1), ('y', 2, 3)`}, []string{"x@1", "y@3"}},
		"insert without a version":     {[]string{`INSERT INTO accounts VALUES ('x', 1, 0)`}, []string{"x@1"}},
		"update that raises":           {[]string{`UPDATE accounts SET value = 0, version = version + 1 WHERE key <> 'b'`}, []string{"a@6", "c@10"}},
		"update that does not":         {[]string{`UPDATE accounts SET value = 0 WHERE key = 'b'`}, []string{"b"}},
		"update that goes back":        {[]string{`UPDATE accounts SET version = 1 WHERE key = 'b'`}, []string{"b"}},
		"update of nothing":            {[]string{`UPDATE accounts SET value = 0 WHERE false`}, []string{}},
		"delete":                       {[]string{`DELETE FROM accounts WHERE key < 'c'`}, []string{"a", "b"}},
		"delete and insert":            {[]string{`DELETE FROM accounts WHERE key = 'a'`, `INSERT INTO accounts VALUES ('a', 1, 1)`}, []string{"a@1", "a"}},
		"truncate":                     {[]string{`TRUNCATE accounts`}, []string{"*"}},
		"change of the key":            {[]string{`UPDATE accounts SET key = 'z', version = version + 1 WHERE key = 'a'`}, []string{"a", "z@6"}},
		"swap of keys":                 {[]string{`ALTER TABLE accounts DROP CONSTRAINT accounts_pkey, ADD PRIMARY KEY (key) DEFERRABLE`, swap, `ALTER TABLE accounts DROP CONSTRAINT accounts_pkey, ADD PRIMARY KEY (key)`}, []string{"a@7", "b"}}, // b has a smaller version than it had
		"on conflict":                  {[]string{`INSERT INTO accounts VALUES ('a', 1, 1), ('n', 1, 1) ON CONFLICT (key) DO UPDATE SET version = accounts.version + 1`}, []string{"a@6", "n@1"}},
		"on conflict do nothing":       {[]string{`INSERT INTO accounts VALUES ('a', 1, 1) ON CONFLICT DO NOTHING`}, []string{}},
		"merge":                        {[]string{`MERGE INTO accounts a USING (VALUES ('a'), ('m')) v (k) ON a.key = v.k WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES ('m', 1, 1)`}, []string{"a", "m@1"}},
		"in a WITH":                    {[]string{`WITH u AS (UPDATE accounts SET version = version + 1 WHERE key = 'a' RETURNING 1) SELECT 1`}, []string{"a@6"}},
		"as a replica":                 {[]string{`SET session_replication_role = replica`, `UPDATE accounts SET version = 6 WHERE key = 'a'`, `RESET session_replication_role`}, []string{"a@6"}},
		"from a function":              {[]string{`DO $$ BEGIN UPDATE accounts SET version = 6 WHERE key = 'a'; END $$`}, []string{"a@6"}},
		"rolled back":                  {[]string{`BEGIN`, `UPDATE accounts SET version = 6 WHERE key = 'a'`, `ROLLBACK`}, []string{}},
		"rolled back to a savepoint":   {[]string{`BEGIN`, `SAVEPOINT s`, `UPDATE accounts SET version = 6`, `ROLLBACK TO s`, `UPDATE accounts SET version = 12 WHERE key = 'c'`, `COMMIT`}, []string{"c@12"}},
		"more than Bulk":               {[]string{`INSERT INTO accounts SELECT 'm' || n, n, 1 FROM generate_series(1, 51) n`}, []string{"*"}},
		"update of more than Bulk":     {[]string{`INSERT INTO accounts SELECT 'm' || n, n, 1 FROM generate_series(1, 48) n`, `DELETE FROM accounts_outbox`, `UPDATE accounts SET version = version + 1`}, []string{"*"}},
		"delete of more than Bulk":     {[]string{`INSERT INTO accounts SELECT 'm' || n, n, 1 FROM generate_series(1, 48) n`, `DELETE FROM accounts_outbox`, `DELETE FROM accounts`}, []string{"*"}},
		"exactly Bulk":                 {[]string{`DELETE FROM accounts`, `DELETE FROM accounts_outbox`, `INSERT INTO accounts SELECT 'm', n, 1 FROM generate_series(1, 1) n`, `UPDATE accounts SET version = 2`}, []string{"m@1", "m@2"}},
		"through a view":               {[]string{`CREATE VIEW v AS SELECT * FROM accounts`, `UPDATE v SET version = 6 WHERE key = 'a'`, `DROP VIEW v`}, []string{"a@6"}},
		"cascade of a foreign key":     {[]string{`CREATE TABLE owners (id int PRIMARY KEY)`, `ALTER TABLE accounts ADD owner int REFERENCES owners ON DELETE CASCADE`, `INSERT INTO owners VALUES (1)`, `UPDATE accounts SET owner = 1, version = 6 WHERE key = 'a'`, `DELETE FROM owners`, `ALTER TABLE accounts DROP owner`, `DROP TABLE owners`}, []string{"a@6", "a"}},
		"by a role without privileges": {[]string{`CREATE ROLE tidemark_clerk`, `GRANT ALL ON accounts TO tidemark_clerk`, `SET ROLE tidemark_clerk`, `UPDATE accounts SET version = 6 WHERE key = 'a'`, `RESET ROLE`, `REVOKE ALL ON accounts FROM tidemark_clerk`, `DROP ROLE tidemark_clerk`}, []string{"a@6"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &database{t, d.url, d.Conn}
			d.exec(`DELETE FROM accounts`, three, `DELETE FROM accounts_outbox`)
			d.exec(tt.commands...)
			assert.Equal(t, tt.want, d.outboxed())
		})
	}
	t.Run("copy", func(t *testing.T) {
		d := &database{t, d.url, d.Conn}
		d.exec(`DELETE FROM accounts`, `DELETE FROM accounts_outbox`)
		_, err := d.CopyFrom(t.Context(), pgx.Identifier{"accounts"}, []string{"key", "value", "version"},
			pgx.CopyFromRows([][]any{{"p", 1, 2}, {"q", 1, 3}}))
		require.NoError(t, err)
		assert.Equal(t, []string{"p@2", "q@3"}, d.outboxed())
	})
}

// TestTriggers_Partitions: a statement fires the triggers of the table that it
// names, be it the whole or a part.
func TestTriggers_Partitions(t *testing.T) {
	d := newDatabase(t, Table{})
	d.exec(`DROP TABLE accounts`,
		`CREATE TABLE accounts (key text, value bigint, version bigint, PRIMARY KEY (key)) PARTITION BY RANGE (key)`,
		`CREATE TABLE accounts_low PARTITION OF accounts FOR VALUES FROM ('a') TO ('m')`,
		`CREATE TABLE accounts_high PARTITION OF accounts FOR VALUES FROM ('m') TO ('zz') PARTITION BY RANGE (key)`,
		`CREATE TABLE accounts_top PARTITION OF accounts_high FOR VALUES FROM ('m') TO ('zz')`)
	table := Table{Name: "accounts", Raise: true}
	require.NoError(t, Install(t.Context(), d, table))
	require.NoError(t, Check(t.Context(), d, table))
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{`INSERT INTO accounts VALUES ('a', 1, 1), ('n', 1, 1)`, []string{"a@1", "n@1"}},
		{`INSERT INTO accounts_low VALUES ('b', 1, 1)`, []string{"b@1"}},
		{`UPDATE accounts_top SET value = 2`, []string{"n@2"}},
		{`UPDATE accounts_high SET value = 3`, []string{"n@3"}},
		{`UPDATE accounts SET value = 4`, []string{"a@2", "b@2", "n@4"}},
		{`UPDATE accounts SET key = 'z' WHERE key = 'a'`, []string{"a", "z@3"}}, // to another part
		{`TRUNCATE accounts_low`, []string{"*"}},
	} {
		d.exec(tt.command)
		assert.Equal(t, tt.want, d.outboxed(), tt.command)
	}
	d.exec(`CREATE TABLE accounts_new PARTITION OF accounts FOR VALUES FROM ('zz') TO ('zzz')`)
	var problems *CheckError
	require.ErrorAs(t, Check(t.Context(), d, table), &problems)
	assert.Contains(t, problems.Error(), "accounts_outbox_insert on accounts_new")
	require.NoError(t, Install(t.Context(), d, table))
	require.NoError(t, Check(t.Context(), d, table))
}

// TestTriggers_WithoutAVersion: a key of several rows is told once.
func TestTriggers_WithoutAVersion(t *testing.T) {
	d := newDatabase(t, Table{})
	d.exec(`DROP TABLE accounts`, `CREATE TABLE accounts (id bigint PRIMARY KEY, account uuid, amount bigint)`)
	table := Table{Name: "accounts", Key: "account", Version: NoVersion}
	require.NoError(t, Install(t.Context(), d, table))
	require.NoError(t, Check(t.Context(), d, table))
	const a, b = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{`INSERT INTO accounts VALUES (1, '` + a + `', 1), (2, '` + a + `', 1), (3, NULL, 1)`, []string{a}},
		{`UPDATE accounts SET amount = 2`, []string{a}},
		{`UPDATE accounts SET account = '` + b + `' WHERE id = 1`, []string{a, b}},
		{`DELETE FROM accounts`, []string{a, b}},
	} {
		d.exec(tt.command)
		assert.Equal(t, tt.want, d.outboxed(), tt.command)
	}
}

// TestTriggers_TheSameTextForEverySession: what a writer's session has set changes
// how it sees a key, and not how the key is told.
func TestTriggers_TheSameTextForEverySession(t *testing.T) {
	d := newDatabase(t, Table{})
	writer := openDatabase(t, d.url)
	writer.exec(`SET bytea_output = 'escape'`, `SET DateStyle = 'German'`, `SET TimeZone = 'Asia/Tokyo'`,
		`SET IntervalStyle = 'iso_8601'`, `SET extra_float_digits = -10`)
	for column, tt := range map[string]struct{ value, want string }{
		"bytea":            {`'ab12'`, `\x61623132@1`},
		"date":             {`'2026-11-27'`, "2026-11-27@1"},
		"timestamptz":      {`'2026-11-27 12:00:00+00'`, "2026-11-27 12:00:00+00@1"},
		"interval":         {`'1 day 2 hours'`, "1 day 02:00:00@1"},
		"double precision": {`0.123456789012345`, "0.123456789012345@1"},
	} {
		t.Run(column, func(t *testing.T) {
			d, writer := &database{t, d.url, d.Conn}, &database{t, d.url, writer.Conn}
			d.exec(`DROP TABLE IF EXISTS accounts`, `CREATE TABLE accounts (key `+column+` PRIMARY KEY, version bigint NOT NULL)`)
			require.NoError(t, Install(t.Context(), d, accounts))
			writer.exec(`INSERT INTO accounts VALUES (` + tt.value + `, 1)`)
			assert.Equal(t, []string{tt.want}, d.outboxed())
		})
	}
}

// TestTriggers_KeysThatAreEqualAndNotTheSame are different keys to a cache. And a type
// may have its operators anywhere.
func TestTriggers_KeysThatAreEqualAndNotTheSame(t *testing.T) {
	for name, create := range map[string]string{
		"collation": `CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE accounts (key text COLLATE ci PRIMARY KEY, value bigint, version bigint)`,
		"citext":    `CREATE EXTENSION citext; CREATE TABLE accounts (key citext PRIMARY KEY, value bigint, version bigint)`,
		"ltree":     `CREATE EXTENSION ltree; CREATE TABLE accounts (key ltree PRIMARY KEY, value bigint, version bigint)`,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t, Table{})
			d.exec(`DROP TABLE accounts`)
			d.exec(create)
			require.NoError(t, Install(t.Context(), d, accounts))
			d.exec(`INSERT INTO accounts VALUES ('alice', 1, 1)`, `UPDATE accounts SET value = 2, version = 2`)
			assert.Equal(t, []string{"alice@1", "alice@2"}, d.outboxed())
			d.exec(`UPDATE accounts SET key = 'Alice', version = 3`)
			assert.Equal(t, []string{"Alice@3", "alice"}, d.outboxed())
			d.exec(`DELETE FROM accounts`)
			assert.Equal(t, []string{"Alice"}, d.outboxed())

			require.NoError(t, Install(t.Context(), d, Table{Name: "accounts", Version: NoVersion}))
			d.exec(`ALTER TABLE accounts DROP CONSTRAINT accounts_pkey`)
			d.exec(`INSERT INTO accounts VALUES ('bob', 1, 1), ('Bob', 1, 1), ('bob', 2, 1)`)
			assert.Equal(t, []string{"Bob", "bob"}, d.outboxed())
			d.exec(`UPDATE accounts SET value = 3`)
			assert.Equal(t, []string{"Bob", "bob"}, d.outboxed())
			d.exec(`DELETE FROM accounts`)
			assert.Equal(t, []string{"Bob", "bob"}, d.outboxed())
		})
	}
}

// TestS22_RaisedUnderTheRowsLock: writers who do not know of versions get one each,
// in the order of their commits.
func TestS22_RaisedUnderTheRowsLock(t *testing.T) {
	table := Table{Name: "accounts", Raise: true}
	d := newDatabase(t, table)
	d.exec(`INSERT INTO accounts VALUES ('k', 0, 1)`)
	d.outboxed()
	const writers, each = 4, 50
	var wg sync.WaitGroup
	for range writers {
		other := openDatabase(t, d.url)
		wg.Go(func() {
			for range each {
				_, err := other.Exec(t.Context(), `UPDATE accounts SET value = value + 1 WHERE key = 'k'`)
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, writers*each, scalar[int64](d, `SELECT value FROM accounts`))
	assert.EqualValues(t, 1+writers*each, scalar[int64](d, `SELECT version FROM accounts`))
	assert.EqualValues(t, writers*each, scalar[int64](d, `SELECT count(DISTINCT version) FROM accounts_outbox`))

	d.exec(`UPDATE accounts SET version = version + 1 WHERE key = 'k'`) // who knows is left alone
	assert.EqualValues(t, 2+writers*each, scalar[int64](d, `SELECT version FROM accounts`))
	d.exec(`UPDATE accounts SET version = 1 WHERE key = 'k'`) // and nobody goes back
	assert.EqualValues(t, 3+writers*each, scalar[int64](d, `SELECT version FROM accounts`))

	require.NoError(t, Install(t.Context(), d, accounts), "without Raise")
	d.exec(`UPDATE accounts SET value = 1`)
	assert.EqualValues(t, 3+writers*each, scalar[int64](d, `SELECT version FROM accounts`))
}

func TestInstall_AgainAndAway(t *testing.T) {
	d := newDatabase(t, accounts)
	require.NoError(t, Check(t.Context(), d, accounts))
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`)
	require.NoError(t, Install(t.Context(), d, accounts))
	require.NoError(t, Check(t.Context(), d, accounts))
	assert.Equal(t, []string{"a@1"}, d.outboxed(), "what waited waits")

	removal, err := Removal(accounts)
	require.NoError(t, err)
	d.exec(removal, removal)
	d.exec(`UPDATE accounts SET value = 2`)
	assert.EqualValues(t, 0, scalar[int64](d, `SELECT count(*) FROM pg_class WHERE relname LIKE 'accounts!_outbox%' ESCAPE '!'`))

	d.exec(`CREATE TABLE accounts_outbox (note text)`)
	require.ErrorContains(t, Install(t.Context(), d, accounts), "is not")
}

// TestInstall_RefusesWhatWouldFailEveryWriter: a trigger that fails fails its statement.
func TestInstall_RefusesWhatWouldFailEveryWriter(t *testing.T) {
	d := newDatabase(t, Table{})
	d.exec(`ALTER TABLE accounts ADD note text, ADD changed text UNIQUE, ADD outbox bigint`)
	for _, table := range []Table{
		{Name: "accounts", Key: "no_such_key"},
		{Name: "accounts", Version: "no_such_version"},
		{Name: "accounts", Version: "note"},
		{Name: "no_such_table"},
	} {
		require.Error(t, Install(t.Context(), d, table), "%+v", table)
		assert.EqualValues(t, 0, scalar[int64](d, `SELECT count(*) FROM pg_class WHERE relname = 'accounts_outbox'`), "in one transaction")
		d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`, `DELETE FROM accounts`)
	}
	// Columns that are named like something in the function.
	require.NoError(t, Install(t.Context(), d, Table{Name: "accounts", Key: "changed", Version: "outbox"}))
	d.exec(`INSERT INTO accounts (key, version, changed, outbox) VALUES ('a', 1, 'c', 7)`, `UPDATE accounts SET outbox = 8`)
	assert.Equal(t, []string{"c@7", "c@8"}, d.outboxed())
}

func TestCheck(t *testing.T) {
	d := newDatabase(t, accounts)
	problem := func(table Table) string {
		var e *CheckError
		require.ErrorAs(t, Check(t.Context(), d, table), &e)
		return strings.Join(e.Problems, "\n")
	}
	assert.Contains(t, problem(Table{Name: "nothing"}), "no table")
	assert.Contains(t, problem(Table{Name: "accounts", Key: "value"}), "unique")
	assert.Contains(t, problem(Table{Name: "accounts", Raise: true}), "raises versions")
	for _, undone := range []string{
		`ALTER TABLE accounts DISABLE TRIGGER accounts_outbox_update`,
		`ALTER TABLE accounts ENABLE TRIGGER accounts_outbox_update`, // but not ALWAYS
		`ALTER TABLE accounts DISABLE TRIGGER ALL`,
		`DROP TRIGGER accounts_outbox_truncate ON accounts`,
	} {
		d.exec(undone)
		assert.Contains(t, problem(accounts), "missing, or not enabled", undone)
		require.NoError(t, Install(t.Context(), d, accounts))
		require.NoError(t, Check(t.Context(), d, accounts))
	}
	d.exec(`ALTER TABLE accounts RENAME version TO edition`)
	assert.Contains(t, problem(accounts), "lacks a column of key and version")
	d.exec(`ALTER TABLE accounts RENAME edition TO version`)
	d.exec(`ALTER TABLE accounts RENAME TO elsewhere`)
	assert.Contains(t, problem(accounts), "no table")
	d.exec(`ALTER TABLE elsewhere RENAME TO accounts`)
	d.exec(`COMMENT ON TABLE accounts_outbox IS 'tidemark outbox 0'`)
	assert.Contains(t, problem(accounts), "install the outbox again")
	d.exec(`DROP TABLE accounts_outbox CASCADE`)
	assert.Contains(t, problem(accounts), "does not exist")
}

// TestInstall_DrawsIdsInOrder: a session that keeps ids for later would insert behind
// what is told, and a probe could come before what was committed before it.
func TestInstall_DrawsIdsInOrder(t *testing.T) {
	d, log := newDatabase(t, accounts), &memLog{}
	r := newSession(t, d, log).Relay
	writer := openDatabase(t, d.url)
	for n, undone := range []string{`SET CACHE 50`, `SET INCREMENT BY 2`, `SET CYCLE`} {
		d.exec(`ALTER TABLE accounts_outbox ALTER id ` + undone)
		writer.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('w%d', 1, 1)`, n)) // keeps some
		assert.ErrorContains(t, Check(t.Context(), d, accounts), "not drawn one by one", undone)
		_, err := r.connect()
		require.ErrorContains(t, err, "not drawn one by one", undone)
		require.NoError(t, Install(t.Context(), d, accounts))
		require.NoError(t, Check(t.Context(), d, accounts))
		d.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('a%d', 1, 1)`, n))
		writer.exec(fmt.Sprintf(`INSERT INTO accounts VALUES ('b%d', 1, 1)`, n))
		assert.EqualValues(t, 1, scalar[int64](d, `SELECT b.id - a.id FROM accounts_outbox a, accounts_outbox b WHERE a.key = $1 AND b.key = $2`,
			fmt.Sprintf("a%d", n), fmt.Sprintf("b%d", n)), undone)
	}
}

func TestOptions_MistakesAreReportedAtOnce(t *testing.T) {
	_, err := Migration(Table{Name: "Robert'); --", Outbox: "o o", Key: "a b", Version: `"`, Bulk: -1})
	for _, field := range []string{"Name", "Outbox", "Key", "Version", "Bulk"} {
		assert.ErrorContains(t, err, "Table."+field)
	}
	_, err = Migration(Table{Version: NoVersion, Raise: true})
	assert.ErrorContains(t, err, "Table.Raise")
	_, err = NewRelay(RelayOptions{Table: Table{Bulk: -1}, Batch: -1, Poll: -1, Lease: 1})
	for _, field := range []string{"Table.Bulk", "Config", "Invalidator", "Batch", "Poll", "Lease"} {
		assert.ErrorContains(t, err, field)
	}
	_, err = NewRelay(RelayOptions{Invalidator: tidemark.Invalidator{Name: "n", Hint: noHint{}}})
	assert.ErrorContains(t, err, "needs an Invalidator with a Log")
	_, err = NewProber(nil, Table{Bulk: -1})
	assert.ErrorContains(t, err, "Table.Bulk")
	_, err = NewProber(nil, Table{})
	assert.ErrorAs(t, err, new(*tidemark.OptionError))
	noGoroutines(t)
}

type noHint struct{ tidemark.Hint }

// TestMigration_NamesFit: the longest name that is allowed is cut nowhere.
func TestMigration_NamesFit(t *testing.T) {
	name := strings.Repeat("X", 46)
	d := newDatabase(t, Table{})
	d.exec(`CREATE SCHEMA s`, fmt.Sprintf(`CREATE TABLE s."%s" (key int PRIMARY KEY, version bigint)`, name))
	table := Table{Name: "s." + name, Raise: true}
	require.NoError(t, Install(t.Context(), d, table))
	require.NoError(t, Check(t.Context(), d, table))
	d.exec(fmt.Sprintf(`INSERT INTO s."%s" VALUES (1, 1)`, name))
	assert.EqualValues(t, 1, scalar[int64](d, fmt.Sprintf(`SELECT count(*) FROM s."%s_outbox" WHERE key = '1'`, name)))
}

// TestInstall_Columns: what the triggers would read is looked for before anything is
// made.
func TestInstall_Columns(t *testing.T) {
	d := newDatabase(t, Table{})
	var lacks *ColumnError
	require.ErrorAs(t, Install(t.Context(), d, Table{Name: "accounts", Key: "id", Version: "rev"}), &lacks)
	assert.Equal(t, ColumnError{Table: "accounts", Key: "id", Version: "rev"}, *lacks)
	require.ErrorAs(t, Install(t.Context(), d, Table{Name: "accounts", Key: "id", Version: NoVersion}), &lacks)
	assert.Equal(t, ColumnError{Table: "accounts", Key: "id"}, *lacks)
	assert.EqualError(t, lacks, `outbox: accounts has no column "id" (Table.Key)`)
	d.exec(`ALTER TABLE accounts DROP version`)
	require.ErrorAs(t, Install(t.Context(), d, Table{Name: "accounts"}), &lacks)
	assert.Equal(t, ColumnError{Table: "accounts", Version: "version"}, *lacks)
	err := Install(t.Context(), d, Table{Name: "nosuch"})
	require.Error(t, err)
	assert.NotErrorAs(t, err, &lacks)
	require.NoError(t, Install(t.Context(), d, Table{Name: "accounts", Version: NoVersion}))
}

// TestWarnings_OneRowOfSeveralTexts: a warning is given where PostgreSQL finds the row
// by another text than it tells, and only there.
func TestWarnings_OneRowOfSeveralTexts(t *testing.T) {
	d := newDatabase(t, Table{})
	d.exec(`CREATE EXTENSION citext`, `CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
		`CREATE DOMAIN email AS citext`, `CREATE DOMAIN folded AS text COLLATE ci`, `CREATE TYPE mood AS ENUM ('sad', 'happy')`)
	for column, tt := range map[string]struct{ stored, other, warns string }{
		"text":             {`bob`, `BOB`, ""},
		`text COLLATE "C"`: {`bob`, `BOB`, ""},
		"varchar(9)":       {`bob`, `bob `, ""},
		"mood":             {`sad`, `happy`, ""},
		"bytea":            {`\x00ff`, `\xff00`, ""},
		"bigint":           {`7`, `70`, ""},
		"citext":           {`bob`, `BOB`, "citext ignores case"},
		"email":            {`bob`, `BOB`, "citext ignores case"},
		"text COLLATE ci":  {`bob`, `BOB`, `its collation "ci"`},
		"folded":           {`bob`, `BOB`, `its collation "ci"`},
		"char(5)":          {`bob`, `bob  `, "char(n) ignores spaces"},
		"uuid":             {`a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`, `A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11`, "a uuid may be in capitals"},
		"numeric":          {`1.0`, `1.00`, "a number may have more zeros"},
		"date":             {`2026-01-02`, `2 Jan 2026`, "a value of type date"},
	} {
		d.exec(`DROP TABLE accounts`, `CREATE TABLE accounts (key `+column+` PRIMARY KEY, version bigint)`, `INSERT INTO accounts VALUES ('`+tt.stored+`', 1)`)
		found := scalar[int64](d, `SELECT count(*) FROM accounts WHERE key = '`+tt.other+`'`)
		warnings, err := Warnings(t.Context(), d, Table{Name: "accounts"})
		require.NoError(t, err, column)
		if tt.warns == "" {
			assert.Empty(t, warnings, column)
			assert.Zero(t, found, column)
			continue
		}
		require.Len(t, warnings, 1, column)
		assert.Contains(t, warnings[0], `a row of accounts answers to several texts of "key": `+tt.warns, column)
		assert.EqualValues(t, 1, found, column)
	}
	_, err := Warnings(t.Context(), d, Table{Name: "nosuch"})
	require.Error(t, err)
	_, err = Warnings(t.Context(), d, Table{Name: "a;b"})
	require.ErrorAs(t, err, new(*tidemark.OptionError))
}

func TestUntold(t *testing.T) {
	d := newDatabase(t, accounts)
	age, err := Untold(t.Context(), d, accounts)
	require.NoError(t, err)
	assert.Zero(t, age)
	d.exec(`INSERT INTO accounts VALUES ('a', 1, 1)`, `UPDATE accounts_outbox SET at = at - interval '1 hour'`, `INSERT INTO accounts VALUES ('b', 1, 1)`)
	age, err = Untold(t.Context(), d, accounts)
	require.NoError(t, err)
	assert.InDelta(t, time.Hour, age, float64(time.Minute), "the oldest")
	_, err = Untold(t.Context(), d, Table{Name: "nosuch"})
	require.Error(t, err)
	_, err = Untold(t.Context(), d, Table{Name: "a;b"})
	assert.ErrorAs(t, err, new(*tidemark.OptionError))
}
