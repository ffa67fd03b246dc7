package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// Purchases and deposits at both replicas, from many clients, while another program
// changes the same accounts by SQL: what was paid is gone, once, and no balance is
// ever below zero.
func TestMoneyIsConserved(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		const accounts, clients, each, initial = 3, 8, 15, 1_500
		s := start(t, "-store", store).ready()
		teller := newClient(t)
		for a := range accounts {
			status, body, _ := teller.post(s.replicas[0], fmt.Sprint("/accounts/", a, "/deposits"), fmt.Sprint(initial))
			require.Equal(t, 200, status, body)
		}
		var moved [accounts]atomic.Int64 // by purchases and deposits
		var bought, poor atomic.Int64
		var wg sync.WaitGroup
		for n := range clients {
			wg.Go(func() {
				c := newClient(t)
				for i := range each {
					a, replica := (n+i)%accounts, s.replicas[(n+i/2)%2]
					path, amount, sign := fmt.Sprint("/accounts/", a, "/purchases"), int64(100+n), int64(-1)
					if i%5 == 4 {
						path, sign = fmt.Sprint("/accounts/", a, "/deposits"), 1
					}
					switch status, body, _ := c.post(replica, path, fmt.Sprint(amount)); status {
					case http.StatusOK:
						moved[a].Add(sign * amount)
						bought.Add(1)
					case http.StatusPaymentRequired:
						poor.Add(1)
					case http.StatusConflict, http.StatusServiceUnavailable: // not made
					default: // also 202: nobody is in doubt here
						assert.Fail(t, "unexpected", "%d %s", status, body)
					}
					status, body, _ := c.get(replica, fmt.Sprint("/accounts/", a))
					assert.Equal(t, 200, status, body)
					assert.NotContains(t, body, "-", "a balance below zero")
				}
			})
		}
		job := newJob(t, store)
		const nights, interest = 10, 7
		for range nights {
			job.add(interest)
			time.Sleep(10 * time.Millisecond)
		}
		wg.Wait()
		for a := range accounts {
			for _, replica := range s.replicas {
				_, body, _ := teller.get(replica, fmt.Sprint("/accounts/", a, "?within=0s"))
				assert.Equal(t, initial+moved[a].Load()+nights*interest, balanceIn(t, body))
			}
		}
		assert.NotZero(t, bought.Load())
		assert.NotZero(t, poor.Load(), "the accounts are never empty")
	})
}

// A client with a cookie sees what it has written, at whichever replica, also where
// the account is in memory.
func TestSession_ReadsItsOwnWrites(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		s := start(t, "-store", store).ready()
		c, stranger := newClient(t), newClient(t)
		behind := 0
		for i := range 40 {
			here, there := s.replicas[i%2], s.replicas[(i+1)%2]
			stranger.get(there, "/accounts/alice") // so that it is in memory
			status, wrote, _ := c.post(here, "/accounts/alice/deposits", "5")
			require.Equal(t, 200, status)
			_, strange, _ := stranger.get(there, "/accounts/alice")
			status, read, _ := c.get(there, "/accounts/alice")
			require.Equal(t, []any{200, wrote}, []any{status, read}, "after %d deposits", i)
			if strange != wrote {
				behind++
			}
		}
		t.Logf("who has no cookie was behind %d times", behind)

		// A session that nobody can read has written nobody knows what.
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.replicas[0]+"/accounts/alice", nil)
		require.NoError(t, err)
		r.Header.Set("Cookie", sessionCookie+"=mine")
		loads := statsOf(t, s.replicas[0], "Loads")
		answer, err := stranger.Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Equal(t, 200, answer.StatusCode)
		assert.Greater(t, statsOf(t, s.replicas[0], "Loads"), loads)
	})
}

// What another program changes by SQL is heard by both replicas.
func TestNightly_IsHeardByBoth(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		s := start(t, "-store", store).ready()
		c, job := newClient(t), newJob(t, store)
		_, _, header := c.post(s.replicas[0], "/accounts/alice/deposits", "100")
		require.Equal(t, "1", header.Get("Balance-Version"))
		for night := range 10 {
			for _, replica := range s.replicas {
				c.get(replica, "/accounts/alice")
			}
			job.add(10)
			want := fmt.Sprintf(`{"balance":%d}`, 110+10*night)
			for _, replica := range s.replicas {
				require.Eventually(t, func() bool { _, body, _ := c.get(replica, "/accounts/alice"); return body == want },
					patience, 5*time.Millisecond, "not heard in night %d", night)
			}
		}
	})
}

