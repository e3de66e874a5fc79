"""Molecular dynamics through ASE: seeded, restartable bit for bit, stopped with a reason when it goes wrong."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols

from equijax.calculators.ase_calculator import EquijaxCalculator
from equijax.config.yaml import validate
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.md.ensembles import NVE, Langevin, degrees_of_freedom, draw_momenta, make_integrator
from equijax.md.restart import Restart, load_restart
from equijax.md.settings import MDSettings
from equijax.md.summary import summarize, write_summary
from equijax.md.trajectory import Log, frame_of, open_trajectory
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.train.interruption import StopSignals
from equijax.weights.model_file import digest, flatten_parameters

Record = dict[str, Any]


def run_md(
    potential: Potential | EquijaxCalculator | str | Path,
    atoms: Atoms,
    *,
    steps: int,
    output: str | Path,
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
    `output` (.xyz, .extxyz or .traj) there are, with the same stem, `.jsonl` (the log), `.restart.npz` and
    `.summary.json`. With `restart` a run that was killed or stopped continues until it has `steps` steps in
    total, with the same bits as if it had never stopped; without a restart file it starts from the beginning.
    SIGINT and SIGTERM write a restart file and end the run early (`interrupted` in the summary).

    Raises EquijaxError for wrong settings, existing output without `restart` or `overwrite`, and, naming the
    step and the atom, when positions, energies or forces are not finite, an atom flies away, or the
    temperature exceeds `max_temperature`. What was written until then stays.
    """
    if not isinstance(potential, EquijaxCalculator):
        calculator = EquijaxCalculator(potential, dtype=dtype)
    elif dtype not in (None, potential.dtype):
        raise EquijaxError(f"dtype is {dtype}, but the calculator that was given works in {potential.dtype}")
    else:
        calculator = potential
    for name, number in (
        ("steps", steps),
        ("write_every", write_every),
        ("log_every", log_every),
        ("restart_every", restart_every),
    ):
        if isinstance(number, bool) or int(number) != number or number < 1:
            raise EquijaxError(f"{name} is {number}; expected a positive integer")
    run = _Run(calculator, atoms, validate(MDSettings, settings), OutputFiles.beside(Path(output)))
    run.every = {"write": write_every, "log": log_every, "restart": restart_every}
    run.on_log = on_log
    run.open(restart, overwrite)
    try:
        return run.advance(steps)
    finally:
        run.close()


def refuse_or_warn_of_direct_forces(potential: Potential, ensemble: str) -> None:
    """Forces that a model predicts directly do work on a closed path: no energy is conserved, no pressure defined."""
    if potential.is_conservative:
        return
    name = potential.model_config.name
    if ensemble == "npt":
        raise EquijaxError(f"ensemble npt: this {name} predicts forces directly and has no stress; expected langevin")
    if ensemble == "nve":
        warnings.warn(
            f"ensemble nve: this {name} predicts forces directly, which are not the gradient of an energy: the total "
            "energy will drift; train it with forces: gradient for dynamics without a thermostat",
            EquijaxWarning,
            stacklevel=2,
        )


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """The files of one run."""

    trajectory: Path
    log: Path
    restart: Path
    summary: Path

    @classmethod
    def beside(cls, trajectory: Path) -> OutputFiles:
        log, restart, summary = (
            trajectory.with_suffix(suffix) for suffix in (".jsonl", ".restart.npz", ".summary.json")
        )
        return cls(trajectory, log, restart, summary)


