package storm

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// redisContender is a Redis beside the database, as most teams have one: values
// with a time to live, and a lock key for each account around the loads and the
// writes of it. A deposit is a transaction of the database, and then a DEL. There
// is no cache in the process, so no replica needs to be told anything.
//
// The lock ends by itself, so that a process that dies does not keep it; who has
// not got it in time goes ahead without, and so does everybody while Redis cannot be
// reached, so that a cache that is down takes nothing down with it. These are the
// two ways in which an old value gets in or stays.
type redisContender struct{}

const (
	// redisTimeout is how long a request may take. The client's own defaults
	// (five seconds, each of several attempts) would have a replica whose
	// network is frozen stand still for the rest of the storm.
	redisTimeout = 500 * time.Millisecond

	lockTime  = time.Second            // after which a lock key ends by itself
	lockWait  = 300 * time.Millisecond // for which a deposit tries to get it
	lockRetry = 2 * time.Millisecond
	loadWait  = 50 * time.Millisecond // for which a reader waits for another one's load
)

func (redisContender) name() string { return "redis" }

func (redisContender) promise(c Config) promise {
	return promise{text: "none stated; a value expires " + c.RedisTTL.String() + " after it was stored"}
}

func (redisContender) open(env *environment) (replica, error) {
	r := &redisReplica{bank: env.bank, prefix: env.prefix, ttl: env.config.RedisTTL}
	return r, r.open(env)
}

func (redisContender) openAnnouncer(*nats.Conn) (announcer, error) { return nil, nil }

func (redisContender) redisAnnouncer(client *redis.Client, prefix string, _ time.Duration) announcer {
	return &delAnnouncer{client, prefix}
}

// redisOptions returns how to connect to the Redis at address, which is host:port
// or a URL.
func redisOptions(address string) (*redis.Options, error) {
	o := &redis.Options{Addr: address}
	if isURL(address) {
		var err error
		if o, err = redis.ParseURL(address); err != nil {
			return nil, err
		}
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = redisTimeout, redisTimeout, redisTimeout
	o.DialerRetries, o.MaxRetries = 1, 1
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// silence keeps what the client has to say about the storm from the terminal.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(silence{}) }

// redisClients are the two clients of a replica.
type redisClients struct {
	client *redis.Client // of the replica
	inside *redis.Client // for peek

	mu      sync.Mutex // guards peekErr
	peekErr error      // the first
}

func (c *redisClients) open(env *environment) error {
	var err error
	if c.client, err = env.redis(); err != nil {
		return err
	}
	c.inside, err = env.inside()
	return err
}

// account decodes what was read from the Redis. What is not there is a miss, and
// what cannot be read is one as well, as failed tells.
func (c *redisClients) account(value string, err error) (a Account, hit, failed bool) {
	switch {
	case errors.Is(err, redis.Nil):
		return Account{}, false, false
	case err != nil:
		return Account{}, false, true
	}
	a, err = decodeAccount([]byte(value))
	return a, err == nil, err != nil
}

// peeked is account for peek. An error is remembered for close: an inspection that
// has seen nothing has not found that nothing is wrong.
func (c *redisClients) peeked(value string, err error) (Account, bool) {
	a, hit, failed := c.account(value, err)
	if failed {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.peekErr == nil {
			c.peekErr = errors.Join(errors.New("storm: Redis cannot be inspected"), err)
		}
	}
	return a, hit
}

func (c *redisClients) close(context.Context) error {
	errs := []error{c.peekErr}
	for _, client := range []*redis.Client{c.client, c.inside} {
		if client != nil {
			errs = append(errs, client.Close())
		}
	}
	return errors.Join(errs...)
}

type redisReplica struct {
	redisClients
	bank   *bank
	prefix string
	ttl    time.Duration
}

func redisKey(prefix, kind string, account int) string {
	return prefix + kind + strconv.Itoa(account)
}

func (r *redisReplica) valueKey(account int) string { return redisKey(r.prefix, "", account) }
func (r *redisReplica) lockKey(account int) string  { return redisKey(r.prefix, "lock:", account) }

func (r *redisReplica) read(ctx context.Context, account int) (answer, error) {
	for deadline := time.Now().Add(loadWait); ; time.Sleep(lockRetry) {
		a, hit, failed := r.account(r.client.Get(ctx, r.valueKey(account)).Result())
		if hit {
			return answer{account: a, hit: true}, nil
		}
		if !failed {
			unlock, locked, err := r.lock(ctx, account)
			if locked {
				defer unlock()
				return r.load(ctx, account, true)
			}
			failed = err != nil
		}
		if failed || time.Now().After(deadline) {
			return r.load(ctx, account, false)
		}
	}
}

// load reads the account from the database and stores it for the others.
func (r *redisReplica) load(ctx context.Context, account int, store bool) (answer, error) {
	a, _, err := r.bank.load(ctx, account)
	if err == nil && store {
		// Who has the value does not care whether others will have it.
		_ = r.client.Set(ctx, r.valueKey(account), a.encode(), r.ttl).Err()
	}
	return answer{account: a}, err
}

func (r *redisReplica) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	if unlock, locked := r.lockPatiently(ctx, account); locked {
		defer unlock()
	}
	_, _, err := r.bank.transact(ctx, account, func(current Account) Account { return current.deposit(op, cents) })
	if err != nil {
		return err
	}
	// The deposit is committed; a failed DEL is logged by most, and the time to
	// live is there for it.
	_ = r.client.Del(ctx, r.valueKey(account)).Err()
	return nil
}

// unlockScript deletes a lock key, but not if it is somebody else's by now.
var unlockScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
	return redis.call('DEL', KEYS[1])
end
return 0`)

// lock tries to get the account's lock key.
func (r *redisReplica) lock(ctx context.Context, account int) (unlock func(), locked bool, err error) {
	key, token := r.lockKey(account), rand.Text()
	err = r.client.SetArgs(ctx, key, token, redis.SetArgs{Mode: "NX", TTL: lockTime}).Err()
	switch {
	case errors.Is(err, redis.Nil): // another one has it
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	return func() { _ = unlockScript.Run(ctx, r.client, []string{key}, token).Err() }, true, nil
}

// lockPatiently tries until lockWait is over or Redis does not answer.
func (r *redisReplica) lockPatiently(ctx context.Context, account int) (unlock func(), locked bool) {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockRetry) {
		unlock, locked, err := r.lock(ctx, account)
		if locked || err != nil || time.Now().After(deadline) {
			return unlock, locked
		}
	}
}

func (r *redisReplica) peek(account int) (Account, bool) {
	return r.peeked(r.inside.Get(context.Background(), r.valueKey(account)).Result())
}

// A delAnnouncer deletes what the reconciliation has changed.
type delAnnouncer struct {
	client *redis.Client
	prefix string
}

func (d *delAnnouncer) announce(ctx context.Context, changes []change) error {
	keys := make([]string, len(changes))
	for i, c := range changes {
		keys[i] = redisKey(d.prefix, "", c.account)
	}
	return d.client.Del(ctx, keys...).Err()
}

func (d *delAnnouncer) close(context.Context) error { return d.client.Close() }
