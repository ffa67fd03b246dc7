// Package table is the hash table of one shard: readers take no lock, writers
// are serialized by their caller.
//
// A key's state lies in one cell: its key, its value and a head, which is what
// the caller wants to know of it, one after the other in memory that holds no
// pointers, so that a hit costs a control word and a cell, a Put of a present
// key allocates nothing, and the garbage collector has nothing to look at. A
// cell changes in place, under a sequence number: readers copy what they need
// and ask afterwards whether it held still. Every word that readers and writers
// share is accessed atomically, so nothing here is a data race, with the race
// detector or without.
//
// Seven cells make a group, with one control word: a byte of each key's hash, and
// whether a key has found the group full and went on. Where those go is
// double hashing: only keys of equal hash follow each other's path, and any number
// of them leaves the others at the cost that the load factor gives. Who chooses keys
// can make as many of equal hash as he likes, and every search for one of them passes
// the others: [Table.Crowded] says when there are too many.
//
// A reader may hold a block that a writer has replaced meanwhile. That block
// no longer changes, so what the reader finds there was current at a moment
// after its call began: reads are linearizable.
package table

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// A Table maps keys to cells, each with a value V and a head H. H must consist of
// atomics, and of fields that only writers look at; it must not hold pointers.
//
// Load, Aim, Prefetch, Valid and All may run beside everything; the others must not run
// beside each other. Use Init.
type Table[K comparable, V, H any] struct {
	current atomic.Pointer[block[K]]
	*Layout[K, V, H]

	_ [64]byte // keeps readers off the line that writers write

	live  int    // cells in use; for writers only
	most  int    // how many are expected at most
	given uint64 // how often Crowded has named a cell
}

// A block is the memory of a table until it grows.
type block[K comparable] struct {
	groups uint64
	ctrl   unsafe.Pointer // *[groups]uint64
	cells  unsafe.Pointer // *[groups*slots]cell
	values unsafe.Pointer // *[groups*slots]V, or of pointers to V, if they are not in the cells
	stride uintptr

	boxes unsafe.Pointer // *[groups*slots] of pointers to the keys that are not in their cells; nil until there is one

	passed []uint32 // for each group, how many keys found it full and went on; for writers only

	words []uint64 // ctrl and cells point into it
	owner any      // values points into it
}

// The control word of a group has a tag for each of its cells, which is 0 where
// there is none, and a top byte that is not 0 if a key has gone on.
const (
	slots   = 7
	tagBits = 0x00ffffffffffffff
	wentOn  = 1 << 56
)

// The two lowest bits of a sequence number. It counts in steps of next.
const (
	writing = 1 // a writer is at work
	dead    = 2 // the cell holds nothing
	next    = 4
)

// A Ref is a cell in which a key was found, or is about to be stored. The zero Ref
// is none.
type Ref[H any] struct {
	Head  *H
	seq   *uint64
	saw   uint64 // the sequence number when the key was found
	index uint64 // of the cell
}

// Valid reports whether the cell has held still since it was found: all that was
// read of it in between belongs together, and to the key.
func (r *Ref[H]) Valid() bool { return atomic.LoadUint64(r.seq) == r.saw }

// Same reports whether both are the same cell.
func (r Ref[H]) Same(other Ref[H]) bool { return r.seq == other.seq }

// Init makes the zero Table an empty one. It grows by doubling until it has room for
// so many keys as are expected at most, and then by a quarter.
func (t *Table[K, V, H]) Init(l *Layout[K, V, H], most int) {
	t.Layout, t.most = l, most
	t.current.Store(t.newBlock(1))
}

// room returns how many keys so many groups take.
func room(groups uint64) int { return int(groups * slots * 7 / 8) }

