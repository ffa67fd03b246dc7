package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/tidemark-go/tidemark/store/storetest"
)

// newBucket creates a bucket that nobody else uses.
func newBucket(t testing.TB, nc *nats.Conn, change ...func(*jetstream.KeyValueConfig)) (kv jetstream.KeyValue) {
	t.Helper()
	c := natskv.BucketConfig("b_" + unique())
	c.Replicas, c.MaxBytes = 1, 12<<20
	for _, f := range change {
		f(&c)
	}
	kv, err := admin(t, nc).CreateKeyValue(soon(t), c)
	require.NoError(t, err)
	return kv
}

// makeAnew deletes a bucket and creates it again, and leaves a mark in it, as other
// replicas would.
func makeAnew(t testing.TB, nc *nats.Conn, bucket string) (kv jetstream.KeyValue) {
	t.Helper()
	js := admin(t, nc)
	require.NoError(t, js.DeleteKeyValue(soon(t), bucket))
	c := natskv.BucketConfig(bucket)
	c.Replicas = 1
	onceCleared(t, func() (err error) {
		kv, err = js.CreateKeyValue(soon(t), c)
		return err
	})
	openBucket(t, nc, bucket)
	return kv
}

func onThreeServers(c *jetstream.KeyValueConfig) { c.Replicas = 3 }

// openBucket returns a store on a bucket.
func openBucket(t testing.TB, nc *nats.Conn, bucket string) *natskv.Store[string, string] {
	t.Helper()
	s, err := natskv.New(soon(t), nc, natskv.Options[string, string]{Bucket: bucket})
	require.NoError(t, err)
	return s
}

// oneServer returns a connection to a server of its own, a bucket and a store.
func oneServer(t testing.TB, change ...func(*jetstream.KeyValueConfig)) (*nats.Conn, jetstream.KeyValue, *natskv.Store[string, string]) {
	t.Helper()
	nc := dial(t, natsServer(t, streaming(t)).ClientURL(), quiet)
	kv := newBucket(t, nc, change...)
	return nc, kv, openBucket(t, nc, kv.Bucket())
}

// mostOf is how large the largest value is: a server takes 1 MiB of a message and
// its headers.
const mostOf = 1<<20 - 1<<10

// TestNATSKV_OnOne is the conformance suite on one server.
func TestNATSKV_OnOne(t *testing.T) {
	t.Parallel()
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	kv := newBucket(t, nc)
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		return openBucket(t, nc, kv.Bucket())
	}, storetest.Options{LargeValue: mostOf, RewritesAfter: 2 * time.Second})
}

// TestNATSKV_OnThree is the conformance suite on a cluster, whose servers answer
// in turn.
func TestNATSKV_OnThree(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	nc := dial(t, c.at(0))
	kv := newBucket(t, nc, onThreeServers)
	storetest.Run(t, func(t *testing.T) tidemark.Store[string, string] {
		return openBucket(t, nc, kv.Bucket())
	}, storetest.Options{LargeValue: mostOf, RewritesAfter: 2 * time.Second})
}

// TestNATSKV_Refuses lists the buckets that New does not take.
func TestNATSKV_Refuses(t *testing.T) {
	nc := dial(t, natsServer(t, streaming(t)).ClientURL())
	for want, change := range map[string]func(*jetstream.KeyValueConfig){
		"in memory":            func(c *jetstream.KeyValueConfig) { c.Storage = jetstream.MemoryStorage },
		"history of 1":         func(c *jetstream.KeyValueConfig) { c.History = 1 },
		"TTL but no limit":     func(c *jetstream.KeyValueConfig) { c.TTL = time.Hour },
		"TTL, under which the": func(c *jetstream.KeyValueConfig) { c.TTL, c.LimitMarkerTTL = time.Hour, time.Minute },
	} {
		kv := newBucket(t, nc, change)
		_, err := natskv.New(soon(t), nc, natskv.Options[string, string]{Bucket: kv.Bucket()})
		var mistake *tidemark.OptionError
		require.ErrorAs(t, err, &mistake, want)
		assert.Equal(t, "Bucket", mistake.Field)
		assert.ErrorContains(t, err, want)
	}
	_, err := natskv.New(soon(t), nc, natskv.Options[string, string]{Bucket: "absent"})
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
}

