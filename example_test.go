package tidemark_test

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/tidemark-go/tidemark"
)

// accounts is a stand-in for the database of record.
type accounts struct {
	mu   sync.Mutex // guards everything below
	rows map[string]account
	ops  map[tidemark.OpID]tidemark.Version
}

type account struct {
	balance int
	version tidemark.Version
	deleted bool
}

func newAccounts() *accounts {
	return &accounts{
		rows: map[string]account{"alice": {balance: 1200, version: 1}},
		ops:  map[tidemark.OpID]tidemark.Version{},
	}
}

func (a *accounts) Load(_ context.Context, key string) (int, tidemark.Version, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.rows[key]
	if !ok || r.deleted {
		return 0, r.version, tidemark.ErrNotFound
	}
	return r.balance, r.version, nil
}

func (a *accounts) CompareAndSet(_ context.Context, key string, base tidemark.Version, balance int, op tidemark.OpID) (tidemark.Version, error) {
	return a.write(key, base, account{balance: balance}, op)
}

func (a *accounts) CompareAndDelete(_ context.Context, key string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return a.write(key, base, account{deleted: true}, op)
}

func (a *accounts) write(key string, base tidemark.Version, next account, op tidemark.OpID) (tidemark.Version, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.rows[key]
	current := have.version
	if have.deleted {
		current = 0
	}
	if current != base {
		return 0, &tidemark.ConflictError{Current: have.version, Absent: current == 0}
	}
	next.version = have.version + 1
	a.rows[key], a.ops[op] = next, next.version
	return next.version, nil
}

func (a *accounts) Outcome(_ context.Context, _ string, op tidemark.OpID) (tidemark.Version, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.ops[op]
	return v, ok, nil
}

// restore puts the database back to where it began.
func (a *accounts) restore() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows = newAccounts().rows
}

// The first thing to do: read through the cache.
func Example() {
	ctx := context.Background()
	cache, err := tidemark.New(tidemark.Options[string, int]{
		MaxCost: 100_000, // entries, as long as Cost is nil
		TTL:     time.Hour,
		Store:   newAccounts(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close(ctx)

	e, err := cache.Load(ctx, "alice") // from the store
	fmt.Println(e.Value, "at version", e.Version, err)

	balance, ok := cache.Get("alice") // from memory: no lock, no allocation
	fmt.Println(balance, ok)

	_, err = cache.Load(ctx, "nobody")
	fmt.Println(errors.Is(err, tidemark.ErrNotFound))
	// Output:
	// 1200 at version 1 <nil>
	// 1200 true
	// true
}

// Update decides on the current state and writes on condition that it still is.
func ExampleCache_Update() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)

	errPoor := errors.New("not enough money")
	buy := func(price int) {
		e, err := cache.Update(ctx, "alice", func(cur tidemark.Entry[int]) (int, error) {
			if cur.Value < price {
				return 0, errPoor
			}
			return cur.Value - price, nil
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Value, "at version", e.Version)
	}
	buy(350)
	buy(900)
	// Output:
	// 850 at version 2
	// not enough money
}

// A decision made on a stale state is refused by the store, as data.
func ExampleCache_CompareAndSet() {
	ctx := context.Background()
	store := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: store})
	defer cache.Close(ctx)

	seen, _ := cache.Load(ctx, "alice")
	store.write("alice", 1, account{balance: 850}, tidemark.OpID{1}) // somebody else was faster

	_, err := cache.CompareAndSet(ctx, "alice", seen.Version, seen.Value-350)
	var conflict *tidemark.ConflictError
	if errors.As(err, &conflict) {
		fmt.Println("the store is at version", conflict.Current)
	}
	// Output: the store is at version 2
}

// Put says what became of the value; nothing older ever comes back.
func ExampleCache_Put() {
	cache, _ := tidemark.New(tidemark.Options[string, int]{})
	defer cache.Close(context.Background())

	fmt.Println(cache.Put("alice", 850, 2))
	fmt.Println(cache.Put("alice", 1200, 1)) // a message that comes late
	fmt.Println(cache.Put("alice", 850, 2))  // or twice
	fmt.Println(cache.Get("alice"))
	// Output:
	// applied
	// stale
	// duplicate
	// 850 true
}

// BeginFill fences a read that the program makes itself.
func ExampleCache_BeginFill() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{})
	defer cache.Close(ctx)

	fill := cache.BeginFill("alice")              // before the source is read
	balance, version := 1200, tidemark.Version(1) // what the source says
	_ = cache.Invalidate(ctx, "alice", 2)         // meanwhile somebody writes

	fmt.Println(fill.Commit(balance, version))
	_, ok := cache.Get("alice")
	fmt.Println(ok)
	// Output:
	// stale
	// false
}

// Invalidate is for changes that did not go through the cache.
func ExampleCache_Invalidate() {
	ctx := context.Background()
	store := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: store})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	store.write("alice", 1, account{balance: 1000}, tidemark.OpID{1}) // a batch job
	_ = cache.Invalidate(ctx, "alice", 2)

	e, _ := cache.Load(ctx, "alice")
	fmt.Println(e.Value, "at version", e.Version)
	// Output: 1000 at version 2
}

