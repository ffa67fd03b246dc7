package storm

import (
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// tidemarkLogContender is tidemarkContender with a JetStream stream as its log,
// and with reads that miss nothing which was confirmed longer ago than a bound.
type tidemarkLogContender struct{}

func (tidemarkLogContender) name() string { return "tidemark-log" }

func (tidemarkLogContender) promise(c Config) promise {
	asTidemark := likewise(c, "tidemark", tidemarkText)
	p := promise{
		text: asTidemark + ", and no read misses a change that was confirmed more than " + c.Bound.String() + "\n" +
			"before it began: by a deposit that returned, or by the job that told the replicas. Commits\n" +
			"of killed writers, and of the job before it tells, are stale reads but confirmed to nobody.\n" +
			weatherOfLogs,
		tideMark: true,
		maxStale: c.Bound, confirmed: true,
	}
	if c.Store != "" {
		p.heard, p.committed = true, true
		p.text = asTidemark + ", and no read misses a change that was committed more than " + c.Bound.String() + "\n" +
			"before it began, whoever made it: the database tells of it through its outbox. " + weatherOfLogs
	}
	if c.ReadLevel == levelAny {
		p.counted = true
		p.text = asTidemark + ". Read at Any it states no bound; what is beyond " + c.Bound.String() + " is counted all the same."
	}
	return p
}

// weatherOfLogs is a part of the promises: what a log is spared.
const weatherOfLogs = "What happens to messages happens to its hints only, as its log is read over a connection;\n" +
	"being cut off, frozen and stalled happens to all of it."

// invalidator is for the relay of a database that tells the log itself.
func (tidemarkLogContender) invalidator(nc *nats.Conn) tidemark.Invalidator {
	return tidemark.NATS(nc, tidemarkLogOptions)
}

// tidemarkLogOptions has a stream on the one server that there is, in files.
var tidemarkLogOptions = tidemark.NATSOptions{Name: tidemarkName, Stream: &tidemark.NATSStream{Replicas: 1}}

func (tidemarkLogContender) open(env *environment) (replica, error) {
	return openTidemarkLog(env, tidemark.Options[int, Account]{})
}

// openTidemarkLog is openTidemark with a log.
func openTidemarkLog(env *environment, o tidemark.Options[int, Account]) (replica, error) {
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
	inv.Prober = env.prober
	inv.Log = env.throughLog(inv.Log, ears{message: entries.message, lost: true})
	o.Invalidator = inv
	if env.config.ReadLevel == levelWithin {
		o.Level = tidemark.Within(env.config.Bound)
	}
	return openTidemark(env, o)
}

func (tidemarkLogContender) openAnnouncer(nc *nats.Conn) (announcer, error) {
	return openPublisher(tidemark.NATS(nc, tidemarkLogOptions))
}

// tidemarkStrictContender is tidemarkLogContender with strict writes.
type tidemarkStrictContender struct{ tidemarkLogContender }

func (tidemarkStrictContender) name() string { return "tidemark-strict" }

func (t tidemarkStrictContender) promise(c Config) promise {
	p := t.tidemarkLogContender.promise(c)
	p.committed = true
	asLog := likewise(c, "tidemark-log", likewise(c, "tidemark", tidemarkText))
	if !p.counted && !p.heard {
		p.text = asLog + ", and no read misses a deposit that was committed more than " + c.Bound.String() + "\n" +
			"before it began, whether or not its writer lived to tell. While the log cannot be reached\n" +
			"deposits fail before they are made."
	}
	if !p.counted && p.heard {
		p.text = likewise(c, "tidemark-log", strings.TrimSuffix(p.text, ".")) + ", and while the log cannot be reached deposits fail before they are made."
	}
	return p
}

// strictDoubt bounds how late a deposit may take effect here. The replicas take
// the log's word only for what they have loaded twice as long after they joined.
const strictDoubt = time.Second

func (tidemarkStrictContender) open(env *environment) (replica, error) {
	return openTidemarkLog(env, tidemark.Options[int, Account]{Strict: true, DoubtTimeout: strictDoubt})
}
