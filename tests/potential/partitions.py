"""Structures and models for tests of parts, and a program that compares them with the whole.

`python -m tests.potential.partitions MODEL STRUCTURE` prints the largest relative deviations of four parts as JSON, one
after another and on four devices, with XLA_FLAGS=--xla_force_host_platform_device_count=4.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
from ase import Atoms

from equijax.potential.potential import Potential, parameter_shapes
from tests.contracts.cases import ATOMIC_ENERGIES, CASES, STATISTICS


def potential_of(name: str, config: Any = None) -> Potential:
    """A row of the contract suite, or another config, with seeded weights in float64."""
    case = CASES[name]
    config = case.config if config is None else config
    rng = np.random.default_rng(7)
    shapes = parameter_shapes(config.build(STATISTICS))
    params = jax.tree.map(lambda leaf: (case.weight_scale * rng.normal(size=leaf.shape)).astype("float64"), shapes)
    return Potential(config, STATISTICS, ATOMIC_ENERGIES, params, dtype="float64")


def chain(count: int = 20) -> Atoms:
    """A zigzag whose atoms have the next ones as neighbours and no others within 3.5 Å: hop by hop."""
    index = np.arange(count)
    positions = np.stack([2.4 * index, 0.6 * (index % 2), 0.2 * np.sin(index)], axis=1)
    return Atoms([("H", "C", "O")[i % 3] for i in index], positions=positions)


def crystal() -> Atoms:
    """Triclinic, longer than the receptive field of two layers in one direction."""
    rng = np.random.default_rng(0)
    grid = np.array([[x, y, z] for x in (0.1, 0.6) for y in (0.2,) for z in (np.arange(9) + 0.3) / 9])
    cell = np.array([[5.0, 0.0, 0.0], [0.9, 3.6, 0.0], [-1.0, 1.2, 27.0]])
    positions = (grid + rng.uniform(-0.02, 0.02, grid.shape)) @ cell
    return Atoms("CHO" * 6, positions=positions, cell=cell, pbc=True)


def small_crystal() -> Atoms:
    """Smaller than the cutoff in every direction."""
    cell = [[2.6, 0, 0], [0.4, 2.8, 0], [0.3, -0.2, 3.0]]
    return Atoms("CO", positions=[[0, 0, 0], [1.2, 1.1, 1.3]], cell=cell, pbc=True)


STRUCTURES = {"molecule": chain, "crystal": crystal, "small_crystal": small_crystal}


def deviations(potential: Potential, atoms: Atoms, *divisions: tuple[int, int]) -> list[dict[str, float]]:
    """Largest deviation of what (parts, devices) say from the whole, over the largest value of each property."""
    has_stress = potential.is_conservative and atoms.pbc.any()
    names = ("energy", "energies", "forces", "node_features", *(("stress",) if has_stress else ()))
    expected = potential.predict(atoms, names)
    rows = []
    for parts, devices in divisions:
        found = potential.predict(atoms, names, parts=parts, devices=devices)
        rows.append({n: float(np.abs(found[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in names})
    return rows


if __name__ == "__main__":
    print(json.dumps(deviations(potential_of(sys.argv[1]), STRUCTURES[sys.argv[2]](), (4, 1), (4, 4))))
