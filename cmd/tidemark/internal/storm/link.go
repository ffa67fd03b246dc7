package storm

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A hint carries messages between replicas; it may lose, repeat and reorder
// them. It has the methods of tidemark.Hint, and every contender that sends
// messages sends them through one.
type hint interface {
	Publish(ctx context.Context, msg []byte) error
	Subscribe(receive func(msg []byte), lost func(reason string)) (stop func(), err error)
}

// Weather is what a link does to the messages that one replica receives. The
// shares are probabilities between 0 and 1; the zero value is fair weather.
type Weather struct {
	Delay     float64       `json:"delay"`     // share of messages that hold up themselves and all that follow
	DelayMax  time.Duration `json:"delay_max"` // by at most this
	Reorder   float64       `json:"reorder"`   // share of messages that later ones overtake
	Duplicate float64       `json:"duplicate"` // share of messages that come a second time, up to repeatMax later
	Drop      float64       `json:"drop"`      // share of messages that never come
}

const (
	reorderMax = 20 * time.Millisecond // how long an overtaken message is held back
	repeatMax  = time.Second           // how late a repetition may come

	// queueLimit bounds the messages that a link holds back. Beyond it the
	// link does what a network does: it drops, and the subscriber is told.
	queueLimit = 1 << 16
)

// errDead is what a killed process would see of its transport, if it could.
var errDead = errors.New("storm: this process is dead")

// A link is a hint with weather on the receiving side. It is safe for
// concurrent use and may be subscribed to more than once; each subscription has
// its own weather and starts one goroutine, which stop ends.
type link struct {
	inner hint
	seed  uint64

	dead       atomic.Bool
	suppressed atomic.Uint64 // publishes of the dead

	mu      sync.Mutex // guards everything below
	weather Weather
	subs    map[*delivery]struct{}
	nextSub uint64
}

func newLink(inner hint, w Weather, seed uint64) *link {
	return &link{inner: inner, weather: w, seed: seed, subs: make(map[*delivery]struct{})}
}

// Publish hands msg to the transport, unless the process is dead.
func (l *link) Publish(ctx context.Context, msg []byte) error {
	if l.dead.Load() {
		l.suppressed.Add(1)
		return errDead
	}
	return l.inner.Publish(ctx, msg)
}

// kill makes the process that owns the link silent and deaf for good: no
// publish that begins after kill has returned reaches the transport.
func (l *link) kill() { l.dead.Store(true) }

// setWeather changes the weather for messages that arrive from now on.
func (l *link) setWeather(w Weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.weather = w
}

func (l *link) currentWeather() Weather {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.weather
}

// stall makes the consumer stop reading for d: the transport's own callback
// blocks, so that messages pile up where a slow consumer's do.
func (l *link) stall(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.subs {
		s.stalledUntil.Store(time.Now().Add(d).UnixNano())
	}
}

// held returns how many messages wait in the link.
func (l *link) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for s := range l.subs {
		n += s.held()
	}
	return n
}

// tally returns what the weather has done so far to all subscriptions.
func (l *link) tally() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	var t Tally
	for s := range l.subs {
		t = t.add(s.tally())
	}
	return t
}

// A Tally counts what happened to messages.
type Tally struct {
	Arrived    uint64 `json:"arrived"`
	Delayed    uint64 `json:"delayed"`
	Reordered  uint64 `json:"reordered"`
	Duplicated uint64 `json:"duplicated"`
	Dropped    uint64 `json:"dropped"`
}

func (t Tally) add(u Tally) Tally {
	return Tally{
		t.Arrived + u.Arrived, t.Delayed + u.Delayed, t.Reordered + u.Reordered,
		t.Duplicated + u.Duplicated, t.Dropped + u.Dropped,
	}
}

// Subscribe delivers the transport's messages after the weather has had them.
func (l *link) Subscribe(receive func(msg []byte), lost func(reason string)) (stop func(), err error) {
	l.mu.Lock()
	l.nextSub++
	s := &delivery{
		link: l, receive: receive, lost: lost,
		done: make(chan struct{}), wake: make(chan struct{}, 1),
		rng: rand.New(rand.NewPCG(l.seed, l.nextSub)),
	}
	l.subs[s] = struct{}{}
	l.mu.Unlock()

	innerStop, err := l.inner.Subscribe(s.arrive, s.arriveLost)
	if err != nil {
		l.forget(s)
		return nil, err
	}
	s.wg.Go(s.run)
	var once sync.Once
	return func() {
		once.Do(func() {
			close(s.done) // first: a stalled callback must not hold up the transport
			innerStop()
			s.wg.Wait()
			l.forget(s)
		})
	}, nil
}

func (l *link) forget(s *delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.subs, s)
}

