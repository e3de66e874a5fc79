"""Radial basis and distance transforms against numbers of mace-torch 0.3.16, and their limits."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ase.data import covalent_radii

from equijax.ops.radial import agnesi_transform, bessel_basis, soft_transform
from equijax.precision import precision

R_CH = float(covalent_radii[6] + covalent_radii[1])  # 0.76 + 0.31 Å
BESSEL = [
    0.36649302597048716,
    0.5647754597904633,
    0.5038409159561911,
    0.211656736202588,
    -0.17767227962259544,
    -0.48545442484933354,
    -0.5704258465984359,
    -0.39358691280203784,
]


def test_bessel_known_values():
    with precision("float64"):
        values = np.asarray(bessel_basis(np.array([1.1]), 5.0, 8))
    np.testing.assert_allclose(values[0], BESSEL, rtol=0, atol=1e-14)


def test_bessel_is_orthonormal():
    """∫ b_n b_m r² dr = δ_nm from 0 to the cutoff."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    r, w = 2.5 * (nodes + 1), 2.5 * weights
    with precision("float64"):
        basis = np.asarray(bessel_basis(r, 5.0, 8))
    np.testing.assert_allclose(basis.T @ (basis * (w * r**2)[:, None]), np.eye(8), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bessel_keeps_precision_and_is_finite_for_close_atoms(dtype):
    lengths = np.array([1e-4, 1e-2, 1.0, 4.999], dtype)
    with precision(dtype):
        function = jax.jit(jax.vmap(jax.jacfwd(jax.jacfwd(lambda r: bessel_basis(r, 5.0, 8)))))
        values, second = np.asarray(bessel_basis(lengths, 5.0, 8)), np.asarray(function(lengths))
    assert values.dtype == second.dtype == dtype
    assert values.shape == (4, 8)
    assert np.isfinite(values).all()
    assert np.isfinite(second).all()
    n = np.arange(1, 9)
    np.testing.assert_allclose(values[0], (2 / 5) ** 0.5 * n * np.pi / 5, rtol=1e-5)


def test_transforms_known_values():
    with precision("float64"):
        r, radius = np.array([1.1]), np.array([R_CH])
        assert agnesi_transform(r, radius)[0] == pytest.approx(0.33842594082744143, abs=1e-14)
        assert soft_transform(r, radius)[0] == pytest.approx(0.9373884647000915, abs=1e-14)


@pytest.mark.parametrize("transform", [agnesi_transform, soft_transform])
def test_transforms_are_smooth_and_monotonic(transform):
    lengths = np.linspace(0.05, 6.0, 400)
    with precision("float64"):
        radius = np.full_like(lengths, R_CH)
        value = np.asarray(transform(lengths, radius))
        second = np.asarray(jax.vmap(jax.grad(jax.grad(transform)))(lengths, radius))
    assert np.isfinite(second).all()
    steps = np.diff(value)
    if transform is agnesi_transform:
        assert (steps < 0).all()
        assert (value > 0).all()
        assert (value < 1).all()
    else:
        # Stops following the distance below about the bond length, and is the distance far outside.
        far = lengths > 2 * R_CH
        assert (steps[far[1:]] > 0).all()
        assert value.min() > 0.5 * R_CH
        np.testing.assert_allclose(value[lengths > 5], lengths[lengths > 5], rtol=1e-4)


def test_transforms_at_short_range_in_float32():
    with precision("float32"):
        lengths = np.array([1e-3, 1e-2, 0.1], np.float32)
        for transform in (agnesi_transform, soft_transform):
            for radius in (0.62, 4.0):
                function = jax.vmap(jax.value_and_grad(transform), in_axes=(0, None))
                value, slope = function(lengths, np.float32(radius))
                assert np.isfinite(value).all()
                assert np.isfinite(slope).all()
