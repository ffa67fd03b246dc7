package prometheus

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark-go/tidemark"
)

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// A metric is one family as it is exported. Its help says what to think of it.
type metric struct {
	name   string
	kind   prometheus.ValueType
	help   string
	label  string // of its series, besides "cache"; empty if there is one series
	series []series
}

// A series is one number of a metric.
type series struct {
	label string
	of    func(*tidemark.Stats) (value float64, known bool)
}

// number is a series that is always known.
func number[N int | int64 | uint32 | uint64](label string, of func(*tidemark.Stats) N) series {
	return series{label, func(s *tidemark.Stats) (float64, bool) { return float64(of(s)), true }}
}

// one is the series of a metric that has no other.
func one[N int | int64 | uint32 | uint64](of func(*tidemark.Stats) N) []series {
	return []series{number("", of)}
}

// yes is the series of a metric that is 1 or 0.
func yes(of func(*tidemark.Stats) bool) series {
	return number("", func(s *tidemark.Stats) int {
		if of(s) {
			return 1
		}
		return 0
	})
}

// states has a series for each state, of which one is 1.
func states() (all []series) {
	for state := tidemark.Alone; state <= tidemark.Ended; state++ {
		is := yes(func(s *tidemark.Stats) bool { return s.State == state })
		all = append(all, series{state.String(), is.of})
	}
	return all
}

// breakerStates has a series for each state of a breaker, of which one is 1.
func breakerStates() (all []series) {
	for state := tidemark.BreakerClosed; state <= tidemark.BreakerOpen; state++ {
		is := yes(func(s *tidemark.Stats) bool { return s.Breaker == state })
		all = append(all, series{state.String(), func(s *tidemark.Stats) (float64, bool) {
			value, _ := is.of(s)
			return value, s.Breaker != tidemark.NoBreaker
		}})
	}
	return all
}

type stats = *tidemark.Stats

