// Command tidemark shows and operates the caches of this module: it replays the
// incident that they exist for, tells running replicas what changed, and shows
// what they tell each other. Run "tidemark help" for the list.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit statuses of every subcommand.
const (
	exitOK     = 0
	exitFailed = 1 // the subcommand did its work, and the answer is bad; or it could not
	exitUsage  = 2 // it was asked in a way it does not understand
)

// A command is one subcommand. run returns the exit status.
type command struct {
	name, summary string
	run           func(ctx context.Context, args []string, std streams) int
}

// streams are what a subcommand reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

var commands = []command{
	{"storm", "replay lost, late, doubled and reordered messages against several caches", runStorm},
	{"invalidate", "tell the replicas of a cache that keys changed", runInvalidate},
	{"watch", "print what the replicas of a cache tell each other", runWatch},
	{"outbox", "have PostgreSQL write down what changes in a table", runOutbox},
	{"relay", "tell the replicas of a cache what PostgreSQL has written down", runRelay},
	{"top", "show the replicas of a cache, and what they do, while you look", runTop},
	{"inspect", "ask every replica, and the source, for the version of a key, and why", runInspect},
	{"audit", "let every replica compare its memory with the source, and say what it found", runAudit},
	{"bypass", "let no replica serve anything from memory, or let them serve again", runBypass},
	{"doctor", "look for what is wrong with a cache's streams, permissions, clocks and options", runDoctor},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

// run finds the subcommand and runs it.
func run(ctx context.Context, args []string, std streams) int {
	if len(args) == 0 {
		usage(std.err)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		if len(args) == 2 {
			args = []string{args[1], "-h"}
			break
		}
		usage(std.out)
		return exitOK
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:], std)
		}
	}
	fmt.Fprintf(std.err, "tidemark: unknown command %q\n\n", args[0])
	usage(std.err)
	return exitUsage
}

// isTerminal reports whether stream is a person's terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: tidemark <command> [flags]\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-11s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\n\"tidemark <command> -h\" explains a command.\n")
}

// newFlags returns the flags of a subcommand, which are explained below its usage.
func newFlags(command, usage string, std streams) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(std.err)
	flags.Usage = func() {
		fmt.Fprint(std.err, usage)
		flags.PrintDefaults()
	}
	return flags
}

// parse parses the flags of a subcommand and makes the checks, until one of them finds
// a mistake. If done is true, the subcommand ends with status.
func parse(std streams, flags *flag.FlagSet, args []string, checks ...func() error) (status int, done bool) {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK, true
	case err != nil:
		return exitUsage, true // flags has said what is wrong
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return complain(std, flags.Name(), err), true
		}
	}
	return exitOK, false
}

// noArguments checks that nothing stands behind the flags.
func noArguments(flags *flag.FlagSet) func() error {
	return func() error {
		if flags.NArg() > 0 {
			return fmt.Errorf("unexpected argument %q", flags.Arg(0))
		}
		return nil
	}
}

// complain reports a mistake in the arguments of a subcommand.
func complain(std streams, command string, err error) int {
	fmt.Fprintf(std.err, "tidemark %s: %v\n", command, err)
	return exitUsage
}

// fail reports that a subcommand could not do its work. What others have answered may be
// in err.
func fail(std streams, command string, err error) int {
	lines := strings.Split(err.Error(), "\n") // an error each, if there are several
	for i, line := range lines {
		lines[i] = printable(line)
	}
	fmt.Fprintf(std.err, "tidemark %s: %s\n", command, strings.Join(lines, "\n"))
	return exitFailed
}

// printJSON prints a value as JSON for people.
func printJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(value)
}
