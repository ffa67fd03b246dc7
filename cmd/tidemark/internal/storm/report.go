package storm

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Report is what a storm found. Its JSON form is schema 1.
type Report struct {
	Schema     int      `json:"schema"`
	Config     Config   `json:"config"`
	Contenders []Result `json:"contenders"` // in the order in which they ran

	Command string    `json:"command,omitempty"` // that ran it, if a command did
	Began   time.Time `json:"began"`
	Machine Machine   `json:"machine"`
}

// A Result is what a storm found about one contender.
type Result struct {
	Name          string  `json:"name"`
	Reads         uint64  `json:"reads"`
	Writes        uint64  `json:"writes"`         // acknowledged deposits of the replicas' own writers
	HitRatio      float64 `json:"hit_ratio"`      // reads answered from memory, 0 to 1
	StaleReads    uint64  `json:"stale_reads"`    // a newer version had been acknowledged before the read began
	MaxStaleMs    float64 `json:"max_stale_ms"`   // how long before, at worst
	BackwardReads uint64  `json:"backward_reads"` // below an earlier completed read on the same replica
	LostUpdates   uint64  `json:"lost_updates"`   // acknowledged deposits that the database does not have, or has twice
	WrongAtRest   uint64  `json:"wrong_at_rest"`  // entries that differ from the database when all is quiet
	BeyondBound   uint64  `json:"beyond_bound"`   // reads beyond the bound of the contender, or below its tide mark
	DBReads       uint64  `json:"db_reads"`       // rows read from the database, by reads and by writes
	ReadP50Ns     int64   `json:"read_p50_ns"`
	ReadP99Ns     int64   `json:"read_p99_ns"`
	WriteP50Us    float64 `json:"write_p50_us"`
	WriteP99Us    float64 `json:"write_p99_us"`

	StaleP50Ms       float64  `json:"stale_p50_ms"` // of the stale reads
	ReadsPerS        float64  `json:"reads_per_s"`  // of all replicas together; at most Config.ReadRate
	Promise          string   `json:"promise"`
	Failed           bool     `json:"failed"`                    // see Failures
	WrongUnannounced uint64   `json:"wrong_at_rest_unannounced"` // of WrongAtRest: newer versions only by killed writers
	Resident         uint64   `json:"resident_at_rest"`          // entries compared
	LostCents        int64    `json:"lost_cents"`                // by which the balances are off, in all
	UnknownReads     uint64   `json:"unknown_reads"`             // values that nobody is known to have committed
	Unpromised       uint64   `json:"beyond_bound_unpromised"`   // of BeyondBound: the contender states no bound at this level
	ReadErrors       uint64   `json:"read_errors"`
	WriteErrors      uint64   `json:"write_errors"`
	DoubtfulWrites   uint64   `json:"doubtful_writes"` // writes of which nobody knows whether they were committed
	Messages         Tally    `json:"messages"`
	Faults           []string `json:"faults"`               // what happened when
	Violations       []string `json:"violations,omitempty"` // the first few, in words

	BoundMs        float64    `json:"bound_ms"` // on staleness, as promised; 0: none is
	Events         []Event    `json:"events"`   // Faults, as figures
	Series         Series     `json:"series"`
	ReadLatency    []Band     `json:"read_latency"`
	WriteLatency   []Band     `json:"write_latency"`
	FirstViolation *Violation `json:"first_violation,omitempty"`
	Outage         *Outage    `json:"database_outage,omitempty"`
}

// Failures says in what ways the contender was wrong: a reader saw a balance
// that it should not have seen, or the books do not balance. A stale read is
// one only for the time it lasts, so it does not count as a failure of its
// own unless it is beyond the bound that the contender states.
func (r Result) Failures() []string {
	var f []string
	add := func(n uint64, what string) {
		if n > 0 {
			f = append(f, fmt.Sprintf("%s %s", group(n), what))
		}
	}
	add(r.LostUpdates, "lost updates")
	add(r.WrongAtRest, "wrong entries at rest")
	add(r.BackwardReads, "reads went backwards")
	add(r.BeyondBound-r.Unpromised, "reads beyond the bound it states")
	add(r.UnknownReads, "reads of values that nobody wrote")
	return f
}

