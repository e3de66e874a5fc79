"""Graphs of structures, padded batches, and the order of an epoch."""

import dataclasses

import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.errors import EquijaxError
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import (
    BatchBudget,
    batch,
    batch_capacity,
    epoch_order,
    plan_batches,
    structure_graph,
    unbatch_nodes,
)
from equijax.graph.neighbors import neighbor_list
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.precision import precision
from equijax.structure import Structure

ELEMENTS = (1, 6, 8, 13, 29)
FIXED_ORDER = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]  # epoch_order(10, 7, 3): resumed runs rely on it


def structures():
    ethanol = molecule("CH3CH2OH")
    copper = bulk("Cu")
    slab = fcc111("Al", (1, 2, 2), vacuum=5.0)
    skewed = bulk("Cu", cubic=True)
    skewed.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 3, 1]]) @ skewed.cell.array, scale_atoms=False)
    skewed.positions += 31.0
    atom = molecule("CH3CH2OH")[:1]
    return [Structure.from_ase(atoms) for atoms in (ethanol, copper, slab, skewed, atom)]


def device_vectors(graph, dtype):
    with precision(dtype):
        return np.asarray(jax.jit(edge_vectors)(graph))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_reproduces_every_edge(dtype):
    items = structures()
    graphs = [structure_graph(s, 5.0, ELEMENTS) for s in items]
    capacity = batch_capacity(graphs, PaddingPolicy())
    padded = batch(graphs, capacity, dtype)
    assert padded.positions.dtype == padded.shifts.dtype == padded.cell.dtype == np.dtype(dtype)
    assert padded.positions.shape == (capacity.nodes, 3)
    assert padded.neighbors.shape == (capacity.nodes, capacity.neighbors)
    vectors = device_vectors(padded, dtype)
    row = 0
    for index, (item, graph) in enumerate(zip(items, graphs, strict=True)):
        edges = neighbor_list(item, 5.0)
        assert len(edges) == graph.num_edges
        for atom in range(len(item)):
            mask = padded.neighbor_mask[row + atom]
            mine = edges.receivers == atom
            assert mask.sum() == mine.sum()
            np.testing.assert_allclose(
                vectors[row + atom][mask], edges.vectors[mine], atol=1e-12 if dtype == "float64" else 1e-5
            )
            np.testing.assert_array_equal(padded.neighbors[row + atom][mask] - row, edges.senders[mine])
        assert (padded.node_graph[row : row + len(item)] == index).all()
        np.testing.assert_array_equal(np.array(ELEMENTS)[padded.species[row : row + len(item)]], item.atomic_numbers)
        row += len(item)
    # Reverse slots: an involution on all slots, odd on real ones; padding points at itself and at the ghost.
    reverse, flat = padded.reverse.reshape(-1), vectors.reshape(-1, 3)
    mask = padded.neighbor_mask.reshape(-1)
    np.testing.assert_array_equal(reverse[reverse], np.arange(reverse.size))
    np.testing.assert_array_equal(reverse[~mask], np.flatnonzero(~mask))
    np.testing.assert_allclose(flat[reverse[mask]], -flat[mask], atol=1e-12 if dtype == "float64" else 1e-5)
    assert (padded.neighbors.reshape(-1)[~mask] == capacity.nodes - 1).all()
    assert (padded.node_graph[row:] == capacity.graphs - 1).all()
    assert padded.node_mask.sum() == row < capacity.nodes
    assert padded.graph_mask.sum() == len(items) < capacity.graphs
    assert (np.abs(np.linalg.det(padded.cell)) > 1e-6).all()


def test_more_than_forty_thousand_edges():
    crystal = bulk("Cu", cubic=True) * (7, 7, 6)
    crystal.rattle(0.05, seed=1)
    structure = Structure.from_ase(crystal)
    graph = structure_graph(structure, 5.0, ELEMENTS)
    padded = batch([graph], batch_capacity([graph], PaddingPolicy()))
    assert padded.neighbor_mask.sum() == graph.num_edges > 40_000
    vectors = device_vectors(padded, "float32")[padded.neighbor_mask]
    np.testing.assert_allclose(vectors, neighbor_list(structure, 5.0).vectors, atol=2e-5)


@pytest.mark.parametrize("item", structures(), ids=["molecule", "primitive", "slab", "skewed", "atom"])
def test_wrapping_keeps_every_vector(item):
    graph = structure_graph(item, 5.0, ELEMENTS)
    np.testing.assert_allclose(graph.positions + graph.offset, item.positions, atol=1e-12)
    np.testing.assert_allclose(graph.vectors(), neighbor_list(item, 5.0).vectors, atol=1e-10)
    rng = np.random.default_rng(0)
    shaken = item.positions + rng.normal(size=item.positions.shape) * 0.01
    moved = graph.moved(shaken)
    delta = shaken - item.positions
    expected = graph.vectors() + delta[graph.receivers] - delta[graph.senders]
    np.testing.assert_allclose(moved.vectors(), expected, atol=1e-10)


