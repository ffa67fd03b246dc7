package storetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-go/tidemark"
)

// A flaw is one way in which a memory store is wrong.
type flaw string

// The flaws, each named after what the store then does.
const (
	sound flaw = "nothing wrong"

	absentIsNoError          flaw = "Load of an absent key succeeds"
	createOverwrites         flaw = "base 0 overwrites"
	createNeedsBaseOne       flaw = "base 0 is refused"
	updateDropsValue         flaw = "an update keeps the old value"
	staleBaseWins            flaw = "a base below the current version is accepted"
	futureBaseWins           flaw = "a base above the current version is accepted"
	conflictIsUnnamed        flaw = "a conflict names no version"
	conflictNamesDeletion    flaw = "a conflict with an absence names the deletion"
	conflictIsUnavailable    flaw = "a conflict is reported as ErrUnavailable"
	conflictTouchesRow       flaw = "a conflict bumps the version"
	versionRepeats           flaw = "every third version is given twice"
	deletionKeepsVersion     flaw = "a deletion gets the version of the row"
	deletionIsForgotten      flaw = "Load forgets the version of a deletion"
	recreationRestarts       flaw = "a re-created key starts at version 1"
	deletedRowIsWritable     flaw = "a deleted row can be updated at its old base"
	deleteIgnoresBase        flaw = "a deletion ignores its base"
	deleteOfAbsentSucceeds   flaw = "a deletion of nothing succeeds"
	keysShareARow            flaw = "all keys share one row"
	outcomeKnowsNothing      flaw = "Outcome always says no"
	outcomeKnowsEverything   flaw = "Outcome always says yes"
	outcomeBarsTheWrite      flaw = "a write that was asked about is refused"
	outcomeForgetsKey        flaw = "Outcome does not look at the key"
	outcomeOfConflict        flaw = "a conflicted write counts as committed"
	outcomeIsTheRows         flaw = "Outcome only looks at the row's last write"
	outcomeNamesCurrent      flaw = "Outcome names the row's version"
	outcomeForgetsDeletion   flaw = "a deletion is not noted"
	retryConflicts           flaw = "a retried write conflicts with itself"
	retryOnNewBaseApplies    flaw = "a retry on the current base is applied again"
	retryCreatesAgain        flaw = "a retry of a creation is applied over a deletion"
	retryDeletesAgain        flaw = "a retry of a deletion removes the re-created key"
	emptyIsAbsent            flaw = "an empty value is an absence"
	valuesAreCut             flaw = "values are cut at 64 KiB"
	valuesAreEscaped         flaw = "quotes in values are doubled"
	keysAreTrimmed           flaw = "trailing spaces of keys are ignored"
	keysAreFolded            flaw = "the case of keys is ignored"
	bulkOmitsAbsent          flaw = "LoadMany leaves absent keys out"
	bulkForgetsDeletion      flaw = "LoadMany forgets the version of a deletion"
	bulkStopsEarly           flaw = "LoadMany answers the first 1000 keys"
	bulkIgnoresContext       flaw = "LoadMany works under an ended context"
	versionsLag              flaw = "LoadVersions answers from an old copy"
	versionsOfDeletions      flaw = "LoadVersions names deletions"
	versionsStopEarly        flaw = "LoadVersions answers for the first 1000 keys"
	versionsIgnoreContext    flaw = "LoadVersions works under an ended context"
	checksWithoutLock        flaw = "the base is compared before the lock is taken"
	createsWithoutLock       flaw = "existence is checked before the lock is taken"
	retriesWithoutLock       flaw = "the operation id is looked up before the lock is taken"
	versionWithoutLock       flaw = "the version is drawn before the lock is taken"
	readsLag                 flaw = "some reads are answered from an old copy"
	readsTear                flaw = "some reads mix two states"
	contextIsIgnored         flaw = "an ended context is ignored"
	endedContextStillCommits flaw = "a write under an ended context is made and reported as unavailable"
	cancelledIsUnavailable   flaw = "a cancelled write is reported as unavailable and made later"
	cancelledIsConflict      flaw = "a cancelled write is made and reported as a conflict"
	cancelledHalfDone        flaw = "a cancelled write is noted but not made"
	outcomeRewrites          flaw = "Outcome of a write that is lost writes the row anew"
)

