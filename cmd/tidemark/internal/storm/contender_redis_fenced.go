package storm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
)

// redisFencedContender is what can be made of a Redis by those who know what goes
// wrong with redisContender. The Redis keeps, for each account, the value with its
// version, a fence below which no version is served or stored, and a mark for each
// deposit that is under way. Every step is a script, which Redis runs alone:
//
//	read     a hit is a value at or above the fence
//	load     stores what is newer than the value and not below the fence, unless
//	         there is a mark
//	deposit  marks the account and deletes its value, commits, then raises the
//	         fence to the new version, takes its mark away and stores the value,
//	         unless there is another mark
//
// A deposit whose mark cannot be set is refused. A mark ends by itself, for
// writers that die.
//
// What that guarantees, as long as there is one Redis that forgets nothing, and no
// deposit and no load takes longer than markTime or the time to live: no hit misses a
// deposit that has returned, nor one whose writer died or was cut off after the
// commit. It does not hold for rows that are changed by SQL, until somebody raises
// their fences; nor where Redis evicts fences or marks, or fails over to a copy that
// lacks the newest, which its replication does not rule out. Each read is a round trip.
type redisFencedContender struct{}

// markTime is how long a deposit has to commit and raise the fence.
const markTime = 5 * time.Second

func (redisFencedContender) name() string { return "redis-fenced" }

func (redisFencedContender) promise(Config) promise {
	return promise{text: "while its one Redis forgets nothing, no hit misses a deposit that has returned, or one whose\n" +
		"writer was killed; rows changed by SQL are missed until the job has told. Deposits fail while\n" +
		"Redis cannot be reached. What is stale is counted, and not held against it."}
}

func (redisFencedContender) open(env *environment) (replica, error) {
	r := &redisFencedReplica{bank: env.bank, prefix: env.prefix, ttl: env.config.RedisTTL}
	return r, r.open(env)
}

func (redisFencedContender) openAnnouncer(*nats.Conn) (announcer, error) { return nil, nil }

func (redisFencedContender) redisAnnouncer(client *redis.Client, prefix string, ttl time.Duration) announcer {
	return &fenceAnnouncer{client, prefix, ttl}
}

// Each script has two keys: a hash with the value v, its version n and the fence f,
// and a sorted set of marks by the time, in milliseconds of the server, when they
// end.
const (
	fencedState = `
local state = redis.call('HMGET', KEYS[1], 'v', 'n', 'f')
local value, version, fence = state[1], tonumber(state[2] or 0), tonumber(state[3] or 0)
`
	fencedMarks = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function marked()
	return redis.call('ZCOUNT', KEYS[2], '(' .. now, '+inf') > 0
end
`
)

var (
	// hitScript returns the value, if it may be served. Where there is a mark
	// there is none: what sets the mark deletes it, and nothing else stores one.
	hitScript = redis.NewScript(fencedState + `
if value and version >= fence then
	return value
end
return false`)

	// storeScript stores value ARGV[1] of version ARGV[2] for ARGV[3] ms, if it
	// is newer than all that is known.
	storeScript = redis.NewScript(fencedState + fencedMarks + `
local offered = tonumber(ARGV[2])
if marked() or offered <= version or offered < fence then
	return 0
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'n', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)

	// markScript sets mark ARGV[1] for ARGV[2] ms. The value goes, so that it is
	// not served again if nobody takes the mark away.
	markScript = redis.NewScript(fencedMarks + `
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[1], 'v', 'n')
return 1`)

	// unmarkScript takes mark ARGV[1] away: nothing was committed.
	unmarkScript = redis.NewScript(`return redis.call('ZREM', KEYS[2], ARGV[1])`)

	// fenceScript takes mark ARGV[1] away and raises the fence to version ARGV[2]
	// for ARGV[3] ms. ARGV[4], if not empty, is the value of that version.
	fenceScript = redis.NewScript(fencedState + fencedMarks + `
redis.call('ZREM', KEYS[2], ARGV[1])
local told = tonumber(ARGV[2])
if told > fence then
	redis.call('HSET', KEYS[1], 'f', ARGV[2])
end
if ARGV[4] ~= '' and told > version and not marked() then
	redis.call('HSET', KEYS[1], 'v', ARGV[4], 'n', ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)
)

func fencedKeysOf(prefix string, account int) []string {
	return []string{redisKey(prefix, "", account), redisKey(prefix, "marks:", account)}
}

type redisFencedReplica struct {
	redisClients
	bank   *bank
	prefix string
	ttl    time.Duration
}

func (r *redisFencedReplica) read(ctx context.Context, account int) (answer, error) {
	keys := fencedKeysOf(r.prefix, account)
	a, hit, failed := r.account(hitScript.Run(ctx, r.client, keys).Text())
	if hit {
		return answer{account: a, hit: true}, nil
	}
	a, version, err := r.bank.load(ctx, account)
	if err == nil && !failed {
		// Who has the value does not care whether others will have it.
		_ = storeScript.Run(ctx, r.client, keys, a.encode(), version, r.ttl.Milliseconds()).Err()
	}
	return answer{account: a}, err
}

// errNotFenced is why a deposit was refused.
var errNotFenced = errors.New("the deposit cannot be announced to Redis")

func (r *redisFencedReplica) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	keys, mark := fencedKeysOf(r.prefix, account), rand.Text()
	if err := markScript.Run(ctx, r.client, keys, mark, markTime.Milliseconds()).Err(); err != nil {
		return fmt.Errorf("%w: %w", errNotFenced, err)
	}
	a, version, err := r.bank.transact(ctx, account, func(current Account) Account { return current.deposit(op, cents) })
	if err != nil {
		_ = unmarkScript.Run(ctx, r.client, keys, mark).Err() // or it ends by itself
		return err
	}
	// The deposit is committed. If the fence is not raised now, the mark keeps
	// readers and loads away until no load from before can be under way.
	_ = fenceScript.Run(ctx, r.client, keys, mark, version, r.ttl.Milliseconds(), a.encode()).Err()
	return nil
}

func (r *redisFencedReplica) peek(account int) (Account, bool) {
	return r.peeked(hitScript.Run(context.Background(), r.inside, fencedKeysOf(r.prefix, account)).Text())
}

// A fenceAnnouncer raises the fences of what the reconciliation has changed.
type fenceAnnouncer struct {
	client *redis.Client
	prefix string
	ttl    time.Duration
}

func (f *fenceAnnouncer) announce(ctx context.Context, changes []change) error {
	var errs []error
	for _, c := range changes {
		keys := fencedKeysOf(f.prefix, c.account)
		errs = append(errs, fenceScript.Run(ctx, f.client, keys, "", c.version, f.ttl.Milliseconds(), "").Err())
	}
	return errors.Join(errs...)
}

func (f *fenceAnnouncer) close(context.Context) error { return f.client.Close() }
