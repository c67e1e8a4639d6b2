# Two commands do everything on a machine that has Python 3.11+ and nothing else:
#   make demo    make .venv, install, go the whole way on the built-in sample
#   make test    make .venv if missing, install, run every check
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= demo
# Commands and tests start hundreds of interpreters, and each would compile what it imports again: keep the bytecode.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help install demo test test-fast check lint format types pytest docs notebooks bench-prepare bench-step bench-sampler bench-eval bench-law clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## install        make .venv and install xdoge with everything into it
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "xdoge needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	@echo "== installing into .venv (about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --disable-pip-version-check --no-compile -q -c constraints.txt -e '.[all,dev]'
	@touch $@

## demo           the whole way on the built-in sample, to a report, in some minutes
demo: .venv/installed
	@echo "== xdoge demo --out $(DEMO_OUT)"
	@$(BIN)/xdoge demo --out $(DEMO_OUT)

## test           every check: ruff, mypy --strict, pytest with warnings as errors
test: check

check: lint types pytest

## test-fast      the same without the tests that take more than ten seconds
test-fast: lint types
	@echo "== pytest -m 'not slow', warnings are errors"
	@$(BIN)/pytest -q -n 2 -m "not slow"

lint: .venv/installed
	@echo "== ruff: lint and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/installed
	@echo "== mypy --strict"
	@$(BIN)/mypy

pytest: .venv/installed
	@echo "== pytest, warnings are errors"
	@$(BIN)/pytest -q -n 2

## docs           build the site into site/, with warnings and broken links as errors
docs: .venv/installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

## notebooks      run the notebooks of examples/notebooks again and keep what they print
notebooks: .venv/installed
	@$(BIN)/jupyter-execute --inplace examples/notebooks/*.ipynb

## format         put the code into the project's format
format: .venv/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

## bench-prepare  tokens/s of prepare over the bare tokenizer
bench-prepare: .venv/installed
	@$(BIN)/python benchmarks/prepare.py

## bench-step     time and memory of a fit step over a plain training step
bench-step: .venv/installed
	@$(BIN)/python benchmarks/step.py

## bench-sampler  build, draws/s, resume, state and deviation of the sampler beside others; loader tokens/s
bench-sampler: .venv/installed
	@$(BIN)/python benchmarks/sampler.py

## bench-eval     tokens/s of perplexity over the harness's rolling log-likelihood
bench-eval: .venv/installed
	@$(BIN)/python benchmarks/perplexity.py

## bench-law      accuracy of mixture laws and their rivals on a published swarm (XDOGE_REAL_DATA); the honesty of
##                optima: benchmarks/law.py --optimism
bench-law: .venv/installed
	@$(BIN)/python benchmarks/law.py

## clean          remove what the demo and the caches wrote
clean:
	rm -rf demo site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
