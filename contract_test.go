package tidemark_test

import (
	"context"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// contract is what callers compile against. It is never called: that this file
// compiles is the test. A line that has to change here breaks other people's
// builds.
type contract struct{}

var _ = []any{contract.cache, contract.values, contract.seams}

func (contract) cache(c *tidemark.Cache[string, int], o tidemark.Options[string, int]) {
	var _ func(tidemark.Options[string, int]) (*tidemark.Cache[string, int], error) = tidemark.New[string, int]

	var _ func(string) (int, bool) = c.Get
	var _ func(string) (tidemark.Entry[int], bool) = c.GetEntry
	var _ func(context.Context, string) (tidemark.Entry[int], error) = c.Load
	var _ func(context.Context, []string) (map[string]tidemark.Entry[int], error) = c.LoadMany
	var _ func(context.Context, string, tidemark.Level) (tidemark.Entry[int], error) = c.Read
	var _ func(string, int, tidemark.Version) tidemark.Outcome = c.Put
	var _ func(string) *tidemark.Fill[string, int] = c.BeginFill
	var _ func(context.Context, string, func(tidemark.Entry[int]) (int, error)) (tidemark.Entry[int], error) = c.Update
	var _ func(context.Context, string, tidemark.Version, int) (tidemark.Entry[int], error) = c.CompareAndSet
	var _ func(context.Context, string, tidemark.Version) (tidemark.Entry[int], error) = c.Delete
	var _ func(context.Context, string, tidemark.Version) error = c.Invalidate
	var _ func(context.Context) error = c.InvalidateAll
	var _ func(string) tidemark.Explanation = c.Explain
	var _ func() iter.Seq2[string, tidemark.Entry[int]] = c.All
	var _ func() int = c.Len
	var _ func() tidemark.Stats = c.Stats
	var _ func(context.Context) error = c.Ready
	var _ func(context.Context) error = c.Close
	var _ func(int64) error = c.Resize
}

func (contract) values() {
	_ = tidemark.Entry[int]{Value: 1, Version: tidemark.Version(uint64(2)), Absent: false, Age: time.Second}
	_ = []tidemark.Outcome{tidemark.Applied, tidemark.Duplicate, tidemark.Stale, tidemark.Unproven}
	_ = []tidemark.Level{tidemark.Any, tidemark.Linearizable, tidemark.AtLeast(1)}
	_ = []tidemark.LoaderClass{tidemark.Strong, tidemark.Lagging(time.Second)}
	_ = []error{
		tidemark.ErrNotFound, tidemark.ErrClosed, tidemark.ErrStale, tidemark.ErrNoStore, tidemark.ErrNoLoader,
		tidemark.ErrUnavailable, tidemark.ErrTooLarge,
		&tidemark.ConflictError{Current: 1, Absent: true}, &tidemark.KeysError[string]{}, &tidemark.LoadError{}, &tidemark.UncertainError{}, &tidemark.OptionError{},
	}
	var _ tidemark.OpID = [16]byte{}
	var fill tidemark.Fill[string, int]
	var _ func(int, tidemark.Version) tidemark.Outcome = fill.Commit
	var _ func(tidemark.Version) tidemark.Outcome = fill.Absent
	var _ func() = fill.Cancel
}

func (contract) seams(nc *nats.Conn) {
	var _ tidemark.Loader[string, int] = tidemark.LoaderFunc[string, int](nil)
	var _ tidemark.Store[string, int] = (*accounts)(nil)
	var _ func(context.Context, []string) (map[string]tidemark.Loaded[int], error) = tidemark.BulkLoader[string, int](nil).LoadMany
	var inv tidemark.Invalidator = tidemark.NATS(nc, tidemark.NATSOptions{Name: "n"})
	var _ tidemark.Hint = inv.Hint
	var _ tidemark.Log = inv.Log
	_ = tidemark.Options[string, int]{
		MaxCost: 1, Cost: func(string, int) int64 { return 1 }, Shards: 1,
		TTL: 1, TTLJitter: 0.1, NegativeTTL: 1, RefreshAfter: 1,
		Loader: nil, Store: nil, LoaderClass: tidemark.Strong, LoadTimeout: 1, MaxLoads: 1, Breaker: nil,
		Invalidator: inv, Level: tidemark.Any, Logger: nil, OnEvent: func(tidemark.Event) {},
	}
}
