package history

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Events of one key with values that follow from the versions. The first number
// is the replica, the last two are begin and end.

func read(replica int, v uint64, begin, end int64) Event {
	return Event{Kind: Read, Outcome: Done, Replica: replica, Key: "k", Version: v, Value: 10 * v, Age: -1, Begin: begin, End: end}
}

func absent(replica int, v uint64, begin, end int64) Event {
	e := read(replica, v, begin, end)
	e.Absent, e.Value = true, 0
	return e
}

func current(replica int, v uint64, begin, end int64) Event {
	e := read(replica, v, begin, end)
	e.Linearizable = true
	return e
}

func aged(replica int, v uint64, age, begin, end int64) Event {
	e := read(replica, v, begin, end)
	e.Age = time.Duration(age)
	return e
}

func write(replica int, base, v uint64, begin, end int64) Event {
	return Event{Kind: Write, Outcome: Done, Replica: replica, Key: "k", Base: base, Version: v, Value: 10 * v, Begin: begin, End: end}
}

func remove(replica int, base, v uint64, begin, end int64) Event {
	e := write(replica, base, v, begin, end)
	e.Absent, e.Value = true, 0
	return e
}

func change(base, v uint64, begin, end int64) Event {
	e := write(-1, base, v, begin, end)
	e.Kind = Change
	return e
}

func told(replica int, v uint64, begin, end int64) Event {
	return Event{Kind: Invalidate, Outcome: Done, Replica: replica, Key: "k", Version: v, Begin: begin, End: end}
}

// ended returns e with another outcome.
func ended(e Event, o Outcome) Event {
	e.Outcome = o
	if o == Unknown {
		e.Version, e.End = 0, Never
	}
	return e
}

