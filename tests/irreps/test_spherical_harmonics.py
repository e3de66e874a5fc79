"""Spherical harmonics against e3nn_jax, with first and second derivatives, also at poles."""

from __future__ import annotations

from functools import partial

import e3nn_jax
import jax
import numpy as np
import pytest

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.precision import precision

LMAX = 6
POLES = np.concatenate([np.eye(3), -np.eye(3)])
# Compiling is what these tests spend their time on.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def directions():
    """32 unit vectors: the poles, one next to a pole, one whose values are known below, random ones."""
    points = [[0.3, -0.5, 0.8], [1e-9, 1.0, -1e-9], *np.random.default_rng(0).normal(size=(24, 3))]
    return np.concatenate([POLES, points / np.linalg.norm(points, axis=1, keepdims=True)])


def theirs(x, lmax=LMAX):
    irreps = e3nn_jax.Irreps.spherical_harmonics(lmax)
    return e3nn_jax.spherical_harmonics(irreps, x, False, normalization="component").array


@pytest.fixture(scope="module")
def values():
    with precision("float64"):
        return np.asarray(quick_jit(partial(spherical_harmonics, lmax=LMAX))(directions()))


def test_values_against_e3nn_jax(values):
    with precision("float64"):
        expected = np.asarray(quick_jit(theirs)(directions()))
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13)


def test_known_values(values):
    """e3nn's numbers at (0.3, -0.5, 0.8), normalised."""
    expected = [1.0, 0.5249, -0.8748, 1.3997, 0.9485, -0.5928, -0.2624, -1.5808, 1.0868]
    expected += [1.1836, -1.2675, 0.1353, 1.1522, 0.3607, -1.4523, 0.6382]
    np.testing.assert_allclose(values[6, :16], expected, atol=5e-5)


def test_component_normalisation_and_parity(values):
    for l in range(LMAX + 1):
        rows = values[:, degree_slice(l)]
        np.testing.assert_allclose((rows**2).sum(axis=1), 2 * l + 1, atol=1e-11)
        # The poles come in opposite pairs.
        np.testing.assert_allclose(rows[3:6], (-1) ** l * rows[:3], atol=1e-13)


def along_the_sphere(harmonics):
    """A function of the unnormalised vector: its derivatives see the surface of the unit sphere only."""
    return lambda vector: harmonics(vector / (vector @ vector) ** 0.5)


@pytest.mark.parametrize(
    ("order", "lmax"), [(1, 4), (2, 3), *(pytest.param(n, LMAX, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_derivatives_against_e3nn_jax(order, lmax):
    """Both are polynomials; on the sphere they and their derivatives along it agree, poles included."""
    with precision("float64"):
        results = []
        for harmonics in (spherical_harmonics, theirs):
            function = along_the_sphere(partial(harmonics, lmax=lmax))
            for _ in range(order):
                function = jax.jacfwd(function)
            results.append(np.asarray(quick_jit(jax.vmap(function))(directions())))
    assert np.isfinite(results[0]).all()
    scale = np.abs(results[1]).max()
    assert scale > 1
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-13 * scale)


def test_hessian_is_finite_and_symmetric_at_poles():
    """Reverse mode, as for forces."""

    def energy(vector):
        harmonics = along_the_sphere(partial(spherical_harmonics, lmax=4))
        return (harmonics(vector) * np.arange(1, 26)).sum()

    with precision("float64"):
        hessians = np.asarray(quick_jit(jax.vmap(jax.hessian(energy)))(POLES))
    assert np.isfinite(hessians).all()
    np.testing.assert_allclose(hessians, hessians.swapaxes(1, 2), atol=1e-9)


def test_float32(values):
    with precision("float32"):
        found = quick_jit(partial(spherical_harmonics, lmax=LMAX))(directions().astype(np.float32))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, atol=1e-5)


@pytest.mark.parametrize("lmax", range(4))
def test_shapes(lmax):
    x = np.zeros((2, 3, 3), np.float32)
    assert jax.eval_shape(partial(spherical_harmonics, lmax=lmax), x).shape == (2, 3, (lmax + 1) ** 2)
