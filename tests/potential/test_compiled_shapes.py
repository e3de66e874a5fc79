"""Many different graphs, few compiled shapes."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.graph.padding import PaddingPolicy
from equijax.potential.compiled_shapes import CompiledShapes, fits


def visit(shapes: CompiledShapes, nodes: int, neighbors: int, graphs: int = 1):
    capacity = shapes.choose(nodes, neighbors, graphs)
    shapes.function("f", capacity, lambda: lambda: None)
    return capacity


def test_every_choice_fits():
    shapes = CompiledShapes(PaddingPolicy(), max_shapes=4)
    rng = np.random.Generator(np.random.Philox(1))
    for _ in range(2000):
        nodes, neighbors, graphs = rng.integers(1, [400, 90, 20])
        assert fits(visit(shapes, nodes, neighbors, graphs), shapes.policy.fitted(nodes, neighbors, graphs))
        assert len(shapes.known) <= 4


def test_first_shape_is_tight():
    policy = PaddingPolicy()
    assert visit(CompiledShapes(policy), 500, 61) == policy.capacity(500, 61, 1)


def test_a_trajectory_has_no_rows_to_spare_and_few_shapes():
    shapes = CompiledShapes(PaddingPolicy())
    for neighbors in (40, 41, 44, 47, 53, 60, 80):
        capacity = shapes.choose(10_976, neighbors, spare_neighbors=1 + neighbors // 12, fixed_atoms=True)
        shapes.function("f", capacity, lambda: lambda: None)
        assert capacity.nodes == 10_984
        assert neighbors <= capacity.neighbors <= 1.2 * neighbors + 4
    assert len(shapes.known) == 4


def test_other_sizes_with_fixed_atoms_share_shapes():
    shapes = CompiledShapes(PaddingPolicy())
    made = set()
    for nodes in range(3, 60):
        made.add(shapes.choose(nodes, min(nodes - 1, 30), fixed_atoms=True))
        shapes.function("f", max(made), lambda: lambda: None)
    assert len(made) <= 8


def test_no_switching_when_neighbors_fluctuate():
    shapes = CompiledShapes(PaddingPolicy())
    boundary = shapes.policy.capacity(500, 60, 1).neighbors
    made = {visit(shapes, 500, boundary + step) for step in (0, 1, 0, -1, 1, 0, 1)}
    assert len(made) == 2
    assert visit(shapes, 500, boundary).neighbors == boundary


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_ten_thousand_molecules_share_eight_shapes(order):
    shapes = CompiledShapes(PaddingPolicy())
    rng = np.random.Generator(np.random.Philox(2))
    nodes = rng.integers(1, 65, size=10_000)
    neighbors = np.minimum(nodes - 1, rng.integers(8, 45, size=10_000))
    if order != "random":
        nodes, neighbors = np.sort(nodes), np.sort(neighbors)
    if order == "descending":
        nodes, neighbors = nodes[::-1], neighbors[::-1]
    made = {visit(shapes, int(n), int(k)) for n, k in zip(nodes, neighbors, strict=True)}
    assert len(made) <= 8


def test_a_small_system_does_not_pay_for_a_large_one():
    shapes = CompiledShapes(PaddingPolicy())
    visit(shapes, 4000, 60)
    assert visit(shapes, 500, 60).edges < 50_000


def test_least_recently_used_shape_is_forgotten():
    shapes = CompiledShapes(PaddingPolicy(), max_shapes=2)
    made = []
    for nodes in (100, 1000, 10_000, 1000, 100):
        capacity = shapes.choose(nodes, 60)
        shapes.function("f", capacity, lambda nodes=nodes: made.append(nodes))
    assert made == [100, 1000, 10_000, 100]


def test_remembered_shapes_are_chosen_again():
    first = CompiledShapes(PaddingPolicy())
    for neighbors in (60, 40, 90):
        visit(first, 500, neighbors)
    second = CompiledShapes(PaddingPolicy())
    second.remember(first.known)
    sizes = [(500, k) for k in (40, 60, 41, 61, 90)]
    assert [second.choose(*size) for size in sizes] == [first.choose(*size) for size in sizes]


def test_parts_stay_tight_after_many_shapes():
    shapes = CompiledShapes(PaddingPolicy())
    for nodes in (4000, 2500, 1300, 700):
        visit(shapes, nodes, 20)
    known = set(shapes.known)
    part = shapes.choose(900, 18, is_part=True)
    assert part == shapes.policy.capacity(900, 18, 1)
    shapes.function("f", part, lambda: lambda: None)
    assert part not in known
    assert shapes.choose(850, 18, is_part=True) == part
    assert shapes.choose(400, 18, is_part=True) not in (part, *known)
