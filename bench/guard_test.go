package main

import (
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Nobody has made a Get or a Put several times as slow, or let it allocate. The
// caches take turns, and of each the quickest round counts: what other programs
// take of the machine is in no quickest round, if there are enough of them, so
// rounds go on until the bounds hold, or for a time in which they would. There is
// no bound in nanoseconds, and the bounds are far from what make bench measures:
// this is not the place to learn how fast it is.
func TestGuard_RatiosAndAllocations(t *testing.T) {
	t.Run("string", func(t *testing.T) {
		guard[string](t, stringKeys, bound{"otter", 1.2, 0.8}, bound{"golang-lru", 1.6, 4})
	})
	t.Run("uint64", func(t *testing.T) {
		guard[uint64](t, integerKeys, bound{"otter", 1.2, 0.8}, bound{"golang-lru", 1.6, 4})
	})
	long := func(of []uint32) []string { // longer than fits a cell of the table
		keys := stringKeys(of)
		for i := range keys {
			keys[i] += strings.Repeat("-", 20)
		}
		return keys
	}
	t.Run("long", func(t *testing.T) { guard[string](t, long, bound{"otter", 1.4, 0.9}, bound{"golang-lru", 1.7, 4}) })
}

// A bound says how many times as long as another cache tidemark may take.
type bound struct {
	name     string
	get, put float64
}

func guard[K identifier](t *testing.T, encode func([]uint32) []K, bounds ...bound) {
	const n = 1000
	var all []*contender[K]
	for _, m := range makers[K, [4]uint64]("tidemark", bounds[0].name, bounds[1].name) {
		c, err := filled(m, encode(everyKey(n)))
		require.NoError(t, err)
		t.Cleanup(c.close)
		all = append(all, c)
	}
	keys := encode(shuffled(zipfTrace(n, n, 0.99), n))
	// The background is counted too, and its pools are lossy under the race detector.
	const background = n / 20
	require.Less(t, testing.AllocsPerRun(100, func() { all[0].get(keys) }), 0.0+background, "a Get allocates")
	require.Less(t, testing.AllocsPerRun(100, func() { all[0].put(keys) }), 0.0+background, "a Put of a present key allocates")
	if raceBuild() {
		return
	}
	gets, puts := make([]time.Duration, len(all)), make([]time.Duration, len(all))
	for i := range all {
		gets[i], puts[i] = time.Hour, time.Hour
	}
	kept := func() bool {
		ok := true
		for i, b := range bounds {
			ok = ok && ratio(gets[0], gets[i+1]) < b.get && ratio(puts[0], puts[i+1]) < b.put
		}
		return ok
	}
	rounds, deadline := 0, time.Now().Add(20*time.Second)
	for ; rounds < 50 || !kept() && time.Now().Before(deadline); rounds++ {
		for i, c := range all {
			began := time.Now()
			c.get(keys)
			gets[i] = min(gets[i], time.Since(began))
			began = time.Now()
			c.put(keys)
			puts[i] = min(puts[i], time.Since(began))
		}
	}
	for i, b := range bounds {
		t.Logf("%d rounds, tidemark/%s: Get %.2f, at most %v; Put %.2f, at most %v", rounds, b.name,
			ratio(gets[0], gets[i+1]), b.get, ratio(puts[0], puts[i+1]), b.put)
	}
	assert.True(t, kept())
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// raceBuild reports whether the race detector is on, so that times mean nothing.
var raceBuild = sync.OnceValue(func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
})
