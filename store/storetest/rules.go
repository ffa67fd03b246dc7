package storetest

import (
	"context"
	"fmt"
	"strings"

	"github.com/tidemark-go/tidemark"
)

// rules are all rules, from the simplest to those that need concurrency. A
// store that breaks an early one will break later ones too: read the first
// failure first.
var rules = []rule{
	{"AbsentKeyIsNotFound", absentKeyIsNotFound},
	{"CreateNeedsBaseZero", createNeedsBaseZero},
	{"CreateOverExistingKeyConflicts", createOverExistingConflicts},
	{"UpdateReplacesValue", updateReplacesValue},
	{"S28_StaleBaseConflictsAndChangesNothing", staleBaseConflicts},
	{"BaseThatNeverWasConflicts", baseThatNeverWasConflicts},
	{"VersionsStrictlyIncrease", versionsStrictlyIncrease},
	{"S18_DeletionIsNewerThanTheRow", deletionIsNewer},
	{"LoadAfterDeletionNamesItsVersion", loadAfterDeletion},
	{"S17_RecreationContinuesAboveTheDeletion", recreationContinues},
	{"WriteToDeletedKeyConflicts", writeToDeletedKeyConflicts},
	{"DeleteWithStaleBaseConflictsAndChangesNothing", staleDeleteConflicts},
	{"DeleteOfAbsentKeyConflicts", deleteOfAbsentKeyConflicts},
	{"KeysAreIndependent", keysAreIndependent},
	{"S31_OutcomeOfCommittedWrite", outcomeOfCommitted},
	{"S31_OutcomeOfWriteNeverSent", outcomeOfNeverSent},
	{"S31_OutcomeOfConflictedWrite", outcomeOfConflicted},
	{"S31_OutcomeOfOverwrittenWrite", outcomeOfOverwritten},
	{"S31_OutcomeOfDeletion", outcomeOfDeletion},
	{"S37_RetriedUpdateIsAppliedOnce", retriedUpdate},
	{"S37_RetriedUpdateOnNewBaseIsAppliedOnce", retriedUpdateOnNewBase},
	{"S37_RetriedCreationIsAppliedOnce", retriedCreation},
	{"S37_RetriedDeletionIsAppliedOnce", retriedDeletion},
	{"EmptyValueIsNotAbsent", emptyValue},
	{"LargeValue", largeValue},
	{"ValuesAreKeptByteForByte", valuesAreKept},
	{"KeysAreComparedByteForByte", keysAreCompared},
	{"BulkLoadSaysSomethingOfEveryKey", bulkLoad},
	{"S13_VersionsAreThoseOfTheRows", versionLoad},
	{"I10_ConcurrentWritersFormAChain", concurrentWriters},
	{"I10_OneOfManyCreatorsWins", concurrentCreators},
	{"S37_ConcurrentRetriesAreAppliedOnce", concurrentRetries},
	{"S22_ReadsNeverGoBack", readsNeverGoBack},
	{"S31_WriteUnderEndedContextIsNotCommitted", endedContext},
	{"S31_CancelledWriteCanBeLookedUp", cancelledWrite},
}

func absentKeyIsNotFound(p *probe) {
	p.wantAbsent(p.key("absent"), 0)
}

func createNeedsBaseZero(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "first")
	p.wantRow(k, "first", v)
}

func createOverExistingConflicts(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "first")
	_, err := p.store.CompareAndSet(p.ctx, k, 0, "second", newOp())
	p.wantConflict(err, v)
	p.wantRow(k, "first", v)
}

func updateReplacesValue(p *probe) {
	k := p.key("row")
	v1 := p.set(k, 0, "first")
	v2 := p.set(k, v1, "second")
	p.wantRow(k, "second", v2)
}

func staleBaseConflicts(p *probe) {
	k := p.key("row")
	v1 := p.set(k, 0, "1200")
	v2 := p.set(k, v1, "850")
	_, err := p.store.CompareAndSet(p.ctx, k, v1, "1200", newOp())
	p.wantConflict(err, v2)
	p.wantRow(k, "850", v2)
}

func baseThatNeverWasConflicts(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "first")
	for _, base := range []tidemark.Version{v + 1, v + 1000, ^tidemark.Version(0)} {
		_, err := p.store.CompareAndSet(p.ctx, k, base, "second", newOp())
		p.wantConflict(err, v)
	}
	p.wantRow(k, "first", v)

	absent := p.key("absent")
	_, err := p.store.CompareAndSet(p.ctx, absent, 1, "first", newOp())
	p.wantConflictAbsent(err, 0)
	p.wantAbsent(absent, 0)
}

