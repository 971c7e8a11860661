# Sandglass. `make` alone prints what can be made.

export CGO_ENABLED ?= 0
GO      ?= go
GOFLAGS := -buildvcs=false $(GOFLAGS)
export GOFLAGS

.PHONY: help build test lint generate bench netbench compare attacks clean

help: ## print this
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build ./sandglass, one static binary
	$(GO) build -trimpath -o sandglass .

test: ## install what tests need, then every check and test, as root and as an ordinary user
	@bash tools/test.sh

lint: ## gofmt, vet, staticcheck
	@bash tools/lint.sh

generate: ## write the Go code of the templ pages anew
	$(GO) tool templ generate -path web

bench: build ## workloads native and boxed, as ratios, in one run
	@$(GO) build -trimpath -o tools/bench/bench ./tools/bench && tools/bench/bench; rm -f tools/bench/bench

netbench: build ## a box's network against native, pasta and slirp4netns, as ratios, in one run
	@$(GO) run ./tools/netbench

attacks: build ## try to get out of a box, in each of the ways there are, and print what came of it
	@$(GO) run ./attacks

compare: build ## what strace sees of a workload against what the box's log says
	@$(GO) run ./tools/compare

clean: ## remove what make built
	rm -f sandglass