// TestP16_OtherClientsOfTheBucket changes keys with another client, in all its
// ways. Each is seen with its revision, and what is written next is above.
func TestP16_OtherClientsOfTheBucket(t *testing.T) {
	_, kv, s := oneServer(t)
	ctx := soon(t)
	var last uint64
	wantValue := func(value string, revision uint64) {
		t.Helper()
		got, v, err := s.Load(ctx, "accounts.4711")
		require.NoError(t, err)
		assert.Equal(t, value, got)
		assert.EqualValues(t, revision, v)
		assert.Greater(t, revision, last)
		last = revision
	}
	wantAbsent := func(how string) {
		t.Helper()
		_, v, err := s.Load(ctx, "accounts.4711")
		require.ErrorIs(t, err, tidemark.ErrNotFound, how)
		assert.Greater(t, uint64(v), last, "%s: the absence has a version, above that of the value", how)
		last = uint64(v)
	}
	for _, remove := range []func(context.Context, string, ...jetstream.KVDeleteOpt) error{kv.Delete, kv.Purge} {
		r, err := kv.Put(ctx, "accounts.4711", []byte("theirs"))
		require.NoError(t, err)
		wantValue("theirs", r)
		v, err := s.CompareAndSet(ctx, "accounts.4711", tidemark.Version(r), "ours", newOp())
		require.NoError(t, err)
		e, err := kv.Get(ctx, "accounts.4711")
		require.NoError(t, err)
		assert.Equal(t, "ours", string(e.Value()))
		wantValue("ours", uint64(v))
		require.NoError(t, remove(ctx, "accounts.4711"))
		wantAbsent("removed")
		d := last
		v, err = s.CompareAndSet(ctx, "accounts.4711", 0, "again", newOp())
		require.NoError(t, err)
		assert.Greater(t, uint64(v), d)
		wantValue("again", uint64(v))
		deleted, err := s.CompareAndDelete(ctx, "accounts.4711", v, newOp())
		require.NoError(t, err)
		_, err = kv.Get(ctx, "accounts.4711")
		require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
		wantAbsent("deleted by the store")
		assert.EqualValues(t, deleted, last)
	}
	// The markers are cleared away: nobody knows the version of the absence any
	// more, and yet the key does not go back.
	require.NoError(t, kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(-1)))
	_, v, err := s.Load(ctx, "accounts.4711")
	require.ErrorIs(t, err, tidemark.ErrNotFound)
	assert.Zero(t, v)
	v, err = s.CompareAndSet(ctx, "accounts.4711", 0, "once more", newOp())
	require.NoError(t, err)
	wantValue("once more", uint64(v))
}

// TestP18_ExpiredKeys lets a key of a bucket with limit markers expire: the marker
// is an absence with a version.
func TestP18_ExpiredKeys(t *testing.T) {
	t.Parallel()
	marked := func(c *jetstream.KeyValueConfig) { c.LimitMarkerTTL = 2 * time.Second }
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		_, kv, s := oneServer(t, marked)
		testExpiredKeys(t, kv, s)
	})
	t.Run("three servers", func(t *testing.T) {
		t.Parallel()
		c := newTrio(t)
		c.setUp(onThree())
		nc := dial(t, c.at(0), quiet)
		kv := newBucket(t, nc, onThreeServers, marked)
		testExpiredKeys(t, kv, openBucket(t, nc, kv.Bucket()))
	})
}

func testExpiredKeys(t *testing.T, kv jetstream.KeyValue, s *natskv.Store[string, string]) {
	r, err := kv.Create(soon(t), "k", []byte("for two seconds"), jetstream.KeyTTL(2*time.Second))
	require.NoError(t, err)
	value, v, err := s.Load(soon(t), "k")
	require.NoError(t, err)
	assert.Equal(t, "for two seconds", value)
	assert.EqualValues(t, r, v)
	within(t, func() bool {
		_, v, err = s.Load(soon(t), "k")
		return errors.Is(err, tidemark.ErrNotFound)
	}, "the key does not expire")
	assert.Greater(t, uint64(v), r)
	again, err := s.CompareAndSet(soon(t), "k", 0, "again", newOp())
	require.NoError(t, err)
	assert.Greater(t, again, v)
}

