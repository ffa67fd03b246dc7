package sim

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// A Kind is what a process asks of the world.
type Kind uint8

// The kinds of calls.
const (
	Change Kind = iota + 1 // a key, whatever it is
	Load                   // one key
	LoadMany
	Write   // change a key if it is at a version
	Outcome // ask how a Write ended
	Append  // to the log
	Publish // to the hint
	Open    // a reader of the log
	Next    // message of a reader
)

var kindNames = [...]string{"nothing", "change", "load", "load many", "write", "outcome", "append", "publish", "open", "next"}

func (k Kind) String() string { return kindNames[k] }

// A Failure is how a call failed.
type Failure uint8

// The failures.
const (
	None        Failure = iota
	Conflict            // the base of a Write was not current; State is what is
	Unavailable         // certainly not done
	Broken              // it may have been done or not
	Panic               // the callee panics
	Gap                 // the log cannot go on from there
	Cancelled           // the caller's context has ended
	Dead                // the caller's process has
)

var failureNames = [...]string{"ok", "conflict", "unavailable", "broken", "panic", "gap", "cancelled", "dead"}

func (f Failure) String() string { return failureNames[f] }

// A Call is what a process asks of the world, and the answer.
type Call struct {
	Kind   Kind
	Key    string
	Keys   []string // of LoadMany
	Strong bool     // of Load and LoadMany: what is committed, not what a replica of the source has
	Client int      // tells calls of clients from those of the cache, which is 0
	Base   uint64   // of Write; 0: the key must not exist
	Value  int
	Absent bool // of Write and Change: delete the key
	Op     [16]byte
	Msg    []byte
	From   uint64 // of Open
	Reader *Reader

	// The answer.

	Failure Failure
	State   State
	States  []State // of LoadMany
	Found   bool    // of Outcome
	Seq     uint64

	proc    *Process
	ctx     context.Context
	done    chan struct{}
	step    int    // in which it arrived
	seq     uint64 // of Append and Publish: the message's
	op      int    // small name of Op
	sent    int64
	acted   bool // the first part is done
	dragged bool // it takes long
}

// A Process is what lives and dies as one.
type Process struct {
	ID     int
	Dead   bool // whatever it does has no effect any more; see World.Kill
	Frozen bool // nothing that it asks for happens

	w          *World
	generation int // of the log that it has read
}

// Do asks the world and waits for the answer.
func (p *Process) Do(ctx context.Context, c *Call) {
	w := p.w
	c.proc, c.ctx, c.done = p, ctx, make(chan struct{})
	w.mu.Lock()
	if p.Dead {
		w.mu.Unlock()
		c.Failure = Dead
		return
	}
	w.arrived = append(w.arrived, c)
	w.mu.Unlock()
	<-c.done
}

// A World is everything outside the processes.
type World struct {
	Faults Faults
	Source *Source
	Check  *Checker
	Lag    time.Duration // of a Load that is not Strong
	Doubt  time.Duration // within which a Write whose answer was lost may take effect

	rng   *rand.Rand
	began time.Time
	step  int
	hash  hash.Hash64
	out   io.Writer // of the trace as text, or nil

	procs   []*Process
	parked  []*Call // in the order of their keys, oldest step first
	ops     map[[16]byte]int
	origins map[uint64]int       // process by the origin in its messages
	sent    map[[2]uint64]int64  // when a message, by origin and number, was first handed over
	places  map[[2]uint64]uint64 // in the log, of messages likewise
	late    []*lateWrite

	down bool // the source
	log  logState
	subs []*Sub

	actions []Action

	mu      sync.Mutex // guards arrived, and Dead
	arrived []*Call
}

// New returns a world that the seed determines. It must be made in the bubble in
// which it is used. trace, if not nil, gets the trace as text.
func New(seed uint64, trace io.Writer) *World {
	w := &World{
		rng: rand.New(rand.NewPCG(seed, 0x7469_6465_6d61_726b)), began: time.Now(), hash: fnv.New64a(), out: trace,
		ops: map[[16]byte]int{}, origins: map[uint64]int{}, sent: map[[2]uint64]int64{}, places: map[[2]uint64]uint64{},
	}
	w.log.first = 1
	w.Check = newChecker(w)
	w.Source = newSource(w)
	return w
}

// Process returns a new process.
func (w *World) Process() *Process {
	p := &Process{ID: len(w.procs), w: w}
	w.procs = append(w.procs, p)
	return p
}

// Now returns the time since the world began.
func (w *World) Now() int64 { return int64(time.Since(w.began)) }

// Steps returns the number of steps so far.
func (w *World) Steps() int { return w.step }

