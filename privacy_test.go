package tidemark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

// What the tests of this file look for in everything that a cache says.
const (
	secretKey   = "KEY-4929-1234-5678"
	secretValue = "VALUE-8765-4321"
)

// A transcript is all that a cache has said: records, events, errors, numbers.
type transcript struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// says notes what each of these is printed as.
func (s *transcript) says(what ...any) {
	for _, w := range what {
		fmt.Fprintf(s, "%v\n%+v\n", w, w)
	}
}

func (s *transcript) event(e Event) { s.says(e, e.Err) }

// private makes the Options of a cache whose every word is noted.
func (s *transcript) private(o Options[string, string]) Options[string, string] {
	o.Logger = slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.OnEvent = s.event
	o.Shards = 1
	return o
}

// A vault is a Store of secrets that fails as it is told.
type vault struct {
	mu      sync.Mutex // guards everything below
	version Version
	read    func() error
	write   func() error
	found   bool
}

func (v *vault) Load(context.Context, string) (string, Version, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.read != nil {
		return "", 0, v.read()
	}
	return secretValue, v.version, nil
}

func (v *vault) CompareAndSet(_ context.Context, _ string, base Version, _ string, _ OpID) (Version, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.write != nil {
		return 0, v.write()
	}
	if base != v.version {
		return 0, &ConflictError{Current: v.version}
	}
	v.version++
	return v.version, nil
}

func (v *vault) CompareAndDelete(ctx context.Context, key string, base Version, op OpID) (Version, error) {
	return v.CompareAndSet(ctx, key, base, "", op)
}

func (v *vault) Outcome(context.Context, string, OpID) (Version, bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.version, v.found, nil
}

func (v *vault) LoadMany(context.Context, []string) (map[string]Loaded[string], error) {
	return nil, nil // says nothing of any key
}

func (v *vault) set(read, write func() error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.read, v.write = read, write
}

// A cache says neither keys nor values in errors, records, events and numbers. What
// a callback's own error or panic says is its author's.
func TestPrivacy_NoKeyAndNoValueIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said, v := &transcript{}, &vault{version: 7}
		c, err := New(said.private(Options[string, string]{
			Store: v, DoubtTimeout: time.Second, MaxCost: 100, MaxLoads: 1, LoadTimeout: time.Second,
			Cost: func(_, value string) int64 { return int64(len(value)) },
		}))
		require.NoError(t, err)
		ctx := t.Context()
		note := func(err error) {
			t.Helper()
			require.Error(t, err)
			said.says(err)
		}
		set := func(string) error { _, err := c.CompareAndSet(ctx, secretKey, 7, secretValue); return err }
		_, err = c.Load(ctx, secretKey)
		require.NoError(t, err)
		_, err = c.Read(ctx, secretKey, AtLeast(100))
		note(err)
		_, err = c.LoadMany(ctx, []string{secretKey + "2", secretKey + "3"})
		note(err)
		_, err = c.CompareAndSet(ctx, secretKey, 3, secretValue)
		note(err)
		said.says(c.Put(secretKey, strings.Repeat(secretValue, 100), 9), c.Explain(secretKey), c.Explain(secretKey).String(), c.Stats())
		for name, fail := range map[string]func() error{
			"error": func() error { return errors.New("the database is down") }, "panic": func() error { panic("boom") },
			"unavailable": func() error { return fmt.Errorf("no connection: %w", ErrUnavailable) },
			"not found":   func() error { return ErrNotFound }, "no version": func() error { return nil },
		} {
			v.set(fail, fail)
			_, err = c.Read(ctx, secretKey+name, Linearizable)
			note(err)
			if err := set(name); err != nil {
				said.says(err)
			}
			time.Sleep(3 * time.Second)
			_, err = c.Update(ctx, secretKey, func(Entry[string]) (string, error) { return secretValue, nil })
			said.says(err)
			time.Sleep(3 * time.Second)
		}
		v.set(nil, nil)
		_, err = c.Update(ctx, secretKey, func(Entry[string]) (string, error) { panic("boom") })
		note(err)
		require.NoError(t, c.Invalidate(ctx, secretKey, 1<<40))
		said.says(c.Stats(), c.Explain(secretKey), c.Token())
		v.set(nil, func() error { return errors.New("the answer is lost") })
		note(set("in doubt"))
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		said.says(c.Close(short), set("closed"))
		requirePrivate(t, said)
	})
}

