package tidemark

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// The tests of this file have somebody on the subject who hears everything and says
// what he likes. docs/security.md says what he can do, and what he cannot.

// A hostile client overhears messages and makes up others.
type hostile struct {
	rng  *rand.Rand
	id   uint64
	keys []string

	// epochs lets it say that the source has gone back, which replicas believe.
	epochs bool

	mu    sync.Mutex // guards everything below
	heard [][]byte   // the latest
	next  int        // of heard to be replaced
}

func (h *hostile) overhear(msg []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.heard) < 100 {
		h.heard = append(h.heard, nil)
	}
	h.heard[h.next%len(h.heard)] = bytes.Clone(msg)
	h.next++
}

// remembered returns something that was heard, or noise.
func (h *hostile) remembered() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.heard) == 0 {
		return []byte("hello?")
	}
	return bytes.Clone(pick(h.rng, h.heard...))
}

// pick returns one of what there is to choose from.
func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// message returns what the client says next.
func (h *hostile) message() []byte {
	old := h.remembered()
	switch h.rng.IntN(8) {
	case 0: // noise
		noise := make([]byte, h.rng.IntN(200))
		for i := range noise {
			noise[i] = byte(h.rng.Uint32())
		}
		return noise
	case 1: // something it has heard, again
		return old
	case 2, 3: // the same, somewhat changed, with a checksum that is good or not
		if len(old) < 40 {
			return old
		}
		change := func(b []byte) {
			for range 1 + h.rng.IntN(3) {
				i := 3 + h.rng.IntN(len(b)-7)
				if i < 14 || i > 17 || h.epochs {
					b[i] ^= byte(1 + h.rng.IntN(255))
				}
			}
		}
		if h.rng.IntN(4) == 0 {
			change(old)
			return old
		}
		return reseal(old, change)
	}
	return h.forged(old)
}

// forged returns a message in the name of who said old.
func (h *hostile) forged(old []byte) []byte {
	var was, m wire.Message
	if wire.Decode(old, &was) != nil {
		return old
	}
	rng := h.rng
	m.CacheID, m.Epoch, m.Origin = h.id, was.Epoch, pick(rng, was.Origin, was.Origin, rng.Uint64())
	m.Seq = was.Seq + pick(rng, 0, 1, 1, 2, 10, 1<<40, math.MaxUint64-was.Seq)
	if h.epochs && rng.IntN(20) == 0 {
		m.Epoch = pick(rng, m.Epoch+1, m.Epoch+1000, math.MaxUint32)
	}
	m.Kind = pick(rng, wire.KindHello, wire.KindHello, wire.KindInvalidate, wire.KindInvalidate, wire.KindInvalidateAll, wire.KindProbe)
	nonce := func() uint64 {
		return pick(rng, was.Nonce, was.Nonce+1, was.Nonce+uint64(rng.IntN(40))<<28, rng.Uint64(), 0, math.MaxUint64-1, math.MaxUint64)
	}
	switch m.Kind {
	case wire.KindHello:
		m.Nonce = nonce()
	case wire.KindProbe:
		m.Probes = []wire.Probe{{Origin: was.Origin, Nonce: nonce()}, {Origin: rng.Uint64(), Nonce: nonce()}}
	case wire.KindInvalidate:
		m.Entries = h.entries(was.Entries)
	}
	b, err := wire.Append(nil, &m)
	if err != nil {
		return old
	}
	return b
}

func (h *hostile) entries(was []wire.Entry) (all []wire.Entry) {
	rng := h.rng
	for range 1 + rng.IntN(3) {
		e := wire.Entry{
			Key:     []byte(pick(rng, h.keys...)),
			Version: pick(rng, 0, 1, 2, uint64(rng.IntN(100)), math.MaxUint64-1, math.MaxUint64), Deleted: rng.IntN(4) == 0,
		}
		if e.Stage = wire.Stage(rng.IntN(8)); e.Stage > wire.Void {
			e.Stage = 0
		}
		if e.Stage != 0 {
			binary.LittleEndian.PutUint64(e.Op[:], rng.Uint64())
			if len(was) > 0 {
				e.Op = was[0].Op
			}
		}
		if e.Stage == wire.Begun || e.Stage == wire.Void {
			e.Version, e.Deleted = 0, false
		}
		if e.Stage == wire.Begun {
			e.TTL = pick[uint32](rng, 1, 1000, math.MaxUint32)
		}
		all = append(all, e)
	}
	return all
}

