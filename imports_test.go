package tidemark_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const modulePath = "github.com/tidemark-go/tidemark"

var (
	// directModules is every direct requirement of the root module. Whatever is
	// added here enters the module graph of all who import tidemark.
	directModules = []string{
		"github.com/cespare/xxhash/v2",
		"github.com/dgraph-io/ristretto/v2",
		"github.com/nats-io/nats.go",
		"github.com/stretchr/testify", // tests
		"pgregory.net/rapid",          // tests
	}

	// linkedModules is what may end up in the binaries of our users.
	linkedModules = []string{
		modulePath,
		"github.com/cespare/xxhash/v2",
		"github.com/dgraph-io/ristretto/v2",
		"github.com/dustin/go-humanize", // ristretto
		"github.com/nats-io/nats.go",
		"github.com/klauspost/compress", // nats.go
		"github.com/nats-io/nkeys",      // nats.go
		"github.com/nats-io/nuid",       // nats.go
		"golang.org/x/crypto",           // nkeys
		"golang.org/x/sys",              // ristretto, x/crypto
	}

	// importOwners names the one production file of the root package that may
	// import a module, so that the module can be replaced by rewriting one file.
	importOwners = map[string]string{
		"github.com/nats-io/nats.go":        "nats_invalidate.go",
		"github.com/dgraph-io/ristretto/v2": "policy.go",
	}

	// testsOnly are the packages that exist to check the others.
	testsOnly = []string{
		modulePath + "/internal/history",
		modulePath + "/internal/lint",
		modulePath + "/internal/model",
		modulePath + "/internal/mutants",
		modulePath + "/internal/pgtest",
		modulePath + "/internal/redistest",
		modulePath + "/internal/sim",
		modulePath + "/store/storetest",
	}

	// notShipped are the modules that nobody imports or installs.
	notShipped = []string{"bench", "docs", "integration"}
)

// TestImports keeps test code and heavy clients out of the binaries of our
// users, and each foreign library behind one file.
func TestImports(t *testing.T) {
	t.Run("production code links listed modules only", func(t *testing.T) {
		for _, problem := range unlistedDependencies(productionDependencies(t)) {
			t.Error(problem)
		}
	})
	t.Run("go.mod requires listed modules only", func(t *testing.T) {
		for _, problem := range wrongRequirements(requirements(t, "go.mod")) {
			t.Error(problem)
		}
	})
	t.Run("one file imports each foreign library", func(t *testing.T) {
		for _, problem := range strayImports(productionImports(t, os.DirFS("."))) {
			t.Error(problem)
		}
	})
	t.Run("production code does not import tests-only packages", func(t *testing.T) {
		for _, problem := range testImports(productionImports(t, os.DirFS("."))) {
			t.Error(problem)
		}
	})
}

