package tidemark

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// Section 2A of the failure catalogue: how a fill brings back what is over.
// Every number from S1 to S16 has a test here. S2, S13 and S15 name remedies
// that this library does not have, the Snapshot loader class and revalidation
// by version alone; their tests are about the remedies that it has, Lagging
// loaders and whole loads.

// patience is how long a test waits for what must happen at once.
const patience = 10 * time.Second

// A latch holds the first call of a hook until the test opens it; later calls
// pass.
type latch struct {
	taken  atomic.Bool   // the first call has come
	held   chan struct{} // closed when it is there
	opened chan struct{} // closed when it may go on
	open   sync.Once
}

// newLatch returns a closed latch, which opens at the latest when the test ends,
// so that a failed test does not hang in Close.
func newLatch(t testing.TB) *latch {
	l := &latch{held: make(chan struct{}), opened: make(chan struct{})}
	t.Cleanup(l.release)
	return l
}

func (l *latch) hook(context.Context, string) error {
	if l.taken.CompareAndSwap(false, true) {
		close(l.held)
		<-l.opened
	}
	return nil
}

// once is hook for functions without a key.
func (l *latch) once() { _ = l.hook(context.Background(), "") }

func (l *latch) release() { l.open.Do(func() { close(l.opened) }) }

// wait returns when the first call is held.
func (l *latch) wait(t testing.TB) {
	t.Helper()
	select {
	case <-l.held:
	case <-time.After(patience):
		require.FailNow(t, "the call that was to be held did not come")
	}
}

// A result is what a read or write returned.
type result struct {
	entry Entry[int]
	err   error
}

// async makes a call in a goroutine of its own.
func async(call func() (Entry[int], error)) <-chan result {
	ch := make(chan result, 1)
	go func() {
		e, err := call()
		ch <- result{e, err}
	}()
	return ch
}

// loading starts a read.
func loading(t testing.TB, c *Cache[string, int], key string, level Level) <-chan result {
	return async(func() (Entry[int], error) { return c.Read(t.Context(), key, level) })
}

// get waits for the result of async.
func get(t testing.TB, ch <-chan result) result {
	t.Helper()
	select {
	case r := <-ch:
		return r
	case <-time.After(patience):
		require.FailNow(t, "the call does not return")
		return result{}
	}
}

// value waits for the result of async, which must be a value.
func value(t testing.TB, ch <-chan result) Entry[int] {
	t.Helper()
	r := get(t, ch)
	require.NoError(t, r.err)
	return r.entry
}

// load reads a key that must have a value.
func load(t testing.TB, c *Cache[string, int], key string) Entry[int] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e, err := c.Load(ctx, key)
	require.NoError(t, err)
	return e
}

// missing asserts that memory has nothing to serve for key, not even an absence.
func missing(t testing.TB, c *Cache[string, int], key string, why string) {
	t.Helper()
	e, ok := c.GetEntry(key)
	assert.False(t, ok, "%s: memory serves %+v", why, e)
}

// served asserts that memory serves key at version v.
func served(t testing.TB, c *Cache[string, int], key string, v Version, why string) {
	t.Helper()
	e, ok := c.GetEntry(key)
	if assert.True(t, ok, "%s: memory serves nothing", why) {
		assert.Equal(t, v, e.Version, why)
	}
}

// evict takes the key's entry out of memory as the policy does.
func evict[V any](t testing.TB, c *Cache[string, V], key string) {
	t.Helper()
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.table.Find(hash, key)
	require.True(t, ok, "there is nothing to evict")
	s.dropLocked(p, hash, c.moment())
}

// idle asserts that nothing is in progress in c: no fence, flight or place is
// left behind.
func idle[V any](t testing.TB, c *Cache[string, V]) {
	t.Helper()
	eventually(t, func() bool {
		for i := range c.shards {
			s := &c.shards[i]
			s.mu.Lock()
			n := len(s.pending)
			s.mu.Unlock()
			if n > 0 {
				return false
			}
		}
		c.loads.mu.Lock()
		defer c.loads.mu.Unlock()
		return len(c.places) == 0 && c.loads.n == 0
	}, "fences, flights and places are given back")
}

// A readReplica is a Loader that shows what its source held when it last caught
// up. With Lagging, the source itself is the strong one.
type readReplica struct {
	of *source

	mu    sync.Mutex // guards everything below
	rows  map[string]row
	loads int

	afterLoad func(ctx context.Context, key string) error
}

func newReadReplica(of *source) *readReplica { return &readReplica{of: of, rows: map[string]row{}} }

func (r *readReplica) catchUp(key string) {
	have := r.of.get(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows[key] = have
}

func (r *readReplica) loadCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loads
}

func (r *readReplica) Load(ctx context.Context, key string) (int, Version, error) {
	r.mu.Lock()
	r.loads++
	have, ok := r.rows[key]
	r.mu.Unlock()
	if err := call(r.afterLoad, ctx, key); err != nil {
		return 0, 0, err
	}
	if !ok || have.absent {
		return 0, have.version, ErrNotFound
	}
	return have.value, have.version, nil
}

// calm returns an Invalidator on b that beats so slowly that a busy machine is
// not taken for a broken link.
func calm(b *bus) Invalidator {
	inv := b.invalidator()
	inv.Beat = time.Minute
	return inv
}

