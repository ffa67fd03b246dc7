package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const wovenText = `package main

import "fmt"

type box[V any] struct{ v V }

func (b *box[V]) get(ok bool) (v V, found bool) {
	if ok {
		return b.v, true
	}
	return v, false
}

func (*box[V]) unnamed(ok bool) string {
	if ok {
		return "guarded"
	}
	return "open"
}

func first[T any](_ int, all ...T) string { return fmt.Sprint(all[0], "guarded") }

func caught() (said string) {
	defer rescue(&said)
	panic("guarded")
}

func rescue(said *string) {
	if r := recover(); r != nil {
		*said = fmt.Sprint(r)
	}
}

const limit = 1

func say() {
	b := &box[int]{v: 7}
	v, found := b.get(true)
	fmt.Println(v, found, b.unnamed(true), first(1, "a", "b"), caught(), limit)
}

func main() { say() }
`

// A woven program does what it did, until a switch is set; then it does what it
// would with that one edit.
func TestWeave(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module woven\n\ngo 1.24\n"), 0o600))
	file := filepath.Join(dir, "woven.go")
	require.NoError(t, os.WriteFile(file, []byte(wovenText), 0o600))
	edit := func(name, old, new string) guard { return guard{name: name, file: file, old: old, new: new} }
	files, woven, err := weave([]guard{
		edit("method", "if ok {\n\t\treturn b.v", "if !ok {\n\t\treturn b.v"),
		edit("method again", "return b.v, true", "return b.v, false"),
		edit("generic", "all[0]", "all[1]"),
		edit("no result", "\tv, found :=", "\tfmt.Print(\"mutant \")\n\tv, found :="),
		edit("receiver without a name", `return "guarded"`, `return "mutant"`),
		edit("recovers", "r != nil", "r == nil"),
		edit("constant", "limit = 1", "limit = 2"),
		edit("signature", "b *box[V]) get(ok bool)", "b *box[V]) get(ok bool, _ ...int)"),
		edit("main", "main() { say() }", "main() {}"),
	}, out)
	require.NoError(t, err)
	assert.Equal(t, map[string]bool{"method": true, "method again": true, "generic": true, "no result": true}, woven)

	list, err := writeOverlay(out, files)
	require.NoError(t, err)
	program := filepath.Join(out, "program")
	build := exec.Command("go", "build", "-overlay", list, "-o", program, ".")
	build.Dir = dir
	printed, err := build.CombinedOutput()
	require.NoError(t, err, "%s", printed)
	for number, want := range []string{
		"7 true guarded aguarded guarded 1\n",
		"0 false guarded aguarded guarded 1\n",
		"7 false guarded aguarded guarded 1\n",
		"7 true guarded bguarded guarded 1\n",
		"mutant 7 true guarded aguarded guarded 1\n",
		"7 true guarded aguarded guarded 1\n", // the fifth is not woven
	} {
		run := exec.Command(program)
		run.Env = append(os.Environ(), fmt.Sprintf("%s=%d", switchVar, number))
		printed, err := run.CombinedOutput()
		require.NoError(t, err)
		assert.Equal(t, want, string(printed), "switch %d", number)
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, wovenText, string(text), "the source is not touched")
}
