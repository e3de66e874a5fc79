"""The radial network: e3nn's FullyConnectedNet with normalised activations."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from scipy.integrate import quad

from equijax.nn.normalization import normalized_silu
from equijax.nn.radial_mlp import RadialMLP, apply_radial_mlp
from equijax.precision import precision


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(("norm", "constant"), [("exact", 1.6765324703310909), ("torch_e3nn", 1.6791767923989418)])
def test_activation_constants(norm, constant):
    x = np.linspace(-4, 4, 17)
    with precision("float64"):
        np.testing.assert_allclose(normalized_silu(norm)(x), constant * silu(x), rtol=1e-14, atol=1e-15)
    if norm == "exact":
        second_moment, _ = quad(lambda z: silu(z) ** 2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -12, 12)
        assert constant == pytest.approx(second_moment**-0.5, abs=1e-9)


def test_against_numpy():
    rng = np.random.default_rng(0)
    sizes = (4, 8, 6, 10)
    weights = [rng.normal(size=pair) for pair in itertools.pairwise(sizes)]
    x = rng.normal(size=(15, 4))
    expected = x
    for weight in weights[:-1]:
        expected = 1.6765324703310909 * silu(expected @ weight / np.sqrt(len(weight)))
    expected = expected @ weights[-1] / np.sqrt(6)
    with precision("float64"):
        (found,) = jax.jit(lambda w, x: apply_radial_mlp(w, normalized_silu("exact"), x))(weights, x)
        np.testing.assert_allclose(found, expected, atol=1e-13)
        pieces = apply_radial_mlp(weights, normalized_silu("exact"), x, pieces=5)
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=1e-13)
        (zero,) = apply_radial_mlp(weights, normalized_silu("exact"), np.zeros((1, 4)))
    assert [piece.shape for piece in pieces] == [(15, 2)] * 5
    assert (np.asarray(zero) == 0).all()


def test_parameters():
    module = RadialMLP((8, 6, 10))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), 4, np.float32))["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        "layer_0": (4, 8),
        "layer_1": (8, 6),
        "layer_2": (6, 10),
    }
