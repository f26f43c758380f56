# make train            set up .venv, and train the recipe pretrain/persimmon_stdlib
# make test             set up .venv, and run the quick tests
# make test-slow        run slow tests: comparisons of parallelism plans, and whole runs with real launchers
# make test-long        run tests that take many minutes
# make parity           compare the losses of every plan with those of a single process, also of packed documents (hours)
# make resume-matrix    save a checkpoint under each of ten plans, and resume it under each of them
# make families         test architectures that have no file in models/families (model.family=auto)
# make trackers         test every tracker with its real library, most in environments of their own
# make search-engines   test searches with the real Ray Tune, W&B sweeps, SigOpt and Hydra sweepers, in separate environments
# make lint             check the style (ruff)
# make types            check the types (basedpyright)
# make pages            write docs/keys.md and docs/coming-from.md, which are generated from the code
# make bench            measure the overhead of the training loop
# make clean            remove .venv and build folders
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OPERATORS := $(VENV)/.operators

.PHONY: train operators test test-slow test-long parity resume-matrix families trackers search-engines lint types pages bench clean

train: $(READY)
	$(BIN)/trireme train pretrain/persimmon_stdlib

# DeepSpeed's CPU operators are compiled once, so that no test waits for a compiler.
$(OPERATORS): $(READY)
	$(BIN)/python -m trireme.parallel.zero.operators
	touch $@

operators: $(OPERATORS)

# Python must write bytecode: otherwise each of the many processes that tests start would compile trireme anew.
unexport PYTHONDONTWRITEBYTECODE

# worksteal: a worker without tests takes some from the other worker, and neighbouring tests still share fixtures.
# no:unraisableexception: skips a search for leftover objects at the end, which takes each worker ten seconds.
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

pages: $(READY)
	$(BIN)/python -m trireme.launch.pages docs

bench: $(READY)
	$(BIN)/python benchmarks/engine_overhead.py

# torch is installed first, so that no other package can pull in another build of torch.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