// Broken says which of the promises of section 2 of the design tidemark broke
// in this storm; nothing if it kept all, or did not run. Entries that are wrong
// only because a writer died before it could tell anybody are failures, but
// nothing was promised about them: that writer confirmed them to nobody.
func (r *Report) Broken() []string {
	var broken []string
	for _, c := range r.Contenders {
		if !strings.HasPrefix(c.Name, "tidemark") {
			continue
		}
		c.WrongAtRest -= c.WrongUnannounced
		for _, f := range c.Failures() {
			broken = append(broken, c.Name+": "+f)
		}
	}
	return broken
}

// WriteJSON writes the report in schema 1.
func (r *Report) WriteJSON(w io.Writer) error {
	out := *r
	out.Contenders = slices.Clone(r.Contenders)
	for i, c := range out.Contenders {
		out.Contenders[i].Failed = len(c.Failures()) > 0
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(&out)
}

// A column of a table has a title of one or two lines.
type column struct {
	title string
	cell  func(Result) string
}

var nameColumn = column{"contender", func(r Result) string { return r.Name }}

// wrongs is the table of what went wrong, the worst first.
var wrongs = []column{
	nameColumn,
	{"lost\nupdates", func(r Result) string { return group(r.LostUpdates) }},
	{"at rest\nwrong", func(r Result) string { return group(r.WrongAtRest) }},
	{"\nof", func(r Result) string { return group(r.Resident) }},
	{"backward\nreads", func(r Result) string { return group(r.BackwardReads) }},
	{"beyond\nbound", func(r Result) string { return group(r.BeyondBound) }},
	{"stale\nreads", func(r Result) string { return group(r.StaleReads) }},
	{"stale ms\np50", func(r Result) string { return group(uint64(r.StaleP50Ms + 0.5)) }},
	{"\nmax", func(r Result) string { return group(uint64(r.MaxStaleMs + 0.5)) }},
}

// costs is the table of what it cost.
var costs = []column{
	nameColumn,
	{"reads", func(r Result) string { return group(r.Reads) }},
	{"hit\n%", func(r Result) string { return fmt.Sprintf("%.1f", 100*r.HitRatio) }},
	{"db\nreads", func(r Result) string { return group(r.DBReads) }},
	{"read ns\np50", func(r Result) string { return group(uint64(r.ReadP50Ns)) }},
	{"\np99", func(r Result) string { return group(uint64(r.ReadP99Ns)) }},
	{"writes", func(r Result) string { return group(r.Writes) }},
	{"write us\np50", func(r Result) string { return group(uint64(r.WriteP50Us + 0.5)) }},
	{"\np99", func(r Result) string { return group(uint64(r.WriteP99Us + 0.5)) }},
}

// outages is the table of what a contender did without the database.
var outages = []column{
	nameColumn,
	{"served\ndatabase gone", outageCell(func(o Outage) uint64 { return o.ReadsServed })},
	{"failed", outageCell(func(o Outage) uint64 { return o.ReadsFailed })},
	{"flagged", outageCell(func(o Outage) uint64 { return o.FlaggedReads })},
	{"db reads/s\nbefore", outageCell(func(o Outage) uint64 { return uint64(o.DBReadsBefore + 0.5) })},
	{"\npeak after", outageCell(func(o Outage) uint64 { return uint64(o.DBReadsPeak + 0.5) })},
}

// outageCell shows one figure of an outage, or that there was none.
func outageCell(figure func(Outage) uint64) func(Result) string {
	return func(r Result) string {
		if r.Outage == nil {
			return "-"
		}
		return group(figure(*r.Outage))
	}
}

// WriteTable writes the report for people: failing contenders first.
func (r *Report) WriteTable(w io.Writer) error {
	sorted := slices.Clone(r.Contenders)
	slices.SortStableFunc(sorted, func(a, b Result) int { return failRank(a) - failRank(b) })

	var b strings.Builder
	fmt.Fprintf(&b, "%v\n\n", r.Config)
	writeRows(&b, wrongs, sorted)
	b.WriteString("\n")
	writeRows(&b, costs, sorted)
	b.WriteString("\n")
	if r.Config.DatabaseOutage > 0 {
		writeRows(&b, outages, sorted)
		b.WriteString("\n")
	}
	for _, c := range sorted {
		b.WriteString(verdictLine(c))
	}
	b.WriteString(legend)
	if r.Config.DatabaseOutage > 0 {
		b.WriteString(outageLegend)
	}
	b.WriteString("\n")
	for _, c := range sorted {
		fmt.Fprintf(&b, "  %-15s  %s\n", c.Name, strings.ReplaceAll(c.Promise, "\n", "\n"+strings.Repeat(" ", 19)))
	}
	for _, c := range sorted {
		for _, v := range c.Violations {
			fmt.Fprintf(&b, "\n%s: %s\n", c.Name, v)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const legend = `
lost updates    acknowledged deposits that the database does not contain, or contains twice
at rest         entries in memory that differ from the database when all links have healed and
                nothing is written any more, of those that a reader would be served
backward reads  below what an earlier completed read of the account had returned on the same replica
stale reads     a newer version had been acknowledged before the read began; stale ms: how long before
beyond bound    reads that are staler, or older, than the contender states, see below
read ns         a hit or a load, from cold processor caches, one reading of the clock included
`

const outageLegend = `database gone   reads that began while no replica could reach the database: served, failed, and of those
                served the ones that said of themselves that they may be too old
db reads/s      rows read from the database in a second: on average until it was gone, and in the
                slice of time with the most after it was back
`

func failRank(r Result) int {
	if len(r.Failures()) > 0 {
		return 0
	}
	return 1
}

// verdictLine says in words whether the contender failed.
func verdictLine(c Result) string {
	failures := c.Failures()
	line := fmt.Sprintf("%-15s did not fail in this storm", c.Name)
	if len(failures) > 0 {
		line = fmt.Sprintf("%-15s FAILED: %s", c.Name, strings.Join(failures, ", "))
		if c.LostCents > 0 {
			line += fmt.Sprintf(" (the balances are off by %s cents)", group(uint64(c.LostCents)))
		}
	}
	if c.WrongUnannounced > 0 {
		line += fmt.Sprintf("; %s of the wrong entries nobody was ever told about, their writer died first", group(c.WrongUnannounced))
	}
	if c.ReadErrors+c.WriteErrors > 0 {
		line += fmt.Sprintf("; %s reads and %s deposits returned an error", group(c.ReadErrors), group(c.WriteErrors))
	}
	if c.StaleReads > 0 {
		line += fmt.Sprintf("; %s of its reads were stale", percent(c.StaleReads, c.Reads))
	}
	return line + "\n"
}

// writeRows writes a table, numbers to the right.
func writeRows(b *strings.Builder, columns []column, results []Result) {
	cells := make([][]string, 0, len(results)+2)
	head, foot := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		top, bottom, two := strings.Cut(c.title, "\n")
		if !two {
			top, bottom = "", top
		}
		head[i], foot[i] = top, bottom
	}
	cells = append(cells, head, foot)
	for _, r := range results {
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = c.cell(r)
		}
		cells = append(cells, row)
	}
	for _, row := range cells {
		var line strings.Builder
		for i, cell := range row {
			width := 0
			for _, r := range cells {
				width = max(width, utf8.RuneCountInString(r[i]))
			}
			if i == 0 {
				fmt.Fprintf(&line, "%-*s", width, cell)
			} else {
				fmt.Fprintf(&line, "  %*s", width, cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// group writes n with a comma before every third digit from the right.
func group(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func percent(part, whole uint64) string {
	if whole == 0 {
		return "0%"
	}
	return fmt.Sprintf("%.2f%%", 100*float64(part)/float64(whole))
}