func (t *Table[K, V, H]) newBlock(n int) *block[K] {
	groups := uint64(1)
	for room(groups) < n {
		groups = max(groups+1, uint64(n)*8/7/slots)
	}
	groups = prime(groups)
	b := &block[K]{groups: groups, stride: t.stride}
	const line = 8 // words: cells begin at a line of the processor's cache, if the block does
	ctrl := (groups + line - 1) &^ (line - 1)
	b.passed = make([]uint32, groups)
	b.words = make([]uint64, ctrl+groups*slots*uint64(t.stride/8))
	b.ctrl = unsafe.Pointer(&b.words[0])
	b.cells = unsafe.Pointer(&b.words[ctrl])
	b.values, b.owner = t.newValues(int(groups * slots))
	if t.keyKind == boxed {
		b.makeBoxes()
	}
	return b
}

func (b *block[K]) makeBoxes() {
	boxes := make([]unsafe.Pointer, b.groups*slots)
	atomic.StorePointer(&b.boxes, unsafe.Pointer(&boxes[0]))
}

// box returns what is in box i: a pointer to a key, or, if it is a string, to its
// bytes. It is nil if nothing is.
func (b *block[K]) box(i uint64) unsafe.Pointer {
	boxes := atomic.LoadPointer(&b.boxes)
	if boxes == nil {
		return nil
	}
	return atomic.LoadPointer((*unsafe.Pointer)(unsafe.Add(boxes, uintptr(i)*unsafe.Sizeof(boxes))))
}

// setBox is the reverse of box.
func (b *block[K]) setBox(i uint64, p unsafe.Pointer) {
	if atomic.LoadPointer(&b.boxes) == nil {
		if p == nil {
			return
		}
		b.makeBoxes()
	}
	atomic.StorePointer((*unsafe.Pointer)(unsafe.Add(b.boxes, uintptr(i)*unsafe.Sizeof(p))), p)
}

// prime returns the least prime from n on: with that many groups every distance
// between probes visits all of them.
func prime(n uint64) uint64 {
	for ; ; n++ {
		composite := false
		for d := uint64(2); d*d <= n && !composite; d++ {
			composite = n%d == 0
		}
		if !composite {
			return n
		}
	}
}

// What is short and used on the way to a hit are methods of generic types: those
// are inlined wherever a table is instantiated. Functions are not, where that is
// in a package that does not import this one.

// home returns the group at which the search for a hash begins. Its top bits are
// the caller's, to choose a shard by.
func (b *block[K]) home(hash uint64) uint64 {
	g, _ := bits.Mul64(hash<<16, b.groups)
	return g
}

// after returns the group where the search goes on.
func (b *block[K]) after(g, hash uint64) uint64 {
	step, _ := bits.Mul64(hash*0x9e3779b97f4a7c15, b.groups-1)
	if g += step + 1; g >= b.groups {
		g -= b.groups
	}
	return g
}

func (b *block[K]) control(g uint64) *uint64 { return (*uint64)(unsafe.Add(b.ctrl, g<<3)) }

func (b *block[K]) cell(i uint64) unsafe.Pointer { return unsafe.Add(b.cells, uintptr(i)*b.stride) }

// tag returns the byte that stands for a hash in a control word.
func (b *block[K]) tag(hash uint64) uint64 {
	t := hash & 0xff
	return t + (t-1)>>63
}

// matches returns a word with bit 7 of each of the first seven bytes of w set
// that is t.
func (b *block[K]) matches(w, t uint64) uint64 {
	const low7 = 0x7f7f7f7f7f7f7f7f
	x := w ^ t*0x0101010101010101
	return ^((x&low7 + low7) | x | low7) & tagBits
}

// first returns the number of the first byte that matches.
func (b *block[K]) first(m uint64) uint64 { return uint64(bits.TrailingZeros64(m)) >> 3 }

// at returns the Ref of cell i, found when its sequence number was seq.
func (t *Table[K, V, H]) at(b *block[K], i, seq uint64) Ref[H] {
	c := b.cell(i)
	return Ref[H]{(*H)(unsafe.Add(c, t.headAt)), (*uint64)(c), seq, i}
}

