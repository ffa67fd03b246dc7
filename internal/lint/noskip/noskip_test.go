package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRun hands real modules to the real go command: each file is the only
// test file of a module of its own.
func TestRun(t *testing.T) {
	const header = "package scratch\n\nimport \"testing\"\n\n"
	tests := []struct {
		name string
		file string
		want tally
		err  string   // part of the error, or empty for a green run
		says []string // in the output
	}{
		{
			name: "all tests pass",
			file: header + `func TestA(t *testing.T) { t.Run("x", func(*testing.T) {}); t.Run("y", func(*testing.T) {}) }
				func TestB(*testing.T) {}`,
			want: tally{passed: 3},
		},
		{
			name: "a test is skipped",
			file: header + `func TestA(*testing.T) {}
				func TestB(t *testing.T) { t.Skip("no database here") }`,
			want: tally{passed: 1, skipped: 1},
			err:  "1 skipped",
			says: []string{"scratch TestB", "no database here"},
		},
		{
			name: "a subtest is skipped",
			file: header + `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.SkipNow() }) }`,
			want: tally{skipped: 1},
			err:  "1 skipped",
			says: []string{"scratch TestA/x"},
		},
		{
			name: "a subtest fails",
			file: header + `func TestA(t *testing.T) {
				t.Run("x", func(t *testing.T) { t.Error("said by x") })
				t.Run("y", func(t *testing.T) { t.Log("said by y") })
			}`,
			want: tally{passed: 1, failed: 1},
			err:  "1 failed",
			says: []string{"scratch TestA/x", "said by x"},
		},
		{
			name: "the process ends inside a test",
			file: header + `import "os"
				func TestA(*testing.T) { println("last words"); os.Exit(3) }`,
			want: tally{failed: 1},
			err:  "1 failed",
			says: []string{"last words"},
		},
		{
			name: "the test does not compile",
			file: header + `func TestA(t *testing.T) { undefinedName() }`,
			want: tally{failed: 1},
			err:  "1 failed",
			says: []string{"undefined: undefinedName"},
		},
		{
			name: "there is no test",
			file: "package scratch\n",
			err:  "no test ran",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "go.mod", "module scratch\n\ngo 1.26.0\n")
			write(t, dir, "scratch_test.go", tt.file)
			counts := filepath.Join(dir, "counts")

			var stdout, stderr bytes.Buffer
			err := run(t.Context(), []string{"-counts", counts, dir, "--", "./..."}, &stdout, &stderr)
			if tt.err == "" {
				require.NoError(t, err, "%s%s", &stdout, &stderr)
			} else {
				require.ErrorContains(t, err, tt.err)
			}
			for _, s := range tt.says {
				assert.Contains(t, stdout.String(), s)
			}
			assert.NotContains(t, stdout.String(), "said by y", "output of a test that passed")
			assertCounts(t, counts, tt.want)
		})
	}
}

func TestRun_AddsUpModules(t *testing.T) {
	green, red := t.TempDir(), t.TempDir()
	for _, dir := range []string{green, red} {
		write(t, dir, "go.mod", "module scratch\n\ngo 1.26.0\n")
	}
	write(t, green, "a_test.go", "package a\n\nimport \"testing\"\n\nfunc TestA(*testing.T) {}\n")
	write(t, red, "a_test.go", "package a\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) { t.Fail() }\n")

	var stdout, stderr bytes.Buffer
	err := run(t.Context(), []string{red, green, "--", "./..."}, &stdout, &stderr)
	require.ErrorContains(t, err, "1 failed", "a green module must not hide a red one before it")
	assert.True(t, strings.HasSuffix(stdout.String(), "\n1 passed, 1 failed, 0 skipped\n"), "%s", &stdout)
}

func TestRun_RefusesAnUnclearCall(t *testing.T) {
	for _, args := range [][]string{{}, {"."}, {"--", "./..."}, {"-nosuchflag", ".", "--"}} {
		var stdout, stderr bytes.Buffer
		assert.Error(t, run(t.Context(), args, &stdout, &stderr), "%q", args)
	}
}

// TestSummarize covers what no well-behaved go command prints.
func TestSummarize(t *testing.T) {
	tests := []struct {
		name   string
		events string
		want   tally
	}{
		{"nothing at all", "", tally{}},
		{
			"a package without an end",
			`{"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"pass","Package":"p","Test":"TestA"}`,
			tally{passed: 1, failed: 1},
		},
		{
			"a second run of a test does not wash off the failure of the first",
			`{"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"fail","Package":"p","Test":"TestA"}
			 {"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"pass","Package":"p","Test":"TestA"}
			 {"Action":"fail","Package":"p"}`,
			tally{passed: 1, failed: 1},
		},
		{
			"a parent that fails by itself counts beside its subtest",
			`{"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"run","Package":"p","Test":"TestA/x"}
			 {"Action":"pass","Package":"p","Test":"TestA/x"}
			 {"Action":"fail","Package":"p","Test":"TestA"}
			 {"Action":"fail","Package":"p"}`,
			tally{passed: 1, failed: 1},
		},
		{
			"a package fails though its tests pass",
			`{"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"pass","Package":"p","Test":"TestA"}
			 {"Action":"output","Package":"p","Output":"goroutines left behind\n"}
			 {"Action":"fail","Package":"p"}`,
			tally{passed: 1, failed: 1},
		},
		{
			"a line that is not an event",
			`free speech
			 {"Action":"run","Package":"p","Test":"TestA"}
			 {"Action":"pass","Package":"p","Test":"TestA"}
			 {"Action":"pass","Package":"p"}`,
			tally{passed: 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			got, err := summarize(strings.NewReader(tt.events), &out)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got, "%s", &out)
		})
	}
}

// TestSummarize_NamesTheLongest of a package that takes long, and of no other.
func TestSummarize_NamesTheLongest(t *testing.T) {
	const tests = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":10}
		{"Action":"pass","Package":"p","Test":"TestB/x","Elapsed":50}
		{"Action":"pass","Package":"p","Test":"TestB","Elapsed":50.04}
		{"Action":"pass","Package":"p","Test":"TestA","Elapsed":11}
		{"Action":"pass","Package":"p","Elapsed":`
	for seconds, want := range map[string]string{"60": "", "61": "     the longest: TestB 50.0s, TestA 21.0s\n"} {
		var out bytes.Buffer
		_, err := summarize(strings.NewReader(tests+seconds+"}"), &out)
		require.NoError(t, err)
		_, said, _ := strings.Cut(out.String(), "3 passed, 0 failed, 0 skipped\n")
		assert.Equal(t, want, said)
	}
}

func assertCounts(t *testing.T, name string, want tally) {
	t.Helper()
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprintf("%d %d %d\n", want.passed, want.failed, want.skipped), string(got))
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}
