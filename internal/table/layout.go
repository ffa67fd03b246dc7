package table

import (
	"encoding/binary"
	"reflect"
	"sync/atomic"
	"unsafe"
)

// A Layout says what a cell looks like: a sequence number, the key, the value and
// the head, each of them whole words.
//
//	seq | key: 1 or 3 words | value: up to 16 words | head
//
// A string of up to 23 bytes lies in its cell, with its length in the last byte,
// and so does an integer. Any other key is in a box of its own, and its cell has
// its hash, and its length if it is a string.
//
// A value of up to 128 bytes lies in its cell if it holds no pointers. If it does,
// it lies beside the cells in an array of V, in which the garbage collector sees
// them; it is written and read there word by word all the same. A larger value has
// a box, which is not changed but replaced.
type Layout[K comparable, V, H any] struct {
	hash func(K) uint64

	keyKind   keyKind
	valueKind valueKind
	pointers  uint32 // which words of a value are pointers, if it is beside

	valueAt uintptr
	headAt  uintptr
	stride  uintptr
}

type keyKind uint8

const (
	integer keyKind = iota // 8 bytes or less, which are its identity
	text                   // a string
	boxed
)

type valueKind uint8

const (
	inside valueKind = iota // in the cell
	beside                  // in an array of V
	apart                   // in a box
)

const (
	word       = 8
	inlineText = 23
	maxValue   = 16 * word

	// boxMark is in the place of a string's length if it is in a box; then its
	// length is in the rest of the word.
	boxMark = 0xff << 56
)

// NewLayout returns the layout of a table of these types. hash must be the one
// that is given to its methods.
func NewLayout[K comparable, V, H any](hash func(K) uint64) *Layout[K, V, H] {
	l := &Layout[K, V, H]{hash: hash}
	keyWords := uintptr(1)
	switch t := reflect.TypeFor[K](); t.Kind() {
	case reflect.String:
		l.keyKind, keyWords = text, 3
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		l.keyKind = integer
	default:
		l.keyKind = boxed
	}
	l.valueAt = word + keyWords*word
	l.headAt = l.valueAt
	size, pointers := unsafe.Sizeof(*new(V)), uint32(0)
	if size <= maxValue {
		pointers = pointerWords(reflect.TypeFor[V](), 0)
	}
	switch {
	case size > maxValue, pointers != 0 && unsafe.Sizeof(uintptr(0)) != word:
		l.valueKind = apart
	case pointers != 0:
		l.valueKind, l.pointers = beside, pointers
	default:
		l.headAt += roundUp(size)
	}
	l.stride = l.headAt + roundUp(unsafe.Sizeof(*new(H)))
	return l
}

func roundUp(size uintptr) uintptr { return (size + word - 1) &^ (word - 1) }

// pointerWords returns which words of a t at the offset off hold pointers; bit 31
// stands for all from there on.
func pointerWords(t reflect.Type, off uintptr) (set uint32) {
	at := func(n uintptr) uint32 {
		return 1 << min((off+n*unsafe.Sizeof(uintptr(0)))/unsafe.Sizeof(uintptr(0)), 31)
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.UnsafePointer, reflect.Map, reflect.Chan, reflect.Func, reflect.String, reflect.Slice:
		return at(0)
	case reflect.Interface:
		return at(0) | at(1)
	case reflect.Array:
		for i := range min(t.Len(), maxValue+1) {
			set |= pointerWords(t.Elem(), off+uintptr(i)*t.Elem().Size())
		}
	case reflect.Struct:
		for f := range t.Fields() {
			set |= pointerWords(f.Type, off+f.Offset)
		}
	}
	return set
}

// The words of a key, as they stand in its cell.
type words struct {
	w     [3]uint64
	boxed bool // it is not in its cell, so that the words only say where to look
}

func (l *Layout[K, V, H]) wordsOf(key *K, hash uint64) (k words) {
	switch l.keyKind {
	case integer:
		k.w[0] = integerWord(key)
	case text:
		s := *(*string)(unsafe.Pointer(key))
		if len(s) > inlineText {
			k.w[0], k.w[2], k.boxed = hash, boxMark|uint64(len(s)), true
			break
		}
		k.w = l.textWords(s)
	default:
		k.w[0], k.boxed = hash, true
	}
	return k
}

