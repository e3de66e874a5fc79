"""npz and HDF5 files of whole arrays: their layouts, a reader and writers.

Every array has one row per frame (M frames) or one row per atom of all frames. The names tried, in this order:

| array | names | shape |
|---|---|---|
| elements Z | atomic_numbers, nuclear_charges, z, Z, numbers | [N] for all frames, [M, N], or ragged [sum N] |
| positions | positions, coords, coordinates, R, conformations | [M, N, 3], or ragged [sum N, 3] |
| atoms per frame | num_atoms, n_atoms, natoms | [M], makes the layout ragged |
| cell | cell, lattice | [M, 3, 3] or [3, 3], rows a, b, c |
| periodicity | pbc | [M, 3] or [3]; default: periodic exactly when there is a cell |
| anything else | its own name | [M, ...] per frame or [M, N, ...] / [sum N, ...] per atom |
| which frames have it | has_NAME | [M] booleans; default: all |

In [M, N] elements a 0 marks an absent atom, which must come last. An HDF5 file is either one such set of
arrays, or one group per molecule with such arrays (as in SPICE); groups are read in the order of their names.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets.files import atomic_path
from equijax.datasets.frames import RawFrame
from equijax.errors import EquijaxError
from equijax.structure import Structure

ELEMENTS = ("atomic_numbers", "nuclear_charges", "z", "Z", "numbers")
POSITIONS = ("positions", "coords", "coordinates", "R", "conformations")
COUNTS = ("num_atoms", "n_atoms", "natoms")
CELLS = ("cell", "lattice")
MAX_BYTES = 64 * 2**30
"""Largest size of all arrays of a file together."""
SPOOLED = 2**22
"""Bytes; arrays above this are kept on the disk when they are read frame by frame."""
MAX_RATIO = 1000
"""Largest compression ratio of an npz member; more is a decompression bomb."""


def read_npz(path: str | Path, spool: Path | None = None) -> Iterator[RawFrame]:
    """Frames of an npz archive of plain arrays. Object arrays, which hold pickles, are refused unread.

    With `spool`, a folder, the arrays are unpacked there and mapped instead of being held in memory.
    """
    tables = npz_arrays(path) if spool is None else _spooled_npz(Path(path), spool)
    yield from _forgetting(frames_from_arrays(tables, str(path)), tables)


def _forgetting(frames: Iterator[RawFrame], tables: Mapping[str, np.ndarray]) -> Iterator[RawFrame]:
    """The frames; what has been read of arrays that are mapped does not stay in memory."""
    bases: list[Any] = [table.base for table in tables.values() if isinstance(table, np.ndarray)]
    maps = [base for base in bases if isinstance(base, mmap.mmap)]
    for count, frame in enumerate(frames, 1):
        yield frame
        if count % 1024 == 0:
            for mapped in maps:
                mapped.madvise(mmap.MADV_DONTNEED)


def _spooled_npz(path: Path, folder: Path) -> dict[str, np.ndarray]:
    tables: dict[str, np.ndarray] = {}
    with _checked_archive(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            file = folder / f"{len(tables)}.npy"
            try:
                with archive.open(member) as packed, open(file, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
                mode: Any = "r" if member.file_size > SPOOLED else None
                tables[name] = np.load(file, mmap_mode=mode, allow_pickle=False)
            except (ValueError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
                raise _unreadable(path, name, error) from None
    return tables


def _unreadable(path: str | Path, name: str, error: Exception) -> EquijaxError:
    is_object = "pickle" in str(error) or "Python objects" in str(error)
    reason = "holds Python objects, which are never loaded" if is_object else str(error)
    return EquijaxError(f"{path}: {name}: {reason}; expected a plain array")


@contextlib.contextmanager
def _checked_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """An npz archive that does not blow up when it is unpacked; EquijaxError for another."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise EquijaxError(f"{path}: broken npz file: {error}") from None
    with archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise EquijaxError(f"{path}: more than {MAX_BYTES >> 30} GiB of arrays")
        for member in members:
            if member.file_size > 2**20 and member.file_size > MAX_RATIO * max(member.compress_size, 1):
                raise EquijaxError(f"{path}: {member.filename} is compressed more than {MAX_RATIO} times")
        yield archive


