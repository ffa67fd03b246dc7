package lint

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	named    = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*`)
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)\(`)
)

// TestNamedTestsExist: a promise in the documents that names a test names one
// that there is.
func TestNamedTestsExist(t *testing.T) {
	files, err := textFiles(os.DirFS("../.."))
	require.NoError(t, err)
	tests := declaredTests(files)
	require.NotEmpty(t, tests)
	for _, name := range []string{"README.md", "DESIGN.md", "CONTRIBUTING.md", "doc.go", "docs/security.md", "docs/databases.md", "docs/failures.md"} {
		require.Contains(t, files, name)
		report(t, missing(name, files[name], tests))
	}
}

// declaredTests returns the names of all test functions of the tree.
func declaredTests(files map[string][]byte) map[string]bool {
	tests := map[string]bool{}
	for name, text := range files {
		if !isTest(name) {
			continue
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
	}
	return tests
}

// missing returns the tests that a document names and nobody has written. A name
// with .* behind it stands for all that begin with it.
func missing(name string, text []byte, tests map[string]bool) (problems []string) {
	for i, line := range strings.Split(string(text), "\n") {
		for _, at := range named.FindAllStringIndex(line, -1) {
			test := line[at[0]:at[1]]
			exists := tests[test]
			if strings.HasPrefix(line[at[1]:], ".*") {
				for name := range tests {
					exists = exists || strings.HasPrefix(name, test)
				}
			}
			if !exists {
				problems = append(problems, fmt.Sprintf("%s:%d names %s, which does not exist", path.Base(name), i+1, test))
			}
		}
	}
	return problems
}

func TestMissing(t *testing.T) {
	tests := declaredTests(map[string][]byte{
		"x_test.go": []byte("func TestThere(t *testing.T) {\n// func TestNot(\n"),
		"y.go":      []byte("func TestElsewhere(t *testing.T) {"),
	})
	assert.Equal(t, map[string]bool{"TestThere": true}, tests)
	got := missing("doc", []byte("see `TestThere`, `TestTh.*`,\nTestElsewhere and Testing and FuzzX.\nTestTh and TestElse.*"), tests)
	assert.Equal(t, []string{
		"doc:2 names TestElsewhere, which does not exist", "doc:2 names FuzzX, which does not exist",
		"doc:3 names TestTh, which does not exist", "doc:3 names TestElse, which does not exist",
	}, got)
}
