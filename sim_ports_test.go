package tidemark

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/tidemark-go/tidemark/internal/sim"
)

// What follows connects caches to a world of package sim.

var errWorld = errors.New("the world is against it")

// A simPort is what a process has of the world.
type simPort struct{ proc *sim.Process }

func (p simPort) do(ctx context.Context, c *sim.Call) error {
	p.proc.Do(ctx, c)
	switch c.Failure {
	case sim.None:
		return nil
	case sim.Conflict:
		return fmt.Errorf("source: %w", &ConflictError{Current: Version(c.State.Version), Absent: c.State.Absent})
	case sim.Unavailable:
		return fmt.Errorf("source: %w", ErrUnavailable)
	case sim.Gap:
		return fmt.Errorf("log: %w", ErrGap)
	case sim.Cancelled:
		return ctx.Err()
	case sim.Panic:
		panic("the world panics")
	default:
		return errWorld
	}
}

// A simLoader is a Loader of a process.
type simLoader struct {
	simPort
	strong bool
	client int // who calls it, if not the cache
}

func (l simLoader) Load(ctx context.Context, key string) (int, Version, error) {
	c := &sim.Call{Kind: sim.Load, Key: key, Strong: l.strong, Client: l.client}
	if err := l.do(ctx, c); err != nil {
		return 0, 0, err
	}
	if c.State.Absent {
		return 0, Version(c.State.Version), ErrNotFound
	}
	return c.State.Value, Version(c.State.Version), nil
}

// A simBulk is a BulkLoader.
type simBulk struct{ simLoader }

func (l simBulk) LoadMany(ctx context.Context, keys []string) (map[string]Loaded[int], error) {
	c := &sim.Call{Kind: sim.LoadMany, Keys: keys, Strong: l.strong}
	if err := l.do(ctx, c); err != nil {
		return nil, err
	}
	all := map[string]Loaded[int]{}
	for i, s := range c.States {
		all[c.Keys[i]] = Loaded[int]{Value: s.Value, Version: Version(s.Version), Absent: s.Absent}
	}
	return all, nil
}

// A simVersions is a VersionLoader at the strong source.
type simVersions struct{ port simPort }

func (v simVersions) LoadVersions(ctx context.Context, keys []string) (map[string]Version, error) {
	c := &sim.Call{Kind: sim.LoadMany, Keys: slices.Sorted(slices.Values(keys)), Strong: true}
	if err := v.port.do(ctx, c); err != nil {
		return nil, err
	}
	all := map[string]Version{}
	for i, s := range c.States {
		if !s.Absent {
			all[c.Keys[i]] = Version(s.Version)
		}
	}
	return all, nil
}

type simTellingStore struct {
	simStore
	simVersions
}

type simTellingLoader struct {
	simBulk
	simVersions
}

// A simBreaker is a StateBreaker that the world opens and closes.
type simBreaker struct{ open atomic.Bool }

var errSimOpen = errors.New("the breaker is open")

func (b *simBreaker) Allow() (func(error), error) {
	if b.open.Load() {
		return nil, errSimOpen
	}
	return func(error) {}, nil
}

func (b *simBreaker) State() BreakerState {
	if b.open.Load() {
		return BreakerOpen
	}
	return BreakerClosed
}

// A simStore is a Store.
type simStore struct{ simLoader }

func (s simStore) CompareAndSet(ctx context.Context, key string, base Version, value int, op OpID) (Version, error) {
	c := &sim.Call{Kind: sim.Write, Key: key, Base: uint64(base), Value: value, Op: op}
	err := s.do(ctx, c)
	return Version(c.State.Version), err
}

// CompareAndDelete gets the name of the write from the context: a deletion has no
// value that could be it.
func (s simStore) CompareAndDelete(ctx context.Context, key string, base Version, op OpID) (Version, error) {
	tag, _ := ctx.Value(simTag{}).(int)
	c := &sim.Call{Kind: sim.Write, Key: key, Base: uint64(base), Value: tag, Absent: true, Op: op}
	err := s.do(ctx, c)
	return Version(c.State.Version), err
}

type simTag struct{}

func (s simStore) Outcome(ctx context.Context, key string, op OpID) (Version, bool, error) {
	c := &sim.Call{Kind: sim.Outcome, Key: key, Op: op}
	err := s.do(ctx, c)
	return Version(c.State.Version), c.Found, err
}

// A simLog is a Log.
type simLog struct{ simPort }

func (l simLog) Append(ctx context.Context, msg []byte) (uint64, error) {
	c := &sim.Call{Kind: sim.Append, Msg: append([]byte(nil), msg...)}
	err := l.do(ctx, c)
	return c.Seq, err
}

func (l simLog) Open(ctx context.Context, from uint64) (LogReader, error) {
	c := &sim.Call{Kind: sim.Open, From: from}
	if err := l.do(ctx, c); err != nil {
		return nil, err
	}
	return simReader{l.simPort, c.Reader}, nil
}

type simReader struct {
	simPort
	reader *sim.Reader
}

func (r simReader) Next(ctx context.Context) (uint64, []byte, error) {
	c := &sim.Call{Kind: sim.Next, Reader: r.reader}
	err := r.do(ctx, c)
	return c.Seq, c.Msg, err
}

func (r simReader) Close() error {
	r.reader.Close()
	return nil
}

// A simHint is a Hint.
type simHint struct{ simPort }

func (h simHint) Publish(ctx context.Context, msg []byte) error {
	return h.do(ctx, &sim.Call{Kind: sim.Publish, Msg: append([]byte(nil), msg...)})
}

func (h simHint) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	return h.proc.Subscribe(receive, lost), nil
}
