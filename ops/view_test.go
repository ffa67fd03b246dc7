package ops_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

// view returns a View of a cache without replicas, and the cache.
func view(t testing.TB, o ops.Options[string, string]) (*ops.View, *tidemark.Cache[string, string]) {
	t.Helper()
	return viewOf(t, tidemark.Options[string, string]{}, o)
}

func viewOf[K comparable, V any](t testing.TB, of tidemark.Options[K, V], o ops.Options[K, V]) (*ops.View, *tidemark.Cache[K, V]) {
	t.Helper()
	cache, err := tidemark.New(of)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
	v, err := ops.New(cache, o)
	require.NoError(t, err)
	return v, cache
}

func TestNew_Mistakes(t *testing.T) {
	var none *tidemark.Cache[point, int]
	_, err := ops.New(none, ops.Options[point, int]{Instance: "a b"})
	require.ErrorAs(t, err, new(*tidemark.OptionError))
	for _, want := range []string{"cache is nil", `Name is ""`, `Instance is "a b"`, "ParseKey is nil"} {
		assert.ErrorContains(t, err, want)
	}
	for _, bad := range []string{"a b", ".", "a/b", "<", strings.Repeat("n", 129)} {
		cache, err := tidemark.New(tidemark.Options[string, string]{})
		require.NoError(t, err)
		_, err = ops.New(cache, ops.Options[string, string]{Name: bad})
		assert.ErrorContains(t, err, "Name", bad)
		require.NoError(t, cache.Close(t.Context()))
	}
}

type point struct{ x, y uint16 }

type pointCodec struct{}

func (pointCodec) AppendKey(dst []byte, p point) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(dst, p.x), p.y)
}

func (pointCodec) ParseKey(b []byte) (p point, err error) {
	if len(b) != 4 {
		return p, errors.New("want 4 bytes")
	}
	return point{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}, nil
}

// inspects demands that the text names the key, and that the other texts name none.
func inspects[K comparable](t *testing.T, of tidemark.Options[K, int], o ops.Options[K, int], key K, text string, others ...string) {
	t.Helper()
	o.Name = "c"
	v, cache := viewOf(t, of, o)
	require.Equal(t, tidemark.Applied, cache.Put(key, 1, 17))
	x, err := v.Inspect(text, false)
	require.NoError(t, err, text)
	assert.EqualValues(t, 17, x.Explanation.Version, text)
	assert.Equal(t, x.Explanation.String(), x.Words)
	for _, other := range others {
		_, err := v.Inspect(other, false)
		require.ErrorIs(t, err, ops.ErrKey, other)
		if other != "" {
			assert.NotContains(t, err.Error(), other, "no key is in an error")
		}
	}
}

func TestInspect_KeysAsPeopleWriteThem(t *testing.T) {
	type name string
	type small int8
	inspects(t, tidemark.Options[string, int]{}, ops.Options[string, int]{}, "alice@example.com", "alice@example.com")
	inspects(t, tidemark.Options[name, int]{}, ops.Options[name, int]{}, "", "")
	inspects(t, tidemark.Options[int, int]{}, ops.Options[int, int]{}, -42, "-42", "", "0x2a", "4.20", "9223372036854775808")
	inspects(t, tidemark.Options[small, int]{}, ops.Options[small, int]{}, -128, "-128", "-129", "1280")
	inspects(t, tidemark.Options[uint64, int]{}, ops.Options[uint64, int]{}, 1<<64-1, "18446744073709551615", "-10")
	inspects(t, tidemark.Options[point, int]{KeyCodec: pointCodec{}}, ops.Options[point, int]{}, point{1, 0x203}, "0x00010203",
		"00010203", "0x0001020", "0x000102", "0xzz")
	inspects(t, tidemark.Options[point, int]{}, ops.Options[point, int]{ParseKey: func(text string) (p point, err error) {
		if text == "panics" {
			panic(text)
		}
		_, err = fmt.Sscanf(text, "%d/%d", &p.x, &p.y)
		if err != nil {
			err = fmt.Errorf("%q: %w", text, err)
		}
		return p, err
	}}, point{3, 4}, "3/4", "three", "panics")
}

