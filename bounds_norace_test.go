//go:build !race

package tidemark

const (
	defaultSeeds = 1000 // that TestSim runs unless told
	modelRounds  = 4    // of TestCacheMatchesModel, for each deployment
	hostileSeeds = 8    // of TestHostile_NoReadIsWrong: a hint or a log, epochs or not
	sameHashKeys = 20_000
	injected     = 10_000 // that TestAudit_FindsEveryStaleEntryInOneCycle finds
)