// TestCheck_RejectsEachStory gives the rules histories of caches that failed in
// the ways of the catalogue (protocol S1 to S73), as far as clients can see it.
// Exactly the named rules are broken.
func TestCheck_RejectsEachStory(t *testing.T) {
	one, two := change(0, 1, 1, 2), change(1, 2, 11, 12) // how most stories begin
	for _, story := range []struct {
		name   string
		broken []Rule
		events []Event
	}{
		{"S1 a load fills what an invalidation has ended", []Rule{Told},
			[]Event{one, two, told(0, 2, 13, 14), read(0, 1, 15, 16)}},
		{"S2 a lagging load after the invalidation", []Rule{Told},
			[]Event{one, two, read(0, 1, 13, 14), told(0, 2, 15, 16), read(0, 1, 17, 18)}},
		{"S3 an eviction takes the mark along", []Rule{Monotonic},
			[]Event{one, two, read(0, 2, 13, 14), read(0, 1, 15, 16)}},
		{"S4 a lagging load outlives the floor", []Rule{Monotonic, Told},
			[]Event{one, two, told(0, 2, 13, 14), read(0, 2, 15, 16), read(0, 1, 17, 18)}},
		{"S5 two loads finish out of order", []Rule{Monotonic},
			[]Event{one, two, read(0, 2, 10, 14), read(0, 1, 15, 16)}},
		{"S6 a refresh brings back what a write has replaced", []Rule{ReadYourWrites},
			[]Event{one, write(0, 1, 2, 11, 12), read(0, 1, 13, 14)}},
		{"S7 a read joins a load from before the own write", []Rule{ReadYourWrites},
			[]Event{one, read(0, 1, 9, 15), write(0, 1, 2, 11, 12), read(0, 1, 13, 15)}},
		{"S8 an absence over a live row", []Rule{Told},
			[]Event{one, remove(1, 1, 2, 11, 12), write(1, 0, 3, 13, 14), told(0, 3, 15, 16), absent(0, 2, 17, 18)}},
		{"S9 a write before the subscription is never heard", []Rule{Acknowledged},
			[]Event{one, two, current(0, 1, 13, 14)}},
		{"S10 the load behind the subscription lags", []Rule{Ages},
			[]Event{one, two, aged(0, 1, 1, 20, 21)}},
		{"S11 a load from before the flush fills after it", []Rule{Monotonic},
			[]Event{one, two, read(0, 2, 13, 14), read(0, 1, 15, 16), read(0, 2, 17, 18)}},
		{"S12 a bulk invalidation misses the loads in flight", []Rule{Told},
			[]Event{one, two, read(0, 1, 9, 16), told(0, 2, 13, 14), read(0, 1, 17, 18)}},
		{"S13 a lagging answer renews an entry's life", []Rule{Ages},
			[]Event{one, two, aged(0, 1, 20, 13, 14), aged(0, 1, 0, 15, 16)}},
		{"S14 age is counted from the end of the load", []Rule{Ages},
			[]Event{one, two, aged(0, 1, 0, 10, 40), aged(0, 1, 5, 41, 42)}},
		{"S17 an insert begins at version 1 again", []Rule{Chain},
			[]Event{one, remove(0, 1, 2, 11, 12), write(0, 0, 1, 13, 14)}},
		{"S18 a deletion has the version of its row", []Rule{Monotonic, NoInvention},
			[]Event{change(0, 17, 1, 2), absent(0, 17, 3, 4), read(0, 17, 5, 6)}},
		{"S19 a standby that lags takes over", []Rule{Acknowledged, Chain},
			[]Event{one, write(0, 1, 2, 11, 12), current(1, 1, 13, 14), write(1, 1, 2, 15, 16)}},
		{"S20 two values have one version", []Rule{NoInvention},
			[]Event{one, func() Event { e := read(0, 1, 3, 4); e.Value = 11; return e }()}},
		{"S22 versions are not in the order of the commits", []Rule{Chain},
			[]Event{one, change(1, 11, 3, 4), change(11, 10, 5, 6)}},
		{"S24 another key's value", []Rule{NoInvention},
			[]Event{one, func() Event { e := read(0, 1, 3, 4); e.Key = "l"; return e }()}},
		{"S28 two writes on one state", []Rule{Chain},
			[]Event{one, write(0, 1, 2, 11, 14), write(1, 1, 3, 12, 15)}},
		{"S29 a decision on a stale state is committed", []Rule{Chain},
			[]Event{one, two, read(0, 1, 13, 14), write(0, 1, 3, 15, 16)}},
		{"S30 the own write is installed over a newer one", []Rule{Told, Monotonic},
			[]Event{one, write(0, 1, 2, 9, 20), write(1, 2, 3, 11, 12), told(0, 3, 13, 14), read(0, 3, 15, 16), read(0, 2, 21, 22)}},
		{"S31 a commit without an answer is taken for none", []Rule{NoInvention},
			[]Event{one, ended(write(0, 1, 2, 11, 12), Failed), read(1, 2, 13, 14)}},
		{"S32 it lands after it was found not to have", []Rule{NoInvention, Chain},
			[]Event{one, ended(write(0, 1, 2, 11, 12), Failed), current(0, 2, 20, 21), write(0, 2, 3, 22, 23)}},
		{"S33 nobody hears of a commit", []Rule{Ages, Acknowledged},
			[]Event{one, two, current(1, 1, 30, 31), aged(1, 1, 3, 30, 31)}},
		{"S34 the old state is loaded before the commit, and nothing follows", []Rule{Told},
			[]Event{one, told(0, 2, 9, 10), read(0, 1, 10, 13), two, read(0, 1, 14, 15)}},
		{"S45 the older message comes last", []Rule{Monotonic, Told},
			[]Event{one, two, told(0, 2, 13, 14), read(0, 2, 15, 16), told(0, 1, 17, 18), read(0, 1, 19, 20)}},
		{"S54 a deposed leader answers", []Rule{Acknowledged},
			[]Event{one, two, current(1, 2, 13, 14), current(0, 1, 15, 16)}},
		{"S62 the entry is read before its freshness", []Rule{Ages},
			[]Event{one, two, aged(0, 1, 1, 17, 18)}},
		{"S69 a minority serves itself", []Rule{Acknowledged, Chain},
			[]Event{one, write(0, 1, 2, 11, 12), current(1, 1, 13, 14), write(1, 1, 3, 15, 16), current(1, 3, 17, 18)}},
		{"S72 a clear races with a fill", []Rule{ReadYourWrites, Monotonic},
			[]Event{one, write(0, 1, 2, 11, 12), read(0, 2, 13, 14), read(0, 1, 15, 16)}},
		{"a read that asked for more", []Rule{AtLeast},
			[]Event{one, two, func() Event { e := read(0, 1, 13, 14); e.AtLeast = 2; return e }()}},
		{"a read of what is not written yet", []Rule{NoInvention},
			[]Event{one, read(0, 2, 9, 10), two}},
		{"a write on nothing", []Rule{Chain}, []Event{one, write(0, 2, 3, 11, 12)}},
		{"a write on itself", []Rule{Chain}, []Event{one, write(0, 2, 2, 11, 12)}},
	} {
		t.Run(story.name, func(t *testing.T) {
			rules := map[string]bool{}
			for _, v := range Check(story.events, All) {
				rules[v.Rule] = true
			}
			want := map[string]bool{}
			for _, r := range story.broken {
				want[r.Name] = true
			}
			// Other rules may be broken too, if what happened breaks them.
			for name := range want {
				assert.True(t, rules[name], "%s is kept", name)
			}
			for name := range rules {
				assert.True(t, want[name], "%s is broken too", name)
			}
		})
	}
}

