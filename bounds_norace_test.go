//go:build !race

package tidemark

const (
	defaultSeeds = 1000 // that TestSim runs unless told
	modelRounds  = 4    // of TestCacheMatchesModel, for each deployment
)
