package model

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bounded returns full, or reduced if the tests run under the race detector,
// which makes them seven times slower, or with -short.
func bounded(full, reduced int) int {
	if underRace || testing.Short() {
		return reduced
	}
	return full
}

// A holding is a world in which the protocol keeps its promise.
type holding[W, G any] struct {
	name    string
	world   W
	without func(*G) // takes away guards that this world does not need; may be nil
	states  int      // of the model
}

// A mutation is a world in which the promise is broken once remove has taken
// guards away.
type mutation[W, G any] struct {
	name   string
	world  W
	remove func(*G)
	want   string // how the violation begins
}

// A suite is everything that is checked with one model. Its machines are made
// by build from a world W and guards G, a struct of bools.
type suite[S comparable, W, G any] struct {
	build     func(W, G) machine[S]
	holds     []holding[W, G]
	mutations []mutation[W, G]

	// limits are worlds in which the promise is broken although no guard is
	// gone: what the protocol, or the model, does not cover.
	limits []mutation[W, G]
}

// run makes each holding, mutation and limit a subtest, and demands that each
// guard is removed by a mutation: a guard that nothing needs is not a guard.
func (s suite[S, W, G]) run(t *testing.T) {
	for _, h := range s.holds {
		t.Run("holds/"+h.name, func(t *testing.T) {
			guards, _ := without(h.without)
			requireHolds(t, s.build(h.world, guards), h.states)
		})
	}
	removed := map[string]bool{}
	for _, m := range s.mutations {
		guards, names := without(m.remove)
		for _, name := range names {
			removed[name] = true
		}
		t.Run("without "+strings.Join(names, " and ")+"/"+m.name, func(t *testing.T) {
			require.NotEmpty(t, names, "the mutation removes no guard")
			requireCaught(t, s.build(m.world, guards), m.want)
		})
	}
	for _, m := range s.limits {
		t.Run("limit/"+m.name, func(t *testing.T) {
			require.Nil(t, m.remove, "a limit has every guard")
			requireCaught(t, s.build(m.world, allGuards[G]()), m.want)
		})
	}
	t.Run("every guard is removed once", func(t *testing.T) {
		g := reflect.TypeFor[G]()
		for i := range g.NumField() {
			assert.True(t, removed[g.Field(i).Name], "no mutation removes %s", g.Field(i).Name)
		}
	})
}

// requireHolds explores m and demands that nothing is wrong in it and that it
// has as many states as when that number was written down: a model that has
// shrunk by mistake proves less than it says.
func requireHolds[S comparable](t *testing.T, m machine[S], states int) {
	t.Helper()
	got := explore(m)
	if got.violation != "" {
		logTrace(t, got)
	}
	require.Empty(t, got.violation)
	require.Equal(t, states, got.states, "states; if the model was changed on purpose, write the new number down")
	t.Logf("%d states, all of them visited", got.states)
}

// requireCaught explores m and demands a violation that begins with want.
func requireCaught[S comparable](t *testing.T, m machine[S], want string) {
	t.Helper()
	got := explore(m)
	require.NotEmpty(t, got.violation, "no violation in %d states", got.states)
	logTrace(t, got)
	require.True(t, strings.HasPrefix(got.violation, want), "violation %q, want %q", got.violation, want)
}

func logTrace(t *testing.T, got outcome) {
	t.Helper()
	var b strings.Builder
	for i, line := range got.trace {
		fmt.Fprintf(&b, "\n%3d. %s", i+1, line)
	}
	t.Logf("%s (after %d states)%s", got.violation, got.states, b.String())
}

// allGuards returns a G, a struct of bools, with every guard in place.
func allGuards[G any]() G {
	var g G
	v := reflect.ValueOf(&g).Elem()
	for i := range v.NumField() {
		v.Field(i).SetBool(true)
	}
	return g
}

// without returns all guards but those that remove clears, and the names of
// those.
func without[G any](remove func(*G)) (G, []string) {
	g := allGuards[G]()
	if remove != nil {
		remove(&g)
	}
	v := reflect.ValueOf(g)
	var names []string
	for i := range v.NumField() {
		if !v.Field(i).Bool() {
			names = append(names, v.Type().Field(i).Name)
		}
	}
	return g, names
}
