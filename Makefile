# `make run` and `make test` need nothing but Python 3.11+ and make: they make the virtual
# environment, install what is missing, and do their job. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test lint types check readme docs docs-serve wheel clean help

run: $(INSTALLED)  ## the main job: AW-SGD beside its on-policy baseline on ten maps
	$(BIN)/awsgd-rl compare

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest --numprocesses auto

lint: $(INSTALLED)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow an editable install with mapped folders: it gets the tree as it is installed.
types: $(INSTALLED)  ## mypy --strict
	rm -rf build/types && mkdir -p build/types/awsgd_rl
	ln -s $(CURDIR)/awsgd_rl/*.py $(CURDIR)/awsgd_rl/py.typed $(CURDIR)/envs $(CURDIR)/agents $(CURDIR)/benchmarks build/types/awsgd_rl/
	MYPYPATH=build/types $(BIN)/mypy --package awsgd_rl

check: lint types test  ## lint, types and tests

readme: $(INSTALLED)  ## the tables of README.md and docs/, from the committed results
	$(BIN)/python -m awsgd_rl.benchmarks.readme

docs: $(INSTALLED)  ## the documentation's site into build/site: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED)  ## the same, served and built again at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: $(INSTALLED)  ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ \t/'

# torch's CPU build comes first, so that no package pulls in the CUDA one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@