// metrics is all that is exported, in the order of docs/operations.md. The names are
// those that metrics/otel has behind OpenTelemetry's exporter for Prometheus, so that
// dashboard and alerts fit both.
var metrics = []metric{
	{"tidemark_state", gauge, "1 for the state that the replica is in, 0 for the others. joining: it does not hear the others, and every read goes to the source; suspect: the log cannot be read, and entries grow old.",
		"state", states()},
	{"tidemark_cut_off", gauge, "1 while the replica does not hear the others and serves nothing from memory. For a few seconds after a start it should be.",
		"", []series{yes(func(s stats) bool { return s.CutOff })}},
	{"tidemark_bypassed", gauge, "1 while SetBypass is on: nothing is served from memory until somebody sets it off.",
		"", []series{yes(func(s stats) bool { return s.Bypassed })}},
	{"tidemark_staleness_bound_seconds", gauge, "How old anything served from memory can be at most, as the log has shown. Grows while the log is out of reach. Missing if nothing is shown, or there is no log.",
		"", []series{{"", func(s stats) (float64, bool) { return s.Fresh.Seconds(), s.Fresh >= 0 }}}},
	{"tidemark_log_sequence", gauge, "Number of the log's message that was read last. Replicas that differ for long are behind by so many messages.",
		"", one(func(s stats) uint64 { return s.LogSeq })},
	{"tidemark_peers", gauge, "Other replicas and publishers that this one hears. It should be the same on all replicas.",
		"", one(func(s stats) int { return s.Peers })},
	{"tidemark_source_epoch", gauge, "The epoch of the source that was declared last. It should be the same on all replicas.",
		"", one(func(s stats) uint32 { return s.SourceEpoch })},

	{"tidemark_reads_total", counter, "Reads, by whether memory could answer. A cached absence is a hit. The share of hits is the hit ratio.",
		"result", []series{
			number("hit", func(s stats) uint64 { return s.Hits }), number("miss", func(s stats) uint64 { return s.Misses })}},
	{"tidemark_reads_too_old_total", counter, "Reads that failed with ErrStale because what memory had was too old for them. Callers saw an error.",
		"", one(func(s stats) uint64 { return s.TooOld })},
	{"tidemark_reads_stale_total", counter, "Reads that were answered after the entry's TTL, or while it was suspect, with Entry.Stale set. revalidate: while a load replaced it; error: since the source did not answer.",
		"reason", []series{
			number("revalidate", func(s stats) uint64 { return s.StaleWhileRevalidate }), number("error", func(s stats) uint64 { return s.StaleIfError })}},
	{"tidemark_soft_timeouts_total", counter, "Reads that did not wait longer than SoftLoadTimeout for a load. Some are normal where the source is slow at times.",
		"", one(func(s stats) uint64 { return s.SoftTimeouts })},

	{"tidemark_loads_total", counter, "Calls of the Loader; a bulk load counts once. This is the load on the source.",
		"", one(func(s stats) uint64 { return s.Loads })},
	{"tidemark_load_errors_total", counter, "Loads that failed, by key; not those of keys that do not exist. Callers saw an error, or a stale entry.",
		"", one(func(s stats) uint64 { return s.LoadErrors })},
	{"tidemark_load_time_seconds_total", counter, "Time spent in calls of the Loader. Its rate divided by that of tidemark_loads_total is the mean latency of the source.",
		"", []series{{"", func(s stats) (float64, bool) { return s.LoadTime.Seconds(), true }}}},
	{"tidemark_loads_running", gauge, "Calls of the Loader that run now. At MaxLoads further ones wait.",
		"", one(func(s stats) int { return s.Loading })},
	{"tidemark_loads_declined_total", counter, "Loads that were not made, since there was no place among MaxLoads in time or the Breaker refused. Callers saw an error, or a stale entry; the source was spared.",
		"", one(func(s stats) uint64 { return s.Declined })},
	{"tidemark_loads_joined_total", counter, "Reads that waited for a load that was running already. Many of them are a stampede that the source did not see.",
		"", one(func(s stats) uint64 { return s.Joined })},
	{"tidemark_refreshes_total", counter, "Loads started behind a hit, by RefreshAfter or StaleWhileRevalidate.",
		"", one(func(s stats) uint64 { return s.Refreshes })},
	{"tidemark_confirmations_total", counter, "States that were suspect or too old, of which the source was asked for the version only.",
		"", one(func(s stats) uint64 { return s.Confirmed })},
	{"tidemark_breaker_state", gauge, "1 for the state that the Breaker is in, 0 for the others. open: the source is left alone; half-open: a few calls show whether it answers again. Missing if there is no Breaker, or it does not tell.",
		"state", breakerStates()},
	{"tidemark_breaker_opens_total", counter, "Times when the Breaker was noticed to have opened. More than one in a trouble: the source answers, and fails again.",
		"", one(func(s stats) uint64 { return s.BreakerOpens })},
	{"tidemark_breaker_refused_total", counter, "Calls that the Breaker refused. Loads count as declined, too; a write that it refused was not sent, and its caller saw an error.",
		"call", []series{
			number("load", func(s stats) uint64 { return s.DeclinedByBreaker }), number("write", func(s stats) uint64 { return s.DeclinedWrites })}},

	{"tidemark_refused_total", counter, "States that a load, a fill or a write brought and that were not stored, since their key had moved on or might have. These races were lost and noticed: stale values that nobody was served.",
		"by", []series{
			number("load", func(s stats) uint64 { return s.RefusedLoads }), number("fill", func(s stats) uint64 { return s.RefusedFills }),
			number("write", func(s stats) uint64 { return s.RefusedWrites })}},
	{"tidemark_unkept_total", counter, "Loads, fills and writes that were not stored because the options say so, or others took the room.",
		"", one(func(s stats) uint64 { return s.Unkept })},
	{"tidemark_puts_total", counter, "Calls of Put, by outcome. stale: an old value was rejected; unproven: nothing showed that it was not old. Many unproven ones say that Load or BeginFill should be used.",
		"outcome", []series{
			number("applied", func(s stats) uint64 { return s.Applied }), number("duplicate", func(s stats) uint64 { return s.Duplicate }),
			number("stale", func(s stats) uint64 { return s.Stale }), number("unproven", func(s stats) uint64 { return s.Unproven })}},
	{"tidemark_too_large_total", counter, "Values that cost more than MaxCost and are never cached. Each read of them is a load.",
		"", one(func(s stats) uint64 { return s.TooLarge })},

	{"tidemark_entries", gauge, "Entries in memory.",
		"", one(func(s stats) int { return s.Entries })},
	{"tidemark_cost", gauge, "Cost of all entries, in the unit of Options.Cost; entries, if there is none.",
		"", one(func(s stats) int64 { return s.Cost })},
	{"tidemark_cost_limit", gauge, "MaxCost: what the entries may cost together.",
		"", one(func(s stats) int64 { return s.MaxCost })},
	{"tidemark_evictions_total", counter, "Entries given up for room, or not admitted. Fine as long as the hit ratio is.",
		"", one(func(s stats) uint64 { return s.Evictions })},

	{"tidemark_writes_total", counter, "Writes through the cache that were committed.",
		"", one(func(s stats) uint64 { return s.Writes })},
	{"tidemark_write_conflicts_total", counter, "Writes that the store refused because they were based on a version that was not current. Update tries again; many of them mean a contended key.",
		"", one(func(s stats) uint64 { return s.Conflicts })},
	{"tidemark_writes_uncertain_total", counter, "Writes of which it was not known at once whether they were committed: timeouts and lost answers of the store.",
		"", one(func(s stats) uint64 { return s.Uncertain })},
	{"tidemark_writes_in_doubt", gauge, "Writes of which that is not known yet. Their keys are not cached meanwhile. It should fall to 0 within DoubtTimeout.",
		"", one(func(s stats) int { return s.InDoubt })},
	{"tidemark_strict_writes_open", gauge, "Strict writes of other replicas that have begun and not ended. Their keys are not cached meanwhile.",
		"", one(func(s stats) int { return s.Intents })},
	{"tidemark_strict_writes_lapsed_total", counter, "Strict writes of others of which nobody told how they ended: their writer has died or was cut off.",
		"", one(func(s stats) uint64 { return s.Lapsed })},

	{"tidemark_invalidations_total", counter, "Keys invalidated, by whom: calls of Invalidate here, or messages of others.",
		"from", []series{
			number("here", func(s stats) uint64 { return s.Invalidated }), number("others", func(s stats) uint64 { return s.Applies })}},
	{"tidemark_flushes_total", counter, "Times when everything was thrown away, by InvalidateAll anywhere or a new source epoch. The source feels each.",
		"", one(func(s stats) uint64 { return s.Flushes })},
	{"tidemark_suspicions_total", counter, "Times when all entries became suspect, to be confirmed by the source before they are served again. gaps, cut_offs, silences and unreadable messages say why.",
		"", one(func(s stats) uint64 { return s.Suspicions })},
	{"tidemark_gaps_total", counter, "Messages were missing, in an origin's numbers or in the log, and it was noticed.",
		"", one(func(s stats) uint64 { return s.Gaps })},
	{"tidemark_cut_offs_total", counter, "Times when the replica no longer heard the others.",
		"", one(func(s stats) uint64 { return s.CutOffs })},
	{"tidemark_silences_total", counter, "Replicas and publishers that fell silent without a goodbye: they died, or were killed before Close.",
		"", one(func(s stats) uint64 { return s.Silences })},
	{"tidemark_log_downs_total", counter, "Times when the log could no longer be read. Entries stay and grow old.",
		"", one(func(s stats) uint64 { return s.LogDowns })},

	{"tidemark_messages_sent_total", counter, "Messages published, hellos included.",
		"", one(func(s stats) uint64 { return s.Sent })},
	{"tidemark_messages_received_total", counter, "Messages of others, hellos included.",
		"", one(func(s stats) uint64 { return s.Received })},
	{"tidemark_messages_rejected_total", counter, "Messages that were not applied. unreadable: garbage, or a newer release's, and everything became suspect; foreign: of another name or schema on this subject, a mistake in somebody's configuration.",
		"reason", []series{
			number("unreadable", func(s stats) uint64 { return s.Bad }), number("foreign", func(s stats) uint64 { return s.Foreign })}},
	{"tidemark_backlog_keys", gauge, "Keys that wait to be broadcast. It grows while the transport takes no messages.",
		"", one(func(s stats) int { return s.Backlog })},
	{"tidemark_backlog_collapses_total", counter, "Backlogs that grew too long and became one message that everything changed.",
		"", one(func(s stats) uint64 { return s.Collapsed })},

	{"tidemark_audit_checks_total", counter, "Entries that the auditor has compared with the source. Its rate is bounded by AuditOptions.Rate; 0 for long means that it is not set, or is put off.",
		"", one(func(s stats) uint64 { return s.AuditChecked })},
	{"tidemark_audit_mismatches_total", counter, "Entries that differed from the source for longer than they may. stale: the source had a newer state; differs: another value at the same version; ahead: an older state, so it went back. Each should be looked into.",
		"kind", []series{
			number("stale", func(s stats) uint64 { return s.AuditStale }), number("differs", func(s stats) uint64 { return s.AuditDiffers }),
			number("ahead", func(s stats) uint64 { return s.AuditAhead })}},
	{"tidemark_audit_refused_total", counter, "Comparisons that were put off, for readers who needed the source more, for the Breaker, or because the source failed. They are made later.",
		"", one(func(s stats) uint64 { return s.AuditRefused })},
	{"tidemark_audit_cycles_total", counter, "Times when the auditor has looked at every entry.",
		"", one(func(s stats) uint64 { return s.AuditCycles })},
	{"tidemark_shadow", gauge, "1 in shadow mode: nothing is served from memory, and reads only say what would have been.",
		"", []series{yes(func(s stats) bool { return s.Shadow })}},
	{"tidemark_shadow_hits_total", counter, "Reads in shadow mode that memory would have served. Divided by all reads it is what the hit ratio would be.",
		"", one(func(s stats) uint64 { return s.ShadowHits })},
	{"tidemark_shadow_differences_total", counter, "Those of them that would have got an older state than the source had, or another value of the same version. Older ones are normal while the message of a change is on its way; the auditor's mismatches are those that stayed so.",
		"kind", []series{
			number("older", func(s stats) uint64 { return s.ShadowOlder }), number("differs", func(s stats) uint64 { return s.ShadowDiffers })}},

	{"tidemark_callback_panics_total", counter, "Panics of the Loader, the Store or another callback, contained. Each is a mistake in the program; the log has its stack.",
		"", one(func(s stats) uint64 { return s.Panics })},
	{"tidemark_log_records_muted_total", counter, "Records that the Logger was spared, since there were too many like them.",
		"", one(func(s stats) uint64 { return s.Muted })},
}
