package tidemark

import (
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type (
	accountName string
	accountID   int64
	smallID     uint8
	tenantKey   struct {
		Tenant  string
		Account int32
	}
	digest [4]uint16
)

// hashOf is the hash that a cache with keys of type K gives key.
func hashOf[K comparable](key K) uint64 {
	k := newKeys[K](nil)
	return k.hash(key)
}

// little returns the hash of the first width bytes of u in little endian.
func little(u uint64, width int) uint64 {
	return xxhash.Sum64(binary.LittleEndian.AppendUint64(nil, u)[:width])
}

func TestKeys_HashOfStringIsXXHashOfItsBytes(t *testing.T) {
	for _, s := range []string{"", "k", "account:7", string([]byte{0, 255, 0}), "a longer key than thirty-two bytes, to be sure"} {
		assert.Equal(t, xxhash.Sum64String(s), hashOf(s))
		assert.Equal(t, xxhash.Sum64String(s), hashOf(accountName(s)), "a named string hashes as its bytes")
	}
}

func TestKeys_HashOfIntegerIsXXHashOfItsFixedWidthBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, math.MaxUint64, 1 << 63, 1<<32 - 1})).Draw(t, "u")
		assert.Equal(t, little(u, 1), hashOf(int8(u)))
		assert.Equal(t, little(u, 1), hashOf(uint8(u)))
		assert.Equal(t, little(u, 1), hashOf(smallID(u)))
		assert.Equal(t, little(u, 2), hashOf(int16(u)))
		assert.Equal(t, little(u, 2), hashOf(uint16(u)))
		assert.Equal(t, little(u, 4), hashOf(int32(u)))
		assert.Equal(t, little(u, 4), hashOf(uint32(u)))
		assert.Equal(t, little(u, 8), hashOf(int64(u)))
		assert.Equal(t, little(u, 8), hashOf(uint64(u)))
		assert.Equal(t, little(u, 8), hashOf(accountID(u)))
		word := int(reflect.TypeFor[int]().Size())
		assert.Equal(t, little(u, word), hashOf(int(u)))
		assert.Equal(t, little(u, word), hashOf(uint(u)))
		assert.Equal(t, little(u, word), hashOf(uintptr(u)))
	})
}

func TestKeys_HashOfOtherTypesFollowsEquality(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, account := rapid.String().Draw(t, "tenant"), rapid.Int32().Draw(t, "account")
		structs := newKeys[tenantKey](nil)
		assert.Equal(t, structs.hash(tenantKey{tenant, account}), structs.hash(tenantKey{string([]byte(tenant)), account}))
		assert.NotEqual(t, structs.hash(tenantKey{tenant, account}), structs.hash(tenantKey{tenant, account + 1}))
		d := digest{uint16(account), 1, 2, 3}
		arrays := newKeys[digest](nil)
		assert.Equal(t, arrays.hash(d), arrays.hash(digest{uint16(account), 1, 2, 3}))
		assert.NotEqual(t, arrays.hash(d), arrays.hash(digest{uint16(account), 1, 2, 4}))
	})
}

func TestKeys_HashAllocatesNothing(t *testing.T) {
	names, ids, small, structs := newKeys[accountName](nil), newKeys[accountID](nil), newKeys[smallID](nil), newKeys[tenantKey](nil)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		names.hash("account:7")
		ids.hash(-7)
		small.hash(7)
		structs.hash(tenantKey{"t", 7})
	}))
}

// roundTrip encodes and decodes one key of an integer type, whole and damaged.
func roundTrip[K comparable](t *rapid.T, key K, wire uint64) {
	t.Helper()
	k := newKeys[K](nil)
	require.True(t, k.encodable())
	b := k.encode([]byte("before"), key)
	require.Equal(t, binary.LittleEndian.AppendUint64([]byte("before"), wire), b, "%T travels as 8 bytes, appended", key)
	got, err := k.decode(b[len("before"):])
	require.NoError(t, err)
	require.Equal(t, key, got)
	for _, cut := range [][]byte{nil, b[len("before") : len(b)-1], append(b[len("before"):len(b):len(b)], 0)} {
		_, err := k.decode(cut)
		require.ErrorIs(t, err, errBadKey, "%d bytes for %T", len(cut), key)
	}
}

func TestKeys_EveryIntegerTypeMakesTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, -1, math.MinInt64, math.MaxInt64, -128, 127})).Draw(t, "i")
		roundTrip(t, int8(i), uint64(int64(int8(i))))
		roundTrip(t, int16(i), uint64(int64(int16(i))))
		roundTrip(t, int32(i), uint64(int64(int32(i))))
		roundTrip(t, i, uint64(i))
		roundTrip(t, int(int32(i)), uint64(int64(int32(i))))
		roundTrip(t, accountID(i), uint64(i))
		roundTrip(t, uint8(i), uint64(uint8(i)))
		roundTrip(t, uint16(i), uint64(uint16(i)))
		roundTrip(t, uint32(i), uint64(uint32(i)))
		roundTrip(t, uint64(i), uint64(i))
		roundTrip(t, uint(uint32(i)), uint64(uint32(i)))
		roundTrip(t, uintptr(uint32(i)), uint64(uint32(i)))
		roundTrip(t, smallID(i), uint64(uint8(i)))
	})
}

// outOfRange reports what decode makes of the wire form of another type's key.
func outOfRange[K comparable](wire uint64) error {
	k := newKeys[K](nil)
	_, err := k.decode(binary.LittleEndian.AppendUint64(nil, wire))
	return err
}

func TestKeys_NumberBeyondTheTypeIsRefused(t *testing.T) {
	minus := func(i int64) uint64 { return uint64(i) }
	for name, err := range map[string]error{
		"int8 128":         outOfRange[int8](128),
		"int8 -129":        outOfRange[int8](minus(-129)),
		"int16 32768":      outOfRange[int16](1 << 15),
		"int32 1<<31":      outOfRange[int32](1 << 31),
		"int32 unsigned":   outOfRange[int32](math.MaxUint32), // -1 that was not sign-extended
		"uint8 256":        outOfRange[uint8](256),
		"uint8 -1":         outOfRange[uint8](minus(-1)),
		"uint16 1<<16":     outOfRange[uint16](1 << 16),
		"uint32 1<<32":     outOfRange[uint32](1 << 32),
		"named uint8 1000": outOfRange[smallID](1000),
	} {
		assert.ErrorIs(t, err, errBadKey, name)
	}
	assert.NoError(t, outOfRange[uint64](math.MaxUint64))
	assert.NoError(t, outOfRange[int64](1<<63), "the smallest int64")
}

func TestKeys_StringMakesTheRoundTripAndIsCopied(t *testing.T) {
	k := newKeys[accountName](nil)
	rapid.Check(t, func(t *rapid.T) {
		key := accountName(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		b := k.encode(nil, key)
		require.Equal(t, string(key), string(b))
		got, err := k.decode(b)
		require.NoError(t, err)
		for i := range b {
			b[i]++ // the transport takes its buffer back
		}
		require.Equal(t, key, got)
	})
}

// tenantCodec encodes tenantKey as "tenant/account bytes".
type tenantCodec struct{}

func (tenantCodec) AppendKey(dst []byte, key tenantKey) []byte {
	return binary.LittleEndian.AppendUint32(append(append(dst, key.Tenant...), '/'), uint32(key.Account))
}

func (tenantCodec) ParseKey(b []byte) (tenantKey, error) {
	if len(b) < 5 || b[len(b)-5] != '/' {
		return tenantKey{}, errors.New("no tenant key")
	}
	return tenantKey{string(b[:len(b)-5]), int32(binary.LittleEndian.Uint32(b[len(b)-4:]))}, nil
}

// shout marks each key, to show that a codec is asked even for strings.
type shout struct{}

func (shout) AppendKey(dst []byte, key string) []byte { return append(append(dst, '!'), key...) }
func (shout) ParseKey(b []byte) (string, error)       { return string(b[1:]), nil }

func TestKeys_CodecIsUsed(t *testing.T) {
	k := newKeys[string](shout{})
	assert.Equal(t, "!k", string(k.encode(nil, "k")))
	got, err := k.decode([]byte("!k"))
	require.NoError(t, err)
	assert.Equal(t, "k", got)
	assert.Equal(t, xxhash.Sum64String("k"), k.hash("k"), "the hash is of the key, not of its encoding")

	structs := newKeys[tenantKey](tenantCodec{})
	require.True(t, structs.encodable())
	b := structs.encode(nil, tenantKey{"acme", -3})
	back, err := structs.decode(b)
	require.NoError(t, err)
	assert.Equal(t, tenantKey{"acme", -3}, back)
	_, err = structs.decode([]byte("acme"))
	assert.Error(t, err)
}

// optionFields returns the fields that New's error complains of.
func optionFields(err error) (fields []string) {
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) {
		case *OptionError:
			fields = append(fields, e.Field)
		case interface{ Unwrap() []error }:
			for _, e := range e.Unwrap() {
				walk(e)
			}
		}
	}
	walk(err)
	return fields
}

