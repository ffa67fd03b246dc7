// Package table is the hash table of one shard: readers take no lock, writers
// are serialized by their caller.
//
// Open addressing over cells of a hash and a pointer to an immutable node. The
// probe sequence is double hashing: the step comes from the hash too, so that
// only keys of equal hash follow each other's path, and any number of them
// leaves the others at the cost that the load factor gives. (With linear
// probing, a run of 10,000 equal hashes would lie in everybody's way.)
//
// A reader may hold an array that a writer has replaced meanwhile. That array
// no longer changes, so what the reader finds there was current at a moment
// after its call began: reads are linearizable.
package table

import "sync/atomic"

// A Node is one key's place. It is immutable once it is in a Table, as far as
// the table is concerned.
type Node[K comparable, E any] struct {
	Key  K
	Hash uint64
	E    E
}

type cell[K comparable, E any] struct {
	hash atomic.Uint64
	node atomic.Pointer[Node[K, E]] // nil: never used; tomb: deleted
}

type array[K comparable, E any] struct {
	cells []cell[K, E] // the length is a power of two
}

// A Table maps keys to nodes. Find and All may run beside everything; the other
// methods must not run beside each other. Use New.
type Table[K comparable, E any] struct {
	current atomic.Pointer[array[K, E]]
	tomb    *Node[K, E]

	// For writers only.
	live int // cells with a node
	used int // cells that are not free: live or deleted
}

const minCells = 8

// New returns a table with room for n nodes before it grows.
func New[K comparable, E any](n int) *Table[K, E] {
	t := &Table[K, E]{tomb: new(Node[K, E])}
	t.current.Store(newArray[K, E](n))
	return t
}

func newArray[K comparable, E any](n int) *array[K, E] {
	size := minCells
	for size*3/4 < n {
		size *= 2
	}
	return &array[K, E]{cells: make([]cell[K, E], size)}
}

// step returns the odd distance between probes; being odd it visits every cell.
func step(hash uint64) uint64 { return hash>>32 | 1 }

// Find returns the node of key, or nil.
func (t *Table[K, E]) Find(hash uint64, key K) *Node[K, E] {
	cells := t.current.Load().cells
	mask := uint64(len(cells) - 1)
	for i := hash & mask; ; i = (i + step(hash)) & mask {
		c := &cells[i]
		n := c.node.Load()
		if n == nil {
			return nil
		}
		if c.hash.Load() == hash && n.Key == key && n != t.tomb {
			return n
		}
	}
}

// SameHash reports whether another key than key with this hash is in the table.
func (t *Table[K, E]) SameHash(hash uint64, key K) bool {
	cells := t.current.Load().cells
	mask := uint64(len(cells) - 1)
	for i := hash & mask; ; i = (i + step(hash)) & mask {
		c := &cells[i]
		n := c.node.Load()
		if n == nil {
			return false
		}
		if c.hash.Load() == hash && n != t.tomb && n.Key != key {
			return true
		}
	}
}

// Store puts n in the place of its key's node, or in a new place.
func (t *Table[K, E]) Store(n *Node[K, E]) {
	if t.used >= len(t.current.Load().cells)*3/4 {
		t.rebuild()
	}
	cells := t.current.Load().cells
	mask := uint64(len(cells) - 1)
	var free *cell[K, E] // the first deleted cell on the way
	for i := n.Hash & mask; ; i = (i + step(n.Hash)) & mask {
		c := &cells[i]
		old := c.node.Load()
		switch {
		case old == nil:
			if free == nil {
				free = c
				t.used++
			}
			t.live++
			free.put(n)
			return
		case old == t.tomb:
			if free == nil {
				free = c
			}
		case c.hash.Load() == n.Hash && old.Key == n.Key:
			c.node.Store(n)
			return
		}
	}
}

// put publishes n in a cell that no reader can match at this moment. The hash
// goes first: a reader that sees the node sees its hash, or a later one.
func (c *cell[K, E]) put(n *Node[K, E]) {
	c.hash.Store(n.Hash)
	c.node.Store(n)
}

// Delete removes the node of key, if there is one.
func (t *Table[K, E]) Delete(hash uint64, key K) {
	cells := t.current.Load().cells
	mask := uint64(len(cells) - 1)
	for i := hash & mask; ; i = (i + step(hash)) & mask {
		c := &cells[i]
		n := c.node.Load()
		if n == nil {
			return
		}
		if c.hash.Load() == hash && n != t.tomb && n.Key == key {
			c.node.Store(t.tomb)
			t.live--
			return
		}
	}
}

// rebuild moves the live nodes to an array in which they fill at most half of
// what triggers the next rebuild, so that its cost is spread over many writes.
func (t *Table[K, E]) rebuild() {
	old := t.current.Load().cells
	next := newArray[K, E](max(2*t.live, minCells))
	mask := uint64(len(next.cells) - 1)
	for j := range old {
		n := old[j].node.Load()
		if n == nil || n == t.tomb {
			continue
		}
		i := n.Hash & mask
		for next.cells[i].node.Load() != nil {
			i = (i + step(n.Hash)) & mask
		}
		next.cells[i].put(n)
	}
	t.used = t.live
	t.current.Store(next)
}

// Len returns the number of nodes. For writers only.
func (t *Table[K, E]) Len() int { return t.live }

// Cells returns the number of cells, for Sample.
func (t *Table[K, E]) Cells() int { return len(t.current.Load().cells) }

// At returns the node in cell i modulo Cells, or nil if it holds none.
func (t *Table[K, E]) At(i uint64) *Node[K, E] {
	cells := t.current.Load().cells
	if n := cells[i&uint64(len(cells)-1)].node.Load(); n != t.tomb {
		return n
	}
	return nil
}

// All calls yield for each node until it returns false. A node that is stored
// or deleted meanwhile may be seen or not. Each node was current when it was
// looked up.
func (t *Table[K, E]) All(yield func(*Node[K, E]) bool) {
	cells := t.current.Load().cells
	for i := range cells {
		n := cells[i].node.Load()
		if n == nil || n == t.tomb {
			continue
		}
		// The array may have been replaced since; ask the current one.
		if n = t.Find(n.Hash, n.Key); n != nil && !yield(n) {
			return
		}
	}
}
