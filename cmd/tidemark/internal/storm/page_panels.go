package storm

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A panelsView is a chart of what happened over time: a panel for each contender, one
// below the other, with one axis of time and one scale.
type panelsView struct {
	ID, Title, Desc                 string
	Width, Height, Left, Inner      float64
	PanelHeight                     float64
	Panels                          []panelView
	Letters, Times                  []textView
	Axis, Quiet                     string
	HasBound, HasFailed, HasFlagged bool
}

// A panelView has paths in the notation of SVG.
type panelView struct {
	Name, Class            string
	Top, NameY             float64
	Sides, Ticks           []textView
	Bands                  []rectView
	Grid, Instants         string
	Area, Line, Bound      string
	Wrong, Failed, Flagged string
}

type textView struct {
	X, Y float64
	Text string
}

type rectView struct{ X, Y, W, H float64 }

const (
	panelsWidth = 1080
	panelsLeft  = 178                           // of the panels: names, figures and the labels of the scale
	panelsInner = panelsWidth - panelsLeft - 20 // and half of the last time
	panelHeight = 84
	panelGap    = 14
	panelsTop   = 20 // room for the letters
)

// A scale says where in a panel a value is: 0 at its bottom, 1 at its top.
type scale struct {
	of    func(v float64) float64
	ticks []float64
	label func(v float64) string
}

// logScale is logarithmic from least on, with zero and all that is smaller at the
// bottom. Values are milliseconds.
func logScale(least, most float64) scale {
	decades := math.Max(1, math.Ceil(math.Log10(most/least)-1e-9))
	s := scale{
		of: func(v float64) float64 {
			if v <= least {
				return 0
			}
			return math.Min(1, math.Log10(v/least)/decades)
		},
		ticks: []float64{0},
		label: func(v float64) string {
			if v == 0 {
				return "0"
			}
			return spaced(milliDuration(v))
		},
	}
	for i := 1.0; i <= decades; i++ {
		s.ticks = append(s.ticks, least*math.Pow(10, i))
	}
	return s
}

// linearScale goes from zero to a round number of at least most.
func linearScale(most float64) scale {
	step := math.Pow(10, math.Floor(math.Log10(math.Max(most, 1))))
	for _, n := range []float64{0.2, 0.5, 1, 2} {
		if most <= 5*n*step {
			step *= n
			break
		}
	}
	top := step * math.Max(1, math.Ceil(most/step))
	s := scale{of: func(v float64) float64 { return v / top }, label: func(v float64) string { return group(uint64(v)) }}
	for v := 0.0; v <= top; v += step {
		s.ticks = append(s.ticks, v)
	}
	return s
}

// spaced writes a duration of one round unit, such as 10 ms.
func spaced(d time.Duration) string {
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"s", time.Second}, {"ms", time.Millisecond}, {"µs", time.Microsecond}} {
		if d >= u.unit {
			return fmt.Sprintf("%.3g %s", float64(d)/float64(u.unit), u.name)
		}
	}
	return fmt.Sprintf("%d ns", d.Nanoseconds())
}