// refusal is what New says of keys of type K.
// refusal returns the fields that New refuses. It stops where New would make the
// cache, of which a compiler makes one for each K.
func refusal[K comparable](o Options[K, int]) []string {
	_, err := o.normal()
	return optionFields(err)
}

func TestNew_RefusesKeyTypesThatCouldPanic(t *testing.T) {
	type nested struct {
		Name  string
		Inner struct{ Deep [2]any }
	}
	assert.Equal(t, []string{"K"}, refusal(Options[any, int]{}))
	assert.Equal(t, []string{"K"}, refusal(Options[error, int]{}))
	assert.Equal(t, []string{"K"}, refusal(Options[[2]any, int]{}))
	assert.Equal(t, []string{"K"}, refusal(Options[struct{ V any }, int]{}))
	assert.Equal(t, []string{"K"}, refusal(Options[nested, int]{}))
	assert.Equal(t, []string{"K"}, refusal(Options[float64, int]{}), "NaN is not equal to itself")
	assert.Equal(t, []string{"K"}, refusal(Options[[1]complex64, int]{}))
	assert.Empty(t, refusal(Options[tenantKey, int]{}))
	assert.Empty(t, refusal(Options[digest, int]{}))
	assert.Empty(t, refusal(Options[*int, int]{}), "pointers compare by identity")
	assert.Empty(t, refusal(Options[bool, int]{}))
}

func TestNew_KeysThatCannotTravelNeedACodec(t *testing.T) {
	inv := newBus().invalidator()
	assert.Equal(t, []string{"KeyCodec"}, refusal(Options[tenantKey, int]{Invalidator: inv}))
	assert.Equal(t, []string{"KeyCodec"}, refusal(Options[[2]bool, int]{Invalidator: inv}))
	assert.Equal(t, []string{"KeyCodec"}, refusal(Options[*int, int]{Invalidator: inv}))
	assert.Empty(t, refusal(Options[tenantKey, int]{Invalidator: inv, KeyCodec: tenantCodec{}}))
	assert.Empty(t, refusal(Options[accountName, int]{Invalidator: inv}))
	assert.Empty(t, refusal(Options[smallID, int]{Invalidator: inv}))
	assert.Empty(t, refusal(Options[tenantKey, int]{}), "without an Invalidator keys stay at home")

	_, err := NewPublisher(PublisherOptions[tenantKey]{Invalidator: inv})
	assert.Equal(t, []string{"KeyCodec"}, optionFields(err))
	_, err = NewPublisher(PublisherOptions[any]{Invalidator: inv})
	assert.Equal(t, []string{"K"}, optionFields(err))
	_, err = NewPublisher(PublisherOptions[string]{})
	assert.Equal(t, []string{"Invalidator"}, optionFields(err))
}
