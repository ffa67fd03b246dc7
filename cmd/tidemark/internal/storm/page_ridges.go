package storm

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A ridgesView is a chart of how long something took: a row for each contender, one
// below the other, with one logarithmic axis of durations.
type ridgesView struct {
	ID, Title, Desc string
	Width, Height   float64
	Grid            string
	Rows            []ridgeView
	Ticks           []textView
}

// A ridgeView has paths in the notation of SVG.
type ridgeView struct {
	Name, Side, Class        string
	NameY, SideY             float64
	Area, Base, Median, Slow string
}

const (
	ridgesWidth = 530
	ridgesLeft  = 158
	ridgesInner = ridgesWidth - ridgesLeft - 22
	ridgeHeight = 46
)

// A latency is what a ridge shows of a contender.
type latency struct {
	name     string
	bands    []Band
	p50, p99 time.Duration
}

func readRidges(results []Result) ridgesView {
	var all []latency
	for _, r := range results {
		all = append(all, latency{r.Name, r.ReadLatency, time.Duration(r.ReadP50Ns), time.Duration(r.ReadP99Ns)})
	}
	return newRidges("reads", "How long reads took, by contender", all)
}

func depositRidges(results []Result) ridgesView {
	var all []latency
	for _, r := range results {
		us := func(n float64) time.Duration { return time.Duration(n * float64(time.Microsecond)) }
		all = append(all, latency{r.Name, r.WriteLatency, us(r.WriteP50Us), us(r.WriteP99Us)})
	}
	return newRidges("deposits", "How long deposits took, by contender", all)
}

// newRidges draws rows on an axis that has all of them, in whole decades.
func newRidges(id, title string, all []latency) ridgesView {
	least, most := math.Inf(1), 1.0
	for _, l := range all {
		if len(l.bands) > 0 {
			least = min(least, float64(l.bands[0].ToNs))
			most = max(most, float64(l.bands[len(l.bands)-1].ToNs))
		}
	}
	if math.IsInf(least, 1) {
		least = most
	}
	from := math.Floor(math.Log10(max(1, least)))
	to := max(from+1, math.Ceil(math.Log10(most)))
	x := func(ns float64) float64 {
		return ridgesLeft + ridgesInner*(math.Log10(max(ns, 1))-from)/(to-from)
	}
	v := ridgesView{ID: id, Title: title, Width: ridgesWidth, Height: ridgeHeight*float64(len(all)) + 24}
	bottom := ridgeHeight * float64(len(all))
	for d := from; d <= to; d++ {
		at := x(math.Pow(10, d))
		v.Grid += fmt.Sprintf("M%s 0V%s", coordinate(at), coordinate(bottom))
		v.Ticks = append(v.Ticks, textView{round(at), bottom + 15, spaced(time.Duration(math.Pow(10, d) + 0.5))})
	}
	var texts []string
	for i, l := range all {
		row := l.ridge(float64(i)*ridgeHeight, x)
		v.Rows = append(v.Rows, row)
		texts = append(texts, l.name+": "+row.Side)
	}
	v.Desc = strings.Join(texts, "; ") + ". The table below has the figures."
	return v
}

// ridge draws one row. The band with the most has its full height.
func (l latency) ridge(top float64, x func(ns float64) float64) ridgeView {
	base := top + ridgeHeight - 4
	r := ridgeView{Name: l.name, Class: class(l.name), NameY: top + 20, SideY: top + 35, Side: "nothing was measured"}
	r.Base = fmt.Sprintf("M%d %sH%d", ridgesLeft, coordinate(base), ridgesLeft+ridgesInner)
	var most uint64
	for _, b := range l.bands {
		most = max(most, b.Count)
	}
	if most == 0 {
		return r
	}
	var area strings.Builder
	for i, b := range l.bands {
		if b.Count == 0 {
			continue
		}
		left, right := x(1), x(float64(b.ToNs))
		if i > 0 {
			left = x(float64(l.bands[i-1].ToNs))
		}
		height := (ridgeHeight - 10) * math.Sqrt(float64(b.Count)/float64(most))
		fmt.Fprintf(&area, "M%s %sv-%sH%sv%sz", coordinate(left), coordinate(base), coordinate(height), coordinate(right), coordinate(height))
	}
	r.Area = area.String()
	mark := func(d time.Duration) string {
		return fmt.Sprintf("M%s %sV%s", coordinate(x(float64(d))), coordinate(base), coordinate(top+4))
	}
	r.Median, r.Slow = mark(l.p50), mark(l.p99)
	r.Side = "p50 " + spaced(l.p50) + ", p99 " + spaced(l.p99)
	return r
}
