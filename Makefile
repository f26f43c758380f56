# make train      set up and run the main job
# make test       set up and run the tests         make test-slow   matrices, and whole runs through real launchers
# make parity     every plan against one process (hours)            make test-long   tests of many minutes
# make resume-matrix   save under every plan, resume under every other
# make families   architectures without a file of their own, by model.family=auto
# make trackers   every tracker by its real library, in environments of their own
# make search-engines   searches by the real Ray Tune, W&B sweeps, SigOpt and Hydra sweepers, in environments of their own
# make lint, make types, make pages, make bench, make clean   see below
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OPERATORS := $(VENV)/.operators

.PHONY: train operators test test-slow test-long parity resume-matrix families trackers search-engines lint types pages bench clean

train: $(READY)
	$(BIN)/trireme train pretrain/persimmon_stdlib

# Compiled once, so that no test waits for a compiler.
$(OPERATORS): $(READY)
	$(BIN)/python -m trireme.parallel.zero.operators
	touch $@

operators: $(OPERATORS)

# Without bytecode each of the many processes that tests start would compile trireme anew.
unexport PYTHONDONTWRITEBYTECODE

# A worker that has nothing left takes tests from the other; neighbours stay together, with what they share. Objects
# that are left at the end are not searched for, which takes a worker ten seconds.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:unraisableexception -n 2 --dist worksteal --durations=20

test: $(OPERATORS)
	$(PYTEST) -m "not slow and not long"

test-slow: $(OPERATORS)
	$(PYTEST) -m "slow and not long"

test-long: $(OPERATORS)
	$(PYTEST) -m long

parity: $(OPERATORS)
	$(BIN)/python tests/parity/report.py
	$(BIN)/python tests/parity/packed.py

resume-matrix: $(OPERATORS)
	$(BIN)/python tests/resume/report.py

families: $(OPERATORS)
	$(BIN)/python tests/families/report.py

trackers: $(READY)
	$(BIN)/python tests/trackers/environments.py

search-engines: $(READY)
	$(BIN)/python tests/search/environments.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(READY)
	$(BIN)/basedpyright

# docs/keys.md and docs/coming-from.md, from the code
pages: $(READY)
	$(BIN)/python -m trireme.launch.pages docs

bench: $(READY)
	$(BIN)/python benchmarks/engine_overhead.py

# torch goes first: with it in place, nothing else can pull in another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
