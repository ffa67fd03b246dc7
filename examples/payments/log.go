package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tidemark-go/tidemark"
)

// connect returns a connection to NATS. A server that is not there yet, or is away
// for a while, is no error: the replicas go to the database until it is back.
func connect(url, name string) (*nats.Conn, error) {
	nc, err := nats.Connect(url, append(tidemark.NATSConnectOptions(), nats.Name("payments "+name))...)
	if err != nil {
		return nil, fmt.Errorf("NATS: %w", err)
	}
	return nc, nil
}

// accountsLog is the log through which all replicas, and whoever relays what others
// have changed, tell each other which accounts have changed.
func accountsLog(nc *nats.Conn, prober tidemark.Prober) tidemark.Invalidator {
	log := tidemark.NATS(nc, tidemark.NATSOptions{
		Name: "accounts",
		// A replica proves anew every beat that it has missed nothing. A quarter of
		// the 100ms that our clients ask for by ?within=100ms.
		Beat:   25 * time.Millisecond,
		Stream: &tidemark.NATSStream{Replicas: 1}, // on a cluster: 3
	})
	log.Prober = prober
	return log
}

// A natsServer is a nats-server in this process, for trying things out.
type natsServer struct {
	*server.Server
	dir string
}

// startNATS starts a nats-server; its stream ends with it. Port 0 means any.
func startNATS(address string) (*natsServer, error) {
	host, port, err := net.SplitHostPort(address)
	number, notNumber := strconv.Atoi(port)
	if err := errors.Join(err, notNumber); err != nil {
		return nil, fmt.Errorf("-nats-listen: %w", err)
	}
	if number == 0 {
		number = server.RANDOM_PORT
	}
	dir, err := os.MkdirTemp("", "payments-nats-")
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{Host: host, Port: number, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	started := &natsServer{s, dir}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		started.stop()
		return nil, fmt.Errorf("the nats-server does not start; is %s taken? See -nats and -nats-listen", address)
	}
	return started, nil
}

func (s *natsServer) stop() {
	s.Shutdown()
	s.WaitForShutdown()
	_ = os.RemoveAll(s.dir) // of no use to anybody
}