func versionsStrictlyIncrease(p *probe) {
	k := p.key("row")
	var last, base tidemark.Version
	for i := range 12 {
		var v tidemark.Version
		if base != 0 && i%4 == 3 {
			v = p.remove(k, base)
			base = 0
		} else {
			v = p.set(k, base, fmt.Sprint("state ", i))
			base = v
		}
		if v <= last {
			p.fatalf("write %d of a key got version %d after version %d", i+1, v, last)
		}
		last = v
	}
}

func deletionIsNewer(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "first")
	d := p.remove(k, v) // demands d > v
	if _, now, _ := p.store.Load(p.ctx, k); now == v {
		p.fatalf("after the deletion at version %d, Load still names version %d of the row", d, v)
	}
}

func loadAfterDeletion(p *probe) {
	k := p.key("row")
	d := p.remove(k, p.set(k, 0, "first"))
	p.wantAbsent(k, d)
}

func recreationContinues(p *probe) {
	k := p.key("row")
	d := p.remove(k, p.set(k, 0, "first"))
	v := p.set(k, 0, "second")
	if v <= d {
		p.fatalf("re-created at version %d after a deletion at version %d", v, d)
	}
	p.wantRow(k, "second", v)
}

func writeToDeletedKeyConflicts(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "first")
	d := p.remove(k, v)
	for _, base := range []tidemark.Version{v, d} {
		_, err := p.store.CompareAndSet(p.ctx, k, base, "second", newOp())
		p.wantConflictAbsent(err, d)
	}
	p.wantAbsent(k, d)
}

func staleDeleteConflicts(p *probe) {
	k := p.key("row")
	v1 := p.set(k, 0, "first")
	v2 := p.set(k, v1, "second")
	for _, base := range []tidemark.Version{0, v1, v2 + 1} {
		_, err := p.store.CompareAndDelete(p.ctx, k, base, newOp())
		p.wantConflict(err, v2)
	}
	p.wantRow(k, "second", v2)
}

func deleteOfAbsentKeyConflicts(p *probe) {
	absent := p.key("absent")
	for _, base := range []tidemark.Version{0, 1} {
		_, err := p.store.CompareAndDelete(p.ctx, absent, base, newOp())
		p.wantConflictAbsent(err, 0)
	}
	p.wantAbsent(absent, 0)

	deleted := p.key("deleted")
	v := p.set(deleted, 0, "first")
	d := p.remove(deleted, v)
	for _, base := range []tidemark.Version{0, v, d} {
		_, err := p.store.CompareAndDelete(p.ctx, deleted, base, newOp())
		p.wantConflictAbsent(err, d)
	}
	p.wantAbsent(deleted, d)
}

func keysAreIndependent(p *probe) {
	a, b := p.key("a"), p.key("b")
	va := p.set(a, 0, "of a")
	vb := p.set(b, 0, "of b")
	vb = p.set(b, vb, "of b again")
	p.wantRow(a, "of a", va)
	va = p.remove(a, va)
	p.wantRow(b, "of b again", vb)
	p.wantAbsent(a, va)
}

func outcomeOfCommitted(p *probe) {
	k, create, update := p.key("row"), newOp(), newOp()
	v1 := p.setAs(create, k, 0, "first")
	p.wantCommitted(k, create, v1)
	v2 := p.setAs(update, k, v1, "second")
	p.wantCommitted(k, update, v2)
	p.wantCommitted(k, create, v1)
}

func outcomeOfNeverSent(p *probe) {
	k, op := p.key("row"), newOp()
	p.wantNotCommitted(p.key("absent"), newOp())
	v := p.setAs(op, k, 0, "first")
	p.wantNotCommitted(k, newOp())
	p.wantNotCommitted(p.key("other"), op) // op wrote another key
	p.wantRow(k, "first", v)               // asking changes nothing

	// Having been asked about does not stop a write from being made later.
	late := newOp()
	p.wantNotCommitted(k, late)
	p.wantCommitted(k, late, p.setAs(late, k, v, "second"))
}

func outcomeOfConflicted(p *probe) {
	k, create, update, remove := p.key("row"), newOp(), newOp(), newOp()
	v := p.set(k, 0, "first")
	v = p.set(k, v, "second")
	_, err := p.store.CompareAndSet(p.ctx, k, 0, "third", create)
	p.wantConflict(err, v)
	_, err = p.store.CompareAndSet(p.ctx, k, v+1, "third", update)
	p.wantConflict(err, v)
	_, err = p.store.CompareAndDelete(p.ctx, k, v+1, remove)
	p.wantConflict(err, v)
	p.wantNotCommitted(k, create)
	p.wantNotCommitted(k, update)
	p.wantNotCommitted(k, remove)
}

