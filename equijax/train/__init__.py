"""Training: from an experiment to a fitted potential, its errors and its report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "train": "equijax.train.loop",
    "Evaluation": "equijax.train.evaluate",
    "TrainingConfig": "equijax.train.config",
    "TrainingInterrupted": "equijax.train.interruption",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.train' has no attribute {name!r}")
