package model

import "testing"

// TestFill checks fillModel. The numbers S1, S6 and so on are those of the
// catalogue of failures in DESIGN.md.
func TestFill(t *testing.T) {
	suite[fillState, fillWorld, fillGuards]{
		build:     func(w fillWorld, g fillGuards) machine[fillState] { return fillModel{w, g} },
		holds:     append(fillHolds(), fillHoldsWithDeletions()...),
		mutations: append(fillMutations(), fillMutationsBeyondVersions()...),
		limits:    fillLimits(),
	}.run(t)
}

func fillHolds() []holding[fillWorld, fillGuards] {
	changes := bounded(3, 2)
	return []holding[fillWorld, fillGuards]{
		{
			name:   "strong loads",
			world:  fillWorld{changes: changes},
			states: bounded(492_263, 52_431),
		},
		{
			name:   "strong loads, refresh ahead",
			world:  fillWorld{changes: changes, refresh: true},
			states: bounded(539_562, 58_450),
		},
		{
			name:   "strong loads, messages with values",
			world:  fillWorld{changes: changes, values: true},
			states: bounded(493_323, 52_431),
		},
		{
			name:    "strong loads need no floor after an eviction",
			world:   fillWorld{changes: changes},
			without: func(g *fillGuards) { g.FloorAfterEviction = false },
			states:  bounded(364_923, 36_655),
		},
		{
			name:   "strong loads, results too large to keep",
			world:  fillWorld{changes: changes, declines: true},
			states: bounded(492_263, 52_431),
		},
		{
			name:   "strong loads, InvalidateAll, refresh ahead",
			world:  fillWorld{changes: bounded(2, 1), invalidateAll: true, refresh: true},
			states: bounded(955_814, 40_760),
		},
		{
			name:   "lagging loads",
			world:  fillWorld{changes: changes, lagging: true},
			states: bounded(355_745, 41_907),
		},
		{
			name:   "lagging loads, messages with values, refresh ahead",
			world:  fillWorld{changes: changes, lagging: true, values: true, refresh: true},
			states: bounded(415_058, 48_982),
		},
	}
}

func fillHoldsWithDeletions() []holding[fillWorld, fillGuards] {
	changes := bounded(3, 2)
	return []holding[fillWorld, fillGuards]{
		{
			name:   "strong loads, deletions with the version of the row",
			world:  fillWorld{changes: changes, deletions: deletesInPlace},
			states: bounded(2_352_431, 153_271),
		},
		{
			name: "lagging loads, deletions with the version of the row, values, refresh ahead",
			world: fillWorld{changes: changes, deletions: deletesInPlace,
				lagging: true, values: true, refresh: true},
			states: bounded(1_973_152, 142_772),
		},
		{
			name:  "deletions with a version of their own need no order beyond versions",
			world: fillWorld{changes: 2, deletions: deletesWithVersion},
			without: func(g *fillGuards) {
				g.OrderDeletionsAtFill, g.OrderDeletionsAtInvalidation = false, false
			},
			states: 153_271,
		},
		{
			name: "strong loads, absences without a version, values, refresh ahead",
			world: fillWorld{changes: 2, deletions: deletesWithVersion, unversionedAbsence: true,
				values: true, refresh: true},
			states: 510_826,
		},
		{
			name: "strong loads, everything at once",
			world: fillWorld{changes: bounded(2, 1), deletions: deletesInPlace, unversionedAbsence: true,
				values: true, refresh: true, invalidateAll: true, declines: true},
			states: bounded(5_186_379, 142_146),
		},
	}
}

const (
	holdsStale  = "the cache holds "
	givesStale  = "a Get was given "
	boundBroken = "a bounded read returns "
)

