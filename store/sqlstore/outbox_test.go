package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// A stepSink notes what it is told among the steps of a fake database.
type stepSink struct {
	f    *fake
	err  error
	told map[string]tidemark.Version
	end  context.CancelFunc
}

func (s *stepSink) Invalidate(_ context.Context, key string, v tidemark.Version) error {
	if s.end != nil {
		defer s.end()
	}
	s.told[key] = v
	return errors.Join(s.f.step("tell"), s.err)
}

func (s *stepSink) InvalidateAll(context.Context) error {
	if s.end != nil {
		defer s.end()
	}
	return errors.Join(s.f.step("tell all"), s.err)
}

// newOutboxFake has one row, 7, for ever.
func newOutboxFake(t *testing.T) (*fake, *Store[string, string], *stepSink) {
	t.Helper()
	f, store := newFake(t, SQLite)
	f.rows["look"] = []driver.Value{int64(7), []byte("k"), int64(5)}
	f.rows["ids"] = []driver.Value{int64(7)}
	f.rows["waiting"] = []driver.Value{int64(2)}
	f.triggers(store.box.triggers, 1)
	return f, store, &stepSink{f: f, told: map[string]tidemark.Version{}}
}

// triggers lets these be there, since a change of the schema with that number.
func (f *fake) triggers(names []string, epoch int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows["watch"] = []driver.Value{strings.Join(names, ","), ""}
	f.rows["epoch"] = []driver.Value{epoch}
}

func relevant(steps []string) (some []string) {
	for _, s := range steps {
		switch s {
		case "look", "ids", "mark", "forget", "tell", "tell all", "watch", "epoch":
			some = append(some, s)
		}
	}
	return some
}

// TestRelay_ForgetsWhatWasTold does so in this order, and nothing that was not.
func TestRelay_ForgetsWhatWasTold(t *testing.T) {
	f, store, sink := newOutboxFake(t)
	r := &relay[string, string]{s: store, sink: sink}
	r.o, _ = RelayOptions{}.normal()
	whole, err := r.pass(t.Context())
	require.NoError(t, err)
	assert.True(t, whole)
	assert.Equal(t, []string{"look", "tell", "forget"}, relevant(f.steps))
	assert.Equal(t, map[string]tidemark.Version{"k": 5}, sink.told)

	f.steps, sink.err = nil, errors.New("closed")
	_, err = r.pass(t.Context())
	require.ErrorAs(t, err, new(sinkError))
	assert.Equal(t, []string{"look", "tell"}, relevant(f.steps))

	f.steps, sink.err = nil, nil
	r.o.Batch, r.o.Collapse = 1, 1
	whole, err = r.pass(t.Context())
	require.NoError(t, err)
	assert.False(t, whole)
	assert.Equal(t, []string{"look", "ids", "tell all", "forget"}, relevant(f.steps))

	f.steps, sink.err = nil, errors.New("closed")
	_, err = r.pass(t.Context())
	require.ErrorAs(t, err, new(sinkError))
	assert.Equal(t, []string{"look", "ids", "tell all"}, relevant(f.steps))
}

// TestRelay_GoesOnAfterErrorsOfTheDatabase has one that fails at each step once.
func TestRelay_GoesOnAfterErrorsOfTheDatabase(t *testing.T) {
	for _, step := range []string{"look", "forget", "begin"} {
		f, store, sink := newOutboxFake(t)
		f.fail[step] = func(before int) error {
			if before == 0 {
				return errors.New("busy")
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		f.fail["commit"] = func(int) error { cancel(); return nil }
		require.ErrorIs(t, store.Relay(ctx, sink, RelayOptions{}), context.Canceled)
		assert.Equal(t, map[string]tidemark.Version{"k": 5}, sink.told, step)
		cancel()
	}
}

// TestRelay_WatchesTheTriggers: while one is missing everything may have changed at
// each look, then once more, and again when they were away between two looks.
func TestRelay_WatchesTheTriggers(t *testing.T) {
	f, store, sink := newOutboxFake(t)
	all := store.box.triggers
	require.Len(t, all, 4)
	var log strings.Builder
	r := &relay[string, string]{s: store, sink: sink}
	r.o, _ = RelayOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))}.normal()
	look := func(names []string, epoch int64, told bool, what string) {
		t.Helper()
		f.triggers(names, epoch)
		f.steps = nil
		if !r.watched.IsZero() {
			r.watched = r.watched.Add(-watchEvery)
		}
		require.NoError(t, r.watch(t.Context()))
		want := []string{"epoch", "watch"}
		if told {
			want = append(want, "tell all")
		}
		assert.Equal(t, want, relevant(f.steps), what)
	}
	look(all, 1, false, "all are there")
	look(all, 1, false, "nothing has happened")
	look(all, 3, true, "made anew since")
	look(all, 3, false, "and told")
	assert.NotContains(t, log.String(), "not heard")
	look(all[1:], 4, true, "one is missing")
	look(all[1:], 4, true, "still")
	assert.Equal(t, 1, strings.Count(log.String(), "no trigger "+all[0]+" is to be seen"), "said once: %s", log.String())
	look(all, 5, true, "it is back, and nobody knows since when")
	look(all, 5, false, "and told")

	f.steps = nil
	require.NoError(t, r.watch(t.Context()))
	assert.Empty(t, relevant(f.steps), "not all the time")

	f.triggers(nil, 6)
	sink.err, r.watched = errors.New("closed"), r.watched.Add(-watchEvery)
	require.ErrorAs(t, r.watch(t.Context()), new(sinkError))
	sink.err = nil
	look(all, 7, true, "what was not told is told later")

	later := &relay[string, string]{s: store, sink: sink, o: r.o}
	f.steps = nil
	f.triggers(all[:3], 7)
	require.NoError(t, later.watch(t.Context()))
	assert.Equal(t, []string{"epoch", "watch", "tell all"}, relevant(f.steps), "missing from the beginning")
	f.fail["watch"] = always(errors.New("busy"))
	later.watched = later.watched.Add(-watchEvery)
	require.Error(t, later.watch(t.Context()))
}

