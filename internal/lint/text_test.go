package lint

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	// machinePath matches an absolute path that exists on one machine only. The
	// folders of a Linux distribution are not among them.
	machinePath = regexp.MustCompile(
		"(?:^|file://|[\\s\"'`=(:,<>\\[])" +
			`(?:/(?:work|workspace|root|home|Users|mnt|media|srv|builds|tmp)/[\w.-]|[A-Z]:\\[Uu]sers)`)

	// registryHost matches the hosts that serve packages, and names and
	// addresses that resolve only inside somebody's network.
	registryHost = regexp.MustCompile(
		`\b(?:proxy\.golang\.org|sum\.golang\.org|goproxy\.(?:io|cn)|registry\.npmjs\.org|pypi\.org` +
			`|(?:deb|security|snapshot)\.debian\.org|(?:archive|security)\.ubuntu\.com` +
			`|(?:registry-1|index)\.docker\.io|ghcr\.io|quay\.io)\b` +
			`|://[^/\s"'@]*\.(?:internal|corp|lan|intra)\b` +
			`|://(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d`)

	putOff = regexp.MustCompile(`^\s*(?:#|<!--|--)\s*(?:TODO|FIXME|XXX)\b`)
)

// machineTraces refuses text that is true on one machine or network only.
func machineTraces(name string, text []byte) (problems []string) {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if m := machinePath.Find(line); m != nil {
			problems = append(problems, fmt.Sprintf("%s:%d: %q is a path of one machine: "+
				"make it relative to the repository, or a temporary folder made at run time", name, i+1, m))
		}
		if m := registryHost.Find(line); m != nil {
			problems = append(problems, fmt.Sprintf("%s:%d: %q names a registry or a private host: "+
				"leave the choice to the environment", name, i+1, m))
		}
	}
	return problems
}

// unfinishedText is the rule unfinished for everything but Go files.
func unfinishedText(name string, text []byte) (problems []string) {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if putOff.Match(line) {
			problems = append(problems, fmt.Sprintf("%s:%d: a comment puts work off: do it, or open an issue", name, i+1))
		}
	}
	return problems
}

// textFiles returns the text files in the tree that git would track, by name.
// It needs no git: it knows as much of ignore patterns as ours use.
func textFiles(tree fs.FS) (map[string][]byte, error) {
	ignore, err := fs.ReadFile(tree, ".gitignore")
	if err != nil {
		return nil, err
	}
	patterns := strings.Fields(string(ignore))
	files := map[string][]byte{}
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".git" || name != "." && isIgnored(patterns, name):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err == nil && !bytes.ContainsRune(text, 0) {
			files[name] = text
		}
		return err
	})
	return files, err
}

// isIgnored reports whether one of the patterns of .gitignore matches. It does
// not know "!" and a "**" that is not at the beginning.
func isIgnored(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.TrimSuffix(p, "/")
		base, anywhere := strings.CutPrefix(p, "**/")
		if !anywhere && !strings.Contains(p, "/") {
			base, anywhere = p, true
		}
		target := name
		if anywhere { // compare as many elements at the end as the pattern has
			elements := strings.Split(name, "/")
			target = path.Join(elements[max(0, len(elements)-1-strings.Count(base, "/")):]...)
		}
		ok, err := path.Match(strings.TrimPrefix(base, "/"), target)
		return ok && err == nil
	})
}

func TestMachineTraces(t *testing.T) {
	const slash = "/" // keeps the bad examples from being found in this file
	bad := []string{
		"see " + slash + "home/alice/notes.md",
		`open("` + slash + `Users/alice/x")`,
		"DIR=" + slash + "root/go",
		"`" + slash + "tmp/brief`",
		"(" + slash + "work/main)",
		"file://" + slash + "mnt/x",
		`C:` + `\Users\alice`,
		"GOPROXY=https:/" + slash + "proxy.golang" + ".org",
		"deb http:/" + slash + "deb.debian" + ".org/debian",
		"docker pull ghcr" + ".io/x/y",
		"http:/" + slash + "mirror.corp/go",
		"http:/" + slash + "10.0.0.7:3000",
		"http:/" + slash + "172.20.0.7",
	}
	for _, text := range bad {
		got := machineTraces("notes.md", []byte("fine\n"+text+"\n"))
		if assert.Len(t, got, 1, text) {
			assert.Contains(t, got[0], "notes.md:2: ")
		}
	}
	for _, text := range []string{
		"https://example.com/home/alice",
		"/usr/lib/postgresql/15/bin and /etc/apt and /var/run",
		"a temporary folder such as $TMPDIR/x",
		"net" + slash + "work" + slash + "load and .." + slash + "home" + slash + "x",
		"nats://127.0.0.1:4222 and http://localhost:8080",
		"github.com/nats-io/nats.go v1.55.0",
		"the folders /tmp and /home",
		"http://172.99.0.7, http://100.1.1.1",
		"import github.com/x/y/internal/z",
	} {
		assert.Empty(t, machineTraces("notes.md", []byte(text)), text)
	}
}

func TestUnfinishedText(t *testing.T) {
	later := "TO" + "DO"
	for _, text := range []string{"# " + later + ": x", "  #" + later, "<!-- FIX" + "ME -->"} {
		assert.Len(t, unfinishedText("Makefile", []byte(text)), 1, text)
	}
	for _, text := range []string{"# no " + later + " comments", "- " + later + " comments are refused"} {
		assert.Empty(t, unfinishedText("Makefile", []byte(text)), text)
	}
}

func TestTextFiles(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	files, err := textFiles(fstest.MapFS{
		".gitignore":                    file("*.out\n**/testdata/rapid/\n/go.work\n/cmd/tool/tool\n"),
		".git/config":                   file("x"),
		".ci/run":                       file("x"),
		"a.go":                          file("x"),
		"a.out":                         file("x"),
		"deep/b.out":                    file("x"),
		"testdata/rapid/T/1.fail":       file("x"),
		"deep/down/testdata/rapid/fail": file("x"),
		"testdata/golden":               file("x"),
		"go.work":                       file("x"),
		"deep/go.work":                  file("x"),
		"cmd/tool/tool":                 file("x"),
		"cmd/tool/tool.go":              file("x"),
		"image.png":                     file("x\x00y"),
	})
	require.NoError(t, err)
	assert.ElementsMatch(t,
		[]string{".gitignore", ".ci/run", "a.go", "testdata/golden", "deep/go.work", "cmd/tool/tool.go"},
		slices.Collect(maps.Keys(files)))
}
