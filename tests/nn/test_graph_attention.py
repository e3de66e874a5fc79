"""Softmax over neighbours, layer norms and maps per degree: formulas, empty rows, and what vanishes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.nn.dense import DegreeDense
from equijax.nn.graph_attention import neighbor_softmax, smooth_neighbor_softmax
from equijax.nn.layer_norm import LayerNormSH, RMSNormSH
from equijax.precision import precision


@pytest.fixture(autouse=True)
def _float64():
    with precision("float64"):
        yield


def test_softmax_over_the_neighbours_that_there_are():
    logits = np.random.default_rng(0).normal(size=(3, 4, 2)) * 3
    mask = np.array([[True, True, False, True], [False, True, False, False], [False] * 4])
    logits[~mask] = 1e300  # would overflow if it were looked at
    weights, pullback = jax.vjp(lambda x: neighbor_softmax(x, mask), jnp.asarray(logits))
    terms = np.exp(logits[0, mask[0]])
    np.testing.assert_allclose(weights[0][mask[0]], terms / terms.sum(0), rtol=1e-14)
    assert (weights[1, 1] == 1).all()
    assert (weights[2] == 0).all()
    (gradient,) = pullback(jnp.ones_like(weights))
    assert np.isfinite(gradient).all()


def test_smooth_softmax_is_its_formula_and_as_smooth_as_the_envelope():
    rng = np.random.default_rng(0)
    logits, envelope = rng.normal(size=(2, 5, 3)), rng.uniform(0.1, 1.0, (2, 5))
    envelope[1] = 0.0
    envelope[0, 4] = 0.0
    logits[1] = 700.0
    weights = smooth_neighbor_softmax(jnp.asarray(logits), jnp.asarray(envelope))
    terms = envelope[0, :, None] * np.exp(logits[0])
    np.testing.assert_allclose(weights[0], terms / (1 + terms.sum(0)), rtol=1e-14)
    assert (weights[1] == 0).all()
    # Large logits saturate, and nothing overflows.
    large = smooth_neighbor_softmax(jnp.full((1, 2, 1), 1e4), jnp.array([[0.2, 0.6]]))
    np.testing.assert_allclose(large[0, :, 0], [0.25, 0.75])
    # The weight of a last neighbour with the envelope t³ goes as t³: its second derivative vanishes with t.
    weight = lambda t: smooth_neighbor_softmax(jnp.full((1, 1, 1), 0.7), jnp.reshape(t**3, (1, 1)))[0, 0, 0]  # noqa: E731
    second = jax.grad(jax.grad(weight))
    np.testing.assert_allclose(second(1e-4), 6e-4 * np.exp(0.7), rtol=1e-3)


@pytest.mark.parametrize("options", [LayerNormSH(), RMSNormSH()], ids=lambda options: options.name)
def test_norms_have_unit_mean_square_and_are_smooth_at_zero(options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 9, 64)) * 5.0
    module = options.module(2)
    params = module.init(jax.random.key(0), x)
    normed = np.asarray(module.apply(params, x))
    np.testing.assert_allclose(normed[:, 0].mean(-1), 0, atol=1e-12)
    degrees = [np.mean(normed[:, l * l : (l + 1) ** 2] ** 2, axis=(1, 2)) for l in range(3)]
    grouped = np.mean(degrees, axis=0) if options.name == "rms_norm_sh" else np.mean(degrees[1:], axis=0)
    np.testing.assert_allclose(grouped, 1.0, rtol=1e-6)

    direction = rng.normal(size=(1, 9, 64))
    along = lambda t: jnp.sum(module.apply(params, t * direction) ** 3)  # noqa: E731
    for order in range(4):
        assert np.isfinite(along(0.0)), order
        along = jax.grad(along)


def test_a_map_per_degree():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 3))
    module = DegreeDense(4, lmax=2)
    params = module.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(4.0)
    y = module.apply({"params": params}, x)
    np.testing.assert_allclose(y[:, 0], x[:, 0] @ params["kernel"][0] + np.arange(4.0))
    np.testing.assert_allclose(y[:, 4:], x[:, 4:] @ params["kernel"][2])
    vectors = DegreeDense(4, lmax=1, lmin=1)
    only = {"params": {"kernel": params["kernel"][1:2]}}
    np.testing.assert_allclose(vectors.apply(only, x[:, 1:4]), y[:, 1:4])
