package tidemark

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"time"
)

// PublisherOptions configures a Publisher. Invalidator is required.
type PublisherOptions[K comparable] struct {
	// Invalidator is the one that the caches have, or its equal.
	Invalidator Invalidator

	// KeyCodec is the one that the caches have. Nil is enough for strings and
	// integers.
	KeyCodec KeyCodec[K]

	// SourceEpoch is the epoch of the source that versions are of, as in
	// [Options]. Versions of an earlier one than the caches have order nothing:
	// its keys count as changed without a version.
	SourceEpoch uint32

	// Resumes says that nothing is lost with this process: what it has not told when
	// it dies, another one will tell, as the relay of an outbox does. Then it says no
	// hellos, and its silence makes nobody suspect anything. It takes a Log, whose
	// readers miss nothing.
	Resumes bool
}

// A Publisher tells the replicas of a cache what a process without a cache has
// changed: a batch job, a migration, a person with an SQL prompt. Make one with
// NewPublisher; its methods are safe for concurrent use.
//
// It says hello as a replica does, so that the replicas notice by its next hello
// if they have missed a message of its, and by its silence if it died; but see
// [PublisherOptions.Resumes].
type Publisher[K comparable] struct {
	keys    keys[K]
	epoch   uint32
	out     *outbox
	work    gate
	beats   sync.WaitGroup
	endBeat context.CancelFunc
}

// NewPublisher returns a Publisher. It owns at most two goroutines, which Close ends.
// Mistakes in o are reported at once, each an [*OptionError].
func NewPublisher[K comparable](o PublisherOptions[K]) (*Publisher[K], error) {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	o.Invalidator.validate(bad)
	if !o.Invalidator.connected() {
		bad("Invalidator", "is not set")
	}
	if o.Resumes && o.Invalidator.connected() && o.Invalidator.Log == nil && o.Invalidator.mistake == nil {
		bad("Resumes", "needs an Invalidator with a Log")
	}
	p := &Publisher[K]{keys: newKeys(o.KeyCodec), epoch: o.SourceEpoch}
	if err := checkKeyType(reflect.TypeFor[K]()); err != nil {
		bad("K", "%v", err)
	} else if !p.keys.encodable() {
		bad("KeyCodec", "is nil, but keys of type %v cannot travel without one", reflect.TypeFor[K]())
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	p.out = newOutbox(o.Invalidator, o.SourceEpoch, caughtAlone, func() {})
	ctx, cancel := context.WithCancel(context.Background())
	p.endBeat = cancel
	if !o.Resumes {
		p.beats.Go(func() { p.keepBeat(ctx, o.Invalidator.beat()) })
	}
	return p, nil
}

// keepBeat says hello every beat.
func (p *Publisher[K]) keepBeat(ctx context.Context, beat time.Duration) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for nonce := uint64(1); ; nonce++ {
		p.out.hello(nonce)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Invalidate says that the key has changed, to the given version; 0 means that
// the version is not known. It returns once the transport has the message; an
// [ErrNotBroadcast] means that ctx ended first, and the message stays queued.
// Calls side by side share messages: for many keys, call from several
// goroutines or use InvalidateMany.
func (p *Publisher[K]) Invalidate(ctx context.Context, key K, version Version) error {
	return p.InvalidateMany(ctx, map[K]Version{key: version})
}

// InvalidateMany is Invalidate for many keys, in as few messages as they fit.
func (p *Publisher[K]) InvalidateMany(ctx context.Context, changed map[K]Version) error {
	if !p.work.enter() {
		return ErrClosed
	}
	defer p.work.leave()
	var ticket uint64
	for key, version := range changed {
		b, err := p.encode(key)
		if err != nil {
			return err
		}
		ticket = p.out.add(b, mark{version: version}, p.epoch)
	}
	return p.out.wait(ctx, ticket)
}

// InvalidateAll says that everything may have changed. Errors as Invalidate.
func (p *Publisher[K]) InvalidateAll(ctx context.Context) error {
	if !p.work.enter() {
		return ErrClosed
	}
	defer p.work.leave()
	return p.out.wait(ctx, p.out.addAll())
}

// caughtAlone turns a recovered panic into an error where no cache counts it.
func caughtAlone(r any) error { return &PanicError{Value: r, Stack: debug.Stack()} }

func (p *Publisher[K]) encode(key K) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = caughtAlone(r)
		}
	}()
	return p.keys.encode(nil, key), nil
}

// Close publishes what waits, until ctx ends, and ends the goroutines. The error
// says what could not be published.
func (p *Publisher[K]) Close(ctx context.Context) error {
	p.endBeat()
	p.beats.Wait()
	idle := p.work.await(ctx)
	return p.out.close(ctx, idle == nil)
}
