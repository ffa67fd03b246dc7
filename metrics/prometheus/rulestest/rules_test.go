package rulestest

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	tidemarkprom "github.com/tidemark-go/tidemark/metrics/prometheus"
)

const (
	rulesFile = "../alerts.yml"
	guideFile = "../../../docs/operations.md"
)

// rules returns the alerting rules, by name.
func rules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(rulesFile, false, model.UTF8Validation, parser.NewParser(parser.Options{}), nil)
	require.Empty(t, errs)
	all := map[string]rulefmt.Rule{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			assert.NotContains(t, all, r.Alert, "twice")
			all[r.Alert] = r
		}
	}
	require.NotEmpty(t, all)
	return all
}

// Prometheus takes the rules, and each says what whoever is woken up needs.
func TestAlerts_Load(t *testing.T) {
	for name, r := range rules(t) {
		assert.Regexp(t, `^Tidemark[A-Z]`, name)
		assert.Contains(t, []string{"page", "ticket"}, r.Labels["severity"], name)
		assert.NotEmpty(t, r.Annotations["summary"], name)
		assert.NotEmpty(t, r.Annotations["description"], name)
		assert.Empty(t, unknown(t, r.Expr), name)
	}
}

// The operations guide says what to do at each alert.
func TestAlerts_AreInTheOperationsGuide(t *testing.T) {
	guide, err := os.ReadFile(guideFile)
	require.NoError(t, err)
	var explained []string
	for _, m := range regexp.MustCompile(`(?m)^### (Tidemark[A-Za-z]+)`).FindAllSubmatch(guide, -1) {
		explained = append(explained, string(m[1]))
	}
	assert.ElementsMatch(t, slices.Collect(maps.Keys(rules(t))), explained)
}

// A scraper is a cache as Prometheus sees it, with the Stats that a test wants.
type scraper struct {
	now      tidemark.Stats
	registry *prometheus.Registry
}

func (s *scraper) Stats() tidemark.Stats { return s.now }

func newScraper(t *testing.T) *scraper {
	t.Helper()
	s := &scraper{registry: prometheus.NewPedanticRegistry()}
	c, err := tidemarkprom.NewCollector(s, "balances")
	require.NoError(t, err)
	require.NoError(t, s.registry.Register(c))
	return s
}

// scrape returns the value of each series, by its name with its labels and those
// that Prometheus adds.
func (s *scraper) scrape(t *testing.T, instance string) map[string]float64 {
	t.Helper()
	families, err := s.registry.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName() + `{job="bank",instance="` + instance + `"`
			for _, l := range m.GetLabel() {
				name += `,` + l.GetName() + `="` + l.GetValue() + `"`
			}
			values[name+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// exported returns every series that a cache has.
func exported(t *testing.T) []labels.Labels {
	t.Helper()
	var all []labels.Labels
	s := newScraper(t)
	s.now.Breaker = tidemark.BreakerClosed
	for name := range s.scrape(t, "one") {
		m, err := parser.NewParser(parser.Options{}).ParseMetric(name)
		require.NoError(t, err)
		all = append(all, m)
	}
	return all
}

// unknown returns what the expression asks for and no cache exports: a selector
// that matches no series, or a grouping by a label that none has.
func unknown(t *testing.T, expr string) (problems []string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		return []string{err.Error()}
	}
	all := exported(t)
	names := map[string]bool{}
	for _, series := range all {
		series.Range(func(l labels.Label) { names[l.Name] = true })
	}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		var grouping []string
		switch n := node.(type) {
		case *parser.VectorSelector:
			if !slices.ContainsFunc(all, func(series labels.Labels) bool {
				return !slices.ContainsFunc(n.LabelMatchers, func(m *labels.Matcher) bool { return !m.Matches(series.Get(m.Name)) })
			}) {
				problems = append(problems, "no series matches "+n.String())
			}
			for _, m := range n.LabelMatchers {
				grouping = append(grouping, m.Name)
			}
		case *parser.AggregateExpr:
			grouping = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				grouping = n.VectorMatching.MatchingLabels
			}
		}
		for _, name := range grouping {
			if !names[name] {
				problems = append(problems, "no series has the label "+name)
			}
		}
		return nil
	})
	return problems
}

