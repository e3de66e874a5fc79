"""How the orbitals of a molecule turn with it, and whether the order of a matrix is what it is said to be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_d import wigner_d
from equijax.orbitals.order import AXES, MAX_DEGREE, orbital_order
from equijax.precision import jit, precision

_NOTICEABLE = 1e-3


def orbital_rotation(degrees: Sequence[int], transform: np.ndarray) -> np.ndarray:
    """D [nao, nao] of an orthogonal transform [3, 3] of the positions: H(R x) = D H(x) D^T, and so for S, T and P.

    `degrees` are those of the shells, one after another. D is block diagonal, in float64, in the package's order of
    orbitals: D^l(K R K^T) with K v = (y, z, x), times (-1)^l where R contains an inversion. Raises EquijaxError when
    the transform is not orthogonal.

    >>> orbital_rotation([0, 1], -np.eye(3)).diagonal().tolist()
    [1.0, -1.0, -1.0, -1.0]
    """
    transform = np.asarray(transform, np.float64)
    if transform.shape != (3, 3) or np.abs(transform @ transform.T - np.eye(3)).max() > 1e-9:
        raise EquijaxError(
            "the transform of the positions: is not orthogonal; expected a rotation or reflection [3, 3]"
        )
    sign = 1.0 if np.linalg.det(transform) > 0 else -1.0
    axes = np.array(AXES)
    proper = sign * transform[np.ix_(axes, axes)]
    with precision("float64"):
        blocks = [sign**l * np.asarray(block) for l, block in enumerate(_wigner_d()(proper))]
    size = len(orbital_order(degrees, "e3nn").places)
    full = np.zeros((size, size))
    start = 0
    for l in degrees:
        end = start + 2 * l + 1
        full[start:end, start:end] = blocks[l]
        start = end
    return full


def misalignment(overlap: np.ndarray, positions: np.ndarray, degrees: Sequence[Sequence[int]]) -> float:
    """How far an overlap matrix [nao, nao] is from the package's order of orbitals: 0 in it, order 1 in another.

    An s orbital is round, so its overlap with a shell of another atom is a multiple of the harmonics of the direction
    between the two. The result is the largest sine between the two vectors, over all such blocks that are not small.
    `positions` [N, 3], `degrees` the shells of every atom.
    """
    positions = np.asarray(positions, np.float64)
    shells = [(atom, l) for atom, own in enumerate(degrees) for l in own]
    starts = np.cumsum([0, *(2 * l + 1 for _, l in shells)])
    round_ones = [(atom, start) for (atom, l), start in zip(shells, starts) if l == 0]
    harmonics = _harmonics(positions[None, :, list(AXES)] - positions[:, None, list(AXES)])
    worst = 0.0
    for (atom, l), start in zip(shells, starts):
        others = [(other, column) for other, column in round_ones if other != atom]
        if l == 0 or not others:
            continue
        neighbors, columns = (list(part) for part in zip(*others))
        block = overlap[start : start + 2 * l + 1, columns].T
        axis = harmonics[atom, neighbors, l * l : (l + 1) ** 2] / np.sqrt(2 * l + 1)
        across = np.linalg.norm(block - np.sum(block * axis, 1, keepdims=True) * axis, axis=1)
        size = np.linalg.norm(block, axis=1)
        worst = max(worst, float(np.max(across / np.maximum(size, _NOTICEABLE), where=size > _NOTICEABLE, initial=0.0)))
    return worst


def _harmonics(vectors: np.ndarray) -> np.ndarray:
    """Y_lm of the directions of `vectors` [N, N, 3] up to MAX_DEGREE; those of zero vectors mean nothing."""
    flat = vectors.reshape(-1, 3)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # Few shapes, few compilations.
    padded = np.zeros((max(64, 1 << (len(flat) - 1).bit_length()), 3))
    padded[: len(flat)] = flat / np.where(length > 0, length, 1.0)
    with precision("float64"):
        found = np.asarray(_spherical_harmonics()(padded))
    return found[: len(flat)].reshape(*vectors.shape[:2], -1)


@functools.cache
def _wigner_d() -> Any:
    return jit(functools.partial(wigner_d, lmax=MAX_DEGREE))


@functools.cache
def _spherical_harmonics() -> Any:
    return jit(functools.partial(spherical_harmonics, lmax=MAX_DEGREE))
