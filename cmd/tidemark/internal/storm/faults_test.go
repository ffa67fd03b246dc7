package storm

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/redistest"
)

func TestScheduleDependsOnTheSeedAlone(t *testing.T) {
	c := Default()
	faults := schedule(c)
	assert.Equal(t, faults, schedule(c))
	assert.Len(t, faults, c.Cuts+c.Freezes+c.Stalls+c.Kills+1)
	for i, f := range faults {
		assert.GreaterOrEqual(t, f.at, time.Duration(faultsFrom*float64(c.Duration)))
		assert.LessOrEqual(t, f.at, time.Duration(faultsTo*float64(c.Duration)))
		assert.Less(t, f.replica, c.Replicas)
		if i > 0 {
			assert.GreaterOrEqual(t, f.at, faults[i-1].at)
		}
	}
	other := c
	other.Seed++
	assert.NotEqual(t, faults, schedule(other))
	c.Cuts, c.Freezes, c.Stalls, c.Kills, c.Reconcile = 0, 0, 0, 0, 0
	assert.Empty(t, schedule(c))
}

func TestDrawnAccountsAreZipfDistributedAndRepeatable(t *testing.T) {
	c := Default()
	accounts := drawAccounts(c, streamReaders, accountsDrawn)
	assert.Equal(t, accounts, drawAccounts(c, streamReaders, accountsDrawn))
	assert.NotEqual(t, accounts, drawAccounts(c, streamReaders+1, accountsDrawn))
	seen := map[uint32]int{}
	for _, a := range accounts {
		require.Less(t, a, uint32(c.Accounts))
		seen[a]++
	}
	assert.Greater(t, seen[0], 20*seen[100], "account 0 is the hottest")
	assert.Greater(t, len(seen), c.Capacity, "the accounts do not fit into the cache")

	distinct := drawDistinct(c, streamReconcile, 300)
	assert.Len(t, distinct, 300)
	assert.IsIncreasing(t, distinct)
}

// A sniffer hears everything on the server, around proxies and weather.
type sniffer struct {
	mu   sync.Mutex
	told map[int]int // messages about each account

	// What went to a log and to its hint, or to several readers of a log, is
	// one message.
	seen map[string]bool
}

