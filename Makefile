# holo: set-up, build, tests, demonstration, benchmark.  `make help` lists the targets.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := build-essential gcc g++ linux-libc-dev iproute2 util-linux redis-server redis-tools strace sqlite3 \
            python3 perl libjemalloc2 ca-certificates curl nginx-light memcached postgresql-15 mariadb-server \
            liburing2 libaio1 libpython3.11-testsuite stress-ng tmux vim git rsync btrfs-progs
PROGRAMS := -p holo-agent -p holo-tools -p holo-interpose -p holo-restorer
NEXTEST := $(CARGO) nextest run --workspace

.PHONY: help setup build test lint soak suites kernel demo bench clean

help:
	@echo "make setup   install what building and testing need (Debian packages, cargo tools); safe to repeat"
	@echo "make build   libholo.so, holod, holo and holo-restorer into target/release"
	@echo "make test    format, lints, documentation, licences, every test; what CI runs"
	@echo "make soak    1,000 checkpoint, kill and restore rounds, 300 epochs of each server under load, deaths at every step; a long time"
	@echo "make suites  programs' own test suites, with and without holo, compared; an hour"
	@echo "make kernel  the tests on Debian's own kernel, in a virtual machine, as root; hours without KVM (tests/kernel.sh chooses tests)"
	@echo "make demo    two nodes, a redis under writing clients, one node killed"
	@echo "make bench   cost of interposition, stop, dump and restore times, as ratios in one run"

# Says what it does, changes only what is missing, starts no service.
setup:
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v javac >/dev/null || missing="$$missing openjdk-17-jdk-headless"; \
	if [ -n "$$missing" ]; then \
	  echo "setup: installing Debian packages:$$missing"; \
	  $(SUDO) sh tests/install.sh $$missing; \
	else echo "setup: all Debian packages are there"; fi
	@if ! command -v $(CARGO) >/dev/null; then \
	  echo "setup: no cargo: install Rust 1.88 or newer with rustup (https://rustup.rs), then run make setup again"; exit 1; fi
	@for c in fmt clippy; do $(CARGO) $$c --version >/dev/null 2>&1 || { echo "setup: adding cargo $$c"; rustup component add rustfmt clippy; }; done
	@for t in cargo-nextest cargo-deny; do if command -v $$t >/dev/null; then echo "setup: $$t is there"; \
	  else echo "setup: installing $$t"; $(CARGO) install --locked $$t || echo "setup: $$t could not be installed; its checks will be left out"; fi; done

build:
	$(CARGO) build --release $(PROGRAMS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
	  $(CARGO) deny --offline check licenses bans sources || exit 1; \
	  if timeout 120 $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny check advisories || exit 1; \
	  else echo "lint: the advisory database cannot be had here: advisories are not checked"; fi; \
	else echo "lint: no cargo-deny: licences are not checked (make setup installs it)"; fi

# Everything nextest finds, the whole-app tests among it: they use target/release.
test: setup lint build
	@if $(CARGO) nextest --version >/dev/null 2>&1; then $(NEXTEST); else echo "test: no cargo-nextest: using cargo test"; $(CARGO) test --workspace -- --test-threads=2; fi
	@echo "make test: all passed"

soak: setup build
	$(CARGO) nextest run -p holo-tests --profile soak --run-ignored only

suites: setup build
	@$(CARGO) run --release -q -p holo-tests --bin holo-suites

kernel: setup build
	sh tests/kernel.sh

demo: setup build
	@$(CARGO) run --release -q -p holo-tests --bin holo-demo

bench: setup build
	@$(CARGO) run --release -q -p holo-tests --bin holo-bench

clean:
	$(CARGO) clean
