"""Trajectories that stay readable when the process is killed, and continue without gaps or repeats."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from equijax.errors import EquijaxError, located

SUFFIXES = (".xyz", ".extxyz", ".traj", ".h5")


class Trajectory(Protocol):
    """A file of frames."""

    def write(self, frame: Atoms) -> None:
        """Append one frame; what was written stays readable whatever happens to the process."""

    @property
    def progress(self) -> dict[str, int]:
        """Where the file ends, for the restart file."""

    def close(self) -> None:
        """No frame follows."""


class AppendOnlyFile:
    """A text file to which whole records are added, one system call each.

    The kernel finishes such a call even when the process is killed, so the file ends with a complete record.
    `size` goes into the restart file; opening at a size cuts off what was written after it.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            if os.fstat(self._handle).st_size < size:
                raise located(f"has less than the {size} bytes that the restart file knows of", file=path)
            os.ftruncate(self._handle, size)
            os.lseek(self._handle, size, os.SEEK_SET)
        except OSError as error:
            raise located(f"cannot be written: {error.strerror}", file=path) from error
        self.path = path
        self.size = size

    def append(self, text: str) -> None:
        data = text.encode()
        written = os.write(self._handle, data)
        while written < len(data):  # only on a full disk, where the next call raises
            written += os.write(self._handle, data[written:])
        self.size += len(data)

    def close(self) -> None:
        os.close(self._handle)


class ExtxyzTrajectory:
    """Extended XYZ: positions, momenta and forces; energy, step, time and temperature in the comment line."""

    def __init__(self, path: Path, progress: dict[str, int] | None = None) -> None:
        self._file = AppendOnlyFile(path, progress["trajectory_bytes"] if progress else 0)

    def write(self, frame: Atoms) -> None:
        from ase.io.extxyz import write_extxyz

        text = io.StringIO()
        write_extxyz(text, [frame])
        self._file.append(text.getvalue())

    @property
    def progress(self) -> dict[str, int]:
        return {"trajectory_bytes": self._file.size}

    def close(self) -> None:
        self._file.close()


class AseTrajectory:
    """ASE's binary .traj format, in full precision."""

    def __init__(self, path: Path, progress: dict[str, int] | None = None) -> None:
        from ase.io import Trajectory

        self._frames = progress["trajectory_frames"] if progress else 0
        if progress:
            self._keep_first(path, self._frames)
        self._writer = Trajectory(str(path), "a" if progress else "w")

    def write(self, frame: Atoms) -> None:
        self._writer.write(frame)
        self._frames += 1

    @property
    def progress(self) -> dict[str, int]:
        return {"trajectory_frames": self._frames}

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def _keep_first(path: Path, count: int) -> None:
        """Frames cannot be cut off this format, so the first ones are copied."""
        from ase.io import Trajectory

        copy = path.with_name(f".{path.name}.tmp")
        with Trajectory(str(path)) as source, Trajectory(str(copy), "w") as target:
            if len(source) < count:
                raise located(f"has less than the {count} frames that the restart file knows of", file=path)
            for index in range(count):
                target.write(source[index])
        os.replace(copy, path)


def open_trajectory(path: Path, progress: dict[str, int] | None) -> Trajectory:
    """A new trajectory, or the continuation of one at the `progress` that a restart file holds."""
    if path.suffix not in SUFFIXES:
        raise EquijaxError(
            f"{path}: a trajectory cannot have the suffix '{path.suffix}'; expected one of {', '.join(SUFFIXES)}"
        )
    if path.suffix == ".h5":
        from equijax.md.hdf5_trajectory import Hdf5Trajectory

        return Hdf5Trajectory(path, progress)
    return (AseTrajectory if path.suffix == ".traj" else ExtxyzTrajectory)(path, progress)


def read_trajectory(path: Path) -> Iterator[Atoms]:
    """The frames of a file that `open_trajectory` wrote, one after the other, also while it is being written."""
    if path.suffix == ".h5":
        from equijax.md.hdf5_trajectory import read_hdf5

        yield from read_hdf5(path)
    else:
        from ase.io import iread

        yield from iread(str(path), ":")


def frame_of(atoms: Atoms, info: dict[str, Any]) -> Atoms:
    """A copy with the energy and forces of the moment and `info`, without the calculator."""
    frame = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        momenta=atoms.get_momenta(),
        cell=atoms.cell,
        pbc=atoms.pbc,
        info=info,
    )
    frame.calc = SinglePointCalculator(
        frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces(apply_constraint=False)
    )
    return frame


class Log(AppendOnlyFile):
    """One JSON object per line; the first says what runs."""

    def add(self, record: dict[str, Any]) -> None:
        self.append(json.dumps(record, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The records so far, the first line left out."""
        lines = self.path.read_text().splitlines()[1:]
        return [json.loads(line) for line in lines]
