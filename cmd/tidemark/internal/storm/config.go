package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says what a storm does. Default gives the storm of the README; the
// zero value is not valid.
type Config struct {
	Contenders []string // names, in the order in which they run
	Replicas   int      // replicas of the service, each with its own cache and connection
	Accounts   int      // rows in the database of record
	Capacity   int      // entries that each replica's cache may hold
	Seed       uint64   // of the schedule; the same for every contender

	// Store is the URL of the PostgreSQL that is the database of record, in which
	// the storm makes a schema of its own for each contender, and drops it. Empty
	// means a SQLite file.
	Store string
	// Redis is the address of the Redis of the contenders that need one,
	// host:port or a URL. Empty means that there is none.
	Redis string

	Duration time.Duration // of the load, for each contender
	Quiet    time.Duration // of reading only, after the faults have healed and before the caches are inspected

	Skew      float64 // Zipf exponent of the accounts, above 1
	Readers   int     // goroutines a replica
	Writers   int     // goroutines a replica
	ReadRate  int     // reads a second that the readers of all replicas together attempt
	WriteRate int     // deposits a second that the writers of all replicas together attempt

	TTL       time.Duration // of the contender ttl
	RedisTTL  time.Duration // of the contenders on Redis
	Bound     time.Duration // of the contenders with a log: how stale a read may be
	ReadLevel string        // of these: within (the Bound) or any
	DBLatency time.Duration // how long an answer of the database is on its way, on average

	Weather Weather // what happens to messages

	Cuts      int           // how often a replica's connection is cut
	CutFor    time.Duration // and how long it stays away
	Freezes   int           // how often a replica's network stops without an error
	FreezeFor time.Duration // and how long
	Stalls    int           // how often a consumer stops reading
	StallFor  time.Duration // and how long
	Kills     int           // writers killed between commit and publish
	Reconcile int           // accounts that the overnight job changes by SQL, at most all

	// DatabaseOutage is how long no replica can reach the database; zero means that all
	// always can. Killed writers and the overnight job are elsewhere, and can.
	DatabaseOutage time.Duration
}

// The levels at which contenders with a log read.
const (
	levelWithin = "within"
	levelAny    = "any"
)

// Default returns the storm that the command runs without flags: all
// contenders in less than a minute on two cores.
func Default() Config {
	return Config{
		Contenders: Names(false),
		Replicas:   3,
		Accounts:   20_000,
		Capacity:   4_000,
		Seed:       1,
		Duration:   6 * time.Second,
		Quiet:      4 * time.Second,
		Skew:       1.1,
		Readers:    8,
		Writers:    2,
		ReadRate:   60_000,
		WriteRate:  600,
		TTL:        time.Second,
		RedisTTL:   time.Minute,
		Bound:      time.Second,
		ReadLevel:  levelWithin,
		DBLatency:  300 * time.Microsecond,
		Weather: Weather{
			Delay: 0.001, DelayMax: 100 * time.Millisecond,
			Reorder: 0.001, Duplicate: 0.01, Drop: 0.001,
		},
		Cuts: 2, CutFor: 800 * time.Millisecond,
		Freezes: 1, FreezeFor: 600 * time.Millisecond,
		Stalls: 2, StallFor: 400 * time.Millisecond,
		Kills:     3,
		Reconcile: 300,
	}
}

