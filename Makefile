# make quickstart   install the pinned set into .venv and run the quick start
# make test         install what tests need and run them
# make docs         build the documentation into build/docs; a broken link is an error
# make check        format, lint, types, documentation and tests: what CI runs
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PIP := $(BIN)/$(PIP_INSTALL)

.PHONY: quickstart test slow lint docs check clean

quickstart: .venv/installed
	$(BIN)/slmc run quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4

slow: .venv/dev
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/docs/installed
	.venv/docs/bin/mkdocs build

check: lint docs test

# torch goes first, alone and pinned: any other order may bring a second build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) pip
	$(PIP) torch
	$(PIP) -e '.[onnx,prune,quantize,serve]'
	touch $@

.venv/dev: .venv/installed
	$(PIP) --group dev
	touch $@

# mkdocs-material needs nothing of slmc, so it has an environment of its own, without torch.
.venv/docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/$(PIP_INSTALL) pip
	.venv/docs/bin/$(PIP_INSTALL) --group docs
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
