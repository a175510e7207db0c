# Everything here needs python3 (3.11 or newer), make and a package index; nothing else.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
LOCK := constraints.txt
export CHATQUEUE_HOME ?= $(CURDIR)/.chatqueue

# Tests wait more than they compute, so there are more of them at a time than cores.
TEST_PROCESSES ?= 4
# The least part of the lines and branches that the tests must reach: of everything, and of what
# decides about jobs and money.
COVERED ?= 80
KERNEL := worker/jobs/*,worker/retry.py,worker/store/*
KERNEL_COVERED ?= 95

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
		| awk -F ':.*## ' '{ printf "  make %-9s %s\n", $$1, $$2 }'

# --- the environment ------------------------------------------------------------------------------

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "chatqueue needs Python 3.11 or newer; there is no '$(PYTHON)' (make PYTHON=…)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chatqueue needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V) (make PYTHON=…)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# To run: the package and what it needs, at the versions that were tested.
$(VENV)/.installed: pyproject.toml $(LOCK) | $(BIN)/python
	@echo "installing chatqueue"
	@$(PIP) install --no-compile -c $(LOCK) -e .
	@touch $@

# To work on it: the tools as well.
$(VENV)/.installed-dev: pyproject.toml $(LOCK) | $(BIN)/python
	@echo "installing chatqueue and its tools"
	@$(PIP) install --no-compile -c $(LOCK) -e '.[dev]'
	@touch $(VENV)/.installed $@

# --- using it -------------------------------------------------------------------------------------

.PHONY: run
run: $(VENV)/.installed ## Run the example: a file of requests in, results.jsonl out
	@$(BIN)/chatqueue run ops/examples/requests.jsonl -o results.jsonl --errors errors.jsonl

# --- working on it --------------------------------------------------------------------------------

.PHONY: test
test: lint ## Check and test everything
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -q -m 'not services and not long' -n $(TEST_PROCESSES) --dist worksteal \
		--cov --cov-report= --cov-fail-under=0
	@$(BIN)/coverage report --fail-under=$(COVERED)
	@printf 'covered of what decides about jobs and money, in percent: '
	@$(BIN)/coverage report --include='$(KERNEL)' --fail-under=$(KERNEL_COVERED) --format=total

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style, types and the order of the rooms
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || \
		{ echo "not formatted: run 'make format'" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo 2>&1 || exit 1

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format --quiet

define LOCK_PY
import json, re, sys
ours = {"chatqueue", "pip", "setuptools"}
found = [item["metadata"] for item in json.load(sys.stdin)["install"]]
pins = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in found}
print("# The tested version of everything that '.[dev]' installs. Made by 'make lock'.")
print(*(f"{name}=={pins[name]}" for name in sorted(pins.keys() - ours)), sep="\n")
endef
export LOCK_PY

# Needed only on some of the Pythons we run on (redis needs it before 3.11.3), so not found on all.
ELSEWHERE := async-timeout

.PHONY: lock
lock: | $(BIN)/python ## Take the newest versions that fit into constraints.txt
	@$(PIP) install --dry-run --ignore-installed --report - -e '.[dev]' $(ELSEWHERE) \
		| $(BIN)/python -c "$$LOCK_PY" > $(LOCK).new
	@mv $(LOCK).new $(LOCK)

.PHONY: docs
docs: $(VENV)/.installed ## Write ops/reference.md from the code
	@$(BIN)/python ops/make_reference.py

# Beside the tools, what others use to make many calls. Only newest versions are worth comparing.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@echo "installing what chatqueue is compared with"
	@$(PIP) install --no-compile -c $(LOCK) -e '.[bench]'
	@touch $@

.PHONY: bench
bench: $(VENV)/.installed-bench ## Measure chatqueue beside the others, and write ops/bench/report.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m ops.bench.report $(BENCH)

.PHONY: mutants
mutants: $(VENV)/.installed-dev ## Remove each guard of the books: a test must notice
	@$(BIN)/python ops/trials/mutants.py $(MUTANTS)

.PHONY: trial
trial: $(VENV)/.installed-dev ## Kill workers at random, and count in books of its own
	@$(BIN)/python ops/trials/kill.py $(TRIAL)

.PHONY: wheel
wheel: $(VENV)/.installed-dev ## Build the wheel into dist/
	@$(PIP) wheel --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove the environment and everything that was made
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
		.coverage .coverage.* dist build *.egg-info
	@find worker migrations tests ops -name __pycache__ -prune -exec rm -rf {} +