class _Run:
    """One run in progress: atoms, integrator and open files."""

    every: dict[str, int]
    on_log: Callable[[Record], None] | None

    def __init__(self, calculator: EquijaxCalculator, atoms: Atoms, settings: MDSettings, files: OutputFiles) -> None:
        self.calculator, self.settings, self.files = calculator, settings, files
        self.atoms = atoms.copy()
        self.atoms.calc = calculator
        refuse_or_warn_of_direct_forces(calculator.potential, settings.ensemble)
        self.degrees = degrees_of_freedom(self.atoms, settings.ensemble)
        self.step = 0
        tensors = flatten_parameters(calculator.potential.params)
        self.model_digest = digest(f"{calculator.potential.model_config!r} {calculator.dtype}", tensors)

    def open(self, restart: bool, overwrite: bool) -> None:
        """Start, or continue from the restart file."""
        files = self.files
        if restart and files.restart.exists():
            self._continue(load_restart(files.restart))
            return
        existing = [path for path in (files.trajectory, files.log, files.restart) if path.exists()]
        if existing and not overwrite:
            fix = "there is no restart file to continue from" if restart else "restart, overwrite, or another name"
            raise located("exists", file=existing[0], fix=fix)
        files.trajectory.parent.mkdir(parents=True, exist_ok=True)
        files.summary.unlink(missing_ok=True)
        if self.settings.velocities == "new":
            self.atoms.set_momenta(draw_momenta(self.atoms, self.settings.temperature, self.settings.seed))
        self.integrator: NVE | Langevin = make_integrator(self.atoms, self.settings)
        self.trajectory = open_trajectory(files.trajectory, None)
        self.log = Log(files.log)
        header = {"num_atoms": len(self.atoms), "dtype": self.calculator.dtype, **self.settings.model_dump()}
        self.log.add(header)
        self._write(("write", "log", "restart"))

    def _continue(self, saved: Restart) -> None:
        saved.check(self.atoms, self.settings.model_dump(), self.model_digest, self.files.restart)
        self.step = saved.step
        self.calculator.remember_shapes(saved.shapes)
        self.atoms.set_cell(saved.cell)
        self.atoms.set_positions(saved.positions, apply_constraint=False)
        self.atoms.set_momenta(saved.momenta, apply_constraint=False)
        self.integrator = make_integrator(self.atoms, self.settings)
        self.integrator.restore(saved.integrator)
        self.trajectory = open_trajectory(self.files.trajectory, saved.progress)
        self.log = Log(self.files.log, saved.progress["log_bytes"])

    def advance(self, steps: int) -> Record:
        """Integrate until `steps` steps are done, write what is due, return the summary."""
        first, started, warm = self.step, time.perf_counter(), False
        with StopSignals() as signals:
            while self.step < steps and signals.received is None:
                self._one_step()
                if not warm:  # compilation is not part of the speed
                    first, started, warm = self.step, time.perf_counter(), True
                self._write([kind for kind in self.every if self.step % self.every[kind] == 0])
        seconds = time.perf_counter() - started
        if self.step % self.every["restart"]:
            self._save_restart()
        summary = summarize(self.log.read(), self.settings, len(self.atoms), self.step)
        summary |= {
            "dtype": self.calculator.dtype,
            "compile_count": self.calculator.compile_count,
            "list_rebuilds": self.calculator.list_rebuilds,
            "interrupted": signals.received.name if signals.received else None,
            "trajectory": str(self.files.trajectory),
            "seconds": seconds,
            **_speed(self.step - first, seconds, self.settings.timestep_fs, len(self.atoms)),
        }
        write_summary(self.files.summary, summary)
        return summary

    def _one_step(self) -> None:
        try:
            # The calculator names the atom of a position or energy that is not finite.
            with np.errstate(over="ignore", invalid="ignore"):
                self.integrator.step()
        except EquijaxError as error:
            raise self._stopped(str(error), self.step + 1) from error
        self.step += 1
        finite = np.isfinite(self.atoms.positions).all(axis=1) & np.isfinite(self.atoms.get_momenta()).all(axis=1)
        if not finite.all():
            atom = int(np.flatnonzero(~finite)[0])
            raise self._stopped(f"atom {atom} position or momentum is not finite", self.step)
        temperature = self._temperature()
        if temperature > self.settings.temperature_limit:
            kinetic = np.sum(self.atoms.get_momenta() ** 2, axis=1) / (2 * self.atoms.get_masses())
            atom = int(np.argmax(kinetic))
            force = float(np.linalg.norm(self.atoms.get_forces()[atom]))
            self.trajectory.write(frame_of(self.atoms, {"step": self.step}))
            raise self._stopped(
                f"the temperature is {temperature:.0f} K, more than {self.settings.temperature_limit:.0f} K; "
                f"fastest is atom {atom} ({chemical_symbols[self.atoms.numbers[atom]]}) with a kinetic energy of "
                f"{kinetic[atom]:.3g} eV and a force of {force:.3g} eV/Å",
                self.step,
            )

    def _stopped(self, reason: str, step: int) -> EquijaxError:
        when = f"MD stopped at step {step} ({step * self.settings.timestep_fs:g} fs)"
        return EquijaxError(f"{when}: {reason}; the trajectory until then is in {self.files.trajectory}")

    def _temperature(self) -> float:
        kinetic = float(self.atoms.get_kinetic_energy())
        return 2 * kinetic / (self.degrees * units.kB) if self.degrees else 0.0

    def _write(self, kinds: Any) -> None:
        if "write" in kinds:
            time_fs = self.step * self.settings.timestep_fs
            info = {"step": self.step, "time_fs": time_fs, "temperature": self._temperature()}
            self.trajectory.write(frame_of(self.atoms, info))
        if "log" in kinds:
            potential, kinetic = self.atoms.get_potential_energy(), self.atoms.get_kinetic_energy()
            record = {
                "step": self.step,
                "time_ps": 1e-3 * self.step * self.settings.timestep_fs,
                "potential_energy": float(potential),
                "kinetic_energy": float(kinetic),
                "total_energy": float(potential + kinetic),
                "conserved_energy": self.integrator.conserved_energy(),
                "temperature": self._temperature(),
            }
            if self.settings.ensemble == "npt":
                record["volume"] = float(self.atoms.get_volume())
            self.log.add(record)
            if self.on_log is not None:
                self.on_log(record)
        if "restart" in kinds:
            self._save_restart()

    def _save_restart(self) -> None:
        Restart(
            step=self.step,
            numbers=self.atoms.numbers,
            pbc=self.atoms.pbc,
            positions=self.atoms.positions,
            momenta=self.atoms.get_momenta(),
            cell=self.atoms.cell.array,
            settings=self.settings.model_dump(),
            model=self.model_digest,
            integrator=self.integrator.state(),
            shapes=[list(shape) for shape in self.calculator.shapes],
            progress={**self.trajectory.progress, "log_bytes": self.log.size},
        ).save(self.files.restart)

    def close(self) -> None:
        self.trajectory.close()
        self.log.close()


def _speed(steps: int, seconds: float, timestep_fs: float, atoms: int) -> Record:
    if steps < 1:
        return {"ns_per_day": None, "us_per_atom_step": None}
    per_step = seconds / steps
    return {"ns_per_day": timestep_fs * 86_400e-6 / per_step, "us_per_atom_step": 1e6 * per_step / atoms}
