package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/breaker"
)

// A cache that fails open: while the database is down, reads at Any go on with what
// memory has, and say so; reads that need to know what is current fail.
func Example() {
	ctx := context.Background()
	var down error
	database := func(context.Context, string) (int, tidemark.Version, error) { return 100, 1, down }

	b, err := breaker.New(breaker.Options{MinRequests: 1, OpenFor: time.Minute})
	if err != nil {
		panic(err)
	}
	balances, err := tidemark.New(tidemark.Options[string, int]{
		Loader:          tidemark.LoaderFunc[string, int](database),
		Breaker:         b,
		TTL:             20 * time.Millisecond,
		LoadTimeout:     2 * time.Second,
		SoftLoadTimeout: 100 * time.Millisecond,
		StaleIfError:    time.Hour,
	})
	if err != nil {
		panic(err)
	}
	defer balances.Close(ctx)

	if _, err := balances.Load(ctx, "alice"); err != nil {
		panic(err)
	}
	down = errors.New("connection refused")
	time.Sleep(30 * time.Millisecond) // the TTL is over

	e, err := balances.Load(ctx, "alice")
	fmt.Println(e.Value, e.Stale, err)
	fmt.Println(balances.Stats().Breaker)
	_, err = balances.Read(ctx, "alice", tidemark.Linearizable)
	fmt.Println(errors.Is(err, tidemark.ErrUnavailable), errors.Is(err, breaker.ErrOpen))

	// Output:
	// 100 true <nil>
	// open
	// true true
}
