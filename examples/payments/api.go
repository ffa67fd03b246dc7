package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-go/tidemark"
)

// requestTimeout bounds the work for one request.
const requestTimeout = 5 * time.Second

// An api answers the requests of one replica.
type api struct {
	cache  *tidemark.Cache[string, Cents]
	logger *slog.Logger
}

func newAPI(cache *tidemark.Cache[string, Cents], logger *slog.Logger) http.Handler {
	a := &api{cache, logger}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /accounts/{account}", a.balance)
	mux.HandleFunc("POST /accounts/{account}/deposits", a.deposit)
	mux.HandleFunc("POST /accounts/{account}/purchases", a.purchase)
	mux.HandleFunc("GET /readyz", a.ready)
	mux.HandleFunc("GET /debug/stats", a.stats)
	mux.HandleFunc("GET /debug/accounts/{account}", a.explain)
	return a.logged(mux)
}

// balance reads an account: from memory, if memory has what the client asks for.
func (a *api) balance(w http.ResponseWriter, r *http.Request) {
	account, err1 := accountOf(r)
	within, err2 := withinOf(r)
	if err := errors.Join(err1, err2); err != nil {
		a.refuse(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	e, err := a.cache.Read(ctx, account, sessionOf(r))
	if within != tidemark.Any && (err == nil || errors.Is(err, tidemark.ErrNotFound)) {
		// No read returns less than one before it, so this one is good for both.
		e, err = a.cache.Read(ctx, account, within)
	}
	a.answer(w, e, err)
}

func (a *api) deposit(w http.ResponseWriter, r *http.Request) {
	account, err1 := accountOf(r)
	amount, err2 := amountOf(w, r)
	if err := errors.Join(err1, err2); err != nil {
		a.refuse(w, err)
		return
	}
	a.write(w, r, func(ctx context.Context) (entry, error) { return deposit(ctx, a.cache, account, amount) })
}

func (a *api) purchase(w http.ResponseWriter, r *http.Request) {
	account, err1 := accountOf(r)
	price, err2 := amountOf(w, r)
	version, err3 := versionOf(r)
	if err := errors.Join(err1, err2, err3); err != nil {
		a.refuse(w, err)
		return
	}
	a.write(w, r, func(ctx context.Context) (entry, error) { return purchase(ctx, a.cache, account, price, version) })
}

// write makes a write, and gives the client a token for it. A client that hangs up
// does not interrupt it, or nobody would know whether it was made.
func (a *api) write(w http.ResponseWriter, r *http.Request, do func(context.Context) (entry, error)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
	defer cancel()
	e, err := do(ctx)
	if err == nil {
		remember(w, r, a.cache.Token())
	}
	a.answer(w, e, err)
}

// ready is for load balancers: a replica that does not hear the others yet works, but
// sends every read to the database.
func (a *api) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if err := a.cache.Ready(ctx); err != nil {
		reply(w, http.StatusServiceUnavailable, map[string]any{"ready": false})
		return
	}
	reply(w, http.StatusOK, map[string]any{"ready": true})
}

// stats and explain are for those who operate the service. In production they are at
// an address of their own, which clients do not reach.
func (a *api) stats(w http.ResponseWriter, _ *http.Request) {
	s := a.cache.Stats()
	reply(w, http.StatusOK, struct {
		tidemark.Stats
		State, Fresh string // in words
	}{s, s.State.String(), s.Fresh.String()})
}

func (a *api) explain(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, a.cache.Explain(r.PathValue("account")))
}

