package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// BenchmarkNATSKV holds what a Store costs against what a client of the bucket
// pays for reads and writes that promise less.
func BenchmarkNATSKV(b *testing.B) {
	for _, replicas := range []int{1, 3} {
		c := newTrio(b)
		c.setUp(onThree())
		nc := dial(b, c.at(0))
		kv := newBucket(b, nc, func(c *jetstream.KeyValueConfig) { c.Replicas = replicas })
		s := openBucket(b, nc, kv.Bucket())
		ctx := context.Background()
		v, err := s.CompareAndSet(ctx, "k", 0, "value", newOp())
		require.NoError(b, err)
		keys := make([]string, 100)
		for i := range keys {
			keys[i] = fmt.Sprint("k", i)
			_, err := s.CompareAndSet(ctx, keys[i], 0, "value", newOp())
			require.NoError(b, err)
		}
		for name, op := range map[string]func() error{
			"op=Load":     func() error { _, _, err := s.Load(ctx, "k"); return err },
			"op=Get":      func() error { _, err := kv.Get(ctx, "k"); return err },
			"op=LoadMany": func() error { _, err := s.LoadMany(ctx, keys); return err },
			"op=CompareAndSet": func() (err error) {
				v, err = s.CompareAndSet(ctx, "k", v, "value", newOp())
				return err
			},
			"op=Update": func() error { // in a cluster the last write may still be under way
				for {
					n, err := kv.Update(ctx, "k", []byte("value"), uint64(v))
					if v = max(v, tidemark.Version(n)); !errors.Is(err, jetstream.ErrKeyExists) {
						return err
					}
				}
			},
		} {
			b.Run(fmt.Sprintf("replicas=%d/%s", replicas, name), func(b *testing.B) {
				for b.Loop() {
					require.NoError(b, op())
				}
			})
		}
		b.Run(fmt.Sprintf("replicas=%d/op=Load/side=16", replicas), func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _, err := s.Load(ctx, "k")
					require.NoError(b, err)
				}
			})
		})
	}
}