// calmReplicas is replicas with calm Invalidators.
func calmReplicas(t testing.TB, n int, s *source, b *bus) (all []*Cache[string, int]) {
	t.Helper()
	for range n {
		c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Invalidator: calm(b)})
		require.NoError(t, c.Ready(t.Context()))
		all = append(all, c)
	}
	return all
}

// small keeps the admission sketch of a test's cache small.
const small = 1000

// The load has read version 1; version 2 is committed and its invalidation finds
// no entry; the load ends. It must not become the entry.
func TestS01_InvalidationFencesALoadInFlight(t *testing.T) {
	for _, version := range []Version{2, 0} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			l := newLatch(t)
			s.afterLoad = l.hook
			s.set("k", 10)
			reader := loading(t, c, "k", Any)
			l.wait(t)
			s.set("k", 20)
			require.NoError(t, c.Invalidate(t.Context(), "k", version))
			l.release()
			assert.Equal(t, 10, value(t, reader).Value, "a reader from before the change may see either")
			idle(t, c)
			missing(t, c, "k", "the load was overtaken")
			assert.Equal(t, 20, load(t, c, "k").Value)
			served(t, c, "k", 2, "a load begun afterwards fills")
		})
	}
}

// As before, with a hand-written fill in place of the load.
func TestS01_InvalidationFencesAFill(t *testing.T) {
	for version, want := range map[Version]Outcome{2: Stale, 0: Unproven} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			c := onSource(t, newSource())
			f := c.BeginFill("k")
			require.NoError(t, c.Invalidate(t.Context(), "k", version))
			assert.Equal(t, want, f.Commit(10, 1))
			missing(t, c, "k", "the fill was overtaken")
			f = c.BeginFill("k")
			assert.Equal(t, Applied, f.Commit(20, 2))
			served(t, c, "k", 2, "a fill begun afterwards is good")
		})
	}
}

// Version 2 is committed and its invalidation applied; a load begun afterwards
// asks a read replica that is still at version 1.
func TestS02_ALaggingLoadBelowTheInvalidationIsRefused(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	r.catchUp("k")
	s.set("k", 20)
	require.NoError(t, c.Invalidate(t.Context(), "k", 2))

	assert.Equal(t, 20, load(t, c, "k").Value)
	assert.Equal(t, 1, r.loadCount(), "the read replica was asked first")
	assert.Equal(t, 1, s.loadCount(), "then the strong source")
	served(t, c, "k", 2, "the strong load filled")
}

// The key changed to a version nobody named: nothing the read replica says can
// be compared, so it is not asked.
func TestS02_AfterAChangeWithoutAVersionOnlyTheStrongSourceIsAsked(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	r.catchUp("k")
	s.set("k", 20)
	require.NoError(t, c.Invalidate(t.Context(), "k", 0))
	assert.Equal(t, 20, load(t, c, "k").Value)
	assert.Zero(t, r.loadCount())
	served(t, c, "k", 2, "the strong load filled")
}

// Version 1 is inserted and its invalidation applied; the read replica does not
// have the row yet, and says absent without a version. That is no answer.
func TestS02_ALaggingAbsenceBelowTheInvalidationIsRefused(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	require.NoError(t, c.Invalidate(t.Context(), "k", 1))
	l := newLatch(t)
	s.afterLoad = l.hook // so that what the lagging load filled can be seen
	reader := loading(t, c, "k", Any)
	l.wait(t)
	assert.Equal(t, 1, r.loadCount())
	missing(t, c, "k", "the read replica cannot know")
	l.release()
	assert.Equal(t, 10, value(t, reader).Value)
}

// A strong read has shown that the key is absent, as of no version; the entry is
// evicted; the read replica still has version 1.
func TestS02_AnAbsenceWithoutAVersionIsRememberedAgainstLaggingLoads(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	strong := loaderPair[string, int]{Loader: r, strong: func(context.Context, string) (int, Version, error) {
		return 0, 0, ErrNotFound
	}}
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: strong, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	r.catchUp("k")
	_, err := c.Read(t.Context(), "k", Linearizable)
	require.ErrorIs(t, err, ErrNotFound)
	evict(t, c, "k")
	_, err = c.Load(t.Context(), "k")
	require.ErrorIs(t, err, ErrNotFound, "reads do not go back from absent to version 1")
}

// A loaderPair is a Lagging loader with a strong source beside it.
type loaderPair[K comparable, V any] struct {
	Loader[K, V]
	strong LoaderFunc[K, V]
}

func (l loaderPair[K, V]) LoadStrong(ctx context.Context, key K) (V, Version, error) {
	return l.strong(ctx, key)
}

// Version 2 was served here, then evicted; the read replica is at version 1.
// Neither a lagging load nor a late Put may bring it back.
func TestS03_EvictionDoesNotLetReadsGoBack(t *testing.T) {
	s := newSource()
	r := newReadReplica(s)
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: r, Store: s, LoaderClass: Lagging(time.Hour)})
	s.set("k", 10)
	r.catchUp("k")
	s.set("k", 20)
	e, err := c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	require.Equal(t, 20, e.Value)
	evict(t, c, "k")

	assert.Equal(t, Stale, c.Put("k", 10, 1), "a late Put")
	assert.Equal(t, 20, load(t, c, "k").Value, "a lagging load")
}

