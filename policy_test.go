package tidemark

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// untracked says how the table and Ristretto disagree about what is tracked:
// a leak is an entry that Ristretto does not know and so never evicts, a ghost
// is a record that takes room in Ristretto for an entry that is gone. It is only
// right when nothing is under way, so callers ask until it is nil.
func (c *Cache[K, V]) untracked() error {
	for i := range c.shards {
		if n := c.shards[i].waiting.Load(); n > 0 {
			return fmt.Errorf("%d ops of shard %d wait", n, i)
		}
	}
	c.policy.sketch.Wait()
	if n := c.policy.unjudged.Load(); n != 0 {
		return fmt.Errorf("%d offers are not judged", n)
	}
	known := map[ticket]bool{}
	c.policy.sketch.IterValues(func(t ticket) bool { known[t] = true; return false })
	var cost, told int64
	leaks, offers := 0, 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		cost += s.cost
		for key := range s.table.All {
			hash := c.keys.hash(key)
			if p, _ := s.table.Find(hash, key); p.Head.state() != inWindow {
				offers++
				told += int64(p.Head.told)
				if !known[ticket{hash, p.Head.record}] {
					leaks++
				}
			}
		}
		s.mu.Unlock()
	}
	used := c.policy.mainMax.Load() - c.policy.sketch.RemainingCost()
	switch {
	case leaks > 0 || len(known) != offers:
		return fmt.Errorf("%d leaks; Ristretto has %d records for %d entries", leaks, len(known), offers)
	case used != told:
		return fmt.Errorf("Ristretto counts a cost of %d, was told %d", used, told)
	case cost != c.policy.cost.Load():
		return fmt.Errorf("entries cost %d, %d is reserved", cost, c.policy.cost.Load())
	default:
		return nil
	}
}

// settle waits until Ristretto has seen everything, and requires that it then
// knows exactly the entries of the table that have left the window.
func settle[K comparable, V any](t testing.TB, c *Cache[K, V]) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c.policy.kick()
		if err = c.untracked(); err == nil {
			break
		}
	}
	require.NoError(t, err, "policy and table disagree at rest")
	require.NoError(t, c.check())
}

// scaled returns n, or less of it in a race build, where everything is slower
// by an order of magnitude.
func scaled(n int) int {
	if raceBuild() {
		return n / 10
	}
	return n
}

var raceBuild = sync.OnceValue(func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
})

// versions returns rising versions, across all keys, so that Put always has a
// newer one.
func versions() func() Version {
	var n atomic.Uint64
	return func() Version { return Version(n.Add(1)) }
}

// watchBound fails t if Stats or Len ever show more than limit, until the
// returned function is called.
func watchBound[K comparable, V any](t testing.TB, c *Cache[K, V], limit int64) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for looks := 0; looks == 0 || !done.Load(); looks++ {
			s, n := c.Stats(), c.Len()
			if !assert.LessOrEqual(t, s.Cost, limit, "Stats.Cost") ||
				!assert.LessOrEqual(t, int64(s.Entries), limit, "Stats.Entries") ||
				!assert.LessOrEqual(t, int64(n), limit, "Len") {
				return
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	return func() { done.Store(true); wg.Wait() }
}

// The four traps of a cache that lets Ristretto hold the values.

func TestTrap_TwoQuickPutsOfANewKeyKeepTheNewer(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1 << 15})
	wrong := 0
	check := func() {
		for i := range 10_000 {
			if got, ok := c.Get(fmt.Sprint(i)); !ok || got != 2 {
				wrong++
			}
		}
	}
	for i := range 10_000 {
		k := fmt.Sprint(i)
		c.Put(k, 1, Version(2*i+1))
		c.Put(k, 2, Version(2*i+2))
	}
	check()
	settle(t, c)
	check()
	assert.Zero(t, wrong, "of 20,000")
}

func TestTrap_GetRightAfterPutHits(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000})
	misses := 0
	for i := range 10_000 {
		k := fmt.Sprint(i)
		c.Put(k, i, Version(i+1))
		if got, ok := c.Get(k); !ok || got != i {
			misses++
		}
	}
	assert.Zero(t, misses, "of 10,000")
	settle(t, c)
}

func TestTrap_MaxCostHoldsThatManyEntriesOfCostOne(t *testing.T) {
	for _, limit := range []int64{1, 2, 10, 20, 100, 1000, 10_000} {
		t.Run(fmt.Sprintf("MaxCost=%d", limit), func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: limit})
			stop := watchBound(t, c, limit)
			version := versions()
			var wg sync.WaitGroup
			for g := range 2 {
				wg.Go(func() {
					for i := range scaled(int(limit)*5 + 20_000) {
						k := fmt.Sprint(g, i)
						c.Put(k, i, version())
						c.Get(k)
					}
				})
			}
			wg.Wait()
			settle(t, c)
			stop()
			assert.GreaterOrEqual(t, float64(c.Len()), 0.95*float64(limit), "entries in steady state")
		})
	}
}

