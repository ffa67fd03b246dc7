package tidemark

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math/bits"
	"reflect"
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// A KeyCodec turns keys into the bytes that other replicas see. It is needed
// only with an Invalidator, and only for keys that are neither strings nor
// integers: a string travels as its bytes, an integer of any type as 8 bytes,
// little endian, sign-extended.
type KeyCodec[K comparable] interface {
	// AppendKey appends the encoding of key to dst and returns it. Equal keys
	// have equal encodings, and different keys different ones.
	AppendKey(dst []byte, key K) []byte

	// ParseKey decodes what AppendKey encoded. It must not keep b.
	ParseKey(b []byte) (K, error)
}

// keyKind is how a key type is hashed and encoded.
type keyKind uint8

const (
	keyString keyKind = iota
	keyInt8           // and uint8, and so on
	keyInt16
	keyInt32
	keyInt64
	keyOther
)

// A keys hashes and encodes keys of one type.
//
// The hash is xxhash64 of a string's bytes, or of an integer's bytes in little
// endian at the width of its type (int, uint and uintptr: 8 bytes). Any other
// comparable key is first reduced to 8 bytes by hash/maphash.Comparable with a
// seed of this process, and those are hashed; such hashes are good for this
// process only, which is all they are used for.
type keys[K comparable] struct {
	kind   keyKind
	signed bool
	seed   maphash.Seed
	codec  KeyCodec[K] // nil: string or integer
}

func newKeys[K comparable](codec KeyCodec[K]) keys[K] {
	k := keys[K]{seed: maphash.MakeSeed(), codec: codec}
	switch t := reflect.TypeFor[K](); t.Kind() {
	case reflect.String:
		k.kind = keyString
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		k.kind, k.signed = intKind(t.Size()), true
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		k.kind = intKind(t.Size())
	default:
		k.kind = keyOther
	}
	return k
}

func intKind(size uintptr) keyKind {
	switch size {
	case 1:
		return keyInt8
	case 2:
		return keyInt16
	case 4:
		return keyInt32
	default:
		return keyInt64
	}
}

// hash returns the key's hash. It allocates nothing.
//
// The conversions by unsafe.Pointer are sound because newKeys has checked that
// K's underlying type is the one that kind names.
func (k *keys[K]) hash(key K) uint64 {
	switch k.kind {
	case keyString:
		return xxhash.Sum64String(*(*string)(unsafe.Pointer(&key)))
	case keyInt64:
		return hash8(*(*uint64)(unsafe.Pointer(&key)))
	default:
		return k.hashOther(key)
	}
}

// hash8 is xxhash.Sum64 of the eight bytes of x, little endian, where a call would
// take longer than the hash.
func hash8(x uint64) uint64 {
	const p1, p2, p3, p4, p5 = 11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261
	h := bits.RotateLeft64((p5+8)^bits.RotateLeft64(x*p2, 31)*p1, 27)*p1 + p4
	h ^= h >> 33
	h *= p2
	h ^= h >> 29
	h *= p3
	return h ^ h>>32
}

//go:noinline
func (k *keys[K]) hashOther(key K) uint64 {
	var b [8]byte
	n := 8
	switch k.kind {
	case keyInt8:
		b[0], n = *(*uint8)(unsafe.Pointer(&key)), 1
	case keyInt16:
		binary.LittleEndian.PutUint16(b[:], *(*uint16)(unsafe.Pointer(&key)))
		n = 2
	case keyInt32:
		binary.LittleEndian.PutUint32(b[:], *(*uint32)(unsafe.Pointer(&key)))
		n = 4
	default:
		binary.LittleEndian.PutUint64(b[:], maphash.Comparable(k.seed, key))
	}
	return xxhash.Sum64(b[:n])
}

// encodable reports whether keys of this type can travel.
func (k *keys[K]) encodable() bool { return k.codec != nil || k.kind != keyOther }

// encode appends the wire form of key to dst.
func (k *keys[K]) encode(dst []byte, key K) []byte {
	switch {
	case k.codec != nil:
		return k.codec.AppendKey(dst, key)
	case k.kind == keyString:
		return append(dst, *(*string)(unsafe.Pointer(&key))...)
	default:
		v := reflect.ValueOf(key)
		if k.signed {
			return binary.LittleEndian.AppendUint64(dst, uint64(v.Int()))
		}
		return binary.LittleEndian.AppendUint64(dst, v.Uint())
	}
}

var errBadKey = errors.New("tidemark: key bytes do not fit the key type")

// decode parses the wire form of a key. It copies what it keeps.
func (k *keys[K]) decode(b []byte) (key K, err error) {
	switch {
	case k.codec != nil:
		return k.codec.ParseKey(b)
	case k.kind == keyString:
		*(*string)(unsafe.Pointer(&key)) = string(b)
		return key, nil
	case len(b) != 8:
		return key, errBadKey
	}
	u := binary.LittleEndian.Uint64(b)
	v := reflect.ValueOf(&key).Elem()
	if k.signed {
		if v.OverflowInt(int64(u)) {
			return key, errBadKey
		}
		v.SetInt(int64(u))
	} else {
		if v.OverflowUint(u) {
			return key, errBadKey
		}
		v.SetUint(u)
	}
	return key, nil
}

// view is decode without a codec, of a key that is not kept: a string shares b's
// bytes, and is another when they change.
func (k *keys[K]) view(b []byte) (key K, err error) {
	switch {
	case k.kind == keyString:
		*(*string)(unsafe.Pointer(&key)) = unsafe.String(unsafe.SliceData(b), len(b))
		return key, nil
	case k.kind == keyInt64 && len(b) == 8:
		*(*uint64)(unsafe.Pointer(&key)) = binary.LittleEndian.Uint64(b)
		return key, nil
	}
	return k.decode(b)
}

// checkKeyType refuses key types that could panic when they are hashed or
// compared, which are interfaces, or whose values are not equal to themselves,
// which are floating-point numbers; and what contains them.
func checkKeyType(t reflect.Type) error {
	switch t.Kind() {
	case reflect.Interface:
		return fmt.Errorf("%v may hold values that cannot be compared", t)
	case reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return fmt.Errorf("%v has values that are not equal to themselves", t)
	case reflect.Array:
		return checkKeyType(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if err := checkKeyType(f.Type); err != nil {
				return err
			}
		}
	}
	return nil
}
