package tidemark

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-go/tidemark/internal/history"
	"github.com/tidemark-go/tidemark/internal/sim"
)

// A simClient makes one call after the other, of any replica.
type simClient struct {
	id   int
	op   *simOp // under way, or nil
	base Version
}

// A simOp is one call, and what is to be checked of it.
type simOp struct {
	client    int
	what      string
	replica   *simReplica
	outside   bool // it needs the process that has a Publisher
	abandoned bool // its process is dead
	check     func()
}

// A simEvent is an event of the history, and the name of its write.
type simEvent struct {
	history.Event
	tag int
}

var errGiveUp = errors.New("enough")

// start calls do in a goroutine. What it returns is called by the driver.
func (r *simRun) start(op *simOp, timeout time.Duration, do func(ctx context.Context) func()) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		check := do(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		op.check = check
		r.finished = append(r.finished, op)
	}()
}

// A simCall is what an operation of a client needs.
type simCall struct {
	*simRun
	client  *simClient
	op      *simOp
	s       *simReplica
	c       *Cache[string, int]
	key     string
	timeout time.Duration
}

// begin lets a client make a call of a replica.
func (r *simRun) begin(client *simClient, s *simReplica) {
	call := &simCall{simRun: r, client: client, s: s, c: s.cache, key: r.keys[r.w.IntN(len(r.keys))]}
	call.op = &simOp{client: client.id, replica: s}
	call.timeout = r.w.Between(2*time.Millisecond, 2*time.Second)
	client.op = call.op
	if len(r.untold) > 0 {
		call.tell()
		return
	}
	switch n := r.w.IntN(100); {
	case n < 10:
		call.get()
	case n < 13:
		call.all()
	case n < 44:
		call.read()
	case n < 57 && !r.updates(s, client):
		call.update()
	case n < 63:
		call.compareAndSet(false)
	case n < 70:
		call.compareAndSet(true)
	case n < 78:
		call.fill()
	case n < 86:
		call.put()
	case n < 90:
		call.loadMany()
	case n < 94 && r.connected():
		call.publish()
	case n == 99 && r.w.Faults.InvalidateAll > 0:
		call.invalidateAll()
	default:
		call.invalidate()
	}
}

// updates reports whether another client updates at s, with strict writes. Two who
// wait for one load would go on at once, and their intents wait in the order that
// the scheduler likes.
func (r *simRun) updates(s *simReplica, but *simClient) bool {
	return r.strict && slices.ContainsFunc(r.clients, func(c *simClient) bool {
		return c != but && c.op != nil && c.op.replica == s && strings.HasPrefix(c.op.what, "update")
	})
}

// event begins an event of the history.
func (c *simCall) event(kind history.Kind, key string, tag int) *simEvent {
	e := &simEvent{Event: history.Event{Kind: kind, Client: c.client.id, Replica: c.s.proc.ID, Key: key, Value: uint64(tag),
		Age: -1, Begin: c.w.Now(), End: history.Never}, tag: tag}
	c.events = append(c.events, e)
	return e
}

func (c *simCall) trace(format string, args ...any) {
	c.w.Trace("client %d at %d: "+format, append([]any{c.client.id, c.s.proc.ID}, args...)...)
}

// run starts the operation.
func (c *simCall) run(what string, do func(ctx context.Context) func()) {
	c.op.what = what + " " + c.key
	c.trace("%s within %v", c.op.what, c.timeout)
	c.start(c.op, c.timeout, do)
}

// get reads memory.
func (c *simCall) get() {
	ev := c.event(history.Read, c.key, 0)
	rd := c.fromMemory(c.key)
	c.run("get", func(context.Context) func() {
		e, ok := c.c.GetEntry(c.key)
		return func() {
			if ok {
				if e.Stale && rd.TTL > 0 {
					rd.TTL += c.options.StaleWhileRevalidate
				}
				c.answered(rd, ev, e, rd.Begin)
				return
			}
			ev.Outcome = history.Failed
		}
	})
}

// all reads all that memory has.
func (c *simCall) all() {
	rds := map[string]*sim.Read{}
	for _, key := range c.keys {
		rds[key] = c.fromMemory(key)
	}
	c.run("all", func(context.Context) func() {
		found := maps.Collect(c.c.All())
		return func() {
			for _, key := range c.keys {
				if e, ok := found[key]; ok {
					c.answered(rds[key], c.event(history.Read, key, 0), e, rds[key].Begin)
				}
			}
		}
	})
}

// fromMemory begins a read that only memory can answer.
func (c *simCall) fromMemory(key string) *sim.Read {
	return c.w.Check.Begin(sim.Read{Proc: c.s.proc.ID, Key: key, Within: c.within(), Memory: true,
		TTL: c.memoryTTL(), MaxStale: c.options.MaxStale})
}

