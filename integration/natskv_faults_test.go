package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/natskv"
)

// A doubtful is a store whose link loses the message of a write, or the answer to
// it, when it is told to, and one beside it on a sound link.
type doubtful struct {
	*natskv.Store[string, string]
	t     *testing.T
	proxy *commitProxy
	sound *natskv.Store[string, string]
	kv    jetstream.KeyValue
	nc    *nats.Conn // the sound link
}

func newDoubtful(t *testing.T, address string, change ...func(*jetstream.KeyValueConfig)) *doubtful {
	t.Helper()
	d := &doubtful{t: t, proxy: newCommitProxy(t, address, jetstream.MsgIDHeader)}
	d.nc = dial(t, "nats://"+address, quiet)
	d.kv = newBucket(t, d.nc, change...)
	nc, err := nats.Connect("nats://"+d.proxy.address, append(tidemark.NATSConnectOptions(), quiet)...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	d.Store, d.sound = openBucket(t, nc, d.kv.Bucket()), openBucket(t, d.nc, d.kv.Bucket())
	return d
}

// doubt makes a write that ends in doubt.
func (d *doubtful) doubt(f fault, base tidemark.Version) (op tidemark.OpID) {
	d.t.Helper()
	op = newOp()
	d.proxy.arm(f)
	began := time.Now()
	_, err := d.CompareAndSet(soon(d.t), "k", base, "doubtful", op)
	requireUnknown(d.t, d.proxy, err)
	assert.Less(d.t, time.Since(began), 2*time.Second, "waits for an answer although the link has broken")
	return op
}

// overwrite replaces the value so many times.
func (d *doubtful) overwrite(times int) {
	d.t.Helper()
	for i := range times {
		_, v, err := d.sound.Load(soon(d.t), "k")
		require.NoError(d.t, err)
		_, err = d.sound.CompareAndSet(soon(d.t), "k", v, fmt.Sprint("later ", i), newOp())
		require.NoError(d.t, err)
	}
}

// TestP20_S31_WritesInDoubt loses messages and answers, and asks what became of the
// writes: at once, after others, and after more than the bucket keeps.
func TestP20_S31_WritesInDoubt(t *testing.T) {
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		testWritesInDoubt(t, natsServer(t, streaming(t)).Addr().String(), 1)
	})
	t.Run("three servers", func(t *testing.T) {
		t.Parallel()
		c := newTrio(t)
		c.setUp(onThree())
		testWritesInDoubt(t, c.servers[0].address(), 3)
	})
}

func testWritesInDoubt(t *testing.T, address string, replicas int) {
	for _, f := range []fault{commitLost, answerLost} {
		for _, later := range []int{0, 1, 7, 30} {
			t.Run(fmt.Sprintf("%v, %d writes later", f, later), func(t *testing.T) {
				d := newDoubtful(t, address, func(c *jetstream.KeyValueConfig) { c.History, c.Replicas = 8, replicas })
				base, err := d.sound.CompareAndSet(soon(t), "k", 0, "first", newOp())
				require.NoError(t, err)
				op := d.doubt(f, base)
				d.overwrite(later)
				v, committed, err := d.Outcome(soon(t), "k", op)
				if f == commitLost && later == 30 {
					require.ErrorIs(t, err, natskv.ErrForgotten, "nobody can know")
					d.overwrite(1) // the question did no harm
					return
				}
				require.NoError(t, err)
				require.Equal(t, f == answerLost, committed)
				if !committed && later > 0 {
					d.overwrite(10)
					_, committed, err = d.Outcome(soon(t), "k", op)
					require.NoError(t, err, "what it could tell once it can tell again")
					require.False(t, committed)
					return
				}
				if committed {
					assert.Greater(t, v, base)
					// Sent again, it is not made again.
					again, err := d.CompareAndSet(soon(t), "k", base, "doubtful", op)
					require.NoError(t, err)
					assert.Equal(t, v, again)
				}
				value, _, err := d.sound.Load(soon(t), "k")
				require.NoError(t, err)
				switch {
				case later > 0:
					assert.Equal(t, fmt.Sprint("later ", later-1), value)
				case committed:
					assert.Equal(t, "doubtful", value)
				default:
					assert.Equal(t, "first", value)
				}
			})
		}
	}
}

