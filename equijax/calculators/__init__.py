"""Calculators for other programs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {"EquijaxCalculator": "equijax.calculators.ase_calculator"}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.calculators' has no attribute {name!r}")
