package natskv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
)

// A Sink is told what has changed. A [*tidemark.Cache] is one, and so is a
// [*tidemark.Publisher]. If it also has a method InvalidateMany, as Publisher
// has, changes that come together are told together.
type Sink[K comparable] interface {
	Invalidate(ctx context.Context, key K, version tidemark.Version) error
	InvalidateAll(ctx context.Context) error
}

const (
	// followBeat is how often a follower makes sure that it hears.
	followBeat = time.Second

	// followPatience is how long a follower may hear nothing of what it has
	// appended itself.
	followPatience = 3 * followBeat

	// followBatch is how many changes a follower takes at once.
	followBatch = 256

	// consumerBeat is how often the server tells a waiting consumer that it is
	// there, and consumerIdle when it forgets one that asks for nothing.
	consumerBeat = 500 * time.Millisecond
	consumerIdle = 30 * time.Second
)

// Follow tells sink what changes in the bucket, whoever changes it, for as long
// as ctx lives. It returns ctx's error then; before, only if the sink fails, or
// with an error that wraps [ErrRecreated].
//
// It begins, and nothing else can, by telling the sink that everything may have
// changed. From there it reads the bucket's stream in order, and tells each key
// with its revision. What it was not sent it asks for again: a change goes unheard
// only if the stream itself drops it without a mark, as the purge of a stream,
// but not of a key, does.
//
// Once a second it appends a message of its own. While that does not come back,
// for three seconds, or the link is down, it does not know what changes, and says
// at once, and again with each attempt to go on, that everything may have. So
// a cache that is the sink serves nothing from before; what it loads meanwhile
// may be old for the time of an attempt, some seconds. Changes are told after
// they were committed: a bound on the age of reads, by [tidemark.Within], needs a
// log between the replicas.
//
// In each replica of a service, with its cache as the sink, Follow is all that
// the replicas need to hear each other: such a cache should have no
// [tidemark.Invalidator], which would tell the others once more. Where the caches
// do have one, one process calls Follow with a Publisher.
func (s *Store[K, V]) Follow(ctx context.Context, sink Sink[K]) error {
	f := &follower[K]{b: s.b, key: s.key, sink: sink}
	err := f.run(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("natskv: follow: %w", err)
}

// A follower reads the stream of a bucket in order. It is used by one goroutine.
type follower[K comparable] struct {
	b    *bucket
	key  keyCodec[K]
	sink Sink[K]

	last uint64 // everything up to this number was told; 0: it has not begun
}

// A sinkError ends a follower.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// run follows until it must end.
func (f *follower[K]) run(ctx context.Context) error {
	for pause := shortestPause; ; {
		last := f.last
		err := f.read(ctx)
		var failed sinkError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &failed):
			return failed.error
		}
		if told := f.sink.InvalidateAll(ctx); told != nil { // nobody knows what happens now
			return told
		}
		if errors.Is(err, ErrRecreated) || f.b.closed() {
			return err
		}
		if f.last > last {
			pause = shortestPause
		}
		f.b.again(ctx, &pause)
	}
}

// A change that a consumer has delivered.
type delivered struct {
	m        jetstream.Msg
	sequence jetstream.SequencePair
}

// read reads until something goes wrong, with a consumer of its own.
func (f *follower[K]) read(ctx context.Context) error {
	up, stop := f.b.whileUp(ctx)
	defer stop()
	consumer, err := f.open(up)
	if err != nil {
		return err
	}
	defer f.b.forget(consumer.CachedInfo().Name)
	if f.last == 0 {
		// Whatever changes after this is ahead of the consumer.
		f.last = consumer.CachedInfo().Delivered.Stream
		if err := f.sink.InvalidateAll(ctx); err != nil {
			return sinkError{err}
		}
	}
	life, end := context.WithCancel(up)
	defer end()
	arrived, trouble := make(chan delivered, followBatch), make(chan error, 1)
	running, err := consumer.Consume(func(m jetstream.Msg) {
		d, err := m.Metadata()
		if err != nil {
			leave(trouble, err)
			return
		}
		select {
		case arrived <- delivered{m, d.Sequence}:
		case <-life.Done():
		}
	}, jetstream.PullMaxMessages(followBatch), jetstream.PullHeartbeat(consumerBeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { leave(trouble, err) }))
	if err != nil {
		return err
	}
	defer running.Stop()
	return f.listen(ctx, life, arrived, trouble)
}

