package postgres

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A fault is what happens to one COMMIT.
type fault int32

const (
	noFault       fault = iota
	commitLost          // it does not reach the database, and the connection breaks
	answerLost          // it does, and the connection breaks instead of the answer
	answerStalled       // it does, and no answer comes
	commitHeld          // it reaches the database when it is released, whatever the client does
)

// A proxy stands between a client and a server and, when armed, spoils one COMMIT.
type proxy struct {
	server string // address
	fault  atomic.Int32
	held   chan struct{} // closed when what is held is released
	wg     sync.WaitGroup
}

// newProxy returns a proxy and the URL of the server at url through it.
func newProxy(t *testing.T, server string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(server)
	require.NoError(t, err)
	p := &proxy{server: u.Host, held: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	p.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(ctx, client) })
		}
	})
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, listener.Close())
		p.wg.Wait()
	})
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) arm(f fault)    { p.fault.Store(int32(f)) }
func (p *proxy) suffered() bool { return p.fault.Load() == int32(noFault) }
func (p *proxy) release()       { close(p.held) }

// untilStruck returns a context that ends when the fault has struck: the client gives
// up while COMMIT is under way, however slow this machine is.
func (p *proxy) untilStruck(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	p.wg.Go(func() {
		defer cancel()
		for !p.suffered() && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
	})
	return ctx
}

// serve carries bytes both ways until one side or the proxy closes.
func (p *proxy) serve(ctx context.Context, client net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })()
	defer cancel()
	var struck atomic.Int32 // a fault: what the server answers does not get through
	p.wg.Go(func() {
		defer cancel() // when the server has hung up
		carry(client, server, func([]byte) (stop, drop bool) {
			f := fault(struck.Load())
			return f == answerLost, f != noFault
		})
	})
	carry(server, client, func(sent []byte) (stop, drop bool) {
		if !bytes.Contains(sent, []byte("commit\x00")) {
			return bytes.HasPrefix(sent, []byte(cancelRequest)), false
		}
		f := fault(p.fault.Swap(int32(noFault)))
		struck.Store(int32(f))
		if f == commitHeld {
			select {
			case <-p.held:
			case <-ctx.Done():
			}
		}
		return f == commitLost, false
	})
	if fault(struck.Load()) == commitHeld { // the client is gone by now
		_ = server.(*net.TCPConn).CloseWrite()
		<-ctx.Done()
	}
}

// cancelRequest is how a client begins to ask, on another connection, that its
// statement be cancelled. The proxy loses all of them: nobody may count on them.
const cancelRequest = "\x00\x00\x00\x10\x04\xd2\x16\x2e"

// carry copies from one connection to the other, but what it is told to drop, until
// one of them ends or it is told to stop.
func carry(to, from net.Conn, what func([]byte) (stop, drop bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		stop, drop := what(buf[:n])
		if stop {
			return
		}
		if drop {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
