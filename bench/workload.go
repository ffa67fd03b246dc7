package main

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"sort"
	"strings"
)

// A zipf draws ranks from 0 to n-1 with probability proportional to
// 1/(rank+1)^s, for any s from 0 on.
type zipf struct {
	cumulative []float64
	rng        *rand.Rand
}

func newZipf(n int, s float64, rng *rand.Rand) *zipf {
	z := &zipf{make([]float64, n), rng}
	sum := 0.0
	for i := range z.cumulative {
		sum += math.Pow(float64(i+1), -s)
		z.cumulative[i] = sum
	}
	return z
}

func (z *zipf) draw() uint32 {
	x := z.rng.Float64() * z.cumulative[len(z.cumulative)-1]
	return uint32(sort.SearchFloat64s(z.cumulative, x))
}

// newRand returns a source that gives the same numbers in every run.
func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 20261122)) }

// zipfTrace returns n accesses to so many keys.
func zipfTrace(n, keys int, s float64) []uint32 {
	z := newZipf(keys, s, newRand(1))
	t := make([]uint32, n)
	for i := range t {
		t[i] = z.draw()
	}
	return t
}

// uniformTrace returns n accesses to so many keys, each as likely.
func uniformTrace(n, keys int) []uint32 {
	rng := newRand(2)
	t := make([]uint32, n)
	for i := range t {
		t[i] = rng.Uint32N(uint32(keys))
	}
	return t
}

// scanTrace is a zipfTrace in which a quarter of the accesses, in runs, go to
// keys that come never again.
func scanTrace(n, keys int, s float64) []uint32 {
	z := newZipf(keys, s, newRand(3))
	period := max(n/25, 4)
	fresh := uint32(keys)
	t := make([]uint32, n)
	for i := range t {
		if i%period >= period*3/4 {
			t[i] = fresh
			fresh++
		} else {
			t[i] = z.draw()
		}
	}
	return t
}

// shiftTrace is a zipfTrace whose popular keys become others twenty times.
func shiftTrace(n, keys int, s float64) []uint32 {
	z := newZipf(keys, s, newRand(4))
	t := make([]uint32, n)
	for i := range t {
		moved := uint64(i / max(n/20, 1) * (keys / 10))
		t[i] = uint32((uint64(z.draw()) + moved) % uint64(keys))
	}
	return t
}

// readTrace reads a gzip file of little-endian uint32 keys.
func readTrace(name string) ([]uint32, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(b)%4 != 0 || len(b) == 0 {
		return nil, fmt.Errorf("%s holds %d bytes, want a multiple of 4", name, len(b))
	}
	t := make([]uint32, len(b)/4)
	for i := range t {
		t[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return t, nil
}

// distinct returns the number of different keys in t.
func distinct(t []uint32) int {
	seen := map[uint32]struct{}{}
	for _, k := range t {
		seen[k] = struct{}{}
	}
	return len(seen)
}

// stringKeys returns a key of 20 bytes for each access. The bytes lie in the
// order of the trace, apart from those of any other call: a cache that compares
// keys has to read its own copy too, as in a service.
func stringKeys(trace []uint32) []string {
	var b strings.Builder
	b.Grow(20 * len(trace))
	for _, k := range trace {
		fmt.Fprintf(&b, "account:%012d", k)
	}
	all := b.String()
	keys := make([]string, len(trace))
	for i := range keys {
		keys[i] = all[20*i : 20*i+20]
	}
	return keys
}

// mixedKeys is stringKeys with 16 to 24 bytes, which depend on the key.
func mixedKeys(trace []uint32) []string {
	var b strings.Builder
	b.Grow(24 * len(trace))
	ends := make([]int, len(trace))
	for i, k := range trace {
		fmt.Fprintf(&b, "account:%0*d", 8+int(k*0x9e3779b1>>16)%9, k)
		ends[i] = b.Len()
	}
	all, from := b.String(), 0
	keys := make([]string, len(trace))
	for i, end := range ends {
		keys[i], from = all[from:end], end
	}
	return keys
}

// integerKeys returns a key for each access, far from each other as identifiers
// are.
func integerKeys(trace []uint32) []uint64 {
	keys := make([]uint64, len(trace))
	for i, k := range trace {
		keys[i] = uint64(k) * 0x9e3779b97f4a7c15
	}
	return keys
}

// everyKey returns the trace 0, 1, ... n-1.
func everyKey(n int) []uint32 {
	t := make([]uint32, n)
	for i := range t {
		t[i] = uint32(i)
	}
	return t
}