// Load returns the key's cell and copies its value to v. The caller must ask Valid
// when it has read what it wants of the head, and otherwise begin anew.
//
// Nearly always the key is in the first cell of its first group that has its tag:
// that case is here, without a call or a loop, and any other in search.
func (t *Table[K, V, H]) Load(hash uint64, key K, v *V) (r Ref[H], ok bool) {
	b := t.current.Load()
	g := b.home(hash)
	if m := b.matches(atomic.LoadUint64(b.control(g)), b.tag(hash)); m != 0 {
		i := g*slots + b.first(m)
		c := b.cell(i)
		seq := t.load(c, 0)
		differs := seq & (writing | dead)
		switch t.keyKind {
		case integer:
			differs |= t.load(c, word) ^ integerWord(&key)
		case text:
			s := *(*string)(unsafe.Pointer(&key))
			p, n := unsafe.Pointer(unsafe.StringData(s)), len(s)
			switch {
			case n >= 2*word && n <= inlineText:
				differs |= t.load(c, word) ^ t.le64(p, 0) | t.load(c, 2*word) ^ t.le64(p, word) |
					t.load(c, 3*word) ^ (t.le64(p, n-word)>>(8*(3*word-n)) | uint64(n)<<56)
			case n >= word && n < 2*word:
				differs |= t.load(c, word) ^ t.le64(p, 0) | t.load(c, 2*word) ^ t.le64(p, n-word)>>(8*(2*word-n)) |
					t.load(c, 3*word) ^ uint64(n)<<56
			case n > inlineText:
				if differs != 0 || !t.hasBoxed(b, c, i, seq, hash, &key) { // what is written now has no length yet
					differs = 1
				}
			case !t.hasKey(c, &key):
				differs = 1
			}
		case boxed:
			if differs != 0 || !t.hasBoxed(b, c, i, seq, hash, &key) {
				differs = 1
			}
		}
		if differs == 0 {
			if size := unsafe.Sizeof(*v); t.valueKind == inside && size == 4*word && unsafe.Alignof(*v) == word {
				w, from := (*[4]uint64)(unsafe.Pointer(v)), unsafe.Add(c, t.valueAt) // as copyValue does
				w[0], w[1], w[2], w[3] = t.load(from, 0), t.load(from, word), t.load(from, 2*word), t.load(from, 3*word)
			} else {
				t.copyValue(b, c, i, v)
			}
			return Ref[H]{(*H)(unsafe.Add(c, t.headAt)), (*uint64)(c), seq, i}, true
		}
	}
	if r, ok = t.search(b, hash, key); ok {
		t.copyValue(b, unsafe.Pointer(r.seq), r.index, v)
	}
	return r, ok
}

// Aim returns what Prefetch needs to know of a hash. Both are for who is about to
// Load several keys: their memory is asked for before any of it is waited for, if
// all Aims come before all Prefetches, in loops that do nothing else.
func (t *Table[K, V, H]) Aim(hash uint64) (aim uint64) {
	b := t.current.Load()
	return atomic.LoadUint64(b.control(b.home(hash)))
}

// Prefetch asks for the cell of a key of this hash, as a rule.
func (t *Table[K, V, H]) Prefetch(hash, aim uint64) {
	b := t.current.Load()
	m := b.matches(aim, b.tag(hash)) | 1<<(slots*8-1) // no branch to guess
	c := b.cell(b.home(hash)*slots + b.first(m))
	t.load(c, 0)
	t.load(c, t.headAt)
}

// Find returns the key's cell. For writers only.
func (t *Table[K, V, H]) Find(hash uint64, key K) (r Ref[H], ok bool) {
	b := t.current.Load()
	g := b.home(hash)
	if m := b.matches(atomic.LoadUint64(b.control(g)), b.tag(hash)); m != 0 {
		i := g*slots + b.first(m)
		c := b.cell(i)
		if seq := t.load(c, 0); seq&(writing|dead) == 0 && (t.hasKey(c, &key) || t.hasBoxed(b, c, i, seq, hash, &key)) {
			return t.at(b, i, seq), true
		}
	}
	return t.search(b, hash, key)
}

