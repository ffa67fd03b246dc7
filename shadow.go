package tidemark

// A shadow is what memory would have served a read, in shadow mode.
type shadow[V any] struct {
	entry entry[V]
	place place
}

// shadowOf returns what memory would have served w, or nil, and counts it as a hit
// for those who choose what is kept. It may be called under the shard's lock.
func (c *Cache[K, V]) shadowOf(w *waiter[K, V], applied bool) *shadow[V] {
	var d shadow[V]
	var ok bool
	s, era := c.shard(w.hash), c.era.Load()&^eraSwitchedOff
	d.place, ok = s.look(w.hash, w.key, &d.entry.value, &d.entry.facts)
	if !ok || !c.servable(era, &d.entry.facts) || !c.admits(w.level, applied, &d.entry.facts, w.fresh, w.at) {
		return nil
	}
	c.stats.shadowHits.Add(1)
	d.place.Head.use()
	if c.policy.samples(w.hash) {
		s.touch(d.place.Head, w.hash)
	}
	return &d
}

// suffices reports whether the flight's result is what a read in shadow mode gets,
// although memory knows of a newer state: the source has no more than this.
func (f *flight[K, V]) suffices(w *waiter[K, V]) bool {
	return f.strong && f.id > w.arrived && f.entry.Version != 0 && f.entry.Version >= w.level.version
}

// compareShadow compares what memory would have served w with e, which the source
// has returned. That the source had less says nothing: its load may have begun
// before the read, and the entry may be of a write that came after it.
func (c *Cache[K, V]) compareShadow(w *waiter[K, V], e *Entry[V]) {
	had := &w.shadow.entry
	kind := differs(had.mark(), mark{e.Version, e.Absent})
	if kind == 0 && c.audit.o.Digest != nil && !had.absent {
		mine, ok1 := c.audit.digest(had.value)
		theirs, ok2 := c.audit.digest(e.Value)
		if ok1 && ok2 && mine != theirs {
			kind = MismatchDiffers
		}
	}
	switch kind {
	case MismatchStale:
		c.stats.shadowOlder.Add(1)
		c.audit.suspect(w.key, w.hash, &had.facts)
	case MismatchDiffers:
		c.stats.shadowDiffers.Add(1)
		c.audit.suspect(w.key, w.hash, &had.facts)
	}
	if c.opts.RefreshAfter > 0 {
		c.refresh(w.shadow.place, w.key, w.hash)
	}
}
