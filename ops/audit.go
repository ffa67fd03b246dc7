package ops

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tidemark-go/tidemark"
)

// ErrNoAuditor is returned if a cycle is asked for and the cache has no auditor.
var ErrNoAuditor = errors.New("ops: this cache has no auditor")

// AuditSubject returns the subject on which the replicas of a cache are asked for
// their Audit, also with the keys of mismatches, and to let a cycle begin.
func AuditSubject(name string) string { return "tidemark.v1." + name + ".ops.audit" }

// An Audit is what the auditor of one replica has found; see
// [tidemark.AuditOptions]. Durations are in nanoseconds in JSON.
type Audit struct {
	Cache    string
	Instance string
	Time     time.Time            // by its clock
	Report   tidemark.AuditReport // its Bound is zero if there is no auditor

	// Mismatches are the latest that were confirmed, up to 32, without their keys
	// unless those were asked for.
	Mismatches []Mismatch `json:",omitempty"`
}

// A Mismatch is a [tidemark.Mismatch] as people see it.
type Mismatch struct {
	Key             string `json:",omitempty"` // as people write it; only if it was asked for
	Kind            tidemark.MismatchKind
	Time            time.Time
	Version, Source tidemark.Version
	Absent          bool `json:",omitempty"`
	SourceAbsent    bool `json:",omitempty"`
	AtLeast, AtMost time.Duration
	Record          []tidemark.Happening `json:",omitempty"`
}

// An auditRequest is what is asked on AuditSubject, as JSON.
type auditRequest struct {
	Start bool `json:",omitempty"` // let a cycle begin
	Keys  bool `json:",omitempty"`
}

// Audit returns what the auditor has found so far, with the keys of mismatches if
// keys is set. It costs little.
func (v *View) Audit(keys bool) Audit { return v.audit(keys) }

// StartAudit lets a cycle of the auditor begin, as [tidemark.Cache.Audit] does, and
// does not wait for it. It returns what was found before: that cycle has ended when
// Report.Cycles is above this Report.Begun. The error is ErrNoAuditor or
// [tidemark.ErrClosed].
func (v *View) StartAudit(keys bool) (Audit, error) {
	before, err := v.start()
	a := v.audit(keys)
	a.Report = before
	return a, err
}

// auditor returns how the cache is audited.
func auditor[K comparable, V any](cache *tidemark.Cache[K, V], o Options[K, V], codec tidemark.KeyCodec[K]) (report func(bool) Audit, start func() (tidemark.AuditReport, error)) {
	report = func(keys bool) Audit {
		a := Audit{Cache: o.Name, Instance: o.Instance, Time: time.Now().UTC(), Report: cache.AuditReport()}
		for _, m := range cache.Mismatches() {
			x := Mismatch{Kind: m.Kind, Time: m.Time.UTC(), Version: m.Version, Source: m.Source, Absent: m.Absent,
				SourceAbsent: m.SourceAbsent, AtLeast: m.AtLeast, AtMost: m.AtMost, Record: m.Record}
			if keys {
				x.Key = keyText(codec, m.Key)
			}
			a.Mismatches = append(a.Mismatches, x)
		}
		return a
	}
	start = func() (tidemark.AuditReport, error) {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // the cycle goes on
		r, err := cache.Audit(ended)
		switch {
		case errors.Is(err, context.Canceled):
			return r, nil
		case errors.As(err, new(*tidemark.OptionError)):
			return r, ErrNoAuditor
		}
		return r, err
	}
	return report, start
}

// keyText returns a key as people write it; see Options.ParseKey. A KeyCodec's panic
// is contained.
func keyText[K comparable](codec tidemark.KeyCodec[K], key K) (text string) {
	defer func() {
		if recover() != nil {
			text = "(the KeyCodec panicked)"
		}
	}()
	switch kind := reflect.TypeFor[K]().Kind(); {
	case kind == reflect.String, kind >= reflect.Int && kind <= reflect.Uintptr, codec == nil:
		return fmt.Sprintf("%v", key)
	default:
		return "0x" + hex.EncodeToString(codec.AppendKey(nil, key))
	}
}

func (v *View) answerAudit(r micro.Request) {
	var q auditRequest
	if len(r.Data()) > 0 && (len(r.Data()) > maxKeyText || json.Unmarshal(r.Data(), &q) != nil) {
		_ = r.Error("400", `want {} or {"Start": true, "Keys": true}`, nil)
		return
	}
	a, err := v.Audit(q.Keys), error(nil)
	if q.Start && a.Report.Bound > 0 {
		a, err = v.StartAudit(q.Keys)
	}
	if err != nil {
		_ = r.Error("409", err.Error(), nil)
		return
	}
	_ = r.RespondJSON(a)
}

// AskAudit asks all replicas of the cache for their Audit, as Ask does for their
// Report. If start is set, those that have an auditor let a cycle begin; see
// [View.StartAudit]. Mismatches have keys if keys is set.
func AskAudit(ctx context.Context, nc *nats.Conn, name string, start, keys bool) ([]Audit, error) {
	return ask(ctx, nc, AuditSubject(name), auditRequest{start, keys}, nil, func(x Audit) string { return x.Instance })
}
