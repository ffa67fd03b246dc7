package storm

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/redistest"
)

// openOnRedis returns a run of who with a Redis and nothing going on.
func openOnRedis(t *testing.T, who contender) *run {
	t.Helper()
	c := small()
	c.Redis = redistest.Address(t)
	return openRun(t, who, c)
}

// read reads the account on a replica.
func read(t *testing.T, n *node, account int) (a Account, hit bool) {
	t.Helper()
	got, err := n.replica.read(t.Context(), account)
	require.NoError(t, err)
	return got.account, got.hit
}

func TestRedisIsSharedAndLeftAsItWas(t *testing.T) {
	for _, who := range []contender{redisContender{}, redisFencedContender{}} {
		t.Run(who.name(), func(t *testing.T) {
			c := small()
			c.Redis = redistest.Address(t)
			r := &run{config: c, contender: who, killed: map[change]struct{}{}, report: func(string) {}}
			require.NoError(t, r.open(t.Context(), t.TempDir()))
			_, hit := read(t, r.nodes[0], 3)
			assert.False(t, hit)
			a, hit := read(t, r.nodes[1], 3)
			assert.True(t, hit, "what one has loaded, the other finds")
			assert.Equal(t, Account{Balance: openingBalance}, a)
			require.NoError(t, r.deposit(t.Context(), r.nodes[1], 3, 5))
			a, _ = read(t, r.nodes[2], 3)
			assert.EqualValues(t, openingBalance+5, a.Balance)

			client, err := r.newRedisClient(nil)
			require.NoError(t, err)
			defer client.Close()
			ours := func() int {
				keys, err := client.Keys(t.Context(), r.prefix+"*").Result()
				require.NoError(t, err)
				for _, k := range keys {
					ttl, err := client.PTTL(t.Context(), k).Result()
					require.NoError(t, err)
					assert.Positive(t, ttl, "%s would stay for ever if the storm were killed", k)
				}
				return len(keys)
			}
			assert.Positive(t, ours())
			require.NoError(t, r.close())
			assert.Zero(t, ours())
		})
	}
}

func TestRedisThatIsNotThereIsAnErrorOfTheStorm(t *testing.T) {
	c := small()
	c.Contenders, c.Redis = []string{"redis"}, "127.0.0.1:1"
	_, err := Run(t.Context(), c, nil)
	assert.ErrorContains(t, err, "reaching Redis: ")
}

// What the weather of the storm may bring about or not, a cut at the right moment
// does: the deposit is made, and nobody is told.
func TestRedisKeepsWhatAWriterThatWasCutOffCouldNotDelete(t *testing.T) {
	r := openOnRedis(t, redisContender{})
	away, other := r.nodes[0], r.nodes[1]
	read(t, other, 3)
	away.cut()
	a, hit := read(t, away, 3)
	assert.False(t, hit)
	assert.EqualValues(t, openingBalance, a.Balance, "the database answers")
	require.NoError(t, r.deposit(t.Context(), away, 3, 5), "a cache that is down takes nothing down with it")
	seen := r.newCounts()
	r.readOne(t.Context(), other, 3, false, &seen)
	assert.EqualValues(t, 1, seen.stale)
	away.restore()
	r.readOne(t.Context(), away, 3, false, &seen)
	assert.EqualValues(t, 2, seen.stale, "until it expires")
}

// A load whose lock has ended meanwhile brings the old value back.
func TestRedisLoadsOutliveTheirLock(t *testing.T) {
	r := openOnRedis(t, redisContender{})
	slow, other := r.nodes[0].replica.(*redisReplica), r.nodes[1]
	_, locked, err := slow.lock(t.Context(), 3)
	require.NoError(t, err)
	require.True(t, locked)
	old, _, err := slow.bank.load(t.Context(), 3)
	require.NoError(t, err)
	require.NoError(t, r.deposit(t.Context(), other, 3, 5), "it goes ahead when it has waited for the lock")
	require.NoError(t, slow.client.Set(t.Context(), slow.valueKey(3), old.encode(), slow.ttl).Err())
	seen := r.newCounts()
	r.readOne(t.Context(), other, 3, false, &seen)
	assert.EqualValues(t, 1, seen.stale)
}

