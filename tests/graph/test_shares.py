"""A batch divided among devices: nothing is lost, and no part has much more than its share."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.graph.shares import divided


@pytest.mark.parametrize(("structures", "count"), [(8, 4), (7, 3), (2, 4), (1, 8), (64, 64), (0, 2)])
def test_every_structure_is_in_one_part_and_the_numbers_are_even(structures, count):
    table = np.random.default_rng(0).integers(1, 100, size=(100, 3))
    indices = np.random.default_rng(1).permutation(100)[:structures].tolist()
    parts = divided(table, indices, count)
    assert len(parts) == count
    assert sorted(index for part in parts for index in part) == sorted(indices)
    assert max(len(part) for part in parts) == -(-structures // count)
    for part in parts:
        assert part == [index for index in indices if index in part]


def test_parts_have_about_the_same_number_of_edges():
    table = np.stack([np.full(64, 10), np.random.default_rng(0).integers(20, 200, 64)], axis=1)
    edges = [int(table[part, 1].sum()) for part in divided(table, range(64), 4)]
    assert max(edges) < 1.03 * min(edges)
