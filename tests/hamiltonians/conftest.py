"""The toy model of Hamiltonians has a row in the table of architectures while these tests run."""

from __future__ import annotations

import pytest

import equijax.models
from tests.hamiltonians.toy import ToyGateConfig
from tests.train.conftest import compilation_cache_directory as compilation_cache_directory


@pytest.fixture(autouse=True)
def toy_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(equijax.models.HAMILTONIAN_MODELS, "toy_hamiltonian", ToyGateConfig)
