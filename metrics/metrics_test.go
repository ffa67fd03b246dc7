package metrics_test

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/metrics"
)

// values returns all that is known of s, by name and label.
func values(s tidemark.Stats) map[string]int64 {
	got := map[string]int64{}
	for _, m := range metrics.All() {
		for _, series := range m.Series {
			if value, known := series.Value(&s); known {
				got[m.Name+" "+series.Label] = value
			}
		}
	}
	return got
}

// Whatever is added to Stats has to be exported: each field, set alone, shows.
func TestAll_HasAllOfStats(t *testing.T) {
	nothing := values(tidemark.Stats{Fresh: -1})
	require.NotEmpty(t, nothing)
	var seen []map[string]int64
	for _, f := range reflect.VisibleFields(reflect.TypeFor[tidemark.Stats]()) {
		s := tidemark.Stats{Fresh: -1}
		switch v := reflect.ValueOf(&s).Elem().FieldByIndex(f.Index); {
		case v.CanInt():
			v.SetInt(7_000_000_001)
		case v.Kind() == reflect.Uint8:
			v.SetUint(uint64(tidemark.Suspect))
		case v.CanUint():
			v.SetUint(77)
		default:
			v.SetBool(true)
		}
		got := values(s)
		if f.Name == "Refused" {
			assert.Equal(t, nothing, got, "its parts are exported, and add up to it")
			continue
		}
		assert.NotEqual(t, nothing, got, f.Name)
		for _, other := range seen {
			assert.NotEqual(t, other, got, "%s is exported as another field is", f.Name)
		}
		seen = append(seen, got)
	}
}

// Names are unique and written alike, series can be told apart, and help is written for
// a person who has been woken up, in one line.
func TestAll_IsWellFormed(t *testing.T) {
	names := map[string]bool{}
	for _, m := range metrics.All() {
		assert.Regexp(t, `^tidemark\.[a-z]+(_[a-z]+)*$`, m.Name)
		assert.False(t, names[m.Name], m.Name)
		names[m.Name] = true
		assert.Regexp(t, `^[A-Z0-9].*\.$`, m.Help, m.Name)
		assert.NotContains(t, m.Help, "\n", m.Name)
		assert.Regexp(t, `^(s|\{[a-z]+\})?$`, m.Unit, m.Name)
		assert.LessOrEqual(t, m.Kind, metrics.Gauge, m.Name)
		require.NotEmpty(t, m.Series, m.Name)
		labels := map[string]bool{}
		for _, s := range m.Series {
			assert.Equal(t, m.Label != "", s.Label != "", m.Name)
			assert.False(t, labels[s.Label], m.Name)
			labels[s.Label] = true
		}
	}
}

// What is not known is not exported, and what no int64 can hold is not negative.
func TestAll_Values(t *testing.T) {
	got := values(tidemark.Stats{Fresh: -1})
	assert.NotContains(t, got, "tidemark.staleness_bound ")
	assert.NotContains(t, got, "tidemark.breaker_state open")
	got = values(tidemark.Stats{Fresh: time.Second, Breaker: tidemark.BreakerOpen, Evictions: 1<<64 - 1})
	assert.EqualValues(t, time.Second, got["tidemark.staleness_bound "])
	assert.EqualValues(t, 1, got["tidemark.breaker_state open"])
	assert.EqualValues(t, 0, got["tidemark.breaker_state closed"])
	assert.EqualValues(t, 1<<63-1, got["tidemark.evictions "])
}

func TestAll_IsACopy(t *testing.T) {
	metrics.All()[0].Name = "another"
	assert.NotEqual(t, "another", metrics.All()[0].Name)
}

// An exporter is a loop.
func ExampleAll() {
	cache, err := tidemark.New(tidemark.Options[string, int]{})
	if err != nil {
		panic(err)
	}
	defer cache.Close(context.Background())
	cache.Put("alice", 1, 1)
	cache.Get("alice")
	cache.Get("bob")

	stats := cache.Stats()
	for _, m := range metrics.All() {
		for _, s := range m.Series {
			if value, known := s.Value(&stats); known && m.Name == "tidemark.reads" {
				fmt.Printf("%s %s=%s %d\n", m.Name, m.Label, s.Label, value)
			}
		}
	}
	// Output:
	// tidemark.reads result=hit 1
	// tidemark.reads result=miss 1
}
