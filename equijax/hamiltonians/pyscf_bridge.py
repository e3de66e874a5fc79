"""Molecules in PySCF: starting matrices, energies, dipoles, and the SCF from a given density.

Matrices come in and go out in the orbital order of the package; PySCF's own order stays inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.hamiltonians.label_cache import LabelCache, label_key
from equijax.orbitals.order import matrix_from_e3nn, matrix_to_e3nn
from equijax.structure import Structure

GRID_LEVEL = 4
"""PySCF's grid of the embedded data; level 3, its default, leaves 0.5 µEh of noise on the elements of H."""

_SAME_OVERLAP = 1e-4
_FAR_FROM_H0 = 0.2
"""Mean |H - H0| over mean |H|: 0.04 to 0.09 in the embedded data, 0.21 and more in a wrong order of orbitals."""


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


def complete_with_pyscf(
    structures: Sequence[Structure],
    *,
    cache: str | Path | None = None,
    show: Callable[[int, int], None] | None = None,
) -> list[Structure]:
    """The structures with the labels `overlap` and `initial_hamiltonian` that they lack, computed at the basis and
    functional in their `info`.

    Every matrix is stored in `cache` as soon as it is computed, by default FILE.pyscf.db beside the file that a
    structure came from, so that an interrupted run goes on and a second one only reads. `show(done, total)` is called
    after every structure. Raises EquijaxError when the overlap of a structure is not PySCF's, or its Hamiltonian no
    nearer to H0 than a fifth of its own size: then basis, unit or order of orbitals are not what they are said to be.
    """
    completed = []
    for structure in structures:
        place = cache if cache is not None else structure.file and f"{structure.file}.pyscf.db"
        completed.append(_completed(structure, LabelCache(Path(place) if place else None)))
        if show is not None:
            show(len(completed), len(structures))
    return completed


def _completed(structure: Structure, cache: LabelCache) -> Structure:
    basis, functional = (_level(structure, key) for key in ("basis", "functional"))
    labels = {name: np.asarray(matrix, np.float64) for name, matrix in structure.labels.items()}
    if "overlap" not in labels:
        key = label_key(structure, "overlap", basis)
        labels["overlap"] = cache.get(key, lambda: overlap(structure, basis))
    else:
        deviation = _deviation(labels["overlap"], overlap(structure, basis))
        if deviation > _SAME_OVERLAP:
            raise _another("overlap", f"differs from PySCF's by {deviation:.2g}", structure, basis)
    if "initial_hamiltonian" not in labels:
        key = label_key(structure, "initial_hamiltonian", basis, functional, f"grid {GRID_LEVEL}")
        labels["initial_hamiltonian"] = cache.get(key, lambda: initial_hamiltonian(structure, basis, functional))
    if "hamiltonian" in labels:
        h, h0 = labels["hamiltonian"], labels["initial_hamiltonian"]
        ratio = np.abs(h - h0).mean() / np.abs(h).mean() if h.shape == h0.shape else np.inf
        if not ratio < _FAR_FROM_H0:
            raise _another("hamiltonian", f"differs from H0 by {ratio:.2g} of its own size", structure, basis)
    return dataclasses.replace(structure, labels=labels)


def _level(structure: Structure, key: str) -> str:
    if key not in structure.info:
        raise located("missing", file=structure.file, frame=structure.frame, key=key, expected="it in `info`")
    return str(structure.info[key])


def _deviation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max()) if one.shape == other.shape else np.inf


def _another(key: str, problem: str, structure: Structure, basis: str) -> EquijaxError:
    return located(
        problem, file=structure.file, frame=structure.frame, key=key,
        expected=f"a matrix of this molecule in {basis}, with positions in Å and the orbitals in their order",
    )  # fmt: skip


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
