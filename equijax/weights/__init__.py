"""Model files: `load`, `save`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "load": ("equijax.weights.any_file", "load_model"),
    "save": ("equijax.weights.model_file", "save_potential"),
    "load_potential": ("equijax.weights.model_file", "load_potential"),
    "save_potential": ("equijax.weights.model_file", "save_potential"),
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'equijax.weights' has no attribute {name!r}")