// staleChart shows the stalest read of each slice.
func staleChart(results []Result) panelsView {
	most := 1000.0
	for _, r := range results {
		most = max(most, r.BoundMs, slices.Max(append(slices.Clone(r.Series.WorstStaleMs), 0)))
	}
	s := logScale(0.1, most)
	v := newPanels(results, s, func(s Series, i int) float64 { return s.WorstStaleMs[i] })
	v.ID, v.Title = "stale", "The stalest read over time, by contender"
	var worst []string
	for i, r := range results {
		p := &v.Panels[i]
		p.Sides = sides(p.NameY, "worst "+spaced(milliDuration(r.MaxStaleMs).Round(time.Millisecond)), percent(r.StaleReads, r.Reads)+" stale")
		if r.BoundMs > 0 {
			v.HasBound = true
			p.Bound = fmt.Sprintf("M%d %sH%d", panelsLeft, coordinate(p.y(s.of(r.BoundMs))), panelsLeft+panelsInner)
		}
		p.Wrong = marks(r.Series, r.Series.WrongReads, p.Top+1, 8)
		p.Failed = marks(r.Series, r.Series.ReadErrors, p.Top+11, 4)
		p.Flagged = marks(r.Series, r.Series.FlaggedReads, p.Top+17, 4)
		v.HasFailed, v.HasFlagged = v.HasFailed || p.Failed != "", v.HasFlagged || p.Flagged != ""
		worst = append(worst, fmt.Sprintf("%s: %.0f ms at worst, %d of %d reads stale", r.Name, r.MaxStaleMs, r.StaleReads, r.Reads))
	}
	v.Desc = strings.Join(worst, "; ") + ". The table below has the figures."
	return v
}

// dbChart shows how many rows a second were read from the database.
func dbChart(results []Result) panelsView {
	rate := func(s Series, i int) float64 { return float64(s.DBReads[i]) * 1000 / s.SliceMs }
	most := 1.0
	for _, r := range results {
		for i := range r.Series.DBReads {
			most = max(most, rate(r.Series, i))
		}
	}
	v := newPanels(results, linearScale(most), rate)
	v.ID, v.Title = "db", "Rows read from the database in a second over time, by contender"
	v.Desc = "The table below has the figures."
	for i, r := range results {
		p := &v.Panels[i]
		if o := r.Outage; o != nil {
			p.Sides = sides(p.NameY, group(uint64(o.DBReadsBefore+0.5))+" before", group(uint64(o.DBReadsPeak+0.5))+" peak after")
		}
		p.Failed = marks(r.Series, r.Series.ReadErrors, p.Top+3, 4)
	}
	return v
}

// sides are the lines below a name.
func sides(nameY float64, lines ...string) (all []textView) {
	for i, line := range lines {
		all = append(all, textView{0, nameY + 16*float64(i+1), line})
	}
	return all
}

// newPanels draws a value of each slice, and the faults.
func newPanels(results []Result, s scale, value func(s Series, i int) float64) panelsView {
	v := panelsView{Width: panelsWidth, Left: panelsLeft, Inner: panelsInner, PanelHeight: panelHeight}
	top := float64(panelsTop)
	for _, r := range results {
		p := panelView{Name: r.Name, Class: class(r.Name), Top: top, NameY: top + 26}
		for _, t := range s.ticks {
			y := p.y(s.of(t))
			p.Grid += fmt.Sprintf("M%d %sH%d", panelsLeft, coordinate(y), panelsLeft+panelsInner)
			p.Ticks = append(p.Ticks, textView{panelsLeft - 7, round(y + 3.5), s.label(t)})
		}
		p.Bands, p.Instants = faultMarks(r, top)
		p.Line, p.Area = p.steps(r.Series, s, value)
		v.Panels = append(v.Panels, p)
		top += panelHeight + panelGap
	}
	bottom := top - panelGap
	v.Height = bottom + 26
	if len(results) > 0 {
		s := results[0].Series
		v.Letters, v.Times = faultLetters(results[0]), times(s, bottom)
		if quiet := s.x(s.LoadMs); quiet < panelsLeft+panelsInner-80 {
			v.Quiet = fmt.Sprintf("M%s 4V%s", coordinate(quiet), coordinate(bottom))
			v.Letters = append(v.Letters, textView{round(quiet + 30), panelsTop - 6, "quiet"})
		}
	}
	v.Axis = fmt.Sprintf("M%d %sH%d", panelsLeft, coordinate(bottom), panelsLeft+panelsInner)
	return v
}

// class is how a contender is drawn.
func class(name string) string {
	if isTidemark(name) {
		return "tide"
	}
	return "rival"
}

