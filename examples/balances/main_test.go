package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

func TestService(t *testing.T) {
	cache, err := tidemark.New(tidemark.Options[string, int]{Store: newLedger(map[string]int{"alice": 1200})})
	require.NoError(t, err)
	defer cache.Close(t.Context())
	ask := func(method, path, body string, header ...string) (int, string, string) {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		handler(cache).ServeHTTP(w, r)
		return w.Code, strings.TrimSpace(w.Body.String()), w.Header().Get("Version")
	}
	status, body, version := ask("GET", "/balances/alice", "")
	assert.Equal(t, []any{200, "1200", "1"}, []any{status, body, version})
	status, body, version = ask("POST", "/balances/alice/payments", "350")
	assert.Equal(t, []any{200, "850", "2"}, []any{status, body, version})
	status, body, _ = ask("GET", "/balances/alice", "", "Min-Version", "2")
	assert.Equal(t, []any{200, "850"}, []any{status, body})
	status, _, _ = ask("GET", "/balances/alice", "", "Min-Version", "3")
	assert.Equal(t, http.StatusServiceUnavailable, status, "nothing that new exists")
	status, _, _ = ask("POST", "/balances/alice/payments", "900")
	assert.Equal(t, http.StatusConflict, status)
	status, _, _ = ask("POST", "/balances/alice/payments", "many")
	assert.Equal(t, http.StatusBadRequest, status)
	status, _, _ = ask("GET", "/balances/nobody", "")
	assert.Equal(t, http.StatusNotFound, status)
	status, _, _ = ask("POST", "/balances/nobody/payments", "1")
	assert.Equal(t, http.StatusNotFound, status)
}
