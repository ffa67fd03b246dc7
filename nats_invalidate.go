package tidemark

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// NATSOptions configures NATS.
type NATSOptions struct {
	// Name names the cache: letters, digits, '-' and '_', in parts joined by
	// dots. The subject is "tidemark.v1.<Name>.hint"; a client needs permission
	// to publish and to subscribe to it. Required.
	Name string

	// Schema names the meaning of the values. Replicas of different schemas do
	// not listen to each other: change it when versions or keys change meaning.
	Schema string

	// Beat is how often a replica says hello, as in [Invalidator]. Zero
	// means 1s, or 250ms with a Stream; the least is 5ms.
	Beat time.Duration

	// Stream, if not nil, makes a JetStream stream carry the messages as a Log;
	// nil means core NATS only. All replicas of a cache must agree on it.
	Stream *NATSStream
}

// NATSStream says what the stream of a cache is like. The zero value is a
// stream in files on three servers that keeps messages for an hour. See
// [SetUpNATSStream] for what else it is, and for who creates it.
//
// A server acknowledges a message when it, or for more than one replica the
// majority of them, has written it to the operating system. By default
// nats-server asks the disk for it only every two minutes: if more than the
// minority loses power at once, messages are gone that were acknowledged. Set
// "sync_interval: always" in the servers' configuration if that matters.
type NATSStream struct {
	// Replicas is on how many servers the stream is: 1, 3 or 5. Zero means 3,
	// which takes a cluster. One that is on 1 is out of reach while that server
	// is.
	Replicas int

	// Memory keeps the stream in memory instead of in files: a restart of all
	// its servers empties it.
	Memory bool

	// MaxAge is how long messages are kept: the longest time for which a
	// replica can be away and yet prove that it missed nothing. Zero means 1h;
	// the least is 10s.
	MaxAge time.Duration

	// MaxBytes is what the messages may take, in bytes, on each server; the
	// oldest go first, also before MaxAge. Zero means 256 MiB; the least is
	// 1 MiB.
	MaxBytes int64

	// Existing means that the stream is never created but must be there, for
	// accounts that may not create one.
	Existing bool

	// NoHint leaves out core NATS: messages are published on the stream only.
	// It saves a message for each, and makes them arrive a little later.
	NoHint bool
}

const (
	defaultStreamReplicas = 3
	defaultStreamAge      = time.Hour
	minStreamAge          = 10 * time.Second
	defaultStreamBytes    = 256 << 20
	minStreamBytes        = 1 << 20
	maxStreamName         = 255 // the server's limit

	// duplicateWindow is how long the stream knows a message again: longer than
	// it takes to give up an attempt and to retry.
	duplicateWindow = 2 * time.Minute

	// leastMessageSize is what a stream must take: a message and its header.
	leastMessageSize = 64<<10 + 1<<10
)

var natsName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// NATSSubject returns the subject of the cache's messages on core NATS.
func NATSSubject(name string) string { return "tidemark.v1." + name + ".hint" }

// NATSLogSubject returns the subject of the cache's messages on JetStream, which
// is the only subject of its stream.
func NATSLogSubject(name string) string { return "tidemark.v1." + name + ".log" }

// NATSStreamName returns the name of the cache's stream: "TIDEMARK_V1_" and the
// name, with a '+' for each dot, which no stream's name may contain. No cache's
// name contains a '+', so two caches never share a stream.
func NATSStreamName(name string) string { return "TIDEMARK_V1_" + strings.ReplaceAll(name, ".", "+") }

