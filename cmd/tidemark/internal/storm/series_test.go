package storm

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClockHasFewSlicesForEveryStorm(t *testing.T) {
	for _, total := range []time.Duration{time.Nanosecond, 100 * time.Millisecond, 10 * time.Second, 250 * time.Second, 251 * time.Second, 10 * time.Hour} {
		c := newClock(77, total)
		assert.Positive(t, c.slices, total)
		assert.LessOrEqual(t, c.slices, slicesAtMost, total)
		assert.GreaterOrEqual(t, c.length*time.Duration(c.slices), total, "the slices are long enough")
		assert.Zero(t, c.slot(77))
		assert.Zero(t, c.slot(0), "what was under way when it began")
		assert.Equal(t, c.slices-1, c.slot(77+int64(total)*2+int64(c.length)*300))
		if c.slices > 1 {
			assert.Equal(t, 1, c.slot(77+int64(c.length)))
			assert.Zero(t, c.slot(77+int64(c.length)-1))
		}
	}
	c := newClock(0, 10*time.Second)
	assert.Equal(t, 50*time.Millisecond, c.length)
	assert.Equal(t, 200, c.slices)
	assert.Equal(t, 1.5, c.ms(1_500_000))
}

func TestMeterCountsWhileTheStormLasts(t *testing.T) {
	m := newMeter(clock{begin: 100, length: 10, slices: 3})
	for _, at := range []int64{90, 100, 109, 110, 129, 130, 1000} {
		m.add(at, 2)
	}
	assert.Equal(t, []uint64{6, 2, 2}, series(m.clock, 0, nil, m).DBReads)
}

func TestSlicesAddUp(t *testing.T) {
	a := []slice{{reads: 1, worst: 5}, {}}
	b := []slice{{reads: 2, stale: 1, wrong: 1, failed: 1, flagged: 1, worst: 3}, {worst: 9}}
	sum := addSlices(addSlices(nil, a), b)
	sum = addSlices(sum, nil)
	assert.Equal(t, []slice{{reads: 3, stale: 1, wrong: 1, failed: 1, flagged: 1, worst: 5}, {worst: 9}}, sum)
	assert.EqualValues(t, 1, a[0].reads, "the first is not changed")
}

func TestOutageIsMeasuredBeforeAndAfter(t *testing.T) {
	s := Series{SliceMs: 100, LoadMs: 800, Reads: make([]uint64, 10), DBReads: []uint64{10, 20, 30, 0, 0, 5, 50, 7, 90, 90}}
	o := measureOutage(Outage{AtMs: 300, ForMs: 200}, s)
	assert.Equal(t, 200.0, o.DBReadsBefore)
	assert.Equal(t, 500.0, o.DBReadsPeak, "not in the quiet time")
	assert.Equal(t, 100.0, o.PeakAfterMs)
	o = measureOutage(Outage{AtMs: 0, ForMs: 5000}, s)
	assert.Zero(t, o.DBReadsBefore)
	assert.Zero(t, o.DBReadsPeak)
}

func TestBandsHaveEveryDuration(t *testing.T) {
	var h histogram
	assert.Nil(t, h.coarse())
	for _, d := range []time.Duration{100, 100, 101, time.Microsecond, time.Millisecond} {
		h.add(d)
	}
	bands := h.coarse()
	require.NotEmpty(t, bands)
	var sum uint64
	for i, b := range bands {
		sum += b.Count
		if i > 0 {
			assert.Greater(t, b.ToNs, bands[i-1].ToNs)
			assert.LessOrEqual(t, float64(b.ToNs), 1.26*float64(bands[i-1].ToNs)+1, "four of a doubling")
		}
	}
	assert.EqualValues(t, 5, sum)
	assert.Less(t, bands[0].ToNs, uint64(100), "it says where the first begins")
	assert.Zero(t, bands[0].Count)
	assert.EqualValues(t, 3, bands[1].Count)
	assert.NotZero(t, bands[len(bands)-1].Count)
}

// TestFirstViolationSaysWhatLedToIt has a replica go back after another has written.
func TestFirstViolationSaysWhatLedToIt(t *testing.T) {
	c := small()
	c.Accounts, c.Replicas, c.Weather = 1, 2, Weather{}
	r := openRun(t, mutant{bound: promise{tideMark: true}, start: func(env *environment) (replica, error) { return &sound{env.bank}, nil }}, c)
	seen := r.newCounts()
	r.readOne(t.Context(), r.nodes[1], 0, false, &seen)
	require.NoError(t, r.deposit(t.Context(), r.nodes[0], 0, 5))
	r.readOne(t.Context(), r.nodes[1], 0, false, &seen)
	require.Nil(t, r.first)
	r.nodes[1].replica = &backward{}
	r.readOne(t.Context(), r.nodes[1], 0, false, &seen)
	first := r.first
	require.NotNil(t, first)
	r.readOne(t.Context(), r.nodes[1], 0, false, &seen)
	assert.Same(t, first, r.first, "the first stays")
	assert.Equal(t, "a step back", first.What)
	assert.Equal(t, 1, first.Replica)
	var texts []string
	for i, m := range first.Moments {
		texts = append(texts, m.Text)
		if i > 0 {
			assert.GreaterOrEqual(t, m.AtMs, first.Moments[i-1].AtMs)
		}
	}
	require.Len(t, texts, 3, texts)
	assert.Equal(t, "a client knows that version 2 is committed", texts[0])
	assert.Equal(t, "replica 1 returns version 2", texts[1])
	assert.Contains(t, texts[2], "replica 1 returns version 1, stale for ")
	assert.Equal(t, first.AtMs, first.Moments[2].AtMs)
	var wrong uint64
	for _, s := range seen.slices {
		wrong += s.wrong
	}
	assert.EqualValues(t, 2, wrong)

	// An earlier read that ends later takes its place.
	before := r.oracle.beginRead(0, 0)
	before.began = r.firstBegan - 1
	r.keepFirst(before, verdict{unknown: true}, "a value that nobody wrote")
	require.Len(t, r.first.Moments, 1)
	assert.Equal(t, "replica 0 returns a value that nobody is known to have committed", r.first.Moments[0].Text)
}

// backward returns the opening balance at all times.
type backward struct{ sound }

func (*backward) read(context.Context, int) (answer, error) {
	return answer{account: Account{Balance: openingBalance}, hit: true}, nil
}
