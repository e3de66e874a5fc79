"""float32 against float64 of the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equijax.checks.evaluation import Evaluate, Found
from equijax.checks.rows import Row, Worst
from equijax.checks.structures import name_of
from equijax.structure import Structure

ENERGY = 1e-3
"""meV per atom"""
FORCE = 1e-4
"""eV/Å, or of the largest force where that is more than 1 eV/Å"""


def check_float32(evaluate: Evaluate, frames: Sequence[Structure], in_float64: Sequence[Found]) -> list[Row]:
    """Warnings: dynamics and relaxations to loose forces bear more."""
    energy, forces = Worst(), Worst()
    for structure, exact, found in zip(frames, in_float64, evaluate(frames), strict=True):
        scale = max(1.0, float(np.abs(exact.forces).max()))
        energy.add(1e3 * abs(found.energy - exact.energy) / len(structure), ENERGY, name_of(structure))
        forces.add(float(np.abs(found.forces - exact.forces).max()), FORCE * scale, name_of(structure))
    return [
        energy.row("energy in float32", "meV/atom", severity="warn"),
        forces.row("forces in float32", "eV/Å", severity="warn"),
    ]
