"""What a trajectory says about structure and stability: pair distances, bonds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure

BOND_FACTOR = 1.25
"""Atoms nearer than this times the sum of their covalent radii are bonded."""
BOND_CHANGE = 0.5
"""Å by which a bond of a stable run may change (Fu et al. 2023, arXiv:2210.07237)."""


@dataclasses.dataclass(frozen=True)
class RadialDistribution:
    """Mean over frames and atoms of the neighbours at a `distance` [M] Å. `density` [M]: g(r), relative to the mean
    density, when `is_periodic` in three directions; else neighbours per Å."""

    distance: np.ndarray
    density: np.ndarray
    is_periodic: bool


def radial_distribution(frames: Sequence[Atoms], farthest: float = 6.0, bins: int = 120) -> RadialDistribution:
    """Of all pairs nearer than `farthest` Å, images included, from frames of the same atoms."""
    edges = np.linspace(0, farthest, bins + 1)
    total = np.zeros(bins)
    periodic = all(frames[0].pbc)
    shells = 4 / 3 * np.pi * np.diff(edges**3) if periodic else np.diff(edges)
    for frame in frames:
        structure = Structure.from_ase(frame)
        lengths = np.linalg.norm(neighbor_list(structure, farthest).vectors, axis=1)
        counts = np.histogram(lengths, edges)[0] / len(frame) / shells
        total += counts * structure.volume / len(frame) if periodic else counts
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, total / len(frames), periodic)


@dataclasses.dataclass(frozen=True)
class Bonds:
    """`largest` [T] Å: the largest change of the length of a bond of the first frame at `time` [T] fs."""

    time: np.ndarray
    largest: np.ndarray

    @property
    def broken_after(self) -> float | None:
        """fs until a bond has changed by more than BOND_CHANGE; None when none has."""
        broken = np.flatnonzero(self.largest > BOND_CHANGE)
        return float(self.time[broken[0]]) if len(broken) else None


def bond_changes(frames: Sequence[Atoms]) -> Bonds:
    """Of a trajectory whose positions are not wrapped, with `time_fs` in each frame's info."""
    first = frames[0]
    radii = covalent_radii[first.numbers]
    found = neighbor_list(Structure.from_ase(first), 2 * BOND_FACTOR * float(radii.max()))
    bonded = np.linalg.norm(found.vectors, axis=1) < BOND_FACTOR * (radii[found.receivers] + radii[found.senders])
    receivers, senders, shifts = found.receivers[bonded], found.senders[bonded], found.shifts[bonded]

    def lengths(frame: Atoms) -> np.ndarray:
        vectors = frame.positions[receivers] - frame.positions[senders] - shifts @ frame.cell.array
        return np.linalg.norm(vectors, axis=1)

    start = lengths(first)
    largest = np.array([np.abs(lengths(frame) - start).max(initial=0.0) for frame in frames])
    return Bonds(np.array([float(frame.info["time_fs"]) for frame in frames]), largest)
