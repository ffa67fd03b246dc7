package model

import (
	"fmt"
	"hash/maphash"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A machine is a model: where it starts, what can happen in a state, and which
// states must not be. It must be deterministic, the order of steps included.
type machine[S comparable] interface {
	start() S

	// steps adds every step that is possible in s to out.
	steps(s S, out *steps[S])

	// violation says what is wrong with s; empty if nothing is.
	violation(s S) string
}

// A step is one thing that can happen in a state.
type step[S comparable] struct {
	action    action
	to        S
	violation string // what is wrong with the step itself, or empty
}

// steps collects the steps of one state.
type steps[S comparable] struct{ list []step[S] }

// add records that the action so described leads to state to.
func (o *steps[S]) add(to S, format string, args ...any) { o.addJudged(to, "", format, args...) }

// addJudged is add for a step that is itself wrong if violation is not empty.
func (o *steps[S]) addJudged(to S, violation, format string, args ...any) {
	st := step[S]{to: to, violation: violation}
	st.action.format = format
	st.action.count = copy(st.action.args[:], args)
	o.list = append(o.list, st)
}

// An action describes a step. It is put into words only for a trace: models
// take millions of steps.
type action struct {
	format string
	args   [2]any
	count  int
}

func (a action) String() string { return fmt.Sprintf(a.format, a.args[:a.count]...) }

// An outcome is what explore found.
type outcome struct {
	states    int
	violation string   // the first one found, or empty
	trace     []string // a shortest way to it
}

// explore visits every state that m can reach, breadth first, until one is
// wrong. It keeps all of them in memory.
func explore[S comparable](m machine[S]) outcome {
	seen := newSet[S]()
	seen.add(m.start())
	if v := m.violation(m.start()); v != "" {
		return outcome{states: 1, violation: v}
	}
	from := []int32{-1} // the state from which each state was first reached
	found := func(h int, last, violation string) outcome {
		return outcome{len(seen.states), violation, append(retrace(m, seen, from, h), last)}
	}
	var out steps[S]
	for h := 0; h < len(seen.states); h++ {
		out.list = out.list[:0]
		m.steps(seen.states[h], &out)
		for i := range out.list {
			st := &out.list[i]
			if st.violation != "" {
				return found(h, st.action.String(), st.violation)
			}
			if !seen.add(st.to) {
				continue
			}
			from = append(from, int32(h))
			if v := m.violation(st.to); v != "" {
				return found(h, st.action.String(), v)
			}
		}
	}
	return outcome{states: len(seen.states)}
}

// retrace returns the actions that lead from the start to state number h, by
// taking the steps again.
func retrace[S comparable](m machine[S], seen *set[S], from []int32, h int) []string {
	if h == 0 {
		return nil
	}
	trace := retrace(m, seen, from, int(from[h]))
	var out steps[S]
	m.steps(seen.states[from[h]], &out)
	for i := range out.list {
		if out.list[i].to == seen.states[h] {
			return append(trace, out.list[i].action.String())
		}
	}
	panic("model: a machine took different steps the second time")
}

// A set holds states in the order in which they were added. A map would do, at
// three times the memory.
type set[S comparable] struct {
	seed   maphash.Seed
	states []S
	slots  []int32 // open addressing: index into states plus 1; 0 is free
}

func newSet[S comparable]() *set[S] {
	return &set[S]{seed: maphash.MakeSeed(), slots: make([]int32, 1<<10)}
}

// add adds s and reports whether it is new.
func (t *set[S]) add(s S) bool {
	i := t.find(s)
	if t.slots[i] != 0 {
		return false
	}
	t.states = append(t.states, s)
	t.slots[i] = int32(len(t.states))
	if 2*len(t.states) > len(t.slots) {
		t.slots = make([]int32, 2*len(t.slots))
		for n, s := range t.states {
			t.slots[t.find(s)] = int32(n + 1)
		}
	}
	return true
}

// find returns the slot of s, or the free one where it belongs.
func (t *set[S]) find(s S) int {
	mask := len(t.slots) - 1
	i := int(maphash.Comparable(t.seed, s)) & mask
	for t.slots[i] != 0 && t.states[t.slots[i]-1] != s {
		i = (i + 1) & mask
	}
	return i
}

// A counter is a machine to try explore on. It counts up by 1 or 2 to at most
// 10 and has no state of its own beyond that.
type counter struct {
	forbidden int // no state may be this
	trap      int // the step of 2 from here is wrong
}

func (m counter) start() int { return 0 }

func (m counter) steps(n int, out *steps[int]) {
	if n+1 <= 10 {
		out.add(n+1, "one more than %d", n)
	}
	if n+2 <= 10 {
		violation := ""
		if n == m.trap {
			violation = "trapped"
		}
		out.addJudged(n+2, violation, "two more than %d make %d", n, n+2)
	}
	out.add(n, "nothing")
}

func (m counter) violation(n int) string {
	if n == m.forbidden {
		return "forbidden"
	}
	return ""
}

func TestExplore(t *testing.T) {
	nowhere := -1
	t.Run("visits every state", func(t *testing.T) {
		assert.Equal(t, outcome{states: 11}, explore(counter{nowhere, nowhere}))
	})
	t.Run("finds a wrong state by a shortest way", func(t *testing.T) {
		got := explore(counter{5, nowhere})
		assert.Equal(t, "forbidden", got.violation)
		assert.Equal(t, []string{"one more than 0", "two more than 1 make 3", "two more than 3 make 5"}, got.trace)
	})
	t.Run("finds a wrong step to a right state", func(t *testing.T) {
		got := explore(counter{nowhere, 2})
		assert.Equal(t, "trapped", got.violation)
		assert.Equal(t, []string{"two more than 0 make 2", "two more than 2 make 4"}, got.trace)
	})
	t.Run("finds a wrong start", func(t *testing.T) {
		assert.Equal(t, outcome{states: 1, violation: "forbidden"}, explore(counter{0, nowhere}))
	})
}

func TestSet(t *testing.T) {
	s := newSet[int]()
	const n = 10_000 // grows several times
	for i := range n {
		assert.True(t, s.add(i*i), "%d is new", i*i)
	}
	for i := range n {
		assert.False(t, s.add(i*i), "%d is known", i*i)
		assert.Equal(t, i*i, s.states[i])
	}
	assert.Len(t, s.states, n)
}