func TestTrap_AnOlderPutAfterRemovalNeverComesBack(t *testing.T) {
	remove := map[string]func(c *Cache[string, int], key string, at Version) error{
		"Invalidate":                   func(c *Cache[string, int], k string, at Version) error { return c.Invalidate(t.Context(), k, at+1) },
		"Invalidate without a version": func(c *Cache[string, int], k string, _ Version) error { return c.Invalidate(t.Context(), k, 0) },
		"eviction":                     func(c *Cache[string, int], k string, _ Version) error { evict(t, c, k); return nil },
		"Resize": func(c *Cache[string, int], _ string, at Version) error {
			err := c.Resize(1)
			c.Put("other", 0, at+1) // takes the last place
			return errors.Join(err, c.Resize(1000))
		},
	}
	for name, remove := range remove {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 4})
			back := 0
			for i := range scaled(10_000) {
				k, at := fmt.Sprint(i), Version(10*i+10)
				require.Equal(t, Applied, c.Put(k, 2, at))
				require.NoError(t, remove(c, k, at))
				if c.Put(k, 1, at-5) == Applied {
					back++
				}
				if _, ok := c.Get(k); ok {
					back++
				}
			}
			assert.Zero(t, back, "times an older value was stored or read")
		})
	}
}

// What Ristretto v2.4.2 does, in the order of the policy's comment. If one of
// these fails after an update of Ristretto, the rule beside it can be relaxed.

// A stall holds Ristretto's goroutine inside the calls for certain records.
type stall struct {
	entered chan struct{}
	release chan struct{}
}

func newStall() *stall { return &stall{make(chan struct{}, 1), make(chan struct{})} }

func (s *stall) hold() { s.entered <- struct{}{}; <-s.release }

func newRistretto(t testing.TB, c ristretto.Config[uint64, int]) *ristretto.Cache[uint64, int] {
	t.Helper()
	c.NumCounters, c.BufferItems, c.IgnoreInternalCost = 1<<14, 64, true
	if c.MaxCost == 0 {
		c.MaxCost = 100
	}
	r, err := ristretto.NewCache(&c)
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r
}

// stalled is a value whose refusal holds Ristretto's goroutine in OnReject.
const stalled = -1

func stallOn(s *stall, next func(int)) func(*ristretto.Item[int]) {
	return func(i *ristretto.Item[int]) {
		if i.Value == stalled {
			s.hold()
		} else if next != nil {
			next(i.Value)
		}
	}
}

func TestRistretto_RefusesSetsAndBlocksDelsWhenItsQueueIsFull(t *testing.T) {
	s := newStall()
	r := newRistretto(t, ristretto.Config[uint64, int]{MaxCost: 1 << 20, OnReject: stallOn(s, nil)})
	r.Set(1, stalled, 1<<21)
	<-s.entered
	accepted := 0
	for r.Set(uint64(accepted+2), 1, 1) {
		accepted++
	}
	assert.Equal(t, 32<<10, accepted)
	var deleted atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { r.Del(2); deleted.Store(true) })
	time.Sleep(20 * time.Millisecond)
	assert.False(t, deleted.Load(), "Del waits")
	close(s.release)
	wg.Wait()
}

func TestRistretto_RefusesTheSecondOfTwoSetsOfANewKey(t *testing.T) {
	s := newStall()
	var refused []int
	r := newRistretto(t, ristretto.Config[uint64, int]{OnReject: stallOn(s, func(v int) { refused = append(refused, v) })})
	r.Set(1, stalled, 1000)
	<-s.entered
	r.Set(7, 101, 1)
	r.Set(7, 102, 1)
	close(s.release)
	r.Wait()
	v, _ := r.Get(7)
	assert.Equal(t, 101, v)
	assert.Equal(t, []int{102}, refused)
}

func TestRistretto_LosesASetThatFollowsADelAndOnlyOnExitHearsOfIt(t *testing.T) {
	first, second := newStall(), newStall()
	var exits, others []int
	var mu sync.Mutex // guards exits
	r := newRistretto(t, ristretto.Config[uint64, int]{
		OnExit: func(v int) { mu.Lock(); exits = append(exits, v); mu.Unlock() },
		OnReject: func(i *ristretto.Item[int]) {
			switch i.Value {
			case stalled:
				first.hold()
			case stalled - 1:
				second.hold()
			default:
				others = append(others, i.Value)
			}
		},
		OnEvict: func(i *ristretto.Item[int]) { others = append(others, i.Value) },
	})
	r.Set(1, stalled, 1000)
	<-first.entered
	r.Set(7, 101, 1)
	r.Set(2, stalled-1, 1000)
	r.Del(7)
	close(first.release)
	<-second.entered // 101 is stored, the Del still queued
	assert.True(t, r.Set(7, 102, 1))
	close(second.release)
	r.Wait()
	_, found := r.Get(7)
	assert.False(t, found, "102 is lost")
	assert.Empty(t, others, "OnEvict and OnReject")
	mu.Lock()
	defer mu.Unlock()
	assert.Contains(t, exits, 102)
}