// On PostgreSQL a read within a bound misses nothing that anybody has committed before
// that: the job tells no one, and the reader waits for nothing but the bound.
func TestWithin_HoldsAgainstTheDatabase(t *testing.T) {
	store := newPostgres(t)
	s := start(t, "-store", store).ready()
	c, job := newClient(t), newJob(t, store)
	c.post(s.replicas[0], "/accounts/alice/deposits", "100")
	fromMemory := 0
	for night := range 12 {
		job.add(10)
		committed := time.Now()
		want := int64(110 + 10*night)
		for time.Since(committed) < 250*time.Millisecond {
			for _, replica := range s.replicas {
				asked := time.Now()
				loads := statsOf(t, replica, "Loads")
				status, body, header := c.get(replica, "/accounts/alice?within=100ms")
				require.Equal(t, 200, status, body)
				age, err := time.ParseDuration(header.Get("Balance-Age"))
				require.NoError(t, err)
				assert.LessOrEqual(t, age, 100*time.Millisecond)
				if asked.Sub(committed) > 100*time.Millisecond {
					require.Equal(t, want, balanceIn(t, body), "%v after the commit", asked.Sub(committed))
				}
				if statsOf(t, replica, "Loads") == loads {
					fromMemory++
				}
			}
		}
	}
	assert.NotZero(t, fromMemory, "every read went to the database")
}

// The same where nobody relays: what memory has grows old, as it must, and the database
// is asked. Only who does not ask is served what memory has.
func TestWithin_WithoutARelay(t *testing.T) {
	store := newPostgres(t)
	s := start(t, "-store", store, "-relay=false").ready()
	c, job := newClient(t), newJob(t, store)
	c.post(s.replicas[0], "/accounts/alice/deposits", "100")
	for night := range 5 {
		replica := s.replicas[night%2]
		loaded := time.Now()
		_, before, _ := c.get(replica, "/accounts/alice?within=0s")
		job.add(10)
		_, old, _ := c.get(replica, "/accounts/alice")
		assert.True(t, old == before || time.Since(loaded) > maxStale, "somebody has told")
		time.Sleep(100 * time.Millisecond)
		_, body, _ := c.get(replica, "/accounts/alice?within=100ms")
		require.Equal(t, fmt.Sprintf(`{"balance":%d}`, 110+10*night), body)
	}
}

// A refusal is not decided on what memory has: nobody would notice that it is old.
func TestRefusal_IsConfirmedByTheDatabase(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		s := start(t, "-store", store).ready()
		c, job := newClient(t), newJob(t, store)
		c.post(s.replicas[0], "/accounts/alice/deposits", "100")
		for i := range 20 {
			replica := s.replicas[i%2]
			_, before, _ := c.get(replica, "/accounts/alice")
			job.add(50) // heard a moment later
			price := balanceIn(t, before) + 50
			status, body, _ := c.post(replica, "/accounts/alice/purchases", fmt.Sprint(price))
			require.Equal(t, []any{200, `{"balance":0}`}, []any{status, body}, "round %d: there were %d", i, price)
		}
		// The same for an account that memory knows not to exist.
		for i := range 20 {
			account := fmt.Sprint("/accounts/new", i)
			status, _, _ := c.get(s.replicas[0], account)
			require.Equal(t, 404, status)
			_, err := job.Exec(fmt.Sprintf(`INSERT INTO accounts (key, value, version) VALUES ('new%d', 70, 1)`, i))
			require.NoError(t, err)
			status, body, _ := c.post(s.replicas[0], account+"/purchases", "70")
			require.Equal(t, []any{200, `{"balance":0}`}, []any{status, body})
		}
	})
}

