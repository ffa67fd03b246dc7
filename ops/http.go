package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"reflect"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidemark-go/tidemark"
)

// Handler returns a handler that shows the views, wherever it is mounted:
//
//	mux.Handle("GET /debug/tidemark", handler)
//
// Without parameters it shows all of them: state, lag, and all that Stats has, with
// the options and what is probably a mistake in them. With ?key=KEY, and &cache=NAME
// if there are several caches, it shows what is known of that key ([tidemark.Cache.Explain]);
// with &value=1 its value too, if the View may show it. A request that accepts
// text/html gets a page without external parts, one that accepts application/json or
// says format=json gets JSON, and others get plain text. With ?audit=1 it shows what
// the auditor has found, and with &keys=1 the keys of its mismatches, too.
//
// It answers to GET and HEAD and changes nothing, lets nobody store what it says,
// and does not ask who asks: mount it where net/http/pprof would be. No view may be
// nil, and no two of them may have one name; that is an [*tidemark.OptionError].
func Handler(views ...*View) (http.Handler, error) {
	h := &handler{views: views}
	seen := map[string]bool{}
	var errs []error
	for i, v := range views {
		switch {
		case v == nil:
			errs = append(errs, &tidemark.OptionError{Field: "views", Problem: fmt.Sprintf("has a nil *View at %d", i)})
		case seen[v.name]:
			errs = append(errs, &tidemark.OptionError{Field: "views", Problem: fmt.Sprintf("has two Views named %q", v.name)})
		default:
			seen[v.name] = true
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return h, nil
}

type handler struct{ views []*View }

// A page is all that one answer shows.
type page struct {
	Caches     []Report    `json:",omitempty"`
	Key        string      `json:",omitempty"` // what was asked for
	Inspection *Inspection `json:",omitempty"`
	Audits     []Audit     `json:",omitempty"`
	Error      string      `json:",omitempty"`
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	p, status := h.answer(r)
	var body bytes.Buffer
	kind, err := "", error(nil)
	switch formatOf(r) {
	case "json":
		kind, err = "application/json", writeJSON(&body, p)
	case "html":
		kind, err = "text/html; charset=utf-8", pageTemplate.Execute(&body, p)
	default:
		kind, err = "text/plain; charset=utf-8", writeText(&body, p)
	}
	if err != nil {
		http.Error(w, "the answer cannot be written", http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", kind)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'")
	header.Set("Referrer-Policy", "no-referrer") // the address has a key in it
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // who has gone needs no answer
}

// formatOf returns how the request wants its answer.
func formatOf(r *http.Request) string {
	if f := r.URL.Query().Get("format"); f != "" {
		return f
	}
	accept := r.Header.Get("Accept")
	switch {
	case strings.Contains(accept, "text/html"):
		return "html"
	case strings.Contains(accept, "application/json"):
		return "json"
	default:
		return "text"
	}
}

// answer does what the request asks for.
func (h *handler) answer(r *http.Request) (p page, status int) {
	query := r.URL.Query()
	chosen := h.views
	if name := query.Get("cache"); name != "" {
		chosen = nil
		for _, v := range h.views {
			if v.name == name {
				chosen = []*View{v}
			}
		}
		if chosen == nil {
			return page{Error: "there is no cache of that name"}, http.StatusNotFound
		}
	}
	if query.Get("audit") == "1" {
		for _, v := range chosen {
			p.Audits = append(p.Audits, v.Audit(query.Get("keys") == "1"))
		}
		return p, http.StatusOK
	}
	if !query.Has("key") {
		for _, v := range chosen {
			p.Caches = append(p.Caches, v.Report())
		}
		return p, http.StatusOK
	}
	if len(chosen) != 1 {
		return page{Error: "which cache? say cache=NAME"}, http.StatusBadRequest
	}
	x, err := chosen[0].Inspect(query.Get("key"), query.Get("value") == "1")
	switch {
	case errors.Is(err, ErrNoValues):
		return page{Error: err.Error()}, http.StatusForbidden
	case err != nil:
		return page{Error: err.Error()}, http.StatusBadRequest
	}
	return page{Key: query.Get("key"), Inspection: &x}, http.StatusOK
}

func writeJSON(w *bytes.Buffer, p page) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(p)
}

// A fact is one line of a table.
type fact struct{ Name, Value string }

// factsOf returns the fields of a struct, as people read them.
func factsOf(s any) (all []fact) {
	v := reflect.ValueOf(s)
	for _, f := range reflect.VisibleFields(v.Type()) {
		value := v.FieldByIndex(f.Index).Interface()
		text := words(value)
		if d, _ := value.(time.Duration); f.Name == "Expires" && d < 0 { // an Explanation's is known, and over
			text = fmt.Sprintf("expired %v ago", -d)
		}
		all = append(all, fact{f.Name, text})
	}
	return all
}

// words returns the value of a field, as people read it.
func words(value any) string {
	var all []string
	switch value := value.(type) {
	case time.Duration:
		if value < 0 {
			return "-"
		}
	case []tidemark.Happening:
		for _, h := range value {
			state := fmt.Sprint(h.Version)
			if h.Absent {
				state = "absent@" + state
			}
			happened := fmt.Sprintf("%s %s %s", h.Time.Format("15:04:05.000"), h.What, state)
			if h.By != "nothing" {
				happened += " by " + h.By
			}
			all = append(all, happened)
		}
		return strings.Join(all, "; ")
	case []tidemark.AuditScale:
		for _, s := range value {
			all = append(all, fmt.Sprintf("over %v: %d, undecided %d, %.1f nines", s.Over, s.Stale, s.Undecided, s.Nines))
		}
		return strings.Join(all, "; ")
	case tidemark.AuditCycle:
		if value.Ended.IsZero() {
			return "-"
		}
		return fmt.Sprintf("%s to %s, %d entries", value.Began.Format("15:04:05"), value.Ended.Format("15:04:05"), value.Entries)
	}
	return fmt.Sprint(value)
}

func writeText(w *bytes.Buffer, p page) error {
	if p.Error != "" {
		fmt.Fprintln(w, p.Error)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	table := func(title string, s any) {
		fmt.Fprintf(t, "\n%s\n", title)
		for _, f := range factsOf(s) {
			fmt.Fprintf(t, "  %s\t%s\n", f.Name, f.Value)
		}
	}
	for _, r := range p.Caches {
		fmt.Fprintf(t, "cache %s on %s: %v at %s\n", r.Cache, r.Instance, r.Stats.State, r.Time.Format(time.RFC3339))
		for _, warning := range r.Warnings {
			fmt.Fprintf(t, "warning: %s\n", warning)
		}
		table("stats", r.Stats)
		table("settings", r.Settings)
		table("build", r.Build)
		fmt.Fprintln(t)
	}
	for _, a := range p.Audits {
		fmt.Fprintf(t, "cache %s on %s at %s\n", a.Cache, a.Instance, a.Time.Format(time.RFC3339))
		table("audit", a.Report)
		for _, m := range a.Mismatches {
			table("mismatch", m)
		}
		fmt.Fprintln(t)
	}
	if x := p.Inspection; x != nil {
		fmt.Fprintf(t, "key %q on %s: %s\n", p.Key, x.Instance, x.Words)
		table("explanation", x.Explanation)
		if x.HasValue {
			fmt.Fprintf(t, "\nvalue %q\n", x.Value)
		}
	}
	return t.Flush()
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"facts": factsOf}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tidemark</title>
<style>
body { font: 14px/1.5 sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin: .5em 2em 1em 0; display: inline-table; vertical-align: top; }
caption { text-align: left; font-weight: bold; }
td, th { padding: .1em .8em .1em 0; text-align: left; font-weight: normal; border-bottom: 1px solid #ddd; }
td { font-family: monospace; overflow-wrap: anywhere; max-width: 40em; }
.warning { color: #a40; }
</style>
</head>
<body>
{{with .Error}}<p class="warning">{{.}}</p>{{end}}
{{range .Caches}}
<h1>{{.Cache}}: {{.Stats.State}}</h1>
<p>{{.Instance}}, {{.Time.Format "2006-01-02T15:04:05Z07:00"}}</p>
{{range .Warnings}}<p class="warning">{{.}}</p>{{end}}
<form method="get"><input type="hidden" name="cache" value="{{.Cache}}"><label>Key <input name="key"></label> <button>Explain</button></form>
{{template "table" (facts .Stats)}}{{template "table" (facts .Settings)}}{{template "table" (facts .Build)}}
{{end}}
{{range .Audits}}
<h1>{{.Cache}}: audit</h1>
<p>{{.Instance}}, {{.Time.Format "2006-01-02T15:04:05Z07:00"}}</p>
{{template "table" (facts .Report)}}{{range .Mismatches}}{{template "table" (facts .)}}{{end}}
{{end}}
{{with .Inspection}}
<h1>{{$.Key}}</h1>
<p>{{.Instance}}: {{.Words}}</p>
{{template "table" (facts .Explanation)}}
{{if .HasValue}}<h2>Value</h2><pre>{{.Value}}</pre>{{if .Truncated}}<p>It is longer.</p>{{end}}{{end}}
{{end}}
</body>
</html>
{{define "table"}}<table>{{range .}}<tr><th>{{.Name}}</th><td>{{.Value}}</td></tr>{{end}}</table>{{end}}`))
