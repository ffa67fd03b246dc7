package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// This file is what TestCacheMatchesModel compares the cache with: a ledger,
// which is the source and keeps all of history, a network, which delivers only
// what it is told to, and for each cache a view, which says what the cache may
// still serve.

// A fact is what the ledger said of a key from a moment on.
type fact struct {
	mark  mark
	value int
	at    int64 // nanoseconds since the world began
}

// A ledger is a source that remembers every state it ever had. Calls stop at
// its points if the operation that made them says so.
type ledger struct {
	hidden bool         // deletions have no version
	serial atomic.Int64 // of the latest value
	clock  func() int64
	pause  func(ctx context.Context, p point, key string) error

	mu    sync.Mutex        // guards everything below
	past  map[string][]fact // oldest first; the first is "never existed"
	shown map[string]mark   // the highest that a call has returned
	mute  bool              // a load has found a key absent and said no version
	done  map[OpID]Version
	late  []lateWrite
}

// A lateWrite was sent, and may yet take effect.
type lateWrite struct {
	key    string
	base   Version
	value  int
	absent bool
	op     OpID
	sent   int64
}

var (
	errInjected = errors.New("the source failed")
	errNoAnswer = errors.New("the source did not answer")
)

func newLedger(keys []string, clock func() int64) *ledger {
	l := &ledger{clock: clock, past: map[string][]fact{}, shown: map[string]mark{}, done: map[OpID]Version{}}
	for _, k := range keys {
		l.past[k] = []fact{{mark: mark{absent: true}, at: math.MinInt64}}
	}
	return l
}

// value returns a value that no state has had yet.
func (l *ledger) value() int { return int(l.serial.Add(1)) }

func (l *ledger) current(key string) fact {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.currentLocked(key)
}

func (l *ledger) currentLocked(key string) fact {
	past := l.past[key]
	return past[len(past)-1]
}

// history returns all states of key.
func (l *ledger) history(key string) []fact {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.past[key])
}

// commit appends a state.
func (l *ledger) commit(key string, value int, absent bool) fact {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commitLocked(key, value, absent)
}

func (l *ledger) commitLocked(key string, value int, absent bool) fact {
	s := fact{mark{l.currentLocked(key).mark.version + 1, absent}, value, l.clock()}
	if absent {
		s.value = 0
	}
	l.past[key] = append(l.past[key], s)
	return s
}

// Load is a strong load.
func (l *ledger) Load(ctx context.Context, key string) (int, Version, error) {
	if err := l.pause(ctx, beforeRead, key); err != nil {
		return 0, 0, err
	}
	return l.answer(ctx, key, l.current(key))
}

func (l *ledger) answer(ctx context.Context, key string, s fact) (int, Version, error) {
	if err := l.pause(ctx, afterRead, key); err != nil {
		return 0, 0, err
	}
	m := l.tell(key, s)
	if m.absent {
		return 0, m.version, ErrNotFound
	}
	return s.value, m.version, nil
}

// tell returns the mark that whoever reads s gets to know.
func (l *ledger) tell(key string, s fact) mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown[key] = l.shown[key].later(s.mark)
	m := s.mark
	if m.absent && l.hidden {
		m.version = 0
	}
	l.mute = l.mute || m.version == 0
	return m
}

// A laggard reads a copy of the ledger that is up to lag behind.
type laggard struct {
	*ledger
	lag time.Duration
}

// Load returns one of the states that a copy may have shown at some time since
// it was called; the operation says which.
func (l laggard) Load(ctx context.Context, key string) (int, Version, error) {
	oldest := l.clock() - int64(l.lag)
	if err := l.pause(ctx, beforeRead, key); err != nil {
		return 0, 0, err
	}
	past := l.history(key)
	first := len(past) - 1
	for first > 0 && past[first].at >= oldest {
		first--
	}
	shown := past[first:]
	i := 0
	if o := operationOf(ctx); o != nil {
		i = o.lag % len(shown)
	}
	return l.answer(ctx, key, shown[i])
}

