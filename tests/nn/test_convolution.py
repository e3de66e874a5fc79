"""Blocks of receivers against all receivers at once: values, gradients, gradients of gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.nn import convolution
from equijax.nn.normalization import normalized_silu
from equijax.ops import ClebschGordan
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision

NODES, NEIGHBORS, CHANNELS, BASIS = 11, 4, 2, 3
QUICK = {"xla_backend_optimization_level": 0}


def arguments(product):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NODES, 4, CHANNELS))
    harmonics = rng.normal(size=(NODES, NEIGHBORS, 4))
    features = rng.normal(size=(NODES, NEIGHBORS, BASIS))
    features[5:, 2:] = 0.0
    mlp = [rng.normal(size=(BASIS, 6)), rng.normal(size=(6, product.path_count * CHANNELS))]
    return x, harmonics, features, mlp


@pytest.mark.parametrize("receivers", [4, 32])
def test_blocks(monkeypatch, receivers):
    product = ClebschGordan().bind_edges(1, 1, 1)
    neighbors = np.random.default_rng(1).integers(0, NODES, (NODES, NEIGHBORS)).astype(np.int32)

    def total(arguments):
        x, harmonics, features, mlp = arguments
        unit = jnp.zeros((NODES, NEIGHBORS, 3))
        geometry = EdgeGeometry(harmonics, unit, jnp.ones((NODES, NEIGHBORS)))
        results = convolution.convolve(product, x, neighbors, geometry, features, mlp, normalized_silu("exact"))
        assert [r.shape[0] for r in results] == [NODES, NODES]
        return sum(jnp.sum(jnp.sin(r)) for r in results)

    def squared_gradient(arguments):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(total)(arguments)))

    def everything(arguments):
        return total(arguments), jax.grad(total)(arguments), jax.grad(squared_gradient)(arguments)

    with precision("float64"):
        expected = jax.tree.leaves(jax.jit(everything, compiler_options=QUICK)(arguments(product)))
        monkeypatch.setattr(convolution, "BLOCK_ABOVE_BYTES", 0)
        monkeypatch.setattr(convolution, "BLOCK_RECEIVERS", receivers)
        found = jax.tree.leaves(jax.jit(lambda a: everything(a), compiler_options=QUICK)(arguments(product)))
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)
