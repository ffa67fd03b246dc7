package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tidemark-go/tidemark"
)

// What is wrong if the bypass is to be set.
var (
	// ErrNoBypass: Options.AllowBypass is not set.
	ErrNoBypass = errors.New("ops: this cache lets nobody set its bypass")

	// ErrUnconfirmed: a replica is there and has not said that its bypass is set so.
	ErrUnconfirmed = errors.New("ops: replicas that are there have not confirmed how their bypass is set")
)

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
		who, _ := json.Marshal(Bypass{Cache: v.name, Instance: v.instance}) // strings, which can be written
		_ = r.Error("403", fmt.Sprintf("%v (%s)", err, v.instance), who)
		return
	}
	_ = r.RespondJSON(b)
}

// AskBypass tells all replicas of the cache to set their bypass, and returns what those
// say that have confirmed it, in the order of their instances, by which they are told
// apart. It tells them again and again, for two seconds, and then until each that is
// there has confirmed or refused it, or ctx ends. A replica is there if it has answered
// anything meanwhile: this, or the question for its Report, which is asked besides.
//
// The error has the refusals, and then wraps [ErrNoBypass], and names those that are
// there and silent, and then wraps [ErrUnconfirmed]; it is [ErrNobody] if nobody is
// there. If there is none, that speaks for those who are there: a replica that has
// answered nothing, or is started later, may serve from memory as before. Give ctx a
// deadline: a replica may die before it has confirmed.
func AskBypass(ctx context.Context, nc *nats.Conn, name string, on bool) ([]Bypass, error) {
	question, err := json.Marshal(bypassRequest{&on})
	if err != nil {
		return nil, fmt.Errorf("ops: ask: %w", err)
	}
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox + ".>") // also for what comes late
	if err != nil {
		return nil, fmt.Errorf("ops: ask: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only if the connection is closed already
	s := &switching{on: on, confirmed: map[string]Bypass{}, open: map[string]bool{}}
	end := time.Now().Add(patience)
	for n := 1; ; n++ {
		reply := fmt.Sprintf("%s.%d", inbox, n) // one for each question: "allow_responses" permits one answer to it
		err := nc.PublishRequest(BypassSubject(name), reply, question)
		if err == nil {
			err = nc.PublishRequest(StateSubject(name), reply+stateReply, nil)
		}
		if err != nil {
			s.fail(fmt.Errorf("ops: ask: %w", err))
			break
		}
		s.listen(ctx, sub)
		if ctx.Err() != nil || len(s.unconfirmed()) == 0 && !time.Now().Before(end) {
			break
		}
	}
	if err := ctx.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		s.fail(fmt.Errorf("ops: ask: %w", err))
	}
	return s.result()
}

// again is after how long AskBypass asks again.
const again = 500 * time.Millisecond

// stateReply ends the subjects on which AskBypass is answered with Reports.
const stateReply = ".state"

// A switching is what AskBypass knows.
type switching struct {
	on        bool
	confirmed map[string]Bypass // by instance
	open      map[string]bool   // of each instance that is there, whether it has yet to confirm or refuse
	errs      []error
}

// fail notes an error, unless it is known: who is asked again says it again.
func (s *switching) fail(err error) {
	if !slices.ContainsFunc(s.errs, func(e error) bool { return e.Error() == err.Error() }) {
		s.errs = append(s.errs, err)
	}
}

// listen takes answers until it is time to ask again, or ctx ends.
func (s *switching) listen(ctx context.Context, sub *nats.Subscription) {
	once, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	for once.Err() == nil {
		switch m, err := sub.NextMsgWithContext(once); {
		case errors.Is(err, nats.ErrNoResponders): // there may be one later
		case err != nil:
			<-once.Done()
		case strings.HasSuffix(m.Subject, stateReply):
			s.takeReport(m)
		default:
			s.takeBypass(m)
		}
	}
}

// takeReport notes who is there.
func (s *switching) takeReport(m *nats.Msg) {
	r, err := understand[Report](m, nil)
	if err != nil {
		s.fail(err)
	} else if _, known := s.open[r.Instance]; !known {
		s.open[r.Instance] = true
	}
}

// takeBypass notes what a replica says that was told.
func (s *switching) takeBypass(m *nats.Msg) {
	b, err := understand[Bypass](m, ErrNoBypass)
	switch {
	case err != nil:
		s.fail(err)
		if b.Instance != "" {
			s.open[b.Instance] = false
		}
	case b.On != s.on: // somebody else tells them otherwise
		delete(s.confirmed, b.Instance)
		s.open[b.Instance] = true
	default:
		if before, twice := s.confirmed[b.Instance]; twice {
			b.Was = before.Was
		}
		s.confirmed[b.Instance] = b
		s.open[b.Instance] = false
	}
}

// unconfirmed returns who is there and has neither confirmed nor refused.
func (s *switching) unconfirmed() (all []string) {
	for instance, open := range s.open {
		if open {
			all = append(all, instance)
		}
	}
	slices.Sort(all)
	return all
}

func (s *switching) result() (all []Bypass, err error) {
	for _, instance := range slices.Sorted(maps.Keys(s.confirmed)) {
		all = append(all, s.confirmed[instance])
	}
	if silent := s.unconfirmed(); len(silent) > 0 {
		s.fail(fmt.Errorf("%w: %q", ErrUnconfirmed, silent))
	}
	if all == nil && s.errs == nil {
		s.fail(ErrNobody)
	}
	return all, errors.Join(s.errs...)
}
