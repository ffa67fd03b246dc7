package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/wire"
)

const (
	keysPerMessage = 64
	rateName       = "rate" // of the cache
)

// A backlog is what waits in a stream for whoever reads it.
type backlog struct {
	*bare
	first, last uint64
}

// newBacklog fills a stream with so many messages of an origin, each of which
// says that 64 other keys have changed.
func (r *rig) newBacklog(messages int) (*backlog, error) {
	stream, err := r.newBare(rateName)
	if err != nil {
		return nil, err
	}
	nc, err := r.dial()
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1024))
	if err != nil {
		return nil, err
	}
	m := &wire.Message{Kind: wire.KindInvalidate, CacheID: xxhash.Sum64String(rateName + "\x00"), Origin: 1}
	var first, last jetstream.PubAckFuture
	for range messages {
		m.Seq++
		m.Entries = m.Entries[:0]
		for i := range keysPerMessage {
			key := fmt.Sprintf("account:%012d", (int(m.Seq)-1)*keysPerMessage+i)
			m.Entries = append(m.Entries, wire.Entry{Key: []byte(key), Version: 2})
		}
		if last, err = js.PublishMsgAsync(&nats.Msg{Subject: stream.subject, Data: encoded(m)},
			jetstream.WithMsgID(fmt.Sprintf("%016x%016x", m.Origin, m.Seq)), // as long as tidemark's
			jetstream.WithExpectStream(stream.stream),
			jetstream.WithStallWait(patience)); err != nil {
			return nil, err
		}
		if first == nil {
			first = last
		}
	}
	log := &backlog{bare: stream}
	for future, seq := range map[jetstream.PubAckFuture]*uint64{first: &log.first, last: &log.last} {
		select {
		case ack := <-future.Ok():
			*seq = ack.Sequence
		case err := <-future.Err():
			return nil, err
		case <-time.After(patience):
			return nil, errors.New("the messages are not acknowledged")
		}
	}
	if got := int(log.last-log.first) + 1; got != messages {
		return nil, fmt.Errorf("the stream has %d messages, want %d", got, messages)
	}
	return log, nil
}

// A stopwatch runs from the first message of a backlog to the last.
type stopwatch struct {
	*backlog
	began time.Time
	used  time.Duration // CPU time, until it began
	took  chan pace
}

// A pace is how fast a backlog was read, and what the whole process, the server
// included, did for it.
type pace struct {
	rate float64 // messages per second
	cpu  float64 // microseconds per message
}

func (b *backlog) stopwatch() *stopwatch {
	return &stopwatch{backlog: b, took: make(chan pace, 1)}
}

func (s *stopwatch) read(seq uint64) {
	if seq == s.first {
		s.began, s.used = time.Now(), cpuTime()
	}
}

func (s *stopwatch) done(seq uint64) {
	if seq == s.last {
		took, used, n := time.Since(s.began), cpuTime()-s.used, float64(s.last-s.first)
		s.took <- pace{n / took.Seconds(), float64(used.Nanoseconds()) / 1e3 / n}
	}
}

// wait waits for the last message.
func (s *stopwatch) wait() (pace, error) {
	select {
	case p := <-s.took:
		return p, nil
	case <-time.After(30 * time.Second):
		return pace{}, errors.New("it does not come to the end")
	}
}

// consume counts what a bare consumer gets by callback.
func (b *backlog) consume(nc *nats.Conn) (pace, error) {
	c, err := b.consumer(nc, b.first)
	if err != nil {
		return pace{}, err
	}
	s, seq := b.stopwatch(), b.first
	running, err := c.Consume(func(jetstream.Msg) {
		s.read(seq)
		s.done(seq)
		seq++
	})
	if err != nil {
		return pace{}, err
	}
	defer running.Stop()
	return s.wait()
}