// NATS returns an Invalidator on core NATS and, if o.Stream is not nil, on
// JetStream. The connection stays the caller's; close it after the cache. Open
// it with [NATSConnectOptions], or with settings as strict. NATS itself asks
// the server nothing. Mistakes in the arguments are reported by New.
//
// Core NATS may lose messages, and cannot say which. Tidemark numbers them, so
// that a replica that has missed one revalidates its entries as soon as it
// hears the next, which is at the latest a beat later. There is no bound on
// how stale an entry can be before that; see the README's table.
//
// A stream numbers them once more, the same for all, and keeps them. Its Log
// delivers every number or fails, with an error that wraps [ErrGap] if it is the
// stream that does not have the next. An append costs a round trip to the
// server and, with more than one replica, one among the servers. Not promised:
// that the stream keeps what it has acknowledged when its disks do not (see
// [NATSStream]); a stream that has lost its end and grown again has other
// messages under the same numbers, which a reader can tell only by their bytes.
//
// Besides its subjects a client needs permission to publish to "$JS.API." with
// these behind it, where S is [NATSStreamName], and to subscribe to its inboxes:
// STREAM.INFO.S, STREAM.CREATE.S unless Existing, CONSUMER.CREATE.S.>,
// CONSUMER.MSG.NEXT.S.> and CONSUMER.DELETE.S.>.
func NATS(nc *nats.Conn, o NATSOptions) Invalidator {
	inv := Invalidator{Name: o.Name, Schema: o.Schema, Beat: o.Beat}
	if inv.mistake = o.mistake(nc); inv.mistake != nil {
		return inv
	}
	if o.Stream == nil || !o.Stream.NoHint {
		inv.Hint = &natsHint{nc: nc, subject: NATSSubject(o.Name)}
	}
	if o.Stream == nil {
		return inv
	}
	l, err := newNATSLog(nc, o)
	if err != nil {
		inv.Hint, inv.mistake = nil, &OptionError{"Invalidator", "has a *nats.Conn without JetStream: " + err.Error()}
		return inv
	}
	inv.Log = l
	return inv
}

// mistake returns the first mistake in the arguments of NATS, or nil.
func (o *NATSOptions) mistake(nc *nats.Conn) *OptionError {
	switch {
	case nc == nil:
		return &OptionError{"Invalidator", "has a nil *nats.Conn"}
	case o.Name == "":
		return &OptionError{"Invalidator.Name", "is required"}
	case !natsName.MatchString(o.Name):
		return &OptionError{"Invalidator.Name", fmt.Sprintf("is %q, want letters, digits, '-', '_' and dots", o.Name)}
	case nc.Opts.NoEcho && (o.Stream == nil || !o.Stream.NoHint):
		return &OptionError{"Invalidator", "has a NoEcho connection, on which no hello comes back"}
	case o.Stream == nil:
		return nil
	case len(NATSStreamName(o.Name)) > maxStreamName:
		return &OptionError{"Invalidator.Name", fmt.Sprintf("makes a stream's name of %d bytes, want at most %d",
			len(NATSStreamName(o.Name)), maxStreamName)}
	}
	return o.Stream.mistake()
}

// mistake returns the first mistake in s, or nil.
func (s *NATSStream) mistake() *OptionError {
	switch {
	case !slices.Contains([]int{0, 1, 3, 5}, s.Replicas):
		return &OptionError{"NATSStream.Replicas", fmt.Sprintf("is %d, want 0, 1, 3 or 5", s.Replicas)}
	case s.MaxAge != 0 && s.MaxAge < minStreamAge:
		return &OptionError{"NATSStream.MaxAge", fmt.Sprintf("is %v, want 0 or at least %v", s.MaxAge, minStreamAge)}
	case s.MaxBytes != 0 && s.MaxBytes < minStreamBytes:
		return &OptionError{"NATSStream.MaxBytes", fmt.Sprintf("is %d, want 0 or at least %d", s.MaxBytes, minStreamBytes)}
	}
	return nil
}

// NATSConnectOptions returns connection settings under which a lost link is
// noticed within seconds, is restored for ever, and nothing is published into
// the void while it is down.
func NATSConnectOptions() []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1), // the default gives up after 60 tries, for good
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.ReconnectBufSize(-1), // fail instead of buffering: the outbox retries
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(2 * time.Second),
		nats.FlusherTimeout(2 * time.Second), // bounds how long a publish can block
		nats.RetryOnFailedConnect(true),
	}
}

// natsHint is a Hint on one core NATS subject.
type natsHint struct {
	nc      *nats.Conn
	subject string
}

