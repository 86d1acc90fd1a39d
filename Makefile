# Two commands matter to a visitor: `make demo` and `make test`. Each makes .venv and installs what it needs; a second call is instant.
# PYTHON chooses the interpreter, JOBS the number of test processes, PYTEST_ARGS what pytest gets besides.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format typecheck docs build clean

help:
	@echo 'make demo       complete real Python files with the pocket model, plainly and accelerated'
	@echo 'make test       run all tests'
	@echo 'make lint       ruff, as CI runs it        make format   let ruff rewrite'
	@echo 'make typecheck  mypy --strict              make docs     build the site into site/'
	@echo 'make build      wheel and sdist into dist/ make clean    remove what was built'

demo: $(VENV)/.has-run
	$(BIN)/paceline demo $(DEMO_ARGS)

# One BLAS thread per test process: more would only fight for the same cores.
test: $(VENV)/.has-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --verbosity=0 -n $(JOBS) $(PYTEST_ARGS)

lint: $(VENV)/.has-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.has-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(VENV)/.has-dev
	$(BIN)/mypy

docs: $(VENV)/.has-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(VENV)/.has-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf dist site build

# .has-run is the package alone; .has-test, .has-dev and .has-docs add the extra of that name.
$(VENV)/.has-%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.$(if $(filter run,$*),,[$*])'
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo 'error: paceline needs Python 3.11, 3.12 or 3.13; found: '"$$($(PYTHON) --version 2>&1)"'. Choose one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo 'error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
