"""Wigner matrices of random rotations, and by how much a function fails to commute with them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.precision import precision


def random_rotation(seed: int) -> np.ndarray:
    """A rotation matrix [3, 3], uniform over SO(3)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def wigner_matrices(rotation: np.ndarray, lmax: int) -> list[np.ndarray]:
    """D^l with Y_l(R u) = D^l Y_l(u) for l = 0..lmax, fitted to the package's own harmonics at random points.

    Float64 whatever the precision outside.
    """
    points = np.random.default_rng(1).normal(size=(4 * (2 * lmax + 1), 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    with precision("float64"):
        evaluate = jax.jit(lambda u: spherical_harmonics(u, lmax))
        before, after = np.asarray(evaluate(points)), np.asarray(evaluate(points @ rotation.T))
    return [np.linalg.lstsq(before[:, s], after[:, s], rcond=None)[0].T for s in map(degree_slice, range(lmax + 1))]


def rotate(x: np.ndarray, matrices: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Features whose `axis` runs over all rows of degrees 0..lmax, rotated in float64 and cast back."""
    lmax = round(np.sqrt(x.shape[axis])) - 1
    rows = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    turned = [np.tensordot(matrices[l], rows[degree_slice(l)], 1) for l in range(lmax + 1)]
    return np.moveaxis(np.concatenate(turned), 0, axis).astype(x.dtype)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the root mean square of what was expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.sqrt(np.mean(expected**2)), np.finfo(np.float64).tiny))
