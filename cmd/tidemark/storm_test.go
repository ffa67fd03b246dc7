package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/cmd/tidemark/internal/storm"
	"github.com/tidemark-go/tidemark/internal/pgtest"
	"github.com/tidemark-go/tidemark/internal/redistest"
)

func TestStormPrintsATableAndWritesJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "storm.json")
	r := tidemarkWith(t.Context(), "", "storm", "-contenders", "map,ttl", "-duration", "400ms", "-quiet", "0s",
		"-accounts", "500", "-capacity", "100", "-seed", "7", "-freeze", "0", "-bound", "2s", "-json", file)
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "3 replicas, 500 accounts, 100 entries a cache, the database 300µs away, seed 7, 400ms of load each")
	assert.Contains(t, r.out, "contender")
	assert.Contains(t, r.err, "map (1 of 2)")
	assert.Contains(t, r.err, "ttl (2 of 2)")
	assert.Contains(t, r.err, "is cut off for")
	assert.NotContains(t, r.err, "freezes")
	assert.NotContains(t, r.err, "\r", "no bar where there is no terminal")

	b, err := os.ReadFile(file)
	require.NoError(t, err)
	var report struct {
		Schema     int
		Config     map[string]any
		Contenders []storm.Result
	}
	require.NoError(t, json.Unmarshal(b, &report))
	assert.Equal(t, 1, report.Schema)
	assert.EqualValues(t, 7, report.Config["seed"])
	assert.EqualValues(t, 2000, report.Config["bound_ms"])
	require.Len(t, report.Contenders, 2)
	assert.Positive(t, report.Contenders[0].Reads)
}

func TestStormWritesAPage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "storm.html")
	r := tidemarkWith(t.Context(), "", "storm", "-contenders", "map", "-duration", "400ms", "-quiet", "0s", "-accounts", "500",
		"-database-outage", "100ms", "-html", file)
	require.Equal(t, exitOK, r.status, r.err)
	assert.Contains(t, r.out, "; the database gone for 100ms")
	assert.Contains(t, r.out, "database gone   reads that began while")
	assert.Contains(t, r.err, "the database is gone for 100ms")
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(page), "<code>tidemark storm -accounts 500 -contenders map -database-outage 100ms -duration 400ms -quiet 0s</code>")
	assert.Contains(t, string(page), runtime.Version())
}

// The command in a report is of use to others, and has no password in it.
func TestStormCommandTellsNoAddress(t *testing.T) {
	flags := flag.NewFlagSet("storm", flag.ContinueOnError)
	for _, name := range []string{"store", "redis", "html", "contenders"} {
		flags.String(name, "", "")
	}
	require.NoError(t, flags.Parse([]string{"-store", "postgres://u:secret@h/d", "-redis", ":secret@h:1", "-html", "somewhere.html", "-contenders", "map, ttl"}))
	assert.Equal(t, `tidemark storm -contenders "map, ttl" -redis HOST:PORT -store 'postgres://...'`, stormCommand(flags))
}

func TestStormFailsIfTheReportCannotBeWritten(t *testing.T) {
	for _, form := range []string{"-json", "-html"} {
		r := tidemarkWith(t.Context(), "", "storm", "-contenders", "map", "-duration", "100ms", "-quiet", "0s",
			"-accounts", "100", form, filepath.Join(t.TempDir(), "no", "such", "folder"))
		assert.Equal(t, exitFailed, r.status)
		assert.Contains(t, r.err, "no such file")
	}
}

func TestStormRunsOnPostgresAndBesideRedis(t *testing.T) {
	r := tidemarkWith(t.Context(), "", "storm", "-store", pgtest.Database(t, execute), "-redis", redistest.Address(t), "-redis-ttl", "30s",
		"-contenders", "redis,redis-fenced,tidemark-log", "-duration", "400ms", "-quiet", "0s",
		"-accounts", "500", "-capacity", "100", "-freeze", "0", "-bound", "2s", "-database-outage", "100ms")
	require.Equal(t, exitOK, r.status, r.err+r.out)
	assert.Contains(t, r.out, "PostgreSQL another 300µs away")
	assert.Contains(t, r.out, "a value expires 30s after it was stored")
	assert.Contains(t, r.out, "the database tells of it through its outbox")
	assert.Contains(t, r.err, "redis-fenced (2 of 3)")
}

func TestStormNamesWhatItCannotUse(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-contenders", "redis"}, `contender "redis" needs a Redis`},
		{[]string{"-redis", "here"}, "Redis is not at host:port"},
		{[]string{"-store", "file.db"}, "store is no URL"},
	} {
		r := tidemarkWith(t.Context(), "", append([]string{"storm"}, c.args...)...)
		assert.Equal(t, exitUsage, r.status)
		assert.Contains(t, r.err, c.want)
	}
	r := tidemarkWith(t.Context(), "", "storm", "-h")
	assert.Contains(t, r.err, "with -redis redis,redis-fenced after ristretto")
	assert.NotContains(t, r.err, "redis,redis-fenced,tidemark", "which is not the default")
}

func TestStormSaysThatItWasInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	r := tidemarkWith(ctx, "", "storm", "-contenders", "map", "-accounts", "100")
	assert.Equal(t, exitFailed, r.status)
	assert.Contains(t, r.err, "tidemark storm: interrupted")
}

func TestABrokenPromiseIsExitStatus1(t *testing.T) {
	kept := storm.Result{Name: "tidemark"}
	broken := storm.Result{Name: "tidemark", BackwardReads: 1}
	other := storm.Result{Name: "map", LostUpdates: 5}
	for _, c := range []struct {
		results []storm.Result
		status  int
	}{
		{[]storm.Result{other, kept}, exitOK},
		{[]storm.Result{other, broken}, exitFailed},
		{[]storm.Result{other}, exitOK},
	} {
		var out output
		status := conclude(&storm.Report{Contenders: c.results}, &out)
		assert.Equal(t, c.status, status)
		assert.Equal(t, status == exitFailed, strings.Contains(out.String(), "BROKEN PROMISE: tidemark: 1 reads went backwards"), out.String())
	}
}

func TestProgressDrawsABarOnATerminal(t *testing.T) {
	var out output
	p := &progress{w: &out, bar: true}
	p.update(storm.Status{Contender: "map", Of: 2, Phase: "load", Elapsed: time.Second, Total: 2 * time.Second, Event: "something"})
	p.update(storm.Status{Contender: "map", Of: 2, Phase: "load", Elapsed: time.Hour, Total: 2 * time.Second})
	p.update(storm.Status{Contender: "ttl", Of: 2, Event: strings.Repeat("long ", 50)})
	p.end()
	text := out.String()
	for line := range strings.SplitSeq(text, "\r\x1b[K") {
		assert.LessOrEqual(t, len(line), lineWidth)
	}
	assert.Contains(t, text, "[#####...............]  25% map, about 3s left  something")
	assert.Contains(t, text, "[##########..........]  50%", "late is not further")
	assert.NotContains(t, text, "\n")
	assert.True(t, strings.HasSuffix(text, "\r\x1b[K"), "nothing is left of it")
}
