# Every target sets up .venv by itself. PYTHON: the interpreter to build it with. ARGS: more arguments for pytest.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/installed
# The models of tests and demo are so small that a second thread waits more than it computes.
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/pytest -q -n 2 --timeout 300

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(INSTALLED)  ## set up .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kernelkit needs Python 3.11 or later: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## train a small teacher, distil a student with other kernels from it, and a control
	$(ONE_THREAD) $(BIN)/kernelkit distill configs/distill/tiny.yaml --overwrite

test: $(INSTALLED)  ## the fast tests
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: $(INSTALLED)  ## every test; those for a GPU are skipped without one
	$(PYTEST) $(ARGS)

lint: $(INSTALLED)  ## style, types and the order of the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## mend style as far as ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Only a GPU's figures are published.
PUBLISH = $(shell $(BIN)/python -c 'import torch; print("--publish benchmarks" if torch.cuda.is_available() else "")')

bench: $(INSTALLED)  ## what a bound kernel costs to call; every kernel and whole step, on a GPU into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/dispatch.py
	$(BIN)/kernelkit bench $(PUBLISH)
	$(BIN)/kernelkit bench --step $(PUBLISH)

clean:  ## remove what was built and cached, and .venv
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
