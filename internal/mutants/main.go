// Command mutants removes each guard of the protocol in turn and demands that
// the test named for it goes red.
//
//	go run ./internal/mutants            every guard; exit status 1 if one survives
//	go run ./internal/mutants -list      the table, as Markdown
//	go run ./internal/mutants -run fence guards whose name contains the text
//	go run ./internal/mutants -test 'TestSim$' -v   whether the simulation notices, and by which seed
//
// The working tree is not touched: the mutant is given to the compiler as an
// overlay. Run it from the root of the repository.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	only := flag.String("run", "", "only guards whose name contains this")
	other := flag.String("test", "", "a test of the root package to run in place of the ones that are named")
	verbose := flag.Bool("v", false, "print the output of the red tests")
	flag.Parse()
	if *list {
		fmt.Print(table())
		return
	}
	survived, run := 0, 0
	for _, g := range guards {
		if !strings.Contains(g.name, *only) {
			continue
		}
		if *other != "" {
			g.test, g.module, g.pkg = *other, "", ""
		}
		run++
		began := time.Now()
		out, err := g.remove()
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
	fmt.Printf("%d guards removed, %d not noticed\n", run, survived)
	if survived > 0 || run == 0 {
		os.Exit(1)
	}
}

// remove runs the guard's test without the guard. The error says why that did
// not prove anything.
func (g *guard) remove() (output string, err error) {
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
	cmd := exec.Command("go", "test", "-overlay", list, "-count=1", "-timeout=120s", "-vet=off", "-run", g.test, pkg)
	cmd.Dir = g.module
	b, err := cmd.CombinedOutput()
	return string(b), judge(string(b), err)
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