// AtLeast is for a caller who knows of a version, from a request header perhaps.
func ExampleCache_Read() {
	ctx := context.Background()
	store := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: store})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	store.write("alice", 1, account{balance: 1000}, tidemark.OpID{1}) // nobody tells the cache

	any, _ := cache.Read(ctx, "alice", tidemark.Any)
	newer, _ := cache.Read(ctx, "alice", tidemark.AtLeast(2))
	_, err := cache.Read(ctx, "alice", tidemark.AtLeast(3))
	fmt.Println(any.Version, newer.Version, errors.Is(err, tidemark.ErrStale))
	// Output: 1 2 true
}

// Delete leaves an absence, with a version of its own: what is older can no
// longer come back.
func ExampleCache_Delete() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)

	e, _ := cache.Load(ctx, "alice")
	gone, err := cache.Delete(ctx, "alice", e.Version)
	fmt.Println("absent:", gone.Absent, "as of version", gone.Version, err)

	fmt.Println(cache.Put("alice", 1200, 1)) // somebody is late
	_, err = cache.Load(ctx, "alice")
	fmt.Println(err)

	again, _ := cache.CompareAndSet(ctx, "alice", 0, 500) // 0: must not exist
	fmt.Println(again.Value, "at version", again.Version)
	// Output:
	// absent: true as of version 2 <nil>
	// stale
	// tidemark: not found
	// 500 at version 3
}

// After a restore from a backup versions start again. One replica is told, and tells
// the others.
func ExampleCache_SetSourceEpoch() {
	ctx := context.Background()
	db := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: db})
	defer cache.Close(ctx)

	e, _ := cache.Update(ctx, "alice", func(cur tidemark.Entry[int]) (int, error) { return cur.Value + 100, nil })
	fmt.Println(e.Value, "at version", e.Version)
	db.restore()
	fmt.Println(cache.SetSourceEpoch(ctx, 1))
	e, _ = cache.Load(ctx, "alice")
	fmt.Println(e.Value, "at version", e.Version)
	// Output:
	// 1300 at version 2
	// <nil>
	// 1200 at version 1
}

// After a change of many rows it is cheaper to throw everything away than to name
// each key.
func ExampleCache_InvalidateAll() {
	ctx := context.Background()
	db := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: db})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	db.write("alice", 1, account{balance: 1300}, tidemark.OpID{1}) // and all the others
	fmt.Println(cache.InvalidateAll(ctx))
	e, _ := cache.Load(ctx, "alice")
	fmt.Println(e.Value, "at version", e.Version)
	// Output:
	// <nil>
	// 1300 at version 2
}

// A paper is the least that a Log can be: messages in one order, in this process.
// tidemark.NATS makes one on JetStream.
type paper struct {
	mu       sync.Mutex // guards everything below
	messages [][]byte
	written  chan struct{} // closed and replaced when one is added
}

func (p *paper) Append(_ context.Context, msg []byte) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages = append(p.messages, append([]byte(nil), msg...))
	close(p.written)
	p.written = make(chan struct{})
	return uint64(len(p.messages)), nil
}

func (p *paper) Open(_ context.Context, from uint64) (tidemark.LogReader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if from == 0 {
		from = uint64(len(p.messages)) + 1
	}
	return &paperReader{p, from}, nil
}

type paperReader struct {
	paper *paper
	next  uint64
}

func (r *paperReader) Next(ctx context.Context) (uint64, []byte, error) {
	for {
		r.paper.mu.Lock()
		written := r.paper.written
		if r.next <= uint64(len(r.paper.messages)) {
			msg := r.paper.messages[r.next-1]
			r.next++
			r.paper.mu.Unlock()
			return r.next - 1, msg, nil
		}
		r.paper.mu.Unlock()
		select {
		case <-written:
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
}

func (*paperReader) Close() error { return nil }

// A strict write is told to the log before it is made: a replica that reads Within a
// bound sees it, or asks the store, whether or not its writer lives to say more.
func ExampleWithin() {
	ctx := context.Background()
	options := tidemark.Options[string, int]{
		Store:       newAccounts(),
		Strict:      true,
		Invalidator: tidemark.Invalidator{Name: "balances", Log: &paper{written: make(chan struct{})}},
	}
	here, _ := tidemark.New(options)
	defer here.Close(ctx)
	there, _ := tidemark.New(options)
	defer there.Close(ctx)
	fmt.Println(here.Ready(ctx), there.Ready(ctx))

	_, _ = there.Load(ctx, "alice")
	_, err := here.Update(ctx, "alice", func(cur tidemark.Entry[int]) (int, error) { return cur.Value - 200, nil })
	fmt.Println(err)
	time.Sleep(time.Second)
	e, err := there.Read(ctx, "alice", tidemark.Within(time.Second)) // from memory if the log shows that it may be
	fmt.Println(e.Value, e.Age <= time.Second, err)
	// Output:
	// <nil> <nil>
	// <nil>
	// 1000 true <nil>
}

// When nobody trusts the cache any more, it steps aside until somebody does.
func ExampleCache_SetBypass() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	cache.SetBypass(true)
	_, ok := cache.Get("alice")
	e, err := cache.Load(ctx, "alice") // from the store
	fmt.Println(ok, e.Value, err)
	cache.SetBypass(false)
	_, err = cache.Load(ctx, "alice") // confirmed once, and served again
	_, ok = cache.Get("alice")
	fmt.Println(ok, err)
	// Output:
	// false 1200 <nil>
	// true <nil>
}

// LoadMany returns what exists; absent keys are missing from the map.
func ExampleCache_LoadMany() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)

	found, err := cache.LoadMany(ctx, []string{"alice", "nobody"})
	fmt.Println(len(found), found["alice"].Value, err)
	// Output: 1 1200 <nil>
}