def npz_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an npz archive by name. Raises EquijaxError for object arrays and for archives that blow up."""
    with _checked_archive(path):
        pass
    tables: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                tables[name] = archive[name]
            except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
                raise _unreadable(path, name, error) from None
    return tables


def read_hdf5(path: str | Path, spool: Path | None = None) -> Iterator[RawFrame]:
    """Frames of an HDF5 file: arrays at the root, or one group per molecule.

    With `spool`, a folder, large arrays are copied there piece by piece and mapped instead of being held in memory.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EquijaxError(f"{path}: broken HDF5 file: {error}") from None
    with file:
        groups = sorted(_groups(file, h5py), key=lambda item: item[0])
        if not groups:
            raise EquijaxError(f"{path}: no positions; expected an array called {', '.join(POSITIONS)}")
        start = 0
        for name, group in groups:
            tables = _datasets(group, h5py, f"{path}: {name}", spool)
            for frame in _forgetting(frames_from_arrays(tables, str(path), start, group=name), tables):
                start = frame.frame + 1
                yield frame


def _groups(group: Any, h5py: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if any(name in group for name in POSITIONS):
        yield group.name, group
        return
    for name in group:
        # Soft and external links could lead out of the file.
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink) and isinstance(group[name], h5py.Group) and depth < 4:
            yield from _groups(group[name], h5py, depth + 1)


def _datasets(group: Any, h5py: Any, where: str, spool: Path | None = None) -> dict[str, np.ndarray]:
    tables: dict[str, np.ndarray] = {}
    total = 0
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise EquijaxError(f"{where}: {name} is a link out of its place, which is not followed")
        item = group[name]
        if not isinstance(item, h5py.Dataset):
            continue
        if item.external or item.is_virtual:
            raise EquijaxError(f"{where}: {name} keeps its data in another file, which is not read")
        total += item.size * item.dtype.itemsize
        if total > MAX_BYTES:
            raise EquijaxError(f"{where}: more than {MAX_BYTES >> 30} GiB of arrays")
        if item.dtype.kind in "fiub":
            is_large = spool is not None and item.ndim and item.size * item.dtype.itemsize > SPOOLED
            tables[name] = _spooled(item, spool / f"{len(tables)}.npy") if is_large and spool else item[()]
        elif h5py.check_string_dtype(item.dtype) is not None:
            tables[name] = np.array(item.asstr()[()], dtype=str)
        elif item.dtype.kind == "S":
            tables[name] = item[()].astype(str)
    return tables


