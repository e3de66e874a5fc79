"""Errors of predicted Hamiltonians, as the QH9 benchmark counts them (arXiv 2306.09549), and of what follows from them.

Every number is computed for one molecule, and then averaged over molecules. Energies are given in µEh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from equijax.errors import located
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals, occupied_orbitals
from equijax.orbitals.layout import OrbitalLayout
from equijax.structure import Structure

MICRO = 1e6
SHELLS = "spdfg"

Matrix = np.ndarray


def matrix_errors(error: Matrix, atoms: Matrix) -> dict[str, float]:
    """Mean absolute elements of a matrix [nao, nao] over all of it, over the blocks of an atom with itself
    (`diagonal`) and over those of two atoms in both orders (`off_diagonal`, absent for a single atom).

    `atoms` [nao] says whose each orbital is.
    """
    size = np.abs(error)
    same = atoms[:, None] == atoms[None, :]
    found = {"all": float(size.mean()), "diagonal": float(size[same].mean())}
    if not same.all():
        found["off_diagonal"] = float(size[~same].mean())
    return found


def shell_errors(error: Matrix, atoms: Matrix, degrees: Matrix) -> dict[str, dict[str, float]]:
    """Mean absolute elements by the pair of shells that a block belongs to: `{"same_atom": {"s-s": ..., "s-p": ...},
    "two_atoms": {...}}`, the shell of the smaller degree first."""
    size = np.abs(error)
    same = atoms[:, None] == atoms[None, :]
    low, high = np.minimum(degrees[:, None], degrees[None, :]), np.maximum(degrees[:, None], degrees[None, :])
    found: dict[str, dict[str, float]] = {"same_atom": {}, "two_atoms": {}}
    for part, where in (("same_atom", same), ("two_atoms", ~same)):
        for first, second in sorted(set(zip(low[where].tolist(), high[where].tolist(), strict=True))):
            chosen = where & (low == first) & (high == second)
            found[part][f"{SHELLS[first]}-{SHELLS[second]}"] = float(size[chosen].mean())
    return found


def orbital_errors(predicted: Matrix, reference: Matrix, overlap: Matrix, occupied: int) -> dict[str, float]:
    """What two Hamiltonians [nao, nao] (Hartree) of one molecule differ by beyond their elements.

    | key | |
    |---|---|
    | occupied_energies | mean over occupied orbitals of abs(ε_pred - ε), Hartree |
    | psi | mean over occupied orbitals of abs(cos(C_pred, C)), orbital by orbital in the metric of the numbers |
    | occupied_overlap | norm² of C^T S C_pred over their number: 1 for equal occupied spaces, whatever their order |
    | density | sqrt(tr(ΔP S ΔP S)), electrons |
    | homo, lumo, gap | absolute errors, Hartree |
    """
    mine, true = (molecular_orbitals(matrix, overlap, occupied) for matrix in (predicted, reference))
    ours, theirs = mine.occupied_coefficients, true.occupied_coefficients
    cosine = np.sum(ours * theirs, 0) / (np.linalg.norm(ours, axis=0) * np.linalg.norm(theirs, axis=0))
    change = (mine.density - true.density) @ overlap
    return {
        "occupied_energies": float(np.mean(np.abs(mine.energies[:occupied] - true.energies[:occupied]))),
        "psi": float(np.mean(np.abs(cosine))),
        "occupied_overlap": float(np.sum((theirs.T @ overlap @ ours) ** 2) / occupied),
        "density": float(np.sqrt(max(np.sum(change * change.T), 0.0))),
        "homo": abs(mine.homo - true.homo),
        "lumo": abs(mine.lumo - true.lumo),
        "gap": abs(mine.gap - true.gap),
    }


def hamiltonian_metrics(
    structures: Sequence[Structure], predicted: Sequence[Matrix], layout: OrbitalLayout
) -> dict[str, Any]:
    """Means over molecules, in the layout of `equijax evaluate --json`. References are the structures' labels.

    `{"n_structures": n, "hamiltonian": {"mae": µEh, "mae_diagonal", "mae_off_diagonal", "by_shell": {...}}}`, and
    for the molecules with an overlap matrix `"orbitals": {"energy_mae": µEh, "psi": .., "occupied_overlap": ..,
    "density_error": electrons, "homo_mae", "lumo_mae", "gap_mae": µEh}`. Raises EquijaxError, naming the frame, when
    a molecule has no reference or a prediction is not finite.
    """
    elements: list[dict[str, float]] = []
    shells: list[dict[str, dict[str, float]]] = []
    orbitals: list[dict[str, float]] = []
    for structure, matrix in zip(structures, predicted, strict=True):
        reference = structure.labels.get("hamiltonian")
        if reference is None:
            raise located("missing", file=structure.file, frame=structure.frame, key="hamiltonian")
        if not np.isfinite(matrix).all():
            raise located("the prediction is not finite", file=structure.file, frame=structure.frame, key="hamiltonian")
        atoms, degrees = owners(layout, structure.atomic_numbers)
        error = matrix - reference
        elements.append(matrix_errors(error, atoms))
        shells.append(shell_errors(error, atoms, degrees))
        overlap = structure.labels.get("overlap")
        if overlap is not None:
            orbitals.append(orbital_errors(matrix, reference, overlap, occupied_orbitals(structure)))
    mae = _means(elements, MICRO)
    metrics: dict[str, Any] = {
        "n_structures": len(structures),
        "hamiltonian": {
            "mae": mae.pop("all"),
            **{f"mae_{part}": value for part, value in mae.items()},
            "by_shell": {part: _means([entry[part] for entry in shells], MICRO) for part in ("same_atom", "two_atoms")},
        },
    }
    if orbitals:
        means = _means(orbitals, 1.0)
        metrics["orbitals"] = {
            "n_structures": len(orbitals),
            "energy_mae": MICRO * means["occupied_energies"],
            "psi": means["psi"],
            "occupied_overlap": means["occupied_overlap"],
            "density_error": means["density"],
            **{f"{name}_mae": MICRO * means[name] for name in ("homo", "lumo", "gap") if name in means},
        }
    return metrics


def owners(layout: OrbitalLayout, atomic_numbers: Sequence[int] | Matrix) -> tuple[Matrix, Matrix]:
    """The atom and the degree of every orbital of a molecule, two arrays [nao]."""
    atoms: list[int] = []
    degrees: list[int] = []
    for atom, z in enumerate(np.asarray(atomic_numbers).tolist()):
        for shell in layout.shells[z]:
            degree = layout.degrees[shell]
            atoms += [atom] * (2 * degree + 1)
            degrees += [degree] * (2 * degree + 1)
    return np.array(atoms, dtype=int), np.array(degrees, dtype=int)


def _means(entries: Sequence[dict[str, float]], factor: float) -> dict[str, float]:
    """Mean of every key over the entries that have it; a gap that does not exist (NaN) counts as absent."""
    names = {name: None for entry in entries for name in entry}
    found = {name: [e[name] for e in entries if name in e and not np.isnan(e[name])] for name in names}
    return {name: factor * float(np.mean(values)) for name, values in found.items() if values}


def one_line(metrics: dict[str, Any]) -> str:
    """The metrics of a set, for the screen."""
    errors = metrics["hamiltonian"]
    parts = [f"{metrics['n_structures']} structures", f"H MAE {errors['mae']:.1f} µEh"]
    if "orbitals" in metrics:
        orbitals = metrics["orbitals"]
        parts += [f"ε {orbitals['energy_mae']:.1f} µEh", f"ψ {100 * orbitals['psi']:.2f} %"]
    return ", ".join(parts)
