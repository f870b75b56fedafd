# `make demo` and `make test` need Python 3.10 or newer and make; they make .venv and install the project if needed.
# JOBS is the number of processes that run tests, each on one thread: three on two cores, for tests wait a third of their time.
# CONSTRAINTS holds the tested versions; without them (make install CONSTRAINTS=) the newest are taken that setup.cfg admits. A
# PyTorch that is there and fits is kept in either case.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS ?= constraints.txt
OLDEST := .venv-oldest
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 3
# Bytecode is kept also where the environment says not to: else each process that a test starts compiles the package anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
FAST := -m "not slow and not gpu"
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
UPGRADE = $(if $(CONSTRAINTS),,--upgrade --upgrade-strategy eager)
NEEDS := '.[demo,test]'

.PHONY: demo test test-all test-oldest parity soak docs lint format install anew constraints clean

install: $(INSTALLED)

# Given on the command line, CONSTRAINTS counts for an environment that is there too.
$(INSTALLED): setup.cfg pyproject.toml $(wildcard $(CONSTRAINTS)) $(if $(findstring command,$(origin CONSTRAINTS)),anew)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "sparsevid needs Python 3.10 or newer; choose one with make PYTHON=python3.12" >&2; exit 1; }
	@# With the packages of a Python that has PyTorch, such as a container's.
	test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python .ci/constraints.py $(or $(wildcard $(CONSTRAINTS)),/dev/null) > $(VENV)/constraints.txt
	@echo "installing into $(VENV): some minutes, in which pip says nothing"
	$(PIP) $(UPGRADE) --constraint $(VENV)/constraints.txt --editable $(NEEDS) || { \
		echo "the tested versions cannot be installed here; the newest that fit are taken in their place" >&2; \
		$(BIN)/python .ci/constraints.py /dev/null > $(VENV)/constraints.txt; \
		$(PIP) $(UPGRADE) --constraint $(VENV)/constraints.txt --editable $(NEEDS); }
	@touch $@
	@echo "installed; now: source $(BIN)/activate, then sparsevid --help"

anew:

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py

test: $(INSTALLED)
	$(PYTEST) $(FAST)

test-all: $(INSTALLED)
	$(PYTEST)

# The fast tests with the lowest versions that setup.cfg admits, in an environment of their own.
test-oldest: $(BIN)/uv
	test -x $(OLDEST)/bin/python || $(BIN)/uv venv --quiet --python $(PYTHON) $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable $(NEEDS)
	$(MAKE) test BIN=$(OLDEST)/bin INSTALLED=

# The tests of detectors and metrics with all packages that they compare with. The last three pin older versions of what we need, and
# their parts that are compared do without: they are installed alone.
parity: $(INSTALLED)
	$(PIP) --constraint $(VENV)/constraints.txt --editable '.[parity]'
	$(PIP) --no-deps fvmd==1.0.0 videojedi==1.1.0 vjepa==0.1.2
	$(PYTEST) $(FAST) tests/evaluation -rs

# The newest versions that setup.cfg admits, for every Python that it admits: what `make install` takes, once tests have passed.
constraints: $(BIN)/uv
	$(BIN)/uv pip compile setup.cfg --extra demo --extra parity --universal --python-version 3.10 --upgrade --quiet \
		--no-annotate --custom-compile-command "make constraints" --output-file constraints.txt

$(BIN)/uv: $(INSTALLED)
	$(PIP) uv

soak: $(INSTALLED)
	$(BIN)/python tests/soak.py --kills 20 --folder "$$(mktemp -d)/soak"

# The site in site/, without a network: to be read from the disk, or with its search by `python -m http.server --directory site`.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(OLDEST) build site *.egg-info
