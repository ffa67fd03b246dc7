package main

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

// turn is how long a contender runs before it is the next one's: long enough
// for the clock of CPU time, short enough that a disturbance of the machine
// meets all of them.
const turn = 22 * time.Millisecond

const chunk = 1 << 13 // operations between two looks at the clock

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A work does n operations, beginning at a place of its trace.
type work func(at, n int)

// A lap is what one turn took, for each operation. All but the time of the
// clock on the wall is of the whole process, so what a cache does in the
// background counts.
type lap struct {
	ops           int
	cpu, wall     float64 // nanoseconds
	bytes, allocs float64
}

// laps are the turns of one work, in the order of the rounds.
type laps []lap

func (l laps) cpu() []float64 {
	all := make([]float64, len(l))
	for i := range l {
		all[i] = l[i].cpu
	}
	return all
}

// A track says how long turns are, how many operations are done between two looks
// at the clock, and whether a turn includes what it has left to the background.
type track struct {
	turn  time.Duration
	chunk int
	rest  bool
}

// race gives the works turns and returns the laps of each of them. In every
// round they begin with another one, at another place of the trace.
func (t track) race(works []work, rounds int) []laps {
	sizes := make([]int, len(works)) // operations per turn
	all := make([]laps, len(works))
	for i, w := range works {
		began := time.Now()
		n := 0
		for ; time.Since(began) < t.turn; n += t.chunk {
			w(n, t.chunk)
		}
		sizes[i] = n
	}
	for round := range rounds {
		for j := range works {
			i := (round + j) % len(works)
			all[i] = append(all[i], t.lap(works[i], round*sizes[i], sizes[i]))
		}
	}
	return all
}

func (t track) lap(w work, at, size int) lap {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began, cpu := time.Now(), cpuTime()
	for n := 0; n < size; n += t.chunk {
		w(at+n, t.chunk)
	}
	wall := time.Since(began)
	if t.rest {
		rest()
	}
	cpu = cpuTime() - cpu
	runtime.ReadMemStats(&after)
	per := float64(size)
	return lap{
		size, float64(cpu) / per, float64(wall) / per,
		float64(after.TotalAlloc-before.TotalAlloc) / per, float64(after.Mallocs-before.Mallocs) / per,
	}
}

// rest waits until the process has nothing more to do, or for a while: what a
// cache has left to the background is of its turn, and not of the next one's. A
// collection may take longer.
func rest() {
	for range 50 {
		before := cpuTime()
		time.Sleep(time.Millisecond / 2)
		if cpuTime()-before < 100*time.Microsecond {
			return
		}
	}
}

// race is track.race with the usual turns, and returns CPU nanoseconds per
// operation. It takes no rest: beside a server the process has none.
func race(works []work, rounds int) [][]float64 {
	var all [][]float64
	for _, l := range (track{turn, chunk, false}).race(works, rounds) {
		all = append(all, l.cpu())
	}
	return all
}

// together shares keys among goroutines that each do their part.
func together[K any](goroutines int, keys []K, do func([]K) int) {
	if goroutines == 1 {
		do(keys)
		return
	}
	var wg sync.WaitGroup
	for part := range parts(keys, len(keys)/goroutines) {
		wg.Go(func() { do(part) })
	}
	wg.Wait()
}
