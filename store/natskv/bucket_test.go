package natskv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// TestNew_ReportsAllMistakes needs no server: it is not asked.
func TestNew_ReportsAllMistakes(t *testing.T) {
	_, err := New(t.Context(), nil, Options[pair, int]{
		Bucket: "no.bucket",
		Value:  ValueCodec[int]{Decode: func([]byte) (int, error) { return 0, nil }},
	})
	require.Error(t, err)
	for _, field := range []string{"nc", "Bucket", "KeyCodec", "Value"} {
		assert.ErrorContains(t, err, "option "+field+" ")
	}
	require.ErrorAs(t, err, new(*tidemark.OptionError))
}

// suitable is the stream of a bucket that New accepts.
func suitable() *jetstream.StreamConfig {
	return &jetstream.StreamConfig{
		Storage: jetstream.FileStorage, MaxMsgsPerSubject: minHistory, AllowDirect: true, DenyDelete: true,
		Discard: jetstream.DiscardNew, MaxBytes: 1 << 20, MaxMsgs: -1, AllowRollup: true, Retention: jetstream.LimitsPolicy,
	}
}

func TestUnsuitable(t *testing.T) {
	require.Empty(t, unsuitable(suitable()))
	for want, change := range map[string]func(*jetstream.StreamConfig){
		"in memory":            func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"before it writes":     func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"history of 7":         func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = minHistory - 1 },
		"no direct get":        func(c *jetstream.StreamConfig) { c.AllowDirect = false },
		"single messages":      func(c *jetstream.StreamConfig) { c.DenyDelete = false },
		"TTL but no limit":     func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"TTL, under which":     func(c *jetstream.StreamConfig) { c.MaxAge, c.SubjectDeleteMarkerTTL = time.Hour, time.Hour },
		"without a marker":     func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true },
		"discarding keys":      func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"history is full":      func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true },
		"are consumed":         func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"mirror":               func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "x"} },
		"renames":              func(c *jetstream.StreamConfig) { c.SubjectTransform = &jetstream.SubjectTransformConfig{} },
		"counters":             func(c *jetstream.StreamConfig) { c.AllowMsgCounter = true },
		"acknowledges nothing": func(c *jetstream.StreamConfig) { c.NoAck = true },
		"sealed":               func(c *jetstream.StreamConfig) { c.Sealed = true },
	} {
		c := suitable()
		change(c)
		wrong := unsuitable(c)
		require.Len(t, wrong, 1, want)
		assert.ErrorContains(t, wrong.join(), want)
	}
	marked := suitable()
	marked.AllowMsgTTL, marked.SubjectDeleteMarkerTTL = true, time.Hour
	require.Empty(t, unsuitable(marked), "keys may expire if that leaves a marker")
}

func TestOldServer(t *testing.T) {
	for version, old := range map[string]bool{
		"2.15.0": false, "2.15.2": false, "2.16.0": false, "3.0.0": false, "2.15.0-RC.1": false,
		"2.14.9": true, "2.9.0": true, "1.99.0": true, "": true, "2": true, "dev": true,
	} {
		assert.Equal(t, old, oldServer(version), version)
	}
}

// TestBarrier_NobodyPassesWithAMessageFromBefore lets many come while a message
// is under way: they share the next.
func TestBarrier_NobodyPassesWithAMessageFromBefore(t *testing.T) {
	sent, release := make(chan uint64), make(chan struct{})
	next := uint64(0)
	b := barrier{append: func(context.Context) (uint64, error) {
		next++
		sent <- next
		<-release
		return next, nil
	}}
	var wg sync.WaitGroup
	wg.Go(func() {
		seq, err := b.pass(t.Context())
		assert.NoError(t, err)
		assert.EqualValues(t, 1, seq)
	})
	require.EqualValues(t, 1, <-sent)
	for range 20 {
		wg.Go(func() {
			seq, err := b.pass(t.Context())
			assert.NoError(t, err)
			assert.EqualValues(t, 2, seq, "with a message that was sent before it came")
		})
	}
	waiting := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.next != nil
	}
	require.Eventually(t, waiting, 10*time.Second, time.Millisecond)
	time.Sleep(20 * time.Millisecond) // until all have come
	release <- struct{}{}
	require.EqualValues(t, 2, <-sent)
	release <- struct{}{}
	wg.Wait()
	assert.EqualValues(t, 2, next)
}