// leave leaves err unless one is left already.
func leave(trouble chan<- error, err error) {
	select {
	case trouble <- err:
	default:
	}
}

// open makes a consumer of everything that comes after what was told last.
// Messages that are no longer there were overtaken by others of their keys, which
// are, or purged.
func (f *follower[K]) open(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if _, err := f.b.current(ctx, barrierName); err != nil { // is it still that bucket?
		return nil, err
	}
	c := jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverNewPolicy,
		HeadersOnly:       true,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: consumerIdle,
	}
	if f.last != 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.last+1
	}
	return f.b.js.CreateConsumer(ctx, f.b.stream, c)
}

// forget deletes a consumer; one that cannot be reached is forgotten by the
// server.
func (b *bucket) forget(consumer string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.js.DeleteConsumer(ctx, b.stream, consumer)
}

// A beat is a message that a follower has appended, to hear itself.
type beat struct {
	sent time.Time
	seq  uint64
	err  error
}

// listen tells what arrives, and notices if not everything does, until the reading
// ends with up. The sink may take its time until ctx ends.
func (f *follower[K]) listen(ctx, up context.Context, arrived <-chan delivered, trouble <-chan error) error {
	up, end := context.WithCancel(up)
	beats := make(chan beat)
	var wg sync.WaitGroup
	wg.Go(func() { f.keepBeat(up, beats) })
	defer wg.Wait()
	defer end()
	check := time.NewTicker(followBeat)
	defer check.Stop()
	heard, counted := time.Now(), uint64(0)
	var owed beat
	for {
		next := beats
		if owed.seq != 0 {
			next = nil // one at a time
		}
		select {
		case d := <-arrived:
			batch := []delivered{d}
			for len(batch) < followBatch && len(arrived) > 0 {
				batch = append(batch, <-arrived)
			}
			for _, d := range batch {
				// The consumer counts what it sends: a message that was lost on
				// the way is missed, one that the stream does not have is not.
				if counted++; d.sequence.Consumer != counted {
					return fmt.Errorf("delivery %d after %d", d.sequence.Consumer, counted-1)
				}
			}
			if err := f.tell(ctx, batch); err != nil {
				return sinkError{err}
			}
			f.last = batch[len(batch)-1].sequence.Stream
		case owed = <-next:
			if errors.Is(owed.err, ErrRecreated) {
				return owed.err
			}
		case err := <-trouble:
			return err
		case <-check.C:
		case <-up.Done():
			return context.Cause(up)
		}
		if owed.seq != 0 && owed.seq <= f.last {
			heard, owed = owed.sent, beat{}
		}
		if time.Since(heard) > followPatience {
			return fmt.Errorf("what was appended does not come back: %w", errors.Join(errSilence, owed.err))
		}
	}
}

var errSilence = errors.New("natskv: silence")

// keepBeat appends a message every beat, one at a time.
func (f *follower[K]) keepBeat(ctx context.Context, beats chan<- beat) {
	for {
		sent := time.Now()
		is, err := f.b.current(ctx, barrierName)
		select {
		case beats <- beat{sent, is.seq, err}:
		case <-ctx.Done():
			return
		}
		if !sleep(ctx, followBeat-time.Since(sent)) {
			return
		}
	}
}

// tell tells the sink what a batch has changed.
func (f *follower[K]) tell(ctx context.Context, batch []delivered) error {
	changed := make(map[K]tidemark.Version, len(batch))
	for _, d := range batch {
		name, ours := strings.CutPrefix(d.m.Subject(), f.b.prefix)
		if !ours || strings.HasPrefix(name, "_") {
			continue
		}
		key, err := f.key.parse(name)
		if err != nil {
			continue // no reader of this cache can have it
		}
		changed[key] = max(changed[key], tidemark.Version(d.sequence.Stream))
	}
	if many, ok := f.sink.(interface {
		InvalidateMany(ctx context.Context, changed map[K]tidemark.Version) error
	}); ok && len(changed) > 1 {
		return many.InvalidateMany(ctx, changed)
	}
	for key, v := range changed {
		if err := f.sink.Invalidate(ctx, key, v); err != nil {
			return err
		}
	}
	return nil
}