// TestS31_TheHistoryIsMadeShorter cuts the history of a bucket, and lengthens it
// again, while stores have it open. A write that fell out of it must not pass for one
// that was not made because so few messages are left.
func TestS31_TheHistoryIsMadeShorter(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	for what, lengthened := range map[string]bool{"cut": false, "cut and lengthened again": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := newDoubtful(t, s.Addr().String())
			base, err := d.sound.CompareAndSet(soon(t), "k", 0, "first", newOp())
			require.NoError(t, err)
			never := newOp()
			_, made, err := d.sound.Outcome(soon(t), "k", never)
			require.NoError(t, err)
			require.False(t, made, "the first message proves that none was before")
			op := d.doubt(answerLost, base)
			d.overwrite(3)
			stream, err := admin(t, d.nc).Stream(soon(t), "KV_"+d.kv.Bucket())
			require.NoError(t, err)
			c := stream.CachedInfo().Config
			kept := c.MaxMsgsPerSubject
			c.MaxMsgsPerSubject = 2
			_, err = admin(t, d.nc).UpdateStream(soon(t), c)
			require.NoError(t, err)
			if lengthened {
				c.MaxMsgsPerSubject = kept
				_, err = admin(t, d.nc).UpdateStream(soon(t), c)
				require.NoError(t, err)
			}
			for who, store := range map[string]*natskv.Store[string, string]{"its writer": d.Store, "another": d.sound} {
				_, made, err = store.Outcome(soon(t), "k", op)
				require.NoError(t, err, who)
				require.True(t, made, "%s calls a write lost that was made: only the leader remembers it", who)
				_, _, err = store.Outcome(soon(t), "k", never)
				require.ErrorIs(t, err, natskv.ErrForgotten, "%s: nothing proves that it was not made", who)
			}
		})
	}
}

// TestS31_KeysThatOtherClientsHaveCreated asks about writes that were never made, of
// keys whose first message is another client's.
func TestS31_KeysThatOtherClientsHaveCreated(t *testing.T) {
	t.Parallel()
	_, kv, s := oneServer(t)
	_, err := kv.Create(soon(t), "created", []byte("theirs"))
	require.NoError(t, err)
	_, err = kv.Put(soon(t), "put", []byte("theirs"))
	require.NoError(t, err)
	_, made, err := s.Outcome(soon(t), "created", newOp())
	require.NoError(t, err)
	assert.False(t, made)
	_, _, err = s.Outcome(soon(t), "put", newOp())
	require.ErrorIs(t, err, natskv.ErrForgotten, "nothing proves that it is the first")
}

// TestP15_S46_TheServerForgetsIds restarts the server, which then knows only the
// ids of the messages that it still has.
func TestP15_S46_TheServerForgetsIds(t *testing.T) {
	folder := streaming(t)
	port := freePort(t)
	start := func() *server.Server {
		return natsServer(t, func(o *server.Options) { folder(o); o.Port = port })
	}
	s := start()
	d := newDoubtful(t, s.Addr().String(), func(c *jetstream.KeyValueConfig) { c.History = 8 })
	base, err := d.sound.CompareAndSet(soon(t), "k", 0, "first", newOp())
	require.NoError(t, err)
	kept, lost := newOp(), d.doubt(answerLost, base)
	d.overwrite(20)
	_, v, err := d.sound.Load(soon(t), "k")
	require.NoError(t, err)
	made, err := d.sound.CompareAndSet(soon(t), "k", v, "kept", kept)
	require.NoError(t, err)
	d.overwrite(3)
	s.Shutdown()
	s.WaitForShutdown()
	start()
	eventually(t, d.nc.IsConnected, "no connection")
	var committed bool
	eventually(t, func() bool { // the stream takes a moment
		v, committed, err = d.sound.Outcome(soon(t), "k", kept)
		return err == nil
	}, "no answer")
	assert.True(t, committed)
	assert.Equal(t, made, v)
	_, _, err = d.Outcome(soon(t), "k", lost)
	require.ErrorIs(t, err, natskv.ErrForgotten, "it was made, and nobody knows")
	_, _, err = d.sound.Outcome(soon(t), "k", newOp())
	require.ErrorIs(t, err, natskv.ErrForgotten, "nor of a write that nobody remembers having sent")

	// A write that the server may not know by its id any more is found in the
	// key's history.
	again, err := d.sound.CompareAndSet(soon(t), "k", made-1, "kept", kept)
	require.NoError(t, err)
	assert.Equal(t, made, again)
	_, v, err = d.sound.Load(soon(t), "k")
	require.NoError(t, err)
	assert.Greater(t, v, made)
}