// within is the bound of reads that ask for none.
func (c *simCall) within() time.Duration {
	if c.options.Level.kind == levelWithin {
		return c.options.Level.within
	}
	return -1
}

// memoryTTL is how old what memory serves may be. On a machine that was suspended
// that is not known.
func (c *simCall) memoryTTL() time.Duration {
	if c.w.Faults.Suspend > 0 || c.w.Faults.ClockSlow > 0 {
		return 0
	}
	return c.options.TTL
}

// answered checks what a read has returned.
func (c *simCall) answered(rd *sim.Read, ev *simEvent, e Entry[int], end int64) {
	c.trace("has %s@%d=%d absent %t age %v", rd.Key, e.Version, e.Value, e.Absent, e.Age)
	c.w.Check.End(rd, simAnswer(e), end)
	ev.Outcome, ev.End = history.Done, end
	ev.Version, ev.Value, ev.Absent, ev.Age = uint64(e.Version), uint64(e.Value), e.Absent, e.Age
	c.client.base = e.Version
	if e.Absent {
		c.client.base = 0
	}
}

// read reads at one of the levels.
func (c *simCall) read() {
	rd := sim.Read{Proc: c.s.proc.ID, Key: c.key, Within: -1}
	level, may := Any, false // return ErrStale
	switch n := c.w.IntN(10); {
	case n < 3:
	case n < 4:
		rd.AtLeast = c.w.Source.Current(c.key).Version + uint64(c.w.IntN(8)/7)
		level, may = AtLeast(Version(rd.AtLeast)), true
	case n < 7:
		rd.Within = c.w.Between(time.Millisecond, 400*time.Millisecond)
		level, may = Within(rd.Within), c.options.OnStale == Fail
	case n < 8:
		other := c.replicas[c.w.IntN(len(c.replicas))]
		rd.After = maps.Clone(other.said)
		level = After(other.cache.Token())
	default:
		rd.Linearizable = true
		level = Linearizable
	}
	may = may || c.w.Source.Undated // an absence that is overtaken again and again
	ev := c.event(history.Read, c.key, 0)
	ev.AtLeast, ev.Linearizable = rd.AtLeast, rd.Linearizable
	begun := c.w.Check.Begin(rd)
	deadline := begun.Begin + int64(c.timeout)
	c.run("read "+levelNames[level.kind], func(ctx context.Context) func() {
		e, err := c.c.Read(ctx, c.key, level)
		end := c.w.Now()
		return func() {
			if end > deadline {
				c.w.Check.Fail("I17 liveness", "a read that had to end at %v ended at %v", time.Duration(deadline), time.Duration(end))
			}
			if errors.Is(err, ErrStale) && !may {
				c.w.Check.Fail("I17 liveness", "%d: %s: the source is taken for stale: %v", c.s.proc.ID, c.op.what, err)
			}
			if err != nil && !e.Absent {
				c.trace("%s", simClass(err))
				ev.Outcome = history.Failed
				return
			}
			if e.Stale && (!level.lenient() || e.Absent) {
				c.w.Check.Fail("S67 stale", "%d: %s: it is served after its TTL", c.s.proc.ID, c.op.what)
			}
			c.answered(begun, ev, e, end)
		}
	})
}

var levelNames = [...]string{"any", "at least", "within", "after", "linearizable"}

// wrote checks how a write has ended. base is the version that the
// decision was made on.
func (c *simCall) wrote(ev *simEvent, base Version, e Entry[int], err error, end int64) {
	ev.Base = uint64(base)
	var uncertain *UncertainError
	var conflict *ConflictError
	switch {
	case errors.As(err, &uncertain):
		c.trace("in doubt")
	case err == nil, errors.Is(err, ErrNotBroadcast):
		c.trace("wrote %s@%d absent %t: %s", c.key, e.Version, e.Absent, simClass(err))
		c.changed(ev, sim.Mark{Version: uint64(e.Version), Absent: e.Absent}, err == nil, end)
		c.w.Check.Wrote(c.s.proc.ID, c.key, uint64(base), uint64(e.Version))
		c.client.base = e.Version
	case errors.As(err, &conflict):
		c.trace("conflict with %d absent %t", conflict.Current, conflict.Absent)
		c.client.base = conflict.Current
		if conflict.Absent {
			c.client.base = 0
		}
		c.w.Check.Raise(c.s.proc.ID, c.key, sim.Mark{Version: uint64(conflict.Current), Absent: conflict.Absent}, sim.Told)
		ev.Outcome = history.Failed
	default:
		c.trace("%s", simClass(err))
		ev.Outcome = history.Failed
	}
}

