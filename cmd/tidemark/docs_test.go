package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	// called matches a call of the command in a document: its subcommand, and what
	// follows.
	called = regexp.MustCompile("(?:^|[`(\t ])(?:tidemark|go run -C cmd/tidemark \\.) +([a-z]+)([^`|)]*)")

	documented = regexp.MustCompile(`(?m)^  -([a-z-]+)`)
	flagged    = regexp.MustCompile(`(?:^| )-([a-z][a-z-]*)`)
)

// flagsOf returns the flags of a subcommand, or of one of outbox, as its usage lists
// them, and whether there is such a subcommand.
func flagsOf(t *testing.T, subcommand string, rest string) (flags []string, exists bool) {
	t.Helper()
	if !slices.ContainsFunc(commands, func(c command) bool { return c.name == subcommand }) {
		return nil, false
	}
	args := []string{subcommand, "-h"}
	if subcommand == "outbox" {
		if words := strings.Fields(rest); len(words) > 0 {
			args = []string{subcommand, words[0], "-h"}
		}
	}
	r := tidemarkWith(t.Context(), "", args...)
	flags = []string{"h"} // every command has it
	for _, m := range documented.FindAllStringSubmatch(r.err+r.out, -1) {
		flags = append(flags, m[1])
	}
	return flags, true
}

// Whatever the documents tell people to type is a subcommand, with flags that it has.
func TestDocs_CommandsAndFlagsExist(t *testing.T) {
	root := filepath.Join("..", "..")
	calls := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".md" || strings.Contains(name, "CHANGELOG") {
			return err
		}
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for i, line := range strings.Split(string(text), "\n") {
			for _, m := range called.FindAllStringSubmatch(line, -1) {
				flags, exists := flagsOf(t, m[1], m[2])
				if !exists {
					assert.False(t, strings.HasPrefix(line, "\t"), "%s:%d: tidemark %s is not a command", name, i+1, m[1])
					continue // prose, about tidemark
				}
				calls++
				for _, f := range flagged.FindAllStringSubmatch(m[2], -1) {
					assert.Contains(t, flags, f[1], "%s:%d: tidemark %s has no flag -%s", name, i+1, m[1], f[1])
				}
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, calls, 20)
}
