// Package replica holds what one replica may conclude from what it reads in a
// log: whether it has missed a message, and as of when it has missed none. It
// does no I/O, starts no goroutine and reads no clock, so that tests and
// simulations run the code that ships.
//
// # What is proven
//
// A replica appends probes to the log and reads the log from a known place on,
// without a hole. When it reads its own probe it has applied every message that
// the log had before the probe, so also every one that was acknowledged before
// the probe was sent: it is fresh as of the moment of sending. Neither the clocks
// of others nor a list of replicas come into it.
//
// A probe that goes through the source instead, to be told to the log behind all
// that the source had committed before it, proves the same of what was committed.
//
// Five things would break the proof, and each is a rule here:
//
//   - Counting from when the probe came back would count what was appended
//     meanwhile (S61). A probe is registered before it is sent, and proves that
//     moment.
//   - A hole in what was read. Sequence numbers must be contiguous, and after an
//     interruption the reader begins with the message that was read last, and
//     must get exactly that one: a log that was purged, or made anew, has another
//     or none in its place (S48, S49).
//   - A probe from before a hole. When continuity is given up, all probes that
//     were sent until then are void.
//   - A probe that somebody else had sent, before the replica did. So probes have
//     nonces that only their replica can make ([Seal]).
//   - A clock that stood still. The monotonic clock does not advance while a
//     machine is suspended, the wall clock does (S64), and the wall clock may be
//     set (S65): an age is the larger of the two.
package replica
