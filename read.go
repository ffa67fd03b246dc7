package tidemark

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark-go/tidemark/internal/replica"
)

// A Level is what a read requires of the state it returns. It is a plain value
// and can be compared; the zero Level is [Any].
type Level struct {
	kind    levelKind
	prompt  bool // it takes nothing after its TTL; only the cache itself asks for that
	version Version
	within  time.Duration
	token   *Token
}

type levelKind uint8

const (
	levelAny levelKind = iota
	levelAtLeast
	levelWithin
	levelAfter
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
func AtLeast(v Version) Level { return Level{kind: levelAtLeast, version: v} }

// Within takes a state that is shown to have been current at most d before the
// read began: no change that had been acknowledged by then is missed. What
// memory has is shown to be that by its [Entry.Age]: it was loaded or written
// not longer ago, or this replica has been shown, by a message of its own that
// went through the Log, to have applied all that came before. What cannot be
// shown, as of a value that Put brought, is loaded, or fails with [ErrStale] if
// [Options.OnStale] says so.
//
// A change counts as acknowledged when the call that made it, an Update, say, or
// an Invalidate, has returned without an error. Without a Log there is only the
// age of the load, and d bounds, as a TTL does, how long changes of others go
// unnoticed. With an [Invalidator.Prober] every change counts that is committed. A d of zero or less is Linearizable.
func Within(d time.Duration) Level {
	if d <= 0 {
		return Linearizable
	}
	return Level{kind: levelWithin, within: d}
}

// After takes a state that is not older than what the token stands for: the
// writes and invalidations of one or more replicas up to the moment when
// [Cache.Token] was called there. If this replica is not known to have applied
// them, which takes a Log, the state is loaded. The zero Token asks for nothing.
func After(t Token) Level {
	if len(t.parts) == 0 && !t.full {
		return Any
	}
	return Level{kind: levelAfter, token: &t}
}

// String says it as it is written in Go, a token left out.
func (l Level) String() string {
	switch l.kind {
	case levelAny:
		return "Any"
	case levelAtLeast:
		return fmt.Sprintf("AtLeast(%d)", l.version)
	case levelWithin:
		return fmt.Sprintf("Within(%v)", l.within)
	case levelAfter:
		return "After(token)"
	default:
		return "Linearizable"
	}
}

// admits reports whether the entry e can satisfy l. The mark, and applied, must
// have been read before e (S62), and now after it; only if timed says so is now
// looked at.
func (c *Cache[K, V]) admits(l Level, applied bool, e *facts, fresh replica.Mark, now replica.Moment) bool {
	if c.opts.MaxStale > 0 && !within(c.opts.MaxStale, e.age(fresh, now)) {
		return false
	}
	switch l.kind {
	case levelAny:
		return true
	case levelAtLeast:
		return e.version >= l.version
	case levelWithin:
		return within(l.within, e.age(fresh, now))
	case levelAfter:
		return applied && fresh.Vouches(e.provenAt)
	default:
		return false
	}
}

// applied reports whether this replica has applied all that the token of l stands
// for.
func (c *Cache[K, V]) applied(l Level) bool {
	return l.kind == levelAfter && c.replica != nil && c.replica.hasApplied(l.token)
}

// within reports whether an age is known to be at most d.
func within(d, age time.Duration) bool { return age >= 0 && age <= d }

// timed reports whether the time decides what l admits.
func (c *Cache[K, V]) timed(l Level) bool { return l.kind == levelWithin || c.opts.MaxStale > 0 }

// lenient reports whether a read at level l may be served an entry whose TTL is over:
// one that makes no promise of time.
func (l Level) lenient() bool { return l.kind <= levelAtLeast && !l.prompt }

// strong reports whether only a load at a source that is strong can satisfy l.
func (l Level) strong() bool { return l.kind >= levelWithin }

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
// does not look at ctx and allocates nothing. At Any and AtLeast an Entry may have
// Stale set, and an error that the load has returned may be left out for it, if
// [Options.StaleWhileRevalidate] or [Options.StaleIfError] say so.
func (c *Cache[K, V]) Read(ctx context.Context, key K, level Level) (e Entry[V], err error) {
	hash := c.keys.hash(key)
	applied, fresh := c.applied(level), c.freshness()
	var f facts
	era, s := c.era.Load(), c.shard(hash)
	p, ok := s.look(hash, key, &e.Value, &f) // the value goes to its place at once, see Get
	if ok = ok && c.servable(era, &f); ok {
		if now := c.moments(); c.admits(level, applied, &f, fresh, now) {
			c.hit(p, key, hash)
			e.Version, e.Absent, e.Age = f.version, f.absent, f.age(fresh, now)
			if f.absent {
				return e, ErrNotFound
			}
			return e, nil
		}
	}
	if late, found := c.meanwhile(key, hash, level, true); found {
		return late, nil
	}
	c.stats.misses.add()
	if ok && c.failsStale(level) {
		return Entry[V]{Age: -1}, c.stale(level)
	}
	return c.load(ctx, key, hash, level)
}

// failsStale reports whether a read at level l ends when memory has an entry that
// cannot be shown to be recent enough.
func (c *Cache[K, V]) failsStale(l Level) bool {
	return l.kind == levelWithin && c.opts.OnStale == Fail
}

// stale is the error of a read that ends so.
func (c *Cache[K, V]) stale(l Level) error {
	c.stats.tooOld.Add(1)
	return fmt.Errorf("%w: not known to be within %v", ErrStale, l.within)
}

// SetBypass is a switch for the hour in which nobody trusts this cache: while it is
// on, nothing is served from memory. Get misses, and Load and Read ask the source,
// where readers of one key still share a load, and MaxLoads and the Breaker bound
// them. Writes, Puts and invalidations go on as ever. When it is set to off again,
// what memory has is suspect: it is confirmed or replaced by the source before it
// is served.
//
// It acts on this process alone, costs hits nothing, and may be set at any time.
func (c *Cache[K, V]) SetBypass(on bool) {
	changed := false
	for !changed {
		era := c.era.Load()
		next := era | eraBypass
		if !on {
			next = era&^eraBypass + eraSuspicion
		}
		if (era&eraBypass != 0) == on {
			return
		}
		if !on {
			c.distrust(next &^ eraUnserved) // before it is the era
		}
		changed = c.era.CompareAndSwap(era, next)
	}
	if !on && c.audit != nil {
		c.audit.untrip()
	}
	c.holdLagging()
	c.opts.Logger.Warn("tidemark: bypass", "on", on)
}

// freshness returns as of when this replica has missed nothing. It must be read
// before the entry that it is to vouch for.
func (c *Cache[K, V]) freshness() replica.Mark {
	if !c.logged {
		return replica.NoMark
	}
	return c.fresh.Mark()
}

// moments returns the time; on both clocks if there is a mark to compare it with.
func (c *Cache[K, V]) moments() replica.Moment {
	if !c.logged {
		return replica.Moment{Mono: c.now()}
	}
	now, slept := replica.Since(c.clock.began, time.Now()), c.clock.skew.slept.Load()
	now.Mono -= slept
	now.Lead += slept + c.clock.skew.set.Load()
	return now
}

func (c *Cache[K, V]) result(n *node[K, V], fresh replica.Mark, now replica.Moment) (Entry[V], error) {
	e := n.E.public(fresh, now)
	if e.Absent {
		return e, ErrNotFound
	}
	return e, nil
}
