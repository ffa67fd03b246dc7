package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tidemark-go/tidemark"
)

// ErrNoBypass is returned if the bypass is to be set, and Options.AllowBypass is not.
var ErrNoBypass = errors.New("ops: this cache lets nobody set its bypass")

// BypassSubject returns the subject on which the replicas of a cache are told to set
// their bypass.
func BypassSubject(name string) string { return "tidemark.v1." + name + ".ops.bypass" }

// A Bypass is what one replica says that was told to set its bypass.
type Bypass struct {
	Cache    string
	Instance string
	On       bool // now
	Was      bool // before
}

// A bypassRequest is what is said on BypassSubject, as JSON.
type bypassRequest struct{ On *bool }

// SetBypass sets the bypass as [tidemark.Cache.SetBypass] does, if
// Options.AllowBypass is set; the error is ErrNoBypass if not.
func (v *View) SetBypass(on bool) (Bypass, error) { return v.bypass(on) }

// bypassOf returns how the bypass of a cache is set.
func bypassOf[K comparable, V any](cache *tidemark.Cache[K, V], o Options[K, V]) func(on bool) (Bypass, error) {
	return func(on bool) (Bypass, error) {
		if !o.AllowBypass {
			return Bypass{}, ErrNoBypass
		}
		b := Bypass{Cache: o.Name, Instance: o.Instance, Was: cache.Stats().Bypassed}
		cache.SetBypass(on)
		b.On = cache.Stats().Bypassed
		return b, nil
	}
}

func (v *View) answerBypass(r micro.Request) {
	var q bypassRequest
	if len(r.Data()) > maxKeyText || json.Unmarshal(r.Data(), &q) != nil || q.On == nil {
		_ = r.Error("400", `want {"On": true} or {"On": false}`, nil)
		return
	}
	b, err := v.SetBypass(*q.On)
	if err != nil {
		_ = r.Error("403", fmt.Sprintf("%v (%s)", err, v.instance), nil)
		return
	}
	_ = r.RespondJSON(b)
}

// AskBypass tells all replicas of the cache to set their bypass, and returns the
// answers as Ask does. A replica that does not let it be set is in the error, which then
// wraps [ErrNoBypass]. Replicas
// that do not answer, and those that are started later, serve from memory as before.
func AskBypass(ctx context.Context, nc *nats.Conn, name string, on bool) ([]Bypass, error) {
	return ask(ctx, nc, BypassSubject(name), bypassRequest{&on}, ErrNoBypass, func(x Bypass) string { return x.Instance })
}
