package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

const invalidateUsage = `usage: tidemark invalidate -name NAME [flags] [key | key@version]...

Invalidate tells the replicas of a cache which keys a batch job, a migration or
a person has changed in the database. Without arguments it reads the keys from
standard input, one a line. The version is the one that the row has now; without
it the replicas know only that the key has changed. What follows the last @ of a
key is a version if it is a number: write key@0 for a key that ends like that.

Keys that are integers in the program need -key-type int: they travel in another
form than strings, and replicas would find none of them. If replicas answer
(View.Serve of package ops) and have keys of the other type, the command refuses.

Nothing is published if one of the keys cannot be understood. With -stream the
messages go to the cache's JetStream stream, which must exist: replicas with a log
count on nothing else. Without it the command looks whether there is such a stream,
and asks the replicas, and refuses if there is; -stream=false publishes on core NATS
all the same.

`

// A busTarget is a cache on a NATS server, as the flags name it.
type busTarget struct {
	server, creds, name, schema, keyType string

	stream bool   // on JetStream
	chosen bool   // whoever asks has said which
	epoch  uint32 // of the source
}

func (t *busTarget) define(f *flag.FlagSet) {
	t.defineServer(f)
	f.BoolVar(&t.stream, "stream", false, "the cache has a JetStream stream")
	f.StringVar(&t.keyType, "key-type", "string", "`type` of the keys in the program: string or int")
}

// defineServer defines the flags that every command with a server has.
func (t *busTarget) defineServer(f *flag.FlagSet) {
	t.keyType = "string"
	f.StringVar(&t.server, "server", nats.DefaultURL, "`url` of the NATS server")
	f.StringVar(&t.creds, "creds", "", "`file` with the credentials for the server")
	f.StringVar(&t.name, "name", "", "`name` of the cache; required")
}

// validName is what the name of a cache on NATS looks like.
var validName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

func (t *busTarget) validate() error {
	var errs []error
	if t.name == "" {
		errs = append(errs, errors.New("-name is required"))
	} else if !validName.MatchString(t.name) {
		errs = append(errs, fmt.Errorf("-name is %q, want letters, digits, '-', '_' and dots", t.name))
	}
	if t.keyType != "string" && t.keyType != "int" {
		errs = append(errs, fmt.Errorf("-key-type is %q, want string or int", t.keyType))
	}
	return errors.Join(errs...)
}

// subject returns where the replicas' messages are.
func (t *busTarget) subject() string {
	if t.stream {
		return tidemark.NATSLogSubject(t.name)
	}
	return tidemark.NATSSubject(t.name)
}

// connect returns a connection to the server, or why it cannot be reached.
func (t *busTarget) connect(options ...nats.Option) (*nats.Conn, error) {
	options = append([]nats.Option{nats.Timeout(3 * time.Second), nats.Name("tidemark")}, options...)
	if t.creds != "" {
		options = append(options, nats.UserCredentials(t.creds))
	}
	nc, err := nats.Connect(t.server, options...)
	if err != nil {
		return nil, fmt.Errorf("cannot reach %s: %w", t.server, err)
	}
	return nc, nil
}

