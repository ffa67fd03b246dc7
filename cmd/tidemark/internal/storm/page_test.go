package storm

import (
	"bytes"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pageFile writes the report as a page into a file of the test.
func pageFile(t *testing.T, r *Report) string {
	t.Helper()
	var page bytes.Buffer
	require.NoError(t, r.WriteHTML(&page))
	return htmlFile(t, page.String())
}

func htmlFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "storm.html")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// drawnReport is a report that has everything which a page can show.
func drawnReport() *Report {
	r := exampleReport()
	r.Config.DatabaseOutage = time.Second
	r.Command = "tidemark storm -seed 1"
	for i := range r.Contenders {
		c := &r.Contenders[i]
		c.Events = []Event{
			{Kind: "cut", AtMs: 1500, ForMs: 800, Replica: 1, Text: "replica 1 is cut off for 800ms"},
			{Kind: "kill", AtMs: 3000, Text: "a writer is killed between commit and publish"},
			{Kind: "outage", AtMs: 4000, ForMs: 1000, Text: "the database is gone for 1s"},
		}
		s := Series{SliceMs: 50, LoadMs: 6000}
		for j := range 200 {
			worst := 0.0
			if c.Name != "tidemark" && j > 20 {
				worst = float64(j * 20 * (i + 1))
			}
			s.Reads, s.StaleReads, s.WorstStaleMs = append(s.Reads, 1000), append(s.StaleReads, uint64(worst/100)), append(s.WorstStaleMs, worst)
			s.WrongReads, s.ReadErrors = append(s.WrongReads, uint64(worst/1500)), append(s.ReadErrors, uint64(j/80%2*5))
			s.FlaggedReads, s.DBReads = append(s.FlaggedReads, uint64(j/80%2*7)), append(s.DBReads, uint64(100+j%7*20))
		}
		c.Series, c.BoundMs, c.MaxStaleMs = s, 1000, s.WorstStaleMs[199]
		c.ReadLatency = []Band{{63, 0}, {127, 800}, {255, 20}, {1 << 20, 150}, {1 << 21, 30}}
		c.WriteLatency = []Band{{1 << 19, 0}, {1 << 20, 80}, {1 << 21, 20}}
		c.ReadP50Ns, c.ReadP99Ns, c.WriteP50Us, c.WriteP99Us = 100, 1_500_000, 700, 1900
		o := measureOutage(Outage{AtMs: 4000, ForMs: 1000, ReadsServed: 900, ReadsFailed: 100, FlaggedReads: 40}, s)
		c.Outage = &o
	}
	r.Contenders[2].FirstViolation = &Violation{What: "a step back", AtMs: 2000, Replica: 1, Account: 7, Moments: []Moment{
		{1600, "a client knows that version 8 is committed"}, {1700, "replica 1 returns version 8"}, {2000, "replica 1 returns version 7, stale for 400ms"},
	}}
	return r
}

func TestPageIsOneFileAndEscapesWhatItShows(t *testing.T) {
	r := drawnReport()
	r.Command = `tidemark storm -contenders "<script>alert(1)</script>"`
	var b bytes.Buffer
	require.NoError(t, r.WriteHTML(&b))
	text := b.String()
	assert.NotContains(t, text, "<script")
	assert.Contains(t, text, "&lt;script&gt;alert(1)")
	for _, outside := range []string{`src=`, `href=`, `url(`, `@import`, `http://`, `https://`, `ZgotmplZ`, `NaN`, `Inf`} {
		assert.NotContains(t, text, outside)
	}
	assert.Less(t, b.Len(), 300<<10)
	for _, want := range []string{"1,234,567", "3 lost updates", "seed 1", "its tide mark", "database gone for 1s", "readers_per_replica", "replica 1 is cut off for 800ms", "a step back"} {
		assert.Contains(t, strings.Join(strings.Fields(text), " "), want)
	}
}

func TestPageOfAReportWithoutReads(t *testing.T) {
	for _, r := range []*Report{{Config: Default()}, {Config: Default(), Contenders: []Result{{Name: "map"}}}, exampleReport()} {
		var b bytes.Buffer
		require.NoError(t, r.WriteHTML(&b))
		assert.NotRegexp(t, regexp.MustCompile(`NaN|Inf|ZgotmplZ`), b.String())
	}
}

