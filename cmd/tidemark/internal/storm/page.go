package storm

import (
	"cmp"
	_ "embed" // the page
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"
)

// The page is one file: no script, and nothing from anywhere else.
//
//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"tidemark": isTidemark}).Parse(pageText))

// isTidemark reports whether a contender is this library.
func isTidemark(name string) bool { return strings.HasPrefix(name, "tidemark") }

// A pageView is a Report as the page shows it.
type pageView struct {
	*Report
	Began       string
	Broken      []string
	HasTidemark bool
	SliceText   string
	Verdicts    []verdictView

	Wrongs, Costs, Outages, Settings tableView
	Stale, DBReads                   panelsView
	StaleTable, DBTable              tableView
	Reads, Deposits                  ridgesView
	Faults                           []faultView
	Firsts                           []firstView
	Promises, Words                  []termView
}

type verdictView struct {
	Text   string
	Failed bool
}

// A tableView has the rows of its head first. The first cell of a row is its name.
type tableView struct {
	Class string
	Head  [][]headView
	Rows  [][]string
}

type headView struct {
	Text string
	Span int // columns
}

type faultView struct{ Letter, At, Text string }

type termView struct {
	Name, Text string
	Tidemark   bool
}

// WriteHTML writes the report for people as one HTML file with charts, which needs
// nothing else: no script, no font and no network.
func (r *Report) WriteHTML(w io.Writer) error {
	settings, err := r.settings()
	if err != nil {
		return err
	}
	v := pageView{
		Report: r, Began: r.Began.Format("2006-01-02 15:04 MST"), Broken: r.Broken(),
		HasTidemark: slices.ContainsFunc(r.Contenders, func(c Result) bool { return isTidemark(c.Name) }),
		Wrongs:      newTable(wrongs, r.Contenders), Costs: newTable(costs, r.Contenders),
		Stale: staleChart(r.Contenders), DBReads: dbChart(r.Contenders),
		StaleTable: partsTable(r.Contenders, worstOf), DBTable: partsTable(r.Contenders, rateOf),
		Reads: readRidges(r.Contenders), Deposits: depositRidges(r.Contenders),
		Words: terms(legend), Settings: settings,
	}
	if r.Config.DatabaseOutage > 0 {
		v.Outages, v.Words = newTable(outages, r.Contenders), terms(legend+outageLegend)
	}
	for _, c := range r.Contenders {
		v.Verdicts = append(v.Verdicts, verdictView{strings.Join(strings.Fields(verdictLine(c)), " "), len(c.Failures()) > 0})
		v.Promises = append(v.Promises, termView{c.Name, strings.ReplaceAll(c.Promise, "\n", " "), isTidemark(c.Name)})
		v.Firsts = append(v.Firsts, newFirst(c))
	}
	if len(r.Contenders) > 0 {
		v.SliceText = milliDuration(r.Contenders[0].Series.SliceMs).String()
		v.Faults = faultTable(r.Contenders[0].Events)
	}
	return pageTemplate.Execute(w, v)
}

