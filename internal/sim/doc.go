// Package sim is a world for deterministic simulation: a source of truth, a log,
// a hint, and a scheduler that decides what happens next. It is for tests only,
// and it knows nothing of caches: a test puts real ones into the world, through
// adapters, and runs their goroutines in a bubble of testing/synctest.
//
// # How a run is made repeatable
//
// Whatever a process asks of the world parks its goroutine in [Process.Do]. When
// every goroutine of the bubble is blocked, the scheduler takes one thing that
// can happen, by a generator that the seed determines, does it, and waits until
// every goroutine is blocked again. Between two such steps goroutines run side by
// side as they like, so nothing may depend on their order: calls that arrive in
// one step are sorted by what they say, random names become small numbers, and
// each step takes place at a moment of its own, so that timers do not meet.
//
// Everything that happens goes into the trace, and its hash is what two runs of
// one seed are compared by.
//
// # Effects
//
// A call that changes the world has two parts, the effect and the answer, and
// each is a step: in between, others act, the answer is lost, or the process
// dies. A read has two parts as well, so that what it read can be old when it is
// returned.
package sim
