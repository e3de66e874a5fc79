"""The generator scripts under data/ as modules."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="session")
def generators():
    """`sampling` and the scripts by the name of their set."""
    sys.path.insert(0, str(DATA))
    try:
        names = {name: f"generate_{name}" for name in ("ethanol", "hamiltonians", "tensors", "elastic")}
        modules = {name: importlib.import_module(module) for name, module in names.items()}
        return SimpleNamespace(sampling=importlib.import_module("sampling"), **modules)
    finally:
        sys.path.remove(str(DATA))
