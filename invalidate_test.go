package tidemark

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// The tests of this file run in a bubble of testing/synctest: time is virtual,
// so a Sleep is an exact statement about beats and not a hope, and
// synctest.Wait returns when nothing moves any more.

const testBeat = 20 * time.Millisecond // of bus.invalidator

// events is an OnEvent that keeps what it was told.
type events struct {
	mu  sync.Mutex // guards all
	all []Event
}

func (l *events) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
}

// of returns the events of one kind.
func (l *events) of(kind EventKind) (all []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if e.Kind == kind {
			all = append(all, e)
		}
	}
	return all
}

// listener returns a cache on s and inv with one shard and its events. It is
// not waited for.
func listener(t testing.TB, s *source, inv Invalidator) (*Cache[string, int], *events) {
	t.Helper()
	l := &events{}
	c := newCache(t, Options[string, int]{Store: s, Invalidator: inv, Shards: 1, OnEvent: l.add})
	return c, l
}

// joined returns a cache that hears the bus.
func joined(t testing.TB, s *source, b *bus) (*Cache[string, int], *events) {
	t.Helper()
	c, l := listener(t, s, b.invalidator())
	require.NoError(t, c.Ready(t.Context()))
	return c, l
}

// settled waits until every replica has heard every other one twice more, and
// demands that each entry that would be served then is the source's row.
func settled(t testing.TB, s *source, all ...*Cache[string, int]) {
	t.Helper()
	for _, c := range all {
		require.NoError(t, c.Ready(t.Context()))
	}
	time.Sleep((missedBeats + 3) * testBeat) // virtual
	synctest.Wait()
	for i, c := range all {
		require.False(t, c.Stats().CutOff, "replica %d", i)
		for key, e := range c.All() {
			r := s.get(key)
			require.Equal(t, r, row{e.Value, e.Version, e.Absent}, "replica %d serves an old %q", i, key)
		}
	}
}

// hold makes c hold key, and demands that it serves it.
func hold(t testing.TB, c *Cache[string, int], key string) {
	t.Helper()
	_, err := c.Load(t.Context(), key)
	require.NoError(t, err)
	requireServed(t, c, key)
}

func requireServed(t testing.TB, c *Cache[string, int], key string) {
	t.Helper()
	_, ok := c.GetEntry(key)
	require.True(t, ok, "%q: %v", key, c.Explain(key))
}

func requireNotServed(t testing.TB, c *Cache[string, int], key string) {
	t.Helper()
	_, ok := c.Get(key)
	require.False(t, ok, "Get %q: %v", key, c.Explain(key))
	_, ok = c.GetEntry(key)
	require.False(t, ok, "GetEntry %q: %v", key, c.Explain(key))
	for served := range c.All() {
		require.NotEqual(t, key, served, "All")
	}
}

// lose is what a transport does that may have missed messages.
func (b *bus) lose(reason string) {
	b.mu.Lock()
	var subs []*busSub
	for _, s := range b.subs {
		subs = append(subs, s)
	}
	b.mu.Unlock()
	for _, s := range subs {
		s.mu.Lock()
		if !s.stopped {
			s.lost(reason)
		}
		s.mu.Unlock()
	}
}

// setRefuse changes what Publish returns.
func (b *bus) setRefuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = err
}

// A stranger is an origin made by hand: it says on the bus what a test wants.
type stranger struct {
	t      testing.TB
	b      *bus
	id     uint64 // of the cache
	origin uint64
	seq    uint64
}

func newStranger(t testing.TB, b *bus) *stranger {
	inv := b.invalidator()
	return &stranger{t: t, b: b, id: inv.cacheID(), origin: rand.Uint64()}
}

// next returns the stranger's next message, which is not sent yet.
func (s *stranger) next(kind wire.Kind, entries ...wire.Entry) *wire.Message {
	s.seq++
	return &wire.Message{Kind: kind, CacheID: s.id, Origin: s.origin, Seq: s.seq, Entries: entries}
}

func (s *stranger) encode(m *wire.Message) []byte {
	s.t.Helper()
	b, err := wire.Append(nil, m)
	require.NoError(s.t, err)
	return b
}

func (s *stranger) send(b []byte) {
	s.t.Helper()
	require.NoError(s.t, s.b.Publish(s.t.Context(), b))
}

// changed says that key is at the given mark.
func (s *stranger) changed(key string, v Version, deleted bool) {
	s.t.Helper()
	s.send(s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte(key), Version: uint64(v), Deleted: deleted})))
}

func (s *stranger) hello() {
	s.t.Helper()
	m := s.next(wire.KindHello)
	m.Nonce = 1
	s.send(s.encode(m))
}

// speak says hello once a beat.
func (s *stranger) speak(beats int) {
	s.t.Helper()
	for range beats {
		s.hello()
		time.Sleep(testBeat)
	}
}

func (s *stranger) goodbye() {
	s.t.Helper()
	s.send(s.encode(s.next(wire.KindHello)))
}

