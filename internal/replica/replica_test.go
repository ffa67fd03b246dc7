package replica

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFollower_TakesWhatIsContiguous(t *testing.T) {
	var f Follower
	assert.Zero(t, f.Open(), "a new one begins at the end")
	for seq := uint64(40); seq < 50; seq++ {
		apply, err := f.Take(seq, []byte{byte(seq)})
		require.NoError(t, err)
		assert.True(t, apply)
	}
	for _, seq := range []uint64{51, 49, 48, 0, math.MaxUint64} {
		g := f
		_, err := g.Take(seq, nil)
		assert.Error(t, err, seq)
	}
}

// S48, S49: after an interruption the message that was read last must come again,
// the very same, and is not applied twice.
func TestFollower_GoesOnByOverlap(t *testing.T) {
	var f Follower
	for seq := uint64(1); seq < 10; seq++ {
		_, err := f.Take(seq, []byte{byte(seq)})
		require.NoError(t, err)
	}
	require.EqualValues(t, 9, f.Open())
	for name, bad := range map[string]struct {
		seq uint64
		msg string
	}{"the next one": {10, "\x0a"}, "an older one": {8, "\x08"}, "another one": {9, "x"}, "the first of a new log": {1, "\x01"}} {
		g := f
		_, err := g.Take(bad.seq, []byte(bad.msg))
		require.Error(t, err, name)
		g.Reset()
		assert.Zero(t, g.Open(), "it gave up its place")
	}
	apply, err := f.Take(9, []byte{9})
	require.NoError(t, err)
	assert.False(t, apply)
	apply, err = f.Take(10, []byte{10})
	require.NoError(t, err)
	assert.True(t, apply)
	require.EqualValues(t, 10, f.Open())
	require.EqualValues(t, 10, f.Open(), "a reader that returned nothing changes nothing")
}

// Whatever logs are read, in whatever pieces: all that a Follower has taken
// without an error is one unbroken piece of one log.
func TestFollower_PropertyUnbroken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		logs := [][]byte{{1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 3, 9, 9, 9, 9, 9, 9, 9}}
		var f Follower
		var taken []byte // since the last Reset
		begin := uint64(0)
		for range rapid.IntRange(1, 8).Draw(t, "readers") {
			log := logs[rapid.IntRange(0, 1).Draw(t, "log")]
			from := f.Open()
			if from == 0 {
				from = uint64(rapid.IntRange(1, len(log)).Draw(t, "end"))
			}
			at := from + uint64(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "moved up"))
			for range rapid.IntRange(0, 5).Draw(t, "messages") {
				if at > uint64(len(log)) {
					break
				}
				apply, err := f.Take(at, log[at-1:at])
				if err != nil {
					f.Reset()
					taken = nil
					break
				}
				if apply {
					if len(taken) == 0 {
						begin = at
					}
					taken = append(taken, log[at-1])
				}
				at += uint64(rapid.SampledFrom([]int{1, 1, 1, 1, 2}).Draw(t, "step"))
			}
			whole := len(taken) == 0
			for _, l := range logs {
				if end := begin - 1 + uint64(len(taken)); len(taken) > 0 && end <= uint64(len(l)) {
					whole = whole || string(l[begin-1:end]) == string(taken)
				}
			}
			if !whole {
				t.Fatalf("%v from %d is in no log", taken, begin)
			}
		}
	})
}

func TestMark_TheLaterProofAndTheFasterClockCount(t *testing.T) {
	now := Moment{Mono: 1000, Lead: 50}
	for name, tt := range map[string]struct {
		mark   Mark
		proven int64
		want   time.Duration
	}{
		"nothing is known":                    {Mark{Never, 50, 0}, Never, -1},
		"the load":                            {Mark{Never, 50, 0}, 700, 300},
		"the mark is later":                   {Mark{900, 50, 0}, 700, 100},
		"the load is later":                   {Mark{700, 50, 0}, 900, 100},
		"the wall clock has gained":           {Mark{900, 0, 0}, 700, 150},
		"the wall clock has lost":             {Mark{900, 5000, 0}, 700, 100},
		"no mark looks at no wall clock":      {NoMark, 900, 100},
		"no mark and nothing":                 {NoMark, Never, -1},
		"proven later than now, on this core": {NoMark, 1001, 0},
		"proven before the mark vouches":      {Mark{900, 50, 701}, 700, 300},
		"proven when the mark begins to":      {Mark{900, 50, 700}, 700, 100},
	} {
		assert.Equal(t, tt.want, tt.mark.Age(tt.proven, now), name)
	}
	assert.Equal(t, time.Duration(0), At(now).Age(now.Mono, now))
}

