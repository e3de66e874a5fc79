"""Left-handed, skewed and doubled cells describe the same crystal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from equijax.structure import Structure

from .structures import crystal, small_crystal
from .subject import OUTPUTS

CELLS = {
    "left-handed": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    "inverted": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "skewed": [[1, 0, 0], [3, 1, 0], [-2, 4, 1]],
}


@pytest.mark.parametrize("matrix", CELLS.values(), ids=CELLS)
def test_other_cell_vectors(subject, within, matrix):
    structures = [crystal(), small_crystal()]
    other_cells = [dataclasses.replace(s, cell=np.array(matrix) @ s.cell) for s in structures]
    for one, other in zip(subject.evaluate(structures), subject.evaluate(other_cells), strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject.tolerance.symmetry, f"equivalent cells {key}")


def test_doubled_cell(subject, within):
    unit = crystal()
    doubled = Structure(
        np.tile(unit.atomic_numbers, 2),
        np.concatenate([unit.positions, unit.positions + unit.cell[1]]),
        unit.cell * np.array([[1.0], [2.0], [1.0]]),
        unit.pbc,
    )
    (one,), (two,) = subject.evaluate([unit]), subject.evaluate([doubled])
    within(two.energy, 2 * one.energy, subject.tolerance.symmetry, "equivalent cells energy")
    within(two.forces, np.tile(one.forces, (2, 1)), subject.tolerance.symmetry, "equivalent cells forces")
    within(two.stress, one.stress, subject.tolerance.symmetry, "equivalent cells stress")
