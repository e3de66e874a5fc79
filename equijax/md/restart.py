"""The restart file: everything that the next step depends on, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from equijax.errors import EquijaxError, located
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.weights.atomic_file import write_atomically
from equijax.weights.model_file import digest, flatten_parameters

FORMAT_VERSION = 2
EXTRA = "extra_"
ARRAYS = ("numbers", "pbc", "positions", "momenta", "cell")


@dataclasses.dataclass(frozen=True)
class Restart:
    """State after `step` steps.

    `settings`: the MDSettings as JSON; `model`: digest of the parameters and precision; `integrator`: state of
    thermostat and barostat with the random numbers; `shapes`: padded shapes of the calculator, on which the
    order of sums depends; `progress`: lengths of trajectory and log, of every replica; `engine`: which wrote it;
    `extra`: arrays that this engine needs beside the others. The engine `jit` has a leading axis of replicas in
    `positions`, `momenta` and `cell`.
    """

    step: int
    numbers: np.ndarray
    pbc: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    cell: np.ndarray
    settings: dict[str, Any]
    model: str
    integrator: dict[str, Any]
    shapes: list[list[int]]
    progress: list[dict[str, int]]
    engine: str
    extra: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write a npz without pickles: the file is the old one or the new one, never a part."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = {name: np.asarray(fields.pop(name)) for name in ARRAYS}
        arrays |= {f"{EXTRA}{name}": np.asarray(array) for name, array in fields.pop("extra").items()}
        text = json.dumps({"format_version": FORMAT_VERSION, **fields})
        buffer = io.BytesIO()
        np.savez(buffer, state=np.array(text), **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    def check(self, atoms: Atoms, settings: dict[str, Any], model: str, engine: str, path: Path) -> None:
        """Raise EquijaxError when the run that is asked for is not the one that was interrupted."""
        if self.engine != engine:
            raise located(f"was written by the engine {self.engine}, not {engine}", file=path, fix=f"use {self.engine}")
        if not (np.array_equal(self.numbers, atoms.numbers) and np.array_equal(self.pbc, atoms.pbc)):
            raise located("was written for other atoms", file=path, fix="give the structure of the first run")
        changed = [
            f"{key}: {self.settings.get(key)} -> {settings.get(key)}"
            for key in sorted(self.settings.keys() | settings.keys())
            if self.settings.get(key) != settings.get(key)
        ]
        if changed:
            raise located(f"was written with other settings ({'; '.join(changed)})", file=path)
        if self.model != model:
            raise located("was written with another model or precision, or another backend", file=path)


def model_digest(potential: Potential, dtype: DType) -> str:
    """Changes with the model, its parameters, the precision, and what evaluates and rounds its products."""
    rounding = "" if potential.matmul_precision == "highest" else f" {potential.matmul_precision}"
    return digest(f"{potential.model_config!r} {dtype}{rounding}", flatten_parameters(potential.params))


def load_restart(path: Path) -> Restart:
    """Read a restart file; EquijaxError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
            extra = {name.removeprefix(EXTRA): archive[name] for name in archive.files if name.startswith(EXTRA)}
            state = json.loads(str(archive["state"]))
        if state.pop("format_version") != FORMAT_VERSION:
            raise located("has another format version", file=path, key="format_version")
        restart = Restart(**arrays, **state, extra=extra)
    except EquijaxError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise located(f"is not a restart file or damaged: {error}", file=path) from error
    if not all(np.isfinite(getattr(restart, name)).all() for name in ("positions", "momenta", "cell")):
        raise located("holds positions or momenta that are not finite", file=path)
    return restart