// A judge knows all that the source has ever held, and what each replica has served.
type judge struct {
	t      *testing.T
	s      *source
	served map[*Cache[string, int]]map[string]Version
}

// judge demands that c has served a state that the source held, and none older than
// what it had served before.
func (j *judge) judge(c *Cache[string, int], key string, e Entry[int]) {
	j.t.Helper()
	got := row{e.Value, e.Version, e.Absent}
	if e.Version == 0 && e.Absent {
		require.Empty(j.t, j.history(key), "absent, which it never was")
		return
	}
	require.Contains(j.t, j.history(key), got, "the source never held that for %q", key)
	if j.served[c] == nil {
		j.served[c] = map[string]Version{}
	}
	require.GreaterOrEqual(j.t, e.Version, j.served[c][key], "%q goes back", key)
	j.served[c][key] = e.Version
}

func (j *judge) history(key string) []row {
	j.s.mu.Lock()
	defer j.s.mu.Unlock()
	return j.s.history[key]
}

// step does at random what programs do with a cache.
func (j *judge) step(rng *rand.Rand, c *Cache[string, int], key string) {
	j.t.Helper()
	ctx := j.t.Context()
	switch rng.IntN(10) {
	case 0, 1:
		e, err := c.Update(ctx, key, func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.NoError(j.t, err)
		j.judge(c, key, e)
	case 2:
		all := j.history(key)
		old := pick(rng, all...)
		if !old.absent {
			c.Put(key, old.value, old.version)
		}
	case 3, 4:
		level := pick(rng, Any, AtLeast(j.served[c][key]), Within(time.Second), Linearizable)
		e, err := c.Read(ctx, key, level)
		require.NoError(j.t, err)
		j.judge(c, key, e)
	case 5:
		all, err := c.LoadMany(ctx, []string{"a", "b", "c"})
		require.NoError(j.t, err)
		for k, e := range all {
			j.judge(c, k, e)
		}
	default:
		if e, ok := c.GetEntry(key); ok {
			j.judge(c, key, e)
		}
	}
}

// Whatever is said on the subject, by whomever: no read returns what the source did
// not hold, nor goes back; and when it ends the replicas work as before.
func TestHostile_NoReadIsWrong(t *testing.T) {
	for seed := range uint64(hostileSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				s, b, log := newSource(), newBus(), newMemLog()
				for _, key := range []string{"a", "b", "c"} {
					s.set(key, 1)
				}
				inv := b.invalidator()
				say := func(msg []byte) { require.NoError(t, b.Publish(t.Context(), msg)) }
				if seed%2 == 1 {
					log.beat = time.Second
					inv = log.invalidator()
					inv.Hint = b
					say = func(msg []byte) {
						_, err := log.Append(t.Context(), msg)
						require.NoError(t, err)
					}
				}
				h := &hostile{rng: rng, id: inv.cacheID(), keys: []string{"a", "b", "c", "other"}, epochs: seed%4 > 1}
				tap, err := b.Subscribe(h.overhear, func(string) {})
				require.NoError(t, err)
				var all []*Cache[string, int]
				for range 2 {
					c := newCache(t, Options[string, int]{Store: s, Invalidator: inv, MaxCost: small, Shards: 2})
					require.NoError(t, c.Ready(t.Context()))
					all = append(all, c)
				}
				j := &judge{t: t, s: s, served: map[*Cache[string, int]]map[string]Version{}}
				for range 400 {
					j.step(rng, pick(rng, all...), pick(rng, "a", "b", "c"))
					for range rng.IntN(3) {
						say(h.message())
					}
					time.Sleep(time.Duration(rng.IntN(int(testBeat / 2))))
				}
				tap()
				if time.Sleep(10 * testBeat); inv.Log != nil {
					time.Sleep(2*maxStrictDoubt + 10*time.Second) // what was announced can no longer take effect
				}
				settled(t, s, all...)
				for _, c := range all {
					for _, key := range []string{"a", "b", "c"} {
						hold(t, c, key)
					}
				}
			})
		})
	}
}