// A delivery is one subscription: a queue between the transport, which calls
// arrive, and the goroutine run, which calls the subscriber.
type delivery struct {
	link    *link
	receive func([]byte)
	lost    func(string)
	done    chan struct{}
	wake    chan struct{} // has an element if queue has changed since run last looked
	wg      sync.WaitGroup

	stalledUntil atomic.Int64 // unix nanoseconds

	mu        sync.Mutex // guards everything below
	rng       *rand.Rand
	queue     deliveryQueue
	arrivals  uint64
	notBefore time.Time // nothing in order is delivered before
	counts    Tally
}

// A message waits in a delivery's queue. One with text instead of msg is the
// news that messages were lost.
type message struct {
	due  time.Time
	rank uint64 // order of arrival, for equal due
	msg  []byte
	lost string
}

// arrive is called by the transport, one message at a time.
func (s *delivery) arrive(msg []byte) {
	if s.link.dead.Load() {
		return
	}
	s.waitStall()
	w := s.link.currentWeather()
	s.mu.Lock()
	full := !s.acceptLocked(w, bytes.Clone(msg), time.Now())
	s.mu.Unlock()
	s.signal()
	if full {
		s.arriveLost("storm: the link's queue is full")
	}
}

// acceptLocked queues msg as the weather w wants. It returns false if it had to
// drop the message for want of room.
func (s *delivery) acceptLocked(w Weather, msg []byte, now time.Time) bool {
	s.counts.Arrived++
	// Always four draws a message, so that one fault's share does not shift
	// the dice of another.
	drop, delay, reorder, repeat := s.rng.Float64(), s.rng.Float64(), s.rng.Float64(), s.rng.Float64()
	if drop < w.Drop {
		s.counts.Dropped++
		return true
	}
	if len(s.queue) >= queueLimit {
		s.counts.Dropped++
		return false
	}
	if delay < w.Delay && w.DelayMax > 0 {
		s.counts.Delayed++
		s.notBefore = later(s.notBefore, now.Add(time.Duration(s.rng.Int64N(int64(w.DelayMax)))))
	}
	due := later(now, s.notBefore)
	if reorder < w.Reorder {
		s.counts.Reordered++
		due = due.Add(time.Duration(s.rng.Int64N(int64(reorderMax))))
	}
	s.pushLocked(message{due: due, msg: msg})
	if repeat < w.Duplicate {
		s.counts.Duplicated++
		s.pushLocked(message{due: due.Add(time.Duration(s.rng.Int64N(int64(repeatMax)))), msg: msg})
	}
	return true
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// arriveLost is called by the transport when messages may have been missed. The
// news overtakes everything that waits: the storm must not make the transport
// less honest than it is.
func (s *delivery) arriveLost(reason string) {
	if s.link.dead.Load() {
		return
	}
	if reason == "" {
		reason = "no reason given"
	}
	s.mu.Lock()
	s.pushLocked(message{lost: reason})
	s.mu.Unlock()
	s.signal()
}

func (s *delivery) pushLocked(m message) {
	s.arrivals++
	m.rank = s.arrivals
	heap.Push(&s.queue, m)
}

func (s *delivery) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // run will look anyway
	}
}

// waitStall returns when the consumer is not stalled, or has gone.
func (s *delivery) waitStall() {
	for {
		d := time.Until(time.Unix(0, s.stalledUntil.Load()))
		if d <= 0 {
			return
		}
		select {
		case <-time.After(d):
		case <-s.done:
			return
		}
	}
}

// run calls the subscriber for each message that is due, until stop.
func (s *delivery) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		m, wait, ok := s.next()
		if ok {
			select {
			case <-s.done:
				return
			default:
				s.hand(m)
				continue
			}
		}
		timer.Reset(wait)
		select {
		case <-s.done:
			return
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// next takes the message that is due, or says how long to wait for one.
func (s *delivery) next() (m message, wait time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return message{}, time.Hour, false
	}
	if wait := time.Until(s.queue[0].due); wait > 0 {
		return message{}, wait, false
	}
	return heap.Pop(&s.queue).(message), 0, true
}

func (s *delivery) hand(m message) {
	switch {
	case s.link.dead.Load(): // the dead hear nothing
	case m.lost != "":
		s.lost(m.lost)
	default:
		s.receive(m.msg)
	}
}

func (s *delivery) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

func (s *delivery) tally() Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// A deliveryQueue is a heap of messages, the first due on top.
type deliveryQueue []message

func (q deliveryQueue) Len() int { return len(q) }
func (q deliveryQueue) Less(i, j int) bool {
	if q[i].due.Equal(q[j].due) {
		return q[i].rank < q[j].rank
	}
	return q[i].due.Before(q[j].due)
}
func (q deliveryQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *deliveryQueue) Push(x any)   { *q = append(*q, x.(message)) }
func (q *deliveryQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = message{}
	*q = old[:len(old)-1]
	return last
}
