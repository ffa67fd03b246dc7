package replica

// What an Intents remembers at most. Keys are as long as whoever announces them
// likes.
const (
	maxIntents     = 1 << 16
	maxIntentBytes = 64 << 20 // of their keys
)

// Intents remembers the writes that others have announced and not yet told the
// outcome of, until the time at which they can no longer take effect. The zero
// Intents remembers none. It is guarded by its user.
type Intents[K comparable] struct {
	open  map[[16]byte]intent[K]
	next  int64 // no intent lapses before
	bytes int   // of the keys in open
}

type intent[K comparable] struct {
	key   K
	size  int // in bytes, as it travelled
	until int64
}

// Begin remembers the write op of key, which has size bytes, until the given moment,
// and reports whether it does now and did not before. If there is no room, full is
// set, and it remembers nothing.
func (t *Intents[K]) Begin(op [16]byte, key K, size int, until int64) (begun, full bool) {
	if _, ok := t.open[op]; ok {
		return false, false
	}
	if len(t.open) >= maxIntents || size > maxIntentBytes-t.bytes {
		return false, true
	}
	if t.open == nil {
		t.open = map[[16]byte]intent[K]{}
	}
	if len(t.open) == 0 || until < t.next {
		t.next = until
	}
	t.open[op] = intent[K]{key, size, until}
	t.bytes += size
	return true, false
}

// Has reports whether the write op is remembered.
func (t *Intents[K]) Has(op [16]byte) bool {
	_, ok := t.open[op]
	return ok
}

// End forgets the write op, and returns its key, and whether it was remembered.
func (t *Intents[K]) End(op [16]byte) (key K, ok bool) {
	i, ok := t.open[op]
	if ok {
		delete(t.open, op)
		t.bytes -= i.size
	}
	return i.key, ok
}

// Lapse forgets the writes whose time is over, and returns their keys, each as
// often as it had such a write.
func (t *Intents[K]) Lapse(now int64) (keys []K) {
	if len(t.open) == 0 || now < t.next {
		return nil
	}
	t.next = now
	first := true
	for op, i := range t.open {
		switch {
		case i.until <= now:
			keys = append(keys, i.key)
			delete(t.open, op)
			t.bytes -= i.size
		case first || i.until < t.next:
			t.next, first = i.until, false
		}
	}
	return keys
}

// Len returns how many writes are remembered.
func (t *Intents[K]) Len() int { return len(t.open) }
