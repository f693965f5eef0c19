# The environment is .venv; `make demo` on a fresh machine sets it up and runs the main job.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Processes of `make test`: twice the usual two cores, since tests wait most of the time for workers and databases.
PROCESSES ?= 4
RUNS := .venv/.installed
DEVELOPS := .venv/.installed-dev
BUILT := .venv/built

.PHONY: install install-dev demo test check check-static docs slow slurm standin gpu rehearsal

install: $(RUNS)

install-dev: $(DEVELOPS)

$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Acuity needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(DEVELOPS): $(RUNS)
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/acuity demo

test: install-dev
	$(BIN)/pytest -n $(PROCESSES) --dist worksteal

slow: install-dev
	$(BIN)/pytest -n 2 --dist worksteal -m '(slow or browser) and not standin' --ignore tests/system/test_gpu_benchmark.py

# A process for each file, since the stand-in GPU changes PyTorch's global state.
standin: install-dev
	grep -rl --include='test_*.py' 'mark\.standin' tests | xargs -P 2 -n 1 $(BIN)/pytest -m standin

gpu: install
	$(BIN)/python benchmarks/gpu.py

slurm: install-dev
	$(BIN)/pytest -m slurm

rehearsal: install-dev
	$(BIN)/python docker/rehearsal/rehearse.py

check: check-static test

# The reference pages come from the program; the site is in site/.
docs: install-dev
	$(BIN)/python website/reference.py
	$(BIN)/zensical build --strict

# import-linter does not follow the links in acuity/, so it reads a built copy. Building it also tests the packaging.
check-static: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zensical build --strict
	rm -rf build $(BUILT)
	$(PIP) install --no-deps --no-build-isolation --target $(BUILT) .
	cd $(BUILT) && ../bin/lint-imports --config ../../pyproject.toml
