//go:build unix

package integration

import (
	"fmt"
	"os"
	"os/exec"
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