def test_float32_survives_atoms_far_outside_the_cell():
    structure = structures()[1]
    far = dataclasses.replace(structure, positions=structure.positions + 30_000 * structure.cell[0])
    near, away = (structure_graph(s, 5.0, ELEMENTS) for s in (structure, far))
    capacity = batch_capacity([near], PaddingPolicy())
    for one, other in zip(
        *(np.sort(device_vectors(batch([g], capacity), "float32").reshape(-1)) for g in (near, away)),
        strict=True,
    ):
        assert abs(one - other) < 1e-5
    ethanol = structures()[0]
    far = dataclasses.replace(ethanol, positions=ethanol.positions + 1e5)
    capacity = batch_capacity([structure_graph(ethanol, 5.0, ELEMENTS)], PaddingPolicy())
    graph = batch([structure_graph(far, 5.0, ELEMENTS)], capacity)
    assert np.abs(graph.positions).max() < 10


def test_too_small_a_capacity_is_refused():
    graphs = [structure_graph(s, 5.0, ELEMENTS) for s in structures()[:2]]
    right = batch_capacity(graphs, PaddingPolicy())
    for wrong in (
        dataclasses.replace(right, nodes=10),
        dataclasses.replace(right, neighbors=40),
        dataclasses.replace(right, graphs=2),
    ):
        with pytest.raises(EquijaxError, match="a batch of 2 structures with 10 atoms and up to 42 neighbours"):
            batch(graphs, wrong)
    exact = Capacity(nodes=11, neighbors=42, graphs=3)
    assert batch(graphs, exact).node_mask.sum() == 10


def test_unknown_element_lists_the_supported_ones():
    item = dataclasses.replace(structures()[0], file="a.xyz", frame=7)
    with pytest.raises(EquijaxError, match=r"a.xyz frame 7: atom 2 is O \(8\).*supported: H \(1\), C \(6\)"):
        structure_graph(item, 5.0, (1, 6))


def test_unbatch_nodes():
    graphs = [structure_graph(s, 5.0, ELEMENTS) for s in structures()]
    padded = batch(graphs, batch_capacity(graphs, PaddingPolicy()))
    parts = unbatch_nodes(padded.positions, graphs)
    for part, graph in zip(parts, graphs, strict=True):
        np.testing.assert_allclose(part, graph.positions, atol=1e-5)


def test_empty_batch_holds_only_ghosts():
    padded = batch([], PaddingPolicy().capacity(0, 0, 0))
    assert not padded.node_mask.any()
    assert not padded.graph_mask.any()


sizes_strategy = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2000)), min_size=0, max_size=80)


@settings(max_examples=100, deadline=None)
@given(sizes_strategy, st.integers(0, 2**40), st.integers(0, 1000), st.booleans())
def test_every_structure_once_within_budget(sizes, seed, epoch, shuffle):
    budget = BatchBudget(max_structures=7, max_atoms=90, max_edges=2500)
    batches = plan_batches(sizes, budget, seed, epoch, shuffle)
    assert sorted(i for one in batches for i in one) == list(range(len(sizes)))
    for one in batches:
        assert 0 < len(one) <= 7
        assert sum(sizes[i][0] for i in one) <= 90
        assert sum(sizes[i][1] for i in one) <= 2500
    assert batches == plan_batches(sizes, budget, seed, epoch, shuffle)


def test_order_depends_on_seed_and_epoch_only_and_is_fixed_for_ever():
    assert epoch_order(8, 0, 0).tolist() == epoch_order(8, 0, 0).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 1, 0).tolist()
    assert epoch_order(10, 7, 3).tolist() == FIXED_ORDER
    batches = plan_batches([(3, 6)] * 10, BatchBudget(max_structures=4), shuffle=False)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_structure_above_the_budget():
    sizes = [(10, 90), (500, 20000), (10, 90), (400, 30000)]
    with pytest.raises(EquijaxError, match=r"structure 1: 500 atoms .*\(2 such frames\).*max_atoms: 500"):
        plan_batches(sizes, BatchBudget(max_atoms=100))
    with pytest.raises(EquijaxError, match=r"big.xyz frame 1.*max_atoms: 500, max_edges: 30000"):
        plan_batches(sizes, BatchBudget(max_atoms=100, max_edges=1000), places=["a", "big.xyz frame 1", "a", "a"])
    batches = plan_batches(sizes, BatchBudget(max_atoms=100, oversized="alone"))
    assert sorted(i for one in batches for i in one) == [0, 1, 2, 3]
    assert [1] in batches
    assert [3] in batches
    with pytest.raises(ValueError, match="at least one of"):
        BatchBudget()
