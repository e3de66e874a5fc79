"""Gather of senders against plain indexing: values and derivatives of both modes and every order, and vmap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.bench.models import copper, ethanol
from equijax.graph import neighbor_gather
from equijax.graph.batching import batch, batch_capacity, structure_graph
from equijax.graph.neighbor_gather import gather_senders, sum_to_senders
from equijax.graph.padding import PaddingPolicy
from equijax.precision import precision

DERIVATIVES = {
    "value": lambda f: f,
    "gradient": jax.grad,
    "jitted gradient": lambda f: jax.jit(jax.grad(f)),
    "gradient of gradient": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (2 * x,))[1],
    "linearised gradient": lambda f: lambda x: jax.linearize(jax.grad(f), x)[1](x),
    "forward": lambda f: lambda x: jax.jvp(f, (x,), (x,))[1],
    "vmap": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x])),
}


@pytest.fixture(scope="module")
def case():
    """A molecule and a crystal smaller than the cutoff in one batch, features and weights of the slots."""
    graphs = [structure_graph(structure, 4.0, (1, 6, 8, 29)) for structure in (ethanol(0), copper(1))]
    rng = np.random.default_rng(0)
    with precision("float64"):
        graph = jax.device_put(batch(graphs, batch_capacity(graphs, PaddingPolicy()), "float64"))
        x = jnp.asarray(rng.normal(size=(graph.num_nodes, 4, 3)))
        return graph, x, jnp.asarray(rng.normal(size=(*graph.neighbors.shape, 4, 3)))


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_equals_indexing(case, kind):
    graph, x, weights = case

    def indexed(x):
        return jnp.sum(jnp.sin(jnp.where(graph.neighbor_mask[..., None, None], x[graph.neighbors], 0) * weights) ** 2)

    def gathered(x):
        senders = gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        return jnp.sum(jnp.sin(senders * weights) ** 2)

    with precision("float64"):
        expected, found = DERIVATIVES[kind](indexed)(x), DERIVATIVES[kind](gathered)(x)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_sum_is_the_transpose(case):
    graph, x, y = case
    indices = (graph.neighbors, graph.neighbor_mask, graph.reverse)
    with precision("float64"):
        left = jnp.vdot(gather_senders(x, *indices), y)
        right = jnp.vdot(x, sum_to_senders(y, *indices))
        np.testing.assert_allclose(left, right, rtol=1e-12)
        gradient = jax.grad(lambda y: jnp.vdot(x, sum_to_senders(y, *indices)))(y)
        np.testing.assert_array_equal(gradient, gather_senders(x, *indices))


def test_padded_slots_do_not_reach_atoms(case):
    graph, _, y = case
    with precision("float64"):
        poisoned = jnp.where(graph.neighbor_mask[..., None, None], y, jnp.nan)
        assert jnp.isfinite(sum_to_senders(poisoned, graph.neighbors, graph.neighbor_mask, graph.reverse)).all()


def test_another_graph_per_batch_element(case):
    graph, x, weights = case
    indices = [jnp.stack([a, a]) for a in (graph.neighbors, graph.neighbor_mask, graph.reverse)]

    def total(x, *indices):
        return jnp.sum(jnp.sin(gather_senders(x, *indices) * weights))

    with precision("float64"):
        together = jax.vmap(jax.grad(total))(jnp.stack([x, 2 * x]), *indices)
        alone = jax.grad(total)(2 * x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        np.testing.assert_allclose(together[1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows_in_turn", [5, 8, 1000])
def test_sums_over_some_atoms_after_others(case, monkeypatch, rows_in_turn):
    graph, _, y = case
    indices = (graph.neighbors, graph.neighbor_mask, graph.reverse, graph.neighbor_mask)
    monkeypatch.setattr(neighbor_gather, "ROWS_IN_TURN", rows_in_turn)
    with precision("float64"):
        found = neighbor_gather._sum_rows_in_turn(y, *indices)
        np.testing.assert_allclose(found, neighbor_gather._sum_rows(y, *indices), rtol=1e-12, atol=1e-12)