func TestUnknown(t *testing.T) {
	assert.Empty(t, unknown(t, `sum by (cache, result) (rate(tidemark_reads_total{result=~"hit|miss"}[5m]))`))
	for expr, want := range map[string]string{
		`rate(tidemark_read_total[5m])`:                     "no series matches",
		`tidemark_state{state="cut off"} == 1`:              "no series matches",
		`sum by (outcome_) (rate(tidemark_puts_total[5m]))`: "no series has the label outcome_",
		`tidemark_peers / on (host) tidemark_entries`:       "no series has the label host",
		`tidemark_peers{host!="a"}`:                         "no series has the label host",
		`sum by (cache`:                                     "parse error",
	} {
		got := strings.Join(unknown(t, expr), "; ")
		assert.Contains(t, got, want, expr)
	}
}

// A history is the Stats of two replicas over time: of is called for each minute,
// oldest first, and changes what the replica had a minute ago. Of a long one only
// the first two hours and the last two are scraped.
type history struct {
	minutes int
	of      func(minute int, replica int, s *tidemark.Stats)
}

// well is what a replica does in a minute in which nothing is wrong.
func well(_, _ int, s *tidemark.Stats) {
	s.Hits += 9000
	s.Misses += 1000
	s.Loads += 1000
	s.LoadErrors += 2 // every source has some
	s.LoadTime += 3 * time.Second
	s.Joined += 50
	s.RefusedLoads += 3
	s.Writes += 200
	s.Conflicts += 10
	s.Invalidated += 5
	s.Applies += 200
	s.Sent += 440
	s.Received += 440
	s.Evictions += 300
	s.LogSeq += 880
	s.AuditChecked += 100
	s.StaleWhileRevalidate += 20
	s.Breaker = tidemark.BreakerClosed
	s.Entries, s.Cost, s.MaxCost = 5000, 5000, 10000
	s.State, s.Fresh, s.Peers, s.SourceEpoch = tidemark.Fresh, 200*time.Millisecond, 1, 1
}

// at returns the time of a minute of a history.
func at(minute int) time.Time { return time.Unix(0, 0).Add(time.Duration(minute) * time.Minute) }

// store returns a storage with the history in it, as scraped every minute, and the
// time of the last one.
func (h history) store(t *testing.T) (*teststorage.TestStorage, time.Time) {
	t.Helper()
	series, told := map[string][]string{}, map[string]int{} // and of how many minutes
	for replica := range 2 {
		cache := newScraper(t)
		for minute := range h.minutes {
			h.of(minute, replica, &cache.now)
			if minute > 120 && minute < h.minutes-120 {
				continue
			}
			for name, value := range cache.scrape(t, fmt.Sprint("replica-", replica)) {
				if missing := minute - told[name]; missing > 0 {
					series[name] = append(series[name], fmt.Sprintf("_x%d", missing))
				}
				series[name], told[name] = append(series[name], fmt.Sprint(value)), minute+1
			}
		}
	}
	var load strings.Builder
	load.WriteString("load 1m\n")
	for _, name := range slices.Sorted(maps.Keys(series)) {
		fmt.Fprintf(&load, "  %s %s\n", name, strings.Join(series[name], " "))
	}
	return promqltest.LoadedStorage(t, load.String()), at(h.minutes - 1)
}

// trouble is what the alerts are for: what one replica does each minute beside what
// is well. A test of an alert that is not here fails.
var trouble = map[string]func(s *tidemark.Stats){
	"TidemarkCutOff":                     func(s *tidemark.Stats) { s.State, s.CutOff, s.Fresh = tidemark.Joining, true, -1 },
	"TidemarkLogOutOfReach":              func(s *tidemark.Stats) { s.State = tidemark.Suspect },
	"TidemarkEntriesGrowOld":             func(s *tidemark.Stats) { s.Fresh = 11 * time.Second },
	"TidemarkReadsTooOld":                func(s *tidemark.Stats) { s.TooOld += 3 },
	"TidemarkLoadsFail":                  func(s *tidemark.Stats) { s.LoadErrors += 70 },
	"TidemarkLoadsDeclined":              func(s *tidemark.Stats) { s.Declined++ },
	"TidemarkBreakerOpen":                opensAgainAndAgain,
	"TidemarkServesStale":                func(s *tidemark.Stats) { s.StaleIfError++ },
	"TidemarkWritesInDoubt":              func(s *tidemark.Stats) { s.InDoubt = 1 },
	"TidemarkBacklog":                    func(s *tidemark.Stats) { s.Backlog = 1 },
	"TidemarkMessagesLost":               func(s *tidemark.Stats) { s.Gaps++ },
	"TidemarkCutOffAgainAndAgain":        func(s *tidemark.Stats) { s.CutOffs++ },
	"TidemarkMessagesUnreadable":         func(s *tidemark.Stats) { s.Bad++ },
	"TidemarkForeignMessages":            func(s *tidemark.Stats) { s.Foreign++ },
	"TidemarkReplicaDied":                func(s *tidemark.Stats) { s.Silences++ },
	"TidemarkReplicasHearDifferentPeers": func(s *tidemark.Stats) { s.Peers = 0 },
	"TidemarkSourceEpochsDiffer":         func(s *tidemark.Stats) { s.SourceEpoch = 2 },
	"TidemarkMismatch":                   func(s *tidemark.Stats) { s.AuditStale++ },
	"TidemarkAuditPutOff":                func(s *tidemark.Stats) { s.AuditChecked -= 100; s.AuditRefused++ },
	"TidemarkBypassed":                   func(s *tidemark.Stats) { s.Bypassed = true },
	"TidemarkBacklogCollapsed":           func(s *tidemark.Stats) { s.Collapsed++ },
	"TidemarkStrictWritesLapsed":         func(s *tidemark.Stats) { s.Lapsed++ },
	"TidemarkConflicts":                  func(s *tidemark.Stats) { s.Conflicts += 400 },
	"TidemarkHitRatioFell":               func(s *tidemark.Stats) { s.Misses += 9000 },
	"TidemarkCallbackPanics":             func(s *tidemark.Stats) { s.Panics++ },
}

