"""What a model is checked on: frames of a file, or structures made of its elements, and heaps of all elements."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equijax.errors import EquijaxError
from equijax.structure import Structure

LARGE = 200
"""Atoms; larger frames are taken only when a file has no others."""


@dataclasses.dataclass(frozen=True)
class Cases:
    """`frames` are realistic, `heaps` hold all elements of the model at odd places: a cluster, and a crystal whose
    cell is smaller than the cutoff. `source` says where the frames come from; `given` whether the user gave them."""

    frames: list[Structure]
    heaps: list[Structure]
    source: str
    given: bool

    @property
    def all(self) -> list[Structure]:
        return [*self.frames, *self.heaps]


def choose_cases(
    elements: tuple[int, ...], cutoff: float, frames: Sequence[Structure], source: str, seed: int
) -> Cases:
    """Up to three of `frames`, or one that is made where there are none, and the heaps."""
    heaps = [random_cluster(elements, seed), random_crystal(elements, cutoff, seed + 1)]
    if frames:
        chosen = choose_frames(frames)
        names = ", ".join(str(frame.frame if frame.frame is not None else index) for index, frame in chosen)
        text = f"{len(chosen)} of {len(frames)} frames of {source} (frame {names})"
        return Cases([frame for _, frame in chosen], heaps, text, given=True)
    made = made_structure(elements, seed)
    return Cases([made], heaps, f"{made.file}, made of the model's elements", given=False)


def stored_frames(model: Path) -> tuple[list[Structure], str]:
    """Frames of the first test set that training left beside a model file, and their file; none without one."""
    from equijax.report.predictions import load_predictions

    for path in sorted(model.parent.glob("predictions_*.npz")):
        stored = load_predictions(path)
        starts = np.cumsum(stored.num_atoms) - stored.num_atoms
        frames = []
        for i, (start, count) in enumerate(zip(starts, stored.num_atoms, strict=True)):
            rows = slice(start, start + count)
            a, b, c = (bool(p) for p in stored.pbc[i])
            numbers, positions = stored.atomic_numbers[rows], stored.positions[rows]
            frames.append(Structure(numbers, positions, stored.cell[i], (a, b, c), file=str(path), frame=i))
        return frames, str(path)
    return [], ""


def choose_frames(frames: Sequence[Structure], count: int = 3) -> list[tuple[int, Structure]]:
    """(index, frame) of at most `count` frames: those that bring new elements first, then first, middle and last of
    the file. Frames of one atom, and large ones, only where there are no others."""
    indices = [i for i, frame in enumerate(frames) if _interacts(frame) and len(frame) <= LARGE]
    indices = indices or [i for i, frame in enumerate(frames) if _interacts(frame)]
    if not indices:
        raise EquijaxError("no frame has two or more atoms; expected structures whose atoms interact")
    chosen: list[int] = []
    seen: set[int] = set()
    for i in sorted(indices, key=lambda i: -len(set(frames[i].atomic_numbers.tolist()))):
        elements = set(frames[i].atomic_numbers.tolist())
        if len(chosen) < count and not elements <= seen:
            chosen.append(i)
            seen |= elements
    spread = [indices[0], indices[len(indices) // 2], indices[-1]]
    for i in spread:
        if len(chosen) < count and i not in chosen:
            chosen.append(i)
    return [(i, frames[i]) for i in sorted(chosen)]


def _interacts(frame: Structure) -> bool:
    return len(frame) >= 2 or (len(frame) == 1 and any(frame.pbc))


def made_structure(elements: tuple[int, ...], seed: int) -> Structure:
    """Slightly displaced: a molecule of ASE's collection with as many of the elements as there are, else a crystal of
    one of them in the structure that ASE knows, else a heap."""
    from ase.build import bulk, molecule
    from ase.collections import g2
    from ase.data import chemical_symbols, reference_states

    rng = np.random.default_rng(seed)
    known = set(elements)
    molecules = [atoms for atoms in (molecule(name) for name in g2.names) if set(atoms.numbers.tolist()) <= known]
    molecules = [atoms for atoms in molecules if 3 <= len(atoms) <= 12]
    if molecules:
        atoms = max(molecules, key=lambda atoms: (len(set(atoms.numbers.tolist())), len(atoms)))
        name = f"{atoms.get_chemical_formula('hill')} of ASE's collection"
    else:
        simple = [
            z for z in elements if (reference_states[z] or {}).get("symmetry") in ("fcc", "bcc", "hcp", "diamond", "sc")
        ]
        if not simple:
            return dataclasses.replace(random_cluster(elements, seed), file="a heap of atoms")
        atoms = bulk(chemical_symbols[simple[0]]) * (2, 2, 2)
        name = f"{chemical_symbols[simple[0]]} crystal"
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return dataclasses.replace(Structure.from_ase(atoms), file=name)


def random_cluster(elements: tuple[int, ...], seed: int, count: int = 12) -> Structure:
    """Atoms of all elements (at most 24) in a compact, irregular heap, with neighbours about a bond length apart, Å."""
    from ase.data import covalent_radii

    rng = np.random.default_rng(seed)
    numbers = np.array([elements[i % len(elements)] for i in range(max(count, min(len(elements), 24)))])
    radii = covalent_radii[numbers]
    positions = np.zeros((0, 3))
    box = 1.6 * float(radii.mean()) * len(numbers) ** (1 / 3)
    while len(positions) < len(numbers):
        trial = rng.uniform(-box, box, 3)
        reach = 0.85 * (radii[: len(positions)] + radii[len(positions)])
        if (np.linalg.norm(positions - trial, axis=1) > reach).all():
            positions = np.vstack([positions, trial])
        box *= 1.001  # a heap that does not fit grows
    return Structure(atomic_numbers=numbers, positions=positions, file="a heap of all elements")


def random_crystal(elements: tuple[int, ...], cutoff: float, seed: int, count: int = 6) -> Structure:
    """Atoms in a triclinic cell with about 32 neighbours each within the cutoff, periodic in all directions."""
    from ase.data import covalent_radii

    rng = np.random.default_rng(seed)
    numbers = np.array([elements[(i * len(elements)) // count % len(elements)] for i in range(count)])
    radii = covalent_radii[numbers]
    shape = np.array([[1.0, 0.05, -0.02], [0.2, 1.05, 0.06], [-0.22, 0.12, 1.1]])
    length = (count * 4 / 3 * np.pi * cutoff**3 / 32 / np.linalg.det(shape)) ** (1 / 3)
    images = np.array(list(np.ndindex(3, 3, 3))) - 1
    positions = np.zeros((0, 3))
    fractional = np.zeros((0, 3))
    while len(fractional) < count:
        length *= 1.002
        cell = length * shape
        trial = rng.uniform(size=3)
        reach = 0.85 * (radii[: len(fractional)] + radii[len(fractional)])
        apart = np.linalg.norm((fractional[:, None] - trial + images) @ cell, axis=-1)  # [atoms, images]
        if (apart.min(axis=1, initial=np.inf) > reach).all():
            fractional = np.vstack([fractional, trial])
    positions = fractional @ cell
    return Structure(numbers, positions, cell, (True, True, True), file="a crystal heap of the elements")


def moved(structure: Structure, positions: np.ndarray) -> Structure:
    return dataclasses.replace(structure, positions=positions)


def transformed(structure: Structure, matrix: np.ndarray) -> Structure:
    """Every vector v -> matrix v."""
    return dataclasses.replace(
        structure, positions=structure.positions @ matrix.T, cell=np.asarray(structure.cell) @ matrix.T
    )


def joined(first: Structure, second: Structure) -> Structure:
    """Two molecules as one structure."""
    return dataclasses.replace(
        first,
        atomic_numbers=np.concatenate([first.atomic_numbers, second.atomic_numbers]),
        positions=np.concatenate([first.positions, second.positions]),
    )


def name_of(structure: Structure) -> str:
    """Short, for notes: FILE frame N without the folder."""
    return structure.where.rpartition("/")[2]
