package integration

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

var auditStorm = flag.Duration("audit.storm", 15*time.Second, "how long TestAudit_StormOnALog is")

// TestAudit_StormOnALog writes and reads on three replicas over a real stream, one of
// them behind a cable that is cut and stops up, while changes are told that somebody
// else has made, and some that nobody tells of: those are found and repaired by the
// cycle after, and nothing else is called a mismatch (T7, I19).
func TestAudit_StormOnALog(t *testing.T) {
	t.Parallel()
	const injected = "injected"
	l, s := newLedger(), natsServer(t, streaming(t))
	w := newCable(t, s)
	var mu sync.Mutex
	found, wrong := map[string]bool{}, []string(nil)
	audits := func(o *tidemark.Options[string, int]) {
		o.Audit = &tidemark.AuditOptions[string, int]{Rate: 500, Every: 2 * time.Second, Bound: 5 * time.Second, Sample: 10,
			OnMismatch: func(m tidemark.Mismatch[string]) {
				mu.Lock()
				defer mu.Unlock()
				if found[m.Key] = true; m.Kind != tidemark.MismatchStale || !strings.HasPrefix(m.Key, injected) {
					wrong = append(wrong, fmt.Sprintf("%+v", m))
				}
			}}
	}
	all := []*replica{
		newReplica(t, l, logged(dial(t, s.ClientURL())), audits),
		newReplica(t, l, logged(dial(t, s.ClientURL())), audits),
		newReplica(t, l, logged(dial(t, w.url(), quiet)), audits),
	}
	acquainted(t, all...)
	ctx, stop := context.WithTimeout(t.Context(), *auditStorm)
	defer stop()
	var work sync.WaitGroup
	told := all[:2] // the others would tell late what they have committed
	for i, r := range all {
		work.Go(func() { stormyReads(ctx, r) })
		if i < len(told) {
			work.Go(func() { stormyWrites(ctx, l, r) })
		}
	}
	work.Go(func() { stormyCable(ctx, w) })
	stale := 0
	for n := 0; ctx.Err() == nil; n++ {
		r, versions := all[n%2], map[string]tidemark.Version{}
		for i := range 20 {
			key := fmt.Sprint(injected, n, "/", i)
			versions[key] = l.set(key, 1)
			holds(t, key, r)
			l.set(key, 2) // nobody is told
		}
		stale += len(versions)
		_, err := r.Audit(t.Context())
		require.NoError(t, err)
		for key, v := range versions {
			e, ok := r.GetEntry(key)
			require.False(t, ok && e.Version == v, "it is served after a cycle")
		}
	}
	work.Wait()
	healed(t, l, all...)
	for _, r := range all {
		x := r.AuditReport()
		t.Logf("checked %d, suspected %d, stale %d, refused %d, cycles %d: at least %.1f nines", x.Checked, x.Suspicions, x.Stale, x.Refused, x.Cycles, x.Scales[0].Nines)
		assert.Positive(t, x.Checked)
		assert.Positive(t, x.Suspicions)
	}
	mu.Lock()
	defer mu.Unlock()
	assert.Empty(t, wrong, "false alarms")
	t.Logf("%d entries were made stale, and %d found so", stale, len(found))
	assert.Greater(t, len(found), stale/10, "the others became suspect, and nobody was served them")
}

func stormyWrites(ctx context.Context, l *ledger, r *replica) {
	for ctx.Err() == nil {
		time.Sleep(rand.N(20 * time.Millisecond))
		key := fmt.Sprint("k", rand.N(500))
		if rand.N(3) > 0 {
			_, _ = r.Update(ctx, key, plusOne)
			continue
		}
		v := l.set(key, 0) // somebody else, who tells of it
		time.Sleep(rand.N(100 * time.Millisecond))
		_ = r.Invalidate(context.WithoutCancel(ctx), key, v)
	}
}

func stormyReads(ctx context.Context, r *replica) {
	for ctx.Err() == nil {
		_, _ = r.Load(ctx, fmt.Sprint("k", rand.N(500)))
		time.Sleep(time.Millisecond)
	}
}

func stormyCable(ctx context.Context, w *cable) {
	for ctx.Err() == nil {
		select { // its silence makes the others' entries suspect, so not all the time
		case <-time.After(10*time.Second + rand.N(10*time.Second)):
		case <-ctx.Done():
			return
		}
		if rand.N(2) == 0 {
			w.refuses.Store(true)
			w.cut()
			time.Sleep(rand.N(6 * time.Second))
			w.refuses.Store(false)
		} else {
			w.stalled.Store(true)
			time.Sleep(rand.N(6 * time.Second))
			w.stalled.Store(false)
		}
	}
}

// Every replica says what its auditor has found, and lets a cycle begin for who asks.
func TestOps_Audit(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	const secret = "4929-1234"
	l := newLedger()
	l.set(secret, 1)
	serve := func(instance string, o tidemark.Options[string, int]) *tidemark.Cache[string, int] {
		o.Store = l
		cache, err := tidemark.New(o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
		view, err := ops.New(cache, ops.Options[string, int]{Name: natsCache, Instance: instance})
		require.NoError(t, err)
		mine := dial(t, s.ClientURL())
		service, err := view.Serve(mine)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, service.Stop()) })
		require.NoError(t, mine.Flush())
		return cache
	}
	cache := serve("a", tidemark.Options[string, int]{Audit: &tidemark.AuditOptions[string, int]{Bound: 10 * time.Millisecond, Every: time.Hour}})
	serve("b", tidemark.Options[string, int]{})
	_, err := cache.Load(t.Context(), secret)
	require.NoError(t, err)
	within(t, func() bool { return cache.AuditReport().Cycles == 1 }, "the first cycle does not end")
	l.set(secret, 2)
	all, err := ops.AskAudit(t.Context(), nc, natsCache, false, true)
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Zero(t, all[0].Report.Stale)
	assert.Zero(t, all[1].Report.Bound, "it has no auditor")
	assert.EqualValues(t, 1, cache.AuditReport().Begun, "nobody has asked for a cycle")
	all, err = ops.AskAudit(t.Context(), nc, natsCache, true, true)
	require.NoError(t, err)
	require.Len(t, all, 2)
	within(t, func() bool { return cache.AuditReport().Cycles > all[0].Report.Begun }, "the cycle does not end")
	for _, keys := range []bool{true, false} {
		all, err = ops.AskAudit(t.Context(), nc, natsCache, false, keys)
		require.NoError(t, err)
		assert.EqualValues(t, 1, all[0].Report.Stale)
		require.Len(t, all[0].Mismatches, 1)
		m := all[0].Mismatches[0]
		assert.Equal(t, tidemark.MismatchStale, m.Kind)
		assert.EqualValues(t, 2, m.Source)
		assert.NotEmpty(t, m.Record)
		assert.Equal(t, keys, m.Key == secret)
	}
	for _, question := range []string{"", "{}", "x"} {
		m, err := nc.Request(ops.AuditSubject(natsCache), []byte(question), 2*time.Second)
		require.NoError(t, err)
		assert.NotContains(t, string(m.Data), secret)
		assert.Equal(t, question == "x", m.Header.Get("Nats-Service-Error-Code") == "400", question)
	}
	require.NoError(t, cache.Close(t.Context()))
	_, err = ops.AskAudit(t.Context(), nc, natsCache, true, false)
	require.ErrorContains(t, err, "409")
	require.NotErrorIs(t, err, nats.ErrTimeout)
}
