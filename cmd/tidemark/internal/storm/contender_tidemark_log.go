package storm

import (
	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// tidemarkLogContender is tidemarkContender with a JetStream stream as its log,
// and with reads that miss nothing which was confirmed longer ago than a bound.
type tidemarkLogContender struct{}

func (tidemarkLogContender) name() string { return "tidemark-log" }

func (tidemarkLogContender) promise(c Config) promise {
	return promise{
		text: "as tidemark, and no read misses a change that was confirmed more than " + c.Bound.String() + "\n" +
			"before it began: by a deposit that returned, or by the job that told the replicas. Commits\n" +
			"of killed writers, and of the job before it tells, are stale reads but confirmed to nobody.\n" +
			"What happens to messages happens to its hints only, as its log is read over a connection;\n" +
			"being cut off, frozen and stalled happens to all of it.",
		tideMark: true,
		maxStale: c.Bound, confirmed: true,
	}
}

// tidemarkLogOptions has a stream on the one server that there is, in files.
var tidemarkLogOptions = tidemark.NATSOptions{Name: tidemarkName, Stream: &tidemark.NATSStream{Replicas: 1}}

func (tidemarkLogContender) open(env *environment) (replica, error) {
	nc, err := env.connect(tidemark.NATSConnectOptions()...)
	if err != nil {
		return nil, err
	}
	inv := tidemark.NATS(nc, tidemarkLogOptions)
	// What comes on the hint binds the replica, what is missing there does not.
	hints, entries := newTidemarkEar(), newTidemarkEar()
	entries.log = true
	inv.Hint = env.through(inv.Hint, ears{message: func(msg []byte) ([]change, bool) {
		news, _ := hints.message(msg)
		return news, false
	}})
	inv.Log = env.throughLog(inv.Log, ears{message: entries.message, lost: true})
	return openTidemark(env, inv, tidemark.Within(env.config.Bound))
}

func (tidemarkLogContender) openAnnouncer(nc *nats.Conn) (announcer, error) {
	return openPublisher(tidemark.NATS(nc, tidemarkLogOptions))
}