func TestBarrier_Fails(t *testing.T) {
	failure := errors.New("no leader")
	b := barrier{append: func(context.Context) (uint64, error) { return 0, failure }}
	for range 3 {
		_, err := b.pass(t.Context())
		require.ErrorIs(t, err, failure)
	}
	hangs := barrier{append: func(ctx context.Context) (uint64, error) { <-ctx.Done(); return 0, ctx.Err() }}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := hangs.pass(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// answer is one message of an answer to a direct get of several.
func answer(subject string, seq, before uint64, more ...string) *nats.Msg {
	m := &nats.Msg{Header: nats.Header{}, Data: []byte("value")}
	for i := 0; i < len(more); i += 2 { // what the message had when it was stored
		m.Header.Add(more[i], more[i+1])
	}
	m.Header.Add(jetstream.StreamHeader, "KV_b")
	m.Header.Add(jetstream.SubjectHeader, subject)
	m.Header.Add(jetstream.SequenceHeader, fmt.Sprint(seq))
	m.Header.Add(jetstream.LastSequenceHeader, fmt.Sprint(before))
	return m
}

// ending ends an answer.
func ending(last, pending, includes uint64) *nats.Msg {
	m := &nats.Msg{Header: nats.Header{}}
	m.Header.Set("Status", "204")
	m.Header.Set(jetstream.LastSequenceHeader, fmt.Sprint(last))
	m.Header.Set("Nats-Num-Pending", fmt.Sprint(pending))
	m.Header.Set("Nats-UpTo-Sequence", fmt.Sprint(includes))
	return m
}

func takeAll(messages ...*nats.Msg) (p page, over bool, err error) {
	for _, m := range messages {
		if over, err = p.take(m, "KV_b", false); over || err != nil {
			break
		}
	}
	return p, over, err
}

func TestPage(t *testing.T) {
	p, over, err := takeAll(answer("a", 3, 0), answer("b", 7, 3), ending(7, 2, 9))
	require.NoError(t, err)
	require.True(t, over)
	assert.Len(t, p.found, 2)
	assert.EqualValues(t, 2, p.pending)
	assert.EqualValues(t, 9, p.includes)
	assert.True(t, p.found[0].live())
}

// TestPage_NothingIsLostOnTheWay drops each message of an answer: what is left
// must not pass for all of it.
func TestPage_NothingIsLostOnTheWay(t *testing.T) {
	all := []*nats.Msg{answer("a", 3, 0), answer("b", 7, 3), answer("c", 8, 7), ending(8, 0, 9)}
	for i := range 3 {
		lossy := append(append([]*nats.Msg{}, all[:i]...), all[i+1:]...)
		_, _, err := takeAll(lossy...)
		require.ErrorIs(t, err, errTorn, "without message %d", i)
	}
	_, over, err := takeAll(all[:3]...)
	require.NoError(t, err)
	require.False(t, over, "the end is still to come")
}

// TestPage_WhatWasStoredIsNotBelieved has messages that were stored with the
// headers of an answer, as by who copies them from another bucket.
func TestPage_WhatWasStoredIsNotBelieved(t *testing.T) {
	p, over, err := takeAll(
		answer("a", 3, 0, jetstream.SequenceHeader, "999", jetstream.SubjectHeader, "b", jetstream.StreamHeader, "KV_other", jetstream.LastSequenceHeader, "5"),
		answer("b", 7, 3, "Status", "204", "Nats-UpTo-Sequence", "1000"),
		answer("c", 8, 7, "Status", "404"),
		ending(8, 0, 9))
	require.NoError(t, err)
	require.True(t, over)
	require.Len(t, p.found, 3)
	assert.Equal(t, "a", p.found[0].subject)
	assert.EqualValues(t, 3, p.found[0].seq)
	assert.EqualValues(t, 9, p.includes)
}

func TestPage_AnswersOfOthers(t *testing.T) {
	mirror := answer("a", 3, 0)
	mirror.Header.Set(jetstream.StreamHeader, "KV_mirror")
	_, _, err := takeAll(mirror)
	require.ErrorContains(t, err, "KV_mirror")
	for status, want := range map[string]error{"404": errNotThere, "503": nats.ErrNoResponders} {
		m := &nats.Msg{Header: nats.Header{"Status": {status}}}
		_, over, err := takeAll(m)
		require.ErrorIs(t, err, want)
		require.True(t, over)
	}
	_, over, err := takeAll(&nats.Msg{Header: nats.Header{"Status": {"408"}, "Description": {"Bad Request"}}})
	require.ErrorContains(t, err, "Bad Request")
	require.True(t, over)
}

func TestPage_Markers(t *testing.T) {
	for operation, want := range map[string]bool{"": false, "PUT": false, "DEL": true, "PURGE": true} {
		p, _, err := takeAll(answer("a", 3, 0, "KV-Operation", operation))
		require.NoError(t, err)
		assert.Equal(t, want, p.found[0].marker, operation)
	}
	p, _, err := takeAll(answer("a", 3, 0, jetstream.MarkerReasonHeader, "MaxAge"))
	require.NoError(t, err)
	assert.False(t, p.found[0].live(), "what has expired is absent")
}

// TestPage_First has messages that prove that they are the first of their subject,
// and others.
func TestPage_First(t *testing.T) {
	const last, of = jetstream.ExpectedLastSubjSeqHeader, jetstream.ExpectedLastSubjSeqSubjHeader
	for want, all := range map[bool][][]string{
		true:  {{last, "0"}, {last, "0", "KV-Operation", "DEL"}},
		false: {{}, {last, "7"}, {last, ""}, {last, "7", last, "0"}, {last, "0", of, "b"}},
	} {
		for _, headers := range all {
			p, _, err := takeAll(answer("a", 3, 0, headers...))
			require.NoError(t, err)
			assert.Equal(t, want, p.found[0].first, "%v", headers)
		}
	}
}

func TestReachesBack(t *testing.T) {
	b := &bucket{history: 3}
	past := func(seqs ...uint64) (all []stored) {
		for _, s := range seqs {
			all = append(all, stored{seq: s, first: s == 5})
		}
		return all
	}
	for what, c := range map[string]struct {
		past    []stored
		d       doubt
		doubted bool
		want    bool
	}{
		"all of the key":              {past(5, 7), doubt{}, false, true},
		"full":                        {past(5, 7, 9), doubt{}, false, false},
		"full, and the base is there": {past(5, 7, 9), doubt{expected: 5}, true, true},
		"full, and the base is gone":  {past(5, 7, 9), doubt{expected: 4}, true, false},
		"full, of a creation":         {past(5, 7, 9), doubt{expected: 0}, true, false},
		"a creation":                  {past(5, 7), doubt{expected: 0}, true, true},
		"cut":                         {past(6, 7), doubt{}, false, false},
		"cut, and the base is there":  {past(6, 7), doubt{expected: 7}, true, true},
		"cut, and the base is gone":   {past(6, 7), doubt{expected: 3}, true, false},
		"cut, of a creation":          {past(6, 7), doubt{expected: 0}, true, false},
	} {
		assert.Equal(t, c.want, b.reachesBack(c.past, c.d, c.doubted), what)
	}
	assert.False(t, (&bucket{history: 0}).reachesBack(past(5), doubt{}, false), "a bucket in which some expire")
	assert.True(t, (&bucket{history: 0}).reachesBack(past(5), doubt{expected: 5}, true))
	assert.True(t, (&bucket{history: -1}).reachesBack(past(5, 7, 9), doubt{}, false), "a bucket that keeps everything")
	assert.False(t, (&bucket{history: -1}).reachesBack(past(6, 7, 9), doubt{}, false), "a bucket that kept everything")
}

func TestDoubts(t *testing.T) {
	var d doubts
	op := func(i int) (op tidemark.OpID) { op[0], op[1], op[2] = byte(i), byte(i>>8), byte(i>>16); return op }
	_, ok := d.find(op(0))
	require.False(t, ok)
	for i := range 5 * maxKept {
		d.begin(op(i), uint64(i))
	}
	assert.LessOrEqual(t, len(d.now)+len(d.old), 2*maxKept)
	for i := 4 * maxKept; i < 5*maxKept; i++ {
		one, ok := d.find(op(i))
		require.True(t, ok)
		require.EqualValues(t, i, one.expected)
	}
	last := op(5*maxKept - 1)
	d.settle(last)
	one, _ := d.find(last)
	assert.True(t, one.lost)
	d.end(last)
	_, ok = d.find(last)
	assert.False(t, ok)
	d.settle(last)
	_, ok = d.find(last)
	assert.False(t, ok, "of what is not in doubt nothing is kept")
}

// TestCertain lists what says that a message was not taken. Everything else is in
// doubt.
func TestCertain(t *testing.T) {
	api := func(code jetstream.ErrorCode, text string) error {
		return fmt.Errorf("nats: %w", &jetstream.APIError{ErrorCode: code, Description: text})
	}
	for _, err := range []error{
		jetstream.ErrNoStreamResponse, nats.ErrReconnectBufExceeded, nats.ErrMaxPayload,
		api(jetstream.JSErrCodeStreamMessageExceedsMaximum, ""), api(codeStoreFailed, "maximum bytes exceeded"),
	} {
		assert.True(t, certain(err), "%v", err)
	}
	for _, err := range []error{
		context.DeadlineExceeded, context.Canceled, nats.ErrConnectionClosed, nats.ErrTimeout, jetstream.ErrInvalidJSAck,
		api(codeStoreFailed, "no space left on device"), api(10008, "insufficient resources"),
	} {
		assert.False(t, certain(err), "%v", err)
	}
}

func TestMessageID(t *testing.T) {
	var op tidemark.OpID
	op[0] = 0xab
	id := messageID(op, "$KV.b.k")
	assert.True(t, strings.HasPrefix(id, "ab000000000000000000000000000000-"))
	assert.NotEqual(t, id, messageID(op, "$KV.b.l"), "one id, two keys")
}

// server is one of those that answer direct gets.
type server struct {
	includes uint64
	last     map[string]stored
}

func (s server) answer(r request) (p page, err error) {
	for _, subject := range r.MultiLast {
		if is, ok := s.last[subject]; ok && is.seq >= r.Seq {
			p.found = append(p.found, found{subject, is})
		}
	}
	p.includes = s.includes
	return p, nil
}

// askedOf is a bucket whose servers answer in turn.
func askedOf(servers ...server) *bucket {
	asked := 0
	b := &bucket{nc: &nats.Conn{}, prefix: "$KV.b.", closed: func() bool { return false }}
	b.ask = func(ctx context.Context, r request) (page, error) {
		if err := ctx.Err(); err != nil {
			return page{}, err
		}
		asked++
		return servers[(asked-1)%len(servers)].answer(r)
	}
	return b
}

// TestP21_AServerThatIsBehindIsNotBelieved asks two servers that are behind, and
// one that is not.
func TestP21_AServerThatIsBehindIsNotBelieved(t *testing.T) {
	behind := server{6, map[string]stored{"k": {seq: 5}}}
	empty := server{4, nil}
	current := server{8, map[string]stored{"k": {seq: 8}}}
	found, err := askedOf(behind, empty, behind, current).last(t.Context(), 7, []string{"k"})
	require.NoError(t, err)
	assert.EqualValues(t, 8, found["k"].seq)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = askedOf(behind, empty).last(ctx, 7, []string{"k"})
	require.ErrorIs(t, err, errBehind, "a read fails before it is old")
}

// TestLast_InPages has an answer that comes in two parts, of which the second is
// of a later moment.
func TestLast_InPages(t *testing.T) {
	var asked []request
	b := askedOf()
	b.ask = func(_ context.Context, r request) (page, error) {
		asked = append(asked, r)
		if len(asked) == 1 {
			return page{found: []found{{"a", stored{seq: 3}}, {"b", stored{seq: 5}}}, lastSeq: 5, pending: 1, includes: 9}, nil
		}
		return page{found: []found{{"c", stored{seq: 8}}, {"a", stored{seq: 11}}}, lastSeq: 11, includes: 12}, nil
	}
	got, err := b.last(t.Context(), 9, []string{"a", "b", "c"})
	require.NoError(t, err)
	assert.Equal(t, map[string]stored{"a": {seq: 11}, "b": {seq: 5}, "c": {seq: 8}}, got)
	assert.EqualValues(t, 6, asked[1].Seq)
	assert.EqualValues(t, 12, b.high.Load())
}

// TestLast_APageIsNotOlderThanTheOneBeforeIt has servers that are all beyond what is
// asked for, and at different moments. The key "late" had a value at all of them:
// message 30 as of message 60, and message 90 as of message 100.
func TestLast_APageIsNotOlderThanTheOneBeforeIt(t *testing.T) {
	asked := 0
	b := askedOf()
	b.ask = func(_ context.Context, r request) (page, error) {
		switch asked++; asked {
		case 1:
			return page{found: []found{{"early", stored{seq: 40}}}, lastSeq: 40, pending: 1, includes: 100}, nil
		case 2:
			return page{includes: 60}, nil // where "late" comes before what this page begins with
		}
		assert.EqualValues(t, 41, r.Seq)
		return page{found: []found{{"late", stored{seq: 90}}}, lastSeq: 90, includes: 100}, nil
	}
	got, err := b.last(t.Context(), 50, []string{"early", "late"})
	require.NoError(t, err)
	assert.Equal(t, map[string]stored{"early": {seq: 40}, "late": {seq: 90}}, got)
}

// TestPast_AServerThatIsBehindIsNotBelieved asks for a key's history.
func TestPast_AServerThatIsBehindIsNotBelieved(t *testing.T) {
	b := askedOf()
	asked := 0
	b.ask = func(_ context.Context, r request) (page, error) {
		switch asked++; asked {
		case 1:
			return page{}, errNotThere
		case 2:
			return page{found: []found{{"k", stored{seq: 5}}}, lastSeq: 5}, nil
		}
		all := []found{{"k", stored{seq: 5, data: []byte("x")}}, {"k", stored{seq: 8}}}
		return page{found: all[:min(r.Batch, 2)], lastSeq: 8}, nil
	}
	past, err := b.past(t.Context(), "k", 1, all, 8)
	require.NoError(t, err)
	assert.Equal(t, []stored{{seq: 5}, {seq: 8}}, past)
	past, err = b.past(t.Context(), "k", 1, 1, 8)
	require.NoError(t, err)
	assert.Equal(t, []stored{{seq: 5}}, past)
}

// TestCurrents_TheBucketIsKnownAgain has servers whose bucket is another, and one
// that was restored from an older state.
func TestCurrents_TheBucketIsKnownAgain(t *testing.T) {
	is := stored{seq: 2, data: []byte("id")}
	seq := uint64(10)
	open := func(id stored) *bucket {
		b := askedOf()
		b.ask = func(_ context.Context, r request) (page, error) {
			return server{seq, map[string]stored{"$KV.b.k": {seq: 7}, "$KV.b." + identityName: id}}.answer(r)
		}
		b.identity = mark{2, "id"}
		b.barrier.append = func(context.Context) (uint64, error) { seq++; return seq, nil }
		return b
	}
	found, err := open(is).current(t.Context(), "k")
	require.NoError(t, err)
	assert.EqualValues(t, 7, found.seq)
	for what, id := range map[string]stored{
		"none": {}, "a marker": {seq: 2, data: []byte("id"), marker: true}, "another": {seq: 2, data: []byte("di")},
		"the same, written later": {seq: 3, data: []byte("id")},
	} {
		b := open(id)
		_, err := b.current(t.Context(), "k")
		require.ErrorIs(t, err, ErrRecreated, what)
		b.identity = mark{id.seq, string(id.data)}
		_, err = b.current(t.Context(), "k")
		require.ErrorIs(t, err, ErrRecreated, "%s: for good", what)
	}
	b := open(is)
	b.see(1000)
	_, err = b.current(t.Context(), "k")
	require.ErrorIs(t, err, ErrRecreated, "its numbers went back")
}

// TestInFront lists what the server says of a message that it did not take because
// of another.
func TestInFront(t *testing.T) {
	for code, refused := range map[jetstream.ErrorCode]bool{
		jetstream.JSErrCodeStreamWrongLastSequence: true, jetstream.JSErrCodeStreamWrongLastSequenceConstant: true,
		codeDuplicate: true, 10008: false,
	} {
		err := fmt.Errorf("nats: %w", &jetstream.APIError{ErrorCode: code})
		assert.Equal(t, refused, inFront(err), code)
	}
	assert.False(t, inFront(context.DeadlineExceeded))
}

func TestReplies(t *testing.T) {
	r := replies{prefix: "_INBOX.x.", waiting: map[string]chan<- *nats.Msg{}}
	inbox, messages, forget, err := r.expect(2)
	require.NoError(t, err)
	other, others, _, err := r.expect(1)
	require.NoError(t, err)
	require.NotEqual(t, inbox, other)
	for range 3 { // of which one is too many
		r.deliver(&nats.Msg{Subject: inbox})
	}
	r.deliver(&nats.Msg{Subject: other})
	r.deliver(&nats.Msg{Subject: "_INBOX.x.nobody"})
	assert.Len(t, messages, 2)
	assert.Len(t, others, 1)
	forget()
	<-messages
	r.deliver(&nats.Msg{Subject: inbox})
	assert.Len(t, messages, 1)
	assert.Len(t, r.waiting, 1)
}

// TestRecall_OfAKeyWithoutMessages may mean that there never was one, or that all
// have expired.
func TestRecall_OfAKeyWithoutMessages(t *testing.T) {
	now := time.Now()
	for what, c := range map[string]struct {
		markers time.Duration
		d       doubt
		doubted bool
		want    bool
	}{
		"nothing expires":                           {0, doubt{}, false, true},
		"nothing expires, a creation":               {0, doubt{sent: now}, true, true},
		"nothing expires, an update":                {0, doubt{expected: 4, sent: now}, true, false},
		"some expire":                               {time.Minute, doubt{}, false, false},
		"some expire, a creation":                   {time.Minute, doubt{sent: now}, true, true},
		"some expire, and so would have its marker": {time.Minute, doubt{sent: now.Add(-time.Hour)}, true, false},
		"some expire, an update":                    {time.Minute, doubt{expected: 4, sent: now}, true, false},
	} {
		_, knows, err := (&bucket{markers: c.markers}).recall(t.Context(), "k", "id", stored{}, c.d, c.doubted)
		require.NoError(t, err)
		assert.Equal(t, c.want, knows, what)
	}
}
