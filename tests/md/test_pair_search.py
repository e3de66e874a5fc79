"""The neighbour search inside compiled programs finds what the host's finds, in every kind of cell."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from equijax.calculators.skin_list import canonical_order
from equijax.graph.neighbors import completed_cell, neighbor_list
from equijax.md.pair_search import search
from equijax.md.verlet_list import first_room, linked_grid
from equijax.structure import Structure

REACH = 4.0


def copper(repetitions, shear: float = 0.0, pbc=True) -> Atoms:
    """Rattled, with atoms far outside the cell."""
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True) * repetitions
    atoms.rattle(0.1, seed=0)
    atoms.set_cell(atoms.cell.array @ np.array([[1, shear, shear], [0, 1, shear], [0, 0, 1.0]]), scale_atoms=True)
    atoms.pbc = pbc
    rng = np.random.Generator(np.random.Philox(0))
    atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    return atoms


CASES = {
    "molecule": molecule("C6H6"),
    "one atom": Atoms("Cu"),
    "smaller than the reach": bulk("Cu", "fcc", a=3.6),
    "triclinic and small": copper((1, 1, 2), shear=0.4),
    "triclinic": copper((3, 3, 3), shear=0.2),
    "slab": copper((2, 2, 2), pbc=(True, True, False)),
}
LINKED = {
    "linked cells": copper((4, 4, 4)),
    "triclinic linked cells": copper((5, 5, 5), shear=0.2),
    "linked cells of a slab": copper((4, 4, 2), pbc=(True, True, False)),
    "linked cells of a cluster": copper((3, 3, 3), pbc=False),
}


def edges_of(senders, shifts, filled) -> np.ndarray:
    receivers, columns = np.nonzero(filled)
    return np.column_stack([receivers, senders[receivers, columns], shifts[receivers, columns].astype(int)])


QUICK = ("smaller than the reach", "triclinic and small", "slab", "triclinic linked cells", "linked cells of a slab")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*CASES, *LINKED)]
)
def test_search_finds_the_edges_of_the_host(name):
    structure = Structure.from_ase(CASES[name] if name in CASES else LINKED[name])
    cell = completed_cell(structure)
    room = first_room(structure, REACH - 0.5, 0.5)
    if name in LINKED:
        grid, per_cell = linked_grid(structure, cell, REACH)
        room = dataclasses.replace(room, images=(0, 0, 0), grid=grid, per_cell=per_cell)
    with jax.enable_x64(True):
        found = jax.jit(lambda r, h: search(r, h, structure.pbc, REACH, room))(structure.positions, cell)
        found = jax.tree.map(np.asarray, found)
    host = neighbor_list(structure, REACH)
    order = canonical_order(host)
    expected = np.column_stack([host.receivers, host.senders, host.shifts])[order]
    filled = found.senders < len(structure)
    actual = edges_of(found.senders, found.shifts, filled)
    np.testing.assert_array_equal(actual[np.lexsort(actual.T[::-1])], expected)
    assert found.most == np.bincount(host.receivers, minlength=len(structure)).max()
    assert not found.coarse
    # The opposite of an edge has the same ends the other way round, and the opposite shift.
    opposite = found.reverse[filled]
    width = found.senders.shape[1]
    back = np.column_stack(
        [opposite // width, found.senders.ravel()[opposite], found.shifts.reshape(-1, 3)[opposite].astype(int)]
    )
    np.testing.assert_array_equal(back, actual * [1, 1, -1, -1, -1] @ np.eye(5, dtype=int)[[1, 0, 2, 3, 4]])


def test_search_says_what_it_lacks():
    structure = Structure.from_ase(copper((1, 1, 2)))
    room = dataclasses.replace(first_room(structure, REACH, 0.0), candidates=4, images=(0, 0, 0))
    with jax.enable_x64(True):
        found = jax.jit(lambda r, h: search(r, h, structure.pbc, REACH, room))(
            structure.positions, completed_cell(structure)
        )
    assert found.most > 4
    assert np.all(np.asarray(found.images) == [1, 1, 1])
