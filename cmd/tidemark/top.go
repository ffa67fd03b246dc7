package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/term"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

const topUsage = `usage: tidemark top -name NAME [flags]

Top shows the replicas of a cache, one a line, and asks them anew every second,
until q or ctrl-C is pressed. Replicas answer if the program calls View.Serve of
package ops. It prints no key and no value.

  STATE    fresh and alone are well; joining: cut off, every read is a load;
           suspect: the log cannot be read, or no relay brings probes back through
           the database ("tidemark relay"), and entries grow old; bypassed: SetBypass
           is on; breaker open: the source is left alone; half-open: the
           next calls try it
  AGE      how old anything served from memory can be at most, as the log shows
  LAG      messages of the log that are not read yet; with -stream compared with
           the stream itself, else with the replica that has read most
  HIT      reads that memory could answer
  STALE    old values rejected: stale and unproven puts, refused loads, fills and
           writes
  SUSP     times when every entry became suspect
  HEARS    other replicas and publishers that it hears

HIT, READS, LOADS, STALE and SUSP are of the time since the question before, the
last four as so many a second; with -once, and of a replica that is new, they are
of the time since its start, as numbers.

`

// runTop is "tidemark top".
func runTop(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("top", topUsage, std)
	target.defineServer(flags)
	flags.BoolVar(&target.stream, "stream", false, "the cache has a JetStream stream, and this account may look at it")
	once := flags.Bool("once", false, "print one table and end; the status is 1 if nobody answers")
	interval := flags.Duration("interval", time.Second, "`time` between two questions")
	if status, done := parse(std, flags, args, target.validate, noArguments(flags)); done {
		return status
	}
	if *interval < 100*time.Millisecond {
		return complain(std, "top", fmt.Errorf("-interval is %v, want at least 100ms", *interval))
	}
	screen, onTerminal := std.out.(*os.File)
	if !*once && (!onTerminal || !isTerminal(screen)) {
		return complain(std, "top", errors.New("the output is no terminal: -once prints one table"))
	}
	nc, err := target.connect(nats.MaxReconnects(-1), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return fail(std, "top", err)
	}
	defer nc.Close()
	t := &topper{target: target, nc: nc}
	if *once {
		if err := t.sample(ctx); err != nil {
			return fail(std, "top", err)
		}
		if err := t.print(std.out, 0, 0); err != nil {
			return exitFailed
		}
		return exitOK
	}
	if err := t.watch(ctx, std.in, screen, *interval); err != nil {
		return fail(std, "top", err)
	}
	return exitOK
}

// A topper is what top knows.
type topper struct {
	target busTarget
	nc     *nats.Conn

	at       time.Time
	reports  []ops.Report
	before   map[string]ops.Report // the previous ones, by instance
	length   uint64                // of the log
	trouble  error                 // of the latest question
	unlooked error                 // why the stream was not looked at
}

// sample asks anew. It returns an error if nobody answers.
func (t *topper) sample(ctx context.Context) error {
	t.before = map[string]ops.Report{}
	for _, r := range t.reports {
		t.before[r.Instance] = r
	}
	t.length, t.unlooked = 0, nil
	if t.target.stream { // before the replicas, who else would lack what comes meanwhile
		t.length, t.unlooked = lastSequence(ctx, t.nc, t.target.name)
	}
	t.reports, t.trouble = ops.Ask(ctx, t.nc, t.target.name)
	t.at = time.Now()
	if !t.target.stream || t.unlooked != nil {
		for _, r := range t.reports {
			t.length = max(t.length, r.Stats.LogSeq)
		}
	}
	if len(t.reports) == 0 {
		return t.trouble
	}
	return nil
}

// lastSequence returns the number of the last message of the cache's stream.
func lastSequence(ctx context.Context, nc *nats.Conn, name string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, tidemark.NATSStreamName(name))
	if err != nil {
		return 0, fmt.Errorf("the stream: %w", err)
	}
	return s.CachedInfo().State.LastSeq, nil
}

// print prints the table. Lines are cut to width, and to height lines, unless that
// is 0.
func (t *topper) print(w io.Writer, width, height int) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "cache %s  %s  replicas: %d\n", t.target.name, t.at.Format("15:04:05"), len(t.reports))
	for _, err := range []error{t.trouble, t.unlooked} {
		if err != nil {
			fmt.Fprintf(&b, "%s\n", printable(err.Error()))
		}
	}
	b.WriteByte('\n')
	table := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "INSTANCE\tSTATE\tAGE\tLAG\tHIT\tREADS\tLOADS\tSTALE\tSUSP\tHEARS\tENTRIES\tBACKLOG\tDOUBT")
	for _, r := range t.reports {
		fmt.Fprintln(table, strings.Join(t.line(r), "\t"))
	}
	_ = table.Flush() // to a buffer
	for _, r := range t.reports {
		for _, warning := range r.Warnings {
			fmt.Fprintf(&b, "\n%s: %s", printable(r.Instance), printable(warning))
		}
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	for i, line := range lines {
		if runes := []rune(line); width > 0 && len(runes) > width {
			lines[i] = string(runes[:width])
		}
	}
	end := "\n"
	if height > 0 {
		end = "\x1b[K\r\n" // the rest of the line is an old one's
	}
	_, err := io.WriteString(w, strings.Join(lines, end)+end)
	return err
}

