package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
	"github.com/tidemark-go/tidemark/ops"
)

const doctorUsage = `usage: tidemark doctor -name NAME [flags]

Doctor looks for what is wrong around a cache, and says what to do about it: the
server and its version, what a message may be long, clocks, permissions, the
stream and what the account may have, and, if the replicas answer (View.Serve of
package ops), their states, options and releases. It tries permissions by using
them: it says goodbye to the replicas, as a process does that ends, which changes
nothing. It does it with the account that it is given: use the one of the
replicas. With -stream the flags say what the stream should be, as NATSStream does.

The status is 1 if it finds an error.

`

const (
	maxSkew     = time.Second // between two clocks
	leastNATS   = "1.55.0"    // of nats.go: older ones lose messages
	leastServer = "2.10.0"
)

// A finding is one thing that doctor has looked at.
type finding struct {
	Level string // ok, warning or error
	About string
	What  string
	Do    string `json:",omitempty"` // what helps
}

// A doctor collects findings.
type doctor struct {
	target busTarget
	stream tidemark.NATSStream
	broken bool // the stream is not as it must be
	all    []finding
	denied denials
}

// denials are what the server has complained of that is not permitted: it answers
// nothing to who may not ask, and to who publishes it never does.
type denials struct {
	mu       sync.Mutex // guards subjects
	subjects []string   // with what was not permitted in front: Publish to "x"
}

func (d *denials) note(_ *nats.Conn, _ *nats.Subscription, err error) {
	_, what, found := strings.Cut(err.Error(), " for ")
	if !found || !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subjects = append(d.subjects, what)
}

// take returns what was noted.
func (d *denials) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	subjects := d.subjects
	d.subjects = nil
	return subjects
}

func (d *doctor) ok(about, format string, args ...any) {
	d.all = append(d.all, finding{"ok", about, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(about, do, format string, args ...any) {
	d.all = append(d.all, finding{"warning", about, fmt.Sprintf(format, args...), do})
}

func (d *doctor) fail(about, do, format string, args ...any) {
	d.all = append(d.all, finding{"error", about, fmt.Sprintf(format, args...), do})
}

// runDoctor is "tidemark doctor".
func runDoctor(ctx context.Context, args []string, std streams) int {
	d := &doctor{}
	flags := newFlags("doctor", doctorUsage, std)
	d.target.defineServer(flags)
	flags.StringVar(&d.target.schema, "schema", "", "`schema` of the cache")
	flags.BoolVar(&d.target.stream, "stream", false, "the cache has a JetStream stream")
	flags.IntVar(&d.stream.Replicas, "replicas", 3, "`number` of servers that the stream should be on")
	flags.BoolVar(&d.stream.Memory, "memory", false, "the stream should be in memory")
	flags.DurationVar(&d.stream.MaxAge, "max-age", time.Hour, "`time` for which the stream should keep messages")
	flags.Int64Var(&d.stream.MaxBytes, "max-bytes", 256<<20, "`bytes` that the stream should have room for")
	asJSON := flags.Bool("json", false, "print JSON")
	timeout := flags.Duration("timeout", 30*time.Second, "give up after this `duration`")
	if status, done := parse(std, flags, args, d.target.validate, noArguments(flags)); done {
		return status
	}
	d.stream.Existing = true
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	d.examine(ctx)
	if err := d.print(std.out, *asJSON); err != nil {
		return fail(std, "doctor", err)
	}
	for _, f := range d.all {
		if f.Level == "error" {
			return exitFailed
		}
	}
	return exitOK
}

func (d *doctor) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, d.all)
	}
	count := map[string]int{}
	for _, f := range d.all {
		count[f.Level]++
		if _, err := fmt.Fprintf(w, "%-8s %s: %s\n", f.Level, printable(f.About), indented(f.What)); err != nil {
			return err
		}
		if f.Do != "" {
			fmt.Fprintf(w, "         -> %s\n", f.Do)
		}
	}
	_, err := fmt.Fprintf(w, "\n%s, %s, %d ok\n", plural(count["error"], "error"), plural(count["warning"], "warning"), count["ok"])
	return err
}

// plural says how many there are.
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// indented returns text of several lines as it is printed.
func indented(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(strings.TrimSpace(lines[i]))
	}
	return strings.Join(lines, "\n           ")
}

