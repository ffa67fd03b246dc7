package sqlstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
)

// A KeyCodec turns keys into what the key column holds. The zero KeyCodec
// stores string kinds as text and integer kinds as integers.
type KeyCodec[K comparable] struct {
	// Encode returns the stored form of a key: the same bytes for equal keys,
	// different ones for different keys. It must be safe for concurrent use.
	Encode func(K) ([]byte, error)

	// Decode returns the key of a stored form. Only [Store.Relay] needs it, and only
	// if there is Encode. It must not keep the bytes.
	Decode func([]byte) (K, error)

	// Binary stores what Encode returns as bytes. Otherwise it is stored as
	// text and must be UTF-8.
	Binary bool
}

// A ValueCodec turns values into what the value column holds. The zero
// ValueCodec stores string kinds as text, byte slices as bytes, integer kinds
// as integers, and everything else as JSON text.
//
// An unsigned value over [math.MaxInt64] does not fit an integer column and is
// refused. A nil byte slice comes back empty.
type ValueCodec[V any] struct {
	// Encode returns the stored form of a value, and Decode the value of a
	// stored form. Decode may keep the bytes it is given. Both must be safe
	// for concurrent use.
	Encode func(V) ([]byte, error)
	Decode func([]byte) (V, error)

	// Binary stores what Encode returns as bytes. Otherwise it is stored as
	// text and must be UTF-8.
	Binary bool
}

// A kind is a type of column.
type kind uint8

const (
	text kind = iota
	binary
	integer
)

// maxKeyBytes is what the primary keys of all dialects can take: InnoDB indexes
// 3072 bytes and PostgreSQL 2704, and the journal's has an operation id too.
const maxKeyBytes = 1024

// A keyColumn is how one type of key is stored.
type keyColumn[K comparable] struct {
	kind kind

	// argument returns what to bind for key, and the text form of that, by
	// which a row in a bulk answer is recognized.
	argument func(key K) (arg any, id string, err error)

	// key returns the key of the column's text form; nil if nobody can tell.
	key func(stored []byte) (K, error)
}

// A valueColumn is how one type of value is stored.
type valueColumn[V any] struct {
	kind     kind
	argument func(value V) (any, error)

	// value returns the value of the column's text form, see [sql.Rows.Scan]
	// about *[]byte.
	value func(stored []byte) (V, error)
}

func (c KeyCodec[K]) column() (keyColumn[K], error) {
	t := reflect.TypeFor[K]()
	col := keyColumn[K]{kind: kindOf(c.Binary), key: c.Decode}
	switch {
	case c.Encode == nil && c.Decode != nil:
		return col, errors.New("has Decode but no Encode")
	case c.Encode != nil:
		col.argument = func(key K) (any, string, error) {
			stored, err := c.Encode(key)
			if err != nil {
				return nil, "", fmt.Errorf("encode key: %w", err)
			}
			return limited(asArgument(stored, c.Binary), string(stored))
		}
	case c.Binary:
		return col, errors.New("has Binary but no Encode")
	case t.Kind() == reflect.String:
		col.argument = func(key K) (any, string, error) {
			s := reflect.ValueOf(key).String()
			return limited(s, s)
		}
		col.key = func(stored []byte) (key K, err error) {
			reflect.ValueOf(&key).Elem().SetString(string(stored))
			return key, nil
		}
	case isInteger(t):
		col.kind = integer
		col.argument = func(key K) (any, string, error) {
			n, err := toInt64(reflect.ValueOf(key))
			return n, strconv.FormatInt(n, 10), err
		}
		col.key = func(stored []byte) (key K, err error) {
			n, err := strconv.ParseInt(string(stored), 10, 64)
			if err != nil {
				return key, err
			}
			return key, setInt64(reflect.ValueOf(&key).Elem(), n, t)
		}
	default:
		return col, fmt.Errorf("needs Encode for keys of type %v", t)
	}
	return col, nil
}

