package outbox

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
)

// TestTriggers_BesideThoseOfTheStore: what a Store writes is told with the versions
// that it gives, and so is what others write to its table, whose versions its own
// trigger raises, with Raise or without.
func TestTriggers_BesideThoseOfTheStore(t *testing.T) {
	for name, tt := range map[string]struct {
		raise, hard             bool
		remove                  string
		created, gone, comeBack []string
	}{
		"marks rows":         {false, false, `UPDATE accounts SET deleted = true WHERE key = 'k'`, []string{"k@1"}, []string{"k@4"}, []string{"k@5"}},
		"marks rows, raised": {true, false, `UPDATE accounts SET deleted = true WHERE key = 'k'`, []string{"k@1"}, []string{"k@4"}, []string{"k@5"}},
		"deletes rows":       {true, true, `DELETE FROM accounts WHERE key = 'k'`, []string{"k@1"}, []string{"k"}, []string{"k@5"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t, Table{})
			d.exec(`DROP TABLE accounts`)
			pool, err := pgxpool.New(t.Context(), d.url)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			store, err := postgres.New(pool, postgres.Options[string, int64]{Table: "accounts", HardDelete: tt.hard})
			require.NoError(t, err)
			require.NoError(t, store.CreateTables(t.Context()))
			table := Table{Name: "accounts", Raise: tt.raise}
			require.NoError(t, Install(t.Context(), d, table))
			require.NoError(t, Check(t.Context(), d, table))
			set := func(base tidemark.Version, value int64) tidemark.Version {
				var op tidemark.OpID
				_, _ = rand.Read(op[:])
				v, err := store.CompareAndSet(context.Background(), "k", base, value, op)
				require.NoError(t, err)
				return v
			}
			v := set(0, 1)
			assert.Equal(t, tt.created, slices.Compact(d.outboxed()))
			v = set(v, 2)
			assert.Equal(t, []string{"k@2"}, d.outboxed())
			d.exec(`UPDATE accounts SET value = 3 WHERE key = 'k'`)
			assert.Equal(t, []string{"k@3"}, d.outboxed())
			assert.EqualValues(t, 2, v)
			d.exec(tt.remove)
			assert.Equal(t, tt.gone, d.outboxed())
			set(0, 4)
			assert.Equal(t, tt.comeBack, slices.Compact(d.outboxed()))
		})
	}
}
