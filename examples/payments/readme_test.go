package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The README is followed word by word: each command is run, and prints what stands
// below it.
func TestReadme(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		tour := &tour{t: t, store: store, dir: t.TempDir()}
		steps := stepsOf(t, "console")
		require.Greater(t, len(steps), 15, "commands in the README")
		for _, s := range steps {
			tour.take(s)
		}
		require.Nil(t, tour.service, "the tour ends with a service that is stopped")
	})
}

// Commands that need a PostgreSQL or another process at known addresses are not run;
// their flags are there.
func TestReadme_FlagsExist(t *testing.T) {
	runs := 0
	for _, s := range stepsOf(t, "sh") {
		for line := range strings.Lines(s.command) {
			if args, ours := strings.CutPrefix(line, "go run . "); ours {
				runs++
				_, err := parse(strings.Fields(args), t.Output())
				assert.NoError(t, err, line)
			}
		}
	}
	assert.Equal(t, 3, runs)
}

// A step is a command of the README, and what it prints.
type step struct {
	command string
	prints  []string
}

// stepsOf returns the steps of the README's blocks of a language: in console a step
// begins with "$ " or is "^C", in sh each block is one.
func stepsOf(t *testing.T, language string) (steps []step) {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		if language == "sh" {
			steps = append(steps, step{command: block[1]})
			continue
		}
		continues := false
		for line := range strings.SplitSeq(strings.TrimSuffix(block[1], "\n"), "\n") {
			command, begins := strings.CutPrefix(line, "$ ")
			switch {
			case begins || line == "^C":
				steps = append(steps, step{command: command})
			case continues:
				steps[len(steps)-1].command += "\n" + line
			default:
				require.NotEmpty(t, steps, "a block begins with a command")
				last := &steps[len(steps)-1]
				last.prints = append(last.prints, line)
				continue
			}
			continues = strings.HasSuffix(line, "|")
		}
	}
	return steps
}

// A tour is somebody who follows the README.
type tour struct {
	t       *testing.T
	store   string
	dir     string
	service *service
	slept   bool // for something that takes an unknown time
}

// take runs the command of a step and compares what it prints.
func (o *tour) take(s step) {
	o.t.Helper()
	defer func(began time.Time) { o.t.Log(time.Since(began), s.command) }(time.Now())
	args, starts := strings.CutPrefix(s.command, "go run . ")
	switch {
	case starts:
		o.service = start(o.t, strings.Fields(o.here(args))...)
		o.logs(s)
	case s.command == "^C":
		o.service.stop()
		o.logs(s)
		o.service = nil
	default:
		// Who was told to sleep a second may have to sleep longer, on a machine like
		// this. Nothing else is tried twice.
		want := regexp.MustCompile(`^` + o.pattern(s.prints) + `$`)
		printed := o.shell(s.command)
		for end := time.Now().Add(patience); o.slept && !want.MatchString(printed) && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
			printed = o.shell(s.command)
		}
		assert.Regexp(o.t, want, printed, "$ %s\nprints\n%s\nand the README says\n%s", s.command, printed, strings.Join(s.prints, "\n"))
		o.slept = o.slept || strings.HasPrefix(s.command, "sleep ")
	}
}

// shell runs a command and returns what it prints.
func (o *tour) shell(command string) string {
	o.t.Helper()
	cmd := exec.CommandContext(o.t.Context(), "sh", "-c", o.here(command))
	cmd.Dir = o.dir
	if strings.HasPrefix(command, "go run ") {
		cmd.Dir = "."
	}
	cmd.Stderr = o.t.Output()
	printed, err := cmd.Output()
	require.NoError(o.t, err, command)
	return string(printed)
}

// logs waits until the service has logged what the README shows, in any order.
func (o *tour) logs(s step) {
	o.t.Helper()
	for _, line := range s.prints {
		o.service.says(`(?m)^` + o.pattern([]string{line}))
	}
}

// here replaces addresses and the database of the README by those of the test.
func (o *tour) here(text string) string {
	text = strings.ReplaceAll(text, "payments.db", o.store)
	if o.service != nil {
		text = strings.NewReplacer(
			"127.0.0.1:8081", o.service.replicas[0],
			"127.0.0.1:8082", o.service.replicas[1],
			"nats://127.0.0.1:4222", o.service.nats,
		).Replace(text)
	}
	return text
}

var (
	varying  = regexp.MustCompile(`(Balance-Age: |Date: |"(?:Hits|Loads|Fresh)":).*`)
	varies   = map[string]string{"Balance-Age: ": `[0-9.]+(µs|ms|s)`, "Date: ": `.* GMT`, `"Hits":`: `\d+`, `"Loads":`: `\d+`, `"Fresh":`: `"[0-9.]+(µs|ms|s)"`}
	spacing  = regexp.MustCompile(`^ +`)
	elisions = regexp.MustCompile(`\\\.\\\.\\\.`)
)

// pattern returns what matches output like that which is shown: but for dates, ages,
// counts and what was left out, to the letter.
func (o *tour) pattern(shown []string) string {
	var lines []string
	for _, line := range shown {
		p := elisions.ReplaceAllString(regexp.QuoteMeta(o.here(line)), `.*`)
		if m := varying.FindStringSubmatch(line); m != nil {
			p = regexp.QuoteMeta(m[1]) + varies[m[1]]
		}
		lines = append(lines, spacing.ReplaceAllString(p, ` *`)+`\r?\n`)
	}
	return strings.Join(lines, "")
}

// What the tour leaves behind is not committed.
func TestReadme_LeavesNothing(t *testing.T) {
	ignored, err := os.ReadFile(".gitignore")
	require.NoError(t, err)
	for _, name := range []string{"payments.db", "payments.db-wal", "jar"} {
		matches := false
		for pattern := range strings.Lines(string(ignored)) {
			ok, err := filepath.Match(strings.TrimPrefix(strings.TrimSpace(pattern), "/"), name)
			require.NoError(t, err)
			matches = matches || ok
		}
		assert.True(t, matches, name)
	}
}
