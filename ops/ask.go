package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// ErrNobody is returned if no replica answers: none calls [View.Serve], or the
// cache has another name, or there is no permission.
var ErrNobody = errors.New("ops: no replica answers")

// quiet is for how long nobody must have answered until no more is waited for. It
// is longer than a round trip to a replica that is busy.
const quiet = 300 * time.Millisecond

// patience is for how long an answer is waited for before any has come: the first may
// be far away.
const patience = 2 * time.Second

// Ask asks all replicas of the cache for their Report, and returns what has come
// when nobody has answered for a while, or ctx ends, in the order of their
// instances. An error besides reports says which answers could not be understood; it
// is [ErrNobody] if there are none.
func Ask(ctx context.Context, nc *nats.Conn, name string) ([]Report, error) {
	return ask(ctx, nc, StateSubject(name), nil, nil, func(r Report) string { return r.Instance })
}

// AskKey is Ask for what they know of the key that is written as text, with its
// value if that is set. A replica that shows no values, or does not understand the
// key, is in the error, which wraps [ErrNoValues] for the former.
func AskKey(ctx context.Context, nc *nats.Conn, name, text string, value bool) ([]Inspection, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("%w: it is not valid UTF-8, and cannot be asked for", ErrKey)
	}
	return ask(ctx, nc, InspectSubject(name), request{text, value}, ErrNoValues, func(i Inspection) string { return i.Instance })
}

// An answerError is an error that a replica has answered.
type answerError struct {
	code, text string
	refusal    error // what 403 means
}

func (e *answerError) Error() string {
	return fmt.Sprintf("ops: a replica says %s: %s", e.code, e.text)
}

func (e *answerError) Unwrap() error {
	if e.code == "403" {
		return e.refusal
	}
	return nil
}

// ask asks one question, which is nil or becomes JSON, and collects the answers in the
// order of their instances. refusal is what the code 403 means.
func ask[A any](ctx context.Context, nc *nats.Conn, subject string, question any, refusal error, instance func(A) string) (all []A, err error) {
	var q []byte
	if question != nil {
		if q, err = json.Marshal(question); err != nil {
			return nil, fmt.Errorf("ops: ask: %w", err)
		}
	}
	all, err = collect[A](ctx, nc, subject, q, refusal)
	slices.SortFunc(all, func(a, b A) int { return cmp.Compare(instance(a), instance(b)) })
	return all, err
}

// collect publishes a question and collects the answers until there are no more.
func collect[A any](ctx context.Context, nc *nats.Conn, subject string, question []byte, refusal error) (all []A, err error) {
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("ops: ask: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only if the connection is closed already
	if err := nc.PublishRequest(subject, inbox, question); err != nil {
		return nil, fmt.Errorf("ops: ask: %w", err)
	}
	var errs []error
	for wait := patience; ; wait = quiet {
		once, cancel := context.WithTimeout(ctx, wait)
		m, err := sub.NextMsgWithContext(once)
		cancel()
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrNoResponders) {
				errs = append(errs, fmt.Errorf("ops: ask: %w", err))
			}
			break
		}
		if m.Header.Get("Status") == "503" && len(m.Data) == 0 {
			break // the server: there is nobody
		}
		if a, err := understand[A](m, refusal); err != nil {
			errs = append(errs, err)
		} else {
			all = append(all, a)
		}
	}
	if all == nil && errs == nil {
		errs = append(errs, ErrNobody)
	}
	return all, errors.Join(errs...)
}

// understand reads one answer. refusal is what the code 403 means; what a refusal has
// to say besides is returned with it.
func understand[A any](m *nats.Msg, refusal error) (a A, err error) {
	err = json.Unmarshal(m.Data, &a)
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return a, &answerError{code, m.Header.Get(micro.ErrorHeader), refusal}
	}
	if err != nil {
		return a, fmt.Errorf("ops: an answer cannot be understood: %w", err)
	}
	return a, nil
}
