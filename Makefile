# Featuremill. `make help` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE    := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/featuremill
PATH     := $(PATH):$(HOME)/.cargo/bin
GETTORCH := adapters/torch/libtorch.sh
TOKENS   := adapters/tokenizer/build.sh
# What cgo needs to compile and link against libtorch and the tokenizer library.
CGO      := eval "$$($(GETTORCH) env)"; tokens=$$($(TOKENS) env) || exit 1; \
	export CGO_ENABLED=1 CGO_LDFLAGS="$${CGO_LDFLAGS:-} $$(sed -n 's/^CGO_LDFLAGS=//p' <<<"$$tokens")"
PACKAGES ?= ./...
RUN      ?= .
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

needs: ## check for, and as root on Debian or Ubuntu install, the programs that build Featuremill
	@.ci/needs.sh

libtorch: needs ## fetch libtorch into the user's cache (TORCH=2.1 or 2.7; VARIANT=cpu or cu121; an existing LIBTORCH=DIR): all targets take these
	@$(GETTORCH) fetch

postgres: needs ## fetch PostgreSQL's programs for the embedded default
	@adapters/embedded/postgres.sh >/dev/null

build: libtorch ## build bin/featuremill (pure Go) and bin/extractor (libtorch)
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/featuremill ./cmd/featuremill
	@$(CGO); go build -ldflags '-s -w' -o bin/extractor ./cmd/extractor

demo: build postgres ## the main job on embedded defaults: a real model, SAE and text to browsable features; then it serves
	@cmd/featuremill/demo/fetch.sh >/dev/null
	@exec bin/featuremill demo $(ARGS)

test: libtorch postgres ## every test, with the race detector (PACKAGES=./domain/... RUN=Name narrow it)
	@model=$$(cmd/featuremill/demo/fetch.sh | sed -n 1p); export FEATUREMILL_TEST_SMOLLM2="$$model"; \
	python=$$(.ci/python.sh); export FEATUREMILL_PYTHON="$$python"; adapters/tokenizer/testdata/fetch.sh >/dev/null; \
	$(CGO); go test -race -count=1 -timeout 20m -run '$(RUN)' $(PACKAGES)

parity: libtorch ## the tests against transformers and sae-lens alone (TORCH=2.7: on another libtorch)
	@model=$$(cmd/featuremill/demo/fetch.sh | sed -n 1p); export FEATUREMILL_TEST_SMOLLM2="$$model"; \
	$(CGO); go test -count=1 ./adapters/torch/... ./cmd/extractor/...

test-kafka: build postgres ## the end-to-end and broker tests on Apache Kafka (needs Java and mvn)
	@cmd/featuremill/demo/fetch.sh >/dev/null
	@$(CGO); FEATUREMILL_TEST_KAFKA=apache go test -race -count=1 -timeout 20m ./adapters/kafka/... ./cmd/internal/e2e/...

test-s3: build postgres ## the end-to-end tests on a real object store (RUN=Name narrow them); says so where it cannot be had
	@cmd/featuremill/demo/fetch.sh >/dev/null
	@adapters/blob/s3server.sh >/dev/null || { [ $$? -eq 3 ] && exit 0; exit 1; }; \
	$(CGO); adapters/blob/s3server.sh run go test -race -count=1 -timeout 20m -run '$(RUN)' ./cmd/internal/e2e/...

soak: build postgres ## a server's life in TIME (default 1h): kills, restarts, outages, rebuilds, sweeps, and people
	@$(CGO); FEATUREMILL_TEST_LIFE=$(or $(TIME),1h) go test -count=1 -timeout 3h -v -run TestAServerThatLives ./cmd/internal/e2e/

lint: ## gofmt, vet, golangci-lint with the rules of the layout
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	@$(GETTORCH) fetch; $(CGO); go vet ./... && go run $(GOLANGCI) run ./...

bench: build postgres ## every benchmark that README quotes, as ratios (quiet machine, a quarter of an hour)
	@cmd/featuremill/demo/fetch.sh >/dev/null
	@$(CGO); .ci/bench.sh

fuzz: libtorch ## every fuzz target for FUZZTIME (default 1m)
	@$(CGO); .ci/fuzz.sh $(or $(FUZZTIME),1m)

generate: ## regenerate what is generated (server types from schema/openapi.yaml, event schemas)
	@go generate ./...

verify: generate ## prove that generated files are current and go.mod is tidy
	@go mod tidy -diff
	@git diff --exit-code -- schema adapters/httpapi || { echo "generated files are not current: commit what make generate wrote" >&2; exit 1; }

clean: ## remove what was built here (the caches in $(CACHE) stay)
	rm -rf bin

.PHONY: help needs libtorch postgres build demo test parity test-kafka test-s3 soak lint bench fuzz generate verify clean