// changed notes that the caller knows of a change; acknowledged says that all
// were told.
func (c *simCall) changed(ev *simEvent, m sim.Mark, acknowledged bool, end int64) {
	ev.Outcome, ev.Version, ev.Absent = history.Done, m.Version, m.Absent
	if m.Absent {
		ev.Value = 0
	}
	c.w.Check.Raise(c.s.proc.ID, c.key, m, sim.Wrote)
	if old := c.s.said[c.key]; old.Before(m) {
		c.s.said[c.key] = m
	}
	if acknowledged {
		ev.End = end
		c.w.Check.Acknowledged(c.key, m)
	}
}

// settled waits for the end of a write in doubt, and returns what it was.
func (c *simCall) settled(ctx context.Context, err error) (v Version, committed bool, rest error) {
	var uncertain *UncertainError
	if !errors.As(err, &uncertain) {
		return 0, false, err
	}
	v, committed, rest = uncertain.Wait(ctx)
	if rest != nil && !errors.Is(rest, ErrNotBroadcast) {
		return 0, false, err // still in doubt
	}
	if !committed {
		return 0, false, errGiveUp
	}
	return v, true, rest
}

func (c *simCall) update() {
	tag := c.tag()
	ev := c.event(history.Write, c.key, tag)
	wait := c.w.IntN(2) == 0
	c.run("update", func(ctx context.Context) func() {
		calls := 0
		var seen Entry[int]
		e, err := c.c.Update(ctx, c.key, func(cur Entry[int]) (int, error) {
			if calls++; calls > 2 {
				return 0, errGiveUp // the next pause would be random
			}
			seen = cur
			return tag, nil
		})
		return c.ended(ctx, ev, func() Version { return baseOf(seen) }, e, err, wait)
	})
}

func baseOf(e Entry[int]) Version {
	if e.Absent {
		return 0
	}
	return e.Version
}

// ended finishes a write.
func (c *simCall) ended(ctx context.Context, ev *simEvent, base func() Version, e Entry[int], err error, wait bool) func() {
	if wait {
		if v, committed, rest := c.settled(ctx, err); committed {
			e, err = Entry[int]{Version: v, Absent: ev.Absent}, rest
		} else {
			err = rest
		}
	}
	end := c.w.Now()
	return func() { c.wrote(ev, base(), e, err, end) }
}

func (c *simCall) compareAndSet(remove bool) {
	tag, base := c.tag(), c.client.base
	ev := c.event(history.Write, c.key, tag)
	ev.Absent = remove
	wait := c.w.IntN(2) == 0
	if c.w.IntN(2) == 0 {
		if cur := c.w.Source.Current(c.key); !cur.Absent {
			base = Version(cur.Version)
		}
	}
	if remove && base == 0 {
		base = 1
	}
	what := "compare and set"
	if remove {
		what = "delete"
	}
	c.run(what, func(ctx context.Context) func() {
		var e Entry[int]
		var err error
		if remove {
			e, err = c.c.Delete(context.WithValue(ctx, simTag{}, tag), c.key, base)
		} else {
			e, err = c.c.CompareAndSet(ctx, c.key, base, tag)
		}
		return c.ended(ctx, ev, func() Version { return base }, e, err, wait)
	})
}

// fill reads the source by hand.
func (c *simCall) fill() {
	end, began := c.w.IntN(8), c.w.Now()
	c.run("fill", func(ctx context.Context) func() {
		f := c.c.BeginFill(c.key)
		v, version, err := simLoader{simPort: simPort{c.s.proc}, strong: true, client: c.client.id}.Load(ctx, c.key)
		var o Outcome
		switch {
		case end == 0, err != nil && !errors.Is(err, ErrNotFound):
			f.Cancel()
		case err != nil:
			o = f.Absent(version)
		default:
			o = f.Commit(v, version)
		}
		return func() {
			c.trace("filled %s@%d absent %t: %v", c.key, version, err != nil, o)
			if o == 0 || o == Closed {
				return
			}
			m := sim.Mark{Version: uint64(version), Absent: err != nil}
			if version == 0 {
				m = c.w.Check.Absence(c.key, sim.Mark{}, began)
			}
			c.w.Check.Raise(c.s.proc.ID, c.key, m, sim.Returned)
		}
	})
}

// put offers a state that was committed at some time.
func (c *simCall) put() {
	h := c.w.Source.History(c.key)
	s := h[c.w.IntN(len(h))]
	if s.Absent || !c.puts {
		c.loadMany()
		return
	}
	c.run("put", func(context.Context) func() {
		o := c.c.Put(c.key, s.Value, Version(s.Version))
		return func() {
			c.trace("put %s@%d: %v", c.key, s.Version, o)
			if o != Closed {
				c.w.Check.Raise(c.s.proc.ID, c.key, s.Mark(), sim.Told)
			}
		}
	})
}

