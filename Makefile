# make demo and make test need Go, and root or sudo if something is to be
# installed; scripts/install-postgres.sh says what.

GOLANGCI_LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# What the library keeps out of the go.sum of those who import it.
NESTED = $(patsubst %/go.mod,%,$(wildcard examples/*/go.mod))

.PHONY: help
help: ## print the targets (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: ## run the quickstart, on $DATABASE_URL or a throw-away Postgres
	@test -n "$$DATABASE_URL" || scripts/install-postgres.sh server
	@go run ./examples/quickstart

.PHONY: test
test: ## install what the tests need and run them all, with the race detector
	@scripts/install-postgres.sh test
	@# Without a package named, go test also shows what passing tests print: which
	@# extensions there are.
	go test -race -count=1 -timeout 30m
	go test -race -count=1 $$(go list ./... | grep -vx "$$(go list)")
	@set -e; for module in $(NESTED) chaos; do (set -x; cd $$module; go test -race -count=1 ./...); done

# SCHEDULER_POSTGRES_BIN names the directory of another server's programs for any
# go test here; SCHEDULER_TEST_POOLER=exec (or simple_protocol) leads the tests'
# pools through pgbouncer.
.PHONY: test-matrix
test-matrix: ## run the library's tests on PostgreSQL 14 to 18 and through pgbouncer, for most of an hour
	@scripts/install-postgres.sh test
	@scripts/test-matrix.sh

FUZZTIME = 2m

.PHONY: fuzz
fuzz: ## run every fuzz target, each for $(FUZZTIME)
	@scripts/install-postgres.sh server
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities; where their database can't be reached, say so
	@scripts/vulncheck.sh $(NESTED)

.PHONY: bench
bench: ## measure the library beside others on a throw-away Postgres, for some minutes
	@scripts/install-postgres.sh server
	@cd benchmarks && go run .

.PHONY: chaos
chaos: ## do harm to services at work for ten minutes, and count what came of it
	@scripts/install-postgres.sh server
	@cd chaos && go run .

.PHONY: chaos-short
chaos-short: ## a minute of that, as for every change
	@scripts/install-postgres.sh server
	@cd chaos && go run . -for 60s

.PHONY: soak
soak: ## work a million jobs beside fewer faults, and look whether tables and memory stay level, for most of half an hour
	@scripts/install-postgres.sh server
	@cd chaos && go run . -soak 1000000 -rate 1500

.PHONY: chaos-fences
chaos-fences: ## take conditions out of the SQL, one at a time, and see that chaos finds the harm
	@scripts/install-postgres.sh server
	@cd chaos && CHAOS_FENCES=yes go test -count=1 -timeout 30m -run Fence -v .

.PHONY: lint
lint: ## vet, gofmt, golangci-lint, go mod tidy and the build of the examples, changing nothing
	@set -e; for module in . $(NESTED); do ( \
		echo "lint $$module"; cd $$module; \
		go vet ./...; \
		unformatted=$$(gofmt -l .); \
		if [ -n "$$unformatted" ]; then echo "not formatted with gofmt:"; echo "$$unformatted"; exit 1; fi; \
		$(GOLANGCI_LINT) run ./...; \
		go mod tidy -diff; \
		go build -buildvcs=false -o /dev/null ./... ); done
	@set -e; for module in benchmarks chaos; do (set -x; cd $$module; go vet ./...; go mod tidy -diff); done