// TestP17_TheBucketIsMadeAnew deletes the bucket under two stores and creates it
// again, with other keys at the same revisions. Nothing of it passes for what was
// there before.
func TestP17_TheBucketIsMadeAnew(t *testing.T) {
	nc, kv, s := oneServer(t)
	other := openBucket(t, nc, kv.Bucket())
	base, err := s.CompareAndSet(soon(t), "k", 0, "before", newOp())
	require.NoError(t, err)
	kv = makeAnew(t, nc, kv.Bucket())
	for range 10 {
		_, err = kv.Put(soon(t), "k", []byte("after"))
		require.NoError(t, err)
	}
	_, _, err = s.Load(soon(t), "k")
	require.ErrorIs(t, err, natskv.ErrRecreated)
	_, err = s.CompareAndSet(soon(t), "k", base, "again", newOp())
	require.ErrorIs(t, err, natskv.ErrRecreated)
	require.ErrorIs(t, err, tidemark.ErrUnavailable)
	_, err = other.CompareAndSet(soon(t), "new", 0, "again", newOp())
	require.ErrorIs(t, err, natskv.ErrRecreated, "a creation, by a store that has not looked since")
	_, err = other.LoadMany(soon(t), []string{"k"})
	require.ErrorIs(t, err, natskv.ErrRecreated)
	_, err = other.LoadVersions(soon(t), []string{"k"})
	require.ErrorIs(t, err, natskv.ErrRecreated)
	_, _, err = other.Outcome(soon(t), "k", newOp())
	require.ErrorIs(t, err, natskv.ErrRecreated)
	_, err = kv.Get(soon(t), "new")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
}

// TestNATSKV_Permissions has a client that may do what the package comment says, and
// nothing else.
func TestNATSKV_Permissions(t *testing.T) {
	const bucket = "accounts"
	folder := streaming(t)
	s := natsServer(t, func(o *server.Options) {
		folder(o)
		o.Users = []*server.User{
			{Username: "admin", Password: "admin"},
			{Username: "cache", Password: "cache", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: []string{
					"$KV." + bucket + ".>", "$JS.API.STREAM.INFO.KV_" + bucket, "$JS.API.DIRECT.GET.KV_" + bucket,
					"$JS.API.CONSUMER.CREATE.KV_" + bucket + ".>", "$JS.API.CONSUMER.MSG.NEXT.KV_" + bucket + ".>",
					"$JS.API.CONSUMER.DELETE.KV_" + bucket + ".>",
				}},
				Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
			}},
		}
	})
	c := natskv.BucketConfig(bucket)
	c.Replicas = 1
	kv, err := admin(t, dial(t, s.ClientURL(), nats.UserInfo("admin", "admin"))).CreateKeyValue(soon(t), c)
	require.NoError(t, err)
	var mu sync.Mutex
	var complaints []error
	l := newListener(t, dial(t, s.ClientURL(), nats.UserInfo("cache", "cache"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		mu.Lock()
		defer mu.Unlock()
		complaints = append(complaints, err)
	})), bucket)
	for i := range 3 {
		_, err = l.Update(soon(t), "k", func(tidemark.Entry[string]) (string, error) { return strconv.Itoa(i), nil })
		require.NoError(t, err)
	}
	_, err = kv.Put(soon(t), "k", []byte("theirs"))
	require.NoError(t, err)
	l.has(t, "k", "theirs")
	_, _, err = l.store.Outcome(soon(t), "k", newOp())
	require.NoError(t, err)
	l.stop()
	require.ErrorIs(t, <-l.ended, context.Canceled)
	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, complaints)
}

