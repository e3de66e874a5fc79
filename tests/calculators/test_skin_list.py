"""The skin list gives the edges of a fresh search at every step, whatever moves."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.calculators.skin_list import SkinList
from equijax.errors import EquijaxError
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure

CUTOFF = 3.0


def gas(atoms: int = 12, size: float = 5.0, pbc=(True, True, True), seed: int = 0) -> Structure:
    rng = np.random.Generator(np.random.Philox(seed))
    cell = size * np.eye(3) + rng.normal(scale=0.5, size=(3, 3))
    return Structure(rng.choice([1, 6], size=atoms), rng.uniform(size=(atoms, 3)) @ cell, cell, pbc)


def moved(structure: Structure, positions=None, cell=None) -> Structure:
    return Structure(
        structure.atomic_numbers,
        structure.positions if positions is None else positions,
        structure.cell if cell is None else cell,
        structure.pbc,
    )


def edge_set(edges) -> set[tuple[int, ...]]:
    rows = np.column_stack([edges.receivers, edges.senders, edges.shifts]).astype(int)
    return set(map(tuple, rows.tolist()))


def check(skin_list: SkinList, structure: Structure) -> None:
    """Same edges and vectors as a search from scratch; slots and opposites consistent."""
    graph, vectors = skin_list.edges(structure)
    fresh = neighbor_list(structure, CUTOFF)
    assert edge_set(graph) == edge_set(fresh)
    assert len(edge_set(graph)) == graph.num_edges == len(fresh)
    expected = structure.positions[graph.receivers] - structure.positions[graph.senders] - graph.shifts @ graph.cell
    np.testing.assert_allclose(vectors, expected if any(structure.pbc) else vectors, atol=1e-12)
    np.testing.assert_array_equal(vectors[graph.reverse], -vectors)
    np.testing.assert_array_equal(graph.reverse[graph.reverse], np.arange(graph.num_edges))
    assert np.all(np.diff(graph.receivers) >= 0)
    assert graph.degree.sum() == graph.num_edges


@pytest.mark.parametrize("pbc", [(True,) * 3, (False,) * 3, (True, True, False), (False, False, True)])
def test_random_walk(pbc):
    structure, skin_list = gas(pbc=pbc), SkinList(CUTOFF, 0.6, (1, 6))
    rng = np.random.Generator(np.random.Philox(5))
    for _ in range(40):
        check(skin_list, structure)
        step = rng.normal(scale=0.03, size=structure.positions.shape)
        structure = moved(structure, structure.positions + step)
    assert 2 <= skin_list.rebuilds <= 20


def test_breathing_and_shearing_cell():
    start, skin_list = gas(), SkinList(CUTOFF, 0.6, (1, 6))
    for step in range(40):
        strain = np.eye(3) * (1 - 0.4 * np.sin(step / 12)) + 0.02 * np.sin(step) * np.eye(3, k=1)
        check(skin_list, moved(start, start.positions @ strain, start.cell @ strain))
    assert 3 <= skin_list.rebuilds <= 35


def test_cell_that_moves_without_its_atoms():
    structure, skin_list = gas(), SkinList(CUTOFF, 0.6, (1, 6))
    for factor in (1.0, 0.97, 0.9, 0.7, 1.2):
        check(skin_list, moved(structure, cell=structure.cell * factor))


def test_shrinking_cell_needs_more_images():
    structure, skin_list = gas(atoms=2, size=6.0), SkinList(CUTOFF, 0.6, (1, 6))
    for factor in (1.0, 0.8, 0.5, 0.3):
        check(skin_list, moved(structure, structure.positions * factor, structure.cell * factor))


def test_atoms_wrapped_by_other_code():
    structure, skin_list = gas(), SkinList(CUTOFF, 0.6, (1, 6))
    check(skin_list, structure)
    images = np.array([[1, 0, 0], [0, -2, 0], [0, 0, 0]] * 4)
    check(skin_list, moved(structure, structure.positions + images @ structure.cell))
    assert skin_list.rebuilds == 2
    # All atoms by the same lattice vector: the list is still right and is kept.
    check(skin_list, moved(structure, structure.positions + (images + np.array([1, 1, 0])) @ structure.cell))
    assert skin_list.rebuilds == 2


def test_other_elements_atoms_and_periodicity():
    structure, skin_list = gas(), SkinList(CUTOFF, 0.6, (1, 6))
    check(skin_list, structure)
    check(skin_list, Structure(7 - structure.atomic_numbers, structure.positions, structure.cell, structure.pbc))
    check(skin_list, Structure(structure.atomic_numbers, structure.positions, structure.cell, (True, False, True)))
    check(skin_list, gas(atoms=7, seed=3))
    assert skin_list.rebuilds == 4


def test_result_does_not_depend_on_when_the_list_was_made():
    structure = gas()
    rng = np.random.Generator(np.random.Philox(6))
    old = SkinList(CUTOFF, 0.6, (1, 6))
    old.edges(structure)
    later = moved(structure, structure.positions + rng.uniform(-0.1, 0.1, size=structure.positions.shape))
    (first, first_vectors), (second, second_vectors) = (
        old.edges(later),
        SkinList(CUTOFF, 0.3, (1, 6)).edges(later),
    )
    assert old.rebuilds == 1
    np.testing.assert_array_equal(first_vectors, second_vectors)
    for name in ("receivers", "senders", "shifts", "reverse", "slots", "degree"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_zero_skin_is_a_search_per_step():
    structure, skin_list = gas(), SkinList(CUTOFF, 0.0, (1, 6))
    for _ in range(3):
        check(skin_list, structure)
    graph, _ = skin_list.edges(structure)
    assert graph.num_edges == len(neighbor_list(structure, CUTOFF))


@pytest.mark.parametrize("skin", [-0.1, float("nan"), float("inf")])
def test_impossible_skin(skin):
    with pytest.raises(EquijaxError, match="skin is"):
        SkinList(CUTOFF, skin, (1, 6))