// A drawing is what the browser has made of one chart.
type drawing struct {
	ID            string
	Width, Height float64
	Panels        int
	Paths         []struct {
		Class, D   string
		X, Y, W, H float64
	}
	Texts []struct {
		Text, Class              string
		Left, Top, Right, Bottom float64
	}
}

const drawings = `[...document.querySelectorAll('svg.chart')].map(s => ({
	ID: s.getAttribute('aria-labelledby').split('-')[0], Width: s.viewBox.baseVal.width, Height: s.viewBox.baseVal.height,
	Panels: s.querySelectorAll('.name').length,
	Paths: [...s.querySelectorAll('path, rect')].map(p => { const b = p.getBBox();
		return {Class: p.getAttribute('class'), D: p.getAttribute('d') ?? 'rect', X: b.x, Y: b.y, W: b.width, H: b.height} }),
	Texts: [...s.querySelectorAll('text')].map(p => { const b = p.getBBox();
		return {Text: p.textContent, Class: p.getAttribute('class'), Left: b.x, Top: b.y, Right: b.x + b.width, Bottom: b.y + b.height} }),
}))`

// check fails if something of the chart is not there, or where it cannot be seen.
func (d drawing) check(t *testing.T, contenders int) {
	t.Helper()
	assert.Equal(t, contenders, d.Panels, d.ID)
	drawn := map[string]int{}
	for _, p := range d.Paths {
		if p.D == "" {
			continue
		}
		assert.True(t, p.W > 0 || p.H > 0, "%s: %s %s is nowhere", d.ID, p.Class, p.D)
		assert.True(t, p.X >= 0 && p.X+p.W <= d.Width && p.Y >= -1 && p.Y+p.H <= d.Height, "%s: %+v is outside of %v x %v", d.ID, p, d.Width, d.Height)
		drawn[p.Class]++
	}
	want := map[string]int{"line tide": 1, "line rival": contenders - 1, "frame": contenders, "fault": contenders, "grid": contenders}
	if d.ID == "reads" || d.ID == "deposits" {
		want = map[string]int{"bar tide": 1, "bar rival": contenders - 1, "median": contenders, "slow": contenders, "grid": 1}
	}
	for class, n := range want {
		assert.GreaterOrEqual(t, drawn[class], n, "%s: %s", d.ID, class)
	}
	for i, a := range d.Texts {
		assert.NotEmpty(t, a.Text, d.ID)
		assert.True(t, a.Left >= -0.5 && a.Right <= d.Width+0.5 && a.Top >= -0.5 && a.Bottom <= d.Height+0.5, "%s: %+v leaves the picture", d.ID, a)
		for _, b := range d.Texts[:i] {
			if a.Class != "letter" { // faults may come at the same time
				apart := a.Right <= b.Left+0.5 || b.Right <= a.Left+0.5 || a.Bottom <= b.Top+3 || b.Bottom <= a.Top+3
				assert.True(t, apart, "%s: %q is over %q", d.ID, a.Text, b.Text)
			}
		}
	}
}

// contrasts is how much text stands out from what is behind it, as WCAG has it; below
// 4.5 it is hard to read.
const contrasts = `(() => {
	const parse = c => c.match(/[\d.]+/g).map(Number);
	const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
		return .2126 * r + .7152 * g + .0722 * b };
	const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c }
		return [255, 255, 255] };
	const all = {};
	for (const e of document.querySelectorAll('h1, h2, .soft, td, th, summary, .fail, .pass, .tidemark, svg .tick, svg .side, svg .name, li')) {
		const color = parse(e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color);
		const [a, b] = [light(color), light(behind(e.closest('svg') || e))].sort((x, y) => y - x);
		all[e.tagName + '.' + (e.getAttribute('class') || '')] = (a + .05) / (b + .05);
	}
	return all })()`

