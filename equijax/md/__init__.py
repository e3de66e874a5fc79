"""Molecular dynamics."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "run_md": "equijax.md.run",
    "MDSettings": "equijax.md.settings",
    "Simulation": "equijax.md.simulation",
    "Monitor": "equijax.md.engine",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.md' has no attribute {name!r}")