// TestS37_RetriedAfterTheServersHaveForgottenTheId sends writes again once the
// stream's duplicate window is over.
func TestS37_RetriedAfterTheServersHaveForgottenTheId(t *testing.T) {
	t.Parallel()
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	kv, js := newBucket(t, nc), admin(t, nc)
	stream, err := js.Stream(soon(t), "KV_"+kv.Bucket())
	require.NoError(t, err)
	config := stream.CachedInfo().Config
	config.Duplicates = 100 * time.Millisecond
	require.NoError(t, js.DeleteStream(soon(t), config.Name)) // a change would not shorten the window that runs
	create(t, js, config)
	s := openBucket(t, nc, kv.Bucket())
	forgets := func() { time.Sleep(400 * time.Millisecond) }
	set := func(base tidemark.Version, value string, op tidemark.OpID) tidemark.Version {
		t.Helper()
		v, err := s.CompareAndSet(soon(t), "k", base, value, op)
		require.NoError(t, err)
		return v
	}
	unchanged := func(want string) {
		t.Helper()
		value, _, err := s.Load(soon(t), "k")
		if want == "" {
			require.ErrorIs(t, err, tidemark.ErrNotFound)
			return
		}
		require.NoError(t, err)
		assert.Equal(t, want, value)
	}
	create, update, remove := newOp(), newOp(), newOp()
	_, err = s.CompareAndDelete(soon(t), "k", set(0, "0", newOp()), newOp()) // so that they are not the first
	require.NoError(t, err)
	v1 := set(0, "1", create)
	v2 := set(v1, "2", update)
	forgets()
	assert.Equal(t, v2, set(v1, "2", update), "with the same base")
	assert.Equal(t, v2, set(v2, "2", update), "based on itself")
	assert.Equal(t, v1, set(0, "1", create), "a creation of what is there")
	unchanged("2")
	v3 := set(v2, "3", newOp())
	assert.Equal(t, v2, set(v1, "2", update), "of what was overwritten")
	unchanged("3")
	d, err := s.CompareAndDelete(soon(t), "k", v3, remove)
	require.NoError(t, err)
	forgets()
	again, err := s.CompareAndDelete(soon(t), "k", v3, remove)
	require.NoError(t, err)
	assert.Equal(t, d, again)
	assert.Equal(t, v1, set(0, "1", create), "a creation of what was deleted since")
	unchanged("")
	set(0, "4", newOp())
	again, err = s.CompareAndDelete(soon(t), "k", v3, remove)
	require.NoError(t, err)
	assert.Equal(t, d, again)
	unchanged("4")
	later := func(times int) {
		for range times {
			_, v, err := s.Load(soon(t), "k")
			require.NoError(t, err)
			set(v, "later", newOp())
		}
	}
	_, base, err := s.Load(soon(t), "k")
	require.NoError(t, err)
	overwritten := newOp()
	v := set(base, "5", overwritten)
	later(15) // with its own the bucket keeps 16
	forgets()
	assert.Equal(t, v, set(base, "5", overwritten), "the last that the history has, without its base")
	unchanged("later")
	later(1)
	forgets()
	_, err = s.CompareAndSet(soon(t), "k", base, "5", overwritten)
	require.ErrorAs(t, err, new(*tidemark.ConflictError))
	unchanged("later")
}