func integerWord[K comparable](key *K) uint64 {
	switch p := unsafe.Pointer(key); unsafe.Sizeof(*key) {
	case 8:
		return *(*uint64)(p)
	case 4:
		return uint64(*(*uint32)(p))
	case 2:
		return uint64(*(*uint16)(p))
	default:
		return uint64(*(*uint8)(p))
	}
}

func setInteger[K comparable](key *K, x uint64) {
	switch p := unsafe.Pointer(key); unsafe.Sizeof(*key) {
	case 8:
		*(*uint64)(p) = x
	case 4:
		*(*uint32)(p) = uint32(x)
	case 2:
		*(*uint16)(p) = uint16(x)
	default:
		*(*uint8)(p) = uint8(x)
	}
}

// textWords returns the bytes of s and its length. The last of the bytes are read
// with those before them in one word, which is shifted into its place.
func (l *Layout[K, V, H]) textWords(s string) (w [3]uint64) {
	p, n := unsafe.Pointer(unsafe.StringData(s)), len(s)
	switch {
	case n >= 2*word:
		w[0], w[1], w[2] = l.le64(p, 0), l.le64(p, word), l.le64(p, n-word)>>(8*(3*word-n))
	case n >= word:
		w[0], w[1] = l.le64(p, 0), l.le64(p, n-word)>>(8*(2*word-n))
	default:
		for i := range n {
			w[0] |= uint64(s[i]) << (8 * i)
		}
	}
	w[2] |= uint64(n) << 56
	return w
}

func (l *Layout[K, V, H]) load(p unsafe.Pointer, off uintptr) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Add(p, off)))
}

func (l *Layout[K, V, H]) store(p unsafe.Pointer, off uintptr, x uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Add(p, off)), x)
}

func (l *Layout[K, V, H]) le64(p unsafe.Pointer, off int) uint64 {
	return binary.LittleEndian.Uint64((*[word]byte)(unsafe.Add(p, off))[:])
}

// hasKey reports whether the key is in the cell c, and not in a box.
func (l *Layout[K, V, H]) hasKey(c unsafe.Pointer, key *K) bool {
	switch l.keyKind {
	case integer:
		return l.load(c, word) == integerWord(key)
	case text:
		s := *(*string)(unsafe.Pointer(key))
		if len(s) > inlineText {
			return false
		}
		w := l.textWords(s)
		return l.load(c, word)^w[0]|l.load(c, 2*word)^w[1]|l.load(c, 3*word)^w[2] == 0
	}
	return false
}

// hasBoxed reports whether the key, which has this hash, is in the box of cell c,
// which is number i and had the sequence number seq; see inBox.
func (l *Layout[K, V, H]) hasBoxed(b *block[K], c unsafe.Pointer, i, seq, hash uint64, key *K) bool {
	if l.keyKind == integer || l.load(c, word) != hash {
		return false
	}
	if l.keyKind == text && l.load(c, 3*word) != boxMark|uint64(len(*(*string)(unsafe.Pointer(key)))) {
		return false
	}
	return l.inBox(b, c, i, seq, key)
}

// inBox reports whether the key is in the box of cell c, whose words say that it may
// be. If the cell has not held still since its sequence number was seq, the box may
// be that of another key, and of another length: nothing is read of it, and the
// answer is that the key is there, so that the caller begins anew when it asks Valid.
func (l *Layout[K, V, H]) inBox(b *block[K], c unsafe.Pointer, i, seq uint64, key *K) bool {
	kept := b.box(i)
	if l.load(c, 0) != seq {
		return true
	}
	if kept == nil {
		return false
	}
	if l.keyKind == text {
		s := *(*string)(unsafe.Pointer(key))
		return unsafe.String((*byte)(kept), len(s)) == s
	}
	return *(*K)(kept) == *key
}

// textOf is the reverse of textWords. The words may be those of a cell that is
// changing, and then mean nothing.
func (l *Layout[K, V, H]) textOf(c unsafe.Pointer, buf *[3 * word]byte) []byte {
	for i := range uintptr(3) {
		binary.LittleEndian.PutUint64(buf[i*word:], l.load(c, word+i*word))
	}
	return buf[:min(buf[inlineText], inlineText)]
}

// sameWords reports whether the cell c has these words for a key.
func (l *Layout[K, V, H]) sameWords(c unsafe.Pointer, k *words) bool {
	d := l.load(c, word) ^ k.w[0]
	if l.keyKind == text {
		d |= l.load(c, 2*word) ^ k.w[1] | l.load(c, 3*word) ^ k.w[2]
	}
	return d == 0
}