// TestImportRules shows each rule of TestImports a tree that breaks it.
func TestImportRules(t *testing.T) {
	t.Run("unlistedDependencies", func(t *testing.T) {
		in := func(module string) *listedModule { return &listedModule{Path: module} }
		good := []listedPackage{
			{ImportPath: "database/sql", Standard: true},
			{ImportPath: modulePath, Module: in(modulePath)},
			{ImportPath: "github.com/nats-io/nats.go/util", Module: in("github.com/nats-io/nats.go")},
		}
		assert.Empty(t, unlistedDependencies(good))
		for _, bad := range []listedPackage{
			{ImportPath: "testing", Standard: true},
			{ImportPath: "testing/synctest", Standard: true},
			{ImportPath: "github.com/stretchr/testify/assert", Module: in("github.com/stretchr/testify")},
			{ImportPath: "pgregory.net/rapid", Module: in("pgregory.net/rapid")},
			{ImportPath: "github.com/nats-io/nats-server/v2/server", Module: in("github.com/nats-io/nats-server/v2")},
			{ImportPath: "github.com/jackc/pgx/v5/stdlib", Module: in("github.com/jackc/pgx/v5")},
			{ImportPath: "vendored/without/module"},
		} {
			got := unlistedDependencies(append(slices.Clone(good), bad))
			require.Len(t, got, 1, bad.ImportPath)
			assert.Contains(t, got[0], bad.ImportPath)
		}
	})

	t.Run("wrongRequirements", func(t *testing.T) {
		assert.Empty(t, wrongRequirements(directModules))
		assert.Len(t, wrongRequirements(directModules[1:]), 1, "one is missing")
		assert.Len(t, wrongRequirements(append([]string{"github.com/lib/pq"}, directModules...)), 1, "one is too many")

		name := filepath.Join(t.TempDir(), "go.mod")
		require.NoError(t, os.WriteFile(name, []byte("module m\n\ngo 1.26.0\n\n"+
			"require example.com/direct v1.0.0\n\nrequire example.com/other v1.0.0 // indirect\n"), 0o644))
		assert.Equal(t, []string{"example.com/direct"}, requirements(t, name))
	})

	t.Run("strayImports", func(t *testing.T) {
		tree := goFiles(map[string]string{
			"nats_invalidate.go":      "github.com/nats-io/nats.go",
			"policy.go":               "github.com/dgraph-io/ristretto/v2",
			"nats_test.go":            "github.com/nats-io/nats.go",
			"store/natskv/natskv.go":  "github.com/nats-io/nats.go/jetstream",
			"testdata/src/example.go": "github.com/nats-io/nats.go",
		})
		assert.Empty(t, strayImports(productionImports(t, tree)))

		for _, foreign := range []string{
			"github.com/nats-io/nats.go", "github.com/nats-io/nats.go/jetstream", "github.com/dgraph-io/ristretto/v2/z",
		} {
			tree["cache.go"] = goFile(foreign)
			got := strayImports(productionImports(t, tree))
			require.Len(t, got, 1, foreign)
			assert.Contains(t, got[0], "cache.go")
		}
	})

	t.Run("testImports", func(t *testing.T) {
		model := modulePath + "/internal/model"
		tree := goFiles(map[string]string{
			"shard_test.go":             model,
			"internal/model/model.go":   modulePath + "/internal/history",
			"store/storetest/suite.go":  model,
			"integration/suite.go":      model,
			"bench/cmd/report/main.go":  model,
			"internal/modelling/fit.go": modulePath + "/internal/modelling/curve",
		})
		assert.Empty(t, testImports(productionImports(t, tree)))

		for _, name := range []string{"cache.go", "internal/table/table.go", "cmd/tidemark/storm.go"} {
			tree := fstest.MapFS{name: goFile(model)}
			got := testImports(productionImports(t, tree))
			require.Len(t, got, 1, name)
			assert.Contains(t, got[0], name)
		}
		for _, foreign := range testsOnly {
			assert.Len(t, testImports(map[string][]string{"cache.go": {foreign}}), 1, foreign)
		}
	})
}

// A listedPackage is what go list prints about a package.
type listedPackage struct {
	ImportPath string
	Standard   bool
	Module     *listedModule // nil for the standard library
}

type listedModule struct{ Path string }

// unlistedDependencies returns a sentence for each package of deps that must
// not be linked into a user's program.
func unlistedDependencies(deps []listedPackage) (problems []string) {
	for _, p := range deps {
		switch {
		case isUnder(p.ImportPath, "testing"):
			problems = append(problems, fmt.Sprintf("production code reaches %s: "+
				"move what needs it into a _test.go file or a tests-only package", p.ImportPath))
		case p.Standard:
		case p.Module == nil || !slices.Contains(linkedModules, p.Module.Path):
			problems = append(problems, fmt.Sprintf("production code reaches %s, of a module that is not listed: "+
				"put it behind an interface and implement that in a module of its own; "+
				"if a listed module now needs it, add it to linkedModules", p.ImportPath))
		}
	}
	return problems
}

