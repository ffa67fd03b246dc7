package ops

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

const (
	maxName     = 128
	maxKeyText  = 16 << 10 // bytes; what is longer is no key that replicas tell each other
	maxValue    = 4 << 10  // bytes of a value that are shown
	maxInstance = 128
)

// What an Inspection is refused for.
var (
	// ErrKey: the text is no key of this cache. The error says why, without the
	// text.
	ErrKey = errors.New("ops: not a key of this cache")

	// ErrNoValues: a value was asked for, and Options.FormatValue is not set.
	ErrNoValues = errors.New("ops: this cache shows no values")
)

// Options says how a cache is shown.
type Options[K comparable, V any] struct {
	// Name names the cache: letters, digits, '-' and '_', in parts joined by
	// dots, at most 128 bytes. Empty means the Invalidator's; it is required if
	// there is none.
	Name string

	// Instance names this process among the replicas, in at most 128 printable
	// bytes without spaces. Empty means the host's name and the process id.
	Instance string

	// ParseKey reads a key as people write it. Nil is enough for strings, which
	// are written as they are, and for integers, which are written in decimal;
	// if there is a KeyCodec, it also is for other types: what it encodes is
	// written in hexadecimal, behind "0x".
	ParseKey func(text string) (K, error)

	// FormatValue, if not nil, lets values be seen, by who asks for them: it
	// returns a value as people read it, which may leave out what is not theirs
	// to see. At most 4 KiB of it are shown. Nil means that no value ever is.
	FormatValue func(value V) string

	// AllowBypass lets whoever may publish on [BypassSubject] switch this cache off
	// and on, as "tidemark bypass" does: see [tidemark.Cache.SetBypass]. Reads then
	// cost the source what they cost without a cache.
	AllowBypass bool
}

// A View is one cache as people see it. Make one with New. It is safe for
// concurrent use, and for as long as the cache exists, also once that is closed.
type View struct {
	name, instance string

	report  func() Report
	inspect func(key string, value bool) (Inspection, error)
	audit   func(keys bool) Audit
	start   func() (tidemark.AuditReport, error)
	bypass  func(on bool) (Bypass, error)
}

// A Report is what one replica says of itself. Durations are in nanoseconds in
// JSON.
type Report struct {
	Cache    string
	Instance string
	Time     time.Time // by its clock
	Stats    tidemark.Stats
	Settings Settings
	Warnings []string // what is probably a mistake in its options
	Build    Build
}

// Settings are the options that replicas should agree on, and those that explain
// what they do.
type Settings struct {
	Schema       string
	Hint, Log    bool
	Prober       bool          // its probes go through the source: with a Log, something must relay them
	Beat         time.Duration // 0: the default
	KeyType      string        // as keys travel: "string", "int", or "codec" for a KeyCodec's
	Strict       bool
	DoubtTimeout time.Duration
	TTL          time.Duration
	LoadTimeout  time.Duration
	MaxLoads     int
	MaxStale     time.Duration

	// How long after its TTL an entry is served, and how long a read waits for a load
	// before it is.

	StaleWhileRevalidate, StaleIfError, SoftLoadTimeout time.Duration

	Level       string
	LoaderClass string
	OnStale     string
}

// A Build says of which releases a replica is built; "" is not known.
type Build struct{ Tidemark, NATS, Go string }

