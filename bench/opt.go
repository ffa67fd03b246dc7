package main

import "container/heap"

// optimum returns the share of hits that no cache of this capacity can exceed, on
// a trace that it knows to the end: what is used farthest in the future is not
// kept (Belady). A key that misses need not be stored, as caches with an
// admission policy may decide too.
func optimum(trace []uint32, capacity int) float64 {
	next := nextUses(trace)
	kept := map[uint32]int32{} // key to the place of its next use
	var farthest places        // of all that is kept, and of some that was
	hits := 0
	for i, k := range trace {
		if _, ok := kept[k]; ok {
			hits++
			delete(kept, k)
		}
		if next[i] == never {
			continue
		}
		kept[k] = next[i]
		heap.Push(&farthest, next[i])
		for len(kept) > capacity {
			at := heap.Pop(&farthest).(int32)
			if have, ok := kept[trace[at]]; ok && have == at {
				delete(kept, trace[at])
			}
		}
	}
	return float64(hits) / float64(len(trace))
}

const never = -1

// nextUses returns for each access the place of the next one of its key.
func nextUses(trace []uint32) []int32 {
	next := make([]int32, len(trace))
	seen := map[uint32]int32{}
	for i := len(trace) - 1; i >= 0; i-- {
		next[i] = never
		if at, ok := seen[trace[i]]; ok {
			next[i] = at
		}
		seen[trace[i]] = int32(i)
	}
	return next
}

// places is a heap whose first element is the largest.
type places []int32

func (p places) Len() int           { return len(p) }
func (p places) Less(i, j int) bool { return p[i] > p[j] }
func (p places) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *places) Push(x any)        { *p = append(*p, x.(int32)) }
func (p *places) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	*p = (*p)[:last]
	return x
}
