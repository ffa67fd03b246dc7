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

// Keys and values can be personal data: what cannot be stored or read is not in the
// error, whatever the standard library would say.
func TestCodecs_ErrorsHaveNoValue(t *testing.T) {
	const secret = "4929123456781234"
	type account struct {
		Balance int8
		Owner   int `json:",string"`
	}
	wide, err := ValueCodec[uint64]{}.Column()
	require.NoError(t, err)
	narrow, err := ValueCodec[int8]{}.Column()
	require.NoError(t, err)
	keys, err := KeyCodec[int8]{}.Column()
	require.NoError(t, err)
	wideKeys, err := KeyCodec[uint64]{}.Column()
	require.NoError(t, err)
	accounts, err := ValueCodec[account]{}.Column()
	require.NoError(t, err)
	var errs []error
	_, err = wide.Argument(1<<63 + 4929123456781234)
	errs = append(errs, err)
	_, _, err = wideKeys.Argument(1<<63 + 4929123456781234)
	errs = append(errs, err)
	for _, stored := range []string{secret, "x" + secret} {
		_, err = narrow.Decode([]byte(stored))
		errs = append(errs, err)
		_, err = keys.Decode([]byte(stored))
		errs = append(errs, err)
	}
	for _, stored := range []string{
		`{"Balance":` + secret + `}`, `{"Balance":"` + secret + `"}`, `{"Owner":"x` + secret + `"}`, `{` + secret, secret, `{"Balance":{"` + secret + `":1}}`,
	} {
		_, err = accounts.Decode([]byte(stored))
		errs = append(errs, err)
	}
	for i, err := range errs {
		require.Error(t, err, i)
		assert.NotContains(t, err.Error(), "4929", i)
		assert.NotContains(t, err.Error(), "9223372036854775808", i)
		assert.NotContains(t, err.Error(), "922830116", i)
	}
	v, err := accounts.Decode([]byte(`{"Balance":7,"Owner":"8"}`))
	require.NoError(t, err)
	assert.Equal(t, account{7, 8}, v)
}