// TestNATSKV_TheLinkBreaksUnderAWrite: nothing is known of the write then, and
// nobody has given it up.
func TestNATSKV_TheLinkBreaksUnderAWrite(t *testing.T) {
	server := natsServer(t, streaming(t))
	nc := dial(t, server.ClientURL())
	kv, link := newBucket(t, nc), newCable(t, server)
	url := beforeFirst(t, strings.TrimPrefix(link.url(), "nats://"), jetstream.MsgIDHeader, link.cut)
	s := openBucket(t, dial(t, url, quiet), kv.Bucket())
	_, err := s.CompareAndSet(soon(t), "k", 0, "v", newOp())
	require.ErrorContains(t, err, "the link broke")
	require.NotErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, tidemark.ErrUnavailable, "it may have been written")
}

// TestP17_TheBucketIsMadeAnewUnderAWrite replaces the bucket while the message of
// a creation is on its way.
func TestP17_TheBucketIsMadeAnewUnderAWrite(t *testing.T) {
	server := natsServer(t, streaming(t))
	nc := dial(t, server.ClientURL())
	kv := newBucket(t, nc)
	url := beforeFirst(t, server.Addr().String(), jetstream.MsgIDHeader, func() { makeAnew(t, nc, kv.Bucket()) })
	s := openBucket(t, dial(t, url), kv.Bucket())
	for range 5 {
		_, _, err := s.Load(soon(t), "k")
		require.ErrorIs(t, err, tidemark.ErrNotFound)
	}
	_, err := s.CompareAndSet(soon(t), "k", 0, "v", newOp())
	require.ErrorIs(t, err, natskv.ErrRecreated)
	require.NotErrorIs(t, err, tidemark.ErrUnavailable, "it was written")
	_, _, err = s.Load(soon(t), "k")
	require.ErrorIs(t, err, natskv.ErrRecreated)
}

// TestNATSKV_LargeAnswers reads more at once than the server sends at once.
func TestNATSKV_LargeAnswers(t *testing.T) {
	t.Parallel()
	_, _, s := oneServer(t)
	var keys []string
	for i := range 11 {
		key := fmt.Sprint("k", i)
		keys = append(keys, key, fmt.Sprint("absent ", i))
		_, err := s.CompareAndSet(soon(t), key, 0, strings.Repeat(strconv.Itoa(i), 900<<10)[:900<<10], newOp())
		require.NoError(t, err)
	}
	many, err := s.LoadMany(soon(t), keys)
	require.NoError(t, err)
	versions, err := s.LoadVersions(soon(t), keys)
	require.NoError(t, err)
	require.Len(t, versions, 11)
	for i := range 11 {
		l := many[fmt.Sprint("k", i)]
		require.NoError(t, l.Err)
		assert.Len(t, l.Value, 900<<10)
		assert.True(t, strings.HasPrefix(l.Value, strconv.Itoa(i)))
		assert.Equal(t, l.Version, versions[fmt.Sprint("k", i)])
		assert.True(t, many[fmt.Sprint("absent ", i)].Absent)
	}
}

// TestS32_AWriteThatWasCalledLostIsNotMadeLater asks what became of a write whose
// message is still under way, and then lets it arrive.
func TestS32_AWriteThatWasCalledLostIsNotMadeLater(t *testing.T) {
	t.Parallel()
	s := natsServer(t, streaming(t))
	for name, prepare := range map[string]func(*doubtful) (base, expected tidemark.Version){
		"update": func(d *doubtful) (base, expected tidemark.Version) {
			v, err := d.sound.CompareAndSet(soon(t), "k", 0, "first", newOp())
			require.NoError(t, err)
			return v, v
		},
		"creation": func(*doubtful) (base, expected tidemark.Version) { return 0, 0 },
		"creation over a deletion": func(d *doubtful) (base, expected tidemark.Version) {
			v, err := d.sound.CompareAndSet(soon(t), "k", 0, "first", newOp())
			require.NoError(t, err)
			v, err = d.sound.CompareAndDelete(soon(t), "k", v, newOp())
			require.NoError(t, err)
			return 0, v
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDoubtful(t, s.Addr().String())
			base, expected := prepare(d)
			before, at, notFound := d.sound.Load(soon(t), "k")
			op := d.doubt(commitLost, base)
			_, committed, err := d.Outcome(soon(t), "k", op)
			require.NoError(t, err)
			require.False(t, committed)
			value, v, err := d.sound.Load(soon(t), "k")
			require.Equal(t, notFound, err)
			require.Equal(t, at, v, "asking too early changes nothing")
			require.Equal(t, before, value)

			time.Sleep(2200 * time.Millisecond)
			_, committed, err = d.Outcome(soon(t), "k", op)
			require.NoError(t, err)
			require.False(t, committed)
			late := nats.NewMsg("$KV." + d.kv.Bucket() + ".k")
			late.Data = []byte("doubtful")
			_, err = admin(t, d.nc).PublishMsg(soon(t), late, jetstream.WithExpectLastSequencePerSubject(uint64(expected)))
			require.Error(t, err, "the message is taken after the write was called lost")
			value, v, err = d.sound.Load(soon(t), "k")
			require.Equal(t, errors.Is(notFound, tidemark.ErrNotFound), errors.Is(err, tidemark.ErrNotFound))
			require.Equal(t, before, value, "settling changes no value")
			require.Greater(t, v, at)
			_, committed, err = d.Outcome(soon(t), "k", op)
			require.NoError(t, err)
			require.False(t, committed)
		})
	}
}