func outcomeOfOverwritten(p *probe) {
	k, op := p.key("row"), newOp()
	first := p.setAs(op, k, 0, "first")
	v := first
	for i := range 5 {
		v = p.set(k, v, fmt.Sprint("later ", i))
	}
	p.wantCommitted(k, op, first)
	p.remove(k, v)
	p.wantCommitted(k, op, first)
	p.set(k, 0, "again")
	p.wantCommitted(k, op, first)
}

func outcomeOfDeletion(p *probe) {
	k, op := p.key("row"), newOp()
	v := p.set(k, 0, "first")
	d := p.removeAs(op, k, v)
	p.wantCommitted(k, op, d)
	p.set(k, 0, "again")
	p.wantCommitted(k, op, d)
}

func retriedUpdate(p *probe) {
	k, op := p.key("row"), newOp()
	v1 := p.set(k, 0, "first")
	v2 := p.setAs(op, k, v1, "second")
	p.wantRetried(k, v1, "second", op, v2)
	p.wantRow(k, "second", v2)

	v3 := p.set(k, v2, "third")
	p.wantRetried(k, v1, "second", op, v2)
	p.wantRow(k, "third", v3)
}

// retriedUpdateOnNewBase is a caller that lost the answer, read the row again
// and sends the same write on top of what it found: its own.
func retriedUpdateOnNewBase(p *probe) {
	k, op := p.key("row"), newOp()
	v1 := p.set(k, 0, "first")
	v2 := p.setAs(op, k, v1, "second")
	p.wantRetried(k, v2, "second", op, v2)
	p.wantRow(k, "second", v2)
}

func retriedCreation(p *probe) {
	k, op := p.key("row"), newOp()
	v := p.setAs(op, k, 0, "first")
	p.wantRetried(k, 0, "first", op, v)
	p.wantRow(k, "first", v)

	// After a deletion the key may be created again, but not by a write that
	// has already been made.
	d := p.remove(k, v)
	p.wantRetried(k, 0, "first", op, v)
	p.wantAbsent(k, d)
}

func retriedDeletion(p *probe) {
	k, op := p.key("row"), newOp()
	v := p.set(k, 0, "first")
	d := p.removeAs(op, k, v)
	p.wantDeletionRetried(k, v, op, d)
	p.wantAbsent(k, d)

	again := p.set(k, 0, "again")
	p.wantDeletionRetried(k, v, op, d)
	p.wantDeletionRetried(k, again, op, d)
	p.wantRow(k, "again", again)
}

// wantRetried sends a committed write again, which must return its version.
func (p *probe) wantRetried(key string, base tidemark.Version, value string, op tidemark.OpID, version tidemark.Version) {
	p.Helper()
	v, err := p.store.CompareAndSet(p.ctx, key, base, value, op)
	if err != nil || v != version {
		p.fatalf("retry of a write committed at version %d: version %d, error %v", version, v, err)
	}
}

// wantDeletionRetried is wantRetried for a deletion.
func (p *probe) wantDeletionRetried(key string, base tidemark.Version, op tidemark.OpID, version tidemark.Version) {
	p.Helper()
	v, err := p.store.CompareAndDelete(p.ctx, key, base, op)
	if err != nil || v != version {
		p.fatalf("retry of a deletion committed at version %d: version %d, error %v", version, v, err)
	}
}

func emptyValue(p *probe) {
	k := p.key("row")
	v := p.set(k, 0, "")
	p.wantRow(k, "", v)
	v = p.set(k, v, "full")
	v = p.set(k, v, "")
	p.wantRow(k, "", v)
}

func largeValue(p *probe) {
	k := p.key("row")
	large := strings.Repeat("0123456789abcdef", p.options.LargeValue/16+1)[:p.options.LargeValue]
	v := p.set(k, 0, large)
	p.wantRow(k, large, v)
	v = p.set(k, v, large[1:])
	p.wantRow(k, large[1:], v)
}

func valuesAreKept(p *probe) {
	k := p.key("row")
	var v tidemark.Version
	for _, value := range oddStrings {
		v = p.set(k, v, value)
		p.wantRow(k, value, v)
	}
}

