"""TensorNet against torchmd-net 3.1 in float64, from numbers that torch computed; its operations against plain forms.

scripts/make_torchmd_net_fixtures.py made the files.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, batch_capacity, structure_graph
from equijax.graph.neighbor_pairs import collect, pairs_of, spread
from equijax.graph.padding import PaddingPolicy, num_pair_rows
from equijax.models import ModelStatistics, TensorNetConfig, tensornet
from equijax.nn.pair_messages import pair_dot, pair_sum
from equijax.ops.tensor_matrices import anticommutator, basis, edge_components, matrix_product, transposed
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.potential import parameter_shapes
from equijax.precision import precision
from equijax.structure import Structure
from equijax.weights.torchmd_net_checkpoint import read_torchmd_net
from equijax.weights.torchmd_net_map import to_potential

FIXTURES = Path(__file__).parents[1] / "fixtures" / "torchmd_net"
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


QUICK_ROWS = (("o3", 2, 1), ("so3", 1, 0), ("o3", 0, 0))
ROWS = [
    pytest.param(*row, marks=() if row in QUICK_ROWS else pytest.mark.slow)
    for row in itertools.product(("o3", "so3"), (0, 1, 2), (0, 1))
]


@pytest.mark.parametrize(("group", "num_layers", "charge"), ROWS)
def test_parity_with_torchmd_net(group, num_layers, charge):
    export = read_torchmd_net(FIXTURES / f"{group}_{num_layers}.npz")
    potential = to_potential(export, total_charge=float(charge))
    references = [export.references[f"{name}_{charge}"] for name in ("ethanol", "atom")]
    graphs = [structure_graph(Structure(r.numbers, r.positions), 4.5, potential.elements) for r in references]
    with precision("float64"):
        packed = batch(graphs, batch_capacity(graphs, PaddingPolicy()), "float64")
        function = jax.jit(lambda p, g: energy_and_derivatives(potential.module, p, g), compiler_options=QUICK)
        found = jax.tree.map(np.asarray, function(potential.params, packed))
    rows = iter(found.forces)
    for energy, reference in zip(found.energy, references):
        e0 = potential.isolated_energies(reference.numbers).sum()
        assert energy == pytest.approx(reference.energy - e0, rel=0, abs=1e-10)
        for expected in reference.forces:
            np.testing.assert_allclose(next(rows), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "num_layers", "num_radial", "count"),
    [
        (128, 0, 32, 301_441),
        (128, 1, 32, 535_681),
        (128, 2, 32, 769_921),
        (256, 3, 32, 3_925_249),
        (256, 3, 64, 3_974_401),
        (128, 1, 64, 552_065),
        (128, 2, 64, 790_401),
        (64, 2, 64, 212_929),
        (8, 2, 32, 5_401),
    ],
)
def test_parameter_counts(channels, num_layers, num_radial, count):
    """Measured on torchmd-net 3.1, whose table has 128 elements."""
    config = TensorNetConfig(channels=channels, num_layers=num_layers, num_radial=num_radial, isolated_atoms="learned")
    shapes = parameter_shapes(config.build(ModelStatistics(tuple(range(1, 129)), avg_num_neighbors=8.0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def small_graph(fewest_pairs=False):
    rng = np.random.default_rng(3)
    cell = np.array([[3.1, 0.2, 0.0], [0.4, 3.3, 0.1], [0.3, -0.2, 3.6]])  # atoms meet their own images
    structures = [
        Structure(np.array([8, 1]), rng.uniform(0, 3, (2, 3)), cell, (True,) * 3),
        Structure(np.array([6, 1, 1]), rng.uniform(0, 2, (3, 3))),
        Structure(np.array([1]), np.zeros((1, 3))),
    ]
    graphs = [structure_graph(structure, 3.5, (1, 6, 8)) for structure in structures]
    capacity = dataclasses.replace(batch_capacity(graphs, PaddingPolicy()), neighbors=64)
    if fewest_pairs:
        capacity = dataclasses.replace(capacity, pairs=num_pair_rows(sum(graph.num_edges for graph in graphs)))
    return batch(graphs, capacity, "float64")


def test_fewer_rows_of_pairs_change_nothing():
    config = TensorNetConfig(channels=2, num_layers=1, num_radial=5, cutoff=3.5)
    module = config.build(ModelStatistics((1, 6, 8), avg_num_neighbors=8.0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), parameter_shapes(module))

    def derivatives(params, graph):
        def total(params, vectors):
            return jnp.sum(module.apply({"params": params}, graph, vectors).node_energies ** 2)

        return jax.value_and_grad(total, (0, 1))(params, edge_vectors(graph))

    with precision("float64"):
        many, few = small_graph(), small_graph(fewest_pairs=True)
        assert few.pair_capacity < many.pair_capacity / 2
        function = jax.jit(derivatives, compiler_options=QUICK)
        for one, other in zip(*(jax.tree.leaves(function(params, graph)) for graph in (many, few)), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fewest_pairs", [False, True])
def test_pairs_hold_every_edge_once(fewest_pairs):
    graph = small_graph(fewest_pairs)
    pairs = jax.tree.map(np.asarray, pairs_of(graph))
    assert pairs.mask.sum() == graph.neighbor_mask.sum() // 2
    slots = pairs.slots[pairs.mask]
    assert sorted(slots.ravel()) == np.flatnonzero(graph.neighbor_mask).tolist()
    np.testing.assert_array_equal(graph.reverse.ravel()[slots[:, 0]], slots[:, 1])
    np.testing.assert_array_equal(pairs.pair.ravel()[slots], np.repeat(np.flatnonzero(pairs.mask), 2).reshape(-1, 2))


def test_sums_over_pairs_and_their_derivatives():
    """Against the same sums written with index arrays, in values and in second derivatives of a scalar."""
    graph = small_graph()
    rng = np.random.default_rng(0)
    with precision("float64"):
        pairs = pairs_of(graph)
        x = jnp.asarray(rng.normal(size=(graph.num_nodes, 9, 2)))
        w = jnp.asarray(rng.normal(size=(pairs.num_pairs, 3, 2)))
        degrees = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2])

        def plain_sum(w, x):
            products = w[pairs.pair][:, :, degrees] * x[graph.neighbors]
            return jnp.sum(jnp.where(graph.neighbor_mask[:, :, None, None], products, 0), axis=1)

        def plain_dot(a, b):
            n, j = pairs.atoms[:, 0], pairs.atoms[:, 1]
            products = a[n] * b[j] + a[j] * b[n]
            summed = jnp.stack([products[:, degrees == l].sum(axis=1) for l in range(3)], axis=1)
            return jnp.where(pairs.mask[:, None, None], summed, 0)

        def scalar(pair_sum, pair_dot, w, x):
            y = jnp.sin(pair_sum(w, x))
            return jnp.sum(jnp.cos(pair_dot(y, x)) * w)

        def second(pair_sum, pair_dot):
            gradient = jax.grad(lambda w, x: scalar(pair_sum, pair_dot, w, x), (0, 1))
            squared = lambda w, x: sum(jnp.sum(g**2) for g in gradient(w, x))  # noqa: E731
            forward = jax.jvp(gradient, (w, x), (w, x))[1]
            directions = jnp.stack([x, jnp.sin(x)], axis=1)
            mapped = jax.vmap(lambda t: jax.jvp(gradient, (w, x), (w, t))[1], in_axes=1)(directions)
            return gradient(w, x), jax.grad(squared, (0, 1))(w, x), forward, mapped

        forms = ((lambda w, x: pair_sum(w, x, pairs), lambda a, b: pair_dot(a, b, pairs)), (plain_sum, plain_dot))
        ours, plain = (jax.jit(lambda form=form: second(*form), compiler_options=QUICK)() for form in forms)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)
        values = jnp.asarray(rng.normal(size=(graph.num_nodes, graph.num_neighbors, 2)))
        there = jnp.sum(collect(values, pairs) * w[:, 0])
        assert there == pytest.approx(float(jnp.sum(values * spread(w[:, 0], pairs))), rel=1e-13)


def test_matrices():
    """Components are those of the matrices, products are theirs, and derivatives follow."""
    rng = np.random.default_rng(1)
    rows = basis()
    np.testing.assert_allclose(rows.T @ rows, np.eye(9), atol=1e-15)
    v = rng.normal(size=3)
    v /= np.linalg.norm(v)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    with precision("float64"):
        found = np.asarray(edge_components(jnp.asarray(v)))
        a, b = (jnp.asarray(rng.normal(size=(4, 9, 2))) for _ in range(2))
        to = lambda x: jnp.einsum("qi,nic->ncq", rows, x).reshape(4, 2, 3, 3)  # noqa: E731
        back = lambda m: jnp.einsum("qi,ncq->nic", rows, m.reshape(4, 2, 9))  # noqa: E731
        np.testing.assert_allclose(to(transposed(a)), jnp.swapaxes(to(a), -1, -2), atol=1e-14)
        for ours, plain in (
            (matrix_product, lambda a, b: back(to(a) @ to(b))),
            (anticommutator, lambda a, b: back(to(a) @ to(b) + to(b) @ to(a))),
        ):
            np.testing.assert_allclose(ours(a, b), plain(a, b), atol=1e-13)
            gradients = [jax.grad(lambda a, b, f=f: jnp.sum(jnp.sin(f(a, b)) * a), (0, 1))(a, b) for f in (ours, plain)]
            np.testing.assert_allclose(*(np.stack(g) for g in gradients), atol=1e-13)
    expected = np.eye(3) + skew + np.outer(v, v) - np.eye(3) / 3
    np.testing.assert_allclose((rows @ found).reshape(3, 3), expected, atol=1e-14)


def test_embedding_from_moments_and_from_edges(monkeypatch):
    """Few species go by moments, many by edges: the same energies."""
    graph = small_graph()
    module = TensorNetConfig(cutoff=3.5, channels=4, num_layers=0, num_radial=4).build(ModelStatistics((1, 6, 8), 4.0))
    with precision("float64"):
        vectors = edge_vectors(graph)
        params = jax.jit(module.init, compiler_options=QUICK)(jax.random.key(0), graph, vectors)["params"]
        moments = jax.jit(lambda: module.apply({"params": params}, graph, vectors), compiler_options=QUICK)()
        monkeypatch.setattr(tensornet, "_MOST_SPECIES_OF_MOMENTS", 0)
        edges = jax.jit(lambda: module.apply({"params": params}, graph, vectors), compiler_options=QUICK)()
        np.testing.assert_allclose(moments.node_energies, edges.node_energies, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(moments.node_features, edges.node_features, rtol=1e-11, atol=1e-12)


def test_limits_name_what_the_options_give_up():
    assert TensorNetConfig().limits() == ()
    said = TensorNetConfig(group="SO(3)", envelope="cosine", total_charge=-1.0).limits()
    assert [s.split(":")[0] for s in said] == ["model.group SO(3)", "model.envelope cosine", "model.total_charge -1"]
    assert TensorNetConfig().is_o3
    assert not TensorNetConfig(group="SO(3)").is_o3