// TestNATSKV_TooLarge writes what the server, or the bucket, does not take.
func TestNATSKV_TooLarge(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*jetstream.KeyValueConfig){
		"max_payload":  func(*jetstream.KeyValueConfig) {},
		"MaxValueSize": func(c *jetstream.KeyValueConfig) { c.MaxValueSize = 2048 },
	} {
		nc, kv, s := oneServer(t, change)
		size := int(nc.MaxPayload())
		if name == "MaxValueSize" {
			size = 2048
		}
		for _, n := range []int{size, size - 50} { // with its headers
			_, err := s.CompareAndSet(soon(t), "k", 0, strings.Repeat("x", n), newOp())
			require.ErrorIs(t, err, tidemark.ErrTooLarge, name)
			require.ErrorIs(t, err, tidemark.ErrUnavailable, name)
		}
		v, err := s.CompareAndSet(soon(t), "k", 0, strings.Repeat("x", size-512), newOp())
		require.NoError(t, err, name)
		assert.True(t, nc.IsConnected())
		_, err = s.CompareAndSet(soon(t), strings.Repeat("k", 1025), 0, "v", newOp())
		require.ErrorIs(t, err, tidemark.ErrUnavailable, "a key too long")
		_, _, err = s.Load(soon(t), strings.Repeat(".", 400))
		require.Error(t, err)
		assert.NotErrorIs(t, err, tidemark.ErrNotFound, "a key too long is not an absent one")
		long := strings.Repeat("k", 1024)
		_, err = s.CompareAndSet(soon(t), long, 0, "v", newOp())
		require.NoError(t, err)
		many, err := s.LoadMany(soon(t), []string{long, "k", strings.Repeat("k", 1025)})
		require.NoError(t, err)
		assert.Equal(t, "v", many[long].Value)
		assert.Equal(t, v, many["k"].Version)
		assert.Error(t, many[strings.Repeat("k", 1025)].Err)
		assert.NotNil(t, kv)
	}
}

// TestNATSKV_FullBucket fills a bucket. The write that finds no room has
// certainly not been made.
func TestNATSKV_FullBucket(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	nc := dial(t, c.at(0))
	for _, replicas := range []int{1, 3} {
		kv := newBucket(t, nc, func(c *jetstream.KeyValueConfig) { c.Replicas, c.MaxBytes = replicas, 64<<10 })
		s := openBucket(t, nc, kv.Bucket())
		var err error
		for i := 0; err == nil; i++ {
			require.Less(t, i, 20)
			_, err = s.CompareAndSet(soon(t), fmt.Sprint("k", i), 0, strings.Repeat("x", 10<<10), newOp())
		}
		require.ErrorIs(t, err, tidemark.ErrUnavailable, "%d replicas", replicas)
		value, _, err := s.Load(soon(t), "k0")
		require.NoError(t, err, "what is there can be read")
		assert.Len(t, value, 10<<10)
	}
}

// leaderOf returns who leads a bucket's stream, as one of those who say so.
func (c *trio) leaderOf(kv jetstream.KeyValue, except ...int) int {
	c.t.Helper()
	return c.streamLeader("KV_"+kv.Bucket(), except...)
}

// directly asks whichever server answers for the last message of a key, as a KV
// client does.
func directly(nc *nats.Conn, bucket, key string) (value string, err error) {
	return ask(nc, "$JS.API.DIRECT.GET.KV_"+bucket+".$KV."+bucket+"."+key, nil, func(m *nats.Msg) string { return string(m.Data) })
}

// theLeader asks whoever takes himself for the leader.
func theLeader(nc *nats.Conn, bucket, key string) (value string, err error) {
	return ask(nc, "$JS.API.STREAM.MSG.GET.KV_"+bucket, []byte(`{"last_by_subj":"$KV.`+bucket+`.`+key+`"}`), func(m *nats.Msg) string {
		var answer struct {
			Message struct{ Data []byte }
		}
		_ = json.Unmarshal(m.Data, &answer) // which the test sees
		return string(answer.Message.Data)
	})
}

func ask(nc *nats.Conn, subject string, body []byte, value func(*nats.Msg) string) (string, error) {
	m, err := nc.Request(subject, body, 30*time.Millisecond)
	if err != nil {
		return "", err
	}
	return value(m), nil
}

