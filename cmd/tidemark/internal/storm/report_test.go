package storm

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func exampleReport() *Report {
	return &Report{Schema: 1, Config: Default(), Contenders: []Result{
		{Name: "ttl", Reads: 1000, StaleReads: 10, Promise: "its TTL"},
		{Name: "tidemark", Reads: 1_234_567, HitRatio: 0.9, WrongAtRest: 2, WrongUnannounced: 2, Promise: "its tide mark"},
		{Name: "map", Reads: 1000, LostUpdates: 3, LostCents: 1250, Promise: "nothing"},
	}}
}

func TestTableShowsFailingContendersFirst(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, exampleReport().WriteTable(&b))
	text := b.String()
	assert.Contains(t, text, "0.1% delayed up to 100ms, 0.1% overtaken, 1% twice, 0.1% dropped\nreplicas: cut off 2 x 800ms,")
	lines := strings.Split(text, "\n")[4:]
	assert.True(t, strings.HasPrefix(lines[2], "tidemark "), text)
	assert.True(t, strings.HasPrefix(lines[3], "map "), text)
	assert.True(t, strings.HasPrefix(lines[4], "ttl "), text)
	assert.Len(t, lines[2], len(lines[3]), "the columns are aligned")
	assert.Contains(t, lines[8], "1,234,567", text)
	assert.Contains(t, lines[8], "90.0")
	for _, line := range lines[:11] {
		assert.Less(t, len(line), 100, "the tables fit a terminal")
		assert.Equal(t, strings.TrimRight(line, " "), line)
	}
	assert.Contains(t, text, "map             FAILED: 3 lost updates (the balances are off by 1,250 cents)")
	assert.Contains(t, text, "ttl             did not fail in this storm; 1.00% of its reads were stale")
	assert.Contains(t, text, "its tide mark")
}

func TestBrokenNamesOnlyTidemarksPromises(t *testing.T) {
	r := exampleReport()
	assert.Empty(t, r.Broken(), "nobody was ever told of the two entries")
	r.Contenders[1].WrongAtRest = 3
	assert.Equal(t, []string{"tidemark: 1 wrong entries at rest"}, r.Broken())
	for _, damage := range []func(*Result){
		func(c *Result) { c.BackwardReads = 1 }, func(c *Result) { c.LostUpdates = 1 },
		func(c *Result) { c.BeyondBound = 1 }, func(c *Result) { c.UnknownReads = 1 },
	} {
		r := exampleReport()
		damage(&r.Contenders[1])
		assert.Len(t, r.Broken(), 1)
	}
}

func TestReportJSONIsSchema1(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, exampleReport().WriteJSON(&b))
	var got struct {
		Schema     int              `json:"schema"`
		Config     map[string]any   `json:"config"`
		Contenders []map[string]any `json:"contenders"`
	}
	require.NoError(t, json.Unmarshal(b.Bytes(), &got))
	assert.Equal(t, 1, got.Schema)
	assert.EqualValues(t, 6000, got.Config["duration_ms"])
	require.Len(t, got.Contenders, 3)
	assert.Equal(t, "ttl", got.Contenders[0]["name"], "in the order in which they ran")
	assert.Equal(t, true, got.Contenders[2]["failed"])
	for _, field := range []string{
		"name", "reads", "writes", "hit_ratio", "stale_reads", "max_stale_ms", "backward_reads",
		"lost_updates", "wrong_at_rest", "beyond_bound", "db_reads", "read_p50_ns", "read_p99_ns", "write_p50_us", "write_p99_us",
	} {
		assert.Contains(t, got.Contenders[0], field)
	}
}

// A promise that is told by another's needs that one in the same table.
func TestPromisesCanBeReadInTheirTable(t *testing.T) {
	for _, of := range []contender{tidemarkLogContender{}, tidemarkStrictContender{}} {
		for _, store := range []string{"", "postgres://"} {
			for level := range 2 {
				c := Config{Contenders: []string{of.name()}, Bound: time.Second, Store: store}
				if level == 1 {
					c.ReadLevel = levelAny
				}
				assert.Contains(t, of.promise(c).text, tidemarkText)
				assert.NotContains(t, of.promise(c).text, "as tidemark")
				c.Contenders = []string{"tidemark", "tidemark-log", "tidemark-strict"}
				assert.Contains(t, of.promise(c).text, "as tidemark")
				assert.NotContains(t, of.promise(c).text, tidemarkText)
			}
		}
	}
}
