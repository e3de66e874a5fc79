"""The orders in which programs list the components of a shell, and matrices from one into another.

In the package a shell of degree l has the components m = -l..l of e3nn's harmonics on v' = (y, z, x), which are the
real solid harmonics of quantum chemistry with the polar axis z. Two programs list them otherwise:

| program | p | d, f, g | signs |
|---|---|---|---|
| `pyscf` | x, y, z = m 1, -1, 0 | m = -l..l | all + |
| `orca` | z, x, y = m 0, 1, -1 | m = 0, 1, -1, 2, -2, ... | - for abs(m) >= 3 of f and g |

PySCF's is tested against integrals of PySCF 2.14 up to g. ORCA's s, p and d are those of the MD17 Hamiltonians as QHNet
reads them (arXiv 2306.04922); its f and g follow the IOData library, and no file of ORCA was at hand to try them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np

from equijax.errors import EquijaxError, did_you_mean

Program = Literal["e3nn", "pyscf", "orca"]

AXES = (1, 2, 0)
"""Where the axes of orbitals are in (x, y, z): v' = v[AXES] = (y, z, x)."""
MAX_DEGREE = 4
"""g shells."""

_COMPONENTS: dict[str, dict[int, tuple[int, ...]]] = {
    "e3nn": {l: tuple(range(-l, l + 1)) for l in range(MAX_DEGREE + 1)},
    "pyscf": {l: (1, -1, 0) if l == 1 else tuple(range(-l, l + 1)) for l in range(MAX_DEGREE + 1)},
    "orca": {l: (0, *(s * m for m in range(1, l + 1) for s in (1, -1))) for l in range(MAX_DEGREE + 1)},
}
"""m of every component of a shell, as the program lists them."""


class OrbitalOrder(NamedTuple):
    """The orbitals of a molecule in a program's order against the package's: orbital k of the package is `signs[k]`
    times orbital `places[k]` of the program."""

    places: np.ndarray
    signs: np.ndarray


def orbital_order(degrees: Iterable[int], program: Program) -> OrbitalOrder:
    """The order of a molecule whose shells have these degrees, one after another. EquijaxError for unknown programs
    and for shells beyond g.

    >>> orbital_order([0, 1], "pyscf").places
    array([0, 2, 3, 1])
    """
    if program not in get_args(Program):
        raise EquijaxError(f"orbital order '{program}': is unknown; {did_you_mean(program, get_args(Program))}")
    places: list[int] = []
    signs: list[int] = []
    for degree in degrees:
        if not 0 <= degree <= MAX_DEGREE:
            raise EquijaxError(f"a shell of degree {degree}: has no known order; expected s to g, 0 to {MAX_DEGREE}")
        listed = _COMPONENTS[program][degree]
        start = len(places)
        places += [start + listed.index(m) for m in range(-degree, degree + 1)]
        signs += [-1 if program == "orca" and abs(m) >= 3 else 1 for m in range(-degree, degree + 1)]
    return OrbitalOrder(np.array(places, dtype=int), np.array(signs, dtype=int))


def matrix_to_e3nn(matrix: np.ndarray, degrees: Iterable[int], program: Program) -> np.ndarray:
    """A matrix between orbitals [..., nao, nao] (H, S, P) of a program, in the package's order."""
    order = _checked(matrix, degrees, program, (-2, -1))
    return np.asarray(matrix)[..., order.places[:, None], order.places] * (order.signs[:, None] * order.signs)


def matrix_from_e3nn(matrix: np.ndarray, degrees: Iterable[int], program: Program) -> np.ndarray:
    """The inverse of `matrix_to_e3nn`."""
    order = _checked(matrix, degrees, program, (-2, -1))
    back = np.empty_like(matrix)
    back[..., order.places[:, None], order.places] = matrix * (order.signs[:, None] * order.signs)
    return back


def coefficients_to_e3nn(coefficients: np.ndarray, degrees: Iterable[int], program: Program) -> np.ndarray:
    """Molecular orbitals [nao, any], a column each, of a program: their rows in the package's order."""
    order = _checked(coefficients, degrees, program, (0,))
    return np.asarray(coefficients)[order.places] * order.signs[:, None]


def coefficients_from_e3nn(coefficients: np.ndarray, degrees: Iterable[int], program: Program) -> np.ndarray:
    """The inverse of `coefficients_to_e3nn`."""
    order = _checked(coefficients, degrees, program, (0,))
    back = np.empty_like(coefficients)
    back[order.places] = coefficients * order.signs[:, None]
    return back


def _checked(array: np.ndarray, degrees: Iterable[int], program: Program, axes: tuple[int, ...]) -> OrbitalOrder:
    order = orbital_order(degrees, program)
    if np.ndim(array) < 2 or any(np.shape(array)[axis] != len(order.places) for axis in axes):
        raise EquijaxError(f"an array of shape {np.shape(array)} does not fit the {len(order.places)} orbitals")
    return order