// reseal changes the header of an encoded message and makes its checksum good
// again.
func reseal(b []byte, change func(b []byte)) []byte {
	change(b)
	body := b[:len(b)-4]
	return binary.LittleEndian.AppendUint32(body, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// unknownKind turns an encoded message into one of a kind from the future.
func unknownKind(b []byte, flags uint16) []byte {
	return reseal(b, func(b []byte) {
		b[3] = 200
		binary.LittleEndian.PutUint16(b[4:], flags)
	})
}

// choosy is a KeyCodec for strings that some bytes do not fit.
type choosy struct{}

func (choosy) AppendKey(dst []byte, key string) []byte { return append(dst, key...) }

func (choosy) ParseKey(b []byte) (string, error) {
	switch string(b) {
	case "no key":
		return "", errors.New("that is no key")
	case "poison":
		panic("poisoned key")
	}
	return string(b), nil
}

// TestSuspicion_WhateverMayHaveBeenMissed shows each thing from which a replica
// must conclude that it may have missed a message, and that it then serves
// nothing that the source has not confirmed since.
func TestSuspicion_WhateverMayHaveBeenMissed(t *testing.T) {
	for name, tt := range map[string]struct {
		happens func(s *stranger)
		bad     uint64 // messages that could not be understood
	}{
		"S40 gap in an origin's sequence": {happens: func(s *stranger) {
			s.changed("other", 1, false)
			s.next(wire.KindInvalidate) // gets lost
			s.hello()
		}},
		"S42 gap before a change of another key": {happens: func(s *stranger) {
			s.hello()
			s.next(wire.KindInvalidate)
			s.changed("other", 1, false)
		}},
		"gap before a goodbye": {happens: func(s *stranger) {
			s.hello()
			s.next(wire.KindInvalidate)
			s.goodbye()
		}},
		"gap before an ignorable message": {happens: func(s *stranger) {
			s.hello()
			s.next(wire.KindInvalidate)
			s.send(unknownKind(s.encode(s.next(wire.KindInvalidateAll)), wire.FlagIgnorable))
		}},
		"first message of an unknown origin above 1": {happens: func(s *stranger) {
			s.seq = 1
			s.hello()
		}},
		"S59 not a message at all": {bad: 1, happens: func(s *stranger) { s.send([]byte("hello?")) }},
		"S59 empty message":        {bad: 1, happens: func(s *stranger) { s.send(nil) }},
		"S59 wrong checksum": {bad: 1, happens: func(s *stranger) {
			b := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("k"), Version: 2}))
			b[len(b)-1] ^= 1
			s.send(b)
		}},
		"S59 a bit of the key flipped": {bad: 1, happens: func(s *stranger) {
			b := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("k"), Version: 2}))
			b[36] ^= 1
			s.send(b)
		}},
		"S59 cut short": {bad: 1, happens: func(s *stranger) {
			b := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("k"), Version: 2}))
			s.send(b[:len(b)-5])
		}},
		"S58 another wire version": {bad: 1, happens: func(s *stranger) {
			s.send(reseal(s.encode(s.next(wire.KindInvalidateAll)), func(b []byte) { b[2] = 2 }))
		}},
		"S58 unknown kind": {bad: 1, happens: func(s *stranger) {
			s.send(unknownKind(s.encode(s.next(wire.KindInvalidateAll)), 0))
		}},
		"S58 unknown kind with other flags": {bad: 1, happens: func(s *stranger) {
			s.send(unknownKind(s.encode(s.next(wire.KindInvalidateAll)), ^wire.FlagIgnorable))
		}},
		"key that does not parse": {bad: 1, happens: func(s *stranger) { s.changed("no key", 1, false) }},
		"key whose codec panics":  {bad: 1, happens: func(s *stranger) { s.changed("poison", 1, false) }},
		"one bad key among good ones": {bad: 1, happens: func(s *stranger) {
			s.send(s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("no key"), Version: 1}, wire.Entry{Key: []byte("k"), Version: 2})))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b, l := newSource(), newBus(), &events{}
				src.set("k", 1)
				src.set("still", 1)
				c := newCache(t, Options[string, int]{Store: src, Invalidator: b.invalidator(), KeyCodec: choosy{}, OnEvent: l.add})
				require.NoError(t, c.Ready(t.Context()))
				hold(t, c, "k")
				hold(t, c, "still")
				src.set("k", 2) // the change whose message is lost, or cannot be read
				before := c.Stats()

				tt.happens(newStranger(t, b))

				requireNotServed(t, c, "k")
				requireNotServed(t, c, "still")
				after := c.Stats()
				assert.Equal(t, before.Suspicions+1, after.Suspicions)
				assert.Equal(t, before.Bad+tt.bad, after.Bad)
				assert.Len(t, l.of(EventSuspect), 1)
				assert.Len(t, l.of(EventBadMessage), int(tt.bad))
				assert.Empty(t, l.of(EventCutOff))
				assert.False(t, after.CutOff, "the link is fine")
				assert.Zero(t, after.Foreign)

				loads := src.loadCount()
				e, err := c.Load(t.Context(), "k")
				require.NoError(t, err)
				assert.Equal(t, row{2, 2, false}, row{e.Value, e.Version, e.Absent})
				hold(t, c, "still") // confirmed at the same version
				assert.Equal(t, loads+2, src.loadCount(), "each is confirmed by the source, once")
				hold(t, c, "k")
				assert.Equal(t, loads+2, src.loadCount())
				settled(t, src, c)
			})
		})
	}
}

// TestSuspicion_Harmless shows what must not cost a single entry.
func TestSuspicion_Harmless(t *testing.T) {
	for name, tt := range map[string]struct {
		happens func(s *stranger)
		foreign uint64
	}{
		"the first message of a new origin": {happens: func(s *stranger) { s.hello() }},
		"S46 duplicate": {happens: func(s *stranger) {
			b := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("other"), Version: 1}))
			s.send(b)
			s.send(b)
		}},
		"S46 duplicate minutes later": {happens: func(s *stranger) {
			b := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("k"), Version: 1}))
			s.send(b)
			for range 100 {
				s.changed("other", 1, false)
			}
			s.send(b)
		}},
		"an old change of the key":            {happens: func(s *stranger) { s.changed("k", 6, false) }},
		"S47 the echo of what made the entry": {happens: func(s *stranger) { s.changed("k", 7, false) }},
		"S58 unknown kind, ignorable": {happens: func(s *stranger) {
			s.send(unknownKind(s.encode(s.next(wire.KindInvalidateAll)), wire.FlagIgnorable))
			s.hello() // and it had a number like any other
		}},
		"S60 another name":   {foreign: 3, happens: func(s *stranger) { s.id = foreignID("staging", ""); s.shout() }},
		"S60 another schema": {foreign: 3, happens: func(s *stranger) { s.id = foreignID("test", "v2"); s.shout() }},
		"S60 name and schema run together": {foreign: 3, happens: func(s *stranger) {
			s.id = foreignID("tes", "t")
			s.shout()
		}},
		"S60 unknown kind of another name": {foreign: 1, happens: func(s *stranger) {
			s.id = foreignID("staging", "")
			s.send(unknownKind(s.encode(s.next(wire.KindInvalidateAll)), 0))
		}},
		"goodbye of an origin that never said hello": {happens: func(s *stranger) { s.goodbye() }},
		"nothing said at all, by an origin that is no replica": {happens: func(s *stranger) {
			s.changed("other", 1, false)
			time.Sleep(100 * testBeat)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				for range 7 {
					src.set("k", 1)
				}
				c, l := joined(t, src, b)
				hold(t, c, "k")
				before := c.Stats()

				tt.happens(newStranger(t, b))

				requireServed(t, c, "k")
				after := c.Stats()
				assert.Equal(t, before.Suspicions, after.Suspicions, "%v", l.of(EventSuspect))
				assert.Equal(t, before.Foreign+tt.foreign, after.Foreign)
				assert.Len(t, l.of(EventForeignMessage), int(tt.foreign))
				assert.Zero(t, after.Bad)
				if tt.foreign > 0 {
					assert.Equal(t, before.Received, after.Received)
				}
				settled(t, src, c)
			})
		})
	}
}

func foreignID(name, schema string) uint64 {
	inv := Invalidator{Name: name, Schema: schema}
	return inv.cacheID()
}

// shout is everything that would hurt if it were meant for this cache.
func (s *stranger) shout() {
	s.changed("k", 99, false)
	s.send(s.encode(s.next(wire.KindInvalidateAll)))
	s.seq += 10 // a gap
	s.hello()
}

func TestSuspicion_ReorderedMessagesAreAllApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("a", 1)
		src.set("b", 1)
		c, _ := joined(t, src, b)
		s := newStranger(t, b)
		s.hello()
		hold(t, c, "a")
		hold(t, c, "b")
		src.set("a", 2)
		src.set("b", 2)
		first := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("a"), Version: 2}))
		second := s.encode(s.next(wire.KindInvalidate, wire.Entry{Key: []byte("b"), Version: 2}))
		s.send(second) // S45
		assert.EqualValues(t, 1, c.Stats().Suspicions, "message 2 is missing so far")
		requireNotServed(t, c, "a")
		requireNotServed(t, c, "b")
		src.set("c", 1)
		hold(t, c, "c")
		s.send(first)
		requireServed(t, c, "c")
		assert.EqualValues(t, 1, c.Stats().Suspicions, "the late one shows no gap")
		assert.EqualValues(t, 2, c.Stats().Applies)
		s.hello()
		assert.EqualValues(t, 1, c.Stats().Suspicions, "and the numbers go on where they were")
		settled(t, src, c)
	})
}

func TestSuspicion_OwnMessageThatDoesNotComeBackIsAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		hold(t, c, "k")
		b.setFault(func(int, []byte) [][]byte { return nil })
		require.NoError(t, c.Invalidate(t.Context(), "other", 5), "the transport took it")
		synctest.Wait()
		b.setFault(nil)
		requireServed(t, c, "k")
		require.NoError(t, c.Invalidate(t.Context(), "other", 6))
		requireNotServed(t, c, "k") // what else was lost on this link?
		settled(t, src, c)
	})
}