func TestMark_Alone(t *testing.T) {
	now := Moment{Mono: 1000, Lead: 50}
	for name, tt := range map[string]struct {
		mark Mark
		want time.Duration
	}{
		"nothing is known":      {Mark{Never, 50, 0}, -1},
		"the mark":              {Mark{900, 50, 0}, 100},
		"the wall clock gained": {Mark{900, 0, 0}, 150},
		"it does not vouch yet": {Mark{900, 50, 901}, -1},
		"it vouches from now":   {Mark{900, 50, 900}, 100},
	} {
		assert.Equal(t, tt.want, tt.mark.Alone(now), name)
		assert.Equal(t, tt.mark.Mono == Never, tt.mark.Elapsed(now) < 0, name)
	}
}

func TestFresh_AHoldIsOverWhenTheLastOneIs(t *testing.T) {
	var f Fresh
	f.Reset(0)
	f.Hold(100)
	f.Hold(50)
	f.Advance(Moment{Mono: 60})
	assert.EqualValues(t, -1, f.Mark().Alone(Moment{Mono: 60}))
	assert.EqualValues(t, 40, f.Mark().Age(40, Moment{Mono: 80}), "proven before it was over")
	f.Reset(0)
	f.Advance(Moment{Mono: 100})
	assert.EqualValues(t, 10, f.Mark().Age(100, Moment{Mono: 110}))
	assert.EqualValues(t, 10, f.Mark().Alone(Moment{Mono: 110}))
}

func TestSince(t *testing.T) {
	began := time.Now()
	m := Since(began, began.Add(time.Second))
	assert.Equal(t, Moment{Mono: int64(time.Second)}, m)
	suspended := time.Unix(0, began.UnixNano()).Add(time.Hour) // no monotonic reading: the wall clock's alone
	assert.Equal(t, int64(time.Hour), suspended.UnixNano()-began.UnixNano())
}

