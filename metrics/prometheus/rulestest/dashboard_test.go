package rulestest

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Grafana's variables, as it would fill them in.
var variables = strings.NewReplacer(
	"$__rate_interval", "1m", "$cache", "balances|prices", "$job", "bank", "$instance", "one", "$datasource", "prometheus")

// A classic is a dashboard as every Grafana reads it from a file.
//
//lint:ignore SA1019 the model that replaces it is not read by older ones
type classic = dashboard.Dashboard

// Grafana takes the dashboard: nothing in it is unknown to its schema.
func TestDashboard_Loads(t *testing.T) {
	known := cog.NewRuntime() // of whose kinds it knows what they take; all forty take long to compile
	known.RegisterPanelcfgVariant(timeseries.VariantConfig())
	known.RegisterPanelcfgVariant(statetimeline.VariantConfig())
	known.RegisterDataqueryVariant(prometheus.VariantConfig())
	for _, p := range panels(t) {
		assert.Contains(t, []string{"row", "timeseries", "state-timeline"}, p.Type, "nothing is known of it")
	}
	text, err := os.ReadFile("../dashboard.json")
	require.NoError(t, err)
	var d classic
	require.Empty(t, refusals(t, d.UnmarshalJSONStrict(text)))
	require.NoError(t, d.Validate())
	assert.NotEmpty(t, *d.Uid)
	for _, mistake := range []*strings.Replacer{
		strings.NewReplacer(`"refId"`, `"refID"`), strings.NewReplacer(`"legendFormat"`, `"legend"`), strings.NewReplacer(`"mergeValues"`, `"merge"`),
	} {
		bad := mistake.Replace(string(text))
		require.NotEqual(t, string(text), bad)
		assert.NotEmpty(t, refusals(t, new(classic).UnmarshalJSONStrict([]byte(bad))))
	}
}

// refusals returns what a strict reading has found; none may come as an error
// that is not nil.
func refusals(t *testing.T, err error) (found cog.BuildErrors) {
	t.Helper()
	if err != nil {
		require.ErrorAs(t, err, &found)
	}
	return found
}

// A panel is what the checks below look at.
type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	GridPos     struct{ H, W, X, Y int }
	Targets     []struct{ RefID, Expr, LegendFormat string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile("../dashboard.json")
	require.NoError(t, err)
	var d struct{ Panels []panel }
	require.NoError(t, json.Unmarshal(text, &d))
	require.NotEmpty(t, d.Panels)
	return d.Panels
}

// Every panel asks for what there is, says what to think of it, and has a place of
// its own.
func TestDashboard_AsksForWhatThereIs(t *testing.T) {
	ids, taken := map[int]bool{}, map[[2]int]string{}
	var all strings.Builder
	for _, p := range panels(t) {
		assert.False(t, ids[p.ID], "id %d is used twice", p.ID)
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				at := [2]int{x, y}
				assert.Less(t, x, 24, p.Title)
				assert.Empty(t, taken[at], "%s lies over %s", p.Title, taken[at])
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		assert.NotEmpty(t, p.Description, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			assert.Empty(t, unknown(t, variables.Replace(target.Expr)), p.Title)
			for _, selector := range regexp.MustCompile(`tidemark_\w+\{[^}]*\}|tidemark_\w+`).FindAllString(target.Expr, -1) {
				assert.Contains(t, selector, `cache=~"$cache",job=~"$job",instance=~"$instance"`, "%s ignores the choice of cache", p.Title)
			}
			assert.NotEmpty(t, target.LegendFormat, p.Title)
			all.WriteString(target.Expr)
		}
	}
	for _, series := range exported(t) {
		assert.Contains(t, all.String(), series.Get("__name__"), "is on no panel")
	}
}
