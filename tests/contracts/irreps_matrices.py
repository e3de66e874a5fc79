"""Representation matrices in numpy, independent of the package's harmonics."""

from __future__ import annotations

import functools
import re

import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j


def degree_matrix(l: int, matrix: np.ndarray) -> np.ndarray:
    """Natural-parity representation of degree l of an orthogonal matrix: itself for l = 1 (x, y, z order), and
    the stretched part of D_{l-1} ⊗ D_1 above; inversion gives (-1)^l."""
    if l == 0:
        return np.ones((1, 1))
    if l == 1:
        return matrix
    w = wigner_3j(l - 1, 1, l)
    return (2 * l + 1) * np.einsum("ijk,abc,ia,jb->kc", w, w, degree_matrix(l - 1, matrix), matrix)


def representation(lmax: int, matrix: np.ndarray) -> np.ndarray:
    """Block-diagonal natural-parity representation on the rows of degrees 0..lmax, [(lmax+1)², (lmax+1)²]."""
    result = np.zeros(((lmax + 1) ** 2, (lmax + 1) ** 2))
    for l in range(lmax + 1):
        result[degree_slice(l), degree_slice(l)] = degree_matrix(l, matrix)
    return result


def feature_matrix(irreps: str, matrix: np.ndarray) -> np.ndarray:
    """Block-diagonal representation for `4x0e+4x1o`, in mul_ir order."""
    blocks = []
    for multiplicity, l, parity in re.findall(r"(\d+)x(\d+)([eo])", irreps):
        natural = "eo"[int(l) % 2]
        sign = 1.0 if parity == natural else np.sign(np.linalg.det(matrix))
        blocks += [sign * degree_matrix(int(l), matrix)] * int(multiplicity)
    size = sum(len(b) for b in blocks)
    total = np.zeros((size, size))
    start = 0
    for block in blocks:
        total[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return total


@functools.cache
def feature_slices(irreps: str) -> tuple[tuple[int, slice], ...]:
    """(degree, columns) of every term."""
    slices, start = [], 0
    for multiplicity, l, _ in re.findall(r"(\d+)x(\d+)([eo])", irreps):
        size = int(multiplicity) * (2 * int(l) + 1)
        slices.append((int(l), slice(start, start + size)))
        start += size
    return tuple(slices)
