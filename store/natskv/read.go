package natskv

import (
	"context"
	"fmt"

	"github.com/tidemark-go/tidemark"
)

// Load implements [tidemark.Loader]. It is strong: it costs an append to the
// stream, which loads that come together share, and one request. While the stream
// has no leader it fails; it does not return what may be old.
func (s *Store[K, V]) Load(ctx context.Context, key K) (value V, v tidemark.Version, err error) {
	name, err := s.key.name(key)
	if err != nil {
		return value, 0, fmt.Errorf("natskv: load: %w", err)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	is, err := s.b.current(ctx, name)
	if err != nil {
		return value, 0, fmt.Errorf("natskv: load: %w", err)
	}
	l := s.loaded(is)
	if l.Absent {
		return value, l.Version, tidemark.ErrNotFound
	}
	return l.Value, l.Version, l.Err
}

// loaded decodes a message.
func (s *Store[K, V]) loaded(is stored) (l tidemark.Loaded[V]) {
	l.Version = tidemark.Version(is.seq)
	if l.Absent = !is.live(); l.Absent {
		return l
	}
	var err error
	if l.Value, err = s.value.Decode(is.data); err != nil {
		return tidemark.Loaded[V]{Err: fmt.Errorf("natskv: load: decode value: %w", err)}
	}
	return l
}

// current returns the last message of a key as of a moment during the call.
func (b *bucket) current(ctx context.Context, name string) (stored, error) {
	var is stored
	err := b.currents(ctx, []string{name}, func(_ string, found stored) { is = found })
	return is, err
}

// maxChunk is how many keys one request names. The server answers for 1024 at
// most.
const maxChunk = 512

// currents calls each for every one of the names, with what current would return.
// One message of the barrier serves all of them.
func (b *bucket) currents(ctx context.Context, names []string, each func(name string, is stored)) error {
	if err := b.usable(ctx); err != nil {
		return err
	}
	high := b.high.Load()
	least, err := b.barrier.pass(ctx)
	if err != nil {
		return err
	}
	if least <= high {
		b.gone.Store(true)
		return ErrRecreated
	}
	for len(names) > 0 {
		n := b.chunk(names)
		found, err := b.lastKnown(ctx, least, names[:n])
		if err != nil {
			return err
		}
		for _, name := range names[:n] {
			each(name, found[b.prefix+name])
		}
		names = names[n:]
	}
	return nil
}

// lastKnown is last for names, in the bucket that was opened and no other.
func (b *bucket) lastKnown(ctx context.Context, least uint64, names []string) (map[string]stored, error) {
	subjects := make([]string, 0, len(names)+1)
	for _, name := range names {
		subjects = append(subjects, b.prefix+name)
	}
	found, err := b.last(ctx, least, append(subjects, b.prefix+identityName))
	if err != nil {
		return nil, err
	}
	return found, b.verify(found)
}

// chunk returns how many of names one request can ask for.
func (b *bucket) chunk(names []string) int {
	size, most := 0, int(b.nc.MaxPayload()/2) // commas, quotes and the rest are less than half
	for n, name := range names {
		if size += len(b.prefix) + len(name) + 3; n > 0 && (n == maxChunk || size > most) {
			return n
		}
	}
	return len(names)
}

// LoadMany implements [tidemark.BulkLoader], as strong as Load. It asks for up to
// 512 keys at once. Every key is in the map, an absent one with the version of
// its deletion as long as the bucket keeps that.
func (s *Store[K, V]) LoadMany(ctx context.Context, keys []K) (map[K]tidemark.Loaded[V], error) {
	found := make(map[K]tidemark.Loaded[V], len(keys))
	err := s.each(ctx, keys, func(key K, is stored, err error) {
		if err != nil {
			found[key] = tidemark.Loaded[V]{Err: fmt.Errorf("natskv: load: %w", err)}
			return
		}
		found[key] = s.loaded(is)
	})
	if err != nil {
		return nil, fmt.Errorf("natskv: load many: %w", err)
	}
	return found, nil
}

// LoadVersions implements [tidemark.VersionLoader]. A bucket tells no version
// without the value, so this takes as much of the network as LoadMany, and less
// of the processor; what it saves is requests.
func (s *Store[K, V]) LoadVersions(ctx context.Context, keys []K) (map[K]tidemark.Version, error) {
	versions := make(map[K]tidemark.Version, len(keys))
	err := s.each(ctx, keys, func(key K, is stored, err error) {
		if err == nil && is.live() {
			versions[key] = tidemark.Version(is.seq)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("natskv: load versions: %w", err)
	}
	return versions, nil
}

// each calls f for every key, with its last message, or with an error if it
// cannot be written.
func (s *Store[K, V]) each(ctx context.Context, keys []K, f func(key K, is stored, err error)) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.b.usable(ctx); err != nil || len(keys) == 0 {
		return err
	}
	of := make(map[string]K, len(keys))
	names := make([]string, 0, len(keys))
	for _, key := range keys {
		name, err := s.key.name(key)
		if err != nil {
			f(key, stored{}, err)
			continue
		}
		if _, twice := of[name]; !twice {
			names = append(names, name)
		}
		of[name] = key
	}
	return s.b.currents(ctx, names, func(name string, is stored) { f(of[name], is, nil) })
}
