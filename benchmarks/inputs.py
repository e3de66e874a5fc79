"""The systems of the peer benchmarks, written once as .npz so that every library reads the same edges.

Sender j sits at r_j + shift @ cell; edges are sorted by receiver. Species index 0..3 stands for H, C, N, O; copper
uses index 0, so that all models have four elements and the same number of parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CUTOFF = 5.0
ELEMENTS = (1, 6, 7, 8)


def write_system(path: Path, frames: list[Any]) -> dict[str, int]:
    """`frames` are ASE Atoms; energy and forces are taken where they are known, zero otherwise."""
    from equijax.graph.neighbors import neighbor_list
    from equijax.structure import Structure

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("senders", "receivers", "shifts", "shift_vectors")}
    num_edges, offset = [], 0
    for atoms in frames:
        edges = neighbor_list(Structure.from_ase(atoms), CUTOFF)
        columns["senders"].append(edges.senders + offset)
        columns["receivers"].append(edges.receivers + offset)
        columns["shifts"].append(edges.shifts)
        columns["shift_vectors"].append(edges.shifts @ atoms.cell.array)
        num_edges.append(len(edges.senders))
        offset += len(atoms)
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez(
        path,
        positions=np.concatenate([atoms.positions for atoms in frames]),
        species=np.array([ELEMENTS.index(z) if z in ELEMENTS else 0 for z in numbers]),
        cell=np.stack([atoms.cell.array for atoms in frames]),
        periodic=np.array([bool(atoms.pbc.all()) for atoms in frames]),
        num_atoms=np.array([len(atoms) for atoms in frames]),
        num_edges=np.array(num_edges),
        energy=np.array([_label(atoms, "energy", 0.0) for atoms in frames]),
        forces=np.concatenate([_label(atoms, "forces", np.zeros((len(atoms), 3))) for atoms in frames]),
        **arrays,
    )
    return {"atoms": len(numbers), "edges": sum(num_edges)}


def _label(atoms: Any, name: str, default: Any) -> Any:
    if atoms.calc is not None and name in atoms.calc.results:
        return atoms.calc.results[name]
    return atoms.info.get(name, atoms.arrays.get(name, default))


def molecules(file: Path | None) -> list[Any]:
    """Five frames of 27 atoms: 3BPA from `file`, or rattled clusters of three ethanol molecules without it."""
    import ase.io
    from ase.build import molecule

    if file is not None:
        frames = ase.io.read(file, ":5")
        for atoms in frames:
            atoms.pbc = False
            atoms.cell = np.zeros((3, 3))
        return frames
    frames = []
    for seed in range(5):
        cluster = molecule("CH3CH2OH")
        for step in (4.0, 8.0):
            other = molecule("CH3CH2OH")
            other.translate([step, 0.3, 0.2])
            cluster += other
        cluster.rattle(0.05, seed=seed)
        frames.append(cluster)
    return frames


def copper() -> Any:
    """500 atoms of fcc copper, rattled by 0.05 Å."""
    from ase.build import bulk

    atoms = bulk("Cu", "fcc", a=3.61, cubic=True).repeat(5)
    atoms.rattle(0.05, seed=1)
    return atoms


def write_all(folder: Path, molecule_file: Path | None) -> dict[str, dict[str, Any]]:
    """Write the three systems; returns path, atoms and edges of each."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = molecules(molecule_file)
    systems = {"molecule": frames[:1], "molecule_x5": frames, "copper_500": [copper()]}
    described = {}
    for name, members in systems.items():
        path = (folder / f"{name}.npz").resolve()
        described[name] = {"system": str(path), **write_system(path, members)}
    return described
