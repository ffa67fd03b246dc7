package storm

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A history writes the past of account 0 into an oracle. A version is one above
// its op.
type history struct {
	*oracle
}

func newHistory() history { return history{newOracle(2, 2)} }

// commit makes the next write, known to the database and to nobody else.
func (h history) commit() (op uint64) {
	op = h.beginWrite(0)
	h.committed(0, op, op+1)
	return op
}

// write makes the next write, acknowledged at the given time.
func (h history) write(at int64) (op uint64) {
	op = h.commit()
	h.acknowledge(0, op, at)
	return op
}

// read begins and ends a read on replica at the given time.
func (h history) read(replica int, at int64, op uint64) verdict {
	r := h.beginRead(replica, 0)
	r.began = at
	return h.endRead(r, op)
}

func TestOracleAcceptsWhatIsTrue(t *testing.T) {
	h := newHistory()
	assert.Equal(t, verdict{version: 1}, h.read(0, 5, 0), "the opening balance")
	op := h.write(10)
	assert.Equal(t, verdict{version: 2}, h.read(0, 20, op), "the newest version")
	assert.Equal(t, verdict{version: 2}, h.read(1, 20, op), "on another replica")
	newer := h.commit()
	assert.Equal(t, verdict{version: 3}, h.read(0, 30, newer), "a version that is committed but not acknowledged")
	assert.Equal(t, verdict{version: 2}, h.read(1, 30, op), "one commit behind, but nobody was told of it")
}

func TestOracleFlagsAStaleReadAndMeasuresIt(t *testing.T) {
	h := newHistory()
	h.write(10)
	h.write(40)
	v := h.read(0, 100, 0)
	assert.True(t, v.stale)
	assert.Equal(t, time.Duration(90), v.staleFor, "since the oldest newer version was acknowledged, not the newest")
	v = h.read(0, 100, 1)
	assert.True(t, v.stale)
	assert.Equal(t, time.Duration(60), v.staleFor)
	assert.False(t, h.read(0, 100, 2).stale)
}

func TestOracleCountsFromWhatWasConfirmed(t *testing.T) {
	h := newHistory()
	killed := h.write(10)
	v := h.read(0, 100, 0)
	assert.True(t, v.stale)
	assert.Zero(t, v.overdue, "acknowledged to the world, but confirmed to nobody")

	told := h.write(20)
	h.confirm(0, told, 50)
	v = h.read(0, 100, 0)
	assert.Equal(t, time.Duration(90), v.staleFor)
	assert.Equal(t, time.Duration(50), v.overdue)
	assert.Equal(t, time.Duration(50), h.read(0, 100, killed).overdue)
	assert.Zero(t, h.read(0, 100, told).overdue)
	assert.Zero(t, h.read(1, 40, 0).overdue, "a read that began before")

	h.confirm(0, killed, 60)
	h.confirm(0, h.write(70), 90)
	assert.Equal(t, time.Duration(50), h.read(1, 100, 0).overdue, "since the oldest newer version")
	assert.Equal(t, time.Duration(10), h.read(1, 100, told).overdue)

	h.confirm(0, h.beginWrite(0), 95)
	assert.Zero(t, h.read(1, 100, told+1).overdue, "what the database does not have is not confirmed here")
}

func TestOracleKnowsAcknowledgementsThatArriveOutOfOrder(t *testing.T) {
	h := newHistory()
	first, second := h.commit(), h.commit()
	h.acknowledge(0, second, 10)
	h.acknowledge(0, first, 20)
	v := h.read(0, 15, 0)
	assert.True(t, v.stale)
	assert.Equal(t, time.Duration(5), v.staleFor)
	v = h.read(0, 30, first)
	assert.True(t, v.stale, "the second was acknowledged before the read, whatever happened to the first")
	assert.Equal(t, time.Duration(20), v.staleFor)
}

func TestOracleDoesNotCallAConcurrentReadStale(t *testing.T) {
	h := newHistory()
	r := h.beginRead(0, 0)
	h.write(10)
	assert.Equal(t, verdict{version: 1}, h.endRead(r, 0))
}

func TestOracleFlagsAReadThatGoesBackward(t *testing.T) {
	h := newHistory()
	op := h.commit()
	overlapping := h.beginRead(0, 0)
	require.Equal(t, verdict{version: 2}, h.read(0, 0, op))

	v := h.read(0, 0, 0)
	assert.True(t, v.backward, "an earlier completed read on this replica had shown the newer version")
	assert.True(t, v.belowMark)
	assert.False(t, v.stale, "nobody was told of the newer version")

	assert.False(t, h.endRead(overlapping, 0).backward, "it began before the newer version was shown")
	assert.False(t, h.read(1, 0, 0).backward, "on another replica")
}

