"""A molecular-dynamics run with its files, through ASE or in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase import Atoms

from equijax.calculators.ase_calculator import EquijaxCalculator
from equijax.config.yaml import validate
from equijax.errors import EquijaxError, did_you_mean
from equijax.md.ase_md import AseRun
from equijax.md.boost import Boost
from equijax.md.engine import Monitor
from equijax.md.jit_md import JitRun
from equijax.md.output import OutputFiles
from equijax.md.restart import load_restart
from equijax.md.settings import MDSettings
from equijax.md.simulation import fixed_atoms
from equijax.md.uncertain_forces import uncertainty_monitor
from equijax.potential.potential import Potential
from equijax.precision import DType

Record = dict[str, Any]
ENGINES = ("jit", "ase")


def run_md(
    potential: Potential | EquijaxCalculator | str | Path,
    atoms: Atoms,
    *,
    steps: int,
    output: str | Path,
    engine: str | None = None,
    replicas: int = 1,
    monitor: Monitor | None = None,
    boost: Boost | None = None,
    write_every: int = 20,
    log_every: int = 10,
    restart_every: int = 1000,
    restart: bool = False,
    overwrite: bool = False,
    dtype: DType | None = None,
    on_log: Callable[[Record], None] | None = None,
    **settings: Any,
) -> Record:
    """Run `steps` steps from `atoms`, which stay as they are; returns the summary.

    `settings` are the fields of MDSettings: ensemble, temperature, timestep_fs, seed, ... Beside the trajectory
    `output` (.xyz, .extxyz, .traj or .h5) there are, with the same stem, `.jsonl` (the log), `.restart.npz` and
    `.summary.json`. With `restart` a run that was killed or stopped continues until it has `steps` steps in
    total, with the same bits as if it had never stopped; without a restart file it starts from the beginning.
    SIGINT and SIGTERM write a restart file and end the run early (`interrupted` in the summary).

    `engine`: `jit` runs all steps in one compiled program, with every ensemble, `replicas` (trajectories `md-0.xyz`,
    `md-1.xyz`, ... with the seeds `seed`, `seed` + 1, ...) and a `monitor` that may stop the run; `ase` goes through
    ASE's integrators step by step, with a calculator of your own and any constraint. Default: the engine of the restart
    file; else `ase` for a calculator or constraints other than FixAtoms; else `jit`. A `boost` evaluates the potential
    every few steps only, and its surrogate between (`jit`, langevin).

    Raises EquijaxError for wrong settings, existing output without `restart` or `overwrite`, and, naming the
    step and the atom, when positions, energies or forces are not finite, an atom flies away, the temperature exceeds
    `max_temperature`, or the uncertainty of a force `max_force_uncertainty`. What was written until then stays.
    """
    every = {"write": write_every, "log": log_every, "restart": restart_every}
    numbers = {"steps": steps, "replicas": replicas, **{f"{name}_every": number for name, number in every.items()}}
    for name, number in numbers.items():
        if isinstance(number, bool) or int(number) != number or number < 1:
            raise EquijaxError(f"{name} is {number}; expected a positive integer")
    if isinstance(potential, EquijaxCalculator) and dtype not in (None, potential.dtype):
        raise EquijaxError(f"dtype is {dtype}, but the calculator that was given works in {potential.dtype}")
    checked = validate(MDSettings, settings)
    files = OutputFiles.beside(Path(output), replicas)
    chosen = engine or _default_engine(potential, atoms, files.restart if restart else None)
    run: AseRun | JitRun
    if chosen == "ase":
        if replicas > 1 or monitor is not None or boost is not None:
            raise EquijaxError("replicas, a monitor and a boost need the engine jit")
        calculator = potential if isinstance(potential, EquijaxCalculator) else EquijaxCalculator(potential, dtype)
        uncertainty_monitor(calculator.potential, checked, None)  # refuses models without uncertainties
        run = AseRun(calculator, atoms, checked, files)
    elif chosen == "jit":
        loaded = _potential(potential)
        monitor = uncertainty_monitor(loaded, checked, monitor)
        run = JitRun(loaded, atoms, checked, files, dtype, replicas, monitor, boost)
    else:
        raise EquijaxError(f"there is no engine '{chosen}'; {did_you_mean(chosen, ENGINES)}")
    run.every, run.on_log = every, on_log
    run.open(restart, overwrite)
    try:
        return run.advance(steps)
    finally:
        run.close()


def _default_engine(potential: Any, atoms: Atoms, restart: Path | None) -> str:
    if restart is not None and restart.exists():
        return load_restart(restart).engine
    if isinstance(potential, EquijaxCalculator) or (isinstance(potential, Potential) and potential.dispersion):
        return "ase"
    try:
        fixed_atoms(atoms)
    except EquijaxError:
        return "ase"
    return "jit"


def _potential(given: Potential | EquijaxCalculator | str | Path) -> Potential:
    if isinstance(given, EquijaxCalculator):
        return given.potential
    if isinstance(given, Potential):
        return given
    from equijax.weights import load_potential

    loaded = load_potential(given)
    if not isinstance(loaded, Potential):
        raise EquijaxError(f"{given}: MD needs a potential; a {type(loaded).__name__} has no energies")
    return loaded
