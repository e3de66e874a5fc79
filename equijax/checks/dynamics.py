"""A short run at constant energy with two time steps: is the energy conserved, as well as the time step allows?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import units
from ase.data import atomic_masses

from equijax.checks.evaluation import Evaluate, Found
from equijax.checks.rows import Row
from equijax.checks.structures import moved
from equijax.errors import EquijaxError
from equijax.structure import Structure

STEPS = 300
TIMESTEP = 0.5
"""fs; the second run has half of it."""
TEMPERATURE = 300.0
QUENCH_STEPS = 100
MAX_DRIFT_RATIO, LOST = 0.1, 1.0
"""Drift over the run relative to the fluctuation of the kinetic energy: good, and beyond all use."""
MAX_GAIN = 0.4
"""Residual with half the time step over that with the whole one; velocity Verlet has 0.25, a kink more."""
SMALL_RESIDUAL = 5e-3
"""meV/atom; below it rounding hides what the time step does."""


@dataclasses.dataclass(frozen=True)
class NVERun:
    """Energies of one run, meV per atom, total relative to its start, [T]; `time` fs. `exploded` when it ended early
    because something was not finite or hotter than 20 times the start."""

    timestep: float
    time: np.ndarray
    total: np.ndarray
    kinetic: np.ndarray
    exploded: bool

    def fit(self, until: float = np.inf) -> tuple[float, float]:
        """(slope meV/atom/ps, standard deviation of the rest meV/atom) of the total energy up to `until` fs."""
        chosen = self.time <= until
        if chosen.sum() < 3:
            return float("nan"), float("nan")
        time, total = 1e-3 * self.time[chosen], self.total[chosen]
        slope, offset = np.polyfit(time, total, 1)
        return float(slope), float(np.std(total - slope * time - offset))

    @property
    def drift_ratio(self) -> float:
        """|drift| times the length of the run over the standard deviation of the kinetic energy."""
        spread = max(float(np.std(self.kinetic)), 1e-9)  # nothing moves in a crystal of one atom
        return abs(self.fit()[0]) * 1e-3 * float(np.ptp(self.time)) / spread


def check_dynamics(
    evaluate: Evaluate, structure: Structure, given: bool, conservative: bool, seed: int, steps: int = STEPS
) -> tuple[list[Row], list[NVERun]]:
    """Run `structure`, at rest first where the user did not give it, and judge the coarse run and what the fine one
    gains. What goes wrong in a structure that was made is a warning: the model may never have seen its like."""
    start = structure if given else quench(evaluate, structure)
    coarse, fine = nve(evaluate, start, (TIMESTEP, TIMESTEP / 2), seed, steps)
    where = f"{len(structure)} atoms, {TEMPERATURE:g} K, {steps} steps of {TIMESTEP:g} fs"
    slope, residual = coarse.fit()
    required = None if not conservative else MAX_DRIFT_RATIO
    ratio = float("inf") if coarse.exploded else coarse.drift_ratio
    lost = given and not ratio <= LOST
    title = "NVE drift, of the fluctuation of the kinetic energy"
    note = where + ("; the run exploded" if coarse.exploded else f"; {slope:+.2g} meV/atom/ps".replace("-", "−"))
    rows = [Row(title, ratio, required, "relative", "fail" if lost else "warn", note)]
    if coarse.exploded or fine.exploded:
        return rows, [coarse, fine]
    end = float(fine.time[-1])
    before, after = coarse.fit(end)[1], fine.fit(end)[1]
    judged = required is not None and after > SMALL_RESIDUAL
    note = f"{before:.2g} to {after:.2g} meV/atom; velocity Verlet: 0.25" + ("" if judged else "; too small to judge")
    rows += [
        Row("NVE residual", residual, None, "meV/atom", note=where),
        Row(
            "NVE residual with half the time step",
            after / max(before, 1e-9),
            MAX_GAIN if judged else None,
            "relative",
            "warn",
            note,
        ),
    ]
    return rows, [coarse, fine]


def nve(evaluate: Evaluate, start: Structure, timesteps: Sequence[float], seed: int, steps: int) -> list[NVERun]:
    """Velocity Verlet of one start with several time steps (fs) side by side, in one call of the model per step."""
    masses = atomic_masses[start.atomic_numbers][:, None]
    rng = np.random.default_rng(seed)
    velocities = rng.normal(size=start.positions.shape) * np.sqrt(units.kB * TEMPERATURE / masses)
    velocities -= (masses * velocities).sum(axis=0) / masses.sum()
    now = [_State(start, velocities.copy(), found) for found in evaluate([start] * len(timesteps))]
    history = [[state.energies(masses)] for state in now]
    hot = 20 * max(history[0][0][1], 1e-3)
    exploded = False
    for _ in range(steps):
        for state, timestep in zip(now, timesteps, strict=True):
            dt = timestep * units.fs
            state.velocities = state.velocities + 0.5 * dt * state.found.forces / masses
            state.structure = moved(state.structure, state.structure.positions + dt * state.velocities)
        try:
            results = evaluate([state.structure for state in now])
        except EquijaxError:  # an atom has flown away, or is not at a finite place
            exploded = True
            break
        for state, timestep, found in zip(now, timesteps, results, strict=True):
            state.found = found
            state.velocities = state.velocities + 0.5 * timestep * units.fs * found.forces / masses
        for entries, state in zip(history, now, strict=True):
            entries.append(state.energies(masses))
        latest = np.array([entries[-1] for entries in history])
        if not (np.isfinite(latest).all() and (latest[:, 1] < hot).all()):
            exploded = True
            history = [[entry for entry in entries if np.isfinite(entry).all()] for entries in history]
            break
    runs = []
    for timestep, entries in zip(timesteps, history, strict=True):
        potential, kinetic = 1e3 * np.array(entries).reshape(-1, 2).T / len(start)
        total = potential + kinetic
        runs.append(NVERun(timestep, timestep * np.arange(len(total)), total - total[:1], kinetic, exploded))
    return runs


@dataclasses.dataclass
class _State:
    structure: Structure
    velocities: np.ndarray
    found: Found

    def energies(self, masses: np.ndarray) -> tuple[float, float]:
        """Potential and kinetic, eV."""
        return self.found.energy, float(0.5 * (masses * self.velocities**2).sum())


def quench(evaluate: Evaluate, structure: Structure) -> Structure:
    """Downhill for QUENCH_STEPS: dynamics with unit masses that forgets its velocity when it goes uphill, no step of
    an atom longer than 0.05 Å. The last point that is finite."""
    velocities = np.zeros_like(structure.positions)
    (found,) = evaluate([structure])
    for _ in range(QUENCH_STEPS):
        if not np.isfinite(found.forces).all():
            break
        velocities = velocities * float((velocities * found.forces).sum() > 0) + 0.05 * found.forces
        step = 0.1 * velocities
        step *= min(1.0, 0.05 / max(float(np.linalg.norm(step, axis=1).max()), 1e-12))
        structure = moved(structure, structure.positions + step)
        (found,) = evaluate([structure])
    return structure
