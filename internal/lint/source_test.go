package lint

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// maxFunctionLines is what fits on a screen, signature and braces included.
const maxFunctionLines = 60

// A source is one parsed Go file.
type source struct {
	name string
	fset *token.FileSet
	file *ast.File
}

func parse(name string, text []byte) (source, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	return source{name, fset, file}, err
}

// problem begins a sentence with the place of a node.
func (s source) problem(n ast.Node, format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s", s.name, s.fset.Position(n.Pos()).Line, fmt.Sprintf(format, args...))
}

// sleeps refuses time.Sleep.
func sleeps(s source) (problems []string) {
	clock := "" // what the file calls package time
	for _, spec := range s.file.Imports {
		if spec.Path.Value == `"time"` {
			clock = "time"
			if spec.Name != nil {
				clock = spec.Name.Name
			}
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
			if x, ok := sel.X.(*ast.Ident); ok && clock != "" && x.Name == clock {
				problems = append(problems, s.problem(n, "time.Sleep cannot be cancelled, and Close would wait for it: "+
					"wait in a select on a timer and on a context or a closing channel"))
			}
		}
		return true
	})
	return problems
}

var unfinishedMark = regexp.MustCompile(`(?m)^(//|/\*)?[\s*]*(TODO|FIXME|XXX)\b`)

// unfinished refuses comments that put work off.
func unfinished(s source) (problems []string) {
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			if unfinishedMark.MatchString(c.Text) {
				problems = append(problems, s.problem(c, "a comment puts work off: "+
					"do it, or open an issue and state the present limit in the contract"))
			}
		}
	}
	return problems
}

// undocumented refuses exported names without a comment. A comment at a field
// covers the fields on the lines around it. Error, String and Unwrap need none:
// the interfaces they implement say what they do.
func undocumented(s source) []string {
	u := undocumentedNames{source: s}
	for _, decl := range s.file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || ast.IsExported(receiver(d)) && !selfExplanatory(d.Name.Name) {
				u.check(d.Name, d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				u.checkSpec(spec, d.Doc)
			}
		}
	}
	return u.problems
}

// undocumentedNames is one run of the rule undocumented.
type undocumentedNames struct {
	source
	problems []string
}

func (u *undocumentedNames) check(name *ast.Ident, comments ...*ast.CommentGroup) {
	if name.IsExported() && cmp.Or(comments...) == nil {
		u.problems = append(u.problems, u.problem(name, "%s is exported and has no comment: "+
			"state its contract (unit, zero value, errors, concurrency, cost)", name.Name))
	}
}

// checkSpec looks at one line of a const, var or type declaration; group is the
// comment of the declaration.
func (u *undocumentedNames) checkSpec(spec ast.Spec, group *ast.CommentGroup) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			u.check(name, spec.Doc, spec.Comment, group)
		}
	case *ast.TypeSpec:
		u.check(spec.Name, spec.Doc, spec.Comment, group)
		if !spec.Name.IsExported() {
			return
		}
		switch t := spec.Type.(type) {
		case *ast.StructType:
			u.checkFields(t.Fields.List)
		case *ast.InterfaceType:
			for _, method := range t.Methods.List {
				for _, name := range method.Names {
					u.check(name, method.Doc, method.Comment)
				}
			}
		}
	}
}

func (u *undocumentedNames) checkFields(list []*ast.Field) {
	for _, paragraph := range u.paragraphs(list) {
		var comments []*ast.CommentGroup
		for _, f := range paragraph {
			comments = append(comments, f.Doc, f.Comment)
		}
		for _, f := range paragraph {
			for _, name := range f.Names {
				u.check(name, comments...)
			}
		}
	}
}

