"""Systems whose ensembles are known exactly, and what is needed to run many of them at once."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk

from equijax.md import MDSettings, Simulation
from equijax.md.simulation import Moment
from tests.statics.pair_model import pair_potential


def argon(repetitions: int = 1, length: float = 5.3) -> Atoms:
    """A face-centred cubic crystal."""
    return bulk("Ar", "fcc", a=length, cubic=True) * (repetitions, repetitions, repetitions)


def morse_argon(cutoff: float = 5.0):
    """Stiffer than argon, smooth at the cutoff, at rest near 5.3 Å: stable to 300 K."""
    return pair_potential(0.15, kind="morse", cutoff=cutoff, length=3.75, steepness=1.5)


def ideal_gas(atoms: int, volume: float) -> Atoms:
    """Atoms without forces in a cube, at random places."""
    edge = volume ** (1 / 3)
    places = np.random.Generator(np.random.Philox(1)).uniform(0, edge, (atoms, 3))
    return Atoms("Ar" * atoms, places, cell=[edge] * 3, pbc=True)


def last_moment(simulation: Simulation, steps: int) -> Moment:
    return simulation.run_to([0, steps])[-1]


def simulation(potential, atoms: Atoms, replicas: int = 1, **settings) -> Simulation:
    return Simulation(potential, atoms, MDSettings(**settings), replicas=replicas)
