package tidemark

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// restore puts a row back to what it was at an earlier version, as a backup does.
func (s *source) restore(key string, value int, version Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[key] = row{value: value, version: version}
}

// The source went back, and one replica is told. All of them forget what they knew,
// once, and versions count from where the source is now.
func TestS19_ASourceThatWentBack(t *testing.T) {
	for name, transport := range map[string]func() Invalidator{
		"hint": func() Invalidator { return newBus().invalidator() },
		"log":  func() Invalidator { return newMemLog().invalidator() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, inv := newSource(), transport()
				s.restore("k", 900, 9)
				var r []*Cache[string, int]
				var heard []*events
				for range 3 {
					c, l := listener(t, s, inv)
					require.NoError(t, c.Ready(t.Context()))
					r, heard = append(r, c), append(heard, l)
				}
				time.Sleep(3 * testBeat)
				for _, c := range r {
					hold(t, c, "k")
				}
				s.restore("k", 500, 5)
				require.NoError(t, r[0].SetSourceEpoch(t.Context(), 1))
				time.Sleep(3 * testBeat)
				for i, c := range r {
					requireNotServed(t, c, "k")
					assert.EqualValues(t, 1, c.Stats().SourceEpoch)
					assert.Len(t, heard[i].of(EventSourceEpoch), 1)
					assert.EqualValues(t, 1, generation(c.era.Load()), "everything was thrown away once")
					hold(t, c, "k")
					e, _ := c.GetEntry("k")
					assert.Equal(t, row{500, 5, false}, row{e.Value, e.Version, e.Absent})
				}
				e, err := r[1].Update(t.Context(), "k", inc)
				require.NoError(t, err)
				assert.EqualValues(t, 6, e.Version)
				time.Sleep(testBeat)
				requireServed(t, r[1], "k")
				requireNotServed(t, r[0], "k")
				requireNotServed(t, r[2], "k")

				require.NoError(t, r[2].SetSourceEpoch(t.Context(), 1), "it is declared already")
				var wrong *OptionError
				require.ErrorAs(t, r[2].SetSourceEpoch(t.Context(), 0), &wrong)
				assert.Equal(t, "SourceEpoch", wrong.Field)
				requireServed(t, r[1], "k")
			})
		})
	}
}

// A replica that has not heard of the epoch yet may have written since it began. Its
// versions order nothing, so its keys have changed without one.
func TestS19_AMessageOfAnEarlierEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := newSource(), newBus()
		s.restore("k", 500, 5)
		s.restore("other", 1, 1)
		c := newCache(t, Options[string, int]{Store: s, Invalidator: b.invalidator(), SourceEpoch: 7})
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		hold(t, c, "other")
		old := newStranger(t, b)
		say := func(epoch uint32, entries ...wire.Entry) {
			m := old.next(wire.KindInvalidate, entries...)
			m.Epoch = epoch
			old.send(old.encode(m))
		}
		say(7, wire.Entry{Key: []byte("k"), Version: 4})
		requireServed(t, c, "k")
		say(6, wire.Entry{Key: []byte("k"), Version: 4})
		requireNotServed(t, c, "k")
		requireServed(t, c, "other")
		assert.EqualValues(t, 7, c.Stats().SourceEpoch)
		hold(t, c, "k")
		say(6, wire.Entry{Key: []byte("k"), Version: 1 << 40})
		hold(t, c, "k") // it is no floor either

		m := old.next(wire.KindHello)
		m.Nonce, m.Epoch = 1, 8
		old.send(old.encode(m))
		requireNotServed(t, c, "k")
		requireNotServed(t, c, "other")
		assert.EqualValues(t, 8, c.Stats().SourceEpoch, "any message of a later epoch tells of it")
	})
}