// opensAgainAndAgain is a Breaker as it is scraped while the source is down.
func opensAgainAndAgain(s *tidemark.Stats) {
	s.BreakerOpens++
	if s.Breaker = tidemark.BreakerOpen; s.BreakerOpens%2 == 0 {
		s.Breaker = tidemark.BreakerHalfOpen
	}
}

const day = 24 * 60 // minutes

// Each alert fires when there is what it is for, and not before.
func TestAlerts_Fire(t *testing.T) {
	all := rules(t)
	assert.ElementsMatch(t, slices.Collect(maps.Keys(all)), slices.Collect(maps.Keys(trouble)))
	for name, r := range all {
		t.Run(name, func(t *testing.T) {
			begins := 30
			if strings.Contains(r.Expr, "offset 1d") {
				begins += day
			}
			h := history{begins + 75, func(minute, replica int, s *tidemark.Stats) {
				well(minute, replica, s)
				if minute >= begins && replica == 0 {
					trouble[name](s)
				}
			}}
			store, end := h.store(t)
			defer store.Close()
			hold := time.Duration(r.For)
			require.Less(t, hold, 70*time.Minute)
			assert.Zero(t, active(t, store, r.Expr, at(0), at(begins-1)), "before it began")
			steps := int(hold/time.Minute) + 1
			assert.Equal(t, steps, active(t, store, r.Expr, end.Add(-hold), end), "for as long as it takes to fire")
		})
	}
}

// Where all is well nobody is woken, nor by a cache that does nothing at all or has
// just been restarted.
func TestAlerts_AreSilentWhereAllIsWell(t *testing.T) {
	for name, h := range map[string]history{
		"busy": {day + 60, well},
		"idle": {day + 60, func(_, _ int, s *tidemark.Stats) { s.Fresh = -1 }},
		// The source is back, and nothing is loaded that could show it to the breaker.
		"idle after an outage": {120, func(_, _ int, s *tidemark.Stats) {
			s.Fresh, s.Breaker, s.BreakerOpens = -1, tidemark.BreakerHalfOpen, 7
		}},
		"restarted": {120, func(minute, replica int, s *tidemark.Stats) {
			if minute == 60 {
				*s = tidemark.Stats{}
			}
			well(minute, replica, s)
		}},
	} {
		store, end := h.store(t)
		for alert, r := range rules(t) {
			assert.Zero(t, active(t, store, r.Expr, at(0), end), "%s: %s", name, alert)
		}
		require.NoError(t, store.Close())
	}
}

// active returns in how many minutes the expression has a result.
func active(t *testing.T, store *teststorage.TestStorage, expr string, from, to time.Time) (minutes int) {
	t.Helper()
	engine := promqltest.NewTestEngine(t, false, 5*time.Minute, 10_000_000)
	query, err := engine.NewRangeQuery(t.Context(), store, nil, expr, from, to, time.Minute)
	require.NoError(t, err)
	defer query.Close()
	result := query.Exec(t.Context())
	require.NoError(t, result.Err)
	series, err := result.Matrix()
	require.NoError(t, err)
	seen := map[int64]bool{}
	for _, s := range series {
		for _, p := range s.Floats {
			seen[p.T] = true
		}
	}
	return len(seen)
}
