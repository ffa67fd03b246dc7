package storm

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/tidemark-go/tidemark"
)

// A contender is one way to put a cache in front of the database. To add one,
// implement contender and replica and add it to contenders.
type contender interface {
	name() string

	// promise is what the contender states about its reads, as far as the
	// storm can check it.
	promise(c Config) promise

	// open starts the contender's part of one replica.
	open(env *environment) (replica, error)

	// openAnnouncer returns what an outside process uses to tell the replicas
	// what it changed in the database, or nil if the contender has no such
	// thing. The connection stays the caller's.
	openAnnouncer(nc *nats.Conn) (announcer, error)
}

// A promise is a bound on reads that a contender states.
type promise struct {
	text     string        // for the legend
	maxStale time.Duration // no read is stale for longer; zero: not promised
	// confirmed: maxStale counts from when the contender confirmed the newer
	// version, see oracle.confirm, not from when the database had it.
	confirmed bool
	// committed: a deposit counts as confirmed when the database has committed
	// it, also if its writer was killed then.
	committed bool
	// heard: the replicas are told of every commit, whoever made it, by the
	// database itself.
	heard bool
	// counted: reads beyond maxStale are counted, but not promised not to be.
	counted  bool
	tideMark bool // no read is below the replica's tide mark
}

// beyond reports whether v is a read beyond the bound of p.
func (p promise) beyond(v verdict) bool {
	stale := v.staleFor
	if p.confirmed {
		stale = v.overdue
	}
	return p.maxStale > 0 && v.stale && stale > p.maxStale
}

// belowMark reports whether v is a read below the tide mark of p.
func (p promise) belowMark(v verdict) bool { return p.tideMark && (v.belowMark || v.undoubted) }

// A contender that is relayed has a log that the database itself can tell of its
// changes. Where it does, nobody else announces what the reconciliation does.
type relayed interface {
	// invalidator returns the means to do so over nc, which stays the caller's.
	invalidator(nc *nats.Conn) tidemark.Invalidator
}

// A contender that is onRedis keeps its values in a Redis, one for all replicas.
type onRedis interface {
	// redisAnnouncer is openAnnouncer, through a client that the announcer closes.
	redisAnnouncer(client *redis.Client, prefix string, ttl time.Duration) announcer
}

// A replica is one instance of a contender: the cache inside one process of
// the service. Its methods may be called concurrently, close last and once.
type replica interface {
	// read returns the account, from memory (hit) or else from the database.
	read(ctx context.Context, account int) (answer, error)

	// deposit adds cents to the account by a write called op, and returns when
	// the contender would tell its client that the deposit is done.
	deposit(ctx context.Context, account int, op uint64, cents int64) error

	// peek returns what a reader would be served from memory alone.
	peek(account int) (Account, bool)

	close(ctx context.Context) error
}

// An answer is what a read returned.
type answer struct {
	account Account
	hit     bool // it came from memory
	flagged bool // it says of itself that it may be older than the reader asked for
}

// An announcer tells all replicas of changes made behind their back. It is used
// by one goroutine and closed at the end of the job.
type announcer interface {
	announce(ctx context.Context, changes []change) error
	close(ctx context.Context) error
}

// A change is a row that the reconciliation has written.
type change struct {
	account int
	version uint64
}

// An environment is what the storm gives to one replica of a contender.
type environment struct {
	config Config
	bank   *bank

	// connect opens a NATS connection through the replica's proxy. The storm
	// closes it after the replica.
	connect func(options ...nats.Option) (*nats.Conn, error)

	// through puts the storm's weather and the oracle's ears between a
	// transport and the replica.
	through func(transport hint, ears ears) hint

	// throughLog does the same for a log, on which there is no weather, see
	// logLink.
	throughLog func(log tidemark.Log, ears ears) tidemark.Log

	// prober, if not nil, proves what the database has told the log.
	prober tidemark.Prober

	// redis opens a client of the storm's Redis whose connections suffer what
	// the replica's do. inside opens one that nothing happens to, to look
	// into the Redis afterwards. The replica closes both. Keys begin with prefix.
	redis, inside func() (*redis.Client, error)
	prefix        string
}

// ears tell the oracle what a replica has been told. Each is called when the
// replica has handled the news, so that the oracle can hold it to it. Fields
// may be nil.
type ears struct {
	// message returns the versions that msg told the replica of, and whether
	// it also told it to doubt everything.
	message func(msg []byte) (news []change, doubt bool)
	// lost is true if the replica must doubt everything when the transport
	// says that messages may have been missed, or when it reads a log from
	// another place than where it had stopped.
	lost bool
}

// contenders in the order in which they run by default.
var contenders = []contender{
	mapContender{}, ttlContender{}, ristrettoContender{}, redisContender{}, redisFencedContender{},
	tidemarkContender{}, tidemarkLogContender{}, tidemarkStrictContender{},
}

// Names returns the names of the contenders that run by default: with a Redis all
// of them, without one those that need none.
func Names(withRedis bool) []string {
	var names []string
	for _, c := range contenders {
		if withRedis || !needsRedis(c) {
			names = append(names, c.name())
		}
	}
	return names
}

// needsRedis reports whether c is onRedis.
func needsRedis(c contender) bool {
	_, needs := c.(onRedis)
	return needs
}

// lookup returns the contender called name, or nil.
func lookup(name string) contender {
	for _, c := range contenders {
		if c.name() == name {
			return c
		}
	}
	return nil
}
