//go:build !race

package tidemark

// defaultSeeds is how many seeds TestSim runs unless told.
const defaultSeeds = 2000
