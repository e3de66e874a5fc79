# Every target sets up its own environment in .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONUNBUFFERED := 1

.PHONY: setup demo test test-slow lint types bench bench-peers docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("equijax needs Python 3.11 or later, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m equijax.cli.demo

# Most of the time of the tests is compilation, of programs that run once: LLVM optimises them in `make test-slow` only.
test: $(STAMP)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/equijax bench models

# The other libraries pin other versions of jax and torch, so each lives in an environment of its own.
PEERS := .venv-peers
PEER_mace-torch := mace-torch==0.3.16
PEER_mlip := mlip==0.2.5
PEER_torchmd-net := torchmd-net==3.1.0
PEER_nequix := nequix==0.4.5
PEER_STAMPS := $(foreach name,mace-torch mlip torchmd-net nequix,$(PEERS)/$(name)/.installed)

$(PEERS)/%/.installed: Makefile
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet '$(PEER_$*)'
	@touch $@

# What to measure: make bench-peers BENCH='--resume --tasks forces'
bench-peers: $(STAMP) $(PEER_STAMPS)
	$(BIN)/python benchmarks/peers.py --environments $(PEERS) $(BENCH)

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m sphinx -W -b html docs docs/_build

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
