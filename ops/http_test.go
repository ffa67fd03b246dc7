package ops_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

// ask sends a request to a handler of the views.
func ask(t testing.TB, method, query, accept string, views ...*ops.View) *httptest.ResponseRecorder {
	t.Helper()
	h, err := ops.Handler(views...)
	require.NoError(t, err)
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, "/debug/tidemark"+query, nil)
	r.Header.Set("Accept", accept)
	h.ServeHTTP(w, r)
	return w
}

func TestHandler_Report(t *testing.T) {
	v, cache := view(t, ops.Options[string, string]{Name: "balances", Instance: "host:1"})
	other, _ := view(t, ops.Options[string, string]{Name: "prices", Instance: "host:1"})
	cache.Get("k")
	for accept, want := range map[string]struct{ kind, text string }{
		"text/html,application/xhtml+xml": {"text/html; charset=utf-8", "<h1>balances: alone</h1>"},
		"*/*":                             {"text/plain; charset=utf-8", "cache balances on host:1: alone"},
		"application/json":                {"application/json", `"Cache": "balances"`},
	} {
		w := ask(t, "GET", "", accept, v, other)
		assert.Equal(t, http.StatusOK, w.Code)
		assert.Equal(t, want.kind, w.Header().Get("Content-Type"))
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		assert.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		assert.Contains(t, w.Body.String(), want.text)
		assert.Contains(t, w.Body.String(), "prices")
		assert.NotContains(t, ask(t, "GET", "?cache=balances", accept, v, other).Body.String(), "prices")
	}
	var got struct{ Caches []ops.Report }
	require.NoError(t, json.Unmarshal(ask(t, "GET", "?format=json", "", v).Body.Bytes(), &got))
	require.Len(t, got.Caches, 1)
	assert.EqualValues(t, 1, got.Caches[0].Stats.Misses)
	assert.Equal(t, tidemark.Alone, got.Caches[0].Stats.State)
	assert.NotEmpty(t, got.Caches[0].Build.NATS)
}

// The page needs nothing from elsewhere, and may load nothing.
func TestHandler_PageIsSelfContained(t *testing.T) {
	v, _ := view(t, ops.Options[string, string]{Name: "c"})
	w := ask(t, "GET", "", "text/html", v)
	for _, bad := range []string{"src=", "href=", "url(", "<script", "http://", "https://"} {
		assert.NotContains(t, w.Body.String(), bad)
	}
	assert.Contains(t, w.Header().Get("Content-Security-Policy"), "default-src 'none'")
	assert.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"))
}

func TestHandler_OnlyReads(t *testing.T) {
	v, _ := view(t, ops.Options[string, string]{Name: "c"})
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		w := ask(t, method, "?key=k", "", v)
		assert.Equal(t, http.StatusMethodNotAllowed, w.Code, method)
		assert.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	h, err := ops.Handler(v)
	require.NoError(t, err)
	server := httptest.NewServer(h)
	defer server.Close()
	answer, err := server.Client().Head(server.URL)
	require.NoError(t, err)
	defer answer.Body.Close()
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	assert.Equal(t, "no-store", answer.Header.Get("Cache-Control"))
}

// Whatever a key is, it is shown as text and never as markup, and is only shown to
// who has asked for it.
func TestHandler_KeysAreEscaped(t *testing.T) {
	v, cache := view(t, ops.Options[string, string]{Name: "c"})
	for _, key := range []string{`<script>alert(1)</script>`, `"><img onerror=x>`, "a\nb", "\x1b[2J", "\xff\xfe", ""} {
		cache.Put(key, "v", 1)
		for _, accept := range []string{"text/html", "text/plain", "application/json"} {
			w := ask(t, "GET", "?key="+url.QueryEscape(key), accept, v)
			require.Equal(t, http.StatusOK, w.Code, "%q", key)
			assert.Contains(t, w.Body.String(), "version 1 by put", "%q", key)
			for _, bad := range []string{"<script>", "<img", "\x1b", "a\nb\""} {
				if accept != "text/html" && strings.HasPrefix(bad, "<") {
					continue // what is not markup needs no escape
				}
				if accept == "text/html" && !strings.HasPrefix(bad, "<") {
					continue
				}
				assert.NotContains(t, w.Body.String(), bad, "%q as %s", key, accept)
			}
		}
	}
	assert.NotContains(t, ask(t, "GET", "", "text/html", v).Body.String(), "script")
}

