"""What a run runs on, and whether a continuation will have the same bits."""

from __future__ import annotations

import warnings
from typing import Any

import jax

from equijax.compilation_cache import available_cores
from equijax.errors import EquijaxWarning


def environment(devices: int = 1) -> dict[str, Any]:
    """Versions and hardware that decide whether a continuation has the same bits; `devices` share every batch."""
    from importlib.metadata import version

    packages = ("equijax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {name: version(name) for name in packages},
        "backend": jax.default_backend(),
        "cpu_count": available_cores(),
        "devices": devices,
    }


def warn_of_other_environment(stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Warn when a resumed run will not have the same bits: other versions, backend, number of cores or devices."""
    old, new = (
        {
            **each["versions"],
            "backend": each["backend"],
            "CPU cores": each["cpu_count"],
            "devices": each.get("devices", 1),
        }
        for each in (stored, current)
    )
    changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    if changed:
        warnings.warn(
            f"resuming in another environment ({', '.join(changed)}): the run continues, but not bit for bit "
            "as it would have",
            EquijaxWarning,
            stacklevel=2,
        )
