package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Yiling-J/theine-go"
	"github.com/maypok86/otter/v2"
	"github.com/viccon/sturdyc"

	"github.com/tidemark-go/tidemark"
)

// A source takes a while for each read, and counts them.
type source struct {
	delay time.Duration
	reads atomic.Int64
}

func (s *source) read() [4]uint64 {
	s.reads.Add(1)
	time.Sleep(s.delay)
	return [4]uint64{1}
}

// A loading is a cache that asks a source for what it has not.
type loading struct {
	name   string
	source *source
	load   func(key string) ([4]uint64, error)
	close  func()
}

// loadings returns the caches that know how to load, so set up that one read of
// the source serves all who wait for a key.
func loadings(capacity int, delay time.Duration) ([]*loading, error) {
	ctx := context.Background()
	var sources [4]*source
	for i := range sources {
		sources[i] = &source{delay: delay}
	}
	t, err := tidemark.New(tidemark.Options[string, [4]uint64]{
		MaxCost: int64(capacity),
		Loader: tidemark.LoaderFunc[string, [4]uint64](func(context.Context, string) ([4]uint64, tidemark.Version, error) {
			return sources[0].read(), 1, nil
		}),
	})
	if err != nil {
		return nil, err
	}
	o, err := otter.New(&otter.Options[string, [4]uint64]{MaximumSize: capacity})
	if err != nil {
		return nil, err
	}
	loader := otter.LoaderFunc[string, [4]uint64](func(context.Context, string) ([4]uint64, error) { return sources[1].read(), nil })
	th, err := theine.NewBuilder[string, [4]uint64](int64(capacity)).Loading(
		func(context.Context, string) (theine.Loaded[[4]uint64], error) {
			return theine.Loaded[[4]uint64]{Value: sources[2].read(), Cost: 1}, nil
		}).Build()
	if err != nil {
		return nil, err
	}
	st := sturdyc.New[[4]uint64](capacity, 64, 24*time.Hour, 10, sturdyc.WithNoContinuousEvictions())
	fetch := func(context.Context) ([4]uint64, error) { return sources[3].read(), nil }
	return []*loading{
		{"tidemark", sources[0], func(key string) ([4]uint64, error) {
			e, err := t.Load(ctx, key)
			return e.Value, err
		}, func() { _ = t.Close(ctx) }},
		{"otter", sources[1], func(key string) ([4]uint64, error) { return o.Get(ctx, key, loader) },
			func() { o.InvalidateAll(); o.StopAllGoroutines() }},
		{"theine", sources[2], func(key string) ([4]uint64, error) { return th.Get(ctx, key) }, th.Close},
		{"sturdyc", sources[3], func(key string) ([4]uint64, error) { return st.GetOrFetch(ctx, key, fetch) }, nothing},
	}, nil
}

// A stampede is 64 goroutines that ask for the same new keys, one after the
// other: all but one of them wait for a load. Its operation is one key, read by
// all of them.
func (s *session) stampede() error {
	const goroutines = 64
	for _, delay := range []time.Duration{0, time.Millisecond} {
		name := fmt.Sprintf("Stampede/source=%v/g=%d", delay, goroutines)
		if !s.wanted(name) {
			continue
		}
		all, err := loadings(s.sizes[1]/10, delay)
		if err != nil {
			return err
		}
		t := track{s.turn, 16, true}
		if delay == 0 {
			t.chunk = 256
		}
		var runners []runner
		keys := make([]int, len(all))
		failed := make([]error, len(all))
		for i, l := range all {
			defer l.close()
			runners = append(runners, runner{l.name, func(_, n int) {
				failed[i] = errors.Join(failed[i], rush(l, goroutines, keys[i], n))
				keys[i] += n
			}})
		}
		s.raceNamed(name, t, runners)
		if err := errors.Join(failed...); err != nil {
			return err
		}
		for i, l := range all {
			s.add("Source"+name[len("Stampede"):]+"/cache="+l.name, keys[i], quantity{float64(l.source.reads.Load()) / float64(keys[i]), "reads/key"})
		}
	}
	return nil
}

// rush reads n keys by so many goroutines at once. Each makes keys of its own.
func rush(l *loading, goroutines, from, n int) error {
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for k := from; k < from+n; k++ {
				v, err := l.load(fmt.Sprintf("account:%012d", k))
				if err == nil && v[0] != 1 {
					err = fmt.Errorf("%s loads %v", l.name, v)
				}
				errs[g] = errors.Join(errs[g], err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
