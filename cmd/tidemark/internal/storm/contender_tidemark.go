package storm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/breaker"
	"github.com/tidemark-go/tidemark/internal/wire"
)

// tidemarkContender is this module's cache on core NATS, writing through
// sqlstore or store/postgres.
type tidemarkContender struct{}

// tidemarkName names the cache on NATS.
const tidemarkName = "storm"

func (tidemarkContender) name() string { return "tidemark" }

func (tidemarkContender) promise(Config) promise {
	return promise{
		text:     tidemarkText + ".\nOn core NATS no bound in time is promised.",
		tideMark: true,
	}
}

// tidemarkText is what all of them promise.
const tidemarkText = "never below the replica's tide mark: what it has shown, written or been told of; and\n" +
	"once told that messages may be missing, nothing from before that is not checked again"

// likewise says "as" the contender called name, if it is in the same table, and else what
// both promise.
func likewise(c Config, name, both string) string {
	if slices.Contains(c.Contenders, name) {
		return "as " + name
	}
	return both
}

func (tidemarkContender) open(env *environment) (replica, error) {
	nc, err := env.connect(tidemark.NATSConnectOptions()...)
	if err != nil {
		return nil, err
	}
	inv := tidemark.NATS(nc, tidemark.NATSOptions{Name: tidemarkName})
	inv.Hint = env.through(inv.Hint, ears{message: newTidemarkEar().message, lost: true})
	return openTidemark(env, tidemark.Options[int, Account]{Invalidator: inv})
}

// openTidemark returns a replica with the options o, once it is ready.
func openTidemark(env *environment, o tidemark.Options[int, Account]) (replica, error) {
	// Beyond DoubtTimeout no write may take effect.
	store, err := newRecordingStore(env.bank, o.DoubtTimeout*9/10)
	if err != nil {
		return nil, err
	}
	o, err = tidemarkOptions(env.config, store, o)
	if err != nil {
		return nil, err
	}
	cache, err := tidemark.New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cache.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("tidemark: not ready: %w", err), cache.Close(ctx))
	}
	return &tidemarkReplica{cache: cache}, nil
}

// tidemarkOptions returns the options of a replica: those in o, in which the contenders
// called tidemark differ, and what they have in common. Where the database goes away
// they fail open, with the TTL of the contender that is called so.
func tidemarkOptions(c Config, store *recordingStore, o tidemark.Options[int, Account]) (tidemark.Options[int, Account], error) {
	o.MaxCost, o.Store = int64(c.Capacity), store
	if c.DatabaseOutage == 0 {
		return o, nil
	}
	// So short an outage must be noticed and be found over within a part of it.
	b, err := breaker.New(breaker.Options{Window: c.DatabaseOutage / 4, OpenFor: c.DatabaseOutage / 8})
	o.TTL, o.StaleIfError = c.TTL, c.Duration+c.DatabaseOutage
	o.LoadTimeout, o.SoftLoadTimeout, o.Breaker = connectTimeout, connectTimeout/20, b
	return o, err
}

func (tidemarkContender) openAnnouncer(nc *nats.Conn) (announcer, error) {
	return openPublisher(tidemark.NATS(nc, tidemark.NATSOptions{Name: tidemarkName}))
}

func openPublisher(inv tidemark.Invalidator) (announcer, error) {
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[int]{Invalidator: inv})
	if err != nil {
		return nil, err
	}
	return &publisherAnnouncer{p}, nil
}

// A publisherAnnouncer tells the replicas of changes through a Publisher.
type publisherAnnouncer struct{ publisher *tidemark.Publisher[int] }

func (a *publisherAnnouncer) announce(ctx context.Context, changes []change) error {
	changed := make(map[int]tidemark.Version, len(changes))
	for _, c := range changes {
		changed[c.account] = tidemark.Version(c.version)
	}
	return a.publisher.InvalidateMany(ctx, changed)
}

func (a *publisherAnnouncer) close(ctx context.Context) error { return a.publisher.Close(ctx) }

type tidemarkReplica struct{ cache *tidemark.Cache[int, Account] }

func (r *tidemarkReplica) read(ctx context.Context, account int) (answer, error) {
	if a, ok := r.cache.Get(account); ok {
		return answer{account: a, hit: true}, nil
	}
	e, err := r.cache.Load(ctx, account)
	return answer{account: e.Value, flagged: e.Stale}, err
}

func (r *tidemarkReplica) deposit(ctx context.Context, account int, op uint64, cents int64) error {
	_, err := r.cache.Update(ctx, account, func(current tidemark.Entry[Account]) (Account, error) {
		return current.Value.deposit(op, cents), nil
	})
	return err
}