// A row is one key's state; the zero row has never existed.
type row struct {
	value   string
	version tidemark.Version
	live    bool
	op      tidemark.OpID // of the last write
}

type opKey struct {
	key string
	op  tidemark.OpID
}

// slow is a latency within which a context can end, however coarse the timers
// of a busy machine are.
const slow = 4 * time.Millisecond

// memory is a correct Store and BulkLoader in memory, but for its flaw.
type memory struct {
	flaw flaw

	// latency is how long a write is under way before it takes effect.
	latency time.Duration

	cutOff atomic.Int32 // writes whose context ended while they were under way

	mu    sync.Mutex // guards everything below
	rows  map[string]row
	old   map[string]row // the states before the last write
	ops   map[opKey]tidemark.Version
	asked map[tidemark.OpID]bool
	reads int
	drawn tidemark.Version // the sequence of versionWithoutLock
}

func newMemory(f flaw) *memory {
	latency := 100 * time.Microsecond
	switch f {
	case cancelledIsUnavailable, cancelledIsConflict, cancelledHalfDone, outcomeRewrites:
		latency = slow
	}
	return &memory{
		flaw:    f,
		latency: latency,
		rows:    map[string]row{},
		old:     map[string]row{},
		ops:     map[opKey]tidemark.Version{},
		asked:   map[tidemark.OpID]bool{},
	}
}

// name is the name under which key is stored.
func (m *memory) name(key string) string {
	switch m.flaw {
	case keysShareARow:
		return "the row"
	case keysAreTrimmed:
		return strings.TrimRight(key, " ")
	case keysAreFolded:
		return strings.ToLower(key)
	}
	return key
}