// IntN returns a number below n.
func (w *World) IntN(n int) int { return w.rng.IntN(n) }

// Chance reports true in so many of 1,000 cases.
func (w *World) Chance(perMille int) bool { return perMille > 0 && w.rng.IntN(1000) < perMille }

// Between returns a duration from a to b.
func (w *World) Between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)+1))
}

// Trace notes what happened.
func (w *World) Trace(format string, args ...any) {
	fmt.Fprintf(w.hash, format, args...)
	if w.out != nil {
		fmt.Fprintf(w.out, "%5d %12v  %s\n", w.step, time.Duration(w.Now()), fmt.Sprintf(format, args...))
	}
}

// Hash returns the hash of the trace so far.
func (w *World) Hash() uint64 { return w.hash.Sum64() }

// An Action is one thing that can happen.
type Action struct {
	Weight int
	Proc   *Process // whose goroutines it wakes; nil: none's
	Do     func()   // it must not block

	call *Call
	sub  *Sub
}

// Settle waits until every goroutine is blocked, and takes in what they ask for.
func (w *World) Settle() {
	synctest.Wait()
	w.mu.Lock()
	fresh := w.arrived
	w.arrived = nil
	w.mu.Unlock()
	for _, c := range fresh {
		c.step, c.sent = w.step, w.Now()
		if len(c.Msg) > 0 {
			c.seq = w.heard(c)
		}
		if c.Kind == Open && c.From == 0 {
			w.Check.disconnected(c.proc.ID)
		}
	}
	slices.SortStableFunc(fresh, compareCalls)
	for _, c := range fresh {
		if c.Kind == Write {
			w.ops[c.Op] = len(w.ops) + 1
		}
		c.op = w.ops[c.Op]
		w.Trace("%d: %v", c.proc.ID, c)
	}
	slices.SortStableFunc(fresh, func(a, b *Call) int { return cmp.Or(compareCalls(a, b), cmp.Compare(a.op, b.op)) })
	w.parked = append(w.parked, fresh...)
}

func compareCalls(a, b *Call) int {
	return cmp.Or(
		cmp.Compare(a.proc.ID, b.proc.ID), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key),
		cmp.Compare(a.Client, b.Client), cmp.Compare(a.Base, b.Base), cmp.Compare(a.Value, b.Value),
		cmp.Compare(a.seq, b.seq), cmp.Compare(a.From, b.From), slices.Compare(a.Keys, b.Keys),
		compareBools(a.Strong, b.Strong), compareBools(a.Absent, b.Absent),
	)
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func (c *Call) String() string {
	var b bytes.Buffer
	b.WriteString(c.Kind.String())
	switch c.Kind {
	case Load, Outcome:
		fmt.Fprintf(&b, " %s strong %t client %d op %d", c.Key, c.Strong, c.Client, c.op)
	case LoadMany:
		fmt.Fprintf(&b, " %v strong %t", c.Keys, c.Strong)
	case Write, Change:
		fmt.Fprintf(&b, " %s=%d absent %t on %d op %d", c.Key, c.Value, c.Absent, c.Base, c.op)
	case Append, Publish:
		fmt.Fprintf(&b, " message %d", c.seq)
	case Open:
		fmt.Fprintf(&b, " from %d", c.From)
	}
	return b.String()
}

// Sleep lets time pass. Timers go off in their order, and what they wake runs.
func (w *World) Sleep(d time.Duration) { time.Sleep(d) }

// Actions returns what the world itself can do now. The result is overwritten by
// the next call.
func (w *World) Actions() []Action {
	w.actions = w.actions[:0]
	for _, c := range w.parked {
		if weight := w.ready(c); weight > 0 {
			w.actions = append(w.actions, Action{Weight: weight, Proc: c.proc, call: c})
		}
	}
	for _, s := range w.subs {
		if len(s.queue) > 0 && !s.stopped.Load() && !s.proc.Frozen && !s.proc.Dead {
			w.actions = append(w.actions, Action{Weight: 8, Proc: s.proc, sub: s})
		}
	}
	for _, l := range w.late {
		w.actions = append(w.actions, Action{Weight: 2, Do: func() { w.land(l) }})
	}
	return w.actions
}

// ready returns how likely c's next part is now, compared with others; 0: not at
// all.
func (w *World) ready(c *Call) int {
	switch {
	case c.proc.Frozen:
		return 0
	case c.ctx.Err() != nil:
		return 20
	case c.Kind == Next && !w.readable(c.Reader):
		return 0
	case c.dragged:
		return 1
	case c.Kind == Next:
		return 12
	default:
		return 10
	}
}

