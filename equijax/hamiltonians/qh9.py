"""QH9 (arXiv 2306.09549): the SQLite files as published, and the LMDB databases that its code makes of them.

A row holds N, and as raw little-endian bytes Z [N] int32, pos [N, 3] float64 and Ham [nao, nao] float64 in Hartree, in
PySCF's order of orbitals. The stable set has positions in Å, the dynamic sets, whose rows have a geo_id, in bohr.
There is neither an overlap nor an initial Hamiltonian.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.hamiltonians.levels import Level, published_level
from equijax.hamiltonians.plain_records import plain_record
from equijax.orbitals.layout import layout_for
from equijax.orbitals.order import matrix_to_e3nn
from equijax.structure import Structure
from equijax.units import BOHR

COLUMNS = ("id", "N", "Z", "pos", "Ham")
"""Of the SQLite table `data`; the dynamic sets have geo_id, ekin, epot, etot, time and converged besides."""
KEYS = ("id", "num_nodes", "atoms", "pos", "Ham")
"""The same in a record of LMDB; geo_id besides in the dynamic sets."""


def read_qh9_sqlite(path: Path, functional: str | None = None) -> Iterator[Structure]:
    """Molecules in the order of the rows, which is that of the published splits. Raises EquijaxError."""
    level = published_level(path, functional)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(data)")}
        extra = tuple(name for name in ("geo_id", "converged") if name in columns)
        rows = connection.execute(f"SELECT {', '.join(COLUMNS + extra)} FROM data ORDER BY rowid")
        for frame, row in enumerate(rows):
            yield _structure(dict(zip(COLUMNS + extra, row, strict=True)), path, frame, level)
    except sqlite3.Error as error:
        raise located(f"is not a readable table of QH9: {error}", file=path) from None
    finally:
        connection.close()


def read_qh9_lmdb(path: Path, functional: str | None = None) -> Iterator[Structure]:
    """Molecules in the order of their keys; `path` is the folder or the data.mdb in it. Raises EquijaxError."""
    level = published_level(path, functional)
    try:
        import lmdb
    except ImportError as error:
        raise located(
            "is an LMDB database, and the package lmdb is not installed",
            file=path,
            fix="run: pip install 'equijax[data]'",
        ) from error
    try:
        with (
            lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False) as environment,
            environment.begin(buffers=False) as transaction,
        ):
            for frame, (_, value) in enumerate(transaction.cursor()):
                yield _structure(_columns(value, path, frame), path, frame, level)
    except lmdb.Error as error:
        raise located(f"is not a readable LMDB database: {error}", file=path) from None


def _columns(value: bytes, path: Path, frame: int) -> dict[str, Any]:
    try:
        record = plain_record(value)
    except EquijaxError as error:
        raise located(
            f"the record {error}, which are never loaded" if "objects" in str(error) else f"the record {error}",
            file=path,
            frame=frame,
            expected="numbers and bytes, as the code of QH9 writes them",
            fix="read the .db file that the database was made of",
        ) from None
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise located("missing in the record", file=path, frame=frame, key=missing[0], expected=", ".join(KEYS))
    renamed = dict(zip(COLUMNS, (record[key] for key in KEYS), strict=True))
    return renamed | {key: record[key] for key in ("geo_id",) if key in record}


def _structure(row: Mapping[str, Any], path: Path, frame: int, level: Level) -> Structure:
    def array(key: str, dtype: str, shape: Callable[[], tuple[int, ...]]) -> np.ndarray:
        data, expected = row[key], shape()
        size = int(np.prod(expected)) * np.dtype(dtype).itemsize
        if not isinstance(data, bytes) or len(data) != size:
            found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise located(
                f"is {found}", file=path, frame=frame, key=key, expected=f"{size} bytes, {dtype} {list(expected)}"
            )
        return np.frombuffer(data, dtype).reshape(expected)

    count = row["N"]
    if not isinstance(count, int) or not 0 < count < 10_000:
        raise located(f"is {str(count)[:40]!r}", file=path, frame=frame, key="N", expected="the number of atoms")
    numbers = array("Z", "<i4", lambda: (count,)).astype(np.int64)
    if numbers.min() < 1 or numbers.max() > 118:
        raise located(f"has elements {numbers.min()} to {numbers.max()}", file=path, frame=frame, key="Z")
    degrees = layout_for(level.basis, numbers).molecule_degrees(numbers)
    nao = sum(2 * l + 1 for l in degrees)
    matrix = matrix_to_e3nn(array("Ham", "<f8", lambda: (nao, nao)), degrees, "pyscf")
    info: dict[str, Any] = {"basis": level.basis, "functional": level.functional, "id": _identity(row["id"])}
    info |= {key: row[key] for key in ("geo_id", "converged") if key in row}
    return Structure(
        numbers,
        array("pos", "<f8", lambda: (count, 3)) * (BOHR if "geo_id" in row else 1.0),
        labels={"hamiltonian": matrix},
        info=info,
        file=str(path),
        frame=frame,
    )


def _identity(value: Any) -> Any:
    """Numbers of molecules, which the dynamic sets hold as the bytes of an int64."""
    return int.from_bytes(value, "little", signed=True) if isinstance(value, bytes) else value
