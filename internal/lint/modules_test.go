package lint

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestModulesAgree holds that a dependency has one version in all modules: what is
// tested together is what is embedded together, and nothing large, as nats-server
// with the race detector, is compiled twice.
func TestModulesAgree(t *testing.T) {
	files, err := textFiles(os.DirFS("../.."))
	require.NoError(t, err)
	mods := map[string]string{}
	for name, text := range files {
		if path.Base(name) == "go.mod" && !strings.Contains("/"+name, "/testdata/") {
			mods[name] = string(text)
		}
	}
	require.Greater(t, len(mods), 5)
	report(t, disagreements(mods))
}

// disagreements returns what the go.mod files, by name, require in several versions.
func disagreements(mods map[string]string) []string {
	versions := map[string]map[string]string{} // of a module: a file for each
	for _, file := range slices.Sorted(maps.Keys(mods)) {
		for line := range strings.Lines(mods[file]) {
			f := strings.Fields(strings.TrimPrefix(line, "require "))
			if len(f) < 2 || !strings.HasPrefix(f[1], "v") || slices.Contains(f, "=>") {
				continue
			}
			if versions[f[0]] == nil {
				versions[f[0]] = map[string]string{}
			}
			versions[f[0]][f[1]] = file
		}
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		if len(versions[name]) > 1 {
			all = append(all, fmt.Sprintf("%s is required in versions %v", name, versions[name]))
		}
	}
	return all
}

func TestDisagreements(t *testing.T) {
	a := "module a\n\nrequire (\n\tx.org/y v1.2.0\n\tx.org/z v0.0.0 // indirect\n)\n\nreplace x.org/z => ../z\n"
	assert.Empty(t, disagreements(map[string]string{"go.mod": a, "b/go.mod": "module b\n\nrequire x.org/y v1.2.0\n"}))
	assert.Equal(t, []string{"x.org/y is required in versions map[v1.2.0:go.mod v1.3.0:b/go.mod]"},
		disagreements(map[string]string{"go.mod": a, "b/go.mod": "module b\n\nrequire x.org/y v1.3.0 // indirect\n"}))
}
