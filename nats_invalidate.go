package tidemark

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
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
	// means 1s; the least is 5ms.
	Beat time.Duration
}

var natsName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// NATSSubject returns the subject of the cache's messages.
func NATSSubject(name string) string { return "tidemark.v1." + name + ".hint" }

// NATS returns an Invalidator on core NATS. The connection stays the caller's;
// close it after the cache. Open it with [NATSConnectOptions], or with settings
// as strict. Mistakes in the arguments are reported by New.
//
// Core NATS may lose messages, and cannot say which. Tidemark numbers them, so
// that a replica that has missed one revalidates its entries as soon as it
// hears the next, which is at the latest a beat later. There is no bound on
// how stale an entry can be before that; see the README's table.
func NATS(nc *nats.Conn, o NATSOptions) Invalidator {
	inv := Invalidator{Name: o.Name, Schema: o.Schema, Beat: o.Beat}
	switch {
	case nc == nil:
		inv.mistake = &OptionError{"Invalidator", "has a nil *nats.Conn"}
	case o.Name == "":
		inv.mistake = &OptionError{"Invalidator.Name", "is required"}
	case !natsName.MatchString(o.Name):
		inv.mistake = &OptionError{"Invalidator.Name", fmt.Sprintf("is %q, want letters, digits, '-', '_' and dots", o.Name)}
	case nc.Opts.NoEcho:
		inv.mistake = &OptionError{"Invalidator", "has a NoEcho connection, on which no hello comes back"}
	default:
		inv.Hint = &natsHint{nc: nc, subject: NATSSubject(o.Name)}
	}
	return inv
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

var errReconnected = errors.New("tidemark: the link broke while a message was published")

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
	wg.Go(func() {
		for status := range link {
			guarded(func() { lost("connection is " + status.String()) })
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