// TestP21_P22_S54_CutOffServersAreNotBelieved takes one server away from the two
// others, which go on writing, and asks it. What other clients then read there is
// old; a Load fails instead, or is current.
func TestP21_P22_S54_CutOffServersAreNotBelieved(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			c := newTrio(t)
			c.setUp(onThree())
			kv := newBucket(t, dial(t, c.at(0), quiet), onThreeServers)
			x := c.leaderOf(kv)
			if who == "follower" {
				x, _ = c.others(x)
			}
			y, _ := c.others(x)
			there, here := dial(t, c.at(x), quiet), dial(t, c.at(y), quiet)
			alone, writer := openBucket(t, there, kv.Bucket()), openBucket(t, here, kv.Bucket())
			base, err := writer.CompareAndSet(soon(t), "k", 0, "old", newOp())
			require.NoError(t, err)
			eventually(t, func() bool {
				v, err := directly(there, kv.Bucket(), "k")
				return err == nil && v == "old"
			}, "not replicated")

			c.isolate(x, outages["black hole"])
			var written tidemark.Version
			op := newOp()
			eventually(t, func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				written, err = writer.CompareAndSet(ctx, "k", base, "new", op)
				if err != nil {
					if v, committed, asked := writer.Outcome(ctx, "k", op); asked == nil && committed {
						written, err = v, nil
					}
				}
				return err == nil
			}, "the majority does not write")
			var oldDirect, oldLeader, refused int
			for began := time.Now(); time.Since(began) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
				for range 5 { // two of three are asked of the other servers
					if v, err := directly(there, kv.Bucket(), "k"); err == nil && v == "old" {
						oldDirect++
					}
				}
				if v, err := theLeader(there, kv.Bucket(), "k"); err == nil && v == "old" {
					oldLeader++
				}
				for _, read := range []func(context.Context) (tidemark.Version, error){
					func(ctx context.Context) (tidemark.Version, error) { _, v, err := alone.Load(ctx, "k"); return v, err },
					func(ctx context.Context) (tidemark.Version, error) {
						m, err := alone.LoadMany(ctx, []string{"k"})
						return m["k"].Version, err
					},
					func(ctx context.Context) (tidemark.Version, error) {
						m, err := alone.LoadVersions(ctx, []string{"k"})
						return m["k"], err
					},
				} {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					v, err := read(ctx)
					cancel()
					if err != nil {
						refused++
						continue
					}
					require.GreaterOrEqual(t, v, written, "a read of what was overwritten")
				}
			}
			t.Logf("old answers at the server that is alone: %d direct, %d of it as the leader; %d loads refused", oldDirect, oldLeader, refused)
			require.NotZero(t, oldDirect, "the pitfall was not there")
			require.NotZero(t, refused)
			c.heal()
			eventually(t, func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				value, v, err := alone.Load(ctx, "k")
				return err == nil && value == "new" && v >= written
			}, "the server does not come back")
		})
	}
}

// TestP21_PartialPartition cuts one follower off from the leader, and not from the
// third server, whose clients then get the answers of both.
func TestP21_PartialPartition(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.setUp(onThree())
	kv := newBucket(t, dial(t, c.at(0), quiet), onThreeServers)
	y := c.leaderOf(kv)
	x, z := c.others(y)
	nc := dial(t, c.at(z), quiet)
	reader, writer := openBucket(t, nc, kv.Bucket()), openBucket(t, dial(t, c.at(y), quiet), kv.Bucket())
	v, err := writer.CompareAndSet(soon(t), "k", 0, "0", newOp())
	require.NoError(t, err)
	outages["black hole"](c.routes[x][y], true)
	outages["black hole"](c.routes[y][x], false)
	var acked atomic.Uint64
	acked.Store(uint64(v))
	writing, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; writing.Err() == nil; i++ {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, base, err := writer.Load(ctx, "k")
			if err == nil {
				v, err = writer.CompareAndSet(ctx, "k", base, strconv.Itoa(i), newOp())
			}
			if err == nil {
				acked.Store(uint64(v))
			}
			cancel()
		}
	})
	var loads, stale, failed int
	for writing.Err() == nil {
		least := acked.Load()
		if s, err := nc.Request("$JS.API.DIRECT.GET.KV_"+kv.Bucket()+".$KV."+kv.Bucket()+".k", nil, 200*time.Millisecond); err == nil {
			if n, _ := strconv.ParseUint(s.Header.Get("Nats-Sequence"), 10, 64); n != 0 && n < least {
				stale++
			}
		}
		least = acked.Load()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		_, v, err := reader.Load(ctx, "k")
		cancel()
		if err != nil {
			failed++
			continue
		}
		loads++
		require.GreaterOrEqual(t, uint64(v), least, "a read of what was overwritten")
	}
	wg.Wait()
	t.Logf("%d loads, none stale, %d failed; %d of as many direct gets were stale; up to revision %d", loads, failed, stale, acked.Load())
	require.NotZero(t, loads)
}
