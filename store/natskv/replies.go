package natskv

import (
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// replies hears the answers to all requests of a bucket by one subscription, which
// lives as long as the connection: one for each request takes the server ten times
// as long as the request.
type replies struct {
	nc *nats.Conn

	mu      sync.Mutex // guards everything below
	prefix  string     // of the inboxes; "" before the first
	asked   uint64     // requests so far
	waiting map[string]chan<- *nats.Msg
}

// expect returns an inbox to which up to most messages may come, and the channel
// that they come to. Those beyond most, or after forget, are dropped.
func (r *replies) expect(most int) (inbox string, messages <-chan *nats.Msg, forget func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.prefix == "" {
		prefix := r.nc.NewInbox() + "."
		if _, err := r.nc.Subscribe(prefix+"*", r.deliver); err != nil {
			return "", nil, nil, err
		}
		r.prefix, r.waiting = prefix, map[string]chan<- *nats.Msg{}
	}
	r.asked++
	token := strconv.FormatUint(r.asked, 36)
	c := make(chan *nats.Msg, most)
	r.waiting[token] = c
	return r.prefix + token, c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, token)
	}, nil
}

// deliver is called for each message that comes.
func (r *replies) deliver(m *nats.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.waiting[m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]]
	select {
	case c <- m: // nil never is ready
	default:
	}
}