// A bulkLoader makes a Loader a BulkLoader.
type bulkLoader struct{ Loader[string, int] }

func (b bulkLoader) LoadMany(ctx context.Context, keys []string) (map[string]Loaded[int], error) {
	all := map[string]Loaded[int]{}
	for _, k := range keys {
		value, version, err := b.Load(ctx, k)
		all[k] = Loaded[int]{Value: value, Version: version, Err: err}
	}
	return all, nil
}

func (l *ledger) CompareAndSet(ctx context.Context, key string, base Version, value int, op OpID) (Version, error) {
	return l.write(ctx, lateWrite{key: key, base: base, value: value, op: op, sent: l.clock()})
}

func (l *ledger) CompareAndDelete(ctx context.Context, key string, base Version, op OpID) (Version, error) {
	return l.write(ctx, lateWrite{key: key, base: base, absent: true, op: op, sent: l.clock()})
}

func (l *ledger) write(ctx context.Context, w lateWrite) (Version, error) {
	if err := l.pause(ctx, beforeWrite, w.key); err != nil {
		return 0, err
	}
	switch operationOf(ctx).fate {
	case refused:
		return 0, fmt.Errorf("not now: %w", ErrUnavailable)
	case lost:
		return 0, errNoAnswer
	case delayed:
		l.mu.Lock()
		l.late = append(l.late, w)
		l.mu.Unlock()
		return 0, errNoAnswer
	}
	v, err := l.apply(w)
	if err != nil {
		return 0, err
	}
	if err := l.pause(ctx, afterWrite, w.key); err != nil {
		return 0, err
	}
	if operationOf(ctx).fate == unanswered {
		return 0, errNoAnswer
	}
	return v, nil
}

// apply makes w if the key is still at its base.
func (l *ledger) apply(w lateWrite) (Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.currentLocked(w.key)
	if have.base() != w.base {
		l.shown[w.key] = l.shown[w.key].later(have.mark)
		return 0, &ConflictError{Current: have.mark.version, Absent: have.mark.absent}
	}
	v := l.commitLocked(w.key, w.value, w.absent).mark.version
	l.done[w.op] = v
	return v, nil
}

// base is what a write that replaces s is based on.
func (s fact) base() Version {
	if s.mark.absent {
		return 0
	}
	return s.mark.version
}

// highest returns the highest mark of key that a load or a conflict has told.
func (l *ledger) highest(key string) mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shown[key]
}

// unversioned reports whether a load has said of a key that it is absent, but
// not since when.
func (l *ledger) unversioned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mute
}

// land lets the first late write take effect, unless it was sent so long ago
// that the store would have ended it.
func (l *ledger) land(timeout time.Duration) {
	l.mu.Lock()
	if len(l.late) == 0 {
		l.mu.Unlock()
		return
	}
	w := l.late[0]
	l.late = l.late[1:]
	l.mu.Unlock()
	if l.clock() < w.sent+int64(timeout) {
		_, _ = l.apply(w) // nobody waits for its answer
	}
}

func (l *ledger) Outcome(_ context.Context, _ string, op OpID) (Version, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.done[op]
	return v, ok, nil
}

