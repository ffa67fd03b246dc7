// Package pgtest gives tests a PostgreSQL; it is for tests only.
//
// The server is the one at the URL in TIDEMARK_POSTGRES, whose role must be
// allowed to create databases. Where that is not set, the test binary starts a
// server of its own, on loopback and without fsync, from the programs in
// /usr/lib/postgresql or on the PATH, and stops it at the end. A server does not
// outlive the test binary, however that ends. Without either, tests fail and say
// what is missing; they are never skipped.
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
//	func TestX(t *testing.T) {
//		url := pgtest.Database(t, exec) // an empty database, shared with no other test
//	}
//
// A test that breaks its server starts one that nobody else uses, with [Start].
// The package has no driver, so that the module which it is in has none.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Variable is the environment variable with the URL of the server to use.
const Variable = "TIDEMARK_POSTGRES"

// An Exec runs one SQL command on a connection of its own to the database at url.
type Exec func(ctx context.Context, url, command string) error

// shared is the server of this test binary: the one that is set, or one of its own.
var shared = struct {
	mu      sync.Mutex // guards the rest
	asked   bool
	url     string
	server  *Server // nil if the server is not ours
	failure error
}{}

// Main runs the tests and stops what they shared. It returns the exit status.
func Main(m *testing.M) int {
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return code
	}
	err := shared.server.Close()
	shared.server, shared.failure = nil, errors.New("pgtest: the tests are over")
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// URL returns that of the server that the tests of this binary share, and starts
// it if need be. Tests use [Database]; this is for examples, which have no
// testing.TB, and for what needs no database of its own.
func URL() (string, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.asked {
		shared.asked = true
		shared.url, shared.server, shared.failure = find()
	}
	return shared.url, shared.failure
}

// find returns the URL of the server to use, and the server if it was started.
func find() (string, *Server, error) {
	if set := os.Getenv(Variable); set != "" {
		u, err := url.Parse(set)
		if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return "", nil, fmt.Errorf("pgtest: %s is not a URL like postgres://user@127.0.0.1:5432/postgres", Variable)
		}
		return set, nil, nil
	}
	s, err := New()
	if err != nil {
		return "", nil, err
	}
	return s.URL, s, nil
}

// Database returns the URL of a new, empty database on the server that the tests
// of this binary share. It is dropped at the end of the test, whoever is still
// connected.
func Database(t testing.TB, exec Exec) string {
	t.Helper()
	server, err := URL()
	if err != nil {
		t.Fatal(err)
	}
	name := "tidemark_" + strings.ToLower(rand.Text())
	if err := exec(t.Context(), server, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("pgtest: cannot create a database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's is over
		defer cancel()
		if err := exec(ctx, server, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: cannot drop the test's database: %v", err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// Start starts a server that only this test uses, whatever TIDEMARK_POSTGRES
// says, and removes it at the end of the test. Settings are those of
// postgresql.conf, such as "max_connections=20".
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := New(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
