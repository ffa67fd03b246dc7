// Package column says how keys and values are stored in columns of an SQL
// database. It is what store/sqlstore and store/postgres have in common; the
// contracts of the codecs are there.
package column

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// A KeyCodec is the KeyCodec of a store.
type KeyCodec[K comparable] struct {
	Encode func(K) ([]byte, error)
	Decode func([]byte) (K, error) // may be nil
	Binary bool
}

// A ValueCodec is the ValueCodec of a store.
type ValueCodec[V any] struct {
	Encode func(V) ([]byte, error)
	Decode func([]byte) (V, error)
	Binary bool
}

// A Kind is a type of column.
type Kind uint8

// The kinds of columns.
const (
	Text Kind = iota
	Binary
	Integer
)

// MaxKeyBytes is what the primary keys of all databases can take: InnoDB indexes
// 3072 bytes and PostgreSQL 2704, and the journal's has an operation id too.
const MaxKeyBytes = 1024

// A Key is how one type of key is stored.
type Key[K comparable] struct {
	Kind Kind

	// Argument returns what to bind for key, and the text form of that, by
	// which a row in a bulk answer is recognized.
	Argument func(key K) (arg any, id string, err error)

	// Decode returns the key of the column's text form; nil if nobody can tell.
	Decode func(stored []byte) (K, error)
}

// A Value is how one type of value is stored.
type Value[V any] struct {
	Kind     Kind
	Argument func(value V) (any, error) // what to bind

	// Decode returns the value of the column's text form, or of its bytes if it
	// is Binary.
	Decode func(stored []byte) (V, error)
}

// Column returns how keys are stored, or what is wrong with c.
func (c KeyCodec[K]) Column() (Key[K], error) {
	t := reflect.TypeFor[K]()
	col := Key[K]{Kind: kindOf(c.Binary), Decode: c.Decode}
	switch {
	case c.Encode == nil && c.Decode != nil:
		return col, errors.New("has Decode but no Encode")
	case c.Encode != nil:
		col.Argument = func(key K) (any, string, error) {
			stored, err := c.Encode(key)
			if err != nil {
				return nil, "", fmt.Errorf("encode key: %w", err)
			}
			return limited(asArgument(stored, c.Binary), string(stored))
		}
	case c.Binary:
		return col, errors.New("has Binary but no Encode")
	case t.Kind() == reflect.String:
		col.Argument = func(key K) (any, string, error) {
			s := reflect.ValueOf(key).String()
			return limited(s, s)
		}
		col.Decode = func(stored []byte) (key K, err error) {
			reflect.ValueOf(&key).Elem().SetString(string(stored))
			return key, nil
		}
	case isInteger(t):
		col.Kind = Integer
		col.Argument = func(key K) (any, string, error) {
			n, err := toInt64(reflect.ValueOf(key))
			return n, strconv.FormatInt(n, 10), err
		}
		col.Decode = func(stored []byte) (key K, err error) {
			n, err := parseInt64(stored)
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
	if len(id) > MaxKeyBytes {
		return nil, "", fmt.Errorf("key of %d bytes, at most %d can be stored", len(id), MaxKeyBytes)
	}
	return arg, id, nil
}

// Column returns how values are stored, or what is wrong with c.
func (c ValueCodec[V]) Column() (Value[V], error) {
	t := reflect.TypeFor[V]()
	switch {
	case (c.Encode == nil) != (c.Decode == nil):
		return Value[V]{}, errors.New("has only one of Encode and Decode")
	case c.Encode != nil:
		return c.encoded(), nil
	case c.Binary:
		return Value[V]{}, errors.New("has Binary but no Encode")
	case t.Kind() == reflect.String:
		return ofText[V](), nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return ofBytes[V](), nil
	case isInteger(t):
		return ofInteger[V](t), nil
	default:
		return ValueCodec[V]{
			Encode: func(v V) ([]byte, error) { return json.Marshal(v) },
			Decode: func(stored []byte) (v V, err error) { err = DecodeJSON(stored, &v); return v, err },
		}.encoded(), nil
	}
}

func (c ValueCodec[V]) encoded() Value[V] {
	return Value[V]{
		Kind: kindOf(c.Binary),
		Argument: func(v V) (any, error) {
			stored, err := c.Encode(v)
			if err != nil {
				return nil, fmt.Errorf("encode value: %w", err)
			}
			return asArgument(stored, c.Binary), nil
		},
		Decode: c.Decode,
	}
}

func ofText[V any]() Value[V] {
	return Value[V]{
		Kind:     Text,
		Argument: func(v V) (any, error) { return reflect.ValueOf(v).String(), nil },
		Decode: func(stored []byte) (v V, err error) {
			reflect.ValueOf(&v).Elem().SetString(string(stored))
			return v, nil
		},
	}
}

func ofBytes[V any]() Value[V] {
	return Value[V]{
		Kind:     Binary,
		Argument: func(v V) (any, error) { return asArgument(reflect.ValueOf(v).Bytes(), true), nil },
		Decode: func(stored []byte) (v V, err error) {
			reflect.ValueOf(&v).Elem().SetBytes(stored)
			return v, nil
		},
	}
}

func ofInteger[V any](t reflect.Type) Value[V] {
	return Value[V]{
		Kind:     Integer,
		Argument: func(v V) (any, error) { return toInt64(reflect.ValueOf(v)) },
		Decode: func(stored []byte) (v V, err error) {
			n, err := parseInt64(stored)
			if err != nil {
				return v, err
			}
			return v, setInt64(reflect.ValueOf(&v).Elem(), n, t)
		},
	}
}

func kindOf(isBinary bool) Kind {
	if isBinary {
		return Binary
	}
	return Text
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

// parseInt64 is strconv's, whose error has the text in it.
func parseInt64(stored []byte) (int64, error) {
	n, err := strconv.ParseInt(string(stored), 10, 64)
	if err != nil {
		return 0, errors.New("what is stored is no integer")
	}
	return n, nil
}

// DecodeJSON is json.Unmarshal, but its own errors say what does not fit without a
// part of it: values can be personal data. An UnmarshalJSON's are its author's.
func DecodeJSON(stored []byte, v any) error {
	err := json.Unmarshal(stored, v)
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		what, _, _ := strings.Cut(wrong.Value, " ") // behind "number " stands which
		return fmt.Errorf("json: a %s before byte %d does not fit %v", what, wrong.Offset, wrong.Type)
	case errors.As(err, &syntax):
		return fmt.Errorf("json: it is none, from byte %d on", syntax.Offset)
	case strings.HasPrefix(err.Error(), "json: "):
		return fmt.Errorf("json: it does not fit %T", v)
	}
	return err
}

func toInt64(v reflect.Value) (int64, error) {
	if v.CanInt() {
		return v.Int(), nil
	}
	n := int64(v.Uint())
	if n < 0 {
		return 0, errors.New("a number above the largest int64 does not fit an integer column")
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
		return fmt.Errorf("the stored number does not fit %v", t)
	}
	return nil
}
