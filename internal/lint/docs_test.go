package lint

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A goBlock is a block of Go in a document.
type goBlock struct {
	line int // of its first line, from 1
	text string
}

// goBlocks returns the blocks of Go in a document.
func goBlocks(text []byte) (blocks []goBlock) {
	var block *goBlock
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case block == nil && strings.HasPrefix(line, "```go"):
			block = &goBlock{line: i + 2}
		case block != nil && strings.HasPrefix(line, "```"):
			blocks, block = append(blocks, *block), nil
		case block != nil:
			block.text += line + "\n"
		}
	}
	return blocks
}

// plainLines returns the lines of a text without the indentation that all have.
func plainLines(text string) (lines []string) {
	lines = strings.Split(strings.TrimRight(text, "\n"), "\n")
	least := -1
	for _, l := range lines {
		if trimmed := strings.TrimLeft(l, "\t"); trimmed != "" && (least < 0 || len(l)-len(trimmed) < least) {
			least = len(l) - len(trimmed)
		}
	}
	for i, l := range lines {
		lines[i] = l[min(max(least, 0), len(l)):]
	}
	return lines
}

// isCode reports whether the lines of block are, one after the other, lines of a Go
// file, but for the indentation that all of them have there.
func isCode(block []string, file []string) bool {
	for at := range len(file) - len(block) + 1 {
		if !strings.HasSuffix(file[at], block[0]) {
			continue
		}
		indent := file[at][:len(file[at])-len(block[0])]
		if strings.Trim(indent, "\t") != "" {
			continue
		}
		same := true
		for i, l := range block {
			if l != "" {
				l = indent + l
			}
			same = same && file[at+i] == l
		}
		if same {
			return true
		}
	}
	return false
}

// notCode returns a sentence for each block of Go in a document that is in no file.
func notCode(name string, text []byte, code map[string][]string) (problems []string) {
	for _, b := range goBlocks(text) {
		block := plainLines(b.text)
		found := false
		for _, file := range code {
			found = found || isCode(block, file)
		}
		if !found {
			problems = append(problems, fmt.Sprintf("%s:%d: this block is not, to the letter, a piece of a Go file that is compiled: "+
				"put it into docs/snippets, or where it belongs, and copy it from there", name, b.line))
		}
	}
	return problems
}

// TestGoBlocksAreCode: what documents show of Go is in a Go file of the tree, which is
// compiled and vetted with the module that it is in.
func TestGoBlocksAreCode(t *testing.T) {
	files, err := textFiles(os.DirFS("../.."))
	require.NoError(t, err)
	code := map[string][]string{}
	for name, text := range files {
		if path.Ext(name) == ".go" && !strings.Contains("/"+name, "/testdata/") {
			code[name] = strings.Split(string(text), "\n")
		}
	}
	blocks := 0
	for name, text := range files {
		if path.Ext(name) == ".md" {
			blocks += len(goBlocks(text))
			report(t, notCode(name, text, code))
		}
	}
	require.Greater(t, blocks, 10)
}

var (
	link    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#{1,6} +(.*?)#* *$`)
	inCode  = regexp.MustCompile("`[^`]*`")
)

// anchors returns what links to the headings of a document end with: the heading in
// lower case, without what is neither letter, digit, space, hyphen nor underscore, and
// with hyphens for spaces; one that comes again is numbered.
func anchors(text []byte) map[string]bool {
	all := map[string]bool{}
	fenced := false
	for line := range strings.SplitSeq(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		m := heading.FindStringSubmatch(line)
		if fenced || m == nil {
			continue
		}
		title := link.ReplaceAllStringFunc(m[1], func(l string) string { return l[1:strings.Index(l, "]")] })
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, title)
		for n, base := 1, slug; all[slug]; n++ {
			slug = fmt.Sprintf("%s-%d", base, n)
		}
		all[slug] = true
	}
	return all
}

