"""Matrices and basis sets of PySCF, see tests/fixtures/orbitals/make_orbitals.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures/orbitals"
SHELLS: dict[str, dict[str, list[int]]] = json.loads((FIXTURES / "shells.json").read_text())
# Of STO-3G and def2-QZVP, by atomic number; those of the others are in shells.json.
OTHER_SHELLS = {
    "sto-3g": {1: [0], 6: [0, 0, 1], 8: [0, 0, 1]},
    "def2-qzvp": {1: [0] * 4 + [1] * 3 + [2] * 2 + [3], 8: [0] * 7 + [1] * 4 + [2] * 3 + [3] * 2 + [4]},
}


def full(triangle: np.ndarray) -> np.ndarray:
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return matrix + np.triu(matrix, 1).T


@pytest.fixture(scope="session")
def pyscf_matrices() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "pyscf.npz", allow_pickle=False) as archive:
        return dict(archive)
