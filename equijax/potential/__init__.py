"""Potentials: a model with its parameters and atomic energies, and the derivatives of its energy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "Potential": "equijax.potential.potential",
    "Prediction": "equijax.potential.derivatives",
    "energy_and_derivatives": "equijax.potential.derivatives",
    "hvp": "equijax.potential.derivatives",
    "interaction_energy": "equijax.potential.derivatives",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.potential' has no attribute {name!r}")
