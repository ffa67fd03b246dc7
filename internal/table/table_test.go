package table

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type node = Node[string, int]

func TestTableMatchesMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := New[string, int](0)
		model := map[string]int{}
		hashes := []uint64{0, 1, 8, 1 << 32, ^uint64(0)} // few: equal hashes and equal steps are common
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(0, 30).Draw(t, "key")) })
		hash := func(k string) uint64 { return hashes[(int(k[0])+7*len(k))%len(hashes)] }
		t.Repeat(map[string]func(*rapid.T){
			"store": func(t *rapid.T) {
				k, v := key.Draw(t, "k"), rapid.Int().Draw(t, "v")
				tab.Store(&node{Key: k, Hash: hash(k), E: v})
				model[k] = v
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "k")
				tab.Delete(hash(k), k)
				delete(model, k)
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(model), tab.Len())
				seen := map[string]int{}
				tab.All(func(n *node) bool { seen[n.Key] = n.E; return true })
				require.Equal(t, model, seen)
				for i := range 31 {
					k := fmt.Sprint(i)
					n := tab.Find(hash(k), k)
					v, ok := model[k]
					require.Equal(t, ok, n != nil, k)
					if ok {
						require.Equal(t, v, n.E)
					}
					other := false
					for o := range model {
						other = other || o != k && hash(o) == hash(k)
					}
					require.Equal(t, other, tab.SameHash(hash(k), k))
				}
			},
		})
	})
}

// A key that is always present is always found, whatever grows, shrinks and
// churns around it, and its value never goes back.
func TestTable_ReadersNeverMissAPresentKey(t *testing.T) {
	tab := New[string, int](0)
	tab.Store(&node{Key: "k", Hash: 42})
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			last := 0
			for !done.Load() {
				n := tab.Find(42, "k")
				if !assert.NotNil(t, n) || !assert.GreaterOrEqual(t, n.E, last) {
					return
				}
				last = n.E
			}
		})
	}
	for i := range 20_000 {
		k := fmt.Sprint(i % 3000)
		if i/3000%2 == 0 {
			tab.Store(&node{Key: k, Hash: uint64(i) % 3000 * 0x9e3779b97f4a7c15})
		} else {
			tab.Delete(uint64(i)%3000*0x9e3779b97f4a7c15, k)
		}
		tab.Store(&node{Key: "k", Hash: 42, E: i})
	}
	done.Store(true)
	wg.Wait()
}

// Deleted cells are taken back: churn does not grow the array.
func TestTable_ChurnDoesNotGrow(t *testing.T) {
	tab := New[string, int](0)
	for i := range 100_000 {
		k := fmt.Sprint(i)
		tab.Store(&node{Key: k, Hash: uint64(i) * 0x9e3779b97f4a7c15})
		if i >= 100 {
			tab.Delete(uint64(i-100)*0x9e3779b97f4a7c15, fmt.Sprint(i-100))
		}
	}
	assert.Equal(t, 100, tab.Len())
	assert.LessOrEqual(t, tab.Cells(), 1024)
}
