package natskv

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// A sink notes what it is told.
type sink struct {
	told map[string]tidemark.Version
	err  error
}

func (s *sink) Invalidate(_ context.Context, key string, v tidemark.Version) error {
	s.told[key] = v
	return s.err
}

func (s *sink) InvalidateAll(context.Context) error { return s.err }

type subjectOnly struct {
	jetstream.Msg
	subject string
}

func (m subjectOnly) Subject() string { return m.subject }

// delivery is one message of a consumer.
func delivery(consumer, stream uint64, subject string) delivered {
	return delivered{subjectOnly{subject: subject}, jetstream.SequencePair{Consumer: consumer, Stream: stream}}
}

// newFollower follows a bucket that answers nothing.
func newFollower(t *testing.T, s *sink) *follower[string] {
	t.Helper()
	b := askedOf(server{100, nil})
	b.barrier.append = func(context.Context) (uint64, error) { return 0, errors.New("no leader") }
	key, err := newKeyCodec[string](nil)
	require.NoError(t, err)
	return &follower[string]{b: b, key: key, sink: s, last: 3}
}

// TestFollower_TellsWhatArrives has keys of the cache, of others, and messages of
// this package.
func TestFollower_TellsWhatArrives(t *testing.T) {
	s := &sink{told: map[string]tidemark.Version{}}
	f := newFollower(t, s)
	arrived, trouble := make(chan delivered, 10), make(chan error, 1)
	for i, subject := range []string{"$KV.b.k", "$KV.b.a=41", "$KV.b._tidemark.barrier", "$KV.b.k", "$KV.b.l"} {
		arrived <- delivery(uint64(i+1), uint64(2*i+10), subject) // the stream has holes
	}
	end := errors.New("the end")
	time.AfterFunc(50*time.Millisecond, func() { trouble <- end })
	require.ErrorIs(t, f.listen(t.Context(), t.Context(), arrived, trouble), end)
	assert.Equal(t, map[string]tidemark.Version{"k": 16, "l": 18}, s.told)
	assert.EqualValues(t, 18, f.last)
}

// TestFollower_ALostDeliveryIsNoticed has a consumer that has sent one more.
func TestFollower_ALostDeliveryIsNoticed(t *testing.T) {
	f := newFollower(t, &sink{told: map[string]tidemark.Version{}})
	arrived := make(chan delivered, 10)
	arrived <- delivery(1, 10, "$KV.b.k")
	arrived <- delivery(3, 12, "$KV.b.k")
	err := f.listen(t.Context(), t.Context(), arrived, nil)
	require.ErrorContains(t, err, "delivery 3 after 1")
	assert.LessOrEqual(t, f.last, uint64(10), "it goes on in front of what is missing")
}

// TestFollower_SilenceIsNoticed has a consumer that delivers nothing, while the
// stream takes no message either, and while it does.
func TestFollower_SilenceIsNoticed(t *testing.T) {
	for _, takes := range []bool{false, true} {
		t.Run(fmt.Sprintf("takes messages: %t", takes), func(t *testing.T) {
			t.Parallel()
			f := newFollower(t, &sink{told: map[string]tidemark.Version{}})
			if takes {
				f.b.identity = mark{2, "id"}
				var seq atomic.Uint64
				seq.Store(1000)
				f.b.barrier.append = func(context.Context) (uint64, error) { return seq.Add(1), nil }
				f.b.ask = func(_ context.Context, r request) (page, error) {
					return server{seq.Load(), map[string]stored{
						f.b.prefix + identityName: {seq: 2, data: []byte("id")}, f.b.prefix + barrierName: {seq: seq.Load()},
					}}.answer(r)
				}
			}
			began := time.Now()
			err := f.listen(t.Context(), t.Context(), make(chan delivered), nil)
			require.ErrorIs(t, err, errSilence)
			assert.Less(t, time.Since(began), 2*followPatience)
		})
	}
}

func TestFollower_TheSinkFails(t *testing.T) {
	failure := errors.New("closed")
	f := newFollower(t, &sink{told: map[string]tidemark.Version{}, err: failure})
	arrived := make(chan delivered, 1)
	arrived <- delivery(1, 10, "$KV.b.k")
	err := f.listen(t.Context(), t.Context(), arrived, nil)
	require.ErrorAs(t, err, new(sinkError))
	require.ErrorIs(t, err, failure)
	assert.EqualValues(t, 3, f.last)
}
