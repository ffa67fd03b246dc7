package tidemark

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestCacheAnswersAlike does the same to caches of one shard and of 64, with
// little room and with more than enough. That may not show in what they say:
// each returns what all were told or something newer, so the same if there is
// nothing newer, and no one proves the opposite of what another proves.
func TestCacheAnswersAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { rapid.SyncTest(t, answerAlike) })
}

// A twin is a cache with a ledger of its own, to which the same happens as to
// the others'.
type twin struct {
	name   string
	ledger *ledger
	cache  *Cache[string, int]
	known  map[string]Version // the highest that it has returned or was told
}

func (w *twin) learn(key string, v Version) { w.known[key] = max(w.known[key], v) }

// A family is twins, and what all of them were told.
type family struct {
	twins []*twin
	keys  []string
	told  map[string]Version
	value int
}

func answerAlike(t *rapid.T) {
	began := time.Now()
	f := &family{keys: sharing(), told: map[string]Version{}}
	for _, shards := range []int{1, 64} {
		for _, room := range []int64{1, 2, 1000} {
			l := newLedger(f.keys, func() int64 { return int64(time.Since(began)) })
			l.pause = func(context.Context, point, string) error { return nil }
			c, err := New(Options[string, int]{Store: l, Shards: shards, MaxCost: room})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close(context.Background()) })
			name := fmt.Sprintf("%d shards, room for %d", shards, room)
			f.twins = append(f.twins, &twin{name, l, c, map[string]Version{}})
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"change": f.change, "load": f.load, "get": f.get, "put": f.put, "update": f.update,
		"delete": f.remove, "invalidate": f.invalidate, "invalidateAll": f.invalidateAll,
		"": f.check,
	})
}

func (f *family) key(t *rapid.T) string { return rapid.SampledFrom(f.keys).Draw(t, "key") }

func (f *family) next() int {
	f.value++
	return f.value
}

func (f *family) tell(key string, v Version) { f.told[key] = max(f.told[key], v) }

// agreed reports whether all twins know equally much of key.
func (f *family) agreed(key string) bool {
	for _, w := range f.twins {
		if w.known[key] != f.twins[0].known[key] {
			return false
		}
	}
	return true
}

// returned checks an answer and notes what the twin has told of key.
func (f *family) returned(t *rapid.T, w *twin, key string, e Entry[int]) {
	if _, err := w.ledger.meaning(key, e, 0, w.ledger.clock(), mark{}); err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	if e.Version < f.told[key] || e.Version < w.known[key] {
		t.Fatalf("%s: %s@%d, but all were told %d and it knows %d", w.name, key, e.Version, f.told[key], w.known[key])
	}
	w.learn(key, e.Version)
}

func (f *family) change(t *rapid.T) {
	key, value, absent := f.key(t), f.next(), rapid.IntRange(0, 3).Draw(t, "deletion") == 0
	for _, w := range f.twins {
		w.ledger.commit(key, value, absent)
	}
}

func (f *family) load(t *rapid.T) {
	key := f.key(t)
	for _, w := range f.twins {
		e, err := w.cache.Load(context.Background(), key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: load of %s: %v", w.name, key, err)
		}
		f.returned(t, w, key, e)
	}
}

func (f *family) get(t *rapid.T) {
	key := f.key(t)
	for _, w := range f.twins {
		if e, ok := w.cache.GetEntry(key); ok {
			f.returned(t, w, key, e)
		}
	}
}

func (f *family) put(t *rapid.T) {
	key := f.key(t)
	s := rapid.SampledFrom(f.twins[0].ledger.history(key)).Draw(t, "state")
	if s.mark.absent {
		return
	}
	agreed := f.agreed(key)
	got := map[bool]string{} // whether it is at or above the tide mark: who says so
	for _, w := range f.twins {
		switch o := w.cache.Put(key, s.value, s.mark.version); o {
		case Applied, Duplicate:
			got[true] = w.name
		case Stale:
			got[false] = w.name
		}
		w.learn(key, s.mark.version)
	}
	if agreed && len(got) > 1 {
		t.Fatalf("Put(%s@%d) is stale to the one with %s and not to the one with %s", key, s.mark.version, got[false], got[true])
	}
	f.tell(key, s.mark.version)
}

func (f *family) update(t *rapid.T) {
	key, value := f.key(t), f.next()
	f.write(t, key, func(w *twin) (Entry[int], error) {
		return w.cache.Update(answeredWrite(), key, func(Entry[int]) (int, error) { return value, nil })
	})
}

func (f *family) remove(t *rapid.T) {
	key := f.key(t)
	f.write(t, key, func(w *twin) (Entry[int], error) {
		return w.cache.Delete(answeredWrite(), key, w.ledger.current(key).base())
	})
}

// answeredWrite is the context of a write that the ledger answers.
func answeredWrite() context.Context {
	return context.WithValue(context.Background(), operationKey{}, &operation{})
}

func (f *family) write(t *rapid.T, key string, write func(*twin) (Entry[int], error)) {
	for _, w := range f.twins {
		want := w.ledger.current(key).mark.version + 1
		e, err := write(w)
		if err != nil || e.Version != want {
			t.Fatalf("%s: write of %s: %+v, %v; want version %d", w.name, key, e, err, want)
		}
		w.learn(key, want)
		f.tell(key, want)
	}
}

func (f *family) invalidate(t *rapid.T) {
	key := f.key(t)
	v := rapid.SampledFrom(f.twins[0].ledger.history(key)).Draw(t, "state").mark.version
	for _, w := range f.twins {
		if err := w.cache.Invalidate(context.Background(), key, v); err != nil {
			t.Fatal(err)
		}
		w.learn(key, v)
	}
	if v == 0 {
		v = f.twins[0].ledger.current(key).mark.version
	}
	f.tell(key, v)
}

func (f *family) invalidateAll(t *rapid.T) {
	for _, w := range f.twins {
		if err := w.cache.InvalidateAll(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range f.keys {
		f.tell(k, f.twins[0].ledger.current(k).mark.version)
	}
}

func (f *family) check(t *rapid.T) {
	for _, w := range f.twins {
		if err := w.cache.check(); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
	}
}
