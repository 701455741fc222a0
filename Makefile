# make demo    set up, trace the sample texts with the bundled model in 4 bits, open the explorer
# make test    set up, run the tests (10 slowest are printed)
# make lint    formatting, lint and types
# make bench   timings, as ratios against a named rival in the same run
# make prove   the long proofs
# make screenshots   the pictures of docs/explorer.md

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m

.DEFAULT_GOAL := demo
.PHONY: demo test lint bench prove screenshots chromium

.venv/.demo: pyproject.toml constraints.txt
	$(call venv)
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

.venv/.test: pyproject.toml constraints.txt
	$(call venv)
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/.demo

define venv
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("moe_probe needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
endef

# The browser tests drive a real Chromium: one of the system's, else one from apt-get (root), else Playwright's own.
# The headless shell is the same without windows, which would take half of the processor's time.
chromium: .venv/.test
	@.ci/chromium || $(BIN)/playwright install chromium

demo: .venv/.demo
	$(BIN)/moe-probe demo

test: .venv/.test chromium
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile -m "not prove"

lint: .venv/.test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: .venv/.test chromium
	@missed=; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || missed="$$missed $$file"; done; \
	test -z "$$missed" || { echo "a claim was missed in:$$missed"; exit 1; }

prove: .venv/.test
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile -m prove

screenshots: .venv/.test chromium
	$(BIN)/python docs/screenshots.py