// An epoch begins while a message of the one before is being applied.
func TestS19_AMessageThatAnEpochOvertakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, codec := newBus(), &stopping{}
		c := newCache(t, Options[string, int]{Invalidator: b.invalidator(), KeyCodec: codec})
		require.NoError(t, c.Ready(t.Context()))
		old := newStranger(t, b)
		codec.parse = func() {
			codec.parse = nil
			c.adopt(1, false)
		}
		old.changed("k", 9, false)
		assert.Nil(t, codec.parse)
		assert.EqualValues(t, 0, c.Explain("k").TideMark)
		require.NotEqual(t, Stale, c.Put("k", 5, 5))
	})
}

// stopping is a codec that calls parse before it parses.
type stopping struct{ parse func() }

func (*stopping) AppendKey(dst []byte, key string) []byte { return append(dst, key...) }

func (s *stopping) ParseKey(b []byte) (string, error) {
	if s.parse != nil {
		s.parse()
	}
	return string(b), nil
}

// Beside a log, a hint does not tell of an epoch: what it hurries along with that is
// of versions that mean nothing here yet.
func TestS19_AHintBesideALogTellsOfNoEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log, b := newSource(), newMemLog(), newBus()
		s.restore("k", 500, 5)
		inv := log.invalidator()
		inv.Hint = b
		c := newCache(t, Options[string, int]{MaxCost: small, Store: s, Invalidator: inv})
		require.NoError(t, c.Ready(t.Context()))
		hold(t, c, "k")
		hurried := newStranger(t, b)
		m := hurried.next(wire.KindInvalidate, wire.Entry{Key: []byte("k"), Version: 9})
		m.Epoch = 1
		hurried.send(hurried.encode(m))
		requireServed(t, c, "k")
		_, err := log.Append(t.Context(), hurried.encode(m))
		require.NoError(t, err)
		synctest.Wait()
		requireNotServed(t, c, "k")
		assert.EqualValues(t, 1, c.Stats().SourceEpoch)
	})
}

// What is on its way when the epoch begins: a load is not kept, and a write is told
// of without its version.
func TestS19_WhatIsInFlight(t *testing.T) {
	for _, isStrict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict %v", isStrict), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := newSource(), newMemLog()
				r := followers(t, 2, s, log, Options[string, int]{Strict: isStrict})
				s.restore("loaded", 900, 9)
				s.restore("written", 900, 9)
				s.restore("doubted", 900, 9)
				_, err := r[1].Load(t.Context(), "written")
				require.NoError(t, err)
				load, write := make(chan struct{}), make(chan struct{})
				s.afterLoad = func(context.Context, string) error { <-load; return nil }
				s.afterWrite = func(_ context.Context, key string) error {
					<-write
					if key == "doubted" {
						return errors.New("reset")
					}
					return nil
				}
				go func() { _, _ = r[0].Load(context.Background(), "loaded") }()
				go func() { _, _ = r[0].CompareAndSet(context.Background(), "written", 9, 1000) }()
				go func() { _, _ = r[0].CompareAndSet(context.Background(), "doubted", 9, 1000) }()
				synctest.Wait()
				for _, key := range []string{"loaded", "written", "doubted"} {
					s.restore(key, 500, 5)
				}
				require.NoError(t, r[0].SetSourceEpoch(t.Context(), 1))
				synctest.Wait()
				s.afterLoad = nil
				hold(t, r[1], "loaded")
				if !isStrict { // or else the keys are kept out until the writes have ended
					hold(t, r[1], "written")
					hold(t, r[1], "doubted")
				}
				close(load)
				close(write)
				time.Sleep(time.Second) // until the doubt is settled
				for _, c := range r {
					for _, key := range []string{"loaded", "written", "doubted"} {
						if e, ok := c.GetEntry(key); ok {
							assert.EqualValues(t, 5, e.Version, "%s: %v", key, c.Explain(key))
						}
						hold(t, c, key)
						e, _ := c.GetEntry(key)
						assert.EqualValues(t, 5, e.Version)
					}
				}
			})
		})
	}
}

