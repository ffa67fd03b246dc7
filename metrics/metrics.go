// Package metrics says what there is to measure of a cache: names, kinds, units, and
// what to think of each. Modules metrics/prometheus and metrics/otel export all of it,
// and an exporter for something else is a loop over [All].
//
// No metric has a label that keys or values could get into, so the number of series does
// not depend on what a cache holds. docs/operations.md, in the repository, says what each
// metric means, and what to do about it.
package metrics

import (
	"math"
	"slices"

	"github.com/tidemark-go/tidemark"
)

// A Kind says how a metric behaves.
type Kind uint8

const (
	Counter Kind = iota // it only rises
	Sum                 // it rises and falls, and those of several replicas can be added
	Gauge               // it rises and falls, and adding makes no sense
)

// Seconds is the Unit of durations.
const Seconds = "s"

// A Metric is one or several numbers that a cache has.
type Metric struct {
	Name string // lower case, in parts joined by a dot: "tidemark.load_time"
	Kind Kind
	Unit string // as OpenTelemetry writes it: Seconds, "{read}" for what is counted, or "" for neither
	Help string // what to think of it

	Label  string // by which its Series differ; "" if there is only one
	Series []Series
}

// A Series is one number.
type Series struct {
	Label string // the value of Metric.Label

	// Value returns the number, which is in nanoseconds if the Metric is in Seconds.
	// It is not to be exported if it is not known: nothing is shown, or there is no
	// such thing in this cache.
	Value func(*tidemark.Stats) (value int64, known bool)
}

// All returns all metrics. The slice is the caller's; what it holds must not be changed.
func All() []Metric { return slices.Clone(all) }

// number is a series that is always known.
func number[N int | int64 | uint32 | uint64](label string, of func(*tidemark.Stats) N) Series {
	return Series{label, func(s *tidemark.Stats) (int64, bool) { return clamp(of(s)), true }}
}

// clamp keeps what no int64 can hold from becoming negative.
func clamp[N int | int64 | uint32 | uint64](n N) int64 {
	if n > 0 && uint64(n) > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n)
}

// one is the series of a metric that has no other.
func one[N int | int64 | uint32 | uint64](of func(*tidemark.Stats) N) []Series {
	return []Series{number("", of)}
}

// yes is the series of a metric that is 1 or 0.
func yes(of func(*tidemark.Stats) bool) Series {
	return number("", func(s *tidemark.Stats) int {
		if of(s) {
			return 1
		}
		return 0
	})
}

// states has a series for each state, of which one is 1.
func states() (each []Series) {
	for state := tidemark.Alone; state <= tidemark.Ended; state++ {
		is := yes(func(s *tidemark.Stats) bool { return s.State == state })
		each = append(each, Series{state.String(), is.Value})
	}
	return each
}

// breakerStates has a series for each state of a breaker, of which one is 1.
func breakerStates() (each []Series) {
	for state := tidemark.BreakerClosed; state <= tidemark.BreakerOpen; state++ {
		is := yes(func(s *tidemark.Stats) bool { return s.Breaker == state })
		each = append(each, Series{state.String(), func(s *tidemark.Stats) (int64, bool) {
			value, _ := is.Value(s)
			return value, s.Breaker != tidemark.NoBreaker
		}})
	}
	return each
}

type stats = *tidemark.Stats

