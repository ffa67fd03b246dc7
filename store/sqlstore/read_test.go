package sqlstore

import (
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

func TestLoad_RefusesVersionsThatAreNone(t *testing.T) {
	for _, version := range []int64{0, -1} {
		for _, deleted := range []bool{false, true} {
			f, store := newFake(t, SQLite)
			f.rows["load"] = []driver.Value{"v", version, deleted}
			value, v, err := store.Load(t.Context(), "k")
			assert.Error(t, err, "version %d, deleted %t", version, deleted)
			assert.NotErrorIs(t, err, tidemark.ErrNotFound)
			assert.Zero(t, v, "as unsigned it would be above all others")
			assert.Empty(t, value)
		}
	}
}

func TestLoad_TellsFailureFromAbsence(t *testing.T) {
	f, store := newFake(t, SQLite)
	f.fail["load"], f.fail["outcome"] = always(errBroken), always(errBroken)
	_, _, err := store.Load(t.Context(), "k")
	assert.ErrorIs(t, err, errBroken)
	assert.NotErrorIs(t, err, tidemark.ErrNotFound)
	_, made, err := store.Outcome(t.Context(), "k", op)
	assert.ErrorIs(t, err, errBroken)
	assert.False(t, made)
}

func TestLoadMany_AsksInChunksOfFewSizes(t *testing.T) {
	for _, tt := range []struct {
		dialect Dialect
		keys    int
		want    []string // the list of each query, shortened
	}{
		{SQLite, 0, nil},
		{SQLite, 1, []string{"1: (?)"}},
		{SQLite, 3, []string{"4: (?, ?, ?, ?)"}},
		{PostgreSQL, 3, []string{"4: ($1, $2, $3, $4)"}},
		{MySQL, 512, []string{"512: (?, ?"}},
		{MySQL, 1200, []string{"512: (?, ?", "512: (?, ?", "256: (?, ?"}},
	} {
		t.Run(fmt.Sprintf("%s/keys=%d", tt.dialect, tt.keys), func(t *testing.T) {
			f, store := newFake(t, tt.dialect)
			var keys []string
			for i := range tt.keys {
				keys = append(keys, fmt.Sprint("key ", i))
			}
			found, err := store.LoadMany(t.Context(), keys)
			require.NoError(t, err)
			assert.Len(t, found, tt.keys)
			for _, l := range found {
				assert.Equal(t, tidemark.Loaded[string]{Absent: true}, l)
			}
			var lists []string
			for _, step := range f.steps {
				if list, ok := strings.CutPrefix(step, "load "); ok {
					lists = append(lists, fmt.Sprintf("%d: %s", strings.Count(list, ",")+1, list))
				}
			}
			require.Len(t, lists, len(tt.want))
			for i, want := range tt.want {
				assert.True(t, strings.HasPrefix(lists[i], want), lists[i])
			}
		})
	}
}

func TestLoadMany_RefusesAnswersItDidNotAskFor(t *testing.T) {
	f, store := newFake(t, SQLite)
	f.rows["load"] = []driver.Value{"someone else", "v", int64(1), false}
	_, err := store.LoadMany(t.Context(), []string{"k"})
	assert.Error(t, err)

	f.rows["load"] = []driver.Value{"k", "v", int64(-1), false}
	found, err := store.LoadMany(t.Context(), []string{"k"})
	require.NoError(t, err)
	assert.Error(t, found["k"].Err)
}

// Versions are asked for as values are, and only of rows that exist.
func TestLoadVersions(t *testing.T) {
	f, store := newFake(t, PostgreSQL)
	found, err := store.LoadVersions(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, found)
	var keys []string
	for i := range 600 {
		keys = append(keys, fmt.Sprint("key ", i))
	}
	found, err = store.LoadVersions(t.Context(), keys)
	require.NoError(t, err)
	assert.Empty(t, found)
	var lists []int
	for _, step := range f.steps {
		if list, ok := strings.CutPrefix(step, "versions "); ok {
			lists = append(lists, strings.Count(list, "$"))
		}
	}
	assert.Equal(t, []int{512, 128}, lists)

	f.rows["versions"] = []driver.Value{"k", int64(-1)}
	found, err = store.LoadVersions(t.Context(), []string{"k"})
	require.NoError(t, err)
	assert.Empty(t, found, "a Load says what is wrong")
	f.rows["versions"] = []driver.Value{"k", int64(7)}
	found, err = store.LoadVersions(t.Context(), []string{"k"})
	require.NoError(t, err)
	assert.Equal(t, map[string]tidemark.Version{"k": 7}, found)
	f.rows["versions"] = []driver.Value{"someone else", int64(7)}
	_, err = store.LoadVersions(t.Context(), []string{"k"})
	assert.Error(t, err)
	f.fail["versions ($1)"] = always(errBroken)
	_, err = store.LoadVersions(t.Context(), []string{"k"})
	assert.ErrorIs(t, err, errBroken)
}

func TestPrune_ReportsWhatItDidBeforeAnError(t *testing.T) {
	f, store := newFake(t, SQLite)
	n, err := store.Prune(t.Context(), time.Minute)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n)
	f.fail["prune"] = always(errBroken)
	_, err = store.Prune(t.Context(), time.Minute)
	assert.ErrorIs(t, err, errBroken)
}

func TestCreateTables_TriesEachStatementTwice(t *testing.T) {
	f, store := newFake(t, PostgreSQL)
	first := store.Schema()[0]
	f.fail[first] = func(before int) error {
		if before == 0 {
			return errBroken // another process was creating it
		}
		return nil
	}
	require.NoError(t, store.CreateTables(t.Context()))
	assert.Equal(t, 2, f.count(first))

	f.fail[first] = always(errBroken)
	assert.ErrorIs(t, store.CreateTables(t.Context()), errBroken)
}
