# `make bench` and `make test` set up what is missing; `make help` names the rest.

.PHONY: help setup build test linux-kernels linux-images test-linux test-linux-ci \
	test-python bench bench-ladder study linux-figures study-docs report-screenshots lint api semver clean
CARGO ?= cargo
BENCH_FLAGS ?=
TARGET := x86_64-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/$(TARGET)/release/reapvm
NESTED := $(TARGET_DIR)/$(TARGET)/nested
# Names of jobs for test-linux, or how they begin, separated by commas or spaces: what to run (all if
# empty) and what to leave out.
JOBS ?=
SKIP ?=
# The jobs that have passed four times or more, on a busy machine.
LINUX_CI_JOBS := boot-6.1 boot-6.12 bzimage big-memory network disk-6.1 disk-6.12 modes-6.1 modes-6.12 \
	clones balloon-6.1 balloon-6.12 damage panic
# Set when one of them needs the programs of the integration tests, which take long to build.
INTEGRATION = $(if $(findstring integration,$(JOBS)),$(NESTED)/integration.json)
# What semver compares with, and by what.
BASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
SEMVER_CHECKS := 0.51.0
# More options for study, such as --functions helloworld --repetitions 1.
STUDY_FLAGS ?=
# Figures of Linux guests, which study takes into its report where they are there.
LINUX_FIGURES := bench-results/linux-figures.jsonl
# Reports for report-screenshots, if not of a cold start and a study that it makes in this folder.
REPORTS ?=
PICTURED := bench-results/report
SPACE := $(subst ,, )
# What bench-ladder starts.
LADDER_FUNCTIONS ?= helloworld,json_serdes,rnn_serving,memory_touch_8,memory_touch_96

help: ## Name the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

setup: ## Install the Debian packages that are missing, naming them first
	@./.ci/setup

build: setup ## Build the static binaries bin/reapvm and bin/reapvm-trace
	RUSTFLAGS="-C target-feature=+crt-static" \
	    $(CARGO) build --release --locked -p reapvm -p reapvm-analysis --target $(TARGET)
	@mkdir -p bin && cp $(BINARY) $(BINARY)-trace bin/

test: setup ## Run every test (needs /dev/kvm and /dev/userfaultfd)
	$(CARGO) test --workspace --locked --no-fail-fast

linux-kernels: ## Fetch Debian's stock kernels into ~/.cache/reapvm/linux
	@./guest-images/linux/setup
	@./guest-images/linux/fetch-kernels

linux-images: linux-kernels ## Build the small kernel and the Python functions' root file system
	@./guest-images/linux/rootfs/setup
	@./guest-images/linux/rootfs/build-images

test-python: ## Test the Python functions and their server, outside of a guest
	@./guest-images/linux/functions/run-tests

test-linux: build linux-kernels ## Run stock Linux guests in a nested host (needs no KVM)
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile nested --locked \
	    -p reapvm-nested -p reapvm-guest-init --target $(TARGET)
	$(if $(INTEGRATION),RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) test --profile nested \
	    --locked -p reapvm-tests --test '*' --target $(TARGET) --no-run \
	    --message-format=json-render-diagnostics > $(INTEGRATION))
	$(NESTED)/reapvm-nested $(JOBS) $(SKIP:%=--skip %) $(INTEGRATION:%=--integration %)

test-linux-ci: ## The jobs of test-linux that CI runs
	$(MAKE) test-linux JOBS="$(LINUX_CI_JOBS)"

bench: build ## Boot, snapshot and cold-start the ten functions; print the table
	./bin/reapvm bench --json bench-results/bench.json $(BENCH_FLAGS)

bench-ladder: build ## Start cold by every method, then many at once; print what each step is worth
	./bin/reapvm bench --ladder --functions $(LADDER_FUNCTIONS) --json bench-results/ladder.json $(BENCH_FLAGS)
	./bin/reapvm bench --concurrent 1,2,4,8,16,32,64 --clones 16 --runs 5 --start-by invoke,serve \
	    --json bench-results/concurrent.json

study: build ## Test the paper's findings on the ten functions; write a report (a few minutes)
	./bin/reapvm study --output bench-results/study \
	    $(if $(wildcard $(LINUX_FIGURES)),--linux-figures $(LINUX_FIGURES)) $(STUDY_FLAGS)

study-docs: ## Put the claims of the last study into docs/study.md
	@sed -i -e '/^<!-- claims -->$$/,/^<!-- end of claims -->$$/{//!d}' \
	    -e '/^<!-- claims -->$$/r bench-results/study/claims.md' docs/study.md

linux-figures: ## Count the faults of Linux guests in nested hosts, for study
	$(MAKE) test-linux JOBS=function
	@mkdir -p $(dir $(LINUX_FIGURES))
	@sed -n 's/^.*reapvm-test: figures \({.*}\).*$$/\1/p' target/nested-hosts/function-*.log > $(LINUX_FIGURES)
	@wc -l $(LINUX_FIGURES)

report-screenshots: build ## Trace a cold start, study two functions, look at both reports (REPORTS: others)
	./.ci/setup browser
ifeq ($(REPORTS),)
	@mkdir -p $(PICTURED)
	./bin/reapvm snapshot create --function helloworld -o $(PICTURED)/hello.snap
	./bin/reapvm trace record $(PICTURED)/hello.snap --input '{"seed":1}' --mode ondemand \
	    --out $(PICTURED)/hello.trace
	./bin/reapvm trace report $(PICTURED)/hello.trace --out $(PICTURED)/hello.html
	./bin/reapvm study --functions helloworld,json_serdes --repetitions 1 --output $(PICTURED)/study
endif
	REAPVM_REQUIRE_CHROMIUM=1 REAPVM_REPORTS=$(subst $(SPACE),:,$(abspath $(or $(REPORTS),$(PICTURED)/hello.html $(PICTURED)/study/report.html))) \
	    $(CARGO) test --locked -p reapvm-analysis --test screenshots

lint: setup ## Check format and lints as CI does
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

api: ## List the libraries' interfaces anew in tests/api (RELEASE=1: as those of a release)
	REAPVM_REFRESH_API=$(if $(RELEASE),release,1) $(CARGO) test --locked -p reapvm-tests --test api

semver: ## Compare the libraries' interfaces with the last tag, or with BASE=REVISION
	@test -n "$(BASE)" || { echo "error: there is no tag: name a revision, make semver BASE=…" >&2; exit 1; }
	@command -v cargo-semver-checks >/dev/null || \
	    $(CARGO) install cargo-semver-checks --version $(SEMVER_CHECKS) --locked
	$(CARGO) semver-checks --baseline-rev $(BASE) \
	    -p reapvm-snapshot -p reapvm-reap -p reapvm-devices -p reapvm

clean: ## Remove what was built and measured
	$(CARGO) clean
	rm -rf bench-results bin
