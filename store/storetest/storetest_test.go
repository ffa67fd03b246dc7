package storetest

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tidemark-go/tidemark"
)

// quick makes rules that wait or repeat short enough to run once per flaw.
var quick = Options{Settle: 200 * time.Millisecond, Timeout: 20 * time.Second}.withDefaults()

func TestRun_PassesACorrectStore(t *testing.T) {
	Run(t, func(*testing.T) tidemark.Store[string, string] { return newMemory(sound) }, quick)
}

// TestRules_CatchWhatTheyForbid is the suite's own suite: a store with one flaw
// must fail the rule that forbids it.
func TestRules_CatchWhatTheyForbid(t *testing.T) {
	caught := map[string][]flaw{
		"AbsentKeyIsNotFound":                           {absentIsNoError},
		"CreateNeedsBaseZero":                           {createNeedsBaseOne},
		"CreateOverExistingKeyConflicts":                {createOverwrites, conflictIsUnavailable},
		"UpdateReplacesValue":                           {updateDropsValue},
		"S28_StaleBaseConflictsAndChangesNothing":       {staleBaseWins, conflictIsUnnamed, conflictTouchesRow},
		"BaseThatNeverWasConflicts":                     {futureBaseWins},
		"VersionsStrictlyIncrease":                      {versionRepeats},
		"S18_DeletionIsNewerThanTheRow":                 {deletionKeepsVersion},
		"LoadAfterDeletionNamesItsVersion":              {deletionIsForgotten},
		"S17_RecreationContinuesAboveTheDeletion":       {recreationRestarts},
		"WriteToDeletedKeyConflicts":                    {deletedRowIsWritable, conflictNamesDeletion},
		"DeleteWithStaleBaseConflictsAndChangesNothing": {deleteIgnoresBase},
		"DeleteOfAbsentKeyConflicts":                    {deleteOfAbsentSucceeds},
		"KeysAreIndependent":                            {keysShareARow},
		"S31_OutcomeOfCommittedWrite":                   {outcomeKnowsNothing},
		"S31_OutcomeOfWriteNeverSent":                   {outcomeKnowsEverything, outcomeBarsTheWrite, outcomeForgetsKey},
		"S31_OutcomeOfConflictedWrite":                  {outcomeOfConflict},
		"S31_OutcomeOfOverwrittenWrite":                 {outcomeIsTheRows, outcomeNamesCurrent},
		"S31_OutcomeOfDeletion":                         {outcomeForgetsDeletion},
		"S37_RetriedUpdateIsAppliedOnce":                {retryConflicts},
		"S37_RetriedUpdateOnNewBaseIsAppliedOnce":       {retryOnNewBaseApplies},
		"S37_RetriedCreationIsAppliedOnce":              {retryCreatesAgain},
		"S37_RetriedDeletionIsAppliedOnce":              {retryDeletesAgain},
		"EmptyValueIsNotAbsent":                         {emptyIsAbsent},
		"LargeValue":                                    {valuesAreCut},
		"ValuesAreKeptByteForByte":                      {valuesAreEscaped},
		"KeysAreComparedByteForByte":                    {keysAreTrimmed, keysAreFolded},
		"BulkLoadSaysSomethingOfEveryKey":               {bulkOmitsAbsent, bulkForgetsDeletion, bulkStopsEarly, bulkIgnoresContext},
		"S13_VersionsAreThoseOfTheRows":                 {versionsLag, versionsOfDeletions, versionsStopEarly, versionsIgnoreContext},
		"I10_ConcurrentWritersFormAChain":               {checksWithoutLock},
		"I10_OneOfManyCreatorsWins":                     {createsWithoutLock},
		"S37_ConcurrentRetriesAreAppliedOnce":           {retriesWithoutLock},
		"S22_ReadsNeverGoBack":                          {versionWithoutLock, readsLag, readsTear},
		"S31_WriteUnderEndedContextIsNotCommitted":      {contextIsIgnored, endedContextStillCommits},
		"S31_CancelledWriteCanBeLookedUp":               {cancelledIsUnavailable, cancelledIsConflict, cancelledHalfDone, outcomeRewrites},
	}
	for _, r := range rules {
		require.NotEmpty(t, caught[r.name], "no flaw shows that rule %s can fail", r.name)
		for _, f := range caught[r.name] {
			t.Run(r.name+"/"+string(f), func(t *testing.T) {
				t.Parallel()
				begin := time.Now()
				failures := failuresOf(t.Context(), r, newMemory(f))
				assert.Less(t, time.Since(begin), quick.Timeout, "the rule only failed because it ran out of time")
				assert.NotEmpty(t, failures, "a store of which it is true that %q passes the rule", f)
				for _, failure := range failures {
					assert.NotContains(t, failure, "panic")
				}
			})
		}
	}
	assert.Len(t, caught, len(rules), "a rule is listed here that does not exist")
}

func TestCancelledWrite_CutsWritesOffUnderWay(t *testing.T) {
	m := newMemory(sound)
	m.latency = slow
	assert.Empty(t, failuresOf(t.Context(), rule{"", cancelledWrite}, m))
	assert.Positive(t, m.cutOff.Load(), "no context ended while its write was under way")
}

// A store that says so may write a row anew, but not sooner.
func TestCancelledWrite_RewritesAfter(t *testing.T) {
	for after, ok := range map[time.Duration]bool{time.Nanosecond: true, time.Hour: false} {
		o := quick
		o.RewritesAfter = after
		rec := &recorder{}
		var wg sync.WaitGroup
		wg.Go(func() { check(rec, t.Context(), rule{"", cancelledWrite}, newMemory(outcomeRewrites), o) })
		wg.Wait()
		assert.Equal(t, ok, len(rec.failures) == 0, "%v: %v", after, rec.failures)
	}
}

func TestCheck_GivesEachRunKeysOfItsOwn(t *testing.T) {
	shared := newMemory(sound)
	for _, r := range slices.Concat(rules, rules) {
		assert.Empty(t, failuresOf(t.Context(), r, shared), "rule %s on a store that was used before", r.name)
	}
}

func TestQuote_ShortensLongValues(t *testing.T) {
	assert.Equal(t, `"short"`, quote("short"))
	assert.Less(t, len(quote(strings.Repeat("x", 1000))), 60)
}

// failuresOf runs r against store and returns what it reported.
func failuresOf(ctx context.Context, r rule, store tidemark.Store[string, string]) []string {
	rec := &recorder{}
	var wg sync.WaitGroup
	wg.Go(func() { // a goroutine of its own, because FailNow ends it
		defer func() {
			if v := recover(); v != nil {
				rec.Errorf("panic: %v", v)
			}
		}()
		check(rec, ctx, r, store, quick)
	})
	wg.Wait()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.failures
}

// A recorder is a reporter that remembers.
type recorder struct {
	mu       sync.Mutex // guards failures
	failures []string
}

func (*recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (*recorder) FailNow() { runtime.Goexit() }