// TestI10_NoUpdateIsLostWhileServersDie counts in a bucket on three servers, of
// which one dies and comes back, and then another is cut off. Every increment that
// was acknowledged, or settled as committed, is in the sum, and no other.
func TestI10_NoUpdateIsLostWhileServersDie(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	anywhere := dial(t, c.anywhere(0), quiet)
	kv := newBucket(t, anywhere, onThreeServers, func(c *jetstream.KeyValueConfig) { c.History = 64 })
	const writers = 4
	over := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum, doubts := 0, 0
	var settling atomic.Int32
	end := sync.OnceFunc(func() { close(over); wg.Wait() })
	defer end()
	for i := range writers {
		nc := dial(t, c.anywhere(i%3), quiet)
		store, err := natskv.New(soon(t), nc, natskv.Options[string, int]{Bucket: kv.Bucket()})
		require.NoError(t, err)
		cache, err := tidemark.New(tidemark.Options[string, int]{Store: store, DoubtTimeout: 3 * time.Second, LoadTimeout: 3 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, cache.Close(context.Background())) })
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if settling.Load() > 0 { // or the history would be over before whoever is cut off can ask (ErrForgotten)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				_, err := cache.Update(ctx, "sum", func(cur tidemark.Entry[int]) (int, error) { return cur.Value + 1, nil })
				cancel()
				committed := err == nil
				var uncertain *tidemark.UncertainError
				if errors.As(err, &uncertain) {
					settling.Add(1)
					ctx, cancel := context.WithTimeout(t.Context(), outlast)
					var unsettled error
					_, committed, unsettled = uncertain.Wait(ctx)
					cancel()
					settling.Add(-1)
					if !assert.NoError(t, unsettled, "a write is never settled: %v", err) {
						return
					}
					mu.Lock()
					doubts++
					mu.Unlock()
				}
				if committed {
					mu.Lock()
					sum++
					mu.Unlock()
				}
				time.Sleep(100*time.Millisecond + rand.N(50*time.Millisecond))
			}
		})
	}
	x := c.leaderOf(kv)
	time.Sleep(500 * time.Millisecond)
	c.servers[x].kill()
	y := c.leaderOf(kv, x)
	time.Sleep(500 * time.Millisecond)
	c.start(x)
	eventually(t, func() bool { return c.wholeStream(admin(t, anywhere), "KV_"+kv.Bucket()) }, "server %d does not come back", x)
	c.isolate(y, outages["cut"])
	c.leaderOf(kv, y)
	time.Sleep(time.Second)
	c.heal()
	eventually(t, func() bool { return c.wholeStream(admin(t, anywhere), "KV_"+kv.Bucket()) }, "server %d does not come back", y)
	end()
	if t.Failed() {
		return
	}
	last := openBucket(t, dial(t, c.at(0), quiet), kv.Bucket())
	var value string
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		value, _, err = last.Load(ctx, "sum")
		return err == nil
	}, "the bucket does not come back")
	require.Equal(t, strconv.Itoa(sum), value, "acknowledged and settled increments, and what is there")
	t.Logf("%d increments, of which %d were in doubt", sum, doubts)
}
