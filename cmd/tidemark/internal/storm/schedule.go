package storm

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// A faultKind is something that happens to the service at a scheduled moment.
type faultKind uint8

const (
	faultCut       faultKind = iota // a replica's connection is reset and refused
	faultFreeze                     // a replica's network stops without an error
	faultStall                      // a replica's consumer stops reading
	faultKill                       // a writer dies between commit and publish
	faultReconcile                  // rows change behind everybody's back
	faultOutage                     // no replica can reach the database
)

func (k faultKind) String() string {
	return [...]string{"cut", "freeze", "stall", "kill", "reconcile", "outage"}[k]
}

// A fault is one scheduled event. The schedule depends on the seed alone, so
// every contender meets the same one.
type fault struct {
	kind    faultKind
	at      time.Duration // since the load began
	length  time.Duration // zero for what happens at once
	replica int           // of cut, freeze and stall
}

func (f fault) String() string {
	switch f.kind {
	case faultCut:
		return fmt.Sprintf("replica %d is cut off for %v", f.replica, f.length)
	case faultFreeze:
		return fmt.Sprintf("the network of replica %d freezes for %v", f.replica, f.length)
	case faultStall:
		return fmt.Sprintf("the consumer of replica %d stalls for %v", f.replica, f.length)
	case faultKill:
		return "a writer is killed between commit and publish"
	case faultOutage:
		return fmt.Sprintf("the database is gone for %v", f.length)
	default:
		return "the overnight reconciliation runs"
	}
}

// The faults fall between these parts of the load, so that the caches are warm
// before the first and readers still meet the damage of the last.
const (
	faultsFrom = 0.20
	faultsTo   = 0.85
)

// streams of random numbers that are drawn from one seed
const (
	streamFaults uint64 = iota + 1
	streamReconcile
	streamKills
	streamLinks   // + replica
	streamReaders = 1 << 20
	streamWriters = 2 << 20
	streamQuiet   = 5 << 20
)

// schedule returns the faults of c in the order of their time: one in each of
// as many equal parts of the load as there are faults, shuffled.
func schedule(c Config) []fault {
	rng := rand.New(rand.NewPCG(c.Seed, streamFaults))
	var faults []fault
	add := func(n int, kind faultKind, length time.Duration) {
		first := rng.IntN(c.Replicas)
		for i := range n {
			faults = append(faults, fault{kind: kind, length: length, replica: (first + i) % c.Replicas})
		}
	}
	add(c.Cuts, faultCut, c.CutFor)
	add(c.Freezes, faultFreeze, c.FreezeFor)
	add(c.Stalls, faultStall, c.StallFor)
	add(c.Kills, faultKill, 0)
	if c.Reconcile > 0 {
		add(1, faultReconcile, 0)
	}
	rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	window := float64(c.Duration)*(faultsTo-faultsFrom) - float64(c.DatabaseOutage)
	for i := range faults {
		part := window / float64(len(faults))
		faults[i].at = time.Duration(float64(c.Duration)*faultsFrom + part*(float64(i)+rng.Float64()))
	}
	if c.DatabaseOutage > 0 {
		faults = withOutage(faults, c, time.Duration(window))
	}
	slices.SortFunc(faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return faults
}

// withOutage puts the outage into the middle of the window in which the other faults
// are, and those that came after its beginning behind it.
func withOutage(faults []fault, c Config, window time.Duration) []fault {
	at := time.Duration(float64(c.Duration)*faultsFrom) + window/2
	for i := range faults {
		if faults[i].at >= at {
			faults[i].at += c.DatabaseOutage
		}
	}
	return append(faults, fault{kind: faultOutage, at: at, length: c.DatabaseOutage})
}

// accountsDrawn is the length of the sequence of accounts that one worker
// repeats. Drawing it beforehand keeps the generator out of what is measured.
const accountsDrawn = 1 << 15

// drawAccounts returns the accounts that the worker of the given random stream
// visits, Zipf-distributed; account 0 is the hottest.
func drawAccounts(c Config, stream uint64, n int) []uint32 {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(c.Seed, stream)), c.Skew, 1, uint64(c.Accounts-1))
	accounts := make([]uint32, n)
	for i := range accounts {
		accounts[i] = uint32(zipf.Uint64())
	}
	return accounts
}

// drawDistinct returns up to n different accounts, drawn as drawAccounts draws
// them, in ascending order.
func drawDistinct(c Config, stream uint64, n int) []int {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(c.Seed, stream)), c.Skew, 1, uint64(c.Accounts-1))
	chosen := make(map[int]struct{}, n)
	for tries := 0; len(chosen) < n && tries < 20*n; tries++ {
		chosen[int(zipf.Uint64())] = struct{}{}
	}
	accounts := make([]int, 0, len(chosen))
	for a := range chosen {
		accounts = append(accounts, a)
	}
	slices.Sort(accounts)
	return accounts
}
