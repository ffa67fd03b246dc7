//go:build race

package table

import "flag"

// The race detector makes everything ten times slower; make test runs TestTable without
// it as well, with the checks that are rapid's default.
func init() {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
}
