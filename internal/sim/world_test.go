package sim

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/wire"
)

func hello(t testing.TB, origin, seq uint64) []byte {
	b, err := wire.Append(nil, &wire.Message{Kind: wire.KindHello, Origin: origin, Seq: seq, Nonce: seq})
	require.NoError(t, err)
	return b
}

// toys lets n processes do everything that there is to do, until ctx ends, and
// returns what becomes of it when faults happen at the given rates.
func toys(t *testing.T, seed uint64, faults Faults, steps int) (hash uint64, trace string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		w := New(seed, &out)
		w.Faults, w.Lag, w.Doubt = faults, 50*time.Millisecond, 100*time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		var n atomic.Uint64
		for i := range 3 {
			p := w.Process()
			key, other := fmt.Sprint("k", i), "shared"
			p.Subscribe(func([]byte) {}, func(string) {})
			act := func(do func(seq uint64)) {
				go func() {
					for seq := uint64(1); ctx.Err() == nil && !p.isDead(); seq++ {
						do(seq)
					}
				}()
			}
			act(func(seq uint64) {
				p.Do(ctx, &Call{Kind: Load, Key: other})
				p.Do(ctx, &Call{Kind: LoadMany, Keys: []string{key, other}, Strong: true})
			})
			act(func(seq uint64) {
				op := [16]byte{byte(i), byte(seq), byte(seq >> 8)}
				read := &Call{Kind: Load, Key: key, Strong: true, Client: 1}
				p.Do(ctx, read)
				p.Do(ctx, &Call{Kind: Write, Key: key, Base: read.State.Version, Value: int(n.Add(1)), Op: op})
				p.Do(ctx, &Call{Kind: Outcome, Key: key, Op: op})
			})
			act(func(seq uint64) { p.Do(ctx, &Call{Kind: Append, Msg: hello(t, uint64(i+1), 2*seq)}) })
			act(func(seq uint64) { p.Do(ctx, &Call{Kind: Publish, Msg: hello(t, uint64(i+1), 2*seq+1)}) })
			last := uint64(0)
			act(func(uint64) {
				open := &Call{Kind: Open, From: last}
				if p.Do(ctx, open); open.Failure == Gap {
					last = 0
				}
				for open.Failure == None {
					next := &Call{Kind: Next, Reader: open.Reader}
					if p.Do(ctx, next); next.Failure != None {
						break
					}
					last = next.Seq
				}
			})
		}
		w.Settle()
		for range steps {
			if a := w.Pick(w.Actions()); a != nil {
				w.Run(a)
			}
		}
		hash, trace = w.Hash(), out.String()
		cancel()
		for _, p := range w.procs {
			w.Kill(p)
		}
	})
	return hash, trace
}

func (p *Process) isDead() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.Dead
}

// One seed is one run, whatever the scheduler does, and another seed another.
func TestWorld_TheSeedDecides(t *testing.T) {
	f := Faults{LoadFails: 50, WriteLate: 100, AnswerLost: 100, AppendTwice: 50, ReaderFails: 20, HintReordered: 300, HintLost: 50}
	hashes := map[uint64]bool{}
	for seed := range uint64(20) {
		hash, trace := toys(t, seed, f, 300)
		again, second := toys(t, seed, f, 300)
		require.Equal(t, trace, second)
		require.Equal(t, hash, again)
		hashes[hash] = true
	}
	assert.Len(t, hashes, 20)
}