// sameKey reports whether cell c, which is number i and had the sequence number seq,
// has this key; see inBox.
func (l *Layout[K, V, H]) sameKey(b *block[K], c unsafe.Pointer, i, seq uint64, k *words, key *K) bool {
	return l.sameWords(c, k) && (!k.boxed || l.inBox(b, c, i, seq, key))
}

// setKey writes a key into cell i, which is not readable. Who was already looking at
// the cell may see some of it.
func (l *Layout[K, V, H]) setKey(b *block[K], i uint64, key *K, hash uint64) {
	k, c := l.wordsOf(key, hash), b.cell(i)
	switch {
	case k.boxed && l.keyKind == text:
		b.setBox(i, unsafe.Pointer(unsafe.StringData(*(*string)(unsafe.Pointer(key)))))
	case k.boxed:
		kept := *key
		b.setBox(i, unsafe.Pointer(&kept))
	}
	l.store(c, word, k.w[0])
	if l.keyKind == text {
		l.store(c, 2*word, k.w[1])
		l.store(c, 3*word, k.w[2])
	}
}

// keyAt returns the key of the cell at r, and whether there is one.
func (l *Layout[K, V, H]) keyAt(b *block[K], r *Ref[H]) (key K, ok bool) {
	c, p := unsafe.Pointer(r.seq), unsafe.Pointer(&key)
	switch {
	case l.keyKind == integer:
		setInteger(&key, l.load(c, word))
		return key, r.saw&dead == 0
	case l.keyKind == text && l.load(c, 3*word) < boxMark:
		var buf [3 * word]byte
		*(*string)(p) = string(l.textOf(c, &buf))
		return key, r.saw&dead == 0
	}
	size, kept := l.load(c, 3*word)&^boxMark, b.box(r.index)
	switch {
	case !r.Valid() || r.saw&dead != 0 || kept == nil: // they may not belong together
		return key, false
	case l.keyKind == text:
		*(*string)(p) = unsafe.String((*byte)(kept), int(size))
	default:
		key = *(*K)(kept)
	}
	return key, true
}

// Hash returns the hash of the cell's key. For writers only.
func (l *Layout[K, V, H]) Hash(r Ref[H]) uint64 {
	c := unsafe.Pointer(r.seq)
	switch {
	case l.keyKind == boxed, l.keyKind == text && l.load(c, 3*word) >= boxMark:
		return l.load(c, word)
	case l.keyKind == text:
		var buf [3 * word]byte
		b := l.textOf(c, &buf)
		s := unsafe.String(unsafe.SliceData(b), len(b))
		return l.hash(*(*K)(unsafe.Pointer(&s)))
	}
	var key K
	setInteger(&key, l.load(c, word))
	return l.hash(key)
}

// newValues returns where values are that are not in the cells, and what keeps
// them.
func (l *Layout[K, V, H]) newValues(n int) (unsafe.Pointer, any) {
	switch l.valueKind {
	case beside:
		all := make([]V, n)
		return unsafe.Pointer(&all[0]), all
	case apart:
		all := make([]unsafe.Pointer, n)
		return unsafe.Pointer(&all[0]), all
	}
	return nil, nil
}

// valueOf returns where the value of cell c, which is number i, is.
func (l *Layout[K, V, H]) valueOf(values, c unsafe.Pointer, i uint64) unsafe.Pointer {
	switch l.valueKind {
	case inside:
		return unsafe.Add(c, l.valueAt)
	case beside:
		return unsafe.Add(values, uintptr(i)*unsafe.Sizeof(*new(V)))
	default:
		return unsafe.Add(values, uintptr(i)*unsafe.Sizeof(uintptr(0)))
	}
}

// copyValue copies the value of cell c, which is number i, to v.
func (l *Layout[K, V, H]) copyValue(b *block[K], c unsafe.Pointer, i uint64, v *V) {
	if l.valueKind == inside && unsafe.Sizeof(*v)%word == 0 && unsafe.Alignof(*v) == word {
		// The size is a constant, and the conditions are no code.
		from, to, size := unsafe.Add(c, l.valueAt), unsafe.Pointer(v), unsafe.Sizeof(*v)
		if size >= 1*word {
			*(*uint64)(to) = l.load(from, 0)
		}
		if size >= 2*word {
			*(*uint64)(unsafe.Add(to, 1*word)) = l.load(from, 1*word)
		}
		if size >= 3*word {
			*(*uint64)(unsafe.Add(to, 2*word)) = l.load(from, 2*word)
		}
		if size >= 4*word {
			*(*uint64)(unsafe.Add(to, 3*word)) = l.load(from, 3*word)
		}
		for off := uintptr(4 * word); off < size; off += word {
			*(*uint64)(unsafe.Add(to, off)) = l.load(from, off)
		}
		return
	}
	l.copyOther(l.valueOf(b.values, c, i), v)
}

