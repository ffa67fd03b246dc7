// Command noskip runs go test in one module after another and fails when a
// test failed, when a test was skipped, or when no test ran at all.
//
//	go run ./internal/lint/noskip [-counts file] module... -- argument...
//
// A module is a folder that holds a go.mod; the arguments are those of go test.
// A skipped test looks like a passed one in the summary of go test, so a
// machine without a database would report a green run that proves nothing.
//
// It prints one line for each package, the longest tests of one that takes more
// than a minute, and the whole output of each test that failed. The last line
// reads "12 passed, 0 failed, 0 skipped"; -counts also appends these three
// numbers, separated by spaces, to a file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
}

// run is main with its surroundings as arguments. Its error says why the run
// is not green; what failed is on stdout by then.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("noskip", flag.ContinueOnError)
	flags.SetOutput(stderr)
	counts := flags.String("counts", "", "append passed, failed and skipped to this `file`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	modules, testArgs, err := split(flags.Args())
	if err != nil {
		return err
	}

	var sum tally
	var errs []error
	for _, dir := range modules {
		fmt.Fprintf(stdout, "== %s\n", dir)
		t, err := testModule(ctx, dir, testArgs, stdout, stderr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
		}
		sum.add(t)
	}
	fmt.Fprintf(stdout, "%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped)
	if *counts != "" {
		errs = append(errs, appendCounts(*counts, sum))
	}
	return errors.Join(append(errs, sum.verdict())...)
}

// split cuts the arguments at "--" into modules and arguments of go test.
func split(args []string) (modules, testArgs []string, err error) {
	i := slices.Index(args, "--")
	if i <= 0 {
		return nil, nil, errors.New(`want arguments "[-counts file] module... -- argument..."`)
	}
	return args[:i], args[i+1:], nil
}

// testModule runs go test in dir. Failed and skipped tests are in the tally;
// the error is for a run that the tally does not explain.
func testModule(ctx context.Context, dir string, args []string, stdout, stderr io.Writer) (tally, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir = dir
	cmd.Stderr = stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return tally{}, err
	}
	if err := cmd.Start(); err != nil {
		return tally{}, err
	}
	t, readErr := summarize(events, stdout)
	err = cmd.Wait()
	if t.failed > 0 && ctx.Err() == nil {
		err = nil // the exit status says nothing new
	}
	return t, errors.Join(err, readErr)
}

// appendCounts adds one line to the file, so that several runs can share it.
func appendCounts(name string, t tally) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, t.passed, t.failed, t.skipped)
	return errors.Join(err, f.Close())
}
