package tidemark

import "context"

// A Level is what a read requires of the state it returns. It is a plain value;
// the zero Level is [Any].
type Level struct {
	kind    levelKind
	version Version
}

type levelKind uint8

const (
	levelAny levelKind = iota
	levelAtLeast
	levelLinearizable
)

// Any takes what memory has, which is never below the key's tide mark here.
var Any = Level{}

// Linearizable takes only what the source returns to a load that begins after
// the read did. It refreshes the entry.
var Linearizable = Level{kind: levelLinearizable}

// AtLeast takes memory's state if its version is at least v, and else the
// source's. If the source's is older too, the read fails with [ErrStale]. An
// absence that the source reports without a version satisfies it if it was
// loaded after the read began.
func AtLeast(v Version) Level { return Level{levelAtLeast, v} }

// admits reports whether an entry in memory can satisfy l.
func (l Level) admits(v Version) bool {
	switch l.kind {
	case levelAny:
		return true
	case levelAtLeast:
		return v >= l.version
	default:
		return false
	}
}

// Load returns the state of key, from memory if it may be served at
// [Options.Level], and else through the Loader. It is Read at that level.
func (c *Cache[K, V]) Load(ctx context.Context, key K) (Entry[V], error) {
	return c.Read(ctx, key, c.opts.Level)
}

// Read returns the state of key at the given level.
//
// Callers that miss a key together share one load. When the context of one of
// them ends, that one returns the context's error and the load goes on for the
// others, bounded by [Options.LoadTimeout]. A caller that needs more than the
// running load can prove, because it asks after a change that the load may not
// have seen, gets a load of its own.
//
// If the source has no such key, Read returns an Entry with Absent set and
// [ErrNotFound]. Other errors: a [*LoadError] with what the Loader returned,
// [ErrStale], [ErrUnavailable], [ErrNoLoader], [ErrClosed], or ctx's. A hit
// does not look at ctx and allocates nothing.
func (c *Cache[K, V]) Read(ctx context.Context, key K, level Level) (Entry[V], error) {
	hash := c.keys.hash(key)
	if n := c.peek(hash, key); n != nil && level.admits(n.E.version) {
		c.hit(hash, n)
		return c.result(n)
	}
	c.stats.misses.add()
	return c.load(ctx, key, hash, level)
}

func (c *Cache[K, V]) result(n *node[K, V]) (Entry[V], error) {
	e := n.E.public(c.now())
	if e.Absent {
		return e, ErrNotFound
	}
	return e, nil
}
