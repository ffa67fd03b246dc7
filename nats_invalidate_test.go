package tidemark

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What nats.go does is tested in integration, with real servers. Here is what
// happens there only when the scheduler likes.

// The link breaks after the reader has looked at it and before it compares the
// numbers: it may be the link that has lost a message, and not the log.
func TestNATSReader_ABreakInBetweenIsNoGap(t *testing.T) {
	r := &natsReader{link: make(chan nats.Status, 1), life: t.Context()}
	require.ErrorIs(t, r.gap(ErrGap), ErrGap, "the link holds")
	r.link <- nats.RECONNECTING
	err := r.gap(ErrGap)
	require.NotErrorIs(t, err, ErrGap)
	require.ErrorContains(t, err, "the connection is RECONNECTING")
	life, end := context.WithCancel(t.Context())
	end()
	r.life = life
	close(r.link)
	assert.ErrorIs(t, r.gap(ErrGap), errReaderClosed)
}