// examine looks at everything, and ends early only if there is nothing left to look
// at.
func (d *doctor) examine(ctx context.Context) {
	nc, err := d.target.connect(nats.ErrorHandler(d.denied.note))
	if err != nil {
		d.fail("connection", "check -server, the network, and the credentials", "%v", err)
		return
	}
	defer nc.Close()
	d.server(nc)
	if d.target.stream {
		d.log(ctx, nc)
	}
	d.permissions(ctx, nc)
	d.refused(ctx, nc)
	d.replicas(ctx, nc)
}

// server looks at the server and the way to it.
func (d *doctor) server(nc *nats.Conn) {
	if rtt, err := nc.RTT(); err != nil {
		d.fail("connection", "look at the network", "a ping is not answered: %v", err)
	} else if rtt > 100*time.Millisecond {
		d.warn("connection", "a write waits for one round trip at least; have a server nearer by", "a round trip takes %v", rtt.Round(time.Millisecond))
	} else {
		d.ok("connection", "a round trip takes %v", rtt.Round(10*time.Microsecond))
	}
	if v := nc.ConnectedServerVersion(); olderThan(v, leastServer) {
		d.fail("server", "update nats-server", "it is %s; streams of tidemark are set up as nats-server %s and later understand them", v, leastServer)
	} else {
		d.ok("server", "nats-server %s", v)
	}
	const least = 64<<10 + 1<<10
	if most := nc.MaxPayload(); most < least {
		d.warn("server", "raise max_payload", "a message may have %d bytes, and tidemark's have up to %d: longer ones become the word that everything changed", most, least)
	} else {
		d.ok("server", "a message may have %d bytes", most)
	}
}

// olderThan reports whether version a, of dotted numbers, is below b. What is no
// number ends the comparison.
func olderThan(a, b string) bool {
	x, y := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		digits := x[i]
		if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = digits[:end]
		}
		m, err := strconv.Atoi(digits)
		n, _ := strconv.Atoi(y[i]) // ours
		if err != nil || m != n {
			return err == nil && m < n
		}
	}
	return len(x) < len(y)
}

