package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/ops"
)

// served returns a cache that answers as instance on nc.
func served(t *testing.T, nc *nats.Conn, instance string, format func(string) string) (*tidemark.Cache[string, string], *ops.Service) {
	t.Helper()
	cache, err := tidemark.New(tidemark.Options[string, string]{TTL: time.Hour})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close(context.Background())) })
	view, err := ops.New(cache, ops.Options[string, string]{Name: natsCache, Instance: instance, FormatValue: format})
	require.NoError(t, err)
	service, err := view.Serve(nc)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, service.Stop()) })
	require.NoError(t, nc.Flush())
	return cache, service
}

// Every replica answers, on a connection of its own or not, until it stops.
func TestOps_EveryReplicaAnswers(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	_, err := ops.Ask(t.Context(), nc, natsCache)
	require.ErrorIs(t, err, ops.ErrNobody)

	b, _ := served(t, dial(t, s.ClientURL()), "b", nil)
	_, service := served(t, dial(t, s.ClientURL()), "a", nil)
	b.Put("alice", "1200", 17)
	reports, err := ops.Ask(t.Context(), nc, natsCache)
	require.NoError(t, err)
	require.Len(t, reports, 2)
	assert.Equal(t, []string{"a", "b"}, []string{reports[0].Instance, reports[1].Instance})
	assert.EqualValues(t, 1, reports[1].Stats.Applied)
	assert.Equal(t, time.Hour, reports[0].Settings.TTL)
	assert.Equal(t, nats.Version, reports[0].Build.NATS)

	all, err := ops.AskKey(t.Context(), nc, natsCache, "alice", false)
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.False(t, all[0].Explanation.Resident)
	assert.EqualValues(t, 17, all[1].Explanation.Version)
	assert.Contains(t, all[1].Words, "version 17 by put")

	_, err = ops.Ask(t.Context(), nc, "other")
	require.ErrorIs(t, err, ops.ErrNobody)
	_, err = ops.AskKey(t.Context(), nc, natsCache, "\xff", false)
	require.ErrorIs(t, err, ops.ErrKey)
	require.NoError(t, service.Stop())
	require.NoError(t, service.Stop())
	within(t, func() bool {
		reports, err = ops.Ask(t.Context(), nc, natsCache)
		return err == nil && len(reports) == 1
	}, "it answers although it was stopped")
}

// A value is told by a replica that may tell it, to who asks for it, and by no
// other.
func TestOps_ValuesAreTold(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	const secret = "4929-1234"
	open, _ := served(t, dial(t, s.ClientURL()), "open", func(v string) string { return v })
	shut, _ := served(t, dial(t, s.ClientURL()), "shut", nil)
	open.Put("k", secret, 1)
	shut.Put("k", secret, 1)
	heard, err := nc.SubscribeSync(">")
	require.NoError(t, err)

	all, err := ops.AskKey(t.Context(), nc, natsCache, "k", false)
	require.NoError(t, err)
	assert.Len(t, all, 2)
	_, err = ops.Ask(t.Context(), nc, natsCache)
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	for n, _, _ := heard.Pending(); n > 0; n-- {
		m, err := heard.NextMsg(time.Second)
		require.NoError(t, err)
		assert.NotContains(t, string(m.Data), secret)
	}
	all, err = ops.AskKey(t.Context(), nc, natsCache, "k", true)
	require.ErrorContains(t, err, "403")
	require.Len(t, all, 1)
	assert.Equal(t, secret, all[0].Value)
}

// Whatever is sent to it, a replica answers in an orderly way.
func TestOps_QuestionsThatAreNone(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	served(t, dial(t, s.ClientURL()), "a", nil)
	for _, question := range [][]byte{nil, []byte("{"), []byte(`{"Key":7}`), make([]byte, 100<<10)} {
		m, err := nc.Request(ops.InspectSubject(natsCache), question, 2*time.Second)
		require.NoError(t, err)
		assert.Equal(t, "400", m.Header.Get(micro.ErrorCodeHeader))
	}
	long, err := json.Marshal(map[string]string{"Key": fmt.Sprintf("%20000s", "x")})
	require.NoError(t, err)
	m, err := nc.Request(ops.InspectSubject(natsCache), long, 2*time.Second)
	require.NoError(t, err)
	assert.Equal(t, "400", m.Header.Get(micro.ErrorCodeHeader))
	assert.Less(t, len(m.Header.Get(micro.ErrorHeader)), 1<<10)
	m, err = nc.Request(ops.StateSubject(natsCache), []byte("anything"), 2*time.Second)
	require.NoError(t, err)
	assert.Empty(t, m.Header.Get(micro.ErrorCodeHeader))
}

