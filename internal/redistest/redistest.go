// Package redistest gives tests a Redis; it is for tests only.
//
// The server is the one at the address in TIDEMARK_REDIS. Where that is not set, the
// test binary starts one of its own, on loopback and without files, from the
// redis-server on the PATH, and stops it at the end. It does not outlive the test
// binary, however that ends. Without either, tests fail and say what is missing; they
// are never skipped.
//
//	func TestMain(m *testing.M) { os.Exit(redistest.Main(m.Run)) }
//
//	func TestX(t *testing.T) {
//		address := redistest.Address(t) // shared with other tests: mind the keys
//	}
//
// The package has no client, so that the module which it is in has none.
package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Variable is the environment variable with the address, host:port, of the server
// to use.
const Variable = "TIDEMARK_REDIS"

// shared is the server of this test binary: the one that is set, or one of its own.
var shared = struct {
	mu      sync.Mutex // guards the rest
	asked   bool
	address string
	server  *server // nil if the server is not ours
	failure error
}{}

// Main calls run, which runs the tests, and stops the server that they shared. It
// returns the exit status.
func Main(run func() int) int {
	code := run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return code
	}
	err := shared.server.close()
	shared.server, shared.failure = nil, errors.New("redistest: the tests are over")
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// Address returns that of the server that the tests of this binary share, and
// starts it if need be.
func Address(t testing.TB) string {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.asked {
		shared.asked = true
		shared.address, shared.server, shared.failure = find()
	}
	if shared.failure != nil {
		t.Fatal(shared.failure)
	}
	return shared.address
}

// find returns the address of the server to use, and the server if it was started.
func find() (string, *server, error) {
	if set := os.Getenv(Variable); set != "" {
		if _, _, err := net.SplitHostPort(set); err != nil {
			return "", nil, fmt.Errorf("redistest: %s is not an address like 127.0.0.1:6379", Variable)
		}
		return set, nil, nil
	}
	s, err := start()
	if err != nil {
		return "", nil, err
	}
	return s.address, s, nil
}

// A server is a Redis that this process has started.
type server struct {
	address string
	parent  *exec.Cmd
	word    io.WriteCloser // the parent's stdin
	log     bytes.Buffer   // of the parent and of the server
}

// patience is for what ends by itself; a loaded machine is slow.
const patience = 30 * time.Second

// parent is the program whose child the server is. It reads from a pipe that ends
// with this process, whatever becomes of it, and then stops the server.
const parent = `"$@" </dev/null &
read -r _
kill -TERM $!
wait`

// start starts a server and waits until it answers.
func start() (*server, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("redistest: these tests need a Redis: set %s to the address of one, such as 127.0.0.1:6379, "+
			"or install it (apt-get install redis-server), so that redis-server is on the PATH", Variable)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &server{address: net.JoinHostPort("127.0.0.1", port)}
	s.parent = exec.Command("sh", "-c", parent, "sh", program,
		"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--daemonize", "no")
	s.parent.Dir = os.TempDir()
	s.parent.Stdout, s.parent.Stderr = &s.log, &s.log
	if s.word, err = s.parent.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.parent.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); !s.answers(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			err := s.close()
			return nil, errors.Join(fmt.Errorf("redistest: the server does not start:\n%s", s.log.Bytes()), err)
		}
	}
	return s, nil
}

// answers reports whether the server does.
func (s *server) answers() bool {
	c, err := net.DialTimeout("tcp", s.address, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	answer := make([]byte, len("+PONG\r\n"))
	if c.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, answer)
	return err == nil && string(answer) == "+PONG\r\n"
}

// close stops the server and waits for its end.
func (s *server) close() error {
	return errors.Join(s.word.Close(), s.parent.Wait())
}

// freePort returns a port of the loopback interface on which nobody listens and which
// the system gives to no outgoing connection.
func freePort() (string, error) {
	for range 1000 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			return port, l.Close()
		}
	}
	return "", errors.New("redistest: no port is free")
}
