package model

import "testing"

// TestPut checks putModel.
func TestPut(t *testing.T) {
	suite[putState, putWorld, putGuards]{
		build:     func(w putWorld, g putGuards) machine[putState] { return putModel{w, g} },
		holds:     putHolds(),
		mutations: putMutations(),
	}.run(t)
}

func putHolds() []holding[putWorld, putGuards] {
	return []holding[putWorld, putGuards]{
		{
			name:   "one key",
			world:  putWorld{keys: 1, changes: 3},
			states: 393,
		},
		{
			name: "one key, everything at once",
			world: putWorld{keys: 1, changes: 3, deletions: deletesInPlace,
				unversionedAbsence: true, unversionedWord: true, declines: true},
			states: 17_216,
		},
		{
			name:   "two keys of a slot",
			world:  putWorld{keys: 2, changes: 3},
			states: 76_229,
		},
		{
			name:   "two keys of a slot, deletions with the version of the row, results too large to keep",
			world:  putWorld{keys: 2, changes: 2, deletions: deletesInPlace, declines: true},
			states: 102_692,
		},
		{
			name: "two keys of a slot, absences without a version, results too large to keep",
			world: putWorld{keys: 2, changes: 2, deletions: deletesWithVersion,
				unversionedAbsence: true, declines: true},
			states: 134_531,
		},
		{
			name:   "two keys of a slot, InvalidateAll, results too large to keep",
			world:  putWorld{keys: 2, changes: bounded(2, 1), unversionedWord: true, declines: true},
			states: bounded(521_193, 37_712),
		},
		{
			name: "two keys of a slot, everything at once",
			world: putWorld{keys: 2, changes: 1, deletions: deletesInPlace,
				unversionedAbsence: true, unversionedWord: true, declines: true},
			states: 112_512,
		},
	}
}

func putMutations() []mutation[putWorld, putGuards] {
	one, two := putWorld{keys: 1, changes: 2}, putWorld{keys: 2, changes: 2}
	return []mutation[putWorld, putGuards]{
		{
			name:   "a late Put makes an entry (S3)",
			world:  one,
			remove: func(g *putGuards) { g.CompareWithSlot = false },
			want:   holdsStale,
		},
		{
			name:   "a Put brings back what was there before an eviction (S3)",
			world:  one,
			remove: func(g *putGuards) { g.RememberEvicted = false },
			want:   holdsStale,
		},
		{
			name:   "a Put brings back what was invalidated (S46)",
			world:  one,
			remove: func(g *putGuards) { g.RememberInvalidated = false },
			want:   holdsStale,
		},
		{
			name:   "a Put brings back what is older than a result too large to keep",
			world:  putWorld{keys: 1, changes: 2, declines: true},
			remove: func(g *putGuards) { g.RememberServed = false },
			want:   holdsStale,
		},
		{
			name:   "the entry of one key clears what is remembered of another",
			world:  two,
			remove: func(g *putGuards) { g.NeverClear = false },
			want:   holdsStale,
		},
		{
			name:   "a Put brings back what InvalidateAll was about (S11)",
			world:  putWorld{keys: 1, changes: 2, unversionedWord: true},
			remove: func(g *putGuards) { g.WordBlinds = false },
			want:   holdsStale,
		},
		{
			name:   "a Put brings back a row that a load found deleted (S8)",
			world:  putWorld{keys: 1, changes: 2, deletions: deletesWithVersion, unversionedAbsence: true},
			remove: func(g *putGuards) { g.AbsenceBlinds = false },
			want:   holdsStale + "v0 although the replica has seen deletion@1",
		},
		{
			name:   "a Put refused for another key's sake leaves an older load to fill",
			world:  two,
			remove: func(g *putGuards) { g.RefusedPutInvalidates = false },
			want:   holdsStale,
		},
		{
			name:   "a Put that came and went leaves an older load to fill (S6)",
			world:  one,
			remove: func(g *putGuards) { g.PutRaisesFence = false },
			want:   holdsStale,
		},
	}
}