// TestCheck_AcceptsWhatIsRight gives the rules what only looks wrong.
func TestCheck_AcceptsWhatIsRight(t *testing.T) {
	one, two := change(0, 1, 1, 2), change(1, 2, 11, 12)
	for name, events := range map[string][]Event{
		"nothing":                      {},
		"another replica is behind":    {one, two, read(0, 2, 13, 14), read(1, 1, 15, 16)},
		"reads that overlap":           {one, two, read(0, 2, 13, 16), read(0, 1, 15, 18)},
		"a read overlaps the word":     {one, two, told(0, 2, 13, 16), read(0, 1, 15, 17)},
		"the word of an older version": {one, two, told(0, 2, 13, 14), told(0, 1, 15, 16), read(0, 2, 17, 18)},
		"a stale read without a claim": {one, two, read(0, 1, 100, 101)},
		"an honest age":                {one, two, aged(0, 1, 20, 30, 31)},
		"an undated absence":           {one, two, told(0, 2, 13, 14), absent(0, 0, 15, 16)},
		"absent before it was written": {absent(0, 0, 1, 2), change(0, 1, 3, 4), read(0, 1, 5, 6)},
		"a key made anew":              {one, remove(0, 1, 2, 11, 12), write(0, 0, 3, 13, 14), read(0, 3, 15, 16)},
		"a failed read":                {one, two, told(0, 2, 13, 14), ended(read(0, 1, 15, 16), Failed)},
		"a conflict":                   {one, write(0, 1, 2, 11, 12), ended(write(1, 1, 3, 11, 14), Failed)},
		"in doubt, and committed":      {one, ended(write(0, 1, 0, 3, 4), Unknown), func() Event { e := read(0, 2, 5, 6); e.Value = 0; return e }(), write(0, 2, 3, 7, 8)},
		"in doubt, and not committed":  {one, ended(write(0, 1, 0, 3, 4), Unknown), write(1, 1, 2, 5, 6)},
		"two in doubt":                 {one, ended(write(0, 1, 0, 3, 4), Unknown), ended(write(0, 2, 0, 5, 6), Unknown), write(1, 3, 4, 7, 8)},
		"a deletion in doubt":          {one, ended(remove(0, 1, 0, 3, 4), Unknown), write(0, 0, 3, 5, 6)},
		"acknowledged, read at Any":    {one, two, current(0, 2, 13, 14), read(1, 1, 15, 16)},
		"other keys":                   {one, two, told(0, 2, 13, 14), func() Event { e := change(0, 1, 1, 2); e.Key = "l"; return e }(), func() Event { e := read(0, 1, 15, 16); e.Key = "l"; return e }()},
	} {
		t.Run(name, func(t *testing.T) { assert.Empty(t, Check(events, All)) })
	}
}

// good returns a history of correct caches: an atomic ledger, and replicas that
// are behind it but never go back.
func good(rng *rand.Rand) []Event {
	type cell struct {
		replica int
		key     string
	}
	keys := []string{"a", "b"}
	past := map[string][]Event{}
	mark := map[cell]int{} // index into past
	var all []Event
	for now := int64(100); now < 8000; now += 10 {
		key, replica := keys[rng.IntN(2)], rng.IntN(2)
		at := cell{replica, key}
		e := Event{Outcome: Done, Replica: replica, Client: replica, Key: key, Age: -1, Begin: now - rng.Int64N(60), End: now + rng.Int64N(60)}
		n := len(past[key])
		switch choice := rng.IntN(6); {
		case choice < 2 || n == 0:
			e.Kind, e.Version, e.Value = Write, uint64(n+1), rng.Uint64N(1<<40)+1
			if n > 0 && !past[key][n-1].Absent {
				e.Base = past[key][n-1].Version
				e.Absent = rng.IntN(5) == 0
			}
			if e.Absent {
				e.Value = 0
			}
			past[key] = append(past[key], e)
			mark[at] = n
		default:
			i := mark[at] + rng.IntN(n-mark[at])
			e.Linearizable = choice == 5
			if e.Linearizable {
				i = n - 1
			}
			e.Kind, e.Version, e.Value, e.Absent = Read, past[key][i].Version, past[key][i].Value, past[key][i].Absent
			mark[at] = i
		}
		all = append(all, e)
	}
	return all
}