// meaning returns the mark that e stands for. It is an error if the key never
// had that state, or not at a time that e's age and the moment until, when it
// was returned, allow. An absence without a version may stand for several
// states that the key had since its age or the moment since, when the read
// began; the earliest one that is not below need is returned.
func (l *ledger) meaning(key string, e Entry[int], since, until int64, need mark) (mark, error) {
	past := l.history(key)
	from := until - int64(e.Age)
	if e.Version == 0 {
		if !e.Absent || e.Age < 0 {
			return mark{}, fmt.Errorf("I9: %+v has no version", e)
		}
		for i, s := range past {
			over := i+1 < len(past) && past[i+1].at < min(from, since)
			if s.mark.absent && !over && s.at <= until && !s.mark.before(need) {
				return s.mark, nil
			}
		}
		return mark{}, fmt.Errorf("I1: %s was not absent in the last %v at or above %v", key, e.Age, need)
	}
	for i, s := range past {
		if s.mark.version != e.Version {
			continue
		}
		switch {
		case s.mark.absent != e.Absent || s.value != e.Value:
			return s.mark, fmt.Errorf("I9: %s had %+v, never %+v", key, s, e)
		case s.mark.before(need):
			return s.mark, fmt.Errorf("I1: %s is at %v, but %v was seen", key, s.mark, need)
		case e.Age >= 0 && i+1 < len(past) && past[i+1].at < from:
			return s.mark, fmt.Errorf("I18: %s@%d was replaced %v ago, its age is %v", key, e.Version,
				time.Duration(until-past[i+1].at), e.Age)
		}
		return s.mark, nil
	}
	return mark{}, fmt.Errorf("I9: %s never had version %d", key, e.Version)
}

// A point is a place where a call of the ledger can be held.
type point uint8

const (
	beforeRead point = 1 << iota
	afterRead
	beforeWrite
	afterWrite
)

// A fate is what becomes of an operation's calls of the ledger.
type fate uint8

const (
	answered   fate = iota
	failed          // loads fail
	panicked        // loads panic
	refused         // writes certainly do not happen
	lost            // writes do not happen, and nobody says so
	delayed         // writes happen later, or never, and nobody says so
	unanswered      // writes happen, and nobody says so
)

// An operation is one call of a cache, made by a goroutine of its own.
type operation struct {
	id    int
	view  *view
	holds point // where its calls of the ledger stop
	fate  fate
	lag   int // which of the possible states a lagging load sees

	cancel context.CancelFunc
	ended  chan struct{}
	endAt  int64  // when the call returned
	judge  func() // says whether the result was right
}

type operationKey struct{}

// operationOf returns the operation whose call of the source ctx is for. It is
// nil for what the cache does of its own accord.
func operationOf(ctx context.Context) *operation {
	o, _ := ctx.Value(operationKey{}).(*operation)
	return o
}

// A stop is a call of the ledger that waits to be let on.
type stop struct {
	operation *operation
	point     point
	key       string
	open      chan struct{}
}

// A view is one cache, and what it may still serve.
type view struct {
	name  string
	cache *Cache[string, int]

	// seen is the tide mark as a caller can know it: the highest mark that the
	// cache has served, installed, been told of or acknowledged. It belongs to
	// the test alone.
	seen map[string]mark

	// since is the moment before which nothing counts any more: a state proven
	// before it may not be served. InvalidateAll, suspicion and changes without
	// a version move it.
	since map[string]int64

	// thrown is the same for what is served flagged while the source does not
	// answer: suspicion does not move it.
	thrown map[string]int64

	// put is when a version was last stored by Put.
	put map[string]map[Version]int64

	// moves counts the changes of seen and since.
	moves map[string]int

	// blind is set when a change without a version came: from then on a Put may
	// be unprovable.
	blind bool

	doubts []*doubting
	fills  []*filling

	// Of a replica.

	deaf   bool  // it cannot know that it hears
	sent   int   // messages on the network when it became deaf
	hello  int64 // when it last heard itself
	silent bool  // it has noticed by itself that it does not; see check for when it must
	heard  map[uint64]uint64
}

// A doubting is a write in doubt.
type doubting struct {
	key string
	err *UncertainError
}

// A filling is a Fill that has not ended.
type filling struct {
	key    string
	fill   *Fill[string, int]
	began  int64
	moves  int
	era    uint64
	read   bool // the source was read
	result fact
}

func newView(name string, c *Cache[string, int]) *view {
	return &view{
		name: name, cache: c, seen: map[string]mark{}, since: map[string]int64{}, thrown: map[string]int64{}, moves: map[string]int{},
		put: map[string]map[Version]int64{}, heard: map[uint64]uint64{},
	}
}

