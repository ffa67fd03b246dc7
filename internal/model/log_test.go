package model

import "testing"

// TestLog checks logModel.
func TestLog(t *testing.T) {
	suite[logState, logWorld, logGuards]{
		build:     func(w logWorld, g logGuards) machine[logState] { return logModel{w, g} },
		holds:     logHolds(),
		mutations: logMutations(),
	}.run(t)
}

func logHolds() []holding[logWorld, logGuards] {
	return []holding[logWorld, logGuards]{
		{
			name:   "a disconnect",
			world:  logWorld{versions: bounded(3, 2), records: 5},
			states: bounded(957_885, 79_688),
		},
		{
			name:   "a disconnect, retention",
			world:  logWorld{versions: 2, records: 4, retention: true},
			states: 288_386,
		},
		{
			name:   "a disconnect, a log made anew",
			world:  logWorld{versions: 2, records: 4, recreated: true},
			states: 208_517,
		},
		{
			name:   "a disconnect, retention, a log made anew",
			world:  logWorld{versions: 2, records: bounded(4, 3), retention: true, recreated: true},
			states: bounded(1_020_807, 439_347),
		},
		{
			name:   "reads in two steps",
			world:  logWorld{versions: 2, records: 4, twoStepReads: true},
			states: 83_153,
		},
		{
			name:   "lagging loads, retention",
			world:  logWorld{versions: 2, records: bounded(4, 3), lagging: true, retention: true},
			states: bounded(912_727, 311_095),
		},
	}
}

func logMutations() []mutation[logWorld, logGuards] {
	plain := logWorld{versions: 2, records: 4}
	return []mutation[logWorld, logGuards]{
		{
			name:   "a replica goes on behind a hole in the log (S48)",
			world:  logWorld{versions: 2, records: 4, retention: true},
			remove: func(g *logGuards) { g.ResumeChecksFirst = false },
			want:   boundBroken,
		},
		{
			name:   "a replica goes on in another log (S49)",
			world:  logWorld{versions: 2, records: 4, recreated: true},
			remove: func(g *logGuards) { g.ResumeChecksIncarnation = false },
			want:   boundBroken,
		},
		{
			name:   "a write returns before its record is in the log (S40)",
			world:  plain,
			remove: func(g *logGuards) { g.AcknowledgeAfterAppend = false },
			want:   boundBroken,
		},
		{
			name:   "freshness counts from when the probe came back (S61)",
			world:  plain,
			remove: func(g *logGuards) { g.ClaimFromSending = false },
			want:   boundBroken,
		},
		{
			name:   "the probe is answered beside the log (S66)",
			world:  plain,
			remove: func(g *logGuards) { g.ProbeThroughLog = false },
			want:   boundBroken,
		},
		{
			name:   "a load before the replica listens fills (S9)",
			world:  plain,
			remove: func(g *logGuards) { g.SubscribeBeforeLoading = false },
			want:   boundBroken,
		},
		{
			name:   "a load before a flush fills after it (S11)",
			world:  logWorld{versions: 2, records: 4, retention: true},
			remove: func(g *logGuards) { g.FlushBreaksFences = false },
			want:   boundBroken,
		},
		{
			name:   "a lagging load fills right after subscribing (S10)",
			world:  logWorld{versions: 2, records: 4, lagging: true},
			remove: func(g *logGuards) { g.HoldOff = false },
			want:   boundBroken,
		},
		{
			name:   "a reader takes the entry first (S62)",
			world:  logWorld{versions: 2, records: 4, twoStepReads: true},
			remove: func(g *logGuards) { g.ClaimBeforeEntry = false },
			want:   "a reader returns ",
		},
	}
}
