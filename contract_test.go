package tidemark_test

import (
	"context"
	"encoding"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// contract is what callers compile against. It is never called: that this file
// compiles is the test. A line that has to change here breaks other people's
// builds.
type contract struct{}

var _ = []any{
	contract.cache, contract.publisher, contract.values, contract.errors, contract.told, contract.sources, contract.transports,
}

func (contract) cache(c *tidemark.Cache[string, int]) {
	var _ func(tidemark.Options[string, int]) (*tidemark.Cache[string, int], error) = tidemark.New[string, int]

	var _ func(string) (int, bool) = c.Get
	var _ func(string) (tidemark.Entry[int], bool) = c.GetEntry
	var _ func(context.Context, string) (tidemark.Entry[int], error) = c.Load
	var _ func(context.Context, []string) (map[string]tidemark.Entry[int], error) = c.LoadMany
	var _ func(context.Context, string, tidemark.Level) (tidemark.Entry[int], error) = c.Read
	var _ func(string, int, tidemark.Version) tidemark.Outcome = c.Put
	var _ func(string) *tidemark.Fill[string, int] = c.BeginFill
	var _ func(context.Context, string, func(tidemark.Entry[int]) (int, error)) (tidemark.Entry[int], error) = c.Update
	var _ func(context.Context, string, tidemark.Version, int) (tidemark.Entry[int], error) = c.CompareAndSet
	var _ func(context.Context, string, tidemark.Version) (tidemark.Entry[int], error) = c.Delete
	var _ func(context.Context, string, tidemark.Version) error = c.Invalidate
	var _ func(context.Context) error = c.InvalidateAll
	var _ func() tidemark.Token = c.Token
	var _ func(string) tidemark.Explanation = c.Explain
	var _ func() iter.Seq2[string, tidemark.Entry[int]] = c.All
	var _ func() int = c.Len
	var _ func() tidemark.Stats = c.Stats
	var _ func(context.Context) error = c.Ready
	var _ func(context.Context) error = c.Close
	var _ func(int64) error = c.Resize
	var _ func(bool) = c.SetBypass
	var _ func(context.Context, uint32) error = c.SetSourceEpoch
}

func (contract) publisher(p *tidemark.Publisher[string]) {
	var _ func(tidemark.PublisherOptions[string]) (*tidemark.Publisher[string], error) = tidemark.NewPublisher[string]
	_ = tidemark.PublisherOptions[string]{Invalidator: tidemark.Invalidator{}, KeyCodec: tidemark.KeyCodec[string](nil), SourceEpoch: uint32(1), Resumes: true}
	var _ func(context.Context, string, tidemark.Version) error = p.Invalidate
	var _ func(context.Context, map[string]tidemark.Version) error = p.InvalidateMany
	var _ func(...tidemark.Probe) error = p.Answer
	var _ func(context.Context) error = p.InvalidateAll
	var _ func(context.Context) error = p.Close
}

func (contract) values(token tidemark.Token) {
	_ = tidemark.Entry[int]{Value: 1, Version: tidemark.Version(uint64(2)), Absent: false, Age: time.Second, Stale: true}
	_ = []tidemark.Outcome{
		tidemark.Applied, tidemark.Duplicate, tidemark.Stale, tidemark.Unproven, tidemark.TooLarge, tidemark.Closed,
	}
	var _ func(tidemark.Outcome) error = tidemark.Outcome.Err
	var _ func(tidemark.Outcome) string = tidemark.Outcome.String
	_ = []tidemark.Level{
		tidemark.Any, tidemark.Linearizable, tidemark.AtLeast(1), tidemark.Within(time.Second), tidemark.After(token),
	}
	_ = []tidemark.StalePolicy{tidemark.Reload, tidemark.Fail}
	_ = []tidemark.LoaderClass{tidemark.Strong, tidemark.Lagging(time.Second)}
	var _ tidemark.OpID = [16]byte{}

	var _ func(tidemark.Token) tidemark.Token = token.Join
	var _ func() ([]byte, error) = token.MarshalText
	var _ func([]byte) error = token.UnmarshalText
	var _ func() string = token.String

	var fill tidemark.Fill[string, int]
	var _ func(int, tidemark.Version) tidemark.Outcome = fill.Commit
	var _ func(tidemark.Version) tidemark.Outcome = fill.Absent
	var _ func() = fill.Cancel
}

func (contract) errors(uncertain *tidemark.UncertainError) {
	_ = []error{
		tidemark.ErrNotFound, tidemark.ErrClosed, tidemark.ErrStale, tidemark.ErrNoStore, tidemark.ErrNoLoader,
		tidemark.ErrUnavailable, tidemark.ErrTooLarge, tidemark.ErrNoVersion, tidemark.ErrIncomplete, tidemark.ErrGap,
		tidemark.ErrMessageSize, tidemark.ErrNotBroadcast,
		&tidemark.ConflictError{Current: tidemark.Version(1), Absent: true},
		&tidemark.DoubtError{Writes: int(1)},
		&tidemark.KeysError[string]{Failed: map[string]error{}},
		&tidemark.LoadError{Err: error(nil)},
		&tidemark.OptionError{Field: "", Problem: ""},
		&tidemark.PanicError{Value: any(nil), Stack: []byte{}},
		&tidemark.UncertainError{Op: tidemark.OpID{}, Err: error(nil)},
	}
	var _ func(context.Context) (tidemark.Version, bool, error) = uncertain.Wait
	var _ interface{ Unwrap() error } = uncertain
	var _ interface{ Unwrap() error } = &tidemark.LoadError{}
	var _ interface{ Unwrap() []error } = &tidemark.KeysError[string]{}
}

// told is what operators read.
func (contract) told() {
	_ = tidemark.Event{Kind: tidemark.EventSuspect, Reason: "", Err: error(nil), From: tidemark.BreakerClosed, To: tidemark.BreakerOpen}
	_ = []tidemark.BreakerState{tidemark.NoBreaker, tidemark.BreakerClosed, tidemark.BreakerHalfOpen, tidemark.BreakerOpen}
	_ = []tidemark.EventKind{
		tidemark.EventSuspect, tidemark.EventCutOff, tidemark.EventRejoined, tidemark.EventLogDown, tidemark.EventLogUp,
		tidemark.EventBadMessage, tidemark.EventForeignMessage, tidemark.EventCollapsed, tidemark.EventUncertain,
		tidemark.EventResolved, tidemark.EventTooLarge, tidemark.EventPanic,
		tidemark.EventLapsed, tidemark.EventSourceEpoch, tidemark.EventBreaker,
	}
	var _ func(tidemark.EventKind) string = tidemark.EventKind.String
	_ = []fmt.Stringer{tidemark.Any, tidemark.Strong, tidemark.Fail}
	var _ func(*tidemark.Cache[string, int]) tidemark.Options[string, int] = (*tidemark.Cache[string, int]).Options
	var _ func(tidemark.Options[string, int]) []string = tidemark.Options[string, int].Warnings

	var s tidemark.Stats
	_ = []uint64{
		s.Hits, s.Misses, s.Loads, s.LoadErrors, s.Joined, s.Refreshes, s.Refused, s.Applied, s.Duplicate, s.Stale, s.Unproven,
		s.TooLarge, s.Evictions, s.Conflicts, s.Uncertain, s.Suspicions, s.Sent, s.Received, s.Applies, s.Bad, s.Foreign,
		s.Collapsed, s.Panics, s.Confirmed, s.Lapsed, s.Declined, s.TooOld, s.RefusedLoads, s.RefusedFills, s.RefusedWrites,
		s.Unkept, s.Writes, s.Invalidated, s.Flushes, s.Gaps, s.CutOffs, s.Silences, s.LogDowns, s.Muted, s.LogSeq,
		s.StaleWhileRevalidate, s.StaleIfError, s.SoftTimeouts, s.DeclinedByBreaker, s.DeclinedWrites, s.BreakerOpens,
	}
	_ = []int{s.Entries, s.InDoubt, s.Backlog, s.Intents, s.Loading, s.Peers}
	var _ uint32 = s.SourceEpoch
	_ = []int64{s.Cost, s.MaxCost}
	_ = []bool{s.CutOff, s.Bypassed}
	_ = []bool{s.State == tidemark.Alone, s.State == tidemark.Joining, s.State == tidemark.Fresh, s.State == tidemark.Suspect, s.State == tidemark.Ended}
	var _ func(tidemark.State) string = tidemark.State.String
	var _ func(tidemark.BreakerState) string = tidemark.BreakerState.String
	var _ encoding.TextMarshaler = s.Breaker
	var _ encoding.TextUnmarshaler = &s.Breaker
	var _ encoding.TextMarshaler = s.State
	var _ encoding.TextUnmarshaler = &s.State
	_ = []time.Duration{s.Fresh, s.LoadTime}

	var x tidemark.Explanation
	_ = []bool{x.Resident, x.Served, x.Absent, x.Overdue, x.Suspect, x.IfError, x.Thrown, x.Deleted, x.Shared, x.Blind, x.Loading, x.CutOff, x.Bypassed}
	_ = []tidemark.Version{x.Version, x.TideMark}
	_ = []time.Duration{x.Age, x.Expires, x.SetAgo}
	_ = []string{x.Cause, x.Policy, x.SetBy, x.String()}
	_ = []int{x.Fences, x.InDoubt}
}

// sources writes out the interfaces that callers implement: no method may be
// added to one.
func (contract) sources() {
	type version = tidemark.Version
	type loader = interface {
		Load(ctx context.Context, key string) (int, version, error)
	}
	var l loader
	var _ tidemark.Loader[string, int] = l
	var _ tidemark.Loader[string, int] = tidemark.LoaderFunc[string, int](nil)
	var s interface {
		loader
		CompareAndSet(ctx context.Context, key string, base version, value int, op tidemark.OpID) (version, error)
		CompareAndDelete(ctx context.Context, key string, base version, op tidemark.OpID) (version, error)
		Outcome(ctx context.Context, key string, op tidemark.OpID) (version, bool, error)
	}
	var bulk interface {
		LoadMany(ctx context.Context, keys []string) (map[string]tidemark.Loaded[int], error)
	}
	var _ tidemark.BulkLoader[string, int] = bulk
	_ = tidemark.Loaded[int]{Value: 1, Version: version(2), Absent: true, Err: error(nil)}
	var strong interface {
		LoadStrong(ctx context.Context, key string) (int, version, error)
	}
	var _ tidemark.StrongLoader[string, int] = strong
	var versions interface {
		LoadVersions(ctx context.Context, keys []string) (map[string]version, error)
	}
	var _ tidemark.VersionLoader[string] = versions
	var breaker interface {
		Allow() (done func(err error), err error)
	}
	var stateBreaker interface {
		Allow() (done func(err error), err error)
		State() tidemark.BreakerState
	}
	var _ tidemark.StateBreaker = stateBreaker
	var codec interface {
		AppendKey(dst []byte, key string) []byte
		ParseKey(b []byte) (string, error)
	}
	_ = tidemark.Options[string, int]{
		MaxCost: int64(1), Cost: func(string, int) int64 { return 1 }, ExpectedEntries: int64(1), Shards: int(1),
		TTL: time.Second, TTLJitter: float64(0.1), NegativeTTL: time.Second, RefreshAfter: time.Second,
		EntryTTL: func(string, tidemark.Entry[int]) time.Duration { return 0 },
		Loader:   l, LoaderClass: tidemark.Strong, LoadTimeout: time.Second, MaxLoads: int(1), Breaker: breaker,
		StaleWhileRevalidate: time.Second, StaleIfError: time.Second, SoftLoadTimeout: time.Second,
		Store: s, DoubtTimeout: time.Second, MaxDoubts: int(1), Strict: true, SourceEpoch: uint32(1),
		Invalidator: tidemark.Invalidator{}, KeyCodec: codec,
		Level: tidemark.Any, OnStale: tidemark.Fail, MaxStale: time.Second,
		Logger: (*slog.Logger)(nil), OnEvent: func(tidemark.Event) {},
	}
}

// transports does the same of those that carry messages.
func (contract) transports(nc *nats.Conn) {
	var hint interface {
		Publish(ctx context.Context, msg []byte) error
		Subscribe(receive func(msg []byte), lost func(reason string)) (stop func(), err error)
	}
	var log interface {
		Append(ctx context.Context, msg []byte) (seq uint64, err error)
		Open(ctx context.Context, from uint64) (tidemark.LogReader, error)
	}
	var reader interface {
		Next(ctx context.Context) (seq uint64, msg []byte, err error)
		Close() error
	}
	var _ tidemark.LogReader = reader
	_ = tidemark.Invalidator{Name: "n", Schema: "1", Hint: hint, Log: log, Beat: time.Second, Prober: tidemark.Prober(nil)}
	var prober interface {
		Probe(ctx context.Context, p tidemark.Probe) error
	}
	var _ tidemark.Prober = prober
	_ = tidemark.Probe{Origin: uint64(1), Nonce: uint64(1)}

	var _ func(*nats.Conn, tidemark.NATSOptions) tidemark.Invalidator = tidemark.NATS
	_ = tidemark.NATSOptions{Name: "n", Schema: "1", Beat: time.Second, Stream: &tidemark.NATSStream{
		Replicas: int(1), Memory: true, MaxAge: time.Hour, MaxBytes: int64(1), Existing: true, NoHint: true,
	}}
	var _ func(context.Context, *nats.Conn, tidemark.NATSOptions) error = tidemark.SetUpNATSStream
	var _ func() []nats.Option = tidemark.NATSConnectOptions
	_ = []func(string) string{tidemark.NATSSubject, tidemark.NATSLogSubject, tidemark.NATSStreamName}
}
