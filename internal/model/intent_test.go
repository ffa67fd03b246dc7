package model

import "testing"

// TestIntent checks intentModel.
//
// Three guards keep a load of before an intent out of the cache, and two of
// them do the work of the third: each may go alone, LoadsHeedIntents and
// IntentsBreakFences may go together, and FillsHeedIntents may not go with
// either of them. A mutation test of the cache must count that as one guard.
func TestIntent(t *testing.T) {
	suite[intentState, intentWorld, intentGuards]{
		build:     func(w intentWorld, g intentGuards) machine[intentState] { return intentModel{w, g} },
		holds:     intentHolds(),
		mutations: intentMutations(),
	}.run(t)
}

func intentHolds() []holding[intentWorld, intentGuards] {
	small := intentWorld{writes: 2, versions: 2}
	return []holding[intentWorld, intentGuards]{
		{
			name:   "strict writes",
			world:  intentWorld{writes: bounded(3, 2), versions: bounded(3, 2)},
			states: bounded(2_897_447, 326_033),
		},
		{
			name:  "fills need not heed intents if loads do and intents break fences",
			world: small,
			without: func(g *intentGuards) {
				g.FillsHeedIntents = false
			},
			states: 326_033,
		},
		{
			name:  "only fills need heed intents",
			world: small,
			without: func(g *intentGuards) {
				g.LoadsHeedIntents, g.IntentsBreakFences = false, false
			},
			states: 332_537,
		},
		{
			name:   "a replica that joins between an intent and its commit",
			world:  intentWorld{writes: bounded(2, 1), versions: 2, joins: 1},
			states: bounded(2_105_837, 39_393),
		},
	}
}

func intentMutations() []mutation[intentWorld, intentGuards] {
	world := intentWorld{writes: 2, versions: 2}
	return []mutation[intentWorld, intentGuards]{
		{
			name:   "a writer dies between its commit and its result (S33)",
			world:  world,
			remove: func(g *intentGuards) { g.IntentFirst = false },
			want:   boundBroken,
		},
		{
			name:   "a load reads before the commit that an intent announced (S34)",
			world:  world,
			remove: func(g *intentGuards) { g.LoadsHeedIntents, g.FillsHeedIntents = false, false },
			want:   boundBroken,
		},
		{
			name:   "a load in progress when an intent arrives fills (S34)",
			world:  world,
			remove: func(g *intentGuards) { g.IntentsBreakFences, g.FillsHeedIntents = false, false },
			want:   boundBroken,
		},
		{
			name:   "an intent is forgotten while its transaction is in doubt (S32)",
			world:  world,
			remove: func(g *intentGuards) { g.DeadlineAfterSettling = false },
			want:   boundBroken,
		},
		{
			name:   "the log vouches for a load from before a commit that was announced before the replica joined (S9)",
			world:  intentWorld{writes: 2, versions: 2, joins: 1},
			remove: func(g *intentGuards) { g.JoinHolds = false },
			want:   boundBroken,
		},
	}
}
