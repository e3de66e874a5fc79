"""More than 40 000 edges, the size from which compilers have returned rows of other atoms.

The reference is the unit cell: n copies have n times the energy, and every copy the same forces and features.
"""

from __future__ import annotations

import itertools

import numpy as np

from equijax.graph.neighbors import neighbor_list
from equijax.graph.padding import Capacity
from equijax.structure import Structure

from .cases import CUTOFF
from .structures import small_crystal

REPEAT = (11, 11, 12)
LARGE = Capacity(nodes=2 * int(np.prod(REPEAT)) + 4, neighbors=32, graphs=2)


def supercell(unit):
    images = np.array(list(itertools.product(*map(range, REPEAT))))
    positions = (unit.positions[None] + (images @ unit.cell)[:, None]).reshape(-1, 3)
    numbers = np.tile(unit.atomic_numbers, len(images))
    return Structure(numbers, positions, unit.cell * np.array(REPEAT)[:, None], (True,) * 3)


def test_supercell_repeats_the_unit_cell(subject, within):
    unit = small_crystal()
    large = supercell(unit)
    copies = int(np.prod(REPEAT))
    assert len(neighbor_list(large, CUTOFF)) > 40_000
    (found,) = subject.evaluate([large], LARGE)
    (expected,) = subject.evaluate([unit])
    tolerance = subject.tolerance.many_edges
    within(found.energy, copies * np.float64(expected.energy), tolerance, "40 000 edges energy")
    within(found.stress, expected.stress, tolerance, "40 000 edges stress")
    for key in ("node_energies", "node_features", "forces"):
        reference = getattr(expected, key)
        repeated = np.tile(reference, (copies,) + (1,) * (reference.ndim - 1))
        within(getattr(found, key), repeated, tolerance, f"40 000 edges {key}")
