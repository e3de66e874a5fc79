"""Writers of files in the layouts of QH9 and of the MD17 Hamiltonians, from molecules in the package's order."""

from __future__ import annotations

import base64
import pickle
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import ase.db
import numpy as np
from ase import Atoms

from equijax.orbitals.layout import LAYOUTS
from equijax.orbitals.order import Program, matrix_from_e3nn
from equijax.structure import Structure
from equijax.units import BOHR

STABLE = "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)"
DYNAMIC = (
    "CREATE TABLE data (id INTEGER NOT NULL, geo_id INTEGER NOT NULL, N INTEGER, Z BLOB, pos BLOB, ekin FLOAT, "
    "epot FLOAT, etot FLOAT, time FLOAT, Ham BLOB, converged INT)"
)


def in_order_of(structure: Structure, name: str, program: Program) -> np.ndarray:
    degrees = LAYOUTS["def2-svp"].molecule_degrees(structure.atomic_numbers)
    return matrix_from_e3nn(np.asarray(structure.labels[name], np.float64), degrees, program)


def qh9_row(structure: Structure, length: float) -> tuple[int, bytes, bytes, bytes]:
    """N, Z, pos and Ham as they are stored; `length` is the unit of positions in Å."""
    numbers = structure.atomic_numbers.astype(np.int32)
    positions = np.asarray(structure.positions / length, np.float64)
    return (
        len(numbers),
        numbers.tobytes(),
        positions.tobytes(),
        in_order_of(structure, "hamiltonian", "pyscf").tobytes(),
    )


def write_qh9_sqlite(path: Path, structures: Sequence[Structure], dynamic: bool = False, converged: int = 1) -> Path:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(DYNAMIC if dynamic else STABLE)
        for index, structure in enumerate(structures):
            n, z, pos, ham = qh9_row(structure, BOHR if dynamic else 1.0)
            if dynamic:
                row = (np.int64(100 + index).tobytes(), index, n, z, pos, 0.0, 0.0, 0.0, 0.0, ham, converged)
            else:
                row = (index + 1, n, z, pos, ham)
            connection.execute(f"INSERT INTO data VALUES ({', '.join('?' * len(row))})", row)
    connection.close()
    return path


def qh9_record(structure: Structure, index: int, dynamic: bool = False) -> dict:
    n, z, pos, ham = qh9_row(structure, BOHR if dynamic else 1.0)
    geo = {"geo_id": index} if dynamic else {}
    return {"id": 100 + index, **geo, "num_nodes": n, "atoms": z, "pos": pos, "Ham": ham}


def write_lmdb(path: Path, records: Sequence[bytes]) -> Path:
    import lmdb

    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index, record in enumerate(records):
            transaction.put(index.to_bytes(4, "big"), record)
    return path


def write_qh9_lmdb(path: Path, structures: Sequence[Structure], dynamic: bool = False, protocol: int = 4) -> Path:
    records = [pickle.dumps(qh9_record(s, i, dynamic), protocol) for i, s in enumerate(structures)]
    return write_lmdb(path, records)


def write_md17(path: Path, structures: Sequence[Structure], program: Program = "orca", as_text: bool = False) -> Path:
    with ase.db.connect(path) as database:
        for structure in structures:
            data: dict = {"energy": np.array([-76.3]), "forces": np.zeros((len(structure), 3))}
            for name in ("hamiltonian", "overlap"):
                matrix = in_order_of(structure, name, program)
                if as_text:
                    data |= {f"_shape_{name}": list(matrix.shape), f"_dtype_{name}": str(matrix.dtype)}
                data[name] = base64.b64encode(matrix.tobytes()).decode() if as_text else matrix
            database.write(Atoms(structure.atomic_numbers, structure.positions), data=data)
    return path