// Publish returns once the server has answered a ping that followed msg:
// Publish of nats.go alone returns when the bytes are in a buffer, which a
// broken link discards. And a ping that was answered by another connection than
// msg was written to says nothing of msg.
func (h *natsHint) Publish(ctx context.Context, msg []byte) error {
	if most := h.nc.MaxPayload(); most > 0 && int64(len(msg)) > most {
		return fmt.Errorf("%w: %d bytes, the server takes %d", ErrMessageSize, len(msg), most)
	}
	link, past := h.nc.Stats().Reconnects, h.nc.LastError()
	if err := h.nc.Publish(h.subject, msg); err != nil {
		return err
	}
	if _, bounded := ctx.Deadline(); !bounded { // FlushWithContext insists on one
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, publishTimeout)
		defer cancel()
	}
	if err := h.nc.FlushWithContext(ctx); err != nil {
		return err
	}
	if h.nc.Stats().Reconnects != link {
		return errReconnected
	}
	// The server refuses a message by an error in front of the ping's answer.
	if err := h.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != past &&
		strings.Contains(err.Error(), `Publish to "`+h.subject+`"`) {
		return err
	}
	return nil
}

// quickly publishes msg without asking what became of it. Beside a log it goes out
// with what is appended next on the same connection.
func (h *natsHint) quickly(msg []byte) { _ = h.nc.Publish(h.subject, msg) }

var errReconnected = errors.New("tidemark: the link broke while the server was asked")

// Subscribe listens on the subject and to what the connection and the
// subscription say of themselves.
func (h *natsHint) Subscribe(receive func(msg []byte), lost func(reason string)) (stop func(), err error) {
	var mu sync.Mutex // guards stopped, and is held during calls
	stopped := false
	guarded := func(call func()) {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			call()
		}
	}
	sub, err := h.nc.Subscribe(h.subject, func(m *nats.Msg) { guarded(func() { receive(m.Data) }) })
	if err != nil {
		return nil, err
	}
	link := h.nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CONNECTED, nats.CLOSED)
	slow := sub.StatusChanged(nats.SubscriptionSlowConsumer)
	var wg sync.WaitGroup
	down := func(status nats.Status) { guarded(func() { lost("connection is " + status.String()) }) }
	wg.Go(func() {
		if status := h.nc.Status(); status != nats.CONNECTED {
			down(status) // link tells only what comes after it
		}
		for status := range link {
			down(status)
		}
	})
	done := make(chan struct{})
	wg.Go(func() {
		for { // nats.go does not close slow when the connection is closed
			select {
			case _, open := <-slow:
				if !open {
					return
				}
				guarded(func() { lost("slow consumer") })
			case <-done:
				return
			}
		}
	})
	return func() {
		mu.Lock()
		stopped = true
		mu.Unlock()
		_ = sub.Unsubscribe() // fails only if the connection is closed already
		h.nc.RemoveStatusListener(link)
		close(done)
		wg.Wait()
	}, nil
}

// streamConfig returns the stream that o asks for. One subject, no limit per
// subject, and nothing that takes a message out of the middle: the sequence
// numbers of what it holds have no holes, and a hole is a loss.
func (o *NATSOptions) streamConfig() jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name:              NATSStreamName(o.Name),
		Description:       "what the replicas of a tidemark cache tell each other",
		Subjects:          []string{NATSLogSubject(o.Name)},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		MaxAge:            o.Stream.MaxAge,
		MaxBytes:          o.Stream.MaxBytes,
		Replicas:          o.Stream.Replicas,
		Storage:           jetstream.FileStorage,
		DenyDelete:        true,
		DenyPurge:         true,
	}
	if c.MaxAge == 0 {
		c.MaxAge = defaultStreamAge
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultStreamBytes
	}
	if c.Replicas == 0 {
		c.Replicas = defaultStreamReplicas
	}
	if o.Stream.Memory {
		c.Storage = jetstream.MemoryStorage
	}
	c.Duplicates = min(duplicateWindow, c.MaxAge) // the server insists
	return c
}

// A setting is one field of a stream's configuration, as it is and as it must be.
type setting struct {
	good  bool
	field string
	is    any
	must  any
	why   string // it must
}

