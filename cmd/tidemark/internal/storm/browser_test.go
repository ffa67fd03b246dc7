package storm

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// browserVariable is the environment variable with the path of a Chromium to use.
const browserVariable = "TIDEMARK_CHROMIUM"

// findBrowser returns the Chromium of this machine. Tests that need one fail without it,
// and say what is missing.
func findBrowser() (string, error) {
	if set := os.Getenv(browserVariable); set != "" {
		return set, nil
	}
	for _, name := range []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("this test looks at the page in a real browser, and there is none: install one "+
		"(apt-get install chromium-headless-shell), or set %s to the path of a Chromium", browserVariable)
}

// A browser is a Chromium without a window and one page in it, driven by the DevTools
// protocol over a pipe.
type browser struct {
	t       *testing.T
	to      io.WriteCloser
	session string // of the page; empty: that of the browser itself

	mu      sync.Mutex // guards everything below
	id      int
	answers map[int]chan packet
	heard   []packet // that nobody has asked for
	ended   error    // why nothing more is heard
}

// A packet of the protocol: a call, its answer or an event.
type packet struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
}

// openBrowser starts a browser, which is gone at the end of the test.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	program, err := findBrowser()
	require.NoError(t, err)
	arguments := []string{
		"--headless", "--remote-debugging-pipe", "--user-data-dir=" + t.TempDir(), "--disable-gpu", "--hide-scrollbars",
		"--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
		"--disable-extensions", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
	}
	if os.Geteuid() == 0 { // it has no sandbox for root
		arguments = append(arguments, "--no-sandbox")
	}
	theirIn, ourOut, err := os.Pipe()
	require.NoError(t, err)
	ourIn, theirOut, err := os.Pipe()
	require.NoError(t, err)
	var complaints strings.Builder
	cmd := exec.Command(program, append(arguments, "about:blank")...)
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // it reads from 3 and writes to 4, and ends when they do
	cmd.Stderr = &complaints
	require.NoError(t, cmd.Start())
	require.NoError(t, errors.Join(theirIn.Close(), theirOut.Close()))
	b := &browser{t: t, to: ourOut, answers: map[int]chan packet{}}
	listening := make(chan struct{})
	go func() { defer close(listening); b.listen(ourIn) }()
	t.Cleanup(func() {
		_ = ourOut.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-listening
		_ = ourIn.Close()
		if t.Failed() {
			t.Logf("what the browser wrote:\n%s", complaints.String())
		}
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// listen hands on what comes, each packet of which ends with a zero byte.
func (b *browser) listen(from io.Reader) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		var m packet
		if err == nil {
			err = json.Unmarshal(text[:len(text)-1], &m)
		}
		b.mu.Lock()
		if err != nil {
			b.ended = err
			for _, answer := range b.answers {
				close(answer)
			}
			b.answers = nil
			b.mu.Unlock()
			return
		}
		if answer, asked := b.answers[m.ID]; asked && m.ID != 0 {
			delete(b.answers, m.ID)
			answer <- m
		} else {
			b.heard = append(b.heard, m)
		}
		b.mu.Unlock()
	}
}

// browserPatience is how long the browser may take for anything.
const browserPatience = time.Minute

// call calls a method, and reads its result into result, if not nil.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	if params == nil {
		params = map[string]any{}
	}
	text, err := json.Marshal(params)
	require.NoError(b.t, err)
	answer := make(chan packet, 1)
	b.mu.Lock()
	b.id++
	m := packet{ID: b.id, Session: b.session, Method: method, Params: text}
	ended := b.ended
	if ended == nil {
		b.answers[m.ID] = answer
	}
	b.mu.Unlock()
	require.NoError(b.t, ended, "the browser has ended")
	text, err = json.Marshal(m)
	require.NoError(b.t, err)
	_, err = b.to.Write(append(text, 0))
	require.NoError(b.t, err)
	select {
	case got, ok := <-answer:
		require.True(b.t, ok, "the browser has ended")
		require.Empty(b.t, string(got.Error), method)
		if result != nil {
			require.NoError(b.t, json.Unmarshal(got.Result, result))
		}
	case <-time.After(browserPatience):
		require.FailNow(b.t, method+" is not answered")
	}
}

// events returns the events that were heard so far of one kind.
func (b *browser) events(method string) (all []json.RawMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.heard {
		if m.Method == method {
			all = append(all, m.Params)
		}
	}
	return all
}

// show opens a file and waits until it has loaded.
func (b *browser) show(file string) {
	b.t.Helper()
	loaded := len(b.events("Page.loadEventFired"))
	b.call("Page.navigate", map[string]any{"url": "file://" + filepath.ToSlash(file)}, nil)
	for end := time.Now().Add(browserPatience); len(b.events("Page.loadEventFired")) == loaded; time.Sleep(5 * time.Millisecond) {
		require.True(b.t, time.Now().Before(end), "the page does not load")
	}
}

// size sets that of the window, in pixels.
func (b *browser) size(width, height int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
}

// media sets what the page is for, "screen" or "print", and which scheme its reader
// prefers, "light" or "dark".
func (b *browser) media(media, scheme string) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{
		"media": media, "features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
}

// eval reads the value of an expression in the page into result.
func (b *browser) eval(expression string, result any) {
	b.t.Helper()
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &got)
	require.Empty(b.t, string(got.ExceptionDetails), expression)
	require.NoError(b.t, json.Unmarshal(got.Result.Value, result), "%s", got.Result.Value)
}

// screenshot returns a picture of the whole page as PNG.
func (b *browser) screenshot() []byte {
	b.t.Helper()
	var got struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &got)
	picture, err := base64.StdEncoding.DecodeString(got.Data)
	require.NoError(b.t, err)
	return picture
}

// complaints returns what the page had to say that it should not, and whom it asked
// for anything.
func (b *browser) complaints(page string) (all []string) {
	for _, method := range []string{"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} {
		for _, e := range b.events(method) {
			all = append(all, method+" "+string(e))
		}
	}
	for _, e := range b.events("Network.requestWillBeSent") {
		var sent struct{ Request struct{ URL string } }
		require.NoError(b.t, json.Unmarshal(e, &sent))
		if url := sent.Request.URL; url != "file://"+filepath.ToSlash(page) {
			all = append(all, "request for "+url)
		}
	}
	return all
}