// A purchase at a version is made if that is the current one, and otherwise a conflict.
func TestPurchase_AtAVersion(t *testing.T) {
	onEachStore(t, func(t *testing.T, store string) {
		s := start(t, "-store", store).ready()
		c, job := newClient(t), newJob(t, store)
		c.post(s.replicas[0], "/accounts/alice/deposits", "100")
		buy := func(replica int, version, price any) (int, string, string) {
			status, body, header := c.post(s.replicas[replica], fmt.Sprint("/accounts/alice/purchases?version=", version), fmt.Sprint(price))
			return status, body, header.Get("Balance-Version")
		}
		status, body, version := buy(1, 1, 10)
		assert.Equal(t, []any{200, `{"balance":90}`, "2"}, []any{status, body, version})
		status, body, version = buy(0, 1, 10)
		assert.Equal(t, []any{409, `{"error":"the account has changed"}`, "2"}, []any{status, body, version})
		status, _, _ = buy(0, 1, 95)
		assert.Equal(t, 409, status, "decided on another version")
		status, _, _ = buy(0, 2, 91)
		assert.Equal(t, 402, status)
		status, _, version = buy(0, 7, 10)
		assert.Equal(t, []any{409, ""}, []any{status, version}, "nobody has seen version 7")

		// Memory has version 2, and that is no longer the account's.
		c.get(s.replicas[0], "/accounts/alice")
		job.add(1)
		status, _, _ = buy(0, 2, 10)
		assert.Equal(t, 409, status)
		_, body, _ = c.get(s.replicas[1], "/accounts/alice?within=0s")
		assert.Equal(t, `{"balance":91}`, body)
	})
}

// Two processes, of which the first has the nats-server. When it is gone the other goes
// on, and serves nothing that it cannot show to be current.
func TestTwoProcesses(t *testing.T) {
	store := newSQLite(t)
	one := start(t, "-store", store, "-listen", "127.0.0.1:0").ready()
	reload := start(t, "-store", store, "-listen", "127.0.0.1:0", "-nats", one.nats).ready()
	fail := start(t, "-store", store, "-listen", "127.0.0.1:0", "-nats", one.nats, "-on-stale", "fail").ready()
	c := newClient(t)
	c.post(one.replicas[0], "/accounts/alice/deposits", "100")
	for _, s := range []*service{one, reload, fail} {
		require.Eventually(t, func() bool {
			status, body, _ := c.get(s.replicas[0], "/accounts/alice?within=100ms")
			return status == 200 && body == `{"balance":100}`
		}, patience, 10*time.Millisecond)
	}

	one.stop()
	time.Sleep(150 * time.Millisecond) // so that what they have is older than 100ms
	status, body, _ := c.get(reload.replicas[0], "/accounts/alice?within=100ms")
	assert.Equal(t, []any{200, `{"balance":100}`}, []any{status, body}, "from the database")
	status, body, header := c.get(fail.replicas[0], "/accounts/alice?within=100ms")
	assert.Equal(t, []any{503, `{"error":"nothing recent enough"}`, "1"}, []any{status, body, header.Get("Retry-After")})
	status, _, _ = c.get(fail.replicas[0], "/accounts/alice?within=0s")
	assert.Equal(t, 200, status)

	// Nobody can tell them. For a while who does not ask for more is served what they
	// have; but not for ever.
	newJob(t, store).add(5)
	changed, served := time.Now(), ""
	for asked := changed; asked.Sub(changed) <= maxStale; {
		asked = time.Now()
		_, served, _ = c.get(reload.replicas[0], "/accounts/alice")
		time.Sleep(20 * time.Millisecond)
	}
	assert.Equal(t, `{"balance":105}`, served)
}

// A service without its database says so, and comes back with it.
func TestUnavailable(t *testing.T) {
	server := pgtest.Start(t)
	s := start(t, "-store", server.URL).ready()
	c := newClient(t)
	status, _, _ := c.post(s.replicas[0], "/accounts/alice/deposits", "100")
	require.Equal(t, 200, status)
	require.NoError(t, server.Stop())
	status, body, header := c.get(s.replicas[1], "/accounts/alice?within=0s")
	assert.Equal(t, []any{503, `{"error":"try again"}`, "1"}, []any{status, body, header.Get("Retry-After")})
	status, body, _ = c.post(s.replicas[1], "/accounts/alice/purchases", "10")
	assert.Equal(t, []any{503, `{"error":"try again"}`}, []any{status, body})
	require.NoError(t, server.Restart())
	require.Eventually(t, func() bool {
		status, body, _ = c.post(s.replicas[1], "/accounts/alice/purchases", "10")
		return status == 200
	}, patience, 50*time.Millisecond)
	assert.Equal(t, `{"balance":90}`, body)
}