// What waits to be broadcast when the epoch begins goes out without its version.
func TestS19_WhatWaitsToBeBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		p.fail(errors.New("down"))
		o.add([]byte("first"), at(1), 0)
		synctest.Wait()
		o.add([]byte("k"), at(9), 0)
		o.add([]byte("gone"), mark{9, true}, 0)
		o.adopt(1, true)
		o.adopt(1, true)
		o.add([]byte("late"), at(9), 0)
		o.add([]byte("new"), at(5), 1)
		o.conclude([]byte("ended late"), OpID{1}, at(9), 0, false)
		o.conclude([]byte("ended"), OpID{2}, at(5), 1, false)
		p.fail(nil)
		require.NoError(t, o.wait(t.Context(), o.latest()))
		said := map[string]wire.Entry{}
		epochs := map[string]uint32{}
		for _, m := range p.messages() {
			for _, e := range m.Entries {
				said[string(e.Key)], epochs[string(e.Key)] = e, m.Epoch
			}
		}
		assert.Equal(t, map[string]uint32{"first": 0, "k": 1, "gone": 1, "late": 1, "new": 1, "ended late": 1, "ended": 1}, epochs)
		for key, version := range map[string]uint64{"first": 1, "k": 0, "gone": 0, "late": 0, "new": 5, "ended late": 0, "ended": 5} {
			assert.Equal(t, version, said[key].Version, key)
			assert.False(t, said[key].Deleted, key)
		}
	})
}

// A restore throws everything away once, whoever declares it, and whichever message
// is the first to tell of it.
func TestS19_EverythingIsThrownAwayOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		r := followers(t, 3, s, log, Options[string, int]{})
		log.setRefuse(errors.New("no quorum"))
		var calls sync.WaitGroup
		calls.Go(func() { assert.NoError(t, r[0].Invalidate(context.Background(), "k", 1)) })
		synctest.Wait() // it is under way
		calls.Go(func() { assert.NoError(t, r[0].SetSourceEpoch(context.Background(), 1)) })
		time.Sleep(2 * testBeat) // a hello waits beside the word of the epoch
		log.setRefuse(nil)
		calls.Wait()
		time.Sleep(time.Second)
		for _, c := range r {
			assert.EqualValues(t, 1, c.Stats().SourceEpoch)
			assert.EqualValues(t, 1, generation(c.era.Load()), "a hello comes first")
		}
		for _, c := range r {
			calls.Go(func() { assert.NoError(t, c.SetSourceEpoch(context.Background(), 2)) })
		}
		calls.Wait()
		time.Sleep(time.Second)
		for _, c := range r {
			assert.EqualValues(t, 2, c.Stats().SourceEpoch)
			assert.EqualValues(t, 2, generation(c.era.Load()), "all of them declare it")
		}
		msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindInvalidateAll, CacheID: r[0].replica.out.id, Origin: 7, Seq: 1, Epoch: 3})
		require.NoError(t, err)
		_, err = log.Append(t.Context(), msg)
		require.NoError(t, err)
		synctest.Wait()
		for _, c := range r {
			assert.EqualValues(t, 3, generation(c.era.Load()), "everything changed, says the first message of it")
		}
	})
}

// Who declares an epoch that is being declared is told when the others are.
func TestSetSourceEpoch_WaitsForADeclarationThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSource(), newMemLog()
		log.beat = time.Hour
		stuck := make(chan struct{})
		inv := log.invalidator()
		a := newCache(t, Options[string, int]{Store: s, Invalidator: inv, OnEvent: func(e Event) {
			if e.Kind == EventSourceEpoch {
				<-stuck
			}
		}})
		b, _ := listener(t, s, inv)
		require.NoError(t, a.Ready(t.Context()))
		require.NoError(t, b.Ready(t.Context()))
		go func() { _ = a.SetSourceEpoch(context.Background(), 1) }()
		synctest.Wait()
		require.NoError(t, a.SetSourceEpoch(context.Background(), 1))
		synctest.Wait()
		assert.EqualValues(t, 1, b.Stats().SourceEpoch)
		close(stuck)
	})
}