func TestRistretto_ReportsAVictimAgainWithNothing(t *testing.T) {
	zero := 0
	seen := map[uint64]bool{}
	r := newRistretto(t, ristretto.Config[uint64, int]{MaxCost: 1000, OnEvict: func(i *ristretto.Item[int]) {
		if i.Value == 0 && seen[i.Key] {
			zero++
		}
		seen[i.Key] = true
	}})
	for i := range 1000 {
		r.Set(uint64(i+1)*0x9e3779b97f4a7c15, i+1, 1)
	}
	r.Wait()
	r.Set(42, 42, 900)
	r.Wait()
	assert.Positive(t, zero)
}

func TestRistretto_EvictsNothingWhenCostsGrowOrMaxCostShrinks(t *testing.T) {
	evicted := 0
	r := newRistretto(t, ristretto.Config[uint64, int]{OnEvict: func(*ristretto.Item[int]) { evicted++ }})
	for _, cost := range []int64{1, 50} {
		for i := range 100 {
			r.Set(uint64(i+1), i, cost)
		}
		r.Wait()
	}
	assert.EqualValues(t, 5000, r.MaxCost()-r.RemainingCost(), "of 100")
	r.UpdateMaxCost(40)
	r.Wait()
	assert.Zero(t, evicted)
}

func TestRistretto_AddsItsOwnCostUnlessToldNotTo(t *testing.T) {
	r, err := ristretto.NewCache(&ristretto.Config[uint64, int]{NumCounters: 1 << 14, MaxCost: 1000, BufferItems: 64})
	require.NoError(t, err)
	t.Cleanup(r.Close)
	for i := range 1000 {
		r.Set(uint64(i), i, 1)
	}
	r.Wait()
	kept := 0
	r.IterValues(func(int) bool { kept++; return false })
	assert.Less(t, kept, 20, "of 1,000 entries of cost 1 at MaxCost 1,000")
}

func TestRistretto_CallsBackUnderItsOwnLockWhenClosed(t *testing.T) {
	s := newStall()
	r, err := ristretto.NewCache(&ristretto.Config[uint64, int]{NumCounters: 1 << 14, MaxCost: 100, BufferItems: 64,
		IgnoreInternalCost: true, OnEvict: func(*ristretto.Item[int]) { s.hold() }})
	require.NoError(t, err)
	r.Set(256, 1, 1)
	r.Wait()
	var wg sync.WaitGroup
	wg.Go(r.Close)
	<-s.entered
	var done atomic.Bool
	wg.Go(func() { r.GetTTL(512); done.Store(true) }) // another key of the same part
	time.Sleep(20 * time.Millisecond)
	assert.False(t, done.Load(), "a callback that called Ristretto would wait for itself")
	close(s.release)
	wg.Wait()
}

// What the coupling makes of it.

// newTestPolicy returns a policy without a cache that records what left it.
func newTestPolicy(t *testing.T, left func(ticket)) *policy {
	t.Helper()
	p, err := newPolicy(1<<20, 1<<10, 1, left)
	require.NoError(t, err)
	t.Cleanup(p.sketch.Close)
	return p
}

func offerOf(key int, cost int64) op {
	lastRecord++
	return op{ticket: ticket{uint64(key), lastRecord}, policyKey: uint64(key), cost: cost}
}

var lastRecord uint32

func known(p *policy, t ticket) (found bool) {
	p.sketch.Wait()
	p.sketch.IterValues(func(have ticket) bool { found = found || have == t; return false })
	return found
}

func TestPolicy_RepeatsASetThatIsRefused(t *testing.T) {
	s := newStall()
	stopper := offerOf(-1, 1<<21)
	p := newTestPolicy(t, func(r ticket) {
		if r == stopper.ticket {
			s.hold()
		}
	})
	p.pace = math.MaxInt // or the queue would not fill
	p.apply([]op{stopper})
	<-s.entered
	var ops []op
	for i := range 34 << 10 {
		ops = append(ops, offerOf(i+1, 1))
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.apply(ops) })
	eventually(t, func() bool { return !p.sketch.Set(1<<40, ticket{}, 1) }, "Ristretto refuses Sets")
	close(s.release)
	wg.Wait()
	p.sketch.Wait()
	have := map[ticket]bool{}
	p.sketch.IterValues(func(r ticket) bool { have[r] = true; return false })
	lost := 0
	for _, o := range ops {
		if !have[o.ticket] {
			lost++
		}
	}
	assert.Zero(t, lost, "records that Ristretto has never heard of")
}

func TestPolicy_HearsOfASetThatADelHasSwallowed(t *testing.T) {
	first, second := newStall(), newStall()
	stop1, stop2 := offerOf(-1, 1<<21), offerOf(-2, 1<<21)
	var mu sync.Mutex // guards gone
	gone := map[ticket]bool{}
	p := newTestPolicy(t, func(r ticket) {
		switch r {
		case stop1.ticket:
			first.hold()
		case stop2.ticket:
			second.hold()
		default:
			mu.Lock()
			gone[r] = true
			mu.Unlock()
		}
	})
	before, after := offerOf(7, 1), offerOf(7, 1)
	p.apply([]op{stop1})
	<-first.entered
	p.apply([]op{before, stop2, {ticket: before.ticket, policyKey: before.policyKey, withdraw: true}})
	close(first.release)
	<-second.entered
	p.apply([]op{after})
	close(second.release)
	isKnown := known(p, after.ticket)
	mu.Lock()
	defer mu.Unlock()
	assert.NotEqual(t, isKnown, gone[after.ticket], "a record is with Ristretto or reported gone")
}

