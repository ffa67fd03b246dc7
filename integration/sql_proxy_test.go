package integration

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/store/sqlstore"
)

// A commitProxy stands between a client and a database server and, when armed,
// spoils one COMMIT.
type commitProxy struct {
	server  string // address
	commit  []byte // how COMMIT looks on the wire
	address string // of the proxy

	fault atomic.Int32 // a fault; noFault once it has struck

	stop context.CancelFunc
	wg   sync.WaitGroup
}

func newCommitProxy(t *testing.T, server, commit string) *commitProxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &commitProxy{server: server, commit: []byte(commit), stop: cancel}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.address = listener.Addr().String()
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
		p.stop()
		assert.NoError(t, listener.Close())
		p.wg.Wait()
	})
	return p
}

func (p *commitProxy) arm(f fault)    { p.fault.Store(int32(f)) }
func (p *commitProxy) suffered() bool { return p.fault.Load() == int32(noFault) }

// serve carries bytes both ways until one side or the proxy closes.
func (p *commitProxy) serve(ctx context.Context, client net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	closed := context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })
	defer closed()
	defer cancel()

	var muted atomic.Int32 // a fault: what the server answers does not get through
	p.wg.Go(func() {
		defer cancel()
		carry(client, server, func([]byte) bool {
			switch fault(muted.Load()) {
			case answerLost:
				return false
			case answerStalled:
				<-ctx.Done()
				return false
			default:
				return true
			}
		})
	})
	carry(server, client, func(sent []byte) bool {
		if !bytes.Contains(sent, p.commit) {
			return true
		}
		f := p.fault.Swap(int32(noFault))
		muted.Store(f)
		return fault(f) != commitLost
	})
}

// carry copies from one connection to the other while pass says so.
func carry(to, from net.Conn, pass func([]byte) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !pass(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// testCommitStalled lets the context end while COMMIT is under way: the answer
// does not come, and the connection is not closed either.
func testCommitStalled(t *testing.T, d database, s saboteur) {
	store, _ := newStore(t, d, sqlstore.Options[string, string]{})
	before, err := store.CompareAndSet(t.Context(), "k", 0, "before", newOp())
	require.NoError(t, err)

	op := newOp()
	s.arm(answerStalled)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	_, err = store.CompareAndSet(ctx, "k", before, "after", op)
	requireUnknown(t, s, err)
	assert.Less(t, time.Since(begin), 10*time.Second, "the call waited for an answer long after its context had ended")
	wantSettled(t, store, "k", op, true, "after", "before")
}
