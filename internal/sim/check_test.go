package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const second = int64(time.Second)

// A scene is a checker and a source that a test tells a story to. Each change of
// the source takes place a second after what came before.
type scene struct {
	*Checker
	w *World
}

func (s scene) commit(value int, absent bool) State {
	time.Sleep(time.Second)
	state := s.w.Source.Set("k", value, absent, 7)
	time.Sleep(time.Second)
	return state
}

func answer(s State) Answer {
	return Answer{Version: s.Version, Absent: s.Absent, Value: s.Value, Age: -1}
}

// read is a read at process 1 that returns the answer at once.
func (s scene) read(r Read, a Answer) {
	r.Proc, r.Key = 1, "k"
	if r.Within == 0 {
		r.Within = -1
	}
	s.End(s.Begin(r), a, s.w.Now())
	time.Sleep(time.Second)
}

// Each checker refuses a story in which its promise is broken, and that only.
func TestChecker_RefusesBadHistories(t *testing.T) {
	for _, tt := range []struct {
		rule string // that is broken; "" is none
		name string
		tell func(s scene)
	}{
		{"", "reads of what is there", func(s scene) {
			s.read(Read{Linearizable: true}, answer(s.commit(1, false)))
			s.read(Read{Linearizable: true}, answer(s.commit(0, true)))
		}},
		{"", "a stale read that nobody was promised better", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			s.read(Read{}, answer(old))
		}},
		{"", "a read that was under way when it was replaced", func(s scene) {
			old := s.commit(1, false)
			r := s.Begin(Read{Proc: 1, Key: "k", Within: -1, Linearizable: true})
			s.commit(2, false)
			s.End(r, answer(old), s.w.Now())
		}},
		{"I9 no invention", "a version that nobody wrote", func(s scene) {
			s.read(Read{}, Answer{Version: s.commit(1, false).Version + 9, Value: 1})
		}},
		{"I9 no invention", "a value that was not written with it", func(s scene) {
			s.read(Read{}, Answer{Version: s.commit(1, false).Version, Value: 2})
		}},
		{"I9 no invention", "a value that was deleted", func(s scene) {
			s.read(Read{}, Answer{Version: s.commit(0, true).Version, Value: 0})
		}},
		{"I9 no invention", "a state from the future", func(s scene) {
			r := s.Begin(Read{Proc: 1, Key: "k", Within: -1})
			end := s.w.Now()
			s.End(r, answer(s.commit(1, false)), end)
		}},
		{"I1 monotonic reads", "back to what was there before", func(s scene) {
			old := s.commit(1, false)
			s.read(Read{}, answer(s.commit(2, false)))
			s.read(Read{}, answer(old))
		}},
		{"", "back at another process", func(s scene) {
			old := s.commit(1, false)
			s.Raise(2, "k", s.commit(2, false).Mark(), Returned)
			s.read(Read{}, answer(old))
		}},
		{"", "an absence that may be the one from before", func(s scene) {
			s.read(Read{}, Answer{Absent: true, Age: -1})
			s.read(Read{}, answer(s.commit(1, false)))
		}},
		{"I1 monotonic reads", "an absence that can only be from before", func(s scene) {
			s.read(Read{}, answer(s.commit(1, false)))
			s.read(Read{}, Answer{Absent: true, Age: -1})
		}},
		{"I1 monotonic reads, I11 deletes", "the row that an absence without a version has replaced", func(s scene) {
			old := s.commit(1, false)
			s.read(Read{}, answer(old))
			s.commit(0, true)
			s.read(Read{}, Answer{Absent: true, Age: -1})
			s.read(Read{}, answer(old))
		}},
		{"I1 monotonic reads, I11 deletes", "the row before the one that a current absence has replaced", func(s scene) {
			s.commit(0, true)
			old := s.commit(1, false)
			s.commit(0, true)
			s.read(Read{Linearizable: true}, Answer{Absent: true, Age: -1})
			s.read(Read{}, answer(old))
		}},
		{"I13 suspect", "a state from before everything became suspect", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.Suspect(1, "")
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"", "a flagged state from before everything became suspect", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.Suspect(1, "")
			a.Age, a.Stale = time.Minute, true
			s.read(Read{}, a)
		}},
		{"I13 suspect", "a flagged state from before everything changed", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.Thrown(1)
			a.Age, a.Stale = time.Minute, true
			s.read(Read{}, a)
		}},
		{"I13 suspect", "a state from before its key changed to nobody knows what", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.Suspect(1, "k")
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"", "another key's suspicion", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.Suspect(1, "other")
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"I13 suspect", "a state from before a message was missed", func(s scene) {
			a := answer(s.commit(1, false))
			s.numbered(1, 3, 7, false)
			s.commit(2, false)
			s.numbered(1, 3, 9, false)
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"", "messages without a hole, repeated, and one from before it listened", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			for _, seq := range []uint64{7, 8, 7, 9} {
				s.numbered(1, 3, seq, false)
			}
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"I13 suspect", "memory while cut off", func(s scene) {
			s.disconnected(1)
			s.read(Read{Memory: true}, answer(s.commit(1, false)))
		}},
		{"I13 suspect", "memory after a hello from before it was cut off", func(s scene) {
			sent := s.w.Now()
			time.Sleep(time.Second)
			s.disconnected(1)
			s.returned(1, sent)
			s.read(Read{Memory: true}, answer(s.commit(1, false)))
		}},
		{"I13 suspect", "a state from before the hello that connected it", func(s scene) {
			a := answer(s.commit(1, false))
			s.commit(2, false)
			s.disconnected(1)
			s.returned(1, s.w.Now())
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"", "memory once it is connected", func(s scene) {
			s.disconnected(1)
			s.returned(1, s.w.Now())
			s.read(Read{Memory: true}, answer(s.commit(1, false)))
		}},
		{"I13 suspect", "memory while it hears nothing", func(s scene) {
			s.Beat = time.Second
			s.returned(1, s.w.Now())
			time.Sleep(4 * time.Second)
			s.read(Read{Memory: true}, answer(s.commit(1, false)))
		}},
		{"I1 monotonic reads, I11 deletes", "the row that was seen to be deleted", func(s scene) {
			old := s.commit(1, false)
			s.read(Read{}, answer(s.commit(0, true)))
			s.read(Read{}, answer(old))
		}},
		{"I3 told", "below what a message said", func(s scene) {
			old := s.commit(1, false)
			s.Raise(1, "k", s.commit(2, false).Mark(), Told)
			s.read(Read{}, answer(old))
		}},
		{"I3 told, I11 deletes", "the row of that version, which was said to be deleted", func(s scene) {
			old := s.commit(1, false)
			s.Raise(1, "k", Mark{old.Version, true}, Told)
			s.read(Read{}, answer(old))
		}},
		{"", "told while it was under way", func(s scene) {
			old := s.commit(1, false)
			r := s.Begin(Read{Proc: 1, Key: "k", Within: -1})
			s.Raise(1, "k", s.commit(2, false).Mark(), Told)
			s.End(r, answer(old), s.w.Now())
		}},
		{"I4 read your writes", "below an own write", func(s scene) {
			old := s.commit(1, false)
			s.Raise(1, "k", s.commit(2, false).Mark(), Wrote)
			s.read(Read{}, answer(old))
		}},
		{"I4 after", "below what a token stands for", func(s scene) {
			old := s.commit(1, false)
			s.read(Read{After: map[string]Mark{"k": s.commit(2, false).Mark()}}, answer(old))
		}},
		{"I5 at least", "below what was asked for", func(s scene) {
			old := s.commit(1, false)
			s.read(Read{AtLeast: old.Version + 1}, answer(old))
		}},
		{"I6 within", "what was acknowledged longer ago is missed", func(s scene) {
			old := s.commit(1, false)
			s.Acknowledged("k", s.commit(2, false).Mark())
			time.Sleep(2 * time.Second)
			s.read(Read{Within: time.Second}, answer(old))
		}},
		{"", "what was acknowledged since is missed", func(s scene) {
			old := s.commit(1, false)
			s.Acknowledged("k", s.commit(2, false).Mark())
			time.Sleep(time.Second / 2)
			s.read(Read{Within: time.Second}, answer(old))
		}},
		{"", "what was not acknowledged is missed", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			time.Sleep(time.Minute)
			s.read(Read{Within: time.Second}, answer(old))
		}},
		{"I6 within", "without a log, what was committed longer ago", func(s scene) {
			s.Logged = false
			old := s.commit(1, false)
			s.commit(2, false)
			time.Sleep(time.Minute)
			s.read(Read{Within: time.Second}, answer(old))
		}},
		{"I6 within", "an acknowledgement that comes after that of a newer state", func(s scene) {
			old := s.commit(1, false)
			s.Acknowledged("k", s.commit(2, false).Mark())
			s.Acknowledged("k", old.Mark())
			time.Sleep(2 * time.Second)
			s.read(Read{Within: time.Second}, answer(old))
		}},
		{"I8 linearizable", "what was replaced before it began", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			s.read(Read{Linearizable: true}, answer(old))
		}},
		{"I14 ttl", "an entry that has expired", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			time.Sleep(time.Minute)
			s.read(Read{Memory: true, TTL: time.Second}, answer(old))
		}},
		{"", "one that has not", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			s.read(Read{Memory: true, TTL: time.Minute}, answer(old))
		}},
		{"I14 ttl", "an entry that was loaded longer ago, as it says", func(s scene) {
			s.Logged = false
			a := answer(s.commit(1, false))
			a.Age = 2 * time.Second
			s.read(Read{Memory: true, TTL: time.Second}, a)
		}},
		{"I14 ttl", "an age of more than MaxStale", func(s scene) {
			a := answer(s.commit(1, false))
			a.Age = 2 * time.Second
			s.read(Read{Memory: true, MaxStale: time.Second}, a)
		}},
		{"I14 ttl", "an age that is not known, with MaxStale", func(s scene) {
			s.read(Read{Memory: true, MaxStale: time.Second}, answer(s.commit(1, false)))
		}},
		{"I18 age", "older than it says", func(s scene) {
			a := answer(s.commit(1, false))
			s.Acknowledged("k", s.commit(2, false).Mark())
			time.Sleep(time.Minute)
			a.Age = time.Second
			s.read(Read{}, a)
		}},
		{"", "as old as it says", func(s scene) {
			a := answer(s.commit(1, false))
			s.Acknowledged("k", s.commit(2, false).Mark())
			a.Age = time.Minute
			s.read(Read{}, a)
		}},
		{"I10 chain", "a lost update", func(s scene) {
			first := s.commit(1, false)
			s.commit(2, false)
			s.Checker.Wrote(1, "k", first.Version, s.commit(3, false).Version)
		}},
		{"I10 chain", "a write on a deletion that says it was on a value", func(s scene) {
			first := s.commit(1, false)
			s.commit(0, true)
			s.Checker.Wrote(1, "k", first.Version, s.commit(3, false).Version)
		}},
		{"I10 chain", "a write that there never was", func(s scene) {
			first := s.commit(1, false)
			s.Checker.Wrote(1, "k", first.Version, first.Version+100)
		}},
		{"", "a chain", func(s scene) {
			first := s.commit(1, false)
			s.Checker.Wrote(1, "k", first.Version, s.commit(2, false).Version)
			s.commit(0, true)
			s.Checker.Wrote(1, "k", 0, s.commit(3, false).Version)
		}},
		{"I17 wrong at rest", "an entry that is not what the source has", func(s scene) {
			old := s.commit(1, false)
			s.commit(2, false)
			s.AtRest(1, "k", answer(old))
		}},
		{"", "one that is", func(s scene) {
			s.commit(1, false)
			s.AtRest(1, "k", answer(s.commit(2, false)))
		}},
	} {
		t.Run(tt.rule+", "+tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := New(1, nil)
				w.Check.Logged = true
				tt.tell(scene{w.Check, w})
				if tt.rule == "" {
					assert.Empty(t, w.Check.Violations)
					return
				}
				require.Len(t, w.Check.Violations, 1)
				assert.Contains(t, w.Check.Violations[0], ": "+tt.rule+": ")
			})
		})
	}
}

