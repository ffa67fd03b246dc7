package tidemark

import "time"

// A Happening is one thing that happened to a key in this process.
type Happening struct {
	Time    time.Time
	What    string  // installed, told, evicted, swept, held or dropped
	By      string  // what brought it, as Explanation.Cause and SetBy
	Version Version // the state's; that of what was told
	Absent  bool
}

type happening uint8

const (
	installed happening = iota // the state became the key's entry
	told                       // the key has reached the state
	evicted                    // the entry was given up for room
	swept                      // it had expired, or was of an old generation
	held                       // a write may take effect at any moment, so the key is kept out of memory
	dropped                    // the auditor has dropped the entry
)

var happeningNames = [...]string{"installed", "told", "evicted", "swept", "held", "dropped"}

const (
	recordAll   = 64 << 10 // of all shards together, unless there are so many that each has the least
	recordLeast = 64
	recordMost  = 1024
	recordOfKey = 64 // are shown
)

// A recorder remembers what happened in a shard lately, without keys and values.
// There is one only if somebody may ask: with an auditor. It is guarded by the
// shard's mu; hits are not recorded.
type recorder struct {
	ring []record
	n    uint64 // of records so far
}

type record struct {
	hash    uint64
	at      int64 // in nanoseconds since the cache began
	version Version
	absent  bool
	what    happening
	by      cause
}

func newRecorder(shards int) *recorder {
	return &recorder{ring: make([]record, min(max(recordAll/shards, recordLeast), recordMost))}
}

// recordLocked remembers that something happened to the key of this hash.
func (s *shard[K, V]) recordLocked(what happening, hash uint64, m mark, by cause, at moment) {
	if s.recorder != nil {
		s.recorder.add(what, hash, m, by, at.now())
	}
}

func (r *recorder) add(what happening, hash uint64, m mark, by cause, now int64) {
	r.ring[r.n%uint64(len(r.ring))] = record{hash, now, m.version, m.absent, what, by}
	r.n++
}

// newerLocked reports whether it is remembered that the key of this hash has reached
// more than m, or, after a time, a version that nobody named.
func (r *recorder) newerLocked(hash uint64, m mark, after int64) bool {
	for i := range r.ring[:min(r.n, uint64(len(r.ring)))] {
		e := &r.ring[i]
		if e.hash != hash || e.what != told && e.what != installed {
			continue
		}
		if has := (mark{e.version, e.absent}); m.before(has) || e.version == 0 && e.at >= after {
			return true
		}
	}
	return false
}

// ofLocked returns what is remembered of the key of this hash, oldest first.
func (r *recorder) ofLocked(hash uint64, began time.Time) (all []Happening) {
	if r == nil {
		return nil
	}
	size := uint64(len(r.ring))
	for i := range min(r.n, size) {
		e := &r.ring[(max(r.n, size)-size+i)%size]
		if e.hash == hash {
			all = append(all, Happening{began.Add(time.Duration(e.at)), happeningNames[e.what], e.by.String(), e.version, e.absent})
		}
	}
	return all[max(len(all)-recordOfKey, 0):]
}
