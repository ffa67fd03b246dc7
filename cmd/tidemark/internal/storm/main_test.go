package storm

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/internal/redistest"
)

func TestMain(m *testing.M) {
	os.Exit(redistest.Main(func() int { return pgtest.Main(m) }))
}

// execute is a [pgtest.Exec].
func execute(ctx context.Context, url, command string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, command)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}
