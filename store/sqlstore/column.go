package sqlstore

import "github.com/tidemark-go/tidemark/internal/column"

// A KeyCodec turns keys into what the key column holds. The zero KeyCodec
// stores string kinds as text and integer kinds as integers.
type KeyCodec[K comparable] struct {
	// Encode returns the stored form of a key: the same bytes for equal keys,
	// different ones for different keys. It must be safe for concurrent use.
	Encode func(K) ([]byte, error)

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

func (c KeyCodec[K]) column() (column.Key[K], error)     { return column.KeyCodec[K](c).Column() }
func (c ValueCodec[V]) column() (column.Value[V], error) { return column.ValueCodec[V](c).Column() }