// breaking returns the settings without which the numbers of a stream prove
// nothing, or its acknowledgements.
func breaking(have, want *jetstream.StreamConfig) []setting {
	return []setting{
		{slices.Equal(have.Subjects, want.Subjects), "Subjects", have.Subjects, want.Subjects,
			"what it lacks would be lost, and what else it takes is not the cache's"},
		{have.Retention == want.Retention, "Retention", have.Retention, want.Retention, "others would go when one has read a message"},
		{have.MaxMsgsPerSubject <= 0, "MaxMsgsPerSubject", have.MaxMsgsPerSubject, -1,
			"the stream has one subject, and would keep no more than that"},
		{have.DenyDelete, "DenyDelete", have.DenyDelete, true, "a message could be taken out of the middle"},
		{have.DenyPurge, "DenyPurge", have.DenyPurge, true, "messages could be taken away that nobody has read"},
		{!have.AllowRollup, "AllowRollup", have.AllowRollup, false, "a message could take away all before it"},
		{!have.AllowMsgTTL, "AllowMsgTTL", have.AllowMsgTTL, false, "a message could go before those around it"},
		{have.SubjectDeleteMarkerTTL == 0, "SubjectDeleteMarkerTTL", have.SubjectDeleteMarkerTTL, 0, "the server would add messages of its own"},
		{!have.AllowMsgSchedules, "AllowMsgSchedules", have.AllowMsgSchedules, false, "the server would add messages, and take some away"},
		{!have.AllowMsgCounter, "AllowMsgCounter", have.AllowMsgCounter, false, "the server would replace what a message says"},
		{!have.NoAck, "NoAck", have.NoAck, false, "nobody would know whether a message was stored"},
		{!have.Sealed, "Sealed", have.Sealed, false, "it takes no messages any more"},
		{have.Mirror == nil, "Mirror", have.Mirror != nil, false, "its messages and numbers would be another stream's"},
		{len(have.Sources) == 0, "Sources", len(have.Sources), 0, "messages of other streams would be among its own"},
		{have.SubjectTransform == nil, "SubjectTransform", have.SubjectTransform != nil, false, "messages would not keep their subject"},
	}
}

// weakening returns the settings without which a stream keeps less than was
// asked for, or serves fewer.
func weakening(have, want *jetstream.StreamConfig) []setting {
	atLeast := func(limit any) string { return fmt.Sprintf("at least %v, or unlimited", limit) }
	idle := have.ConsumerLimits.InactiveThreshold
	return []setting{
		{have.Storage == want.Storage, "Storage", have.Storage, want.Storage, "it was asked for"},
		{have.Replicas == want.Replicas, "Replicas", have.Replicas, want.Replicas, "it was asked for"},
		{have.PersistMode == want.PersistMode, "PersistMode", have.PersistMode, want.PersistMode,
			"messages would be acknowledged before they are written"},
		{have.Discard == want.Discard, "Discard", have.Discard, want.Discard, "a full stream would take no messages"},
		{have.MaxMsgs <= 0, "MaxMsgs", have.MaxMsgs, -1, "messages would go before MaxAge"},
		{have.MaxAge == 0 || have.MaxAge >= want.MaxAge, "MaxAge", have.MaxAge, atLeast(want.MaxAge), "messages would go earlier"},
		{have.MaxBytes <= 0 || have.MaxBytes >= want.MaxBytes, "MaxBytes", have.MaxBytes, atLeast(want.MaxBytes),
			"messages would go before MaxAge"},
		{have.MaxMsgSize <= 0 || have.MaxMsgSize >= leastMessageSize, "MaxMsgSize", have.MaxMsgSize, atLeast(leastMessageSize),
			"a message has up to 64 KiB and a header"},
		{have.MaxConsumers <= 0, "MaxConsumers", have.MaxConsumers, -1, "every replica reads through one of its own"},
		{idle == 0 || idle >= readerIdle, "ConsumerLimits.InactiveThreshold", idle, atLeast(readerIdle), "readers would be refused"},
		{have.Duplicates >= want.Duplicates, "Duplicates", have.Duplicates, fmt.Sprintf("at least %v", want.Duplicates),
			"a message that is sent again would be stored again"},
		{have.RePublish == nil, "RePublish", have.RePublish != nil, false, "every message would be sent once more"},
	}
}

