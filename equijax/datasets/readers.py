"""From a file to structures with labels in eV and Å, whatever the format."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets.arrays import read_hdf5, read_npz
from equijax.datasets.config import ReadOptions
from equijax.datasets.extxyz import read_extxyz
from equijax.datasets.files import file_kind
from equijax.datasets.frames import RawFrame
from equijax.datasets.labels import TargetReader, label_frames
from equijax.errors import EquijaxError
from equijax.structure import Structure

OWN_UNITS = ("extxyz", "ase_db")
"""Formats whose convention is eV and Å; the others say nothing about units."""


def read_frames(path: str | Path, *, allow_truncated: bool = False) -> Iterator[RawFrame]:
    """Every frame of a file (extxyz, ASE db, npz, HDF5) as it is, in the file's units. Raises EquijaxError."""
    kind = file_kind(path)
    if kind == "extxyz":
        return read_extxyz(path, allow_truncated=allow_truncated)
    return {"ase_db": read_ase_db, "npz": read_npz, "hdf5": read_hdf5}[kind](path)


def stream_frames(
    path: str | Path, spool: Path, *, allow_truncated: bool = False, start: int = 0
) -> Iterator[RawFrame]:
    """`read_frames` from frame `start` on without ever holding the file in memory.

    Arrays of npz and HDF5 files are unpacked in the folder `spool`.
    """
    kind = file_kind(path)
    if kind == "extxyz":
        return read_extxyz(path, allow_truncated=allow_truncated, start=start)
    if kind == "ase_db":
        frames = read_ase_db(path)
    else:
        frames = (read_npz if kind == "npz" else read_hdf5)(path, spool)
    return itertools.islice(frames, start, None)


def require_units(path: str | Path, options: ReadOptions) -> None:
    """EquijaxError for a file whose units nobody has declared."""
    kind = file_kind(path)
    if options.units is None and kind not in OWN_UNITS:
        raise EquijaxError(
            f"{path}: units: {kind} files do not say what units they are in; "
            "expected units, such as units: {energy: kcal/mol, length: angstrom}"
        )


def read_checked(path: str | Path, options: ReadOptions) -> list[RawFrame]:
    """All frames of a file; refuses a file without frames, and one whose units nobody has declared."""
    require_units(path, options)
    frames = list(read_frames(path, allow_truncated=options.allow_truncated))
    if not frames:
        raise EquijaxError(f"{path}: no frames")
    return frames


def read_structures(
    path: str | Path,
    options: ReadOptions | None = None,
    *,
    labels: str = "optional",
    targets: Mapping[str, TargetReader] | None = None,
    **settings: Any,
) -> list[Structure]:
    """Structures of a file, with labels in eV and Å where it has them under the expected names.

    `labels`: "required" refuses a file in which no label, or not the labels asked for, is found; "optional" takes
    what is there. `targets` read tensor targets, which are looked for as well. `settings` are fields of ReadOptions
    (`keys`, `units`, ...), as an alternative to `options`. For files without a convention on units, structures read
    without labels are taken to be in Å.
    """
    chosen = options if options is not None else ReadOptions.model_validate(settings)
    if chosen.units is None and labels == "optional" and file_kind(path) not in OWN_UNITS:
        structures = [_geometry(frame) for frame in read_frames(path)]
    else:
        frames = read_checked(path, chosen)
        required = labels == "required"
        structures = label_frames(frames, chosen, str(path), required=required, targets=targets).structures
    if not structures:
        raise EquijaxError(f"{path}: no frames")
    return structures


def _geometry(frame: RawFrame) -> Structure:
    return Structure(
        atomic_numbers=frame.atomic_numbers,
        positions=np.asarray(frame.positions, dtype=np.float64),
        cell=frame.cell,
        pbc=frame.pbc,
        info=dict(frame.info),
        file=frame.file,
        frame=frame.frame,
    )


def read_ase_db(path: str | Path) -> Iterator[RawFrame]:
    """Rows of an ASE SQLite database: results of the calculator, key-value pairs and `data` entries."""
    import ase.db
    from ase.data import chemical_symbols

    try:
        rows = ase.db.connect(str(path), type="db").select()
        for index, row in enumerate(rows):
            numbers = np.asarray(row.numbers, dtype=np.int64)
            if len(numbers) == 0 or numbers.min() < 1 or numbers.max() >= len(chemical_symbols):
                raise EquijaxError(f"{path} frame {index}: atoms without element, or no atoms")
            info: dict[str, Any] = {**row.key_value_pairs}
            arrays: dict[str, np.ndarray] = {}
            names = ("energy", "free_energy", "forces", "stress", "dipole", "charges")
            results = {name: row.get(name) for name in names if row.get(name) is not None}
            for name, value in {**dict(row.data), **results}.items():
                array = np.asarray(value)
                if array.dtype.kind in "fiub" and array.ndim and array.shape[0] == len(numbers) and name != "stress":
                    arrays[name] = array
                else:
                    info[name] = value
            yield RawFrame(
                atomic_numbers=numbers,
                positions=np.asarray(row.positions, dtype=np.float64),
                cell=np.asarray(row.cell, dtype=np.float64).reshape(3, 3),
                pbc=tuple(bool(p) for p in row.pbc),  # type: ignore[arg-type]
                info=info,
                arrays=arrays,
                file=str(path),
                frame=index,
            )
    except EquijaxError:
        raise
    # ASE's parser meets tables and blobs that are not its own with whatever Python raises there.
    except (sqlite3.Error, OSError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise EquijaxError(f"{path}: broken database, or not one of ASE: {error}") from None