// line returns the columns of one replica.
func (t *topper) line(r ops.Report) []string {
	s := r.Stats
	age, lag := "-", "-"
	if s.Fresh >= 0 {
		age = s.Fresh.Round(time.Millisecond).String()
	}
	if r.Settings.Log {
		lag = fmt.Sprint(t.length - min(s.LogSeq, t.length))
	}
	state := s.State.String()
	if s.Bypassed {
		state += ", bypassed"
	}
	if s.Shadow {
		state += ", shadow"
	}
	if s.Breaker == tidemark.BreakerHalfOpen || s.Breaker == tidemark.BreakerOpen {
		state += ", breaker " + s.Breaker.String()
	}
	per := time.Duration(0)
	old, again := t.before[r.Instance]
	if again && r.Time.After(old.Time) && !restarted(old.Stats, s) {
		per = r.Time.Sub(old.Time)
	} else {
		old = ops.Report{}
	}
	hits, misses := s.Hits-old.Stats.Hits, s.Misses-old.Stats.Misses
	hit := "-"
	if hits+misses > 0 {
		hit = fmt.Sprintf("%.1f%%", 100*float64(hits)/float64(hits+misses))
	}
	return []string{
		printable(r.Instance), state, age, lag, hit, rate(hits+misses, per), rate(s.Loads-old.Stats.Loads, per),
		rate(rejected(s)-rejected(old.Stats), per), rate(s.Suspicions-old.Stats.Suspicions, per),
		fmt.Sprint(s.Peers), fmt.Sprint(s.Entries), fmt.Sprint(s.Backlog), fmt.Sprint(s.InDoubt),
	}
}

// restarted reports whether a counter that is shown has fallen.
func restarted(before, now tidemark.Stats) bool {
	return now.Hits < before.Hits || now.Misses < before.Misses || now.Loads < before.Loads ||
		now.Suspicions < before.Suspicions || rejected(now) < rejected(before)
}

// rejected counts old values that were kept out.
func rejected(s tidemark.Stats) uint64 { return s.Refused + s.Stale + s.Unproven }

// rate returns n a second, or, if there is no time, n.
func rate(n uint64, per time.Duration) string {
	if per <= 0 {
		return fmt.Sprint(n)
	}
	switch a := float64(n) / per.Seconds(); {
	case a >= 100e3:
		return fmt.Sprintf("%.0fk/s", a/1e3)
	case a >= 10 || a == 0:
		return fmt.Sprintf("%.0f/s", a)
	default:
		return fmt.Sprintf("%.1f/s", a)
	}
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the alternate one, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	homeScreen  = "\x1b[H"
	clearRest   = "\x1b[J"
)

// watch redraws the table until ctx ends, q or ctrl-C is pressed, or the terminal
// is gone.
func (t *topper) watch(ctx context.Context, in io.Reader, screen *os.File, interval time.Duration) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if keyboard, ok := in.(*os.File); ok && term.IsTerminal(int(keyboard.Fd())) {
		state, err := term.MakeRaw(int(keyboard.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(keyboard.Fd()), state) }() // what else could be done
	}
	go func() { // until the process ends: a read of a terminal cannot be called off
		defer cancel()
		key := make([]byte, 1)
		for {
			if n, err := in.Read(key); err != nil || n == 1 && (key[0] == 'q' || key[0] == 'Q' || key[0] == 3) {
				return
			}
		}
	}()
	if _, err := io.WriteString(screen, enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(screen, leaveScreen) }()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		_ = t.sample(ctx) // it is shown
		if ctx.Err() != nil {
			return nil
		}
		width, height, err := term.GetSize(int(screen.Fd()))
		if err != nil || width <= 0 || height <= 1 {
			width, height = 80, 24
		}
		if _, err := io.WriteString(screen, homeScreen); err != nil {
			return err
		}
		if err := t.print(screen, width, height-1); err != nil {
			return err
		}
		if _, err := io.WriteString(screen, "q: quit\x1b[K"+clearRest); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
