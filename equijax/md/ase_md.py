"""Molecular dynamics through ASE: seeded, restartable bit for bit, stopped with a reason when it goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols

from equijax.calculators.ase_calculator import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.md.direct_forces import refuse_or_warn_of_direct_forces
from equijax.md.ensembles import NVE, Langevin, degrees_of_freedom, draw_momenta, make_integrator
from equijax.md.output import OutputFiles, ReplicaOutput
from equijax.md.restart import Restart, load_restart, model_digest
from equijax.md.settings import MDSettings
from equijax.md.summary import speed, summarize, write_summary
from equijax.md.trajectory import frame_of
from equijax.train.interruption import StopSignals

Record = dict[str, Any]


class AseRun:
    """One run in progress: atoms, integrator and open files."""

    every: dict[str, int]
    on_log: Callable[[Record], None] | None

    def __init__(self, calculator: EquijaxCalculator, atoms: Atoms, settings: MDSettings, files: OutputFiles) -> None:
        self.calculator, self.settings, self.files = calculator, settings, files
        self.atoms = atoms.copy()
        self.atoms.calc = calculator
        refuse_what_ase_lacks(settings)
        refuse_or_warn_of_direct_forces(calculator.potential, settings.ensemble)
        self.degrees = degrees_of_freedom(self.atoms, settings.ensemble)
        self.step = 0
        self.model_digest = model_digest(calculator.potential, calculator.dtype)

    def open(self, restart: bool, overwrite: bool) -> None:
        """Start, or continue from the restart file."""
        files = self.files
        if restart and files.restart.exists():
            self._continue(load_restart(files.restart))
            return
        files.prepare(restart, overwrite)
        if self.settings.velocities == "new":
            self.atoms.set_momenta(draw_momenta(self.atoms, self.settings.temperature, self.settings.seed))
        self.integrator: NVE | Langevin = make_integrator(self.atoms, self.settings)
        self.output = ReplicaOutput(files.trajectories[0], files.logs[0])
        header = {"num_atoms": len(self.atoms), "dtype": self.calculator.dtype, **self.settings.model_dump()}
        self.output.log.add(header)
        self._write(("write", "log", "restart"))

    def _continue(self, saved: Restart) -> None:
        saved.check(self.atoms, self.settings.model_dump(), self.model_digest, "ase", self.files.restart)
        self.step = saved.step
        self.calculator.remember_shapes(saved.shapes)
        self.atoms.set_cell(saved.cell)
        self.atoms.set_positions(saved.positions, apply_constraint=False)
        self.atoms.set_momenta(saved.momenta, apply_constraint=False)
        self.integrator = make_integrator(self.atoms, self.settings)
        self.integrator.restore(saved.integrator)
        self.output = ReplicaOutput(self.files.trajectories[0], self.files.logs[0], saved.progress[0])

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
        summary = summarize(self.output.log.read(), self.settings, len(self.atoms), self.step)
        summary |= {
            "engine": "ase",
            "dtype": self.calculator.dtype,
            "compile_count": self.calculator.compile_count,
            "list_rebuilds": self.calculator.list_rebuilds,
            "interrupted": signals.received.name if signals.received else None,
            "trajectory": str(self.files.trajectories[0]),
            "seconds": seconds,
            **speed(self.step - first, seconds, self.settings.timestep_fs, len(self.atoms)),
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
            self.output.trajectory.write(frame_of(self.atoms, {"step": self.step}))
            raise self._stopped(
                f"the temperature is {temperature:.0f} K, more than {self.settings.temperature_limit:.0f} K; "
                f"fastest is atom {atom} ({chemical_symbols[self.atoms.numbers[atom]]}) with a kinetic energy of "
                f"{kinetic[atom]:.3g} eV and a force of {force:.3g} eV/Å",
                self.step,
            )

        self._check_uncertainty()

    def _check_uncertainty(self) -> None:
        limit = self.settings.max_force_uncertainty
        if limit is None:
            return
        components = self.calculator.get_property("forces_uncertainty", self.atoms)
        sigmas = np.sqrt(np.sum(components**2, axis=1))
        atom = int(np.argmax(sigmas))
        if sigmas[atom] > limit:
            self.output.trajectory.write(frame_of(self.atoms, {"step": self.step}))
            name = f"atom {atom} ({chemical_symbols[self.atoms.numbers[atom]]})"
            reason = f"force uncertainty (eV/Å) of {name} is {sigmas[atom]:.3g}, more than {limit:.3g}"
            raise self._stopped(reason, self.step)

    def _stopped(self, reason: str, step: int) -> EquijaxError:
        when = f"MD stopped at step {step} ({step * self.settings.timestep_fs:g} fs)"
        return EquijaxError(f"{when}: {reason}; the trajectory until then is in {self.files.trajectories[0]}")

    def _temperature(self) -> float:
        kinetic = float(self.atoms.get_kinetic_energy())
        return 2 * kinetic / (self.degrees * units.kB) if self.degrees else 0.0

    def _write(self, kinds: Any) -> None:
        if "write" in kinds:
            time_fs = self.step * self.settings.timestep_fs
            info = {"step": self.step, "time_fs": time_fs, "temperature": self._temperature()}
            self.output.trajectory.write(frame_of(self.atoms, info))
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
            self.output.log.add(record)
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
            progress=[self.output.progress],
            engine="ase",
            extra={},
        ).save(self.files.restart)

    def close(self) -> None:
        self.output.close()


def refuse_what_ase_lacks(settings: MDSettings) -> None:
    """Ensembles and ramps that only the other engine has."""
    if settings.ensemble not in ("nve", "langevin", "npt"):
        raise EquijaxError(
            f"the engine ase has no ensemble {settings.ensemble}; use the engine jit, or langevin or npt"
        )
    if settings.ramp_steps is not None:
        raise EquijaxError("the engine ase has no ramps of temperature or pressure; use the engine jit")
