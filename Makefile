# make demo and make test need Python 3.11+, git and make; everything else goes into .venv
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
# Nothing comes in that locks/ has no SHA-256 of; what is built from source is built with what is locked too
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation
DEMO_ARGS ?=
TEST_ARGS ?=
FAULT_ARGS ?= count=100 seed=0
# `mlflow run` starts `python`: it must be this environment's
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# MLflow's own default is the same file, but in a path with spaces its %20 also makes a stray folder
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

.PHONY: demo test test-slow check faults fuzz docs lock clean help
.DEFAULT_GOAL := help

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/installed ## The whole way on bundled poems, to a registered model (about 2 minutes on 2 cores)
	$(RUN) -m mlflow run . --experiment-name moyun --env-manager local $(DEMO_ARGS)

test: $(VENV)/installed-dev ## Run the tests, on all cores (about 10 minutes on 2)
	$(RUN) -m pytest -n logical --dist loadfile $(TEST_ARGS)

test-slow: $(VENV)/installed-dev ## Tests at real sizes, tiny to 175b (24 GiB of memory, 25 GB of disk)
	$(RUN) -m pytest -m slow --timeout 7200 $(TEST_ARGS)

faults: $(VENV)/installed-dev ## 100 faults in training runs, 20 kills of a tracking server: nothing lost? (about 15 minutes)
	$(RUN) -m tests.workflow.faults $(FAULT_ARGS)
	$(RUN) -m benchmarks.measure_tracking kills=20 store=sqlite
	$(RUN) -m benchmarks.measure_tracking kills=0

fuzz: $(VENV)/installed-dev ## Thousands of damaged model folders, odd requests and random rows (about 6 minutes)
	$(RUN) -m tests.workflow.fuzz cases=5000 seed=$$(date +%s)
	HYPOTHESIS_PROFILE=long $(RUN) -m pytest tests/workflow/test_properties.py --timeout 1200

check: $(VENV)/installed-dev ## Format, lint, types, the order of the packages, known vulnerabilities
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(RUN) -m tools.audit

docs: $(VENV)/installed-dev ## Rewrite the pages of docs/ that are made from the code
	$(RUN) -m tools.configuration
	$(RUN) -m tools.recipes

lock: ## Rewrite constraints.txt and locks/: the newest versions that pyproject.toml allows (torch stays as pinned)
	grep '^torch==' constraints.txt > constraints.new && mv constraints.new constraints.txt
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(RUN) -m pip freeze --exclude-editable | sed -E 's/(==[^+]+)\+.*/\1/' > constraints.txt
	$(PIP) uv && $(RUN) -m tools.lock
	$(MAKE) $(VENV)/installed-dev

clean: ## Remove .venv and caches; runs and models stay
	rm -rf $(VENV) .mypy_cache .ruff_cache build *.egg-info

$(VENV)/installed: pyproject.toml $(wildcard locks/*.lock)
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) isn't here: install Python 3.11, or name another: make PYTHON=python3.12 …"; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@# Where there is no NVIDIA GPU a build of torch for CPUs is preferred, if an index offers one: gigabytes are spared
	if command -v nvidia-smi > /dev/null; then $(LOCKED) --requirement locks/torch.lock; else \
	$(LOCKED) --requirement locks/torch-cpu.lock 2> /dev/null || $(LOCKED) --requirement locks/torch.lock; fi
	$(LOCKED) --requirement locks/run.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(LOCKED) --requirement locks/dev.lock
	@touch $@