// An inspection without a value is no read.
func TestInspect_CountsAsNoRead(t *testing.T) {
	v, cache := view(t, ops.Options[string, string]{Name: "c", FormatValue: func(v string) string { return v }})
	require.Equal(t, tidemark.Applied, cache.Put("k", "v", 1))
	_, err := v.Inspect("k", false)
	require.NoError(t, err)
	v.Report()
	assert.Zero(t, cache.Stats().Hits)
	x, err := v.Inspect("k", true)
	require.NoError(t, err)
	assert.Equal(t, "v", x.Value)
	assert.EqualValues(t, 1, cache.Stats().Hits)
	x, err = v.Inspect("nobody", true)
	require.NoError(t, err)
	assert.False(t, x.HasValue)
}

// A long value is cut where a rune ends, and a FormatValue that panics ends nothing.
func TestInspect_ValuesThatAreHardToShow(t *testing.T) {
	v, cache := view(t, ops.Options[string, string]{Name: "c", FormatValue: func(v string) string {
		if v == "panics" {
			panic(v)
		}
		return v
	}})
	cache.Put("long", "x"+strings.Repeat("ä", 4<<10), 1)
	x, err := v.Inspect("long", true)
	require.NoError(t, err)
	assert.True(t, x.Truncated)
	assert.LessOrEqual(t, len(x.Value), 4<<10)
	assert.True(t, utf8.ValidString(x.Value))
	cache.Put("k", "panics", 1)
	x, err = v.Inspect("k", true)
	require.NoError(t, err)
	assert.Contains(t, x.Value, "panicked")
}

func TestReport(t *testing.T) {
	v, cache := viewOf(t, tidemark.Options[string, int]{TTL: time.Minute, MaxLoads: -1, Level: tidemark.Within(time.Second)},
		ops.Options[string, int]{Name: "c", Instance: "me"})
	r := v.Report()
	assert.Equal(t, "c", r.Cache)
	assert.Equal(t, "me", r.Instance)
	assert.Equal(t, time.Minute, r.Settings.TTL)
	assert.Equal(t, "Within(1s)", r.Settings.Level)
	assert.Equal(t, "Strong", r.Settings.LoaderClass)
	assert.Equal(t, "Reload", r.Settings.OnStale)
	assert.Equal(t, "string", r.Settings.KeyType)
	assert.False(t, r.Settings.Prober)
	require.Len(t, r.Warnings, 1)
	assert.Contains(t, r.Warnings[0], "MaxLoads")
	assert.WithinDuration(t, time.Now(), r.Time, time.Minute)
	assert.NotEmpty(t, r.Build.Go)
	require.NoError(t, cache.Close(t.Context()))
	assert.Equal(t, tidemark.Ended, v.Report().Stats.State)

	type number uint64
	ints, _ := viewOf(t, tidemark.Options[number, int]{}, ops.Options[number, int]{Name: "c"})
	assert.Equal(t, "int", ints.Report().Settings.KeyType)
	points, _ := viewOf(t, tidemark.Options[point, int]{KeyCodec: pointCodec{}}, ops.Options[point, int]{Name: "c"})
	assert.Equal(t, "codec", points.Report().Settings.KeyType)

	late, _ := viewOf(t, tidemark.Options[string, int]{TTL: time.Minute, StaleWhileRevalidate: 1, StaleIfError: 2, SoftLoadTimeout: 3,
		Loader: tidemark.LoaderFunc[string, int](func(context.Context, string) (int, tidemark.Version, error) { return 1, 1, nil })},
		ops.Options[string, int]{Name: "c"})
	of := late.Report().Settings
	assert.Equal(t, []time.Duration{1, 2, 3}, []time.Duration{of.StaleWhileRevalidate, of.StaleIfError, of.SoftLoadTimeout})

	plain, _ := view(t, ops.Options[string, string]{Name: "c"})
	assert.Regexp(t, `^\S+:\d+$`, plain.Instance())
	assert.Equal(t, "c", plain.Name())
}

