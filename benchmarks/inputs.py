"""The systems of the peer benchmarks, written as .npz so that every library reads the same edges.

Sender j sits at r_j + shift @ cell; edges are sorted by receiver. Species index 0..3 stands for H, C, N, O; copper
uses index 0, so that all models have four elements and the same number of parameters. Dynamics starts from ASE's .traj
with velocities of 300 K.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CUTOFF = 5.0
ELEMENTS = (1, 6, 7, 8)


SYSTEMS: dict[str, int | tuple[int, int, int]] = {
    "molecule": 1,
    "molecule_x5": 5,
    "molecule_x32": 32,
    "copper_500": (5, 5, 5),
    "copper_3000": (10, 15, 5),
}
"""Molecules of 27 atoms, or cubic cells of copper along x, y and z."""


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


def molecules(file: Path | None, count: int) -> list[Any]:
    """Frames of 27 atoms: the first ones of `file`, or rattled clusters of three ethanol molecules without it."""
    import ase.io
    from ase.build import molecule

    if file is not None:
        frames = ase.io.read(file, f":{count}")
        if len(frames) < count or any(len(atoms) != 27 for atoms in frames):
            raise SystemExit(f"{file}: {len(frames)} frames; expected at least {count}, of 27 atoms each")
        for atoms in frames:
            atoms.pbc = False
            atoms.cell = np.zeros((3, 3))
        return frames
    frames = []
    for seed in range(count):
        cluster = molecule("CH3CH2OH")
        for step in (4.0, 8.0):
            other = molecule("CH3CH2OH")
            other.translate([step, 0.3, 0.2])
            cluster += other
        cluster.rattle(0.05, seed=seed)
        frames.append(cluster)
    return frames


def frames_of(system: str, molecule_file: Path | None) -> list[Any]:
    """ASE Atoms of a row of SYSTEMS; copper is rattled by 0.05 Å."""
    from ase.build import bulk

    size = SYSTEMS[system]
    if isinstance(size, int):
        return molecules(molecule_file, size)
    atoms = bulk("Cu", "fcc", a=3.61, cubic=True).repeat(size)
    atoms.rattle(0.05, seed=1)
    return [atoms]


def write_input(folder: Path, system: str, task: str, molecule_file: Path | None) -> dict[str, Any]:
    """Write what a task reads, once; fields of the case, among them atoms and directed edges."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = frames_of(system, molecule_file)
    if task not in ("steps", "neighbors"):
        path = (folder / f"{system}.npz").resolve()
        return {"system": str(path), **write_system(path, frames)}
    (atoms,) = frames
    return write_structure((folder / f"md_{system}.traj").resolve(), atoms)


def write_structure(path: Path, atoms: Any) -> dict[str, Any]:
    """A start of dynamics."""
    import ase.io

    from equijax.graph.neighbors import neighbor_list
    from equijax.md.ensembles import draw_momenta
    from equijax.structure import Structure

    atoms = atoms.copy()
    atoms.calc = None
    atoms.set_momenta(draw_momenta(atoms, 300.0, 0))
    ase.io.write(path, atoms)
    elements = sorted({int(z) for z in atoms.numbers})
    edges = len(neighbor_list(Structure.from_ase(atoms), CUTOFF))
    return {"structure": str(path), "elements": elements, "atoms": len(atoms), "edges": edges}
