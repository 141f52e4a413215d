# make demo and make test need Python 3.11+, git and make; everything else goes into .venv
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_ARGS ?=
TEST_ARGS ?=
FAULT_ARGS ?= count=100 seed=0
# `mlflow run` starts `python`: it must be this environment's
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# MLflow's own default is the same file, but in a path with spaces its %20 also makes a stray folder
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

.PHONY: demo test check faults lock clean help
.DEFAULT_GOAL := help

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/installed ## The whole way on bundled poems, to a registered model (about 3 minutes on 2 cores)
	$(RUN) -m mlflow run . --env-manager local $(DEMO_ARGS)

test: $(VENV)/installed-dev ## Run the tests
	$(RUN) -m pytest $(TEST_ARGS)

check: $(VENV)/installed-dev ## Format, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

faults: $(VENV)/installed-dev ## Break 100 runs at random places and see what is lost (about 15 minutes)
	$(RUN) -W ignore -m tests.faults $(FAULT_ARGS)

lock: ## Rewrite constraints.txt: the newest versions that pyproject.toml allows (torch stays as pinned)
	grep '^torch==' constraints.txt > constraints.new && mv constraints.new constraints.txt
	rm -rf $(VENV)
	$(MAKE) $(VENV)/installed-dev
	$(RUN) -m pip freeze --exclude-editable | sed -E 's/(==[^+]+)\+.*/\1/' > constraints.txt

clean: ## Remove .venv and caches; runs and models stay
	rm -rf $(VENV) .mypy_cache .ruff_cache build *.egg-info

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) isn't here: install Python 3.11, or name another: make PYTHON=python3.12 …"; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	@touch $@