// refuse returns an error that names every setting in which have is not what
// was asked for, or nil.
func refuse(have, want *jetstream.StreamConfig) error {
	var wrong []string
	collect := func(class string, all []setting) {
		for _, s := range all {
			if !s.good {
				wrong = append(wrong, fmt.Sprintf("\n\t%s: %s is %v, must be %v: %s", class, s.field, s.is, s.must, s.why))
			}
		}
	}
	collect("it cannot be a log", breaking(have, want))
	collect("it is less than was asked for", weakening(have, want))
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("tidemark: stream %s is not as it must be:%s", have.Name, strings.Join(wrong, ""))
}

// SetUpNATSStream creates the stream of the cache, or verifies the one that is
// there, which it never changes. A stream that is not what tidemark needs, or
// less than o.Stream asks for, is refused with an error that names every wrong
// field, what it is, what it must be, and why.
//
// The stream has one subject, [NATSLogSubject], and cannot be purged, nor can a
// message be deleted or replaced: messages leave it in the order in which they
// came, by age or for want of room, so that a hole in its numbers is a loss.
//
// Calling it is not required: the first message and every reader do the same. A
// deployment calls it to learn of a mistake at once, or to create the stream
// with the permission that the replicas do not have. It may be called again,
// and by all replicas at once. A mistake in the arguments is an [*OptionError].
// It asks once and gives up after 5s, whatever ctx says: servers that have just
// started, or are electing a leader, do not answer. Call it again then.
func SetUpNATSStream(ctx context.Context, nc *nats.Conn, o NATSOptions) error {
	if mistake := o.mistake(nc); mistake != nil {
		return mistake
	}
	if o.Stream == nil {
		return &OptionError{"NATSOptions.Stream", "is nil, so there is no stream to set up"}
	}
	l, err := newNATSLog(nc, o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ctx, stop := l.whileUp(ctx)
	defer stop()
	return l.setUp(ctx)
}

const (
	openTimeout    = 5 * time.Second // to set up the stream and to make a reader
	arrivalTimeout = 2 * time.Second // for the message that a reader is to begin with
	deleteTimeout  = time.Second     // for a reader's consumer
	owedTimeout    = 2 * time.Second // for a message that the stream has; it may take twice that

	// readerBeat is how often the server tells a waiting reader that it is
	// there. Twice that without a word ends the reader.
	readerBeat = 500 * time.Millisecond

	// readerBatch is how many messages a reader lets the server send ahead. It
	// holds up to three times as many: as many again in its inbox, and what it
	// has taken from there. After the first trouble nats.go may ask for as many
	// once more, before it is stopped.
	readerBatch = 256

	// readerIdle is when the server forgets a reader that asks for nothing.
	readerIdle = 30 * time.Second
)

// whileUp returns a context that ends with ctx, or when the link breaks: nats.go
// would go on waiting for an answer that was lost with it.
func (l *natsLog) whileUp(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	link := l.nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	go func() {
		if _, broken := <-link; broken {
			cancel(errReconnected)
		}
	}()
	return ctx, func() {
		l.nc.RemoveStatusListener(link) // ends the goroutine
		cancel(nil)
	}
}

// natsLog is a Log on one JetStream stream.
type natsLog struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	want     jetstream.StreamConfig
	existing bool
	subject  string
	secret   [sha256.Size]byte // see messageID

	ready atomic.Bool   // the stream was as it must be, and nothing has failed since
	acked atomic.Uint64 // the number that was acknowledged last
}

func newNATSLog(nc *nats.Conn, o NATSOptions) (*natsLog, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	l := &natsLog{nc: nc, js: js, want: o.streamConfig(), existing: o.Stream.Existing, subject: NATSLogSubject(o.Name)}
	rand.Read(l.secret[:]) // never fails, see crypto/rand
	return l, nil
}

// messageID returns the name by which the stream knows a message again, for two
// minutes: that of its origin and number, which are unique. By a hash of its bytes
// two messages could be the same, and the second be lost.
//
// Nobody else can make it. Who could would publish something under the name of a
// message to come, and the stream would take that for sent.
func (l *natsLog) messageID(m *wire.Message) string {
	h := hmac.New(sha256.New, l.secret[:])
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], m.Origin)
	binary.LittleEndian.PutUint64(b[8:], m.Seq)
	h.Write(b[:]) // never fails, see hash.Hash
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// setUp creates the stream or verifies the one that is there.
func (l *natsLog) setUp(ctx context.Context) error {
	past := l.nc.LastError()
	s, err := l.js.Stream(ctx, l.want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) && !l.existing {
		if s, err = l.js.CreateStream(ctx, l.want); err != nil {
			// Another replica may have been first, and have asked for more.
			if other, notThere := l.js.Stream(ctx, l.want.Name); notThere == nil {
				s, err = other, nil
			}
		}
	}
	if err != nil {
		return l.failed(ctx, "set up", err, past)
	}
	if err := refuse(&s.CachedInfo().Config, &l.want); err != nil {
		l.ready.Store(false) // nobody would hear what is appended
		return err
	}
	l.ready.Store(true)
	return nil
}

