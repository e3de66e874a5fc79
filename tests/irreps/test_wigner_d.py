"""Wigner D matrices as representations, the turn of an edge to the polar axis, and derivatives of both."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_d import alignment, wigner_d
from equijax.precision import precision

LMAX = 6
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def rotations(seed, count=10):
    return Rotation.random(count, random_state=seed).as_matrix()


def evaluated(rotation, lmax=LMAX, mmax=None, dtype="float64"):
    with precision(dtype):
        found = quick_jit(partial(wigner_d, lmax=lmax, mmax=mmax))(rotation.astype(dtype))
        assert {d.dtype for d in found} == {np.dtype(dtype)}
        return [np.asarray(d) for d in found]


def directions():
    """Axes, near the poles, both sides of the equator, random."""
    points = [*np.eye(3), *-np.eye(3)]
    for angle in (1e-8, 1e-4, 1e-1):
        points += [[np.sin(angle), sign * np.cos(angle), 0.0] for sign in (1, -1)]
    points += [[0.6, 1e-12, 0.8], [0.6, -1e-12, 0.8], *np.random.default_rng(0).normal(size=(10, 3))]
    return np.array(points) / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 3e-14), ("float32", 5e-6)])
def test_orthogonal_and_a_homomorphism(dtype, tolerance):
    one, other = rotations(0), rotations(1)
    d1, d2, d12 = (evaluated(r, dtype=dtype) for r in (one, other, one @ other))
    for l in range(LMAX + 1):
        identity = np.broadcast_to(np.eye(2 * l + 1), d1[l].shape)
        np.testing.assert_allclose(d1[l] @ d1[l].swapaxes(1, 2), identity, rtol=0, atol=tolerance)
        np.testing.assert_allclose(d1[l] @ d2[l], d12[l], rtol=0, atol=tolerance)


def test_turns_harmonics_and_vectors():
    rotation, points = rotations(2), np.random.default_rng(3).normal(size=(10, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    d = evaluated(rotation)
    np.testing.assert_array_equal(d[1], rotation)
    with precision("float64"):
        harmonics = quick_jit(partial(spherical_harmonics, lmax=LMAX))
        before, after = harmonics(points), harmonics(np.einsum("nij,nj->ni", rotation, points))
    for l in range(LMAX + 1):
        turned = np.einsum("nij,nj->ni", d[l], before[:, degree_slice(l)])
        np.testing.assert_allclose(turned, after[:, degree_slice(l)], rtol=0, atol=3e-14)


def test_turns_about_the_polar_axis_mix_plus_and_minus_m():
    t = 0.7
    turn = np.array([[np.cos(t), 0.0, np.sin(t)], [0.0, 1.0, 0.0], [-np.sin(t), 0.0, np.cos(t)]])
    for l, d in enumerate(evaluated(turn)):
        expected = np.zeros((2 * l + 1, 2 * l + 1))
        for m in range(-l, l + 1):
            expected[l + m, l + m] = np.cos(m * t)
            expected[l + m, l - m] -= np.sin(m * t)
        np.testing.assert_allclose(d, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mmax", [0, 1, 3])
def test_rows_up_to_mmax(mmax):
    rotation = rotations(4)
    for l, (rows, full) in enumerate(zip(evaluated(rotation, mmax=mmax), evaluated(rotation), strict=True)):
        m = min(l, mmax)
        np.testing.assert_allclose(rows, full[:, l - m : l + m + 1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-15), ("float32", 2e-7)])
def test_alignment_turns_edges_to_the_pole(dtype, tolerance):
    with precision(dtype):
        points = directions().astype(dtype)
        q = np.asarray(quick_jit(alignment)(points))
    assert q.dtype == dtype
    np.testing.assert_allclose(q @ points[..., None], np.tile([[0], [1], [0]], (len(q), 1, 1)), atol=3 * tolerance)
    np.testing.assert_allclose(q @ q.swapaxes(1, 2), np.tile(np.eye(3), (len(q), 1, 1)), atol=3 * tolerance)
    np.testing.assert_allclose(np.linalg.det(q), 1, atol=10 * tolerance)


def test_charts_are_the_quaternions_of_the_docstring_and_differ_by_a_turn_about_y():
    x, y, z = np.moveaxis(directions(), -1, 0)
    zero, usable = np.zeros_like(x), np.abs(y) < 0.9
    # scipy puts the real part last.
    upper = Rotation.from_quat(np.stack([-z, zero, x, 1 + y], -1)[y > -0.9]).as_matrix()
    lower = Rotation.from_quat(np.stack([1 - y, x, zero, -z], -1)[y < 0.9]).as_matrix()
    with precision("float64"):
        q = np.asarray(quick_jit(alignment)(directions()))
    np.testing.assert_allclose(q[y >= 0], upper[y[y > -0.9] >= 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(q[y < 0], lower[y[y < 0.9] < 0], rtol=0, atol=1e-15)
    turn = upper[usable[y > -0.9]] @ lower[usable[y < 0.9]].swapaxes(1, 2)
    np.testing.assert_allclose(turn[:, 1], np.tile([0, 1, 0], (len(turn), 1)), rtol=0, atol=1e-15)
    d = evaluated(turn, 3)
    other = np.einsum("nij,njk->nik", d[3], evaluated(lower[usable[y < 0.9]], 3)[3])
    np.testing.assert_allclose(other, evaluated(upper[usable[y > -0.9]], 3)[3], rtol=0, atol=1e-14)


def test_zero_vectors_of_padded_slots_are_harmless():
    def total(unit):
        return sum((d**3).sum() for d in wigner_d(alignment(unit), 3))

    with precision("float64"):
        assert np.isfinite(quick_jit(jax.grad(total))(np.zeros((2, 3)))).all()


def test_derivatives_to_second_order():
    """Of the product of both, with rows at the edge of the truncation and beyond it."""

    def total(points, rotation):
        rows = [(d**2 * np.cos(np.arange(d[0].size).reshape(d[0].shape))).sum() for d in wigner_d(rotation, 3, mmax=2)]
        return sum(rows) + (alignment(points) ** 3).sum()

    with precision("float64"):
        points = directions()[[0, 1, 4, 7, -1]] + 1e-3
        check_grads(jax.jit(total), (points, rotations(5, 2)), order=2, atol=1e-5, rtol=1e-5)
