package ops

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tidemark-go/tidemark"
)

// serviceName is what "nats micro list" shows.
const serviceName = "tidemark"

// StateSubject returns the subject on which the replicas of a cache are asked for
// their Report.
func StateSubject(name string) string { return "tidemark.v1." + name + ".ops.state" }

// InspectSubject returns the subject on which the replicas of a cache are asked for
// a key.
func InspectSubject(name string) string { return "tidemark.v1." + name + ".ops.inspect" }

// A request is what is asked on InspectSubject, as JSON.
type request struct {
	Key   string
	Value bool `json:",omitempty"`
}

// A Service answers on NATS for one View, until Stop or until the connection is
// closed.
type Service struct{ service micro.Service }

// Serve makes this replica answer on NATS, as a service of the micro framework
// (ADR-32) named "tidemark", so that "nats micro" finds it too. Every replica
// answers each question, in JSON: on [StateSubject] with a [Report], on
// [InspectSubject] with an [Inspection], on [AuditSubject] with an [Audit], on
// [BypassSubject] with a [Bypass], or with the error codes of HTTP: 400 for what is not a
// key, 403 for a value that is not to be shown and a bypass that is not to be set, 409
// for a cycle that cannot begin since the cache is closed.
//
// A client needs permission to subscribe to "tidemark.v1.NAME.ops.>" and, for the
// framework's own PING, INFO and STATS, to "$SRV.>", and to answer: "allow_responses"
// is enough. Without the permission for "$SRV.>" the subjects work all the same,
// and the connection complains once. Who may publish on the subjects may ask, and
// with them for every key, and for the keys of the auditor's mismatches, which he need not
// know; he may let the auditor begin a cycle, at the rate that the program has set; and
// with Options.AllowBypass send every read to the source: give it to operators only. It
// costs nothing while nobody asks. Set the connection's error and closed handlers before
// Serve.
func (v *View) Serve(nc *nats.Conn) (*Service, error) {
	if nc == nil {
		return nil, &tidemark.OptionError{Field: "nc", Problem: "is nil"}
	}
	s, err := micro.AddService(nc, micro.Config{
		Name:               serviceName,
		Version:            "1.2.0", // of the endpoints
		Description:        "what the replicas of a tidemark cache say of themselves",
		Metadata:           map[string]string{"cache": v.name, "instance": v.instance},
		QueueGroupDisabled: true, // everybody answers
	})
	if err != nil {
		return nil, fmt.Errorf("ops: serve: %w", err)
	}
	for _, e := range []struct {
		name, subject string
		handle        func(micro.Request)
	}{
		{"state", StateSubject(v.name), v.answerState},
		{"inspect", InspectSubject(v.name), v.answerInspect},
		{"audit", AuditSubject(v.name), v.answerAudit},
		{"bypass", BypassSubject(v.name), v.answerBypass},
	} {
		if err := s.AddEndpoint(e.name, micro.HandlerFunc(e.handle), micro.WithEndpointSubject(e.subject)); err != nil {
			return nil, errors.Join(fmt.Errorf("ops: serve %s: %w", e.name, err), s.Stop())
		}
	}
	return &Service{s}, nil
}

// Stop ends the answers. Further calls do nothing.
func (s *Service) Stop() error {
	if s.service.Stopped() {
		return nil
	}
	return s.service.Stop()
}

func (v *View) answerState(r micro.Request) { _ = r.RespondJSON(v.Report()) } // who asked asks again

func (v *View) answerInspect(r micro.Request) {
	var q request
	if len(r.Data()) > 2*maxKeyText || json.Unmarshal(r.Data(), &q) != nil {
		_ = r.Error("400", `want {"Key": "..."}`, nil)
		return
	}
	x, err := v.Inspect(q.Key, q.Value)
	switch {
	case errors.Is(err, ErrNoValues):
		_ = r.Error("403", err.Error(), nil)
	case err != nil:
		_ = r.Error("400", err.Error(), nil)
	default:
		_ = r.RespondJSON(x)
	}
}