// sniff listens on the server of r and counts messages by account. It
// understands those of ristretto and of tidemark.
func sniff(t *testing.T, r *run) *sniffer {
	t.Helper()
	s := &sniffer{told: map[int]int{}, seen: map[string]bool{}}
	nc, err := nats.Connect(r.server.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	ear := newTidemarkEar()
	_, err = nc.Subscribe(">", func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(m.Data) == 8 {
			s.told[int(binary.LittleEndian.Uint64(m.Data))]++
			return
		}
		if s.seen[string(m.Data)] {
			return
		}
		s.seen[string(m.Data)] = true
		news, _ := ear.message(m.Data)
		for _, n := range news {
			s.told[n.account]++
		}
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	return s
}

func (s *sniffer) messages(account int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told[account]
}

// overdue returns for how long a reader of the opening balance has missed what
// the contender confirmed.
func overdue(r *run, account int) time.Duration {
	return r.oracle.endRead(r.oracle.beginRead(0, account), 0).overdue
}

// publishing are the contenders that tell other replicas what they change.
var publishing = []contender{ristrettoContender{}, tidemarkContender{}, tidemarkLogContender{}}

func TestKilledWriterCommitsAndDoesNotPublish(t *testing.T) {
	for _, who := range publishing {
		t.Run(who.name(), func(t *testing.T) {
			r := openRun(t, who, small())
			bus := sniff(t, r)
			n, err := r.openNode(r.config.Replicas, Weather{})
			require.NoError(t, err)

			const alive, dead = 7, 9
			_, err = r.nodes[0].replica.read(t.Context(), dead)
			require.NoError(t, err)
			require.NoError(t, r.deposit(t.Context(), n, alive, 100))
			assert.Eventually(t, func() bool { return bus.messages(alive) == 1 }, 5*time.Second, time.Millisecond,
				"while it lives its deposits are announced")

			require.NoError(t, r.killDuring(t.Context(), n, dead))
			r.faults.Wait()
			a, version, err := r.nodes[0].bank.load(t.Context(), dead)
			require.NoError(t, err)
			assert.EqualValues(t, openingVersion+1, version, "the database has it")
			assert.Equal(t, imbalance{}, r.ledger.compare(dead, a), "and the books know it")
			assert.Equal(t, version, r.oracle.beginRead(0, dead).newest.version, "so an older value is stale")
			assert.EqualValues(t, openingVersion, r.newestAnnounced(dead), "but it was never announced")

			time.Sleep(300 * time.Millisecond) // longer than the message of the living took by far
			assert.Zero(t, bus.messages(dead), "nobody hears of it")
			if _, resident := r.nodes[0].replica.peek(dead); resident {
				assert.Equal(t, atRest{resident: 1, wrong: 1, unannounced: 1}, r.compareResident(r.nodes[0], dead, a))
			}
			suppressed := n.links[0].suppressed.Load()
			for _, l := range n.logs {
				suppressed += l.suppressed.Load()
				assert.Positive(t, l.suppressed.Load(), "nor the log")
			}
			assert.Positive(t, suppressed, "although the code after the commit ran")
			assert.Zero(t, overdue(r, dead), "nobody was promised that it is visible")
			assert.Positive(t, overdue(r, alive))
		})
	}
}

func TestCutReplicaIsAwayAndComesBack(t *testing.T) {
	for _, who := range publishing {
		t.Run(who.name(), func(t *testing.T) {
			c := small()
			c.Weather = Weather{}
			r := openRun(t, who, c)
			bus := sniff(t, r)
			away, other := r.nodes[0], r.nodes[1]
			nc := away.conns[0]
			require.True(t, nc.IsConnected())

			away.proxy.cut()
			require.Eventually(t, func() bool { return !nc.IsConnected() }, 5*time.Second, time.Millisecond)
			_, err := away.replica.read(t.Context(), 3)
			require.NoError(t, err)
			require.NoError(t, r.deposit(t.Context(), other, 3, 100))
			require.Eventually(t, func() bool { return bus.messages(3) == 1 }, 5*time.Second, time.Millisecond)
			arrived := away.links[0].tally().Arrived

			time.Sleep(300 * time.Millisecond)
			assert.False(t, nc.IsConnected(), "it stays away")
			assert.Equal(t, arrived, away.links[0].tally().Arrived, "and hears nothing")

			away.proxy.restore()
			require.Eventually(t, nc.IsConnected, 5*time.Second, time.Millisecond)
			require.Eventually(t, func() bool {
				if err := r.deposit(t.Context(), other, 4, 100); err != nil {
					return false
				}
				return away.links[0].tally().Arrived > arrived
			}, 5*time.Second, 20*time.Millisecond, "back, it hears again")
		})
	}
}

func TestFrozenReplicaHearsLate(t *testing.T) {
	c := small()
	c.Weather = Weather{}
	r := openRun(t, ristrettoContender{}, c)
	bus := sniff(t, r)
	frozen, other := r.nodes[0], r.nodes[1]
	frozen.proxy.freeze()
	require.NoError(t, r.deposit(t.Context(), other, 3, 100))
	require.Eventually(t, func() bool { return bus.messages(3) == 1 }, 5*time.Second, time.Millisecond)
	time.Sleep(100 * time.Millisecond)
	assert.Zero(t, frozen.links[0].tally().Arrived)
	assert.True(t, frozen.conns[0].IsConnected(), "without an error")
	frozen.proxy.unfreeze()
	assert.Eventually(t, func() bool { return frozen.links[0].tally().Arrived == 1 }, 5*time.Second, time.Millisecond)
}

func TestReconciliationChangesRowsBehindTheReplicasAndTellsThem(t *testing.T) {
	for _, who := range contenders {
		t.Run(who.name(), func(t *testing.T) {
			c := small()
			c.Weather = Weather{}
			c.TTL = time.Minute // what is wrong must not have expired
			c.Redis = redistest.Address(t)
			r := openRun(t, who, c)
			n := r.nodes[0]
			accounts := drawDistinct(c, streamReconcile, c.Reconcile)
			for _, a := range accounts {
				_, err := n.replica.read(t.Context(), a)
				require.NoError(t, err)
			}
			require.NoError(t, r.reconcile(t.Context()))

			for _, a := range accounts {
				if who.name() == "map" || who.name() == "ttl" {
					require.Zero(t, overdue(r, a), "nothing was told, so nothing confirmed")
				} else {
					require.Positive(t, overdue(r, a), "the announcer has returned")
				}
			}

			wrong := func() int {
				n := 0
				err := r.database.records.all(t.Context(), func(account int, a Account, version uint64) {
					assert.Equal(t, imbalance{}, r.ledger.compare(account, a))
					assert.Equal(t, version, r.oracle.beginRead(0, account).newest.version)
					n += int(r.compareResident(r.nodes[0], account, a).wrong)
				})
				require.NoError(t, err)
				return n
			}
			if who.name() == "map" || who.name() == "ttl" {
				assert.Positive(t, wrong(), "nobody has told this one")
				return
			}
			// One look at a Redis is thousands of requests.
			assert.Eventually(t, func() bool { return wrong() == 0 }, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestDatabaseTellsTheOracleOfEveryCommit(t *testing.T) {
	r := openRun(t, mapContender{}, small())
	ctx, b, o := t.Context(), r.nodes[0].bank, r.oracle

	a, version, err := b.load(ctx, 5)
	require.NoError(t, err)
	require.Equal(t, Account{Balance: openingBalance}, a)
	require.EqualValues(t, openingVersion, version)

	op := o.beginWrite(5)
	require.NoError(t, b.overwrite(ctx, 5, a.deposit(op, 1)))
	version, ok := o.isCommitted(5, op)
	assert.True(t, ok)
	assert.EqualValues(t, 2, version)

	op = o.beginWrite(5)
	_, _, err = b.transact(ctx, 5, func(current Account) Account { return current.deposit(op, 1) })
	require.NoError(t, err)
	version, _ = o.isCommitted(5, op)
	assert.EqualValues(t, 3, version)

	store, err := newRecordingStore(b, 0)
	require.NoError(t, err)
	op = o.beginWrite(5)
	a, _, err = b.load(ctx, 5)
	require.NoError(t, err)
	_, err = store.CompareAndSet(ctx, 5, 2, a.deposit(op, 1), [16]byte{1})
	require.Error(t, err, "the base is not current")
	_, ok = o.isCommitted(5, op)
	assert.False(t, ok)
	_, err = store.CompareAndSet(ctx, 5, 3, a.deposit(op, 1), [16]byte{2})
	require.NoError(t, err)
	version, _ = o.isCommitted(5, op)
	assert.EqualValues(t, 4, version)

	reads := r.database.reads.Load()
	_, _, err = store.Load(ctx, 5)
	require.NoError(t, err)
	assert.Equal(t, reads+1, r.database.reads.Load())
	_, _, err = b.load(ctx, -1)
	assert.Error(t, err)
}
