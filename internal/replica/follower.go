package replica

import (
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// A Follower checks that what is read from a log is unbroken, also across
// readers. The zero Follower has no place in the log yet. It is used by one
// goroutine.
type Follower struct {
	last     uint64 // sequence number of the message that was taken last; 0: none
	identity uint64 // of that message
	overlap  bool   // the next message must be that one again
}

// Open says where the next reader must begin: with the message of the returned
// sequence number, or, if that is 0, with the next one that is appended.
func (f *Follower) Open() (from uint64) {
	f.overlap = f.last != 0
	return f.last
}

// Take is told of each message that a reader returns. If apply is set it is to
// be applied. An error says that messages may be missing: the Follower must be
// Reset then.
func (f *Follower) Take(seq uint64, msg []byte) (apply bool, err error) {
	switch {
	case f.overlap && (seq != f.last || xxhash.Sum64(msg) != f.identity):
		return false, fmt.Errorf("the log no longer has message %d, which was read last", f.last)
	case f.overlap:
		f.overlap = false
		return false, nil
	case seq == 0:
		return false, fmt.Errorf("a message without a sequence number")
	case f.last != 0 && seq != f.last+1:
		return false, fmt.Errorf("sequence %d after %d", seq, f.last)
	}
	f.last, f.identity = seq, xxhash.Sum64(msg)
	return true, nil
}

// Reset gives up the place in the log.
func (f *Follower) Reset() { *f = Follower{} }