// deadLinks returns a sentence for each link of a document to a file that is not
// there, or to a heading that its target does not have.
func deadLinks(name string, text []byte, files map[string][]byte) (problems []string) {
	fenced := false
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if fenced || strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "    ") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(inCode.ReplaceAllString(line, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			to, fragment, _ := strings.Cut(m[1], "#")
			target := name
			if to != "" {
				target = path.Join(path.Dir(name), to)
			}
			isFolder := slices.ContainsFunc(keysOf(files), func(f string) bool { return strings.HasPrefix(f, target+"/") })
			content, there := files[target]
			switch {
			case !there && !isFolder:
				problems = append(problems, fmt.Sprintf("%s:%d links to %s, which is not there", name, i+1, m[1]))
			case fragment != "" && !anchors(content)[fragment]:
				problems = append(problems, fmt.Sprintf("%s:%d links to %s, but no heading is called that", name, i+1, m[1]))
			}
		}
	}
	return problems
}

func keysOf(files map[string][]byte) (names []string) {
	for name := range files {
		names = append(names, name)
	}
	return names
}

// TestLinksLeadSomewhere: links between documents, to files and to headings.
func TestLinksLeadSomewhere(t *testing.T) {
	tree := os.DirFS("../..")
	files, err := textFiles(tree)
	require.NoError(t, err)
	pictures, err := fs.Glob(tree, "docs/*.png")
	require.NoError(t, err)
	for _, name := range pictures {
		files[name] = nil
	}
	links := 0
	for name, text := range files {
		if path.Ext(name) == ".md" {
			links += len(link.FindAll(text, -1))
			report(t, deadLinks(name, text, files))
		}
	}
	require.Greater(t, links, 50)
}

// TestDocumentRules shows each rule what it must pass and what it must refuse.
func TestDocumentRules(t *testing.T) {
	code := map[string][]string{"a.go": strings.Split("package a\n\nfunc f() {\n\tx := 1\n\n\tif x > 0 {\n\t\tg(x)\n\t}\n}\n", "\n")}
	for block, good := range map[string]bool{
		"func f() {\n\tx := 1":                 true,
		"x := 1\n\nif x > 0 {\n\tg(x)\n}":      true,
		"\tx := 1\n\n\tif x > 0 {\n\t\tg(x)\n": true,
		"x := 2":                               false,
		"x := 1\nif x > 0 {":                   false,
		"if x > 0 {\ng(x)\n}":                  false,
		"= 1":                                  false,
		"g(x)\n}\n}\n}\n}\n}\n}\n}\n}\n}\n}\n": false,
	} {
		got := notCode("doc.md", []byte("text\n```go\n"+block+"\n```\nmore\n```sh\nnot Go\n```\n"), code)
		assert.Equal(t, good, len(got) == 0, "%s: %v", block, got)
		if !good {
			assert.Contains(t, got[0], "doc.md:3: ")
		}
	}

	assert.Equal(t, map[string]bool{"what-is-promised": true, "go-redis-and-a_b": true, "twice": true, "twice-1": true, "a-link": true},
		anchors([]byte("# What is promised\n## `go-redis`, and a_b!\n### Twice\ntext\n### Twice\n```\n# no heading\n```\n## [A link](x.md)\n")))

	files := map[string][]byte{"README.md": []byte("# Top\n"), "docs/a.md": []byte("## In a\n"), "docs/sub/b.md": nil, "x.go": nil}
	for text, good := range map[string]bool{
		"[a](docs/a.md)": true, "[a](docs/a.md#in-a)": true, "[top](#top)": true, "[sub](docs/sub)": true, "[web](https://example.com/no)": true,
		"`[a](no.md)`": true, "\t[a](no.md)": true, "[a](x.go)": true,
		"[a](no.md)": false, "[a](docs/a.md#no)": false, "[a](#no)": false, "see [a](x.go), [b](a.md).": false,
	} {
		got := deadLinks("README.md", []byte("# Top\n"+text), map[string][]byte{"README.md": []byte("# Top\n"), "docs/a.md": files["docs/a.md"], "docs/sub/b.md": nil, "x.go": nil})
		assert.Equal(t, good, len(got) == 0, "%s: %v", text, got)
	}
	assert.Empty(t, deadLinks("docs/sub/b.md", []byte("[up](../a.md#in-a)"), files))
}