// The same without a lagging loader: only Put can come late.
func TestS03_ALatePutAfterEvictionIsStale(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", 20, 2))
	evict(t, c, "k")
	assert.Equal(t, Stale, c.Put("k", 10, 1))
	missing(t, c, "k", "the Put was below the tide mark")
	assert.Equal(t, Applied, c.Put("k", 20, 2), "the mark itself is good")
}

// A lagging load starts while the mark of version 2 is known, and reads version
// 1; the replica catches up, so the mark may be forgotten; the load ends.
func TestS04_ALaggingLoadKeepsTheFloorOfItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		r := newReadReplica(s)
		c := newCache(t, Options[string, int]{
			MaxCost: small, Shards: 1, Loader: r, Store: s, LoaderClass: Lagging(time.Second),
		})
		l := newLatch(t)
		r.afterLoad = l.hook
		s.set("k", 10)
		r.catchUp("k")
		s.set("k", 20)
		require.NoError(t, c.Invalidate(t.Context(), "k", 2))
		reader := loading(t, c, "k", Any)
		l.wait(t)

		r.catchUp("k")
		hash := c.keys.hash("k")
		sh := c.shard(hash)
		for range 3 { // turns
			time.Sleep(1100 * time.Millisecond)
			sh.mu.Lock()
			floor := sh.delayed.floor(hash, c.moment())
			sh.mu.Unlock()
			if floor == (mark{}) {
				break
			}
		}
		l.release()
		assert.Equal(t, 20, value(t, reader).Value)
		served(t, c, "k", 2, "version 1 did not fill")
		assert.Equal(t, 1, s.loadCount(), "the read was sent to the strong source")
	})
}

// A mark is kept for the lag at least, and is gone after twice the lag: a slot
// that many keys share does not refuse their loads for ever.
func TestS04_ALaggingFloorLastsBetweenOnceAndTwiceTheLag(t *testing.T) {
	const lag = 100
	when := func(now int64) moment { return moment{fixed: now} }
	for began := int64(0); began < 2*lag; began += 10 { // of the turn, relative to the raise
		d := newDelayedTide(4, lag)
		d.raise(1<<8, mark{version: 1}, when(1000-began)) // so that it turns then
		at := max(1000-began, 1000)
		d.raise(0, mark{version: 7}, when(at))
		for now := at; now < at+lag; now += 5 {
			require.Equal(t, mark{version: 7}, d.floor(0, when(now)), "forgotten after %d", now-at)
		}
		for now := at + lag; now < at+2*lag; now += 5 {
			d.floor(0, when(now))
		}
		assert.Equal(t, mark{}, d.floor(0, when(at+2*lag)), "still known after twice the lag")
	}
	d := newDelayedTide(4, lag)
	d.raise(0, mark{version: 7}, when(10))
	assert.Equal(t, mark{}, d.floor(0, when(10_000)), "nobody asked for a long time")
}

// Load A has read version 1; a linearizable read begins load B. From then on
// only B may fill, whichever ends first.
func TestS05_OnlyTheLatestLoadOfAKeyFills(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	a, b := newLatch(t), newLatch(t)
	s.afterLoad = a.hook
	s.set("k", 10)
	readerA := loading(t, c, "k", Any)
	a.wait(t)
	s.set("k", 20)
	s.afterLoad = b.hook
	readerB := loading(t, c, "k", Linearizable)
	b.wait(t)

	a.release()
	assert.Equal(t, 10, value(t, readerA).Value, "A goes on for those who wait for it")
	missing(t, c, "k", "A may not fill any more")
	b.release()
	assert.Equal(t, 20, value(t, readerB).Value)
	served(t, c, "k", 2, "B fills")
}

// The same with B ending first: A must not overwrite it.
func TestS05_AnOvertakenLoadDoesNotOverwrite(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	a := newLatch(t)
	s.afterLoad = a.hook
	s.set("k", 10)
	readerA := loading(t, c, "k", Any)
	a.wait(t)
	s.set("k", 20)
	_, err := c.Read(t.Context(), "k", Linearizable)
	require.NoError(t, err)
	a.release()
	value(t, readerA)
	idle(t, c)
	served(t, c, "k", 2, "A ended last with version 1")
}

// A fill that is behind the entry, in each order of ending.
func TestS05_TwoFillsOutOfOrder(t *testing.T) {
	c := onSource(t, newSource())
	older, newer := c.BeginFill("k"), c.BeginFill("k")
	assert.Equal(t, Applied, newer.Commit(20, 2))
	assert.Equal(t, Stale, older.Commit(10, 1))
	served(t, c, "k", 2, "the older fill ended last")

	older, newer = c.BeginFill("j"), c.BeginFill("j")
	assert.Equal(t, Applied, older.Commit(10, 1))
	assert.Equal(t, Applied, newer.Commit(20, 2))
	served(t, c, "j", 2, "the newer fill ended last")
	assert.Equal(t, Stale, newer.Commit(30, 3), "a fill ends once")
}

// A load has read version 1; a local write installs version 2, which is evicted
// and forgotten; the load ends.
func TestS06_AnInstallFencesALoadEvenIfItIsEvicted(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	reader := loading(t, c, "k", Any)
	l.wait(t)
	_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
	require.NoError(t, err)
	served(t, c, "k", 2, "the own write")
	evict(t, c, "k")
	l.release()
	value(t, reader)
	idle(t, c)
	missing(t, c, "k", "the load read version 1")
}

