# make demo: set up .venv and run the whole loop.   make test: set up .venv with the dev extras; lint, types, tests.
# make fast: tests for between two saves, without Ray.   make test-all: every test, those marked `extended` too.
# make lint, make types: parts of make test alone.   PYTHON=python3.12 make …: with another Python, in a new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Modules are compiled when they are first imported: most never are, and to compile all takes a minute. What is compiled
# has to be kept, whatever the shell says: Ray starts hundreds of processes, and each would take ten seconds to start.
INSTALL := $(PIP) install --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-cluster checked fast quick lint types dist bench-docs clean

demo: $(VENV)/.installed
	$(BIN)/rayapp demo $(DEMO_ARGS)

# Tests run side by side, and their models are so small that threads wait for each other more than they compute.
test test-all fast quick: export OMP_NUM_THREADS := 1
test: checked
	$(BIN)/python -m pytest -m "cluster and not extended"

test-all: checked
	$(BIN)/python -m pytest -m cluster

# mypy takes one core, and pytest's two processes what is left.
checked: $(VENV)/.installed-dev
	$(MAKE) --jobs 2 --output-sync=target lint types quick

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not cluster" -n 2

fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not cluster and not slow" -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# What a node of a cluster gets (docs/cluster.md): the wheel, its constraints, the set-up, the Serve configuration.
dist: $(VENV)/.installed
	rm -rf dist build
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	cp constraints.txt deployments/cluster/setup.sh deployments/production.yaml dist
	rm -rf build

# Three hosts in network namespaces of this machine, as root, with iproute2, openssh-server, rsync and redis-server.
# ROOT: a root with a live model, such as that of `make demo DEMO_ARGS=--exit`. SCENARIO: first, head, worker or redis.
SCENARIO ?= first
ROOT ?= rayapp-data
test-cluster: $(VENV)/.installed-dev dist
	$(BIN)/python -m tests.cluster $(SCENARIO) --venv $(VENV) --root $(ROOT)

# The stamp files make a second run quick, and a changed dependency install again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[dev,redis]"
	touch $@ $(VENV)/.installed

# The tables under docs/benchmarks, measured again.
bench-docs: $(VENV)/.installed
	$(BIN)/rayapp fetch movielens --original-times --out rayapp-data/download/movielens
	$(BIN)/rayapp demo --exit
	$(BIN)/rayapp compare --seeds 3 --write docs/benchmarks/models_movielens.md
	$(BIN)/python -m benchmarks calibration --write docs/benchmarks/calibration.md
	$(BIN)/rayapp react --write docs/benchmarks/react_movielens.md
	$(INSTALL) -e ".[bench,redis]"
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
