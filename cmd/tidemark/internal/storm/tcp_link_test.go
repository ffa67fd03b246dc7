package storm

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A collector is a server that reads what it is sent, and answers each connection
// with "hello".
type collector struct {
	address string
	got     chan string // what one connection has sent, when it has ended
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	c := &collector{address: l.Addr().String(), got: make(chan string, 10)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "hello")
				b, _ := io.ReadAll(conn)
				c.got <- string(b)
			}()
		}
	}()
	return c
}

// dialThrough returns a connection to c through l that has read the hello.
func (c *collector) dialThrough(t *testing.T, l *tcpLink) net.Conn {
	t.Helper()
	conn, err := l.through((&net.Dialer{}).DialContext)(t.Context(), "tcp", c.address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	b := make([]byte, len("hello"))
	_, err = io.ReadFull(conn, b)
	require.NoError(t, err)
	return conn
}

func (c *collector) received(t *testing.T) string {
	t.Helper()
	select {
	case s := <-c.got:
		return s
	case <-time.After(10 * time.Second):
		require.FailNow(t, "no connection has ended")
		return ""
	}
}

func TestTCPLinkDeliversAfterAFreezeWhatItsClientHasGivenUp(t *testing.T) {
	server, l := newCollector(t), newTCPLink()
	conn := server.dialThrough(t, l)
	_, err := io.WriteString(conn, "before,")
	require.NoError(t, err)
	l.freeze()
	_, err = io.WriteString(conn, "during")
	require.NoError(t, err, "as the kernel takes what the network will not")
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, conn.Close())
	time.Sleep(30 * time.Millisecond)
	assert.Empty(t, server.got, "nothing has arrived yet")
	l.unfreeze()
	assert.Equal(t, "before,during", server.received(t))
	assert.Empty(t, l.conns)
}

func TestTCPLinkLosesWhatIsHeldBackWhenItIsCut(t *testing.T) {
	server, l := newCollector(t), newTCPLink()
	conn := server.dialThrough(t, l)
	l.freeze()
	_, err := io.WriteString(conn, "lost")
	require.NoError(t, err)
	l.cut()
	l.unfreeze()
	assert.Empty(t, server.received(t))
	require.NoError(t, conn.Close())
}

func TestTCPLinkHoldsBackWhatComesDuringAFreeze(t *testing.T) {
	l := newTCPLink()
	client, server := net.Pipe()
	conn, err := l.through(func(context.Context, string, string) (net.Conn, error) { return client, nil })(t.Context(), "tcp", "")
	require.NoError(t, err)
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	time.Sleep(10 * time.Millisecond) // most likely it reads by now; it is right either way
	l.freeze()
	go func() { _, _ = server.Write([]byte("x")) }()
	select {
	case err := <-read:
		require.Fail(t, "it arrived in the freeze", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	l.unfreeze()
	require.NoError(t, <-read)
	l.close()
}

func TestTCPLinkDoesNotTakeMoreThanASocketDoes(t *testing.T) {
	server, l := newCollector(t), newTCPLink()
	conn := server.dialThrough(t, l)
	l.freeze()
	_, err := conn.Write(make([]byte, heldLimit))
	require.NoError(t, err)
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write([]byte("more"))
		written <- err
	}()
	time.Sleep(30 * time.Millisecond)
	assert.Empty(t, written)
	l.unfreeze()
	require.NoError(t, <-written)
	require.NoError(t, conn.Close())
	got := server.received(t)
	assert.Len(t, got, heldLimit+4)
	assert.Equal(t, "more", got[heldLimit:])
}

func TestTCPLinkCutsAndRefuses(t *testing.T) {
	server, l := newCollector(t), newTCPLink()
	conn := server.dialThrough(t, l)
	l.cut()
	_, err := conn.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
	_, err = conn.Write([]byte("x"))
	assert.Error(t, err)
	dial := l.through((&net.Dialer{}).DialContext)
	_, err = dial(t.Context(), "tcp", server.address)
	var refused *net.OpError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "dial", refused.Op)
	l.restore()
	conn = server.dialThrough(t, l)
	l.freeze()
	_, err = dial(canceled(t), "tcp", server.address)
	assert.Error(t, err, "who is frozen does not connect")
	l.close()
	_, err = conn.Read(make([]byte, 1))
	assert.Error(t, err)
	l.restore()
	_, err = dial(t.Context(), "tcp", server.address)
	assert.Error(t, err, "closed is for good")
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