// log looks at the stream and at what the account may have.
func (d *doctor) log(ctx context.Context, nc *nats.Conn) {
	o := d.options()
	if err := tidemark.SetUpNATSStream(ctx, nc, o); err != nil {
		do := "change those fields, or the flags of this command, if the replicas ask for less"
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			do = "let a replica, or SetUpNATSStream, create it"
		case errors.Is(err, nats.ErrPermissionViolation):
			do = "permit the account to publish to $JS.API.STREAM.INFO." + tidemark.NATSStreamName(o.Name)
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled):
			do = "enable JetStream on the servers and for the account"
		}
		d.broken = true
		d.fail("stream", do, "%v", err)
	} else {
		d.ok("stream", "%s is as it must be", tidemark.NATSStreamName(o.Name))
	}
	js, err := jetstream.New(nc)
	if err != nil {
		d.fail("stream", "", "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	asked := time.Now()
	if s, err := js.Stream(ctx, tidemark.NATSStreamName(o.Name)); err == nil {
		info := s.CachedInfo()
		d.clock("server", info.TimeStamp, asked, time.Now())
		d.streamState(info)
	}
	if account, err := js.AccountInfo(ctx); err == nil {
		d.account(account)
	} else {
		d.warn("account", "permit it to publish to $JS.API.INFO, only for this command", "its limits cannot be looked at: %v", err)
	}
}

// options returns what the replicas' NATSOptions should be.
func (d *doctor) options() tidemark.NATSOptions {
	o := tidemark.NATSOptions{Name: d.target.name, Schema: d.target.schema}
	if d.target.stream {
		o.Stream = &d.stream
	}
	return o
}

// streamState looks at how the stream is doing.
func (d *doctor) streamState(info *jetstream.StreamInfo) {
	if c := info.Cluster; c != nil {
		if c.Leader == "" {
			d.fail("stream", "look at its servers: more than the half must run", "it has no leader, and takes no messages")
		}
		for _, r := range c.Replicas {
			if r.Offline || !r.Current {
				d.warn("stream", "look at that server; if another one goes, the stream may stop", "its copy on %s is not up to date (offline: %t)", r.Name, r.Offline)
			}
		}
	}
	kept := info.State.LastTime.Sub(info.State.FirstTime)
	full := info.Config.MaxBytes > 0 && info.State.Bytes > uint64(info.Config.MaxBytes)/10*9
	if full && (info.Config.MaxAge == 0 || kept < info.Config.MaxAge*9/10) {
		d.warn("stream", "raise MaxBytes, if replicas are to keep their memory when they are away for longer",
			"it is full: messages leave it after %v, and MaxAge is %v", kept.Round(time.Second), info.Config.MaxAge)
	} else {
		d.ok("stream", "%d messages, %d bytes, of the last %v", info.State.Msgs, info.State.Bytes, kept.Round(time.Second))
	}
}

// account looks at what the account may have in JetStream.
func (d *doctor) account(a *jetstream.AccountInfo) {
	used, most := a.Store, a.Limits.MaxStore
	if d.stream.Memory {
		used, most = a.Memory, a.Limits.MaxMemory
	}
	if most >= 0 && used > uint64(most)/10*9 {
		d.fail("account", "raise its limit, or remove other streams: a stream that finds no room takes no messages", "%d of %d bytes are used", used, most)
	} else if most >= 0 && most < d.stream.MaxBytes {
		d.warn("account", "raise its limit, or lower MaxBytes", "it may use %d bytes, less than the stream may have: %d", most, d.stream.MaxBytes)
	} else {
		d.ok("account", "%d bytes are used, of %s", used, limit(most))
	}
	if most := a.Limits.MaxConsumers; most >= 0 && a.Consumers >= most {
		d.fail("account", "raise its limit: every replica reads through a consumer of its own", "%d of %d consumers are used", a.Consumers, most)
	} else {
		d.ok("account", "%d consumers, of %s", a.Consumers, limit(int64(most)))
	}
}

func limit(n int64) string {
	if n < 0 {
		return "as many as it likes"
	}
	return strconv.FormatInt(n, 10)
}

// clock compares a clock elsewhere with the one here, by when it was asked and when
// the answer was here.
func (d *doctor) clock(whose string, theirs, asked, answered time.Time) {
	skew := max(asked.Sub(theirs), theirs.Sub(answered), 0)
	if skew > maxSkew {
		d.warn("clock of "+whose, "let both machines follow a time server: what people compare by time, as logs and metrics, is off; no promise depends on it",
			"it differs from the one here by %v at least", skew.Round(time.Millisecond))
	} else {
		d.ok("clock of "+whose, "it agrees with the one here to %v", maxSkew)
	}
}

// permissions tries what a replica does.
func (d *doctor) permissions(ctx context.Context, nc *nats.Conn) {
	inv := tidemark.NATS(nc, d.options())
	heard := make(chan struct{}, 1)
	past := nc.LastError()
	sub, err := nc.Subscribe(tidemark.NATSSubject(d.target.name), func(*nats.Msg) {
		select {
		case heard <- struct{}{}:
		default:
		}
	})
	if err == nil {
		defer func() { _ = sub.Unsubscribe() }() // the connection is closed next
		err = nc.FlushTimeout(3 * time.Second)
	}
	if err = errors.Join(err, complaint(nc, past)); err != nil {
		d.fail("permissions", "permit the account to subscribe to "+tidemark.NATSSubject(d.target.name), "%v", err)
	}
	if d.broken { // what is not as it must be is not used, whatever is permitted
		d.warn("permissions", "mend the stream first, and ask again", "to publish to the log and to read it: not tried")
		return
	}
	if err := d.sayHello(ctx, inv); err != nil {
		d.fail("permissions", "permit the account to publish to "+d.target.subject(), "a message cannot be published: %v", err)
	} else {
		d.ok("permissions", "messages can be published on %s", d.target.subject())
	}
	if inv.Log == nil {
		if err != nil {
			return
		}
		select {
		case <-heard:
			d.ok("permissions", "and come back")
		case <-time.After(2 * time.Second):
			d.fail("permissions", "permit the account to subscribe to "+tidemark.NATSSubject(d.target.name), "what was published did not come back")
		}
		return
	}
	if err := d.readLog(ctx, inv); err != nil {
		d.fail("permissions", "permit the account what docs/security.md lists for a replica with a log", "the log cannot be read: %v", err)
	} else {
		d.ok("permissions", "the log can be read")
	}
	if err := d.sayBeside(ctx, inv); err != nil {
		d.warn("permissions", "permit the account to publish to "+tidemark.NATSSubject(d.target.name)+", or set NoHint in the replicas' NATSStream",
			"changes cannot be told ahead of the log: %v", err)
	}
}

// readLog reads a message that it has appended itself.
func (d *doctor) readLog(ctx context.Context, inv tidemark.Invalidator) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	reader, err := inv.Log.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }() // never fails
	if err := d.sayHello(ctx, inv); err != nil {
		return err
	}
	_, _, err = reader.Next(ctx)
	return err
}