// The auditor's findings are shown without keys, unless those are asked for.
func TestAudit(t *testing.T) {
	rows := map[string]tidemark.Version{"4929-1234": 1}
	load := tidemark.LoaderFunc[string, string](func(_ context.Context, key string) (string, tidemark.Version, error) { return "secret", rows[key], nil })
	v, cache := viewOf(t, tidemark.Options[string, string]{Loader: load, Audit: &tidemark.AuditOptions[string, string]{Bound: time.Millisecond, Every: time.Hour}},
		ops.Options[string, string]{Name: "c", Instance: "me"})
	wait := func(cycles uint64) {
		require.Eventually(t, func() bool { return v.Audit(false).Report.Cycles >= cycles }, 10*time.Second, time.Millisecond)
	}
	wait(1)
	_, err := cache.Load(t.Context(), "4929-1234")
	require.NoError(t, err)
	rows["4929-1234"] = 3
	before, err := v.StartAudit(false)
	require.NoError(t, err)
	assert.EqualValues(t, 1, before.Report.Begun)
	wait(2)
	a := v.Audit(false)
	assert.EqualValues(t, 1, a.Report.Stale)
	assert.EqualValues(t, 2, a.Report.MostBehind)
	assert.Equal(t, "me", a.Instance)
	require.Len(t, a.Mismatches, 1)
	assert.Empty(t, a.Mismatches[0].Key)
	assert.Equal(t, "4929-1234", v.Audit(true).Mismatches[0].Key)
	for _, query := range []string{"?audit=1", "?audit=1&format=json", "?audit=1&format=html", "?cache=c&audit=1"} {
		w := ask(t, "GET", query, "", v)
		assert.Equal(t, 200, w.Code)
		assert.Contains(t, w.Body.String(), "stale", query)
		assert.NotContains(t, w.Body.String(), "4929", query)
		assert.NotContains(t, w.Body.String(), "secret", query)
		assert.Contains(t, ask(t, "GET", query+"&keys=1", "", v).Body.String(), "4929", query)
	}
	text := ask(t, "GET", "?audit=1&keys=1", "", v).Body.String()
	assert.Regexp(t, `Scales +over [0-9.a-z]+: 1, undecided 0, [0-9.]+ nines; over`, text)
	assert.Regexp(t, `Last +[0-9:]{8} to [0-9:]{8}, 1 entries`, text)
	assert.Regexp(t, `Record +[0-9:.]{12} installed [0-9]+ by load`, text)
	assert.EqualValues(t, 2, v.Audit(false).Report.Begun, "to look begins nothing")
	require.NoError(t, cache.Close(t.Context()))
	_, err = v.StartAudit(false)
	require.ErrorIs(t, err, tidemark.ErrClosed)

	none, _ := view(t, ops.Options[string, string]{Name: "none"})
	_, err = none.StartAudit(false)
	require.ErrorIs(t, err, ops.ErrNoAuditor)
	assert.Zero(t, none.Audit(true).Report)
}

// Keys of mismatches are written as they are asked for.
func TestAudit_KeysAsPeopleWriteThem(t *testing.T) {
	keyOf := func(t *testing.T, view *ops.View) string {
		require.Eventually(t, func() bool { return len(view.Audit(true).Mismatches) > 0 }, 10*time.Second, time.Millisecond)
		return view.Audit(true).Mismatches[0].Key
	}
	assert.Equal(t, "-42", keyOf(t, mismatched(t, -42, tidemark.Options[int, int]{})))
	assert.Equal(t, "0x00010203", keyOf(t, mismatched(t, point{1, 0x203}, tidemark.Options[point, int]{KeyCodec: pointCodec{}})))
}

// mismatched returns a View of a cache that has a key ahead of its source.
func mismatched[K comparable](t *testing.T, key K, o tidemark.Options[K, int]) *ops.View {
	o.Loader = tidemark.LoaderFunc[K, int](func(context.Context, K) (int, tidemark.Version, error) { return 0, 1, nil })
	o.Audit = &tidemark.AuditOptions[K, int]{Bound: time.Millisecond, Every: time.Millisecond}
	v, cache := viewOf(t, o, ops.Options[K, int]{Name: "c"})
	require.Equal(t, tidemark.Applied, cache.Put(key, 1, 17))
	return v
}
