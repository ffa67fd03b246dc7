package storm

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A tcpLink is the network between one replica and a server, for clients that let
// others dial for them. It does what a proxy does, and costs nothing: a request to
// Redis takes as long as one hop on loopback, and a second hop would be held
// against it.
//
// It is safe for concurrent use and has no goroutine of its own.
type tcpLink struct {
	mu    sync.Mutex // guards everything below
	conns map[*tcpLinkConn]struct{}
	down  bool          // refuse new connections
	dead  bool          // for good
	thaw  chan struct{} // not nil while frozen; closed to thaw
}

func newTCPLink() *tcpLink { return &tcpLink{conns: make(map[*tcpLinkConn]struct{})} }

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// through returns a dialer whose connections suffer what happens to l.
func (l *tcpLink) through(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		refused := &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		if l.isDown() {
			return nil, refused
		}
		if err := l.waitThawed(ctx.Done(), nil); err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		inner, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &tcpLinkConn{Conn: inner, link: l, closed: make(chan struct{})}
		if !l.register(c) {
			return nil, refused
		}
		return c, nil
	}
}

func (l *tcpLink) isDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down || l.dead
}

// register takes up c, or closes it if l is down.
func (l *tcpLink) register(c *tcpLinkConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down || l.dead {
		c.Conn.Close()
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// cut resets every connection and refuses new ones until restore. What is held
// back by a freeze is lost: unfreeze knows nothing of it any more.
func (l *tcpLink) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	l.resetLocked()
}

func (l *tcpLink) resetLocked() {
	for c := range l.conns {
		c.reset()
	}
	clear(l.conns)
}

// restore accepts connections again.
func (l *tcpLink) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

// freeze stops everything in both directions. What is written meanwhile arrives
// after unfreeze, also if the client has given up and closed by then, as it does
// when packets are lost and sent again.
func (l *tcpLink) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.thaw == nil && !l.dead {
		l.thaw = make(chan struct{})
	}
}

// unfreeze lets everything through again.
func (l *tcpLink) unfreeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.release()
	}
	if l.thaw != nil {
		close(l.thaw)
		l.thaw = nil
	}
}

// close cuts for good.
func (l *tcpLink) close() {
	l.mu.Lock()
	l.dead = true
	l.resetLocked()
	l.mu.Unlock()
	l.unfreeze()
}

// waitThawed returns when l is not frozen, or the error that ends the wait.
func (l *tcpLink) waitThawed(canceled <-chan struct{}, deadline <-chan time.Time) error {
	l.mu.Lock()
	thaw := l.thaw
	l.mu.Unlock()
	if thaw == nil {
		return nil
	}
	select {
	case <-thaw:
		return nil
	case <-canceled:
		return net.ErrClosed
	case <-deadline:
		return os.ErrDeadlineExceeded
	}
}

// A tcpLinkConn is one connection. As with any, one goroutine reads and one writes.
type tcpLinkConn struct {
	net.Conn
	link    *tcpLink
	closing sync.Once
	closed  chan struct{}

	// The link's mutex guards these.
	held   []byte    // written while frozen
	hangup bool      // closed while something was held
	until  time.Time // deadline for reads
}

// reset ends c so that neither side sees an orderly end. The link's mutex is held.
func (c *tcpLinkConn) reset() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails only on a connection that has ended already
	}
	c.Conn.Close()
	c.closing.Do(func() { close(c.closed) })
}

// release writes what was held back. The link's mutex is held; what was held is
// less than a socket's buffer takes without waiting.
func (c *tcpLinkConn) release() {
	if len(c.held) > 0 {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Conn.Write(c.held) // an error is the reader's to see
		c.held = nil
	}
	if c.hangup {
		c.Conn.Close()
		delete(c.link.conns, c)
	}
}

// heldLimit bounds what one connection can have written while frozen; then its
// writes block, as they do when a socket's buffer is full.
const heldLimit = 32 << 10

func (c *tcpLinkConn) Write(b []byte) (int, error) {
	for {
		c.link.mu.Lock()
		thaw := c.link.thaw
		if thaw != nil && len(c.held)+len(b) <= heldLimit {
			c.held = append(c.held, b...)
			c.link.mu.Unlock()
			return len(b), nil
		}
		c.link.mu.Unlock()
		if thaw == nil {
			n, err := c.Conn.Write(b)
			return n, c.ended(err)
		}
		if err := c.waitThawed(); err != nil {
			return 0, err
		}
	}
}

func (c *tcpLinkConn) Read(b []byte) (int, error) {
	if err := c.waitThawed(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if werr := c.waitThawed(); werr != nil { // it came before, and arrives after
		return 0, werr
	}
	return n, c.ended(err)
}

// waitThawed returns when the link is not frozen, or with the error that a read
// or write would return that waits in vain.
func (c *tcpLinkConn) waitThawed() error {
	c.link.mu.Lock()
	until := c.until
	frozen := c.link.thaw != nil
	c.link.mu.Unlock()
	if !frozen {
		return nil
	}
	var deadline <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		deadline = t.C
	}
	return c.link.waitThawed(c.closed, deadline)
}

// ended returns err as the other side's end if the link has made it.
func (c *tcpLinkConn) ended(err error) error {
	select {
	case <-c.closed:
		if err != nil {
			return io.EOF
		}
	default:
	}
	return err
}

func (c *tcpLinkConn) SetDeadline(t time.Time) error {
	c.setUntil(t)
	return c.Conn.SetDeadline(t)
}

func (c *tcpLinkConn) SetReadDeadline(t time.Time) error {
	c.setUntil(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *tcpLinkConn) setUntil(t time.Time) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	c.until = t
}

// SyscallConn lets a client's pool see that the other side has gone.
func (c *tcpLinkConn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, syscall.ENOTSUP
	}
	return s.SyscallConn()
}

// Close ends the connection, after what is held back has arrived.
func (c *tcpLinkConn) Close() error {
	c.closing.Do(func() { close(c.closed) })
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if len(c.held) > 0 {
		c.hangup = true
		return nil
	}
	delete(c.link.conns, c)
	return c.Conn.Close()
}
