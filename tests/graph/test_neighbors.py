"""Neighbour lists against ASE and a brute-force search, on cells of every kind."""

import itertools

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.errors import EquijaxError
from equijax.graph.neighbors import completed_cell, neighbor_list
from equijax.structure import Structure


def edge_set(edges):
    return set(zip(edges.receivers.tolist(), edges.senders.tolist(), map(tuple, edges.shifts.tolist()), strict=True))


def brute_force(structure, cutoff):
    cell = completed_cell(structure)
    inverse = np.linalg.inv(cell)
    fractional = structure.positions @ inverse
    reach = np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + np.ptp(fractional, axis=0))
    reach = np.where(structure.pbc, reach, 0).astype(int)
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        delta = structure.positions[:, None] - structure.positions[None] - np.array(shift) @ cell
        close = np.einsum("ijx,ijx->ij", delta, delta) < cutoff**2
        if shift == (0, 0, 0):
            np.fill_diagonal(close, False)
        found |= {(int(i), int(j), shift) for i, j in np.argwhere(close)}
    return found


def check(structure, edges, cutoff):
    count = len(edges)
    assert (np.diff(edges.receivers) >= 0).all()
    assert np.array_equal(edges.reverse[edges.reverse], np.arange(count))
    assert not np.any(edges.reverse == np.arange(count))
    assert np.array_equal(edges.receivers[edges.reverse], edges.senders)
    assert np.array_equal(edges.shifts[edges.reverse], -edges.shifts)
    assert np.array_equal(edges.vectors[edges.reverse], -edges.vectors)
    sender = structure.positions[edges.senders] + edges.shifts @ structure.cell
    expected = structure.positions[edges.receivers] - sender
    scale = 1 + np.abs(structure.positions).max(initial=0)
    np.testing.assert_allclose(edges.vectors, expected, atol=1e-12 * scale)
    assert (np.linalg.norm(edges.vectors, axis=1) < cutoff * (1 + 1e-12)).all()
    assert len(edge_set(edges)) == count


vectors3 = st.tuples(*[st.floats(-6, 6)] * 3)


@st.composite
def random_structures(draw):
    """Triclinic, left-handed, skewed and small cells with any pbc; atoms inside and far outside."""
    cell = np.array(draw(st.tuples(vectors3, vectors3, vectors3)), dtype=float)
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = tuple(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    spread = draw(st.sampled_from([1.0, 8.0]))
    positions = rng.uniform(-1, 1, (count, 3)) * spread
    if abs(np.dot(cell[0], np.cross(cell[1], cell[2]))) > 1e-3:
        positions = positions + rng.integers(-3, 4, (count, 3)) * np.array(pbc)[:, None].T @ cell
    return Structure(np.ones(count, int), positions, cell, pbc)


@settings(max_examples=150, deadline=None)
@given(random_structures(), st.floats(0.5, 5.0))
def test_random_cells_match_brute_force(structure, cutoff):
    lengths = np.linalg.norm(structure.cell, axis=1)
    periodic = np.flatnonzero(structure.pbc)
    if len(periodic):
        if lengths[periodic].min() < 0.7:
            return
        scaled = structure.cell[periodic] / lengths[periodic, None]
        if np.linalg.svd(scaled)[1].min() < 0.05:
            return
    try:
        edges = neighbor_list(structure, cutoff)
    except EquijaxError as error:
        assert "same place" in str(error)  # noqa: PT017
        return
    check(structure, edges, cutoff)
    expected = brute_force(structure, cutoff)
    # Distances within rounding of the cutoff may fall on either side.
    for i, j, shift in edge_set(edges) ^ expected:
        delta = structure.positions[i] - structure.positions[j] - np.array(shift) @ completed_cell(structure)
        assert abs(np.linalg.norm(delta) - cutoff) < 1e-9


@pytest.mark.parametrize(
    ("name", "cell", "pbc"),
    [
        ("cubic", np.eye(3) * 4.0, (True, True, True)),
        ("triclinic", [[3.9, 0.1, 0.3], [1.2, 4.3, -0.4], [-1.5, 0.9, 4.8]], (True, True, True)),
        ("left-handed", [[0, 4.0, 0], [3.5, 0, 0], [0.5, 0.5, 4.2]], (True, True, True)),
        ("skewed", [[3.0, 0, 0], [17.3, 3.1, 0], [-8.0, 11.2, 3.6]], (True, True, True)),
        ("slab", [[3.1, 0.2, 0], [0.3, 3.4, 0], [0, 0, 20.0]], (True, True, False)),
        ("wire", [[0, 0, 0], [0, 0, 0], [0.4, 0.2, 2.7]], (False, False, True)),
    ],
)
def test_matches_ase(name, cell, pbc):
    rng = np.random.default_rng(3)
    cell = np.array(cell, dtype=float)
    positions = rng.uniform(0, 4, (5, 3))
    structure = Structure(np.ones(5, int), positions, cell, pbc)
    edges = neighbor_list(structure, 5.0)
    check(structure, edges, 5.0)
    receivers, senders, shifts = primitive_neighbor_list("ijS", pbc, completed_cell(structure), positions, 5.0)
    expected = set(zip(receivers.tolist(), senders.tolist(), map(tuple, shifts.tolist()), strict=True))
    assert edge_set(edges) == expected


@pytest.mark.parametrize("matrix", [[[1, 0, 0], [3, 1, 0], [-2, 4, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]])
def test_unreduced_and_left_handed_cells_give_the_same_environments(matrix):
    rng = np.random.default_rng(0)
    cell = np.eye(3) * 3.5 + rng.normal(size=(3, 3)) * 0.3
    positions = rng.uniform(0, 3.5, (4, 3))
    outside = positions + rng.integers(-40, 40, (4, 3)) @ cell
    reduced = neighbor_list(Structure(np.ones(4, int), positions, cell, (True,) * 3), 5.0)
    other = neighbor_list(Structure(np.ones(4, int), outside, np.array(matrix) @ cell, (True,) * 3), 5.0)
    assert len(reduced) == len(other) > 200

    def rows(edges):
        table = np.column_stack([edges.receivers, edges.senders, edges.vectors.round(6) + 0.0])
        return table[np.lexsort(table.T)]

    np.testing.assert_allclose(rows(reduced), rows(other), atol=2e-6)


def test_one_atom_cells_see_their_own_images():
    copper = Structure.from_ase(bulk("Cu"))
    edges = neighbor_list(copper, 5.0)
    check(copper, edges, 5.0)
    assert len(edges) == 42
    tiny = Structure(np.array([1]), np.zeros((1, 3)), np.eye(3) * 0.3, (True,) * 3)
    edges = neighbor_list(tiny, 5.0)
    check(tiny, edges, 5.0)
    images = np.array(list(itertools.product(range(-17, 18), repeat=3)))
    assert len(edges) == int((np.linalg.norm(images * 0.3, axis=1) < 5.0).sum()) - 1


def test_slab_ignores_the_vacuum_vector():
    slab = fcc111("Al", (2, 2, 3), vacuum=6.0)
    with_vacuum = Structure.from_ase(slab)
    assert with_vacuum.pbc == (True, True, False)
    no_vector = with_vacuum.cell.copy()
    no_vector[2] = 0
    without = Structure(with_vacuum.atomic_numbers, with_vacuum.positions, no_vector, with_vacuum.pbc)
    assert edge_set(neighbor_list(with_vacuum, 5.0)) == edge_set(neighbor_list(without, 5.0))


def test_more_than_forty_thousand_edges():
    crystal = bulk("Cu", cubic=True) * (7, 7, 6)
    crystal.rattle(0.05, seed=1)
    structure = Structure.from_ase(crystal)
    edges = neighbor_list(structure, 5.0)
    check(structure, edges, 5.0)
    assert len(edges) > 40_000
    receivers, senders, shifts = primitive_neighbor_list("ijS", structure.pbc, structure.cell, structure.positions, 5.0)
    expected = set(zip(receivers.tolist(), senders.tolist(), map(tuple, shifts.tolist()), strict=True))
    assert edge_set(edges) == expected


def test_no_edges():
    for structure in (
        Structure(np.array([1]), np.zeros((1, 3))),
        Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 6.0]])),
    ):
        assert len(neighbor_list(structure, 5.0)) == 0


