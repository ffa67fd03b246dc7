package integration

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// testCommitStalled lets the context end while COMMIT is under way: the answer
// does not come, and the connection is not closed either.
func testCommitStalled(t *testing.T, d database, s saboteur) {
	store, _ := newStore(t, d, sqlstore.Options[string, string]{})
	before, err := store.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)

	op := newOp()
	s.arm(answerStalled)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	_, err = store.CompareAndSet(ctx, "k", before, "after", op)
	requireUnknown(t, s, err)
	assert.Less(t, time.Since(begin), 10*time.Second, "the call waited for an answer long after its context had ended")
	wantSettled(t, store, "k", op, true, "after", "before")
}