func (m *memory) Load(ctx context.Context, key string) (string, tidemark.Version, error) {
	if err := ctx.Err(); err != nil && m.flaw != contextIsIgnored {
		return "", 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	r := m.rows[m.name(key)]
	if before, ok := m.old[m.name(key)]; ok && m.reads%50 == 0 {
		switch m.flaw {
		case readsLag:
			r = before
		case readsTear:
			r.value = before.value
		}
	}
	switch {
	case r.live && (r.value != "" || m.flaw != emptyIsAbsent):
		return r.value, r.version, nil
	case m.flaw == absentIsNoError:
		return "", r.version, nil
	case m.flaw == deletionIsForgotten:
		r.version = 0
	}
	return "", r.version, fmt.Errorf("memory: %w", tidemark.ErrNotFound)
}

func (m *memory) LoadMany(ctx context.Context, keys []string) (map[string]tidemark.Loaded[string], error) {
	if err := ctx.Err(); err != nil && m.flaw != bulkIgnoresContext {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flaw == bulkStopsEarly {
		keys = keys[:min(len(keys), 1000)]
	}
	found := map[string]tidemark.Loaded[string]{}
	for _, k := range keys {
		switch r := m.rows[m.name(k)]; {
		case r.live:
			found[k] = tidemark.Loaded[string]{Value: r.value, Version: r.version}
		case m.flaw == bulkOmitsAbsent:
		case m.flaw == bulkForgetsDeletion:
			found[k] = tidemark.Loaded[string]{Absent: true}
		default:
			found[k] = tidemark.Loaded[string]{Version: r.version, Absent: true}
		}
	}
	return found, nil
}

func (m *memory) LoadVersions(ctx context.Context, keys []string) (map[string]tidemark.Version, error) {
	if err := ctx.Err(); err != nil && m.flaw != versionsIgnoreContext {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flaw == versionsStopEarly {
		keys = keys[:min(len(keys), 1000)]
	}
	found := map[string]tidemark.Version{}
	for _, k := range keys {
		if r := m.rows[m.name(k)]; r.live || m.flaw == versionsOfDeletions && r.version > 0 {
			found[k] = r.version
		}
		if r := m.old[m.name(k)]; r.live && m.flaw == versionsLag {
			found[k] = r.version
		}
	}
	return found, nil
}

func (m *memory) Outcome(ctx context.Context, key string, op tidemark.OpID) (tidemark.Version, bool, error) {
	if err := ctx.Err(); err != nil && m.flaw != contextIsIgnored {
		return 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rows[m.name(key)]
	switch m.flaw {
	case outcomeKnowsNothing:
		return 0, false, nil
	case outcomeKnowsEverything:
		return r.version, true, nil
	case outcomeBarsTheWrite:
		m.asked[op] = true
	case outcomeIsTheRows:
		return r.version, r.op == op, nil
	}
	v, ok := m.ops[m.opKey(key, op)]
	if !ok && m.flaw == outcomeRewrites {
		r.version++
		m.rows[m.name(key)] = r
	}
	if ok && m.flaw == outcomeNamesCurrent {
		v = r.version
	}
	return v, ok, nil
}

func (m *memory) opKey(key string, op tidemark.OpID) opKey {
	if m.flaw == outcomeForgetsKey {
		key = ""
	}
	return opKey{m.name(key), op}
}

func (m *memory) CompareAndSet(ctx context.Context, key string, base tidemark.Version, value string, op tidemark.OpID) (tidemark.Version, error) {
	switch m.flaw {
	case valuesAreCut:
		value = value[:min(len(value), 64<<10)]
	case valuesAreEscaped:
		value = strings.ReplaceAll(value, "'", "''")
	}
	return m.write(ctx, key, base, row{value: value, live: true, op: op})
}

func (m *memory) CompareAndDelete(ctx context.Context, key string, base tidemark.Version, op tidemark.OpID) (tidemark.Version, error) {
	return m.write(ctx, key, base, row{op: op})
}

// write makes next the state of key, if base is the current version.
func (m *memory) write(ctx context.Context, key string, base tidemark.Version, next row) (tidemark.Version, error) {
	if err := ctx.Err(); err != nil {
		switch m.flaw {
		case contextIsIgnored:
		case endedContextStillCommits:
			m.commit(key, base, next)
			fallthrough
		default:
			return 0, fmt.Errorf("memory: %w: %w", tidemark.ErrUnavailable, err)
		}
	}
	if m.wait(ctx) {
		return m.commit(key, base, next)
	}
	return m.cancelled(ctx, key, base, next)
}

// wait lets the latency pass and reports false if ctx ended first.
func (m *memory) wait(ctx context.Context) bool {
	if m.flaw == contextIsIgnored {
		return true
	}
	t := time.NewTimer(m.latency)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// cancelled is a write whose context ended while it was under way.
func (m *memory) cancelled(ctx context.Context, key string, base tidemark.Version, next row) (tidemark.Version, error) {
	m.cutOff.Add(1)
	switch m.flaw {
	case cancelledIsUnavailable:
		time.AfterFunc(5*time.Millisecond, func() { m.commit(key, base, next) })
		return 0, fmt.Errorf("memory: %w: %w", tidemark.ErrUnavailable, ctx.Err())
	case cancelledIsConflict:
		m.commit(key, base, next)
		return 0, &tidemark.ConflictError{Current: base + 1}
	case cancelledHalfDone:
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ops[m.opKey(key, next.op)] = base + 1
	default:
		// As a network would: it happens soon, and nobody is told.
		time.AfterFunc(5*time.Millisecond, func() { m.commit(key, base, next) })
	}
	return 0, ctx.Err()
}

// commit compares and writes. The flaws that lack a lock let it go in between.
func (m *memory) commit(key string, base tidemark.Version, next row) (tidemark.Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, id := m.name(key), m.opKey(key, next.op)

	if m.asked[next.op] {
		return 0, fmt.Errorf("memory: %w", tidemark.ErrUnavailable)
	}
	version, done := m.ops[id]
	if m.flaw == retriesWithoutLock {
		m.pause()
	}
	if done && !m.repeats(name, base, next) {
		if m.flaw == retryConflicts {
			return 0, m.conflict(name)
		}
		return version, nil
	}

	if m.flaw == versionWithoutLock {
		m.drawn++
		version = m.drawn
		m.pause()
		if m.rows[name].live && base != 0 {
			base = m.rows[name].version // under the lock again, it looks all right
		}
	}
	if !m.welcome(name, base, next) && m.flaw != retriesWithoutLock {
		if m.flaw == outcomeOfConflict {
			m.ops[id] = m.rows[name].version
		}
		return 0, m.conflict(name)
	}
	if m.flaw == checksWithoutLock || m.flaw == createsWithoutLock && base == 0 {
		m.pause()
	}

	if m.flaw != versionWithoutLock {
		version = m.nextVersion(name, next)
	}
	next.version = version
	if m.flaw == updateDropsValue && base != 0 && next.live {
		next.value = m.rows[name].value
	}
	m.old[name], m.rows[name] = m.rows[name], next
	if next.live || m.flaw != outcomeForgetsDeletion {
		m.ops[id] = version
	}
	return version, nil
}

// pause gives the lock away for a moment.
func (m *memory) pause() {
	m.mu.Unlock()
	time.Sleep(50 * time.Microsecond)
	m.mu.Lock()
}

// welcome reports whether next may replace the current state of name.
func (m *memory) welcome(name string, base tidemark.Version, next row) bool {
	r := m.rows[name]
	switch m.flaw {
	case createOverwrites:
		if base == 0 && next.live {
			return true
		}
	case createNeedsBaseOne:
		if base == 0 && r.version == 0 {
			return false
		}
	case staleBaseWins:
		if base != 0 && next.live && r.live && base < r.version {
			return true
		}
	case futureBaseWins:
		if next.live && r.live && base > r.version {
			return true
		}
	case deletedRowIsWritable:
		if base != 0 && next.live && base == r.version {
			return true
		}
	case deleteIgnoresBase:
		if !next.live && r.live {
			return true
		}
	case deleteOfAbsentSucceeds:
		if !next.live && !r.live {
			return true
		}
	}
	if base == 0 {
		return next.live && !r.live
	}
	return r.live && r.version == base
}

// repeats reports whether a flaw makes a committed write again.
func (m *memory) repeats(name string, base tidemark.Version, next row) bool {
	r := m.rows[name]
	switch m.flaw {
	case retryOnNewBaseApplies:
		return next.live && r.live && base == r.version
	case retryCreatesAgain:
		return next.live && !r.live && base == 0
	case retryDeletesAgain:
		return !next.live && r.live && base == r.version
	}
	return false
}

func (m *memory) nextVersion(name string, next row) tidemark.Version {
	r := m.rows[name]
	switch {
	case m.flaw == versionRepeats && r.version%3 == 2,
		m.flaw == deletionKeepsVersion && !next.live:
		return r.version
	case m.flaw == recreationRestarts && !r.live:
		return 1
	}
	return r.version + 1
}

func (m *memory) conflict(name string) error {
	r := m.rows[name]
	switch {
	case m.flaw == conflictTouchesRow:
		m.rows[name] = row{r.value, r.version + 1, r.live, r.op}
	case m.flaw == conflictIsUnavailable:
		return fmt.Errorf("memory: %w", tidemark.ErrUnavailable)
	case m.flaw == conflictIsUnnamed:
		return &tidemark.ConflictError{}
	case m.flaw == conflictNamesDeletion: // as if it were a row
		return &tidemark.ConflictError{Current: r.version}
	}
	return &tidemark.ConflictError{Current: r.version, Absent: !r.live}
}