def test_same_list_twice():
    structure = Structure.from_ase(bulk("Si", cubic=True) * (3, 3, 3))
    first, second = neighbor_list(structure, 5.0), neighbor_list(structure, 5.0)
    assert np.array_equal(first.senders, second.senders)
    assert np.array_equal(first.shifts, second.shifts)


def molecule(positions, **kwargs):
    positions = np.array(positions, dtype=float)
    return Structure(np.ones(len(positions), int), positions, file="a.xyz", frame=3, **kwargs)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (molecule([[0, 0, 0], [0, 0, np.nan]]), "a.xyz frame 3: atom 1 position is not finite"),
        (molecule([[0, 0, 0], [0, 0, np.inf]]), "atom 1 position is not finite"),
        (molecule([[0, 0, 0], [1, 0, 0], [0, 0, 1e6]]), "atom 2 at .* has flown away"),
        (molecule([[0, 0, 0], [1, 0, 0], [1, 0, 0]]), "atoms 1 and 2 are at the same place"),
        (molecule([[0, 0, 0]], pbc=(True, True, False)), "periodic along cell vector a, which is zero"),
        (
            molecule([[0, 0, 0]], pbc=(False, False, True), cell=np.diag([3.0, 3, 0])),
            "cell vector c, which is zero",
        ),
        (
            molecule([[0, 0, 0]], pbc=(True,) * 3, cell=np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])),
            "linearly dependent",
        ),
        (molecule([[0, 0, 0]], pbc=(True,) * 3, cell=np.eye(3) * 0.005), "more than the limit of 5e"),
        (molecule([[0, 0, 0]], pbc=(True, True, False), cell=np.eye(3) * 1e-4), "more than the limit of 5e"),
        (molecule([[0, 0, 0]], cell=np.full((3, 3), np.nan)), "cell is not finite"),
        (molecule([[0, 0, 0], [4e9, 0, 0]], pbc=(True,) * 3, cell=np.eye(3)), "more than 10.8 cells"),
    ],
)
def test_refusals(structure, message):
    with pytest.raises(EquijaxError, match=message):
        neighbor_list(structure, 5.0)


def test_flown_away_inside_a_slab():
    positions = [[0, 0, 0], [1, 0, 0], [0, 0, 1e7]]
    structure = molecule(positions, pbc=(True, True, False), cell=np.diag([5.0, 5, 0]))
    with pytest.raises(EquijaxError, match=r"atom 2 at .* has flown away"):
        neighbor_list(structure, 5.0)


def test_edge_limit():
    positions = np.random.default_rng(0).uniform(0, 3, (400, 3))
    with pytest.raises(EquijaxError, match=r"for 400 atoms, more than the limit of 1e\+03.*units of length"):
        neighbor_list(molecule(positions), 5.0, max_edges=1000)
    with pytest.raises(EquijaxError, match="cutoff is -1"):
        neighbor_list(molecule(positions), -1.0)
