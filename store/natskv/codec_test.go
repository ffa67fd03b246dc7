package natskv

import (
	"encoding/binary"
	"errors"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// legal is what every client of a bucket takes for a key.
var legal = regexp.MustCompile(`^[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*$`)

func TestEscape(t *testing.T) {
	for raw, want := range map[string]string{
		"":              "=",
		"alice":         "alice",
		"accounts.4711": "accounts.4711",
		"a/b-c_d":       "a/b-c_d",
		"=":             "=3D",
		"a=41":          "a=3D41",
		".":             "=2E",
		".a":            "=2Ea",
		"a.":            "a=2E",
		"a..b":          "a=2E=2Eb",
		"a.b.c":         "a.b.c",
		"*":             "=2A",
		"a.>":           "a.=3E",
		"a b":           "a=20b",
		"_tidemark.id":  "=5Ftidemark.id",
		"_":             "=5F",
		"a._":           "a._",
		"\u00e9":        "=C3=A9",
		"\x00\xff":      "=00=FF",
	} {
		got := escape([]byte(raw))
		assert.Equal(t, want, got, "%q", raw)
		assert.Regexp(t, legal, got, "%q", raw)
		back, ok := unescape(got)
		assert.True(t, ok)
		assert.Equal(t, raw, string(back))
	}
}

// TestEscape_AnyKeyComesBack also shows that no two keys share a name.
func TestEscape_AnyKeyComesBack(t *testing.T) {
	c, err := newKeyCodec[string](nil)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.StringMatching(`[a=._*> ]{0,8}`), rapid.String(),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "key")
		name, err := c.name(raw)
		if len(raw) > 300 && err != nil {
			return
		}
		require.NoError(t, err)
		require.Regexp(t, legal, name)
		require.False(t, strings.HasPrefix(name, "_"), "it is one of ours")
		back, err := c.parse(name)
		require.NoError(t, err)
		require.Equal(t, raw, back)
	})
}

func TestParse_RefusesWhatIsNotWrittenSo(t *testing.T) {
	c, err := newKeyCodec[string](nil)
	require.NoError(t, err)
	for _, name := range []string{"a=41", "a=", "a=4", "=zz", "_a", "a=3d", ".a", "a..b", "a b", "=5ftidemark.id", "a=-1"} {
		_, err := c.parse(name)
		assert.ErrorIs(t, err, errForeignKey, name)
	}
}

func TestKeys_Integers(t *testing.T) {
	signed, err := newKeyCodec[int16](nil)
	require.NoError(t, err)
	for key, want := range map[int16]string{0: "0", 42: "42", -7: "-7", math.MinInt16: "-32768"} {
		name, err := signed.name(key)
		require.NoError(t, err)
		assert.Equal(t, want, name)
		back, err := signed.parse(name)
		require.NoError(t, err)
		assert.Equal(t, key, back)
	}
	unsigned, err := newKeyCodec[uint64](nil)
	require.NoError(t, err)
	name, err := unsigned.name(math.MaxUint64)
	require.NoError(t, err)
	assert.Equal(t, "18446744073709551615", name)
	for _, name := range []string{"+5", "05", "32768", "x", "1.0", "="} {
		_, err := signed.parse(name)
		assert.ErrorIs(t, err, errForeignKey, name)
	}
	_, err = unsigned.parse("-1")
	assert.ErrorIs(t, err, errForeignKey)
}

type pair struct{ a, b uint16 }

type pairCodec struct{}

func (pairCodec) AppendKey(dst []byte, key pair) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(dst, key.a), key.b)
}

func (pairCodec) ParseKey(b []byte) (pair, error) {
	if len(b) != 4 {
		return pair{}, errors.New("not a pair")
	}
	return pair{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}, nil
}

func TestKeys_WithACodec(t *testing.T) {
	_, err := newKeyCodec[pair](nil)
	require.Error(t, err)
	c, err := newKeyCodec[pair](pairCodec{})
	require.NoError(t, err)
	name, err := c.name(pair{'a', 0x2e00})
	require.NoError(t, err)
	assert.Equal(t, "=00a.=00", name)
	back, err := c.parse(name)
	require.NoError(t, err)
	assert.Equal(t, pair{'a', 0x2e00}, back)
	_, err = c.parse("abc")
	require.ErrorIs(t, err, errForeignKey)
}

func TestKeys_TooLong(t *testing.T) {
	c, err := newKeyCodec[string](nil)
	require.NoError(t, err)
	_, err = c.name(strings.Repeat("k", maxName))
	require.NoError(t, err)
	_, err = c.name(strings.Repeat("k", maxName+1))
	require.Error(t, err)
	_, err = c.name(strings.Repeat(" ", maxName/3+1))
	require.Error(t, err, "as it is written")
}

func TestValues(t *testing.T) {
	text, err := ValueCodec[string]{}.orDefault()
	require.NoError(t, err)
	b, err := text.Encode("it's\x00")
	require.NoError(t, err)
	assert.Equal(t, "it's\x00", string(b))
	s, err := text.Decode(b)
	require.NoError(t, err)
	assert.Equal(t, "it's\x00", s)

	raw, err := ValueCodec[[]byte]{}.orDefault()
	require.NoError(t, err)
	b, err = raw.Encode([]byte{1, 2})
	require.NoError(t, err)
	v, err := raw.Decode(b)
	require.NoError(t, err)
	assert.Equal(t, []byte{1, 2}, v)

	type account struct{ Balance int }
	object, err := ValueCodec[account]{}.orDefault()
	require.NoError(t, err)
	b, err = object.Encode(account{5})
	require.NoError(t, err)
	assert.JSONEq(t, `{"Balance":5}`, string(b))
	a, err := object.Decode(b)
	require.NoError(t, err)
	assert.Equal(t, account{5}, a)
	_, err = object.Decode([]byte("{"))
	require.Error(t, err)

	_, err = ValueCodec[int]{Encode: func(int) ([]byte, error) { return nil, nil }}.orDefault()
	require.Error(t, err)
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "=", "a.b", "a=3D", "=5F", "a=4"} {
		f.Add(s)
	}
	c, err := newKeyCodec[string](nil)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, name string) {
		key, err := c.parse(name)
		if err != nil {
			return
		}
		again, err := c.name(key)
		if err != nil || again != name {
			t.Fatalf("%q is the name of %q, which is written %q, %v", name, key, again, err)
		}
	})
}