// The sample of keys whose hits are told shrinks when that costs too much, and
// grows again; however small it is, every key has its turn.
func TestPolicy_TheSampleFollowsItsCost(t *testing.T) {
	p := newTestPolicy(t, func(ticket) {})
	const passed = samplingPace
	after := func(told time.Duration) { p.resample(told, passed) }
	share := func() int {
		n := 0
		for hash := range uint64(1 << 12) {
			if p.samples(hash << 24) {
				n++
			}
		}
		return n
	}
	assert.Equal(t, 1<<12, share(), "at first all")
	after(passed * samplingCost * 19 / 10_000)
	assert.Equal(t, 1<<11, share(), "nearly twice what it may cost")
	after(passed * samplingCost * 33 / 1000)
	assert.Equal(t, 1<<5, share(), "33 times that: six halves, at once")
	for range 20 {
		after(passed / 2)
	}
	assert.Equal(t, 1<<12/(maxSampling+1), share(), "not fewer than that")
	told := map[uint64]bool{}
	for range 2 * (maxSampling + 1) {
		p.resample(0, passed) // so that only the salt moves
		for hash := range uint64(1 << 12) {
			if p.samples(hash << 24) {
				told[hash] = true
			}
		}
	}
	assert.Len(t, told, 1<<12, "every key has had its turn, and without hits the sample is as it was")
	for range 20 {
		after(passed * samplingCost / 2000)
	}
	assert.Equal(t, 1<<12/(maxSampling+1), share(), "it costs about what it may")
	for range 20 {
		p.resample(passed*samplingCost/2000, time.Hour)
	}
	assert.Equal(t, 1<<12/(maxSampling+1), share(), "after a pause it costs no less")
	for range 20 {
		after(1)
	}
	assert.Equal(t, 1<<12, share(), "it costs nothing")
}

func TestPolicy_WaitsForRistrettoLongBeforeItsQueueIsFull(t *testing.T) {
	s := newStall()
	stopper := offerOf(-1, 1<<21)
	p := newTestPolicy(t, func(r ticket) {
		if r == stopper.ticket {
			s.hold()
		}
	})
	p.apply([]op{stopper})
	<-s.entered
	var applied atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 4 * p.pace {
			p.apply([]op{offerOf(i+1, 1)}) // the pace is kept across calls
			applied.Add(1)
		}
	})
	eventually(t, func() bool { return applied.Load() >= int64(p.pace)-2 }, "apply is under way")
	time.Sleep(20 * time.Millisecond)
	assert.LessOrEqual(t, applied.Load(), int64(p.pace))
	close(s.release)
	wg.Wait()
}

func TestPolicy_IsToldOnceOfEachRecord(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 1})
	version := versions()
	for range 5 {
		for i := range 500 {
			require.Equal(t, Applied, c.Put(fmt.Sprint(i), i, version()))
		}
		settle(t, c)
	}
	assert.Equal(t, 500, c.Len(), "overwriting what has been offered loses nothing")
	assert.Zero(t, c.Stats().Evictions)
}

func TestPolicy_LateCallbacksTouchNothing(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 100, Shards: 1})
	record := func() ticket {
		r, _ := recordOf(t, c, "k")
		return r
	}
	c.Put("k", 1, 1)
	before := record()
	require.NoError(t, c.Invalidate(t.Context(), "k", 2))
	c.Put("k", 2, 2)
	c.left(ticket{})
	c.left(before)
	_, ok := c.Get("k")
	assert.True(t, ok, "the record was another incarnation's")
	c.left(record())
	_, ok = c.Get("k")
	assert.True(t, ok, "a record of the window is not Ristretto's")
	for i := range 50 {
		c.Put(fmt.Sprint(i), i, Version(i+10))
	}
	settle(t, c)
	r := record()
	c.left(r)
	_, ok = c.Get("k")
	assert.False(t, ok, "Ristretto let it go")
	c.Put("k", 3, 100)
	c.left(r)
	_, ok = c.Get("k")
	assert.True(t, ok, "the second report of a victim")
	c.shards[0].mu.Lock()
	c.shards[0].pushLocked(op{ticket: r, policyKey: r.hash, withdraw: true}) // which c.left, called here, has made necessary
	c.shards[0].mu.Unlock()
	settle(t, c)
}