// paragraphs cuts fields where a blank line or a comment of its own stands
// before a field.
func (s source) paragraphs(list []*ast.Field) (all [][]*ast.Field) {
	last := -1 // line
	for _, f := range list {
		begin := f.Pos()
		if f.Doc != nil {
			begin = f.Doc.Pos()
		}
		if line := s.fset.Position(begin).Line; len(all) > 0 && line == last+1 && f.Doc == nil {
			all[len(all)-1] = append(all[len(all)-1], f)
		} else {
			all = append(all, []*ast.Field{f})
		}
		last = s.fset.Position(f.End()).Line
	}
	return all
}

func selfExplanatory(method string) bool {
	return method == "Error" || method == "String" || method == "Unwrap"
}

// receiver returns the name of a method's type.
func receiver(d *ast.FuncDecl) string {
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

var guardWord = regexp.MustCompile(`(?i)\b(guards?|guarding|guarded|protects?|serializes?)\b`)

// silentMutexes refuses mutexes, in structs and at package level, whose comment
// does not say what they guard.
func silentMutexes(s source) (problems []string) {
	check := func(n ast.Node, typ ast.Expr, comments ...*ast.CommentGroup) {
		if typ == nil || !isMutex(typ) {
			return
		}
		for _, c := range comments {
			if guardWord.MatchString(c.Text()) {
				return
			}
		}
		problems = append(problems, s.problem(n, "a mutex does not say what it guards: "+
			`put it above those fields with a comment such as "guards everything below"`))
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if st, ok := n.(*ast.StructType); ok {
			for _, f := range st.Fields.List {
				check(f, f.Type, f.Doc, f.Comment)
			}
		}
		return true
	})
	for _, decl := range s.file.Decls {
		if d, ok := decl.(*ast.GenDecl); ok && d.Tok == token.VAR {
			for _, spec := range d.Specs {
				v := spec.(*ast.ValueSpec)
				check(v, v.Type, v.Doc, v.Comment, d.Doc)
			}
		}
	}
	return problems
}

// isMutex reports whether t is a mutex of package sync, or a pointer to one or
// an array of them.
func isMutex(t ast.Expr) bool {
	switch t := t.(type) {
	case *ast.StarExpr:
		return isMutex(t.X)
	case *ast.ArrayType:
		return isMutex(t.Elt)
	case *ast.SelectorExpr:
		x, ok := t.X.(*ast.Ident)
		return ok && x.Name == "sync" && (t.Sel.Name == "Mutex" || t.Sel.Name == "RWMutex")
	default:
		return false
	}
}

var longReason = regexp.MustCompile(`\blong:\s+\w+\s+\w+`)

// longFunctions refuses functions over maxFunctionLines whose comment does not
// give the reason.
func longFunctions(s source) (problems []string) {
	for _, decl := range s.file.Decls {
		d, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		lines := s.fset.Position(d.End()).Line - s.fset.Position(d.Pos()).Line + 1
		if lines > maxFunctionLines && !longReason.MatchString(d.Doc.Text()) {
			problems = append(problems, s.problem(d, "%s has %d lines, more than %d: split it, "+
				`or give the reason in its comment after the word "long:"`, d.Name.Name, lines, maxFunctionLines))
		}
	}
	return problems
}

