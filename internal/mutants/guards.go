package main

// guards is every guard of the protocol that this release has. A guard without
// an entry here is not a guard.
var guards = []guard{
	{
		name:   "an invalidation raises the floor of loads in flight",
		file:   "shard.go",
		old:    "f.floor, f.moved = m, true",
		new:    "f.moved = true",
		breaks: "a load that an invalidation overtook fills the old value (S1)",
		test:   "TestS01",
	},
}