// While somebody holds a shard's lock, Ristretto may be stuck in a callback that
// wants it. Writers of other shards may have to wait until it is released, but
// then all goes on: nobody calls Ristretto with such a lock.
func TestPolicy_AHeldShardLockHoldsNobodyForGood(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 2})
	version := versions()
	for round := range 10 {
		held := &c.shards[round%2]
		held.mu.Lock()
		var wg sync.WaitGroup
		for g := range 2 {
			wg.Go(func() {
				for i := range 5000 {
					c.Put(fmt.Sprint(round, g, i), i, version())
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		held.mu.Unlock()
		wg.Wait()
	}
	settle(t, c)
}

// A shard whose ops nobody takes lets its window grow instead of noting more.
func TestPolicy_BacklogIsBounded(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 100_000, Shards: 1})
	c.policy.turn.Lock() // nobody does the policy's work
	for i := range 50_000 {
		c.Put(fmt.Sprint(i), i, 1)
	}
	s := &c.shards[0]
	s.mu.Lock()
	assert.LessOrEqual(t, len(s.ops), backlog)
	s.mu.Unlock()
	c.policy.turn.Unlock()
	settle(t, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	assert.LessOrEqual(t, s.windowCost, c.policy.windowMax.Load(), "what was held up has been offered")
}

// valueIsCost lets each value say what it costs.
func valueIsCost(_ string, v int) int64 { return int64(v) }

func TestPolicy_GrownCostsAreJudgedAgain(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 10_000, ExpectedEntries: 1000, Cost: valueIsCost})
	version := versions()
	stop := watchBound(t, c, 10_000)
	for _, cost := range []int{1, 10, 11, 100, 99, 60, 3, 1} {
		for i := range 1000 {
			c.Put(fmt.Sprint(i), cost, version())
		}
		settle(t, c)
		assert.LessOrEqual(t, -c.policy.sketch.RemainingCost(), int64(0), "Ristretto is within its part at cost %d", cost)
		assert.GreaterOrEqual(t, c.Stats().Cost, int64(min(8000, 800*cost)), "cost %d leaves little room unused", cost)
	}
	stop()
}

func TestPolicy_SmallChangesOfCostMakeNoCall(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 10_000, ExpectedEntries: 100, Shards: 1, Cost: valueIsCost})
	version := versions()
	for i := range 50 {
		c.Put(fmt.Sprint(i), 100, version())
	}
	settle(t, c)
	record := func() ticket {
		r, now := recordOf(t, c, "0")
		require.NotEqual(t, gone, now)
		return r
	}
	offer, now := recordOf(t, c, "0")
	require.Equal(t, offered, now)
	for _, cost := range []int{112, 75, 110, 100} {
		c.Put("0", cost, version())
		assert.Equal(t, offer, record(), "cost %d", cost)
		settle(t, c)
	}
	c.Put("0", 113, version())
	assert.NotEqual(t, offer, record())
	settle(t, c)
	assert.EqualValues(t, 50*100+13, c.Stats().Cost)
}

// Of what does not fit, nothing is kept and nobody suffers for long.
func TestPolicy_LargeValues(t *testing.T) {
	for _, tt := range []struct {
		name     string
		cost     int
		outcome  Outcome
		readable bool
	}{
		{"larger than a window", 60, Applied, true},
		{"larger than Ristretto's part", 900, Applied, true},
		{"MaxCost itself", 1000, Applied, true},
		{"larger than MaxCost", 1001, TooLarge, false},
		{"largest there is", math.MaxInt, TooLarge, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCache(t, Options[string, int]{MaxCost: 1000, ExpectedEntries: 500, Shards: 4, Cost: valueIsCost})
			version := versions()
			stop := watchBound(t, c, 1000)
			for i := range 2000 {
				c.Put(fmt.Sprint(i), 1, version())
			}
			c.Put("k", 1, version())
			assert.Equal(t, tt.outcome, c.Put("k", tt.cost, version()))
			got, ok := c.Get("k")
			assert.Equal(t, tt.readable, ok, "readable at once; an older value must be gone")
			if ok {
				assert.Equal(t, tt.cost, got)
			}
			settle(t, c)
			for i := range 5000 {
				c.Put(fmt.Sprint(i), 1, version())
			}
			settle(t, c)
			stop()
			assert.GreaterOrEqual(t, c.Stats().Cost, int64(900), "the room is used again")
		})
	}
}

// A value is readable right after Put whatever room the others have left, and
// whatever it costs itself.
func TestPolicy_EveryPutFindsRoom(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 5000, ExpectedEntries: 100, Cost: valueIsCost})
	version := versions()
	rng := rand.New(rand.NewPCG(1, 2))
	readable := func(k string, cost int) bool {
		require.Equal(t, Applied, c.Put(k, cost, version()))
		got, ok := c.Get(k)
		return ok && got == cost
	}
	unread := 0
	for i := range 5000 {
		k, cost := fmt.Sprint(rng.IntN(1000)), 1+rng.IntN(200)
		// One that is held up between Put and Get may find that Ristretto has judged.
		read := false
		for try := 0; try < 3 && !read; try++ {
			read = readable(k, cost)
		}
		if !read {
			unread++
		}
		if i%500 == 0 {
			settle(t, c)
		}
	}
	assert.Zero(t, unread)
}

