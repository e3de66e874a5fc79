"""Harmonic vibrations of a structure: modes, what its free motions leave, zero-point energy, thermochemistry."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from ase import Atoms, units

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.batching import structure_graph
from equijax.potential.evaluator import Evaluator
from equijax.potential.hessian import CHUNK, HessianProduct
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure

ENERGY = units._hbar * 1e10 * np.sqrt(units._e / units._amu) / units._e
"""ħω in eV of an eigenvalue of 1 eV/Å²/amu: ħ (1e10 m⁻¹) √(e / amu)."""
FORCE_LIMIT = 0.02
"""eV/Å; a structure with larger forces is not at rest."""


@dataclasses.dataclass(frozen=True)
class Vibrations:
    """Normal modes of M degrees of freedom in all, ascending, imaginary ones first.

    `energies` [M] ħω in eV, negative for an imaginary mode; `modes` [M, N, 3] displacements, orthonormal in
    mass-weighted coordinates and divided by the root of the mass (amu): 3 N minus the free motions of them. `free`
    counts the translations and rotations that were projected out; `residual` eV is the largest |ħω| they would have
    had without, zero for an exact Hessian at rest; `asymmetry` eV/Å² the largest |H - Hᵀ|; `max_force` eV/Å.
    """

    atoms: Atoms
    energies: np.ndarray
    modes: np.ndarray
    free: int
    residual: float
    asymmetry: float
    max_force: float

    @property
    def wavenumbers(self) -> np.ndarray:
        """cm⁻¹, negative for imaginary modes."""
        return self.energies / units.invcm

    @property
    def num_imaginary(self) -> int:
        return int((self.energies < 0).sum())

    @property
    def zero_point_energy(self) -> float:
        """½ Σ ħω over the real modes, eV."""
        return float(0.5 * self.energies[self.energies > 0].sum())

    def thermochemistry(self, potential_energy: float = 0.0, **ideal_gas: Any) -> Any:
        """ASE's HarmonicThermo, or with `geometry`, `symmetrynumber` and `spin` IdealGasThermo.

        EquijaxError when there are imaginary modes: the structure is no minimum.
        """
        from ase.thermochemistry import HarmonicThermo, IdealGasThermo

        if self.num_imaginary:
            raise EquijaxError(f"{self.num_imaginary} imaginary modes: thermochemistry needs a minimum")
        if ideal_gas:
            return IdealGasThermo(list(self.energies), potentialenergy=potential_energy, atoms=self.atoms, **ideal_gas)
        return HarmonicThermo(list(self.energies), potentialenergy=potential_energy)

    def mode_frames(self, mode: int, frames: int = 16, amplitude: float = 0.3) -> list[Atoms]:
        """One period of a mode for viewing; the atom that moves most moves by `amplitude` Å."""
        shape = self.modes[mode] * (amplitude / np.linalg.norm(self.modes[mode], axis=1).max())
        images = []
        for step in range(frames):
            image = self.atoms.copy()
            image.calc = None
            image.set_constraint()
            image.positions += np.sin(2 * np.pi * step / frames) * shape
            image.arrays["mode"] = self.modes[mode]
            image.info = {"mode": mode, "wavenumber": float(self.wavenumbers[mode])}
            images.append(image)
        return images


def vibrational_modes(
    potential: Potential,
    atoms: Atoms,
    *,
    dtype: DType = "float64",
    evaluator: Evaluator | None = None,
    chunk: int = CHUNK,
    hessian: np.ndarray | None = None,
) -> Vibrations:
    """All harmonic modes; the translations, and rotations of a molecule, are projected out. See `Vibrations`.

    `hessian` [3N, 3N] eV/Å² is computed unless it is there already. A structure that is not at rest is warned about:
    its modes along the forces mean nothing, and rotations of it are not free.
    """
    evaluator = evaluator or potential.evaluator(dtype)
    matrix, max_force = hessian, largest_force(potential, atoms, evaluator.dtype)
    if matrix is None:
        matrix = hessian_product(potential, atoms, evaluator, chunk).matrix()
    matrix = np.asarray(matrix, np.float64)
    if max_force > FORCE_LIMIT:
        warnings.warn(
            f"vibrations of a structure with forces up to {max_force:.3g} eV/Å; relax it first",
            EquijaxWarning,
            stacklevel=2,
        )
    weights = np.repeat(mass_weights(atoms), 3)
    weighted = 0.5 * (matrix + matrix.T) * weights[:, None] * weights
    free = free_motions(atoms)
    # An orthonormal basis of what is not free.
    basis = np.linalg.svd(free)[2][len(free) :] if len(free) else np.eye(len(weighted))
    values, vectors = np.linalg.eigh(basis @ weighted @ basis.T)
    leftover = np.linalg.eigvalsh(free @ weighted @ free.T) if len(free) else np.zeros(1)
    modes = (vectors.T @ basis) * weights
    return Vibrations(
        atoms=atoms.copy(),
        energies=mode_energies(values),
        modes=modes.reshape(len(values), len(atoms), 3),
        free=len(free),
        residual=float(np.abs(mode_energies(leftover)).max()),
        asymmetry=float(np.abs(matrix - matrix.T).max()),
        max_force=max_force,
    )


def hessian_product(potential: Potential, atoms: Atoms, evaluator: Evaluator, chunk: int = CHUNK) -> HessianProduct:
    """The Hessian of `atoms` as a product; EquijaxError for models without one and for an empty structure."""
    if not potential.is_conservative:
        raise EquijaxError(f"this {potential.model_config.name} predicts forces directly: it has no Hessian")
    if len(atoms) == 0:
        raise EquijaxError("the structure has no atoms")
    graph = structure_graph(Structure.from_ase(atoms), potential.cutoff, potential.elements)
    return HessianProduct(evaluator, graph, chunk)


def largest_force(potential: Potential, atoms: Atoms, dtype: DType) -> float:
    """eV/Å."""
    forces = potential.predict(atoms, ("energy", "forces"), dtype=dtype)["forces"]
    return float(np.linalg.norm(forces, axis=1).max())


def mode_energies(eigenvalues: np.ndarray) -> np.ndarray:
    """ħω in eV from eigenvalues of the mass-weighted Hessian in eV/Å²/amu; negative for negative eigenvalues."""
    return ENERGY * np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues))


def mass_weights(atoms: Atoms) -> np.ndarray:
    """1/√m [N], m in amu."""
    return 1 / np.sqrt(atoms.get_masses())


def free_motions(atoms: Atoms) -> np.ndarray:
    """Orthonormal mass-weighted motions that cost nothing, [f, 3N].

    Translations; for a molecule also rotations, two of a linear one and none of an atom; for a structure that is
    periodic along one direction, the rotation about it.
    """
    roots = np.sqrt(atoms.get_masses())
    relative = atoms.positions - atoms.get_center_of_mass()
    axes = np.eye(3)
    periodic = np.flatnonzero(atoms.pbc)
    if len(periodic) == 1:
        axes = atoms.cell.array[periodic] / np.linalg.norm(atoms.cell.array[periodic])
    elif len(periodic) > 1:
        axes = np.zeros((0, 3))
    motions = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)] + [np.cross(axis, relative) for axis in axes]
    weighted = np.array([(roots[:, None] * motion).reshape(-1) for motion in motions])
    # Rotations about the axis of a linear molecule vanish and drop out here.
    scale = np.linalg.norm(weighted, axis=1)
    weighted = weighted[scale > 1e-4 * roots.max()]
    weighted /= np.linalg.norm(weighted, axis=1)[:, None]
    _, singular, basis = np.linalg.svd(weighted, full_matrices=False)
    return basis[singular > 1e-4]
