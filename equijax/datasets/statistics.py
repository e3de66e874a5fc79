"""Numbers about training data that models and reports use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of training frames; energies in eV, forces in eV/Å.

    `avg_num_neighbors` is the mean over atoms that have at least one neighbour. `mean_shift` and `energy_std` are
    mean and standard deviation of (E - ΣE0)/N; `force_rms` is over components. They are None without labels.
    """

    atomic_numbers: tuple[int, ...]
    atomic_energies: dict[int, float]
    avg_num_neighbors: float
    mean_shift: float | None
    energy_std: float | None
    force_rms: float | None
    num_structures: int
    num_atoms: int
    num_edges: int


def elements_of(structures: Sequence[Structure]) -> tuple[int, ...]:
    """Atomic numbers that occur, ascending."""
    return tuple(sorted({int(z) for structure in structures for z in np.unique(structure.atomic_numbers)}))


def reference_energy(structure: Structure, atomic_energies: Mapping[int, float]) -> float:
    """ΣE0 over the atoms, eV."""
    return float(sum(atomic_energies[int(z)] for z in structure.atomic_numbers))


def interaction_energies(structures: Sequence[Structure], atomic_energies: Mapping[int, float]) -> np.ndarray:
    """(E - ΣE0)/N in eV of the structures that have an energy."""
    return np.array(
        [
            (float(s.labels["energy"]) - reference_energy(s, atomic_energies)) / len(s)
            for s in structures
            if "energy" in s.labels
        ]
    )


def training_statistics(
    structures: Sequence[Structure], atomic_energies: Mapping[int, float], cutoff: float
) -> DatasetStatistics:
    """Statistics of `structures` with neighbours within `cutoff` Å.

    Raises EquijaxError when there are no structures, when no atom has a neighbour, and when a reference energy is
    missing.
    """
    if not structures:
        raise EquijaxError("there are no training frames")
    elements = elements_of(structures)
    missing = [z for z in elements if z not in atomic_energies]
    if missing:
        raise EquijaxError(f"atomic_energies: none for atomic numbers {missing}")
    degrees = []
    for structure in structures:
        edges = neighbor_list(structure, cutoff)
        degrees.append(np.bincount(edges.receivers, minlength=len(structure)))
    degree = np.concatenate(degrees)
    if not degree.any():
        raise EquijaxError(
            f"no atom of the training frames has a neighbour within {cutoff:g} Å; expected a larger model.cutoff, or "
            "positions in Å (see dataset.units)"
        )
    energies = interaction_energies(structures, atomic_energies)
    forces = [np.asarray(s.labels["forces"]) for s in structures if "forces" in s.labels]
    return DatasetStatistics(
        atomic_numbers=elements,
        atomic_energies={z: float(atomic_energies[z]) for z in elements},
        avg_num_neighbors=float(degree[degree > 0].mean()),
        mean_shift=float(energies.mean()) if len(energies) else None,
        energy_std=float(energies.std()) if len(energies) else None,
        force_rms=float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None,
        num_structures=len(structures),
        num_atoms=len(degree),
        num_edges=int(degree.sum()),
    )
