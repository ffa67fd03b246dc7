package postgres

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// BenchmarkStore compares with what a service would write by hand: "query" is one
// SELECT by primary key, and "transaction" BEGIN, one UPDATE and COMMIT.
func BenchmarkStore(b *testing.B) {
	db := newDB(b)
	s := newStore(b, db, Options[string, int64]{})
	exec(b, db, `INSERT INTO tidemark (key, value) SELECT 'k' || n, n FROM generate_series(0, 9999) n; ANALYZE tidemark`)
	ctx := b.Context()
	keys := make([]string, 512)
	for i := range keys {
		keys[i] = fmt.Sprint("k", 19*i)
	}
	b.Run("op=query", func(b *testing.B) {
		for i := range b.N {
			rows, err := db.Query(ctx, `SELECT value, version FROM tidemark WHERE key = $1`, keys[i%len(keys)])
			require.NoError(b, err)
			_, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct{ Value, Version int64 }])
			require.NoError(b, err)
		}
	})
	b.Run("op=Load", func(b *testing.B) {
		for i := range b.N {
			_, _, err := s.Load(ctx, keys[i%len(keys)])
			require.NoError(b, err)
		}
	})
	for _, n := range []int{8, 64, 512} {
		b.Run(fmt.Sprintf("op=LoadMany/keys=%d", n), func(b *testing.B) {
			for range b.N {
				_, err := s.LoadMany(ctx, keys[:n])
				require.NoError(b, err)
			}
		})
		b.Run(fmt.Sprintf("op=LoadVersions/keys=%d", n), func(b *testing.B) {
			for range b.N {
				_, err := s.LoadVersions(ctx, keys[:n])
				require.NoError(b, err)
			}
		})
	}
	b.Run("op=transaction", func(b *testing.B) {
		for range b.N {
			require.NoError(b, pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE tidemark SET value = value + 1 WHERE key = $1`, "k0")
				return err
			}))
		}
	})
	b.Run("op=CompareAndSet", func(b *testing.B) {
		_, v, err := s.Load(ctx, "k1")
		require.NoError(b, err)
		for i := range b.N {
			v, err = s.CompareAndSet(ctx, "k1", v, int64(i), newOp())
			require.NoError(b, err)
		}
	})
	b.Run("op=Outcome", func(b *testing.B) {
		op := newOp()
		_, err := s.CompareAndSet(ctx, "k2", 1, 0, op)
		if err != nil {
			require.ErrorAs(b, err, new(*tidemark.ConflictError)) // the benchmark runs again, longer
		}
		for range b.N {
			_, _, err := s.Outcome(ctx, "k2", op)
			require.NoError(b, err)
		}
	})
}
