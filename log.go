package tidemark

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	logBurst     = 10               // records of one message that are passed on in each window
	logWindow    = 10 * time.Second // the first, and each after one in which nothing was muted
	logWindowMax = 10 * time.Minute
)

// A logLimit keeps floods of records from the Logger: who is cut off a thousand
// times an hour, or hears a stranger's every message, is to be told so, but not
// each time.
type logLimit struct {
	handler slog.Handler
	now     func() int64
	panics  *atomic.Uint64 // counts the handler's

	muted atomic.Uint64
	owing atomic.Bool // a flow has muted something that nobody was told of

	mu    sync.Mutex // guards everything below
	flows map[flowName]*flow
}

// A flow is the records of one message at one level. There are as many as this
// package has messages.
type flow struct {
	began  int64         // of its window
	length time.Duration // of its window
	passed int           // in this window
	muted  uint64        // in this window
}

type flowName struct {
	level   slog.Level
	message string
}

// limitLog returns a logger that passes on to l what its limit permits.
func limitLog(l *slog.Logger, now func() int64, panics *atomic.Uint64) (*slog.Logger, *logLimit) {
	limit := &logLimit{handler: l.Handler(), now: now, panics: panics, flows: map[flowName]*flow{}}
	return slog.New(limitedHandler{l.Handler(), limit}), limit
}

// pass hands r to a handler, and contains its panic: what this package does must
// not depend on whether it can be logged.
func (l *logLimit) pass(ctx context.Context, h slog.Handler, r slog.Record) error {
	defer func() {
		if recover() != nil {
			l.panics.Add(1)
		}
	}()
	return h.Handle(ctx, r)
}

// admit reports whether a record of this name is to be passed on.
func (l *logLimit) admit(name flowName) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.flows[name]
	if f == nil {
		f = &flow{began: now, length: logWindow}
		l.flows[name] = f
	}
	if f.muted == 0 && now-f.began >= int64(f.length) {
		*f = flow{began: now, length: logWindow}
	}
	if f.passed < logBurst {
		f.passed++
		return true
	}
	f.muted++
	l.muted.Add(1)
	l.owing.Store(true)
	return false
}

// due reports whether tell has something to say.
func (l *logLimit) due() bool {
	if !l.owing.Load() {
		return false
	}
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.flows {
		if f.over(now) {
			return true
		}
	}
	return false
}

// over reports whether the flow's window has ended and has muted something.
func (f *flow) over(now int64) bool { return f.muted > 0 && now-f.began >= int64(f.length) }

// tell says of each window that is over how much it has muted.
func (l *logLimit) tell() {
	l.report(func(f *flow, now int64) bool { return f.over(now) })
}

// tellAll is tell for the windows that are not over, too.
func (l *logLimit) tellAll() { l.report(func(f *flow, _ int64) bool { return f.muted > 0 }) }

func (l *logLimit) report(which func(f *flow, now int64) bool) {
	for _, r := range l.take(which) {
		_ = l.pass(context.Background(), l.handler, r) // as slog.Logger does: nobody is there to hear of it
	}
}

// take ends the windows of the chosen flows and returns what is to be said of
// them.
func (l *logLimit) take(which func(f *flow, now int64) bool) (records []slog.Record) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owing.Store(false)
	names := slices.SortedFunc(maps.Keys(l.flows), func(a, b flowName) int { return strings.Compare(a.message, b.message) })
	for _, name := range names {
		f := l.flows[name]
		switch {
		case which(f, now):
			r := slog.NewRecord(time.Now(), name.level, "tidemark: records left out of the log", 0)
			r.AddAttrs(slog.String("message", name.message), slog.Uint64("records", f.muted), slog.Duration("within", time.Duration(now-f.began)))
			records = append(records, r)
			*f = flow{began: now, length: min(2*f.length, logWindowMax)}
		case f.muted > 0:
			l.owing.Store(true)
		}
	}
	return records
}

// A limitedHandler is the handler of a logger that has a limit.
type limitedHandler struct {
	slog.Handler
	limit *logLimit
}

func (h limitedHandler) Handle(ctx context.Context, r slog.Record) error {
	if !h.limit.admit(flowName{r.Level, r.Message}) {
		return nil
	}
	return h.limit.pass(ctx, h.Handler, r)
}

func (h limitedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limitedHandler{h.Handler.WithAttrs(attrs), h.limit}
}

func (h limitedHandler) WithGroup(name string) slog.Handler {
	return limitedHandler{h.Handler.WithGroup(name), h.limit}
}
