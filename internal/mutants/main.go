// Command mutants removes each guard of the protocol in turn and demands that
// the test named for it goes red.
//
//	go run ./internal/mutants            every guard; exit status 1 if one survives
//	go run ./internal/mutants -list      the table, as Markdown
//	go run ./internal/mutants -run fence guards whose name matches the regular expression
//	go run ./internal/mutants -test 'TestSim$' -v   whether the simulation notices, and by which seed
//
// The working tree is not touched: the mutant is given to the compiler as an
// overlay. Nor is Go's build cache, in which hundreds of mutants would leave tens
// of gigabytes: a cache of its own is emptied after each. Run it from the root of
// the repository.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// A guard is one line of defence, and how to remove it.
type guard struct {
	name   string
	file   string // from the root of the repository
	old    string // occurs once in file
	new    string // what stands there without the guard
	breaks string // what goes wrong then
	test   string // the test that shows it, a regular expression for -run
	module string // folder of the test's module; "" is the root
	pkg    string // the test's package in it; "" is "."
}

func main() {
	list := flag.Bool("list", false, "print the table and exit")
	only := flag.String("run", "", "only guards whose name matches this `regexp`")
	other := flag.String("test", "", "a test of the root package to run in place of the ones that are named")
	verbose := flag.Bool("v", false, "print the output of the red tests")
	flag.Parse()
	if *list {
		fmt.Print(table())
		return
	}
	cache, err := os.MkdirTemp("", "mutants")
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	names, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	survived, run := 0, 0
	for _, g := range guards {
		if !names.MatchString(g.name) {
			continue
		}
		if *other != "" {
			g.test, g.module, g.pkg = *other, "", ""
		}
		run++
		began := time.Now()
		out, err := g.remove(buildCache(cache))
		verdict := "red "
		if err != nil {
			verdict = "GREEN"
			survived++
		}
		fmt.Printf("%s %-58s %5.1fs  %s\n", verdict, g.name, time.Since(began).Seconds(), g.test)
		if err != nil {
			fmt.Printf("     %v\n", err)
		}
		if *verbose || err != nil {
			fmt.Println(out)
		}
	}
	_ = os.RemoveAll(cache) // what is left is the system's to clean
	fmt.Printf("%d guards removed, %d not noticed\n", run, survived)
	if survived > 0 || run == 0 {
		os.Exit(1)
	}
}

// remove runs the guard's test without the guard. The error says why that did
// not prove anything.
func (g *guard) remove(cache buildCache) (output string, err error) {
	text, err := os.ReadFile(g.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), g.old); n != 1 {
		return "", fmt.Errorf("the text of the guard occurs %d times in %s", n, g.file)
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	mutant := filepath.Join(dir, filepath.Base(g.file))
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(text), g.old, g.new, 1)), 0o600); err != nil {
		return "", err
	}
	original, err := filepath.Abs(g.file)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutant}})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	pkg := g.pkg
	if pkg == "" {
		pkg = "."
	}
	test := func(args ...string) *exec.Cmd {
		cmd := exec.Command("go", append([]string{"test", "-count=1", "-timeout=120s", "-vet=off", "-ldflags=-s -w"}, append(args, pkg)...)...)
		cmd.Dir = g.module
		cmd.Env = append(os.Environ(), "GOCACHE="+string(cache))
		return cmd
	}
	if out, err := test("-run", "^$").CombinedOutput(); err != nil { // what the mutants share is built once
		return string(out), fmt.Errorf("the test does not compile with the guard: %w", err)
	}
	defer cache.forget(time.Now())
	b, err := test("-overlay", list, "-run", g.test).CombinedOutput()
	return string(b), judge(string(b), err)
}

// A buildCache is a folder for GOCACHE.
type buildCache string

// forget removes what was built since then.
func (c buildCache) forget(since time.Time) {
	_ = filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what cannot be removed only takes room
		}
		if info, err := d.Info(); err == nil && info.ModTime().After(since) && filepath.Dir(path) != string(c) {
			_ = os.Remove(path)
		}
		return nil
	})
}

// judge tells a test that went red from one that stayed green, did not run, or
// did not compile.
func judge(output string, err error) error {
	switch {
	case strings.Contains(output, "no tests to run"):
		return fmt.Errorf("the test does not exist")
	case strings.Contains(output, "[build failed]"), strings.Contains(output, "[setup failed]"):
		return fmt.Errorf("the mutant does not compile")
	case err == nil:
		return fmt.Errorf("the test stays green")
	case strings.Contains(output, "--- FAIL"), strings.Contains(output, "panic:"), strings.Contains(output, "FAIL\t"):
		return nil
	default:
		return fmt.Errorf("go test: %w", err)
	}
}

// table returns the table of DESIGN.md.
func table() string {
	var b strings.Builder
	b.WriteString("| guard | where | what breaks without it | the test that goes red |\n|---|---|---|---|\n")
	for _, g := range guards {
		test := strings.ReplaceAll(g.test, "|", "`, `")
		fmt.Fprintf(&b, "| %s | `%s` | %s | `%s` |\n", g.name, g.file, g.breaks, test)
	}
	return b.String()
}