// An Inspection is what one replica knows of a key.
type Inspection struct {
	Instance    string
	Explanation tidemark.Explanation
	Words       string // Explanation.String

	// If a value was asked for, and is served from memory at [tidemark.Options.Level]:

	Value     string
	HasValue  bool
	Truncated bool // it is longer
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// New returns a View of cache. All mistakes in o are reported at once, each as a
// [*tidemark.OptionError].
func New[K comparable, V any](cache *tidemark.Cache[K, V], o Options[K, V]) (*View, error) {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	var settings tidemark.Options[K, V]
	if cache == nil {
		bad("cache", "is nil")
	} else {
		settings = cache.Options()
	}
	if o.Name == "" {
		o.Name = settings.Invalidator.Name
	}
	if !validName.MatchString(o.Name) || len(o.Name) > maxName {
		bad("Name", "is %.200q, want letters, digits, '-', '_' and dots, at most %d bytes", o.Name, maxName)
	}
	if o.Instance == "" {
		o.Instance = thisInstance()
	}
	if len(o.Instance) > maxInstance || strings.ContainsFunc(o.Instance, func(r rune) bool { return r <= ' ' || r > '~' }) {
		bad("Instance", "is %.200q, want at most %d printable bytes without spaces", o.Instance, maxInstance)
	}
	parse := o.ParseKey
	if parse == nil {
		if parse = parserOf(settings.KeyCodec); parse == nil {
			bad("ParseKey", "is nil, but nobody knows how keys of type %v are written", reflect.TypeFor[K]())
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	v := &View{name: o.Name, instance: o.Instance}
	facts, warnings, build := settingsOf(settings), settings.Warnings(), thisBuild()
	v.report = func() Report {
		return Report{Cache: o.Name, Instance: o.Instance, Time: time.Now().UTC(), Stats: cache.Stats(),
			Settings: facts, Warnings: warnings, Build: build}
	}
	v.audit, v.start = auditor(cache, o, settings.KeyCodec)
	v.bypass = bypassOf(cache, o)
	v.inspect = func(text string, value bool) (Inspection, error) {
		if value && o.FormatValue == nil {
			return Inspection{}, ErrNoValues
		}
		key, err := parseKey(parse, text)
		if err != nil {
			return Inspection{}, err
		}
		x := Inspection{Instance: o.Instance, Explanation: cache.Explain(key)}
		x.Words = x.Explanation.String()
		if value {
			show(&x, cache, key, o.FormatValue)
		}
		return x, nil
	}
	return v, nil
}

// Name returns the cache's name.
func (v *View) Name() string { return v.name }

// Instance returns the name of this process.
func (v *View) Instance() string { return v.instance }

// Report returns what the cache says of itself now. It costs what
// [tidemark.Cache.Stats] does.
func (v *View) Report() Report { return v.report() }

// Inspect returns what the cache knows of the key that is written as text, and, if
// value is set, its value. It costs what [tidemark.Cache.Explain] does; with a
// value, it also counts as a read. The error wraps ErrKey or ErrNoValues.
func (v *View) Inspect(text string, value bool) (Inspection, error) { return v.inspect(text, value) }

// show adds the value of key, if memory serves one.
func show[K comparable, V any](x *Inspection, cache *tidemark.Cache[K, V], key K, format func(V) string) {
	value, ok := cache.Get(key)
	if !ok {
		return
	}
	defer func() {
		if recover() != nil {
			x.Value, x.HasValue, x.Truncated = "(FormatValue panicked)", true, false
		}
	}()
	x.Value, x.HasValue = format(value), true
	if x.Truncated = len(x.Value) > maxValue; x.Truncated {
		x.Value = strings.ToValidUTF8(x.Value[:maxValue], "")
	}
}

// parseKey calls parse and contains its panic. No error has the text in it.
func parseKey[K any](parse func(string) (K, error), text string) (key K, err error) {
	if len(text) > maxKeyText {
		return key, fmt.Errorf("%w: %d bytes, want at most %d", ErrKey, len(text), maxKeyText)
	}
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%w: it cannot be parsed", ErrKey)
		}
	}()
	if key, err = parse(text); err == nil {
		return key, nil
	}
	why := err.Error()
	if text != "" {
		why = strings.ReplaceAll(why, text, "...")
	}
	return key, fmt.Errorf("%w: %s", ErrKey, why)
}

// parserOf returns how keys are written by default, or nil.
func parserOf[K comparable](codec tidemark.KeyCodec[K]) func(text string) (K, error) {
	switch t := reflect.TypeFor[K](); t.Kind() {
	case reflect.String:
		return func(text string) (key K, _ error) {
			reflect.ValueOf(&key).Elem().SetString(text)
			return key, nil
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(text string) (key K, err error) {
			n, err := strconv.ParseInt(text, 10, t.Bits())
			if err != nil {
				return key, fmt.Errorf("want a decimal %v", t.Kind())
			}
			reflect.ValueOf(&key).Elem().SetInt(n)
			return key, nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return func(text string) (key K, err error) {
			n, err := strconv.ParseUint(text, 10, t.Bits())
			if err != nil {
				return key, fmt.Errorf("want a decimal %v", t.Kind())
			}
			reflect.ValueOf(&key).Elem().SetUint(n)
			return key, nil
		}
	}
	if codec == nil {
		return nil
	}
	return func(text string) (key K, err error) {
		digits, ok := strings.CutPrefix(text, "0x")
		b, err := hex.DecodeString(digits)
		if !ok || err != nil {
			return key, errors.New("want 0x and hexadecimal digits")
		}
		return codec.ParseKey(b)
	}
}

// keyTypeOf says how keys travel.
func keyTypeOf[K comparable](codec tidemark.KeyCodec[K]) string {
	switch kind := reflect.TypeFor[K]().Kind(); {
	case codec != nil:
		return "codec"
	case kind == reflect.String:
		return "string"
	case kind >= reflect.Int && kind <= reflect.Uintptr:
		return "int"
	default:
		return "" // they do not travel
	}
}

func settingsOf[K comparable, V any](o tidemark.Options[K, V]) Settings {
	return Settings{
		Schema: o.Invalidator.Schema, Hint: o.Invalidator.Hint != nil, Log: o.Invalidator.Log != nil,
		Prober: o.Invalidator.Prober != nil, Beat: o.Invalidator.Beat, KeyType: keyTypeOf(o.KeyCodec),
		Strict: o.Strict, DoubtTimeout: o.DoubtTimeout, TTL: o.TTL, LoadTimeout: o.LoadTimeout, MaxLoads: o.MaxLoads,
		MaxStale: o.MaxStale, Level: o.Level.String(), LoaderClass: o.LoaderClass.String(), OnStale: o.OnStale.String(),
		StaleWhileRevalidate: o.StaleWhileRevalidate, StaleIfError: o.StaleIfError, SoftLoadTimeout: o.SoftLoadTimeout,
	}
}

func thisInstance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return fmt.Sprintf("%.100s:%d", host, os.Getpid())
}

// modulePath is what this module is called in the list of a program's modules.
const modulePath = "github.com/tidemark-go/tidemark"

func thisBuild() Build {
	b := Build{NATS: nats.Version, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == modulePath {
				b.Tidemark = m.Version
			}
		}
	}
	return b
}
