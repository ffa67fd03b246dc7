package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
	"github.com/tidemark-go/tidemark/store/natskv"
)

// A role is a row of the table of permissions in docs/security.md.
type role struct {
	name               string
	publish, subscribe []string
	responses          bool
}

const permittedBucket = "accounts"

// documentedRoles reads the table.
func documentedRoles(t *testing.T) map[string]role {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(text), "| who | may publish to | may subscribe to |\n|---|---|---|\n")
	require.True(t, found)
	span := regexp.MustCompile("`([^`]+)`")
	names := strings.NewReplacer("NAME", natsCache, "BUCKET", permittedBucket, ".S.", "."+tidemark.NATSStreamName(natsCache)+".")
	roles := map[string]role{}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 {
			break
		}
		r := role{name: strings.TrimSpace(cells[1])}
		for i, to := range []*[]string{&r.publish, &r.subscribe} {
			for _, m := range span.FindAllStringSubmatch(cells[2+i], -1) {
				if m[1] == "allow_responses" {
					r.responses = true
					continue
				}
				subject := names.Replace(m[1] + ".")
				*to = append(*to, strings.TrimSuffix(subject, "."))
			}
		}
		roles[r.name] = r
	}
	return roles
}

// permissions are what a server of the tests lets the user do who has the role.
func (r role) permissions() *server.Permissions {
	p := &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: r.publish},
		Subscribe: &server.SubjectPermission{Allow: r.subscribe},
	}
	if len(r.publish) == 0 {
		p.Publish.Deny = []string{">"}
	}
	if len(r.subscribe) == 0 {
		p.Subscribe.Deny = []string{">"}
	}
	if r.responses {
		p.Response = &server.ResponsePermission{MaxMsgs: 100, Expires: time.Minute}
	}
	return p
}

// without returns the roles that lack one permission of r, by what they lack.
func (r role) without() map[string]role {
	all := map[string]role{}
	for i, subject := range r.publish {
		less := r
		less.publish = slices.Delete(slices.Clone(r.publish), i, i+1)
		all["publish "+subject] = less
	}
	for i, subject := range r.subscribe {
		less := r
		less.subscribe = slices.Delete(slices.Clone(r.subscribe), i, i+1)
		all["subscribe "+subject] = less
	}
	if r.responses {
		less := r
		less.responses = false
		all["responses"] = less
	}
	return all
}

// A stage is where somebody with restricted permissions shows that he can do his
// work: a server, and a free connection beside his.
type stage struct {
	t         *testing.T
	restrict  *nats.Conn
	free      *nats.Conn
	most      time.Duration // to wait for anything
	mu        sync.Mutex    // guards complaint
	complaint error         // of the server, about him
}

func newStage(t *testing.T, r role, most time.Duration) *stage {
	t.Helper()
	folder, users := streaming(t), restricted(r.permissions())
	s := natsServer(t, func(o *server.Options) { folder(o); users(o) })
	st := &stage{t: t, most: most, free: dial(t, s.ClientURL(), nats.UserInfo("free", "secret"))}
	st.restrict = dial(t, s.ClientURL(), nats.UserInfo("restricted", "secret"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.complaint = errors.Join(st.complaint, err)
		}
	}))
	return st
}

// complained returns what the server has complained of, for which it waits so long:
// nats.go hands it on in its own time.
func (st *stage) complained(most time.Duration) error {
	_ = st.restrict.FlushTimeout(time.Second) // or the connection is closed
	for deadline := time.Now().Add(most); ; time.Sleep(time.Millisecond) {
		st.mu.Lock()
		complaint := st.complaint
		st.mu.Unlock()
		if complaint != nil || time.Now().After(deadline) {
			return complaint
		}
	}
}

// brief is how long he waits.
func (st *stage) brief() context.Context {
	ctx, cancel := context.WithTimeout(st.t.Context(), st.most)
	st.t.Cleanup(cancel)
	return ctx
}

var errNotSeen = errors.New("it was not seen to happen")

// until waits for cond, for a while.
func (st *stage) until(cond func() bool) error {
	for deadline := time.Now().Add(st.most); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errNotSeen
		}
	}
	return nil
}

