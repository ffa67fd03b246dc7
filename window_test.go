package tidemark

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// full returns a cache of one shard with 1,000 entries, of which all but those in the
// window are Ristretto's. Until the returned function is called, nobody is at the
// policy's work, so that what leaves the window stays queued.
func full(t *testing.T) (c *Cache[string, int], release func()) {
	t.Helper()
	c = newCache(t, Options[string, int]{MaxCost: 1000, Shards: 1})
	for i := range 2000 {
		c.Put(fmt.Sprint("first", i), i, 1)
	}
	settle(t, c)
	eventually(t, c.policy.mainFull.Load, "Ristretto's part is full")
	c.policy.turn.Lock()
	return c, c.policy.turn.Unlock
}

// pushOut puts as many new entries as push out all that are in the window.
func pushOut(c *Cache[string, int], name string) {
	for i := range c.policy.windowMax.Load() + 1 {
		c.Put(fmt.Sprint(name, i), 0, 1)
	}
}

// stateOf returns the state of the record of key, or "evicted".
func stateOf(c *Cache[string, int], key string) string {
	hash := c.keys.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.table.Find(hash, key); ok {
		return p.Head.state().String()
	}
	return "evicted"
}

func TestWindow_OnlyWhatIsAskedForIsOfferedByAFullCache(t *testing.T) {
	c, release := full(t)
	defer release()
	before := c.Stats().Evictions
	c.Put("k", 1, 1)
	pushOut(c, "x")
	assert.Equal(t, "evicted", stateOf(c, "k"), "nobody asked for it")
	assert.Greater(t, c.Stats().Evictions, before)

	for name, ask := range map[string]func(key string){
		"Get":      func(key string) { c.Get(key) },
		"GetEntry": func(key string) { c.GetEntry(key) },
		"Put":      func(key string) { c.Put(key, 2, 2) },
	} {
		c.Put(name, 1, 1)
		ask(name)
		pushOut(c, name+"x")
		assert.Equal(t, "queued", stateOf(c, name), name)
	}
}

func TestWindow_AGhostIsOffered(t *testing.T) {
	c, release := full(t)
	defer release()
	round := func(version Version) (states map[string]int) {
		states = map[string]int{}
		for i := range 10 {
			c.Put(fmt.Sprint("k", i), 1, version)
		}
		pushOut(c, fmt.Sprint("x", version))
		for i := range 10 {
			states[stateOf(c, fmt.Sprint("k", i))]++
		}
		return states
	}
	assert.Equal(t, map[string]int{"evicted": 10}, round(1))
	assert.GreaterOrEqual(t, round(2)["queued"], 7, "they come for the second time; a ghost in twenty has lost its place meanwhile")
}

func TestWindow_AllIsOfferedWhileThereIsRoom(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 200, Shards: 1})
	for i := range 190 {
		c.Put(fmt.Sprint(i), i, 1)
	}
	settle(t, c)
	assert.Equal(t, 190, c.Len())
	assert.Zero(t, c.Stats().Evictions)
}

// After a Resize there is room, before any round has seen it.
func TestWindow_AResizeMakesRoom(t *testing.T) {
	c, release := full(t)
	defer release()
	require.NoError(t, c.Resize(2000))
	before := c.Stats().Evictions
	c.Put("k", 1, 1)
	pushOut(c, "x")
	assert.Equal(t, "queued", stateOf(c, "k"))
	assert.Equal(t, before, c.Stats().Evictions)
}

// A touch that is told to Ristretto does not make an entry look unused.
func TestWindow_ATouchLeavesTheMark(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small, Shards: 1})
	c.Put("k", 1, 1)
	hash := c.keys.hash("k")
	s := c.shard(hash)
	p, _ := s.table.Find(hash, "k")
	assert.Zero(t, p.Head.touches.Load()&used)
	for i := range saturation + 1 {
		c.Get("k")
		assert.NotZero(t, p.Head.touches.Load()&used, "after %d hits", i+1)
	}
	assert.Equal(t, uint32(saturation), p.Head.warmth(s.policy.epoch.Load()<<8))
}