// fillMutations: what goes wrong with rows, versions and evictions alone.
func fillMutations() []mutation[fillWorld, fillGuards] {
	return []mutation[fillWorld, fillGuards]{
		{
			name:   "a load that was overtaken fills (S1, S5)",
			world:  fillWorld{changes: 2},
			remove: func(g *fillGuards) { g.CompareAtFill = false },
			want:   holdsStale,
		},
		{
			name:   "an invalidation with nothing to remove is forgotten (S1)",
			world:  fillWorld{changes: 2},
			remove: func(g *fillGuards) { g.RaiseFences = false },
			want:   holdsStale,
		},
		{
			name:   "an entry that came and went is forgotten (S6)",
			world:  fillWorld{changes: 2, refresh: true},
			remove: func(g *fillGuards) { g.RaiseFencesByInstalls = false },
			want:   holdsStale,
		},
		{
			name:   "a Get joins a load that began before what the replica has seen (S7)",
			world:  fillWorld{changes: 2},
			remove: func(g *fillGuards) { g.CompareAtJoin = false },
			want:   givesStale,
		},
		{
			name:   "a write installs after a newer one was seen (S30)",
			world:  fillWorld{changes: 2},
			remove: func(g *fillGuards) { g.FenceWrites = false },
			want:   holdsStale,
		},
		{
			name:   "an eviction brings back what a lagging read replica shows (S3)",
			world:  fillWorld{changes: 2, lagging: true},
			remove: func(g *fillGuards) { g.FloorAfterEviction = false },
			want:   holdsStale,
		},
		{
			name:   "a floor is forgotten while the read replica lags (S2)",
			world:  fillWorld{changes: 2, lagging: true},
			remove: func(g *fillGuards) { g.KeepFloorWhileLagging = false },
			want:   holdsStale,
		},
		{
			name:   "a floor is forgotten while a lagging load is under way (S4)",
			world:  fillWorld{changes: 2, lagging: true},
			remove: func(g *fillGuards) { g.CaptureFloor = false },
			want:   holdsStale,
		},
		{
			name:   "a message with a value makes an entry (S46)",
			world:  fillWorld{changes: 2, values: true},
			remove: func(g *fillGuards) { g.ValuesNeedEntry = false },
			want:   holdsStale,
		},
		{
			name:   "a message with a value makes an entry if some floor is known",
			world:  fillWorld{changes: 2, values: true},
			remove: func(g *fillGuards) { g.FloorIsNoPermission = false },
			want:   holdsStale,
		},
	}
}

// fillMutationsBeyondVersions: what goes wrong with what versions alone do not
// order.
func fillMutationsBeyondVersions() []mutation[fillWorld, fillGuards] {
	deleted := fillWorld{changes: 2, deletions: deletesInPlace}
	flushed := fillWorld{changes: 2, invalidateAll: true}
	absent := fillWorld{changes: 2, deletions: deletesWithVersion, unversionedAbsence: true, values: true}
	return []mutation[fillWorld, fillGuards]{
		{
			name:   "a load fills the row of a deletion that was seen (S18)",
			world:  deleted,
			remove: func(g *fillGuards) { g.OrderDeletionsAtFill = false },
			want:   holdsStale + "v0 although the replica has seen deletion@0",
		},
		{
			name:   "a deletion leaves the row of its version (S18)",
			world:  deleted,
			remove: func(g *fillGuards) { g.OrderDeletionsAtInvalidation = false },
			want:   holdsStale + "v1 although the replica has seen deletion@1",
		},
		{
			name:   "a load of an absent key fills after InvalidateAll (S11, S12)",
			world:  flushed,
			remove: func(g *fillGuards) { g.GenerationAtFill = false },
			want:   holdsStale,
		},
		{
			name:   "a Get after InvalidateAll joins a load from before (S7, S11)",
			world:  flushed,
			remove: func(g *fillGuards) { g.GenerationAtJoin = false },
			want:   givesStale,
		},
		{
			name:   "a write installs after InvalidateAll (S11, S30)",
			world:  flushed,
			remove: func(g *fillGuards) { g.GenerationOfWrites = false },
			want:   holdsStale,
		},
		{
			name:   "a row is inserted while a load finds none (S8)",
			world:  absent,
			remove: func(g *fillGuards) { g.MovedFenceRefusesAbsence = false },
			want:   holdsStale + "deletion@",
		},
		{
			name:   "a row from before an absence that has no version is installed (S8)",
			world:  absent,
			remove: func(g *fillGuards) { g.AbsenceBreaksFences = false },
			want:   holdsStale,
		},
		{
			name:   "a message with a value replaces an absence that has no version",
			world:  absent,
			remove: func(g *fillGuards) { g.AbsenceIsNotBelow = false },
			want:   holdsStale,
		},
		{
			name:   "a result that is served and too large to keep leaves no trace",
			world:  fillWorld{changes: 2, declines: true},
			remove: func(g *fillGuards) { g.ServedInvalidates = false },
			want:   holdsStale,
		},
		{
			name:   "a result that is served after InvalidateAll and not kept leaves no trace",
			world:  flushed,
			remove: func(g *fillGuards) { g.ServedInvalidates = false },
			want:   holdsStale,
		},
	}
}

func fillLimits() []mutation[fillWorld, fillGuards] {
	return []mutation[fillWorld, fillGuards]{
		{
			name:  "an absence without a version from a lagging read replica",
			world: fillWorld{changes: 2, deletions: deletesWithVersion, unversionedAbsence: true, lagging: true},
			want:  holdsStale + "deletion@",
		},
		{
			name:  "InvalidateAll and lagging loads without the hold-off of logModel",
			world: fillWorld{changes: 2, invalidateAll: true, lagging: true},
			want:  holdsStale,
		},
	}
}
