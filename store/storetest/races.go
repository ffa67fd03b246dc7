package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark"
)

// A commit is one write that the store reported as committed.
type commit struct {
	base, version tidemark.Version
	value         string
	deleted       bool
}

// A history collects the commits of concurrent writers of one key.
type history struct {
	acked atomic.Uint64 // highest version acknowledged to any writer

	mu      sync.Mutex
	commits []commit
}

func (h *history) add(c commit) {
	for {
		old := h.acked.Load()
		if uint64(c.version) <= old || h.acked.CompareAndSwap(old, uint64(c.version)) {
			break
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commits = append(h.commits, c)
}

// chain returns the commits in the order of their versions, and an error if
// they are no chain: each must be based on the one before it.
func (h *history) chain() ([]commit, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.SortFunc(h.commits, func(a, b commit) int { return cmp.Compare(a.version, b.version) })
	for i := 1; i < len(h.commits); i++ {
		prev, c := h.commits[i-1], h.commits[i]
		want := prev.version
		if prev.deleted {
			want = 0
		}
		switch {
		case c.version == prev.version:
			return nil, fmt.Errorf("two writes were committed at version %d", c.version)
		case c.base != want:
			return nil, fmt.Errorf("the write committed at version %d is based on version %d, but version %d came before it",
				c.version, c.base, want)
		}
	}
	return h.commits, nil
}

// lost reports whether err says that the write was not committed and may be
// tried again: someone was first, or the store was too busy.
func lost(err error) bool {
	var conflict *tidemark.ConflictError
	return errors.As(err, &conflict) || errors.Is(err, tidemark.ErrUnavailable)
}

// inParallel runs f in n goroutines and waits for them.
func inParallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func concurrentWriters(p *probe) {
	k := p.key("counter")
	var h history
	h.add(commit{version: p.set(k, 0, "0"), value: "0"})
	inParallel(p.options.Writers, func(int) {
		for range p.options.Increments {
			if err := p.increment(k, &h); err != nil {
				p.Errorf("increment: %v", err)
				return
			}
		}
	})
	chain, err := h.chain()
	if err != nil {
		p.fatalf("%v", err)
	}
	for i, c := range chain {
		if c.value != strconv.Itoa(i) {
			p.fatalf("increment %d wrote %s: an update was lost", i, quote(c.value))
		}
	}
	want := p.options.Writers * p.options.Increments
	p.wantRow(k, strconv.Itoa(want), chain[len(chain)-1].version)
}

// increment adds one to the counter at key, however often it takes.
func (p *probe) increment(key string, h *history) error {
	for p.ctx.Err() == nil {
		value, base, err := p.store.Load(p.ctx, key)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		value = strconv.Itoa(n + 1)
		v, err := p.store.CompareAndSet(p.ctx, key, base, value, newOp())
		if err == nil {
			h.add(commit{base: base, version: v, value: value})
			return nil
		}
		if !lost(err) {
			return err
		}
	}
	return p.ctx.Err()
}

func concurrentCreators(p *probe) {
	k := p.key("row")
	var deletion tidemark.Version
	for round := range 4 { // the later rounds create over a deletion
		var h history
		inParallel(p.options.Writers, func(i int) {
			value := fmt.Sprintf("round %d creator %d", round, i)
			v, err := p.store.CompareAndSet(p.ctx, k, 0, value, newOp())
			switch {
			case err == nil:
				h.add(commit{version: v, value: value})
			case !lost(err):
				p.Errorf("creation: %v", err)
			}
		})
		if len(h.commits) != 1 {
			p.fatalf("round %d: %d of %d creators of one key succeeded, want 1", round, len(h.commits), p.options.Writers)
		}
		won := h.commits[0]
		if won.version <= deletion {
			p.fatalf("round %d: created at version %d after a deletion at version %d", round, won.version, deletion)
		}
		p.wantRow(k, won.value, won.version)
		deletion = p.remove(k, won.version)
	}
}

// concurrentRetries is a caller that gave up on a write too early and sends it
// again while the first attempt is still under way. Any of the calls may fail,
// but the write is made once.
func concurrentRetries(p *probe) {
	k := p.key("row")
	base := p.set(k, 0, "first")
	for round := range 4 {
		op, value := newOp(), fmt.Sprint("round ", round)
		var h history
		inParallel(p.options.Writers, func(int) {
			v, err := p.store.CompareAndSet(p.ctx, k, base, value, op)
			switch {
			case err == nil:
				h.add(commit{base: base, version: v, value: value})
			case !lost(err):
				p.Errorf("retried write: %v", err)
			}
		})
		if len(h.commits) == 0 {
			p.fatalf("round %d: none of %d attempts of one write succeeded", round, p.options.Writers)
		}
		v := h.commits[0].version
		for _, c := range h.commits {
			if c.version != v {
				p.fatalf("round %d: one write was committed at version %d and at version %d", round, v, c.version)
			}
		}
		p.wantRow(k, value, v)
		p.wantCommitted(k, op, v)
		base = v
	}
}

// A sight is what one read returned.
type sight struct {
	version tidemark.Version
	value   string
	deleted bool
}

func readsNeverGoBack(p *probe) {
	k := p.key("row")
	var h history
	h.add(commit{version: p.set(k, 0, "start"), value: "start"})

	writing, stop := context.WithCancel(p.ctx)
	var readers sync.WaitGroup
	seen := make([]map[tidemark.Version]sight, 2)
	for i := range seen {
		seen[i] = map[tidemark.Version]sight{}
		readers.Go(func() {
			if err := p.watch(writing, k, &h, seen[i]); err != nil {
				p.Errorf("%v", err)
			}
		})
	}
	inParallel(p.options.Writers/2, func(i int) {
		for n := range p.options.Increments {
			if err := p.overwrite(k, fmt.Sprintf("writer %d write %d", i, n), n%5 == 4, &h); err != nil {
				p.Errorf("write: %v", err)
				return
			}
		}
	})
	stop()
	readers.Wait()

	chain, err := h.chain()
	if err != nil {
		p.fatalf("%v", err)
	}
	written := make(map[tidemark.Version]sight, len(chain))
	for _, c := range chain {
		written[c.version] = sight{c.version, c.value, c.deleted}
	}
	for _, m := range seen {
		for v, s := range m {
			if s != written[v] {
				p.fatalf("a read returned %+v, but what was written at version %d is %+v", s, v, written[v])
			}
		}
	}
}

// overwrite replaces or removes the state of key, however often it takes.
func (p *probe) overwrite(key, value string, remove bool, h *history) error {
	for p.ctx.Err() == nil {
		_, base, err := p.store.Load(p.ctx, key)
		if errors.Is(err, tidemark.ErrNotFound) {
			base = 0
		} else if err != nil {
			return err
		}
		c := commit{base: base}
		if c.deleted = remove && base != 0; c.deleted {
			c.version, err = p.store.CompareAndDelete(p.ctx, key, base, newOp())
		} else {
			c.value = value
			c.version, err = p.store.CompareAndSet(p.ctx, key, base, value, newOp())
		}
		if err == nil {
			h.add(c)
			return nil
		}
		if !lost(err) {
			return err
		}
	}
	return p.ctx.Err()
}

// watch reads key until writing ends, once more after that, and notes what it
// saw. No read may return less than was acknowledged before it began, nor less
// than the read before it.
func (p *probe) watch(writing context.Context, key string, h *history, seen map[tidemark.Version]sight) error {
	var last tidemark.Version
	for more := true; more; {
		more = writing.Err() == nil
		acked := tidemark.Version(h.acked.Load())
		value, v, err := p.store.Load(p.ctx, key)
		deleted := errors.Is(err, tidemark.ErrNotFound)
		if err != nil && !deleted {
			return fmt.Errorf("read: %w", err)
		}
		if v < last {
			return fmt.Errorf("a read returned version %d after one that returned version %d", v, last)
		}
		if v < acked {
			return fmt.Errorf("a read returned version %d after a write at version %d was acknowledged", v, acked)
		}
		s := sight{v, value, deleted}
		if old, ok := seen[v]; ok && old != s {
			return fmt.Errorf("two reads of version %d returned %+v and %+v", v, old, s)
		}
		seen[v], last = s, v
	}
	return nil
}

func endedContext(p *probe) {
	k, update, remove, create := p.key("row"), newOp(), newOp(), newOp()
	absent := p.key("absent")
	v := p.set(k, 0, "first")
	ended, cancel := context.WithCancel(p.ctx)
	cancel()

	if _, _, err := p.store.Load(ended, k); err == nil || errors.Is(err, tidemark.ErrNotFound) {
		p.fatalf("Load under an ended context: error %v", err)
	}
	if _, committed, err := p.store.Outcome(ended, k, update); err == nil || committed {
		p.fatalf("Outcome under an ended context: committed %t, error %v", committed, err)
	}
	if _, err := p.store.CompareAndSet(ended, k, v, "second", update); err == nil {
		p.fatalf("CompareAndSet under an ended context reports no error")
	}
	if _, err := p.store.CompareAndSet(ended, absent, 0, "second", create); err == nil {
		p.fatalf("creation under an ended context reports no error")
	}
	if _, err := p.store.CompareAndDelete(ended, k, v, remove); err == nil {
		p.fatalf("CompareAndDelete under an ended context reports no error")
	}
	p.wantNotCommitted(k, update)
	p.wantNotCommitted(k, remove)
	p.wantNotCommitted(absent, create)
	p.wantRow(k, "first", v)
	p.wantAbsent(absent, 0)
}

// An attempt is one write whose context ended while it was under way.
type attempt struct {
	key     string
	base    tidemark.Version
	op      tidemark.OpID
	began   time.Time
	version tidemark.Version // as the store returned it
	err     error
}

// cancelledWrite ends the context of writes at many moments, waits until what
// was under way has settled, and compares what the store said with what it did.
func cancelledWrite(p *probe) {
	begin := time.Now()
	p.set(p.key("how long a write takes"), 0, "first")
	usual := max(time.Since(begin), 200*time.Microsecond)

	const moments = 24
	attempts := make([]attempt, moments)
	for i := range attempts {
		a := attempt{key: p.key(fmt.Sprint("row ", i)), op: newOp()}
		a.base = p.set(a.key, 0, "before")
		a.began = time.Now()
		ctx, cancel := context.WithTimeout(p.ctx, usual*time.Duration(i)/(moments/2))
		a.version, a.err = p.store.CompareAndSet(ctx, a.key, a.base, "after", a.op)
		cancel()
		attempts[i] = a
	}

	settled := time.NewTimer(p.options.Settle)
	defer settled.Stop()
	select {
	case <-settled.C:
	case <-p.ctx.Done():
		p.fatalf("no time left to wait for cancelled writes: %v", p.ctx.Err())
	}
	for _, a := range attempts {
		p.wantTruth(a)
	}
}

// wantTruth demands that the answer to a, its Outcome and its row agree.
func (p *probe) wantTruth(a attempt) {
	p.Helper()
	v, committed, err := p.store.Outcome(p.ctx, a.key, a.op)
	if err != nil {
		p.fatalf("Outcome: %v", err)
	}
	switch {
	case a.err == nil && (!committed || v != a.version):
		p.fatalf("a write returned version %d, its Outcome is version %d, committed %t", a.version, v, committed)
	case lost(a.err) && committed:
		p.fatalf("a write that was reported as certainly not committed (%v) was committed at version %d", a.err, v)
	}
	if committed {
		p.wantRow(a.key, "after", v)
	} else {
		p.wantRow(a.key, "before", p.unwritten(a))
	}
}

// unwritten returns the version of the row that a has not changed: its base, or a
// later one if Outcome may have written the row anew.
func (p *probe) unwritten(a attempt) tidemark.Version {
	p.Helper()
	after := p.options.RewritesAfter
	if after == 0 || time.Since(a.began) < after {
		return a.base
	}
	_, v, err := p.store.Load(p.ctx, a.key)
	if err != nil {
		p.fatalf("Load of a key that was written: %v", err)
	}
	return max(v, a.base)
}