// sayBeside is sayHello on core NATS, where changes are told ahead of the log.
func (d *doctor) sayBeside(ctx context.Context, inv tidemark.Invalidator) error {
	inv.Log = nil
	return d.sayHello(ctx, inv)
}

// refused reports what the server has complained of beside: what is not answered
// may not be missed at once.
func (d *doctor) refused(ctx context.Context, nc *nats.Conn) {
	if nc.FlushTimeout(3*time.Second) == nil {
		select {
		case <-time.After(100 * time.Millisecond): // nats.go hands errors on in its own time
		case <-ctx.Done():
		}
	}
next:
	for _, what := range d.denied.take() {
		_, subject, _ := strings.Cut(strings.ReplaceAll(what, `"`, ""), " to ")
		for _, f := range d.all {
			if f.Level != "ok" && strings.Contains(f.What+" "+f.Do+" ", subject+" ") {
				continue next // it was said
			}
		}
		d.fail("permissions", "permit it: docs/security.md says what for", "the server refuses: %s", what)
	}
}

// sayHello publishes a goodbye, as a process does that has nothing to tell.
func (d *doctor) sayHello(ctx context.Context, inv tidemark.Invalidator) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	id := xxhash.Sum64String(d.target.name + "\x00" + d.target.schema) // or replicas would call it foreign
	msg, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, CacheID: id, Origin: rand.Uint64(), Seq: 1})
	switch {
	case err != nil:
		return err
	case inv.Log != nil:
		_, err := inv.Log.Append(ctx, msg)
		return err
	default:
		return inv.Hint.Publish(ctx, msg)
	}
}

// complaint returns what the server has complained of since past.
func complaint(nc *nats.Conn, past error) error {
	if err := nc.LastError(); err != past { //nolint:errorlint // whether it is the same one
		return err
	}
	return nil
}

// replicas asks the replicas, and compares what they say.
func (d *doctor) replicas(ctx context.Context, nc *nats.Conn) {
	asked := time.Now()
	reports, err := ops.Ask(ctx, nc, d.target.name)
	answered := time.Now()
	if len(reports) == 0 {
		d.warn("replicas", "let the programs call View.Serve of package ops, and permit this account to publish to "+ops.StateSubject(d.target.name),
			"nobody answers: %v", err)
		return
	}
	if err != nil {
		d.warn("replicas", "", "not all could be understood: %v", err)
	}
	d.ok("replicas", "%d answer", len(reports))
	for _, r := range reports {
		d.replica(r, asked, answered)
	}
	d.compare(reports)
}

