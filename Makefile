# make help lists the targets. Everything is set up in .venv; PYTHON=... chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST ?= $(BIN)/python -m pytest
PYTEST_ARGS ?= -n 2
STATES ?= 100000
.DEFAULT_GOAL := help
.PHONY: help demo test torture lint minio test-minio demo-minio bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## *\(.*\)/make \1\t\2/p' Makefile | expand -t 18

demo: $(VENV)/.installed  ## load, back up, restore and compare real data; no server, a minute or two
	$(BIN)/python tools/demo.py

test: $(VENV)/.installed-test  ## all tests; S3 ones against MinIO if it was built, else SeaweedFS
	$(PYTEST) $(PYTEST_ARGS)

torture: $(VENV)/.installed-test  ## kills, power cuts and failing calls in numbers; STATES=1000000
	OURDB_TORTURE=$(STATES) $(PYTEST) $(PYTEST_ARGS) -rP tests/test_power_cut.py

lint: $(VENV)/.installed-lint  ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tools benchmarks

minio:  ## build MinIO once, and run it where minio-compose.yml would, until Ctrl-C
	tools/minio.sh start

test-minio: $(VENV)/.installed-test  ## build MinIO if need be, and run the S3 tests against it
	tools/minio.sh install
	env -u OURDB_TEST_S3_ENDPOINT OURDB_TEST_S3=minio $(PYTEST) $(PYTEST_ARGS) -m s3

demo-minio: $(VENV)/.installed-test  ## the README's way through MinIO: back up, destroy, restore, compare
	$(BIN)/python tools/demo_minio.py

bench: $(VENV)/.installed-bench  ## measure beside other databases and raw copies; BENCH_ARGS=--quick
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

clean:  ## remove what make made: the environment, caches, results
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ourdb needs Python 3.11 or newer, and '$(PYTHON)' is not that:" \
	       "say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python -m venv failed (on Debian and Ubuntu it needs: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) -e '.[$*]'
	@touch $@