// runInvalidate is "tidemark invalidate".
func runInvalidate(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("invalidate", invalidateUsage, std)
	target.define(flags)
	flags.StringVar(&target.schema, "schema", "", "`schema` of the cache")
	epoch := flags.Uint("epoch", 0, "declare this `epoch` of the source: it was restored, or has failed over backwards; with -all")
	all := flags.Bool("all", false, "everything may have changed")
	timeout := flags.Duration("timeout", 10*time.Second, "give up after this `duration`")
	if status, done := parse(std, flags, args, target.validate); done {
		return status
	}
	if *all && flags.NArg() > 0 {
		return complain(std, "invalidate", errors.New("-all takes no keys"))
	}
	if *epoch > 0 && !*all || *epoch > math.MaxUint32 {
		return complain(std, "invalidate", errors.New("-epoch goes with -all, and is below 1<<32"))
	}
	target.epoch = uint32(*epoch)
	flags.Visit(func(f *flag.Flag) { target.chosen = target.chosen || f.Name == "stream" })
	if misplaced := misplacedFlag(flags); misplaced != "" {
		return complain(std, "invalidate", fmt.Errorf("%s stands behind a key: flags go first; for a key of that name use standard input", misplaced))
	}
	var changed []keyVersion
	if !*all {
		if flags.NArg() == 0 && isTerminal(std.in) {
			fmt.Fprintln(std.err, "tidemark invalidate: reading keys from standard input, one a line")
		}
		var err error
		if changed, err = readKeys(flags.Args(), std.in, target.keyType); err != nil {
			return complain(std, "invalidate", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	if err := target.tell(ctx, *all, changed); err != nil {
		if errors.As(err, new(*tidemark.OptionError)) || errors.As(err, new(*logError)) || errors.As(err, new(*keyTypeError)) {
			return complain(std, "invalidate", err)
		}
		return fail(std, "invalidate", err)
	}
	what := fmt.Sprintf("%d keys", len(changed))
	switch {
	case *all:
		what = `"everything changed"`
	case len(changed) == 1:
		what = "1 key"
	}
	fmt.Fprintf(std.out, "published %s on %s\n", what, target.subject())
	return exitOK
}

// tell publishes what has changed, unless the replicas would not hear it there.
func (t *busTarget) tell(ctx context.Context, all bool, changed []keyVersion) error {
	if err := t.refuseLog(ctx); err != nil {
		return err
	}
	if err := t.askReplicas(ctx, len(changed) > 0); err != nil {
		return err
	}
	return publishInvalidations(ctx, *t, all, changed)
}

// A logError says that a cache has a log, which the flags say nothing of.
type logError struct{ name string }

func (e *logError) Error() string {
	return fmt.Sprintf("%s has a log, the stream %s: give -stream", e.name, tidemark.NATSStreamName(e.name))
}

// refuseLog returns an error if the flags do not say that the cache has a log, and
// it has one: its replicas take keys from the hint subject, and nothing else. Where
// JetStream is off or forbidden to this account, that there is none is taken for
// granted, unless the replicas say otherwise: see askReplicas.
func (t *busTarget) refuseLog(ctx context.Context) error {
	if t.stream || t.chosen {
		return nil
	}
	permitted, err := t.ask(ctx, func(ctx context.Context, nc *nats.Conn) error {
		_, err := lastSequence(ctx, nc, t.name)
		return err
	})
	switch {
	case err == nil:
		return &logError{t.name}
	case !permitted, errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil
	default:
		return fmt.Errorf("it cannot be known whether %s has a log; give -stream, or -stream=false: %w", t.name, err)
	}
}

// A keyTypeError says that a cache has keys of another type than the flags say.
type keyTypeError struct{ instance, theirs string }

func (e *keyTypeError) Error() string {
	return fmt.Sprintf("%s has keys of type %s, and would not know these: give -key-type %[2]s", printable(e.instance), e.theirs)
}

// askReplicas returns an error if a replica answers and says that it has a log, of
// which the flags say nothing, or, where there are keys, that its own are of another
// type: it would find none of these, and nobody would notice. Who does not answer is
// taken to agree.
func (t *busTarget) askReplicas(ctx context.Context, keys bool) error {
	var reports []ops.Report
	_, err := t.ask(ctx, func(ctx context.Context, nc *nats.Conn) error {
		reports, _ = ops.Ask(ctx, nc, t.name) // who cannot be asked does not object
		return nil
	})
	for _, r := range reports {
		if r.Settings.Schema != t.schema {
			continue
		}
		if r.Settings.Log && !t.stream && !t.chosen {
			return &logError{t.name}
		}
		if theirs := r.Settings.KeyType; keys && theirs != t.keyType && (theirs == "string" || theirs == "int") {
			return &keyTypeError{r.Instance, theirs}
		}
	}
	return err
}

// ask asks one question, for 3s at most, on a connection of its own, so that what the
// server complains of is of that. It reports whether the account was permitted to ask.
func (t *busTarget) ask(ctx context.Context, question func(context.Context, *nats.Conn) error) (permitted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var forbidden atomic.Bool
	nc, err := t.connect(nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			forbidden.Store(true)
			cancel() // no answer will come
		}
	}))
	if err != nil {
		return true, err
	}
	defer nc.Close()
	err = question(ctx, nc)
	return !forbidden.Load(), err
}

