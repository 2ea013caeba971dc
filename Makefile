# make quickstart   install the pinned set into .venv and run the quick start
# make test         install what tests need and run them
# make check        format, lint, types and tests: what CI runs
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test slow lint check clean

quickstart: .venv/installed
	$(BIN)/slmc run quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

slow: .venv/dev
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# torch goes first, alone and pinned: any other order may bring a second build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) pip
	$(PIP) torch
	$(PIP) -e '.[onnx,prune,quantize]'
	touch $@

.venv/dev: .venv/installed
	$(PIP) --group dev
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