func TestPolicy_OddCosts(t *testing.T) {
	cost := int64(0)
	c := newCache(t, Options[string, int]{MaxCost: 100, Cost: func(string, int) int64 {
		if cost == math.MinInt64 {
			panic("no cost")
		}
		return cost
	}})
	for i, odd := range []int64{0, -1, -1000} {
		cost = odd
		assert.Equal(t, Applied, c.Put(fmt.Sprint(i), i, 1))
		assert.EqualValues(t, i+1, c.Stats().Cost, "cost %d counts as 1", odd)
	}
	cost = math.MinInt64
	assert.Equal(t, TooLarge, c.Put("0", 5, 2))
	_, ok := c.Get("0")
	assert.False(t, ok, "version 1 is known to be old")
	assert.EqualValues(t, 1, c.Stats().Panics)
	assert.EqualValues(t, 2, c.Stats().Cost)
	settle(t, c)
}

func TestResize_UpAndDownUnderLoad(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 4})
	version := versions()
	var done atomic.Bool
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for !done.Load() {
				k := fmt.Sprint(rng.IntN(4000))
				if _, ok := c.Get(k); !ok {
					c.Put(k, 1, version())
				}
			}
		})
	}
	for i := range scaled(1000) {
		limit := int64(50 + i*7919%3000)
		require.NoError(t, c.Resize(limit))
		// Nobody else resizes, so from now on the new limit holds.
		require.LessOrEqual(t, c.Stats().Cost, limit, "Stats.Cost after Resize(%d)", limit)
		require.LessOrEqual(t, int64(c.Len()), limit, "Len after Resize(%d)", limit)
	}
	require.NoError(t, c.Resize(1000))
	done.Store(true)
	wg.Wait()
	settle(t, c)
}

func TestResize_TwoAtOnceAgree(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 4})
	for range scaled(2000) {
		var wg sync.WaitGroup
		for _, limit := range []int64{100, 10_000} {
			wg.Go(func() { assert.NoError(t, c.Resize(limit)) })
		}
		wg.Wait()
		p := c.policy
		sum := 4*p.windowMax.Load() + p.mainMax.Load()
		require.InDelta(t, p.limit.Load(), sum, 0.03*float64(p.limit.Load()), "the parts of MaxCost")
		require.Equal(t, p.mainMax.Load(), p.sketch.MaxCost())
	}
}

// A cache that was made smaller takes up new keys as before: neither its window
// nor Ristretto's part stays too large for the other to work.
func TestResize_DownDoesNotFreezeWhatIsLeft(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 4000, Shards: 4})
	version := versions()
	for i := range 8000 {
		c.Put(fmt.Sprint("old", i), i, version())
	}
	settle(t, c)
	require.NoError(t, c.Resize(1000))
	for range 20 {
		for i := range 500 {
			k := fmt.Sprint("new", i)
			if _, ok := c.Get(k); !ok {
				c.Put(k, i, version())
			}
		}
		settle(t, c)
	}
	hits := 0
	for i := range 500 {
		if _, ok := c.Get(fmt.Sprint("new", i)); ok {
			hits++
		}
	}
	assert.Greater(t, hits, 350, "of 500 keys that are read over and over")
	const step = shareStep * 1000 // of the border, to which Ristretto follows when next it admits
	assert.LessOrEqual(t, float64(-c.policy.sketch.RemainingCost()), step, "Ristretto is within its part")
}

// Costs that creep up by less than what is told to Ristretto squeeze the
// windows; what is new must get in all the same.
func TestPolicy_CreepingCostsDoNotFreezeTheCache(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 100_000, ExpectedEntries: 1000, Shards: 4, Cost: valueIsCost})
	version := versions()
	for range 3 {
		for i := range 2000 {
			c.Put(fmt.Sprint("old", i), 100, version())
		}
		settle(t, c)
	}
	for i := range 2000 {
		if _, ok := c.Get(fmt.Sprint("old", i)); ok {
			c.Put(fmt.Sprint("old", i), 112, version())
		}
	}
	for range 20 {
		for i := range 300 {
			k := fmt.Sprint("new", i)
			if _, ok := c.Get(k); !ok {
				c.Put(k, 100, version())
			}
		}
		settle(t, c)
	}
	hits := 0
	for i := range 300 {
		if _, ok := c.Get(fmt.Sprint("new", i)); ok {
			hits++
		}
	}
	assert.Greater(t, hits, 200, "of 300 keys that are read over and over")
}

// After any stress, table and Ristretto agree, and the bound held throughout.
func TestPolicy_Stress(t *testing.T) {
	for _, tt := range []struct {
		name    string
		shards  int
		keys    int
		maxCost int64
		costs   int // 1 to costs
		resize  bool
	}{
		{"unit costs, many keys", 8, 4000, 1000, 1, false},
		{"random costs, many keys", 8, 4000, 20_000, 100, false},
		{"unit costs, few keys", 1, 64, 40, 1, false},
		{"random costs, few keys", 2, 64, 2000, 100, false},
		{"Resize, unit costs", 4, 4000, 1000, 1, true},
		{"Resize, random costs", 4, 4000, 20_000, 100, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options[string, int]{MaxCost: tt.maxCost, ExpectedEntries: 1000, Shards: tt.shards}
			if tt.costs > 1 {
				o.Cost = valueIsCost
			}
			c := newCache(t, o)
			stop := watchBound(t, c, 2*tt.maxCost)
			if !tt.resize {
				stop()
				stop = watchBound(t, c, tt.maxCost)
			}
			version := versions()
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 7))
					for range scaled(100_000) {
						k := fmt.Sprint(rng.IntN(tt.keys))
						switch x := rng.IntN(1000); {
						case x < 500:
							c.Get(k)
						case x < 900:
							c.Put(k, 1+rng.IntN(tt.costs), version())
						case x < 999:
							assert.NoError(t, c.Invalidate(t.Context(), k, version()))
						case tt.resize:
							assert.NoError(t, c.Resize(tt.maxCost/10+rng.Int64N(tt.maxCost)))
						default:
							assert.NoError(t, c.InvalidateAll(t.Context()))
						}
					}
				})
			}
			wg.Wait()
			settle(t, c)
			stop()
		})
	}
}

