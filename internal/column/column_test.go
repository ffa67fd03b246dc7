package column

import (
	"math"
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCodecs_RefuseWhatDoesNotFit(t *testing.T) {
	keys, err := KeyCodec[uint64]{}.Column()
	require.NoError(t, err)
	_, _, err = keys.Argument(math.MaxInt64 + 1)
	assert.Error(t, err)
	arg, id, err := keys.Argument(math.MaxInt64)
	require.NoError(t, err)
	assert.Equal(t, int64(math.MaxInt64), arg)
	assert.Equal(t, "9223372036854775807", id)

	values, err := ValueCodec[int8]{}.Column()
	require.NoError(t, err)
	for stored, good := range map[string]bool{"127": true, "128": false, "-128": true, "-129": false, "": false, "1.5": false} {
		_, err := values.Decode([]byte(stored))
		assert.Equal(t, good, err == nil, stored)
	}
	unsigned, err := ValueCodec[uint8]{}.Column()
	require.NoError(t, err)
	for stored, good := range map[string]bool{"255": true, "256": false, "-1": false} {
		_, err := unsigned.Decode([]byte(stored))
		assert.Equal(t, good, err == nil, stored)
	}
}

func TestCodecs_RefuseHalfACodec(t *testing.T) {
	_, err := KeyCodec[string]{Binary: true}.Column()
	assert.Error(t, err)
	_, err = ValueCodec[string]{Binary: true}.Column()
	assert.Error(t, err)
	_, err = ValueCodec[string]{Decode: func([]byte) (string, error) { return "", nil }}.Column()
	assert.Error(t, err)
	_, err = KeyCodec[[16]byte]{}.Column()
	assert.Error(t, err)
	_, err = KeyCodec[any]{}.Column()
	assert.Error(t, err)
}

func TestIsInteger_IsEveryIntegerKindOnly(t *testing.T) {
	for _, v := range []any{int(0), int8(0), int16(0), int32(0), int64(0), uint(0), uint8(0), uint16(0), uint32(0), uint64(0)} {
		assert.True(t, isInteger(reflect.TypeOf(v)), "%T", v)
	}
	for _, v := range []any{uintptr(0), false, 1.5, "", []byte{}} {
		assert.False(t, isInteger(reflect.TypeOf(v)), "%T", v)
	}
}