// failed says what failed, and why if the server has said so: it does not answer
// a request that it does not permit, but complains on the connection. past is
// what it complained of before.
func (l *natsLog) failed(ctx context.Context, what string, err, past error) error {
	l.ready.Store(false)
	if errors.Is(context.Cause(ctx), errReconnected) {
		err = errReconnected
	}
	if status := l.nc.Status(); status != nats.CONNECTED {
		err = fmt.Errorf("the connection is %v: %w", status, err)
	}
	err = fmt.Errorf("tidemark: stream %s: %s: %w", l.want.Name, what, err)
	said := l.nc.LastError()
	if errors.Is(said, nats.ErrPermissionViolation) && said != past &&
		(strings.Contains(said.Error(), l.want.Name) || strings.Contains(said.Error(), l.subject)) {
		return errors.Join(err, said)
	}
	return err
}

// Append publishes msg once and waits for the stream's acknowledgement: at most
// publishTimeout if ctx has no deadline, and no longer than the link holds. It
// may fail though the stream has msg. Appending the same bytes again here then
// returns the number that they have, or stores them again if that was more than
// two minutes ago. After a failure the next Append looks at the stream first.
func (l *natsLog) Append(ctx context.Context, msg []byte) (seq uint64, err error) {
	var m wire.Message
	if err := wire.Decode(msg, &m); err != nil && !errors.Is(err, wire.ErrUnknownKind) {
		return 0, fmt.Errorf("tidemark: append: not a message: %w", err)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, publishTimeout)
		defer cancel()
	}
	ctx, stop := l.whileUp(ctx)
	defer stop()
	if !l.ready.Load() {
		if err := l.setUp(ctx); err != nil {
			return 0, err
		}
	}
	past := l.nc.LastError()
	ack, err := l.js.PublishMsg(ctx, &nats.Msg{Subject: l.subject, Data: msg},
		jetstream.WithMsgID(l.messageID(&m)),
		jetstream.WithExpectStream(l.want.Name), // and no other that has taken the subject
		jetstream.WithRetryAttempts(0))          // the caller retries
	switch {
	case err == nil:
		l.acked.Store(ack.Sequence)
		return ack.Sequence, nil
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return 0, fmt.Errorf("%w: %d bytes and a header: %w", ErrMessageSize, len(msg), err)
	}
	return 0, l.failed(ctx, "append", err, past)
}

// Open makes a reader. It costs three round trips, or two if from is 0, and is
// over within seconds whatever ctx says.
//
// With 0 the reader begins with the next message that is appended after Open has
// returned, or with one shortly before it. Otherwise it begins with the message
// of number from, which is there when Open returns; if it is not, the error
// wraps ErrGap. A server that is asked for a message that it no longer has, or
// does not have yet, silently begins with another (P1, P2), so what counts is
// the message that arrives. Whether it is the one that had this number before is
// for the caller to compare: a stream that was made anew counts anew.
func (l *natsLog) Open(ctx context.Context, from uint64) (LogReader, error) {
	// A link that breaks from here on has broken under the reader.
	link := l.nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	r, err := l.newReader(ctx, from, link)
	if err != nil {
		l.nc.RemoveStatusListener(link)
		return nil, err
	}
	if from != 0 {
		if err := r.arrive(ctx, from); err != nil {
			_ = r.Close() // never fails
			return nil, err
		}
	}
	return r, nil
}