func TestRedisUnlocksOnlyItsOwnLock(t *testing.T) {
	r := openOnRedis(t, redisContender{})
	one, other := r.nodes[0].replica.(*redisReplica), r.nodes[1].replica.(*redisReplica)
	ctx := t.Context()
	unlockOne, locked, err := one.lock(ctx, 3)
	require.NoError(t, err)
	require.True(t, locked)
	_, locked, err = other.lock(ctx, 3)
	require.NoError(t, err)
	require.False(t, locked)
	a, hit := read(t, r.nodes[1], 3)
	assert.False(t, hit)
	assert.EqualValues(t, openingBalance, a.Balance, "who waits in vain asks the database")
	_, resident := other.peek(3)
	assert.False(t, resident, "and stores nothing")

	require.NoError(t, one.client.Del(ctx, one.lockKey(3)).Err()) // it has ended
	unlockOther, locked, err := other.lock(ctx, 3)
	require.NoError(t, err)
	require.True(t, locked)
	unlockOne()
	_, locked, err = one.lock(ctx, 3)
	require.NoError(t, err)
	assert.False(t, locked, "it is the other one's")
	unlockOther()
	_, locked, err = one.lock(ctx, 3)
	require.NoError(t, err)
	assert.True(t, locked)
}

func TestRedisFencedRefusesWhatItCannotAnnounce(t *testing.T) {
	r := openOnRedis(t, redisFencedContender{})
	away, other := r.nodes[0], r.nodes[1]
	read(t, other, 3)
	away.cut()
	a, hit := read(t, away, 3)
	assert.False(t, hit)
	assert.EqualValues(t, openingBalance, a.Balance, "the database answers")
	require.ErrorIs(t, r.deposit(t.Context(), away, 3, 5), errNotFenced)
	_, version, err := away.bank.load(t.Context(), 3)
	require.NoError(t, err)
	assert.EqualValues(t, openingVersion, version, "nothing was committed")
}

// A fencedAccount asks for what the scripts promise.
type fencedAccount struct {
	t    *testing.T
	r    *redisFencedReplica
	keys []string
}

func (s fencedAccount) hit() (op uint64, hit bool) {
	s.t.Helper()
	a, hit, failed := s.r.account(hitScript.Run(context.Background(), s.r.client, s.keys).Text())
	require.False(s.t, failed)
	return a.Op, hit
}

func (s fencedAccount) store(version uint64) bool {
	s.t.Helper()
	n, err := storeScript.Run(s.t.Context(), s.r.client, s.keys, Account{Op: version}.encode(), version, 60_000).Int()
	require.NoError(s.t, err)
	return n == 1
}

func (s fencedAccount) mark(name string, ms int) {
	s.t.Helper()
	require.NoError(s.t, markScript.Run(s.t.Context(), s.r.client, s.keys, name, ms).Err())
}

func (s fencedAccount) fence(mark string, version uint64, value []byte) {
	s.t.Helper()
	require.NoError(s.t, fenceScript.Run(s.t.Context(), s.r.client, s.keys, mark, version, 60_000, value).Err())
}

