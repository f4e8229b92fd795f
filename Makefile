# Needs Python 3.11+ and make. Every target sets up the virtual environment first, from the hash-pinned lock file, and
# only when that has changed. Further arguments go through ARGS: make test ARGS="tests/work -x"

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-lock
ARGS ?=
# The first of these that is recent enough.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

.DEFAULT_GOAL := help
.PHONY: help dev test check lock bench chaos mutants
SEED ?= 1
MINUTES ?= 10

help: ## What there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

dev: $(STAMP) ## Everything up on this machine: Postgres, Temporal, demo data, worker, API
	@$(BIN)/fairlead dev $(ARGS)

test: $(STAMP) ## The tests, on real Postgres and Temporal of their own
	@$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## Lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP) ## Throughput, latency and growth, each beside its floor
	@$(BIN)/python -m bench $(ARGS)

chaos: $(STAMP) ## A long fault run: SEED=1 MINUTES=10
	@$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) $(ARGS)

mutants: $(STAMP) ## Each guard taken away once; a test must notice
	@$(BIN)/python -m tests.mutants $(ARGS)

lock: $(STAMP) ## Resolve the dependencies anew into requirements.lock (ARGS=--upgrade for newer ones)
	@command -v uv >/dev/null || { echo "make lock needs uv (pip install uv)"; exit 1; }
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --quiet $(ARGS) -o requirements.lock

# uv when it is there, being quicker; pip otherwise. Both refuse what the lock's hashes do not name.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Fairlead needs Python 3.11 or later: install it, or name it with PYTHON=.."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || uv venv --quiet --clear --python $(PYTHON) $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv package, or uv"; exit 1; }
	@echo "Installing the locked packages into $(VENV) .."
	@if uv --version >/dev/null 2>&1; then \
		uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@
