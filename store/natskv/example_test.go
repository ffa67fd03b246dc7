package natskv_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/natskv"
)

type Account struct {
	Owner   string
	Balance int64
}

// A replica of a service whose accounts are in a bucket. It hears the other
// replicas, and whoever else writes the bucket, by following it.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	nc, err := nats.Connect("nats://127.0.0.1:4222", tidemark.NATSConnectOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateOrUpdateKeyValue(ctx, natskv.BucketConfig("accounts")); err != nil {
		log.Fatal(err)
	}
	store, err := natskv.New(ctx, nc, natskv.Options[string, Account]{Bucket: "accounts"})
	if err != nil {
		log.Fatal(err)
	}
	cache, err := tidemark.New(tidemark.Options[string, Account]{Store: store})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close(ctx)

	following := make(chan error, 1)
	go func() { following <- store.Follow(ctx, cache) }()

	after, err := cache.Update(ctx, "alice", func(cur tidemark.Entry[Account]) (Account, error) {
		if cur.Value.Balance < 350 {
			return Account{}, errors.New("not enough money")
		}
		return Account{cur.Value.Owner, cur.Value.Balance - 350}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(after.Value.Balance, after.Version)

	cancel()
	<-following
}

// A bucket on one server, with a longer history for keys that are written often.
func ExampleBucketConfig() {
	c := natskv.BucketConfig("accounts")
	fmt.Println(c.Replicas, c.History, c.Storage)
	c.Replicas, c.History = 1, 64
	// Output:
	// 3 16 File
}