// The same with the load behind a hit, as RefreshAfter starts it.
func TestS06_AnInstallFencesARefresh(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, RefreshAfter: time.Nanosecond})
	s.set("k", 10)
	load(t, c, "k")
	l := newLatch(t)
	s.afterLoad = l.hook
	refreshing(t, c, "k", l)
	_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
	require.NoError(t, err)
	evict(t, c, "k")
	l.release()
	idle(t, c)
	missing(t, c, "k", "the refresh read version 1")
}

// A load has read version 1; the caller writes version 2, which is evicted, and
// reads. It joins the load, whose result is not enough.
func TestS07_AReadAfterTheOwnWriteIsNotContentWithAnOlderLoad(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	before := loading(t, c, "k", Any)
	l.wait(t)
	_, err := c.CompareAndSet(t.Context(), "k", 1, 20)
	require.NoError(t, err)
	evict(t, c, "k")
	after := loading(t, c, "k", Any)
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the read joins the load")
	l.release()
	assert.Equal(t, 10, value(t, before).Value)
	assert.Equal(t, 20, value(t, after).Value)
	assert.Equal(t, 2, s.loadCount())
}

// A load has read version 1. What happens next cannot be compared with it, so a
// read that begins afterwards does not join it.
func TestS07_ALoadThatSomethingHasBrokenIsNotJoined(t *testing.T) {
	for name, breakIt := range map[string]func(*testing.T, *Cache[string, int]){
		"a change without a version": func(t *testing.T, c *Cache[string, int]) {
			require.NoError(t, c.Invalidate(t.Context(), "k", 0))
		},
		"everything changed": func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.InvalidateAll(t.Context())) },
		"suspicion":          func(_ *testing.T, c *Cache[string, int]) { c.suspect("test") },
		"an absence without a version": func(t *testing.T, c *Cache[string, int]) {
			require.Equal(t, Applied, c.BeginFill("k").Absent(0))
			evict(t, c, "k")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			l := newLatch(t)
			s.afterLoad = l.hook
			s.set("k", 10)
			before := loading(t, c, "k", Any)
			l.wait(t)
			s.set("k", 20)
			breakIt(t, c)
			assert.Equal(t, 20, load(t, c, "k").Value, "a read that begins now has a load of its own")
			l.release()
			value(t, before)
			idle(t, c)
			served(t, c, "k", 2, "the older load did not fill")
		})
	}
}

// A load has seen that the key is absent; it is inserted and its invalidation
// arrives; the load ends. The absence must not be cached, and must not be enough
// for a read that began after the invalidation.
func TestS08_AnAbsenceIsNotCachedOverAnInsert(t *testing.T) {
	for _, version := range []Version{1, 0} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			l := newLatch(t)
			s.afterLoad = l.hook
			before := loading(t, c, "k", Any)
			l.wait(t)
			s.set("k", 10)
			require.NoError(t, c.Invalidate(t.Context(), "k", version))
			after := loading(t, c, "k", Any)
			eventually(t, func() bool { st := c.Stats(); return st.Joined == 1 || st.Loads == 2 }, "the second read is on its way")
			l.release()
			if r := get(t, before); r.err != nil { // it was there before the insert
				require.ErrorIs(t, r.err, ErrNotFound)
				require.Zero(t, version, "what came with a version asks for another load")
			}
			assert.Equal(t, 10, value(t, after).Value)
			idle(t, c)
			served(t, c, "k", 1, "the value, not the absence")
		})
	}
}

// Version 1 was committed and then deleted, by a source that keeps no version of
// deletions. A load has seen the deletion when word of version 1 arrives. What it
// has seen cannot be compared with that, so its reader loads again: if it were
// shown the absence, somebody who is late could bring version 1 back after it.
func TestS08_AnOvertakenAbsenceIsLoadedAgain(t *testing.T) {
	word := func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Invalidate(t.Context(), "k", 1)) }
	for name, tt := range map[string]struct {
		lagging  bool
		overtake func(*testing.T, *Cache[string, int])
		late     func(*Cache[string, int], *Fill[string, int]) Outcome
	}{
		"then Put":          {false, word, func(c *Cache[string, int], _ *Fill[string, int]) Outcome { return c.Put("k", 10, 1) }},
		"then Commit":       {false, word, func(_ *Cache[string, int], f *Fill[string, int]) Outcome { return f.Commit(10, 1) }},
		"by Put":            {false, func(t *testing.T, c *Cache[string, int]) { require.Equal(t, Applied, c.Put("k", 10, 1)) }, nil},
		"at a lagging load": {true, word, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLatch(t)
			var loads atomic.Int32
			gone := func(ctx context.Context, key string) (int, Version, error) {
				loads.Add(1)
				return 0, 0, errors.Join(l.hook(ctx, key), ErrNotFound)
			}
			o := Options[string, int]{MaxCost: small, Loader: LoaderFunc[string, int](gone)}
			if tt.lagging {
				first := true
				o.LoaderClass = Lagging(time.Hour)
				o.Loader = loaderPair[string, int]{LoaderFunc[string, int](func(ctx context.Context, key string) (int, Version, error) {
					if !first {
						return 10, 1, nil // another replica of the database, not yet there
					}
					first = false
					return gone(ctx, key)
				}), gone}
			}
			c := newCache(t, o)
			f := c.BeginFill("k")
			before := loading(t, c, "k", Any)
			l.wait(t)
			tt.overtake(t, c)
			l.release()
			require.ErrorIs(t, get(t, before).err, ErrNotFound)
			assert.EqualValues(t, 2, loads.Load(), "the first absence was not enough")
			if tt.late != nil {
				assert.Equal(t, Unproven, tt.late(c, f))
			}
			_, err := c.Load(t.Context(), "k")
			require.ErrorIs(t, err, ErrNotFound, "the reader has seen the deletion of version 1")
		})
	}
}