func TestInvalidation_RemovesExactlyWhatIsOlder(t *testing.T) {
	for name, tt := range map[string]struct {
		version Version
		deleted bool
		goes    bool
	}{
		"S47 below":                            {version: 6},
		"S47 at the entry's version":           {version: 7},
		"above":                                {version: 8, goes: true},
		"S18 deletion of the row it removed":   {version: 7, deleted: true, goes: true},
		"deletion below":                       {version: 6, deleted: true},
		"deletion above":                       {version: 8, deleted: true, goes: true},
		"without a version":                    {goes: true},
		"deletion without a version":           {deleted: true, goes: true},
		"the highest version there is":         {version: ^Version(0), goes: true},
		"the highest version there is, absent": {version: ^Version(0), deleted: true, goes: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				for range 7 {
					src.set("k", 1)
				}
				src.set("other", 1)
				c, l := joined(t, src, b)
				hold(t, c, "k")
				hold(t, c, "other")
				newStranger(t, b).changed("k", tt.version, tt.deleted)
				if tt.goes {
					requireNotServed(t, c, "k")
				} else {
					requireServed(t, c, "k")
				}
				requireServed(t, c, "other")
				assert.EqualValues(t, 1, c.Stats().Applies)
				assert.EqualValues(t, 1, c.Stats().Received)
				assert.Empty(t, l.of(EventSuspect))
			})
		})
	}
}

// TestInvalidation_OvertakesALoad lets a change be heard while a load is on its
// way back with the state from before.
func TestInvalidation_OvertakesALoad(t *testing.T) {
	for name, tt := range map[string]struct {
		happens func(s *stranger, src *source)
		fills   bool
	}{
		"S1 newer version": {happens: func(s *stranger, src *source) {
			s.changed("k", src.set("k", 2), false)
		}},
		"S18 deletion at the version of the row it removed": {happens: func(s *stranger, src *source) {
			s.changed("k", 1, true)
			src.remove("k")
		}},
		"without a version": {happens: func(s *stranger, src *source) {
			src.set("k", 2)
			s.changed("k", 0, false)
		}},
		"everything": {happens: func(s *stranger, src *source) {
			src.set("k", 2)
			s.send(s.encode(s.next(wire.KindInvalidateAll)))
		}},
		"suspicion": {happens: func(s *stranger, src *source) {
			src.set("k", 2)
			s.send([]byte("noise"))
		}},
		"gap": {happens: func(s *stranger, src *source) {
			src.set("k", 2)
			s.next(wire.KindInvalidate)
			s.hello()
		}},
		"cut off": {happens: func(s *stranger, src *source) {
			b := s.b
			b.setFault(func(int, []byte) [][]byte { return nil })
			b.lose("gone")
			src.set("k", 2)
		}},
		"cut off and back": {happens: func(s *stranger, src *source) {
			src.set("k", 2)
			s.b.lose("gone")
			synctest.Wait() // the own hello is back
		}},
		"what was known before": {fills: true, happens: func(s *stranger, src *source) {
			s.changed("k", 1, false)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				src.set("k", 1)
				c, _ := joined(t, src, b)
				read, goOn := make(chan struct{}), make(chan struct{})
				src.afterLoad = func(context.Context, string) error {
					close(read)
					<-goOn
					src.afterLoad = nil
					return nil
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					_, err := c.Load(t.Context(), "k")
					assert.True(t, err == nil || errors.Is(err, ErrNotFound), "%v", err)
				})
				<-read
				tt.happens(newStranger(t, b), src)
				close(goOn)
				wg.Wait()
				if tt.fills {
					requireServed(t, c, "k")
				} else {
					requireNotServedBelow(t, c, src, "k")
				}
				b.setFault(nil)
				settled(t, src, c)
			})
		})
	}
}

// requireNotServedBelow allows the source's state and nothing else.
func requireNotServedBelow(t testing.TB, c *Cache[string, int], src *source, key string) {
	t.Helper()
	if e, ok := c.GetEntry(key); ok {
		require.Equal(t, src.get(key), row{e.Value, e.Version, e.Absent}, "%v", c.Explain(key))
	}
}

func TestInvalidation_InvalidateAllTravels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		r := replicas(t, 3, src, b)
		time.Sleep(2 * testBeat) // until each has heard the others once
		for i := range 50 {
			key := fmt.Sprint(i)
			src.set(key, 1)
			for _, c := range r {
				hold(t, c, key)
			}
			src.set(key, 2) // a nightly job
		}
		require.NoError(t, r[0].InvalidateAll(t.Context()))
		for _, c := range r {
			assert.Zero(t, c.Len())
			for i := range 50 {
				requireNotServed(t, c, fmt.Sprint(i))
			}
		}
		hold(t, r[0], "1")
		time.Sleep(10 * testBeat)
		requireServed(t, r[0], "1") // the own echo does not come again
		settled(t, src, r...)
	})
}

// TestS47_OwnEchoIsHarmless lets each kind of own message come back after the
// key was loaded again.
func TestS47_OwnEchoIsHarmless(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *Cache[string, int]) error{
		"update": func(t *testing.T, c *Cache[string, int]) error {
			_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
			return err
		},
		"invalidate":                   func(t *testing.T, c *Cache[string, int]) error { return c.Invalidate(t.Context(), "k", 1) },
		"invalidate without a version": func(t *testing.T, c *Cache[string, int]) error { return c.Invalidate(t.Context(), "k", 0) },
		"invalidate all":               func(t *testing.T, c *Cache[string, int]) error { return c.InvalidateAll(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				src.set("k", 1)
				c, l := joined(t, src, b)
				hold(t, c, "k")
				var echo []byte
				b.setFault(func(_ int, msg []byte) [][]byte {
					if wire.Kind(msg[3]) != wire.KindHello {
						echo = msg
					}
					return [][]byte{msg}
				})
				require.NoError(t, change(t, c))
				synctest.Wait()
				b.setFault(nil)
				require.NotNil(t, echo)
				hold(t, c, "k")
				require.NoError(t, b.Publish(t.Context(), echo))
				requireServed(t, c, "k")
				assert.Empty(t, l.of(EventSuspect))
				assert.Zero(t, c.Stats().Received, "own messages are not received, they come back")
			})
		})
	}
}

func TestInvalidation_KeysOfEveryKindTravel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		travels(t, accountName("käse"), accountName(""), nil)
		travels(t, -7, 7, nil)
		travels(t, uint64(1)<<63, uint64(0), nil)
		travels(t, tenantKey{"acme", -1}, tenantKey{"acme", 1}, tenantCodec{})
	})
}

// travels shows that a change of key in one replica removes it in another, and
// not its neighbour.
func travels[K comparable](t *testing.T, key, neighbour K, codec KeyCodec[K]) {
	t.Helper()
	b := newBus()
	open := func() *Cache[K, int] {
		c, err := New(Options[K, int]{Invalidator: b.invalidator(), KeyCodec: codec, Shards: 1})
		require.NoError(t, err)
		require.NoError(t, c.Ready(t.Context()))
		return c
	}
	here, there := open(), open()
	time.Sleep(2 * testBeat) // until each has heard the other once
	for _, k := range []K{key, neighbour} {
		require.Equal(t, Applied, there.Put(k, 1, 1))
	}
	require.NoError(t, here.Invalidate(t.Context(), key, 2))
	_, ok := there.Get(key)
	assert.False(t, ok, "%T %v was not invalidated", key, key)
	_, ok = there.Get(neighbour)
	assert.True(t, ok, "%T %v was", key, neighbour)
	require.NoError(t, here.Close(t.Context()))
	require.NoError(t, there.Close(t.Context()))
}

