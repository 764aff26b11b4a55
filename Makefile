# Two commands do everything: `make run` and `make test`. Each installs what it needs into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := tests/constraints/tested.txt

.PHONY: help run test check soak compat servers clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run ## Compress a trained network on this machine and print true figures
	$(BIN)/python examples/digits.py

test: $(VENV)/.dev check ## Check and test everything (up to 15 minutes on two cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.dev ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.dev ## The long tests: fuzzing, fault schedules, every model
	MODEL_OPT_SOAK=1 $(BIN)/python -m pytest --timeout 14400

compat: ## Test compression with the oldest versions that are supported (in an environment of its own)
	$(MAKE) VENV=.compat CONSTRAINTS=tests/constraints/oldest.txt .compat/.dev
	.compat/bin/python -m pytest --numprocesses 2 --dist loadscope tests/compression

servers: $(VENV)/.dev ## Install the servers and the browser that the tests start (Neo4j, Redis, Chromium)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/servers/install.sh

clean: ## Remove the environment and what was made
	rm -rf $(VENV) .compat out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing model_opt with its runtimes and examples into $(VENV) (a few minutes, once)"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --editable '.[cpu,examples]'
	$(BIN)/python -m model_opt.search.compiling
	@touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing model_opt with everything into $(VENV) (a few minutes, once)"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --editable '.[all,dev]'
	$(BIN)/python -m model_opt.search.compiling
	@touch $@ $(VENV)/.run
