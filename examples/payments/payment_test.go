package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// A mute is a store whose answers get lost: those of writes that were made, or those
// of writes that were not.
type mute struct {
	tidemark.Store[string, Cents]
	made bool // whether the write is made
	lost bool // whether its answer is lost
	deaf bool // whether nobody can ask what became of it
}

var errLost = errors.New("the connection was lost")

func (m *mute) CompareAndSet(ctx context.Context, account string, base tidemark.Version, value Cents, op tidemark.OpID) (v tidemark.Version, err error) {
	if m.made {
		v, err = m.Store.CompareAndSet(ctx, account, base, value, op)
	}
	if m.lost {
		return 0, errLost
	}
	return v, err
}

func (m *mute) Outcome(ctx context.Context, account string, op tidemark.OpID) (tidemark.Version, bool, error) {
	if m.deaf {
		return 0, false, errLost
	}
	return m.Store.Outcome(ctx, account, op)
}

// Nobody is told that a purchase was made that was not, or the other way round, when the
// database's answer is lost.
func TestPurchase_InDoubt(t *testing.T) {
	t.Parallel() // one of them waits for requestTimeout
	for _, c := range []struct {
		name         string
		made, deaf   bool
		status       int
		body         string
		balanceAfter Cents
	}{
		{"made", true, false, 200, `{"balance":90}`, 90},
		{"not made", false, false, 503, `{"error":"try again"}`, 100},
		{"nobody knows", true, true, 202, `{"error":"not known yet whether this was made: look with ?within=0s before you try again"}`, 90},
	} {
		t.Run(c.name, func(t *testing.T) {
			bank, err := openBank(t.Context(), newSQLite(t))
			require.NoError(t, err)
			defer bank.close()
			store := &mute{Store: bank.store, made: true}
			cache, err := tidemark.New(tidemark.Options[string, Cents]{Store: store, DoubtTimeout: 50 * time.Millisecond})
			require.NoError(t, err)
			defer cache.Close(context.Background())
			_, err = deposit(t.Context(), cache, "alice", 100)
			require.NoError(t, err)

			store.made, store.lost, store.deaf = c.made, true, c.deaf
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/accounts/alice/purchases", strings.NewReader("10"))
			newAPI(cache, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
			assert.Equal(t, []any{c.status, c.body}, []any{w.Code, strings.TrimSpace(w.Body.String())})
			e, _, err := bank.store.Load(t.Context(), "alice")
			require.NoError(t, err)
			assert.Equal(t, c.balanceAfter, e)
		})
	}
}

// A write that was made is made, also if the replicas could not be told in time; its
// client's reads go to the database then.
func TestPurchase_NotToldYet(t *testing.T) {
	s, err := startNATS("127.0.0.1:0")
	require.NoError(t, err)
	defer s.stop()
	bank, err := openBank(t.Context(), newSQLite(t))
	require.NoError(t, err)
	defer bank.close()
	nc, err := connect(s.ClientURL(), t.Name())
	require.NoError(t, err)
	defer nc.Close()
	cache, err := tidemark.New(tidemark.Options[string, Cents]{Store: bank.store, Invalidator: accountsLog(nc, nil)})
	require.NoError(t, err)
	defer func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		assert.Error(t, cache.Close(ended), "what was not told is in the error")
	}()
	require.NoError(t, cache.Ready(t.Context()))
	_, err = deposit(t.Context(), cache, "alice", 100)
	require.NoError(t, err)

	s.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	e, err := purchase(ctx, cache, "alice", 10, 0)
	require.NoError(t, err)
	assert.EqualValues(t, 90, e.Value)
	token := cache.Token()
	loads := cache.Stats().Loads
	_, err = cache.Read(t.Context(), "alice", tidemark.After(token))
	require.NoError(t, err)
	assert.Equal(t, loads+1, cache.Stats().Loads)
}
