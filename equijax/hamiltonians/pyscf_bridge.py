"""Molecules in PySCF: starting matrices, energies, dipoles, and the SCF from a given density.

Matrices come in and go out in the orbital order of the package; PySCF's own order stays inside.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.orbitals.order import matrix_from_e3nn, matrix_to_e3nn
from equijax.structure import Structure

GRID_LEVEL = 4
"""PySCF's grid of the embedded data; level 3, its default, leaves 0.5 µEh of noise on the elements of H."""


@dataclasses.dataclass(frozen=True)
class SCFResult:
    """A finished SCF: total energy (Hartree), iterations (`mf.cycles`), whether it converged, and the matrix H."""

    energy: float
    cycles: int
    converged: bool
    hamiltonian: np.ndarray


def mean_field(structure: Structure, basis: str, functional: str, grid_level: int = GRID_LEVEL) -> Any:
    """A restricted Kohn-Sham object of the neutral molecule, not yet run, without density fitting."""
    name = functional.lower()
    if name == "b3lyp":
        raise located(
            "b3lyp means VWN5 in PySCF up to 2.2 and VWN-RPA since, 0.2 mEh apart in every element",
            file=structure.file,
            frame=structure.frame,
            key="functional",
            expected="b3lyp5 or b3lypg",
        )
    dft = _pyscf("dft")
    mf = dft.RKS(_molecule(structure, basis), xc=name)
    mf.grids.level = grid_level
    return mf


def overlap(structure: Structure, basis: str) -> np.ndarray:
    """S, [nao, nao]."""
    molecule = _molecule(structure, basis)
    return _from_pyscf(molecule, molecule.intor_symmetric("int1e_ovlp"))


def initial_hamiltonian(structure: Structure, basis: str, functional: str) -> np.ndarray:
    """H0, the Kohn-Sham matrix of the `minao` density, Hartree."""
    mf = mean_field(structure, basis, functional)
    return _from_pyscf(mf.mol, mf.get_fock(dm=mf.get_init_guess(key="minao")))


def dipole(structure: Structure, basis: str, density: np.ndarray) -> np.ndarray:
    """Dipole [3] of a density [nao, nao], e Å, about the origin of the positions."""
    from ase.units import Bohr

    molecule = _molecule(structure, basis)
    matrix = _to_pyscf(molecule, density)
    electrons = np.einsum("xpq,qp->x", molecule.intor_symmetric("int1e_r", comp=3), matrix)
    nuclei = np.einsum("a,ax->x", molecule.atom_charges(), molecule.atom_coords())
    return (nuclei - electrons) * Bohr


def energy_of_density(structure: Structure, basis: str, functional: str, density: np.ndarray) -> float:
    """Total energy of a density [nao, nao], Hartree: one evaluation, no iteration."""
    mf = mean_field(structure, basis, functional)
    return float(mf.energy_tot(dm=_to_pyscf(mf.mol, density)))


def run_scf(structure: Structure, basis: str, functional: str, density: np.ndarray | None = None) -> SCFResult:
    """Iterate to PySCF's default convergence from a density [nao, nao]; None starts from `minao`."""
    mf = mean_field(structure, basis, functional)
    start = mf.get_init_guess(key="minao") if density is None else _to_pyscf(mf.mol, density)
    energy = float(mf.kernel(dm0=start))
    return SCFResult(energy, int(mf.cycles), bool(mf.converged), _from_pyscf(mf.mol, mf.get_fock()))


def _pyscf(part: str) -> Any:
    try:
        from pyscf import dft, gto
    except ImportError as error:
        raise EquijaxError(
            "PySCF is not installed, and H0, S, dipoles and the SCF are computed with it; "
            "run: pip install 'equijax[data]', or give structures with the labels initial_hamiltonian and overlap"
        ) from error
    return {"dft": dft, "gto": gto}[part]


def _molecule(structure: Structure, basis: str) -> Any:
    gto = _pyscf("gto")
    from ase.units import Bohr

    atoms = [(int(z), tuple(x)) for z, x in zip(structure.atomic_numbers, structure.positions / Bohr, strict=True)]
    try:
        return gto.M(atom=atoms, unit="Bohr", basis=basis, spin=0, verbose=0)
    except (RuntimeError, KeyError, ValueError) as error:
        raise located(
            f"PySCF cannot build the molecule: {' '.join(str(error).split())[:200]}",
            file=structure.file,
            frame=structure.frame,
        ) from error


def _degrees(molecule: Any) -> list[int]:
    return [molecule.bas_angular(i) for i in range(molecule.nbas) for _ in range(molecule.bas_nctr(i))]


def _from_pyscf(molecule: Any, matrix: np.ndarray) -> np.ndarray:
    return matrix_to_e3nn(np.asarray(matrix), _degrees(molecule), "pyscf")


def _to_pyscf(molecule: Any, matrix: np.ndarray) -> np.ndarray:
    return matrix_from_e3nn(np.asarray(matrix), _degrees(molecule), "pyscf")
