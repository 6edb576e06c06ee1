# Everything is made in build/. `make` alone lists the targets.
SHELL := /bin/bash
# sudo's own PATH has no Go.
export PATH := $(PATH):/usr/local/go/bin
FUZZTIME ?= 30s
BENCH ?= .
RELEASE ?= $(shell git describe --always --dirty 2>/dev/null)
SOURCES = cmd tunnel compress dedupe scripts
# Packages whose goroutines share state, for the race detector.
RACE = ./cmd/stitch ./compress/... ./dedupe/... $(addprefix ./tunnel/,control divert dns ether redirect stream/... wan wg/...)
# Packages that can rewrite their golden files.
GOLDEN = $(shell grep -rl 'flag.Bool."update"' --include=*_test.go $(SOURCES) | xargs -rn1 dirname | sort -u | sed 's|^|./|')

.PHONY: help build test setup-test setup-demo setup-codec setup-corpus setup-packets setup-versus setup-wan check race demo corpus codec-bench packets versus wan fuzz bench golden clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 18

build: ## make build/stitch, one static program
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-X main.release=$(RELEASE)" -o build/stitch ./cmd/stitch

test: setup-test check build ## set up, check, run all tests and the race detector (sudo: end to end too)
	@[ "$$(id -u)" = 0 ] || echo 'not root: the end-to-end tests are skipped, `sudo make test` runs them'
	go test -count=1 -shuffle=on -p 1 -timeout 30m ./...
	@$(MAKE) --no-print-directory race

setup-test setup-demo setup-codec setup-corpus setup-packets setup-versus setup-wan: setup-%: ## install what the tests, the demo, codec-bench, the corpus, packets, versus or wan need
	scripts/setup $*

check: ## gofmt and vet
	@bad=$$(gofmt -l $(SOURCES)); [ -z "$$bad" ] || { echo "gofmt -w these:" $$bad; exit 1; }
	go vet ./...

race: ## run the race detector where goroutines share state
	@command -v gcc >/dev/null || { echo 'no gcc: the race detector is skipped, `apt install gcc libc6-dev` brings it'; exit 0; }; \
	set -x; CGO_ENABLED=1 go test -race -short -count=1 -timeout 20m $(RACE)

demo: setup-demo build ## show the mission: move a live virtual machine there and back (sudo)
	go build -trimpath -buildvcs=false -o build/stitch-demo ./scripts/demo
	build/stitch-demo

corpus: setup-corpus ## capture real migration streams and other data for benchmarks (sudo)
	go build -trimpath -buildvcs=false -o build/stitch-corpus ./scripts/corpus
	build/stitch-corpus

codec-bench: setup-codec ## hold the codec against zstd on the data in build/corpus
	go build -trimpath -buildvcs=false -o build/stitch-codec ./scripts/codec
	build/stitch-codec -json build/codec.json

packets: setup-packets ## packets through stitch, wireguard-go, VXLAN and OpenVPN, in one run (sudo)
	go build -trimpath -buildvcs=false -o build/stitch-packets ./scripts/packets
	build/stitch-packets -json build/packets.json

versus: setup-versus ## moves, disk, rsync and backups through stitch and as done without it, in one run (sudo)
	go build -trimpath -buildvcs=false -o build/stitch-versus ./scripts/versus
	build/stitch-versus -json build/versus.json

wan: setup-wan ## captured migrations and incompressible data over ten WANs, through stitch and plain WireGuard, in one run (sudo)
	go build -trimpath -buildvcs=false -o build/stitch-wan ./scripts/wan
	build/stitch-wan -json build/wan.json

fuzz: ## run every fuzz target for FUZZTIME (30s) each
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; done; done

bench: ## run the benchmarks matching BENCH six times, for benchstat
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count 6 ./...

golden: ## rewrite the golden files: then read `git diff`
	go test $(GOLDEN) -update && git status --short $(GOLDEN)

clean: ## remove build/
	rm -rf build