// fetch counts what a bare consumer gets by asking for batches.
func (b *backlog) fetch(nc *nats.Conn) (pace, error) {
	c, err := b.consumer(nc, b.first)
	if err != nil {
		return pace{}, err
	}
	s, seq := b.stopwatch(), b.first
	for seq <= b.last {
		batch, err := c.Fetch(int(min(256, b.last-seq+1)), jetstream.FetchMaxWait(patience))
		if err != nil {
			return pace{}, err
		}
		for range batch.Messages() {
			s.read(seq)
			s.done(seq)
			seq++
		}
		if err := batch.Error(); err != nil {
			return pace{}, err
		}
	}
	return s.wait()
}

// apply lets a new replica read the backlog. With resident it holds an entry for
// each key, which goes.
func (b *backlog) apply(nc *nats.Conn, resident bool) (pace, error) {
	s := b.stopwatch()
	inv := tidemark.NATS(nc, options(rateName, 0, false))
	gate := make(chan struct{})
	inv.Log = &tap{Log: inv.Log, first: b.first, gate: gate, read: s.read, applied: s.done}
	keys := int(b.last-b.first+1) * keysPerMessage
	c, err := tidemark.New(tidemark.Options[string, value]{MaxCost: int64(keys * 9 / 8), Invalidator: inv})
	if err != nil {
		return pace{}, err
	}
	defer c.Close(context.Background())
	if resident {
		for _, k := range stringKeys(everyKey(keys)) {
			c.Put(k, value{}, 1)
		}
		if have := c.Len(); have != keys {
			return pace{}, fmt.Errorf("%d of %d keys have an entry", have, keys)
		}
	}
	runtime.GC()
	close(gate)
	got, err := s.wait()
	if err != nil {
		return pace{}, err
	}
	switch st := c.Stats(); {
	case st.Applies != uint64(keys), st.Bad+st.Foreign != 0:
		return pace{}, fmt.Errorf("%d of %d keys applied, %d messages bad, %d foreign", st.Applies, keys, st.Bad, st.Foreign)
	case resident && c.Len() != 0:
		return pace{}, fmt.Errorf("%d entries are left", c.Len())
	}
	return got, nil
}

// raceRates measures how fast what is in a stream is read, by a consumer that
// only counts, in the two ways that there are, and by a replica that applies it.
// All of it is there before anybody begins, so nobody waits for who publishes.
func raceRates(r *rig, p *report, rounds int) error {
	return r.raceRates(p, rounds, 10_000)
}

func (r *rig) raceRates(p *report, rounds, messages int) error {
	b, err := r.newBacklog(messages)
	if err != nil {
		return err
	}
	contenders := []struct {
		name string
		goal string
		run  func(nc *nats.Conn) (pace, error)
	}{
		{"op=Consume", "", b.consume},
		{"op=Fetch", "", b.fetch},
		{"op=apply/resident=false", "0.5", func(nc *nats.Conn) (pace, error) { return b.apply(nc, false) }},
		{"op=apply/resident=true", "0.5", func(nc *nats.Conn) (pace, error) { return b.apply(nc, true) }},
	}
	rates, cpus := make([][]float64, len(contenders)), make([][]float64, len(contenders))
	for round := -1; round < rounds; round++ { // one round to warm up
		for j := range contenders {
			i := (round + 1 + j) % len(contenders)
			nc, err := r.dial()
			if err != nil {
				return err
			}
			runtime.GC()
			got, err := contenders[i].run(nc)
			nc.Close()
			if err != nil {
				return fmt.Errorf("%s: %w", contenders[i].name, err)
			}
			if round >= 0 {
				rates[i], cpus[i] = append(rates[i], got.rate), append(cpus[i], got.cpu)
			}
		}
	}
	p.columns(fmt.Sprintf("%d messages of %d keys that wait in the stream", messages, keysPerMessage),
		"messages/s", "keys/s", "ratio to Consume", "goal", "ratio to Fetch", "CPU us/message")
	for i, c := range contenders {
		p.row(c.name, fmt.Sprintf("%.0f", median(rates[i])), fmt.Sprintf("%.2fM", median(rates[i])*keysPerMessage/1e6),
			spread(ratios(rates[i], rates[0])), c.goal, spread(ratios(rates[i], rates[1])), fmt.Sprintf("%.1f", median(cpus[i])))
		p.keep(c.name, "messages/s", rates[i])
	}
	p.end()
	return nil
}

