//go:build race

package tidemark

// The race detector makes everything ten times slower; make test runs these
// without it as well.
const (
	defaultSeeds = 200 // that TestSim runs unless told
	modelRounds  = 1   // of TestCacheMatchesModel, for each deployment
	hostileSeeds = 4   // of TestHostile_NoReadIsWrong: a hint or a log, epochs or not
	sameHashKeys = 5000
	bulkStale    = 2000 // that TestAudit_FindsEveryStaleEntryInOneCycle finds by other ways than loads
)