// newReader verifies the stream, which may have been made anew since it was
// last, and makes a consumer.
func (l *natsLog) newReader(ctx context.Context, from uint64, link chan nats.Status) (*natsReader, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ctx, stop := l.whileUp(ctx)
	defer stop()
	if err := l.setUp(ctx); err != nil {
		return nil, err
	}
	past := l.nc.LastError()
	c := jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverNewPolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: readerIdle,
	}
	if from != 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	consumer, err := l.js.CreateConsumer(ctx, l.want.Name, c)
	if err != nil {
		return nil, l.failed(ctx, "create a consumer", err, past)
	}
	r := &natsReader{log: l, consumer: consumer, link: link, quiet: time.NewTimer(owedTimeout)}
	r.last = consumer.CachedInfo().Delivered.Stream // it begins with the next
	life, end := context.WithCancel(context.Background())
	up, forget := l.whileUp(life)
	r.life, r.end = life, func() { end(); forget() }
	r.inbox.arrived, r.inbox.emptied = make(chan struct{}, 1), make(chan struct{}, 1)
	r.trouble = make(chan error, 1)
	r.running, err = consumer.Consume(r.deliver,
		jetstream.PullMaxMessages(readerBatch),
		jetstream.PullHeartbeat(readerBeat),
		jetstream.ConsumeErrHandler(func(running jetstream.ConsumeContext, err error) {
			notify(r.trouble, err)

			running.Stop() // else nats.go asks for more every second, whether or not there is room
		}))
	if err != nil {
		r.end()
		return nil, l.failed(ctx, "consume", err, past)
	}
	context.AfterFunc(up, r.running.Stop) // else nats.go asks anew whenever the link is back
	return r, nil
}

// A natsReader reads a stream through a consumer of its own. It never makes
// another, and does not go on with this one after trouble: that is for who can
// compare what comes first with what came last.
type natsReader struct {
	log      *natsLog
	consumer jetstream.Consumer
	running  jetstream.ConsumeContext
	link     chan nats.Status // tells when the connection breaks; closed by Close
	trouble  chan error       // tells what else ends the reading
	inbox    natsInbox

	life context.Context // ends with Close
	end  func()

	// For the goroutine that reads.

	taken  []natsMessage // from the inbox
	at     int           // the next of them
	last   uint64        // number of the message before the next
	quiet  *time.Timer   // runs while it waits
	owed   bool          // the stream had more when quiet ended last
	failed error         // what ended the reading
}

type natsMessage struct {
	seq  uint64
	data []byte
}

// A natsInbox holds what has arrived until the reader takes it, all at once: a
// channel would wake somebody for each message, which takes longer than the rest.
type natsInbox struct {
	// Each holds a token when that has happened.

	arrived chan struct{} // something is in messages
	emptied chan struct{} // messages was taken

	mu       sync.Mutex // guards everything below
	messages []natsMessage
}

// deliver is called for one message after the other. It waits while the inbox is
// full, so that the server is not asked for more.
func (r *natsReader) deliver(m jetstream.Msg) {
	d, err := m.Metadata()
	if err != nil {
		notify(r.trouble, err)
		return
	}
	in := &r.inbox
	in.mu.Lock()
	in.messages = append(in.messages, natsMessage{d.Sequence.Stream, m.Data()})
	full := len(in.messages) >= readerBatch
	in.mu.Unlock()
	notify(in.arrived, struct{}{})
	for full {
		select {
		case <-in.emptied:
		case <-r.life.Done():
			return
		}
		in.mu.Lock()
		full = len(in.messages) >= readerBatch // the token may have been an old one
		in.mu.Unlock()
	}
}

// take takes what has arrived, if anything has.
func (r *natsReader) take() bool {
	in, read := &r.inbox, r.taken
	clear(read) // nobody needs it any more
	in.mu.Lock()
	r.taken, in.messages = in.messages, read[:0]
	in.mu.Unlock()
	r.at = 0
	if len(r.taken) == 0 {
		return false
	}
	notify(in.emptied, struct{}{})
	return true
}

// notify leaves x unless something is left already.
func notify[T any](left chan<- T, x T) {
	select {
	case left <- x:
	default:
	}
}

var errReaderClosed = errors.New("tidemark: the reader of the log is closed")

