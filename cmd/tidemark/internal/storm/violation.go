package storm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Violation is a read that should not have been, and what led to it.
type Violation struct {
	What    string   `json:"what"`
	AtMs    float64  `json:"at_ms"` // when the read began, since the load did
	Replica int      `json:"replica"`
	Account int      `json:"account"`
	Moments []Moment `json:"moments"` // in order of time; the last is the read
}

// A Moment is a part of what led to a violation.
type Moment struct {
	AtMs float64 `json:"at_ms"`
	Text string  `json:"text"`
}

// violationOf says what is wrong with a read in words; nothing if the contender may be
// so.
func violationOf(v verdict, p promise, flagged bool) string {
	var what []string
	add := func(is bool, text string) {
		if is {
			what = append(what, text)
		}
	}
	add(v.unknown, "a value that nobody wrote")
	add(v.backward, "a step back")
	add(p.tideMark && v.belowMark && !v.backward, "below what the replica had been told")
	add(p.tideMark && v.undoubted, "not checked after the replica was told to doubt")
	add(p.beyond(v) && !p.counted && !flagged, fmt.Sprintf("beyond the stated bound of %v", p.maxStale))
	return strings.Join(what, ", ")
}

// keepFirst keeps a violation if its read began before those of all others.
func (r *run) keepFirst(before reading, v verdict, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first != nil && r.firstBegan <= before.began {
		return
	}
	r.firstBegan = before.began
	r.first = &Violation{
		What: what, AtMs: r.clock.ms(before.began), Replica: before.replica, Account: before.account,
		Moments: r.moments(before, v),
	}
}

// moments returns what led to a read, as far as it is remembered.
func (r *run) moments(before reading, v verdict) []Moment {
	var all []Moment
	add := func(at int64, format string, args ...any) {
		all = append(all, Moment{r.clock.ms(at), fmt.Sprintf(format, args...)})
	}
	if !v.unknown {
		for _, a := range r.oracle.around(before.account, v.version, before.newest.version) {
			if a.at <= before.began {
				add(a.at, "a client knows that version %d is committed", a.version)
			}
		}
		if r.promise.confirmed && v.overdue > 0 {
			add(before.began-int64(v.overdue), "the contender has confirmed a version above %d", v.version)
		}
	}
	if at, version := r.oracle.lastShown(before.replica, before.account); version > v.version && version == before.shown && at <= before.began {
		add(at, "replica %d returns version %d", before.replica, version)
	}
	if before.doubted > 0 {
		add(before.doubted-1, "replica %d is told that messages may be missing", before.replica)
	}
	slices.SortStableFunc(all, func(a, b Moment) int { return cmp.Compare(a.AtMs, b.AtMs) })
	text := fmt.Sprintf("replica %d returns version %d", before.replica, v.version)
	if v.unknown {
		text = fmt.Sprintf("replica %d returns a value that nobody is known to have committed", before.replica)
	}
	if v.stale {
		text += fmt.Sprintf(", stale for %v", v.staleFor.Round(100*time.Microsecond))
	}
	if !v.unknown && before.told > max(before.shown, v.version) {
		text += fmt.Sprintf(", though it had been told of version %d", before.told)
	}
	add(before.began, "%s", text)
	return all
}
