// Package ops lets people who operate a service look into its caches while it
// runs: by HTTP, beside net/http/pprof, and by NATS, where the commands "tidemark
// top", "tidemark inspect", "tidemark audit" and "tidemark doctor" ask all replicas at
// once.
//
// A [View] is one cache as they see it. [Handler] shows views by HTTP; [View.Serve]
// answers on NATS. Neither changes anything, but that a question on NATS may let the
// auditor begin a cycle, and nothing of a View counts as a read but the showing of a
// value. Both are off until the program calls them, and neither
// knows who asks: give the handler an address that only operators reach, as that of
// pprof, and the subjects permissions.
//
// A key is shown to who asks for that key. A value is shown only if
// [Options.FormatValue] is set and it is asked for: keys and values can be personal
// data. Note that proxies write the keys of HTTP requests into their logs.
package ops
