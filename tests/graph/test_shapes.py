"""A short list of shapes for a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equijax.graph.batching import BatchBudget, plan_batches
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.shapes import ShapePlan, batch_size, plan_shapes


def mixed_sizes():
    """300 small molecules and one large frame: (atoms, edges, largest number of neighbours)."""
    atoms = np.random.default_rng(0).integers(9, 16, 300)
    small = [(int(n), int(n) * 10, int(n) - 1) for n in atoms]
    return np.array([*small, (500, 500 * 50, 60)])


@pytest.mark.parametrize(
    "budget", [BatchBudget(max_structures=8), BatchBudget(max_atoms=512), BatchBudget(max_edges=25000)]
)
def test_one_huge_structure_and_many_small_ones_need_few_shapes(budget):
    sizes, policy = mixed_sizes(), PaddingPolicy()
    shapes = plan_shapes(sizes, budget, policy, seed=1)
    assert len(shapes.capacities) <= 4
    used = set()
    for epoch in range(30):
        for indices in plan_batches(sizes[:, :2], budget, seed=1, epoch=epoch):
            needed = batch_size(sizes, indices)
            capacity = shapes.capacity(*needed)
            assert capacity.nodes > needed.nodes
            assert capacity.neighbors >= needed.neighbors
            assert capacity.graphs > needed.graphs
            assert 2 * capacity.pairs >= needed.edges
            used.add(capacity)
    assert len(used) <= 6


def test_merging_keeps_the_cheap_shapes_cheap():
    sizes = mixed_sizes()
    shapes = plan_shapes(sizes, BatchBudget(max_structures=8), PaddingPolicy(), max_shapes=2)
    small, large = shapes.capacities
    assert small.edges < 3000
    assert large.nodes > 500


def test_larger_batches_fall_back_to_the_policy():
    policy = PaddingPolicy()
    shapes = ShapePlan(capacities=(Capacity(16, 8, 2),), policy=policy)
    assert shapes.capacity(15, 8, 1, 64) == Capacity(16, 8, 2)
    assert shapes.capacity(16, 8, 1, 64) == policy.capacity(16, 8, 1, 64)
    fewer_pairs = ShapePlan(capacities=(Capacity(24, 16, 2, pairs=64),), policy=policy)
    assert fewer_pairs.capacity(20, 16, 1, 128).pairs == 64
    assert fewer_pairs.capacity(20, 16, 1, 130).pairs >= 65


def test_a_smaller_last_batch_shares_the_shape_of_the_others_where_that_is_cheap():
    budget = BatchBudget(max_structures=10)
    many = plan_shapes([(15, 200, 14)] * 455, budget, PaddingPolicy())
    assert many.capacities == (Capacity(152, 16, 11, pairs=1024),)
    few = plan_shapes([(15, 200, 14)] * 11, budget, PaddingPolicy())
    assert len(few.capacities) == 2


def size(atoms, neighbors, fill):
    """Every atom has at most `neighbors` and one has all of them."""
    return atoms, neighbors + 2 * int(fill * neighbors * (atoms - 1) / 2), neighbors


@given(
    st.lists(st.builds(size, st.integers(1, 40), st.integers(0, 30), st.floats(0, 1)), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(1, 100)),
)
def test_every_batch_of_every_epoch_fits(sizes, max_structures, max_atoms):
    if max_structures is None and max_atoms is None:
        return
    budget = BatchBudget(max_structures=max_structures, max_atoms=max_atoms, oversized="alone")
    table = np.array(sizes)
    shapes = plan_shapes(table, budget, PaddingPolicy(), seed=3, epochs=2)
    assert len(shapes.capacities) <= 4
    for epoch in range(6):
        for indices in plan_batches(table[:, :2], budget, seed=3, epoch=epoch):
            needed = batch_size(table, indices)
            capacity = shapes.capacity(*needed)
            assert capacity.nodes > needed.nodes
            assert capacity.neighbors >= needed.neighbors
            assert capacity.graphs > needed.graphs
            assert 2 * capacity.pairs >= needed.edges
            assert epoch >= 2 or capacity in shapes.capacities


def test_known_sizes_are_not_rounded_up_further_than_needed():
    shapes = plan_shapes([(9, 72, 8)] * 157, BatchBudget(max_structures=8), PaddingPolicy())
    assert shapes.capacities == (Capacity(80, 8, 9, pairs=320),)