// Somebody says hello in the name of a replica: it neither believes that it hears, nor
// takes its own hellos for old ones.
func TestHostile_HellosInTheNameOfThisReplica(t *testing.T) {
	for _, name := range []string{"hint", "log"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, log, s := newBus(), newMemLog(), newSource()
				inv := b.invalidator()
				if name == "log" {
					inv = log.invalidator()
				}
				s.set("k", 1)
				c, l := listener(t, s, inv)
				require.NoError(t, c.Ready(t.Context()))
				own := c.replica.out.origin
				c.replica.mu.Lock()
				latest := c.replica.probes.Latest()
				c.replica.mu.Unlock()
				forged := []uint64{1, latest + 1, (latest + 1) << 28, (latest + 9) << 28, 1 << 63, math.MaxUint64 - 1, math.MaxUint64}
				for _, nonce := range forged {
					msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: inv.cacheID(), Origin: own, Seq: 1, Nonce: nonce})
					require.NoError(t, err)
					if inv.Log != nil {
						_, err = log.Append(t.Context(), msg)
					} else {
						err = b.Publish(t.Context(), msg)
					}
					require.NoError(t, err)
				}
				time.Sleep(10 * testBeat)
				assert.EqualValues(t, len(forged), c.Stats().Bad)
				assert.Len(t, l.of(EventBadMessage), len(forged))
				assert.False(t, c.Stats().CutOff, "its own hellos count")
				hold(t, c, "k")
				settled(t, s, c)
			})
		})
	}
}

// Somebody appends hellos, or answers to probes, in the name of a replica that lags,
// before it sends them. What it concludes from them must not be more than it has read.
func TestHostile_AProbeSentAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 200 * time.Millisecond
		s, log := newSource(), newMemLog()
		s.set("k", 0)
		r := followers(t, 2, s, log, Options[string, int]{})
		acknowledged := &boundOracle{bound: bound}
		acknowledged.counts(1)
		hold(t, r[1], "k")
		inv := log.invalidator()
		for range 100 {
			log.setDelay(2 * bound)
			own := r[1].replica.out.origin
			r[1].replica.mu.Lock()
			latest := r[1].replica.probes.Latest()
			r[1].replica.mu.Unlock()
			for i := range uint64(3) { // one wrong guess makes the others worthless
				number := latest + 1 + 10*i
				for _, nonce := range []uint64{number, number << 28} {
					msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: inv.cacheID(), Origin: own, Seq: 1, Nonce: nonce})
					require.NoError(t, err)
					_, err = log.Append(t.Context(), msg)
					require.NoError(t, err)
				}
			}
			time.Sleep(5 * testBeat) // what is written now is read that much later than those
			e, err := r[0].Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
			require.NoError(t, err)
			acknowledged.counts(e.Version)
			for range 40 {
				time.Sleep(testBeat)
				acknowledged.read(t, r[1])
			}
			log.setDelay(0)
			time.Sleep(5 * testBeat)
			acknowledged.read(t, r[1])
		}
		assert.Greater(t, acknowledged.bounded.Load(), int64(50), "the bound was tried")
	})
}

