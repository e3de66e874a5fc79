"""Quadrature on the unit sphere and harmonics on its points, in float64 numpy.

Nothing here is traced: the results are constants, cached, that products close over. The polar axis is y, with
(x, y, z) = (sin β sin α, cos β, sin β cos α), and a quadrature is a mean over the sphere: its weights add up to one.

A rule of degree D integrates every polynomial of degree D. For the mean of three expansions of degrees L1, L2, L3 that
is D = L1 + L2 + L3; one point less on either axis of a product grid, and results are wrong by as much as themselves.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

# scipy's degrees; the tables of the high ones lose digits, which `lebedev_grid` finds by itself.
_LEBEDEV_DEGREES = (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 35, 41, 47)
_EXACT = 1e-13


class SphereGrid(NamedTuple):
    """Points [N, 3] on the unit sphere and weights [N], positive and of sum one."""

    points: np.ndarray
    weights: np.ndarray


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def product_shape(degree: int) -> tuple[int, int]:
    """(nb, na), the fewest polar and azimuthal points of a product grid that is exact to this degree.

    >>> product_shape(6)
    (4, 7)
    """
    return degree // 2 + 1, degree + 1


@functools.cache
def product_axes(nb: int, na: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cos β [nb] at Gauss-Legendre nodes, their weights [nb] of sum one, and α [na], uniform from 0."""
    cosine, weights = np.polynomial.legendre.leggauss(nb)
    return _read_only(cosine), _read_only(weights / 2), _read_only(2 * np.pi * np.arange(na) / na)


@functools.cache
def product_grid(nb: int, na: int) -> SphereGrid:
    """Gauss-Legendre in cos β times uniform in α; β slow and α fast."""
    cosine, weights, alpha = product_axes(nb, na)
    sine = np.sqrt(1 - cosine**2)
    points = np.stack(
        [np.outer(sine, np.sin(alpha)), np.outer(cosine, np.ones(na)), np.outer(sine, np.cos(alpha))], axis=-1
    )
    return SphereGrid(_read_only(points.reshape(-1, 3)), _read_only(np.repeat(weights / na, na)))


@functools.cache
def lebedev_grid(degree: int) -> SphereGrid | None:
    """The smallest Lebedev rule of at least this degree with positive weights and all its digits; None if none has.

    Rules are invariant under the octahedral group, so the order of the axes does not matter.
    """
    # Takes a third of a second to import, and most products need no Lebedev rule.
    from scipy.integrate import lebedev_rule

    for order in _LEBEDEV_DEGREES:
        if order < degree:
            continue
        points, weights = lebedev_rule(order)
        grid = SphereGrid(_read_only(np.ascontiguousarray(points.T)), _read_only(weights / (4 * np.pi)))
        if grid.weights.min() > 0 and quadrature_error(grid, degree) < _EXACT:
            return grid
        if order > 2 * degree + 5:
            return None
    return None


@functools.cache
def smallest_grid(degree: int) -> SphereGrid:
    """The exact rule of this degree with the fewest points: Lebedev's where it qualifies, or the product grid."""
    product = product_grid(*product_shape(degree))
    lebedev = lebedev_grid(degree)
    return lebedev if lebedev is not None and len(lebedev.weights) < len(product.weights) else product


def quadrature_error(grid: SphereGrid, degree: int) -> float:
    """Largest error of the mean of a harmonic of component norm, l <= degree, whose exact mean is [l = 0]."""
    means = grid.weights @ harmonics_on(grid.points, degree)
    means[0] -= 1
    return float(np.abs(means).max())


def legendre_functions(cosine: np.ndarray, lmax: int) -> np.ndarray:
    """Q [..., m, l] with Y_{l,±m} = Q_ml(cos β) sin^m β {cos mα, sin mα} of component norm; zero for l < m.

    The usual recursion in l at fixed m, normalised throughout, so no factorial overflows. Q is a polynomial.
    """
    q = np.zeros((*cosine.shape, lmax + 1, lmax + 1))
    q[..., 0, 0] = 1
    for m in range(1, lmax + 1):
        q[..., m, m] = q[..., m - 1, m - 1] * np.sqrt((2 * m + 1) / (2 * m) * (2 if m == 1 else 1))
    for l in range(1, lmax + 1):
        for m in range(l):
            up = np.sqrt((4 * l * l - 1) / (l * l - m * m))
            q[..., m, l] = up * cosine * q[..., m, l - 1]
            if l - 2 >= m:
                q[..., m, l] -= up * np.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) * q[..., m, l - 2]
    return q


def harmonics_on(points: np.ndarray, lmax: int) -> np.ndarray:
    """Y [..., (lmax+1)²] of component norm at unit vectors [..., 3], equal to `irreps.spherical_harmonics`."""
    x, y, z = np.moveaxis(points, -1, 0)
    q = legendre_functions(y, lmax)
    azimuth = (z + 1j * x)[..., None] ** np.arange(lmax + 1)  # sin^m β e^{imα}, a polynomial as well
    rows = [
        q[..., abs(m), l] * (azimuth[..., -m].imag if m < 0 else azimuth[..., m].real)
        for l in range(lmax + 1)
        for m in range(-l, l + 1)
    ]
    return np.stack(rows, axis=-1)


@functools.cache
def separable_harmonics(nb: int, na: int, lmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Polar [2 lmax + 1 (m), nb, lmax + 1 (l)] and azimuthal [na, 2 lmax + 1] factors of Y_lm on `product_grid`."""
    cosine, _, alpha = product_axes(nb, na)
    sine_powers = np.sqrt(1 - cosine**2)[:, None] ** np.arange(lmax + 1)
    polar = legendre_functions(cosine, lmax) * sine_powers[:, :, None]
    m = np.arange(-lmax, lmax + 1)
    angle = alpha[:, None] * np.abs(m)
    return (
        _read_only(np.ascontiguousarray(polar[:, np.abs(m)].swapaxes(0, 1))),
        _read_only(np.where(m < 0, np.sin(angle), np.cos(angle))),
    )
