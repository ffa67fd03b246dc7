package storm

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A proxy is the network between one replica and the server: real TCP on
// loopback that can be cut, and frozen without being cut.
//
// It is safe for concurrent use. newProxy starts one goroutine and each
// connection two; Close ends them all and waits.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup
	bytes    atomic.Uint64 // forwarded, both directions

	mu     sync.Mutex // guards everything below
	conns  map[net.Conn]struct{}
	down   bool          // refuse new connections
	closed bool          // for good
	thaw   chan struct{} // not nil while frozen; closed to thaw
}

// newProxy returns a proxy that forwards to target ("host:port").
func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("storm: proxy: %w", err)
	}
	p := &proxy{listener: l, target: target, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	return p, nil
}

// url returns the address that a NATS client connects to.
func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

// cut resets every connection and refuses new ones until restore.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	p.resetLocked()
}

// restore accepts connections again after a cut. What was lost stays lost.
func (p *proxy) restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = p.closed
}

// freeze stops forwarding in both directions without closing anything, as a
// network that drops packets does: neither side notices until unfreeze, when
// everything arrives late, or until its own timeout.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thaw == nil && !p.closed {
		p.thaw = make(chan struct{})
	}
}

// unfreeze forwards again.
func (p *proxy) unfreeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thawLocked()
}

// Close cuts for good and returns when no goroutine of p is left.
func (p *proxy) Close() {
	p.mu.Lock()
	p.down, p.closed = true, true
	p.resetLocked()
	p.thawLocked()
	p.mu.Unlock()
	p.listener.Close()
	p.wg.Wait()
}

func (p *proxy) thawLocked() {
	if p.thaw != nil {
		close(p.thaw)
		p.thaw = nil
	}
}

func (p *proxy) resetLocked() {
	for c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok {
			// A reset, so that neither side sees an orderly end. It fails only
			// on a connection that has ended already.
			_ = t.SetLinger(0)
		}
		c.Close()
	}
	clear(p.conns)
}

// accept runs until the listener is closed.
func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// serve connects client with the target and copies until either side ends.
func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", p.target, 2*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.register(client, server) {
		return
	}
	defer p.forget(client, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.copy(server, client)
	}()
	p.copy(client, server)
	<-done
}

// copy forwards from src to dst until one of them fails, then closes both.
func (p *proxy) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.waitThawed()
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
			p.bytes.Add(uint64(n))
		}
		if err != nil {
			return
		}
	}
}

// waitThawed returns when p is not frozen.
func (p *proxy) waitThawed() {
	p.mu.Lock()
	thaw := p.thaw
	p.mu.Unlock()
	if thaw != nil {
		<-thaw
	}
}

// register takes up both ends of a connection unless p is down.
func (p *proxy) register(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return false
	}
	p.conns[client] = struct{}{}
	p.conns[server] = struct{}{}
	return true
}

func (p *proxy) forget(client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}
