package tidemark

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var auditStorm = flag.Duration("audit.storm", 30*time.Second, "how long TestAudit_Storm is, in the time of its bubble")

// A stormyAudit is replicas with auditors, in bad weather, of which some entries are
// made stale on purpose: those of the keys that begin with injectedKey.
type stormyAudit struct {
	s     *source
	log   *memLog
	all   []*Cache[string, int]
	until time.Time

	mu       sync.Mutex // guards everything below
	injected int
	found    map[string]bool
	false    []string
}

const injectedKey = "injected"

// TestAudit_Storm writes, reads, evicts, flushes and invalidates on three replicas,
// over a source that takes its time and a log that is late, away, or has a hole, and
// changes some keys of which nobody is told: each entry that is stale for that is
// gone when the cycle after it has ended, and nothing else is ever called a mismatch
// (T7, I19).
func TestAudit_Storm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &stormyAudit{s: newSource(), log: newMemLog(), until: time.Now().Add(*auditStorm), found: map[string]bool{}}
		x.log.beat = 100 * time.Millisecond
		slow := func(context.Context, string) error { time.Sleep(rand.N(5 * time.Millisecond)); return nil }
		x.s.beforeLoad, x.s.afterLoad, x.s.beforeWrite, x.s.afterWrite = slow, slow, slow, slow
		for range 3 {
			c := newCache(t, Options[string, int]{
				Store: x.s, Invalidator: x.log.invalidator(), MaxCost: 2000, Shards: 2, TTL: time.Minute,
				Audit: &AuditOptions[string, int]{Rate: 1000, Every: time.Second, Bound: 3 * time.Second, Sample: 5,
					Scales: []time.Duration{10 * time.Second}, OnMismatch: x.mismatch},
			})
			require.NoError(t, c.Ready(t.Context()))
			x.all = append(x.all, c)
		}
		var work sync.WaitGroup
		for i, c := range x.all {
			work.Go(func() { x.inject(t, i, c) })
			for range 2 {
				work.Go(func() { x.write(c) })
				work.Go(func() { x.read(c) })
			}
		}
		work.Go(x.weather)
		work.Wait()
		x.log.up()
		x.log.setDelay(0)
		time.Sleep(time.Minute)
		for _, c := range x.all {
			require.NoError(t, c.Ready(t.Context()))
			r := audit(t, c)
			for key, e := range c.All() {
				require.Equal(t, x.s.get(key), row{e.Value, e.Version, e.Absent}, key)
			}
			t.Logf("checked %d, suspected %d, stale %d, cycles %d, refused %d; nines %.1f", r.Checked, r.Suspicions, r.Stale, r.Cycles, r.Refused, r.Scales[0].Nines)
		}
		assert.Empty(t, x.false, "false alarms")
		assert.Greater(t, len(x.found), x.injected/10)
		t.Logf("%d stale entries were injected and %d of them found; nobody would have been served the others", x.injected, len(x.found))
	})
}

// mismatch is the auditors' OnMismatch.
func (x *stormyAudit) mismatch(m Mismatch[string]) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if m.Kind != MismatchStale || !strings.HasPrefix(m.Key, injectedKey) {
		x.false = append(x.false, fmt.Sprintf("%+v", m))
	}
	x.found[m.Key] = true
}

func (x *stormyAudit) goesOn() bool { return time.Now().Before(x.until) }

// inject makes entries of c stale now and then, and lets it run a cycle.
func (x *stormyAudit) inject(t *testing.T, replica int, c *Cache[string, int]) {
	for n := 0; x.goesOn(); n++ {
		time.Sleep(rand.N(2 * time.Second))
		stale := map[string]Version{}
		for i := range 5 {
			key := fmt.Sprint(injectedKey, replica, n, i)
			v := x.s.set(key, i)
			if _, err := c.Load(context.Background(), key); err == nil {
				stale[key] = v
				x.s.set(key, -1)
			}
		}
		ctx, ended := context.WithCancel(context.Background())
		go func() {
			for ctx.Err() == nil { // or they would be evicted
				for key := range stale {
					c.Get(key)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		_, err := c.Audit(ctx)
		ended()
		assert.NoError(t, err)
		for key, v := range stale {
			e, ok := c.GetEntry(key)
			assert.False(t, ok && e.Version == v, "%s is served after a cycle", key)
		}
		x.mu.Lock()
		x.injected += len(stale)
		x.mu.Unlock()
	}
}

func (x *stormyAudit) write(c *Cache[string, int]) {
	for x.goesOn() {
		time.Sleep(rand.N(40 * time.Millisecond))
		key := fmt.Sprint("k", rand.N(600))
		switch n := rand.N(20); {
		case n < 12:
			_, _ = c.Update(context.Background(), key, inc)
		case n < 15:
			v := x.s.set(key, n)
			time.Sleep(rand.N(100 * time.Millisecond))
			_ = c.Invalidate(context.Background(), key, v)
		case n < 16:
			if r := x.s.get(key); !r.absent {
				_, _ = c.Delete(context.Background(), key, r.version)
			}
		case n < 18:
			f := c.BeginFill(key)
			v, version, err := x.s.Load(context.Background(), key)
			if err == nil {
				f.Commit(v, version)
			}
			f.Cancel()
		default:
			r := x.s.get(key)
			time.Sleep(rand.N(20 * time.Millisecond))
			if !r.absent {
				c.Put(key, r.value, r.version)
			}
		}
	}
}

func (x *stormyAudit) read(c *Cache[string, int]) {
	for x.goesOn() {
		time.Sleep(rand.N(10 * time.Millisecond))
		key := fmt.Sprint("k", rand.N(600))
		if rand.N(10) == 0 {
			_, _ = c.Read(context.Background(), key, Within(time.Second))
		} else {
			_, _ = c.Load(context.Background(), key)
		}
	}
}

// weather is what the log does.
func (x *stormyAudit) weather() {
	for x.goesOn() {
		time.Sleep(rand.N(6 * time.Second))
		switch rand.N(8) {
		case 0, 1:
			x.log.setDelay(rand.N(500 * time.Millisecond))
		case 2:
			x.log.setDelay(8 * time.Second)
			time.Sleep(10 * time.Second)
			x.log.setDelay(0)
		case 3:
			x.log.unreadable(errors.New("no server"))
			time.Sleep(rand.N(8 * time.Second))
			x.log.up()
		case 4:
			x.log.down()
			time.Sleep(rand.N(time.Second))
			x.log.up()
		case 5:
			x.log.skip()
		case 6:
			_ = x.all[rand.N(3)].InvalidateAll(context.Background())
		case 7:
			c := x.all[rand.N(3)]
			_ = c.Resize(200) // evicts
			time.Sleep(time.Second)
			_ = c.Resize(2000)
		}
	}
}
