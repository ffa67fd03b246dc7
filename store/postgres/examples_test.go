package postgres_test

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5"

	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// databaseURL returns the URL of a database for one example.
func databaseURL() string {
	url, err := pgtest.ForExample(func(ctx context.Context, url, command string) error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, command)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	return url
}
