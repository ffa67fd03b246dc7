package storm

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echoServer answers every line with the same line.
func echoServer(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends when the test cuts it
			}()
		}
	}()
	return l.Addr().String()
}

func testProxy(t *testing.T) *proxy {
	t.Helper()
	p, err := newProxy(echoServer(t))
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url(), "nats://"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a line and returns the answer.
func echo(c net.Conn, line string, timeout time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

func requireEcho(t *testing.T, c net.Conn) {
	t.Helper()
	answer, err := echo(c, "hello", 5*time.Second)
	require.NoError(t, err)
	require.Equal(t, "hello", answer)
}

func TestProxyForwards(t *testing.T) {
	p := testProxy(t)
	requireEcho(t, dial(t, p))
	assert.Eventually(t, func() bool { return p.bytes.Load() == uint64(2*len("hello\n")) }, 5*time.Second, time.Millisecond,
		"they are counted when they have been written, which the reader may notice first")
}

func TestProxyCutsAndRefusesUntilRestored(t *testing.T) {
	p := testProxy(t)
	c := dial(t, p)
	requireEcho(t, c)

	p.cut()
	_, err := echo(c, "lost", 5*time.Second)
	require.Error(t, err)
	assert.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "want a reset, got %v", err)

	refused := dial(t, p)
	_, err = echo(refused, "refused", 5*time.Second)
	require.Error(t, err, "a new connection must not get through")
	assert.False(t, errors.Is(err, syscall.ETIMEDOUT))

	p.restore()
	requireEcho(t, dial(t, p))
}

func TestProxyFreezesWithoutAnError(t *testing.T) {
	p := testProxy(t)
	c := dial(t, p)
	requireEcho(t, c)

	p.freeze()
	_, err := c.Write([]byte("late\n"))
	require.NoError(t, err, "a frozen network accepts bytes")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	buf := make([]byte, 16)
	_, err = c.Read(buf)
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout(), "nothing comes back, and nothing says why: %v", err)

	p.unfreeze()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	n, err := c.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, "late\n", string(buf[:n]), "it arrives late")
}

func TestProxyCloseEndsAFrozenConnection(t *testing.T) {
	p := testProxy(t)
	c := dial(t, p)
	requireEcho(t, c)
	p.freeze()
	_, err := c.Write([]byte("never\n"))
	require.NoError(t, err)
	p.Close() // waits for every goroutine of p
	p.restore()
	_, err = net.Dial("tcp", strings.TrimPrefix(p.url(), "nats://"))
	assert.Error(t, err, "closed is for good")
}