// Explain answers the question of three in the morning.
func ExampleCache_Explain() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	fmt.Println(cache.Explain("alice"))
	_ = cache.Invalidate(ctx, "alice", 7)
	fmt.Println(cache.Explain("alice"))
	// Output:
	// version 1 by load (window); tide mark 1 by load
	// no entry; tide mark 7 by invalidate
}

// Without any metrics library: all that Stats has, on /debug/vars of every program
// that imports expvar.
func ExampleCache_Stats() {
	ctx := context.Background()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: newAccounts()})
	defer cache.Close(ctx)
	expvar.Publish("tidemark.balances", expvar.Func(func() any { return cache.Stats() }))

	_, _ = cache.Load(ctx, "alice")
	_, _ = cache.Load(ctx, "alice")
	var read struct {
		Hits, Misses, Loads uint64
		State               string
	}
	_ = json.Unmarshal([]byte(expvar.Get("tidemark.balances").String()), &read)
	fmt.Println(read)
	// Output: {1 1 1 alone}
}

// A Logger gets what an operator should know, and no flood of it; OnEvent gets
// everything, for those who count.
func ExampleOptions_logger() {
	ctx := context.Background()
	var log strings.Builder
	events := 0
	cache, _ := tidemark.New(tidemark.Options[string, int]{
		MaxCost: 10,
		Cost:    func(_ string, v int) int64 { return int64(v) },
		Logger:  slog.New(slog.NewTextHandler(&log, nil)).With("cache", "balances"),
		OnEvent: func(tidemark.Event) { events++ },
	})
	for i := range 100 {
		cache.Put("alice", 1200, tidemark.Version(i+1))
	}
	_ = cache.Close(ctx)
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	last := lines[len(lines)-1]
	fmt.Println(events, "events,", len(lines), "records, the last:", last[strings.Index(last, "level="):strings.Index(last, " within=")])
	// Output:
	// 100 events, 11 records, the last: level=WARN msg="tidemark: records left out of the log" cache=balances message="tidemark: a value costs more than MaxCost and is not cached" records=90
}

// An auditor finds what no message tells of: here somebody has changed a row behind
// the cache's back.
func ExampleCache_Audit() {
	ctx := context.Background()
	db := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{
		Store: db,
		Audit: &tidemark.AuditOptions[string, int]{Bound: 10 * time.Millisecond},
	})
	defer cache.Close(ctx)

	_, _ = cache.Load(ctx, "alice")
	db.mu.Lock()
	db.rows["alice"] = account{balance: 0, version: 2}
	db.mu.Unlock()

	report, _ := cache.Audit(ctx) // it does so by itself, too
	fmt.Println("stale:", report.Stale, "repaired:", report.Repaired)
	for _, m := range cache.Mismatches() {
		fmt.Printf("%s: version %d, the source had %d\n", m.Key, m.Version, m.Source)
	}
	e, _ := cache.Load(ctx, "alice")
	fmt.Println(e.Value, e.Version)
	// Output:
	// stale: 1 repaired: 1
	// alice: version 1, the source had 2
	// 0 2
}

// In shadow mode nobody is served from memory, and the cache says what would have
// been.
func ExampleOptions_shadow() {
	ctx := context.Background()
	db := newAccounts()
	cache, _ := tidemark.New(tidemark.Options[string, int]{Store: db, Shadow: true})
	defer cache.Close(ctx)

	for range 3 {
		_, _ = cache.Load(ctx, "alice")
	}
	db.mu.Lock()
	db.rows["alice"] = account{balance: 0, version: 2} // and nobody tells
	db.mu.Unlock()
	e, _ := cache.Load(ctx, "alice")
	s := cache.Stats()
	fmt.Println("balance:", e.Value)
	fmt.Println("memory would have served", s.ShadowHits, "reads, and", s.ShadowOlder, "with an old balance")
	// Output:
	// balance: 0
	// memory would have served 3 reads, and 1 with an old balance
}