func TestCutOff_NothingIsServedUntilTheOwnHelloIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		require.Len(t, l.of(EventRejoined), 1)
		hold(t, c, "k")
		before := c.Stats()

		b.setFault(func(int, []byte) [][]byte { return nil })
		b.lose("link down")
		requireNotServed(t, c, "k")
		assert.True(t, c.Stats().CutOff)
		assert.Equal(t, before.Suspicions+1, c.Stats().Suspicions)
		require.Len(t, l.of(EventCutOff), 1)
		assert.Contains(t, l.of(EventCutOff)[0].Reason, "link down")
		b.lose("link still down")
		assert.Len(t, l.of(EventCutOff), 1, "being cut off is one event, however often the transport says it")

		// Every read goes to the source, writes go through, and nothing is kept
		// that would be served later without being confirmed.
		for i := range 3 {
			loads := src.loadCount()
			src.set("k", 10+i)
			e, err := c.Load(t.Context(), "k")
			require.NoError(t, err)
			assert.Equal(t, 10+i, e.Value)
			assert.Equal(t, loads+1, src.loadCount())
			requireNotServed(t, c, "k")
		}
		e, err := c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.NoError(t, err)
		assert.Equal(t, 13, e.Value)
		requireNotServed(t, c, "k")
		c.Put("put", 1, 1)
		requireNotServed(t, c, "put")
		f := c.BeginFill("fill")
		f.Commit(1, 1)
		requireNotServed(t, c, "fill")
		ctx, cancel := context.WithTimeout(t.Context(), 10*testBeat)
		defer cancel()
		require.ErrorIs(t, c.Ready(ctx), context.DeadlineExceeded)

		loads := src.loadCount()
		b.setFault(nil)
		require.NoError(t, c.Ready(t.Context()))
		eventually(t, func() bool { return len(l.of(EventRejoined)) == 2 }, "it says so")
		for _, key := range []string{"k", "put", "fill"} {
			requireNotServed(t, c, key)
		}
		hold(t, c, "k")
		assert.Equal(t, loads+1, src.loadCount())
		settled(t, src, c)
	})
}

// TestCutOff_LoadAcross lets a load begin and end on different sides of a cut.
func TestCutOff_LoadAcross(t *testing.T) {
	// Nothing goes out either, so that no gap in the own numbers gives the cut
	// away afterwards.
	down := func(b *bus) {
		b.setRefuse(errors.New("no link"))
		b.lose("gone")
		synctest.Wait()
	}
	up := func(b *bus) {
		b.setRefuse(nil)
		time.Sleep(2 * retryMax)
	}
	for name, tt := range map[string]struct{ before, during, after func(*bus) }{
		"begun while heard, ends while cut off": {during: down, after: up},
		"begun while heard, ends when back":     {during: func(b *bus) { down(b); up(b) }},
		"begun while cut off, ends when back":   {before: down, during: up},
		"begun and ended while cut off":         {before: down, after: up},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, b := newSource(), newBus()
				src.set("k", 1)
				c, _ := joined(t, src, b)
				do := func(f func(*bus)) {
					if f != nil {
						f(b)
					}
				}
				do(tt.before)
				src.afterLoad = func(context.Context, string) error {
					src.afterLoad = nil
					src.set("k", 2) // nobody hears of it
					do(tt.during)
					return nil
				}
				e, err := c.Load(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, 1, e.Value, "the row as it was when the load began")
				requireNotServed(t, c, "k")
				do(tt.after)
				requireNotServed(t, c, "k")
				e, err = c.Load(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, 2, e.Value)
				settled(t, src, c)
			})
		})
	}
}

// TestS43_HalfOpenLink swallows everything while the transport says that all is
// well, as a TCP connection does whose other end is gone.
func TestS43_HalfOpenLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		time.Sleep(50 * testBeat)
		hold(t, c, "k")
		assert.Empty(t, l.of(EventCutOff), "hellos come back")

		b.setFault(func(int, []byte) [][]byte { return nil })
		src.set("k", 2) // and its message is swallowed
		began := time.Now()
		time.Sleep((missedBeats - 1) * testBeat)
		assert.False(t, c.Stats().CutOff, "two lost hellos are not three")
		for !c.Stats().CutOff && time.Since(began) < time.Minute {
			time.Sleep(time.Millisecond)
		}
		assert.LessOrEqual(t, time.Since(began), (missedBeats+1)*testBeat+2*time.Millisecond)
		synctest.Wait() // for the event
		requireNotServed(t, c, "k")
		require.Len(t, l.of(EventCutOff), 1)
		assert.Contains(t, l.of(EventCutOff)[0].Reason, "hello")
		time.Sleep(20 * testBeat)
		assert.Len(t, l.of(EventCutOff), 1)
		assert.EqualValues(t, 1, c.Stats().Suspicions)

		b.setFault(nil)
		settled(t, src, c)
		hold(t, c, "k")
		assert.Len(t, l.of(EventRejoined), 2)
	})
}

// TestCutOff_ReplayedHelloProvesNothing lets the transport repeat one old hello
// for ever and deliver nothing else: who hears only what he said long ago hears
// nobody.
func TestCutOff_ReplayedHelloProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		var old []byte
		b.setFault(func(_ int, msg []byte) [][]byte {
			old = msg
			return [][]byte{msg}
		})
		time.Sleep(2 * testBeat)
		synctest.Wait()
		hold(t, c, "k")
		require.NotNil(t, old)
		b.setFault(func(int, []byte) [][]byte { return [][]byte{old} })
		src.set("k", 2)
		time.Sleep((missedBeats + 3) * testBeat)
		assert.True(t, c.Stats().CutOff)
		requireNotServed(t, c, "k")
		b.setFault(nil)
		settled(t, src, c)
	})
}

// TestCutOff_HelloFromBeforeTheLossProvesNothing delivers, after the transport
// has reported a loss, a hello that was published before.
func TestCutOff_HelloFromBeforeTheLossProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, _ := joined(t, src, b)
		hold(t, c, "k")
		var kept [][]byte
		b.setFault(func(_ int, msg []byte) [][]byte {
			kept = append(kept, msg)
			return nil
		})
		time.Sleep(2*testBeat + testBeat/2)
		synctest.Wait()
		require.NotEmpty(t, kept)
		early := kept
		b.lose("reconnected")
		src.set("k", 2)
		for _, msg := range early {
			c.replica.receive(c.replica.ear, msg)
		}
		assert.True(t, c.Stats().CutOff)
		requireNotServed(t, c, "k")
		b.setFault(nil)
		settled(t, src, c)
	})
}

func TestS33_TheSilenceOfADeadOriginIsNoticedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		s := newStranger(t, b)
		for range 10 {
			s.hello()
			time.Sleep(testBeat)
		}
		hold(t, c, "k")
		src.set("k", 2) // it died between the commit and the message
		time.Sleep((missedBeats - 1) * testBeat)
		requireServed(t, c, "k")
		time.Sleep(3 * testBeat)
		requireNotServed(t, c, "k")
		assert.Len(t, l.of(EventSuspect), 1)
		hold(t, c, "k")
		time.Sleep(100 * testBeat)
		assert.Len(t, l.of(EventSuspect), 1, "the dead stay dead")
		requireServed(t, c, "k")
		for range 10 { // or come back from a long pause
			s.hello()
			time.Sleep(testBeat)
		}
		assert.Len(t, l.of(EventSuspect), 1)
		time.Sleep((missedBeats + 3) * testBeat)
		assert.Len(t, l.of(EventSuspect), 2)
		settled(t, src, c)
	})
}

func TestSilence_AfterAGoodbyeMeansNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		s := newStranger(t, b)
		other, _ := joined(t, src, b)
		for range 10 {
			s.hello()
			time.Sleep(testBeat)
		}
		hold(t, c, "k")
		s.goodbye()
		time.Sleep(50 * testBeat)
		assert.Empty(t, l.of(EventSuspect))
		require.NoError(t, other.Close(t.Context()))
		time.Sleep(50 * testBeat)
		assert.Empty(t, l.of(EventSuspect), "Close says goodbye")
		requireServed(t, c, "k")
	})
}

func TestSilence_WhileCutOffMeansNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		time.Sleep(testBeat / 2) // it speaks between the own hellos
		s := newStranger(t, b)
		s.speak(5)
		b.setFault(func(int, []byte) [][]byte { return nil })
		time.Sleep(20 * testBeat) // the stranger says nothing that could be lost
		require.True(t, c.Stats().CutOff)
		b.setFault(nil)
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		time.Sleep((missedBeats - 1) * testBeat)
		s.speak(5)
		for _, e := range l.of(EventSuspect) {
			assert.NotContains(t, e.Reason, "silent", "it was this replica that did not hear")
		}
		requireServed(t, c, "k")
	})
}

// TestSilence_IsNoticedInTimeAfterACut: that an origin could not be heard for
// long must not be taken for its habit.
func TestSilence_IsNoticedInTimeAfterACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		s := newStranger(t, b)
		s.hello()
		b.setFault(func(int, []byte) [][]byte { return nil })
		time.Sleep(500 * testBeat)
		b.setFault(nil)
		s.hello() // is heard before the own one
		require.NoError(t, c.Ready(t.Context()))
		s.hello()
		hold(t, c, "k")
		before := len(l.of(EventSuspect))
		src.set("k", 2)                                   // it died between the commit and the message
		time.Sleep((missedBeats+2)*testBeat + testBeat/2) // not at the moment of a beat
		assert.Len(t, l.of(EventSuspect), before+1)
		settled(t, src, c)
	})
}

// TestSilence_IsMeasuredInTheOriginsOwnBeats: a replica that says hello less
// often than this one does not fall silent each time.
func TestSilence_IsMeasuredInTheOriginsOwnBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		slow := b.invalidator()
		slow.Beat = 10 * testBeat
		listener(t, src, slow)
		time.Sleep(40 * testBeat) // until its habit is known
		synctest.Wait()
		learnt := len(l.of(EventSuspect))
		assert.LessOrEqual(t, learnt, 1)
		hold(t, c, "k")
		time.Sleep(200 * testBeat)
		assert.Len(t, l.of(EventSuspect), learnt)
		requireServed(t, c, "k")
	})
}

// TestSilence_ALongPauseIsForgotten: one pause, of a suspended machine say, must
// not make the origin's death go unnoticed for long ever after.
func TestSilence_ALongPauseIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		s := newStranger(t, b)
		s.hello()
		time.Sleep(300 * testBeat)
		for range 20 {
			s.hello()
			time.Sleep(testBeat)
		}
		hold(t, c, "k")
		before := len(l.of(EventSuspect))
		time.Sleep((missedBeats + 3) * testBeat)
		assert.Len(t, l.of(EventSuspect), before+1)
	})
}

func TestOrigins_AreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c, l := joined(t, src, b)
		time.Sleep(2 * testBeat)
		other := newStranger(t, b)
		other.hello()
		hold(t, c, "k")
		for range 2 * maxOrigins { // batch jobs that come and go
			newStranger(t, b).changed("other", 1, false)
		}
		c.replica.mu.Lock()
		assert.LessOrEqual(t, len(c.replica.ear.origins), maxOrigins)
		c.replica.mu.Unlock()
		other.hello()
		synctest.Wait()
		assert.Empty(t, l.of(EventSuspect), "replicas that say hello are not forgotten for the sake of those who do not")
		requireServed(t, c, "k")
	})
}

// TestS57_PublishThatBlocksForEver: nothing but the calls that wait for the
// broadcast may notice.
func TestS57_PublishThatBlocksForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, h := newSource(), &stuckHint{bus: newBus(), release: make(chan struct{})}
		inv := h.invalidator()
		inv.Hint, inv.Beat = h, time.Hour // so that it is not cut off meanwhile
		src.set("k", 1)
		src.set("other", 1)
		c, _ := listener(t, src, inv)
		t.Cleanup(func() {
			h.stuck.Store(false)
			close(h.release)
		})
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		synctest.Wait()
		h.stuck.Store(true)

		began := time.Now()
		_, err := c.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		synctest.Wait() // its message hangs
		for i := range 10 {
			key := fmt.Sprint(i)
			c.Put(key, 1, 1)
			requireServed(t, c, "k")
			hold(t, c, "other")
			_, err = c.LoadMany(t.Context(), []string{"k", "other"})
			require.NoError(t, err)
			_, err = c.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
			require.NoError(t, err)
			_, err = c.Update(t.Context(), "new"+key, func(Entry[int]) (int, error) { return 1, nil })
			require.NoError(t, err)
			e, _ := c.GetEntry("new" + key)
			_, err = c.Delete(t.Context(), "new"+key, e.Version)
			require.NoError(t, err)
			c.Stats()
			c.Explain("k")
			require.NoError(t, c.Resize(1<<16))
		}
		assert.Zero(t, time.Since(began), "nobody waited")

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err = c.Invalidate(ctx, "k", 100)
		require.ErrorIs(t, err, ErrNotBroadcast)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 50*time.Millisecond, time.Since(began))
		requireNotServed(t, c, "k") // here it is in force

		hold(t, c, "other")
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		err = c.InvalidateAll(gone)
		require.ErrorIs(t, err, ErrNotBroadcast)
		require.ErrorIs(t, err, context.Canceled)
		requireNotServed(t, c, "other")
		assert.Equal(t, 50*time.Millisecond, time.Since(began))
		assert.NotZero(t, c.Stats().Backlog)
	})
}

// stuckHint is a bus on which Publish can hang without looking at its context.
type stuckHint struct {
	*bus
	stuck   atomic.Bool
	release chan struct{}
}

func (h *stuckHint) Publish(ctx context.Context, msg []byte) error {
	if h.stuck.Load() {
		<-h.release
		return errors.New("released")
	}
	return h.bus.Publish(ctx, msg)
}

func TestTransport_PanicsAreContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		h := &panickyHint{bus: b}
		inv := b.invalidator()
		inv.Hint = h
		src.set("k", 1)
		c, l := listener(t, src, inv)
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		h.panics.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*testBeat)
		defer cancel()
		err := c.Invalidate(ctx, "k", 2)
		require.ErrorIs(t, err, ErrNotBroadcast)
		var p *PanicError
		require.ErrorAs(t, err, &p)
		assert.Equal(t, "the transport is broken", p.Value)
		assert.NotZero(t, c.Stats().Panics)
		assert.NotEmpty(t, l.of(EventPanic))
		assert.True(t, c.Stats().CutOff)
		h.panics.Store(false)
		require.NoError(t, c.Invalidate(t.Context(), "k", 2))
		settled(t, src, c)
	})
}

type panickyHint struct {
	*bus
	panics, early atomic.Bool
}

