package storm

import (
	"slices"
	"sync/atomic"
	"time"
)

// A Series is what happened when, in slices of equal length: the first begins with the
// load, and the last ends with the quiet time. What a slice has of a read belongs to the
// read's beginning.
type Series struct {
	SliceMs      float64   `json:"slice_ms"`
	LoadMs       float64   `json:"load_ms"` // how long the load took; then it was quiet
	Reads        []uint64  `json:"reads"`
	StaleReads   []uint64  `json:"stale_reads"`
	WorstStaleMs []float64 `json:"worst_stale_ms"`
	WrongReads   []uint64  `json:"wrong_reads"` // backward, beyond what is promised, or of a value that nobody wrote
	ReadErrors   []uint64  `json:"read_errors"`
	FlaggedReads []uint64  `json:"flagged_reads"` // said of themselves that they may be stale
	DBReads      []uint64  `json:"db_reads"`
}

// An Event is something that was done to the service.
type Event struct {
	Kind    string  `json:"kind"` // cut, freeze, stall, kill, reconcile or outage
	AtMs    float64 `json:"at_ms"`
	ForMs   float64 `json:"for_ms"`  // 0: it takes no time
	Replica int     `json:"replica"` // of cut, freeze and stall
	Text    string  `json:"text"`
}

// slicesAtMost bounds how many slices there are, whatever the storm's length.
const slicesAtMost = 250

// sliceLengths are those that a clock chooses from; a longer storm has slices of whole
// seconds.
var sliceLengths = []time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second,
}

// A clock divides a storm into slices. Times are the oracle's.
type clock struct {
	begin  int64 // of the load
	length time.Duration
	slices int
}

// newClock returns a clock for a load that begins now and takes so long, with the quiet
// time after it.
func newClock(now int64, total time.Duration) clock {
	c := clock{begin: now}
	for _, c.length = range sliceLengths {
		if total <= slicesAtMost*c.length {
			break
		}
	}
	if total > slicesAtMost*c.length {
		c.length = (total/slicesAtMost + time.Second).Truncate(time.Second)
	}
	c.slices = max(1, int((total+c.length-1)/c.length))
	return c
}

// slot returns the slice of a time: the last for what is later, which is what was
// under way when the storm ended.
func (c clock) slot(at int64) int {
	return min(max(0, int((at-c.begin)/int64(c.length))), c.slices-1)
}

// ms returns a time in milliseconds since the beginning of the load.
func (c clock) ms(at int64) float64 { return milliseconds(time.Duration(at - c.begin)) }

// A slice is what one reader saw in one slice of time, or all of them did.
type slice struct {
	reads, stale, wrong, failed, flagged uint64
	worst                                time.Duration
}

func (s *slice) add(t slice) {
	s.reads += t.reads
	s.stale += t.stale
	s.wrong += t.wrong
	s.failed += t.failed
	s.flagged += t.flagged
	s.worst = max(s.worst, t.worst)
}

// addSlices adds those of b to those of a, and returns a; either may be nil.
func addSlices(a, b []slice) []slice {
	if a == nil {
		return slices.Clone(b)
	}
	for i, s := range b {
		a[i].add(s)
	}
	return a
}

// A meter counts rows by the slice in which they are read. It is safe for concurrent use.
type meter struct {
	clock clock
	rows  []atomic.Uint64
}

func newMeter(c clock) *meter { return &meter{clock: c, rows: make([]atomic.Uint64, c.slices)} }

// add counts rows that are read at a time; none once the storm is over.
func (m *meter) add(at int64, rows int) {
	if at-m.clock.begin < int64(m.clock.length)*int64(m.clock.slices) {
		m.rows[m.clock.slot(at)].Add(uint64(rows))
	}
}

// series puts together what was counted.
func series(c clock, load time.Duration, all []slice, m *meter) Series {
	s := Series{SliceMs: milliseconds(c.length), LoadMs: milliseconds(load)}
	for i := range c.slices {
		var t slice
		if i < len(all) {
			t = all[i]
		}
		s.Reads = append(s.Reads, t.reads)
		s.StaleReads = append(s.StaleReads, t.stale)
		s.WorstStaleMs = append(s.WorstStaleMs, milliseconds(t.worst))
		s.WrongReads = append(s.WrongReads, t.wrong)
		s.ReadErrors = append(s.ReadErrors, t.failed)
		s.FlaggedReads = append(s.FlaggedReads, t.flagged)
		s.DBReads = append(s.DBReads, m.rows[i].Load())
	}
	return s
}

// An Outage is how a contender fared while its replicas could not reach the database.
type Outage struct {
	AtMs          float64 `json:"at_ms"`
	ForMs         float64 `json:"for_ms"`
	ReadsServed   uint64  `json:"reads_served"` // of those that began meanwhile
	ReadsFailed   uint64  `json:"reads_failed"`
	FlaggedReads  uint64  `json:"flagged_reads"`          // of those served
	DBReadsBefore float64 `json:"db_reads_before_per_s"`  // until it began
	DBReadsPeak   float64 `json:"db_reads_peak_per_s"`    // in the slice with the most, after it
	PeakAfterMs   float64 `json:"db_reads_peak_after_ms"` // how long after its end that slice began
}

// measureOutage adds what the series says of the database's reads. An outage that the
// load outlived has no slice after it, and no peak.
func measureOutage(o Outage, s Series) Outage {
	perSecond := 1000 / s.SliceMs
	before, after := int(o.AtMs/s.SliceMs), int((o.AtMs+o.ForMs)/s.SliceMs)
	var sum uint64
	for _, n := range s.DBReads[:min(before, len(s.DBReads))] {
		sum += n
	}
	if before > 0 {
		o.DBReadsBefore = float64(sum) / float64(before) * perSecond
	}
	for i := after; i < len(s.DBReads) && float64(i)*s.SliceMs < s.LoadMs; i++ {
		if rate := float64(s.DBReads[i]) * perSecond; rate > o.DBReadsPeak {
			o.DBReadsPeak, o.PeakAfterMs = rate, max(0, float64(i)*s.SliceMs-o.AtMs-o.ForMs)
		}
	}
	return o
}