// An absence that a fill by hand has seen is word of a change for what became
// known meanwhile: it cannot be compared, and its caller acts on it.
func TestS08_AFillOfAnOvertakenAbsenceEndsTheEntry(t *testing.T) {
	c := onSource(t, newSource())
	f := c.BeginFill("k")
	require.Equal(t, Applied, c.Put("k", 10, 1))
	assert.Equal(t, Unproven, f.Absent(0))
	missing(t, c, "k", "which of the two is newer nobody can say")
	assert.Equal(t, Unproven, c.Put("k", 10, 1))
}

// The same for a hand-written fill.
func TestS08_AFillOfAnAbsenceIsFenced(t *testing.T) {
	c := onSource(t, newSource())
	f := c.BeginFill("k")
	require.NoError(t, c.Invalidate(t.Context(), "k", 1))
	assert.Equal(t, Unproven, f.Absent(0))
	f = c.BeginFill("k")
	require.NoError(t, c.Invalidate(t.Context(), "k", 5))
	assert.Equal(t, Stale, f.Absent(4))
	missing(t, c, "k", "nothing was proven")
	assert.Equal(t, Applied, c.BeginFill("k").Absent(5))
	e, ok := c.GetEntry("k")
	assert.True(t, ok && e.Absent)
}

// A load has seen that the key is absent, as of no version. Another process
// inserts it at version 1 and tells a caller, which asks for at least that.
func TestS08_AnOlderAbsenceDoesNotSatisfyAtLeast(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = l.hook
	before := loading(t, c, "k", Any)
	l.wait(t)
	s.set("k", 10)
	after := loading(t, c, "k", AtLeast(1))
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the read joins the load")
	l.release()
	require.ErrorIs(t, get(t, before).err, ErrNotFound)
	assert.Equal(t, 10, value(t, after).Value)
}

// The cache serves version 1; the row is deleted behind its back, without a
// version to tell; a strong read learns of it, but absences are not cached. The
// entry must go all the same.
func TestS08_AnAbsenceThatIsNotCachedStillEndsTheEntry(t *testing.T) {
	for name, o := range map[string]Options[string, int]{
		"NegativeTTL": {NegativeTTL: -1},
		"EntryTTL": {EntryTTL: func(_ string, e Entry[int]) time.Duration {
			if e.Absent {
				return -1
			}
			return 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			gone := false
			o.MaxCost = small
			o.Loader = LoaderFunc[string, int](func(context.Context, string) (int, Version, error) {
				if gone {
					return 0, 0, ErrNotFound
				}
				return 10, 1, nil
			})
			c := newCache(t, o)
			load(t, c, "k")
			gone = true
			_, err := c.Read(t.Context(), "k", Linearizable)
			require.ErrorIs(t, err, ErrNotFound)
			missing(t, c, "k", "the key is known to be gone")
		})
	}
}

// A replica starts, and loads before it can hear the others; a write in between
// is never heard.
func TestS09_NothingIsServedThatWasLoadedBeforeTheReplicaHears(t *testing.T) {
	s := newSource()
	b := newBus()
	var late [][]byte // by the publisher's goroutine only
	b.setFault(func(_ int, msg []byte) [][]byte {
		late = append(late, msg)
		return nil
	})
	inv := b.invalidator()
	inv.Beat = time.Second // no pause of this machine is long enough to look like a cut
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Invalidator: inv})
	s.set("k", 10)
	assert.Equal(t, 10, load(t, c, "k").Value)
	missing(t, c, "k", "the replica is deaf")

	l := newLatch(t) // and a load that is in flight when it begins to hear
	s.afterLoad = l.hook
	reader := loading(t, c, "k", Any)
	l.wait(t)
	s.set("k", 20)
	b.setFault(func(_ int, msg []byte) [][]byte { // nothing is lost, so that no gap helps
		all := append(late, msg)
		late = nil
		return all
	})
	require.NoError(t, c.Ready(t.Context()))
	missing(t, c, "k", "the first load was before the replica heard")
	l.release()
	value(t, reader)
	idle(t, c)
	missing(t, c, "k", "version 2 was committed before the replica heard")
	assert.Equal(t, 20, load(t, c, "k").Value)
	served(t, c, "k", 2, "loaded since")
}