// wrongRequirements compares direct requirements with directModules.
func wrongRequirements(direct []string) (problems []string) {
	for _, m := range direct {
		if !slices.Contains(directModules, m) {
			problems = append(problems, fmt.Sprintf("go.mod requires %s, which would raise versions in every "+
				"consumer's go.mod: use it in the modules integration, bench or cmd/tidemark", m))
		}
	}
	for _, m := range directModules {
		if !slices.Contains(direct, m) {
			problems = append(problems, fmt.Sprintf("go.mod does not require %s any more: "+
				"take it off directModules, and off linkedModules if it was there", m))
		}
	}
	return problems
}

// strayImports returns a sentence for each file of the root package that
// imports what another file owns.
func strayImports(imports map[string][]string) (problems []string) {
	for name, paths := range imports {
		if path.Dir(name) != "." {
			continue
		}
		for owned, owner := range importOwners {
			if i := slices.IndexFunc(paths, func(p string) bool { return isUnder(p, owned) }); i >= 0 && name != owner {
				problems = append(problems, fmt.Sprintf("%s imports %s: only %s may; "+
					"give that file a function with types of ours and call it", name, paths[i], owner))
			}
		}
	}
	return problems
}

// testImports returns a sentence for each shipped file that imports a
// tests-only package.
func testImports(imports map[string][]string) (problems []string) {
	isTestsOnly := func(importPath string) bool {
		return slices.ContainsFunc(testsOnly, func(p string) bool { return isUnder(importPath, p) })
	}
	for name, paths := range imports {
		first, _, _ := strings.Cut(name, "/")
		if slices.Contains(notShipped, first) || isTestsOnly(path.Join(modulePath, path.Dir(name))) {
			continue
		}
		if i := slices.IndexFunc(paths, isTestsOnly); i >= 0 {
			problems = append(problems, fmt.Sprintf("%s imports %s, which exists for tests: "+
				"move the importing code into a _test.go file, or what it needs into a package that ships", name, paths[i]))
		}
	}
	return problems
}

// isUnder reports whether importPath is root or in a folder below it.
func isUnder(importPath, root string) bool {
	return importPath == root || strings.HasPrefix(importPath, root+"/")
}

// productionDependencies returns what the packages of the root module that are
// not tests-only import, directly or not, themselves included.
func productionDependencies(t *testing.T) []listedPackage {
	t.Helper()
	packages := slices.DeleteFunc(strings.Fields(string(goCommand(t, "list", "./..."))), func(p string) bool {
		return slices.ContainsFunc(testsOnly, func(tests string) bool { return isUnder(p, tests) })
	})
	require.Contains(t, packages, modulePath, "go list does not know the root package")

	args := append([]string{"list", "-deps", "-json=ImportPath,Standard,Module"}, packages...)
	var deps []listedPackage
	for d := json.NewDecoder(bytes.NewReader(goCommand(t, args...))); d.More(); {
		var p listedPackage
		require.NoError(t, d.Decode(&p))
		deps = append(deps, p)
	}
	return deps
}

// requirements returns the direct requirements in a go.mod file.
func requirements(t *testing.T, name string) (direct []string) {
	t.Helper()
	var file struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	require.NoError(t, json.Unmarshal(goCommand(t, "mod", "edit", "-json", name), &file))
	for _, r := range file.Require {
		if !r.Indirect {
			direct = append(direct, r.Path)
		}
	}
	return direct
}

// productionImports returns the import paths of each Go file in the tree that
// is not a test, by slash-separated name. Build tags are not looked at.
func productionImports(t *testing.T, tree fs.FS) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	require.NoError(t, fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && name != "."):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		src, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports[name] = append(imports[name], p)
		}
		return nil
	}))
	return imports
}

func goCommand(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), &stderr)
	return out
}

// goFiles makes a tree of Go files with one import each.
func goFiles(importOf map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for name, importPath := range importOf {
		tree[name] = goFile(importPath)
	}
	return tree
}

func goFile(importPath string) *fstest.MapFile {
	return &fstest.MapFile{Data: fmt.Appendf(nil, "package p\n\nimport _ %q\n", importPath)}
}