func TestOracleFlagsAReadBelowWhatTheReplicaWasTold(t *testing.T) {
	h := newHistory()
	h.write(10)
	op := h.write(20)
	before := h.beginRead(0, 0)
	h.heard(0, 0, 3)
	h.heard(0, 0, 2)
	assert.True(t, h.read(0, 30, 1).belowMark, "an older message must not lower the mark")
	assert.False(t, h.read(0, 30, op).belowMark)
	assert.False(t, h.endRead(before, 1).belowMark, "it began before the replica was told")
	assert.False(t, h.read(1, 30, 1).belowMark, "the other replica was not told")
}

func TestOracleFlagsAnEntryThatWasNotCheckedAfterDoubt(t *testing.T) {
	h := newHistory()
	h.write(10)
	assert.False(t, h.read(0, 15, 0).undoubted, "nobody has told the replica to doubt")
	before := h.beginRead(0, 0)
	h.doubt(0, 20)
	h.doubt(0, 12)
	assert.True(t, h.read(0, 30, 0).undoubted, "version 2 was acknowledged before the doubt")
	assert.False(t, h.endRead(before, 0).undoubted, "it began before the doubt")
	assert.False(t, h.read(1, 30, 0).undoubted, "the other replica may trust")

	h.write(25)
	v := h.read(0, 30, 1)
	assert.True(t, v.stale)
	assert.False(t, v.undoubted, "version 3 came after the doubt: a check may have missed it")
}

func TestOracleFlagsValuesThatNobodyCommitted(t *testing.T) {
	h := newHistory()
	assert.True(t, h.read(0, 0, 7).unknown, "an op that was never begun")
	op := h.beginWrite(0)
	h.abandoned(0, op)
	assert.True(t, h.read(0, 0, op).unknown, "a write that failed")

	committed := h.commit()
	h.abandoned(0, committed)
	assert.False(t, h.read(0, 0, committed).unknown, "the database's word counts")
}

func TestOracleDoesNotAcknowledgeWhatTheDatabaseDoesNotHave(t *testing.T) {
	h := newHistory()
	op := h.beginWrite(0)
	h.acknowledge(0, op, 10)
	_, ok := h.isCommitted(0, op)
	assert.False(t, ok)
	assert.False(t, h.read(0, 20, 0).stale)
}

func TestOracleWaitsForAVersionThatIsOnItsWay(t *testing.T) {
	h := newHistory()
	op := h.beginWrite(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(2 * time.Millisecond)
		h.committed(0, op, 2)
	})
	assert.Equal(t, verdict{version: 2}, h.read(0, 0, op))
	wg.Wait()

	stuck := h.beginWrite(0)
	assert.True(t, h.read(0, 0, stuck).unknown, "but not for ever")
}

func TestOracleForgetsWithoutAccusingWrongly(t *testing.T) {
	h := newHistory()
	for i := range int64(3 * historyLimit) {
		h.confirm(0, h.write(i), i)
	}
	r := &h.records[0]
	require.LessOrEqual(t, len(r.versions), historyLimit)
	require.LessOrEqual(t, len(r.acks), historyLimit)
	require.LessOrEqual(t, len(r.confirmations), historyLimit)

	const now = 3 * historyLimit
	for range 2 {
		v := h.read(0, now, 5)
		assert.True(t, v.stale)
		assert.Positive(t, v.staleFor)
		assert.Equal(t, v.staleFor, v.overdue)
		assert.False(t, v.backward, "the same old value twice is no step back")
	}
	newest := uint64(3 * historyLimit)
	assert.Equal(t, verdict{version: newest + 1}, h.read(0, now, newest))
	assert.True(t, h.read(0, now, 5).backward, "older than all that are remembered is older than the newest")
}

func TestOracleKnowsTheNewestVersionThatWasAnnounced(t *testing.T) {
	h := newHistory()
	assert.EqualValues(t, 1, h.newestBut(0, nil))
	h.commit()
	h.commit()
	assert.EqualValues(t, 3, h.newestBut(0, nil))
	assert.EqualValues(t, 2, h.newestBut(0, func(v uint64) bool { return v == 3 }))
	h.beginWrite(0)
	assert.EqualValues(t, 3, h.newestBut(0, nil), "a write that has only begun has no version")
}

// A reader that never sees a version go back must never be accused, whatever
// the interleaving.
func TestOracleAccusesNobodyOfARealRegister(t *testing.T) {
	o := newOracle(1, 1)
	var mu sync.Mutex // guards register
	var register uint64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for range 2000 {
				op := o.beginWrite(0)
				mu.Lock()
				v, _ := o.isCommitted(0, register)
				o.committed(0, op, max(v, openingVersion)+1)
				register = op
				mu.Unlock()
				o.acknowledge(0, op, o.now())
				o.heard(0, 0, func() uint64 { v, _ := o.isCommitted(0, op); return v }())
			}
		})
	}
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := o.beginRead(0, 0)
				mu.Lock()
				op := register
				mu.Unlock()
				v := o.endRead(r, op)
				if !assert.Equal(t, verdict{version: v.version}, v) {
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
}