// A replica has just subscribed, or been told that it may have missed something;
// the read replica of the database still shows the time before.
func TestS10_LaggingLoadsAreHeldOffAfterWhatWasMissed(t *testing.T) {
	for name, miss := range map[string]func(*testing.T, *Cache[string, int]){
		"subscribed":         func(*testing.T, *Cache[string, int]) {},
		"suspect":            func(_ *testing.T, c *Cache[string, int]) { c.suspect("test") },
		"everything changed": func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.InvalidateAll(t.Context())) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				r := newReadReplica(s)
				inv := newBus().invalidator()
				inv.Beat = time.Second
				c := newCache(t, Options[string, int]{
					MaxCost: small, Shards: 1, Loader: r, Store: s, LoaderClass: Lagging(2 * time.Second), Invalidator: inv,
				})
				require.NoError(t, c.Ready(t.Context()))
				if name != "subscribed" {
					time.Sleep(5 * time.Second)
				}
				miss(t, c)
				s.set("k", 10)
				r.catchUp("k")
				s.set("k", 20) // nobody hears of it
				assert.Equal(t, 20, load(t, c, "k").Value, "from the strong source")
				assert.Zero(t, r.loadCount())

				time.Sleep(2 * time.Second)
				r.catchUp("j")
				_, err := c.Load(t.Context(), "j")
				require.ErrorIs(t, err, ErrNotFound)
				assert.Equal(t, 1, r.loadCount(), "the lag has passed: the read replica is good again")
			})
		})
	}
}

// A load is in flight; a gap is noticed, so that everything is suspect; the load
// ends. It may have read what the missing message was about.
func TestS11_ALoadFromBeforeAGapIsNotServed(t *testing.T) {
	s := newSource()
	b := newBus()
	c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Invalidator: calm(b)})
	require.NoError(t, c.Ready(t.Context()))
	l := newLatch(t)
	s.afterLoad = l.hook
	s.set("k", 10)
	reader := loading(t, c, "k", Any)
	fill := c.BeginFill("j")
	l.wait(t)

	other := &wire.Message{Kind: wire.KindInvalidate, CacheID: c.replica.out.id, Origin: 7, Seq: 2} // 1 is missing
	msg, err := wire.Append(nil, other)
	require.NoError(t, err)
	require.NoError(t, b.Publish(t.Context(), msg))
	require.EqualValues(t, 1, c.Stats().Suspicions)

	l.release()
	value(t, reader)
	eventually(t, func() bool { return c.Explain("k").Fences == 0 }, "the load ends")
	missing(t, c, "k", "the load began before the gap")
	assert.Equal(t, Unproven, fill.Commit(1, 1))
	missing(t, c, "j", "a fill from before the gap")
	load(t, c, "k")
	served(t, c, "k", 1, "loaded since")
}

// A load, a fill and a write are in flight for keys without entries, so that
// InvalidateAll finds nothing to remove; then they end.
func TestS12_InvalidateAllFencesWhatIsInFlight(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l, w := newLatch(t), newLatch(t)
	s.afterLoad, s.afterWrite = l.hook, w.hook
	s.set("load", 10)
	reader := loading(t, c, "load", Any)
	writer := async(func() (Entry[int], error) { return c.CompareAndSet(t.Context(), "write", 0, 10) })
	fill := c.BeginFill("fill")
	l.wait(t)
	w.wait(t)
	require.NoError(t, c.InvalidateAll(t.Context()))
	l.release()
	w.release()
	value(t, reader)
	value(t, writer)
	assert.Equal(t, Unproven, fill.Commit(10, 1))
	idle(t, c)
	for _, key := range []string{"load", "write", "fill"} {
		missing(t, c, key, key+" began before InvalidateAll")
		e, err := c.Load(t.Context(), key)
		assert.True(t, err == nil && e.Version == 1 || key == "fill" && errors.Is(err, ErrNotFound), "%s: %v", key, err)
	}
}

// A load has read version 9; the source is restored to version 3, and
// InvalidateAll says so; a load that began afterwards has read version 3 when
// the first one ends. What that one read counts for nothing.
func TestS12_ALoadFromBeforeInvalidateAllFencesNothingAfterIt(t *testing.T) {
	var version Version = 9
	before, after := newLatch(t), newLatch(t)
	hold := before
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: LoaderFunc[string, int](
		func(context.Context, string) (int, Version, error) {
			v, l := version, hold
			l.once()
			return int(v), v, nil
		})})
	old := loading(t, c, "k", Any)
	before.wait(t)
	version, hold = 3, after
	require.NoError(t, c.InvalidateAll(t.Context()))
	restored := loading(t, c, "k", Any)
	after.wait(t)
	before.release()
	assert.Equal(t, Version(9), value(t, old).Version)
	eventually(t, func() bool { return c.Explain("k").Fences == 1 }, "the old load has ended")
	joins := loading(t, c, "k", Any)
	eventually(t, func() bool { st := c.Stats(); return st.Joined == 1 || st.Loads == 3 }, "a read that begins now is on its way")
	after.release()
	assert.Equal(t, Version(3), value(t, restored).Version)
	assert.Equal(t, Version(3), value(t, joins).Version, "it asks for nothing that the restored source does not have")
	idle(t, c)
	e, err := c.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, Version(3), e.Version, "the restored source counts")
	served(t, c, "k", 3, "and its state is cached, at the latest by the next load")
}