// TestCheck_RejectsWhatWasMadeWrong takes good histories and breaks each in one
// place.
func TestCheck_RejectsWhatWasMadeWrong(t *testing.T) {
	pick := func(events []Event, rng *rand.Rand, ok func(i int) bool) int {
		for range 100 * len(events) {
			if i := rng.IntN(len(events)); ok(i) {
				return i
			}
		}
		return -1
	}
	for _, mutation := range []struct {
		name   string
		broken []Rule // one of them
		change func(events []Event, rng *rand.Rand) bool
	}{
		{"swap what two reads of one replica returned", []Rule{Monotonic}, func(events []Event, rng *rand.Rand) bool {
			j := -1
			i := pick(events, rng, func(i int) bool {
				j = rng.IntN(len(events))
				a, b := &events[i], &events[j]
				return a.Kind == Read && b.Kind == Read && here(a) == here(b) && a.End < b.Begin && a.Version < b.Version
			})
			if i < 0 {
				return false
			}
			a, b := &events[i], &events[j]
			a.Version, b.Version, a.Value, b.Value, a.Absent, b.Absent = b.Version, a.Version, b.Value, a.Value, b.Absent, a.Absent
			return true
		}},
		{"swap the versions of two writes", []Rule{Chain}, func(events []Event, rng *rand.Rand) bool {
			j := -1
			i := pick(events, rng, func(i int) bool {
				j = rng.IntN(len(events))
				return i != j && isWritten(&events[i]) && isWritten(&events[j]) && events[i].Key == events[j].Key
			})
			if i < 0 {
				return false
			}
			events[i].Version, events[j].Version = events[j].Version, events[i].Version
			return true
		}},
		{"drop the acknowledgement of a write", []Rule{NoInvention, Chain}, func(events []Event, rng *rand.Rand) bool {
			i := pick(events, rng, func(i int) bool {
				return isWritten(&events[i]) && !events[i].Absent && last(events, events[i].Key) > events[i].Version
			})
			if i < 0 {
				return false
			}
			events[i].Outcome = Failed
			return true
		}},
		{"acknowledge an update that is lost", []Rule{Chain}, func(events []Event, rng *rand.Rand) bool {
			i := pick(events, rng, func(i int) bool { return isWritten(&events[i]) && events[i].Base > 1 })
			if i < 0 {
				return false
			}
			events[i].Base--
			return true
		}},
		{"return another value", []Rule{NoInvention}, func(events []Event, rng *rand.Rand) bool {
			i := pick(events, rng, func(i int) bool { return events[i].Kind == Read && !events[i].Absent })
			if i < 0 {
				return false
			}
			events[i].Value++
			return true
		}},
		{"return what is not current", []Rule{Acknowledged}, func(events []Event, rng *rand.Rand) bool {
			j := -1
			i := pick(events, rng, func(i int) bool {
				j = rng.IntN(len(events))
				a, b := &events[i], &events[j]
				return isCurrent(a) && isWritten(b) && a.Key == b.Key && b.End < a.Begin && b.Version > 1
			})
			if i < 0 {
				return false
			}
			events[i].Version = events[j].Version - 1
			return true
		}},
		{"claim to be fresh", []Rule{Ages}, func(events []Event, rng *rand.Rand) bool {
			j := -1
			i := pick(events, rng, func(i int) bool {
				j = rng.IntN(len(events))
				a, b := &events[i], &events[j]
				return a.Kind == Read && isWritten(b) && a.Key == b.Key && b.End < a.Begin && a.Version < b.Version
			})
			if i < 0 {
				return false
			}
			events[i].Age = 0
			return true
		}},
	} {
		t.Run(mutation.name, func(t *testing.T) {
			applied := 0
			for seed := range uint64(200) {
				rng := rand.New(rand.NewPCG(seed, 1))
				events := good(rng)
				require.Empty(t, Check(events, All), "seed %d", seed)
				if !mutation.change(events, rng) {
					continue // this history has no place for it
				}
				applied++
				require.NotEmpty(t, Check(events, mutation.broken), "seed %d", seed)
			}
			require.Greater(t, applied, 150)
		})
	}
}

// last returns the last version of key.
func last(events []Event, key string) (v uint64) {
	for i := range events {
		if isWritten(&events[i]) && events[i].Key == key {
			v = max(v, events[i].Version)
		}
	}
	return v
}

// Sessions are used side by side; what they note is in the order of time.
func TestRecorder(t *testing.T) {
	var r Recorder
	var wg sync.WaitGroup
	for i := range 4 {
		s := r.Session(i % 2)
		wg.Go(func() {
			for n := range uint64(100) {
				e := s.Begin(Event{Kind: Read, Key: "k"})
				e.Version = n
				s.End(e, Done)
			}
			s.End(s.Begin(Event{Kind: Write, Key: "k"}), Unknown)
			s.Begin(Event{Kind: Write, Key: "k"})
		})
	}
	wg.Wait()
	events := r.Events()
	require.Len(t, events, 4*102)
	clock := map[int]int64{}
	for _, e := range events {
		assert.Equal(t, e.Client%2, e.Replica)
		assert.GreaterOrEqual(t, e.Begin, clock[e.Client])
		if e.Kind == Write {
			assert.Equal(t, Unknown, e.Outcome)
			assert.Equal(t, int64(Never), e.End)
			continue
		}
		assert.GreaterOrEqual(t, e.End, e.Begin)
		clock[e.Client] = e.End
	}
	assert.Len(t, clock, 4)
}