func TestHandler_Refuses(t *testing.T) {
	a, _ := view(t, ops.Options[string, string]{Name: "a"})
	b, _ := view(t, ops.Options[string, string]{Name: "b"})
	for query, want := range map[string]int{
		"?cache=c":                 http.StatusNotFound,
		"?key=k":                   http.StatusBadRequest, // of which cache?
		"?cache=a&key=k&value=1":   http.StatusForbidden,
		"?cache=a&key=k":           http.StatusOK,
		"?cache=a&key=k&value=yes": http.StatusOK, // not asked for
		"?cache=a&key=" + strings.Repeat("x", 16<<10+1): http.StatusBadRequest,
		"?cache=a&key=" + strings.Repeat("x", 16<<10):   http.StatusOK,
	} {
		for _, accept := range []string{"text/html", "text/plain", "application/json"} {
			w := ask(t, "GET", query, accept, a, b)
			assert.Equal(t, want, w.Code, "%.40s", query)
			if want != http.StatusOK {
				assert.Less(t, w.Body.Len(), 2<<10, "a huge key is not sent back")
				assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
			}
		}
	}
	_, err := ops.Handler(a, nil, a)
	require.ErrorAs(t, err, new(*tidemark.OptionError))
	assert.ErrorContains(t, err, "nil *View at 1")
	assert.ErrorContains(t, err, `two Views named "a"`)
}

// An entry that has expired is not shown as one of which that is unknown.
func TestHandler_WhatHasExpiredIsSaid(t *testing.T) {
	v, cache := viewOf(t, tidemark.Options[string, string]{TTL: time.Hour}, ops.Options[string, string]{Name: "c"})
	cache.Put("fresh", "v", 1)
	assert.Regexp(t, `Expires +[0-9][0-9a-z.]+\n`, ask(t, "GET", "?key=fresh", "", v).Body.String())
	v, cache = viewOf(t, tidemark.Options[string, string]{TTL: time.Nanosecond}, ops.Options[string, string]{Name: "c"})
	cache.Put("old", "v", 1)
	require.Eventually(t, func() bool { return cache.Explain("old").Expires < 0 }, 10*time.Second, time.Millisecond)
	for accept, want := range map[string]string{"": `Expires +expired [0-9]\S* ago\n`, "text/html": `<th>Expires</th><td>expired [0-9]\S* ago</td>`} {
		assert.Regexp(t, want, ask(t, "GET", "?key=old", accept, v).Body.String())
	}
}

// No value is shown unless the View may show it and it is asked for.
func TestHandler_Values(t *testing.T) {
	const secret = "4929-1234"
	for _, format := range []func(string) string{nil, func(v string) string { return "number " + v }} {
		v, cache := view(t, ops.Options[string, string]{Name: "c", FormatValue: format})
		require.Equal(t, tidemark.Applied, cache.Put("k", secret, 1))
		for _, accept := range []string{"text/html", "text/plain", "application/json"} {
			for _, query := range []string{"", "?key=k", "?key=k&value=0"} {
				assert.NotContains(t, ask(t, "GET", query, accept, v).Body.String(), secret, query)
			}
			w := ask(t, "GET", "?key=k&value=1", accept, v)
			if format == nil {
				assert.Equal(t, http.StatusForbidden, w.Code)
				assert.NotContains(t, w.Body.String(), secret)
			} else {
				assert.Contains(t, w.Body.String(), "number "+secret)
			}
		}
	}
}

func ExampleHandler() {
	cache, _ := tidemark.New(tidemark.Options[string, int]{})
	cache.Put("alice", 1200, 7)
	view, err := ops.New(cache, ops.Options[string, int]{Name: "balances"})
	if err != nil {
		panic(err)
	}
	handler, err := ops.Handler(view)
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux() // the one that has net/http/pprof
	mux.Handle("GET /debug/tidemark", handler)

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/debug/tidemark?key=alice&format=json", nil))
	var answer struct{ Inspection ops.Inspection }
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	fmt.Println(answer.Inspection.Words)
	// Output: version 7 by put (window); tide mark 7 by put
}
