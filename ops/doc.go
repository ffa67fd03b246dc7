// Package ops lets people who operate a service look into its caches while it
// runs: by HTTP, beside net/http/pprof, and by NATS, where the commands "tidemark
// top", "tidemark inspect", "tidemark audit" and "tidemark doctor" ask all replicas at
// once.
//
// A [View] is one cache as they see it. [Handler] shows views by HTTP, and changes
// nothing. [View.Serve] answers on NATS, where two questions change something: one lets
// the auditor begin a cycle, at the rate that the program has set, and one sets the
// bypass, which is refused unless [Options.AllowBypass] is set. Nothing of a View counts
// as a read but the showing of a value. Both are off until the program calls them, and
// neither knows who asks: give the handler an address that only operators reach, as that
// of pprof, and the subjects permissions.
//
// Whoever can ask may name any key and is shown what is known of it. If there is an
// auditor, he is also shown, if he asks for that, the keys of its latest mismatches,
// which he need not know. A value is shown only if [Options.FormatValue] is set and it is
// asked for: keys and values can be personal data. Note that proxies write the keys of
// HTTP requests into their logs.
package ops
