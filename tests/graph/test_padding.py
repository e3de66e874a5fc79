"""The ladder of shapes and the compile counter."""

import jax
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equijax.graph.padding import CompileCounter, PaddingPolicy, num_pair_rows, padding_waste, rung


@given(st.integers(0, 200_000), st.integers(0, 500), st.integers(0, 500), st.floats(1.01, 3.0))
def test_capacity_holds_the_batch_and_its_ghosts(nodes, neighbors, graphs, ratio):
    policy = PaddingPolicy(ratio=ratio)
    capacity = policy.capacity(nodes, neighbors, graphs)
    assert capacity.nodes >= nodes + 1
    assert capacity.neighbors >= max(neighbors, 1)
    assert capacity.graphs >= graphs + 1
    assert capacity.nodes % 8 == 0
    assert capacity.neighbors % 4 == 0
    assert capacity.nodes <= max(8, (nodes + 1) * ratio + 8)
    # A bucket is a fixed point: a batch that fills it exactly gets the same bucket.
    assert policy.capacity(capacity.nodes - 1, capacity.neighbors, capacity.graphs - 1) == capacity


@given(st.integers(1, 500), st.integers(1, 60), st.floats(0, 1))
def test_rows_of_pairs_hold_the_edges_and_are_never_more_than_half_the_slots(nodes, neighbors, fill):
    policy, edges = PaddingPolicy(), 2 * int(fill * nodes * neighbors / 2)
    capacity = policy.capacity(nodes, neighbors, 1, edges)
    assert capacity.holds(nodes, neighbors, 1, edges)
    assert not capacity.holds(nodes, neighbors, 1, 2 * capacity.pairs + 2)
    assert capacity.pairs % 64 == 0
    assert capacity.pairs <= num_pair_rows(capacity.edges)
    assert policy.capacity(nodes, neighbors, 1).pair_rows == num_pair_rows(capacity.edges)


def test_number_of_buckets_is_logarithmic():
    rungs = {rung(n, 1.25, 8) for n in range(1, 10_000)}
    assert len(rungs) < 35
    assert rung(1, 1.25, 8) == 8


def test_policy_refuses_nonsense():
    for bad in (1.0, -1.0, float("nan"), 10.0, True):
        with pytest.raises(pydantic.ValidationError):
            PaddingPolicy(ratio=bad)
    with pytest.raises(pydantic.ValidationError):
        PaddingPolicy(raito=1.5)


def test_compile_counter_counts_traces_per_bucket():
    counter = CompileCounter()
    square = jax.jit(counter.wrap(lambda x: x * x, "square"))
    policy = PaddingPolicy()
    sizes = [policy.capacity(n, 1, 1).nodes for n in range(1, 60)]
    for size in sizes:
        square(np.ones(size, np.float32))
    assert counter.count == len(set(sizes)) == counter.by_name["square"]
    assert "square=" in repr(counter)


def test_padding_waste():
    capacity = PaddingPolicy().capacity(15, 14, 1)
    assert capacity.nodes == 16
    assert padding_waste(capacity, 15, 15 * 14) == {"nodes": 1 / 16, "edges": 1 - 210 / (16 * 16)}
