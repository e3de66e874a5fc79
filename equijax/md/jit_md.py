"""Molecular dynamics in one compiled program: a simulation with its files, written by a thread beside it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms

from equijax.errors import EquijaxError
from equijax.md.boost import Boost
from equijax.md.direct_forces import refuse_or_warn_of_direct_forces
from equijax.md.engine import RECORDS, Monitor
from equijax.md.output import OutputFiles, ReplicaOutput
from equijax.md.restart import Restart, load_restart, model_digest
from equijax.md.settings import MDSettings
from equijax.md.simulation import MDStopped, Moment, Simulation
from equijax.md.summary import speed, summarize, summarize_replicas, write_summary
from equijax.md.writer import BackgroundWriter
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.train.interruption import StopSignals

Record = dict[str, Any]

LONGEST_STRETCH = 100
"""Steps between two stops: what has to be done again when neighbours need more room."""
SECONDS_PER_CALL = 2.0
"""How long a signal may have to wait."""


class JitRun:
    """One run in progress: simulation, writer and open files."""

    every: dict[str, int]
    on_log: Callable[[Record], None] | None

    def __init__(
        self,
        potential: Potential,
        atoms: Atoms,
        settings: MDSettings,
        files: OutputFiles,
        dtype: DType | None,
        replicas: int,
        monitor: Monitor | None,
        boost: Boost | None = None,
    ) -> None:
        refuse_or_warn_of_direct_forces(potential, settings.ensemble)
        potential.refuse_dispersion("--engine jit")
        if not potential.has_energy:
            raise EquijaxError("the model was trained on tensor targets alone: it has no forces")
        self.settings, self.files, self.boost = settings, files, boost
        self.simulation = Simulation(
            potential, atoms, settings, dtype=dtype, replicas=replicas, monitor=monitor, boost=boost
        )
        self.model_digest = model_digest(potential, self.simulation.engine.dtype)

    def open(self, restart: bool, overwrite: bool) -> None:
        """Start, or continue from the restart file."""
        files, simulation = self.files, self.simulation
        progress: list[dict[str, int]] | list[None] = [None] * simulation.replicas
        if restart and files.restart.exists():
            saved = load_restart(files.restart)
            saved.check(simulation.atoms, self._settings(), self.model_digest, "jit", files.restart)
            simulation.restore(saved.extra, saved.integrator)
            progress = saved.progress
        else:
            files.prepare(restart, overwrite)
        pairs = zip(files.trajectories, files.logs, progress, strict=True)
        self.outputs = [ReplicaOutput(*paths) for paths in pairs]
        self.writer = BackgroundWriter()
        if simulation.step < 0:
            for replica, output in enumerate(self.outputs):
                header = {"num_atoms": len(simulation.atoms), "dtype": simulation.engine.dtype, **self._settings()}
                output.log.add(header | {"seed": self.settings.seed + replica})

    def _settings(self) -> Record:
        boosted = {} if self.boost is None else self.boost.describe()
        return self.settings.model_dump() | {"replicas": self.simulation.replicas} | boosted

    def advance(self, steps: int) -> Record:
        """Integrate until `steps` steps are done, write what is due, return the summary."""
        simulation = self.simulation
        if simulation.step < 0:
            self._start()
        first, started, warm = simulation.step, time.perf_counter(), simulation.compile_count > 0
        count = 1
        with StopSignals() as signals:
            while simulation.step < steps and signals.received is None:
                before, since = simulation.step, time.perf_counter()
                try:
                    moments = simulation.advance(self._stops(simulation.step, steps)[:count])
                except MDStopped as stopped:
                    for moment in stopped.before:
                        self._write(moment)
                    raise self._stopped(stopped) from None
                for moment in moments:
                    self._write(moment)
                if not warm:  # compilation is not part of the speed
                    first, started, warm = simulation.step, time.perf_counter(), True
                elif simulation.step > before:
                    per_stop = (time.perf_counter() - since) / len(moments)
                    count = min(RECORDS, max(1, int(SECONDS_PER_CALL / per_stop)))
        seconds = time.perf_counter() - started
        if simulation.step % self.every["restart"]:
            self._save_restart(simulation.step)
        self.writer.flush()
        summary = self._summary(simulation.step)
        replica_steps = (simulation.step - first) * simulation.replicas
        summary |= {
            "interrupted": signals.received.name if signals.received else None,
            "seconds": seconds,
            **speed(replica_steps, seconds, self.settings.timestep_fs, len(simulation.atoms)),
        }
        write_summary(self.files.summary, summary)
        return summary

    def _start(self) -> None:
        try:
            (moment,) = self.simulation.run_to([0])
        except MDStopped as stopped:
            raise self._stopped(stopped) from None
        self._write(moment)

    def _stops(self, step: int, last: int) -> list[int]:
        """The next stops after `step`, the same ones wherever a run was interrupted, up to the next restart file: it
        needs the neighbour list of its step, which there is at the last stop of a call alone."""
        intervals = {*self.every.values(), LONGEST_STRETCH}
        stops = [
            n
            for n in range(step + 1, step + 1 + RECORDS * LONGEST_STRETCH)
            if n == last or any(n % e == 0 for e in intervals)
        ]
        end = min(last, self.every["restart"] * (step // self.every["restart"] + 1))
        return [stop for stop in stops if stop <= end]

    def _summary(self, step: int) -> Record:
        simulation = self.simulation
        parts = [
            summarize(output.log.read(), self.settings, len(simulation.atoms), step)
            | {"seed": self.settings.seed + replica, "trajectory": str(self.files.trajectories[replica])}
            for replica, output in enumerate(self.outputs)
        ]
        return summarize_replicas(parts) | {
            "engine": "jit",
            "dtype": simulation.engine.dtype,
            "compile_count": simulation.compile_count,
            "list_rebuilds": simulation.list_rebuilds,
            **({} if self.boost is None else {"boost_interval": self.boost.interval}),
        }

    def _write(self, moment: Moment) -> None:
        """Hand what is due at this step to the writer."""
        simulation = self.simulation
        for replica, output in enumerate(self.outputs):
            if moment.step % self.every["write"] == 0:
                self.writer.submit(functools.partial(self._write_frame, moment, replica))
            if moment.step % self.every["log"] == 0:
                record = simulation.record(moment, replica)
                self.writer.submit(functools.partial(output.log.add, record))
                if self.on_log is not None:
                    self.on_log(record if simulation.replicas == 1 else {"replica": replica, **record})
        if moment.step % self.every["restart"] == 0:
            self._save_restart(moment.step)

    def _write_frame(self, moment: Moment, replica: int) -> None:
        self.outputs[replica].trajectory.write(self.simulation.frame(moment, replica))

    def _save_restart(self, step: int) -> None:
        arrays, room = self.simulation.saved()

        def save() -> None:
            """In the thread, where the files have got what was given before."""
            Restart(
                step=step,
                numbers=self.simulation.atoms.numbers,
                pbc=self.simulation.atoms.pbc,
                positions=arrays["state_positions"],
                momenta=arrays["state_momenta"],
                cell=arrays["state_cell"],
                settings=self._settings(),
                model=self.model_digest,
                integrator=room,
                shapes=[],
                progress=[output.progress for output in self.outputs],
                engine="jit",
                extra=arrays,
            ).save(self.files.restart)

        self.writer.submit(save)

    def _stopped(self, stopped: MDStopped) -> EquijaxError:
        """The error of the run; the last frame is written when its numbers are."""
        moment = stopped.moment
        if np.isfinite(moment.state.forces).all() and np.isfinite(moment.state.positions).all():
            for replica in range(self.simulation.replicas):
                self.writer.submit(functools.partial(self._write_frame, moment, replica))
        self.writer.flush()
        when = f"MD stopped at step {moment.step} ({moment.step * self.settings.timestep_fs:g} fs)"
        return EquijaxError(f"{when}: {stopped.reason}; the trajectory until then is in {self.files.shown}")

    def close(self) -> None:
        self.writer.close()
        for output in self.outputs:
            output.close()