// replica looks at one replica.
func (d *doctor) replica(r ops.Report, asked, answered time.Time) {
	who := "replica " + r.Instance
	switch s := r.Stats; {
	case s.State == tidemark.Joining:
		d.fail(who, "ask its Ready why: connection, permissions, or a stream that is not as it must be", "it does not hear the others, and serves nothing from memory")
	case s.State == tidemark.Suspect && r.Settings.Prober && !d.broken:
		d.fail(who, "run tidemark relay, and look at what it logs; if it works, look whether this replica reads the stream (tidemark top -stream)",
			"its probes do not come back: is a tidemark relay running?")
	case s.State == tidemark.Suspect && r.Settings.Prober:
		d.fail(who, "look at the stream first: has it a leader? If it is well, is a tidemark relay running?", "it cannot read its log, or its probes do not come back")
	case s.State == tidemark.Suspect:
		d.fail(who, "look at the stream: has it a leader?", "it cannot read its log")
	case s.State == tidemark.Ended:
		d.warn(who, "", "its cache is closed")
	default:
		d.ok(who, "%v", s.State)
	}
	if r.Stats.Bypassed {
		d.warn(who, "SetBypass(false), if whoever set it trusts the cache again", "it is bypassed: nothing is served from memory")
	}
	if n := r.Stats.AuditStale + r.Stats.AuditDiffers + r.Stats.AuditAhead; n > 0 {
		d.fail(who, "tidemark audit -keys shows them: who changes those keys and tells nobody? If they are ahead, did the source go back?",
			"its auditor has confirmed %d mismatches with the source", n)
	}
	switch r.Stats.Breaker {
	case tidemark.BreakerOpen:
		d.warn(who, "look at the database: most of what it was asked has failed", "its breaker is open: the source is left alone")
	case tidemark.BreakerHalfOpen:
		d.warn(who, "look at the database, if that does not pass; where nothing is loaded it stays so, and is none",
			"its breaker is half-open: the next calls try the source, and close it if they succeed")
	default:
	}
	if r.Stats.InDoubt > 0 {
		d.warn(who, "look at the database, if that does not pass", "%d writes are in doubt", r.Stats.InDoubt)
	}
	if r.Stats.Backlog > 0 {
		d.warn(who, "look at its permissions and the stream, if that does not pass", "%d keys wait to be told", r.Stats.Backlog)
	}
	for _, w := range r.Warnings {
		d.warn(who, "see go doc tidemark.Options", "%s", w)
	}
	if r.Build.NATS != "" && olderThan(r.Build.NATS, leastNATS) {
		d.fail(who, "update nats.go to "+leastNATS+" or later: older ones lose messages", "it is built with nats.go %s", r.Build.NATS)
	}
	if d.target.stream && !r.Settings.Log {
		d.fail(who, "set NATSOptions.Stream in all replicas, or in none", "it has no log")
	}
	d.clock(who, r.Time, asked, answered)
}

// compare looks for what the replicas should agree on and do not.
func (d *doctor) compare(reports []ops.Report) {
	if !d.target.stream && slices.ContainsFunc(reports, func(r ops.Report) bool { return r.Settings.Log }) {
		d.fail("replicas", "give -stream", "the replicas have a log, and it was not looked at")
	}
	for _, c := range []struct {
		what string
		of   func(ops.Report) any
		fail bool
		do   string
	}{
		{"Schema", func(r ops.Report) any { return r.Settings.Schema }, false, "they do not hear each other; right only while a new schema is rolled out"},
		{"a log", func(r ops.Report) any { return r.Settings.Log }, true, "set NATSOptions.Stream in all, or in none: those with a log do not hear those without"},
		{"Strict", func(r ops.Report) any { return r.Settings.Strict }, true, "set it in all replicas that write or read Within a bound: where it is not set, a write may be missed"},
		{"DoubtTimeout", func(r ops.Report) any { return r.Settings.DoubtTimeout }, anyStrict(reports), "it is the database's statement timeout, and must be the same in all with Strict"},
		{"SourceEpoch", func(r ops.Report) any { return r.Stats.SourceEpoch }, true, "declare the larger one again: tidemark invalidate -name NAME -all -epoch N, with -stream if there is a log"},
		{"how many others they hear", func(r ops.Report) any { return r.Stats.Peers }, false, "some do not hear some others, or one has just come or gone: ask again"},
		{"the release of tidemark", func(r ops.Report) any { return r.Build.Tidemark }, false, "right while a release is rolled out"},
		{"the release of nats.go", func(r ops.Report) any { return r.Build.NATS }, false, "right while a release is rolled out"},
	} {
		who := map[string][]string{}
		for _, r := range reports {
			v := fmt.Sprint(c.of(r))
			who[v] = append(who[v], r.Instance)
		}
		if len(who) == 1 {
			continue
		}
		say := d.warn
		if c.fail {
			say = d.fail
		}
		say("replicas", c.do, "they differ in %s: %v", c.what, who)
	}
}

func anyStrict(reports []ops.Report) bool {
	return slices.ContainsFunc(reports, func(r ops.Report) bool { return r.Settings.Strict })
}