// asReplica does all that a replica does: it hears and is heard, before and after the
// link and the stream were lost, and leaves nothing behind.
func (st *stage) asReplica(o tidemark.NATSOptions) error {
	t, l := st.t, newLedger()
	l.set("k", 1)
	own := o
	if o.Stream != nil {
		require.NoError(t, tidemark.SetUpNATSStream(soon(t), st.free, o))
		existing := *o.Stream
		existing.Existing = true
		own.Stream = &existing
	}
	free := newReplica(t, l, tidemark.NATS(st.free, o))
	ready(t, free)
	c, err := tidemark.New(tidemark.Options[string, int]{Store: l, Invalidator: tidemark.NATS(st.restrict, own)})
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = c.Close(ctx) // it may have said what it could
		}
	}()
	steps := []func() error{
		func() error { return c.Ready(st.brief()) },
		func() error { return st.hears(c, free) },
		func() error { return errors.Join(st.restrict.ForceReconnect(), c.Ready(st.brief())) },
		func() error { return st.until(func() bool { return !c.Stats().CutOff }) },
		func() error { return st.hears(c, free) },
	}
	if o.Stream != nil {
		js := admin(t, st.free)
		steps = append(steps,
			func() error {
				return errors.Join(js.DeleteStream(soon(t), tidemark.NATSStreamName(o.Name)), tidemark.SetUpNATSStream(soon(t), st.free, o))
			},
			func() error {
				return st.until(func() bool { return c.Stats().State == tidemark.Fresh && free.Stats().State == tidemark.Fresh })
			},
			func() error { return st.hears(c, free) },
		)
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	closed = true
	if err := c.Close(st.brief()); err != nil {
		return err
	}
	if o.Stream == nil {
		return nil
	}
	return st.until(func() bool { return len(consumers(t, admin(t, st.free))) == 1 }) // the free one's
}

// hears demands that each of them hears what the other one writes.
func (st *stage) hears(c *tidemark.Cache[string, int], free *replica) error {
	both := []*tidemark.Cache[string, int]{c, free.Cache}
	for i, writer := range both {
		reader := both[1-i]
		if err := st.until(func() bool {
			_, err := reader.Load(st.t.Context(), "k")
			_, ok := reader.Get("k")
			return err == nil && ok
		}); err != nil {
			return fmt.Errorf("it holds nothing: %w", err)
		}
		e, err := writer.Update(st.brief(), "k", plusOne)
		if err != nil {
			return err
		}
		if err := st.until(func() bool {
			have, err := reader.Load(st.t.Context(), "k")
			return err == nil && have.Version >= e.Version
		}); err != nil {
			return fmt.Errorf("it does not hear: %w", err)
		}
	}
	return nil
}

// asPublisher tells a replica of a change.
func (st *stage) asPublisher(o tidemark.NATSOptions, resumes bool) error {
	t, l := st.t, newLedger()
	l.set("k", 1)
	free := newReplica(t, l, tidemark.NATS(st.free, o))
	ready(t, free)
	holds(t, "k", free)
	own := o
	if o.Stream != nil {
		existing := *o.Stream
		existing.Existing = true
		own.Stream = &existing
	}
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[string]{Invalidator: tidemark.NATS(st.restrict, own), Resumes: resumes})
	if err != nil {
		return err
	}
	ctx := st.brief()
	err = p.Invalidate(ctx, "k", 7)
	if resumes {
		err = errors.Join(err, p.Answer(tidemark.Probe{Origin: 1, Nonce: 1}))
	}
	err = errors.Join(err, p.Close(ctx))
	if err != nil {
		return err
	}
	return st.until(func() bool { return free.Explain("k").TideMark == 7 })
}

func (st *stage) asAnswering() error {
	cache, err := tidemark.New(tidemark.Options[string, int]{})
	require.NoError(st.t, err)
	defer cache.Close(context.Background())
	view, err := ops.New(cache, ops.Options[string, int]{Name: natsCache})
	require.NoError(st.t, err)
	service, err := view.Serve(st.restrict)
	if err != nil {
		return err
	}
	defer func() { _ = service.Stop() }() // the connection is closed next
	_ = st.restrict.Flush()
	_, err = ops.Ask(st.brief(), st.free, natsCache)
	_, err2 := ops.AskKey(st.brief(), st.free, natsCache, "k", false)
	return errors.Join(err, err2)
}

func (st *stage) asAsking() error {
	cache, err := tidemark.New(tidemark.Options[string, int]{})
	require.NoError(st.t, err)
	defer cache.Close(context.Background())
	view, err := ops.New(cache, ops.Options[string, int]{Name: natsCache})
	require.NoError(st.t, err)
	service, err := view.Serve(st.free)
	require.NoError(st.t, err)
	defer func() { _ = service.Stop() }()
	require.NoError(st.t, st.free.Flush())
	_, err = ops.Ask(st.brief(), st.restrict, natsCache)
	_, err2 := ops.AskKey(st.brief(), st.restrict, natsCache, "k", false)
	_, err3 := ops.AskAudit(st.brief(), st.restrict, natsCache, false, false)
	return errors.Join(err, err2, err3)
}

func (st *stage) asSwitching() error {
	cache, err := tidemark.New(tidemark.Options[string, int]{})
	require.NoError(st.t, err)
	defer cache.Close(context.Background())
	view, err := ops.New(cache, ops.Options[string, int]{Name: natsCache, AllowBypass: true})
	require.NoError(st.t, err)
	service, err := view.Serve(st.free)
	require.NoError(st.t, err)
	defer func() { _ = service.Stop() }()
	require.NoError(st.t, st.free.Flush())
	if _, err := ops.AskBypass(st.brief(), st.restrict, natsCache, true); err != nil {
		return err
	}
	require.True(st.t, cache.Stats().Bypassed)
	return nil
}

