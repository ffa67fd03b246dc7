// Command balances is a small HTTP service on a tidemark cache: it shows how a
// version travels with an answer and comes back with the next question, and
// which status each error becomes.
//
//	go run ./examples/balances &
//	curl -i localhost:8080/balances/alice
//	curl -i -X POST localhost:8080/balances/alice/payments -d 350
//	curl -i -H 'Min-Version: 2' localhost:8080/balances/alice
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/tidemark-go/tidemark"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, "127.0.0.1:8080"); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, addr string) error {
	cache, err := tidemark.New(tidemark.Options[string, int]{
		MaxCost: 100_000,
		TTL:     time.Hour,
		Store:   newLedger(map[string]int{"alice": 1200, "bob": 300}),
	})
	if err != nil {
		return err
	}
	server := &http.Server{Addr: addr, Handler: handler(cache), ReadHeaderTimeout: 5 * time.Second}
	stopped := context.AfterFunc(ctx, func() { server.Shutdown(context.Background()) })
	defer stopped()
	err = server.ListenAndServe()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	// First the server, then the cache: Close waits for the writes under way.
	return errors.Join(err, cache.Close(context.Background()))
}

// handler returns the routes of the service.
func handler(cache *tidemark.Cache[string, int]) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /balances/{account}", func(w http.ResponseWriter, r *http.Request) {
		level, err := wanted(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e, err := cache.Read(r.Context(), r.PathValue("account"), level)
		answer(w, e, err)
	})
	mux.HandleFunc("POST /balances/{account}/payments", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 32))
		price, bad := strconv.Atoi(string(body))
		if err = errors.Join(err, bad); err != nil || price <= 0 {
			http.Error(w, "the body is the price, in cents", http.StatusBadRequest)
			return
		}
		e, err := cache.Update(r.Context(), r.PathValue("account"), func(cur tidemark.Entry[int]) (int, error) {
			switch {
			case cur.Absent:
				return 0, tidemark.ErrNotFound
			case cur.Value < price:
				return 0, errPoor
			}
			return cur.Value - price, nil
		})
		answer(w, e, err)
	})
	return mux
}

// errPoor means that the account does not hold what was to be paid.
var errPoor = errors.New("not enough money")

// wanted returns the level that a request asks for: a client that has seen a
// version sends it back, and gets nothing older from any replica.
func wanted(r *http.Request) (tidemark.Level, error) {
	seen := r.Header.Get("Min-Version")
	if seen == "" {
		return tidemark.Any, nil
	}
	v, err := strconv.ParseUint(seen, 10, 64)
	return tidemark.AtLeast(tidemark.Version(v)), err
}

// answer writes a state or an error.
func answer(w http.ResponseWriter, e tidemark.Entry[int], err error) {
	var uncertain *tidemark.UncertainError
	switch {
	case err == nil:
		w.Header().Set("Version", strconv.FormatUint(uint64(e.Version), 10))
		fmt.Fprintln(w, e.Value)
	case errors.Is(err, tidemark.ErrNotFound):
		http.Error(w, "no such account", http.StatusNotFound)
	case errors.Is(err, errPoor):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.As(err, &uncertain):
		// It may have been paid. The client must ask again, not pay again.
		w.Header().Set("Operation", fmt.Sprintf("%x", uncertain.Op))
		http.Error(w, "outcome not known yet", http.StatusAccepted)
	default:
		http.Error(w, "try again", http.StatusServiceUnavailable)
	}
}
