"""Many different graphs, few compiled shapes."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.graph.padding import PaddingPolicy
from equijax.potential.buckets import Buckets, fits, slots


def visit(buckets: Buckets, nodes: int, neighbors: int, graphs: int = 1):
    capacity = buckets.choose(nodes, neighbors, graphs)
    buckets.function("f", capacity, lambda: lambda: None)
    return capacity


def test_every_choice_fits():
    buckets = Buckets(PaddingPolicy(), max_compiled=4)
    rng = np.random.Generator(np.random.Philox(1))
    for _ in range(2000):
        nodes, neighbors, graphs = rng.integers(1, [400, 90, 20])
        assert fits(
            visit(buckets, nodes, neighbors, graphs), buckets.policy.capacity(nodes, neighbors, graphs)
        )
        assert len(buckets) <= 4


def test_first_shape_is_tight():
    policy = PaddingPolicy()
    assert visit(Buckets(policy), 500, 61) == policy.capacity(500, 61, 1)


def test_no_switching_when_neighbors_fluctuate():
    buckets = Buckets(PaddingPolicy())
    boundary = buckets.policy.capacity(500, 60, 1).neighbors
    shapes = {visit(buckets, 500, boundary + step) for step in (0, 1, 0, -1, 1, 0, 1)}
    assert len(shapes) == 2
    assert visit(buckets, 500, boundary).neighbors == boundary


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_ten_thousand_molecules_share_eight_shapes(order):
    buckets = Buckets(PaddingPolicy())
    rng = np.random.Generator(np.random.Philox(2))
    nodes = rng.integers(1, 65, size=10_000)
    neighbors = np.minimum(nodes - 1, rng.integers(8, 45, size=10_000))
    if order != "random":
        nodes, neighbors = np.sort(nodes), np.sort(neighbors)
    if order == "descending":
        nodes, neighbors = nodes[::-1], neighbors[::-1]
    made = {visit(buckets, int(n), int(k)) for n, k in zip(nodes, neighbors, strict=True)}
    assert len(made) <= 8


def test_a_small_system_does_not_pay_for_a_large_one():
    buckets = Buckets(PaddingPolicy())
    visit(buckets, 4000, 60)
    assert slots(visit(buckets, 500, 60)) < 50_000


def test_least_recently_used_shape_is_forgotten():
    buckets = Buckets(PaddingPolicy(), max_compiled=2)
    made = []
    for nodes in (100, 1000, 10_000, 1000, 100):
        capacity = buckets.choose(nodes, 60)
        buckets.function("f", capacity, lambda nodes=nodes: made.append(nodes))
    assert made == [100, 1000, 10_000, 100]
