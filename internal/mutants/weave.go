package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// switchVar is the environment variable that says which guard a woven test
// binary is to run without. 0, or none, is none.
const switchVar = "TIDEMARK_MUTANT"

// weave returns an overlay with which the compiler sees all mutants at once, and
// says which guards are in it: a function with guards is there once more for
// each, without it, and begins with a switch that chooses. So a package's mutants
// are one build, and not hundreds. What a function cannot be copied for is left
// out: guards in constants, types and signatures, and in functions that must be
// called by defer itself, since they recover.
//
// The overlay's files are written to dir.
func weave(guards []guard, dir string) (overlay map[string]string, woven map[string]bool, err error) {
	overlay, woven = map[string]string{}, map[string]bool{}
	files := map[string][]int{} // the numbers of the guards in a file
	for i, g := range guards {
		files[g.file] = append(files[g.file], i)
	}
	write := func(original, name, text string) error {
		original, err := filepath.Abs(original)
		if err != nil {
			return err
		}
		overlay[original] = filepath.Join(dir, name)
		return os.WriteFile(overlay[original], []byte(text), 0o600)
	}
	for file, in := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		text, pkg, done, err := weaveFile(string(source), guards, in)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, i := range done {
			woven[guards[i].name] = true
		}
		flat := strings.ReplaceAll(file, "/", "-")
		if err := write(file, flat, text); err != nil {
			return nil, nil, err
		}
		const read = "package %s\n\nimport (\n\t\"os\"\n\t\"strconv\"\n)\n\nvar mutant__, _ = strconv.Atoi(os.Getenv(%q))\n"
		folder := filepath.Dir(file)
		if err := write(filepath.Join(folder, "mutant.go"), strings.ReplaceAll(folder, "/", "-")+"-mutant.go", fmt.Sprintf(read, pkg, switchVar)); err != nil {
			return nil, nil, err
		}
	}
	return overlay, woven, nil
}

// An edit puts text in the place of [at, end).
type edit struct {
	at, end int
	text    string
}

// weaveFile returns the text of a file with the mutants of the guards of these
// numbers in it, the name of its package, and the numbers that it has done.
func weaveFile(text string, guards []guard, numbers []int) (woven, pkg string, done []int, err error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", text, parser.SkipObjectResolution)
	if err != nil {
		return "", "", nil, err
	}
	at := func(p token.Pos) int { return fset.Position(p).Offset }
	var edits []edit
	var mutants strings.Builder
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil || fn.Name.Name == "init" || fn.Name.Name == "main" || recovers(fn) {
			continue
		}
		begin, name, body, end := at(fn.Pos()), at(fn.Name.Pos()), at(fn.Body.Lbrace), at(fn.Body.Rbrace)+1
		call, named, ok := redirect(fn, at)
		if !ok {
			continue
		}
		var cases strings.Builder
		for _, i := range numbers {
			g := &guards[i]
			old := strings.Index(text, g.old)
			if old <= body || old+len(g.old) > end || strings.Count(text, g.old) != 1 {
				continue
			}
			copied := fmt.Sprintf("%s__%d", fn.Name.Name, i+1)
			fmt.Fprintf(&mutants, "\n%s%s%s%s%s\n", text[begin:name], copied, text[name+len(fn.Name.Name):old], g.new, text[old+len(g.old):end])
			fmt.Fprintf(&cases, " case %d: %s;", i+1, fmt.Sprintf(call, copied))
			done = append(done, i)
		}
		if cases.Len() > 0 {
			edits = append(append(edits, named...), edit{body + 1, body + 1, " switch mutant__ {" + cases.String() + " };"})
		}
	}
	slices.SortFunc(edits, func(a, b edit) int { return b.at - a.at })
	woven = text
	for _, e := range edits { // from the last to the first, so that offsets hold
		woven = woven[:e.at] + e.text + woven[e.end:]
	}
	return woven + mutants.String(), file.Name.Name, done, nil
}

// redirect returns the statement by which a function hands its call on to
// another of the same signature, %s for its name, and the edits that name the
// parameters it needs for that. It is not ok if a parameter stands there as a
// type alone.
func redirect(fn *ast.FuncDecl, at func(token.Pos) int) (call string, named []edit, ok bool) {
	count := 0
	nameOf := func(id *ast.Ident) string {
		if id.Name != "_" {
			return id.Name
		}
		count++
		name := "p" + strconv.Itoa(count) + "__"
		named = append(named, edit{at(id.Pos()), at(id.End()), name})
		return name
	}
	call = "%s"
	if fn.Recv != nil {
		if len(fn.Recv.List[0].Names) == 0 {
			return "", nil, false
		}
		call = nameOf(fn.Recv.List[0].Names[0]) + ".%s"
	}
	if fn.Type.TypeParams != nil {
		var types []string
		for _, f := range fn.Type.TypeParams.List {
			for _, id := range f.Names {
				types = append(types, id.Name)
			}
		}
		call += "[" + strings.Join(types, ", ") + "]"
	}
	var args []string
	for _, f := range fn.Type.Params.List {
		if len(f.Names) == 0 {
			return "", nil, false
		}
		for _, id := range f.Names {
			arg := nameOf(id)
			if _, variadic := f.Type.(*ast.Ellipsis); variadic {
				arg += "..."
			}
			args = append(args, arg)
		}
	}
	call += "(" + strings.Join(args, ", ") + ")"
	if fn.Type.Results != nil {
		return "return " + call, named, true
	}
	return call + "; return", named, true
}

// recovers reports whether the function itself, not one inside it, calls recover.
func recovers(fn *ast.FuncDecl) bool {
	found := false
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "recover" {
				found = true
			}
		}
		return !found
	})
	return found
}
