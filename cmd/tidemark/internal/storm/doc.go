// Package storm replays what production does to a service whose replicas each
// keep a cache in front of one database: it delays, reorders, repeats and drops
// the messages between them, cuts replicas off, kills writers, and changes rows
// behind everybody's back, while readers and writers go on. It runs the same
// schedule against several ways to build such a cache and counts, against the
// truth, what their readers got to see.
//
// [Run] is the whole of it. An oracle knows every version that was committed
// and when it was acknowledged, and judges each read; a ledger knows every
// acknowledged deposit. Neither looks into a cache.
package storm