// y returns where a part of the panel's height is. What is at the bottom is drawn
// above the edge, so that a line at zero can be seen.
func (p *panelView) y(part float64) float64 { return p.Top + panelHeight - 2 - part*(panelHeight-6) }

// x returns where a time is.
func (s Series) x(ms float64) float64 {
	whole := s.SliceMs * float64(len(s.Reads))
	if whole == 0 {
		return panelsLeft
	}
	return panelsLeft + panelsInner*min(1, ms/whole)
}

// steps draws one value for each slice, as a line and as the area below. Where nothing
// was read there is none.
func (p *panelView) steps(s Series, sc scale, value func(s Series, i int) float64) (line, area string) {
	var l, a strings.Builder
	last := math.NaN()
	for i, n := range s.Reads {
		if n == 0 {
			last = math.NaN()
			continue
		}
		from, to, y := s.x(float64(i)*s.SliceMs), s.x(float64(i+1)*s.SliceMs), p.y(sc.of(value(s, i)))
		switch {
		case math.IsNaN(last):
			fmt.Fprintf(&l, "M%s %s", coordinate(from), coordinate(y))
		case y != last:
			fmt.Fprintf(&l, "V%s", coordinate(y))
		}
		fmt.Fprintf(&l, "H%s", coordinate(to))
		if y < p.y(0) {
			fmt.Fprintf(&a, "M%s %sV%sH%sV%sz", coordinate(from), coordinate(p.y(0)), coordinate(y), coordinate(to), coordinate(p.y(0)))
		}
		last = y
	}
	return l.String(), a.String()
}

// marks draws a short bar for each slice in which something was counted.
func marks(s Series, counted []uint64, top, height float64) string {
	var b strings.Builder
	width := math.Max(2, panelsInner/float64(max(1, len(counted)))-1)
	for i, n := range counted {
		if n > 0 {
			fmt.Fprintf(&b, "M%s %sh%sv%sh-%sz", coordinate(s.x(float64(i)*s.SliceMs)), coordinate(top), coordinate(width), coordinate(height), coordinate(width))
		}
	}
	return b.String()
}

// faultMarks draws what lasted as a band, and what did not as a line.
func faultMarks(r Result, top float64) (bands []rectView, instants string) {
	for _, e := range r.Events {
		from, to := r.Series.x(e.AtMs), r.Series.x(e.AtMs+e.ForMs)
		if e.ForMs > 0 {
			bands = append(bands, rectView{round(from), top, round(to - from), panelHeight})
		} else {
			instants += fmt.Sprintf("M%s %sv%d", coordinate(from), coordinate(top), panelHeight)
		}
	}
	return bands, instants
}

// faultLetters writes the letters of faultTable above the first panel, where the faults
// begin, or beside the one before.
func faultLetters(r Result) (all []textView) {
	last := math.Inf(-1)
	for i, e := range r.Events {
		last = max(r.Series.x(e.AtMs), last+letterWidth*float64(len(letter(i))))
		all = append(all, textView{round(last), panelsTop - 6, letter(i)})
	}
	return all
}

// letterWidth is how much room a letter needs.
const letterWidth = 10

// times labels the axis of time, in whole steps of seconds.
func times(s Series, bottom float64) (all []textView) {
	whole := s.SliceMs * float64(len(s.Reads)) / 1000
	step := 0.1
	for _, n := range []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600} {
		if step = n; whole/n <= 14 {
			break
		}
	}
	for i := 0; float64(i)*step <= whole+step/100; i++ {
		at := float64(i) * step
		text := strconv.FormatFloat(math.Round(at*10)/10, 'g', -1, 64) + " s"
		all = append(all, textView{round(s.x(at * 1000)), bottom + 16, text})
	}
	return all
}

// round leaves a tenth of a pixel.
func round(v float64) float64 { return math.Round(v*10) / 10 }

func coordinate(v float64) string { return strconv.FormatFloat(round(v), 'f', -1, 64) }
