"""Orders of programs against what each component of a shell is a function of."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.orbitals.order import (
    coefficients_from_e3nn,
    coefficients_to_e3nn,
    matrix_from_e3nn,
    matrix_to_e3nn,
    orbital_order,
)
from equijax.precision import jit, precision

S3, S15 = np.sqrt(3.0), np.sqrt(15.0)
# Real solid harmonics without common factors, by the names that manuals give them.
FUNCTIONS = {
    "x": lambda x, y, z: x,
    "y": lambda x, y, z: y,
    "z": lambda x, y, z: z,
    "xy": lambda x, y, z: S3 * x * y,
    "yz": lambda x, y, z: S3 * y * z,
    "z2": lambda x, y, z: z * z - (x * x + y * y) / 2,
    "xz": lambda x, y, z: S3 * x * z,
    "x2-y2": lambda x, y, z: S3 * (x * x - y * y) / 2,
    "xyz": lambda x, y, z: S15 * x * y * z,
    "z(x2-y2)": lambda x, y, z: S15 * z * (x * x - y * y) / 2,
    "z3": lambda x, y, z: z * (2 * z * z - 3 * x * x - 3 * y * y) / 2,
    "xz2": lambda x, y, z: S3 / np.sqrt(8) * x * (4 * z * z - x * x - y * y),
    "yz2": lambda x, y, z: S3 / np.sqrt(8) * y * (4 * z * z - x * x - y * y),
    "x(x2-3y2)": lambda x, y, z: np.sqrt(5 / 8) * x * (x * x - 3 * y * y),
    "y(3x2-y2)": lambda x, y, z: np.sqrt(5 / 8) * y * (3 * x * x - y * y),
}
LISTS = {
    ("pyscf", 1): ["x", "y", "z"],
    ("pyscf", 2): ["xy", "yz", "z2", "xz", "x2-y2"],
    ("pyscf", 3): ["y(3x2-y2)", "xyz", "yz2", "z3", "xz2", "z(x2-y2)", "x(x2-3y2)"],
    ("orca", 1): ["z", "x", "y"],
    ("orca", 2): ["z2", "xz", "yz", "x2-y2", "xy"],
    ("orca", 3): ["z3", "xz2", "yz2", "z(x2-y2)", "xyz", "-x(x2-3y2)", "-y(3x2-y2)"],
}


def values(names: list[str], v: np.ndarray) -> np.ndarray:
    return np.array([(-1 if n[0] == "-" else 1) * FUNCTIONS[n.removeprefix("-")](*v) for n in names])


@pytest.mark.parametrize(("program", "degree"), LISTS)
def test_components_are_the_harmonics_of_permuted_vectors(program, degree):
    v = np.array([0.31, -0.57, 0.76])
    v /= np.linalg.norm(v)
    order = orbital_order([degree], program)
    found = values(LISTS[program, degree], v)[order.places] * order.signs
    with precision("float64"):
        harmonics = np.asarray(jit(spherical_harmonics, static_argnums=1)(v[[1, 2, 0]], 3))
    harmonics = harmonics[degree**2 : (degree + 1) ** 2] / np.sqrt(2 * degree + 1)
    np.testing.assert_allclose(found, harmonics, atol=1e-14)


def test_gathers_of_the_published_data():
    """The gathers of QH9 and MD17 data: arXiv 2306.09549 and 2306.04922."""
    assert orbital_order([1], "pyscf").places.tolist() == [1, 2, 0]
    assert orbital_order([1], "orca").places.tolist() == [2, 0, 1]
    assert orbital_order([2], "orca").places.tolist() == [4, 2, 0, 1, 3]


@pytest.mark.parametrize("program", ["e3nn", "pyscf", "orca"])
def test_there_and_back(program):
    degrees = [0, 1, 3, 2, 4, 1]
    size = sum(2 * l + 1 for l in degrees)
    rng = np.random.default_rng(0)
    matrix, coefficients = rng.normal(size=(size, size)), rng.normal(size=(size, 3))
    changed = matrix_to_e3nn(matrix, degrees, program)
    np.testing.assert_array_equal(matrix_from_e3nn(changed, degrees, program), matrix)
    c = coefficients_to_e3nn(coefficients, degrees, program)
    np.testing.assert_array_equal(coefficients_from_e3nn(c, degrees, program), coefficients)
    np.testing.assert_allclose(c.T @ changed @ c, coefficients.T @ matrix @ coefficients, atol=1e-12)
    np.testing.assert_array_equal(matrix_to_e3nn(matrix[None], degrees, program)[0], changed)
    assert (program == "e3nn") == np.array_equal(changed, matrix)


def test_faults():
    with pytest.raises(EquijaxError, match="did you mean 'pyscf'"):
        orbital_order([0], "pyscff")
    with pytest.raises(EquijaxError, match="degree 5: has no known order"):
        orbital_order([0, 5], "pyscf")
    with pytest.raises(EquijaxError, match=r"shape \(3, 3\) does not fit the 4 orbitals"):
        matrix_to_e3nn(np.eye(3), [0, 1], "pyscf")
    with pytest.raises(EquijaxError, match="does not fit"):
        coefficients_to_e3nn(np.ones((3, 4)), [0, 1], "pyscf")