// Pick takes one action by its weight; nil if there is none.
func (w *World) Pick(all []Action) *Action {
	total := 0
	for i := range all {
		total += all[i].Weight
	}
	if total == 0 {
		return nil
	}
	n := w.rng.IntN(total)
	for i := range all {
		if n -= all[i].Weight; n < 0 {
			return &all[i]
		}
	}
	return nil
}

// Run does a in a step of its own.
func (w *World) Run(a *Action) {
	w.Step()
	w.do(a)
	w.Settle()
}

// RunAll does one action of each process, at one moment.
func (w *World) RunAll(all []Action) (ran int) {
	w.Step()
	woken := map[*Process]bool{}
	for i := range all {
		a := &all[i]
		if a.Proc != nil && !woken[a.Proc] {
			woken[a.Proc] = true
			w.do(a)
			ran++
		}
	}
	w.Settle()
	return ran
}

// Step begins a step, at a moment of its own.
func (w *World) Step() {
	w.step++
	w.Sleep(time.Duration(1 + w.rng.IntN(20_000)))
	w.Settle()
}

func (w *World) do(a *Action) {
	switch {
	case a.call != nil:
		// Time has passed since the action was listed.
		if i := slices.Index(w.parked, a.call); i >= 0 && w.advance(a.call) {
			w.parked = slices.Delete(w.parked, slices.Index(w.parked, a.call), slices.Index(w.parked, a.call)+1)
			w.Trace("%d: answered %v: %v", a.call.proc.ID, a.call.Kind, a.call.Failure)
			close(a.call.done)
		}
	case a.sub != nil:
		w.deliver(a.sub)
	default:
		a.Do()
	}
}

// advance does the next part of c and reports whether it is over.
func (w *World) advance(c *Call) (over bool) {
	f := &w.Faults
	if c.ctx.Err() != nil {
		w.cancel(c)
		return true
	}
	if !c.acted && c.Kind != Next {
		c.acted = true
		if w.act(c) {
			return true
		}
		c.dragged = w.Chance(30 + f.Drag)
		return false
	}
	switch {
	case c.Kind == Next:
		w.next(c)
	case w.down && c.Client == 0 && c.Kind >= Load && c.Kind <= Outcome && c.Failure != Panic:
		c.Failure = Broken // the connection is gone
	}
	return true
}

// act does the effect of c. It reports whether c is over, because it failed.
func (w *World) act(c *Call) (over bool) {
	switch c.Kind {
	case Load, LoadMany:
		return w.load(c)
	case Write, Change:
		return w.write(c)
	case Outcome:
		if w.down || w.Chance(w.Faults.OutcomeFails) {
			c.Failure = Broken
			return true
		}
		c.State.Version, c.Found = w.Source.outcome(c.Op)
		return false
	case Append:
		return w.append(c)
	case Publish:
		return w.publish(c)
	default:
		return w.open(c)
	}
}

// cancel ends a call whose context has ended. What it has done is done, and a
// write that is under way may still be.
func (w *World) cancel(c *Call) {
	c.Failure = Cancelled
	if c.acted {
		return
	}
	switch {
	case c.Kind == Write && w.rng.IntN(2) == 0:
		w.later(c)
	case c.Kind == Append && w.rng.IntN(2) == 0:
		w.append(c)
		c.Failure = Cancelled
	}
}

// Kill ends a process: of what it has under way some takes effect, and it is told
// of nothing.
func (w *World) Kill(p *Process) {
	w.mu.Lock()
	p.Dead = true
	w.mu.Unlock()
	rest := w.parked[:0]
	for _, c := range w.parked {
		if c.proc != p {
			rest = append(rest, c)
			continue
		}
		if !c.acted && w.rng.IntN(2) == 0 {
			switch c.Kind {
			case Write, Change, Append, Publish:
				w.act(c)
			}
		}
		c.Failure = Dead
		close(c.done)
	}
	clear(w.parked[len(rest):])
	w.parked = rest
	w.unsubscribe(p)
}

// Idle reports whether nothing is under way but readers that wait for messages.
func (w *World) Idle() bool {
	for _, c := range w.parked {
		if c.Kind != Next || w.readable(c.Reader) {
			return false
		}
	}
	for _, s := range w.subs {
		if len(s.queue) > 0 && !s.stopped.Load() {
			return false
		}
	}
	return len(w.late) == 0
}

// Reads reports whether p waits for the log's next message.
func (w *World) Reads(p *Process) bool {
	return slices.ContainsFunc(w.parked, func(c *Call) bool { return c.proc == p && c.Kind == Next && c.ctx.Err() == nil })
}

// Never is a moment that does not come.
const Never = math.MaxInt64