func TestRedisFencedScripts(t *testing.T) {
	r := openOnRedis(t, redisFencedContender{})
	replica := r.nodes[0].replica.(*redisFencedReplica)
	on := func(account int) fencedAccount {
		return fencedAccount{t, replica, fencedKeysOf(r.prefix, account)}
	}
	is := func(t *testing.T, s fencedAccount, want uint64) {
		t.Helper()
		op, hit := s.hit()
		assert.Equal(t, want != 0, hit)
		assert.Equal(t, want, op)
	}
	t.Run("only what is newer is stored", func(t *testing.T) {
		s := on(1)
		is(t, s, 0)
		assert.True(t, s.store(2))
		assert.False(t, s.store(1))
		assert.False(t, s.store(2))
		is(t, s, 2)
		assert.True(t, s.store(3))
		is(t, s, 3)
	})
	t.Run("a fence ends what is older and keeps it out", func(t *testing.T) {
		s := on(2)
		assert.True(t, s.store(2))
		s.fence("", 4, nil)
		is(t, s, 0)
		assert.False(t, s.store(3))
		s.fence("", 3, Account{Op: 3}.encode())
		is(t, s, 0)
		assert.True(t, s.store(4))
		s.fence("", 4, nil)
		is(t, s, 4)
	})
	t.Run("a late deposit does not replace what is newer", func(t *testing.T) {
		s := on(7)
		assert.True(t, s.store(5))
		s.fence("", 4, Account{Op: 4}.encode())
		is(t, s, 5)
	})
	t.Run("a deposit stores its value", func(t *testing.T) {
		s := on(3)
		s.mark("a", 60_000)
		assert.False(t, s.store(1), "a load from before")
		s.fence("a", 2, Account{Op: 2}.encode())
		is(t, s, 2)
	})
	t.Run("the first of two deposits leaves the other one's mark", func(t *testing.T) {
		s := on(4)
		s.mark("a", 60_000)
		s.mark("b", 60_000)
		s.fence("a", 2, Account{Op: 2}.encode())
		is(t, s, 0)
		assert.False(t, s.store(2))
		s.fence("b", 3, Account{Op: 3}.encode())
		is(t, s, 3)
	})
	t.Run("a mark ends by itself, and what it has deleted stays away", func(t *testing.T) {
		s := on(5)
		assert.True(t, s.store(2))
		s.mark("a", 30)
		is(t, s, 0)
		require.Eventually(t, func() bool { // its set is gone
			n, err := s.r.client.Exists(t.Context(), s.keys[1]).Result()
			return err == nil && n == 0
		}, 5*time.Second, 5*time.Millisecond)
		is(t, s, 0)
		assert.True(t, s.store(3))
		is(t, s, 3)
	})
	t.Run("a mark beside one that has ended counts", func(t *testing.T) {
		s := on(6)
		s.mark("a", 1)
		time.Sleep(5 * time.Millisecond)
		s.mark("b", 60_000)
		assert.False(t, s.store(2))
		require.NoError(t, unmarkScript.Run(t.Context(), s.r.client, s.keys, "b").Err())
		assert.True(t, s.store(2))
	})
}

func TestRedisFencedDoesNotServeWhatAKilledWriterHasReplaced(t *testing.T) {
	for _, who := range []contender{redisContender{}, redisFencedContender{}} {
		t.Run(who.name(), func(t *testing.T) {
			r := openOnRedis(t, who)
			read(t, r.nodes[0], 3)
			n, err := r.openNode(r.config.Replicas, Weather{})
			require.NoError(t, err)
			require.NoError(t, r.killDuring(t.Context(), n, 3))
			r.faults.Wait()
			seen := r.newCounts()
			r.readOne(t.Context(), r.nodes[0], 3, false, &seen)
			assert.Equal(t, who.name() == "redis", seen.stale == 1)
			truth, _, err := r.nodes[0].bank.load(t.Context(), 3)
			require.NoError(t, err)
			if who.name() == "redis" {
				assert.Equal(t, atRest{resident: 1, wrong: 1, unannounced: 1}, r.compareResident(r.nodes[0], 3, truth))
			}
		})
	}
}

func TestRedisThatCannotBeInspectedIsAnErrorOfTheStorm(t *testing.T) {
	c := small()
	c.Redis = redistest.Address(t)
	r := &run{config: c, contender: redisContender{}, killed: map[change]struct{}{}, report: func(string) {}}
	require.NoError(t, r.open(t.Context(), t.TempDir()))
	require.NoError(t, r.nodes[0].replica.(*redisReplica).inside.Close())
	_, resident := r.nodes[0].replica.peek(3)
	assert.False(t, resident)
	assert.ErrorContains(t, r.close(), "cannot be inspected")
}
