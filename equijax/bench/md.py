"""Time per step of molecular dynamics, neighbour lists included: both engines, every architecture, no files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from ase import Atoms

from equijax.bench.models import copper, ethanol
from equijax.graph.neighbors import neighbor_list
from equijax.potential.potential import Potential, two_atom_graph
from equijax.precision import DType, jit, precision
from equijax.structure import Structure

EngineName = Literal["jit", "ase"]
ENGINES: tuple[EngineName, ...] = ("jit", "ase")
TIMESTEP_FS = 0.5
TEMPERATURE = 300.0
LONGEST_SAMPLE = 100
"""Steps of one sample at most: as many as `equijax md` does between two looks at the clock."""
SAMPLE_S, FEWEST_SAMPLES = 0.1, 3

SYSTEMS: dict[str, Callable[[], Structure]] = {
    "ethanol": lambda: ethanol(0),
    "copper_108": lambda: copper(3),
    "copper_500": lambda: copper(5),
}


@dataclasses.dataclass(frozen=True)
class StepTiming:
    """One engine with one model on one system: seconds per MD step, of samples of `steps_per_sample` steps."""

    model: str
    system: str
    engine: EngineName
    dtype: str
    atoms: int
    edges: int
    first_s: float
    """Wall time of the first forces and the first step: compilation."""
    median_s: float
    lower_quartile_s: float
    upper_quartile_s: float
    best_s: float
    cpu_median_s: float
    """Processor time of this process, all its threads."""
    samples: int
    steps_per_sample: int
    ns_per_day: float
    """At the median, for steps of 0.5 fs."""


def time_md(
    models: tuple[str, ...] = (),
    systems: tuple[str, ...] = (),
    engines: tuple[EngineName, ...] = ENGINES,
    dtype: DType = "float32",
    seconds: float = 3.0,
    overrides: dict[str, Any] | None = None,
    report: Callable[[StepTiming], None] = lambda _: None,
) -> list[StepTiming]:
    """NVE at 300 K of every model on every system, the engines in turn; `seconds` for each of them.

    `overrides` are fields of the model configs; `report` gets every timing as it comes. Parameters are initial ones
    and forces weak, so that atoms keep their velocities: neighbour lists work as in a real run, and no untrained model
    explodes.
    """
    from equijax.models import MODELS

    timings = []
    for name in models or tuple(MODELS):
        config = MODELS[name](**(overrides or {}))
        for system in systems or tuple(SYSTEMS):
            structure = SYSTEMS[system]()
            potential = untrained_potential(config, structure, dtype)
            for timing in _time_system(name, system, potential, structure, engines, seconds):
                report(timing)
                timings.append(timing)
    return timings


def untrained_potential(config: Any, structure: Structure, dtype: DType, scale: float = 1e-3) -> Potential:
    """Initial parameters of the seed 0 for the elements and the mean number of neighbours of `structure`.

    `scale` (eV) is the size of the atoms' energies.
    """
    import jax

    from equijax.models import ModelStatistics

    elements = tuple(sorted({int(z) for z in structure.atomic_numbers}))
    edges = len(neighbor_list(structure, config.cutoff))
    statistics = ModelStatistics(elements, edges / len(structure), scale=scale)
    with precision("float32"):
        # One use: a compilation without optimisation takes a third of the time.
        init = jit(config.build(statistics).init, compiler_options={"xla_backend_optimization_level": "0"})
        params = jax.device_get(init(jax.random.key(0), *two_atom_graph())["params"])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
    return Potential(config, statistics, dict.fromkeys(elements, 0.0), params, dtype=dtype)


def _time_system(
    name: str,
    system: str,
    potential: Potential,
    structure: Structure,
    engines: tuple[EngineName, ...],
    seconds: float,
) -> list[StepTiming]:
    from equijax.md.summary import speed

    atoms = _moving(structure)
    steppers, first = {}, {}
    for engine in engines:
        start = time.perf_counter()
        steppers[engine] = STEPPERS[engine](potential, atoms)
        steppers[engine](1)
        first[engine] = time.perf_counter() - start
    counts, samples = _samples(steppers, seconds)
    edges = len(neighbor_list(structure, potential.cutoff))
    timings = []
    for engine in engines:
        wall, cpu = np.array(samples[engine]).T
        lower, median, upper = (float(value) for value in np.quantile(wall, (0.25, 0.5, 0.75)))
        timings.append(
            StepTiming(
                model=name,
                system=system,
                engine=engine,
                dtype=potential.dtype,
                atoms=len(structure),
                edges=edges,
                first_s=first[engine],
                median_s=median,
                lower_quartile_s=lower,
                upper_quartile_s=upper,
                best_s=float(wall.min()),
                cpu_median_s=float(np.median(cpu)),
                samples=len(wall),
                steps_per_sample=counts[engine],
                ns_per_day=speed(1, median, TIMESTEP_FS, len(structure))["ns_per_day"] or 0.0,
            )
        )
    return timings


def _samples(
    steppers: dict[EngineName, Callable[[int], None]], seconds: float
) -> tuple[dict[EngineName, int], dict[EngineName, list[tuple[float, float]]]]:
    """Steps of a sample, and the (wall, processor) seconds per step of all samples, taken in turn."""
    counts: dict[EngineName, int] = {}
    for engine, run in steppers.items():
        start = time.perf_counter()
        run(1)
        one = time.perf_counter() - start
        counts[engine] = max(1, min(LONGEST_SAMPLE, int(min(SAMPLE_S, seconds) / one)))
    samples: dict[EngineName, list[tuple[float, float]]] = {engine: [] for engine in steppers}
    spent = dict.fromkeys(steppers, 0.0)
    waiting = list(steppers)
    while waiting:
        for engine in tuple(waiting):
            count = counts[engine]
            wall, cpu = time.perf_counter(), time.process_time()
            steppers[engine](count)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            samples[engine].append((wall / count, cpu / count))
            spent[engine] += wall
            if spent[engine] >= seconds and len(samples[engine]) >= FEWEST_SAMPLES:
                waiting.remove(engine)
    return counts, samples


def _moving(structure: Structure) -> Atoms:
    from equijax.md.ensembles import draw_momenta

    atoms = structure.to_ase()
    atoms.calc = None
    atoms.set_momenta(draw_momenta(atoms, TEMPERATURE, 0))
    return atoms


def jit_stepper(potential: Potential, atoms: Atoms) -> Callable[[int], None]:
    """Goes on by some steps in the compiled engine."""
    from equijax.md import MDSettings, Simulation

    simulation = Simulation(potential, atoms, MDSettings(timestep_fs=TIMESTEP_FS, velocities="keep"))
    simulation.run_to([0])

    def run(steps: int) -> None:
        simulation.run_to([simulation.step + steps])

    return run


def ase_stepper(potential: Potential, atoms: Atoms) -> Callable[[int], None]:
    """Goes on by some steps through ASE."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from equijax.calculators.ase_calculator import EquijaxCalculator

    atoms = atoms.copy()
    atoms.calc = EquijaxCalculator(potential)
    integrator = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)

    def run(steps: int) -> None:
        integrator.run(steps)

    return run


STEPPERS: dict[EngineName, Callable[[Potential, Atoms], Callable[[int], None]]] = {
    "jit": jit_stepper,
    "ase": ase_stepper,
}
