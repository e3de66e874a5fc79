"""What dynamics with forces that are not the gradient of an energy can and cannot do."""

from __future__ import annotations

import warnings

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.potential.potential import Potential


def refuse_or_warn_of_direct_forces(potential: Potential, ensemble: str) -> None:
    """Forces that a model predicts directly do work on a closed path: no energy is conserved, no pressure defined."""
    if potential.is_conservative:
        return
    name = potential.model_config.name
    if ensemble in ("npt", "npt-full"):
        raise EquijaxError(
            f"ensemble {ensemble}: this {name} predicts forces directly and has no stress; expected langevin"
        )
    if ensemble == "nve":
        warnings.warn(
            f"ensemble nve: this {name} predicts forces directly, which are not the gradient of an energy: the total "
            "energy will drift; train it with forces: gradient for dynamics without a thermostat",
            EquijaxWarning,
            stacklevel=2,
        )
