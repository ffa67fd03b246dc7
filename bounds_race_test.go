//go:build race

package tidemark

// The race detector makes everything ten times slower; make test runs TestSim and
// TestCacheMatchesModel without it as well.
const (
	defaultSeeds = 200 // that TestSim runs unless told
	modelRounds  = 1   // of TestCacheMatchesModel, for each deployment
)
