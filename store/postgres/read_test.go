package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// queries counts what goes over the wire.
type queries struct{ n atomic.Int64 }

func (q *queries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	q.n.Add(1)
	return ctx
}
func (q *queries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestBulk_OneRoundTrip, however many keys there are, in any order, and twice.
func TestBulk_OneRoundTrip(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		var q queries
		db := newDB(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &q })
		s := newStore(t, db, Options[string, int]{HardDelete: hard})
		exec(t, db, `INSERT INTO tidemark (key, value, version) SELECT 'k' || n, n, n FROM generate_series(1, 5000) n`)
		var keys []string
		for i := 6000; i > 0; i-- {
			keys = append(keys, fmt.Sprint("k", i))
		}
		keys = append(keys, "k1", "k2")
		before := q.n.Load()
		found, err := s.LoadMany(t.Context(), keys)
		require.NoError(t, err)
		versions, err := s.LoadVersions(t.Context(), keys)
		require.NoError(t, err)
		assert.EqualValues(t, 2, q.n.Load()-before)
		require.Len(t, found, 6000)
		require.Len(t, versions, 5000)
		for i := 1; i <= 6000; i++ {
			k := fmt.Sprint("k", i)
			if i > 5000 {
				require.Equal(t, tidemark.Loaded[int]{Absent: true}, found[k])
				continue
			}
			require.Equal(t, tidemark.Loaded[int]{Value: i, Version: tidemark.Version(i)}, found[k])
			require.Equal(t, tidemark.Version(i), versions[k])
		}
		found, err = s.LoadMany(t.Context(), nil)
		require.NoError(t, err)
		assert.Empty(t, found)
	}
}

// TestStandby_IsRefused until it is promoted, whatever it is asked; and the source's
// timeline tells that it was.
func TestStandby_IsRefused(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	s := newStore(t, open(t, server.URL), Options[string, string]{})
	op := newOp()
	v, err := s.CompareAndSet(t.Context(), "k", 0, "v", op)
	require.NoError(t, err)
	first, err := s.Source(t.Context())
	require.NoError(t, err)
	assert.NotZero(t, first.System)
	assert.EqualValues(t, 1, first.Timeline)

	standby, err := server.Standby()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.Close()) })
	db := open(t, standby.URL)
	other, err := New(db, Options[string, string]{})
	require.NoError(t, err)
	for name, ask := range map[string]func() error{
		"Load of a key":    func() error { _, _, err := other.Load(t.Context(), "k"); return err },
		"Load of no key":   func() error { _, _, err := other.Load(t.Context(), "none"); return err },
		"LoadMany":         func() error { _, err := other.LoadMany(t.Context(), []string{"none"}); return err },
		"LoadVersions":     func() error { _, err := other.LoadVersions(t.Context(), []string{"k"}); return err },
		"Outcome":          func() error { _, _, err := other.Outcome(t.Context(), "k", op); return err },
		"Outcome of no op": func() error { _, _, err := other.Outcome(t.Context(), "k", newOp()); return err },
		"Source":           func() error { _, err := other.Source(t.Context()); return err },
		"Check":            func() error { return other.Check(t.Context()) },
	} {
		err := ask()
		require.ErrorIs(t, err, ErrStandby, name)
		require.NotErrorIs(t, err, tidemark.ErrNotFound, name)
	}
	_, err = other.CompareAndSet(t.Context(), "k", v, "w", newOp())
	require.ErrorIs(t, err, tidemark.ErrUnavailable)

	require.NoError(t, server.Kill())
	exec(t, db, "SELECT pg_promote()")
	requireState(t, other, "k", "v", v)
	second, err := other.Source(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Source{System: first.System, Timeline: 2}, second)
	_, err = other.CompareAndSet(t.Context(), "k", v, "w", newOp())
	require.NoError(t, err)
}

// TestSource_NeedsNoPrivilege.
func TestSource_NeedsNoPrivilege(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	admin := open(t, server.URL)
	exec(t, admin, "CREATE ROLE service LOGIN")
	exec(t, admin, "CREATE DATABASE app OWNER service")
	db := open(t, server.URL, func(c *pgxpool.Config) { c.ConnConfig.User, c.ConnConfig.Database = "service", "app" })
	s := newStore(t, db, Options[string, string]{})
	_, err := s.Source(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.Check(t.Context()))
	_, err = s.CompareAndSet(t.Context(), "k", 0, "v", newOp())
	require.NoError(t, err)
}

// TestCache_OverPostgres reads, writes and revalidates through a cache, and sees
// what was lost in a failover once the source's epoch is declared.
func TestCache_OverPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	s := newStore(t, open(t, server.URL), Options[string, int]{HardDelete: true})
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: s, SourceEpoch: 1})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, cache.Close(context.WithoutCancel(t.Context()))) })
	add := func(n int) tidemark.Entry[int] {
		e, err := cache.Update(t.Context(), "k", func(cur tidemark.Entry[int]) (int, error) { return cur.Value + n, nil })
		require.NoError(t, err)
		return e
	}
	add(1)
	standby, err := server.Standby("recovery_min_apply_delay=1h")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.Close()) })
	lost := add(10)
	assert.Equal(t, 11, lost.Value)
	require.NoError(t, server.Kill())

	// The standby takes over without the last write, at the address that the service
	// knows: here, by another store behind the same cache.
	db := open(t, standby.URL)
	exec(t, db, "SELECT pg_promote()")
	moved, err := New(db, Options[string, int]{HardDelete: true})
	require.NoError(t, err)
	source, err := moved.Source(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, source.Timeline)
	s.db = db
	require.NoError(t, cache.SetSourceEpoch(t.Context(), source.Timeline))
	now, err := cache.Load(t.Context(), "k")
	require.NoError(t, err)
	value, v, err := moved.Load(t.Context(), "k")
	require.NoError(t, err)
	assert.Equal(t, value, now.Value)
	assert.Equal(t, v, now.Version)
	require.Eventually(t, func() bool { return cache.Stats().Entries > 0 }, patience, time.Millisecond)
}