// copyOther is copyValue for values that are not whole words in the cell.
//
//go:noinline
func (l *Layout[K, V, H]) copyOther(p unsafe.Pointer, v *V) {
	switch l.valueKind {
	case inside:
		var whole [maxValue / word]uint64
		for off := uintptr(0); off < unsafe.Sizeof(*v); off += word {
			whole[off/word] = l.load(p, off)
		}
		*v = *(*V)(unsafe.Pointer(&whole))
	case beside:
		for off := uintptr(0); off < unsafe.Sizeof(*v); off += word {
			to, from := unsafe.Add(unsafe.Pointer(v), off), unsafe.Add(p, off)
			if l.pointers>>(off/word)&1 != 0 {
				*(*unsafe.Pointer)(to) = atomic.LoadPointer((*unsafe.Pointer)(from))
			} else {
				*(*uint64)(to) = atomic.LoadUint64((*uint64)(from))
			}
		}
	default:
		if kept := (*V)(atomic.LoadPointer((*unsafe.Pointer)(p))); kept != nil {
			*v = *kept
		}
	}
}

// SetValue writes the value of a cell that is not readable.
func (t *Table[K, V, H]) SetValue(r Ref[H], v *V) {
	t.setValue(t.valueOf(t.current.Load().values, unsafe.Pointer(r.seq), r.index), v)
}

func (l *Layout[K, V, H]) setValue(p unsafe.Pointer, v *V) {
	switch l.valueKind {
	case inside:
		if unsafe.Sizeof(*v)%word == 0 && unsafe.Alignof(*v) == word {
			for off := uintptr(0); off < unsafe.Sizeof(*v); off += word {
				l.store(p, off, *(*uint64)(unsafe.Add(unsafe.Pointer(v), off)))
			}
			return
		}
		var whole [maxValue / word]uint64
		*(*V)(unsafe.Pointer(&whole)) = *v
		for off := uintptr(0); off < unsafe.Sizeof(*v); off += word {
			l.store(p, off, whole[off/word])
		}
	case beside:
		for off := uintptr(0); off < unsafe.Sizeof(*v); off += word {
			from, to := unsafe.Add(unsafe.Pointer(v), off), unsafe.Add(p, off)
			if l.pointers>>(off/word)&1 != 0 {
				atomic.StorePointer((*unsafe.Pointer)(to), *(*unsafe.Pointer)(from))
			} else {
				atomic.StoreUint64((*uint64)(to), *(*uint64)(from))
			}
		}
	default:
		kept := *v
		atomic.StorePointer((*unsafe.Pointer)(p), unsafe.Pointer(&kept))
	}
}

// clearValue lets go of what the value of a cell points to.
func (l *Layout[K, V, H]) clearValue(b *block[K], r Ref[H]) {
	switch p := l.valueOf(b.values, unsafe.Pointer(r.seq), r.index); l.valueKind {
	case beside:
		l.setValue(p, new(V))
	case apart:
		atomic.StorePointer((*unsafe.Pointer)(p), nil)
	}
}

func (l *Layout[K, V, H]) clearHead(r Ref[H]) {
	for off := uintptr(0); off < unsafe.Sizeof(*r.Head); off += word {
		l.store(unsafe.Pointer(r.Head), off, 0)
	}
}

// move copies a cell to one of a block that nobody reads yet.
func (t *Table[K, V, H]) move(b *block[K], to uint64, old *block[K], i uint64) {
	for off := uintptr(word); off < t.stride; off += word {
		*(*uint64)(unsafe.Add(b.cell(to), off)) = t.load(old.cell(i), off)
	}
	from, into := t.valueOf(old.values, old.cell(i), i), t.valueOf(b.values, b.cell(to), to)
	switch t.valueKind {
	case beside:
		t.copyOther(from, (*V)(into))
	case apart:
		*(*unsafe.Pointer)(into) = atomic.LoadPointer((*unsafe.Pointer)(from))
	}
	if kept := old.box(i); kept != nil {
		b.setBox(to, kept)
	}
}