func (c *simCall) loadMany() {
	keys := slices.Clone(c.keys)
	evs, rds := map[string]*simEvent{}, map[string]*sim.Read{}
	for _, key := range keys {
		evs[key] = c.event(history.Read, key, 0)
		rds[key] = c.w.Check.Begin(sim.Read{Proc: c.s.proc.ID, Key: key, Within: c.within()})
	}
	c.run("load many", func(ctx context.Context) func() {
		all, err := c.c.LoadMany(ctx, keys)
		end := c.w.Now()
		return func() {
			var failed *KeysError[string]
			_ = errors.As(err, &failed)
			for _, key := range keys {
				e, ok := all[key]
				if !ok {
					e = Entry[int]{Absent: true, Age: -1} // of a version that it does not say
					if failed != nil && failed.Failed[key] != nil {
						c.trace("%s: %s", key, simClass(failed.Failed[key]))
						evs[key].Outcome = history.Failed
						continue
					}
				}
				c.answered(rds[key], evs[key], e, end)
			}
		}
	})
}

// change changes the source behind the caches' back, and tells by the function.
func (c *simCall) change(what string, p *sim.Process, tell func(ctx context.Context, v Version) error) {
	tag := c.tag()
	ev := c.event(history.Change, c.key, tag)
	absent := c.w.IntN(5) == 0
	unsaid := c.w.IntN(4) == 0 // do not say which version
	put := c.w.IntN(4) == 0 && c.puts && !absent && p == c.s.proc
	c.run(what, func(ctx context.Context) func() {
		call := &sim.Call{Kind: sim.Change, Key: c.key, Value: tag, Absent: absent, Client: c.client.id}
		if err := (simPort{p}).do(context.WithoutCancel(ctx), call); err != nil {
			return func() { c.trace("%s", simClass(err)) }
		}
		state := call.State
		if put {
			c.c.Put(c.key, state.Value, Version(state.Version))
		}
		v := Version(state.Version)
		if unsaid {
			v = 0
		}
		err := tell(ctx, v)
		end := c.w.Now()
		return func() {
			c.trace("changed %s@%d absent %t, told %d: %s", c.key, state.Version, absent, v, simClass(err))
			_, before, _ := c.w.Source.Written(c.key, tag)
			if ev.Base = before.Version; before.Absent {
				ev.Base = 0
			}
			if p == c.s.proc {
				c.changed(ev, sim.Mark{Version: state.Version, Absent: absent && v == 0}, err == nil, end)
			}
			ev.Outcome, ev.Version, ev.Absent = history.Done, state.Version, absent
			if absent {
				ev.Value = 0
			}
			switch {
			case err == nil:
				ev.End = end
				c.w.Check.Acknowledged(c.key, state.Mark())
			case errors.Is(err, ErrClosed):
				c.untold = append(c.untold, c.key)
			}
		}
	})
}

// invalidate changes the source and tells a replica.
func (c *simCall) invalidate() {
	c.change("change and invalidate", c.s.proc, func(ctx context.Context, v Version) error {
		return c.c.Invalidate(ctx, c.key, v)
	})
}

// tell says again what a replica that has closed did not say.
func (c *simCall) tell() {
	c.key, c.untold = c.untold[0], c.untold[1:]
	c.run("invalidate", func(ctx context.Context) func() {
		err := c.c.Invalidate(ctx, c.key, 0)
		return func() {
			c.trace("told: %s", simClass(err))
			if errors.Is(err, ErrClosed) {
				c.untold = append(c.untold, c.key)
			}
		}
	})
}

// publish changes the source and tells all by a Publisher.
func (c *simCall) publish() {
	o := c.outside
	c.op.outside = true
	c.change("change and publish", o.proc, func(ctx context.Context, v Version) error {
		return o.publisher.Invalidate(ctx, c.key, v)
	})
}

func (c *simCall) invalidateAll() {
	marks := map[string]sim.Mark{}
	for _, key := range c.keys {
		marks[key] = c.w.Source.Current(key).Mark()
	}
	c.w.Check.Thrown(c.s.proc.ID)
	c.run("invalidate all", func(ctx context.Context) func() {
		err := c.c.InvalidateAll(ctx)
		return func() {
			c.trace("invalidated all: %s", simClass(err))
			for _, key := range c.keys {
				if err == nil {
					c.w.Check.Acknowledged(key, marks[key])
				}
			}
		}
	})
}
