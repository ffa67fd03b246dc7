package storm

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// mapContender is the cache of the founding story: a mutex and a map. A
// deposit reads the balance from the map, adds, writes the sum to the database
// and to the map. Nobody else is told.
type mapContender struct{}

func (mapContender) name() string { return "map" }

func (mapContender) promise(Config) promise { return promise{text: "none stated"} }

func (mapContender) open(env *environment) (replica, error) {
	return newMapReplica(env, 0), nil
}

func (mapContender) openAnnouncer(*nats.Conn) (announcer, error) { return nil, nil }

// ttlContender is mapContender with a time to live, counted from when the
// entry was stored.
type ttlContender struct{}

func (ttlContender) name() string { return "ttl" }

func (ttlContender) promise(c Config) promise {
	return promise{text: "no value older than its TTL of " + c.TTL.String(), maxStale: c.TTL}
}

func (ttlContender) open(env *environment) (replica, error) {
	return newMapReplica(env, env.config.TTL), nil
}

func (ttlContender) openAnnouncer(*nats.Conn) (announcer, error) { return nil, nil }

// A mapReplica is a map with a bound on its entries and, for ttl > 0, on their
// age.
type mapReplica struct {
	bank     *bank
	capacity int
	ttl      time.Duration
	start    time.Time

	mu      sync.RWMutex // guards entries
	entries map[int]mapEntry
}

type mapEntry struct {
	account Account
	expires time.Duration // since start; not used without a ttl
}

func newMapReplica(env *environment, ttl time.Duration) *mapReplica {
	return &mapReplica{
		bank: env.bank, capacity: env.config.Capacity, ttl: ttl, start: time.Now(),
		entries: make(map[int]mapEntry, env.config.Capacity),
	}
}

func (r *mapReplica) read(ctx context.Context, account int) (answer, error) {
	if a, ok := r.peek(account); ok {
		return answer{account: a, hit: true}, nil
	}
	a, _, err := r.bank.load(ctx, account)
	if err != nil {
		return answer{}, err
	}
	r.store(account, a)
	return answer{account: a}, nil
}

func (r *mapReplica) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	current, err := r.read(ctx, account)
	if err != nil {
		return err
	}
	next := current.account.deposit(op, cents)
	if err := r.bank.overwrite(ctx, account, next); err != nil {
		return err
	}
	r.store(account, next)
	return nil
}

func (r *mapReplica) peek(account int) (Account, bool) {
	r.mu.RLock()
	e, ok := r.entries[account]
	r.mu.RUnlock()
	if !ok || r.ttl > 0 && time.Since(r.start) >= e.expires {
		return Account{}, false
	}
	return e.account, true
}

// store keeps a, and evicts any other entry if there are too many.
func (r *mapReplica) store(account int, a Account) {
	e := mapEntry{account: a}
	if r.ttl > 0 {
		e.expires = time.Since(r.start) + r.ttl
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[account] = e
	for victim := range r.entries {
		if len(r.entries) <= r.capacity {
			return
		}
		if victim != account {
			delete(r.entries, victim)
		}
	}
}

func (r *mapReplica) close(context.Context) error { return nil }