// see raises the tide mark.
func (v *view) see(key string, m mark) {
	if v.seen[key].before(m) {
		v.seen[key] = m
		v.moves[key]++
	}
}

// forget says that what was proven of key before now no longer counts.
func (v *view) forget(key string, now int64) {
	v.doubt(key, now)
	v.thrown[key] = v.since[key]
}

// doubt says that it must be confirmed.
func (v *view) doubt(key string, now int64) {
	v.since[key] = max(v.since[key], now)
	v.moves[key]++
	v.blind = true
}

func (v *view) inDoubt(key string) bool {
	return slices.ContainsFunc(v.doubts, func(d *doubting) bool { return d.key == key })
}

// entry returns the node that would be served at Any, and the one that is in
// the table.
func (v *view) entry(key string) (served, resident *node[string, int]) {
	return v.cache.serves(key), v.cache.entry(key)
}

// A network is a Hint between the views that delivers only when it is told to.
type network struct {
	mu    sync.Mutex // guards everything below
	down  bool       // nothing can be published
	sent  int        // messages published so far
	links []*link
}

// A link leads to one view.
type link struct {
	receive func([]byte)
	lost    func(string)
	queue   []packet
}

type packet struct {
	sent int // how many were published before it
	body []byte
}

func (n *network) Publish(_ context.Context, msg []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return errNoAnswer
	}
	for _, l := range n.links {
		l.queue = append(l.queue, packet{n.sent, slices.Clone(msg)})
	}
	n.sent++
	return nil
}

func (n *network) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &link{receive: receive, lost: lost}
	n.links = append(n.links, l)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		l.receive, l.lost = func([]byte) {}, func(string) {}
	}, nil
}

// take removes and returns the message at i of the link's queue.
func (n *network) take(l, i int) (packet, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	q := n.links[l].queue
	if i >= len(q) {
		return packet{}, false
	}
	p := q[i]
	n.links[l].queue = slices.Delete(q, i, i+1)
	return p, true
}

func (n *network) set(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

// deliver hands p to v and does to the model what it must do to the cache.
func (w *world) deliver(i int, p packet) {
	v := w.views[i]
	w.network.links[i].receive(p.body)
	r := v.cache.replica
	var m wire.Message
	if err := wire.Decode(p.body, &m); err != nil || m.CacheID != r.out.id {
		if err != nil {
			w.doubtAll(v) // I13
		}
		return
	}
	if m.Seq > v.heard[m.Origin]+1 {
		w.doubtAll(v) // I13
	}
	v.heard[m.Origin] = max(v.heard[m.Origin], m.Seq)
	switch own := m.Origin == r.out.origin; {
	case own && m.Kind == wire.KindHello:
		v.hello = w.now()
		if v.deaf && p.sent >= v.sent {
			v.deaf = false
			w.doubtAll(v) // what it had while it was deaf
		}
		if v.silent && v.cache.era.Load()&eraCutOff == 0 {
			v.silent = false
			w.doubtAll(v)
		}
	case own:
	case m.Kind == wire.KindInvalidateAll:
		w.forgetAll(v)
	case m.Kind == wire.KindInvalidate:
		for _, e := range m.Entries {
			if e.Version == 0 {
				v.forget(string(e.Key), w.now())
			} else {
				v.see(string(e.Key), mark{Version(e.Version), e.Deleted})
			}
		}
	}
}

func (w *world) doubtAll(v *view) {
	for _, k := range w.keys {
		v.doubt(k, w.now())
	}
}

func (w *world) forgetAll(v *view) {
	for _, k := range w.keys {
		v.forget(k, w.now())
	}
}

// drain delivers everything that is queued, in order.
func (w *world) drain() {
	for i := range w.views {
		for {
			p, ok := w.network.take(i, 0)
			if !ok {
				break
			}
			w.deliver(i, p)
			synctest.Wait()
		}
	}
}