// The relay is dead. Somebody else brings back the probes of a replica, which it
// cannot know: they prove nothing, and neither do those that are under way.
func TestHostile_AnswersThatTheSourceHasNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, p := newMemLog(), &prober{}
		c, relay := probed(t, newSource(), log, p)
		time.Sleep(3 * testBeat)
		require.NoError(t, relay.Answer(p.take()...))
		time.Sleep(testBeat)
		require.GreaterOrEqual(t, c.Stats().Fresh, time.Duration(0))
		dead := time.Now()
		var sent []Probe
		for range 20 {
			sent = append(sent, p.take()...)
			c.replica.mu.Lock()
			latest, hello := c.replica.asked.Latest(), c.replica.probes.Latest()
			c.replica.mu.Unlock()
			for _, nonce := range []uint64{latest, latest + 1, latest << 28, (latest - 1) << 28, c.replica.seal.Nonce(hello), math.MaxUint64} {
				require.NoError(t, relay.Answer(Probe{Origin: c.replica.out.origin, Nonce: nonce}))
				time.Sleep(testBeat / 4)
			}
		}
		assert.GreaterOrEqual(t, c.Stats().Fresh, time.Since(dead))
		assert.Positive(t, c.Stats().Bad)
		require.NotEmpty(t, sent)
		require.NoError(t, relay.Answer(sent[len(sent)-1]))
		time.Sleep(testBeat / 4)
		assert.GreaterOrEqual(t, c.Stats().Fresh, time.Since(dead), "it was under way when somebody guessed")
		time.Sleep(2 * testBeat)
		require.NoError(t, relay.Answer(p.take()...))
		time.Sleep(testBeat)
		assert.Less(t, c.Stats().Fresh, 10*testBeat, "the relay is back")
	})
}

// Somebody says a high number in the name of another. Until that one has said hello
// three times nobody can know; then what got lost meanwhile is suspected, and what
// gets lost later is noticed as before.
func TestHostile_NumbersInTheNameOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		s := newStranger(t, b)
		s.speak(5)
		hold(t, c, "k")
		forged := *s
		forged.seq = 1 << 60
		forged.hello()
		requireNotServed(t, c, "k")
		hold(t, c, "k")
		s.next(wire.KindInvalidate) // gets lost
		s.speak(lowerHellos)
		requireNotServed(t, c, "k")
		s.speak(5)
		hold(t, c, "k")
		suspicions := c.Stats().Suspicions
		s.speak(10)
		requireServed(t, c, "k")
		require.Equal(t, suspicions, c.Stats().Suspicions, "it is heard as any other")
		s.next(wire.KindInvalidate) // gets lost
		s.speak(1)
		requireNotServed(t, c, "k")
		require.Zero(t, c.Stats().Silences, "it was never taken for dead")
	})
}

// Old hellos of an origin that come again, each once or in any order, are no reason
// to suspect anything: a transport may do that (S45, S46).
func TestHostile_RepeatedHellosAreHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		s := newStranger(t, b)
		var said [][]byte
		for range 30 {
			m := s.next(wire.KindHello)
			m.Nonce = 1
			said = append(said, s.encode(m))
			s.send(said[len(said)-1])
			if len(said) == 5 {
				hold(t, c, "k")
			}
			time.Sleep(testBeat / 2)
			again := rand.IntN(len(said))
			for range 2 * lowerHellos { // the same one, or earlier and earlier ones
				s.send(said[again])
				again = max(again-rand.IntN(2), 0)
			}
			time.Sleep(testBeat / 2)
		}
		requireServed(t, c, "k")
	})
}

// Somebody says that a key has reached the highest version there is. Loads go on at
// once, or, from a source that lags, after the lag; bare Puts of keys that share its
// slot are refused until the source's epoch is declared anew.
func TestHostile_TheHighestVersion(t *testing.T) {
	for name, class := range map[string]LoaderClass{"Strong": Strong, "Lagging": Lagging(time.Second)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				src.set("k", 1)
				o := Options[string, int]{Store: src, Invalidator: b.invalidator(), LoaderClass: class}
				if class != Strong {
					o.Loader = src
				}
				c := newCache(t, o)
				require.NoError(t, c.Ready(t.Context()))
				time.Sleep(5 * time.Second)
				hold(t, c, "k")
				s := newStranger(t, b)
				s.changed("k", math.MaxUint64, true)
				requireNotServed(t, c, "k")
				if class == Strong {
					hold(t, c, "k")
				}
				time.Sleep(5 * time.Second)
				hold(t, c, "k")
				e, err := c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
				require.NoError(t, err)
				assert.Equal(t, row{2, 2, false}, row{e.Value, e.Version, e.Absent})
				requireServed(t, c, "k")
				s.changed("put", math.MaxUint64, false)
				assert.Equal(t, Stale, c.Put("put", 1, 1<<60))
				hold(t, c, "k")
				require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
				require.NotEqual(t, Stale, c.Put("put", 1, 1))
				e, err = c.Load(t.Context(), "k")
				require.NoError(t, err)
				assert.Equal(t, 2, e.Value)
			})
		})
	}
}

