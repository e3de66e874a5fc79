"""Structures at rest: relaxation, vibrations, phonons, elastic constants."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "relax": "equijax.statics.relaxation",
    "Relaxed": "equijax.statics.task",
    "RelaxSettings": "equijax.statics.settings",
    "Vibrations": "equijax.statics.vibrations",
    "vibrational_modes": "equijax.statics.vibrations",
    "lowest_modes": "equijax.statics.lanczos",
    "ForceConstants": "equijax.statics.phonons",
    "force_constants": "equijax.statics.phonons",
    "Elasticity": "equijax.statics.elastic",
    "elasticity": "equijax.statics.elastic",
    "BatchedImages": "equijax.statics.images",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.statics' has no attribute {name!r}")
