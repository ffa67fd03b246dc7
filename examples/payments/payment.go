package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/tidemark-go/tidemark"
)

// An entry is an account as a replica knows it.
type entry = tidemark.Entry[Cents]

var (
	errNone = fmt.Errorf("no such account: %w", tidemark.ErrNotFound)
	errPoor = errors.New("not enough money")
	errRich = errors.New("the balance would be too large")
)

// deposit adds amount to an account, which it opens if need be.
func deposit(ctx context.Context, cache *tidemark.Cache[string, Cents], account string, amount Cents) (entry, error) {
	e, err := cache.Update(ctx, account, func(cur entry) (Cents, error) {
		if amount > math.MaxInt64-cur.Value {
			return 0, errRich
		}
		return cur.Value + amount, nil
	})
	return settle(ctx, cache, account, e, err)
}

// purchase takes price from an account. With a version, it does so only if that is
// the account's current one; otherwise the error is a [*tidemark.ConflictError].
//
// A yes is a write, and the database makes it only if the account still has the version
// on which it was decided. A no writes nothing, so nobody checks it: perhaps another
// replica has received money a moment ago. So whoever is to be refused is looked up in
// the database first.
func purchase(ctx context.Context, cache *tidemark.Cache[string, Cents], account string, price Cents, version tidemark.Version) (entry, error) {
	e, err := pay(ctx, cache, account, price, version)
	if errors.Is(err, errPoor) || errors.Is(err, errNone) {
		if e, err = cache.Read(ctx, account, tidemark.Linearizable); err == nil {
			e, err = pay(ctx, cache, account, price, version)
		}
	}
	return settle(ctx, cache, account, e, err)
}

// pay decides on the state that memory has, if it has one.
func pay(ctx context.Context, cache *tidemark.Cache[string, Cents], account string, price Cents, version tidemark.Version) (entry, error) {
	if version != 0 {
		return payAt(ctx, cache, account, price, version)
	}
	return cache.Update(ctx, account, func(cur entry) (Cents, error) { // again, if cur was not current
		return charge(cur, price)
	})
}

// payAt decides on one version only, which the client has seen.
func payAt(ctx context.Context, cache *tidemark.Cache[string, Cents], account string, price Cents, version tidemark.Version) (entry, error) {
	cur, err := cache.Read(ctx, account, tidemark.AtLeast(version))
	switch {
	case errors.Is(err, tidemark.ErrStale): // nothing that new exists
		return cur, &tidemark.ConflictError{}
	case err != nil:
		return cur, err
	case cur.Version != version:
		return cur, &tidemark.ConflictError{Current: cur.Version}
	}
	left, err := charge(cur, price)
	if err != nil {
		return cur, err
	}
	return cache.CompareAndSet(ctx, account, version, left)
}

// charge returns what is left of an account.
func charge(cur entry, price Cents) (Cents, error) {
	switch {
	case cur.Absent:
		return 0, errNone
	case cur.Value < price:
		return 0, errPoor
	}
	return cur.Value - price, nil
}

// settle says what became of a write that is not known to have ended well.
func settle(ctx context.Context, cache *tidemark.Cache[string, Cents], account string, e entry, err error) (entry, error) {
	var doubt *tidemark.UncertainError
	switch {
	case errors.As(err, &doubt): // sent, and no answer came
		version, committed, waited := doubt.Wait(ctx)
		switch {
		case committed:
			return cache.Read(ctx, account, tidemark.AtLeast(version))
		case waited == nil:
			return e, tidemark.ErrUnavailable // not made; it may be sent again
		}
		return e, doubt
	case errors.Is(err, tidemark.ErrNotBroadcast):
		return e, nil // made; other replicas will hear of it late
	}
	return e, err
}