// TestPageInABrowser opens the page of a real storm, and a page that has everything.
func TestPageInABrowser(t *testing.T) {
	c := small()
	c.Duration, c.Quiet, c.DatabaseOutage = 1500*time.Millisecond, 300*time.Millisecond, 400*time.Millisecond
	c.Contenders = []string{"map", "tidemark"}
	stormy, err := Run(t.Context(), c, nil)
	require.NoError(t, err)
	for name, r := range map[string]*Report{"a real storm": stormy, "everything": drawnReport()} {
		t.Run(name, func(t *testing.T) {
			b := openBrowser(t)
			file := pageFile(t, r)
			b.size(1200, 900)
			b.media("screen", "light")
			b.show(file)
			assert.Empty(t, b.complaints(file))

			var charts []drawing
			b.eval(drawings, &charts)
			require.Len(t, charts, 4)
			for _, d := range charts {
				d.check(t, len(r.Contenders))
			}
			assert.Greater(t, painted(t, b.screenshot(), 0x00, 0x72, 0xb2), 800, "tidemark's lines are not to be seen")
			for _, width := range []int{1200, 390} {
				b.size(width, 900)
				var overflow int
				b.eval(`document.documentElement.scrollWidth - window.innerWidth`, &overflow)
				assert.LessOrEqual(t, overflow, 0, "wider than a window of %d", width)
			}
			b.size(1200, 900)
			checkSchemes(t, b)
			assert.Empty(t, b.complaints(file))
		})
	}
}

// checkSchemes looks at the page in the light, in the dark and on paper.
func checkSchemes(t *testing.T, b *browser) {
	t.Helper()
	background := func() (color string) {
		b.eval(`getComputedStyle(document.body).backgroundColor`, &color)
		return color
	}
	for _, s := range []struct{ media, scheme, page string }{
		{"screen", "light", "rgb(255, 255, 255)"}, {"screen", "dark", "rgb(13, 17, 23)"}, {"print", "dark", "rgb(255, 255, 255)"},
	} {
		b.media(s.media, s.scheme)
		assert.Equal(t, s.page, background(), "%s, %s", s.media, s.scheme)
		found := map[string]float64{}
		b.eval(contrasts, &found)
		require.NotEmpty(t, found)
		for what, contrast := range found {
			assert.GreaterOrEqual(t, contrast, 4.5, "%s, %s: %s", s.media, s.scheme, what)
		}
	}
	var hidden int
	b.eval(`[...document.querySelectorAll('details td')].filter(e => e.getBoundingClientRect().height == 0).length`, &hidden)
	assert.Zero(t, hidden, "on paper nobody can open what is closed")
	var paper struct{ Data string }
	b.call("Page.printToPDF", map[string]any{"printBackground": true}, &paper)
	assert.NotEmpty(t, paper.Data)
}

// painted counts the pixels of a picture that have just this color.
func painted(t *testing.T, picture []byte, red, green, blue uint32) (n int) {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(picture))
	require.NoError(t, err)
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			if r, g, b, _ := img.At(x, y).RGBA(); r>>8 == red && g>>8 == green && b>>8 == blue {
				n++
			}
		}
	}
	require.NotEqual(t, image.Rectangle{}, img.Bounds())
	return n
}

// The checks above must be able to fail.
func TestBrowserNoticesABadPage(t *testing.T) {
	b := openBrowser(t)
	file := htmlFile(t, `<!DOCTYPE html><title>bad</title><script>console.error("no"); undefined.f()</script>
<img src="http://127.0.0.1:1/x.png"><svg class="chart" viewBox="0 0 10 10" aria-labelledby="x-title"><path class="line tide" d="M0 0"/></svg>`)
	b.show(file)
	require.Eventually(t, func() bool { return len(b.complaints(file)) >= 4 }, browserPatience, 10*time.Millisecond, "%v", b.complaints(file))
	all := strings.Join(b.complaints(file), "\n")
	for _, want := range []string{"consoleAPICalled", "exceptionThrown", "request for http://127.0.0.1:1/x.png"} {
		assert.Contains(t, all, want)
	}
	assert.Zero(t, painted(t, b.screenshot(), 0x00, 0x72, 0xb2))
	var charts []drawing
	b.eval(drawings, &charts)
	require.Len(t, charts, 1)
	assert.Zero(t, charts[0].Paths[0].W)
}

func TestWithoutABrowser(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(browserVariable, "")
	_, err := findBrowser()
	require.ErrorContains(t, err, "apt-get install chromium-headless-shell")
	t.Setenv(browserVariable, "somewhere")
	path, err := findBrowser()
	require.NoError(t, err)
	assert.Equal(t, "somewhere", path)
}
