//go:build unix

package outbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

// A process that is a replica reads Within the bound and writes through its cache, and
// says on its standard output what it does, so that the test can judge it, also after
// its death:
//
//	read KEY VERSION BEGAN      it was served this; the beginning in nanoseconds of Unix time
//	begin KEY                   it begins to add 1
//	made KEY VERSION            which was committed,
//	not KEY                     or was not,
//	doubt KEY                   or nobody knows yet
//	entry KEY VALUE VERSION     what it has in memory
//
// Told "stop" on its standard input it does nothing any more, and answers "stopped"; told
// "dump" it waits until it is fresh and says what it has in memory, and then "dumped".

// newStore returns a Store on the table that others write to as well.
func newStore(pool *pgxpool.Pool) (*postgres.Store[string, int64], error) {
	return postgres.New(pool, postgres.Options[string, int64]{Table: raised.Name, Existing: true, HardDelete: true, Timeout: 2 * time.Second})
}

// replicaPart is such a process.
func replicaPart() (run func(), err error) {
	pool, err := pgxpool.New(context.Background(), os.Getenv(urlVariable))
	if err != nil {
		return nil, err
	}
	store, err := newStore(pool)
	if err != nil {
		return nil, err
	}
	prober, err := outbox.NewProber(pool, raised)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect("nats://127.0.0.1:"+os.Getenv(natsVariable), tidemark.NATSConnectOptions()...)
	if err != nil {
		return nil, err
	}
	inv := onStream(nc)
	inv.Prober = prober
	c, err := tidemark.New(tidemark.Options[string, int64]{
		MaxCost: 2 * stormKeys, Store: store, LoadTimeout: 10 * time.Second, DoubtTimeout: 3 * time.Second, Invalidator: inv,
	})
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Ready(ready); err != nil {
		return nil, err
	}
	r := &stormReplica{c: c}
	return func() {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		var work sync.WaitGroup
		work.Go(func() { r.reads(ctx) })
		work.Go(func() { r.writes(ctx) })
		for words := bufio.NewScanner(os.Stdin); words.Scan(); {
			switch words.Text() {
			case "stop":
				stop()
				work.Wait()
				r.say("stopped")
			case "dump":
				r.dump()
			}
		}
		stop()
		_ = c.Close(context.Background())
	}, nil
}

// A stormReplica is the cache of such a process.
type stormReplica struct {
	c  *tidemark.Cache[string, int64]
	mu sync.Mutex // guards standard output
}

// say writes one line, at once and whole.
func (r *stormReplica) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = os.Stdout.WriteString(fmt.Sprintf(format, args...) + "\n")
}

func (r *stormReplica) reads(ctx context.Context) {
	for ctx.Err() == nil {
		k, began := rand.IntN(stormKeys), time.Now()
		e, err := r.c.Read(ctx, fmt.Sprintf("k%d", k), tidemark.Within(bound))
		if err == nil {
			r.say("read %d %d %d", k, e.Version, began.UnixNano())
		}
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

func (r *stormReplica) writes(ctx context.Context) {
	for ctx.Err() == nil {
		k := rand.IntN(stormKeys)
		r.say("begin %d", k)
		e, err := r.c.Update(ctx, fmt.Sprintf("k%d", k), func(e tidemark.Entry[int64]) (int64, error) { return e.Value + 1, nil })
		switch {
		case err == nil, errors.Is(err, tidemark.ErrNotBroadcast) && !errors.As(err, new(*tidemark.UncertainError)):
			r.say("made %d %d", k, e.Version)
		case errors.As(err, new(*tidemark.UncertainError)):
			r.say("doubt %d", k)
		default:
			r.say("not %d", k)
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(rand.N(10 * time.Millisecond))
	}
}

func (r *stormReplica) dump() {
	began := time.Now()
	for deadline := began.Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if fresh := r.c.Stats().Fresh; fresh >= 0 && fresh < time.Since(began) {
			for key := range r.c.All() {
				if e, ok := r.c.GetEntry(key); ok {
					r.say("entry %s %d %d", strings.TrimPrefix(key, "k"), e.Value, e.Version)
				}
			}
			r.say("dumped")
			return
		}
	}
}

// An audience judges what processes that are replicas say.
type audience struct {
	s *storm

	mu      sync.Mutex // guards everything below
	entries map[int][][2]int64

	reads, writes, doubts int
}

// startReplica starts a process that is a replica, and hears it until it is gone.
func (s *storm) startReplica() *child {
	c := s.start("replica")
	c.words, c.gone = make(chan string, 4), make(chan struct{})
	go s.audience.hear(c)
	return c
}

// hear judges what c says, until it says no more.
func (a *audience) hear(c *child) {
	defer close(c.gone)
	writing := -1 // the key of the write that has begun
	for {
		line, err := c.out.ReadString('\n')
		if err != nil { // killed, maybe in the middle of a line
			break
		}
		var k int
		var x, y int64
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, _ = fmt.Sscan(rest, &k, &x, &y)
		switch word {
		case "read":
			a.read(k, tidemark.Version(x), time.Unix(0, y))
		case "begin":
			writing = k
		case "made":
			a.s.acked[k].Add(1)
			a.s.lines[k].add(tidemark.Version(x))
			a.count(&a.writes)
			writing = -1
		case "not":
			writing = -1
		case "doubt":
			a.doubt(k)
			writing = -1
		case "entry":
			a.mu.Lock()
			a.entries[k] = append(a.entries[k], [2]int64{x, y})
			a.mu.Unlock()
		default:
			c.words <- word
		}
	}
	if writing >= 0 {
		a.doubt(writing)
	}
}

func (a *audience) read(k int, v tidemark.Version, began time.Time) {
	a.count(&a.reads)
	if want := a.s.lines[k].newest(began.Add(-bound)); v < want {
		a.s.late.Add(1)
		a.s.t.Errorf("k%d: a process was served version %d, but %d was committed before", k, v, want)
	}
}

func (a *audience) doubt(k int) {
	a.s.doubt[k].Add(1)
	a.count(&a.doubts)
}

func (a *audience) count(n *int) {
	a.mu.Lock()
	*n++
	a.mu.Unlock()
}

// tell says a word to the process and waits for its answer.
func (c *child) tell(t *testing.T, word, answer string) {
	t.Helper()
	_, err := fmt.Fprintln(c.word, word)
	require.NoError(t, err)
	select {
	case got := <-c.words:
		require.Equal(t, answer, got)
	case <-c.gone:
		require.Fail(t, "the replica is gone")
	case <-time.After(2 * patience):
		require.Fail(t, "the replica does not answer", word)
	}
}

// rest lets the processes come to rest, and returns how many of their entries are not
// what the database has, of how many.
func (a *audience) rest(d *database, all []*child) (bad, held int) {
	t := a.s.t
	for _, c := range all {
		c.tell(t, "stop", "stopped")
	}
	eventually(t, patience, func() bool { return d.waitsForChanges() == 0 }, "the outbox is not emptied")
	for _, c := range all {
		c.tell(t, "dump", "dumped")
		assert.NoError(t, c.word.Close())
		<-c.gone
		assert.NoError(t, c.cmd.Wait(), "it ends when nobody needs it any more")
	}
	for k, each := range a.entries {
		var value, version int64
		require.NoError(t, d.QueryRow(t.Context(), `SELECT value, version FROM accounts WHERE key = $1`, fmt.Sprintf("k%d", k)).Scan(&value, &version))
		for _, e := range each {
			held++
			if e != [2]int64{value, version} {
				bad++
			}
		}
	}
	return bad, held
}