// Validate reports every mistake in c at once.
func (c Config) Validate() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	c.validateWho(want)
	want(c.Replicas >= 1 && c.Replicas <= 100, "replicas is %d, want 1 to 100", c.Replicas)
	want(c.Accounts >= 1 && c.Accounts <= 10_000_000, "accounts is %d, want 1 to 10,000,000", c.Accounts)
	want(c.Capacity >= 1, "capacity is %d, want at least 1", c.Capacity)
	want(c.Duration >= 100*time.Millisecond, "duration is %v, want at least 100ms", c.Duration)
	want(c.Quiet >= 0, "quiet is %v, want at least 0", c.Quiet)
	want(c.Skew > 1, "skew is %v, want more than 1", c.Skew)
	want(c.Readers >= 1, "readers is %d, want at least 1", c.Readers)
	want(c.Writers >= 1, "writers is %d, want at least 1", c.Writers)
	want(c.ReadRate >= 1, "read rate is %d, want at least 1", c.ReadRate)
	want(c.WriteRate >= 1, "write rate is %d, want at least 1", c.WriteRate)
	want(c.DBLatency >= 0, "database latency is %v, want at least 0", c.DBLatency)
	want(c.TTL > 0, "ttl is %v, want more than 0", c.TTL)
	want(c.RedisTTL >= time.Millisecond, "redis ttl is %v, want at least 1ms", c.RedisTTL)
	want(c.ReadLevel == levelWithin || c.ReadLevel == levelAny, "read level is %q, want %s or %s", c.ReadLevel, levelWithin, levelAny)
	want(c.Bound > 0, "bound is %v, want more than 0", c.Bound)
	for _, p := range []struct {
		name  string
		value float64
	}{
		{"delay", c.Weather.Delay},
		{"reorder", c.Weather.Reorder},
		{"duplicate", c.Weather.Duplicate},
		{"drop", c.Weather.Drop},
	} {
		want(p.value >= 0 && p.value <= 1, "%s is %v, want a share between 0 and 1", p.name, p.value)
	}
	want(c.DatabaseOutage >= 0 && c.DatabaseOutage <= c.Duration/2, "database outage is %v, want at most half of the duration, which is %v",
		c.DatabaseOutage, c.Duration)
	want(c.Weather.DelayMax >= 0, "longest delay is %v, want at least 0", c.Weather.DelayMax)
	for _, f := range []struct {
		name  string
		count int
		each  time.Duration
	}{
		{"cut", c.Cuts, c.CutFor},
		{"freeze", c.Freezes, c.FreezeFor},
		{"stall", c.Stalls, c.StallFor},
		{"kill", c.Kills, 1},
		{"reconcile", c.Reconcile, 1},
	} {
		want(f.count >= 0, "%s is %d, want at least 0", f.name, f.count)
		want(f.count == 0 || f.each > 0, "%s lasts %v, want more than 0", f.name, f.each)
	}
	return errors.Join(errs...)
}

// validateWho is the part of Validate about who competes, and on which servers.
func (c Config) validateWho(want func(ok bool, format string, args ...any)) {
	want(len(c.Contenders) > 0, "no contenders")
	for _, name := range c.Contenders {
		who := lookup(name)
		want(who != nil, "unknown contender %q, want some of %s", name, strings.Join(Names(true), ", "))
		want(c.Redis != "" || who == nil || !needsRedis(who), "contender %q needs a Redis, and none is given", name)
	}
	if c.Redis != "" {
		_, err := redisOptions(c.Redis)
		if !isURL(c.Redis) {
			_, _, err = net.SplitHostPort(c.Redis)
		}
		// The error may have a password in it.
		want(err == nil, "Redis is not at host:port or a URL like redis://127.0.0.1:6379/0")
	}
	if c.Store != "" {
		_, err := pgxpool.ParseConfig(c.Store)
		isPostgres := strings.HasPrefix(c.Store, "postgres://") || strings.HasPrefix(c.Store, "postgresql://")
		want(isPostgres && err == nil, "store is no URL like postgres://user@127.0.0.1:5432/postgres")
	}
	for i, name := range c.Contenders {
		want(!slices.Contains(c.Contenders[:i], name), "contender %q is named twice", name)
	}
}