// The same of what goes between replicas.
func TestPrivacy_OfMessages(t *testing.T) {
	for _, name := range []string{"hint", "log"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				said, v, b, log := &transcript{}, &vault{version: 7}, newBus(), newMemLog()
				inv, strict := b.invalidator(), false
				say := func(msg []byte) { require.NoError(t, b.Publish(t.Context(), msg)) }
				if name == "log" {
					inv, strict = log.invalidator(), true
					say = func(msg []byte) { _, err := log.Append(t.Context(), msg); require.NoError(t, err) }
				}
				c, err := New(said.private(Options[string, string]{Store: v, Strict: strict, DoubtTimeout: time.Second, Invalidator: inv, KeyCodec: reticent{}}))
				require.NoError(t, err)
				require.NoError(t, c.Ready(t.Context()))
				_, err = c.Load(t.Context(), secretKey)
				require.NoError(t, err)
				s := newStranger(t, b)
				for _, key := range []string{secretKey, "bad " + secretKey, "panic " + secretKey} {
					for _, stage := range []wire.Stage{0, wire.Begun, wire.Ended} {
						e := wire.Entry{Key: []byte(key), Stage: stage}
						if stage != 0 {
							e.Op = [16]byte{1}
						}
						if stage == wire.Begun {
							e.TTL = 1
						}
						say(s.encode(s.next(wire.KindInvalidate, e)))
					}
				}
				s.next(wire.KindInvalidate) // gets lost
				m := s.next(wire.KindInvalidate, wire.Entry{Key: []byte(secretKey), Version: 1})
				m.Epoch = 3
				say(s.encode(m))
				say([]byte(secretKey))
				m.CacheID++
				say(s.encode(m))
				time.Sleep(10 * time.Second)
				b.setRefuse(errors.New("no servers"))
				log.setRefuse(errors.New("no quorum"))
				short, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				said.says(c.Invalidate(short, secretKey, 9))
				_, err = c.Update(short, secretKey, func(Entry[string]) (string, error) { return secretValue, nil })
				said.says(err)
				_, err = c.CompareAndSet(short, strings.Repeat(secretKey, 2000), 7, secretValue)
				said.says(err, c.Stats(), c.Close(short))
				require.NotEmpty(t, said.String())
				requirePrivate(t, said)
			})
		})
	}
}

// reticent is a KeyCodec that keeps its keys to itself.
type reticent struct{}

func (reticent) AppendKey(dst []byte, key string) []byte { return append(dst, key...) }

func (reticent) ParseKey(b []byte) (string, error) {
	switch {
	case bytes.HasPrefix(b, []byte("bad")):
		return "", errors.New("not a key")
	case bytes.HasPrefix(b, []byte("panic")):
		panic("not a key")
	}
	return string(b), nil
}

func requirePrivate(t *testing.T, said *transcript) {
	t.Helper()
	for _, word := range []string{"KEY-4929", "VALUE-8765"} {
		if at := strings.Index(said.String(), word); at >= 0 {
			text := said.String()
			assert.Fail(t, "a secret was said", text[max(0, at-300):min(len(text), at+100)])
		}
	}
}

// A key or a value is never part of the errors that a cache makes: those of its user
// are handed on as they are.
func TestPrivacy_WhatTheLoaderSaysIsItsAuthors(t *testing.T) {
	c := newCache(t, Options[string, string]{Loader: LoaderFunc[string, string](func(_ context.Context, key string) (string, Version, error) {
		return "", 0, errors.New("no row for " + key)
	})})
	_, err := c.Load(t.Context(), secretKey)
	require.ErrorContains(t, err, secretKey)
}