func (st *stage) asStore(follow bool) error {
	t := st.t
	js := admin(t, st.free)
	_, err := js.CreateKeyValue(soon(t), jetstream.KeyValueConfig{Bucket: permittedBucket, History: 8})
	require.NoError(t, err)
	store, err := natskv.New[string, int](st.brief(), st.restrict, natskv.Options[string, int]{Bucket: permittedBucket})
	if err != nil {
		return err
	}
	ctx := st.brief()
	version, err := store.CompareAndSet(ctx, "k", 0, 1, newOp())
	if err != nil {
		return err
	}
	_, loaded, err := store.Load(ctx, "k")
	if err != nil || loaded != version {
		return errors.Join(err, fmt.Errorf("version %d, want %d", loaded, version))
	}
	_, err = store.LoadMany(ctx, []string{"k", "other"})
	if err != nil || !follow {
		return err
	}
	return st.follows(store, js)
}

// follows demands that the cache on store hears of what another client writes.
func (st *stage) follows(store *natskv.Store[string, int], js jetstream.JetStream) error {
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: store})
	require.NoError(st.t, err)
	defer cache.Close(context.Background())
	life, stop := context.WithCancel(st.t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	following.Go(func() { _ = store.Follow(life, cache) })
	kv, err := js.KeyValue(st.brief(), permittedBucket)
	require.NoError(st.t, err)
	value := 1
	if err := st.until(func() bool {
		value++
		_, err := kv.PutString(st.brief(), "k", fmt.Sprint(value))
		require.NoError(st.t, err)
		_, err = cache.Load(st.brief(), "k")
		before := cache.Stats().Invalidated
		_, err2 := kv.PutString(st.brief(), "k", fmt.Sprint(value))
		time.Sleep(50 * time.Millisecond)
		return err == nil && err2 == nil && cache.Stats().Invalidated > before
	}); err != nil {
		return err
	}
	stop()
	following.Wait()
	return st.until(func() bool {
		s, err := js.Stream(st.brief(), "KV_"+permittedBucket)
		return err == nil && s.CachedInfo().State.Consumers == 0
	})
}

// works are what the roles are for.
var works = map[string]func(*stage) error{
	"replica, core NATS": func(st *stage) error {
		return st.asReplica(tidemark.NATSOptions{Name: natsCache, Beat: natsBeat})
	},
	"replica, log": func(st *stage) error { return st.asReplica(with(inMemory())) },
	"replica, log, NoHint": func(st *stage) error {
		s := inMemory()
		s.NoHint = true
		return st.asReplica(with(s))
	},
	"who sets up the stream": func(st *stage) error {
		err := tidemark.SetUpNATSStream(st.brief(), st.restrict, with(small()))
		if err != nil {
			return err
		}
		return tidemark.SetUpNATSStream(st.brief(), st.restrict, with(small())) // it is there
	},
	"publisher, core NATS": func(st *stage) error {
		return st.asPublisher(tidemark.NATSOptions{Name: natsCache, Beat: natsBeat}, false)
	},
	"publisher or relay, log": func(st *stage) error {
		return errors.Join(st.asPublisher(with(small()), false), st.asPublisher(with(small()), true))
	},
	"a replica that answers operators": (*stage).asAnswering,
	"who asks the replicas":            (*stage).asAsking,
	"who switches the cache off":       (*stage).asSwitching,
	"natskv":                           func(st *stage) error { return st.asStore(false) },
	"natskv, Follow":                   func(st *stage) error { return st.asStore(true) },
}

// What docs/security.md permits is enough for all that each of them does, without a
// complaint of the server's; and without any one of it something fails, or the
// server complains.
func TestPermissions_AreEnoughAndNoneIsLeftOver(t *testing.T) {
	t.Parallel()
	roles := documentedRoles(t)
	require.Len(t, roles, len(works))
	for name, work := range works {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, roles, name)
			r := roles[name]
			st := newStage(t, r, patience)
			require.NoError(t, work(st))
			require.NoError(t, st.complained(50*time.Millisecond))
			lacking := r.without()
			require.NotEmpty(t, lacking)
			for what, less := range lacking {
				t.Run(what, func(t *testing.T) {
					t.Parallel()
					var failed, complained error
					for range 3 { // a reader that fails when the stream goes may have nothing to delete
						st := newStage(t, less, 2*time.Second)
						failed, complained = work(st), st.complained(time.Second)
						if failed != nil || complained != nil {
							break
						}
					}
					t.Logf("%v; the server: %v", failed, complained)
					assert.Error(t, errors.Join(failed, complained), "nobody needs it")
				})
			}
		})
	}
}
