# The environment is .venv; `make demo` on a fresh machine sets it up and runs the main job.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test check check-static slow slurm rehearsal

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Acuity needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/acuity demo

test: install
	$(BIN)/pytest

slow: install
	$(BIN)/pytest -m 'slow or browser'

slurm: install
	$(BIN)/pytest -m slurm

rehearsal: install
	$(BIN)/python docker/rehearsal/rehearse.py

check: check-static test

check-static: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
