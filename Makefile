# make demo: set up .venv and run the whole loop.   make test: set up .venv with the dev extras; lint, types, tests.
# make lint, make types: the parts of make test that take seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint types bench-docs clean

demo: $(VENV)/.installed
	$(BIN)/rayapp demo $(DEMO_ARGS)

# Tests run side by side, and their models are so small that threads wait for each other more than they compute.
test: export OMP_NUM_THREADS := 1
test: lint types
	$(BIN)/python -m pytest -m "not cluster" -n 2
	$(BIN)/python -m pytest -m cluster

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The stamp files make a second run quick, and a changed dependency install again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[dev,redis]"
	touch $@ $(VENV)/.installed

# The tables under docs/benchmarks, measured again.
bench-docs: $(VENV)/.installed
	$(BIN)/rayapp demo --exit
	$(BIN)/rayapp compare --seeds 3 --write docs/benchmarks/models_movielens.md
	$(BIN)/rayapp react --write docs/benchmarks/react_movielens.md
	$(PIP) install -c constraints.txt -e ".[bench,redis]"
	$(BIN)/python -m benchmarks ingest --write docs/benchmarks/ingest.md
	$(BIN)/python -m benchmarks memory --write docs/benchmarks/store_memory.md
	$(BIN)/python -m benchmarks crash --write docs/benchmarks/durability.md
	$(BIN)/python -m benchmarks sequences --write docs/benchmarks/sequences.md
	$(BIN)/python -m benchmarks train --write docs/benchmarks/train.md
	$(BIN)/python -m benchmarks score --write docs/benchmarks/score.md
	$(BIN)/python -m benchmarks batch --write docs/benchmarks/batch.md
	$(BIN)/python -m benchmarks experiments --write docs/benchmarks/experiments.md
	$(BIN)/python -m benchmarks serve --write docs/benchmarks/serve.md
	$(BIN)/python -m benchmarks faults --write docs/benchmarks/faults.md
	$(BIN)/python -m benchmarks autoscale --write docs/benchmarks/autoscale.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
