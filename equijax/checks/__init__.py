"""Does a trained model obey physics? `check_potential` measures it, `write_page` draws it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "check_potential": "equijax.checks.suite",
    "ModelCheck": "equijax.checks.suite",
    "Row": "equijax.checks.rows",
    "write_page": "equijax.checks.page",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax.checks' has no attribute {name!r}")