func TestMark_ADeletionComesAfterItsRow(t *testing.T) {
	assert.True(t, Mark{1, false}.Before(Mark{1, true}))
	assert.True(t, Mark{1, true}.Before(Mark{2, false}))
	assert.False(t, Mark{1, true}.Before(Mark{1, false}))
	assert.False(t, Mark{1, true}.Before(Mark{1, true}))
}

// What the source was at each moment, and which write made it so.
func TestSource_Remembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scene{w: New(1, nil)}
		src := s.w.Source
		assert.True(t, src.Current("k").Absent)
		one, gone, two := s.commit(1, false), s.commit(2, true), s.commit(3, false)
		for at, want := range map[int64]State{0: src.History("k")[0], second: one, 3 * second: gone, 4 * second: gone, 9 * second: two} {
			assert.Equal(t, want.Version, src.as("k", at).Version, at)
		}
		assert.Equal(t, two, src.Current("k"))
		state, before, ok := src.Written("k", 2)
		assert.True(t, ok && state.Absent && state.Value == 0)
		assert.Equal(t, one.Version, before.Version)
		_, _, ok = src.Written("k", 4)
		assert.False(t, ok)
		_, ok = src.Find("k", two.Version+1)
		assert.False(t, ok)
		assert.Equal(t, Mark{gone.Version, true}, src.seen(gone).Mark())
		src.Undated = true
		assert.Equal(t, Mark{0, true}, src.seen(gone).Mark())
	})
}
