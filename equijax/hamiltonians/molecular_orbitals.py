"""What follows from a Hamiltonian and an overlap matrix: orbitals, density, and the gap. Numpy, float64, Hartree."""

from __future__ import annotations

import dataclasses

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.structure import Structure

OVERLAP_FLOOR = 1e-8
"""Smallest eigenvalue of an overlap matrix, as the QH9 benchmark has it; smaller ones are raised to it."""


@dataclasses.dataclass(frozen=True)
class MolecularOrbitals:
    """`energies` [nao] ascending, in Hartree; `coefficients` [nao, nao], a column per orbital, C^T S C = 1.

    The first `occupied` of them hold two electrons each.
    """

    energies: np.ndarray
    coefficients: np.ndarray
    occupied: int

    @property
    def homo(self) -> float:
        """Energy of the highest occupied orbital, Hartree."""
        return float(self.energies[self.occupied - 1])

    @property
    def lumo(self) -> float:
        """Energy of the lowest unoccupied orbital, Hartree; NaN when all are occupied."""
        return float(self.energies[self.occupied]) if self.occupied < len(self.energies) else float("nan")

    @property
    def gap(self) -> float:
        """LUMO - HOMO, Hartree."""
        return self.lumo - self.homo

    @property
    def occupied_coefficients(self) -> np.ndarray:
        """[nao, occupied]."""
        return self.coefficients[:, : self.occupied]

    @property
    def density(self) -> np.ndarray:
        """P = 2 C_occ C_occ^T, [nao, nao]."""
        occupied = self.occupied_coefficients
        return 2 * occupied @ occupied.T


def occupied_orbitals(structure: Structure) -> int:
    """Doubly occupied orbitals of the neutral molecule; EquijaxError for an odd number of electrons."""
    electrons = int(np.sum(structure.atomic_numbers))
    if electrons % 2:
        raise located(
            f"has {electrons} electrons as a neutral molecule",
            file=structure.file,
            frame=structure.frame,
            expected="an even number: closed shells only",
        )
    return electrons // 2


def molecular_orbitals(hamiltonian: np.ndarray, overlap: np.ndarray, occupied: int) -> MolecularOrbitals:
    """Solve H C = S C ε by canonical orthogonalisation, X = U s^-1/2 with s floored at `OVERLAP_FLOOR`."""
    if not 0 < occupied <= len(hamiltonian):
        raise EquijaxError(f"{occupied} occupied orbitals do not fit {len(hamiltonian)} basis functions")
    hamiltonian, overlap = np.asarray(hamiltonian, np.float64), np.asarray(overlap, np.float64)
    scales, vectors = np.linalg.eigh(overlap)
    orthogonal = vectors / np.sqrt(np.maximum(scales, OVERLAP_FLOOR))
    energies, rotation = np.linalg.eigh(orthogonal.T @ hamiltonian @ orthogonal)
    return MolecularOrbitals(energies, orthogonal @ rotation, occupied)
