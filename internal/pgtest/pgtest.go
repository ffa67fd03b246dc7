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
// A test that breaks its server starts one that nobody else uses, with [Start]; that
// needs the programs in any case. The package has no driver, so that the module which
// it is in has none.
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
	drops   []func() error // of what is there until the end
}{}

// Main runs the tests and stops what they shared. It returns the exit status.
func Main(m *testing.M) int {
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	var errs []error
	if shared.server != nil {
		errs = append(errs, shared.server.Close())
	} else {
		for _, drop := range shared.drops {
			errs = append(errs, drop())
		}
	}
	shared.asked, shared.server, shared.failure = true, nil, errors.New("pgtest: the tests are over")
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// URL returns that of the server that the tests of this binary share, and starts it if
// need be. Tests use [Database]; this is for what needs no database of its own, and
// leaves nothing behind.
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
	if errors.Is(err, errNotInstalled) {
		err = fmt.Errorf("%w; or set %s to the URL of a server, such as postgres://user@127.0.0.1:5432/postgres, whose user may create databases", err, Variable)
	}
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
	url, drop, err := newDatabase(t.Context(), exec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	return url
}

// ForExample is Database for an example, which has no testing.TB: the database is
// dropped by [Main].
func ForExample(exec Exec) (string, error) {
	url, drop, err := newDatabase(context.Background(), exec)
	if err != nil {
		return "", err
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.drops = append(shared.drops, drop)
	return url, nil
}

func newDatabase(ctx context.Context, exec Exec) (database string, drop func() error, err error) {
	at, err := URL()
	if err != nil {
		return "", nil, err
	}
	u, err := url.Parse(at)
	if err != nil {
		return "", nil, err
	}
	name := "tidemark_" + strings.ToLower(rand.Text())
	if err := exec(ctx, at, "CREATE DATABASE "+name); err != nil {
		return "", nil, fmt.Errorf("pgtest: cannot create a database: %w", err)
	}
	u.Path = "/" + name
	return u.String(), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's is over
		defer cancel()
		if err := exec(ctx, at, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("pgtest: cannot drop a test's database: %w", err)
		}
		return nil
	}, nil
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