// all is in the order of docs/operations.md.
var all = []Metric{
	{"tidemark.state", Gauge, "", "1 for the state that the replica is in, 0 for the others. joining: it does not hear the others, and every read goes to the source; suspect: the log cannot be read, and entries grow old.",
		"state", states()},
	{"tidemark.cut_off", Gauge, "", "1 while the replica does not hear the others and serves nothing from memory. For a few seconds after a start it should be.",
		"", []Series{yes(func(s stats) bool { return s.CutOff })}},
	{"tidemark.bypassed", Gauge, "", "1 while SetBypass is on: nothing is served from memory until somebody sets it off.",
		"", []Series{yes(func(s stats) bool { return s.Bypassed })}},
	{"tidemark.staleness_bound", Gauge, Seconds, "How old anything served from memory can be at most, as the log has shown. Grows while the log is out of reach. Missing if nothing is shown, or there is no log.",
		"", []Series{{"", func(s stats) (int64, bool) { return int64(s.Fresh), s.Fresh >= 0 }}}},
	{"tidemark.log_sequence", Gauge, "", "Number of the log's message that was read last. Replicas that differ for long are behind by so many messages.",
		"", one(func(s stats) uint64 { return s.LogSeq })},
	{"tidemark.peers", Sum, "{peer}", "Other replicas and publishers that this one hears. It should be the same on all replicas.",
		"", one(func(s stats) int { return s.Peers })},
	{"tidemark.source_epoch", Gauge, "", "The epoch of the source that was declared last. It should be the same on all replicas.",
		"", one(func(s stats) uint32 { return s.SourceEpoch })},

	{"tidemark.reads", Counter, "{read}", "Reads, by whether memory could answer. A cached absence is a hit. The share of hits is the hit ratio.",
		"result", []Series{
			number("hit", func(s stats) uint64 { return s.Hits }), number("miss", func(s stats) uint64 { return s.Misses })}},
	{"tidemark.reads_too_old", Counter, "{read}", "Reads that failed with ErrStale because what memory had was too old for them. Callers saw an error.",
		"", one(func(s stats) uint64 { return s.TooOld })},
	{"tidemark.reads_stale", Counter, "{read}", "Reads that were answered after the entry's TTL, or while it was suspect, with Entry.Stale set. revalidate: while a load replaced it; error: since the source did not answer.",
		"reason", []Series{
			number("revalidate", func(s stats) uint64 { return s.StaleWhileRevalidate }), number("error", func(s stats) uint64 { return s.StaleIfError })}},
	{"tidemark.soft_timeouts", Counter, "{read}", "Reads that did not wait longer than SoftLoadTimeout for a load. Some are normal where the source is slow at times.",
		"", one(func(s stats) uint64 { return s.SoftTimeouts })},

	{"tidemark.loads", Counter, "{load}", "Calls of the Loader; a bulk load counts once. This is the load on the source.",
		"", one(func(s stats) uint64 { return s.Loads })},
	{"tidemark.load_errors", Counter, "{load}", "Loads that failed, by key; not those of keys that do not exist. Callers saw an error, or a stale entry.",
		"", one(func(s stats) uint64 { return s.LoadErrors })},
	{"tidemark.load_time", Counter, Seconds, "Time spent in calls of the Loader. Its rate divided by that of loads is the mean latency of the source.",
		"", []Series{{"", func(s stats) (int64, bool) { return int64(s.LoadTime), true }}}},
	{"tidemark.loads_running", Sum, "{load}", "Calls of the Loader that run now. At MaxLoads further ones wait.",
		"", one(func(s stats) int { return s.Loading })},
	{"tidemark.loads_declined", Counter, "{load}", "Loads that were not made, since there was no place among MaxLoads in time or the Breaker refused. Callers saw an error, or a stale entry; the source was spared.",
		"", one(func(s stats) uint64 { return s.Declined })},
	{"tidemark.loads_joined", Counter, "{read}", "Reads that waited for a load that was running already. Many of them are a stampede that the source did not see.",
		"", one(func(s stats) uint64 { return s.Joined })},
	{"tidemark.refreshes", Counter, "{load}", "Loads started behind a hit, by RefreshAfter or StaleWhileRevalidate.",
		"", one(func(s stats) uint64 { return s.Refreshes })},
	{"tidemark.confirmations", Counter, "{state}", "States that were suspect or too old, of which the source was asked for the version only.",
		"", one(func(s stats) uint64 { return s.Confirmed })},
	{"tidemark.breaker_state", Gauge, "", "1 for the state that the Breaker is in, 0 for the others. open: the source is left alone; half-open: a few calls show whether it answers again. Missing if there is no Breaker, or it does not tell.",
		"state", breakerStates()},
	{"tidemark.breaker_opens", Counter, "{time}", "Times when the Breaker was noticed to have opened. More than one in a trouble: the source answers, and fails again.",
		"", one(func(s stats) uint64 { return s.BreakerOpens })},
	{"tidemark.breaker_refused", Counter, "{call}", "Calls that the Breaker refused. Loads count as declined, too; a write that it refused was not sent, and its caller saw an error.",
		"call", []Series{
			number("load", func(s stats) uint64 { return s.DeclinedByBreaker }), number("write", func(s stats) uint64 { return s.DeclinedWrites })}},

	{"tidemark.refused", Counter, "{state}", "States that a load, a fill or a write brought and that were not stored, since their key had moved on or might have. These races were lost and noticed: stale values that nobody was served.",
		"by", []Series{
			number("load", func(s stats) uint64 { return s.RefusedLoads }), number("fill", func(s stats) uint64 { return s.RefusedFills }),
			number("write", func(s stats) uint64 { return s.RefusedWrites })}},
	{"tidemark.unkept", Counter, "{state}", "Loads, fills and writes that were not stored because the options say so, or others took the room.",
		"", one(func(s stats) uint64 { return s.Unkept })},
	{"tidemark.puts", Counter, "{put}", "Calls of Put, by outcome. stale: an old value was rejected; unproven: nothing showed that it was not old. Many unproven ones say that Load or BeginFill should be used.",
		"outcome", []Series{
			number("applied", func(s stats) uint64 { return s.Applied }), number("duplicate", func(s stats) uint64 { return s.Duplicate }),
			number("stale", func(s stats) uint64 { return s.Stale }), number("unproven", func(s stats) uint64 { return s.Unproven })}},
	{"tidemark.too_large", Counter, "{value}", "Values that cost more than MaxCost and are never cached. Each read of them is a load.",
		"", one(func(s stats) uint64 { return s.TooLarge })},

	{"tidemark.entries", Sum, "{entry}", "Entries in memory.",
		"", one(func(s stats) int { return s.Entries })},
	{"tidemark.cost", Sum, "", "Cost of all entries, in the unit of Options.Cost; entries, if there is none.",
		"", one(func(s stats) int64 { return s.Cost })},
	{"tidemark.cost_limit", Sum, "", "MaxCost: what the entries may cost together.",
		"", one(func(s stats) int64 { return s.MaxCost })},
	{"tidemark.evictions", Counter, "{entry}", "Entries given up for room, or not admitted. Fine as long as the hit ratio is.",
		"", one(func(s stats) uint64 { return s.Evictions })},

	{"tidemark.writes", Counter, "{write}", "Writes through the cache that were committed.",
		"", one(func(s stats) uint64 { return s.Writes })},
	{"tidemark.write_conflicts", Counter, "{write}", "Writes that the store refused because they were based on a version that was not current. Update tries again; many of them mean a contended key.",
		"", one(func(s stats) uint64 { return s.Conflicts })},
	{"tidemark.writes_uncertain", Counter, "{write}", "Writes of which it was not known at once whether they were committed: timeouts and lost answers of the store.",
		"", one(func(s stats) uint64 { return s.Uncertain })},
	{"tidemark.writes_in_doubt", Sum, "{write}", "Writes of which that is not known yet. Their keys are not cached meanwhile. It should fall to 0 within DoubtTimeout.",
		"", one(func(s stats) int { return s.InDoubt })},
	{"tidemark.strict_writes_open", Sum, "{write}", "Strict writes of other replicas that have begun and not ended. Their keys are not cached meanwhile.",
		"", one(func(s stats) int { return s.Intents })},
	{"tidemark.strict_writes_lapsed", Counter, "{write}", "Strict writes of others of which nobody told how they ended: their writer has died or was cut off.",
		"", one(func(s stats) uint64 { return s.Lapsed })},

	{"tidemark.invalidations", Counter, "{key}", "Keys invalidated, by whom: calls of Invalidate here, or messages of others.",
		"from", []Series{
			number("here", func(s stats) uint64 { return s.Invalidated }), number("others", func(s stats) uint64 { return s.Applies })}},
	{"tidemark.flushes", Counter, "{flush}", "Times when everything was thrown away, by InvalidateAll anywhere or a new source epoch. The source feels each.",
		"", one(func(s stats) uint64 { return s.Flushes })},
	{"tidemark.suspicions", Counter, "{suspicion}", "Times when all entries became suspect, to be confirmed by the source before they are served again. gaps, cut_offs, silences and unreadable messages say why.",
		"", one(func(s stats) uint64 { return s.Suspicions })},
	{"tidemark.gaps", Counter, "{gap}", "Messages were missing, in an origin's numbers or in the log, and it was noticed.",
		"", one(func(s stats) uint64 { return s.Gaps })},
	{"tidemark.cut_offs", Counter, "{time}", "Times when the replica no longer heard the others.",
		"", one(func(s stats) uint64 { return s.CutOffs })},
	{"tidemark.silences", Counter, "{origin}", "Replicas and publishers that fell silent without a goodbye: they died, or were killed before Close.",
		"", one(func(s stats) uint64 { return s.Silences })},
	{"tidemark.log_downs", Counter, "{time}", "Times when the log could no longer be read. Entries stay and grow old.",
		"", one(func(s stats) uint64 { return s.LogDowns })},

	{"tidemark.messages_sent", Counter, "{message}", "Messages published, hellos included.",
		"", one(func(s stats) uint64 { return s.Sent })},
	{"tidemark.messages_received", Counter, "{message}", "Messages of others, hellos included.",
		"", one(func(s stats) uint64 { return s.Received })},
	{"tidemark.messages_rejected", Counter, "{message}", "Messages that were not applied. unreadable: garbage, or a newer release's, and everything became suspect; foreign: of another name or schema on this subject, a mistake in somebody's configuration.",
		"reason", []Series{
			number("unreadable", func(s stats) uint64 { return s.Bad }), number("foreign", func(s stats) uint64 { return s.Foreign })}},
	{"tidemark.backlog_keys", Sum, "{key}", "Keys that wait to be broadcast. It grows while the transport takes no messages.",
		"", one(func(s stats) int { return s.Backlog })},
	{"tidemark.backlog_collapses", Counter, "{backlog}", "Backlogs that grew too long and became one message that everything changed.",
		"", one(func(s stats) uint64 { return s.Collapsed })},

	{"tidemark.audit_checks", Counter, "{entry}", "Entries that the auditor has compared with the source. Its rate is bounded by AuditOptions.Rate; 0 for long means that it is not set, or is put off.",
		"", one(func(s stats) uint64 { return s.AuditChecked })},
	{"tidemark.audit_mismatches", Counter, "{entry}", "Entries that differed from the source for longer than they may. stale: the source had a newer state; differs: another value at the same version; ahead: an older state, so it went back. Each should be looked into.",
		"kind", []Series{
			number("stale", func(s stats) uint64 { return s.AuditStale }), number("differs", func(s stats) uint64 { return s.AuditDiffers }),
			number("ahead", func(s stats) uint64 { return s.AuditAhead })}},
	{"tidemark.audit_refused", Counter, "{entry}", "Comparisons that were put off, for readers who needed the source more, for the Breaker, or because the source failed. They are made later.",
		"", one(func(s stats) uint64 { return s.AuditRefused })},
	{"tidemark.audit_cycles", Counter, "{cycle}", "Times when the auditor has looked at every entry.",
		"", one(func(s stats) uint64 { return s.AuditCycles })},
	{"tidemark.shadow", Gauge, "", "1 in shadow mode: nothing is served from memory, and reads only say what would have been.",
		"", []Series{yes(func(s stats) bool { return s.Shadow })}},
	{"tidemark.shadow_hits", Counter, "{read}", "Reads in shadow mode that memory would have served. Divided by all reads it is what the hit ratio would be.",
		"", one(func(s stats) uint64 { return s.ShadowHits })},
	{"tidemark.shadow_differences", Counter, "{read}", "Those of them that would have got an older state than the source had, or another value of the same version. Older ones are normal while the message of a change is on its way; the auditor's mismatches are those that stayed so.",
		"kind", []Series{
			number("older", func(s stats) uint64 { return s.ShadowOlder }), number("differs", func(s stats) uint64 { return s.ShadowDiffers })}},

	{"tidemark.callback_panics", Counter, "{panic}", "Panics of the Loader, the Store or another callback, contained. Each is a mistake in the program; the log has its stack.",
		"", one(func(s stats) uint64 { return s.Panics })},
	{"tidemark.log_records_muted", Counter, "{record}", "Records that the Logger was spared, since there were too many like them.",
		"", one(func(s stats) uint64 { return s.Muted })},
}