// A reader never gets a mark with the lead of an earlier one.
func TestFresh_LeadIsNeverOlderThanItsMark(t *testing.T) {
	var f Fresh
	f.Reset(0)
	assert.EqualValues(t, Never, f.Mark().Mono)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				m := f.Mark()
				if m.Mono != Never && m.lead < m.Mono {
					t.Errorf("mark %d with the lead of %d", m.Mono, m.lead)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	last := int64(0)
	for began := time.Now(); time.Since(began) < 300*time.Millisecond && !t.Failed(); { // what it shows is a matter of chance
		for range 1000 {
			last++
			f.Advance(Moment{Mono: last, Lead: last})
		}
	}
	close(done)
	wg.Wait()
	f.Advance(Moment{Mono: 5, Lead: 7})
	assert.Equal(t, last, f.Mark().Mono, "it does not go back")
}

func TestProbes(t *testing.T) {
	var p Probes
	_, ok := p.Back(0)
	assert.False(t, ok)
	first := p.Send(Moment{Mono: 10})
	second := p.Send(Moment{Mono: 20})
	_, ok = p.Back(second + 1)
	assert.False(t, ok, "it was never sent")
	at, ok := p.Back(first)
	assert.True(t, ok)
	assert.EqualValues(t, 10, at.Mono)
	_, ok = p.Back(first)
	assert.False(t, ok, "it comes again")
	p.Void()
	_, ok = p.Back(second)
	assert.False(t, ok, "it was sent before the hole")
	third := p.Send(Moment{Mono: 30})
	for range pending - 1 {
		p.Send(Moment{Mono: 40})
	}
	at, ok = p.Back(third)
	assert.True(t, ok)
	assert.EqualValues(t, 30, at.Mono)
	fourth := third + 1
	p.Send(Moment{Mono: 50})
	p.Send(Moment{Mono: 50})
	p.Send(Moment{Mono: 50})
	at, ok = p.Back(fourth)
	assert.True(t, ok, "the oldest that was pushed out is remembered")
	assert.EqualValues(t, 40, at.Mono)
	_, ok = p.Back(fourth + 1)
	assert.False(t, ok, "and no other")
	_, ok = p.Back(fourth + 2)
	assert.True(t, ok, "its place is still its own")
}

// A probe that is not remembered any more proves what an older one would have, which
// was merged into it on the way.
func TestProbes_ALaterOneProvesTheOldest(t *testing.T) {
	var p Probes
	for i := range int64(2 * pending) {
		p.Send(Moment{Mono: i})
	}
	require.EqualValues(t, 1, p.oldest.nonce)
	_, ok := p.Back(2*pending + 1)
	assert.False(t, ok, "it was never sent")
	at, ok := p.Back(5)
	assert.True(t, ok)
	assert.EqualValues(t, 0, at.Mono, "of the oldest")
	_, ok = p.Back(6)
	assert.False(t, ok, "it proves something once")
	p.Send(Moment{Mono: 1000})
	p.Void()
	_, ok = p.Back(pending + 1)
	assert.False(t, ok, "the oldest was sent before the hole")
}

// Of probes that wait to be sent only the latest is. If the one that is remembered
// beyond the others was not, the next that is pushed out takes its place.
func TestProbes_OneThatWasNeverSent(t *testing.T) {
	var p Probes
	var sent []uint64
	for i := range int64(4 * pending) {
		if nonce := p.Send(Moment{Mono: i}); nonce > 1 {
			sent = append(sent, nonce)
		}
	}
	proofs := 0
	for i, nonce := range sent { // each comes back when as many more have been sent as are remembered
		if _, ok := p.Back(nonce); ok {
			proofs++
		}
		p.Send(Moment{Mono: int64(5*pending + i)})
	}
	assert.Positive(t, proofs)
}

// Nobody else makes nonces, and they rise with their numbers.
func TestSeal(t *testing.T) {
	s, other := NewSeal(), NewSeal()
	last := uint64(0)
	for number := uint64(1); number < 1000; number++ {
		nonce := s.Nonce(number)
		assert.Greater(t, nonce, last)
		last = nonce
		got, own := s.Number(nonce)
		assert.True(t, own)
		assert.Equal(t, number, got)
		_, own = s.Number(nonce ^ 1)
		assert.False(t, own)
		_, own = s.Number(nonce ^ 1<<proofBits)
		assert.False(t, own)
		_, own = s.Number(number)
		assert.False(t, own)
	}
	theirs := 0
	for number := range uint64(1000) {
		if _, own := other.Number(s.Nonce(number)); own {
			theirs++
		}
	}
	assert.LessOrEqual(t, theirs, 1, "2^-28 each")
	far := uint64(1)<<36 - 1
	got, own := s.Number(s.Nonce(far))
	assert.True(t, own)
	assert.Equal(t, far, got)
	_, own = s.Number(math.MaxUint64)
	assert.False(t, own && s.Nonce(far) != math.MaxUint64)
}

// The keys that are remembered have a bound in bytes, and make room when they go.
func TestIntents_BytesAreBounded(t *testing.T) {
	var in Intents[string]
	const size = 1 << 20
	op := func(i int) [16]byte { return [16]byte{1, byte(i), byte(i >> 8)} }
	for i := range maxIntentBytes / size {
		begun, full := in.Begin(op(i), "k", size, int64(10+i))
		require.True(t, begun && !full, i)
	}
	begun, full := in.Begin(op(1000), "k", 1, 10)
	assert.True(t, !begun && full)
	_, ok := in.End(op(5))
	require.True(t, ok)
	begun, full = in.Begin(op(1000), "k", size, 10)
	assert.True(t, begun && !full)
	assert.Len(t, in.Lapse(10), 2)
	begun, full = in.Begin(op(1001), "k", 2*size, 10)
	assert.True(t, begun && !full)
}
