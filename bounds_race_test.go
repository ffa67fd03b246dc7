//go:build race

package tidemark

// defaultSeeds is how many seeds TestSim runs unless told: the race detector makes it
// ten times slower. make test runs it without as well.
const defaultSeeds = 200
