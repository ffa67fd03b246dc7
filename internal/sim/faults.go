package sim

import (
	"reflect"
	"strconv"
)

// Faults says how likely each fault is, in 1,000 of the occasions that there are
// for it. The zero value is a world without faults.
type Faults struct {
	Drag int // an answer takes long

	LoadFails, LoadPanics int
	BulkLacks             int // a key that was asked for
	WriteRefused          int // and the caller is told that it was not made
	WriteLost, WriteLate  int // and the caller is told nothing
	AnswerLost            int // of a write that was made
	OutcomeFails          int
	SourceDown            int

	AppendFails, AckLost, AppendTwice, LogCorrupt   int
	OpenFails, OpenElsewhere                        int
	ReaderFails, ReaderJumps                        int
	LogPauses, LogPurged, LogAnew                   int
	PublishFails                                    int
	HintLost, HintTwice, HintReordered, HintCorrupt int
	LinkCut, LinkDeaf                               int
	Crash, Restart, Suspend, ClockSet               int
	ClockSlow                                       int // in 1/100,000, and at most
	Evict, InvalidateAll                            int
}

// Swarm returns a random subset of the faults, each at a random rate: what is
// always there hides what needs its absence.
func Swarm(w *World) (f Faults) {
	if w.IntN(20) == 0 {
		return f
	}
	v := reflect.ValueOf(&f).Elem()
	for i := range v.NumField() {
		if w.IntN(100) < 18 {
			v.Field(i).SetInt(int64([]int{5, 20, 60, 150, 300}[w.IntN(5)]))
		}
	}
	return f
}

// String returns the faults that there are.
func (f Faults) String() string {
	s := ""
	v := reflect.ValueOf(f)
	for i := range v.NumField() {
		if n := v.Field(i).Int(); n > 0 {
			s += " " + v.Type().Field(i).Name + "=" + strconv.FormatInt(n, 10)
		}
	}
	return s
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