// Somebody declares the last epoch. Everything is thrown away once, and what comes
// after is served as ever; but no restore can be declared any more. Caches of another
// schema never heard of it, which is the cure.
func TestHostile_TheLastEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		hold(t, c, "k")
		s := newStranger(t, b)
		m := s.next(wire.KindHello)
		m.Nonce, m.Epoch = 1, math.MaxUint32
		s.send(s.encode(m))
		requireNotServed(t, c, "k")
		time.Sleep(5 * testBeat)
		hold(t, c, "k")
		require.ErrorAs(t, c.SetSourceEpoch(t.Context(), 5), new(*OptionError))
		late, _ := joined(t, src, b)
		time.Sleep(5 * testBeat)
		assert.EqualValues(t, math.MaxUint32, late.Stats().SourceEpoch, "it hears of it from the others")
		inv := b.invalidator()
		inv.Schema = "2"
		cured, _ := listener(t, src, inv)
		require.NoError(t, cured.Ready(t.Context()))
		time.Sleep(5 * testBeat)
		assert.Zero(t, cured.Stats().SourceEpoch)
		require.NoError(t, cured.SetSourceEpoch(t.Context(), 5))
	})
}

// Somebody announces writes and never says how they end: nobody asks for more than
// an hour, so a key is out of memory for no longer, whatever he says.
func TestHostile_AnIntentLastsAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		log.beat = time.Second
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		hold(t, c, "k")
		inv := log.invalidator()
		w := wire.Entry{Key: []byte("k"), Stage: wire.Begun, Op: [16]byte{1}, TTL: math.MaxUint32}
		msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindInvalidate, CacheID: inv.cacheID(), Origin: 7, Seq: 1, Entries: []wire.Entry{w}})
		require.NoError(t, err)
		_, err = log.Append(t.Context(), msg)
		require.NoError(t, err)
		synctest.Wait()
		requireNotServed(t, c, "k")
		time.Sleep(59 * time.Minute)
		_, err = c.Load(t.Context(), "k")
		require.NoError(t, err)
		requireNotServed(t, c, "k")
		time.Sleep(2 * time.Minute)
		hold(t, c, "k")
	})
}

// Somebody says something under the number of a strict write's intent, which then comes
// as if it was late. The writer dies after its commit: what is served is not within any
// bound of it.
func TestHostile_TheNumberOfAnIntent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		r := strict(t, 2, s, log)
		hold(t, r[1], "k")
		time.Sleep(3 * testBeat)
		_, said, _ := r[0].replica.out.said()
		inv := log.invalidator()
		msg, err := wire.Append(nil, &wire.Message{
			Kind: wire.KindProbe, Flags: wire.FlagIgnorable, CacheID: inv.cacheID(), Origin: r[0].replica.out.origin, Seq: said + 1,
		})
		require.NoError(t, err)
		_, err = log.Append(t.Context(), msg)
		require.NoError(t, err)
		synctest.Wait()
		suspicions := r[1].Stats().Suspicions
		bury := dieAfterCommit(s)
		defer bury()
		go func() { _, _ = r[0].Update(context.Background(), "k", inc) }()
		synctest.Wait()
		require.Equal(t, row{value: 2, version: 2}, s.get("k"), "it is committed")
		committed := time.Now()
		require.Equal(t, suspicions, r[1].Stats().Suspicions, "nobody could notice")
		for range 100 {
			time.Sleep(testBeat)
			if e, ok := r[1].GetEntry("k"); ok && e.Version < 2 {
				require.GreaterOrEqual(t, e.Age, time.Since(committed))
			}
		}
		e, err := r[1].Read(t.Context(), "k", Within(time.Second))
		require.NoError(t, err)
		assert.Equal(t, 2, e.Value)
	})
}