// TestTrimOutbox_MarksWhatItHasSeen shows the only order in which nothing can be
// lost: what appears after the ids were read stays, and what is deleted was there
// before the mark.
func TestTrimOutbox_MarksWhatItHasSeen(t *testing.T) {
	f, store, _ := newOutboxFake(t)
	n, err := store.TrimOutbox(t.Context(), 1)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n)
	assert.Equal(t, []string{"ids", "mark", "forget"}, relevant(f.steps))

	f.steps = nil
	f.fail["mark"] = always(errors.New("full"))
	_, err = store.TrimOutbox(t.Context(), 1)
	require.Error(t, err)
	assert.NotContains(t, f.steps, "forget")
}

func TestTold_AChangeToNobodyKnowsWhatOutweighsTheOthers(t *testing.T) {
	told := told[string]{changed: map[string]tidemark.Version{}}
	for _, c := range []struct {
		key     string
		version int64
	}{{"a", 3}, {"a", 5}, {"a", 4}, {"b", 3}, {"b", 0}, {"b", 4}, {"c", 0}, {"c", 4}, {"d", -1}} {
		told.add(c.key, c.version)
	}
	assert.Equal(t, map[string]tidemark.Version{"a": 5, "b": 0, "c": 0, "d": 0}, told.changed)
}

func TestRelay_RefusesWhatItCannotDo(t *testing.T) {
	_, store, sink := newOutboxFake(t)
	var mistake *tidemark.OptionError
	for field, err := range map[string]error{
		"Batch": store.Relay(t.Context(), sink, RelayOptions{Batch: -1}),
		"Poll":  store.Relay(t.Context(), sink, RelayOptions{Poll: 1}),
		"sink":  store.Relay(t.Context(), nil, RelayOptions{}),
	} {
		require.ErrorAs(t, err, &mistake, field)
		assert.Equal(t, field, mistake.Field)
	}
	err := store.Relay(t.Context(), nil, RelayOptions{Batch: maxBatch + 1, Poll: 1})
	for _, field := range []string{"Batch", "Poll", "sink"} {
		assert.ErrorContains(t, err, "option "+field+" ")
	}

	_, postgres := newFake(t, PostgreSQL)
	assert.Nil(t, postgres.OutboxSchema())
	require.ErrorIs(t, postgres.CreateOutbox(t.Context()), errNoOutbox)
	require.ErrorIs(t, postgres.Relay(t.Context(), sink, RelayOptions{}), errNoOutbox)
	_, err = postgres.Outbox(t.Context())
	require.ErrorIs(t, err, errNoOutbox)
	_, err = postgres.TrimOutbox(t.Context(), 1)
	require.ErrorIs(t, err, errNoOutbox)
}

// TestOutboxSchema_InASchema names tables and triggers as each dialect wants them.
func TestOutboxSchema_InASchema(t *testing.T) {
	for d, want := range map[Dialect][]string{
		SQLite: {`CREATE TABLE IF NOT EXISTS "billing"."accounts_outbox"`, `TRIGGER IF NOT EXISTS "billing"."accounts_outbox_update" AFTER UPDATE ON "accounts"`, `INSERT INTO "accounts_outbox"`},
		MySQL:  {"CREATE TABLE IF NOT EXISTS `billing`.`accounts_outbox`", "TRIGGER `billing`.`accounts_outbox_update` AFTER UPDATE ON `billing`.`accounts`", "INSERT INTO `billing`.`accounts_outbox`"},
	} {
		db := sql.OpenDB(noConnector{})
		store, err := New(db, Options[string, string]{Dialect: d, Table: "billing.accounts"})
		require.NoError(t, err)
		all := ""
		for _, s := range store.OutboxSchema() {
			all += s + "\n"
		}
		for _, part := range want {
			assert.Contains(t, all, part)
		}
		require.NoError(t, db.Close())
	}
}

type noConnector struct{}

func (noConnector) Connect(context.Context) (driver.Conn, error) { return nil, errors.ErrUnsupported }
func (noConnector) Driver() driver.Driver                        { return nil }

func TestKeyCodec_DecodeAlone(t *testing.T) {
	_, err := KeyCodec[string]{Decode: func([]byte) (string, error) { return "", nil }}.column()
	require.Error(t, err)
}
