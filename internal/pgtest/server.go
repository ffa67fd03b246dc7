package pgtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Server is a PostgreSQL that this process has started. Its methods may be
// called by one goroutine at a time.
type Server struct {
	// URL is that of the superuser's database. It stays the same when the server
	// is started again.
	URL string

	bin      string // folder of the programs
	dir      string
	port     int
	settings []string

	// Of the running server; nil if it does not run.
	parent *exec.Cmd
	word   io.WriteCloser // the parent's stdin
	pid    int
}

const (
	patience = time.Minute // for what ends by itself; a loaded machine is slow
	tick     = 10 * time.Millisecond
)

var errNotInstalled = errors.New("pgtest: there is no PostgreSQL here that a test could start: install version 14 or later " +
	"(apt-get install postgresql), so that initdb is on the PATH or in /usr/lib/postgresql/*/bin")

// New is [Start] without a test: the caller calls Close.
func New(settings ...string) (*Server, error) {
	s, err := newServer(settings)
	if err != nil {
		return nil, err
	}
	err = s.start("initdb", "-D", s.data(), "-U", "tidemark", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// newServer returns a server that has a folder and a port, and no data.
func newServer(settings []string) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tidemark-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir, settings: settings}
	if s.port, err = freePort(); err == nil {
		err = own(dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.URL = fmt.Sprintf("postgres://tidemark@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }
func (s *Server) log() string  { return filepath.Join(s.dir, "log") }

// installed is where Debian and Ubuntu keep the programs of the server, away from the
// PATH.
var installed = "/usr/lib/postgresql/*/bin/initdb"

// binaries returns the folder of the newest PostgreSQL that is installed.
func binaries() (string, error) {
	found, _ := filepath.Glob(installed)
	major := func(name string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(name))))
		return n
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return major(a) - major(b) })), nil
	}
	name, err := exec.LookPath("initdb")
	if err != nil {
		return "", errNotInstalled
	}
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return "", err
	}
	return filepath.Dir(name), nil
}

var givenPorts sync.Map // by freePort

// freePort returns a port of the loopback interface on which nobody listens, which
// the system gives to no outgoing connection, and which it has not returned before.
func freePort() (int, error) {
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("pgtest: no port is free")
}

// command returns one that runs as the server's user, untouched by what is set for
// the clients of other servers.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") })
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	asOwner(cmd)
	return cmd
}

// parent is the program whose child the server is. It reads from a pipe that ends
// with this process, whatever becomes of it. At the end it stops the server and
// removes its folder, unless it has been told that the server is no longer its
// business. It has not waited for the server until then, so that the server's pid
// is nobody else's. What is to be run before the server is its child, too.
const parent = `trap '' PIPE
dir=$1 log=$2 prepare=$3
shift 3
if [ -n "$prepare" ] && ! eval "$prepare" >>"$log" 2>&1; then
	exit 1
fi
"$@" >>"$log" 2>&1 &
echo $!
if ! read -r _; then
	server=$!
	kill -TERM $server # it ignores QUIT when it has only begun
	kill -QUIT $server
	# It kills what has not ended after 5 s, but may sleep for a minute before it looks.
	{ sleep 6; kill -QUIT $server; sleep 6; kill -QUIT $server; } 2>/dev/null &
	wait $server
	kill $!
	cd / && rm -rf "$dir"
fi
wait`

// start runs the server on the data that it has, or that a program of PostgreSQL makes
// first, and waits until it answers.
func (s *Server) start(prepare ...string) error {
	if len(prepare) > 0 {
		prepare[0] = filepath.Join(s.bin, prepare[0])
	}
	for i, word := range prepare {
		prepare[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	args := []string{"-c", parent, "sh", s.dir, s.log(), strings.Join(prepare, " "), filepath.Join(s.bin, "postgres"), "-D", s.data(), "-p", strconv.Itoa(s.port)}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=200",
	}, s.settings...) {
		args = append(args, "-c", setting)
	}
	cmd := s.command("sh", args...)
	word, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	answer, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.parent, s.word = cmd, word
	line, err := bufio.NewReader(answer).ReadString('\n')
	if err != nil {
		log, _ := os.ReadFile(s.log())
		return errors.Join(fmt.Errorf("pgtest: there is no server: %w\n%s", err, log), s.ended())
	}
	if s.pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		return errors.Join(err, s.ended())
	}
	return s.ready()
}

// ready waits until the server answers. One that does not is ended.
func (s *Server) ready() error {
	for end := time.Now().Add(patience); ; time.Sleep(tick) {
		err := s.command(filepath.Join(s.bin, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port)).Run()
		if err == nil {
			return nil
		}
		if gone(s.pid) || time.Now().After(end) {
			log, _ := os.ReadFile(s.log())
			return errors.Join(fmt.Errorf("pgtest: the server does not start:\n%s", log), s.signal(syscall.SIGKILL), s.ended())
		}
	}
}

// signal sends sig to the server, which may have ended by itself.
func (s *Server) signal(sig syscall.Signal) error {
	if err := kill(s.pid, sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("pgtest: %w", err)
	}
	return nil
}

// ended waits for the end of a server that has been told to end.
func (s *Server) ended() error {
	_, err := io.WriteString(s.word, "ended\n")
	err = errors.Join(err, s.word.Close(), s.parent.Wait())
	s.parent, s.word, s.pid = nil, nil, 0
	return err
}

// Kill ends the server and all of its processes at once, like the loss of the
// machine. A COMMIT may have been on its way.
func (s *Server) Kill() error {
	if s.parent == nil {
		return errors.New("pgtest: the server does not run")
	}
	// Stopped, it starts no more processes; theirs would go on for a while.
	if err := s.signal(sigstop); err != nil {
		return err
	}
	processes := children(s.pid)
	err := s.signal(syscall.SIGKILL)
	for _, pid := range processes {
		if e := kill(pid, syscall.SIGKILL); e != nil && !errors.Is(e, os.ErrProcessDone) {
			err = errors.Join(err, e)
		}
	}
	err = errors.Join(err, s.ended())
	// The memory that they share is in the way of the next server until then.
	alive := func(pid int) bool { return !gone(pid) }
	for end := time.Now().Add(patience); slices.ContainsFunc(processes, alive); time.Sleep(tick) {
		if time.Now().After(end) {
			return errors.Join(err, errors.New("pgtest: processes of the server do not end"))
		}
	}
	return err
}

// Stop shuts the server down: clients are disconnected, and what they had not
// committed is rolled back.
func (s *Server) Stop() error {
	if s.parent == nil {
		return errors.New("pgtest: the server does not run")
	}
	return errors.Join(s.signal(syscall.SIGINT), s.ended())
}

// Restart starts the server again after Kill or Stop, at the same URL, and waits
// until it answers.
func (s *Server) Restart() error {
	if s.parent != nil {
		return errors.New("pgtest: the server runs")
	}
	return s.start()
}

// Standby starts a server that follows this one, read-only, until it is promoted
// (SELECT pg_promote()). The caller calls Close. It has what was committed here
// before, and the rest as soon as it comes.
func (s *Server) Standby(settings ...string) (*Server, error) {
	standby, err := newServer(settings)
	if err != nil {
		return nil, err
	}
	err = standby.start("pg_basebackup", "-D", standby.data(), "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "tidemark",
		"--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync")
	if err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	return standby, nil
}

// Close ends the server and removes all that it has.
func (s *Server) Close() error {
	var err error
	if s.parent != nil {
		err = errors.Join(s.signal(syscall.SIGQUIT), s.ended())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