// oddStrings are what quoting, collation and normalization trip over. Each is
// different from each other one only for those who compare bytes.
var oddStrings = []string{
	"plain", "Plain", "PLAIN",
	" plain", "plain ", "plain  ", "plain\t", "pl ain", "plain\n",
	"it's", `it"s`, "it`s", `it\s`, `it\\s`, "it''s", "%", "_", "%s", "$1", "?", ":name", "--", "';DROP TABLE x;--",
	"a.b", "a*b", "a>b", "a/b",
	"e\u0301", "\u00e9", "e", "E", "\u00df", "ss", "stra\u00dfe", "i", "\u0131", "I",
	"\u65e5\u672c", "\u65e5\u672c\u8a9e", "\u0410", "A", "\U0001F30A", "\u200b", "null", "NULL", "0", "00",
}

func keysAreCompared(p *probe) {
	versions := make(map[string]tidemark.Version, len(oddStrings))
	for i, s := range oddStrings {
		// The odd part is at the end, where padding rules would drop it.
		versions[s] = p.set(p.run+s, 0, fmt.Sprint("value ", i))
	}
	for i, s := range oddStrings {
		k := p.run + s
		p.wantRow(k, fmt.Sprint("value ", i), versions[s])
		v := p.set(k, versions[s], "updated")
		p.wantAbsent(k, p.remove(k, v))
	}
}

// bulkLoad asks for more keys than go into one statement or one round trip of
// any adapter.
func bulkLoad(p *probe) {
	bulk, ok := p.store.(tidemark.BulkLoader[string, string])
	if !ok {
		return // a Store need not be one, and the cache then loads one by one
	}
	live, deleted := p.key("live"), p.key("deleted")
	v := p.set(live, 0, "first")
	v = p.set(live, v, "second")
	d := p.remove(deleted, p.set(deleted, 0, "first"))

	want := map[string]tidemark.Loaded[string]{
		live:    {Value: "second", Version: v},
		deleted: {Version: d, Absent: true},
	}
	keys := []string{live, deleted, live}
	for i := range 1500 {
		k := p.key(fmt.Sprint("absent ", i))
		want[k] = tidemark.Loaded[string]{Absent: true}
		keys = append(keys, k)
	}
	last := p.key("last")
	want[last] = tidemark.Loaded[string]{Value: "it's", Version: p.set(last, 0, "it's")}
	keys = append(keys, last)

	p.wantLoaded(bulk, keys, want)
	p.wantLoaded(bulk, []string{live}, map[string]tidemark.Loaded[string]{live: want[live]})
	p.wantLoaded(bulk, nil, nil)

	ended, cancel := context.WithCancel(p.ctx)
	cancel()
	if _, err := bulk.LoadMany(ended, keys); err == nil {
		p.fatalf("LoadMany under an ended context reports no error")
	}
}

// versionLoad asks for more keys than go into one statement, while they change.
func versionLoad(p *probe) {
	loader, ok := p.store.(tidemark.VersionLoader[string])
	if !ok {
		return // a Store need not be one, and the cache then loads
	}
	live, deleted := p.key("live"), p.key("deleted")
	v := p.set(live, 0, "first")
	p.remove(deleted, p.set(deleted, 0, "first"))
	keys := []string{deleted}
	for i := range 1500 {
		keys = append(keys, p.key(fmt.Sprint("absent ", i)))
	}
	keys = append(keys, live)
	for range 3 {
		got, err := loader.LoadVersions(p.ctx, keys)
		if err != nil {
			p.fatalf("LoadVersions of %d keys: %v", len(keys), err)
		}
		if got[live] != v || len(got) != 1 {
			p.fatalf("LoadVersions of %d keys: %d of them, and the only one that exists at %d, want %d", len(keys), len(got), got[live], v)
		}
		v = p.set(live, v, "next")
	}
	if got, err := loader.LoadVersions(p.ctx, nil); err != nil || len(got) != 0 {
		p.fatalf("LoadVersions of no keys: %v, %v", got, err)
	}

	ended, cancel := context.WithCancel(p.ctx)
	cancel()
	if _, err := loader.LoadVersions(ended, keys); err == nil {
		p.fatalf("LoadVersions under an ended context reports no error")
	}
}

func (p *probe) wantLoaded(bulk tidemark.BulkLoader[string, string], keys []string, want map[string]tidemark.Loaded[string]) {
	p.Helper()
	got, err := bulk.LoadMany(p.ctx, keys)
	if err != nil {
		p.fatalf("LoadMany of %d keys: %v", len(keys), err)
	}
	for k, w := range want {
		g, ok := got[k]
		if !ok {
			p.fatalf("LoadMany of %d keys does not mention %s", len(keys), quote(k))
		}
		if g != w {
			p.fatalf("LoadMany of %s: %+v, want %+v", quote(k), g, w)
		}
	}
	if len(got) != len(want) {
		p.fatalf("LoadMany returned %d keys, want %d", len(got), len(want))
	}
}
