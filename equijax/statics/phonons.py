"""Phonons of a crystal from the exact Hessian of a supercell: only the rows of one primitive cell are needed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from equijax.errors import EquijaxError
from equijax.potential.evaluator import Evaluator
from equijax.potential.hessian import CHUNK
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.statics.vibrations import hessian_product, largest_force, mass_weights, mode_energies


@dataclasses.dataclass(frozen=True)
class ForceConstants:
    """Second derivatives between the atoms of a primitive cell and those of its supercell, ready for any q.

    `constants` [n, P, 3, 3] eV/Å² between atom i at home and supercell atom p, with the acoustic sum rule imposed;
    `owners` [P] the primitive atom that p repeats; `translations` [T, 3] integer cells of the nearest images, `pairs`
    [T, 2] which (i, p) they belong to, `weights` [T] one over the number of images that are equally near.
    How good they are: `sum_rule` eV/Å² the largest |Σ_p Φ| before it was imposed; `asymmetry` the largest
    |Φ(i, j, R) - Φ(j, i, -R)ᵀ|; `at_boundary` the largest constant that reaches the boundary of the supercell, relative
    to the largest of all: above 1e-2 or so a larger supercell changes frequencies between the q-points that fit it.
    """

    atoms: Atoms
    supercell: tuple[int, int, int]
    constants: np.ndarray
    owners: np.ndarray
    translations: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray
    sum_rule: float
    asymmetry: float
    at_boundary: float
    max_force: float

    def dynamical_matrices(self, q: np.ndarray) -> np.ndarray:
        """D(q) [Q, 3n, 3n] in eV/Å²/amu for fractional wave vectors [Q, 3], in the gauge that is periodic in q."""
        q = np.atleast_2d(np.asarray(q, float))
        count, roots = len(self.atoms), mass_weights(self.atoms)
        phases = self.weights * np.exp(2j * np.pi * q @ self.translations.T)  # [Q, T]
        home, partner = self.pairs.T
        terms = self.constants[home, partner]  # [T, 3, 3]
        matrices = np.zeros((len(q), count, count, 3, 3), complex)
        for i, j in itertools.product(range(count), repeat=2):
            chosen = (home == i) & (self.owners[partner] == j)
            matrices[:, i, j] = np.einsum("qt,tab->qab", phases[:, chosen], terms[chosen]) * roots[i] * roots[j]
        flat = matrices.swapaxes(2, 3).reshape(len(q), 3 * count, 3 * count)
        return 0.5 * (flat + flat.conj().swapaxes(1, 2))

    def energies(self, q: np.ndarray) -> np.ndarray:
        """ħω in eV [Q, 3n], ascending, negative for imaginary modes."""
        matrices = self.dynamical_matrices(q)
        return mode_energies(np.linalg.eigvalsh(matrices))

    def bands(self, path: str | None = None, points: int = 100) -> tuple[Any, np.ndarray]:
        """ASE's BandPath through the special points of the lattice, and ħω on it in eV, [points, 3n].

        `path` such as GXWKG; by default the whole recommended path of the Bravais lattice.
        """
        try:
            band_path = self.atoms.cell.bandpath(path, npoints=points, pbc=self.atoms.pbc)
        except Exception as error:  # ASE raises whatever its lattice search meets
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise EquijaxError(f"--path: no path through the Brillouin zone of this cell: {reason}") from error
        return band_path, self.energies(band_path.kpts)

    def density_of_states(
        self, grid: Sequence[int] = (16, 16, 16), width: float = 2e-4, points: int = 400
    ) -> tuple[np.ndarray, np.ndarray]:
        """ħω in eV and states per eV and primitive cell, which sum to 3n; Gaussians of `width` eV on a grid of q."""
        from ase.dft.kpoints import monkhorst_pack

        size = tuple(n if periodic else 1 for n, periodic in zip(grid, self.atoms.pbc, strict=True))
        energies = self.energies(monkhorst_pack(size)).reshape(-1)
        axis = np.linspace(min(energies.min(), 0) - 5 * width, energies.max() + 5 * width, points)
        step = axis[1] - axis[0]
        sigma = max(width, 1.5 * step)  # narrower ones would fall between the points
        counts, _ = np.histogram(energies, bins=points, range=(axis[0] - step / 2, axis[-1] + step / 2))
        kernel = np.exp(-0.5 * ((axis[:, None] - axis) / sigma) ** 2)
        density = kernel @ counts
        return axis, density * 3 * len(self.atoms) / (density.sum() * step)


def force_constants(
    potential: Potential,
    atoms: Atoms,
    supercell: tuple[int, int, int] = (2, 2, 2),
    *,
    dtype: DType = "float64",
    evaluator: Evaluator | None = None,
    chunk: int = CHUNK,
) -> ForceConstants:
    """Force constants of a crystal at rest, see `ForceConstants`.

    The Hessian of the supercell is exact, so frequencies are exact at the q-points that fit into the supercell; between
    them constants are taken between nearest images. EquijaxError for a molecule, and for a supercell along a direction
    that is not periodic.
    """
    if not atoms.pbc.any():
        raise EquijaxError("phonons need a structure that is periodic; `equijax hessian` gives the modes of a molecule")
    if len(supercell) != 3 or min(supercell) < 1:
        raise EquijaxError(f"--supercell is {supercell}; expected three positive numbers")
    wrong = [axis for axis in range(3) if supercell[axis] > 1 and not atoms.pbc[axis]]
    if wrong:
        raise EquijaxError(f"--supercell {supercell} repeats direction {'abc'[wrong[0]]}, which is not periodic")
    evaluator = evaluator or potential.evaluator(dtype)
    primitive = atoms.copy()
    primitive.set_constraint()
    primitive.calc = None
    repeated = primitive.repeat(supercell)
    count = len(primitive)
    product = hessian_product(potential, repeated, evaluator, chunk)
    rows = product.rows(np.arange(count)).astype(np.float64)
    constants = rows.reshape(count, 3, len(repeated), 3).swapaxes(1, 2)
    # The order of Atoms.repeat: the third direction runs fastest, then the atoms of the cell.
    cells = np.array(list(np.ndindex(*supercell)))
    owners = np.tile(np.arange(count), len(cells))
    cells = np.repeat(cells, count, axis=0)
    excess = constants.sum(axis=1)
    asymmetry = _asymmetry(constants, owners, cells, supercell)
    translations, pairs, weights = nearest_images(primitive, owners, cells, supercell)
    constants = constants.copy()
    constants[np.arange(count), np.arange(count)] -= excess
    boundary = pairs[weights < 0.99]
    outer = np.abs(constants[boundary[:, 0], boundary[:, 1]]).max(initial=0.0)
    return ForceConstants(
        atoms=primitive,
        supercell=supercell,
        constants=constants,
        owners=owners,
        translations=translations,
        pairs=pairs,
        weights=weights,
        sum_rule=float(np.abs(excess).max()),
        asymmetry=asymmetry,
        at_boundary=float(outer / max(np.abs(constants).max(), 1e-300)),
        max_force=largest_force(potential, primitive, evaluator.dtype),
    )


def _asymmetry(constants: np.ndarray, owners: np.ndarray, cells: np.ndarray, supercell: tuple[int, int, int]) -> float:
    """max |Φ(i, j, R) - Φ(j, i, -R)ᵀ| over all pairs."""
    count = len(constants)
    opposite = np.ravel_multi_index(tuple((-cells % np.array(supercell)).T), supercell)  # the cell -R
    worst = 0.0
    for i in range(count):
        partner = constants[owners, opposite * count + i].swapaxes(1, 2)
        worst = max(worst, float(np.abs(constants[i] - partner).max()))
    return worst


def nearest_images(
    atoms: Atoms, owners: np.ndarray, cells: np.ndarray, supercell: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pair (i at home, supercell atom p): the cells of the nearest images of p, integer [T, 3]; the pairs
    [T, 2]; one over the number of equally near images [T]."""
    # Two supercells to each side hold the nearest images also of a skewed cell, when its vectors are not too oblique.
    reach = [range(-2, 3) if periodic else range(1) for periodic in atoms.pbc]
    images = np.array(list(itertools.product(*reach))) * np.array(supercell)
    translations, pairs, weights = [], [], []
    for i in range(len(atoms)):
        for p, (owner, cell) in enumerate(zip(owners, cells, strict=True)):
            candidates = cell + images
            vectors = atoms.positions[owner] - atoms.positions[i] + candidates @ atoms.cell.array
            lengths = np.linalg.norm(vectors, axis=1)
            near = candidates[lengths < lengths.min() + 1e-4]
            translations.append(near)
            pairs.append(np.full((len(near), 2), (i, p)))
            weights.append(np.full(len(near), 1 / len(near)))
    return np.concatenate(translations), np.concatenate(pairs), np.concatenate(weights)