func milliDuration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// newTable returns a table of results. A column whose title begins with a line break
// shares the first line with the one before.
func newTable(columns []column, results []Result) tableView {
	t := tableView{Class: "wide", Head: make([][]headView, 2)}
	for _, c := range columns {
		top, bottom, two := strings.Cut(c.title, "\n")
		if !two {
			top, bottom = "", top
		}
		if two && top == "" {
			t.Head[0][len(t.Head[0])-1].Span++
		} else {
			t.Head[0] = append(t.Head[0], headView{top, 1})
		}
		t.Head[1] = append(t.Head[1], headView{bottom, 1})
	}
	for _, r := range results {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(r))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// partsOfTable is into how many parts of time the table beside a chart divides it.
const partsOfTable = 10

// partsTable is a chart in figures: one for each contender and part of the time.
func partsTable(results []Result, figure func(s Series, from, to int) string) tableView {
	t := tableView{Head: [][]headView{{{"seconds", 1}}}}
	if len(results) == 0 {
		return t
	}
	s := results[0].Series
	n := len(s.Reads)
	part := max(1, (n+partsOfTable-1)/partsOfTable)
	for from := 0; from < n; from += part {
		to := min(n, from+part)
		t.Head[0] = append(t.Head[0], headView{fmt.Sprintf("%.3g to %.3g", float64(from)*s.SliceMs/1000, float64(to)*s.SliceMs/1000), 1})
	}
	for _, r := range results {
		row := []string{r.Name}
		for from := 0; from < len(r.Series.Reads); from += part {
			row = append(row, figure(r.Series, from, min(len(r.Series.Reads), from+part)))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func worstOf(s Series, from, to int) string {
	return group(uint64(slices.Max(s.WorstStaleMs[from:to]) + 0.5))
}

func rateOf(s Series, from, to int) string {
	var sum uint64
	for _, n := range s.DBReads[from:to] {
		sum += n
	}
	return group(uint64(float64(sum) / float64(to-from) * 1000 / s.SliceMs))
}

// faultTable gives each event its letter.
func faultTable(events []Event) (faults []faultView) {
	for i, e := range events {
		faults = append(faults, faultView{letter(i), fmt.Sprintf("%.2f", e.AtMs/1000), e.Text})
	}
	return faults
}

// letter returns the name of the i-th fault in the charts: A to Z, then A1 and so on.
func letter(i int) string {
	name := string(rune('A' + i%26))
	if i >= 26 {
		name += fmt.Sprint(i / 26)
	}
	return name
}

// settings is the configuration as -json has it.
func (r *Report) settings() (tableView, error) {
	t := tableView{Head: [][]headView{{{"setting", 1}, {"value", 1}}}}
	b, err := json.Marshal(r.Config)
	if err != nil {
		return t, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return t, err
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Rows = append(t.Rows, []string{name, strings.Trim(strings.NewReplacer(`"`, "", ",", ", ").Replace(string(fields[name])), "[]")})
	}
	return t, nil
}

// terms takes a legend for a terminal apart: two spaces end a term, and lines that
// begin with a space go on with the last.
func terms(text string) (all []termView) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		term, meaning, _ := strings.Cut(line, "  ")
		meaning = strings.TrimSpace(meaning)
		switch {
		case line == "":
		case term == "":
			all[len(all)-1].Text += " " + meaning
		default:
			all = append(all, termView{Name: term, Text: meaning})
		}
	}
	return all
}

// A firstView is the first violation of a contender, if it had one.
type firstView struct {
	Name, What string
	Account    int
	Tidemark   bool
	Steps      []stepView
}

type stepView struct{ At, Text, Class string }

// newFirst puts what led to the violation and the faults of that time in order.
func newFirst(c Result) firstView {
	f := firstView{Name: c.Name, Tidemark: isTidemark(c.Name)}
	v := c.FirstViolation
	if v == nil {
		return f
	}
	f.What, f.Account = v.What, v.Account
	steps := slices.Clone(v.Moments)
	faults := map[Moment]bool{}
	begin := v.AtMs
	if len(steps) > 0 {
		begin = steps[0].AtMs
	}
	for _, e := range c.Events {
		if e.AtMs <= v.AtMs && e.AtMs+e.ForMs >= begin {
			m := Moment{e.AtMs, e.Text}
			faults[m] = true
			steps = append(steps, m)
		}
	}
	wrong := Moment{}
	if len(v.Moments) > 0 {
		wrong = v.Moments[len(v.Moments)-1]
	}
	slices.SortStableFunc(steps, func(a, b Moment) int { return cmp.Compare(a.AtMs, b.AtMs) })
	for _, m := range steps {
		s := stepView{At: fmt.Sprintf("%.4f", m.AtMs/1000), Text: m.Text}
		switch {
		case m == wrong:
			s.Class = "is-wrong"
		case faults[m]:
			s.Class = "is-fault"
		}
		f.Steps = append(f.Steps, s)
	}
	return f
}