// answer is a state, or the status that an error becomes.
func (a *api) answer(w http.ResponseWriter, e entry, err error) {
	var conflict *tidemark.ConflictError
	var doubt *tidemark.UncertainError
	switch {
	case err == nil:
		w.Header().Set("Balance-Version", fmt.Sprint(e.Version))
		if e.Age >= 0 {
			w.Header().Set("Balance-Age", e.Age.String())
		}
		reply(w, http.StatusOK, map[string]any{"balance": e.Value})
	case errors.As(err, &doubt): // first: it may wrap any other
		complain(w, http.StatusAccepted, "not known yet whether this was made: look with ?within=0s before you try again")
	case errors.Is(err, tidemark.ErrNotFound):
		complain(w, http.StatusNotFound, "no such account")
	case errors.Is(err, errPoor):
		complain(w, http.StatusPaymentRequired, err.Error())
	case errors.Is(err, errRich):
		complain(w, http.StatusUnprocessableEntity, err.Error())
	case errors.As(err, &conflict):
		if conflict.Current != 0 {
			w.Header().Set("Balance-Version", fmt.Sprint(conflict.Current))
		}
		complain(w, http.StatusConflict, "the account has changed")
	case errors.Is(err, tidemark.ErrStale):
		// Memory cannot show that it is recent enough, and was told not to ask the
		// database; or the database knows less than memory.
		a.unavailable(w, "nothing recent enough", err)
	default: // ErrUnavailable, a *LoadError, ErrClosed, no time left: nothing was written
		a.unavailable(w, "try again", err)
	}
}

func (a *api) unavailable(w http.ResponseWriter, message string, err error) {
	a.logger.Warn("unavailable", "err", err)
	w.Header().Set("Retry-After", "1")
	complain(w, http.StatusServiceUnavailable, message)
}

// refuse answers a request that makes no sense.
func (a *api) refuse(w http.ResponseWriter, err error) {
	complain(w, http.StatusBadRequest, strings.ReplaceAll(err.Error(), "\n", "; "))
}

func complain(w http.ResponseWriter, status int, message string) {
	reply(w, status, map[string]any{"error": message})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone
}

// sessionCookie holds a token of what its client has written.
const sessionCookie = "session"

// sessionOf returns what a read must not fall behind: what its client has written,
// at whichever replica.
func sessionOf(r *http.Request) tidemark.Level {
	token, err := tokenOf(r)
	if err != nil {
		return tidemark.Linearizable // it has written, and we cannot tell what
	}
	return tidemark.After(token)
}

// tokenOf returns the token in the cookie. The zero token asks for nothing.
func tokenOf(r *http.Request) (token tidemark.Token, err error) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return token, nil
	}
	return token, token.UnmarshalText([]byte(cookie.Value))
}

// remember sets the cookie. It may be forgotten after the TTL: what is served then was
// loaded later than the write.
func remember(w http.ResponseWriter, r *http.Request, written tidemark.Token) {
	if before, err := tokenOf(r); err == nil {
		written = written.Join(before)
	}
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: written.String(), Path: "/", MaxAge: int(ttl.Seconds()),
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode,
	})
}

var accountForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func accountOf(r *http.Request) (string, error) {
	account := r.PathValue("account")
	if !accountForm.MatchString(account) {
		return "", errors.New("an account is 1 to 64 letters, digits, - and _")
	}
	return account, nil
}

// amountOf returns the amount in the body of a request.
func amountOf(w http.ResponseWriter, r *http.Request) (Cents, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 32))
	amount, notNumber := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	if err := errors.Join(err, notNumber); err != nil || amount <= 0 {
		return 0, errors.New("the body is the amount in cents, a positive integer")
	}
	return Cents(amount), nil
}

// versionOf returns the only version that the client wants its purchase to be made
// at, or 0.
func versionOf(r *http.Request) (tidemark.Version, error) {
	text := r.URL.Query().Get("version")
	if text == "" {
		return 0, nil
	}
	version, err := strconv.ParseUint(text, 10, 64)
	if err != nil || version == 0 {
		return 0, errors.New("version is a Balance-Version that you have seen")
	}
	return tidemark.Version(version), nil
}

// withinOf returns how old what the client reads may be at most.
func withinOf(r *http.Request) (tidemark.Level, error) {
	text := r.URL.Query().Get("within")
	if text == "" {
		return tidemark.Any, nil
	}
	within, err := time.ParseDuration(text)
	if err != nil || within < 0 {
		return tidemark.Any, errors.New("within is a duration, like 100ms")
	}
	return tidemark.Within(within), nil
}

// logged logs each request by its pattern: accounts are personal data.
func (a *api) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		recorder := &statusRecorder{w, http.StatusOK}
		next.ServeHTTP(recorder, r)
		a.logger.Info("request", "route", r.Pattern, "status", recorder.status, "took", time.Since(began))
	})
}

// A statusRecorder remembers the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }
