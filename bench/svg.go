package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// A chart is horizontal bars in groups, with their numbers written beside them.
type chart struct {
	title, note string
	groups      []barGroup
	labels      int // pixels for the names of the bars; 0: 110
}

// A barGroup has a scale of its own.
type barGroup struct {
	title string
	bars  []bar
}

// A bar goes to the right, or to the left if its value is negative.
type bar struct {
	name   string
	value  float64
	text   string
	strong bool
}

const (
	chartWidth = 720
	rowHeight  = 18
	textSpace  = 78 // beside a bar
)

// The colors are chosen twice, for a light page and for a dark one. A picture in
// a page follows the system's preference, so it paints its own background.
const chartStyle = `
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.group { font-weight: 600 }
.note { fill: #59636e }
.page { fill: #ffffff }
.bar { fill: #8c959f }
.strong { fill: #0969da }
.axis { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.note { fill: #9198a1 }
.page { fill: #0d1117 }
.bar { fill: #656c76 }
.strong { fill: #4493f8 }
.axis { stroke: #3d444d }
}
`

// svg draws the chart.
func (c chart) svg() string {
	labels := c.labels
	if labels == 0 {
		labels = 110
	}
	var b strings.Builder
	y := 54
	for _, g := range c.groups {
		y = g.draw(&b, y, labels)
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`,
		chartWidth, y, chartWidth, y) +
		"\n<title>" + escaped(c.title) + "</title>\n<style>" + chartStyle + "</style>\n" +
		fmt.Sprintf(`<rect class="page" width="%d" height="%d"/>`, chartWidth, y) + "\n" +
		text("title", 14, 24, "start", c.title) + text("note", 14, 42, "start", c.note) + b.String() + "</svg>\n"
}

// draw draws the group from y on and returns where it ends.
func (g barGroup) draw(b *strings.Builder, y, labels int) int {
	if g.title != "" {
		b.WriteString(text("group", 14, y+14, "start", g.title))
		y += rowHeight + 4
	}
	var most, least float64
	for _, bar := range g.bars {
		most, least = max(most, bar.value), min(least, bar.value)
	}
	from, width := float64(labels), float64(chartWidth-labels-textSpace)
	if least < 0 { // room for texts on the left too
		from, width = from+textSpace, width-textSpace
	}
	scale := 0.0
	if most > least {
		scale = width / (most - least)
	}
	zero := from - least*scale
	fmt.Fprintf(b, `<line class="axis" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`+"\n", zero, y, zero, y+rowHeight*len(g.bars))
	for _, bar := range g.bars {
		class, length := "bar", math.Abs(bar.value)*scale
		if bar.strong {
			class = "strong"
		}
		left, at, anchor := zero, zero+length+6, "start"
		if bar.value < 0 {
			left, at, anchor = zero-length, zero-length-6, "end"
		}
		b.WriteString(text("name", float64(labels)-8, y+13, "end", bar.name))
		fmt.Fprintf(b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"/>`+"\n", class, left, y+3, max(length, 1), rowHeight-5)
		b.WriteString(text("value", at, y+13, anchor, bar.text))
		y += rowHeight
	}
	return y + 14
}

func text[N int | float64](class string, x N, y int, anchor, s string) string {
	return fmt.Sprintf(`<text class="%s" x="%v" y="%d" text-anchor="%s">%s</text>`+"\n", class, math.Round(float64(x)*10)/10, y, anchor, escaped(s))
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes all
	return b.String()
}
