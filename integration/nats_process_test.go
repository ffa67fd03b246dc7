package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
)

// The servers of a cluster are processes of their own: the nats-server that go.mod
// names as a tool, built as its users build it. So the race detector watches our code
// only (v2.15.2 has a data race in what clustered streams do), and a server that dies
// does so by kill -9.

// natsProgram returns the path of nats-server in the build cache.
var natsProgram = sync.OnceValues(func() (string, error) {
	var complaints strings.Builder
	cmd := exec.Command("go", "tool", "-n", "nats-server")
	cmd.Stderr = &complaints
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("nats-server cannot be built: %w\n%s", err, complaints.String())
	}
	return strings.TrimSpace(string(path)), nil
})

// A natsConfig is what a server of a cluster is told.
type natsConfig struct {
	name          string
	port, monitor int    // of clients, and of HTTP
	folder        string // of its streams
	member        string // address for the other servers
	routes        []string
}

// String returns the configuration file.
//
// Servers tell each other where they are, and would connect past the routes:
// no_advertise hides that from clients only. 30s is the shortest lame duck duration
// that a file may ask for; with few clients it takes a second for each.
func (c natsConfig) String() string {
	return fmt.Sprintf(`
server_name: %q
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
lame_duck_duration: "30s"
lame_duck_grace_period: "300ms"
jetstream { store_dir: %q, max_memory_store: %d, max_file_store: %d }
cluster {
	name: "tidemark", listen: %q, no_advertise: true, advertise: "127.0.0.1:1", pool_size: -1
	routes: ["nats-route://%s"]
}
`, c.name, c.port, c.monitor, c.folder, 64<<20, 256<<20, c.member, strings.Join(c.routes, `", "nats-route://`))
}

// A natsProcess is a nats-server in a process of its own.
type natsProcess struct {
	natsConfig
	t     testing.TB
	cmd   *exec.Cmd
	ended chan struct{} // closed once it has
}

// startNATS starts a server, and waits until it takes clients. It is gone at the end
// of the test; if that has failed, it shows what the server wrote.
func startNATS(t testing.TB, c natsConfig) *natsProcess {
	t.Helper()
	program, err := natsProgram()
	require.NoError(t, err)
	file, log := c.folder+".conf", c.folder+".log"
	require.NoError(t, os.WriteFile(file, []byte(c.String()), 0o600))
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	p := &natsProcess{natsConfig: c, t: t, cmd: exec.Command(program, "-c", file), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	require.NoError(t, startTied(p.cmd))
	require.NoError(t, out.Close())
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // whoever waits for the end knows how it comes
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the end of what %s wrote:\n%s", c.name, tail(log))
		}
	})
	within(t, func() bool { return p.answers() || !p.running() }, "%s does not start", c.name)
	require.True(t, p.running(), "%s has ended", c.name)
	return p
}

// tail returns the last lines of a file.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-50):], "")
}

func (p *natsProcess) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// answers reports whether a client can connect.
func (p *natsProcess) answers() bool {
	c, err := net.DialTimeout("tcp", p.address(), time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func (p *natsProcess) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// monitor asks a server itself, and gives up soon: it may be about to end.
var monitor = &http.Client{Timeout: time.Second}

// leads reports whether this server takes itself for the leader of a replicated
// stream, whatever the others believe.
func (p *natsProcess) leads(stream string) bool {
	if !p.running() {
		return false
	}
	answer, err := monitor.Get(fmt.Sprintf("http://127.0.0.1:%d/jsz?acc=%s&streams=true", p.monitor, server.DEFAULT_GLOBAL_ACCOUNT))
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	var says server.JSInfo
	if json.NewDecoder(answer.Body).Decode(&says) != nil {
		return false
	}
	for _, account := range says.AccountDetails {
		if slices.ContainsFunc(account.Streams, func(s server.StreamDetail) bool {
			// Before it knows of the others, it names itself.
			return s.Name == stream && s.Cluster != nil && s.Cluster.Leader == p.name && len(s.Cluster.Replicas) > 0
		}) {
			return true
		}
	}
	return false
}

// stop shuts the server down.
func (p *natsProcess) stop() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.wait()
}

// kill ends the server at once, if it runs.
func (p *natsProcess) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// retire puts the server into lame duck mode, at whose end it ends.
func (p *natsProcess) retire() {
	p.t.Helper()
	program, err := natsProgram()
	require.NoError(p.t, err)
	out, err := exec.Command(program, "--signal", fmt.Sprintf("ldm=%d", p.cmd.Process.Pid)).CombinedOutput()
	require.NoError(p.t, err, "%s", out)
	p.wait()
}

// wait waits for the end that the server was asked for.
func (p *natsProcess) wait() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(outlast):
		require.FailNow(p.t, p.name+" does not end")
	}
}
