package otel_test

import (
	"context"
	"fmt"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/tidemark-go/tidemark"
	tidemarkotel "github.com/tidemark-go/tidemark/metrics/otel"
)

// One Metrics for the process, to which each cache is added.
func Example() {
	ctx := context.Background()
	reader := sdk.NewManualReader() // a program has a periodic one, with an exporter
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	defer provider.Shutdown(ctx)

	cache, err := tidemark.New(tidemark.Options[string, int]{})
	if err != nil {
		panic(err)
	}
	defer cache.Close(ctx)
	metrics, err := tidemarkotel.New(provider) // nil: the global provider
	if err != nil {
		panic(err)
	}
	defer metrics.Close()
	if err := metrics.Add(cache, "balances"); err != nil {
		panic(err)
	}

	cache.Put("alice", 1200, 7)
	var got metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &got); err != nil {
		panic(err)
	}
	for _, m := range got.ScopeMetrics[0].Metrics {
		if m.Name == "tidemark.entries" {
			p := m.Data.(metricdata.Sum[int64]).DataPoints[0]
			name, _ := p.Attributes.Value("cache")
			fmt.Println(m.Name, name.AsString(), p.Value)
		}
	}
	// Output: tidemark.entries balances 1
}
