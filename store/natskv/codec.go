package natskv

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/column"
)

// A ValueCodec turns values into bytes and back. The zero ValueCodec stores
// strings and byte slices as they are, and everything else as JSON.
type ValueCodec[V any] struct {
	// Encode returns the stored form of a value, and Decode the value of a
	// stored form. Decode may keep the bytes it is given. Both must be safe for
	// concurrent use.
	Encode func(V) ([]byte, error)
	Decode func([]byte) (V, error)
}

// orDefault returns c, or what the zero value stands for.
func (c ValueCodec[V]) orDefault() (ValueCodec[V], error) {
	t := reflect.TypeFor[V]()
	switch {
	case (c.Encode == nil) != (c.Decode == nil):
		return c, errors.New("has only one of Encode and Decode")
	case c.Encode != nil:
		return c, nil
	case t.Kind() == reflect.String:
		return ValueCodec[V]{
			Encode: func(v V) ([]byte, error) { return []byte(reflect.ValueOf(v).String()), nil },
			Decode: func(b []byte) (v V, err error) {
				reflect.ValueOf(&v).Elem().SetString(string(b))
				return v, nil
			},
		}, nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return ValueCodec[V]{
			Encode: func(v V) ([]byte, error) { return reflect.ValueOf(v).Bytes(), nil },
			Decode: func(b []byte) (v V, err error) {
				reflect.ValueOf(&v).Elem().SetBytes(b)
				return v, nil
			},
		}, nil
	default:
		return ValueCodec[V]{
			Encode: func(v V) ([]byte, error) { return json.Marshal(v) },
			Decode: func(b []byte) (v V, err error) { err = column.DecodeJSON(b, &v); return v, err },
		}, nil
	}
}

// maxName is the longest written form of a key, in bytes. A subject travels in a
// line of the protocol that may have 4096.
const maxName = 1024

// A keyCodec writes keys as a bucket has them.
type keyCodec[K comparable] struct {
	codec tidemark.KeyCodec[K] // nil: string or integer
	kind  reflect.Kind         // String, Int64 or Uint64 without a codec
}

func newKeyCodec[K comparable](codec tidemark.KeyCodec[K]) (keyCodec[K], error) {
	t := reflect.TypeFor[K]()
	switch k := t.Kind(); {
	case codec != nil:
		return keyCodec[K]{codec: codec}, nil
	case k == reflect.String:
		return keyCodec[K]{kind: reflect.String}, nil
	case k >= reflect.Int && k <= reflect.Int64:
		return keyCodec[K]{kind: reflect.Int64}, nil
	case k >= reflect.Uint && k <= reflect.Uintptr:
		return keyCodec[K]{kind: reflect.Uint64}, nil
	default:
		return keyCodec[K]{}, fmt.Errorf("is nil, but keys of type %v are neither strings nor integers", t)
	}
}

// name returns the written form of key.
func (c keyCodec[K]) name(key K) (string, error) {
	var raw []byte
	switch c.kind {
	case reflect.String:
		raw = []byte(reflect.ValueOf(key).String())
	case reflect.Int64:
		raw = strconv.AppendInt(nil, reflect.ValueOf(key).Int(), 10)
	case reflect.Uint64:
		raw = strconv.AppendUint(nil, reflect.ValueOf(key).Uint(), 10)
	default:
		raw = c.codec.AppendKey(nil, key)
	}
	name := escape(raw)
	if len(name) > maxName {
		return "", fmt.Errorf("key of %d bytes as it is written, at most %d can be stored", len(name), maxName)
	}
	return name, nil
}

// errForeignKey means that no key of the Store has this name.
var errForeignKey = errors.New("no key is written like this")

// parse returns the key of a written form, if it is that of one.
func (c keyCodec[K]) parse(name string) (key K, err error) {
	raw, ok := unescape(name)
	if !ok {
		return key, errForeignKey
	}
	v := reflect.ValueOf(&key).Elem()
	switch c.kind {
	case reflect.String:
		v.SetString(string(raw))
	case reflect.Int64:
		n, err := strconv.ParseInt(string(raw), 10, v.Type().Bits())
		if err != nil {
			return key, errForeignKey
		}
		v.SetInt(n)
	case reflect.Uint64:
		n, err := strconv.ParseUint(string(raw), 10, v.Type().Bits())
		if err != nil {
			return key, errForeignKey
		}
		v.SetUint(n)
	default:
		if key, err = c.codec.ParseKey(raw); err != nil {
			return key, fmt.Errorf("%w: %w", errForeignKey, err)
		}
	}
	if again, err := c.name(key); err != nil || again != name {
		return key, errForeignKey // "+5" or "=41" are not how 5 and A are written
	}
	return key, nil
}

// plain are the bytes that stand for themselves. A dot does between two others
// that are no dots.
var plain = func() (t [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/") {
		t[c] = true
	}
	return t
}()

const hexDigits = "0123456789ABCDEF"

// emptyName is the written form of the empty key.
const emptyName = "="

// escape returns raw as a bucket's key.
func escape(raw []byte) string {
	if len(raw) == 0 {
		return emptyName
	}
	out := make([]byte, 0, len(raw)+8)
	for i, c := range raw {
		switch {
		case i == 0 && c == '_': // those are ours, and NATS's own
		case plain[c], c == '.' && i > 0 && i < len(raw)-1 && raw[i-1] != '.' && raw[i+1] != '.':
			out = append(out, c)
			continue
		}
		out = append(out, '=', hexDigits[c>>4], hexDigits[c&15])
	}
	return string(out)
}

// unescape undoes escape. It also takes what escape would not have written.
func unescape(name string) (raw []byte, ok bool) {
	if name == emptyName {
		return nil, true
	}
	raw = make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case plain[c] || c == '.':
			raw = append(raw, c)
		case c == '=' && i+2 < len(name):
			n, err := strconv.ParseUint(name[i+1:i+3], 16, 8)
			if err != nil {
				return nil, false
			}
			raw = append(raw, byte(n))
			i += 2
		default:
			return nil, false
		}
	}
	return raw, true
}

func hashOf(s string) uint64 { return xxhash.Sum64String(s) }