// String describes the storm: the service, and what is done to it.
func (c Config) String() string {
	w := c.Weather
	share := func(p float64) string { return strconv.FormatFloat(100*p, 'g', 3, 64) + "%" }
	database := "the database"
	if c.Store != "" {
		database = "PostgreSQL another"
	}
	outage := ""
	if c.DatabaseOutage > 0 {
		outage = fmt.Sprintf("; the database gone for %v", c.DatabaseOutage)
	}
	return fmt.Sprintf("%d replicas, %s accounts, %s entries a cache, %s %v away, seed %d, %v of load each\n"+
		"messages: %s delayed up to %v, %s overtaken, %s twice, %s dropped\n"+
		"replicas: cut off %d x %v, frozen %d x %v, stalled %d x %v; %d writers killed, %d rows changed by SQL%s",
		c.Replicas, group(uint64(c.Accounts)), group(uint64(c.Capacity)), database, c.DBLatency, c.Seed, c.Duration,
		share(w.Delay), w.DelayMax, share(w.Reorder), share(w.Duplicate), share(w.Drop),
		c.Cuts, c.CutFor, c.Freezes, c.FreezeFor, c.Stalls, c.StallFor, c.Kills, min(c.Reconcile, c.Accounts), outage)
}

// database names the kind of the database of record, without its address, which
// may have a password in it.
func (c Config) database() string {
	if c.Store != "" {
		return "postgres"
	}
	return "sqlite"
}

// isURL reports whether address is one, and not host:port.
func isURL(address string) bool { return strings.Contains(address, "://") }

// MarshalJSON writes durations in milliseconds, and of the addresses only what is
// there.
func (c Config) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return json.Marshal(struct {
		Contenders  []string `json:"contenders"`
		Replicas    int      `json:"replicas"`
		Accounts    int      `json:"accounts"`
		Capacity    int      `json:"capacity"`
		Store       string   `json:"store"` // "sqlite" or "postgres"
		Redis       bool     `json:"redis"`
		Seed        uint64   `json:"seed"`
		DurationMs  float64  `json:"duration_ms"`
		QuietMs     float64  `json:"quiet_ms"`
		Skew        float64  `json:"skew"`
		Readers     int      `json:"readers_per_replica"`
		Writers     int      `json:"writers_per_replica"`
		ReadRate    int      `json:"reads_per_s"`
		WriteRate   int      `json:"writes_per_s"`
		TTLMs       float64  `json:"ttl_ms"`
		RedisTTLMs  float64  `json:"redis_ttl_ms"`
		BoundMs     float64  `json:"bound_ms"`
		DBLatencyMs float64  `json:"db_latency_ms"`
		Delay       float64  `json:"delay"`
		DelayMaxMs  float64  `json:"delay_max_ms"`
		Reorder     float64  `json:"reorder"`
		Duplicate   float64  `json:"duplicate"`
		Drop        float64  `json:"drop"`
		Cuts        int      `json:"cuts"`
		CutForMs    float64  `json:"cut_for_ms"`
		Freezes     int      `json:"freezes"`
		FreezeForMs float64  `json:"freeze_for_ms"`
		Stalls      int      `json:"stalls"`
		StallForMs  float64  `json:"stall_for_ms"`
		Kills       int      `json:"kills"`
		Reconcile   int      `json:"reconcile"`
		OutageMs    float64  `json:"database_outage_ms"`
	}{
		c.Contenders, c.Replicas, c.Accounts, c.Capacity, c.database(), c.Redis != "", c.Seed, ms(c.Duration), ms(c.Quiet), c.Skew,
		c.Readers, c.Writers, c.ReadRate, c.WriteRate, ms(c.TTL), ms(c.RedisTTL), ms(c.Bound), ms(c.DBLatency),
		c.Weather.Delay, ms(c.Weather.DelayMax), c.Weather.Reorder, c.Weather.Duplicate, c.Weather.Drop,
		c.Cuts, ms(c.CutFor), c.Freezes, ms(c.FreezeFor), c.Stalls, ms(c.StallFor), c.Kills, c.Reconcile, ms(c.DatabaseOutage),
	})
}
