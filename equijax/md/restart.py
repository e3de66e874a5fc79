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
from equijax.weights.atomic_file import write_atomically

FORMAT_VERSION = 1
ARRAYS = ("numbers", "pbc", "positions", "momenta", "cell")


@dataclasses.dataclass(frozen=True)
class Restart:
    """State after `step` steps.

    `settings`: the MDSettings as JSON; `model`: digest of the parameters and precision; `integrator`: state of
    thermostat and barostat with the random numbers; `shapes`: padded shapes of the calculator, on which the
    order of sums depends; `progress`: lengths of trajectory and log.
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
    progress: dict[str, int]

    def save(self, path: Path) -> None:
        """Write a npz without pickles: the file is the old one or the new one, never a part."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = {name: np.asarray(fields.pop(name)) for name in ARRAYS}
        text = json.dumps({"format_version": FORMAT_VERSION, **fields})
        buffer = io.BytesIO()
        np.savez(buffer, state=np.array(text), **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    def check(self, atoms: Atoms, settings: dict[str, Any], model: str, path: Path) -> None:
        """Raise EquijaxError when the run that is asked for is not the one that was interrupted."""
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
            raise located("was written with another model or precision", file=path)


def load_restart(path: Path) -> Restart:
    """Read a restart file; EquijaxError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
            state = json.loads(str(archive["state"]))
        if state.pop("format_version") != FORMAT_VERSION:
            raise located("has another format version", file=path, key="format_version")
        restart = Restart(**arrays, **state)
    except EquijaxError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise located(f"is not a restart file or damaged: {error}", file=path) from error
    if not all(np.isfinite(getattr(restart, name)).all() for name in ("positions", "momenta", "cell")):
        raise located("holds positions or momenta that are not finite", file=path)
    return restart