// The word of an epoch is not dropped with intents that were given up beside it.
func TestOutbox_TheWordOfAnEpochStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := newPost(t)
		release := p.hold()
		o.add([]byte("under way"), at(1), 0)
		synctest.Wait()
		o.adopt(1, true)
		ticket := o.latest()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		in, err := o.intend([]byte("k"), OpID{1}, time.Second)
		require.NoError(t, err)
		_, err = o.awaitIntent(ctx, in)
		require.ErrorIs(t, err, context.Canceled)
		release()
		require.NoError(t, o.wait(t.Context(), ticket))
		all := p.messages()
		assert.EqualValues(t, 1, all[len(all)-1].Epoch)
	})
}

// A cache that lives of Puts alone takes those of the new epoch, though they are
// below all that it had.
func TestS19_PutsOfTheNewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, Options[string, int]{MaxCost: 64, Shards: 1})
		for i := range 500 { // most of them are evicted, and leave their marks
			require.Equal(t, Applied, c.Put(strconv.Itoa(i), i, Version(1000+i)))
		}
		require.NoError(t, c.InvalidateAll(t.Context()))
		require.Equal(t, Stale, c.Put("499", 1, 7), "after InvalidateAll versions go on")
		require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
		for i := range 500 {
			require.Equal(t, Applied, c.Put(strconv.Itoa(i), i, 7))
		}
		time.Sleep(time.Second) // until what was thrown away is swept
		for i := range 500 {
			require.NotEqual(t, Stale, c.Put(strconv.Itoa(i), i, 8), "%v", c.Explain(strconv.Itoa(i)))
		}
	})
}

// An entry of the epoch before that has not been swept yet is no mark either.
func TestS19_AnEntryThatIsStillThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, Options[string, int]{MaxCost: small})
		require.Equal(t, Applied, c.Put("k", 900, 9))
		synctest.Wait()
		c.policy.turn.Lock() // nothing is swept meanwhile
		defer c.policy.turn.Unlock()
		require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
		require.True(t, c.Explain("k").Thrown)
		require.Equal(t, Applied, c.Put("k", 500, 5))
		v, ok := c.Get("k")
		assert.True(t, ok && v == 500)
	})
}

// A change of the epoch before is applied only now: its version is no mark.
func TestS19_AChangeThatAnEpochOvertakes(t *testing.T) {
	c := newCache(t, Options[string, int]{MaxCost: small})
	require.Equal(t, Applied, c.Put("k", 900, 9))
	require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
	require.Equal(t, Applied, c.Put("k", 500, 5))
	c.apply("k", c.keys.hash("k"), mark{version: 9}, 0, byInvalidate)
	requireNotServed(t, c, "k")
	require.Equal(t, Applied, c.Put("k", 600, 6))
}

// A lagging load of the new epoch is held against nothing that was seen in the one
// before it, once its lag has passed: it needs no strong one beside it.
func TestS19_LaggingLoadsOfTheNewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lag = time.Second
		replica, primary := newSource(), newSource()
		c := newCache(t, Options[string, int]{Loader: replica, LoaderClass: Lagging(lag), Store: primary, MaxCost: small, Shards: 1})
		for _, s := range []*source{replica, primary} {
			s.restore("k", 900, 9)
		}
		hold(t, c, "k")
		require.NoError(t, c.Invalidate(t.Context(), "gone", 9))
		time.Sleep(3 * lag / 4)
		for _, s := range []*source{replica, primary} {
			s.restore("k", 500, 5)
			s.restore("gone", 500, 5)
		}
		require.NoError(t, c.Invalidate(t.Context(), "gone", 9))
		require.NoError(t, c.SetSourceEpoch(t.Context(), 1))
		time.Sleep(lag) // until lagging loads are held off no longer; what was thrown away is swept meanwhile
		asked := primary.loadCount()
		hold(t, c, "k")
		hold(t, c, "gone")
		assert.Equal(t, asked, primary.loadCount(), "the primary was asked")
		require.NoError(t, c.check())
	})
}

func TestSetSourceEpoch_Closed(t *testing.T) {
	c := onSource(t, newSource())
	require.NoError(t, c.Close(t.Context()))
	require.ErrorIs(t, c.SetSourceEpoch(t.Context(), 1), ErrClosed)
}
