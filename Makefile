# Everything here works with Go, make and a POSIX shell, but for the tests with
# PostgreSQL, Redis and a browser, which want those installed (CONTRIBUTING.md); make lint and make vuln
# fetch their tool from the Go module proxy, at the version that stands here.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

# A folder with a go.mod is a module; a new one needs no line here.
MODULES := $(shell find . -name go.mod -not -path '*/testdata/*' -exec dirname {} \; | LC_ALL=C sort)

# Build tags of the tests that need a server: not run by make test, but vetted.
TAGS = mysql

FUZZTIME ?= 30s
SEEDS    ?= 100000
BENCH    ?= .
COUNT    ?= 10
RESULTS  ?=
ROUNDS   ?= 0
STORM    ?=
CHROMIUM ?= chromium-headless-shell
HEIGHT   ?= 1447
# COUNTS names a file that gets the numbers of passed, failed and skipped tests.
COUNTS   ?=

NOSKIP = go run ./internal/lint/noskip $(if $(COUNTS),-counts '$(COUNTS)')

# TIMEOUT is for one package: a test that hangs shows its goroutines after it.
# The longest, integration, takes minutes, most of them waiting.
TIMEOUT ?= 10m

# each runs a command in every module and fails when one of the runs failed.
each = status=0; for m in $(MODULES); do echo "== $$m: $(strip $(1))"; (cd $$m && $(1)) || status=1; done; exit $$status

.DEFAULT_GOAL := help
.PHONY: help test race bench microbench fuzz lint mods mutants sim storm picture vuln

help: ## this list
	@awk -F ': *## *' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "modules: $(MODULES)"

test: ## every module, with the race detector; a skipped test fails the run
	@$(NOSKIP) $(MODULES) -- -race -shuffle=on -timeout $(TIMEOUT) ./...
	@$(NOSKIP) . -- -shuffle=on -timeout $(TIMEOUT) -run '^(TestTrap|TestPolicy|TestWithin_Costs|TestSim$$|TestCacheMatchesModel|TestCacheAnswers|TestKeys_|TestReplicas_Property|TestOutbox_Property|TestHostile_NoRead|TestHostile_KeysOf|TestAudit_FindsEvery|TestTable$$|TestTable_AFloodLeaves)' . ./internal/table # at full size and speed, which the detector is too slow for
	@$(NOSKIP) bench -- -shuffle=on -timeout $(TIMEOUT) -run '^TestGuard_' . # ratios to other caches, and allocations

race: ## the root module with the race detector on 1, 2 and 4 CPUs
	@$(NOSKIP) . -- -race -shuffle=on -timeout $(TIMEOUT) -cpu 1,2,4 ./...

# TRACES is a folder of access traces, which are not ours to hand on; without it
# hit ratios are measured on generated ones only.
TRACES ?= ../shared/traces

bench: ## compare with other caches: writes docs/benchmarks.md, in about an hour (ROUNDS=n: so many in place of 11; RESULTS=file of an earlier run: seconds)
	@$(if $(RESULTS),,go run -C bench . -out results.txt -traces '$(abspath $(TRACES))' -rounds $(ROUNDS))
	@go run -C bench . -report '$(if $(RESULTS),$(abspath $(RESULTS)),results.txt)' -docs '$(abspath docs)'

microbench: ## benchmarks of the root module for benchstat (BENCH=regexp COUNT=10)
	@go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...

fuzz: ## every fuzz target for FUZZTIME=30s
	@.ci/fuzz $(FUZZTIME)

lint: ## gofmt, go vet and staticcheck, tagged tests included
	@unformatted=$$(gofmt -l .) || exit 1; test -z "$$unformatted" || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	@$(call each,go vet -tags $(TAGS) ./...)
	@$(call each,go run $(STATICCHECK) -tags $(TAGS) ./...)

mods: ## go.mod and go.sum are tidy and the downloaded modules are what go.sum says
	@$(call each,go mod tidy -diff)
	@$(call each,go mod verify)

sim: ## the simulation over SEEDS=100000 seeds, without the race detector
	@go test -count=1 -timeout 0 -v -run '^TestSim$$' . -sim.seeds $(SEEDS)

mutants: ## remove each guard of the protocol in turn: the test named for it must go red
	@go run ./internal/mutants

vuln: ## known vulnerabilities (needs the internet: asks the Go vulnerability database; not part of CI)
	@$(call each,go run $(GOVULNCHECK) ./...)

picture: ## docs/storm.png: the page of a storm with all contenders, as a browser shows its top
	@page=$$(mktemp -d) && trap 'rm -rf "$$page"' EXIT && \
	go run -C cmd/tidemark . storm -html "$$page/storm.html" $(STORM) && \
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --log-level=3 --hide-scrollbars --window-size=1160,$(HEIGHT) \
		--user-data-dir="$$page/profile" --screenshot='$(abspath docs/storm.png)' "file://$$page/storm.html"

storm: ## the incident, replayed against every contender (STORM='-h' for its flags)
	@go run -C cmd/tidemark . storm $(STORM)
