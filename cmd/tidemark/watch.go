package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark/internal/wire"
)

const watchUsage = `usage: tidemark watch -name NAME [flags]

Watch prints each message that the replicas of a cache exchange, one a line,
until it is interrupted. What cannot be decoded is printed too. With -stream it
shows what is appended to the cache's JetStream stream from now on.

`

// runWatch is "tidemark watch".
func runWatch(ctx context.Context, args []string, std streams) int {
	var target busTarget
	flags := newFlags("watch", watchUsage, std)
	target.define(flags)
	asJSON := flags.Bool("json", false, "print JSON, one object a line")
	count := flags.Int("count", 0, "end after this `number` of messages; 0: never")
	if status, done := parse(std, flags, args, noArguments(flags), target.validate); done {
		return status
	}
	w := &watcher{out: std.out, err: std.err, keyType: target.keyType, asJSON: *asJSON, left: *count, done: make(chan struct{})}
	if err := w.watch(ctx, target); err != nil {
		return fail(std, "watch", err)
	}
	return exitOK
}

// A watcher prints messages.
type watcher struct {
	keyType string
	asJSON  bool
	done    chan struct{} // closed when enough has been printed, or output fails

	mu   sync.Mutex // guards everything below
	out  io.Writer
	err  io.Writer
	left int // messages to print; 0: no end, -1: done
	fail error
}

// watch prints until ctx ends or the watcher is done.
func (w *watcher) watch(ctx context.Context, target busTarget) error {
	missed := func(why string) { w.complain("messages may be missing: " + why) }
	nc, err := target.connect(
		nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: this end has closed it
				missed("disconnected: " + err.Error())
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { missed("connected again") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { missed(err.Error()) }))
	if err != nil {
		return err
	}
	defer nc.Close()
	subject := target.subject()
	if _, err := nc.Subscribe(subject, func(m *nats.Msg) { w.print(time.Now(), m.Data) }); err != nil {
		return err
	}
	if err := nc.FlushTimeout(3 * time.Second); err != nil {
		return fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	w.complain("watching " + subject)
	select {
	case <-ctx.Done():
	case <-w.done:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fail
}

// complain tells the person who watches, and keeps that out of the output.
func (w *watcher) complain(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.err, "tidemark watch: %s\n", what)
}

// print prints one message.
func (w *watcher) print(at time.Time, msg []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left < 0 {
		return
	}
	line := describe(at, msg, w.keyType)
	text := line.String()
	if w.asJSON {
		b, err := json.Marshal(line)
		text, w.fail = string(b), err
	}
	if w.fail == nil {
		_, w.fail = fmt.Fprintln(w.out, text)
	}
	if w.left--; w.left == 0 || w.fail != nil {
		w.left = -1
		close(w.done)
	} else if w.left < 0 {
		w.left = 0
	}
}

// A watchedMessage is a message as it is printed. Ids are in hexadecimal: they
// are random, and do not fit the numbers of JSON.
type watchedMessage struct {
	Time   time.Time      `json:"time"`
	Bytes  int            `json:"bytes"`
	Kind   string         `json:"kind,omitempty"`
	Cache  string         `json:"cache,omitempty"`
	Origin string         `json:"origin,omitempty"`
	Seq    uint64         `json:"seq,omitempty"`
	Epoch  uint32         `json:"epoch,omitempty"`
	Flags  uint16         `json:"flags,omitempty"`
	Nonce  uint64         `json:"nonce,omitempty"`
	Keys   []watchedKey   `json:"keys,omitempty"`
	Probes []watchedProbe `json:"probes,omitempty"`
	Error  string         `json:"error,omitempty"`
	Raw    string         `json:"raw,omitempty"` // the first bytes of what cannot be decoded
}

type watchedKey struct {
	Key     string `json:"key"`
	Version uint64 `json:"version"` // 0: not known
	Deleted bool   `json:"deleted,omitempty"`
	Write   string `json:"write,omitempty"` // of a strict write: begins, ended or void
	Op      string `json:"op,omitempty"`
}

// A watchedProbe went through the source, and is on its way back.
type watchedProbe struct {
	Origin string `json:"origin"`
	Nonce  uint64 `json:"nonce"`
}

// writeStages names the stages of strict writes.
var writeStages = map[wire.Stage]string{wire.Begun: "begins", wire.Ended: "ended", wire.Void: "void"}

// rawShown is how many bytes of an undecodable message are printed.
const rawShown = 64

// describe decodes msg as far as that is possible.
func describe(at time.Time, msg []byte, keyType string) watchedMessage {
	var m wire.Message
	err := wire.Decode(msg, &m)
	line := watchedMessage{Time: at.UTC(), Bytes: len(msg)}
	if err != nil {
		line.Error = err.Error()
		line.Raw = hex.EncodeToString(msg[:min(len(msg), rawShown)])
		if !errors.Is(err, wire.ErrUnknownKind) {
			return line // nothing else in m is filled in
		}
	}
	line.Kind, line.Epoch, line.Flags, line.Nonce, line.Seq = m.Kind.String(), m.Epoch, m.Flags, m.Nonce, m.Seq
	line.Cache, line.Origin = fmt.Sprintf("%016x", m.CacheID), fmt.Sprintf("%016x", m.Origin)
	for _, e := range m.Entries {
		k := watchedKey{Key: keyText(e.Key, keyType), Version: e.Version, Deleted: e.Deleted, Write: writeStages[e.Stage]}
		if e.Stage != 0 {
			k.Op = hex.EncodeToString(e.Op[:])
		}
		line.Keys = append(line.Keys, k)
	}
	for _, p := range m.Probes {
		line.Probes = append(line.Probes, watchedProbe{fmt.Sprintf("%016x", p.Origin), p.Nonce})
	}
	return line
}

// keyText returns a key as the user writes it, or its bytes in hexadecimal
// if it is not of the type that the user expects.
func keyText(key []byte, keyType string) string {
	switch {
	case keyType == "string":
		return string(key)
	case len(key) == 8:
		return strconv.FormatInt(int64(binary.LittleEndian.Uint64(key)), 10)
	default:
		return "0x" + hex.EncodeToString(key)
	}
}

// String returns the message as one line for people.
func (m watchedMessage) String() string {
	var b strings.Builder
	b.WriteString(m.Time.Format("15:04:05.000000"))
	if m.Kind != "" {
		fmt.Fprintf(&b, " cache %s origin %s #%d %s", m.Cache, m.Origin, m.Seq, m.Kind)
		if m.Epoch != 0 {
			fmt.Fprintf(&b, " (epoch %d)", m.Epoch)
		}
	}
	switch {
	case m.Nonce != 0:
		fmt.Fprintf(&b, " %d", m.Nonce)
	case m.Kind == wire.KindHello.String():
		b.WriteString(" (goodbye)")
	}
	for _, k := range m.Keys {
		fmt.Fprintf(&b, " %q", k.Key)
		if k.Version != 0 {
			fmt.Fprintf(&b, "@%d", k.Version)
		}
		if k.Deleted {
			b.WriteString("(deleted)")
		}
		if k.Write != "" {
			fmt.Fprintf(&b, "(write %.8s %s)", k.Op, k.Write)
		}
	}
	for _, p := range m.Probes {
		fmt.Fprintf(&b, " %s:%d", p.Origin, p.Nonce)
	}
	if m.Error != "" {
		fmt.Fprintf(&b, " undecodable (%s), %d bytes: %s", m.Error, m.Bytes, m.Raw)
	}
	return b.String()
}
