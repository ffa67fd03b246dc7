package lint

import (
	"os"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRepository applies every rule to the part of the tree that it is for.
func TestRepository(t *testing.T) {
	files, err := textFiles(os.DirFS("../.."))
	require.NoError(t, err)
	require.Contains(t, files, "go.mod", "the tree does not begin where it is thought to")

	var sources []source
	for name, text := range files {
		if path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") {
			continue
		}
		s, err := parse(name, text)
		require.NoError(t, err)
		sources = append(sources, s)
	}

	for _, rule := range []struct {
		name    string
		applies func(file string) bool
		check   func(source) []string
	}{
		{"the library does not sleep", isLibrary, sleeps},
		{"no work put off in Go files", func(string) bool { return true }, unfinished},
		{"exported names of the root package are documented", isRootPackage, undocumented},
		{"a mutex says what it guards", isLibrary, silentMutexes},
		{"functions fit on a screen", isShipped, longFunctions},
	} {
		t.Run(rule.name, func(t *testing.T) {
			seen := 0
			for _, s := range sources {
				if rule.applies(s.name) {
					seen++
					report(t, rule.check(s))
				}
			}
			require.NotZero(t, seen, "the rule applies to no file")
		})
	}

	t.Run("no trace of a machine or a registry", func(t *testing.T) {
		for name, text := range files {
			report(t, machineTraces(name, text))
		}
	})
	t.Run("no work put off in other files", func(t *testing.T) {
		for name, text := range files {
			if path.Ext(name) != ".go" {
				report(t, unfinishedText(name, text))
			}
		}
	})
}

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// isRootPackage reports whether a file is production code of the root package.
func isRootPackage(name string) bool { return path.Dir(name) == "." && !isTest(name) }

// isLibrary reports whether a file is linked into programs that use the
// library: everything but tests, tests-only packages and the other modules.
func isLibrary(name string) bool {
	if isTest(name) {
		return false
	}
	for _, dir := range []string{
		"bench", "cmd", "docs", "examples", "integration", // programs
		"internal/history", "internal/lint", "internal/model", "internal/mutants", "internal/pgtest", "internal/redistest", "internal/sim", // tests only
		"store/storetest",
	} {
		if strings.HasPrefix(name, dir+"/") {
			return false
		}
	}
	return true
}

// isShipped reports whether a file is in the library or in the command.
func isShipped(name string) bool {
	return isLibrary(name) || strings.HasPrefix(name, "cmd/") && !isTest(name)
}

func TestWhatIsShipped(t *testing.T) {
	for name, want := range map[string]struct{ root, library, shipped bool }{
		"cache.go":                 {true, true, true},
		"cache_test.go":            {},
		"internal/wire/wire.go":    {library: true, shipped: true},
		"store/natskv/natskv.go":   {library: true, shipped: true},
		"metrics/otel/otel.go":     {library: true, shipped: true},
		"store/storetest/suite.go": {},
		"internal/model/model.go":  {},
		"internal/modelling/m.go":  {library: true, shipped: true},
		"cmd/tidemark/main.go":     {shipped: true},
		"cmd/tidemark/a_test.go":   {},
		"bench/bench.go":           {},
	} {
		got := struct{ root, library, shipped bool }{isRootPackage(name), isLibrary(name), isShipped(name)}
		require.Equal(t, want, got, name)
	}
}