// A purchase that is under way when the service is told to stop is made and answered.
func TestStop_AnswersWhatIsUnderWay(t *testing.T) {
	store := newSQLite(t)
	s := start(t, "-store", store).ready()
	c, job := newClient(t), newJob(t, store)
	c.post(s.replicas[0], "/accounts/alice/deposits", "100")
	release := job.lock()
	answered := make(chan string, 1)
	go func() {
		status, body, _ := c.post(s.replicas[0], "/accounts/alice/purchases", "10")
		answered <- fmt.Sprint(status, " ", body)
	}()
	require.Eventually(t, func() bool { return explained(t, s.replicas[0], "operations under way") }, patience, 5*time.Millisecond)
	s.cancel()
	s.says("msg=stopping replica=1")
	release()
	assert.Equal(t, `200 {"balance":90}`, <-answered)
	s.stop()
	assert.NotContains(t, s.output.String(), "level=ERROR")
}

// A purchase goes to its end, also if its client has hung up: it may be made, so it had
// better be.
func TestPurchase_OfAClientThatHangsUp(t *testing.T) {
	store := newSQLite(t)
	s := start(t, "-store", store).ready()
	c, job := newClient(t), newJob(t, store)
	c.post(s.replicas[0], "/accounts/alice/deposits", "100")
	release := job.lock()
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.replicas[0]+"/accounts/alice/purchases", strings.NewReader("10"))
	require.NoError(t, err)
	gone := make(chan error, 1)
	go func() { _, err := c.Do(r); gone <- err }()
	require.Eventually(t, func() bool { return explained(t, s.replicas[0], "operations under way") }, patience, 5*time.Millisecond)
	hangUp()
	require.ErrorIs(t, <-gone, context.Canceled)
	time.Sleep(50 * time.Millisecond) // until the server has noticed
	release()
	s.says(`route="POST /accounts/{account}/purchases" status=200`)
	_, body, _ := c.get(s.replicas[1], "/accounts/alice?within=0s")
	assert.Equal(t, `{"balance":90}`, body)
}

// Whoever asks for nonsense is told so.
func TestBadRequests(t *testing.T) {
	s := start(t, "-store", newSQLite(t)).ready()
	c := newClient(t)
	for _, r := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/accounts/alice", "", 404},
		{"POST", "/accounts/alice/purchases", "1", 404},
		{"GET", "/accounts/al%20ice", "", 400},
		{"GET", "/accounts/" + strings.Repeat("a", 65), "", 400},
		{"GET", "/accounts/alice?within=soon", "", 400},
		{"GET", "/accounts/alice?within=-1s", "", 400},
		{"POST", "/accounts/alice/deposits", "", 400},
		{"POST", "/accounts/alice/deposits", "0", 400},
		{"POST", "/accounts/alice/deposits", "-5", 400},
		{"POST", "/accounts/alice/deposits", "1.5", 400},
		{"POST", "/accounts/alice/deposits", strings.Repeat("1", 33), 400},
		{"POST", "/accounts/alice/purchases?version=0", "1", 400},
		{"POST", "/accounts/alice/purchases?version=new", "1", 400},
		{"POST", "/accounts/alice/deposits", "9223372036854775807", 200},
		{"POST", "/accounts/alice/deposits", "1", 422},
		{"DELETE", "/accounts/alice", "", 405},
	} {
		status, body, _ := c.do(r.method, s.replicas[0], r.path, r.body)
		assert.Equal(t, r.status, status, "%s %s %s: %s", r.method, r.path, r.body, body)
	}
	assert.NotContains(t, s.output.String(), "alice", "accounts are personal data")
}

func TestFlags(t *testing.T) {
	t.Chdir(t.TempDir()) // the default is a file here
	for _, args := range []string{"-on-stale never", "-listen", "now", "-nats-listen nowhere", "-store /nowhere/at/all.db"} {
		assert.Error(t, run(t.Context(), strings.Fields(args), t.Output()), args)
	}
	s := start(t, "-store", newSQLite(t))
	taken := run(t.Context(), []string{"-store", newSQLite(t), "-nats", s.nats, "-listen", s.replicas[0]}, t.Output())
	require.Error(t, taken)
	assert.Contains(t, taken.Error(), "address already in use")
}

// balanceIn returns the balance of an answer.
func balanceIn(t testing.TB, body string) int64 {
	t.Helper()
	text, found := strings.CutPrefix(strings.TrimSuffix(body, "}"), `{"balance":`)
	require.True(t, found, body)
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n
}