func (h *panickyHint) Publish(ctx context.Context, msg []byte) error {
	if h.panics.Load() {
		panic("the transport is broken")
	}
	return h.bus.Publish(ctx, msg)
}

func (h *panickyHint) Subscribe(receive func([]byte), lost func(string)) (func(), error) {
	if h.early.Load() {
		panic("the transport is broken")
	}
	return h.bus.Subscribe(receive, lost)
}

func TestTransport_SubscribeThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := errors.New("no such subject")
		_, err := New(Options[string, int]{Invalidator: Invalidator{Name: "n", Hint: refusingHint{newBus(), no}}})
		require.ErrorIs(t, err, no)

		h := &panickyHint{bus: newBus()}
		h.early.Store(true)
		_, err = New(Options[string, int]{Invalidator: Invalidator{Name: "n", Hint: h}})
		var p *PanicError
		require.ErrorAs(t, err, &p)
	}) // which would not end if a goroutine were left
}

type refusingHint struct {
	*bus
	err error
}

func (h refusingHint) Subscribe(func([]byte), func(string)) (func(), error) { return nil, h.err }

func TestNew_ReportsMistakesOfTheInvalidator(t *testing.T) {
	b := newBus()
	for name, tt := range map[string]struct {
		inv   Invalidator
		field string
	}{
		"no name":           {Invalidator{Hint: b}, "Invalidator.Name"},
		"no name, log":      {Invalidator{Log: newMemLog()}, "Invalidator.Name"},
		"nothing but names": {Invalidator{Name: "n"}, "Invalidator"},
		"negative beat":     {Invalidator{Name: "n", Hint: b, Beat: -1}, "Invalidator.Beat"},
		"nil hint":          {Invalidator{Name: "n", Hint: (*bus)(nil)}, "Invalidator.Hint"},
		"nil log":           {Invalidator{Name: "n", Log: (*memLog)(nil)}, "Invalidator.Log"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, []string{tt.field}, refusal(Options[string, int]{Invalidator: tt.inv}))
			_, err := NewPublisher(PublisherOptions[string]{Invalidator: tt.inv})
			assert.Contains(t, optionFields(err), tt.field)
		})
	}
}

// A memLog is a Log in memory.
type memLog struct {
	mu      sync.Mutex // guards everything below
	msgs    [][]byte   // of sequence number 1 on
	first   uint64     // the first message that is there; 0: all are
	more    chan struct{}
	readers map[*memReader]struct{}
	refuse  error         // what Append and Open return, if not nil
	shut    error         // what Open returns, if not nil
	beat    time.Duration // of the invalidator; 0: testBeat
	delay   time.Duration // of each message, from when it was appended
	times   []time.Time   // when each was appended
}

func newMemLog() *memLog {
	return &memLog{more: make(chan struct{}), readers: map[*memReader]struct{}{}}
}

func (l *memLog) Append(_ context.Context, msg []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return 0, l.refuse
	}
	l.msgs, l.times = append(l.msgs, append([]byte(nil), msg...)), append(l.times, time.Now())
	close(l.more)
	l.more = make(chan struct{})
	return uint64(len(l.msgs)), nil
}

func (l *memLog) Open(_ context.Context, from uint64) (LogReader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(l.refuse, l.shut); err != nil {
		return nil, err
	}
	if from == 0 {
		from = uint64(len(l.msgs)) + 1
	} else if from > uint64(len(l.msgs)) || from < l.first {
		return nil, fmt.Errorf("message %d: %w", from, ErrGap)
	}
	r := &memReader{log: l, next: from, broken: make(chan error, 1)}
	l.readers[r] = struct{}{}
	return r, nil
}

// fail makes every reader that is open return err.
func (l *memLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.readers {
		select {
		case r.broken <- err:
		default:
		}
	}
}

// skip makes every reader that is open jump over the next message.
func (l *memLog) skip() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.readers {
		r.next++
	}
}

func (l *memLog) setRefuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = err
}

func (l *memLog) setShut(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = err
}

// down ends every reader with an error, and refuses all that is asked for from
// then on, until up.
func (l *memLog) down() {
	err := errors.New("no quorum")
	l.setRefuse(err)
	l.fail(err)
}

// unreadable ends every reader with err, and opens none until up. Messages are
// appended all the while.
func (l *memLog) unreadable(err error) {
	l.setShut(errors.New("no server"))
	l.fail(err)
}

func (l *memLog) up() {
	l.setRefuse(nil)
	l.setShut(nil)
}

func (l *memLog) setDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
	close(l.more)
	l.more = make(chan struct{})
}

func (l *memLog) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.readers)
}

type memReader struct {
	log    *memLog
	next   uint64 // guarded by log.mu
	broken chan error
	read   []byte // the message that was returned last
}

func (r *memReader) Next(ctx context.Context) (uint64, []byte, error) {
	clear(r.read) // whoever keeps it, or a key in it, notices
	for {
		r.log.mu.Lock()
		more := r.log.more
		var msg []byte
		var wait <-chan time.Time // until the message is due
		seq := r.next
		if seq <= uint64(len(r.log.msgs)) {
			msg = r.log.msgs[seq-1]
			if due := r.log.times[seq-1].Add(r.log.delay); r.log.delay > 0 && time.Now().Before(due) {
				msg, wait = nil, time.After(time.Until(due))
			} else {
				r.next++
			}
		}
		r.log.mu.Unlock()
		select {
		case err := <-r.broken:
			if err == nil {
				panic("the log is broken")
			}
			return 0, nil, err
		default:
		}
		if msg != nil {
			r.read = bytes.Clone(msg)
			return seq, r.read, nil
		}
		select {
		case <-more:
		case <-wait:
		case err := <-r.broken:
			if err == nil {
				panic("the log is broken")
			}
			return 0, nil, err
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
}

func (r *memReader) Close() error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	delete(r.log.readers, r)
	return nil
}

func (l *memLog) invalidator() Invalidator {
	return Invalidator{Name: "test", Log: l, Beat: cmp.Or(l.beat, testBeat)}
}

// onLog returns a cache that reads the log and holds k, half a beat after one.
func onLog(t testing.TB, s *source, log *memLog) (*Cache[string, int], *events) {
	t.Helper()
	s.set("k", 1)
	c, l := listener(t, s, log.invalidator())
	require.NoError(t, c.Ready(t.Context()))
	time.Sleep(testBeat + testBeat/2)
	hold(t, c, "k")
	return c, l
}

func TestLog_ChangesTravel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, log := newSource(), newMemLog()
		a, _ := listener(t, src, log.invalidator())
		b, l := listener(t, src, log.invalidator())
		require.NoError(t, a.Ready(t.Context()))
		require.NoError(t, b.Ready(t.Context()))
		time.Sleep(2 * testBeat)
		src.set("k", 1)
		hold(t, b, "k")
		_, err := a.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
		require.NoError(t, err)
		synctest.Wait()
		requireNotServed(t, b, "k")
		requireServed(t, a, "k") // the own echo, S47
		hold(t, b, "k")
		assert.Empty(t, l.of(EventCutOff))
		settled(t, src, a, b)
	})
}

// TestLog_WhatCannotBeProvenCutsOff breaks the log in each way that a reader can
// notice.
func TestLog_WhatCannotBeProvenCutsOff(t *testing.T) {
	for name, tt := range map[string]struct {
		breaks func(l *memLog)
		reason string
	}{
		"S48 the reader reports a gap": {func(l *memLog) { l.fail(fmt.Errorf("purged: %w", ErrGap)) }, "gap"},
		"S48 the reader jumps a hole": {func(l *memLog) {
			l.skip()
			time.Sleep(2 * testBeat) // until something is in the hole, and behind it
		}, "gap"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, log := newSource(), newMemLog()
				c, l := onLog(t, src, log)
				src.set("k", 2) // its message is in the gap

				tt.breaks(log)
				synctest.Wait()
				requireNotServed(t, c, "k")
				require.Len(t, l.of(EventCutOff), 1)
				assert.Contains(t, l.of(EventCutOff)[0].Reason, tt.reason)

				settled(t, src, c)
				assert.Len(t, l.of(EventRejoined), 2)
				assert.Equal(t, 1, log.open(), "the old reader is closed")
				hold(t, c, "k")
			})
		})
	}
}

func TestLog_ThatCannotBeOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, log := newSource(), newMemLog()
		src.set("k", 1)
		log.setRefuse(errors.New("no such stream"))
		c, _ := listener(t, src, log.invalidator())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, c.Ready(ctx), context.DeadlineExceeded)
		_, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		requireNotServed(t, c, "k")
		log.setRefuse(nil)
		require.NoError(t, c.Ready(t.Context()))
		settled(t, src, c)
		hold(t, c, "k")
	})
}

func TestLog_ClosedCacheLeavesNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c, _ := listener(t, newSource(), log.invalidator())
		require.NoError(t, c.Ready(t.Context()))
		synctest.Wait()
		assert.Equal(t, 1, log.open())
		require.NoError(t, c.Close(t.Context()))
		assert.Zero(t, log.open())
	})
}

// TestLog_AHelloThatComesBackDuringCloseOpensNothing has the reader of a log at
// work while the cache closes.
func TestLog_AHelloThatComesBackDuringCloseOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, log := newSource(), newMemLog()
		src.set("k", 1)
		c, _ := listener(t, src, log.invalidator())
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		require.NoError(t, c.replica.close(t.Context(), true)) // as Close does, which then ends the reader
		c.replica.hear(c.replica.ear, c.replica.seal.Nonce(c.replica.probes.Latest()+1))
		c.replica.lose(c.replica.ear, "test")
		c.replica.hear(c.replica.ear, c.replica.seal.Nonce(c.replica.probes.Latest()+1))
		assert.True(t, c.Stats().CutOff)
		requireNotServed(t, c, "k")
		_, err := c.Load(t.Context(), "k")
		require.NoError(t, err)
		requireNotServed(t, c, "k")
		require.NoError(t, c.Close(t.Context()))
	})
}

// TestLog_ReadingGoesOnWhereItStopped breaks readers without a word about what is
// missing: nothing is, as the next one shows. Entries stay.
func TestLog_ReadingGoesOnWhereItStopped(t *testing.T) {
	for name, broken := range map[string]error{"the reader fails": errors.New("connection reset"), "the reader panics": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, log := newSource(), newMemLog()
				src.set("j", 1)
				other, _ := listener(t, src, log.invalidator())
				require.NoError(t, other.Ready(t.Context()))
				c, l := onLog(t, src, log)
				hold(t, c, "j")

				log.unreadable(broken)
				_, err := other.Update(t.Context(), "k", func(Entry[int]) (int, error) { return 2, nil })
				require.NoError(t, err)
				time.Sleep(10 * testBeat)
				requireServed(t, c, "k") // and its Age says so
				e, _ := c.GetEntry("k")
				assert.GreaterOrEqual(t, e.Age, 10*testBeat)
				require.Len(t, l.of(EventLogDown), 1)
				assert.Empty(t, l.of(EventLogUp))

				log.up()
				settled(t, src, c, other)
				requireNotServed(t, c, "k")
				requireServed(t, c, "j")
				assert.Len(t, l.of(EventLogUp), 1)
				assert.Empty(t, l.of(EventCutOff))
				assert.Equal(t, 2, log.open(), "the old reader is closed")
			})
		})
	}
}

// TestS49_AnotherLogIsNoticed exchanges the log while a reader is away: the message
// that it read last is another one, or not there.
func TestS49_AnotherLogIsNoticed(t *testing.T) {
	for name, exchange := range map[string]func(l *memLog){
		"longer":     func(l *memLog) { l.renew(2 * len(l.msgs)) },
		"as long":    func(l *memLog) { l.renew(len(l.msgs)) },
		"shorter":    func(l *memLog) { l.renew(1) },
		"empty":      func(l *memLog) { l.renew(0) },
		"purged":     func(l *memLog) { l.grow(3); l.first = uint64(len(l.msgs)) }, // all but the last
		"purged all": func(l *memLog) { l.first = uint64(len(l.msgs)) + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, log := newSource(), newMemLog()
				c, l := onLog(t, src, log)

				log.unreadable(errors.New("connection reset"))
				synctest.Wait()
				src.set("k", 2) // its message went to the log that is no more
				log.mu.Lock()
				exchange(log)
				log.shut = nil
				log.mu.Unlock()
				settled(t, src, c)
				requireNotServed(t, c, "k")
				assert.Len(t, l.of(EventCutOff), 1)
				assert.Len(t, l.of(EventRejoined), 2)
			})
		})
	}
}

// renew replaces the log by another one with so many messages.
func (l *memLog) renew(messages int) {
	l.msgs, l.times = nil, nil
	l.grow(messages)
}

// grow appends so many messages.
func (l *memLog) grow(messages int) {
	for i := range messages {
		l.msgs, l.times = append(l.msgs, fmt.Appendf(nil, "other %d", i)), append(l.times, time.Now())
	}
}

// TestLogAndHint shows that beside a log the hint hurries, and nothing else.
func TestLogAndHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, log, b := newSource(), newMemLog(), newBus()
		inv := b.invalidator()
		inv.Log = log
		a, _ := listener(t, src, inv)
		c, l := listener(t, src, inv)
		require.NoError(t, a.Ready(t.Context()))
		require.NoError(t, c.Ready(t.Context()))
		time.Sleep(2 * testBeat)
		change := func() {
			t.Helper()
			src.set("k", 1)
			hold(t, c, "k")
			_, err := a.Update(t.Context(), "k", func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
			require.NoError(t, err)
			synctest.Wait()
			requireNotServed(t, c, "k")
		}
		change()
		b.setFault(func(int, []byte) [][]byte { return nil })
		change() // by the log
		b.lose("reconnected")
		b.setFault(func(_ int, msg []byte) [][]byte { return [][]byte{[]byte("noise"), msg, msg} })
		b.mu.Lock()
		b.refuse = errors.New("no permission")
		b.mu.Unlock()
		change()
		b.mu.Lock()
		b.refuse = nil
		b.mu.Unlock()
		log.unreadable(errors.New("no server"))
		change() // by the hint
		require.NoError(t, a.Invalidate(t.Context(), "k", 0))
		log.up()
		settled(t, src, a, c)
		assert.Empty(t, l.of(EventCutOff))
		assert.Empty(t, l.of(EventBadMessage))
		assert.Empty(t, l.of(EventSuspect))
	})
}

func TestClose_EndsEverythingAndServesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, log, b := newSource(), newMemLog(), newBus()
		inv := b.invalidator()
		inv.Log = log
		src.set("k", 1)
		c, _ := listener(t, src, inv)
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { assert.NoError(t, c.Close(t.Context())) })
		}
		wg.Wait()
		requireNotServed(t, c, "k")
		assert.ErrorIs(t, c.Invalidate(t.Context(), "k", 9), ErrClosed)
		assert.ErrorIs(t, c.InvalidateAll(t.Context()), ErrClosed)
		assert.ErrorIs(t, c.Ready(t.Context()), ErrClosed)
		assert.Empty(t, b.subs)
	})
}

