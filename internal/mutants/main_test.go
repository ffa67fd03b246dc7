package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestJudge(t *testing.T) {
	failed := errors.New("exit status 1")
	assert.NoError(t, judge("--- FAIL: TestX (0.00s)\nFAIL\tpkg\t0.1s", failed))
	assert.NoError(t, judge("panic: test timed out after 2m0s", failed))
	assert.Error(t, judge("ok  \tpkg\t0.1s", nil), "green")
	assert.Error(t, judge("ok  \tpkg\t0.1s [no tests to run]", nil))
	assert.Error(t, judge("FAIL\tpkg [build failed]", failed))
	assert.Error(t, judge("FAIL\tpkg [setup failed]", failed))
	assert.Error(t, judge("no such tool", failed))
}

// A test that is red with every guard proves nothing by being red without one.
func TestSwitchOff_AsksWhetherTheTestIsGreen(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		red          bool
	}{
		{"green, then red", `test "$` + switchVar + `" = 0 || { echo "--- FAIL: TestX"; exit 1; }`, true},
		{"always green", `exit 0`, false},
		{"always red", `echo "--- FAIL: TestX"; exit 1`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.test")
			require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700))
			r := &runner{guards: []guard{{test: "TestX"}}, binaries: map[string]*binary{"": {path: path, green: map[string]bool{}}}}
			_, err := r.switchOff(0)
			assert.Equal(t, tt.red, err == nil, "%v", err)
		})
	}
}

// Every guard's text is in its file exactly once, so that the run cannot
// silently test nothing, and no two guards have one name.
func TestGuards_AreWhereTheyAreSaidToBe(t *testing.T) {
	names := map[string]bool{}
	for _, g := range guards {
		text, err := os.ReadFile(filepath.Join("..", "..", g.file))
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(string(text), g.old), "%s: %q in %s", g.name, g.old, g.file)
		assert.NotEqual(t, g.old, g.new, g.name)
		assert.NotEmpty(t, g.breaks, g.name)
		assert.NotEmpty(t, g.test, g.name)
		assert.False(t, names[g.name], "%s is there twice", g.name)
		names[g.name] = true
	}
}

// DESIGN.md has the table as it is printed, and each test in it exists, in the
// module and package where it will be run.
func TestGuards_AreInTheDesign(t *testing.T) {
	design, err := os.ReadFile(filepath.Join("..", "..", "DESIGN.md"))
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(string(design), "\n"+table()), "its last lines must be what go run ./internal/mutants -list prints")
	for _, g := range guards {
		dir := filepath.Join("..", "..", g.module, g.pkg)
		var tests strings.Builder
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		require.NoError(t, err)
		for _, f := range files {
			text, err := os.ReadFile(f)
			require.NoError(t, err)
			tests.Write(text)
		}
		for name := range strings.SplitSeq(g.test, "|") {
			name, several := strings.CutSuffix(name, ".*")
			if !several {
				name += "("
			}
			assert.Contains(t, tests.String(), "\nfunc "+name, "%s", g.name)
		}
	}
}
