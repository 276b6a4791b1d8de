# make demo    the whole job on handwritten digits: float model -> mixed-precision ONNX file, in runs/digits
# make test    lint, format, types and the test suite
# make setup   only the environment, in .venv; the other targets do it when needed
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made last, so that an installation that was interrupted is done again; older than what it is made from, so is it.
READY := $(VENV)/.ready

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CHECK_PYTHON := import sys; sys.exit(None if sys.version_info >= (3, 11) else "bitalloc needs Python 3.11 or newer and \
$(PYTHON) is " + sys.version.split()[0] + ": name a newer one, for example with make PYTHON=python3.11.")

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: name a Python 3.11 or newer, for example with make PYTHON=python3.11." >&2; exit 1; }
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@echo "Installing the pinned dependencies into $(VENV) (some minutes, once) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@# The build backend first and no build isolation: it is pinned like everything else.
	@$(PIP) install --constraint constraints.txt setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[all,dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/bitalloc run recipes/digits.toml --out runs/digits

lint: $(READY)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet

types: $(READY)
	@$(BIN)/mypy --no-error-summary

# One thread: the networks of the tests are so small that threads would only wait for each other.
test: lint types
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet

format: $(READY)
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

clean:
	@rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
