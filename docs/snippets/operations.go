//lint:file-ignore SA4006 the documents leave out what everybody does with an error

package snippets

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
	"github.com/tidemark-go/tidemark/store/postgres"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

// look is shown by docs/operations.md.
func look(cache *tidemark.Cache[string, int64], nc *nats.Conn) (*ops.Service, error) {
	view, err := ops.New(cache, ops.Options[string, int64]{}) // the cache's name is the Invalidator's
	handler, err := ops.Handler(view)                         // mux.Handle("GET /debug/tidemark", handler), next to pprof
	service, err := view.Serve(nc)                            // every replica answers on NATS
	_ = handler
	return service, err
}

// Account is what docs/databases.md has in its table.
type Account struct {
	Owner   string
	Balance int64
}

// columns and probed are shown by docs/databases.md.
func columns(pool *pgxpool.Pool) (*postgres.Store[int64, Account], error) {
	store, err := postgres.New(pool, postgres.Options[int64, Account]{
		Table: "accounts", Existing: true, Columns: postgres.Columns{Key: "id"},
		HardDelete: true, // others DELETE rows; without it that is refused, and a deletion is a column
		Row: postgres.RowCodec[Account]{
			Columns: []string{"owner", "balance"},
			Scan:    pgx.RowToStructByName[Account],
			Values:  func(a Account) ([]any, error) { return []any{a.Owner, a.Balance}, nil },
		},
	})
	return store, err
}

func probed(ctx context.Context, pool *pgxpool.Pool, nc *nats.Conn, store *postgres.Store[int64, Account]) (_ tidemark.Entry[Account], err error) {
	inv := tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: &tidemark.NATSStream{}})
	inv.Prober, err = outbox.NewProber(pool, outbox.Table{Name: "accounts", Key: "id"})
	cache, err := tidemark.New(tidemark.Options[int64, Account]{Store: store, Invalidator: inv})

	e, err := cache.Read(ctx, 7, tidemark.Within(time.Second))
	return e, err
}

var (
	_ = look
	_ = columns
	_ = probed
)
