"""Symmetric tensors as vectors of six and matrices of 6 x 6: Voigt's and Mandel's notation.

The order is ASE's: xx, yy, zz, yz, xz, xy. Voigt's components are those of the tensor, C_ijkl and σ_ij, without factors
(a strain in engineering notation has 2 ε_ij in its place: not this). Mandel's carry √2 for every shear pair, so that
norms are those of the tensors, a rotation of axes is an orthogonal 6 x 6 matrix, and functions of the matrix rotate
with it; functions of Voigt matrices do not. All functions take numpy and jax arrays, with leading axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""xx, yy, zz, yz, xz, xy."""

# int32 in every precision: JAX remembers a constant array of 64 bits as what it was where it was first traced.
_A, _B = np.array(VOIGT, np.int32).T
_POSITION = np.zeros((3, 3), np.int32)
_POSITION[_A, _B] = _POSITION[_B, _A] = np.arange(6)
_FACTORS = np.array([1.0, 1.0, 1.0, *[2.0**0.5] * 3])

Array = Any  # numpy on the host, jax.Array inside jit


def to_voigt_vector(tensor: Array) -> Array:
    """Symmetric [..., 3, 3] to [..., 6]."""
    return tensor[..., _A, _B]


def from_voigt_vector(vector: Array) -> Array:
    """[..., 6] to symmetric [..., 3, 3]."""
    return vector[..., _POSITION]


def to_voigt_matrix(tensor: Array) -> Array:
    """[..., 3, 3, 3, 3] with ijkl=jikl=ijlk to [..., 6, 6]."""
    return tensor[..., _A[:, None], _B[:, None], _A, _B]


def from_voigt_matrix(matrix: Array) -> Array:
    """[..., 6, 6] to [..., 3, 3, 3, 3]."""
    return matrix[..., _POSITION[:, :, None, None], _POSITION]


def to_mandel_vector(tensor: Array) -> Array:
    """Symmetric [..., 3, 3] to [..., 6] of the same norm."""
    return to_voigt_vector(tensor) * _FACTORS.astype(tensor.dtype)


def from_mandel_vector(vector: Array) -> Array:
    """[..., 6] to symmetric [..., 3, 3]."""
    return from_voigt_vector(vector / _FACTORS.astype(vector.dtype))


def to_mandel_matrix(tensor: Array) -> Array:
    """[..., 3, 3, 3, 3] with ijkl=jikl=ijlk to [..., 6, 6] of the same norm."""
    return to_voigt_matrix(tensor) * np.outer(_FACTORS, _FACTORS).astype(tensor.dtype)


def from_mandel_matrix(matrix: Array) -> Array:
    """[..., 6, 6] to [..., 3, 3, 3, 3]."""
    return from_voigt_matrix(matrix / np.outer(_FACTORS, _FACTORS).astype(matrix.dtype))