// misplacedFlag returns an argument that is a flag of this command, and would be
// taken for a key.
func misplacedFlag(flags *flag.FlagSet) string {
	for _, arg := range flags.Args() {
		name, dashed := strings.CutPrefix(arg, "-")
		name, _, _ = strings.Cut(strings.TrimPrefix(name, "-"), "=")
		if dashed && flags.Lookup(name) != nil {
			return arg
		}
	}
	return ""
}

// A keyVersion is one key as the user wrote it.
type keyVersion struct {
	text    string
	number  int64 // the key, if the keys are integers
	version tidemark.Version
}

// readKeys returns the keys in args, or else those in r, one a line. The error
// names every key that cannot be understood.
func readKeys(args []string, r io.Reader, keyType string) ([]keyVersion, error) {
	var keys []keyVersion
	var errs []error
	add := func(where, s string) {
		k, err := parseKeyVersion(s, keyType)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
		keys = append(keys, k)
	}
	if len(args) > 0 {
		for i, s := range args {
			add(fmt.Sprintf("argument %d", i+1), s)
		}
		return keys, errors.Join(errs...)
	}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if line := strings.TrimSuffix(lines.Text(), "\r"); line != "" {
			add(fmt.Sprintf("line %d", n), line)
		}
	}
	return keys, errors.Join(append(errs, lines.Err())...)
}

// parseKeyVersion splits key@version. Only digits after the last @ are a
// version, so that "user@example.com" is a key.
func parseKeyVersion(s, keyType string) (k keyVersion, err error) {
	k.text = s
	if at := strings.LastIndexByte(s, '@'); at >= 0 && isDigits(s[at+1:]) {
		v, err := strconv.ParseUint(s[at+1:], 10, 64)
		if err != nil {
			return k, fmt.Errorf("%q has version %s, which is too large", s, s[at+1:])
		}
		k.text, k.version = s[:at], tidemark.Version(v)
	}
	if k.text == "" {
		return k, fmt.Errorf("%q has no key", s)
	}
	if keyType == "int" {
		if k.number, err = strconv.ParseInt(k.text, 10, 64); err != nil {
			return k, fmt.Errorf("%q is not an integer key", k.text)
		}
	}
	return k, nil
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// publishInvalidations returns when the server has all messages.
func publishInvalidations(ctx context.Context, target busTarget, all bool, changed []keyVersion) error {
	nc, err := target.connect(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return err
	}
	defer nc.Close()
	o := tidemark.NATSOptions{Name: target.name, Schema: target.schema}
	if target.stream {
		// Whatever the replicas have made of it is good enough.
		o.Stream = &tidemark.NATSStream{Existing: true, Replicas: 1, MaxAge: 10 * time.Second, MaxBytes: 1 << 20}
	}
	inv := tidemark.NATS(nc, o)
	if target.keyType == "int" {
		err = publishKeys(ctx, inv, target.epoch, all, changed, func(k keyVersion) int64 { return k.number })
	} else {
		err = publishKeys(ctx, inv, target.epoch, all, changed, func(k keyVersion) string { return k.text })
	}
	if err == nil {
		// A server that refuses a message says so before it answers the ping
		// that the publisher has waited for, but nats.go only notes it here.
		err = nc.LastError()
	}
	if err != nil {
		return fmt.Errorf("not everything is known to be published: %w", err)
	}
	return nil
}

// publishKeys publishes keys of one type.
func publishKeys[K comparable](ctx context.Context, inv tidemark.Invalidator, epoch uint32, all bool, changed []keyVersion, key func(keyVersion) K) error {
	p, err := tidemark.NewPublisher(tidemark.PublisherOptions[K]{Invalidator: inv, SourceEpoch: epoch})
	if err != nil {
		return err
	}
	if all {
		err = p.InvalidateAll(ctx)
	} else {
		err = p.InvalidateMany(ctx, mergeKeys(changed, key))
	}
	return errors.Join(err, p.Close(ctx))
}

// mergeKeys returns each key once: with version 0 if the version of one mention
// is not known, and else with the newest.
func mergeKeys[K comparable](changed []keyVersion, key func(keyVersion) K) map[K]tidemark.Version {
	merged := make(map[K]tidemark.Version, len(changed))
	for _, k := range changed {
		have, seen := merged[key(k)]
		switch {
		case !seen:
			merged[key(k)] = k.version
		case have == 0 || k.version == 0:
			merged[key(k)] = 0
		default:
			merged[key(k)] = max(have, k.version)
		}
	}
	return merged
}
