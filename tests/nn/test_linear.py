"""Linear layers: the factors of e3nn's parametrisation, and that degrees do not mix."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from equijax.irreps.layout import degree_slice, irrep_name
from equijax.nn.linear import IrrepsLinear, PathLinear, SpeciesLinear
from equijax.precision import precision


def apply(module, weights, *inputs):
    with precision("float64"):
        return np.asarray(jax.jit(lambda w, *i: module.apply({"params": w}, *i))(weights, *inputs))


def test_irreps_linear():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 9, 4))
    weights = {irrep_name(l): rng.normal(size=(4, 3)) for l in range(3)}
    found = apply(IrrepsLinear(4, 3, 2), weights, x)
    assert found.shape == (5, 9, 3)
    for l in range(3):
        expected = np.einsum("nmu,uw->nmw", x[:, degree_slice(l)], weights[irrep_name(l)]) / np.sqrt(4)
        np.testing.assert_allclose(found[:, degree_slice(l)], expected, atol=1e-13)


def test_path_linear():
    rng = np.random.default_rng(1)
    counts = (2, 3)
    messages = tuple(rng.normal(size=(5, 2 * l + 1, counts[l] * 4)) for l in range(2))
    weights = {irrep_name(l): rng.normal(size=(counts[l], 4, 3)) for l in range(2)}
    found = apply(PathLinear(counts, 4, 3), weights, messages)
    for l, count in enumerate(counts):
        separate = messages[l].reshape(5, 2 * l + 1, count, 4)
        expected = np.einsum("nmpu,puw->nmw", separate, weights[irrep_name(l)]) / np.sqrt(count * 4)
        np.testing.assert_allclose(found[:, degree_slice(l)], expected, atol=1e-13)


@pytest.mark.parametrize("num_species", [1, 3, 8, 9, 20])
def test_species_linear(num_species):
    """Few and many species take different routes to the same numbers."""
    rng = np.random.default_rng(2)
    x, species = rng.normal(size=(7, 9, 4)), rng.integers(0, num_species, 7).astype(np.int32)
    weights = {irrep_name(l): rng.normal(size=(4, num_species, 3)) for l in range(2)}
    found = apply(SpeciesLinear(4, 3, 1, num_species), weights, x, species)
    assert found.shape == (7, 4, 3)
    one_hot = np.eye(num_species)[species]
    for l in range(2):
        full = np.einsum("nmu,nv,uvw->nmw", x[:, degree_slice(l)], one_hot, weights[irrep_name(l)])
        np.testing.assert_allclose(found[:, degree_slice(l)], full / np.sqrt(4 * num_species), atol=1e-13)


def test_initial_weights_are_standard_normal():
    with precision("float32"):
        x = np.zeros((1, 4, 128), np.float32)
        params = jax.jit(IrrepsLinear(128, 128, 1).init)(jax.random.key(0), x)["params"]
    assert list(params) == ["0e", "1o"]
    for weight in params.values():
        assert weight.dtype == np.float32
        assert abs(float(np.std(weight)) - 1) < 0.02