func (r *tidemarkReplica) peek(account int) (Account, bool) { return r.cache.Get(account) }

func (r *tidemarkReplica) close(ctx context.Context) error { return r.cache.Close(ctx) }

// A tidemarkEar understands what a replica is told, as far as it binds it: the
// versions in invalidations, and that everything is suspect after "everything
// changed", after a hole in an origin's numbers, and after what cannot be read.
// It is used by one goroutine.
type tidemarkEar struct {
	msg  wire.Message
	last map[uint64]uint64 // sequence number by origin
	log  bool              // an origin's first message is where this replica began to read, not a hole
}

func newTidemarkEar() *tidemarkEar { return &tidemarkEar{last: make(map[uint64]uint64)} }

func (e *tidemarkEar) message(msg []byte) (news []change, doubt bool) {
	m := &e.msg
	if err := wire.Decode(msg, m); err != nil {
		return nil, true
	}
	last, known := e.last[m.Origin]
	if e.log && !known {
		last = m.Seq - 1
	}
	doubt = m.Seq > last+1 || m.Kind == wire.KindInvalidateAll
	e.last[m.Origin] = max(last, m.Seq)
	for _, entry := range m.Entries {
		if m.Kind == wire.KindInvalidate && len(entry.Key) == 8 {
			news = append(news, change{int(binary.LittleEndian.Uint64(entry.Key)), entry.Version})
		}
	}
	return news, doubt
}

// A recordingStore is a Store that tells the bank what it has read and written.
type recordingStore struct {
	accountStore
	bank *bank

	mu      sync.Mutex // guards inDoubt
	inDoubt map[tidemark.OpID]uint64
}

// newRecordingStore returns a store whose writes take effect within the given
// time or not at all; zero is its default.
func newRecordingStore(b *bank, within time.Duration) (*recordingStore, error) {
	store, err := b.records.store(within)
	if err != nil {
		return nil, err
	}
	return &recordingStore{accountStore: store, bank: b, inDoubt: make(map[tidemark.OpID]uint64)}, nil
}

func (s *recordingStore) Load(ctx context.Context, account int) (Account, tidemark.Version, error) {
	if err := s.bank.reach(ctx); err != nil {
		return Account{}, 0, err
	}
	defer s.bank.travel()
	s.bank.readRows(1)
	return s.accountStore.Load(ctx, account)
}

func (s *recordingStore) LoadMany(ctx context.Context, accounts []int) (map[int]tidemark.Loaded[Account], error) {
	if err := s.bank.reach(ctx); err != nil {
		return nil, err
	}
	defer s.bank.travel()
	s.bank.readRows(len(accounts))
	return s.accountStore.LoadMany(ctx, accounts)
}

// LoadVersions counts as a read of each row: the database has to find it.
func (s *recordingStore) LoadVersions(ctx context.Context, accounts []int) (map[int]tidemark.Version, error) {
	if err := s.bank.reach(ctx); err != nil {
		return nil, err
	}
	defer s.bank.travel()
	s.bank.readRows(len(accounts))
	return s.accountStore.LoadVersions(ctx, accounts)
}

func (s *recordingStore) CompareAndSet(ctx context.Context, account int, base tidemark.Version, a Account, op tidemark.OpID) (tidemark.Version, error) {
	if err := s.bank.reach(ctx); err != nil {
		return 0, err
	}
	defer s.bank.travel()
	version, err := s.accountStore.CompareAndSet(ctx, account, base, a, op)
	var conflict *tidemark.ConflictError
	switch {
	case err == nil:
		s.bank.committed(account, a.Op, uint64(version))
	case errors.As(err, &conflict):
		s.bank.readRows(1) // the row was read to see why
	case !errors.Is(err, tidemark.ErrUnavailable):
		s.mu.Lock()
		s.inDoubt[op] = a.Op
		s.mu.Unlock()
	}
	return version, err
}

// Outcome also tells the oracle of a commit whose answer was lost.
func (s *recordingStore) Outcome(ctx context.Context, account int, op tidemark.OpID) (tidemark.Version, bool, error) {
	if err := s.bank.reach(ctx); err != nil {
		return 0, false, err
	}
	version, found, err := s.accountStore.Outcome(ctx, account, op)
	s.mu.Lock()
	written, doubted := s.inDoubt[op]
	s.mu.Unlock()
	if found && doubted {
		s.bank.committed(account, written, uint64(version))
	}
	return version, found, err
}
