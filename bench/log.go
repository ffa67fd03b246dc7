package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
)

// printLog measures what a log costs, against the same stream without tidemark.
// Both sides are in one process, on one server, with connections of their own,
// and take turns.
func printLog(rounds int, only *regexp.Regexp, samples io.Writer) error {
	r, err := newRig()
	if err != nil {
		return err
	}
	defer r.close()
	p := &report{w: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0), samples: samples}
	for _, section := range []struct {
		name string
		run  func(*rig, *report, int) error
	}{
		{"probe", raceProbes}, {"visible", raceVisible}, {"rate", raceRates}, {"read", raceReads},
	} {
		if !only.MatchString(section.name) {
			continue
		}
		if err := section.run(r, p, rounds); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	return nil
}

// A rig is a NATS server with JetStream in this process, and who is connected to
// it.
type rig struct {
	server *server.Server
	folder string
	conns  []*nats.Conn
}

func newRig() (*rig, error) {
	folder, err := os.MkdirTemp("", "tidemark-bench-")
	if err != nil {
		return nil, err
	}
	r := &rig{folder: folder}
	r.server, err = server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: folder,
	})
	if err != nil {
		return nil, err
	}
	r.server.Start()
	if !r.server.ReadyForConnections(10 * time.Second) {
		r.close()
		return nil, fmt.Errorf("the NATS server does not start")
	}
	return r, nil
}

func (r *rig) close() {
	for _, nc := range r.conns {
		nc.Close()
	}
	r.server.Shutdown()
	r.server.WaitForShutdown()
	_ = os.RemoveAll(r.folder)
}

// dial returns a connection with the settings that tidemark advises.
func (r *rig) dial() (*nats.Conn, error) {
	nc, err := nats.Connect(r.server.ClientURL(), tidemark.NATSConnectOptions()...)
	if err == nil {
		r.conns = append(r.conns, nc)
	}
	return nc, err
}

// names of the caches differ, so that each has a stream of its own
func options(name string, beat time.Duration, hint bool) tidemark.NATSOptions {
	return tidemark.NATSOptions{Name: name, Beat: beat, Stream: &tidemark.NATSStream{Replicas: 1, NoHint: !hint}}
}

// A bare is a stream of the settings of tidemark's, and a subject, without
// tidemark.
type bare struct {
	subject, stream string
}

// newBare makes the stream as tidemark does, so that nothing differs but who
// uses it.
func (r *rig) newBare(name string) (*bare, error) {
	nc, err := r.dial()
	if err != nil {
		return nil, err
	}
	if err := tidemark.SetUpNATSStream(context.Background(), nc, options(name, 0, false)); err != nil {
		return nil, err
	}
	return &bare{tidemark.NATSLogSubject(name), tidemark.NATSStreamName(name)}, nil
}

// consumer makes a consumer as cheap as they are: in memory, without
// acknowledgements. It begins with the message of number from; 0 means with the
// next one.
func (b *bare) consumer(nc *nats.Conn, from uint64) (jetstream.Consumer, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	c := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverNewPolicy, MemoryStorage: true, Replicas: 1,
		InactiveThreshold: 30 * time.Second,
	}
	if from != 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	return js.CreateConsumer(context.Background(), b.stream, c)
}

// A tap is a Log that tells when a message of its was read, and when the replica
// has applied it: that is when it asks for the next.
type tap struct {
	tidemark.Log
	first         uint64        // if not 0, where a reader begins that asks for the end
	gate          chan struct{} // if not nil, readers wait until it is closed
	read, applied func(seq uint64)
}

func (t *tap) Open(ctx context.Context, from uint64) (tidemark.LogReader, error) {
	if t.gate != nil {
		select {
		case <-t.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if from == 0 {
		from = t.first
	}
	r, err := t.Log.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	return &tapReader{LogReader: r, tap: t}, nil
}

type tapReader struct {
	tidemark.LogReader
	tap  *tap
	last uint64 // the message that was read last; 0: none
}

func (r *tapReader) Next(ctx context.Context) (seq uint64, msg []byte, err error) {
	if r.last != 0 {
		r.tap.applied(r.last)
	}
	seq, msg, err = r.LogReader.Next(ctx)
	if r.last = seq; err == nil && r.tap.read != nil {
		r.tap.read(seq)
	}
	return seq, msg, err
}

// A report prints a table, and each round's values for benchstat.
type report struct {
	w       *tabwriter.Writer
	samples io.Writer // or nil
}

// columns begins a table.
func (p *report) columns(names ...string) {
	fmt.Fprintln(p.w, strings.Join(names, "\t")+"\t")
}

// row adds a line to it.
func (p *report) row(cells ...string) {
	p.columns(cells...)
}

// end prints it.
func (p *report) end() {
	fmt.Fprintln(p.w)
	p.w.Flush()
}

// keep writes one line for each round, in the form of Go's benchmarks.
func (p *report) keep(name, unit string, rounds []float64) {
	if p.samples == nil {
		return
	}
	for _, v := range rounds {
		fmt.Fprintf(p.samples, "BenchmarkLog/%s 1 %g %s\n", name, v, unit)
	}
}

// ratios returns a[i]/b[i].
func ratios(a, b []float64) []float64 {
	all := make([]float64, len(a))
	for i := range a {
		all[i] = a[i] / b[i]
	}
	return all
}

// spread returns the median of the rounds, and the range of the middle half of
// them.
func spread(rounds []float64) string {
	return fmt.Sprintf("%.2f (%.2f-%.2f)", median(rounds), quantile(rounds, 0.25), quantile(rounds, 0.75))
}

// quantile returns the value below which a share of v is.
func quantile(v []float64, share float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[int(share*float64(len(v)-1)+0.5)]
}