// search looks for a key in all the cells where it may be.
//
//go:noinline
func (t *Table[K, V, H]) search(b *block[K], hash uint64, key K) (r Ref[H], ok bool) {
	k := t.wordsOf(&key, hash)
	g := b.home(hash)
	for range b.groups {
		w := atomic.LoadUint64(b.control(g))
		for m := b.matches(w, b.tag(hash)); m != 0; m &= m - 1 {
			i := g*slots + b.first(m)
			c := b.cell(i)
			seq := t.load(c, 0)
			for seq&writing != 0 && t.sameWords(c, &k) { // nearly done
				runtime.Gosched()
				seq = t.load(c, 0)
			}
			if seq&(writing|dead) == 0 && t.sameKey(b, c, i, seq, &k, &key) {
				return t.at(b, i, seq), true
			}
		}
		if w < wentOn {
			break
		}
		g = b.after(g, hash)
	}
	return Ref[H]{}, false
}

// FindFunc returns the first of the cells in which a key of this hash may be for
// which ok returns true. Now and then one of another hash is asked for too. For
// writers only.
func (t *Table[K, V, H]) FindFunc(hash uint64, ok func(Ref[H]) bool) (Ref[H], bool) {
	b := t.current.Load()
	g := b.home(hash)
	for range b.groups {
		w := atomic.LoadUint64(b.control(g))
		for m := b.matches(w, b.tag(hash)); m != 0; m &= m - 1 {
			i := g*slots + b.first(m)
			if r := t.at(b, i, t.load(b.cell(i), 0)); ok(r) {
				return r, true
			}
		}
		if w < wentOn {
			break
		}
		g = b.after(g, hash)
	}
	return Ref[H]{}, false
}

// Begin lets the caller write into a cell: until End no reader sees what is in it,
// and who looks for its key waits. In between there must be no other call but
// SetValue.
func (t *Table[K, V, H]) Begin(r Ref[H]) { atomic.StoreUint64(r.seq, r.saw|writing) }

// End makes what was written since Begin readable.
func (t *Table[K, V, H]) End(r Ref[H]) { atomic.StoreUint64(r.seq, r.saw+next) }

// Insert returns a new cell for a key that has none, for the caller to write into
// it: its head is zero. No reader sees it before Publish. In between there must be
// no other call but SetValue.
func (t *Table[K, V, H]) Insert(hash uint64, key K) Ref[H] {
	b := t.current.Load()
	if t.live >= room(b.groups) {
		n := t.live + t.live/4 // more than expected: not many more, as a rule
		if t.live < t.most {
			n = min(2*t.live, t.most)
		}
		t.rebuild(n)
		b = t.current.Load()
	}
	t.live++
	i := b.take(hash)
	c := b.cell(i)
	r := t.at(b, i, t.load(c, 0))
	atomic.StoreUint64(r.seq, r.saw|writing)
	t.setKey(b, i, &key, hash)
	return r
}

// maxPath is how many groups a search should look at. Among keys that nobody has
// chosen for it, at the highest load, one in ten million finds that many full.
const maxPath = 32

// Crowded reports whether the groups where a new key of this hash would first be
// looked for are all full, and then names a cell in them, which should be deleted
// before Insert: that of a key of the same hash if there is one, and so of the same
// flood. Otherwise searches have no bound but the number of keys. For writers only.
func (t *Table[K, V, H]) Crowded(hash uint64) (victim Ref[H], crowded bool) {
	b := t.current.Load()
	if b.groups <= maxPath {
		return Ref[H]{}, false
	}
	var path [maxPath]uint64
	g := b.home(hash)
	for i := range path {
		if b.matches(atomic.LoadUint64(b.control(g)), 0) != 0 {
			return Ref[H]{}, false
		}
		path[i] = g
		g = b.after(g, hash)
	}
	t.given++ // one after the other: the newest of a flood are no safer
	for n := range uint64(maxPath * slots) {
		i := path[(t.given+n)/slots%maxPath]*slots + (t.given+n)%slots
		if r := t.at(b, i, t.load(b.cell(i), 0)); t.Hash(r) == hash {
			return r, true
		}
	}
	i := path[maxPath-1]*slots + t.given%slots
	return t.at(b, i, t.load(b.cell(i), 0)), true
}