// raceReads measures hits without a log, with one, and with one that vouches for
// them.
func raceReads(r *rig, p *report, rounds int) error { return r.raceReads(p, rounds, traceLength, 8) }

func (r *rig) raceReads(p *report, rounds, accesses, instances int) error {
	const keys = 10_000
	names := []string{"op=Get/log=false", "op=Get/log=true", "op=ReadWithin/log=true"}
	goals := []string{"", "1.05", "2.5"}
	trace := stringKeys(shuffled(zipfTrace(accesses, keys, 0.99), keys))
	p.columns("a hit, CPU ns", "ns", "ratio to Get without a log", "goal", "allocs/op")
	for _, goroutines := range []int{1, 2} {
		times := make([][]float64, len(names))
		allocs := make([]float64, len(names))
		for i := range instances { // each is made first in turn, and lies elsewhere in memory
			if err := r.raceReadsOnce(trace, keys, goroutines, rounds, i%2 == 0, times, allocs); err != nil {
				return err
			}
		}
		for i, n := range names {
			name := fmt.Sprintf("%s/goroutines=%d", n, goroutines)
			p.row(name, fmt.Sprintf("%.1f", median(times[i])), spread(ratios(times[i], times[0])), goals[i], fmt.Sprintf("%.2f", allocs[i]))
			p.keep(name, "ns/op", times[i])
		}
	}
	p.end()
	return nil
}

// raceReadsOnce measures two new caches with as many processors as goroutines.
func (r *rig) raceReadsOnce(trace []string, keys, goroutines, rounds int, logFirst bool, times [][]float64, allocs []float64) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(goroutines))
	nc, err := r.dial()
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx := context.Background()
	invs := []tidemark.Invalidator{{}, tidemark.NATS(nc, options("read", 0, true))}
	caches := make([]*tidemark.Cache[string, value], len(invs))
	for i := range invs {
		if logFirst {
			i = len(invs) - 1 - i
		}
		c, err := tidemark.New(tidemark.Options[string, value]{MaxCost: int64(keys * 9 / 8), Store: newLedger(), Invalidator: invs[i]})
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		caches[i] = c
		if err := c.Ready(ctx); err != nil {
			return err
		}
		for _, k := range stringKeys(everyKey(keys)) {
			if _, err := c.Load(ctx, k); err != nil {
				return err
			}
		}
	}
	get := func(c *tidemark.Cache[string, value]) func([]string) int {
		return func(keys []string) (hits int) {
			for _, k := range keys {
				if v, ok := c.Get(k); ok {
					hits += 1 + int(v[0]>>63)
				}
			}
			return hits
		}
	}
	within := func(keys []string) (hits int) {
		for _, k := range keys {
			if e, err := caches[1].Read(ctx, k, tidemark.Within(time.Second)); err == nil {
				hits += 1 + int(e.Value[0]>>63)
			}
		}
		return hits
	}
	var works []work
	for i, do := range []func([]string) int{get(caches[0]), get(caches[1]), within} {
		if hits := do(trace[:chunk]); hits != chunk {
			return fmt.Errorf("%d of %d reads hit", hits, chunk)
		}
		allocs[i] = max(allocs[i], testing.AllocsPerRun(10, func() { do(trace[:chunk]) })/chunk)
		works = append(works, func(at, n int) {
			at &= len(trace) - 1
			together(goroutines, trace[at:at+n], do)
		})
	}
	runtime.GC()
	for i, v := range race(works, rounds) {
		times[i] = append(times[i], v...)
	}
	for _, c := range caches {
		if st := c.Stats(); st.Loads != uint64(keys) || st.Misses != uint64(keys) {
			return fmt.Errorf("%d loads and %d misses: not all reads were hits", st.Loads, st.Misses)
		}
	}
	return nil
}