def _spooled(item: Any, file: Path) -> np.ndarray:
    file.unlink(missing_ok=True)  # an array of another group may still be mapped
    rows = max(1, SPOOLED * len(item) // (item.size * item.dtype.itemsize))
    header = {"descr": np.lib.format.dtype_to_descr(item.dtype), "fortran_order": False, "shape": item.shape}
    with open(file, "wb") as unpacked:
        np.lib.format.write_array_header_1_0(unpacked, header)
        for first in range(0, len(item), rows):
            unpacked.write(np.ascontiguousarray(item[first : first + rows]).tobytes())
    return np.load(file, mmap_mode="r", allow_pickle=False)


def frames_from_arrays(
    tables: Mapping[str, np.ndarray], file: str, start: int = 0, group: str | None = None
) -> Iterator[RawFrame]:
    """Cut arrays of one of the layouts into frames, numbered from `start`. Raises EquijaxError."""
    where = file if group in (None, "/") else f"{file}: {group}"
    rest = dict(tables)
    numbers = _take(rest, ELEMENTS, where, "elements")
    positions = _take(rest, POSITIONS, where, "positions")
    counts = next((rest.pop(name) for name in COUNTS if name in rest), None)
    cell = next((rest.pop(name) for name in CELLS if name in rest), None)
    pbc = rest.pop("pbc", None)
    if numbers.dtype.kind not in "iuf" or positions.shape[-1:] != (3,):
        raise EquijaxError(f"{where}: elements {numbers.shape} or positions {positions.shape} have the wrong form")
    if counts is None:
        positions = positions[None] if positions.ndim == 2 else positions
        if positions.ndim != 3 or numbers.shape[-1:] != positions.shape[1:2]:
            raise EquijaxError(
                f"{where}: positions {positions.shape} and elements {numbers.shape} do not belong together; expected "
                "[frames, atoms, 3] and [atoms], or num_atoms for frames of different size"
            )
        frames, width = positions.shape[:2]
        numbers = np.broadcast_to(numbers, (frames, width))
        counts = np.concatenate([(numbers[k : k + 4096] > 0).sum(axis=1) for k in range(0, frames, 4096)] or [[]])
        starts, ragged = np.zeros(frames, np.int64), False
    else:
        counts = np.asarray(counts).astype(np.int64).reshape(-1)
        if positions.ndim != 2 or numbers.shape != positions.shape[:1] or counts.sum() != len(positions):
            raise EquijaxError(
                f"{where}: num_atoms adds up to {counts.sum()} and there are {len(positions)} positions and "
                f"{len(numbers)} elements"
            )
        frames, width = len(counts), len(positions)
        starts, ragged = np.cumsum(counts) - counts, True

    present = {name.removeprefix("has_"): rest.pop(name).astype(bool) for name in list(rest) if name[:4] == "has_"}

    def has(name: str, index: int) -> bool:
        return bool(present[name][index]) if name in present else True

    def is_per_atom(table: np.ndarray) -> bool:
        if ragged:
            return table.shape[:1] == (width,) and (width != frames or table.ndim > 1)
        return table.ndim >= 2 and table.shape[:2] == (frames, width)

    per_atom = {name: table for name, table in rest.items() if is_per_atom(table)}
    per_frame = {name: table for name, table in rest.items() if name not in per_atom and table.shape[:1] == (frames,)}
    cell = None if cell is None else np.broadcast_to(cell, (frames, 3, 3))
    flags = np.full(3, cell is not None) if pbc is None else np.asarray(pbc).astype(bool)
    flags = np.broadcast_to(flags, (frames, 3))
    for index in range(frames):
        count, first = int(counts[index]), int(starts[index])
        place = (slice(first, first + count),) if ragged else (index, slice(0, count))
        elements = np.asarray(numbers[place]).astype(np.int64)
        if count < 1 or elements.min() < 1 or elements.max() > 118:
            what = "has no atoms" if count < 1 else f"has elements {elements.min()} to {elements.max()}; expected 1-118"
            raise EquijaxError(f"{where} frame {start + index}: {what} (zeros may only follow the atoms)")
        info = {n: _plain(table[index]) for n, table in per_frame.items() if has(n, index)}
        if group not in (None, "/"):
            info.setdefault("group", group)
        yield RawFrame(
            atomic_numbers=elements,
            positions=np.array(positions[place], dtype=np.float64),
            cell=np.zeros((3, 3)) if cell is None else np.array(cell[index], dtype=np.float64),
            pbc=(bool(flags[index, 0]), bool(flags[index, 1]), bool(flags[index, 2])),
            info=info,
            arrays={n: table[place] for n, table in per_atom.items() if has(n, index)},
            file=file,
            frame=start + index,
        )


def _take(tables: dict[str, np.ndarray], names: Sequence[str], where: str, what: str) -> np.ndarray:
    for name in names:
        if name in tables:
            return tables.pop(name)
    raise EquijaxError(f"{where}: no {what}; expected an array called {', '.join(names)}; found {', '.join(tables)}")


def _plain(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return str(array)
    return array.reshape(-1)[0].item() if array.size == 1 else array


def write_npz(path: str | Path, structures: Sequence[Structure]) -> None:
    """Write structures in the ragged layout, in eV and Å; with has_NAME for labels that some frames lack."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **_tables(structures))  # type: ignore[arg-type]


def write_hdf5(path: str | Path, structures: Sequence[Structure]) -> None:
    """Write structures in the ragged layout, in eV and Å; with has_NAME for labels that some frames lack."""
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, table in _tables(structures).items():
            file.create_dataset(name, data=table, compression="gzip" if table.size > 1000 else None)


def _tables(structures: Sequence[Structure]) -> dict[str, np.ndarray]:
    tables = {
        "num_atoms": np.array([len(s) for s in structures]),
        "atomic_numbers": np.concatenate([s.atomic_numbers for s in structures]),
        "positions": np.concatenate([s.positions for s in structures]),
        "cell": np.array([s.cell for s in structures]),
        "pbc": np.array([s.pbc for s in structures]),
    }
    for name in sorted({name for s in structures for name in s.labels}):
        example = next(np.asarray(s.labels[name]) for s in structures if name in s.labels)
        has = np.array([name in s.labels for s in structures])
        if not has.all():
            tables[f"has_{name}"] = has
        if name == "forces":
            tables[name] = np.concatenate([s.labels.get(name, np.zeros((len(s), 3))) for s in structures])
        else:
            tables[name] = np.array([s.labels.get(name, np.zeros(example.shape)) for s in structures])
    return tables