// An entry is suspect, and a lagging replica confirms it: that renews nothing.
// The strong source decides; and what a lagging load does fill is never counted
// as younger than the lag.
func TestS13_ALaggingAnswerRenewsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lag = 2 * time.Second
		s := newSource()
		r := newReadReplica(s)
		c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1, Loader: r, Store: s, LoaderClass: Lagging(lag)})
		s.set("k", 10)
		r.catchUp("k")
		e := load(t, c, "k")
		assert.Equal(t, 1, r.loadCount())
		assert.Equal(t, lag, e.Age, "as the load returned it")
		time.Sleep(time.Second)
		e, ok := c.GetEntry("k")
		assert.True(t, ok)
		assert.Equal(t, lag+time.Second, e.Age, "as memory serves it")
		e, err := c.Read(t.Context(), "k", Linearizable)
		require.NoError(t, err)
		assert.Zero(t, e.Age, "a strong load proves its moment")

		s.set("k", 20)
		c.suspect("the message about version 2 is missing")
		assert.Equal(t, 20, load(t, c, "k").Value)
		assert.Equal(t, 1, r.loadCount(), "the read replica would have confirmed version 1")
	})
}

// The source takes eight seconds to answer: the state is as old as the question.
func TestS14_LifeCountsFromTheStartOfTheOperation(t *testing.T) {
	const took, ttl = 8 * time.Second, 10 * time.Second
	slow := func(context.Context, string) error { time.Sleep(took); return nil }
	for name, bring := range map[string]func(*testing.T, *Cache[string, int]){
		"load": func(t *testing.T, c *Cache[string, int]) {
			assert.Equal(t, took, load(t, c, "k").Age, "as the load returned it")
		},
		"bulk load": func(t *testing.T, c *Cache[string, int]) {
			found, err := c.LoadMany(t.Context(), []string{"k", "j"})
			require.NoError(t, err)
			assert.Equal(t, took, found["k"].Age)
		},
		"write": func(t *testing.T, c *Cache[string, int]) {
			e, err := c.CompareAndSet(t.Context(), "k", 1, 10)
			require.NoError(t, err)
			assert.Equal(t, took, e.Age, "as the write returned it")
		},
		"fill": func(t *testing.T, c *Cache[string, int]) {
			f := c.BeginFill("k")
			time.Sleep(took)
			require.Equal(t, Applied, f.Commit(10, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				c := newCache(t, Options[string, int]{
					MaxCost: small, Shards: 1, Loader: bulkSource{s}, Store: s, TTL: ttl, TTLJitter: -1,
				})
				s.set("k", 1)
				s.set("j", 1)
				s.afterLoad, s.afterWrite = slow, slow
				bring(t, c)
				e, ok := c.GetEntry("k")
				require.True(t, ok)
				assert.Equal(t, took, e.Age, "as memory serves it")
				time.Sleep(ttl - took - time.Millisecond)
				_, ok = c.GetEntry("k")
				assert.True(t, ok, "expired early")
				time.Sleep(time.Millisecond)
				missing(t, c, "k", "ten seconds after the question")
			})
		})
	}
}

// A bulkSource is a source with a bulk load, which calls the hooks once per key.
type bulkSource struct{ *source }

func (s bulkSource) LoadMany(ctx context.Context, keys []string) (map[string]Loaded[int], error) {
	found := map[string]Loaded[int]{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, key := range keys {
		wg.Go(func() {
			value, version, err := s.Load(ctx, key)
			mu.Lock()
			defer mu.Unlock()
			found[key] = Loaded[int]{Value: value, Version: version, Absent: errors.Is(err, ErrNotFound)}
		})
	}
	wg.Wait()
	return found, nil
}

// A bulkFunc is a Loader whose bulk load is a function. Single loads fail.
type bulkFunc func(ctx context.Context, keys []string) (map[string]Loaded[int], error)

func (bulkFunc) Load(context.Context, string) (int, Version, error) {
	return 0, 0, errors.New("single load")
}

func (f bulkFunc) LoadMany(ctx context.Context, keys []string) (map[string]Loaded[int], error) {
	return f(ctx, keys)
}

// A bulk answer names one key, says that a second is absent, fails a third, and
// says nothing of a fourth. Each key has what was said of it, and only that.
func TestS15_EachKeyOfABulkLoadHasItsOwnAnswer(t *testing.T) {
	boom := errors.New("boom")
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkFunc(
		func(context.Context, []string) (map[string]Loaded[int], error) {
			return map[string]Loaded[int]{
				"value":   {Value: 10, Version: 7},
				"absent":  {Absent: true, Version: 3},
				"deleted": {Err: fmt.Errorf("row: %w", ErrNotFound), Version: 4},
				"failed":  {Err: boom},
				"torn":    {Err: boom, Absent: true},
				"none":    {Value: 5},
			}, nil
		})})
	found, err := c.LoadMany(t.Context(), []string{"value", "absent", "deleted", "failed", "torn", "none", "unsaid"})
	assert.Equal(t, map[string]Entry[int]{"value": {Value: 10, Version: 7, Age: found["value"].Age}}, found)
	require.ErrorIs(t, err, boom)
	require.ErrorIs(t, err, ErrIncomplete)
	require.ErrorIs(t, err, ErrNoVersion)
	require.NotErrorIs(t, err, ErrNotFound)
	var failed *KeysError[string]
	require.ErrorAs(t, err, &failed)
	assert.ElementsMatch(t, []string{"failed", "torn", "none", "unsaid"}, slices.Collect(maps.Keys(failed.Failed)))
	require.ErrorIs(t, failed.Failed["unsaid"], ErrIncomplete)
	assert.NotContains(t, err.Error(), "unsaid", "a key may be personal data")

	served(t, c, "value", 7, "loaded")
	for key, version := range map[string]Version{"absent": 3, "deleted": 4} {
		e, ok := c.GetEntry(key)
		assert.True(t, ok && e.Absent && e.Version == version, "%s: %+v", key, e)
	}
	for _, key := range []string{"failed", "torn", "none", "unsaid"} {
		missing(t, c, key, "no state of "+key+" was loaded")
	}
	assert.EqualValues(t, 4, c.Stats().LoadErrors)
	idle(t, c)
}