// Publish makes a cell readable that Insert has returned for a key of this hash.
func (t *Table[K, V, H]) Publish(r Ref[H], hash uint64) {
	b := t.current.Load()
	atomic.StoreUint64(r.seq, r.saw&^dead+next)
	ctrl := b.control(r.index / slots)
	atomic.StoreUint64(ctrl, atomic.LoadUint64(ctrl)|b.tag(hash)<<(r.index%slots*8))
}

// take returns a free cell for a key of this hash, and counts the key in the
// groups that are full.
func (b *block[K]) take(hash uint64) uint64 {
	for g := b.home(hash); ; g = b.after(g, hash) {
		w := atomic.LoadUint64(b.control(g))
		if free := b.matches(w, 0); free != 0 {
			return g*slots + b.first(free)
		}
		b.pass(g, 1)
	}
}

// pass counts a key that has found group g full, or, with -1, one that is no more.
func (b *block[K]) pass(g uint64, by int32) {
	b.passed[g] += uint32(by)
	w := atomic.LoadUint64(b.control(g)) & tagBits
	if b.passed[g] > 0 {
		w |= wentOn
	}
	if w != atomic.LoadUint64(b.control(g)) {
		atomic.StoreUint64(b.control(g), w)
	}
}

// Delete empties the cell of a key of this hash, and its head.
func (t *Table[K, V, H]) Delete(r Ref[H], hash uint64) {
	b := t.current.Load()
	last, shift := r.index/slots, r.index%slots*8
	w := atomic.LoadUint64(b.control(last))
	atomic.StoreUint64(b.control(last), w&^(0xff<<shift))
	saw := atomic.LoadUint64(r.seq)
	atomic.StoreUint64(r.seq, saw|writing)
	t.clearValue(b, r)
	b.setBox(r.index, nil)
	t.clearHead(r)
	atomic.StoreUint64(r.seq, saw&^writing+next|dead)
	for g := b.home(hash); g != last; g = b.after(g, hash) {
		b.pass(g, -1)
	}
	t.live--
}

// Shrink gives memory back if less than an eighth of it is in use.
func (t *Table[K, V, H]) Shrink() {
	if b := t.current.Load(); b.groups > 8 && t.live < room(b.groups)/8 {
		t.rebuild(2 * t.live)
	}
}

// rebuild moves all cells to a block with room for n keys. Who reads meanwhile
// reads the old one, which stays as it is.
func (t *Table[K, V, H]) rebuild(n int) {
	old, b := t.current.Load(), t.newBlock(n)
	for i := range old.groups * slots {
		if atomic.LoadUint64(old.control(i/slots))>>(i%slots*8)&0xff == 0 {
			continue
		}
		hash := t.Hash(t.at(old, i, 0))
		to := b.take(hash)
		t.move(b, to, old, i)
		g := b.control(to / slots)
		*g |= b.tag(hash) << (to % slots * 8)
	}
	t.current.Store(b)
}

// Len returns the number of keys. For writers only.
func (t *Table[K, V, H]) Len() int { return t.live }

// Cells returns the number of cells, for At.
func (t *Table[K, V, H]) Cells() uint64 { return t.current.Load().groups * slots }

// At returns cell i modulo Cells, unless it is empty. For writers only.
func (t *Table[K, V, H]) At(i uint64) (Ref[H], bool) {
	b := t.current.Load()
	i %= b.groups * slots
	if atomic.LoadUint64(b.control(i/slots))>>(i%slots*8)&0xff == 0 {
		return Ref[H]{}, false
	}
	return t.at(b, i, t.load(b.cell(i), 0)), true
}

// All calls yield for each key until it returns false. One that is stored or
// deleted meanwhile may be seen or not.
func (t *Table[K, V, H]) All(yield func(K) bool) {
	b := t.current.Load()
	for i := range b.groups * slots {
		if atomic.LoadUint64(b.control(i/slots))>>(i%slots*8)&0xff == 0 {
			continue
		}
		for {
			r := t.at(b, i, t.load(b.cell(i), 0))
			if r.saw&writing != 0 {
				runtime.Gosched()
				continue
			}
			key, ok := t.keyAt(b, &r)
			if !r.Valid() {
				continue
			}
			if ok && !yield(key) {
				return
			}
			break
		}
	}
}
