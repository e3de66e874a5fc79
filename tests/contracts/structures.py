"""The structures of the contract suite: a molecule, crystals larger and smaller than the cutoff, a slab."""

from __future__ import annotations

import dataclasses

import numpy as np
from ase.build import molecule

from equijax.structure import Structure

from .cases import CUTOFF


def rattled(name: str, seed: int = 0, amplitude: float = 0.08) -> Structure:
    """A molecule of ASE's collection, displaced from its symmetric geometry."""
    atoms = molecule(name)
    positions = atoms.positions + np.random.default_rng(seed).normal(size=(len(atoms), 3)) * amplitude
    return Structure(np.asarray(atoms.numbers), positions)


def ethanol() -> Structure:
    return rattled("CH3CH2OH")


def methanol() -> Structure:
    return rattled("CH3OH")


def crystal() -> Structure:
    """Four atoms in a triclinic cell larger than the cutoff."""
    cell = np.array([[3.9, 0.2, -0.1], [0.7, 4.3, 0.3], [-0.9, 0.5, 4.6]])
    fractional = np.array([[0.02, 0.05, 0.01], [0.47, 0.52, 0.08], [0.51, 0.03, 0.48], [0.05, 0.44, 0.55]])
    return Structure(np.array([6, 8, 1, 6]), fractional @ cell, cell, (True,) * 3)


def small_crystal() -> Structure:
    """Two atoms in a triclinic cell whose vectors are all shorter than the cutoff."""
    cell = np.array([[2.6, 0.1, 0.2], [0.5, 2.8, -0.2], [-0.4, 0.6, 2.9]])
    assert (np.linalg.norm(cell, axis=1) < CUTOFF).all()
    return Structure(np.array([6, 1]), np.array([[0.1, 0.0, -0.1], [0.8, 0.7, 0.5]]), cell, (True,) * 3)


def slab() -> Structure:
    """Three atoms, periodic along a and b, vacuum along c."""
    cell = np.array([[3.0, 0.2, 0.0], [0.4, 3.2, 0.0], [0.3, -0.2, 14.0]])
    positions = np.array([[0.1, 0.2, 5.0], [1.6, 1.5, 5.9], [0.3, 0.1, 7.1]])
    return Structure(np.array([8, 6, 1]), positions, cell, (True, True, False))


def everything() -> list[Structure]:
    """One batch with all kinds; 18 atoms."""
    return [ethanol(), crystal(), small_crystal(), slab()]


def special_geometries() -> list[Structure]:
    """Edges along ±x, ±y, ±z with exact zeros, three atoms in a line, an isolated atom, equal atoms."""
    axes = np.vstack([np.zeros((1, 3)), np.eye(3), -np.eye(3)]) * 1.2
    return [
        Structure(np.array([6, 1, 1, 1, 1, 1, 1]), axes),
        Structure(np.array([8, 6, 8]), np.array([[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]])),
        Structure(np.array([1]), np.zeros((1, 3))),
        Structure(np.array([1, 1, 1]), np.array([[0, 0, 0], [0, 1.0, 0], [0, 0.5, 0.75**0.5]])),
        Structure(np.array([6]), np.zeros((1, 3)), np.eye(3) * 2.2, (True,) * 3),
    ]


def transformed(structure: Structure, matrix: np.ndarray) -> Structure:
    """Every vector v -> matrix v."""
    return dataclasses.replace(
        structure, positions=structure.positions @ matrix.T, cell=np.asarray(structure.cell) @ matrix.T
    )


def moved(structure: Structure, displacement: np.ndarray) -> Structure:
    """Positions plus `displacement`, which broadcasts to [N, 3]."""
    return dataclasses.replace(structure, positions=structure.positions + displacement)


def joined(first: Structure, second: Structure) -> Structure:
    """Two molecules as one structure."""
    return Structure(
        np.concatenate([first.atomic_numbers, second.atomic_numbers]),
        np.concatenate([first.positions, second.positions]),
    )


def random_rotation(seed: int) -> np.ndarray:
    """A proper rotation, [3, 3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)
