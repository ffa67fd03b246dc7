package storm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark"
)

// A gate is the way from the replicas to the database. While it is shut their calls
// fail; what is under way then is finished. It is safe for concurrent use.
type gate struct {
	outage atomic.Pointer[outage] // nil: open
}

// An outage is a database that first does not answer, and then refuses.
type outage struct {
	refuses time.Time     // from then on, and those who waited
	over    chan struct{} // closed at the end
}

// connectTimeout is how long a call waits for a database that does not answer, if its
// context allows.
const connectTimeout = time.Second

// errGone is what every call gets that finds the gate shut. Nothing was sent.
var errGone = fmt.Errorf("storm: no connection to the database: %w", tidemark.ErrUnavailable)

// shut takes the database away, for about so long. The gate must be open.
func (g *gate) shut(length time.Duration) {
	g.outage.Store(&outage{refuses: time.Now().Add(length / 2), over: make(chan struct{})})
}

// open gives it back.
func (g *gate) open() {
	if o := g.outage.Swap(nil); o != nil {
		close(o.over)
	}
}

func (g *gate) isShut() bool { return g.outage.Load() != nil }

// pass returns nil if the database can be reached. In the first half of an outage a
// call hangs, until the second, its context ends or the time to connect is over, or
// the database is back; in the second it is refused at once.
func (g *gate) pass(ctx context.Context) error {
	o := g.outage.Load()
	if o == nil {
		return nil
	}
	wait := min(time.Until(o.refuses), connectTimeout)
	if wait <= 0 {
		return errGone
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-o.over:
		return nil
	case <-timeout.C:
		return errGone
	case <-ctx.Done():
		return errors.Join(errGone, ctx.Err())
	}
}
