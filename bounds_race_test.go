//go:build race

package tidemark

import "flag"

// The race detector makes everything ten times slower; make test runs these
// without it as well, with the checks that are rapid's default.
const (
	defaultSeeds = 100 // that TestSim runs unless told
	modelRounds  = 1   // of TestCacheMatchesModel, for each deployment
	hostileSeeds = 4   // of TestHostile_NoReadIsWrong: a hint or a log, epochs or not
	sameHashKeys = 5000
	injected     = 2000 // that TestAudit_FindsEveryStaleEntryInOneCycle finds
)

func init() {
	if err := flag.Set("rapid.checks", "50"); err != nil {
		panic(err)
	}
}