// arrive waits for the first message, which must have number from. What says
// that it is not there is a consumer that is alive and does not send it; one that
// is dead says nothing of the log.
func (r *natsReader) arrive(ctx context.Context, from uint64) error {
	var err error
	for range 2 { // the time of one may have passed while this process was suspended
		wait, cancel := context.WithTimeout(ctx, arrivalTimeout/2)
		err = r.receive(wait)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	switch {
	case err == nil && r.taken[r.at].seq == from:
		r.last = from - 1
		return nil
	case err == nil:
		return r.gap(fmt.Errorf("%w: asked for sequence %d, got %d", ErrGap, from, r.taken[r.at].seq))
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return fmt.Errorf("%w: sequence %d is not there", ErrGap, from)
	}
	return err
}

// Next returns the next message, whose bytes are the caller's. It notices at once
// that the link has broken, even if it is back; and once it has returned what had
// arrived, within about a second that the consumer or the server is gone, and
// within 4s that a consumer does not deliver what the stream has acknowledged to
// this client. The error then does not wrap ErrGap, and Open with the last number
// that was read proves whether anything is missing. An error that wraps ErrGap
// means that the server has sent another message than the next.
func (r *natsReader) Next(ctx context.Context) (seq uint64, msg []byte, err error) {
	if r.failed == nil {
		r.failed = r.receive(ctx)
	}
	if r.failed != nil {
		return 0, nil, r.failed
	}
	m := r.taken[r.at]
	if m.seq != r.last+1 {
		r.failed = r.gap(fmt.Errorf("%w: sequence %d after %d", ErrGap, m.seq, r.last))
		return 0, nil, r.failed
	}
	r.at, r.last = r.at+1, m.seq
	return m.seq, m.data, nil
}

// gap returns err, unless the link has broken since receive looked: then it may be
// the link that has lost what is missing, and not the log.
func (r *natsReader) gap(err error) error {
	if broken := r.broken(); broken != nil {
		return broken
	}
	return err
}

// broken returns an error if the link has broken.
func (r *natsReader) broken() error {
	select {
	case status, open := <-r.link:
		return r.linkError(status, open)
	default:
		return nil
	}
}

func (r *natsReader) linkError(status nats.Status, open bool) error {
	switch {
	case r.life.Err() != nil:
		return errReaderClosed
	case !open || status == nats.CLOSED:
		return fmt.Errorf("tidemark: log: %w", nats.ErrConnectionClosed)
	}
	return fmt.Errorf("tidemark: log: the connection is %v", status)
}

// receive waits until there is a next message, whichever it is.
func (r *natsReader) receive(ctx context.Context) error {
	if err := r.broken(); err != nil {
		return err // before what had arrived until then
	}
	if r.at < len(r.taken) || r.take() {
		return nil
	}
	r.owed = false
	r.quiet.Reset(owedTimeout)
	defer r.quiet.Stop()
	for {
		select {
		case <-r.inbox.arrived:
			if r.take() {
				return nil
			}
		case err := <-r.trouble:
			return r.ended(err)
		case <-r.quiet.C:
			if err := r.overdue(); err != nil {
				return err
			}
		case status, open := <-r.link: // which Close closes
			return r.linkError(status, open)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// overdue is called when nothing has come for a while. It returns an error if the
// stream has acknowledged a message since long that the consumer, although it is
// there, does not deliver (S50).
func (r *natsReader) overdue() error {
	owed := r.log.acked.Load() > r.last
	if owed && r.owed {
		return fmt.Errorf("tidemark: log: the consumer delivers nothing after sequence %d", r.last)
	}
	r.owed = owed
	r.quiet.Reset(owedTimeout)
	return nil
}

// ended is the error of a reading that ends by err.
func (r *natsReader) ended(err error) error {
	if r.life.Err() != nil {
		return errReaderClosed
	}
	return fmt.Errorf("tidemark: log: %w", err)
}

// Close ends the reader and deletes its consumer, for which it waits a second at
// most; one that cannot be reached is forgotten by the server. It may be called
// by another goroutine than the one that reads, and again. It never fails.
func (r *natsReader) Close() error {
	r.end()
	r.running.Stop()
	r.log.nc.RemoveStatusListener(r.link)
	ctx, cancel := context.WithTimeout(context.Background(), deleteTimeout)
	defer cancel()
	_ = r.log.js.DeleteConsumer(ctx, r.log.want.Name, r.consumer.CachedInfo().Name)
	return nil
}