// The framework's own questions are answered.
func TestOps_IsAMicroService(t *testing.T) {
	s := natsServer(t, nil)
	nc := dial(t, s.ClientURL())
	served(t, dial(t, s.ClientURL()), "a", nil)
	m, err := nc.Request("$SRV.INFO.tidemark", nil, 2*time.Second)
	require.NoError(t, err)
	var info micro.Info
	require.NoError(t, json.Unmarshal(m.Data, &info))
	assert.Equal(t, map[string]string{"cache": natsCache, "instance": "a"}, info.Metadata)
	var subjects []string
	for _, e := range info.Endpoints {
		subjects = append(subjects, e.Subject)
		assert.Empty(t, e.QueueGroup, "all replicas answer, not one of them")
	}
	assert.ElementsMatch(t, []string{ops.StateSubject(natsCache), ops.InspectSubject(natsCache), ops.AuditSubject(natsCache), ops.BypassSubject(natsCache)}, subjects)
}

// What Serve says that it needs is enough, for who answers and for who asks.
func TestOps_Permissions(t *testing.T) {
	t.Parallel()
	for name, subscribe := range map[string][]string{
		"as documented": {"tidemark.v1." + natsCache + ".ops.>", "$SRV.>"},
		"without $SRV":  {"tidemark.v1." + natsCache + ".ops.>"},
	} {
		t.Run(name, func(t *testing.T) {
			s := natsServer(t, func(o *server.Options) {
				o.Users = []*server.User{
					{Username: "replica", Password: "secret", Permissions: &server.Permissions{
						Publish:   &server.SubjectPermission{Deny: []string{">"}},
						Subscribe: &server.SubjectPermission{Allow: subscribe},
						Response:  &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
					}},
					{Username: "operator", Password: "secret", Permissions: &server.Permissions{
						Publish:   &server.SubjectPermission{Allow: []string{"tidemark.v1." + natsCache + ".ops.>"}},
						Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
					}},
					{Username: "stranger", Password: "secret", Permissions: &server.Permissions{
						Publish:   &server.SubjectPermission{Deny: []string{"tidemark.>"}},
						Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
					}},
				}
			})
			replica := dial(t, s.ClientURL(), nats.UserInfo("replica", "secret"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			served(t, replica, "a", nil)
			operator := dial(t, s.ClientURL(), nats.UserInfo("operator", "secret"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			reports, err := ops.Ask(t.Context(), operator, natsCache)
			require.NoError(t, err)
			assert.Len(t, reports, 1)
			all, err := ops.AskKey(t.Context(), operator, natsCache, "k", false)
			require.NoError(t, err)
			assert.Len(t, all, 1)
			if name == "as documented" {
				require.NoError(t, replica.LastError())
			}
			stranger := dial(t, s.ClientURL(), nats.UserInfo("stranger", "secret"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			_, err = ops.Ask(t.Context(), stranger, natsCache)
			assert.ErrorIs(t, err, ops.ErrNobody)
		})
	}
}

// A View without a connection, or with a closed one, is refused.
func TestOps_ServeNeedsAConnection(t *testing.T) {
	cache, err := tidemark.New(tidemark.Options[string, string]{})
	require.NoError(t, err)
	defer cache.Close(t.Context())
	view, err := ops.New(cache, ops.Options[string, string]{Name: natsCache})
	require.NoError(t, err)
	_, err = view.Serve(nil)
	require.ErrorAs(t, err, new(*tidemark.OptionError))
	nc := dial(t, natsServer(t, nil).ClientURL())
	nc.Close()
	_, err = view.Serve(nc)
	require.ErrorIs(t, err, nats.ErrConnectionClosed)
}
