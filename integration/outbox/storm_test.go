//go:build unix

package outbox

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

var (
	bulkRows  = flag.Int("outbox.rows", 20_000, "rows that one statement changes in TestBulk_OneStatement")
	stormTime = flag.Duration("outbox.storm", 6*time.Second, "how long TestStorm_NothingIsLost lasts")
)

// bound is what reads ask for.
const bound = time.Second

// TestBulk_OneStatement changes every row by one statement, while four replicas
// that hold all of them serve reads Within a second: no read is older than that,
// and afterwards no entry is wrong.
func TestBulk_OneStatement(t *testing.T) {
	t.Run("row by row", func(t *testing.T) { testBulk(t, *bulkRows, 1<<30) })
	t.Run("as everything", func(t *testing.T) { testBulk(t, *bulkRows/4, 1000) })
}

func testBulk(t *testing.T, rows, bulk int) {
	table := raised
	table.Bulk = bulk
	w := newWorld(t, rows, 1, table)
	all := w.replicas(4, int64(rows)+100_000)
	settled(t, all)
	fill(t, all, rows)
	settled(t, all)
	small := w.relay[0].memory(t)

	var committed atomic.Int64 // when, in nanoseconds; 0: not yet
	var reads, late atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			for ctx.Err() == nil {
				at, began := committed.Load(), time.Now()
				e, err := c.Read(ctx, fmt.Sprintf("k%d", rand.IntN(rows)), tidemark.Within(bound))
				if ctx.Err() != nil || !assert.NoError(t, err) {
					return
				}
				if at != 0 && began.Sub(time.Unix(0, at)) > bound && e.Version < 2 {
					late.Add(1)
				}
				if reads.Add(1)%16 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	d := openDatabase(t, w.pg.URL)
	began := time.Now()
	d.exec(`UPDATE accounts SET value = value + 1`)
	committed.Store(time.Now().UnixNano())
	statement := time.Since(began)
	eventually(t, 5*time.Minute, func() bool { return d.waitsForChanges() == 0 }, "it is not told")
	told := time.Since(began) - statement
	settled(t, all)
	heard := time.Since(began) - statement
	time.Sleep(bound + 200*time.Millisecond) // for reads that could be late
	stop()
	wg.Wait()
	hits, applies := uint64(0), uint64(0)
	for _, c := range all {
		hits += c.Stats().Hits
		applies += c.Stats().Applies
	}
	settled(t, all)
	bad, held := wrong(t, d, all)
	t.Logf("%d rows: UPDATE %v; from its commit until all was told %v, and heard by all %v; %d reads (%d hits), %d late; "+
		"%d keys applied; %d entries, %d wrong; memory of the relay %d MiB before, %d MiB at most",
		rows, statement, told, heard, reads.Load(), hits, late.Load(), applies, held, bad, small>>20, w.relay[0].memory(t)>>20)
	assert.Zero(t, late.Load(), "reads beyond the bound")
	assert.Zero(t, bad, "wrong entries at rest")
	assert.Positive(t, reads.Load())
	assert.Positive(t, hits)
	if bulk > rows {
		assert.GreaterOrEqual(t, applies, uint64(4*rows))
	} else {
		assert.Zero(t, applies)
	}
}

// waitsForChanges returns how many rows of the outbox are no probes, or 1.
func (d *database) waitsForChanges() int64 {
	return scalar[int64](d, `SELECT count(*) FROM (SELECT FROM accounts_outbox WHERE origin IS NULL LIMIT 1) r`)
}

// A timeline knows which version of a key was committed when.
type timeline struct {
	mu   sync.Mutex // guards everything below
	acks []acknowledgement
}

type acknowledgement struct {
	at      time.Time
	version tidemark.Version
}

func (l *timeline) add(v tidemark.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now()
	if n := len(l.acks); n > 0 && l.acks[n-1].version >= v {
		return // another writer was quicker to say so
	}
	l.acks = append(l.acks, acknowledgement{at, v})
}

// newest returns the newest version that was committed before at.
func (l *timeline) newest(at time.Time) tidemark.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.acks), func(i int) bool { return !l.acks[i].at.Before(at) })
	if i == 0 {
		return 0
	}
	return l.acks[i-1].version
}

const stormKeys = 400

// A storm is writers and readers in a world in which things die.
type storm struct {
	*world
	ctx   context.Context
	lines [stormKeys]timeline
	acked [stormKeys]atomic.Int64 // increments that were confirmed
	doubt [stormKeys]atomic.Int64 // and those of which nobody knows

	reads, failed, late, writes, kills, deaths atomic.Int64

	audience audience
}

// write changes one key, or many by one statement, by plain SQL.
func (s *storm) write(conn *pgx.Conn) error {
	from, n := rand.IntN(stormKeys), 1
	if rand.IntN(20) == 0 {
		n = 1 + rand.IntN(stormKeys/2)
	}
	var keys []string
	for i := range n {
		keys = append(keys, fmt.Sprintf("k%d", (from+i)%stormKeys))
	}
	tx, err := conn.Begin(s.ctx)
	if err != nil {
		return err
	}
	// In one order, or writers would wait for each other in a circle.
	rows, err := tx.Query(s.ctx, `WITH l AS (SELECT key FROM accounts WHERE key = ANY($1) ORDER BY key FOR UPDATE)
		UPDATE accounts a SET value = value + 1 FROM l WHERE a.key = l.key RETURNING a.key, a.version`, keys)
	if err != nil {
		return err
	}
	versions := map[int]tidemark.Version{}
	for rows.Next() {
		var key string
		var v tidemark.Version
		if err := rows.Scan(&key, &v); err != nil {
			return err
		}
		var k int
		if _, err := fmt.Sscanf(key, "k%d", &k); err != nil {
			return err
		}
		versions[k] = v
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if rand.IntN(10) == 0 {
		time.Sleep(rand.N(30 * time.Millisecond)) // others commit meanwhile
	}
	if err := tx.Commit(s.ctx); err != nil {
		for k := range versions {
			s.doubt[k].Add(1)
		}
		return err
	}
	for k, v := range versions {
		s.acked[k].Add(1)
		s.lines[k].add(v)
	}
	s.writes.Add(1)
	return nil
}

// writer writes until the storm is over, and connects again after each failure.
func (s *storm) writer() {
	for s.ctx.Err() == nil {
		conn, err := pgx.Connect(s.ctx, s.pg.URL)
		for err == nil && s.ctx.Err() == nil {
			err = s.write(conn)
			time.Sleep(rand.N(4 * time.Millisecond))
		}
		if conn != nil {
			_ = conn.Close(context.Background())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// reader reads within the bound, and judges what it gets.
func (s *storm) reader(c *tidemark.Cache[string, int64]) {
	for s.ctx.Err() == nil {
		k := rand.IntN(stormKeys)
		began := time.Now()
		e, err := c.Read(s.ctx, fmt.Sprintf("k%d", k), tidemark.Within(bound))
		switch {
		case err != nil:
			s.failed.Add(1) // the database is down
			time.Sleep(5 * time.Millisecond)
		default:
			s.reads.Add(1)
			if want := s.lines[k].newest(began.Add(-bound)); e.Version < want {
				s.late.Add(1)
				s.t.Errorf("k%d: version %d of age %v, but %d was committed before", k, e.Version, e.Age, want)
				return
			}
		}
		time.Sleep(rand.N(time.Millisecond))
	}
}

// strike kills something, or stops it for a while, and has it start again.
func (s *storm) strike() {
	s.kills.Add(1)
	pause := func() { time.Sleep(rand.N(400 * time.Millisecond)) }
	switch i := rand.IntN(len(s.relay)); rand.IntN(7) {
	case 0:
		assert.NoError(s.t, s.pg.Kill())
		pause()
		assert.NoError(s.t, s.pg.Restart())
	case 1:
		s.nats.kill()
		pause()
		s.startNATS()
	case 2:
		s.relay[i].signal(s.t, syscall.SIGSTOP)
		time.Sleep(rand.N(2 * time.Second))
		s.relay[i].signal(s.t, syscall.SIGCONT)
	case 3, 4:
		i := rand.IntN(len(s.replicaProcesses))
		s.replicaProcesses[i].kill()
		s.deaths.Add(1)
		pause()
		s.replicaProcesses[i] = s.startReplica()
	default:
		s.relay[i].kill()
		pause()
		s.relay[i] = s.start("relay")
	}
}

// TestStorm_NothingIsLost kills relays, PostgreSQL, the nats-server and replicas, without
// warning and in the middle of whatever they do, and stops relays for longer than
// their lease: no read Within a second misses what was committed a second before it
// began, by writers that know of no cache or through one, and afterwards no entry is
// wrong.
func TestStorm_NothingIsLost(t *testing.T) {
	s := &storm{world: newWorld(t, stormKeys, 2, raised)}
	s.audience = audience{s: s, entries: map[int][][2]int64{}}
	pool, err := pgxpool.New(t.Context(), s.pg.URL)
	require.NoError(t, err)
	store, err := newStore(pool)
	require.NoError(t, err)
	require.NoError(t, store.CreateTables(t.Context()))
	pool.Close()
	all := s.replicas(3, stormKeys*2)
	settled(t, all)
	for range 2 {
		s.replicaProcesses = append(s.replicaProcesses, s.startReplica())
	}
	ctx, stop := context.WithTimeout(t.Context(), *stormTime)
	defer stop()
	s.ctx = ctx
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(s.writer)
	}
	for _, c := range all {
		wg.Go(func() { s.reader(c) })
	}
	for ctx.Err() == nil {
		time.Sleep(rand.N(600 * time.Millisecond))
		s.strike()
	}
	wg.Wait()

	d := openDatabase(t, s.pg.URL)
	badThere, heldThere := s.audience.rest(d, s.replicaProcesses)
	settled(t, all)
	eventually(t, patience, func() bool { return d.waitsForChanges() == 0 }, "the outbox is not emptied")
	fill(t, all, stormKeys)
	bad, held := wrong(t, d, all)
	lost := 0
	for k := range stormKeys {
		value := scalar[int64](d, `SELECT value FROM accounts WHERE key = $1`, fmt.Sprintf("k%d", k))
		if value < s.acked[k].Load() || value > s.acked[k].Load()+s.doubt[k].Load() {
			lost++
		}
	}
	var hits, suspicions uint64
	for _, c := range all {
		hits += c.Stats().Hits
		suspicions += c.Stats().Suspicions
	}
	t.Logf("%v: %d kills; %d writes, %d keys with lost updates; %d reads within %v (%d hits), %d late, %d failed; %d suspicions; %d entries, %d wrong",
		*stormTime, s.kills.Load(), s.writes.Load(), lost, s.reads.Load(), bound, hits, s.late.Load(), s.failed.Load(), suspicions, held, bad)
	a := &s.audience
	t.Logf("replicas that are processes: %d of the kills; %d writes, %d in doubt; %d reads; %d entries, %d wrong",
		s.deaths.Load(), a.writes, a.doubts, a.reads, heldThere, badThere)
	assert.Zero(t, bad+badThere, "wrong entries at rest")
	assert.Positive(t, heldThere)
	assert.Positive(t, a.writes)
	assert.Zero(t, lost, "lost updates")
	assert.Zero(t, s.late.Load())
	assert.Positive(t, hits)
	assert.Positive(t, held)
}

// TestStorm_ARelayThatIsStopped: a process that is stopped keeps its connection, but
// not its lease.
func TestStorm_ARelayThatIsStopped(t *testing.T) {
	w := newWorld(t, 10, 2, raised)
	c := w.replicas(1, 100)[0]
	d := openDatabase(t, w.pg.URL)
	heard := func(why string) {
		applies := c.Stats().Applies
		d.exec(`UPDATE accounts SET value = value + 1 WHERE key = 'k1'`)
		eventually(t, patience, func() bool { return c.Stats().Applies > applies }, why)
	}
	heard("at first")
	for i, r := range w.relay { // one of them works
		r.signal(t, syscall.SIGSTOP)
		heard(fmt.Sprintf("relay %d is stopped", i))
		r.signal(t, syscall.SIGCONT)
		heard(fmt.Sprintf("relay %d goes on", i))
	}
}