// The bulk load as a whole fails with an error that wraps ErrNotFound, such as
// that of a missing table. That is no absence of every key.
func TestS15_AFailedBulkLoadSaysNothingOfItsKeys(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkFunc(
		func(context.Context, []string) (map[string]Loaded[int], error) {
			return nil, fmt.Errorf("no such table: %w", ErrNotFound)
		})})
	found, err := c.LoadMany(t.Context(), []string{"a", "b"})
	assert.Empty(t, found)
	var failed *LoadError
	require.ErrorAs(t, err, &failed)
	assert.Contains(t, err.Error(), "no such table")
	missing(t, c, "a", "nothing is known of it")
	missing(t, c, "b", "nothing is known of it")
}

// Two keys of one bulk load: the invalidation of one fences that one only.
func TestS15_ABulkLoadIsFencedKeyByKey(t *testing.T) {
	s := newSource()
	c := newCache(t, Options[string, int]{MaxCost: small, Loader: bulkSource{s}})
	l := newLatch(t)
	s.set("a", 10)
	s.set("b", 10)
	s.afterLoad = func(ctx context.Context, key string) error {
		if key == "a" {
			return l.hook(ctx, key)
		}
		return nil
	}
	done := make(chan map[string]Entry[int], 1)
	go func() {
		found, err := c.LoadMany(t.Context(), []string{"a", "b"})
		assert.NoError(t, err)
		done <- found
	}()
	l.wait(t)
	s.set("a", 20)
	require.NoError(t, c.Invalidate(t.Context(), "a", 2))
	l.release()
	assert.Len(t, <-done, 2)
	missing(t, c, "a", "it was overtaken")
	served(t, c, "b", 1, "nothing happened to it")
}

// The first caller gives up, or the loader panics: nobody else is harmed, and
// the key is not stuck.
func TestS16_TheFirstCallersEndIsNotTheLoads(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	l := newLatch(t)
	s.afterLoad = func(ctx context.Context, key string) error { // after the caller has gone, the load still lives
		_ = l.hook(ctx, key)
		return ctx.Err()
	}
	s.set("k", 10)
	ctx, cancel := context.WithCancel(t.Context())
	first := async(func() (Entry[int], error) { return c.Load(ctx, "k") })
	l.wait(t)
	second := loading(t, c, "k", Any)
	eventually(t, func() bool { return c.Stats().Joined == 1 }, "the second caller joins")
	cancel()
	require.ErrorIs(t, get(t, first).err, context.Canceled, "at once, with the load still held")
	l.release()
	assert.Equal(t, 10, value(t, second).Value)
	served(t, c, "k", 1, "the load filled")
	assert.Equal(t, 1, s.loadCount())
}

// The loader panics, ends its goroutine, or fails: all who wait get the error,
// the next read loads again.
func TestS16_AFailedLoadLeavesNothingBehind(t *testing.T) {
	boom := errors.New("boom")
	for name, fail := range map[string]func() error{
		"panic":          func() error { panic("boom") },
		"nil panic":      func() error { var p *int; *p = 1; return nil },
		"Goexit":         func() error { goexit(); return nil },
		"error":          func() error { return boom },
		"panic an error": func() error { panic(fmt.Errorf("no row: %w", ErrNotFound)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			c := onSource(t, s)
			l := newLatch(t)
			s.set("k", 10)
			var failed atomic.Bool
			s.afterLoad = func(ctx context.Context, key string) error {
				if failed.Swap(true) {
					return nil
				}
				_ = l.hook(ctx, key)
				return fail()
			}
			first := loading(t, c, "k", Any)
			l.wait(t)
			second := loading(t, c, "k", Any)
			eventually(t, func() bool { return c.Stats().Joined == 1 }, "the second caller joins")
			l.release()
			for _, reader := range []<-chan result{first, second} {
				r := get(t, reader)
				var failed *LoadError
				require.ErrorAs(t, r.err, &failed)
				assert.Negative(t, r.entry.Age)
				if name == "error" {
					require.ErrorIs(t, r.err, boom)
				} else {
					var panicked *PanicError
					require.ErrorAs(t, r.err, &panicked)
				}
				require.NotErrorIs(t, r.err, ErrNotFound)
			}
			idle(t, c)
			missing(t, c, "k", "failures are not cached")
			assert.Equal(t, 10, load(t, c, "k").Value)
			assert.EqualValues(t, 1, c.Stats().LoadErrors)
		})
	}
}

// A load has failed while a fill of the same key goes on: the next read does not
// join the load that is over.
func TestS16_ALoadThatIsOverIsNotJoined(t *testing.T) {
	s := newSource()
	c := onSource(t, s)
	s.set("k", 10)
	fill := c.BeginFill("k")
	defer fill.Cancel()
	s.beforeLoad = func(context.Context, string) error { return errors.New("boom") }
	_, err := c.Load(t.Context(), "k")
	require.Error(t, err)
	s.beforeLoad = nil
	assert.Equal(t, 10, load(t, c, "k").Value)
}