// limited refuses keys that some database would refuse or, worse, cut.
func limited(arg any, id string) (any, string, error) {
	if len(id) > maxKeyBytes {
		return nil, "", fmt.Errorf("key of %d bytes, at most %d can be stored", len(id), maxKeyBytes)
	}
	return arg, id, nil
}

func (c ValueCodec[V]) column() (valueColumn[V], error) {
	t := reflect.TypeFor[V]()
	switch {
	case (c.Encode == nil) != (c.Decode == nil):
		return valueColumn[V]{}, errors.New("has only one of Encode and Decode")
	case c.Encode != nil:
		return c.encoded(), nil
	case c.Binary:
		return valueColumn[V]{}, errors.New("has Binary but no Encode")
	case t.Kind() == reflect.String:
		return textColumn[V](), nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return binaryColumn[V](), nil
	case isInteger(t):
		return integerColumn[V](t), nil
	default:
		return ValueCodec[V]{
			Encode: func(v V) ([]byte, error) { return json.Marshal(v) },
			Decode: func(stored []byte) (v V, err error) { err = json.Unmarshal(stored, &v); return v, err },
		}.encoded(), nil
	}
}

func (c ValueCodec[V]) encoded() valueColumn[V] {
	return valueColumn[V]{
		kind: kindOf(c.Binary),
		argument: func(v V) (any, error) {
			stored, err := c.Encode(v)
			if err != nil {
				return nil, fmt.Errorf("encode value: %w", err)
			}
			return asArgument(stored, c.Binary), nil
		},
		value: c.Decode,
	}
}

func textColumn[V any]() valueColumn[V] {
	return valueColumn[V]{
		kind:     text,
		argument: func(v V) (any, error) { return reflect.ValueOf(v).String(), nil },
		value: func(stored []byte) (v V, err error) {
			reflect.ValueOf(&v).Elem().SetString(string(stored))
			return v, nil
		},
	}
}

func binaryColumn[V any]() valueColumn[V] {
	return valueColumn[V]{
		kind:     binary,
		argument: func(v V) (any, error) { return asArgument(reflect.ValueOf(v).Bytes(), true), nil },
		value: func(stored []byte) (v V, err error) {
			reflect.ValueOf(&v).Elem().SetBytes(stored)
			return v, nil
		},
	}
}

func integerColumn[V any](t reflect.Type) valueColumn[V] {
	return valueColumn[V]{
		kind:     integer,
		argument: func(v V) (any, error) { return toInt64(reflect.ValueOf(v)) },
		value: func(stored []byte) (v V, err error) {
			n, err := strconv.ParseInt(string(stored), 10, 64)
			if err != nil {
				return v, err
			}
			return v, setInt64(reflect.ValueOf(&v).Elem(), n, t)
		},
	}
}

func kindOf(isBinary bool) kind {
	if isBinary {
		return binary
	}
	return text
}

// asArgument returns stored as the type that drivers bind as text or as bytes.
func asArgument(stored []byte, isBinary bool) any {
	switch {
	case !isBinary:
		return string(stored)
	case stored == nil:
		return []byte{} // nil would be NULL
	default:
		return stored
	}
}

func isInteger(t reflect.Type) bool {
	k := t.Kind()
	return k >= reflect.Int && k <= reflect.Uint64
}

func toInt64(v reflect.Value) (int64, error) {
	if v.CanInt() {
		return v.Int(), nil
	}
	n := int64(v.Uint())
	if n < 0 {
		return 0, fmt.Errorf("%d does not fit an integer column", v.Uint())
	}
	return n, nil
}

// setInt64 sets v, which is of type t, to n.
func setInt64(v reflect.Value, n int64, t reflect.Type) error {
	switch {
	case v.CanInt() && !v.OverflowInt(n):
		v.SetInt(n)
	case v.CanUint() && n >= 0 && !v.OverflowUint(uint64(n)):
		v.SetUint(uint64(n))
	default:
		return fmt.Errorf("stored number %d does not fit %v", n, t)
	}
	return nil
}