// Each fault leaves its trace, and without it there is none.
func TestWorld_EachFaultHappens(t *testing.T) {
	_, calm := toys(t, 1, Faults{}, 600)
	for word, f := range map[string]Faults{
		"load: broken":       {LoadFails: 500},
		"load: panic":        {LoadPanics: 500},
		"write: unavailable": {WriteRefused: 500},
		"write: broken":      {WriteLost: 500},
		"lands late: true":   {WriteLate: 500},
		"write: panic":       {AnswerLost: 900},
		"outcome: broken":    {OutcomeFails: 500},
		"append: broken":     {AppendFails: 500},
		"open: broken":       {OpenFails: 500, ReaderFails: 500},
		"next: broken":       {ReaderFails: 500},
		"its reader jumps":   {ReaderJumps: 500},
		"publish: broken":    {PublishFails: 500},
		"a bit is changed":   {LogCorrupt: 500},
		"load many: broken":  {LoadFails: 500},
	} {
		_, trace := toys(t, 1, f, 600)
		assert.Contains(t, trace, word)
		assert.NotContains(t, calm, word)
	}
	count := func(f Faults, word string) int {
		_, trace := toys(t, 1, f, 600)
		return strings.Count(trace, word)
	}
	assert.Less(t, count(Faults{HintLost: 1000}, "reads"), count(Faults{}, "reads"))
	assert.Greater(t, count(Faults{AppendTwice: 1000, PublishFails: 1000}, "reads"), count(Faults{PublishFails: 1000}, "reads"))
}

// A process that is dead changes nothing, and is told nothing.
func TestWorld_TheDeadDoNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(1, nil)
		p := w.Process()
		c := &Call{Kind: Write, Key: "k", Value: 1}
		go p.Do(t.Context(), c)
		w.Settle()
		w.Kill(p)
		w.Settle()
		assert.Equal(t, Dead, c.Failure)
		before := w.Source.Current("k")
		late := &Call{Kind: Change, Key: "k", Value: 2}
		p.Do(t.Context(), late)
		assert.Equal(t, Dead, late.Failure)
		assert.Equal(t, before, w.Source.Current("k"))
		assert.True(t, w.Idle())
	})
}

// What a crash interrupts has taken effect or not, which is the seed's.
func TestWorld_ACrashMayComeAfterTheEffect(t *testing.T) {
	done := map[bool]int{}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			w := New(seed, nil)
			p := w.Process()
			go p.Do(t.Context(), &Call{Kind: Write, Key: "k", Value: 1})
			w.Settle()
			w.Kill(p)
			done[!w.Source.Current("k").Absent]++
		})
	}
	assert.NotZero(t, done[true])
	assert.NotZero(t, done[false])
}

// A write whose answer was lost takes effect within its time or never.
func TestWorld_ALateWriteHasItsTime(t *testing.T) {
	for _, wait := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := New(1, nil)
			w.Doubt, w.Faults.WriteLate = 100*time.Millisecond, 1000
			p := w.Process()
			c := &Call{Kind: Write, Key: "k", Value: 1}
			go p.Do(t.Context(), c)
			w.Settle()
			w.Run(&w.Actions()[0])
			require.Equal(t, Broken, c.Failure)
			assert.False(t, w.Idle())
			time.Sleep(wait)
			w.Run(&w.Actions()[0])
			assert.Equal(t, wait < w.Doubt, !w.Source.Current("k").Absent)
			assert.True(t, w.Idle())
		})
	}
}

// What a process that is suspended asks for does not happen until it wakes.
func TestWorld_TheFrozenWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(1, nil)
		p := w.Process()
		go p.Do(t.Context(), &Call{Kind: Load, Key: "k", Strong: true})
		w.Settle()
		p.Frozen = true
		assert.Empty(t, w.Actions())
		p.Frozen = false
		for range 2 {
			w.Run(&w.Actions()[0])
		}
		assert.Empty(t, w.Actions())
	})
}

// A swarm has few faults at a time, and each of them sometimes.
func TestSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(1, nil)
		with, none := 0, 0
		for range 1000 {
			f := Swarm(w)
			if f == (Faults{}) {
				none++
			}
			if f.Crash > 0 {
				with++
			}
			assert.Equal(t, f.Crash > 0, strings.Contains(f.String(), " Crash="))
		}
		assert.InDelta(t, 170, with, 60)
		assert.NotZero(t, none)
	})
}
