//go:build race

package table

import "flag"

const floodKeys = 2000 // of one hash

// The race detector makes everything ten times slower; make test runs TestTable and the
// flood without it as well, with the checks that are rapid's default.
func init() {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
}