// Inserts far beyond what Ristretto can judge are shed, and nothing is lost
// track of.
func TestPolicy_BurstOfInserts(t *testing.T) {
	const limit = 100_000
	c := newCache(t, Options[string, int]{MaxCost: limit})
	stop := watchBound(t, c, limit)
	version := versions()
	each := scaled(250_000)
	slowest := make([]time.Duration, 4)
	var wg sync.WaitGroup
	began := time.Now()
	for g := range slowest {
		wg.Go(func() {
			for i := range each {
				k := fmt.Sprint(g*each + i)
				before := time.Now()
				c.Put(k, i, version())
				slowest[g] = max(slowest[g], time.Since(before))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	settle(t, c)
	stop()
	t.Logf("%d inserts in %v; slowest single Put %v (4 goroutines on %d CPUs: the wait for a CPU is in it)",
		4*each, took.Round(time.Millisecond), slices.Max(slowest), runtime.GOMAXPROCS(0))
	assert.GreaterOrEqual(t, float64(c.Len()), 0.95*float64(min(limit, 4*each)))
}

func TestClose_BesideUse(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		c, err := New(Options[string, int]{MaxCost: 100, Shards: 4, Loader: LoaderFunc[string, int](
			func(context.Context, string) (int, Version, error) { return 1, 1, nil })})
		require.NoError(t, err)
		version := versions()
		var wg sync.WaitGroup
		for g := range 3 {
			wg.Go(func() {
				for i := range 2000 {
					k := fmt.Sprint(i * (g + 1) % 500)
					c.Put(k, i, version())
					c.Get(k)
					switch i % 50 {
					case 0:
						_ = c.Invalidate(context.Background(), k, version())
					case 10:
						_ = c.Resize(int64(50 + i%100))
					case 20:
						_ = c.InvalidateAll(context.Background())
					case 30:
						_, _ = c.Load(context.Background(), k)
					case 40:
						c.Stats()
					}
				}
			})
		}
		runtime.Gosched()
		require.NoError(t, c.Close(context.Background()))
		wg.Wait()
		assert.Equal(t, Closed, c.Put("k", 1, 1))
		_, ok := c.Get("k")
		assert.False(t, ok)
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	assert.LessOrEqual(t, runtime.NumGoroutine(), before, "goroutines left")
}

// collidingKeys returns different strings of one hash. An attacker who chooses
// keys can do this: two rounds of xxhash64 mix each lane of 8 bytes by itself,
// so that a second lane can undo what the first one changed.
func collidingKeys(n int) []string {
	const prime1, prime2 = 0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f
	p1, p2 := uint64(prime1), uint64(prime2)
	inverse := func(x uint64) uint64 { // of an odd number, modulo 2^64
		y := x
		for range 6 {
			y *= 2 - x*y
		}
		return y
	}
	round := func(acc, lane uint64) uint64 { return bits.RotateLeft64(acc+lane*p2, 31) * p1 }
	target := uint64(0x123456789abcdef)
	keys := make([]string, n)
	for i := range keys {
		var b [64]byte
		first := uint64(i)
		after := round(p1+p2, first)
		second := (bits.RotateLeft64(target*inverse(p1), -31) - after) * inverse(p2)
		for j := range 8 {
			b[j] = byte(first >> (8 * j))
			b[32+j] = byte(second >> (8 * j))
		}
		keys[i] = string(b[:])
	}
	return keys
}

func TestPolicy_EqualHashesAreDifferentKeys(t *testing.T) {
	for _, n := range []int{2, 200} { // the table has no place for many more
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			keys := collidingKeys(n)
			c := newCache(t, Options[string, int]{MaxCost: int64(2 * n), Shards: 4})
			version := versions()
			hash := c.keys.hash(keys[0])
			for i, k := range keys {
				require.Equal(t, hash, c.keys.hash(k), "the keys do collide")
				require.Equal(t, Applied, c.Put(k, i, version()))
			}
			for i := range 2 * n { // until most have left the window
				c.Put(fmt.Sprint(i%n), -1, version())
			}
			settle(t, c)
			policyKeys := map[uint64]string{}
			lost := 0
			s := c.shard(hash)
			s.mu.Lock()
			for _, k := range keys {
				p, ok := s.table.Find(hash, k)
				if !ok {
					lost++
					continue
				}
				r := p.Head.call(hash, false)
				assert.Empty(t, policyKeys[r.policyKey], "two keys are one to Ristretto")
				policyKeys[r.policyKey] = k
			}
			s.mu.Unlock()
			assert.Less(t, lost, max(n/10, 1), "there is room for all")
			for i, k := range keys {
				if got, ok := c.Get(k); ok {
					assert.Equal(t, i, got)
				}
			}
			for _, k := range keys[:n/2] {
				require.NoError(t, c.Invalidate(t.Context(), k, version()))
				c.Put(k, -2, version())
			}
			settle(t, c)
		})
	}
}

// zipfRanks returns a function that draws from n ranks, with probability
// proportional to 1/(rank+1)^s.
func zipfRanks(n int, s float64, rng *rand.Rand) func() int {
	sums := make([]float64, n)
	sum := 0.0
	for i := range sums {
		sum += math.Pow(float64(i+1), -s)
		sums[i] = sum
	}
	return func() int {
		i, _ := slices.BinarySearch(sums, rng.Float64()*sum)
		return i
	}
}

// hitRatio replays 500,000 accesses to 100,000 keys (Zipf 0.99) through a cache
// of 1 % of them.
func hitRatio(t *testing.T, goroutines int) float64 {
	const limit = 1000
	c := newCache(t, Options[string, int]{MaxCost: limit})
	stop := watchBound(t, c, limit)
	version := versions()
	var hits atomic.Int64
	each := scaled(500_000) / goroutines
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			draw := zipfRanks(100_000, 0.99, rand.New(rand.NewPCG(1, uint64(g))))
			for range each {
				k := fmt.Sprint(draw())
				if _, ok := c.Get(k); ok {
					hits.Add(1)
				} else {
					c.Put(k, 1, version())
				}
			}
		})
	}
	wg.Wait()
	settle(t, c)
	stop()
	return float64(hits.Load()) / float64(each*goroutines)
}