func TestWindow_FollowsWhereTheHitsAre(t *testing.T) {
	const entries = 10_000
	shares := func(p *policy) (window, main int64) { return p.windowMax.Load() * int64(p.shards), p.mainMax.Load() }
	p, err := newPolicy(entries, entries, 4, func(ticket) {})
	require.NoError(t, err)
	defer p.close()
	window, main := shares(p)
	assert.InDelta(t, firstShare*entries, window, 4)

	p.adapt(hits{early: mostHits, late: 0})
	same, _ := shares(p)
	assert.Equal(t, window, same, "there is room for all that comes")
	p.mainFull.Store(true)
	p.adapt(hits{early: mostHits - 1, late: 0})
	same, _ = shares(p)
	assert.Equal(t, window, same, "too few hits to judge by")

	p.adapt(hits{early: 1, late: 0})
	grown, smaller := shares(p)
	assert.InDelta(t, window+shareStep*entries, grown, 4, "all hits are in it")
	assert.InDelta(t, main-shareStep*entries, smaller, 4)
	assert.Equal(t, smaller, p.sketch.MaxCost())
	for range 100 {
		p.adapt(hits{early: mostHits, late: 0})
	}
	grown, smaller = shares(p)
	assert.InDelta(t, mostShare*entries, grown, 4, "not beyond that")

	p.adapt(hits{early: mostHits / 4, late: mostHits * 3 / 4})
	same, _ = shares(p)
	assert.Less(t, same, grown, "a third of the hits of as large a part")
	p.adapt(hits{early: mostHits * 2 / 5, late: mostHits * 3 / 5})
	same, _ = shares(p)
	assert.Equal(t, grown, same, "two thirds")
	for range 100 {
		p.adapt(hits{early: 0, late: mostHits})
	}
	least, most := shares(p)
	assert.InDelta(t, leastShare*entries, least, 4, "something is left")
	assert.Equal(t, grown+smaller, least+most, "what one has lost the other has won")

	p.adapt(hits{back: mostHits})
	grown, _ = shares(p)
	assert.Greater(t, grown, least, "no hit, and ghosts that come back")

	p.adapt(hits{early: 0, late: mostHits})
	p.resize(2 * entries)
	least, _ = shares(p)
	assert.InDelta(t, 2*leastShare*entries, least, 4, "a Resize keeps the share")
}

// shareOf returns the share of the windows in MaxCost.
func shareOf(p *policy) float64 {
	p.resizing.Lock()
	defer p.resizing.Unlock()
	return p.share
}

// Keys that are asked for all the time make the window shrink as far as it can. Keys
// that are asked for twice, with more others in between than are left in it, make it
// grow again, although none of them is hit at first.
func TestWindow_FollowsTheTraffic(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: 1000, Shards: 1})
	version := versions()
	until := func(key func(i int) int, reached func(share float64) bool) (hits, accesses int) {
		end := time.Now().Add(2 * time.Minute)
		for ; !reached(shareOf(c.policy)); accesses++ {
			k := fmt.Sprint(key(accesses))
			if _, ok := c.Get(k); ok {
				hits++
			} else {
				c.Put(k, 0, version())
			}
			if accesses%64 == 0 {
				require.True(t, time.Now().Before(end), "share %.2f after %d accesses, %d hits", shareOf(c.policy), accesses, hits)
			}
		}
		return hits, accesses
	}
	until(func(i int) int {
		if i%5 == 0 {
			return 1000 + i // one that is new
		}
		return i * 7 % 400
	}, func(share float64) bool { return share <= leastShare })
	until(func(i int) int { return 1<<40 + i/2 - i%2*100 }, func(share float64) bool { return share > firstShare })
}
