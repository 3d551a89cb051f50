# Everything sets itself up: Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check bench bench-utility bench-ledger bench-masking bench-portraits bench-invariance bench-learners bench-segments bench-analytics setup clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.run   ## a whole federation on this machine; writes out/demo/report.html and summary.json
	$(BIN)/sfumato demo --out out/demo

test: $(VENV)/.dev   ## all tests
	@sh tests/system-packages.sh
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev   ## format, lint, types, borders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-utility bench-masking bench-ledger bench-portraits bench-invariance bench-learners bench-segments bench-analytics   ## all tables of benchmarks/

bench-utility: $(VENV)/.dev   ## accuracy on seven real data sets, beside a central model without privacy
	$(BIN)/python benchmarks/utility.py

bench-masking: $(VENV)/.dev   ## speed of masks and of exact noise, beside flwr's own mask generator
	$(BIN)/python benchmarks/masking.py

bench-ledger: $(VENV)/.dev   ## what admission costs: the running filter, the durable door, the PLD
	$(BIN)/python benchmarks/ledger.py

bench-portraits: $(VENV)/.dev   ## how often a portrait's intervals hold the truth, and how far off its counts are
	$(BIN)/python benchmarks/portraits.py

bench-invariance: $(VENV)/.dev   ## the same customers over 4, 16 and 64 branches: does a net or a portrait change?
	$(BIN)/python benchmarks/invariance.py

bench-learners: $(VENV)/.dev   ## trees, scorecard and net by secure sums, beside central XGBoost and each branch alone
	$(BIN)/python benchmarks/learners.py

bench-segments: $(VENV)/.dev   ## inertia of private segments, beside k-means without privacy
	$(BIN)/python benchmarks/segments.py

bench-analytics: $(VENV)/.dev   ## the portraits catalogue: do intervals hold the pooled truth, and are its bars met?
	$(BIN)/python benchmarks/analytics.py

setup: $(VENV)/.dev   ## only set up the environment

# torch first and alone: another package must not choose its build.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed (Debian: apt-get install python3-venv)"; exit 1; }
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[dev]'
	@touch $@

clean:           ## remove the environment and everything generated
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