// TestSourceRules shows each rule text that it must pass and text that it must
// refuse. The text is the body of a file of package p.
func TestSourceRules(t *testing.T) {
	body := func(lines int) string { return "{\n" + strings.Repeat("\tf()\n", lines-2) + "}\n" }
	later := "TO" + "DO" // so that this file may be looked at by the rule
	tests := []struct {
		rule func(source) []string
		text string
		bad  int // number of problems
	}{
		{sleeps, `import "time"; func f() { time.Sleep(1) }`, 1},
		{sleeps, `import clock "time"; func f() { defer clock.Sleep(1) }`, 1},
		{sleeps, `import "time"; var wait = time.Sleep`, 1},
		{sleeps, `import "time"; func f() { time.After(1) }`, 0},
		{sleeps, `import "example.com/time2"; func f() { time2.Sleep(1) }`, 0},

		{unfinished, "// " + later + ": faster\n", 1},
		{unfinished, "//" + later + "(me): faster\n", 1},
		{unfinished, "func f() { f() // FIX" + "ME\n}", 1},
		{unfinished, "/* Good.\n * " + later + " better\n */", 1},
		{unfinished, "// The word " + later + " inside a sentence, and " + later + "s.\n", 0},
		{unfinished, `const s = "// ` + later + `"`, 0},

		{undocumented, `func F() {}`, 1},
		{undocumented, "// F does.\nfunc F() {}", 0},
		{undocumented, `func f() {}`, 0},
		{undocumented, `type T struct{}`, 1},
		{undocumented, "// T is.\ntype T struct {\n\tA, B int\n}", 2},
		{undocumented, "// T is.\ntype T struct {\n\tA, B int // bytes\n\n\t// C is.\n\tC int\n\td int\n}", 0},
		{undocumented, "// T is.\ntype T struct {\n\t// A and B are.\n\tA int\n\tB int\n\n\tC int\n}", 1},
		{undocumented, "// T is.\ntype T struct {\n\tA int\n\t// B is.\n\tB int\n}", 1},
		{undocumented, "// T is.\ntype T interface {\n\t// M does.\n\tM()\n\tN()\n}", 1},
		{undocumented, "type t struct {\n\tA int\n}", 0},
		{undocumented, "// T is.\ntype T[K, V any] struct{}\n\nfunc (t *T[K, V]) M() {}", 1},
		{undocumented, "// T is.\ntype T[K any] struct{}\n\nfunc (t T[K]) M() {}", 1},
		{undocumented, "// T is.\ntype T int\n\nfunc (t T) String() string { return `` }", 0},
		{undocumented, "type t int\n\nfunc (t t) M() {}", 0},
		{undocumented, `const A, b = 1, 2`, 1},
		{undocumented, "// The limits.\nconst (\n\tA = 1\n\tB = 2\n)", 0},
		{undocumented, "var (\n\tErrA = 1 // means A\n\n\tErrB = 2\n)", 1},

		{silentMutexes, "type t struct {\n\tmu sync.Mutex\n\tn int\n}", 1},
		{silentMutexes, "type t struct {\n\tmu sync.RWMutex // the lock\n}", 1},
		{silentMutexes, "type t struct {\n\tsync.Mutex\n}", 1},
		{silentMutexes, "type t struct {\n\tmus [4]sync.Mutex\n\tp *sync.Mutex\n}", 2},
		{silentMutexes, "func f() { var s struct{ mu sync.Mutex } }", 1},
		{silentMutexes, "var mu sync.Mutex", 1},
		{silentMutexes, "// mu guards all.\nvar mu sync.Mutex", 0},
		{silentMutexes, "type t struct {\n\tmu sync.Mutex // guards n\n\tn int\n}", 0},
		{silentMutexes, "type t struct {\n\t// mu protects n.\n\tmu sync.Mutex\n\tn int\n}", 0},
		{silentMutexes, "type t struct {\n\tonce sync.Once\n}", 0},

		{longFunctions, "func f() " + body(maxFunctionLines), 0},
		{longFunctions, "func f() " + body(maxFunctionLines+1), 1},
		{longFunctions, "// f is long: the\n// cases are one table.\nfunc f() " + body(maxFunctionLines+1), 0},
		{longFunctions, "// f is long:\nfunc f() " + body(maxFunctionLines+1), 1},
		{longFunctions, "// f takes long.\nfunc (t *t) f() " + body(maxFunctionLines+1), 1},
	}
	for _, tt := range tests {
		s, err := parse("p.go", []byte("package p\n\n"+tt.text))
		require.NoError(t, err, tt.text)
		got := tt.rule(s)
		assert.Len(t, got, tt.bad, "%.80s", tt.text)
		for _, problem := range got {
			assert.Regexp(t, `^p\.go:\d+: `, problem)
		}
	}
}

// isTest reports whether name is compiled only by go test.
func isTest(name string) bool { return strings.HasSuffix(path.Base(name), "_test.go") }
