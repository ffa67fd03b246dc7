package sqlstore

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

func TestNew_ReportsEveryMistakeAtOnce(t *testing.T) {
	_, err := New(nil, Options[struct{ A int }, string]{
		Table: "accounts; DROP TABLE accounts",
		Value: ValueCodec[string]{Encode: func(string) ([]byte, error) { return nil, nil }},
	})
	require.Error(t, err)
	for _, field := range []string{"db", "Dialect", "Table", "Key", "Value"} {
		assert.ErrorContains(t, err, "option "+field+" ")
	}
	var one *tidemark.OptionError
	require.ErrorAs(t, err, &one)
	assert.Equal(t, "db", one.Field)
}

func TestNew_ChecksTheTableName(t *testing.T) {
	db := sql.OpenDB(&fake{})
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	for name, good := range map[string]bool{
		"":                                    true,
		"accounts":                            true,
		"Accounts_2":                          true,
		"_x":                                  true,
		"billing.accounts":                    true,
		strings.Repeat("a", 46):               true,
		strings.Repeat("a", 47):               false,
		strings.Repeat("a", 47) + ".accounts": false,
		"2accounts":                           false,
		"a.b.c":                               false,
		".accounts":                           false,
		"accounts.":                           false,
		`a"b`:                                 false,
		"a`b":                                 false,
		"a b":                                 false,
		"a-b":                                 false,
		"konten_ä":                            false,
		"accounts\n":                          false,
	} {
		_, err := New(db, Options[string, string]{Dialect: SQLite, Table: name})
		assert.Equal(t, good, err == nil, "%q: %v", name, err)
	}
}

func TestDialect_NamesAndQuotesAreItsOwn(t *testing.T) {
	for d, want := range map[Dialect]string{
		SQLite:     `UPDATE "a"."b" SET "key" = ? FROM "a"."b_ops" WHERE "x" = ?`,
		PostgreSQL: `UPDATE "a"."b" SET "key" = $1 FROM "a"."b_ops" WHERE "x" = $2`,
		MySQL:      "UPDATE `a`.`b` SET `key` = ? FROM `a`.`b_ops` WHERE `x` = ?",
	} {
		assert.Equal(t, want, d.render(`UPDATE {table} SET "key" = ? FROM {journal} WHERE "x" = ?`, "a.b"), d)
	}
	assert.Equal(t, "PostgreSQL", PostgreSQL.String())
	assert.Equal(t, "unknown", Dialect(0).String())
	assert.Equal(t, "unknown", Dialect(4).String())
}

// TestSchema_IndexIsFoundInTheTablesSchema: the dialects disagree about where
// the schema's name goes.
func TestSchema_IndexIsFoundInTheTablesSchema(t *testing.T) {
	assert.Contains(t, schema(SQLite, "a.b", column.Text, column.Text)[2], `"a"."b_ops_committed_at" ON "b_ops" (`)
	assert.Contains(t, schema(PostgreSQL, "a.b", column.Text, column.Text)[2], `EXISTS "b_ops_committed_at" ON "a"."b_ops" (`)
	assert.Len(t, schema(MySQL, "a.b", column.Text, column.Text), 2)
	for _, d := range []Dialect{SQLite, PostgreSQL} {
		assert.Contains(t, schema(d, "b", column.Text, column.Text)[2], `EXISTS "b_ops_committed_at" ON "b_ops" (`)
	}
}

func TestCodecs_ErrorsReachTheCaller(t *testing.T) {
	refused := errors.New("no such tenant")
	_, fine := newFake(t, SQLite)
	store, err := New(fine.db, Options[string, string]{
		Dialect: SQLite,
		Key: KeyCodec[string]{Encode: func(k string) ([]byte, error) {
			if k == "bad" {
				return nil, refused
			}
			return []byte(k), nil
		}},
		Value: ValueCodec[string]{
			Encode: func(string) ([]byte, error) { return nil, refused },
			Decode: func(b []byte) (string, error) { return string(b), nil },
		},
	})
	require.NoError(t, err)
	for name, call := range map[string]func() error{
		"key of set":    func() error { _, err := store.CompareAndSet(t.Context(), "bad", 1, "v", op); return err },
		"value of set":  func() error { _, err := store.CompareAndSet(t.Context(), "good", 1, "v", op); return err },
		"key of delete": func() error { _, err := store.CompareAndDelete(t.Context(), "bad", 1, op); return err },
	} {
		err := call()
		assert.ErrorIs(t, err, refused, name)
		assert.ErrorIs(t, err, tidemark.ErrUnavailable, name)
	}
	_, _, err = store.Load(t.Context(), "bad")
	assert.ErrorIs(t, err, refused)
	_, _, err = store.Outcome(t.Context(), "bad", op)
	assert.ErrorIs(t, err, refused)
	found, err := store.LoadMany(t.Context(), []string{"bad"})
	require.NoError(t, err)
	assert.ErrorIs(t, found["bad"].Err, refused)
}
