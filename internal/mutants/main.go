// Command mutants removes each guard of the protocol in turn and demands that
// the test named for it goes red.
//
//	go run ./internal/mutants            every guard; exit status 1 if one survives
//	go run ./internal/mutants -list      the table, as Markdown
//	go run ./internal/mutants -run fence guards whose name matches the regular expression
//	go run ./internal/mutants -test 'TestSim$' -v   whether the simulation notices, and by which seed
//
// The working tree is not touched: the mutants are given to the compiler as an
// overlay. All that can be are woven into one build of each package's tests, and
// switched on one at a time by an environment variable; a test counts only if it
// is green with none switched on. What cannot be woven, and what stayed green so,
// is built on its own: that verdict counts. Such builds have a cache of their own,
// emptied after each, since in Go's they would leave tens of gigabytes.
//
// Run it from the root of the repository.
package main

import (
	"encoding/json"
	"errors"
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
	names, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	var chosen []guard
	for _, g := range guards {
		if !names.MatchString(g.name) {
			continue
		}
		if *other != "" {
			g.test, g.module, g.pkg = *other, "", ""
		}
		chosen = append(chosen, g)
	}
	r, err := newRunner(chosen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	survived := 0
	for i := range chosen {
		g := &chosen[i]
		began := time.Now()
		out, err := r.remove(i)
		if errors.Is(err, errNotWoven) {
			fmt.Fprintf(os.Stderr, "mutants: %v\n%s", err, out)
			os.Exit(1)
		}
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
	_ = os.RemoveAll(r.dir) // what is left is the system's to clean
	fmt.Printf("%d guards removed, %d of them by a switch, %d not noticed\n", len(chosen), r.switched, survived)
	if survived > 0 || len(chosen) == 0 {
		os.Exit(1)
	}
}

// A runner removes guards, by a switch where it can.
type runner struct {
	guards   []guard
	dir      string          // of all that is written
	overlay  string          // the file that names what is woven
	woven    map[string]bool // the guards that are, by name
	binaries map[string]*binary
	switched int // how many guards were seen red by a switch
}

// A binary is the woven tests of a package.
type binary struct {
	path  string
	green map[string]bool // the tests that are green with every guard
}

// orphans is how long a test's output is waited for when the test has ended: one that goes
// red in the middle may leave a process behind that it has stopped.
const orphans = 5 * time.Second

func newRunner(guards []guard) (*runner, error) {
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return nil, err
	}
	r := &runner{guards: guards, dir: dir, binaries: map[string]*binary{}}
	var files map[string]string
	if files, r.woven, err = weave(guards, dir); err != nil {
		return nil, err
	}
	r.overlay, err = writeOverlay(dir, files)
	return r, err
}

// writeOverlay writes what -overlay wants: the files that stand in for others.
func writeOverlay(dir string, files map[string]string) (path string, err error) {
	text, err := json.Marshal(map[string]map[string]string{"Replace": files})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, text, 0o600)
}

// remove runs the test of guard i without it. The error says why that did not
// prove anything.
func (r *runner) remove(i int) (output string, err error) {
	g := &r.guards[i]
	if r.woven[g.name] {
		output, err = r.switchOff(i)
		if err == nil {
			r.switched++
		}
		if err == nil || errors.Is(err, errNotWoven) {
			return output, err
		}
		fmt.Printf("      %s, by a switch: %v; on its own:\n", g.name, err)
	}
	return g.remove(buildCache(filepath.Join(r.dir, "cache")))
}

// switchOff does that in the woven binary of the test's package.
func (r *runner) switchOff(i int) (output string, err error) {
	g := &r.guards[i]
	dir := filepath.Join(g.module, g.pkg)
	b := r.binaries[dir]
	if b == nil {
		b = &binary{filepath.Join(r.dir, fmt.Sprintf("%d.test", len(r.binaries))), map[string]bool{}}
		r.binaries[dir] = b
		cmd := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-gcflags=-e", "-overlay", r.overlay, "-o", b.path, "./"+g.pkg)
		cmd.Dir = g.module
		if out, err := cmd.CombinedOutput(); err != nil {
			return string(out), errNotWoven
		}
	}
	run := func(number int) (string, error) {
		cmd := exec.Command(b.path, "-test.timeout=60s", "-test.run", g.test)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", switchVar, number))
		cmd.WaitDelay = orphans
		out, err := cmd.CombinedOutput()
		return string(out), judge(string(out), err)
	}
	if !b.green[g.test] {
		output, err := run(0)
		if err != errGreen {
			return output, fmt.Errorf("%s is not green with every guard: %v", g.test, err)
		}
		b.green[g.test] = true
	}
	return run(i + 1)
}

// remove runs the guard's test without the guard, in a build of their own. The
// error says why that did not prove anything.
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
	list, err := writeOverlay(dir, map[string]string{original: mutant})
	if err != nil {
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
		cmd.WaitDelay = orphans
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

var (
	errGreen    = errors.New("the test stays green")
	errNotWoven = errors.New("one of the mutants does not compile")
)

// judge tells a test that went red from one that stayed green, did not run, or
// did not compile.
func judge(output string, err error) error {
	switch {
	case strings.Contains(output, "no tests to run"):
		return fmt.Errorf("the test does not exist")
	case strings.Contains(output, "[build failed]"), strings.Contains(output, "[setup failed]"):
		return fmt.Errorf("the mutant does not compile")
	case err == nil:
		return errGreen
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
