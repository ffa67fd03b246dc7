package tidemark

import (
	"context"
	"errors"
)

// errPutOff means that the source was not asked: others need it more.
var errPutOff = errors.New("tidemark: the audit is put off")

// An answer is what the source has of a key.
type answer[V any] struct {
	Loaded[V]
	err error
}

func (s *answer[V]) mark() mark { return mark{s.Version, s.Absent} }

// byValue reports whether the source can only be asked for values.
func (a *auditor[K, V]) byValue() bool { return a.o.Digest != nil || a.c.versions == nil }

// most returns how many checks one call can make, by value or as the source likes: no
// more than the rate allows in a second.
func (a *auditor[K, V]) most(byValue bool) int {
	if (byValue || a.byValue()) && a.bulk == nil {
		return 1
	}
	return min(a.o.Rate, maxQuestions)
}

// ask asks the source about some keys, of which all or none are to be asked by
// value. If it returns an error the call may still be under way.
func (a *auditor[K, V]) ask(list []check[K]) (map[K]answer[V], error) {
	answers := make(map[K]answer[V], len(list))
	keys := make([]K, 0, len(list))
	for i := range list {
		if _, twice := answers[list[i].key]; !twice {
			answers[list[i].key] = answer[V]{}
			keys = append(keys, list[i].key)
		}
	}
	clear(answers)
	how := a.askOne
	if !a.byValue() && !list[0].byValue {
		how = a.askVersions
	} else if a.bulk != nil {
		how = a.askMany
	}
	if err := a.call(func(ctx context.Context) error { return how(ctx, keys, answers) }); err != nil {
		return nil, err
	}
	return answers, nil
}

// askOne asks for the value of one key: most allows no more.
func (a *auditor[K, V]) askOne(ctx context.Context, keys []K, answers map[K]answer[V]) error {
	var l Loaded[V]
	l.Value, l.Version, l.Err = a.c.source(true).Load(ctx, keys[0])
	s := a.understood(l)
	answers[keys[0]] = s
	return s.err
}

// understood returns what the source has said of a key.
func (a *auditor[K, V]) understood(l Loaded[V]) answer[V] {
	s := answer[V]{Loaded: l, err: a.c.readable(l.Err)}
	if errors.Is(s.err, ErrNotFound) {
		s.err, s.Absent = nil, true
	} else if s.err == nil && !s.Absent && s.Version == 0 {
		s.err = ErrNoVersion
	}
	return s
}

func (a *auditor[K, V]) askVersions(ctx context.Context, keys []K, answers map[K]answer[V]) error {
	versions, err := a.c.versions.source.LoadVersions(ctx, keys)
	for key, v := range versions {
		if v != 0 { // which is none: the key is asked for by value
			answers[key] = answer[V]{Loaded: Loaded[V]{Version: v}}
		}
	}
	return err
}

func (a *auditor[K, V]) askMany(ctx context.Context, keys []K, answers map[K]answer[V]) error {
	all, err := a.bulk.LoadMany(ctx, keys)
	for key, l := range all {
		answers[key] = a.understood(l)
	}
	return err
}

// call makes one call of the source, as loads are made, in a goroutine of its own:
// one that does not return holds up the auditor, and not Close. It returns
// errPutOff if others need the source more.
func (a *auditor[K, V]) call(f func(ctx context.Context) error) error {
	c := a.c
	if !c.loads.enter() {
		return ErrClosed
	}
	var err error = errGoexit
	done := make(chan struct{})
	go func() {
		defer c.loads.leave()
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				err = c.caught(r)
			}
		}()
		ctx, cancel := c.loadContext(c.life)
		defer cancel()
		err = a.admitted(func() error { return c.readable(f(ctx)) })
	}()
	select {
	case <-done:
		return err
	case <-c.life.Done():
		return ErrClosed
	}
}

// admitted makes a call if there are places to spare among MaxLoads, and the
// Breaker does not refuse it. It is ask for those who do not wait.
func (a *auditor[K, V]) admitted(call func() error) (err error) {
	c := a.c
	if c.places != nil {
		if len(c.places) > cap(c.places)/2 {
			return errPutOff
		}
		select {
		case c.places <- struct{}{}:
			defer func() { <-c.places }()
		default:
			return errPutOff
		}
	}
	done, refused := c.allow()
	if refused != nil {
		return errPutOff
	}
	err = errGoexit // for done, if it does not return
	done = c.limited(done, c.opts.LoadTimeout)
	defer func() { done(c.verdict(c.life, err)) }()
	c.stats.loads.Add(1)
	c.stats.loading.Add(1)
	began := c.now()
	defer func() {
		c.stats.loading.Add(-1)
		c.stats.loadTime.Add(max(c.now()-began, 0))
	}()
	err = call()
	return err
}