func TestEventKind_String(t *testing.T) {
	seen := map[string]bool{}
	for k := EventSuspect; k <= EventPanic; k++ {
		seen[k.String()] = true
	}
	assert.Len(t, seen, int(EventPanic), "each kind has a name of its own")
	assert.Equal(t, "invalid", EventKind(0).String())
	assert.Equal(t, "invalid", EventKind(200).String())
}

func TestOnEvent_PanicIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, b := newSource(), newBus()
		src.set("k", 1)
		c := newCache(t, Options[string, int]{Store: src, Invalidator: b.invalidator(), OnEvent: func(Event) { panic("no") }})
		require.NoError(t, c.Ready(t.Context()))
		newStranger(t, b).send([]byte("noise"))
		assert.GreaterOrEqual(t, c.Stats().Panics, uint64(2)) // rejoined, bad message, suspect
		hold(t, c, "k")
		settled(t, src, c)
	})
}

// TestReplicas_PropertyNothingStaleOnceHealed lets a transport do to three
// replicas whatever a Hint may do, at random, and then heals it: every entry
// that is served after that is the source's row. While it lasts, no replica
// goes back behind what it has shown, written or been told of itself.
func TestReplicas_PropertyNothingStaleOnceHealed(t *testing.T) {
	for range 5 {
		rapid.Check(t, inBubble(t, func(rt *rapid.T) { newWeather(rt).run(rt) }))
	}
}

// A weather is three replicas and a transport whose faults change.
type weather struct {
	src  *source
	bus  *bus
	r    []*Cache[string, int]
	seen []map[string]Version

	mu    sync.Mutex // guards everything below
	rng   *rand.Rand
	fault [4]int // percent of deliveries dropped, doubled, held back, corrupted
	deaf  int    // the subscription that hears nothing, or -1
	held  map[int][][]byte
}

func newWeather(rt *rapid.T) *weather {
	w := &weather{src: newSource(), bus: newBus(), deaf: -1, held: map[int][][]byte{}}
	w.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
	w.bus.setFault(w.deliver)
	for range 3 {
		c, err := New(Options[string, int]{Store: w.src, Invalidator: w.bus.invalidator(), Shards: 1, MaxCost: 64})
		require.NoError(rt, err)
		w.r = append(w.r, c)
		w.seen = append(w.seen, map[string]Version{})
	}
	return w
}

// deliver is the bus's fault.
func (w *weather) deliver(to int, msg []byte) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if to == w.deaf {
		return nil
	}
	out := [][]byte{msg}
	if h := w.held[to]; len(h) > 0 && w.rng.IntN(2) == 0 {
		w.held[to], out = nil, append(out, h...)
	}
	switch p := w.rng.IntN(100); {
	case p < w.fault[0]:
		return out[1:]
	case p < w.fault[0]+w.fault[1]:
		return append(out, msg)
	case p < w.fault[0]+w.fault[1]+w.fault[2]:
		w.held[to] = append(w.held[to], msg)
		return out[1:]
	case p < w.fault[0]+w.fault[1]+w.fault[2]+w.fault[3]:
		msg[w.rng.IntN(len(msg))] ^= 1 << w.rng.IntN(8)
	}
	return out
}

func (w *weather) set(fault [4]int, deaf int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault, w.deaf = fault, deaf
}

func (w *weather) run(rt *rapid.T) {
	defer func() {
		w.set([4]int{}, -1)
		for _, c := range w.r {
			assert.NoError(rt, c.check())
			assert.NoError(rt, c.Close(context.Background()))
		}
	}()
	ctx := context.Background()
	key := func() string { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key") }
	pick := func() int { return rapid.IntRange(0, len(w.r)-1).Draw(rt, "replica") }
	saw := func(i int, key string, v Version, what string) {
		require.GreaterOrEqual(rt, v, w.seen[i][key], "replica %d went back by %s of %s", i, what, key)
		w.seen[i][key] = v
	}
	load := func(rt *rapid.T) {
		i, k := pick(), key()
		e, err := w.r[i].Load(ctx, k)
		require.True(rt, err == nil || errors.Is(err, ErrNotFound), "%v", err)
		saw(i, k, e.Version, "Load")
	}
	update := func(rt *rapid.T) {
		i, k := pick(), key()
		e, err := w.r[i].Update(ctx, k, func(cur Entry[int]) (int, error) { return cur.Value + 1, nil })
		require.NoError(rt, err)
		saw(i, k, e.Version, "Update")
		if rapid.Bool().Draw(rt, "at once") {
			synctest.Wait()
		}
	}
	rt.Repeat(map[string]func(*rapid.T){
		"load": load, "load again": load, "load once more": load, "load still": load,
		"update": update, "update again": update,
		"get": func(rt *rapid.T) {
			i, k := pick(), key()
			if e, ok := w.r[i].GetEntry(k); ok {
				saw(i, k, e.Version, "Get")
			}
		},
		"delete": func(rt *rapid.T) {
			i, k := pick(), key()
			if r := w.src.get(k); !r.absent {
				e, err := w.r[i].Delete(ctx, k, r.version)
				require.NoError(rt, err)
				saw(i, k, e.Version, "Delete")
			}
		},
		"outsider, announced": func(rt *rapid.T) {
			i, k := pick(), key()
			v := w.src.set(k, -1)
			if rapid.Bool().Draw(rt, "versionless") {
				v = 0
			}
			w.r[i].apply(k, w.r[i].keys.hash(k), mark{version: v}, 0, byInvalidate)
			w.r[i].announce(k, mark{version: v}, 0)
			if v != 0 {
				w.seen[i][k] = v
			}
		},
		"rare": func(rt *rapid.T) {
			switch c := w.r[pick()]; rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				c.newGeneration()
				c.replica.out.addAll()
			case 1:
				w.bus.lose("reconnected")
			}
		},
		"weather": func(rt *rapid.T) {
			var f [4]int
			for i := range f {
				f[i] = rapid.SampledFrom([]int{0, 0, 0, 10, 40}).Draw(rt, "percent")
			}
			w.set(f, rapid.SampledFrom([]int{-1, -1, -1, 0, 1, 2}).Draw(rt, "deaf"))
		},
		"time": func(rt *rapid.T) {
			time.Sleep(time.Duration(rapid.IntRange(0, 100).Draw(rt, "ms")) * time.Millisecond)
		},
		"deliver": func(*rapid.T) { synctest.Wait() },
	})
	w.set([4]int{}, -1)
	w.flush()
	time.Sleep((missedBeats + 3) * testBeat)
	synctest.Wait()
	for i, c := range w.r {
		require.False(rt, c.Stats().CutOff, "replica %d", i)
		for key, e := range c.All() {
			require.Equal(rt, w.src.get(key), row{e.Value, e.Version, e.Absent}, "replica %d serves an old %q", i, key)
			saw(i, key, e.Version, "All")
		}
	}
}

// flush delivers what was held back, minutes late.
func (w *weather) flush() {
	w.mu.Lock()
	held := w.held
	w.held = map[int][][]byte{}
	w.mu.Unlock()
	for to, msgs := range held {
		w.bus.mu.Lock()
		s := w.bus.subs[to]
		w.bus.mu.Unlock()
		for _, m := range msgs {
			s.mu.Lock()
			s.receive(m)
			s.mu.Unlock()
		}
	}
}
