"""Pairs of atoms of a batch: every one once, padding at the ghost, molecules only."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.graph.batching import structure_graph
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.pair_list import pair_capacity, pair_count, pair_list, pair_vectors
from equijax.structure import Structure

CAPACITY = Capacity(nodes=8, neighbors=4, graphs=4)


def _graphs(*sizes):
    rng = np.random.default_rng(0)
    return [structure_graph(Structure(np.ones(n, int), 2.0 * rng.normal(size=(n, 3))), 1.0, (1,)) for n in sizes]


def test_every_pair_once_in_the_order_of_structures():
    graphs = _graphs(3, 1, 2)
    pairs = pair_list(graphs, CAPACITY, 6)
    assert pair_count(graphs) == 4
    np.testing.assert_array_equal(pairs.first, [0, 0, 1, 4, 7, 7])
    np.testing.assert_array_equal(pairs.second, [1, 2, 2, 5, 7, 7])
    np.testing.assert_array_equal(pairs.graph, [0, 0, 0, 2, 3, 3])
    np.testing.assert_array_equal(pairs.mask, [True] * 4 + [False] * 2)


def test_vectors_point_to_the_first_atom_and_padding_is_harmless():
    positions = np.full((8, 3), np.nan)
    positions[:3] = [[0, 0, 0], [1, 0, 0], [0, 2, 0]]
    found = np.asarray(pair_vectors(positions, pair_list(_graphs(3), CAPACITY, 4)))
    np.testing.assert_allclose(found[:3], [[-1, 0, 0], [0, -2, 0], [1, -2, 0]])
    np.testing.assert_allclose(found[3], 3**-0.5, rtol=1e-6)


def test_rows_come_from_the_ladder_and_nothing_is_cut_off():
    assert [pair_capacity(n, PaddingPolicy()) for n in (0, 8, 9, 30)] == [8, 8, 16, 32]
    with pytest.raises(EquijaxError, match="4 pairs of atoms does not fit 3 rows"):
        pair_list(_graphs(3, 2), CAPACITY, 3)


def test_periodic_structures_are_refused():
    crystal = Structure(np.ones(2, int), np.eye(3)[:2], 4 * np.eye(3), (True, True, True), file="a.xyz", frame=2)
    with pytest.raises(EquijaxError, match=r"a\.xyz frame 2: pbc is .* molecules only"):
        pair_list([structure_graph(crystal, 1.0, (1,))], CAPACITY, 8)
