//go:build unix

package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// TestJetStream_SuspendedWhileItOpens stops this process, for longer than Open
// waits, in front of a reader's first request. When it goes on all timers have
// passed, and nothing has been asked of the log yet.
func TestJetStream_SuspendedWhileItOpens(t *testing.T) {
	for range 4 { // which timer is first is a matter of luck
		s := natsServer(t, streaming(t))
		write(t, smallLog(dial(t, s.ClientURL())), 1, 1, 3)
		url := beforeFirst(t, s.Addr().String(), "CONSUMER.MSG.NEXT", func() {
			time.Sleep(50 * time.Millisecond) // until Open waits
			wake := exec.Command("sh", "-c", fmt.Sprintf("sleep 2.5; kill -CONT %d", os.Getpid()))
			if assert.NoError(t, wake.Start()) {
				assert.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGSTOP))
				_ = wake.Wait()
			}
		})
		r, err := smallLog(dial(t, url, quiet, nats.PingInterval(time.Minute))).Open(soon(t), 3)
		require.NotErrorIs(t, err, tidemark.ErrGap, "message 3 is there")
		if err == nil {
			require.NoError(t, r.Close())
		}
	}
}

// beforeFirst is a link to a server on which call runs before the first request
// that contains word is carried.
func beforeFirst(t *testing.T, address, word string, call func()) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var once sync.Once
	var wg sync.WaitGroup
	carry := func(to, from net.Conn, look bool) {
		defer to.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if look && bytes.Contains(buf[:n], []byte(word)) {
				once.Do(call)
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if !assert.NoError(t, err) {
				_ = client.Close()
				return
			}
			wg.Go(func() { carry(server, client, true) })
			wg.Go(func() { carry(client, server, false) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait() // the clients were closed before
	})
	return "nats://" + listener.Addr().String()
}