// On this workload otter v2.4.0 has 56.3 to 57.8 % and tidemark 56.4 %, on one
// goroutine and on four (go run -C bench . -only 'HitRatio/trace=zipf
// 0.99', with and without -goroutines 4). Three points below otter's best is the
// floor. In a race build Ristretto counts no accesses, so there the ratio says
// nothing.
func TestPolicy_AdmitsWhatIsUsed(t *testing.T) {
	for _, goroutines := range []int{1, 4} {
		ratio := hitRatio(t, goroutines)
		t.Logf("%d goroutines: hit ratio %.2f %%", goroutines, 100*ratio)
		if !raceBuild() {
			assert.Greater(t, ratio, 0.548)
		}
	}
}

// A scan of keys that never come back does not push out what is used.
func TestPolicy_ResistsScans(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 4})
	version := versions()
	hot := func() (hits int) {
		for i := range 300 {
			k := fmt.Sprint("hot", i)
			if _, ok := c.Get(k); ok {
				hits++
			} else {
				c.Put(k, i, version())
			}
		}
		return hits
	}
	for range 20 {
		hot()
		settle(t, c)
	}
	for i := range 20_000 {
		c.Put(fmt.Sprint("scan", i), i, version())
		if i%1000 == 0 {
			settle(t, c)
		}
	}
	got := hot()
	t.Logf("%d of 300 used keys survive 20,000 that are not", got)
	if !raceBuild() {
		assert.Greater(t, got, 150)
	}
}

func TestSketchCounters(t *testing.T) {
	for _, n := range []int64{1, 100, 64 << 10, 256 << 10, 1 << 20, 1 << 30, math.MaxInt64} {
		counters := sketchCounters(n)
		assert.Positive(t, counters)
		assert.LessOrEqual(t, counters, int64(maxCounters), "%d entries", n)
		if n <= 1<<26 {
			assert.GreaterOrEqual(t, counters, 3*n, "%d entries", n)
		}
	}
}

func TestState_String(t *testing.T) {
	var names []string
	for s := inWindow; s <= gone; s++ {
		names = append(names, s.String())
	}
	assert.Equal(t, "window queued offered gone", strings.Join(names, " "))
}

// A round visits the shards that have asked for it, each once, or all there are.
func TestPolicy_ARoundVisitsWhoHasAsked(t *testing.T) {
	p, err := newPolicy(1000, 1000, 130, func(ticket) {})
	require.NoError(t, err)
	defer p.close()
	assert.Empty(t, slices.Collect(p.toVisit(false)))
	for _, shard := range []int{129, 0, 63, 64, 0} {
		p.ask(shard)
	}
	assert.Equal(t, []int{0, 63, 64, 129}, slices.Collect(p.toVisit(false)))
	assert.Empty(t, slices.Collect(p.toVisit(false)))
	assert.Len(t, slices.Collect(p.toVisit(true)), 130)
}

// Sweeping takes turns among more shards than are swept at once.
func TestSweep_ReachesEveryShard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, Options[string, int]{MaxCost: 4096, Shards: 4 * sweepShards, TTL: time.Second})
		for i := range 2000 {
			c.Put(fmt.Sprint(i), i, 1)
		}
		require.Greater(t, c.Len(), 1000)
		time.Sleep(time.Second + 5*drainEvery)
		synctest.Wait()
		assert.Zero(t, c.Len())
	})
}
