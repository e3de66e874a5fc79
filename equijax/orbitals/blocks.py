"""Blocks between the orbitals of two atoms, padded to the slots of a layout, and matrices of molecules from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from equijax.errors import EquijaxError
from equijax.orbitals.layout import OrbitalLayout


class Blocks(NamedTuple):
    """`atoms` [N, S, S] and `pairs` [P, S, S] of i < j in the order of np.triu_indices; zero in empty slots."""

    atoms: np.ndarray
    pairs: np.ndarray


def pack(matrix: np.ndarray, atomic_numbers: Sequence[int] | np.ndarray, layout: OrbitalLayout) -> Blocks:
    """The blocks of a symmetric matrix [nao, nao]; those of pairs are of i < j. EquijaxError when nao does not fit."""
    slots = _places(atomic_numbers, layout)
    size = len(slots)
    if np.shape(matrix) != (size, size):
        raise EquijaxError(f"the matrix has shape {np.shape(matrix)}; expected {(size, size)} for these atoms")
    n, s = len(atomic_numbers), layout.num_slots
    wide = np.zeros((n * s, n * s), dtype=np.asarray(matrix).dtype)
    wide[np.ix_(slots, slots)] = matrix
    blocks = wide.reshape(n, s, n, s).transpose(0, 2, 1, 3)
    one, two = np.triu_indices(n, 1)
    return Blocks(blocks[np.arange(n), np.arange(n)], blocks[one, two])


def assemble(
    atoms: np.ndarray, pairs: np.ndarray, atomic_numbers: Sequence[int] | np.ndarray, layout: OrbitalLayout
) -> np.ndarray:
    """The symmetric matrix [nao, nao] of `pack`'s blocks: H_ij = B_ij, H_ji = B_ij^T, H_ii symmetrised."""
    slots = _places(atomic_numbers, layout)
    n, s = len(atomic_numbers), layout.num_slots
    blocks = np.zeros((n, n, s, s), dtype=np.asarray(atoms).dtype)
    one, two = np.triu_indices(n, 1)
    blocks[np.arange(n), np.arange(n)] = 0.5 * (atoms + np.swapaxes(atoms, 1, 2))
    blocks[one, two] = pairs
    blocks[two, one] = np.swapaxes(pairs, 1, 2)
    return blocks.transpose(0, 2, 1, 3).reshape(n * s, n * s)[np.ix_(slots, slots)]


def _places(atomic_numbers: Sequence[int] | np.ndarray, layout: OrbitalLayout) -> np.ndarray:
    own = [layout.slots(int(z)) for z in atomic_numbers]
    return np.concatenate([i * layout.num_slots + part for i, part in enumerate(own)])
