"""Trajectories in HDF5, laid out as H5MD 1.1 (de Buyl, Colberg, Höfling 2014), which several programs read.

The file is open in HDF5's single-writer mode: after a kill at any moment, readers find all frames that were flushed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from equijax.errors import located

ATOMS = "particles/atoms"
UNITS = {"position": "Angstrom", "velocity": "Angstrom fs-1", "force": "eV Angstrom-1", "box/edges": "Angstrom"}
"""Of the time series under `particles/atoms`."""
ENERGY = "observables/potential_energy"
FRAMES_PER_CHUNK = 16


class Hdf5Trajectory:
    """Positions, velocities and forces of all atoms, cells and energies; a frame of `progress` is never lost."""

    def __init__(self, path: Path, progress: dict[str, int] | None = None) -> None:
        self._path = path
        self._frames = 0
        self._file: h5py.File | None = None
        if progress:
            self._keep_first(progress["trajectory_frames"])

    def write(self, frame: Atoms) -> None:
        if self._file is None:
            self._file = _new_file(self._path, frame)
            self._file.swmr_mode = True
        values = {
            "position": frame.positions,
            "velocity": frame.get_velocities() * units.fs,
            "force": frame.get_forces(apply_constraint=False),
            "box/edges": frame.cell.array,
        }
        step, time = int(frame.info["step"]), float(frame.info["time_fs"])
        for name, value in values.items():
            self._append(f"{ATOMS}/{name}", value, step, time)
        self._append(ENERGY, np.float64(frame.get_potential_energy()), step, time)
        self._file.flush()
        self._frames += 1

    def _append(self, name: str, value: Any, step: int, time: float) -> None:
        assert self._file is not None
        group = self._file[name]
        for key, item in (("value", value), ("step", step), ("time", time)):
            group[key].resize(self._frames + 1, axis=0)
            group[key][self._frames] = item

    @property
    def progress(self) -> dict[str, int]:
        return {"trajectory_frames": self._frames}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _keep_first(self, count: int) -> None:
        """A file whose writer was killed cannot be opened to write again, so the first frames are copied."""
        if not count:
            return
        copy = self._path.with_name(f".{self._path.name}.tmp")
        frame = next(read_hdf5(self._path))
        with h5py.File(self._path, "r", swmr=True) as source, _new_file(copy, frame) as target:
            for group in (*(f"{ATOMS}/{name}" for name in UNITS), ENERGY):
                for name in ("value", "step", "time"):
                    rows = source[group][name][:count]
                    if len(rows) < count:
                        raise located(
                            f"has less than the {count} frames that the restart file knows of", file=self._path
                        )
                    target[group][name].resize(count, axis=0)
                    target[group][name][:] = rows
        os.replace(copy, self._path)
        self._file, self._frames = h5py.File(self._path, "r+", libver="latest"), count
        self._file.swmr_mode = True


def _new_file(path: Path, frame: Atoms) -> h5py.File:
    """All groups and empty data sets for frames like this one: none can be added in single-writer mode."""
    file = h5py.File(path, "w", libver="latest")
    header = file.create_group("h5md")
    header.attrs["version"] = np.array([1, 1], np.int32)
    header.create_group("author").attrs["name"] = ""
    creator = header.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "equijax", ""
    atoms = file.create_group(ATOMS)
    atoms["species"] = frame.numbers.astype(np.int32)
    atoms["mass"] = frame.get_masses()
    atoms["mass"].attrs["unit"] = "u"
    box = atoms.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array(["periodic" if p else "none" for p in frame.pbc], dtype="S8")
    shapes = {name: (3, 3) if name == "box/edges" else (len(frame), 3) for name in UNITS}
    for name, unit in UNITS.items():
        _time_series(atoms.create_group(name), shapes[name], unit)
    _time_series(file.create_group(ENERGY), (), "eV")
    return file


def _time_series(group: h5py.Group, shape: tuple[int, ...], unit: str) -> None:
    def empty(name: str, shape: tuple[int, ...], kind: type) -> Any:
        chunk = (FRAMES_PER_CHUNK, *shape)
        return group.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), chunks=chunk)

    empty("value", shape, np.float64).attrs["unit"] = unit
    empty("step", (), np.int64)
    empty("time", (), np.float64).attrs["unit"] = "fs"


def read_hdf5(path: Path, count: int | None = None) -> Iterator[Atoms]:
    """The first `count` frames (all by default); EquijaxError for a file of another kind."""
    try:
        with h5py.File(path, "r", swmr=True) as file:
            atoms, energies = file[ATOMS], file[ENERGY]["value"]
            pbc = [boundary == b"periodic" for boundary in atoms["box"].attrs["boundary"]]
            numbers, masses = atoms["species"][()], atoms["mass"][()]
            # Energies are written last: there is nothing half-written before them.
            for index in range(min(len(energies), count if count is not None else len(energies))):
                position, velocity, force, cell = (atoms[name]["value"][index] for name in UNITS)
                info = {"step": int(atoms["position/step"][index]), "time_fs": float(atoms["position/time"][index])}
                frame = Atoms(numbers, position, masses=masses, cell=cell, pbc=pbc, info=info)
                frame.set_momenta(velocity / units.fs * masses[:, None])
                frame.calc = SinglePointCalculator(frame, energy=float(energies[index]), forces=force)
                yield frame
    except (OSError, KeyError) as error:
        raise located(f"is not an H5MD trajectory or damaged: {error}", file=path) from error
