"""D(R) against matrices that PySCF computed for a molecule and for the same molecule turned."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import chemical_symbols

from equijax.errors import EquijaxError
from equijax.orbitals.order import matrix_to_e3nn
from equijax.orbitals.rotation import misalignment, orbital_rotation

from .conftest import OTHER_SHELLS, SHELLS, full

CASES = [
    (basis, key, place)
    for basis, places in (("sto-3g", "Rx -x"), ("def2-svp", "Rx -x"), ("def2-tzvp", "Rx"), ("def2-qzvp", "Rx"))
    for key in ("STH" if basis == "def2-svp" else "ST")
    for place in places.split()
]
QUADRATURE = 2e-7  # Hartree: the grid of level 5 does not turn with the molecule
TOLERANCES = {"S": 1e-12, "T": 1e-11, "H": QUADRATURE}


def degrees_of_atoms(basis: str, numbers: np.ndarray) -> list[list[int]]:
    if basis in SHELLS:
        return [SHELLS[basis][chemical_symbols[z]] for z in numbers]
    return [OTHER_SHELLS[basis][z] for z in numbers]


@pytest.fixture(scope="module")
def read(pyscf_matrices):
    """(matrix in the package's order, degrees of all shells)."""

    def matrix(basis: str, key: str, place: str):
        degrees = [l for own in degrees_of_atoms(basis, pyscf_matrices[f"{basis}/atomic_numbers"]) for l in own]
        return matrix_to_e3nn(full(pyscf_matrices[f"{basis}/{key}/{place}"]), degrees, "pyscf"), degrees

    return matrix


@pytest.mark.parametrize(("basis", "key", "place"), CASES)
def test_matrices_turn_with_the_molecule(read, pyscf_matrices, basis, key, place):
    (before, degrees), (after, _) = read(basis, key, "x"), read(basis, key, place)
    d = orbital_rotation(degrees, pyscf_matrices["R"] if place == "Rx" else -np.eye(3))
    assert np.abs(d @ before @ d.T - after).max() <= TOLERANCES[key]
    assert np.abs(before - after).max() > 0.1


@pytest.mark.parametrize("key", ["S", "H"])
def test_the_axes_of_orbitals_are_not_those_of_vectors(read, pyscf_matrices, key):
    """With D^l(R) in place of D^l(K R K^T) the same comparison fails."""
    (before, degrees), (after, _) = read("def2-svp", key, "x"), read("def2-svp", key, "Rx")
    k = np.eye(3)[[1, 2, 0]]
    d = orbital_rotation(degrees, k.T @ pyscf_matrices["R"] @ k)
    assert np.abs(d @ before @ d.T - after).max() > 0.1


def test_it_represents_the_group(pyscf_matrices):
    one, other = pyscf_matrices["R"], np.diag([1.0, -1.0, 1.0])
    degrees = [0, 4, 1, 3, 2]
    product = orbital_rotation(degrees, one) @ orbital_rotation(degrees, other)
    np.testing.assert_allclose(product, orbital_rotation(degrees, one @ other), atol=1e-12)
    np.testing.assert_allclose(orbital_rotation([1], one), one[np.ix_([1, 2, 0], [1, 2, 0])], atol=1e-14)
    assert orbital_rotation([], one).shape == (0, 0)
    with pytest.raises(EquijaxError, match="is not orthogonal"):
        orbital_rotation([1], 1.01 * one)


@pytest.mark.parametrize("basis", ["sto-3g", "def2-svp", "def2-tzvp", "def2-qzvp"])
def test_overlaps_tell_the_order(read, pyscf_matrices, basis):
    numbers, x = (pyscf_matrices[f"{basis}/{key}"] for key in ("atomic_numbers", "positions"))
    overlap, degrees = read(basis, "S", "x")
    own = degrees_of_atoms(basis, numbers)
    assert misalignment(overlap, x, own) < 1e-7
    for other in ("pyscf", "orca"):
        assert misalignment(matrix_to_e3nn(overlap, degrees, other), x, own) > 0.1
