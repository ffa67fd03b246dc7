package tidemark

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// A VersionLoader is a Loader, or a Store, that can tell which versions many keys
// have, at less cost than reading their values. A cache uses it for keys of which
// memory has a state that it may not serve: one that is suspect, too old for the
// read, or expired. If the source still has the version, the state is as good as
// loaded. Keys that are asked for at the same time share a call, so that a source
// is not read anew, value by value, when a replica was cut off, or when the log is
// down and nothing can be shown to be within its bound.
type VersionLoader[K comparable] interface {
	// LoadVersions returns the version of each key that exists, as a strong Load
	// that begins with this call would. A key that is missing from the map is
	// loaded. The keys are distinct. The error, if not nil, fails all of them. A
	// panic is contained and reported as a [*LoadError].
	LoadVersions(ctx context.Context, keys []K) (map[K]Version, error)
}

const (
	maxQuestions = 512 // keys of one call of LoadVersions
	maxAsking    = 4   // calls of it at once; what comes meanwhile shares the next
)

// A versionLoader asks a VersionLoader about many keys together.
type versionLoader[K comparable] struct {
	source VersionLoader[K]
	asking chan struct{} // one element per call that runs

	mu   sync.Mutex // guards next, and its keys while it is that
	next *question[K]
}

// A question is one call of LoadVersions, and those who wait for it.
type question[K comparable] struct {
	keys map[K]struct{}
	done chan struct{} // closed when the fields below are final

	began    replica.Moment // when the source was asked
	versions map[K]Version
	err      error
}

// newVersionLoader returns what asks the strong source of o for versions; nil if
// that cannot tell them.
func newVersionLoader[K comparable, V any](o *Options[K, V]) *versionLoader[K] {
	var source any = o.Loader
	if o.LoaderClass.kind == laggingLoader {
		source = o.Store
	}
	v, ok := source.(VersionLoader[K])
	if !ok {
		return nil
	}
	return &versionLoader[K]{source: v, asking: make(chan struct{}, maxAsking)}
}

// join adds key to the next question. If first is set, the caller must ask it.
func (l *versionLoader[K]) join(key K) (q *question[K], first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first = l.next == nil || len(l.next.keys) >= maxQuestions; first {
		l.next = &question[K]{keys: map[K]struct{}{}, done: make(chan struct{}), err: errGoexit}
	}
	l.next.keys[key] = struct{}{}
	return l.next, first
}

// leave ends the time in which others can join q, and returns its keys.
func (l *versionLoader[K]) leave(q *question[K]) []K {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == q {
		l.next = nil
	}
	keys := make([]K, 0, len(q.keys))
	for k := range q.keys {
		keys = append(keys, k)
	}
	return keys
}

// confirm asks whether the source still has the version of the state that memory
// has of f's key, and returns that state if so. Otherwise f must be loaded, as
// while the bypass is on or in shadow mode: then nobody trusts what memory has.
func (c *Cache[K, V]) confirm(ctx context.Context, f *flight[K, V]) (got Loaded[V], err error) {
	if c.versions == nil || !f.strong || f.era&eraSwitchedOff != 0 {
		return got, nil
	}
	var e entry[V]
	if _, ok := c.shard(f.hash).look(f.hash, f.key, &e.value, &e.facts); !ok || e.version == 0 || e.absent || generation(e.era) != generation(f.era) {
		return got, nil
	}
	q, first := c.versions.join(f.key)
	if first {
		c.begin(ctx, q)
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		return got, ctx.Err()
	}
	if q.err != nil || q.versions[f.key] != e.version {
		return got, q.err
	}
	c.stats.confirmed.Add(1)
	f.began = q.began
	return Loaded[V]{Value: e.value, Version: e.version}, nil
}

// begin lets q be asked. It waits for its turn as long as it takes, and those who have
// joined it as long as each may: who came late is not told that the first had no time left.
func (c *Cache[K, V]) begin(first context.Context, q *question[K]) {
	if !c.loads.enter() {
		c.versions.leave(q)
		q.err = ErrClosed
		close(q.done)
		return
	}
	go func() {
		defer c.loads.leave()
		defer close(q.done) // also if the source, or the breaker, ends this goroutine
		defer c.versions.leave(q)
		defer func() {
			if r := recover(); r != nil {
				q.err = c.caught(r)
			}
		}()
		q.err = c.question(first, q)
	}()
}

// question asks q, for all who have joined it until it is its turn.
func (c *Cache[K, V]) question(first context.Context, q *question[K]) error {
	l := c.versions
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
	case <-c.life.Done():
		return ErrClosed
	}
	return c.ask(c.life, func() (err error) {
		ctx, cancel := c.loadContext(first)
		defer cancel()
		defer func() {
			if r := recover(); r != nil {
				err = c.caught(r)
			}
		}()
		keys := l.leave(q)
		q.began = c.moments()
		q.versions, err = l.source.LoadVersions(ctx, keys)
		if err = c.readable(err); errors.Is(err, ErrNotFound) { // of what it looked into: no key is absent for that
			err = fmt.Errorf("%w: %v", ErrIncomplete, err)
		}
		return err
	})
}
