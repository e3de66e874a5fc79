"""Blocks of receivers against all receivers at once: values, gradients, gradients of gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.graph.batching import batch, batch_capacity, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.nn import convolution, receiver_blocks
from equijax.nn.normalization import normalized_silu
from equijax.nn.radial_mlp import apply_radial_mlp
from equijax.nn.receiver_blocks import blocks_above, over_receivers
from equijax.ops import ClebschGordan
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision
from equijax.structure import Structure

CHANNELS, BASIS = 2, 3
QUICK = {"xla_backend_optimization_level": 0}


def chain():
    """Nine atoms in a row, each with two to four neighbours, and padding."""
    positions = np.random.default_rng(3).normal(scale=0.1, size=(9, 3)) + np.arange(9)[:, None] * [1.0, 0, 0]
    graphs = [structure_graph(Structure(np.ones(9, int), positions, np.zeros((3, 3)), (False,) * 3), 2.3, (1,))]
    return batch(graphs, batch_capacity(graphs, PaddingPolicy()), "float64")


def arguments(product, graph):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(graph.num_nodes, 4, CHANNELS))
    harmonics = rng.normal(size=(*graph.neighbors.shape, 4))
    features = rng.normal(size=(*graph.neighbors.shape, BASIS)) * np.asarray(graph.neighbor_mask)[..., None]
    mlp = [rng.normal(size=(BASIS, 6)), rng.normal(size=(6, product.path_count * CHANNELS))]
    return x, harmonics, features, mlp


def test_blocks_of_a_platform():
    """The CPU takes few receivers from some size on; a GPU as many as its memory allows."""
    blocks, gpu = receiver_blocks._receivers_per_block, receiver_blocks.MEMORY_BYTES
    assert blocks(500, 100, 100, "cpu") == 500
    assert blocks(500, 101, 100, "cpu") == receiver_blocks.CPU_RECEIVERS
    assert blocks(500, 101, 100, "gpu") >= 500
    assert blocks(500, gpu, 100, "gpu") == 500
    assert blocks(500, 4 * gpu, 100, "gpu") == 125
    assert blocks(5, 10 * gpu, 100, "gpu") == 1
    assert blocks(0, 0, 100, "gpu") == 1


def test_a_scope_says_where_blocks_begin_and_compiled_programs_are_not_confused():
    sizes = []

    @jax.jit
    def largest(x):
        def block(rows):
            sizes.append(rows.shape[0])
            return 2 * rows

        return over_receivers(block, x, 100)

    x = jnp.ones((receiver_blocks.CPU_RECEIVERS + 3, 2))
    with blocks_above(99):
        np.testing.assert_array_equal(largest(x), 2 * x)
    np.testing.assert_array_equal(largest(x), 2 * x)
    with blocks_above(99):
        largest(x)
    assert sizes == [receiver_blocks.CPU_RECEIVERS, len(x)]


@pytest.mark.parametrize("receivers", [4, pytest.param(32, marks=pytest.mark.slow)])
def test_blocks(monkeypatch, receivers):
    product = ClebschGordan().bind_edges(1, 1, 1)
    with precision("float64"):
        graph = jax.device_put(chain())

    def total(arguments):
        x, harmonics, features, mlp = arguments
        unit = jnp.zeros((*graph.neighbors.shape, 3))
        geometry = EdgeGeometry(harmonics, unit, jnp.ones(graph.neighbors.shape))
        radial = functools.partial(apply_radial_mlp, mlp, normalized_silu("exact"))
        results = convolution.convolve(product, x, graph, geometry, features, radial)
        assert [r.shape[0] for r in results] == [graph.num_nodes] * 2
        return sum(jnp.sum(jnp.sin(r)) for r in results)

    def squared_gradient(arguments):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(total)(arguments)))

    def everything(arguments):
        return total(arguments), jax.grad(total)(arguments), jax.grad(squared_gradient)(arguments)

    with precision("float64"):
        expected = jax.tree.leaves(jax.jit(everything, compiler_options=QUICK)(arguments(product, graph)))
        monkeypatch.setattr(receiver_blocks, "CPU_RECEIVERS", receivers)
        with blocks_above(0):
            found = jax.tree.leaves(jax.jit(lambda a: everything(a), compiler_options=QUICK)(arguments(product, graph)))
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)
