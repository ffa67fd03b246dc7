package prometheus_test

import (
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tidemark-go/tidemark"
	tidemarkprom "github.com/tidemark-go/tidemark/metrics/prometheus"
)

// One collector for each cache of the process.
func Example() {
	ctx := context.Background()
	cache, err := tidemark.New(tidemark.Options[string, int]{})
	if err != nil {
		panic(err)
	}
	defer cache.Close(ctx)
	collector, err := tidemarkprom.NewCollector(cache, "balances")
	if err != nil {
		panic(err)
	}
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	registry.MustRegister(collector)
	defer registry.Unregister(collector)

	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()
	cache.Put("alice", 1200, 7)
	cache.Get("alice")
	cache.Get("bob")
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "tidemark_reads_total") {
			fmt.Print(line)
		}
	}
	// Output:
	// tidemark_reads_total{cache="balances",result="hit"} 1
	// tidemark_reads_total{cache="balances",result="miss"} 1
}