// More origins than are remembered, with hellos, changes and intents: memory stays
// bounded.
func TestHostile_AFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		s.set("k", 1)
		c := followers(t, 1, s, log, Options[string, int]{})[0]
		inv := log.invalidator()
		e := &ear{name: "log", log: true, origins: map[uint64]*voice{}} // the replica's own is its reader's
		long := bytes.Repeat([]byte("k"), 200<<10)
		for i := range uint64(2 * maxOrigins) {
			m := &wire.Message{Kind: wire.KindHello, CacheID: inv.cacheID(), Origin: i + 1, Seq: 1, Nonce: 1}
			if i%8 == 0 {
				binary.LittleEndian.PutUint64(long, i)
				e := wire.Entry{Key: long, Stage: wire.Begun, TTL: math.MaxUint32}
				binary.LittleEndian.PutUint64(e.Op[:], i+1)
				m.Kind, m.Nonce, m.Entries = wire.KindInvalidate, 0, []wire.Entry{e}
			}
			msg, err := wire.Append(nil, m)
			require.NoError(t, err)
			c.replica.receive(e, msg)
		}
		c.replica.mu.Lock()
		origins, intents := len(e.origins), c.replica.intents.Len()
		c.replica.mu.Unlock()
		assert.LessOrEqual(t, origins, maxOrigins)
		assert.LessOrEqual(t, intents*len(long), 64<<20, "bytes of keys")
		require.NoError(t, c.check())
		got, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, 1, got.Value)
	})
}

// FuzzReceive gives a replica whatever it likes, as it is and with what a hostile
// sender would mend.
func FuzzReceive(f *testing.F) {
	s := newSource()
	s.set("k", 1)
	log := newMemLog()
	log.beat = time.Hour
	c, err := New(Options[string, int]{Store: s, Invalidator: log.invalidator(), MaxCost: small, Shards: 1})
	require.NoError(f, err)
	f.Cleanup(func() { _ = c.Close(context.Background()) })
	require.NoError(f, c.Ready(context.Background()))
	op := [16]byte{1}
	for _, m := range []wire.Message{
		{Kind: wire.KindHello, Seq: 1, Nonce: 1},
		{Kind: wire.KindHello, Seq: 1, Origin: c.replica.out.origin, Nonce: 1 << 28},
		{Kind: wire.KindInvalidateAll, Seq: math.MaxUint64},
		{Kind: wire.KindProbe, Seq: 2, Probes: []wire.Probe{{Origin: c.replica.out.origin, Nonce: 1 << 28}, {Origin: 1, Nonce: 2}}},
		{Kind: wire.KindInvalidate, Seq: 3, Epoch: 1, Entries: []wire.Entry{
			{Key: []byte("k"), Version: math.MaxUint64, Deleted: true}, {Key: []byte("k")},
			{Key: []byte("k"), Stage: wire.Begun, Op: op, TTL: 1}, {Key: []byte("x"), Stage: wire.Ended, Op: op, Version: 1},
			{Key: []byte("k"), Stage: wire.Void, Op: op},
		}},
	} {
		b, err := wire.Append(nil, &m)
		require.NoError(f, err)
		f.Add(b)
	}
	hint, logged := &ear{name: "hint", origins: map[uint64]*voice{}}, &ear{name: "log", log: true, origins: map[uint64]*voice{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs := [][]byte{b}
		if len(b) >= 39 {
			own := bytes.Clone(b)
			copy(own, "VC\x01")
			msgs = append(msgs, reseal(own, func(b []byte) { binary.LittleEndian.PutUint64(b[6:], c.replica.out.id) }))
		}
		for _, msg := range msgs {
			c.replica.receive(logged, bytes.Clone(msg))
			c.replica.receive(hint, bytes.Clone(msg))
			c.replica.hurry(hint, bytes.Clone(msg))
		}
		e, err := c.Load(context.Background(), "k")
		if err != nil || e.Value != 1 || e.Version != 1 {
			t.Fatalf("%v, %v", e, err)
		}
		if e, ok := c.GetEntry("k"); ok && e.Value != 1 {
			t.Fatalf("%v", e)
		}
		if err := c.check(); err != nil {
			t.Fatal(err)
		}
	})
}
